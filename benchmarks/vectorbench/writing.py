"""The parts that write while others would read: churn, and steady ingest. Both drive tiermem alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _workload import disk_bytes

import tiermem
from vectorbench import ours
from vectorbench.data import CHUNK, DIMENSION, SEED, DataSet, FloatArray, Step, buckets, drawn
from vectorbench.measure import exact, memory, percentiles, recall
from vectorbench.subject import key_of, metadata_of, row_of, value_of

ROUNDS = 5
SHARE = 0.3
SAMPLE = 2000
"""Live keys looked for by their own vectors."""
PUTS_PER_SECOND = 2000
SEARCHES_PER_SECOND = 200
BURST = 10
"""Puts made without a pause, so that pauses are long enough to be kept."""
BATCH, BATCHES = 1000, 60
WAIT = 60.0
"""Seconds granted to the upkeep of an index to come to rest."""


def recall_of(mem: tiermem.Memory, base: FloatArray, queries: FloatArray, best: FloatArray) -> float:
    """Of default searches; rows are those of `base`."""
    search = ours.searching(mem)
    return recall(base, queries, [np.array(ours.rows_of(search(query)), np.int64) for query in queries], best)


def own_vectors(mem: tiermem.Memory, current: FloatArray) -> dict[str, Any]:
    """Look for a sample of the keys by their own vectors; how many were found, how far off scores were."""
    chosen = np.random.default_rng(SEED).permutation(len(current))[:SAMPLE]
    search = ours.searching(mem)
    found, error = 0, 0.0
    for row in np.sort(chosen).tolist():
        hits = search(current[row])
        found += any(hit.key == key_of(row) for hit in hits)
        for hit in hits:
            error = max(error, abs(hit.score - float(current[row_of(hit.key)] @ current[row])))
    return {"asked": len(chosen), "found": found, "largest_score_error": error}


def churn(data: DataSet, path: Path, step: Step) -> dict[str, Any]:
    """Delete and re-insert SHARE of the keys with new vectors, ROUNDS times; beside a fresh store of the same."""
    current = np.array(data.base)
    of_row = buckets(len(current))
    count = int(SHARE * len(current))
    rounds = []
    with tiermem.open(path / "churned") as mem:
        ours.load(mem, current, of_row, step)
        for turn in range(ROUNDS):
            rows = np.sort(np.random.default_rng([SEED, turn]).permutation(len(current))[:count])
            current[rows] = drawn(count, turn)
            start = time.perf_counter()
            for first in range(0, count, CHUNK):
                part = rows[first : first + CHUNK].tolist()
                gone = mem.delete_many(ours.NS, keys=[key_of(row) for row in part])
                assert gone == len(part), (gone, len(part))
                ours.put(mem, part, current[part], of_row[part])
            mem.flush()
            rounds.append(time.perf_counter() - start)
            step(f"round {turn + 1} of {ROUNDS}")
        best = exact(current, data.queries)
        found: dict[str, Any] = {
            "rows": len(current),
            "rounds_seconds": rounds,
            "recall_at_once": recall_of(mem, current, data.queries, best),
            "stats_at_once": ours.figures(mem),
        }
        settle(mem)
        found |= {
            "recall": recall_of(mem, current, data.queries, best),
            "own": own_vectors(mem, current),
            "stats": ours.figures(mem),
            "disk_bytes": disk_bytes(path / "churned"),
        }
        step("searched")
        start = time.perf_counter()
        mem.compact()
        found |= {
            "compact_seconds": time.perf_counter() - start,
            "disk_bytes_compacted": disk_bytes(path / "churned"),
            "recall_compacted": recall_of(mem, current, data.queries, best),
            "stats_compacted": ours.figures(mem),
        }
        step("compacted")
    with tiermem.open(path / "fresh") as mem:
        ours.load(mem, current, of_row, step)
        found["recall_fresh"] = recall_of(mem, current, data.queries, best)
        found["own_fresh"] = own_vectors(mem, current)
        found["disk_bytes_fresh"] = disk_bytes(path / "fresh")
        mem.compact()
        found["disk_bytes_fresh_compacted"] = disk_bytes(path / "fresh")
    return found


def settle(mem: tiermem.Memory) -> None:
    """Flush, then wait until the figures of the index have not changed for a second, WAIT seconds at most."""
    mem.flush()
    end = time.monotonic() + WAIT
    known, since = None, time.monotonic()
    while time.monotonic() < end and time.monotonic() - since < 1:
        figures = ours.figures(mem)
        if figures != known:
            known, since = figures, time.monotonic()
        time.sleep(0.1)


class Writer(threading.Thread):
    """Puts one vector after the other at a steady rate until told to stop; a late put is not skipped."""

    def __init__(self, mem: tiermem.Memory, vectors: FloatArray, first: int) -> None:
        super().__init__(name="writer")
        self.mem, self.vectors, self.first = mem, vectors, first
        self.spent: list[int] = []
        self.seconds = 0.0
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            self.write()
        except tiermem.TiermemError as exc:
            self.failure = exc

    def write(self) -> None:
        of_row = buckets(len(self.vectors), self.first)
        records = [(row, self.vectors[row - self.first]) for row in range(self.first, self.first + len(self.vectors))]
        clock = time.perf_counter_ns
        start = time.perf_counter()
        for number, (row, vector) in enumerate(records):
            if number % BURST == 0:
                wait = start + number / PUTS_PER_SECOND - time.perf_counter()
                if wait > 0:
                    time.sleep(wait)
            key, value, metadata = key_of(row), value_of(row), metadata_of(row, of_row[number])
            begun = clock()
            self.mem.put(ours.NS, key, value, vector=vector, metadata=metadata)
            self.spent.append(clock() - begun)
        self.seconds = time.perf_counter() - start


def ingest(data: DataSet, path: Path, seconds: float, step: Step) -> dict[str, Any]:
    """Steady puts in one thread on top of a data set, searches in another; then batches on their own.

    First the searches come one after the other, then some at a time: a core that slept has cold caches.
    """
    count = int(seconds * PUTS_PER_SECOND)
    added = drawn(2 * count, ROUNDS)
    found: dict[str, Any] = {"rows_before": data.rows}
    with tiermem.open(path / "store") as mem:
        ours.load(mem, data.base, buckets(data.rows), step)
        search = ours.searching(mem)
        for query in data.warm:
            search(query)
        for turn, (name, pause) in enumerate((("searches", 0.0), ("paced", 1 / SEARCHES_PER_SECOND))):
            writer = Writer(mem, added[turn * count :][:count], data.rows + turn * count)
            found[name] = beside(writer, search, data.queries, pause, step)
        answers = [search(query) for query in data.queries]
        found["stats"] = ours.figures(mem)
        step("searched")
        whole = np.concatenate([data.base, added])
        rows = [np.array(ours.rows_of(answer), np.int64) for answer in answers]
        found["recall"] = recall(whole, data.queries, rows, exact(whole, data.queries))
        found["memory"] = memory()
        step("recall known")
        found["batches"] = batches(mem)
    return found


def beside(
    writer: Writer, search: Callable[[FloatArray], Any], queries: FloatArray, pause: float, step: Step
) -> dict[str, Any]:
    """Search while the writer writes, one query every `pause` seconds or as soon as the last is answered."""
    spent: list[int] = []
    clock = time.perf_counter_ns
    start = told = time.perf_counter()
    writer.start()
    while writer.is_alive():
        wait = start + len(spent) * pause - time.perf_counter()
        if wait > 0:
            time.sleep(wait)
        query = queries[len(spent) % len(queries)]
        begun = clock()
        search(query)
        spent.append(clock() - begun)
        if time.perf_counter() > told + 10:
            told = time.perf_counter()
            step(f"{len(writer.spent):,} of {len(writer.vectors):,} puts")
    lasted = time.perf_counter() - start
    writer.join()
    if writer.failure is not None:
        raise writer.failure
    return {
        "count": len(spent),
        **percentiles(spent),
        "max": max(spent) / 1e3,
        "per_second": len(spent) / lasted,
        "puts": {"count": len(writer.spent), **percentiles(writer.spent), "max": max(writer.spent) / 1e3},
        "puts_per_second": len(writer.spent) / writer.seconds,
    }


def batches(mem: tiermem.Memory) -> dict[str, Any]:
    """`put_many` of BATCH new vectors into a namespace of their own, one call after the other."""
    vectors = drawn(BATCH * BATCHES, ROUNDS + 1)
    values = [value_of(row) for row in range(BATCH)]
    metadatas = [metadata_of(row, row % 1000) for row in range(BATCH)]
    mem.flush()
    time.sleep(1)
    spent = []
    for number in range(BATCHES):
        keys = [f"batch-{number:03d}-{row:04d}" for row in range(BATCH)]
        part = vectors[number * BATCH : (number + 1) * BATCH]
        start = time.perf_counter_ns()
        mem.put_many("bench/batches", keys=keys, values=values, vectors=part, metadatas=metadatas)
        spent.append(time.perf_counter_ns() - start)
    assert part.shape == (BATCH, DIMENSION)
    return {"rows": BATCH, "count": BATCHES, **percentiles(spent), "max": max(spent) / 1e3}
