"""The caches of cachebox, in Rust."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from microbench.subject import DAY, Cache, Lookup, filled, get


class Cachebox(Cache):
    """`LRUCache` and `TTLCache`."""

    distribution = "cachebox"
    rows: ClassVar[dict[str, Lookup]] = {
        "`cachebox.LRUCache.get`": "hit",
        "`cachebox.TTLCache.get`": "expiring",
        "`cachebox.LRUCache.get`, absent key": "absent",
    }

    def lookups(self, values: dict[str, Any]) -> dict[str, tuple[Callable[..., None], Any]]:
        import cachebox

        lru = filled(cachebox.LRUCache(len(values)), values)
        ttl = filled(cachebox.TTLCache(len(values), DAY), values)
        return dict(zip(self.rows, ((get, lru), (get, ttl), (get, lru)), strict=True))
