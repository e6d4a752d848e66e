"""moka-py: W-TinyLFU, all of it in Rust."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from microbench.subject import DAY, Cache, Lookup, get


class Moka(Cache):
    """`moka_py.Moka`."""

    distribution = "moka-py"
    rows: ClassVar[dict[str, Lookup]] = {
        "`moka_py.Moka.get`": "hit",
        "`moka_py.Moka.get`, entry with a TTL": "expiring",
        "`moka_py.Moka.get`, absent key": "absent",
    }

    def lookups(self, values: dict[str, Any]) -> dict[str, tuple[Callable[..., None], Any]]:
        import moka_py

        bounded, expiring = moka_py.Moka(len(values)), moka_py.Moka(len(values), ttl=DAY)
        for key, value in values.items():
            bounded.set(key, value)
            expiring.set(key, value)
        assert all(cache.get(key) == value for key, value in values.items() for cache in (bounded, expiring))
        return dict(zip(self.rows, ((get, bounded), (get, expiring), (get, bounded)), strict=True))
