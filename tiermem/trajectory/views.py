"""Views: a trajectory put together from its records, as it was known at one moment."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tiermem.errors import CorruptionError, InvalidArgument
from tiermem.trajectory.layout import RESERVED, Places, bound, number, step_of
from tiermem.trajectory.types import Judgement, Outcome, Step, Trajectory, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tiermem.engine.memory import Memory
    from tiermem.types import Record

EVER: Final = sys.float_info.max
"""As of when everything shows that was ever told."""
MANY: Final = 64
"""After as many trajectories, what is pending is committed before more are read: each reads two ranges, and every range
looks through all that is pending."""


def view(mem: Memory, places: Places, head: Record, as_of: float) -> Trajectory | None:
    """The trajectory of `head` as it was known at `as_of`; None if it had not begun."""
    if head.at > as_of:
        return None
    outcomes: dict[str, list[Outcome]] = {}
    judgements: list[Judgement] = []
    end: Record | None = None
    prefix = f"{head.key}/"
    # Facts before steps: what is told in between may be missing, but no step that an end or an outcome came after.
    for fact in mem.scan(places.facts, prefix):
        if fact.at > as_of:
            break
        value = fact.value
        if "step" in value:
            outcomes.setdefault(value["step"], []).append(Outcome(value["outcome"], fact.at))
        elif "verdict" in value:
            judgements.append(Judgement(read_verdict(value["verdict"]), fact.at))
        elif end is None:
            end = fact
    finish = {} if end is None else end.value
    taken = (record for record in mem.scan(places.steps, prefix) if record.at <= as_of)
    return Trajectory(
        head.key,
        head.metadata["agent"],
        head.metadata["task"],
        {name: item for name, item in head.metadata.items() if name not in RESERVED},
        head.at,
        None if end is None else end.at,
        finish.get("state", "running"),
        finish.get("reason"),
        finish.get("success"),
        tuple(_steps(head.key, len(prefix), taken, outcomes)),
        tuple(judgements),
    )


def _steps(trajectory: str, start: int, taken: Iterable[Record], outcomes: dict[str, list[Outcome]]) -> Iterator[Step]:
    for record in taken:
        value = record.value
        known = outcomes.get(record.key[start:])
        last = known[-1] if known else None
        yield Step(
            record.key,
            trajectory,
            int(record.key[start : start + 8]),
            record.at,
            value.get("observation"),
            value.get("action"),
            value.get("predicted"),
            value.get("reward"),
            record.vector,
            None if last is None else last.value,
            None if last is None else last.resolved_at,
            tuple(known[:-1]) if known else (),
        )


def views(
    mem: Memory,
    places: Places,
    as_of: float,
    where: dict[str, Any] | None = None,
    since: float | None = None,
    until: float | None = None,
    *,
    reverse: bool = False,
) -> Iterator[Trajectory]:
    """Those begun in [since, until) whose metadata match, as they were known at `as_of`.

    By the time of their start, or against it. Costs what lies in that range of time.
    """
    low = -math.inf if since is None else since
    high = min(math.inf if until is None else until, math.nextafter(as_of, math.inf))
    start = bound(high if reverse else low)
    for place, head in enumerate(mem.scan(places.heads, start=start, where=where, reverse=reverse)):
        if not low <= head.at < high:
            return
        if place == MANY:
            mem.flush()
        found = view(mem, places, head, as_of)
        if found is not None:
            yield found


def step_value(step: Step) -> dict[str, Any]:
    """What a step's record holds: what was given of it."""
    names = ("observation", "action", "predicted", "reward")
    return {name: item for name in names if (item := getattr(step, name)) is not None}


def read_verdict(value: Any) -> Verdict:
    """The verdict that `verdict_value` wrote.

    Raises:
        CorruptionError: it did not write this.
    """
    try:
        return msgspec.convert(value, Verdict)
    except msgspec.ValidationError as exc:
        raise CorruptionError(f"no verdict: {exc}") from exc


def verdict_value(verdict: Verdict) -> dict[str, Any]:
    """A verdict as it is stored."""
    value: dict[str, Any] = msgspec.to_builtins(verdict)
    return value


def check_verdict(verdict: object) -> Verdict:
    """`verdict`, if it is one that can be read again once it is stored.

    Raises:
        InvalidArgument: it is none, or its steps are of another trajectory.
    """
    if not isinstance(verdict, Verdict):
        raise InvalidArgument(f"a verdict is a Verdict, not {type(verdict).__name__}")
    try:
        msgspec.convert(verdict_value(verdict), Verdict)
    except (TypeError, msgspec.ValidationError) as exc:
        raise InvalidArgument(f"no verdict: {exc}") from exc
    number("known_at", verdict.known_at)
    if any(step_of(one.step)[0] != verdict.trajectory for one in verdict.steps):
        raise InvalidArgument(f"the verdict is of trajectory {verdict.trajectory}, and of steps of another")
    return verdict
