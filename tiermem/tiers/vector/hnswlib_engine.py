"""The hnswlib engine: a graph over float32 points, held in the memory of each process."""

from __future__ import annotations

import errno
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tiermem.errors import CorruptionError, InvalidArgument, MissingExtra
from tiermem.tiers.vector.bits import are_set

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tiermem.protocols import VectorIndex

_HEADER: Final = struct.Struct("<QQQQQQiiQQQdQ")
"""offset of level 0, capacity, rows, bytes of a row, offset of its label and of its point, highest level, entry
point, links of a row above level 0, at level 0, m, level multiplier, ef_construction."""

_SEED: Final = 100


class HnswlibEngine:
    """Builds graphs with hnswlib. `m` is the links of a row, twice that at the lowest level."""

    def __init__(self, *, m: int = 16, ef_construction: int = 128) -> None:
        if m < 2 or ef_construction < 1:
            raise InvalidArgument(f"m = {m} must be at least 2 and ef_construction = {ef_construction} at least 1")
        self.m = m
        self.ef_construction = ef_construction

    @property
    def name(self) -> str:
        """ "hnswlib"."""
        return "hnswlib"

    def __repr__(self) -> str:
        return f"HnswlibEngine(m={self.m}, ef_construction={self.ef_construction})"

    def build(
        self,
        points: Iterator[NDArray[np.float32]],
        rows: int,
        dimension: int,
        path: Path,
        threads: int,
        progress: Callable[[int], None],
        *,
        sample: NDArray[np.float32],
        inner_product: bool = False,
    ) -> None:
        """Write the graph over `points` to `path`; the points are held in memory until then. Nothing is learned."""
        index = _hnswlib().Index(space="ip" if inner_product else "l2", dim=dimension)
        index.init_index(rows, M=self.m, ef_construction=self.ef_construction, random_seed=_SEED)
        done = 0
        for chunk in points:
            if done + len(chunk) > rows:
                raise ValueError(f"more points were given than the {rows} announced")
            index.add_items(chunk, np.arange(done, done + len(chunk)), num_threads=threads)
            done += len(chunk)
            progress(done)
        if done != rows:
            raise ValueError(f"{done} points were given, {rows} announced")
        with path.open("wb") as file:
            # By descriptor, because the library takes no path that is not UTF-8.
            index.save_index(f"/proc/self/fd/{file.fileno()}")
            size = index.index_file_size()
            if os.fstat(file.fileno()).st_size != size:
                # The library ignores errors of its stream; this raises what it met, or does its part.
                os.posix_fallocate(file.fileno(), 0, size)
                raise OSError(errno.EIO, "a graph was not written whole", str(path))

    def load(self, path: Path, dimension: int, rows: int, *, inner_product: bool = False) -> VectorIndex:
        """Read the graph at `path` into memory."""
        hnswlib = _hnswlib()
        with path.open("rb") as file:
            size = _native_size(file.fileno(), path.name, dimension, rows)
            index = hnswlib.Index(space="ip" if inner_product else "l2", dim=dimension)
            # The library refuses a file with bytes behind its own, so it reads a copy that ends where they do.
            copy = os.memfd_create("tiermem-graph", os.MFD_CLOEXEC)
            try:
                sent = 0
                while sent < size and (step := os.sendfile(copy, file.fileno(), sent, size - sent)):
                    sent += step
                index.load_index(f"/proc/self/fd/{copy}", max_elements=rows)
            except RuntimeError as error:
                raise CorruptionError(f"{path.name} is not a graph that hnswlib reads: {error}") from error
            finally:
                os.close(copy)
        return _HnswlibGraph(index, dimension, size)


class _HnswlibGraph:
    """A graph in memory.

    The library's breadth is a property of the index and would have to be guarded; but it is the greater of that
    property and of the number of rows asked for, so `effort` rows are asked for and the first of them kept.
    """

    def __init__(self, index: Any, dimension: int, size: int) -> None:
        self._index = index
        self._dimension = dimension
        self._rows: int = index.get_current_count()
        self._nbytes = size
        index.set_ef(1)

    @property
    def nbytes(self) -> int:
        """Bytes of points and links."""
        return self._nbytes

    @property
    def noise(self) -> float:
        """None: float32 points."""
        return 0.0

    def search(
        self, point: NDArray[np.float32], count: int, effort: int, allowed: NDArray[np.uint8] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Up to `count` rows near `point`; see `VectorIndex`. The GIL is released meanwhile.

        A filter sifts the nearest of all rows, ever more of them until `count` are left: the library's own
        filter calls back into Python, and waits for the GIL, for each row it meets.
        """
        breadth = max(effort, count)
        if allowed is None:
            found, distances = self._nearest(point, breadth)
            return found[: max(count, 0)], distances[: max(count, 0)]
        matches = int(np.bitwise_count(allowed).sum())
        count = min(count, matches)
        if count < 1:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        breadth = max(breadth, count * self._rows // matches)
        while True:
            found, distances = self._nearest(point, breadth)
            passed = are_set(allowed, found)
            if passed.sum() >= count or breadth >= self._rows:
                return found[passed][:count], distances[passed][:count]
            breadth *= 2

    def _nearest(self, point: NDArray[np.float32], breadth: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        breadth = min(breadth, self._rows)
        while breadth > 0:
            try:
                labels, distances = self._index.knn_query(point, k=breadth, num_threads=1)
            except RuntimeError as error:
                # Fewer rows were reached than asked for; the library then returns none.
                if "contiguous 2D array" not in str(error):
                    raise
                breadth -= max(1, breadth // 16)
            else:
                # For inner products the library says 1 - p.
                gaps = distances[0] - 1 if self._index.space == "ip" else distances[0]
                return np.asarray(labels[0], np.int64), np.asarray(gaps, np.float32)
        return np.empty(0, np.int64), np.empty(0, np.float32)


def _hnswlib() -> Any:
    try:
        import hnswlib
    except ModuleNotFoundError as error:
        raise MissingExtra("hnswlib is not installed; it comes with tiermem[hnswlib]") from error
    return hnswlib


def _native_size(descriptor: int, name: str, dimension: int, rows: int) -> int:
    """Where the library's own bytes end; CorruptionError unless they hold `rows` points of `dimension`."""
    end = os.fstat(descriptor).st_size
    if end < _HEADER.size:
        raise CorruptionError(f"{name} is shorter than the header of a graph")
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as view:
        fields: tuple[int, ...] = _HEADER.unpack_from(view)
        start, _, held, row, label, offset, _, _, _, base, *_ = fields
        at = _HEADER.size + held * row
        if (start, held, label - offset) != (0, rows, 4 * dimension) or row != base * 4 + 4 + 4 * dimension + 8:
            raise CorruptionError(f"{name} is not a graph of {rows} points of dimension {dimension}")
        # Each row's links above level 0 follow: their size in bytes (uint32), then they.
        for _ in range(rows):
            if at + 4 > end:
                raise CorruptionError(f"{name} ends within its links")
            at += 4 + int.from_bytes(view[at : at + 4], "little")
    if at > end:
        raise CorruptionError(f"{name} ends within its links")
    return at
