"""The builder: makes the files of one segment, in a process of its own or in the caller's.

In its own it shares no interpreter lock, no OpenMP threads and no fate with those who search. It reads
the store, writes new files, and publishes nothing.
"""

from __future__ import annotations

import os
import select
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from tiermem.codec.frame import HAS_VECTOR
from tiermem.config import ColdConfig
from tiermem.engine.generations import sync_folder
from tiermem.errors import CorruptionError, TiermemError, file_error
from tiermem.protocols import VectorEngine
from tiermem.tiers.cold import ColdEnv, Snapshot
from tiermem.tiers.vector.choice import EngineOptions, engine_of
from tiermem.tiers.vector.graphfile import seal_graph
from tiermem.tiers.vector.rowfile import Place, RowFile, write_rows
from tiermem.tiers.vector.scores import as_points
from tiermem.tiers.vector.shelf import Shelf
from tiermem.types import Progress

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

CHUNK: Final = 8_192
GRAPH_ROWS: Final = 1_024
"""Fewer rows are compared one by one anyway, and get no graph."""
_SAMPLE_BYTES: Final = 64 << 20
"""Of the rows that an engine may learn from, at the most."""
_POLITE: Final = 10
_GLANCE: Final = 0.5
"""Seconds between looks at whether the parent is still there."""


class Job(msgspec.Struct):
    """What to build: segment `number` of a namespace, of its unsealed vectors and the segments `inputs`."""

    root: bytes
    generation: int
    namespace: str
    number: int
    inputs: list[int]
    unsealed: bool
    threads: int
    options: EngineOptions


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
            inputs, gathered = _gather(snapshot, shelf, job, info.prefix, info.dimension)
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
            vectors = _vectors(snapshot, info.prefix, info.dimension, inputs, place, source, row)
            seal = write_rows(fresh[0], job.number, info.dimension, info.metric, place, vectors)
            dimension, metric = info.dimension, info.metric
        graph = total >= GRAPH_ROWS
        if graph:
            engine = engine_for(total)
            rows = RowFile(fresh[0], job.number, seal)
            engine.build(
                _points(rows),
                total,
                dimension,
                fresh[1],
                job.threads,
                lambda done: progress(done, total),
                sample=_sample(rows),
                inner_product=metric == "dot",
            )
            seal_graph(fresh[1], engine.name, job.number, seal)
            fresh[1].rename(graph_path)
        fresh[0].rename(rows_path)
        sync_folder(shelf.folder)
        # Whoever made the folder may have died before its name was durable.
        sync_folder(shelf.folder.parent)
        return Built(total, seal, graph, info.id)
    finally:
        for path in fresh:
            path.unlink(missing_ok=True)


def _points(rows: RowFile) -> Iterator[NDArray[np.float32]]:
    about = rows.about
    for start in range(0, about.rows, CHUNK):
        yield as_points(about.metric, rows.span(start, min(start + CHUNK, about.rows)), about.largest)


def _sample(rows: RowFile) -> NDArray[np.float32]:
    """Points from first to last, since rows are in order of time and what is seen of them drifts."""
    about = rows.about
    few = max(1, min(about.rows, _SAMPLE_BYTES // (4 * about.dimension)))
    sample = as_points(about.metric, rows.take(np.arange(few) * about.rows // few), about.largest)
    if few == about.rows:
        return sample
    # None lies beyond what is learned from: codes are as exact as their engine says.
    lows, highs = zip(*((part.min(axis=0), part.max(axis=0)) for part in _points(rows)), strict=True)
    return np.concatenate([sample, [np.min(lows, axis=0), np.max(highs, axis=0)]])


def _gather(
    snapshot: Snapshot, shelf: Shelf, job: Job, prefix: bytes, dimension: int
) -> tuple[list[RowFile], _Gathered]:
    published = snapshot.segments(prefix)
    unsealed = list(snapshot.unsealed(prefix))
    gathered = _Gathered()
    width = dimension * 4
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
        for key, row in zip(unsealed, rows.find(unsealed).tolist(), strict=True):
            # What a segment holds as it is in L3 was only just sealed, and is soon counted as sealed.
            if row >= 0 and (job.unsealed or rows.versions[row] != snapshot.vector_version(prefix + key.encode())):
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
        for key in unsealed:
            frame = snapshot.record(prefix + key.encode())
            if frame is not None and frame.flags & HAS_VECTOR and snapshot.vector_bytes(prefix + key.encode()) == width:
                keys.append(key)
                metadata.append(frame.metadata)
                versions.append(frame.version)
                at.append(frame.at)
                expires.append(frame.expires)
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
    for start in range(0, len(source), CHUNK):
        part = slice(start, min(start + CHUNK, len(source)))
        chunk = np.empty((part.stop - start, dimension), np.float32)
        for number, rows in enumerate(inputs):
            here = np.flatnonzero(source[part] == number)
            if len(here):
                chunk[here] = rows.take(row[part][here])
        for at in np.flatnonzero(source[part] < 0).tolist():
            key = prefix + place.keys[start + at].encode()
            found = snapshot.vector(key)
            if found is None or found[0] != place.versions[start + at] or len(found[1]) != dimension * 4:
                raise CorruptionError(f"record {key!r}: its vector is missing or of another version")
            chunk[at] = np.frombuffer(found[1], "<f4")
        yield chunk


def main() -> int:
    """Build what the line on standard input asks for; lines of progress and the result go to standard output."""
    parent, begun = int(sys.argv[1]), threading.Event()

    def watch() -> None:
        # Standard input ends with the process that wants this segment, unless one it has forked holds it open too.
        while os.getppid() == parent:
            if begun.wait(_GLANCE) and select.select([0], [], [], _GLANCE)[0] and not os.read(0, CHUNK):
                break
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    begun.set()
    root = Path(os.fsdecode(job.root))
    if job.threads == 1:
        os.nice(_POLITE)

    def tell(message: object) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
        sys.stdout.buffer.flush()

    shelf = Shelf(root / "segments", engine_of)
    try:
        env = ColdEnv(root, job.generation, ColdConfig(), read_only=True)
        try:
            done = build(env, shelf, job, job.options.make, lambda rows, total: tell([rows, total]))
        finally:
            env.close()
    except OSError as exc:
        tell(f"{file_error(exc).__name__}: {exc}")
        return 1
    except TiermemError as exc:
        tell(f"{type(exc).__name__}: {exc}")
        return 1
    tell(done)
    return 0


if __name__ == "__main__":
    sys.exit(main())
