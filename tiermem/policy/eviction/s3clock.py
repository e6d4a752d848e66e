"""Three static queues with a generalized CLOCK: scan resistance without any work on most hits."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tiermem.protocols import EntryId

# A queue maps an entry to its cost and credits in one integer: cost << 2 | credits.
_SHIFT = 2
_CREDITS = 3
_FREE = 2
_LOOKS = 64


class S3Clock:
    """An `EvictionPolicy` made of a probation queue, a CLOCK with credits and a list of ghosts.

    - *Probation*, a FIFO of a sixth of the capacity, takes every entry at first. An entry touched twice while it waits
      becomes free, and is moved to main when it reaches the end; any other is evicted there, and its hash becomes a
      ghost. This is the quick demotion of S3-FIFO [1, 2]: a scan passes through probation and leaves main alone.
    - A miss on a *ghost* enters main at once, and the ghost is gone. A key that comes back later than the list of
      ghosts is long starts again in probation, which is what keeps most of main in place under a loop too large for it.
    - *Main* is a generalized CLOCK [3, 4]: a touch gives an entry three credits, the hand takes one per lap, and an
      entry without credits is evicted. Entries come to main without credits.

    The point is how credits map to the two kinds of residents. An entry with two or three credits is *free*: its hits
    are not heard of and need not be, for the hand passes it once more, while it is watched, before its turn comes. It
    is watched again when it falls to one credit, and the first touch then restores all three. So a hot entry costs one
    call in two laps of the hand, and everything that fits into the capacity ends up free.

    The hand is bounded: an eviction looks at no more than `_LOOKS` entries, then takes the oldest among those with the
    fewest credits. Unbounded, the first eviction from a full store of free entries would visit all of them.

    Ghosts are hashes, never keys. There are at most 7/5 as many ghosts as residents (and always room for one), and
    the entries they stand for cost at most 7/5 of the capacity together. An entry larger than the capacity is
    evicted by the next `shrink`, alone. Writes (`admit` of a resident) count as touches.

    Every operation is O(1); `shrink` is O(`_LOOKS`) per evicted entry at worst, O(1) amortised over touches.
    `docs/decisions/0001-eviction-policy.md` has the measurements behind the constants.

    [1] J. Yang, Y. Zhang, Z. Qiu, Y. Yue, R. Vinayak: FIFO queues are all you need for cache eviction. SOSP 2023.
    [2] J. Yang, Z. Qiu, Y. Zhang, Y. Yue, K. V. Rashmi: FIFO can be better than LRU: the power of lazy promotion and
        quick demotion. HotOS 2023.
    [3] F. J. Corbató: A paging experiment with the Multics system. MIT Project MAC report MAC-M-384, 1968.
    [4] A. J. Smith: Sequentiality and prefetching in database systems. ACM TODS 3(3), 1978 (CLOCK with counters).
    """

    __slots__ = (
        "_capacity",
        "_ghost_cost",
        "_ghost_limit",
        "_ghosts",
        "_main",
        "_oversized",
        "_probation",
        "_probation_limit",
        "_probation_used",
        "_used",
    )

    def __init__(self, capacity: int) -> None:
        """`capacity` is the largest sum of costs that `shrink` leaves resident."""
        self._capacity = capacity
        self._probation_limit = max(capacity // 6, 1)
        self._ghost_limit = capacity * 7 // 5
        self._used = 0
        self._probation_used = 0
        self._ghost_cost = 0
        # Invariant: an entry is in exactly one of these three; credits ≥ _FREE is the same as being free.
        self._probation: OrderedDict[EntryId, int] = OrderedDict()
        self._main: OrderedDict[EntryId, int] = OrderedDict()
        # Exactly the residents that cost more than the capacity; apart, so that they push nothing out.
        self._oversized: dict[EntryId, int] = {}
        # Hash of an entry to its cost; the oldest first.
        self._ghosts: OrderedDict[int, int] = OrderedDict()

    @property
    def used(self) -> int:
        """Sum of the costs of all resident entries."""
        return self._used

    def admit(self, entry: EntryId, cost: int) -> bool:
        """`entry` became resident, or is resident and now costs `cost`. True: it is free, False: it is watched."""
        if cost > self._capacity or self._oversized:
            if cost > self._capacity:
                self.discard(entry)
                self._oversized[entry] = cost
                self._used += cost
                return False
            self._used -= self._oversized.pop(entry, 0)
        packed = self._main.get(entry)
        if packed is not None:
            self._used += cost - (packed >> _SHIFT)
            self._main[entry] = cost << _SHIFT | _CREDITS
            return True
        packed = self._probation.get(entry)
        if packed is not None:
            change = cost - (packed >> _SHIFT)
            self._used += change
            self._probation_used += change
            credits = min((packed & _CREDITS) + 1, _FREE)
            self._probation[entry] = cost << _SHIFT | credits
            return credits == _FREE
        self._used += cost
        ghost = self._ghosts.pop(hash(entry), None)
        if ghost is not None:
            self._ghost_cost -= ghost
            self._main[entry] = cost << _SHIFT
        else:
            self._probation[entry] = cost << _SHIFT
            self._probation_used += cost
        return False

    def touch(self, entry: EntryId) -> bool:
        """A hit on `entry`. True: it becomes free, or is so already and nothing changes. Unknown ids are ignored."""
        packed = self._main.get(entry)
        if packed is not None:
            if packed & _CREDITS < _FREE:
                self._main[entry] = packed | _CREDITS
            return True
        packed = self._probation.get(entry)
        if packed is None:
            return False
        if packed & _CREDITS < _FREE:
            packed += 1
            self._probation[entry] = packed
        return packed & _CREDITS == _FREE

    def discard(self, entry: EntryId) -> None:
        """Forget `entry`, though not its ghost; unknown ids are ignored."""
        packed = self._main.pop(entry, None)
        if packed is not None:
            self._used -= packed >> _SHIFT
        elif (packed := self._probation.pop(entry, None)) is not None:
            self._used -= packed >> _SHIFT
            self._probation_used -= packed >> _SHIFT
        else:
            self._used -= self._oversized.pop(entry, 0)
            return
        self._trim_ghosts()

    def shrink(self) -> tuple[list[EntryId], list[EntryId]]:
        """(demoted, evicted) such that `used` ≤ capacity afterwards.

        No id is in both. Demoted ids were free; evicted ids were either.
        """
        used, capacity = self._used, self._capacity
        if used <= capacity:
            return [], []
        demoted: list[EntryId] = []
        evicted: list[EntryId] = []
        if self._oversized:
            evicted.extend(self._oversized)
            used -= sum(self._oversized.values())
            self._oversized.clear()
        # One loop over locals, with its three ways to evict written out: this is the path of every miss.
        probation, main, ghosts = self._probation, self._main, self._ghosts
        probation_used, limit = self._probation_used, self._probation_limit
        looks, fewest = 0, _CREDITS + 1
        while used > capacity:
            if probation_used > limit or not main:
                entry, packed = probation.popitem(last=False)
                cost = packed >> _SHIFT
                probation_used -= cost
                credits = packed & _CREDITS
                if credits < _FREE:
                    used -= cost
                    evicted.append(entry)
                    ghost = hash(entry)
                    if ghost not in ghosts:  # it is when another entry with the same hash left it
                        ghosts[ghost] = cost
                        self._ghost_cost += cost
                    looks, fewest = 0, _CREDITS + 1
                    continue
                main[entry] = cost << _SHIFT
                demoted.append(entry)
            else:
                entry, packed = main.popitem(last=False)
                credits = packed & _CREDITS
                if not credits:
                    used -= packed >> _SHIFT
                    evicted.append(entry)
                    looks, fewest = 0, _CREDITS + 1
                    continue
                main[entry] = packed - 1
                if credits == _FREE:
                    demoted.append(entry)
            if credits < fewest:
                victim, fewest = entry, credits
            looks += 1
            if looks == _LOOKS:
                used -= main.pop(victim) >> _SHIFT
                evicted.append(victim)
                looks, fewest = 0, _CREDITS + 1
        self._used, self._probation_used = used, probation_used
        self._trim_ghosts()
        if demoted:
            gone = set(evicted)
            demoted = [entry for entry in demoted if entry not in gone]
        return demoted, evicted

    def _trim_ghosts(self) -> None:
        """Forget the oldest ghosts beyond the bounds in number and in cost."""
        ghosts = self._ghosts
        number = (len(self._probation) + len(self._main)) * 7 // 5 or 1
        while len(ghosts) > number or self._ghost_cost > self._ghost_limit:
            self._ghost_cost -= ghosts.popitem(last=False)[1]

    def clear(self) -> None:
        """Forget every entry and every ghost."""
        self._probation.clear()
        self._main.clear()
        self._oversized.clear()
        self._ghosts.clear()
        self._used = self._probation_used = self._ghost_cost = 0
