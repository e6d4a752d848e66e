"""Replaying recorded trajectories: the same observations at the same moments, decided on anew.

The store's clock is set to the moment of each event: starts, outcomes, steps and ends, in that order where several
have the same moment, and the outcome of a step behind it. So whatever the policy reads from the store, as of now, is
what it would have known then. A policy that is a function of what it is given, and of what it reads from the store,
decides the same again; verdicts are not replayed, since whoever judged can judge again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from tiermem.clock import SimulatedClock
from tiermem.codec.serialize import encode
from tiermem.errors import InvalidArgument
from tiermem.trajectory.run import Run
from tiermem.trajectory.types import Outcome, Step, Trajectory

if TYPE_CHECKING:
    from tiermem.trajectory.trajectories import Trajectories


class Decision(NamedTuple):
    """What an agent does about an observation, and what it expects of it."""

    action: Any = None
    predicted: Any = None


class Replayed(NamedTuple):
    """A recorded trajectory's id, that of its replay, and the numbers of the steps that were decided otherwise."""

    recorded: str
    trajectory: str
    differing: tuple[int, ...]


Policy: TypeAlias = Callable[[Run, Step], Decision]
"""Called with the run that is replayed and the recorded step, of which it sees number, time, observation and vector."""
Event: TypeAlias = tuple[tuple[float, int, int, int, int], Callable[[], None]]
"""(moment, kind, trajectory, step, resolution) to sort by, and what happens."""


def replay(trail: Trajectories, recorded: Iterable[Trajectory], policy: Policy) -> list[Replayed]:
    """Replay trajectories into `trail`, whose store goes by a `SimulatedClock` that stands at or before their start.

    Each gets a new trajectory of the same agent, task and metadata, with the recorded observations, vectors, rewards,
    outcomes and end, and the policy's decisions. Decisions are the same if their encodings are, byte by byte.

    Raises:
        InvalidArgument: the store goes by another clock, or it stands behind the first start. Whatever `policy` raises.
    """
    chosen = list(recorded)
    clock = trail.mem.clock
    if not isinstance(clock, SimulatedClock):
        raise InvalidArgument("a replay sets the clock: open the store with a SimulatedClock")
    first = min((trajectory.started for trajectory in chosen), default=clock.now())
    if clock.now() > first:
        raise InvalidArgument(f"the clock stands at {clock.now()}, behind the first start, {first}")
    replay_ = _Replay(trail, policy)
    agenda = sorted(
        (event for place, trajectory in enumerate(chosen) for event in replay_.events(place, trajectory)),
        key=lambda event: event[0],
    )
    for (moment, *_), happen in agenda:
        clock.set(moment)
        happen()
    return [Replayed(old, run.id, tuple(replay_.differing[old])) for old, run in replay_.runs.items()]


class _Replay:
    """What has been replayed so far."""

    def __init__(self, trail: Trajectories, policy: Policy) -> None:
        self.runs: dict[str, Run] = {}
        self.differing: dict[str, list[int]] = {}
        self._trail = trail
        self._policy = policy
        self._taken: dict[str, str] = {}

    def events(self, place: int, trajectory: Trajectory) -> Iterator[Event]:
        """Everything that happens in a trajectory, with what it is sorted by; `place` is its place among the others."""
        yield (trajectory.started, 0, place, 0, 0), partial(self._start, trajectory)
        for step in trajectory.steps:
            yield (step.at, 2, place, step.number, 0), partial(self._step, trajectory, step)
            for index, outcome in enumerate(step.outcomes, 1):
                order = 1 if outcome.resolved_at > step.at else 2
                yield (outcome.resolved_at, order, place, step.number, index), partial(self._resolve, step, outcome)
        if trajectory.finished is not None:
            yield (trajectory.finished, 3, place, 0, 0), partial(self._end, trajectory)

    def _start(self, trajectory: Trajectory) -> None:
        self.runs[trajectory.id] = self._trail.start(trajectory.agent, trajectory.task, metadata=trajectory.metadata)
        self.differing[trajectory.id] = []

    def _step(self, trajectory: Trajectory, step: Step) -> None:
        run = self.runs[trajectory.id]
        shown = Step("", run.id, step.number, step.at, observation=step.observation, vector=step.vector)
        action, predicted = self._policy(run, shown)
        self._taken[step.id] = run.step(
            observation=step.observation, action=action, predicted=predicted, reward=step.reward, vector=step.vector
        )
        if encode([action, predicted]) != encode([step.action, step.predicted]):
            self.differing[trajectory.id].append(step.number)

    def _resolve(self, step: Step, outcome: Outcome) -> None:
        self._trail.resolve(self._taken[step.id], outcome.value)

    def _end(self, trajectory: Trajectory) -> None:
        run = self.runs[trajectory.id]
        if trajectory.state == "abandoned":
            run.abandon(trajectory.reason or "")
        else:
            run.complete(success=trajectory.success)
