"""lru-dict, in C."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from microbench.subject import Cache, Lookup, filled, get


class LruDict(Cache):
    """`lru.LRU`; it knows no time to live."""

    distribution = "lru-dict"
    rows: ClassVar[dict[str, Lookup]] = {"`lru.LRU.get`": "hit", "`lru.LRU.get`, absent key": "absent"}

    def lookups(self, values: dict[str, Any]) -> dict[str, tuple[Callable[..., None], Any]]:
        from lru import LRU

        cache = filled(LRU(len(values)), values)
        return dict.fromkeys(self.rows, (get, cache))
