"""The rows of a segment: vectors and all that is known of them, in one immutable mapped file.

Rows are sorted by event time. Sections begin at multiples of 64 bytes; a directory names them, and a
trailer at the end of the file names the directory. Every section but the vectors is verified before
anything of it is used; each vector is verified when it is first read.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
from xxhash import xxh3_64_intdigest

from tiermem.errors import CorruptionError, IncompatibleFormatError, StorageError, TiermemError
from tiermem.protocols import Found
from tiermem.tiers.vector.columns import Columns, encode_columns

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAGIC: Final = b"TMROWS\x00\x01"
FORMAT: Final = 2
_ALIGN: Final = 64
# magic, format, zero, directory offset, directory bytes, directory checksum, segment, file bytes
TRAILER: Final = struct.Struct("<8sI4xQQQQQ")
_CHECKSUM: Final = struct.Struct("<Q")
TRAILER_BYTES: Final = TRAILER.size + _CHECKSUM.size
_VECTORS: Final = "vectors"
_COLUMNS: Final = "column."
_AHEAD: Final = 128 * 1024
_HEAD: Final = np.arange(3)
"""A row's key begins at bound 2 * row, its metadata at the next, and the next row's key at the one after."""


class Directory(msgspec.Struct):
    """What a file of rows holds: `sections` are (offset, bytes, checksum); `largest` is the longest norm."""

    rows: int
    dimension: int
    metric: str
    largest: float
    sections: dict[str, tuple[int, int, int]]


@dataclass(slots=True)
class Place:
    """Everything about the rows of a segment to be, except their vectors, in row order."""

    keys: list[str]
    metadata: list[bytes]
    versions: NDArray[np.uint64]
    at: NDArray[np.float64]
    expires: NDArray[np.float64]


def unreadable(path: Path, exc: OSError) -> TiermemError:
    """What it means that a segment's file cannot be opened: damage, or that this process lacks something now."""
    gone = exc.errno in (errno.ENOENT, errno.EIO)
    return (CorruptionError if gone else StorageError)(f"segment file {path.name} cannot be read: {exc}")


def hash_keys(keys: Sequence[str]) -> NDArray[np.uint64]:
    """What keys are found by."""
    return np.fromiter((xxh3_64_intdigest(key.encode()) for key in keys), np.uint64, len(keys))


def write_rows(
    path: Path, number: int, dimension: int, metric: str, place: Place, vectors: Iterable[NDArray[np.float32]]
) -> int:
    """Write the rows of segment `number` to `path`, not synced yet; the checksum of the trailer.

    `vectors` yields the rows' vectors in chunks of shape (n, dimension).
    """
    sections: dict[str, tuple[int, int, int]] = {}
    squares: list[NDArray[np.float32]] = []
    longest = 0.0
    sums: list[int] = []
    with path.open("wb") as file:
        for chunk in vectors:
            raw = np.ascontiguousarray(chunk, "<f4")
            sums.extend(map(xxh3_64_intdigest, raw))
            file.write(raw.data)
            with np.errstate(over="ignore", under="ignore"):
                squares.append(np.einsum("ij,ij->i", chunk, chunk, dtype=np.float32))
            # In float64, where no square is lost at either end.
            longest = max(longest, float(np.einsum("ij,ij->i", chunk, chunk, dtype=np.float64).max(initial=0.0)))
        rows = len(place.keys)
        sections[_VECTORS] = (0, rows * dimension * 4, 0)
        norms = np.concatenate(squares) if squares else np.empty(0, np.float32)
        hashes = hash_keys(place.keys)
        order = np.argsort(hashes, kind="stable")
        heads = list(chain.from_iterable(zip(map(str.encode, place.keys), place.metadata, strict=True)))
        parts: dict[str, bytes] = {
            "sums": np.array(sums, "<u8").tobytes(),
            "squares": norms.astype("<f4").tobytes(),
            "versions": place.versions.astype("<u8").tobytes(),
            "at": place.at.astype("<f8").tobytes(),
            "expires": place.expires.astype("<f8").tobytes(),
            "bounds": np.cumsum([0, *map(len, heads)], dtype="<u8").tobytes(),
            "heads": b"".join(heads),
            "hashes": hashes[order].astype("<u8").tobytes(),
            "order": order.astype("<u4").tobytes(),
        }
        parts.update({_COLUMNS + name: data for name, data in encode_columns(place.metadata).items()})
        for name, data in parts.items():
            file.write(bytes(-file.tell() % _ALIGN))
            sections[name] = (file.tell(), len(data), xxh3_64_intdigest(data))
            file.write(data)
        directory = msgspec.msgpack.encode(Directory(rows, dimension, metric, longest**0.5, sections))
        start = file.tell()
        trailer = TRAILER.pack(
            MAGIC,
            FORMAT,
            start,
            len(directory),
            xxh3_64_intdigest(directory),
            number,
            start + len(directory) + TRAILER_BYTES,
        )
        seal = xxh3_64_intdigest(trailer)
        file.write(directory + trailer + _CHECKSUM.pack(seal))
    return seal


