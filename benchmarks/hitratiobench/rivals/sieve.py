"""SIEVE: one queue, and a hand that passes over what was visited."""

from __future__ import annotations

from hitratiobench.comparison import Comparison, Moved
from tiermem.protocols import EntryId


class Sieve(Comparison):
    """SIEVE. Y. Zhang, J. Yang, Y. Yue, Y. Vigfusson, K. V. Rashmi: SIEVE is simpler than LRU. NSDI 2024."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.newer: dict[EntryId, EntryId | None] = {}
        self.older: dict[EntryId, EntryId | None] = {}
        self.visited: dict[EntryId, bool] = {}
        self.newest: EntryId | None = None
        self.oldest: EntryId | None = None
        self.hand: EntryId | None = None

    def admit(self, entry: EntryId, cost: int) -> bool:
        self.older[entry], self.newer[entry], self.visited[entry] = self.newest, None, False
        if self.newest is None:
            self.oldest = entry
        else:
            self.newer[self.newest] = entry
        self.newest = entry
        self.used += 1
        return False

    def touch(self, entry: EntryId) -> bool:
        self.visited[entry] = True
        return True

    def shrink(self) -> Moved:
        demoted: list[EntryId] = []
        evicted: list[EntryId] = []
        while self.used > self.capacity:
            # The hand never meets the entry just admitted: it was not there when its room was made.
            at = self.hand or self.oldest
            while at is not None and self.visited[at]:
                self.visited[at] = False
                demoted.append(at)
                at = self.newer[at]
                if at == self.newest:
                    at = self.oldest
            assert at is not None
            older, newer = self.older.pop(at), self.newer.pop(at)
            if older is None:
                self.oldest = newer
            else:
                self.newer[older] = newer
            if newer is None:
                self.newest = older
            else:
                self.older[newer] = older
            self.hand = None if newer == self.newest else newer
            del self.visited[at]
            self.used -= 1
            evicted.append(at)
        gone = set(evicted)
        return [entry for entry in demoted if entry not in gone], evicted
