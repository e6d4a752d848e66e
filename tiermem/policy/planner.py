"""The planner: whether a segment is searched through its graph or exactly, and how broadly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

FEW: Final = 16
"""A row met on a walk costs as much as so many compared one after the other."""
EFFORT: Final = 128
"""Breadth of a walk for ten results among all rows."""
WIDEST: Final = 2_048
_SIGMAS: Final = 4.0
_ROUNDING: Final = 1e-5
"""Of a float32 distance: the sum of as many products as there are dimensions."""


class Plan(NamedTuple):
    """`effort` 0: compare every allowed row; else walk the graph that broadly and score `rows` of it exactly."""

    effort: int
    rows: int


EXACTLY: Final = Plan(0, 0)


def glance(way: Plan, k: int) -> Plan:
    """What is enough to see whether any of a segment's rows is among the k best of all."""
    return Plan(max(way.effort // 5, k), k)


def promising(count: int, k: int) -> bool:
    """Whether so many at a glance call for a closer look: one that is missed then matters."""
    return 2 * count > k


def plan(rows: int, allowed: int, k: int, effort: int | None) -> Plan:
    """How to find the k best among `allowed` of a segment's `rows`.

    A walk meets few allowed rows where few are allowed, so it must be the broader; once it would have
    to be broader than `WIDEST`, comparing every row costs less. Candidates come in the order of 8-bit
    codes: the k best are among the first 2k, and `contenders` tells which of these it can be.
    """
    count = 2 * k + 8
    breadth = max(effort or EFFORT, count)
    if effort is None:
        breadth = max(breadth, round(breadth * (k / 10) ** 0.5))
    breadth = round(breadth * (rows / allowed) ** 0.6)
    if allowed <= FEW * breadth or breadth > max(WIDEST, 8 * count):
        return EXACTLY
    return Plan(breadth, count)


def contenders(distances: Sequence[float], k: int, noise: float, *, squared: bool, within: float = math.inf) -> int:
    """How many of the candidates, nearest first, can be among the k nearest, and no further than `within`.

    `noise` is the standard deviation of a coordinate of theirs, so that of an inner product with a unit vector, and
    2√d times it that of a squared distance d. Two of them have to differ by `_SIGMAS` of their difference.
    """
    edge = within
    if len(distances) >= k and not within < distances[k - 1]:
        edge = distances[k - 1]
    if edge == math.inf:
        return len(distances)
    one = 2 * noise * math.sqrt(max(edge, 0.0)) if squared else noise
    furthest = edge + _SIGMAS * math.sqrt(2) * one + _ROUNDING * (1 + abs(edge))
    count = 0
    # Not less or equal: what is not a number is compared exactly.
    while count < len(distances) and not distances[count] > furthest:
        count += 1
    return count
