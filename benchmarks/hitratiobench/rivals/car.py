"""CAR: two clocks, whose shares follow what was missed."""

from __future__ import annotations

from collections import OrderedDict

from hitratiobench.comparison import Comparison, Moved
from tiermem.protocols import EntryId


class CAR(Comparison):
    """CAR. S. Bansal, D. S. Modha: CAR: CLOCK with adaptive replacement. FAST 2004."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.once: OrderedDict[EntryId, bool] = OrderedDict()
        self.often: OrderedDict[EntryId, bool] = OrderedDict()
        self.ghosts_once: OrderedDict[EntryId, None] = OrderedDict()
        self.ghosts_often: OrderedDict[EntryId, None] = OrderedDict()
        self.target = 0.0
        self.moved: Moved = [], []

    def admit(self, entry: EntryId, cost: int) -> bool:
        self.moved = self.make_room(entry) if self.used >= self.capacity else ([], [])
        once, often = self.ghosts_once, self.ghosts_often
        if entry in once:
            self.target = min(self.target + max(1, len(often) / len(once)), self.capacity)
            del once[entry]
            self.often[entry] = False
        elif entry in often:
            self.target = max(self.target - max(1, len(once) / len(often)), 0)
            del often[entry]
            self.often[entry] = False
        else:
            self.once[entry] = False
        self.used += 1
        return False

    def touch(self, entry: EntryId) -> bool:
        (self.once if entry in self.once else self.often)[entry] = True
        return True

    def make_room(self, entry: EntryId) -> Moved:
        demoted: dict[EntryId, None] = {}
        while True:
            clock = self.once if self.once and len(self.once) >= max(1, self.target) else self.often or self.once
            victim, referenced = clock.popitem(last=False)
            if not referenced:
                break
            self.often[victim] = False
            demoted[victim] = None
        (self.ghosts_once if clock is self.once else self.ghosts_often)[victim] = None
        self.used -= 1
        demoted.pop(victim, None)
        if entry not in self.ghosts_once and entry not in self.ghosts_often:
            if len(self.once) + len(self.ghosts_once) >= self.capacity and self.ghosts_once:
                self.ghosts_once.popitem(last=False)
            elif self.used + len(self.ghosts_once) + len(self.ghosts_often) >= 2 * self.capacity and self.ghosts_often:
                self.ghosts_often.popitem(last=False)
        return list(demoted), [victim]

    def shrink(self) -> Moved:
        moved, self.moved = self.moved, ([], [])
        return moved
