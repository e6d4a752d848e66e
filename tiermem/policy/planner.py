"""The planner: whether a segment is searched through its graph or exactly, and how broadly."""

from __future__ import annotations

from typing import Final, NamedTuple

FEW: Final = 16
"""A row met on a walk costs as much as so many compared one after the other."""
EFFORT: Final = 96
"""Breadth of a walk for ten results among all rows."""
WIDEST: Final = 2_048


class Plan(NamedTuple):
    """`effort` 0: compare every allowed row; else walk the graph that broadly and score `rows` of it exactly."""

    effort: int
    rows: int


EXACTLY: Final = Plan(0, 0)


def plan(rows: int, allowed: int, k: int, effort: int | None) -> Plan:
    """How to find the k best among `allowed` of a segment's `rows`.

    A walk meets few allowed rows where few are allowed, so it must be the broader; once it would have
    to be broader than `WIDEST`, comparing every row costs less. Candidates come in the order of 8-bit
    codes: the k best are among the first 2k.
    """
    count = 2 * k + 8
    breadth = max(effort or EFFORT, count)
    if effort is None:
        breadth = max(breadth, round(breadth * (k / 10) ** 0.5))
    breadth = round(breadth * (rows / allowed) ** 0.6)
    if allowed <= FEW * breadth or breadth > max(WIDEST, 8 * count):
        return EXACTLY
    return Plan(breadth, count)
