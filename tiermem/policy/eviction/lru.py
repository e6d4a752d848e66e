"""Least recently used: exact recency order, paid for with a call on every hit."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tiermem.protocols import EntryId


class LRU:
    """An `EvictionPolicy` that evicts the least recently used entry [1].

    Nothing is ever free: exact order needs to hear of every hit. Both `admit` and `touch` count as a use. An entry
    larger than the capacity is evicted by the next `shrink`, alone. Every operation is O(1), amortised over evictions.

    [1] R. L. Mattson, J. Gecsei, D. R. Slutz, I. L. Traiger: Evaluation techniques for storage hierarchies.
        IBM Systems Journal 9(2), 1970.
    """

    __slots__ = ("_capacity", "_entries", "_oversized", "_used")

    def __init__(self, capacity: int) -> None:
        """`capacity` is the largest sum of costs that `shrink` leaves resident."""
        self._capacity = capacity
        self._used = 0
        self._entries: OrderedDict[EntryId, int] = OrderedDict()
        # Invariant: exactly the residents that cost more than the capacity; apart, so that they push nothing out.
        self._oversized: dict[EntryId, int] = {}

    @property
    def used(self) -> int:
        """Sum of the costs of all resident entries."""
        return self._used

    def admit(self, entry: EntryId, cost: int) -> bool:
        """`entry` became resident, or is resident and now costs `cost`; it is the most recent. Always False."""
        if cost > self._capacity or self._oversized:
            self.discard(entry)
            if cost > self._capacity:
                self._oversized[entry] = cost
                self._used += cost
                return False
        entries = self._entries
        self._used += cost - entries.pop(entry, 0)
        entries[entry] = cost
        return False

    def touch(self, entry: EntryId) -> bool:
        """A hit on `entry`: it is the most recent. Always False; unknown ids are ignored."""
        entries = self._entries
        if entry in entries:
            entries.move_to_end(entry)
        return False

    def discard(self, entry: EntryId) -> None:
        """Forget `entry`; unknown ids are ignored."""
        cost = self._entries.pop(entry, None)
        if cost is None:
            cost = self._oversized.pop(entry, 0)
        self._used -= cost

    def shrink(self) -> tuple[list[EntryId], list[EntryId]]:
        """(demoted, evicted): evicts from the least recent end until `used` ≤ capacity; demotes nothing."""
        evicted: list[EntryId] = []
        if self._used > self._capacity:
            for entry, cost in self._oversized.items():
                evicted.append(entry)
                self._used -= cost
            self._oversized.clear()
            while self._used > self._capacity:
                entry, cost = self._entries.popitem(last=False)
                self._used -= cost
                evicted.append(entry)
        return [], evicted

    def clear(self) -> None:
        """Forget every entry."""
        self._entries.clear()
        self._oversized.clear()
        self._used = 0
