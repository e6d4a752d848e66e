"""L1, the hot tier: decoded values in dicts, bounded by bytes over the whole store.

A table is a dict of *free* entries: a hit there is one C lookup and runs no code of ours. Free entries
that expire are *timed*; they, *watched* entries and whatever else a lookup may find, it finds through
`__missing__`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from tiermem.codec.frame import NEVER
from tiermem.protocols import EvictionPolicy

ENTRY_BYTES: Final = 360
"""What an entry costs beside its value: dict slots, policy bookkeeping, key."""
EXPANSION: Final = 6
"""Decoded containers of small values take about this many times their encoded bytes."""
ABSENT_BYTES: Final = 120
"""What it costs to know that a key has no record."""
ABSENT_SHARE: Final = 16
"""All such keys together cost at most this part of the budget."""
_FLAT: Final = frozenset({"str", "bytes", "ndarray", "int", "float", "bool", "NoneType"})
_ABSENT: Final = object()


def cost_of(value: object, encoded: int) -> int:
    """Estimated bytes an entry takes, from its value's type and encoded size."""
    return ENTRY_BYTES + (encoded if type(value).__name__ in _FLAT else encoded * EXPANSION)


class Table(dict[str, Any]):
    """The free entries of one namespace, as one type; subscripting it is the fast path.

    `watched` holds entries whose hits the policy wants to see, `expires` when they do; `timed` (value, expiry)
    of those that it need not see; `absent` keys that have no record.
    """

    __slots__ = ("absent", "expires", "miss", "now", "number", "timed", "watched")

    def __init__(self, number: int, miss: Callable[[Table, str], Any], now: Callable[[], float]) -> None:
        super().__init__()
        self.number = number
        self.watched: dict[str, Any] = {}
        self.expires: dict[str, float] = {}
        self.timed: dict[str, tuple[Any, float]] = {}
        self.absent: set[str] = set()
        self.miss = miss
        self.now = now

    def __missing__(self, key: str) -> Any:
        entry = self.timed.get(key)
        if entry is not None and entry[1] > self.now():
            return entry[0]
        if key in self.absent:
            raise KeyError(key)
        return self.miss(self, key)


class HotTier:
    """All tables of a store and the policy that bounds them. Callers hold the store's lock."""

    def __init__(self, policy: EvictionPolicy, max_bytes: int, now: Callable[[], float] = time.time) -> None:
        self.policy = policy
        self.max_bytes = max_bytes
        self._now = now
        self._absent = 0
        self.watched_hits = 0
        self.misses = 0
        self.promotions = 0
        self.evictions = 0
        self._tables: list[Table] = []

    def table(self, miss: Callable[[Table, str], Any]) -> Table:
        """A new table whose `__missing__` calls `miss(table, key)`."""
        table = Table(len(self._tables), miss, self._now)
        self._tables.append(table)
        return table

    def fill(self, table: Table, key: str, value: Any, cost: int, expires: float = NEVER) -> None:
        """Put a value that a miss has read into L1."""
        if cost > self.max_bytes:
            self.drop(table, key)
            return
        free = self.policy.admit((table.number, key), cost)
        if free and expires == NEVER:
            table[key] = value
            table.watched.pop(key, None)
            table.expires.pop(key, None)
            table.timed.pop(key, None)
        else:
            self._take(table, key)
            if free:
                table.timed[key] = value, expires
            else:
                table.watched[key] = value
                if expires != NEVER:
                    table.expires[key] = expires
        self.promotions += 1
        self._shrink()

    def touch(self, table: Table, key: str) -> None:
        """A hit on a watched entry."""
        self.watched_hits += 1
        if self.policy.touch((table.number, key)):
            value = table.watched.pop(key, _ABSENT)
            if value is not _ABSENT:
                expires = table.expires.pop(key, NEVER)
                if expires != NEVER:
                    table.timed[key] = value, expires
                else:
                    table[key] = value
        self._shrink()

    def lacks(self, table: Table, key: str) -> None:
        """L3 has no record of `key`."""
        most = self.max_bytes // (ABSENT_BYTES * ABSENT_SHARE)
        if self._absent >= most:
            # An upper bound of how many there are: what was found since is not taken off.
            self._absent = sum(len(known.absent) for known in self._tables)
            if self._absent >= most:
                for known in self._tables:
                    known.absent.clear()
                self._absent = 0
        if most:
            table.absent.add(key)
            self._absent += 1

    def drop(self, table: Table, key: str) -> None:
        """Take out what is known of a key, that it is absent too."""
        table.absent.discard(key)
        if self._take(table, key):
            self.policy.discard((table.number, key))

    def drop_table(self, table: Table) -> None:
        """Take every entry of a table out."""
        for key in [*table, *table.watched, *table.timed, *table.absent]:
            self.drop(table, key)

    def clear(self) -> None:
        """Take everything out."""
        for table in self._tables:
            table.clear()
            table.watched.clear()
            table.expires.clear()
            table.timed.clear()
            table.absent.clear()
        self._absent = 0
        self.policy.clear()

    def close(self, miss: Callable[[Table, str], Any]) -> None:
        """Take everything out for good: from now on every lookup calls `miss`."""
        for table in self._tables:
            table.miss = miss
        self.clear()

    @property
    def entries(self) -> int:
        """Entries over all tables."""
        return sum(len(table) + len(table.watched) + len(table.timed) for table in self._tables)

    def _shrink(self) -> None:
        demoted, evicted = self.policy.shrink()
        tables = self._tables
        for number, key in demoted:
            table = tables[number]
            value = table.pop(key, _ABSENT)
            if value is not _ABSENT:
                table.watched[key] = value
            elif key in table.timed:
                value, table.expires[key] = table.timed.pop(key)
                table.watched[key] = value
        for number, key in evicted:
            self._take(tables[number], key)
        self.evictions += len(evicted)

    @staticmethod
    def _take(table: Table, key: str) -> bool:
        """Take an entry out of a table; True if it was there."""
        if table.pop(key, _ABSENT) is not _ABSENT or table.timed.pop(key, _ABSENT) is not _ABSENT:
            return True
        if table.watched.pop(key, _ABSENT) is not _ABSENT:
            table.expires.pop(key, None)
            return True
        return False
