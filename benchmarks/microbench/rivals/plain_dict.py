"""A plain dict: the floor of every lookup."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from microbench.subject import Cache, Lookup, get, subscript


class PlainDict(Cache):
    """The values as they are; it bounds nothing and stores nothing, so it competes with nobody."""

    rows: ClassVar[dict[str, Lookup]] = {
        "`dict[key]`": "floor",
        "`dict.get`": "floor",
        "`dict.get`, absent key": "absent",
    }

    def lookups(self, values: dict[str, Any]) -> dict[str, tuple[Callable[..., None], Any]]:
        return {
            "`dict[key]`": (subscript, values),
            "`dict.get`": (get, values),
            "`dict.get`, absent key": (get, values),
        }
