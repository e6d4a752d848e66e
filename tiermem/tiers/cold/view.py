"""Views of L3 inside one transaction: its rows, and what it says of segments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tiermem.codec.frame import HAS_VECTOR, peek
from tiermem.tiers.cold.layout import U64, SegmentInfo, successor, unpack_segment

if TYPE_CHECKING:
    from tiermem.tiers.cold.env import ColdEnv


class View:
    """A transaction and the databases it reads."""

    __slots__ = ("dbs", "env", "txn")

    def __init__(self, env: ColdEnv, txn: Any) -> None:
        self.env = env
        self.txn = txn
        self.dbs = env.dbs

    @property
    def stamp(self) -> int:
        """Rises with every commit and generation: which commit this view is of, or is going to be."""
        return self.env.first_stamp | int(self.txn.id())

    def rows(
        self, db: Any, prefix: bytes = b"", start: bytes = b"", stop: bytes = b"", reverse: bool = False
    ) -> Iterator[tuple[bytes, memoryview]]:
        """(key, row) with `prefix`, from `start` up to but without `stop`, in order or against it."""
        low = max(prefix, start)
        high = successor(prefix)
        if stop and (not high or stop < high):
            high = stop
        if high and low >= high:
            return
        env = self.env
        with self.txn.cursor(db=db) as cursor:
            if reverse:
                found = cursor.set_range(high) and cursor.prev() if high else cursor.last()
                if not found and high and not cursor.set_range(high):
                    found = cursor.last()
                if not found:
                    return
                for raw, row in cursor.iterprev():
                    key = bytes(raw)
                    if key < low:
                        return
                    env.rows_read += 1
                    yield key, row
                return
            if not cursor.set_range(low):
                return
            for raw, row in cursor.iternext():
                key = bytes(raw)
                if high and key >= high:
                    return
                env.rows_read += 1
                yield key, row


class SegmentView(View):
    """What L3 says of L2: which segments are published, and what they lack."""

    __slots__ = ()

    def vector_version(self, key: bytes) -> int:
        """The version of the record stored under `key` if it has a vector, else 0. Verifies nothing."""
        row = self.txn.get(key, db=self.dbs.records)
        head = None if row is None else peek(row)
        return head.version if head is not None and head.flags & HAS_VECTOR else 0

    def vector_bytes(self, key: bytes) -> int:
        """The length of the vector stored under `key`, 0 if there is none. Verifies nothing."""
        row = self.txn.get(key, db=self.dbs.vectors)
        return 0 if row is None else max(0, len(row) - 16)

    def segments(self, prefix: bytes) -> dict[int, SegmentInfo]:
        """The published segments of a namespace by id."""
        return {U64.unpack(key[4:])[0]: unpack_segment(key, row) for key, row in self.rows(self.dbs.segments, prefix)}

    def segment_numbers(self) -> set[int]:
        """The ids of all published segments of the store."""
        return {U64.unpack(key[4:])[0] for key, _ in self.rows(self.dbs.segments)}

    def unsealed(self, prefix: bytes) -> Iterator[str]:
        """The keys of a namespace whose vectors changed since its segments were published."""
        return (key[4:].decode() for key, _ in self.rows(self.dbs.unsealed, prefix))
