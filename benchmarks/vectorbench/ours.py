"""tiermem as a subject: whole public calls, keys resolved."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from typing import Any

import tiermem
from vectorbench.data import CHUNK, FloatArray, IntArray, K, Step
from vectorbench.subject import EFFORTS, Subject, key_of, metadata_of, row_of, value_of

NS = "bench/docs"
TAKES_EFFORT = "effort" in inspect.signature(tiermem.Memory.search_similar).parameters
BUILDS = hasattr(tiermem.Memory, "build_index")


def put(mem: tiermem.Memory, rows: Sequence[int], vectors: FloatArray, of_row: IntArray) -> None:
    """Store rows of the data set as records, in one call; `vectors` and `of_row` are theirs."""
    mem.put_many(
        NS,
        keys=[key_of(row) for row in rows],
        values=[value_of(row) for row in rows],
        vectors=vectors,
        metadatas=[metadata_of(row, bucket) for row, bucket in zip(rows, of_row, strict=True)],
    )


def index(mem: tiermem.Memory) -> None:
    """Have everything committed, and sealed into segments where there are such."""
    mem.flush()
    if BUILDS:
        mem.build_index(NS)


def load(mem: tiermem.Memory, base: FloatArray, buckets: IntArray, step: Step) -> dict[str, float]:
    """Store a whole data set and index it; seconds of both."""
    start = time.perf_counter()
    for first in range(0, len(base), CHUNK):
        part = base[first : first + CHUNK]
        put(mem, range(first, first + len(part)), part, buckets[first : first + CHUNK])
        step(f"{first + len(part):,} rows put")
    middle = time.perf_counter()
    index(mem)
    step("indexed")
    return {"putting": middle - start, "indexing": time.perf_counter() - middle}


def searching(mem: tiermem.Memory, effort: int | None = None, below: int | None = None) -> Callable[[FloatArray], Any]:
    """What answers one query."""
    search = mem.search_similar
    options: dict[str, Any] = {}
    if effort is not None:
        options["effort"] = effort
    if below is not None:
        options["where"] = {"bucket": {"$lt": below}}
    return lambda query: search(NS, query, k=K, **options)


def rows_of(answer: Sequence[tiermem.Hit]) -> list[int]:
    """The rows of the data set that were hit."""
    return [row_of(hit.key) for hit in answer]


def figures(mem: tiermem.Memory) -> dict[str, Any]:
    """What `stats` says of the vectors."""
    stats = mem.stats()
    part = stats.vectors[NS]
    names = ("vectors", "rows", "tombstones", "bytes", "segments", "tail", "vector_backlog")
    found = {name: getattr(part, name) for name in names if hasattr(part, name)}
    found = {name: value if isinstance(value, int) else len(value) for name, value in found.items()}
    return found | {"degraded": list(stats.degraded), "committer": stats.writes.committer}


class Tiermem(Subject):
    """A store with one namespace."""

    name = "tiermem"
    package = "tiermem"
    setup = "defaults; `search_similar` with keys and metadata resolved, scores exact"
    filters = True

    @classmethod
    def efforts(cls) -> tuple[int | None, ...]:
        return (None, *EFFORTS) if TAKES_EFFORT else (None,)

    def load_library(self) -> None:
        import faiss  # noqa: F401 - the vector tier imports it when it first searches
        import numpy.ma  # noqa: F401 - as faiss

    def build(self, base: FloatArray, buckets: IntArray, step: Step) -> None:
        with tiermem.open(self.path / "store") as mem:
            self.built = load(mem, base, buckets, step) | {"stats": figures(mem)}

    def open(self) -> None:
        self.mem = tiermem.open(self.path / "store")

    def searching(self, effort: int | None, below: int | None = None) -> Callable[[FloatArray], Any]:
        return searching(self.mem, effort, below)

    def rows(self, answer: Any) -> list[int]:
        return rows_of(answer)

    def close(self) -> None:
        self.mem.close()

    def details(self) -> dict[str, Any]:
        return figures(self.mem)
