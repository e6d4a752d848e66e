"""The faiss engine: graphs that stay in their file, mapped and shared by all processes.

A search never enters an OpenMP team of more than one thread, so it starts no thread pool and works in a
forked child of a process that has one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tiermem.errors import CorruptionError, InvalidArgument
from tiermem.tiers.vector import codes, reach

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tiermem.protocols import VectorIndex

_CLASSES: Final = {
    "hnsw_sq8": "IndexHNSWSQ",
    "hnsw": "IndexHNSWFlat",
    "flat": "IndexFlatL2",
    "ivf": "IndexIVFFlat",
    "ivfpq": "IndexIVFPQ",
}

_PQ_TRAINING: Final = 256
"""The points a product quantizer of 8 bits needs at the least."""

_SEED: Final = 1234
_PROBE: Final = 2
"""Effort per inverted list that is looked at."""


class FaissEngine:
    """Builds one kind of faiss index.

    - "hnsw_sq8": a navigable graph over 8-bit codes, one byte per dimension and `8 * m` per row;
    - "hnsw": the same over the float32 points;
    - "flat": the points themselves, scanned whole; exact;
    - "ivf": the points in 4√rows inverted lists, of which a search looks at effort / 2;
    - "ivfpq": the same with product-quantized codes, about an eighth of a byte per bit of the dimension.

    `m` is the links of a graph's row (twice that at the lowest level); `ef_construction` the breadth of the
    search that chooses them.
    """

    def __init__(self, index: str = "hnsw_sq8", *, m: int = 16, ef_construction: int = 128) -> None:
        if index not in _CLASSES:
            raise InvalidArgument(f"index {index!r} is none of {', '.join(_CLASSES)}")
        if m < 2 or ef_construction < 1:
            raise InvalidArgument(f"m = {m} must be at least 2 and ef_construction = {ef_construction} at least 1")
        self.index = index
        self.m = m
        self.ef_construction = ef_construction

    @property
    def name(self) -> str:
        """ "faiss/" and the index type."""
        return f"faiss/{self.index}"

    @property
    def grows(self) -> bool:
        """Graphs do; lists and centroids are made anew, and of codes alone nothing is saved."""
        return self.index in ("hnsw", "hnsw_sq8")

    def __repr__(self) -> str:
        return f"FaissEngine({self.index!r}, m={self.m}, ef_construction={self.ef_construction})"

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
        """Write the index over `points` to `path`; with one thread the same chunks give the same bytes.

        The range of the codes and the centroids of the lists are learned from `sample`.
        """
        faiss = _faiss()
        with _team(faiss, threads):
            metric = faiss.METRIC_INNER_PRODUCT if inner_product else faiss.METRIC_L2
            index = self._empty(faiss, rows, dimension, len(sample), metric)
            step = 0.0
            if self.index == "hnsw_sq8":
                step = codes.learn(faiss, index, sample)
            elif not index.is_trained:
                index.train(_training(sample))
            for chunk in points:
                index.add(codes.whole_steps(chunk, step))
                progress(index.ntotal)
            if self.grows:
                reach.connect(faiss, index)
            codes.settle(faiss, index, step)
            _write(faiss, index, rows, path)

    def grow(
        self,
        known: Path,
        rows: int,
        order: NDArray[np.int64],
        points: Iterator[NDArray[np.float32]],
        dimension: int,
        path: Path,
        threads: int,
        progress: Callable[[int], None],
        *,
        sample: NDArray[np.float32],
        inner_product: bool = False,
    ) -> bool:
        """See `GrowingEngine`. Only graphs grow, and only those whose links were chosen as widely at least."""
        if not self.grows:
            return False
        faiss = _faiss()
        with _team(faiss, threads):
            try:
                index = _opened(faiss, known, 0)
            except CorruptionError:
                # Said where it is opened to be searched.
                return False
            metric = faiss.METRIC_INNER_PRODUCT if inner_product else faiss.METRIC_L2
            if type(index) is not getattr(faiss, _CLASSES[self.index]):
                return False
            shape = index.ntotal, index.d, index.metric_type, index.hnsw.nb_neighbors(0)
            if shape != (rows, dimension, metric, 2 * self.m) or index.hnsw.efConstruction < self.ef_construction:
                return False
            index.hnsw.efConstruction = self.ef_construction
            # Not kept in the file: else levels are drawn from the beginning again, and of few rows none lies high.
            index.hnsw.rng = faiss.RandomGenerator(rows)
            # The links stay, the codes are made anew: their range is another.
            storage = faiss.downcast_index(index.storage)
            storage.reset()
            step = codes.learn(faiss, index, sample) if self.index == "hnsw_sq8" else 0.0
            for part in points:
                chunk = codes.whole_steps(part, step)
                old = min(len(chunk), max(0, rows - storage.ntotal))
                storage.add(chunk[:old])
                if old < len(chunk):
                    # Never of nothing: the graph would take its rows for as many as have codes so far.
                    index.add(chunk[old:])
                progress(storage.ntotal)
            if not storage.ntotal == index.ntotal == len(order):
                # What the library would not look at: it takes codes from beyond those there are.
                raise ValueError(f"{storage.ntotal} points were given, {len(order)} announced")
            reach.connect(faiss, index)
            codes.settle(faiss, index, step)
            if not np.array_equal(order, np.arange(len(order))):
                index.permute_entries(order)
            _write(faiss, index, len(order), path)
        return True

    def load(self, path: Path, dimension: int, rows: int, *, inner_product: bool = False) -> VectorIndex:
        """Map the index at `path`; opens in time proportional to the rows' levels, not to their points."""
        faiss = _faiss()
        # The tables of a product quantizer are computed in parallel and held by every process: search without.
        flags = faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE
        index = _opened(faiss, path, flags)
        name = "IndexFlatIP" if inner_product and self.index == "flat" else _CLASSES[self.index]
        kind = getattr(faiss, name)
        metric = faiss.METRIC_INNER_PRODUCT if inner_product else faiss.METRIC_L2
        shape = index.d, index.ntotal, index.metric_type
        if type(index) is not kind or shape != (dimension, rows, metric):
            raise CorruptionError(
                f"{path.name} holds {type(index).__name__} of {index.ntotal} x {index.d}, metric {index.metric_type}, "
                f"not {name} of {rows} x {dimension}, metric {metric}"
            )
        return _FaissGraph(faiss, index)

    def _empty(self, faiss: Any, rows: int, dimension: int, trained_on: int, metric: int) -> Any:
        if self.index == "flat":
            return faiss.IndexFlat(dimension, metric)
        if self.index in ("ivf", "ivfpq"):
            # Never more lists than effort = rows will look at.
            lists = max(1, min(int(4 * math.sqrt(rows)), rows // (2 * _PROBE), trained_on // 8))
            quantizer = faiss.IndexFlat(dimension, metric)
            if self.index == "ivf":
                index = faiss.IndexIVFFlat(quantizer, dimension, lists, metric)
            else:
                index = faiss.IndexIVFPQ(quantizer, dimension, lists, _parts(dimension), 8, metric)
                # Codes of the points themselves: a query computes one table of distances, not one per list.
                index.by_residual = False
                index.pq.cp.seed = _SEED
                index.pq.cp.min_points_per_centroid = 1
                # A tenth of the time the library's own bounds take: 8192 points, 8 rounds.
                index.pq.cp.max_points_per_centroid = 32
                index.pq.cp.niter = 8
            index.cp.seed = _SEED
            index.cp.min_points_per_centroid = 1
            return index
        if self.index == "hnsw":
            index = faiss.IndexHNSWFlat(dimension, self.m, metric)
        else:
            index = faiss.IndexHNSWSQ(dimension, faiss.ScalarQuantizer.QT_8bit, self.m, metric)
        index.hnsw.efConstruction = self.ef_construction
        return index


class _Scratch:
    """What one search at a time writes to: parameters without and with a selector, and distances."""

    __slots__ = ("distances", "effort", "filtered", "plain", "pointer", "selector")

    def __init__(self, faiss: Any, parameters: Any, count: int) -> None:
        self.plain = parameters()
        self.selector = faiss.IDSelectorBitmap(np.zeros(1, np.uint8))
        self.filtered = parameters(sel=self.selector)
        self.effort = 0
        self.distances: NDArray[np.float32] = np.empty(count, np.float32)
        self.pointer = faiss.swig_ptr(self.distances)


class _FaissGraph:
    """An opened faiss index. Its C entry point is called directly: the wrapper costs 11 µs a search."""

    def __init__(self, faiss: Any, index: Any) -> None:
        self._faiss = faiss
        self._index = index
        self._rows: int = index.ntotal
        self._dimension: int = index.d
        self._lists: int = 0
        self._parameters: Any = faiss.SearchParameters
        self._nbytes = 0
        if isinstance(index, faiss.IndexHNSW):
            self._parameters = faiss.SearchParametersHNSW
            # A level (int32) and an offset (int64) for each row; links and points are mapped.
            self._nbytes = 12 * self._rows
        elif isinstance(index, faiss.IndexIVF):
            self._lists = index.nlist
            self._parameters = faiss.SearchParametersIVF
            # Two descriptors of about 64 bytes a list; the centroids of a product quantizer are not mapped.
            self._nbytes = 128 * self._lists
            if isinstance(index, faiss.IndexIVFPQ):
                self._parameters = faiss.IVFPQSearchParameters
                self._nbytes += 4 * index.pq.ksub * self._dimension
        self._noise = math.inf if isinstance(index, faiss.IndexIVFPQ) else 0.0
        if isinstance(index, faiss.IndexHNSWSQ):
            self._noise = codes.noise(faiss, index)
        self._sign = -1.0 if index.metric_type == faiss.METRIC_INNER_PRODUCT else 1.0
        # Only the graphs search one point without an OpenMP region: a scan of enough rows is shared out, even for one.
        self._alone = self._parameters is not faiss.SearchParametersHNSW
        # Taken and put back whole, so that neither another thread nor a signal handler meets one in use.
        self._free: list[_Scratch] = []

    @property
    def nbytes(self) -> int:
        """Private bytes, as far as they grow with the rows."""
        return self._nbytes

    @property
    def noise(self) -> float:
        """See `codes.noise`; float32 points have none."""
        return self._noise

    def search(
        self, point: NDArray[np.float32], count: int, effort: int, allowed: NDArray[np.uint8] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Up to `count` rows near `point`; see `VectorIndex`. The GIL is released meanwhile."""
        count = min(count, self._rows)
        found: NDArray[np.int64] = np.empty(max(count, 0), np.int64)
        if count < 1:
            return found, np.empty(0, np.float32)
        # The library is handed bare addresses: only arrays of the right type and length may get there.
        point = np.ascontiguousarray(point, np.float32)
        if point.shape != (self._dimension,):
            raise ValueError(f"a point of shape {point.shape} in an index of dimension {self._dimension}")
        try:
            scratch = self._free.pop()
        except IndexError:
            scratch = _Scratch(self._faiss, self._parameters, max(count, 64))
        try:
            self._search(scratch, point, count, max(effort, count), allowed, found)
            distances = scratch.distances[:count] * self._sign
        finally:
            self._free.append(scratch)
        if found[-1] < 0:
            # Rows that were not found are -1, behind those that were.
            found = found[found >= 0]
        return found, distances[: len(found)]

    def _search(
        self,
        scratch: _Scratch,
        point: NDArray[np.float32],
        count: int,
        effort: int,
        allowed: NDArray[np.uint8] | None,
        found: NDArray[np.int64],
    ) -> None:
        pointer = self._faiss.swig_ptr
        if len(scratch.distances) < count:
            scratch.distances = np.empty(count, np.float32)
            scratch.pointer = pointer(scratch.distances)
        if scratch.effort != effort:
            scratch.effort = effort
            for parameters in (scratch.plain, scratch.filtered):
                if self._lists:
                    parameters.nprobe = min(-(-effort // _PROBE), self._lists)
                elif not self._alone:
                    parameters.efSearch = effort
        parameters = scratch.plain
        if allowed is not None:
            # The caller's frame keeps the bits alive until the library has returned.
            bits = np.ascontiguousarray(allowed, np.uint8)
            scratch.selector.n = len(bits)
            scratch.selector.bitmap = pointer(bits)
            parameters = scratch.filtered
        if self._alone:
            with _team(self._faiss, 1):
                self._index.search_c(1, pointer(point), count, scratch.pointer, pointer(found), parameters)
        else:
            self._index.search_c(1, pointer(point), count, scratch.pointer, pointer(found), parameters)


def _opened(faiss: Any, path: Path, flags: int) -> Any:
    try:
        # By descriptor, because faiss takes no path that is not UTF-8.
        with path.open("rb") as file:
            return faiss.read_index(f"/proc/self/fd/{file.fileno()}", flags)
    except (RuntimeError, MemoryError) as error:
        raise CorruptionError(f"{path.name} is not an index that faiss reads: {error}") from error


def _write(faiss: Any, index: Any, rows: int, path: Path) -> None:
    if index.ntotal != rows:
        raise ValueError(f"{index.ntotal} points were given, {rows} announced")
    # Through Python's file, so that a full disk is an OSError with its errno and any path will do.
    with path.open("wb", buffering=0) as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(_whole(file)))


def _faiss() -> Any:
    import faiss

    return faiss


@contextmanager
def _team(faiss: Any, threads: int) -> Iterator[None]:
    """Let OpenMP regions entered by this thread have `threads` threads; the number is a property of the thread."""
    before = faiss.omp_get_max_threads()
    if before == threads:
        yield
        return
    faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _training(sample: NDArray[np.float32]) -> NDArray[np.float32]:
    """`sample` without what overflows: infinite distances make k-means end the process."""
    points = codes.limited(sample)
    # Repeated where there are few, because k-means refuses fewer points than centroids.
    return points if len(points) >= _PQ_TRAINING else np.resize(points, (_PQ_TRAINING, points.shape[1]))


def _parts(dimension: int) -> int:
    """Into how many equal parts a product quantizer cuts a point: the least divisor that is a byte per 8 numbers."""
    return next(parts for parts in range(max(1, dimension // 8), dimension + 1) if dimension % parts == 0)


def _whole(file: Any) -> Callable[[bytes], int]:
    """A `write` that never writes less than it was given."""

    def write(data: bytes) -> int:
        left = memoryview(data)
        while left:
            left = left[file.write(left) :]
        return len(data)

    return write
