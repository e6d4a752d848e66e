"""The loops that `bench_micro.py` compares: hot reads, cold reads, exact search.

Each subject is measured by pytest-benchmark in several turns, and turns of different subjects alternate, so that what
the machine does meanwhile meets all of them. No assertion here is about time.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from types import FunctionType
from typing import Any, NamedTuple

import lmdb
import msgspec
import numpy as np
import pytest
from _workload import (
    COLD_ROUND,
    FULL,
    HOT_ROUND,
    QUICK,
    SEED,
    K,
    Scale,
    directory,
    installed,
    key_names,
    record,
    uniform,
    unit_vectors,
    zipf,
)

import tiermem
from tiermem import CodecConfig, Config, HotConfig

NS = "desk/quotes"
EXPIRING = "desk/expiring"
SHARES = {"half": 2, "tenth": 10}

# Subject: the distribution it needs.
HOT = {
    "the loop alone": "",
    "`dict[key]`": "",
    "`dict.get`": "",
    "`ns[key]`": "",
    "`mem.get`": "",
    "`ns.get`": "",
    "`cachetools.LRUCache.get`": "cachetools",
    "`functools.lru_cache`": "",
    "`cachebox.LRUCache.get`": "cachebox",
    "`ns[key]`, record with a TTL": "",
    "`mem.get`, record with a TTL": "",
    "`cachetools.TTLCache.get`": "cachetools",
    "`cachebox.TTLCache.get`": "cachebox",
    "`dict.get`, absent key": "",
    "`mem.get`, absent key": "",
    "`cachetools.LRUCache.get`, absent key": "cachetools",
    "`cachebox.LRUCache.get`, absent key": "cachebox",
}
COLD = {
    "`mem.get`": "",
    "`mem.get`, compression off": "",
    "raw py-lmdb get + msgspec decode": "",
    "`diskcache.get`": "diskcache",
    "`mem.get_many`": "",
    "`mem.get_many`, compression off": "",
    "raw py-lmdb gets in one transaction + msgspec decode": "",
    "`mem.scan`": "",
    "`mem.scan`, compression off": "",
    "raw py-lmdb cursor + msgspec decode": "",
}
SEARCH = {
    "`mem.search_similar`": "",
    "plain numpy scan": "",
    "`mem.search_similar`, filter lets half through": "",
    "plain numpy scan of half": "",
    "`mem.search_similar`, filter lets a tenth through": "",
    "plain numpy scan of a tenth": "",
}


class Subject(NamedTuple):
    """A function that makes `calls` calls; it gets `arguments`, and last of all the next of `inputs`, over and over."""

    run: Callable[..., object]
    arguments: tuple[Any, ...]
    inputs: Iterator[Any]
    calls: int = 1


Subjects = dict[str, Subject]


def nothing(keys: Sequence[str]) -> None:
    for _key in keys:
        pass


def subscript(mapping: Any, keys: Sequence[str]) -> None:
    for key in keys:
        _ = mapping[key]


def get(cache: Any, keys: Sequence[str]) -> None:
    for key in keys:
        cache.get(key)


def call(function: Callable[[str], Any], keys: Sequence[str]) -> None:
    for key in keys:
        function(key)


def get_from(mem: tiermem.Memory, name: str, keys: Sequence[str]) -> None:
    for key in keys:
        mem.get(name, key)


def own(loop: Callable[..., None]) -> Callable[..., None]:
    """A copy of a loop: CPython specialises its bytecode for one subject, and another would undo that."""
    assert isinstance(loop, FunctionType)
    return FunctionType(loop.__code__.replace(), loop.__globals__, loop.__name__)


def pieces(keys: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """What the rounds get: `size` keys each."""
    return [keys[start : start + size] for start in range(0, len(keys), size)]


def filled(cache: Any, values: dict[str, Any]) -> Any:
    for key, value in values.items():
        cache[key] = value
    return cache


@pytest.fixture(scope="module")
def scale(request: pytest.FixtureRequest) -> Scale:
    return QUICK if request.config.getoption("--quick") else FULL


# --------------------------------------------------------------------------------------------------------- hot reads


def warm(mem: tiermem.Memory, name: str, keys: Sequence[str]) -> tiermem.Namespace:
    """A namespace with a value for every key, read until no hit runs the policy any more."""
    for _ in range(4):
        get_from(mem, name, keys)
    before = mem.stats().hot
    get_from(mem, name, keys)
    after = mem.stats().hot
    assert after.misses == before.misses, "some keys are not in L1"
    assert after.watched_hits == before.watched_hits, "some hits run the policy"
    return mem.namespace(name)


@pytest.fixture(scope="module")
def hot(scale: Scale) -> Iterator[Subjects]:
    """Caches that hold the same objects under the same keys, and lookups that all hit, or all miss.

    Keys go in by rank, so what is often read lies close together in memory, for every subject alike.
    """
    keys = key_names(scale.keys)
    lookups = pieces(zipf(keys, scale.rounds * HOT_ROUND), HOT_ROUND)
    absent = pieces([f"absent-{number:08d}" for number in range(scale.rounds * COLD_ROUND)], COLD_ROUND)
    with directory() as root, tiermem.open(root / "store") as mem:
        mem.put_many(NS, zip(keys, itertools.count(), strict=False))
        mem.put_many(EXPIRING, (tiermem.Item(key, number, ttl=86_400.0) for number, key in enumerate(keys)))
        mem.flush()
        ns, expiring = warm(mem, NS, keys), warm(mem, EXPIRING, keys)
        values = {key: ns[key] for key in keys}

        @functools.lru_cache(maxsize=scale.keys)
        def remembered(key: str) -> Any:
            return values[key]

        call(remembered, keys)

        def hits(loop: Callable[..., None], *arguments: Any) -> Subject:
            return Subject(own(loop), arguments, itertools.cycle(lookups), HOT_ROUND)

        def misses(loop: Callable[..., None], *arguments: Any) -> Subject:
            return Subject(own(loop), arguments, itertools.cycle(absent), COLD_ROUND)

        subjects = {
            "the loop alone": hits(nothing),
            "`dict[key]`": hits(subscript, values),
            "`dict.get`": hits(get, values),
            "`ns[key]`": hits(subscript, ns),
            "`mem.get`": hits(get_from, mem, NS),
            "`ns.get`": hits(get, ns),
            "`functools.lru_cache`": hits(call, remembered),
            "`ns[key]`, record with a TTL": hits(subscript, expiring),
            "`mem.get`, record with a TTL": hits(get_from, mem, EXPIRING),
            "`dict.get`, absent key": misses(get, values),
            "`mem.get`, absent key": misses(get_from, mem, NS),
        }
        if installed("cachetools"):
            import cachetools

            lru = filled(cachetools.LRUCache(scale.keys), values)
            ttl = filled(cachetools.TTLCache(scale.keys, 86_400), values)
            subjects["`cachetools.LRUCache.get`"] = hits(get, lru)
            subjects["`cachetools.TTLCache.get`"] = hits(get, ttl)
            subjects["`cachetools.LRUCache.get`, absent key"] = misses(get, lru)
        if installed("cachebox"):
            import cachebox

            quick_lru = filled(cachebox.LRUCache(scale.keys), values)
            quick_ttl = filled(cachebox.TTLCache(scale.keys, 86_400), values)
            subjects["`cachebox.LRUCache.get`"] = hits(get, quick_lru)
            subjects["`cachebox.TTLCache.get`"] = hits(get, quick_ttl)
            subjects["`cachebox.LRUCache.get`, absent key"] = misses(get, quick_lru)
        before = mem.stats().hot
        yield subjects
        after = mem.stats().hot
        assert after.watched_hits == before.watched_hits, "some hits ran the policy"
        assert after.misses - before.misses == scale.rounds * COLD_ROUND, (
            "an absent key was looked for twice, or a hit was a miss"
        )


# -------------------------------------------------------------------------------------------------------- cold reads


def cold_store(stack: ExitStack, name: str, keys: Sequence[str], values: Sequence[Any], config: Config) -> Any:
    """A store that keeps nothing in L1 and has everything committed."""
    mem = stack.enter_context(tiermem.open(stack.enter_context(directory()) / name, config=config))
    if config.codec.level:
        # A dictionary is trained on the first records and used for those that follow.
        samples = 2 * config.codec.dictionary_samples
        mem.put_many(NS, ((f"sample-{number:08d}", record(-1 - number)) for number in range(samples)))
        mem.flush()
        end = time.monotonic() + 15
        while not mem.stats().cold.dictionaries and time.monotonic() < end:
            time.sleep(0.1)
        assert mem.stats().cold.dictionaries, "no dictionary was trained"
    mem.put_many(NS, zip(keys, values, strict=True))
    mem.flush()
    return mem


def raw_get(env: Any, decode: Callable[[Any], Any], keys: Sequence[bytes]) -> None:
    for key in keys:
        with env.begin(buffers=True) as txn:
            decode(txn.get(key))


def raw_get_many(env: Any, decode: Callable[[Any], Any], keys: Sequence[bytes]) -> dict[bytes, Any]:
    with env.begin(buffers=True) as txn:
        return {key: decode(txn.get(key)) for key in keys}


def raw_scan(env: Any, decode: Callable[[Any], Any], start: bytes) -> list[tuple[bytes, Any]]:
    with env.begin(buffers=True) as txn, txn.cursor() as cursor:
        cursor.set_range(start)
        return [(bytes(key), decode(row)) for key, row in itertools.islice(cursor.iternext(), COLD_ROUND)]


def scan(mem: tiermem.Memory, start: str) -> list[tiermem.Record]:
    return list(mem.scan(NS, start=start, limit=COLD_ROUND))


@pytest.fixture(scope="module")
def cold(scale: Scale) -> Iterator[Subjects]:
    """Stores of the same records, and lookups that are equally likely to ask for any of them."""
    keys = key_names(scale.cold_records)
    values = [record(number) for number in range(scale.cold_records)]
    lookups = pieces(uniform(keys, scale.rounds * COLD_ROUND), COLD_ROUND)
    starts = keys[::COLD_ROUND]
    pack, unpack = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode
    raw_lookups = [[key.encode() for key in piece] for piece in lookups]
    raw_starts = [key.encode() for key in starts]

    def reads(run: Callable[..., object], inputs: Sequence[Any], *arguments: Any) -> Subject:
        return Subject(run, arguments, itertools.cycle(inputs), COLD_ROUND)

    with ExitStack() as stack:
        none = HotConfig(max_bytes=0)
        mem = cold_store(stack, "packed", keys, values, Config(hot=none))
        plain = cold_store(stack, "plain", keys, values, Config(hot=none, codec=CodecConfig(level=0)))
        env = stack.enter_context(lmdb.open(str(stack.enter_context(directory())), map_size=2**34))
        with env.begin(write=True) as txn:
            for key, value in zip(keys, values, strict=True):
                txn.put(key.encode(), pack(value))
        with env.begin(buffers=True) as txn:
            assert all(mem.get(NS, key) == unpack(txn.get(key.encode())) for key in lookups[0][:100])
        assert len(scan(mem, starts[-1])) == len(raw_scan(env, unpack, raw_starts[-1])) == COLD_ROUND
        subjects = {
            "`mem.get`": reads(own(get_from), lookups, mem, NS),
            "`mem.get`, compression off": reads(own(get_from), lookups, plain, NS),
            "raw py-lmdb get + msgspec decode": reads(raw_get, raw_lookups, env, unpack),
            "`mem.get_many`": reads(mem.get_many, lookups, NS),
            "`mem.get_many`, compression off": reads(plain.get_many, lookups, NS),
            "raw py-lmdb gets in one transaction + msgspec decode": reads(raw_get_many, raw_lookups, env, unpack),
            "`mem.scan`": reads(scan, starts, mem),
            "`mem.scan`, compression off": reads(scan, starts, plain),
            "raw py-lmdb cursor + msgspec decode": reads(raw_scan, raw_starts, env, unpack),
        }
        if installed("diskcache"):
            import diskcache

            cache = stack.enter_context(diskcache.Cache(str(stack.enter_context(directory()))))
            with cache.transact():
                for key, value in zip(keys, values, strict=True):
                    cache.set(key, value)
            subjects["`diskcache.get`"] = reads(own(get), lookups, cache)
        yield subjects
        assert mem.stats().hot.entries == plain.stats().hot.entries == 0


# ------------------------------------------------------------------------------------------------------------ search


def numpy_search(matrix: Any, query: Any) -> Any:
    scores = matrix @ query
    best = np.argpartition(scores, len(scores) - K)[-K:]
    return best[np.argsort(-scores[best])]


def numpy_search_where(matrix: Any, column: Any, wanted: int, query: Any) -> Any:
    rows = np.flatnonzero(column == wanted)
    return rows[numpy_search(matrix[rows], query)]


@pytest.fixture(scope="module")
def search(scale: Scale) -> Iterator[Subjects]:
    """One namespace of unit vectors with metadata, and the same as a matrix and columns."""
    matrix = unit_vectors(scale.vectors)
    queries = unit_vectors(scale.queries * scale.turns, SEED + 1)
    columns = {name: np.arange(scale.vectors) % share for name, share in SHARES.items()}
    metadatas = [{name: number % share for name, share in SHARES.items()} for number in range(scale.vectors)]
    keys = [f"row-{number:06d}" for number in range(scale.vectors)]
    with directory() as root, tiermem.open(root / "store") as mem:
        mem.put_many(NS, keys=keys, values=[None] * scale.vectors, vectors=matrix, metadatas=metadatas)
        mem.flush()
        ask = functools.partial(mem.search_similar, NS, k=K, exact=True)
        half = functools.partial(ask, where={"half": 1})
        tenth = functools.partial(ask, where={"tenth": 1})
        numpy_half = functools.partial(numpy_search_where, matrix, columns["half"], 1)
        numpy_tenth = functools.partial(numpy_search_where, matrix, columns["tenth"], 1)
        everything = functools.partial(numpy_search, matrix)
        for ours, theirs in ((ask, everything), (half, numpy_half), (tenth, numpy_tenth)):
            for query in queries[:3]:
                assert [hit.key for hit in ours(query)] == [keys[row] for row in theirs(query)]

        def subject(run: Callable[..., object]) -> Subject:
            return Subject(run, (), itertools.cycle(queries))

        yield {
            "`mem.search_similar`": subject(ask),
            "plain numpy scan": subject(everything),
            "`mem.search_similar`, filter lets half through": subject(half),
            "plain numpy scan of half": subject(numpy_half),
            "`mem.search_similar`, filter lets a tenth through": subject(tenth),
            "plain numpy scan of a tenth": subject(numpy_tenth),
        }


# ------------------------------------------------------------------------------------------------------------- turns

GROUPS = {"test_hot": HOT, "test_cold": COLD, "test_search": SEARCH}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    scale = QUICK if metafunc.config.getoption("--quick") else FULL
    names = [name for name, needs in GROUPS[metafunc.function.__name__].items() if not needs or installed(needs)]
    turns: Iterable[tuple[int, str]] = itertools.product(range(scale.turns), names)
    metafunc.parametrize(("turn", "name"), list(turns))


def measure(benchmark: Any, subject: Subject, name: str, turn: int, rounds: int) -> None:
    benchmark.extra_info.update(name=name, turn=turn, calls=subject.calls)
    benchmark.pedantic(
        subject.run, setup=lambda: ((*subject.arguments, next(subject.inputs)), {}), rounds=rounds, warmup_rounds=1
    )


def test_hot(benchmark: Any, hot: Subjects, name: str, turn: int, scale: Scale) -> None:
    measure(benchmark, hot[name], name, turn, scale.rounds)


def test_cold(benchmark: Any, cold: Subjects, name: str, turn: int, scale: Scale) -> None:
    measure(benchmark, cold[name], name, turn, scale.rounds)


def test_search(benchmark: Any, search: Subjects, name: str, turn: int, scale: Scale) -> None:
    measure(benchmark, search[name], name, turn, scale.queries)
