"""Rivals of the micro-benchmarks, one a file; none of their libraries is imported before it is measured."""

from __future__ import annotations

from microbench.rivals.cachebox_caches import Cachebox
from microbench.rivals.cachetools_caches import Cachetools
from microbench.rivals.diskcache_store import DiskCache
from microbench.rivals.lru_cache import LruCache
from microbench.rivals.lru_dict import LruDict
from microbench.rivals.moka_caches import Moka
from microbench.rivals.plain_dict import PlainDict
from microbench.rivals.raw_lmdb import RawCompressed, RawLmdb
from microbench.rivals.rocksdict_store import RocksDict
from microbench.rivals.sqlite_table import SqliteTable
from microbench.rivals.theine_caches import Theine
from microbench.subject import Cache, Store

CACHES: tuple[type[Cache], ...] = (PlainDict, LruCache, Cachetools, Cachebox, LruDict, Theine, Moka)
STORES: tuple[type[Store], ...] = (RawLmdb, RawCompressed, DiskCache, RocksDict, SqliteTable)
DISTRIBUTIONS = tuple(sorted(rival.distribution for rival in (*CACHES, *STORES) if rival.distribution))
"""What a run that leaves out nothing needs."""


def caches() -> list[type[Cache]]:
    """Those that are there."""
    return [rival for rival in CACHES if rival.present()]


def stores() -> list[type[Store]]:
    """Those that are there."""
    return [rival for rival in STORES if rival.present()]
