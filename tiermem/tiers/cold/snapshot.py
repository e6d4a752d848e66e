"""Reads of L3 inside one transaction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, takewhile

from tiermem.codec.frame import Frame, unpack_frame, unpack_vector, unseal
from tiermem.errors import CorruptionError, IncompatibleFormatError
from tiermem.tiers.cold.layout import (
    OPS,
    U32,
    U64,
    CursorInfo,
    Identity,
    LogEntry,
    NamespaceInfo,
    State,
    unpack_cursor,
    unpack_identity,
    unpack_info,
    unpack_log_row,
    unpack_mark,
)
from tiermem.tiers.cold.view import SegmentView, steps


class Snapshot(SegmentView):
    """One consistent view of L3; valid while its transaction is open."""

    __slots__ = ()

    def state(self) -> State:
        """The store's counters."""
        row = self.txn.get(b"state", db=self.dbs.meta)
        return State() if row is None else State.unpack(row)

    def identity(self) -> Identity:
        """What is baked into the store.

        Raises:
            IncompatibleFormatError: the environment is no tiermem store.
        """
        row = self.txn.get(b"identity", db=self.dbs.meta)
        if row is None:
            raise IncompatibleFormatError(f"{self.env.path} holds no tiermem store")
        return unpack_identity(row)

    def info(self, name: str) -> NamespaceInfo | None:
        """The row of a namespace, dropped ones included."""
        key = name.encode()
        row = self.txn.get(key, db=self.dbs.namespaces)
        return None if row is None else unpack_info(key, row)

    def infos(self, prefix: str = "") -> Iterator[tuple[str, NamespaceInfo]]:
        """(name, row) of every namespace whose name starts with `prefix`, sorted.

        Without those that were dropped, and those that never held anything.
        """
        for key, row in self.rows(self.dbs.namespaces, prefix.encode()):
            info = unpack_info(key, row)
            if info.made and not info.dropped:
                yield key.decode(), info

    def record(self, key: bytes) -> Frame | None:
        """The verified frame of the record stored under `key`."""
        row = self.txn.get(key, db=self.dbs.records)
        self.env.rows_read += 1
        return None if row is None else unpack_frame(key, row)

    def frames(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The frame stored under each of `keys`, None where there is none. The snapshot copies what it reads."""
        get, records = self.txn.get, self.dbs.records
        self.env.rows_read += len(keys)
        return [get(key, None, records) for key in keys]

    def block(self, low: bytes, high: bytes, size: int, reverse: bool) -> list[tuple[bytes, bytes]]:
        """Up to `size` keys of records with low ≤ key < high and their frames, in order or against it.

        The snapshot copies what it reads.
        """
        # A pair is compared with a tuple of one: (high,) > (key, frame) says that the key lies below `high`.
        inside = (low,).__le__ if reverse else (high,).__gt__
        with self.txn.cursor(db=self.dbs.records) as cursor:
            found = list(takewhile(inside, islice(steps(cursor, low, high, reverse), size)))
        self.env.rows_read += len(found)
        return found

    def vector(self, key: bytes) -> tuple[int, bytes] | None:
        """(version, float32 bytes) of the vector stored under `key`."""
        row = self.txn.get(key, db=self.dbs.vectors)
        return None if row is None else unpack_vector(key, row)

    def log(self, after: int) -> Iterator[tuple[int, LogEntry]]:
        """(sequence, entry) of the changes behind sequence `after`, oldest first."""
        start = b""
        with self.txn.cursor(db=self.dbs.log) as cursor:
            target = U64.pack(after + 1)
            found = cursor.set_range(target)
            if found and bytes(cursor.key()) == target:
                start = target
            elif cursor.prev() if found else cursor.last():
                start = bytes(cursor.key())
        for key, row in self.rows(self.dbs.log, start=start):
            names, rows = unpack_log_row(key, row)
            sequence = U64.unpack(key)[0]
            for index, record, op, version in rows:
                if not (0 <= op < len(OPS) and 0 <= index < len(names)):
                    raise CorruptionError(f"change {sequence} cannot be read")
                if sequence > after:
                    yield sequence, (names[index], record, op, version)
                sequence += 1

    def cursors(self) -> Iterator[tuple[str, CursorInfo]]:
        """(name, row) of every named cursor."""
        for key, row in self.rows(self.dbs.cursors):
            yield key.decode(), unpack_cursor(key, row)

    def dictionaries(self) -> Iterator[tuple[int, bytes]]:
        """(number, bytes) of every intact compression dictionary: what needs another says so when it is read."""
        for key, row in self.rows(self.dbs.dictionaries):
            try:
                data = unseal(key, row)
            except CorruptionError:
                continue
            yield U32.unpack(key)[0], data

    def applied(self, slot: int, journal_id: int, head: int) -> int:
        """Position up to which the journal of a slot, as found there, has been applied.

        Raises:
            CorruptionError: it is not the journal whose position is kept, so what it lacks is unknown.
        """
        key = U32.pack(slot)
        row = self.txn.get(key, db=self.dbs.marks)
        if row is None:
            if journal_id == 0 or head == 0:
                return 0
            raise CorruptionError(f"journal {slot:03d} holds writes, and its position is not known")
        mark = unpack_mark(key, row)
        if journal_id == mark.journal:
            return mark.position
        if journal_id == mark.before:
            return mark.before_position
        raise CorruptionError(f"journal {slot:03d} is not the one that was in service there")


def marked(snapshot: Snapshot) -> set[int]:
    """The slots whose journals have been in service, beginning ones left out."""
    rows = snapshot.rows(snapshot.dbs.marks)
    marks = ((key, row) for key, row in rows if len(key) == U32.size)
    return {U32.unpack(key)[0] for key, row in marks if unpack_mark(key, row).before}
