"""The writer of one L3 transaction: applies operations, keeps every index and counter in step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from operator import attrgetter
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from tiermem.codec.compress import MAX_DICTIONARY_RECORD, MIN_DICTIONARY_RECORD, Compressor
from tiermem.codec.frame import HAS_VECTOR, NEVER, STREAM, intact, pack_frame, pack_vector, peek, seal
from tiermem.codec.operation import DELETE, PUT, Operation
from tiermem.errors import CorruptionError
from tiermem.tiers.cold.layout import (
    CLOCK_SHIFT,
    OP_DELETE,
    OP_DROP,
    OP_PUT,
    REASSIGNED,
    SLOT_MASK,
    U32,
    U64,
    CursorInfo,
    LogEntry,
    Mark,
    NamespaceInfo,
    expiry_key,
    pack_floor,
    pack_mark,
    pack_row,
    unpack_floor,
)
from tiermem.tiers.cold.snapshot import Snapshot

if TYPE_CHECKING:
    from tiermem.tiers.cold.env import ColdEnv

_OVERFLOW: Final = 1900
"""Values above about half a page of 4096 bytes lie on overflow pages of their own."""
_FEW: Final = 4
"""Fewer operations are applied one by one."""
_RUN: Final = 64
"""Most operations looked at together, and a quarter of them applied one by one before the next look."""
Take: TypeAlias = Callable[[bytes], object]
Sampler: TypeAlias = Callable[[str, NamespaceInfo], Take | None]
"""What gives, for a namespace and its row, what takes values a dictionary could be trained on; None: none is wanted."""
_KEPT_FLAGS: Final = HAS_VECTOR | STREAM


class Writer(Snapshot):
    """Everything one write transaction does to L3. `finish` must be called before the commit.

    A row read from the transaction points into its pages: it is read before the next write, never after.

    `changes` are the log entries of this transaction, `dirty` the namespaces whose rows it rewrites, `floored` the
    floors it has set; `before` was the highest version when it began; `superseded` counts what a higher one made void.
    """

    def __init__(self, env: ColdEnv, txn: Any, compressor: Compressor, metric: str, sampler: Sampler) -> None:
        super().__init__(env, txn)
        self.compressor = compressor
        self.counters = self.state()
        self.first_new = self.counters.next_sequence
        self.changes: list[LogEntry] = []
        self.superseded = 0
        self._metric = metric
        self._sampler = sampler
        self._samples: dict[str, Take | None] = {}
        self.wrote = False
        self._infos: dict[str, NamespaceInfo | None] = {}
        self._last: dict[bytes, bytes] = {}
        self.floored: dict[bytes, bytes] = {}
        self.before = self.counters.highest
        self.dirty: set[str] = set()

    def info(self, name: str) -> NamespaceInfo | None:
        """The row of a namespace as this transaction sees it; change it only through `changed`."""
        if name not in self._infos:
            self._infos[name] = super().info(name)
        return self._infos[name]

    def live(self, name: str) -> NamespaceInfo | None:
        """The row of a namespace, or None if it does not exist or was dropped."""
        info = self.info(name)
        return None if info is None or info.dropped else info

    def changed(self, name: str) -> NamespaceInfo:
        """The row of a namespace that is about to change, made if it is not there."""
        info = self.info(name)
        if info is None or info.dropped:
            fresh = NamespaceInfo(self.counters.next_namespace, floor=info.floor if info else 0)
            self.counters.next_namespace += 1
            self.txn.put(fresh.prefix, seal(fresh.prefix, name.encode()), db=self.dbs.names)
            self._infos[name] = info = fresh
        self.dirty.add(name)
        return info

    def _next_version(self, above: int, like: int) -> int:
        """A version above `above` and everything in the store, in the slot of the version `like`."""
        clock = max(self.counters.highest, above) >> CLOCK_SHIFT
        version = (clock + 1) << CLOCK_SHIFT | REASSIGNED | (like & SLOT_MASK)
        self.counters.highest = version
        return version

    def apply_all(self, ops: Iterable[Operation], deadline: float = math.inf) -> list[int]:
        """`apply` each in turn; their versions, 0 for each that a higher one makes void.

        From `deadline` on, by `time.perf_counter`, no other frame is begun: then they are fewer.
        """
        versions: list[int] = []
        end = 0
        for name, run in groupby(ops, attrgetter("namespace")):
            together = list(run)
            done = 0
            while done < len(together):
                # Never more than a few beyond what is taken: a frame may hold very many.
                appended = self._append(name, together[done : done + _RUN])
                versions.extend(appended)
                done += len(appended)
                end = together[done - 1].end if appended else end
                if not appended:
                    for op in together[done : done + _RUN // 4]:
                        if versions and op.end != end and perf_counter() > deadline:
                            return versions
                        versions.append(self.apply(op))
                        end, done = op.end, done + 1
        return versions

    def _append(self, name: str, ops: Sequence[Operation]) -> list[int]:
        """Apply the first of `ops` as long as they are plain puts of keys above all others; their versions.

        A stream's are, and what counts up is: nothing is looked up for them, and they are stored together.
        """
        info = self.live(name)
        if info is None or not info.made or self.counters.floors or len(ops) < _FEW:
            return []
        prefix, ordered, known = info.prefix, info.ordered, self._known(info.dictionary)
        # Nothing but these could rank above a key that is new.
        least = max(info.floor, self.counters.horizon)
        last = self._last_key(info.prefix)
        sample, compress = self._sample_of(name, info), self.compressor.compress
        rows: list[tuple[bytes, bytes]] = []
        versions: list[int] = []
        for op in ops:
            version, flags, value = op.version, op.flags, op.value
            key = prefix + op.key.encode()
            if key <= last or version <= least or op.kind != PUT or op.vector or op.expires != NEVER:
                break
            if ordered and not flags & STREAM:
                break
            size, now = len(value), op.now
            codec, dictionary, body = compress(value, known)
            if sample is not None and MIN_DICTIONARY_RECORD <= size <= MAX_DICTIONARY_RECORD:
                sample(value)
            frame = pack_frame(
                key, codec, flags, dictionary, version, version, op.at, now, now, NEVER, op.metadata, size, body
            )
            rows.append((key, frame))
            versions.append(version)
            last = key
        if rows:
            with self.txn.cursor(db=self.dbs.records) as cursor:
                cursor.putmulti(rows, dupdata=False)
            self._last[prefix] = last
            self.changed(name).records += len(rows)
            self.counters.highest = max(self.counters.highest, *versions)
            self.changes.extend([(name, op.key, OP_PUT, version) for op, version in zip(ops, versions, strict=False)])
        return versions

    def _last_key(self, prefix: bytes) -> bytes:
        """A key that no other with `prefix` lies above; `prefix` itself if there is none."""
        last = self._last.get(prefix)
        if last is None:
            last = next((key for key, _ in self.rows(self.dbs.records, prefix, reverse=True)), prefix)
            self._last[prefix] = last
        return last

    def _sample_of(self, name: str, info: NamespaceInfo) -> Take | None:
        """What takes values a dictionary could be trained on, where one is wanted."""
        if name not in self._samples:
            self._samples[name] = self._sampler(name, info)
        return self._samples[name]

    def _known(self, dictionary: int) -> int:
        """`dictionary`, which the compressor knows from here on."""
        if not self.compressor.knows(dictionary):
            for number, data in self.dictionaries():
                self.compressor.add(number, data)
        return dictionary

    def apply(self, op: Operation, *, decided: bool = False) -> int:
        """Apply one operation; the version it got, or 0 if a higher version makes it void.

        `decided`: every journal was drained in this transaction, and `op` comes after all that was in them.
        """
        # Even a delete of nothing needs a row for the namespace: it leaves a floor for puts yet to come.
        info = self.live(op.namespace) or self.changed(op.namespace)
        key = info.prefix + op.key.encode()
        row = self.txn.get(key, db=self.dbs.records)
        existed = row is not None
        if row is not None and not intact(key, row):
            # Nothing in a damaged frame may decide over what was acknowledged.
            self._discard(op.namespace, key)
            row, version, rank = None, self._next_version(0, op.version), op.version
        else:
            version, rank = self._rank(op, info, key, row, decided)
        if version == 0:
            self.superseded += 1
            return 0
        self.counters.highest = max(self.counters.highest, version)
        if op.kind == DELETE:
            if row is not None:
                self.remove(op.namespace, key, row)
            if existed:
                self.changes.append((op.namespace, op.key, OP_DELETE, version))
            self.set_floor(key, version, rank)
            return version
        self._store(op, info, key, row, version, rank)
        self.changes.append((op.namespace, op.key, OP_PUT, version))
        return version

    def _rank(
        self, op: Operation, info: NamespaceInfo, key: bytes, row: memoryview | None, decided: bool
    ) -> tuple[int, int]:
        """The version at which `op` takes effect, or 0 if what is there already stands above it; and by what it ranks.

        Plain writes are ranked among each other by the versions their clients gave, whatever versions a commit had to
        give them since: a client's next write never ranks below its last. A decided one ranks as what it found: while
        journals are drained one after the other, what comes into one may be older than what the next one holds.
        """
        above, given = info.floor, 0
        if row is not None:
            head = peek(row)
            if head.version > above:
                above, given = head.version, head.given
        elif self.counters.floors and (floor := self.txn.get(key, db=self.dbs.floors)) is not None:
            try:
                above, given = unpack_floor(key, floor)
            except CorruptionError:
                above = self.counters.highest
        elif op.version <= self.counters.horizon:
            above = self.counters.horizon
        if op.version <= given and not decided:
            return 0, given
        version = op.version if op.version > above else self._next_version(above, op.version)
        return version, given if decided else op.version

    def _store(
        self, op: Operation, info: NamespaceInfo, key: bytes, row: memoryview | None, version: int, rank: int
    ) -> None:
        txn, dbs = self.txn, self.dbs
        created = op.now
        had_vector = timed = False
        row_bytes = 0 if row is None else len(row)
        if row is not None:
            head = peek(row)
            had_vector = bool(head.flags & HAS_VECTOR)
            timed = head.expires != NEVER
            if head.expires > op.now:
                created = head.created
            if timed:
                txn.delete(expiry_key(head.expires, key), db=dbs.expiry)
        elif self.counters.floors and txn.delete(key, db=dbs.floors):
            self.floored.pop(key, None)
            self.counters.floors -= 1
        flags = op.flags & _KEPT_FLAGS
        size = len(op.value)
        codec, dictionary, body = self.compressor.compress(op.value, self._known(info.dictionary))
        sample = self._sample_of(op.namespace, info)
        if sample is not None and MIN_DICTIONARY_RECORD <= size <= MAX_DICTIONARY_RECORD:
            sample(op.value)
        now, expires, metadata = op.now, op.expires, op.metadata
        frame = pack_frame(
            key, codec, flags, dictionary, version, rank, op.at, created, now, expires, metadata, size, body
        )
        if row_bytes > _OVERFLOW:
            # LMDB shrinks an overflow value in place and leaks the pages behind it.
            txn.delete(key, db=dbs.records)
        txn.put(key, frame, db=dbs.records)
        if row is None and key > self._last.get(info.prefix, key):
            self._last[info.prefix] = key
        if op.expires != NEVER:
            txn.put(expiry_key(op.expires, key), b"", db=dbs.expiry)
        if op.vector or had_vector:
            self.unseal(op.namespace, key)
        if op.vector:
            txn.put(key, pack_vector(key, version, op.vector), db=dbs.vectors)
        elif had_vector:
            txn.delete(key, db=dbs.vectors)
        added = int(row is None), (op.expires != NEVER) - timed, bool(op.vector) - had_vector, bool(op.flags & STREAM)
        if not info.made or (added != (0, 0, 0, True) and (added[:3] != (0, 0, 0) or info.ordered)):
            info = self.changed(op.namespace)
            info.made = True
            info.records += added[0]
            info.timed += added[1]
            info.vectors += added[2]
            info.ordered = info.ordered and added[3]
            if info.vectors and not info.dimension:
                # The namespace was dropped while this put was under way: it makes it anew.
                info.dimension, info.metric = len(op.vector) // 4, self._metric

    def remove(self, name: str, key: bytes, row: memoryview) -> None:
        """Delete the record whose row is `row`, with its vector and its place in the expiry index."""
        head = peek(row)
        info = self.changed(name)
        info.records -= 1
        if head.expires != NEVER:
            self.txn.delete(expiry_key(head.expires, key), db=self.dbs.expiry)
            info.timed -= 1
        if head.flags & HAS_VECTOR:
            self.txn.delete(key, db=self.dbs.vectors)
            info.vectors -= 1
            self.unseal(name, key)
        self.txn.delete(key, db=self.dbs.records)

    def _discard(self, name: str, key: bytes) -> None:
        """Remove a damaged record and whatever the indexes hold of it."""
        info = self.changed(name)
        info.records -= 1
        info.vectors -= bool(self.txn.delete(key, db=self.dbs.vectors))
        self.unseal(name, key)
        for index_key in [index_key for index_key, _ in self.rows(self.dbs.expiry) if index_key[8:] == key]:
            self.txn.delete(index_key, db=self.dbs.expiry)
            info.timed -= 1
        self.txn.delete(key, db=self.dbs.records)

    def unseal(self, name: str, key: bytes) -> None:
        """What segments hold of `key` is no longer, or not yet, what stands here."""
        if self.txn.put(key, b"", db=self.dbs.unsealed, overwrite=False):
            self.changed(name).unsealed += 1

    def set_floor(self, key: bytes, version: int, given: int) -> None:
        """Remember that what was under `key` is gone as of `version`, and by what that ranks."""
        self.wrote = True
        if self.txn.get(key, db=self.dbs.floors) is None:
            self.counters.floors += 1
        self.floored[key] = floor = pack_floor(key, version, given)
        self.txn.put(key, floor, db=self.dbs.floors)

    def drop(self, name: str) -> bool:
        """Drop a namespace: gone at once, its rows left to `collect`. True if it existed.

        Every journal was drained in this transaction.
        """
        info = self.live(name)
        if info is None:
            return False
        version = self._next_version(0, 0)
        self.txn.put(info.prefix, b"", db=self.dbs.garbage)
        self._infos[name] = NamespaceInfo(info.id, dropped=True, floor=version)
        self.dirty.add(name)
        self.changes.append((name, "", OP_DROP, version))
        return info.made

    def set_mark(
        self, slot: int, journal_id: int | None, position: int = 0, before: tuple[int, int] | None = None
    ) -> None:
        """The journal of a slot is applied up to `position`; `before` is the one it is about to replace.

        With None for its id there is no journal in that slot any more.
        """
        self.wrote = True
        key = U32.pack(slot)
        if journal_id is None:
            self.txn.delete(key, db=self.dbs.marks)
        else:
            mark = Mark(journal_id, position, *(before or (journal_id, position)))
            self.txn.put(key, pack_mark(key, mark), db=self.dbs.marks)

    def set_cursor(self, name: str, cursor: CursorInfo | None) -> None:
        """Keep a named cursor, or with None forget it."""
        self.wrote = True
        key = name.encode()
        if cursor is None:
            self.txn.delete(key, db=self.dbs.cursors)
        else:
            self.txn.put(key, pack_row(key, cursor), db=self.dbs.cursors)

    def finish(self) -> int:
        """Write the log row, the namespaces' rows and the counters; the stamp of the commit to come.

        Where nothing was written there is no commit, and the stamp is that of the last one.
        """
        if not (self.wrote or self.changes or self.dirty):
            return self.stamp - 1
        for name in self.dirty:
            if (info := self._infos[name]) is not None:
                self.txn.put(key := name.encode(), pack_row(key, info), db=self.dbs.namespaces)
        counters = self.counters
        if self.changes:
            names: dict[str, int] = {}
            rows = [(names.setdefault(name, len(names)), key, op, version) for name, key, op, version in self.changes]
            key = U64.pack(counters.next_sequence)
            self.txn.put(key, pack_row(key, (list(names), rows)), db=self.dbs.log, append=True)
            counters.next_sequence += len(rows)
        counters.commits += 1
        self.txn.put(b"state", counters.pack(), db=self.dbs.meta)
        return self.stamp
