"""Views of L3 inside one transaction: its rows, and what it says of segments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tiermem.codec.frame import HAS_VECTOR, VECTOR_HEAD, Outline, check_vector, unpack_outline, vector_version
from tiermem.errors import CorruptionError
from tiermem.tiers.cold.layout import SegmentInfo, segment_number, successor, text, unpack_segment

if TYPE_CHECKING:
    from tiermem.tiers.cold.env import ColdEnv


def steps(cursor: Any, low: bytes, high: bytes, reverse: bool) -> Iterator[tuple[Any, Any]]:
    """(key, row) from `low` on, or back from the last below `high` (empty: the last there is)."""
    if not reverse:
        return iter(cursor.iternext()) if cursor.set_range(low) else iter(())
    found = cursor.set_range(high) and cursor.prev() if high else cursor.last()
    if not found and high and not cursor.set_range(high):
        found = cursor.last()
    return iter(cursor.iterprev()) if found else iter(())


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
            for raw, row in steps(cursor, low, high, reverse):
                key = bytes(raw)
                if key < low if reverse else high and key >= high:
                    return
                env.rows_read += 1
                yield key, row

    def each(self, db: Any, keys: Iterable[bytes]) -> Iterator[memoryview | None]:
        """The row under each of `keys`, None where there is none; soonest found where one key follows the other."""
        with self.txn.cursor(db=db) as cursor:
            find, row = cursor.set_key, cursor.value
            for key in keys:
                yield row() if find(key) else None


class SegmentView(View):
    """What L3 says of L2: which segments are published, and what they lack."""

    __slots__ = ()

    def vector_version(self, key: bytes) -> int:
        """The version of the record stored under `key` if it has a vector, else 0. Verifies nothing."""
        row = self.txn.get(key, db=self.dbs.records)
        return 0 if row is None else vector_version(row)

    def vector_versions(self, keys: Iterable[bytes]) -> Iterator[int]:
        """`vector_version` of each of `keys`."""
        return (0 if row is None else vector_version(row) for row in self.each(self.dbs.records, keys))

    def outlines(self, keys: Sequence[bytes], size: int) -> Iterator[Outline | None]:
        """What an index needs of each record, verified; None for those without a vector of `size` bytes."""
        dbs = self.dbs
        for key, row, vector in zip(keys, self.each(dbs.records, keys), self.each(dbs.vectors, keys), strict=True):
            if row is None or vector is None or len(vector) != size + VECTOR_HEAD:
                yield None
                continue
            outline = unpack_outline(key, row)
            yield outline if outline[0] & HAS_VECTOR else None

    def vectors(self, keys: Sequence[bytes], versions: Sequence[int], size: int) -> bytes:
        """The float32 bytes of the vectors stored under `keys`, `size` each, one behind the other.

        Raises:
            CorruptionError: one is damaged, missing, or not of its version.
        """
        found: list[memoryview] = []
        for key, version, row in zip(keys, versions, self.each(self.dbs.vectors, keys), strict=True):
            if row is None or len(row) != size + VECTOR_HEAD or check_vector(key, row) != version:
                raise CorruptionError(f"record {key!r}: its vector is missing or of another version")
            found.append(row[VECTOR_HEAD:])
        return b"".join(found)

    def segments(self, prefix: bytes) -> dict[int, SegmentInfo]:
        """The published segments of a namespace by id."""
        return {segment_number(key): unpack_segment(key, row) for key, row in self.rows(self.dbs.segments, prefix)}

    def segment_numbers(self) -> set[int]:
        """The ids of all published segments of the store."""
        return {segment_number(key) for key, _ in self.rows(self.dbs.segments)}

    def unsealed(self, prefix: bytes) -> Iterator[str]:
        """The keys of a namespace whose vectors changed since its segments were published."""
        return (text(key[4:]) for key, _ in self.rows(self.dbs.unsealed, prefix))
