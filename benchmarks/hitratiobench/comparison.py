"""What the policies have in common that are here for comparison only."""

from __future__ import annotations

from tiermem.protocols import EntryId

Moved = tuple[list[EntryId], list[EntryId]]
"""Entries that are to be watched again, and those that are evicted."""


class Comparison:
    """Base of the comparison-only policies: unit costs, no discards, no updates."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0

    def admit(self, entry: EntryId, cost: int) -> bool:
        raise NotImplementedError

    def touch(self, entry: EntryId) -> bool:
        raise NotImplementedError

    def shrink(self) -> Moved:
        raise NotImplementedError

    def discard(self, entry: EntryId) -> None:
        raise NotImplementedError("a trace discards nothing")

    def clear(self) -> None:
        raise NotImplementedError("a trace clears nothing")
