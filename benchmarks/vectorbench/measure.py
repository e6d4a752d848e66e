"""Clocks, memory and recall, the same for every subject."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from _workload import percentile

from vectorbench.data import FloatArray, IntArray, K

TOLERANCE = 1e-6
"""Of a score: float32 sums of products differ by so much with their order."""
Search = Callable[[FloatArray], Any]


def memory() -> dict[str, int]:
    """Resident bytes of this process by what backs them: `anonymous`, `file`, `shared`; and its largest `peak`."""
    names = {"RssAnon": "anonymous", "RssFile": "file", "RssShmem": "shared", "VmHWM": "peak"}
    rows = (line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {names[name]: int(value.split()[0]) * 1024 for name, value in rows if name in names}


def grown(before: dict[str, int]) -> dict[str, int]:
    """`memory` now, less what it was."""
    return {name: value - before[name] for name, value in memory().items()}


@contextmanager
def no_collection() -> Iterator[None]:
    """Python's garbage collector is off, for every subject."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def timed(
    search: Search, rows: Callable[[Any], list[int]], queries: FloatArray, limit: float
) -> tuple[list[int], list[IntArray]]:
    """Nanoseconds and answers of one search after the other, until `limit` seconds have passed.

    What makes rows of an answer is not timed. Answers are kept as arrays, so that they do not count for memory.
    """
    clock = time.perf_counter_ns
    spent: list[int] = []
    answers: list[IntArray] = []
    end = time.perf_counter() + limit
    with no_collection():
        for query in queries:
            start = clock()
            answer = search(query)
            spent.append(clock() - start)
            answers.append(np.array(rows(answer), np.int64))
            if time.perf_counter() > end:
                break
    return spent, answers


def percentiles(spent: Sequence[int]) -> dict[str, float | None]:
    """Percentiles in µs; None where fewer than five samples lie above."""
    samples = [one / 1e3 for one in spent]
    return {f"p{100 * share:g}": percentile(samples, share) for share in (0.5, 0.95, 0.99)}


def recall(base: FloatArray, queries: FloatArray, answers: Sequence[IntArray], best: FloatArray) -> float:
    """The share of the min(K, matches) best that was found, over all queries answered.

    best: their exact scores, shape (queries, min(K, matches)). A row counts if it scores no less than the last of
    them, so that of rows with one vector any will do.
    """
    wanted = best.shape[1]
    if not wanted or not answers:
        return 1.0
    found = 0
    for query, rows, scores in zip(queries, answers, best, strict=False):
        distinct = np.unique(rows[:K])
        if distinct.size:
            found += min(wanted, int((base[distinct] @ query >= scores[-1] - TOLERANCE).sum()))
    return found / (wanted * len(answers))


def exact(base: FloatArray, queries: FloatArray) -> FloatArray:
    """The scores of the K best rows of each query, best first."""
    best = np.empty((len(queries), 0), np.float32)
    for start in range(0, len(base), 20_000):
        scores = queries @ base[start : start + 20_000].T
        best = -np.sort(-np.concatenate([best, scores], axis=1), axis=1)[:, :K]
    return best


def allowed(answers: Sequence[IntArray], of_row: IntArray, below: int) -> list[IntArray]:
    """The answers less the rows that a filter forbids."""
    return [rows[of_row[rows] < below] for rows in answers]


def forget(root: Path) -> None:
    """Write what is dirty under `root` and drop it from the page cache; what is mapped elsewhere stays."""
    for path in root.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
