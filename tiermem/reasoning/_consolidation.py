"""Consolidation: what becomes of lessons that say the same, contradict each other, or no longer hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec.structs import replace

from tiermem.errors import InvalidArgument
from tiermem.reasoning._ledger import Version, Written, union
from tiermem.reasoning.cluster import reachable, unit_rows
from tiermem.reasoning.inference import surprise

if TYPE_CHECKING:
    from tiermem.types import FloatArray

_BLOCK: Final = 2048
"""Rows compared at a time."""


@dataclass(frozen=True)
class Upkeep:
    """When `consolidate` merges, links and retires lessons.

    duplicate: cosine from which two lessons of one kind and action are one, with all that are so linked. contradiction:
    cosine from which a success and a failure of one action contradict each other. weakest: reliability below which a
    lesson is retired; 0: never.
    stale_after: seconds without new evidence or use after which it is retired; None: never.
    """

    duplicate: float = 0.95
    contradiction: float = 0.9
    weakest: float = 0.5
    stale_after: float | None = 180 * 86_400.0

    def __post_init__(self) -> None:
        for name in ("duplicate", "contradiction"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise InvalidArgument(f"{name} is a cosine in (0, 1], not {getattr(self, name)!r}")
        if not 0.0 <= self.weakest <= 1.0:
            raise InvalidArgument(f"weakest is a probability, not {self.weakest!r}")
        if self.stale_after is not None and not self.stale_after > 0.0:
            raise InvalidArgument(f"stale_after is seconds > 0 or None, not {self.stale_after!r}")


Reliability = Callable[[Version], float]
Confirmed = Callable[[Version], float]
Rewrite = Callable[[Written], Written]


def consolidated(
    lessons: Iterable[Written],
    at: float,
    upkeep: Upkeep,
    *,
    reliability_of: Reliability,
    confirmed_at: Confirmed,
    rewrite: Rewrite,
) -> list[Written]:
    """The new versions of those of the live `lessons` that change at time `at`, in the order of their ids.

    Doing it twice changes nothing the second time, and no order of the lessons matters, but that means are summed
    in it: vectors agree to 1e-6. `rewrite` gives a merged lesson its words.
    """
    before = {one.version.lesson: one for one in lessons}
    after = dict(before)
    while groups := _duplicates([one for one in after.values() if one.version.status == "live"], upkeep.duplicate):
        for group in groups:
            for one in _merged(group, rewrite):
                after[one.version.lesson] = one
    for id_, one in after.items():
        if one.version.status == "live" and (reason := _retired(one.version, at, upkeep, reliability_of, confirmed_at)):
            after[id_] = _changed(one, status="retired", reason=reason, contradicts=[])
    links = _contradictions([one for one in after.values() if one.version.status == "live"], upkeep.contradiction)
    for id_, one in after.items():
        if one.version.status == "live" and one.version.contradicts != links.get(id_, []):
            met = links.get(id_, [])
            reason = f"contradicts {', '.join(met)}" if met else "contradicts no lesson any more"
            # Where it was merged as well, that is the better reason.
            told = one.version.reason if one is not before[id_] else reason
            after[id_] = _changed(one, contradicts=met, reason=told)
    return [
        Written(replace(one.version, number=before[id_].version.number + 1), one.vector)
        for id_, one in sorted(after.items())
        if one is not before[id_]
    ]


def _changed(one: Written, **changes: object) -> Written:
    return Written(replace(one.version, **changes), one.vector)


def _merged(group: Sequence[Written], rewrite: Rewrite) -> list[Written]:
    """One lesson for all of a group: that of the most evidence; the others are kept as merged."""
    ranked = sorted(group, key=lambda one: (-len(one.version.evidence), one.version.content, one.version.lesson))
    first, others = ranked[0], ranked[1:]
    masses = [math.fsum(evidence.weight for evidence in one.version.evidence) or 1.0 for one in ranked]
    total = sum(mass * one.vector.astype(np.float64) for mass, one in zip(masses, ranked, strict=True))
    vector = unit_rows(np.asarray(total)[None, :])[0]
    confirmed = [one.version.confirmed_at for one in ranked if one.version.confirmed_at is not None]
    evidence = union(one.version.evidence for one in ranked)
    kept = replace(
        first.version,
        reason=f"merged with {', '.join(one.version.lesson for one in others)}",
        evidence=evidence,
        p_value=surprise(evidence, first.version.baseline),
        agents=sorted({agent for one in ranked for agent in one.version.agents}),
        tasks=sorted({task for one in ranked for task in one.version.tasks}),
        absorbed=sorted(
            {id_ for one in ranked for id_ in one.version.absorbed} | {one.version.lesson for one in others}
        ),
        confirmed_at=max(confirmed, default=None),
    )
    gone = [
        _changed(one, status="merged", merged_into=kept.lesson, reason=f"merged into {kept.lesson}", contradicts=[])
        for one in others
    ]
    return [rewrite(Written(kept, vector)), *gone]


def _retired(
    version: Version, at: float, upkeep: Upkeep, reliability_of: Reliability, confirmed_at: Confirmed
) -> str | None:
    """Why a lesson is to be retired, or None."""
    found = reliability_of(version)
    if found < upkeep.weakest:
        return f"weak: reliability {found:.3f}"
    age = at - confirmed_at(version)
    if upkeep.stale_after is not None and age > upkeep.stale_after:
        return f"stale: unconfirmed for {age:.0f} s"
    return None


def _duplicates(lessons: Sequence[Written], threshold: float) -> list[list[Written]]:
    """The connected components, of two and more, of lessons of one kind and action that are near each other."""
    groups: list[list[Written]] = []
    for members in _by(lessons, lambda version: (version.kind, version.action)):
        roots = np.arange(len(members))
        vectors = _stacked(members)
        for one, other in _pairs(vectors, vectors, threshold):
            if roots[one] != roots[other]:
                roots[roots == roots[other]] = roots[one]
        shared = np.flatnonzero(np.bincount(roots, minlength=len(members)) > 1)
        groups += [[members[place] for place in np.flatnonzero(roots == root)] for root in shared]
    return groups


def _contradictions(lessons: Sequence[Written], threshold: float) -> dict[str, list[str]]:
    """The ids of the opposites of every lesson that has any."""
    found: dict[str, list[str]] = {}
    for members in _by(lessons, lambda version: version.action):
        good = [one for one in members if one.version.kind == "success"]
        bad = [one for one in members if one.version.kind == "failure"]
        if good and bad:
            for one, other in _pairs(_stacked(good), _stacked(bad), threshold):
                ids = good[one].version.lesson, bad[other].version.lesson
                found.setdefault(ids[0], []).append(ids[1])
                found.setdefault(ids[1], []).append(ids[0])
    return {id_: sorted(others) for id_, others in found.items()}


def _by(lessons: Sequence[Written], key: Callable[[Version], object]) -> Iterable[list[Written]]:
    """The lessons, sorted by what `key` says of them and by the length of their vectors, which else do not compare."""
    groups: dict[object, list[Written]] = {}
    for one in lessons:
        groups.setdefault((key(one.version), len(one.vector)), []).append(one)
    return groups.values()


def _stacked(lessons: Sequence[Written]) -> FloatArray:
    return np.array([one.vector for one in lessons], np.float32)


def _pairs(rows: FloatArray, others: FloatArray, threshold: float) -> Iterator[tuple[int, int]]:
    """(row, other) of those whose cosine is at least `threshold`."""
    for start in range(0, len(rows), _BLOCK):
        one, other = np.nonzero(rows[start : start + _BLOCK] @ others.T >= reachable(threshold))
        yield from zip((one + start).tolist(), other.tolist(), strict=True)
