"""Recall and latency as a curve, read between the measured points."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

Bound = Literal["", "≤ ", "≥ "]
PERCENTILES = ("p50", "p95", "p99")
CEILING = 1e-5
"""Of 1 − recall, where it is taken the logarithm of."""


@dataclass(frozen=True)
class Read:
    """A number, and whether it is one or a bound on one."""

    value: float
    bound: Bound = ""

    def __str__(self) -> str:
        return f"{self.bound}{self.value:.2f}"


def points(turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The points of a subject, each figure the median over its turns."""
    if not turns:
        return []
    out = []
    for place, point in enumerate(turns[0]["points"]):
        same = [turn["points"][place] for turn in turns if place < len(turn["points"])]
        out.append({"effort": point["effort"]} | {name: middle(same, name) for name in ("recall", *PERCENTILES)})
    return out


def middle(rows: Sequence[dict[str, Any]], name: str) -> float | None:
    """The median of a figure, None where it is nowhere."""
    known = [row[name] for row in rows if row[name] is not None]
    return statistics.median(known) if known else None


def front(found: Sequence[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    """(recall, latency) of the points that no other beats in both, by recall."""
    best: list[tuple[float, float]] = []
    for recall, latency in sorted(
        ((point["recall"], point[name]) for point in found if point[name] is not None),
        key=lambda one: (-one[0], one[1]),
    ):
        if not best or latency < best[-1][1]:
            best.append((recall, latency))
    return best[::-1]


def latency_at(found: Sequence[dict[str, Any]], recall: float, name: str) -> Read | None:
    """The latency at which a curve reaches a recall.

    Between two points the logarithm of the latency is linear in log(1 − recall). Below the first point it is no more
    than that point's, which is a bound; beyond the last it is no less than that one's.
    """
    curve = front(found, name)
    if not curve:
        return None
    if recall <= curve[0][0]:
        return Read(curve[0][1], "" if recall == curve[0][0] else "≤ ")
    for (low, fast), (high, slow) in pairwise(curve):
        if low <= recall <= high:
            left, right, here = (math.log(max(1 - one, CEILING)) for one in (low, high, recall))
            part = (here - left) / (right - left) if right != left else 1.0
            return Read(math.exp(math.log(fast) + part * (math.log(slow) - math.log(fast))))
    return Read(curve[-1][1], "≥ ")


def default(found: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The point of the default effort."""
    return next((point for point in found if point["effort"] is None), None)


def chosen(found: Sequence[dict[str, Any]], floor: float) -> dict[str, Any] | None:
    """The default if it has the recall asked for, else the fastest point that does, else the default."""
    own = default(found)
    if own is not None and own["recall"] >= floor:
        return own
    able = [point for point in found if point["recall"] >= floor and point["p95"] is not None]
    return min(able, key=lambda point: point["p95"]) if able else own


@dataclass(frozen=True)
class Ratio:
    """Latency over that of a rival at the same recall: one number for each turn."""

    turns: list[Read]

    @property
    def middle(self) -> Read:
        """The median; a bound if any turn is one."""
        bounds = [one.bound for one in self.turns if one.bound]
        return Read(statistics.median(one.value for one in self.turns), bounds[0] if bounds else "")

    def __str__(self) -> str:
        values = [one.value for one in self.turns]
        spread = f" ({min(values):.2f}–{max(values):.2f})" if len(values) > 1 else ""
        return f"{self.middle}{spread}"


def ratio(
    ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], effort: int | None, name: str
) -> Ratio | None:
    """Turn by turn, the latency of our point of an effort over theirs at its recall."""
    flipped: dict[Bound, Bound] = {"": "", "≤ ": "≥ ", "≥ ": "≤ "}
    found = []
    for mine, other in zip(ours, theirs, strict=False):
        point = next((point for point in mine["points"] if point["effort"] == effort), None)
        at = latency_at(other["points"], point["recall"], name) if point and point[name] is not None else None
        if at is not None:
            found.append(Read(point[name] / at.value, flipped[at.bound]))
    return Ratio(found) if found else None
