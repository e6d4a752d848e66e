"""Trajectories as JSON Lines: one trajectory a line, with its steps, every resolution of them, its end and verdicts.

Values JSON has no type for are written as `tiermem.codec.jsonform` says.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from tiermem.codec import jsonform
from tiermem.errors import EncodingError, InvalidArgument
from tiermem.trajectory.layout import RESERVED, bound, check_id, make_id, number, step_of
from tiermem.trajectory.types import Judgement, Outcome, State, Step, Trajectory, Verdict
from tiermem.trajectory.views import EVER, check_verdict, step_value, verdict_value, view, views

if TYPE_CHECKING:
    from tiermem.trajectory.trajectories import Trajectories
    from tiermem.types import Progress


class _Resolution(Struct, forbid_unknown_fields=True):
    value: Any
    resolved_at: float


class _Step(Struct, forbid_unknown_fields=True):
    id: str
    at: float
    observation: Any = None
    action: Any = None
    predicted: Any = None
    reward: float | None = None
    vector: list[float] | None = None
    outcomes: list[_Resolution] = []


class _Judgement(Struct, forbid_unknown_fields=True):
    verdict: Verdict
    at: float


class _Line(Struct, forbid_unknown_fields=True):
    """The shape of a line."""

    id: str
    agent: str
    task: str
    metadata: dict[str, Any]
    started: float
    finished: float | None = None
    state: State = "running"
    reason: str | None = None
    success: bool | None = None
    steps: list[_Step] = []
    judgements: list[_Judgement] = []


def form(trajectory: Trajectory) -> dict[str, Any]:
    """A trajectory as it is written: two that say the same have the same form."""
    return {
        "id": trajectory.id,
        "agent": trajectory.agent,
        "task": trajectory.task,
        "metadata": trajectory.metadata,
        "started": trajectory.started,
        "finished": trajectory.finished,
        "state": trajectory.state,
        "reason": trajectory.reason,
        "success": trajectory.success,
        "steps": [
            {**_step_form(step), "outcomes": [outcome._asdict() for outcome in step.outcomes]}
            for step in trajectory.steps
        ],
        "judgements": [{"verdict": verdict_value(verdict), "at": at} for verdict, at in trajectory.judgements],
    }


def _step_form(step: Step) -> dict[str, Any]:
    vector = None if step.vector is None else step.vector.tolist()
    return {"id": step.id, "at": step.at, **step_value(step), **({} if vector is None else {"vector": vector})}


def parse(line: bytes) -> Trajectory:
    """The trajectory of one line; `vector` is float32 again.

    Raises:
        InvalidArgument, NotJson: it tells none that could be.
    """
    try:
        # Objects of the line itself have no tag, so that untagging it whole untags the values in it.
        told = msgspec.convert(jsonform.from_json(jsonform.parse(line)), _Line)
    except (msgspec.ValidationError, UnicodeEncodeError) as exc:
        raise InvalidArgument(str(exc)) from exc
    trajectory = Trajectory(
        check_id(told.id),
        told.agent,
        told.task,
        told.metadata,
        told.started,
        told.finished,
        told.state,
        told.reason,
        told.success,
        tuple(_step(told.id, step) for step in told.steps),
        tuple(Judgement(one.verdict, one.at) for one in told.judgements),
    )
    _check(trajectory)
    return trajectory


def _step(trajectory: str, told: _Step) -> Step:
    of, place = step_of(told.id)
    if of != trajectory:
        raise InvalidArgument(f"step {told.id} is of another trajectory than {trajectory}")
    vector = None
    if told.vector is not None:
        import numpy as np

        with np.errstate(over="ignore"):
            # What is beyond float32 is infinite, and refused as such.
            vector = np.array(told.vector, np.float32)
    reward = None if told.reward is None else number("reward", told.reward)
    given = (told.observation, told.action, told.predicted, reward, vector)
    known = tuple(Outcome(one.value, one.resolved_at) for one in told.outcomes)
    if any(value is None for value, _ in known):
        raise InvalidArgument(f"step {told.id}: an outcome is not null")
    step = Step(told.id, trajectory, place, told.at, *given)
    return step if not known else Step(told.id, trajectory, place, told.at, *given, *known[-1], known[:-1])


def _check(told: Trajectory) -> None:
    """InvalidArgument where times or names contradict each other."""
    if told.id[:16] != bound(told.started):
        raise InvalidArgument(f"trajectory {told.id} did not begin at {told.started}")
    if (told.finished is None) != (told.state == "running"):
        raise InvalidArgument("what is finished has ended, and what has ended is finished")
    for name in RESERVED:
        if name in told.metadata:
            raise InvalidArgument(f"metadata: {name!r} is a field of its own")
    # Not that they rise from step to step: two that resumed it at once have clocks of their own.
    if any(at is not None and at < told.started for at in (told.finished, *(step.at for step in told.steps))):
        raise InvalidArgument("a step or the end lies before the start")
    if len({step.id for step in told.steps}) < len(told.steps):
        raise InvalidArgument("two steps have one id")
    for step in told.steps:
        known = [step.at, *(outcome.resolved_at for outcome in step.outcomes)]
        if any(later < earlier for earlier, later in pairwise(known)):
            raise InvalidArgument(f"step {step.id}: the times of its outcomes fall")
    for verdict, at in told.judgements:
        if check_verdict(verdict).trajectory != told.id or at < max(verdict.known_at, told.started):
            raise InvalidArgument("a verdict is of another trajectory, or of what was not known yet")


def facts(trajectory: Trajectory) -> Iterator[tuple[float, dict[str, Any]]]:
    """(since when it is known, what is stored) of everything that came after the steps, as it came."""
    for step in trajectory.steps:
        for value, resolved_at in step.outcomes:
            yield resolved_at, {"step": step.id[len(trajectory.id) + 1 :], "outcome": value}
    if trajectory.finished is not None:
        end = {"state": trajectory.state, "reason": trajectory.reason, "success": trajectory.success}
        yield trajectory.finished, {name: item for name, item in end.items() if item is not None}
    for verdict, at in trajectory.judgements:
        yield at, {"verdict": verdict_value(verdict)}


def write(trail: Trajectories, path: Path, as_of: float, progress: Progress | None) -> int:
    """Write those begun by `as_of` as they were known then; how many. A file that has the name holds all of them."""
    total = trail.mem.count(trail.places.heads)
    part = path.with_name(path.name + ".part")
    done = 0
    with part.open("w", encoding="ascii") as file:
        for done, trajectory in enumerate(views(trail.mem, trail.places, as_of), 1):
            file.write(jsonform.dumps(form(trajectory)) + "\n")
            if progress is not None:
                progress(done, total)
    part.replace(path)
    return done


def read(trail: Trajectories, path: Path, progress: Progress | None) -> int:
    """Add what the lines of a file tell and the store does not hold yet; how many lines told something new.

    Raises:
        InvalidArgument: a line is malformed, or contradicts what is there; its number is told. Lines before it stand.
    """
    new = done = 0
    total = os.stat(path).st_size
    with path.open("rb") as file:
        for place, line in enumerate(file, 1):
            try:
                new += bool(line.strip()) and _add(trail, parse(line))
            except (jsonform.NotJson, InvalidArgument, EncodingError) as exc:
                raise InvalidArgument(f"line {place}: {exc}") from exc
            done += len(line)
            if progress is not None:
                progress(done, total)
    return new


def _add(trail: Trajectories, told: Trajectory) -> bool:
    """Add what is new of one trajectory, all of it or nothing; True if there was something."""
    mem, places = trail.mem, trail.places
    head = mem.get_record(places.heads, told.id)
    known = None if head is None else view(mem, places, head, EVER)
    taken: dict[str, str] = {}
    there: Counter[str] = Counter()
    if known is not None:
        _agree(f"trajectory {told.id}", *(jsonform.dumps([one.agent, one.task, one.metadata]) for one in (known, told)))
        if known.finished is not None and told.finished is not None:
            ends = ([one.finished, one.state, one.reason, one.success] for one in (known, told))
            _agree(f"the end of trajectory {told.id}", *map(jsonform.dumps, ends))
        taken = {step.id: jsonform.dumps(_step_form(step)) for step in known.steps}
        there = Counter(jsonform.dumps(fact) for fact in facts(known))
    with mem.batch() as batch:
        if known is None:
            metadata = {**told.metadata, "agent": told.agent, "task": told.task}
            batch.put(places.heads, told.id, None, metadata=metadata, at=told.started)
        for step in told.steps:
            if step.id in taken:
                _agree(f"step {step.id}", taken[step.id], jsonform.dumps(_step_form(step)))
            elif known is not None and known.finished is not None:
                raise InvalidArgument(f"trajectory {told.id} has ended, without step {step.id}")
            else:
                batch.put(places.steps, step.id, step_value(step), vector=step.vector, at=step.at)
        for moment, value in facts(told):
            text = jsonform.dumps((moment, value))
            if there[text]:
                there[text] -= 1
            else:
                batch.put(places.facts, f"{told.id}/{make_id(moment)}", value, at=moment)
        return len(batch) > 0


def _agree(what: str, known: str, told: str) -> None:
    if known != told:
        raise InvalidArgument(f"{what} is there, and says something else")
