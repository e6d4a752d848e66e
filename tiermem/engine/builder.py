"""The builder: makes the files of one segment, in a process of its own or in the caller's.

In its own it shares no interpreter lock, no OpenMP threads and no fate with those who search. It reads
the store, writes new files, and publishes nothing.
"""

from __future__ import annotations

import os
import select
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from tiermem.config import ColdConfig
from tiermem.engine.generations import sync_folder
from tiermem.errors import CorruptionError, IncompatibleFormatError, StorageError, TiermemError, file_error
from tiermem.protocols import GrowingEngine, VectorEngine
from tiermem.tiers.cold import ColdEnv, Snapshot
from tiermem.tiers.vector.choice import EngineOptions, engine_of
from tiermem.tiers.vector.graphfile import seal_graph, verify_graph
from tiermem.tiers.vector.rowfile import Place, RowFile, sync_rows, write_rows
from tiermem.tiers.vector.scores import as_points
from tiermem.tiers.vector.shelf import Shelf
from tiermem.types import Progress

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from tiermem.tiers.cold.layout import SegmentInfo

CHUNK: Final = 8_192
_STRIP: Final = 512
"""Rows that are written at a time: they stay in the processor's cache meanwhile."""
GRAPH_ROWS: Final = 1_024
"""Fewer rows are compared one by one anyway, and get no graph."""
_SAMPLE_BYTES: Final = 64 << 20
"""Of the rows that an engine may learn from, at the most."""
IDLE: Final = 30.0
"""Seconds a builder waits for another job: to start one takes longer than to build a small segment."""
_GLANCE: Final = 0.5
"""Seconds between looks at whether the parent is still there."""


class Job(msgspec.Struct):
    """What to build: segment `number` of a namespace, of its unsealed vectors and the segments `inputs`.

    `nice`: 0 where a caller waits for it, else how far it stands back behind everything else.
    """

    root: bytes
    generation: int
    namespace: str
    number: int
    inputs: list[int]
    unsealed: bool
    threads: int
    nice: int
    options: EngineOptions

    @property
    def awaited(self) -> bool:
        """A caller waits for it."""
        return not self.nice

    def make(self, rows: int) -> VectorEngine:
        """The shipped engine that builds it over so many rows."""
        return self.options.make(rows, awaited=self.awaited)


class Built(msgspec.Struct):
    """What was built, for the namespace of that id; no rows, no files."""

    rows: int
    seal: int
    graph: bool
    namespace: int = 0


