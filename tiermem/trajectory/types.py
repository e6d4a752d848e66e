"""What a reader of trajectories gets: trajectories, steps, outcomes and verdicts, as they were known at one moment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias, get_args

from msgspec import Struct

if TYPE_CHECKING:
    from tiermem.types import FloatArray

State: TypeAlias = Literal["running", "completed", "abandoned"]
Label: TypeAlias = Literal["correct", "incorrect", "very_wrong", "insufficient"]
LABELS: Final[tuple[Label, ...]] = get_args(Label)


class Outcome(NamedTuple):
    """What a step led to, and since when that is known (epoch seconds)."""

    value: Any
    resolved_at: float


class Step(Struct, frozen=True, eq=False):
    """One step of a trajectory, as it was known at one moment.

    `number` counts from 0 in the order the steps were taken, `at` is when (epoch seconds; it never falls from one
    step to the next). What was not given is None. `vector` is float32 of shape (dimension,). `outcome` and
    `resolved_at` are those of the last resolution that was known, or None; `earlier` are the ones it corrected,
    oldest first.
    """

    id: str
    trajectory: str
    number: int
    at: float
    observation: Any = None
    action: Any = None
    predicted: Any = None
    reward: float | None = None
    vector: FloatArray | None = None
    outcome: Any = None
    resolved_at: float | None = None
    earlier: tuple[Outcome, ...] = ()

    @property
    def pending(self) -> bool:
        """True if it predicted something and no outcome was known. A step that predicts nothing awaits none."""
        return self.resolved_at is None and self.predicted is not None

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """Every resolution that was known, oldest first; the last one counts."""
        if self.resolved_at is None:
            return ()
        return (*self.earlier, Outcome(self.outcome, self.resolved_at))


class StepVerdict(NamedTuple):
    """What a judge made of one step: `step` is its id, `error` what the judge measured (0 is best)."""

    step: str
    label: Label
    error: float


class Verdict(Struct, frozen=True):
    """What a judge made of a trajectory, as it was known at one moment.

    `judge` names who judged. `error` is what the label was taken from (0 is best; None where nothing could be
    judged). Of `judged` steps `hits` were correct. `confidence` in [0, 1] is the posterior probability that the label
    is on the right side, given as many steps; [`low`, `high`] is the interval of the true share of hits.
    `known_at` is the time of the newest fact that was looked at (epoch seconds): before that, nobody could have
    judged so. `steps` are those judged, in their order. `note` is the judge's own words, if it has any.
    """

    trajectory: str
    judge: str
    label: Label
    error: float | None
    judged: int
    hits: int
    confidence: float
    low: float
    high: float
    known_at: float
    steps: tuple[StepVerdict, ...] = ()
    note: str | None = None

    @property
    def success(self) -> bool | None:
        """True for correct, False for incorrect and very_wrong, None where nothing could be judged."""
        return None if self.label == "insufficient" else self.label == "correct"


class Judgement(NamedTuple):
    """A verdict that was recorded, and since when it is known (epoch seconds)."""

    verdict: Verdict
    at: float


class Trajectory(Struct, frozen=True, eq=False):
    """One run of an agent at a task, as it was known at one moment. Ids sort by the time of the start, then by arrival.

    `started` and `finished` are epoch seconds. `reason` is why it was abandoned. `success` is the label given when it
    was completed, if there was one. `judgements` are the recorded verdicts, oldest first.
    """

    id: str
    agent: str
    task: str
    metadata: dict[str, Any]
    started: float
    finished: float | None = None
    state: State = "running"
    reason: str | None = None
    success: bool | None = None
    steps: tuple[Step, ...] = ()
    judgements: tuple[Judgement, ...] = ()

    @property
    def verdict(self) -> Verdict | None:
        """The last recorded verdict that was known, or None."""
        return self.judgements[-1].verdict if self.judgements else None

    @property
    def pending(self) -> tuple[Step, ...]:
        """The steps whose outcome is still to come."""
        return tuple(step for step in self.steps if step.pending)

    @property
    def settled(self) -> bool:
        """True if it has ended and no outcome is still to come."""
        return self.state != "running" and not any(step.pending for step in self.steps)

    @property
    def known_at(self) -> float:
        """The time of the newest fact told of here but for verdicts: start, steps, outcomes, end (epoch seconds)."""
        times = [self.started if self.finished is None else self.finished]
        times += [step.at for step in self.steps]
        times += [step.resolved_at for step in self.steps if step.resolved_at is not None]
        return max(times)
