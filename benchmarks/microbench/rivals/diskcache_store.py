"""diskcache: pickles in SQLite."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from microbench.subject import Read, Store, get, own


class DiskCache(Store):
    """A `Cache` with its defaults, whose puts survive the death of the process."""

    distribution = "diskcache"
    name = "diskcache"
    setup = "`Cache` with its defaults (SQLite, write-ahead log, `synchronous=NORMAL`), values pickled"
    rows: ClassVar[dict[str, Read]] = {"`diskcache.get`": "one"}
    kept = "`diskcache.set`"
    slow = True

    def __init__(self, path: Path, *, sync: bool = False) -> None:
        import diskcache

        assert not sync
        self.cache = diskcache.Cache(str(path))
        self.put = self.cache.set

    def fill(self, items: Iterable[tuple[str, Any]]) -> None:
        with self.cache.transact():
            for key, value in items:
                self.cache.set(key, value)

    def reads(self) -> dict[str, Callable[[Any], object]]:
        return dict.fromkeys(self.rows, partial(own(get), self.cache))

    def close(self) -> None:
        self.cache.close()