def sync_rows(path: Path) -> None:
    """Make the rows in `path` durable."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


class RowFile:
    """The rows of one segment, mapped. Immutable; any number of processes share one copy."""

    def __init__(self, path: Path, number: int, seal: int) -> None:
        """Map and verify the file that was published as segment `number` with that trailer.

        Raises:
            CorruptionError: it is missing, torn, damaged or another one.
            IncompatibleFormatError: it is of a newer format.
            StorageError: it cannot be opened or mapped by this process now.
        """
        self.path = path
        self.number = number
        self.damaged = False
        self._scattered = False
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < TRAILER_BYTES:
                    raise self._damage(f"is {size} bytes long")
                self._map = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        except OSError as exc:
            raise unreadable(path, exc) from exc
        self._view = memoryview(self._map)
        raw = self._view[size - TRAILER_BYTES : size - _CHECKSUM.size]
        if xxh3_64_intdigest(raw) != seal or _CHECKSUM.unpack(self._view[size - _CHECKSUM.size :])[0] != seal:
            raise self._damage("has not the trailer it was published with")
        _, form, start, length, checksum, named, whole = TRAILER.unpack(raw)
        if form < FORMAT:
            # To be built anew from L3, as damage is.
            raise self._damage(f"is of format {form}, this version reads {FORMAT}")
        if form > FORMAT:
            raise IncompatibleFormatError(f"{path.name}: row format {form}, this version reads {FORMAT}")
        if named != number or whole != size or start + length + TRAILER_BYTES != size:
            raise self._damage("is another segment's, or of another length")
        listed = self._view[start : start + length]
        if xxh3_64_intdigest(listed) != checksum:
            raise self._damage("has a damaged directory")
        try:
            self.about = msgspec.msgpack.decode(listed, type=Directory)
            self.rows, self.dimension = self.about.rows, self.about.dimension
            self._load()
        except (msgspec.MsgspecError, KeyError, ValueError) as exc:
            raise self._damage(f"is intact, and its directory cannot be followed: {exc}") from exc

    def _damage(self, what: str) -> CorruptionError:
        return CorruptionError(f"segment file {self.path.name} {what}")

    def _no_text(self) -> CorruptionError:
        return self._damage("holds a key that is no text")

    def _section(self, name: str, dtype: str | None = None) -> Any:
        offset, length, checksum = self.about.sections[name]
        view = self._view[offset : offset + length]
        if name != _VECTORS and xxh3_64_intdigest(view) != checksum:
            raise self._damage(f"is damaged in its section {name!r}")
        return view if dtype is None else np.frombuffer(view, dtype)

    def _load(self) -> None:
        self.vectors: NDArray[np.float32] = self._section(_VECTORS, "<f4").reshape(self.rows, self.dimension)
        self._sums: NDArray[np.uint64] = self._section("sums", "<u8")
        self._verified = np.zeros(len(self._sums), bool)
        self.squares: NDArray[np.float32] = self._section("squares", "<f4")
        self.versions: NDArray[np.uint64] = self._section("versions", "<u8")
        self.at: NDArray[np.float64] = self._section("at", "<f8")
        self.expires: NDArray[np.float64] = self._section("expires", "<f8")
        self.first_expiry = float(self.expires.min()) if self.rows else float("inf")
        self._bounds: NDArray[np.uint64] = self._section("bounds", "<u8")
        self._heads: memoryview = self._section("heads")
        self._hashes: NDArray[np.uint64] = self._section("hashes", "<u8")
        self._order: NDArray[np.uint32] = self._section("order", "<u4")
        self._check_shapes()
        names = [name for name in self.about.sections if name.startswith(_COLUMNS)]
        self.columns = Columns({name[len(_COLUMNS) :]: self._section(name) for name in names}, self.rows)

    def _check_shapes(self) -> None:
        """Nothing that is read by number lies outside its section."""
        rows, bounds = self.rows, self._bounds
        each = (self._sums, self.squares, self.versions, self.at, self.expires, self._hashes, self._order)
        fits = self.dimension > 0 and len(bounds) == 2 * rows + 1 and all(len(values) == rows for values in each)
        fits = fits and bool(np.all(bounds[1:] >= bounds[:-1])) and int(bounds[-1]) == len(self._heads)
        if not fits or int(self._order.max(initial=0)) >= max(rows, 1):
            raise ValueError("its sections do not fit together")

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return len(self._map)

    def key(self, row: int) -> str:
        """The key of a row."""
        start, end = self._bounds[2 * row : 2 * row + 2].tolist()
        try:
            return str(self._heads[start:end], "utf-8")
        except UnicodeDecodeError as exc:
            raise self._no_text() from exc

    def heads(self, rows: NDArray[np.int64]) -> list[tuple[str, bytes]]:
        """The key and the encoded metadata of each row."""
        bounds = self._bounds[2 * rows[:, None] + _HEAD].tolist()
        heads = self._heads
        try:
            return [(str(heads[start:middle], "utf-8"), bytes(heads[middle:end])) for start, middle, end in bounds]
        except UnicodeDecodeError as exc:
            raise self._no_text() from exc

    def found(self, scored: Sequence[tuple[float, int]]) -> list[Found]:
        """What there is to say of (score, row) pairs."""
        rows = np.array([row for _, row in scored], np.int64)
        versions, at = self.versions[rows].tolist(), self.at[rows].tolist()
        return [
            Found(key, score, version, metadata, moment)
            for (score, _), (key, metadata), version, moment in zip(scored, self.heads(rows), versions, at, strict=True)
        ]

    def likely(self, hashes: NDArray[np.uint64]) -> bool:
        """Whether it holds any of the keys of these hashes; seldom true where it does not."""
        places = self._hashes.searchsorted(hashes)
        return self.rows > 0 and bool((self._hashes.take(places, mode="clip") == hashes).any())

    def find(self, keys: Sequence[str], hashes: NDArray[np.uint64] | None = None) -> NDArray[np.int64]:
        """The row of each key, -1 where there is none; `hashes` are those of `keys`, if they are known."""
        found = np.full(len(keys), -1, np.int64)
        if not self.rows:
            return found
        wanted = hash_keys(keys) if hashes is None else hashes
        places = np.searchsorted(self._hashes, wanted)
        likely = np.flatnonzero(self._hashes[np.minimum(places, self.rows - 1)] == wanted)
        if not len(likely):
            return found
        rows = self._order[places[likely]].astype(np.int64)
        bounds = self._bounds[2 * rows[:, None] + _HEAD[:2]].tolist()
        heads = self._heads
        for at, row, (start, end) in zip(likely.tolist(), rows.tolist(), bounds, strict=True):
            same = heads[start:end] == keys[at].encode()
            found[at] = row if same else self._next(keys[at], int(places[at]) + 1, wanted[at])
        return found

    def _next(self, key: str, place: int, mark: np.uint64) -> int:
        """The row of a key that shares its hash with another, from a place among the hashes on; -1 if it has none."""
        while place < self.rows and self._hashes[place] == mark:
            row = int(self._order[place])
            if self.key(row) == key:
                return row
            place += 1
        return -1

    def take(self, rows: NDArray[np.int64], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """The vectors of `rows`, verified; in the first rows of `out` if that is given.

        Raises:
            CorruptionError: one is damaged.
        """
        if self._scattered:
            self._prefetch(rows)
        known = self._verified[rows]
        if not known.all():
            self._verify(rows[~known])
        # No row is out of bounds; to be asked to clip costs half of what indexing does.
        return self.vectors.take(rows, axis=0, out=None if out is None else out[: len(rows)], mode="clip")

    def scatter(self) -> None:
        """From here on few vectors are read, here and there: what lies around one is not read with it."""
        with suppress(OSError):
            self._map.madvise(mmap.MADV_RANDOM, 0, self.vectors.nbytes)
            self._scattered = True

    def _prefetch(self, rows: NDArray[np.int64]) -> None:
        """Have what is not in memory of those rows read at once: met one by one, each waits for the disk."""
        width, page = self.dimension * 4, -mmap.PAGESIZE
        with suppress(OSError):
            for row in rows.tolist():
                at = row * width & page
                self._map.madvise(mmap.MADV_WILLNEED, at, (row + 1) * width - at)

    def span(self, low: int, high: int) -> NDArray[np.float32]:
        """The vectors of the rows from `low` up to but without `high`, verified."""
        start, stop = low * self.dimension * 4 & -mmap.PAGESIZE, high * self.dimension * 4
        with suppress(OSError):
            # In steps: of a longer range the kernel reads only the beginning ahead.
            for at in range(start, stop if self._scattered else start, _AHEAD):
                self._map.madvise(mmap.MADV_WILLNEED, at, min(_AHEAD, stop - at))
        self._verify(low + np.flatnonzero(~self._verified[low:high]))
        return self.vectors[low:high]

    def _verify(self, rows: NDArray[np.int64]) -> None:
        width = self.dimension * 4
        for row, wanted in zip(rows.tolist(), self._sums[rows].tolist(), strict=True):
            if xxh3_64_intdigest(self._view[row * width : (row + 1) * width]) != wanted:
                self.damaged = True
                raise self._damage(f"is damaged in the vector of row {row}")
        self._verified[rows] = True
