"""The decorator of the standard library."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

from microbench.subject import Cache, Lookup, call


class LruCache(Cache):
    """`functools.lru_cache` around a lookup; an absent key would be its function's business."""

    rows: ClassVar[dict[str, Lookup]] = {"`functools.lru_cache`": "hit"}

    def lookups(self, values: dict[str, Any]) -> dict[str, tuple[Callable[..., None], Any]]:
        @functools.lru_cache(maxsize=len(values))
        def remembered(key: str) -> Any:
            return values[key]

        for key in values:
            remembered(key)
        return {"`functools.lru_cache`": (call, remembered)}
