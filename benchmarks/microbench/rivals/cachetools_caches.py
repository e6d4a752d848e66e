"""The caches of cachetools, in Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from microbench.subject import DAY, Cache, Lookup, filled, get


class Cachetools(Cache):
    """`LRUCache` and `TTLCache`, which take no lock."""

    distribution = "cachetools"
    rows: ClassVar[dict[str, Lookup]] = {
        "`cachetools.LRUCache.get`": "hit",
        "`cachetools.TTLCache.get`": "expiring",
        "`cachetools.LRUCache.get`, absent key": "absent",
    }

    def lookups(self, values: dict[str, Any]) -> dict[str, tuple[Callable[..., None], Any]]:
        import cachetools

        lru = filled(cachetools.LRUCache(len(values)), values)
        ttl = filled(cachetools.TTLCache(len(values), DAY), values)
        return dict(zip(self.rows, ((get, lru), (get, ttl), (get, lru)), strict=True))
