"""theine: W-TinyLFU with its policy in Rust and its shards in Python."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, ClassVar

from microbench.subject import DAY, Cache, Lookup, get


class Theine(Cache):
    """`theine.Cache`; what it gives is a pair, the value and whether it was there."""

    distribution = "theine"
    rows: ClassVar[dict[str, Lookup]] = {
        "`theine.Cache.get`": "hit",
        "`theine.Cache.get`, entry with a TTL": "expiring",
        "`theine.Cache.get`, absent key": "absent",
    }

    def lookups(self, values: dict[str, Any]) -> dict[str, tuple[Callable[..., None], Any]]:
        import theine

        bounded, expiring = theine.Cache(len(values)), theine.Cache(len(values))
        for key, value in values.items():
            bounded.set(key, value)
            expiring.set(key, value, timedelta(seconds=DAY))
        assert all(cache.get(key) == (value, True) for key, value in values.items() for cache in (bounded, expiring))
        return dict(zip(self.rows, ((get, bounded), (get, expiring), (get, bounded)), strict=True))
