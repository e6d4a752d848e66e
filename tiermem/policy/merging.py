"""Merging: which segments to rewrite as one, so that there are few of them and few tombstones in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

FANOUT: Final = 6
"""So many segments of about one size become one; every row is rewritten once per power of this."""
YOUNG: Final = 32_768
"""Segments of fewer rows are soon merged, and each costs a search about the same:"""
YOUNG_FANOUT: Final = 2
"""so many of one size become one."""
GROWN: Final = 65_536
"""Where a graph can grow, one of fewer rows takes up all that are smaller"""
GROWTH: Final = 8
"""once they hold one part in so many of its rows: each of these is linked once, where merging by twos links it anew
each time."""
MOST_DEAD: Final = 0.25
"""A segment with a larger share of tombstones is rewritten."""


def due(sizes: Mapping[int, tuple[int, int]], *, growing: bool = False) -> list[int]:
    """The segments to merge next, of all with their (rows, dead rows); empty for none.

    Sizes are compared by powers of `FANOUT`, below `YOUNG` by those of `YOUNG_FANOUT`. The smallest are merged first,
    since that is soon done. growing: what is `taken_up` is left out, and what is large but may soon be: whoever takes
    it up while it is merged makes that merge worthless.
    """
    if growing:
        left_out = {number for number, (rows, dead) in sizes.items() if not dead and YOUNG <= rows < GROWN}
        left_out.update(taken_up(sizes))
        sizes = {number: size for number, size in sizes.items() if number not in left_out}
    tiers: dict[int, list[int]] = {}
    for number, (rows, dead) in sizes.items():
        tier, left = 0, max(1, rows - dead)
        while left >= YOUNG * FANOUT:
            left //= FANOUT
            tier += 1
        while left < YOUNG:
            left *= YOUNG_FANOUT
            tier -= 1
        tiers.setdefault(tier, []).append(number)
    for tier in sorted(tiers):
        if len(tiers[tier]) >= (YOUNG_FANOUT if tier < 0 else FANOUT):
            return sorted(tiers[tier])
    return [number for number, (rows, dead) in sorted(sizes.items()) if dead > rows * MOST_DEAD][:1]


def taken_up(sizes: Mapping[int, tuple[int, int]]) -> list[int]:
    """A young segment whose graph is to grow, and those it takes up; empty for none.

    Soon done: not a merge that others have to wait for. Of a graph with dead rows nothing can be kept: one that is
    larger than what can grow stays as it is.
    """
    young = sorted((rows - dead, number) for number, (rows, dead) in sizes.items() if rows - dead < GROWN)
    while young and (sizes[young[-1][1]][1] or sum(rows for rows, _ in young) >= 2 * GROWN):
        young.pop()
    largest = young[-1][0] if young else 0
    rest = sum(rows for rows, _ in young[:-1])
    return sorted(at for _, at in young) if rest * GROWTH >= largest and rest else []
