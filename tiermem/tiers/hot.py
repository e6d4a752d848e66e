"""L1, the hot tier: decoded values in dicts, bounded by bytes over the whole store.

A table is a dict of *free* entries: a hit there is one C lookup and runs no code of ours. Whatever
else a lookup may find, *watched* entries included, it finds through `__missing__`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from tiermem.codec.frame import NEVER
from tiermem.protocols import EvictionPolicy

ENTRY_BYTES: Final = 360
"""What an entry costs beside its value: dict slots, policy bookkeeping, key."""
EXPANSION: Final = 6
"""Decoded containers of small values take about this many times their encoded bytes."""
_FLAT: Final = frozenset({"str", "bytes", "ndarray", "int", "float", "bool", "NoneType"})
_ABSENT: Final = object()


def cost_of(value: object, encoded: int) -> int:
    """Estimated bytes an entry takes, from its value's type and encoded size."""
    return ENTRY_BYTES + (encoded if type(value).__name__ in _FLAT else encoded * EXPANSION)


class Table(dict[str, Any]):
    """The free entries of one namespace, as one type; subscripting it is the fast path.

    `watched` holds entries whose hits the policy wants to see, and all that expire.
    """

    __slots__ = ("expires", "miss", "number", "watched")

    def __init__(self, number: int, miss: Callable[[Table, str], Any]) -> None:
        super().__init__()
        self.number = number
        self.watched: dict[str, Any] = {}
        self.expires: dict[str, float] = {}
        self.miss = miss

    def __missing__(self, key: str) -> Any:
        return self.miss(self, key)


class HotTier:
    """All tables of a store and the policy that bounds them. Callers hold the store's lock."""

    def __init__(self, policy: EvictionPolicy, max_bytes: int) -> None:
        self.policy = policy
        self.max_bytes = max_bytes
        self.watched_hits = 0
        self.misses = 0
        self.promotions = 0
        self.evictions = 0
        self._tables: list[Table] = []

    def table(self, miss: Callable[[Table, str], Any]) -> Table:
        """A new table whose `__missing__` calls `miss(table, key)`."""
        table = Table(len(self._tables), miss)
        self._tables.append(table)
        return table

    def fill(self, table: Table, key: str, value: Any, cost: int, expires: float = NEVER) -> None:
        """Put a value that a miss has read into L1."""
        if cost > self.max_bytes:
            self.drop(table, key)
            return
        if self.policy.admit((table.number, key), cost) and expires == NEVER:
            table.watched.pop(key, None)
            table.expires.pop(key, None)
            table[key] = value
        else:
            table.pop(key, None)
            table.watched[key] = value
            if expires != NEVER:
                table.expires[key] = expires
            else:
                table.expires.pop(key, None)
        self.promotions += 1
        self._shrink()

    def touch(self, table: Table, key: str) -> None:
        """A hit on a watched entry."""
        self.watched_hits += 1
        if self.policy.touch((table.number, key)) and key not in table.expires:
            value = table.watched.pop(key, _ABSENT)
            if value is not _ABSENT:
                table[key] = value
        self._shrink()

    def resident(self, table: Table, key: str) -> bool:
        """True if the entry is in L1."""
        return key in table or key in table.watched

    def drop(self, table: Table, key: str) -> None:
        """Take an entry out, if it is there."""
        if table.pop(key, _ABSENT) is not _ABSENT or table.watched.pop(key, _ABSENT) is not _ABSENT:
            table.expires.pop(key, None)
            self.policy.discard((table.number, key))

    def drop_table(self, table: Table) -> None:
        """Take every entry of a table out."""
        for key in [*table, *table.watched]:
            self.drop(table, key)

    def clear(self) -> None:
        """Take everything out."""
        for table in self._tables:
            table.clear()
            table.watched.clear()
            table.expires.clear()
        self.policy.clear()

    def close(self, miss: Callable[[Table, str], Any]) -> None:
        """Take everything out for good: from now on every lookup calls `miss`."""
        for table in self._tables:
            table.miss = miss
        self.clear()

    @property
    def entries(self) -> int:
        """Entries over all tables."""
        return sum(len(table) + len(table.watched) for table in self._tables)

    def _shrink(self) -> None:
        demoted, evicted = self.policy.shrink()
        tables = self._tables
        for number, key in demoted:
            table = tables[number]
            value = table.pop(key, _ABSENT)
            if value is not _ABSENT:
                table.watched[key] = value
        for number, key in evicted:
            table = tables[number]
            if table.pop(key, _ABSENT) is _ABSENT:
                table.watched.pop(key, None)
                table.expires.pop(key, None)
        self.evictions += len(evicted)
