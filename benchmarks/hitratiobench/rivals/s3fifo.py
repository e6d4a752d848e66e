"""S3-FIFO: a small queue on probation, a main one, and ghosts."""

from __future__ import annotations

from collections import OrderedDict

from hitratiobench.comparison import Comparison, Moved
from tiermem.protocols import EntryId


class S3FIFO(Comparison):
    """S3-FIFO. J. Yang, Y. Zhang, Z. Qiu, Y. Yue, R. Vinayak: FIFO queues are all you need. SOSP 2023."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.small: OrderedDict[EntryId, int] = OrderedDict()
        self.main: OrderedDict[EntryId, int] = OrderedDict()
        self.ghosts: OrderedDict[EntryId, None] = OrderedDict()
        self.small_limit = max(capacity // 10, 1)

    def admit(self, entry: EntryId, cost: int) -> bool:
        if entry in self.ghosts:
            del self.ghosts[entry]
            self.main[entry] = 0
        else:
            self.small[entry] = 0
        self.used += 1
        return False

    def touch(self, entry: EntryId) -> bool:
        queue = self.small if entry in self.small else self.main
        queue[entry] = count = min(queue[entry] + 1, 3)
        return count == 3

    def shrink(self) -> Moved:
        demoted: dict[EntryId, None] = {}
        evicted: list[EntryId] = []
        while self.used > self.capacity:
            if self.small and (len(self.small) > self.small_limit or not self.main):
                entry, count = self.small.popitem(last=False)
                if count > 1:
                    self.main[entry] = 0
                    if count == 3:
                        demoted[entry] = None
                    continue
                self.ghosts[entry] = None
                if len(self.ghosts) > self.capacity - self.small_limit:
                    self.ghosts.popitem(last=False)
            else:
                entry, count = self.main.popitem(last=False)
                if count:
                    self.main[entry] = count - 1
                    if count == 3:
                        demoted[entry] = None
                    continue
            self.used -= 1
            demoted.pop(entry, None)
            evicted.append(entry)
        return list(demoted), evicted
