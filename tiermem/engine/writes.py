"""The verbs that write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from tiermem.codec.operation import Operation
from tiermem.engine import drafts, reading
from tiermem.engine.batch import Batch
from tiermem.engine.handle import Handle
from tiermem.errors import InvalidArgument
from tiermem.types import UNSET, Duration, Guard, Item, Metadata, Moment, Progress, Unset, Vector, Where, encode_key

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from tiermem.engine.space import Space
    from tiermem.engine.store import Store

_OPERATION_BYTES: Final = 128
"""An upper estimate of what an operation takes in the journal beside its parts."""


class Writes(Handle):
    """Everything that changes a store."""

    def put(
        self,
        namespace: str,
        key: str,
        value: Any,
        *,
        vector: Vector | None = None,
        metadata: Metadata | None = None,
        ttl: Duration | None = None,
        at: Moment | None = None,
        text: str | None = None,
        durable: bool = False,
        if_version: int | None = None,
        guard: Guard | None = None,
    ) -> int:
        """Store a record whole, replacing what was there; its version.

        vector: shape (dimension,); the first one fixes the namespace's dimension. text: embedded by the
        store's embedder instead. metadata: flat, what `where` filters on. ttl: seconds or timedelta > 0.
        at: event time, epoch seconds or aware datetime (default: the store's clock).
        durable: return after the fsync. if_version: only if the record is at that version (0: absent).
        guard: only if another record is at its version.

        Returns once the write survives the death of this process.

        Raises:
            EncodingError, InvalidKey, InvalidNamespace, InvalidVector, DimensionMismatch, InvalidArgument,
            VersionConflict, GuardFailed, StoreFullError, ReadOnlyError, ClosedError: nothing was changed;
            but where `durable` meets a full disk, the write stands in the journal and is not yet synced.
        """
        store = self._writable()
        space = store.space(namespace)
        op = drafts.put(store, space, key, value, vector, metadata, ttl, at, text)
        if if_version is None and guard is None and not op.vector:
            # `_submit` would do the same, a little later.
            version = store.submit(space, op, not durable)
            if durable:
                _sync(store)
            return version
        return self._submit(store, space, op, durable, if_version, guard)

    def _submit(
        self, store: Store, space: Space, op: Operation, durable: bool, if_version: int | None, guard: Guard | None
    ) -> int:
        conditions = drafts.conditions(space, op.key, if_version, guard)
        version = drafts.send(store, [(space, op)], conditions, rouse=not durable)[0]
        if durable:
            _sync(store)
        return version

    def update(
        self,
        namespace: str,
        key: str,
        *,
        value: Any | Unset = UNSET,
        metadata: Metadata | Unset | None = UNSET,
        vector: Vector | Unset | None = UNSET,
        ttl: Duration | Unset | None = UNSET,
    ) -> int:
        """Replace the given parts of a record and keep the others; its version. None removes a part.

        Event and creation time stay. Decided inside the commit, so concurrent updates of different
        parts both stand; costs a commit.

        Raises:
            RecordNotFound: there is no such record. Otherwise as `put`.
        """
        store = self._writable()
        space = store.space(namespace)
        return store.handover.decide(drafts.update(store, space, key, value, metadata, vector, ttl))[0]

    def touch(self, namespace: str, key: str, *, ttl: Duration | None) -> int:
        """Let a record expire `ttl` from now (None: never); its version. Costs a commit.

        Raises:
            RecordNotFound: there is no such record.
        """
        return self.update(namespace, key, ttl=ttl)

    def delete(
        self,
        namespace: str,
        key: str,
        *,
        if_version: int | None = None,
        guard: Guard | None = None,
        durable: bool = False,
        erase: bool = False,
    ) -> bool:
        """Remove a record; True if it existed.

        To claim a record against other writers give `if_version`: of two plain deletes at the same
        moment both may return True.

        erase: leave no byte of its value, metadata and vector in any file of the store, whether it is deleted
        now or was before; the same goes for whatever else was deleted from the namespace. Costs a compaction, and
        the making of the namespace's segments. Its key stays in the change log until that is trimmed. The
        journals of other clients are wiped when they next look at the log, commit or close. Backups, and what a
        repair has set aside (`*.damaged`), are left alone.

        Raises:
            VersionConflict, GuardFailed: a condition does not hold; nothing was changed.
        """
        store = self._writable()
        space = store.space(namespace)
        op = drafts.delete(store, space, key)
        existed = bool(reading.fetch_many(store, space, [key], vectors=False).rows)
        if if_version is not None or guard is not None or existed:
            self._submit(store, space, op, durable, if_version, guard)
        if erase:
            self._erase(store, namespace)
        return existed if if_version is None else if_version > 0

    def _erase(self, store: Store, namespace: str) -> None:
        from tiermem.engine.erasure import erase

        erase(store, namespace)

    def delete_many(
        self,
        namespace: str,
        keys: Iterable[str] | None = None,
        *,
        prefix: str | None = None,
        where: Where | None = None,
        erase: bool = False,
    ) -> int:
        """Remove the records among `keys`, or those with `prefix` that match `where`; how many.

        Without any of them nothing is removed and InvalidArgument is raised: `drop_namespace` empties
        a namespace. erase: as in `delete`, once for all of them.
        """
        from tiermem.engine.reads import bounds

        store = self._writable()
        space = store.space(namespace)
        chosen = reading.compiled(where)
        if keys is None and prefix is None and chosen is None:
            raise InvalidArgument("delete_many needs keys, a prefix or a filter")
        if keys is not None:
            if prefix is not None:
                raise InvalidArgument("delete_many takes keys or a prefix, not both")
            wanted = drafts.each("keys", keys)
            for key in wanted:
                encode_key(key)
            wanted = list(dict.fromkeys(wanted))
            allows = reading.matcher(None if chosen is None else chosen.matches)
            page = reading.fetch_many(store, space, wanted, vectors=False)
            doomed = [key for key, row in zip(page.keys(), page.rows, strict=True) if allows is None or allows(row[2])]
        else:
            low, high = bounds("" if prefix is None else prefix, None, False)
            allows = reading.matcher(None if chosen is None else chosen.matches)
            doomed = list(reading.keys(store, space, low=low, high=high, allows=allows))
        self._submit_chunks(store, space, [drafts.delete(store, space, key) for key in doomed])
        if erase:
            self._erase(store, namespace)
        return len(doomed)

    def put_many(
        self,
        namespace: str,
        items: Iterable[Item | tuple[str, Any]] | None = None,
        *,
        keys: Sequence[str] | None = None,
        values: Sequence[Any] | None = None,
        vectors: ArrayLike | None = None,
        metadatas: Sequence[Metadata | None] | None = None,
        durable: bool = False,
        progress: Progress | None = None,
    ) -> list[int]:
        """Store many records; their versions. Either `Item`s (or (key, value) pairs), or columns.

        vectors: shape (n, dimension). All are checked before the first is stored; a crash in between
        may keep some of them (`batch` is all or nothing). `progress` is told how many are stored, and of how many.

        Raises:
            As `put`, and InvalidArgument where columns differ in length.
        """
        store = self._writable()
        space = store.space(namespace)
        if items is not None and keys is None and values is None and vectors is None and metadatas is None:
            ops = drafts.of_items(store, space, items)
        elif items is None and keys is not None and values is not None:
            ops = drafts.of_columns(store, space, keys, values, vectors, metadatas)
        else:
            raise InvalidArgument("put_many takes items, or keys and values with vectors and metadatas")
        versions = self._submit_chunks(store, space, ops, progress)
        if durable:
            store.committer.drain()
        return versions

    def _submit_chunks(
        self, store: Store, space: Space, ops: Sequence[Operation], progress: Progress | None = None
    ) -> list[int]:
        limit = store.config.cold.journal_bytes // 8
        versions: list[int] = []
        chunk: list[tuple[Space, Operation]] = []
        size = 0
        for op in ops:
            chunk.append((space, op))
            size += len(op.value) + len(op.metadata) + len(op.vector) + len(op.key) * 4 + _OPERATION_BYTES
            if size >= limit:
                versions.extend(drafts.send(store, chunk))
                chunk, size = [], 0
                if progress is not None:
                    progress(len(versions), len(ops))
        if chunk:
            versions.extend(drafts.send(store, chunk))
            if progress is not None:
                progress(len(versions), len(ops))
        return versions

    def append(
        self,
        namespace: str,
        value: Any,
        *,
        at: Moment | None = None,
        vector: Vector | None = None,
        metadata: Metadata | None = None,
        ttl: Duration | None = None,
        text: str | None = None,
        durable: bool = False,
    ) -> str:
        """Add a record to a stream; its key, which sorts by event time, then by arrival.

        Raises:
            As `put`.
        """
        store = self._writable()
        space = store.space(namespace)
        op = drafts.append(store, space, value, vector, metadata, ttl, at, text)
        self._submit(store, space, op, durable, None, None)
        return op.key

    def batch(self, *, durable: bool = False) -> Batch:
        """A context manager whose writes happen together when it ends, or not at all."""
        return Batch(self._writable(), durable)


def _sync(store: Store) -> None:
    """Commit what was journaled and roused nobody: a thread that wakes up beside it, or the helper, is in its way."""
    try:
        store.committer.drain()
    except BaseException:
        store.rounds.rouse()
        raise
