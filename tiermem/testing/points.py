"""Points, and what a suite asks of an index over them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray

from tiermem.protocols import VectorEngine, VectorIndex

Points: TypeAlias = NDArray[np.float32]
Rows: TypeAlias = NDArray[np.int64]

EFFORT, K = 128, 10
CHUNK = 700
PATIENCE = 20.0
"""Seconds a forked child may take for a few searches."""


def clustered(rows: int, dimension: int, seed: int = 0) -> tuple[Points, Points]:
    """Points around 40 centers, and 100 queries from the same distribution; all of them different."""
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((40, dimension))

    def draw(count: int) -> Points:
        near = centers[rng.integers(0, len(centers), count)]
        return np.asarray(near + 0.5 * rng.standard_normal((count, dimension)), np.float32)

    return draw(rows), draw(100)


def nearest(points: Points, query: Points, k: int, among: Rows | None = None) -> Rows:
    """The min(k, n) rows of `points`, or of those `among` them, nearest to `query`: by float64 distances."""
    rows = np.arange(len(points)) if among is None else among
    gaps = points[rows].astype(np.float64) - query.astype(np.float64)
    order = np.argsort(np.einsum("ij,ij->i", gaps, gaps), kind="stable")
    return np.asarray(rows[order[:k]], np.int64)


def bits_of(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The `allowed` that lets the rows of `mask` through."""
    return np.packbits(mask, bitorder="little")


def build(
    engine: VectorEngine,
    points: Points,
    path: Path,
    *,
    rows: int | None = None,
    chunk: int = CHUNK,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """`engine.build` of `points` in chunks by one thread, so that no pool is left behind; `rows` are announced."""

    announced = len(points) if rows is None else rows
    engine.build(chunks(points, chunk), announced, points.shape[1], path, 1, progress, sample=points)


def chunks(points: Points, chunk: int = CHUNK) -> Iterator[Points]:
    """`points`, so many at a time."""
    for start in range(0, len(points), chunk):
        yield points[start : start + chunk]


def near(index: VectorIndex, query: Points, count: int, effort: int, allowed: NDArray[np.uint8] | None = None) -> Rows:
    """The rows that `index` finds; each has its distance, and no other is nearer."""
    rows, gaps = index.search(query, count, effort, allowed)
    assert gaps.shape == rows.shape
    assert gaps.tolist() == sorted(gaps.tolist())
    return rows


def best(
    index: VectorIndex, points: Points, query: Points, effort: int, allowed: NDArray[np.uint8] | None
) -> list[int]:
    """The K nearest of 4 K candidates."""
    candidates = near(index, query, 4 * K, max(effort, 4 * K), allowed)
    return list(nearest(points, query, K, candidates).tolist())


def distances(points: Points, query: Points, rows: Rows) -> NDArray[np.float64]:
    """From `query` to `rows`, in float64."""
    return np.asarray(np.linalg.norm(points[rows].astype(np.float64) - query.astype(np.float64), axis=1))


def answers(index: VectorIndex, queries: Points) -> list[list[int]]:
    """What `index` finds for each query."""
    return [near(index, query, K, EFFORT, None).tolist() for query in queries]


def check(rows: Rows, count: int, size: int, mask: NDArray[np.bool_] | None = None) -> None:
    """At most `count` distinct rows of `size`, all of them allowed by `mask`."""
    assert rows.dtype == np.int64
    assert rows.ndim == 1
    assert len(rows) <= count
    assert len(set(rows.tolist())) == len(rows)
    assert all(0 <= row < size for row in rows.tolist())
    assert mask is None or mask[rows].all()


def wait(child: int) -> int:
    """The exit code of `child`, which is killed if it takes too long."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail("a search in a forked child hangs")
