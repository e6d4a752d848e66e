"""Memory: the API."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from tiermem.config import METRICS, Config, Metric
from tiermem.engine import drafts, opening, search
from tiermem.engine.namespace import Namespace
from tiermem.engine.reads import Reads
from tiermem.engine.reentry import refuse_inside
from tiermem.engine.writes import Writes
from tiermem.errors import InvalidArgument
from tiermem.protocols import Clock, Embedder
from tiermem.tiers.cold import Writer
from tiermem.types import Progress

if TYPE_CHECKING:
    from tiermem.reports import CheckReport, Stats

MAX_DIMENSION: Final = 2**20


class Memory(Reads, Writes):
    """An open store. Made by `open`; a context manager; safe to use from several threads.

    Handles on one directory in one process share its tiers. Other processes may open it too.
    """

    def namespace(self, name: str, type: Any = None) -> Namespace:
        """A namespace as a mapping, with every verb less its first argument.

        type: what values are decoded as (a `msgspec.Struct`, a dataclass, ...); None: plain objects.
        """
        return Namespace.of(self, self._current, name, type)

    def create_namespace(self, name: str, *, dimension: int | None = None, metric: Metric | None = None) -> None:
        """Make a namespace, fixing the dimension and metric of its vectors; idempotent.

        Raises:
            DimensionMismatch, InvalidArgument: it exists and is otherwise.
        """
        store = self._writable()
        if dimension is not None and drafts.positive("dimension", dimension) > MAX_DIMENSION:
            raise InvalidArgument(f"dimension {dimension} is beyond the largest, {MAX_DIMENSION}")
        if metric is not None and metric not in METRICS:
            raise InvalidArgument(f"metric is one of {METRICS}, not {metric!r}")
        if metric is not None and dimension is None:
            raise InvalidArgument("a metric is fixed together with a dimension")
        search.create(store, store.space(name), dimension, metric)

    def drop_namespace(self, name: str) -> bool:
        """Remove a namespace with its records, vectors and index; True if it existed."""
        store = self._writable()
        space = store.space(name)
        dropped = False

        def work(writer: Writer) -> None:
            nonlocal dropped
            dropped = writer.drop(space.name)

        store.committer.commit(everything=True, work=work)
        store.committer.upkeep.run()
        if (store.root / "segments").is_dir():
            store.sealer.sweep()
        return dropped

    def flush(self, *, wait: bool = True) -> None:
        """Everything any process has put so far is committed, fsynced and visible everywhere.

        wait: False returns at once, and what this process has put is committed without waiting for
        `sync_interval`; calls that come while a commit is being made share the next one.
        """
        store = self._current()
        if not store.read_only:
            (store.handover.flush if wait else store.rounds.hasten)()

    def check(self, repair: bool = False) -> CheckReport:
        """Audit the live store: pages, frames, checksums, index rows, counters, log and journals.

        repair: rebuild the store from its intact records if anything is wrong; what was lost is listed.
        """
        from tiermem.engine import audit

        return audit.check(self._current(), repair=repair)

    def build_index(self, namespace: str, progress: Progress | None = None) -> None:
        """Gather the vectors of a namespace in one segment without tombstones, now, and wait for it.

        It happens by itself in the background; this is for the end of a bulk load. progress: called with
        (rows done, rows in all) while the graph is built. Searches and writes go on meanwhile.
        """
        store = self._writable()
        store.space(namespace)
        if progress is not None and not callable(progress):
            raise InvalidArgument(f"progress is called with two ints, not {type(progress).__name__}")
        store.sealer.build(namespace, progress)

    def compact(self) -> int:
        """Remove what has expired, rewrite L3 without free pages, and segments of which more than a tenth is dead.

        Where many pages of L3 are part empty, its rows are written anew, into full ones; that takes longer than a copy
        of the pages, and conditional writes wait meanwhile. Returns the bytes returned to the file system.
        """
        from tiermem.engine import relocate

        return relocate.compact(self._writable())

    def backup(self, target: str | os.PathLike[str]) -> Path:
        """Copy the store, as it is at one moment, into the new directory `target`; its path."""
        from tiermem.engine import relocate

        return relocate.backup(self._current(), target)

    def stats(self) -> Stats:
        """The tiers, the write path, the log and what is degraded, at this moment."""
        from tiermem.engine import report

        return report.stats(self._current())

    def close(self) -> None:
        """Commit what is pending and let go of the store; idempotent.

        Raises:
            StoreFullError, StorageError: the commit failed. The store is closed all the same and
            nothing is lost: the journal is replayed when it is opened again.
            LockTimeout: a signal handler closes what it has interrupted; it stays open.
        """
        store = self._store
        refuse_inside(store.lock, store.commit_lock)
        if self._detach():
            opening.release(store)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<tiermem.Memory {str(self._store.root)!r}{' closed' if self._closed else ''}>"


def open(
    path: str | os.PathLike[str],
    *,
    config: Config | None = None,
    clock: Clock | None = None,
    embedder: Embedder | None = None,
    read_only: bool = False,
    verify: bool = False,
    repair: bool = False,
) -> Memory:
    """Open the store in the directory `path`, making it if it is not there.

    config: see `Config`. clock: where event times and expiry come from (default: the machine's).
    embedder: turns text into vectors. read_only: changes nothing, and shows what other processes
    have journaled. verify: walk the whole store in a child process first. repair: instead of refusing to
    open, set aside journals that cannot be replayed and, if nobody else has the store open, save what is
    intact of damaged pages; `stats().degraded` names what was lost. `check(repair=True)` mends damaged rows.

    Raises:
        CorruptionError, IncompatibleFormatError, TimeDomainMismatch, ConfigMismatch, StoreFullError,
        StorageError, LockTimeout, InvalidArgument.
    """
    store = opening.acquire(path, config, clock, embedder, read_only, verify, repair)
    memory = Memory(store, read_only=read_only)
    if store.config.histograms:
        from tiermem.engine.latency import instrument

        instrument(memory, store.latency)
    return memory