class _Gathered:
    """The rows of the segment to be, not yet in order, and where their vectors are."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.metadata: list[bytes] = []
        self.versions: list[NDArray[np.uint64]] = []
        self.at: list[NDArray[np.float64]] = []
        self.expires: list[NDArray[np.float64]] = []
        self.source: list[NDArray[np.int64]] = []
        self.row: list[NDArray[np.int64]] = []

    def add(
        self,
        source: int,
        rows: NDArray[np.int64],
        keys: list[str],
        metadata: list[bytes],
        versions: ArrayLike,
        at: ArrayLike,
        expires: ArrayLike,
    ) -> None:
        """Rows of one source: input `source`, or -1 for L3."""
        self.keys.extend(keys)
        self.metadata.extend(metadata)
        self.versions.append(np.asarray(versions, np.uint64))
        self.at.append(np.asarray(at, np.float64))
        self.expires.append(np.asarray(expires, np.float64))
        self.source.append(np.full(len(rows), source, np.int64))
        self.row.append(rows)


def build(env: ColdEnv, shelf: Shelf, job: Job, engine_for: Callable[[int], VectorEngine], progress: Progress) -> Built:
    """Write the files of a segment, synced, under their names; `engine_for` is told how many rows there are.

    Raises:
        CorruptionError: an input is damaged. StorageError, OSError: there is no room.
    """
    rows_path, graph_path = shelf.rows_path(job.number), shelf.graph_path(job.number)
    fresh = rows_path.with_suffix(".rows.new"), graph_path.with_suffix(".graph.new")
    try:
        with env.read() as snapshot:
            info = snapshot.info(job.namespace)
            if info is None or info.dropped:
                return Built(0, 0, graph=False)
            published = snapshot.segments(info.prefix)
            inputs, gathered = _gather(snapshot, shelf, job, published, info.prefix, info.dimension)
            total = len(gathered.keys)
            if not total:
                return Built(0, 0, graph=False, namespace=info.id)
            order = np.argsort(np.concatenate(gathered.at), kind="stable")
            source, row = np.concatenate(gathered.source)[order], np.concatenate(gathered.row)[order]
            ranked = order.tolist()
            place = Place(
                [gathered.keys[at] for at in ranked],
                [gathered.metadata[at] for at in ranked],
                np.concatenate(gathered.versions)[order],
                np.concatenate(gathered.at)[order],
                np.concatenate(gathered.expires)[order],
            )
            dimension, metric = info.dimension, info.metric
            sample = _Sample(metric, total, dimension)
            vectors = _vectors(snapshot, info.prefix, dimension, inputs, place, source, row)
            seal = write_rows(fresh[0], job.number, dimension, metric, place, sample.over(vectors))
        graph = total >= GRAPH_ROWS
        with ThreadPoolExecutor(1, "tiermem-sync") as beside:
            # The disk takes the rows while the graph over them is made.
            synced = beside.submit(sync_rows, fresh[0])
            if graph:
                engine = engine_for(total)
                rows = RowFile(fresh[0], job.number, seal)
                known = _largest_whole(shelf, inputs, published, engine, source, row)
                learned = sample.points(rows.about.largest)
                _link(engine, rows, fresh[1], known, job.threads, lambda done: progress(done, total), learned)
                seal_graph(fresh[1], engine.name, job.number, seal)
                fresh[1].rename(graph_path)
            synced.result()
        fresh[0].rename(rows_path)
        sync_folder(shelf.folder)
        # Whoever made the folder may have died before its name was durable.
        sync_folder(shelf.folder.parent)
        return Built(total, seal, graph, info.id)
    finally:
        for path in fresh:
            path.unlink(missing_ok=True)


class _Sample:
    """What an engine may learn from, taken from the vectors as they pass: some from first to last, since rows are in
    order of time and what is seen of them drifts, and how far all of them reach."""

    def __init__(self, metric: str, rows: int, dimension: int) -> None:
        few = max(1, min(rows, _SAMPLE_BYTES // (4 * dimension)))
        self._metric = metric
        self._whole = few == rows
        self._chosen = np.arange(few) * rows // few
        self._points = np.empty((few + 2, dimension), np.float32)
        self._low, self._high = self._points[few:]
        self._low[:], self._high[:] = np.inf, -np.inf

    def over(self, vectors: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
        """The chunks of `vectors`, once they were looked at."""
        start = 0
        for chunk in vectors:
            # By what the others are shrunk is known at the end: it changes nothing about which is the least.
            seen = as_points(self._metric, chunk, 1.0) if self._metric == "cosine" else chunk
            np.minimum(self._low, seen.min(axis=0), out=self._low)
            np.maximum(self._high, seen.max(axis=0), out=self._high)
            first, last = np.searchsorted(self._chosen, (start, start + len(chunk)))
            self._points[first:last] = seen[self._chosen[first:last] - start]
            start += len(chunk)
            yield chunk

    def points(self, largest: float) -> NDArray[np.float32]:
        """Those chosen, and unless these are all two that none lies beyond: codes are as exact as their engine says."""
        seen = self._points[:-2] if self._whole else self._points
        return seen if self._metric == "cosine" else as_points(self._metric, seen, largest)


def _points(rows: RowFile, order: NDArray[np.int64] | None = None) -> Iterator[NDArray[np.float32]]:
    about = rows.about
    for start in range(0, about.rows, CHUNK):
        stop = min(start + CHUNK, about.rows)
        vectors = rows.span(start, stop) if order is None else rows.take(order[start:stop])
        yield as_points(about.metric, vectors, about.largest)


def _largest_whole(
    shelf: Shelf,
    inputs: list[RowFile],
    published: dict[int, SegmentInfo],
    engine: VectorEngine,
    source: NDArray[np.int64],
    row: NDArray[np.int64],
) -> tuple[Path, NDArray[np.int64]] | None:
    """The graph of that engine over the most rows of those whose rows are all taken over, and their places.

    None for an engine that would not add to it: it is read whole here.
    """
    if not (isinstance(engine, GrowingEngine) and engine.grows):
        return None
    for at, rows in sorted(enumerate(inputs), key=lambda pair: -pair[1].rows):
        places = np.flatnonzero(source == at)
        known = published[rows.number]
        if known.graph and np.array_equal(row[places], np.arange(rows.rows)):
            path = shelf.graph_path(rows.number)
            # What is wrong with it is said where it is opened to be searched; the rows are all that is needed here.
            with suppress(CorruptionError, IncompatibleFormatError, StorageError):
                if verify_graph(path, rows, known.seal) == engine.name:
                    return path, places
    return None


def _link(
    engine: VectorEngine,
    rows: RowFile,
    path: Path,
    known: tuple[Path, NDArray[np.int64]] | None,
    threads: int,
    tell: Callable[[int], None],
    sample: NDArray[np.float32],
) -> None:
    """Write the graph over `rows`: the one that is known of some of them, grown, if the engine does that."""
    about = rows.about
    inner_product = about.metric == "dot"
    if known is not None and isinstance(engine, GrowingEngine):
        old, places = known
        came = np.concatenate([places, np.delete(np.arange(about.rows), places)])
        if engine.grow(
            old,
            len(places),
            np.argsort(came),
            _points(rows, came),
            about.dimension,
            path,
            threads,
            tell,
            sample=sample,
            inner_product=inner_product,
        ):
            return
    points = _points(rows)
    engine.build(points, about.rows, about.dimension, path, threads, tell, sample=sample, inner_product=inner_product)


def _gather(
    snapshot: Snapshot, shelf: Shelf, job: Job, published: dict[int, SegmentInfo], prefix: bytes, dimension: int
) -> tuple[list[RowFile], _Gathered]:
    unsealed = list(snapshot.unsealed(prefix))
    stored = [prefix + key.encode() for key in unsealed]
    gathered = _Gathered()
    inputs: list[RowFile] = []
    for number in job.inputs:
        if number not in published:
            raise CorruptionError(f"segment {number:016x} was withdrawn while it was merged")
        known = published[number]
        rows = RowFile(shelf.rows_path(number), number, known.seal)
        alive = np.ones(rows.rows, bool)
        if known.dead:
            dead = np.unpackbits(np.frombuffer(known.dead, np.uint8), count=rows.rows, bitorder="little")
            alive &= dead == 0
        for raw, row in zip(stored, rows.find(unsealed).tolist(), strict=True):
            # What a segment holds as it is in L3 was only just sealed, and is soon counted as sealed.
            if row >= 0 and (job.unsealed or rows.versions[row] != snapshot.vector_version(raw)):
                alive[row] = False
        kept = np.flatnonzero(alive)
        heads = rows.heads(kept)
        keys, metadata = [key for key, _ in heads], [metadata for _, metadata in heads]
        gathered.add(len(inputs), kept, keys, metadata, rows.versions[kept], rows.at[kept], rows.expires[kept])
        inputs.append(rows)
    if job.unsealed:
        keys, metadata = [], []
        versions: list[int] = []
        at: list[float] = []
        expires: list[float] = []
        for key, outline in zip(unsealed, snapshot.outlines(stored, dimension * 4), strict=True):
            if outline is not None:
                keys.append(key)
                versions.append(outline[1])
                at.append(outline[2])
                expires.append(outline[3])
                metadata.append(outline[4])
        gathered.add(-1, np.arange(len(keys)), keys, metadata, versions, at, expires)
    return inputs, gathered


def _vectors(
    snapshot: Snapshot,
    prefix: bytes,
    dimension: int,
    inputs: list[RowFile],
    place: Place,
    source: NDArray[np.int64],
    row: NDArray[np.int64],
) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(source), _STRIP):
        part = slice(start, min(start + _STRIP, len(source)))
        chunk = np.empty((part.stop - start, dimension), np.float32)
        for number, rows in enumerate(inputs):
            here = np.flatnonzero(source[part] == number)
            if len(here):
                chunk[here] = rows.take(row[part][here])
        here = np.flatnonzero(source[part] < 0)
        if len(here):
            stored = [prefix + place.keys[start + at].encode() for at in here.tolist()]
            raw = snapshot.vectors(stored, place.versions[part][here].tolist(), dimension * 4)
            chunk[here] = np.frombuffer(raw, "<f4").reshape(-1, dimension)
        yield chunk


def main() -> int:
    """Build what each line on standard input asks for; lines of progress and the results go to standard output.

    It ends with its input, when something failed, or when nothing was asked for in a while.
    """
    parent = int(sys.argv[1])

    def watch() -> None:
        # Standard input is hung up by the end of the process that wants this segment, unless one it has forked holds
        # it open too. What comes in is not looked at: it is the next job.
        poller = select.poll()
        poller.register(0, 0)
        while os.getppid() == parent and not poller.poll(_GLANCE * 1000):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    nice = 0
    while select.select([0], [], [], IDLE)[0] and (line := sys.stdin.buffer.readline()):
        job = msgspec.json.decode(line, type=Job)
        nice = os.nice(max(0, job.nice - nice))
        try:
            done = _build(job)
        except OSError as exc:
            _tell(f"{file_error(exc).__name__}: {exc}")
            return 1
        except TiermemError as exc:
            _tell(f"{type(exc).__name__}: {exc}")
            return 1
        _tell(done)
    return 0


def _build(job: Job) -> Built:
    root = Path(os.fsdecode(job.root))
    env = ColdEnv(root, job.generation, ColdConfig(), read_only=True)
    try:
        shelf = Shelf(root / "segments", engine_of)
        return build(env, shelf, job, job.make, lambda rows, total: _tell([rows, total]))
    finally:
        env.close()


def _tell(message: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
