"""The journal: a mapped, preallocated ring of checksummed frames that outlives its process.

A write is a copy into the page cache followed by one aligned 64-bit store of the head, so a frame
below the head survives `kill -9`. Positions count bytes since the ring was last reset and never
wrap: position // capacity is the lap, position % capacity the offset. A frame never straddles the
end of the ring. Only the owner appends; anyone may read frames below the head.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

from tiermem.errors import CorruptionError, IncompatibleFormatError, StorageError, file_error

MAGIC: Final = b"TMJRNL\x00\x01"
FORMAT: Final = 1
HEADER_BYTES: Final = 4096
FRAME_BYTES: Final = 16
_HEAD_WORD: Final = 16
"""The head is the aligned 64-bit word at byte 128, on a cache line of its own."""
_SKIP: Final = 0xFFFFFFFF
_CHUNK: Final = 2**20

# magic, format, reserved, store id, journal id, capacity, boot id
_HEADER: Final = struct.Struct("<8sII16sQQ16s")
_CHECKSUM: Final = struct.Struct("<Q")
_FRAME: Final = struct.Struct("<QII")
_SIZES: Final = struct.Struct("<II")
_pack_sizes: Final = _SIZES.pack
_seal: Final = _CHECKSUM.pack_into
_unpack_frame: Final = _FRAME.unpack_from


class JournalFrame(NamedTuple):
    """One frame: where the next one starts, how many operations it holds, and their bytes."""

    end: int
    operations: int
    payload: bytes


def boot_id() -> bytes:
    """16 bytes that change with every boot of the machine; zeros where that cannot be known."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return bytes.fromhex(text.strip().replace("-", ""))
    except (OSError, ValueError):
        return bytes(16)


class Journal:
    """One journal file, mapped. `id` 0 means it was never put into service.

    `largest`: most payload bytes one frame may hold. `wiped`: the generation of the store as of which it holds
    nothing but what is still to be applied.
    """

    def __init__(self, path: Path, *, writable: bool) -> None:
        """Map an existing file.

        Raises:
            CorruptionError: it is too short, or its header fails its checksum.
            IncompatibleFormatError: it is of a newer format.
            StorageError: it cannot be opened or mapped.
        """
        self.path = path
        try:
            fd = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
            try:
                size = os.fstat(fd).st_size
                if size < HEADER_BYTES + 4096:
                    raise CorruptionError(f"journal {path.name} of {size} bytes is shorter than its header")
                access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
                self._map = mmap.mmap(fd, size, access=access)
            finally:
                os.close(fd)
        except OSError as exc:
            raise StorageError(f"journal {path.name} cannot be mapped: {exc}") from exc
        self._words = memoryview(self._map)[:HEADER_BYTES].cast("Q")
        self.capacity = size - HEADER_BYTES
        self.largest = self.capacity // 2 - FRAME_BYTES
        self.applied = 0
        self.wiped = -1
        try:
            self._read_header()
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(cls, path: Path, capacity: int) -> Journal:
        """A new file with every block allocated and mapped in, not yet in service.

        Raises:
            StoreFullError: there is no room for it.
            StorageError: the file system refuses.
        """
        fresh = path.with_suffix(".new")
        try:
            fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
            try:
                # A mapped file with holes on a full disk would end in SIGBUS.
                os.posix_fallocate(fd, 0, HEADER_BYTES + capacity)
                os.fsync(fd)
            except OSError:
                os.unlink(fresh)
                raise
            finally:
                os.close(fd)
            os.rename(fresh, path)
        except OSError as exc:
            raise file_error(exc)(f"journal {path.name} cannot be created: {exc}") from exc
        return cls(path, writable=True)

    def _read_header(self) -> None:
        header = self._map[: _HEADER.size]
        magic, form, _, self.store_id, self.id, capacity, self.boot = _HEADER.unpack(header)
        if header == bytes(_HEADER.size):
            return
        stored = _CHECKSUM.unpack_from(self._map, _HEADER.size)[0]
        if magic[:7] != MAGIC[:7] or xxh3_64_intdigest(header) != stored:
            raise CorruptionError(f"journal {self.path.name}: header fails its checksum")
        if form != FORMAT:
            raise IncompatibleFormatError(f"journal {self.path.name}: format {form}, this version reads {FORMAT}")
        if capacity != self.capacity:
            raise CorruptionError(f"journal {self.path.name}: {self.capacity} bytes where its header says {capacity}")

    def refresh(self) -> bool:
        """Read the header again; True if the journal was put into service anew since."""
        before = self.id
        self._read_header()
        return bool(self.id != before)

    def reset(self, store_id: bytes, journal_id: int) -> None:
        """Write the header of a new id and an empty ring; the file is not yet in anybody's sight."""
        header = _HEADER.pack(MAGIC, FORMAT, 0, store_id, journal_id, self.capacity, boot_id())
        self._words[_HEAD_WORD] = 0
        self._map[: len(header) + 8] = header + _CHECKSUM.pack(xxh3_64_intdigest(header))
        self._read_header()
        self.applied = 0

    def publish(self, path: Path) -> None:
        """Make the header durable, then let the file take the place of `path`, at once and durably.

        Raises:
            StoreFullError: there is no room for that.
            StorageError: the file system refuses. The file then has its old name, or the new one.
        """
        try:
            self._map.flush(0, HEADER_BYTES)
            os.rename(self.path, path)
            self.path = path
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as exc:
            raise file_error(exc)(f"journal {path.name} cannot be put into service: {exc}") from exc

    @property
    def head(self) -> int:
        """Position behind the newest frame."""
        return self._words[_HEAD_WORD]

    def append(self, payload: bytes, count: int) -> int:
        """Append one frame of at most `largest` bytes; the position behind it, or 0 if the ring is full.

        The caller serialises appends. When this returns, the frame survives the death of the process.
        """
        rest = _pack_sizes(len(payload), count) + payload
        size = len(rest)
        position = self._words[_HEAD_WORD]
        offset = position % self.capacity
        need = (size + 15) & ~7
        if offset + need > self.capacity:
            position = self._skip(position, offset)
            offset = 0
        end = position + need
        if end - self.applied > self.capacity:
            return 0
        at = HEADER_BYTES + offset
        self._map[at + 8 : at + 8 + size] = rest
        _seal(self._map, at, xxh3_64_intdigest(rest, self.id ^ position))
        self._words[_HEAD_WORD] = end
        return end

    def _skip(self, position: int, offset: int) -> int:
        """The position of the next lap; what is left of this one is marked as empty, unless that is in use."""
        left = self.capacity - offset
        if left >= FRAME_BYTES and position + left - self.applied <= self.capacity:
            at = HEADER_BYTES + offset
            rest = _pack_sizes(_SKIP, 0)
            self._map[at + 8 : at + FRAME_BYTES] = rest
            _seal(self._map, at, xxh3_64_intdigest(rest, self.id ^ position))
        return position + left

    def frames(self, start: int, end: int | None = None, *, beyond: bool = False) -> Iterator[JournalFrame]:
        """The frames from position `start` up to the head, oldest first.

        `beyond`: go on while frames are intact, whatever the head says; for a journal whose owner is
        dead. Such a frame was complete, and its write not yet acknowledged.

        A frame that fails its checksum ends the iteration if the machine was booted since the
        journal was written (its pages may never have reached the disk).

        Raises:
            CorruptionError: a frame below the head fails although nothing was lost to a reboot.
        """
        head = self.head if end is None else end
        if head - start > self.capacity:
            if self._rebooted():
                return
            raise CorruptionError(f"journal {self.path.name}: head {head} lies beyond the ring behind {start}")
        ring, capacity, journal = self._map, self.capacity, self.id
        last = start + capacity if beyond else head
        while start < last:
            offset = start % capacity
            left = capacity - offset
            if left < FRAME_BYTES:
                start += left
                continue
            at = HEADER_BYTES + offset
            checksum, size, count = _unpack_frame(ring, at)
            length = size if size != _SKIP else 0
            rest = ring[at + 8 : at + FRAME_BYTES + length] if length <= left - FRAME_BYTES else b""
            if xxh3_64_intdigest(rest, journal ^ start) != checksum or not rest:
                if start >= head or self._rebooted():
                    return
                raise CorruptionError(
                    f"journal {self.path.name} is damaged at position {start}: "
                    f"up to {head - start} bytes of acknowledged writes cannot be read"
                )
            if size == _SKIP:
                start += left
                continue
            start += (length + FRAME_BYTES + 7) & ~7
            yield JournalFrame(start, count, rest[8:])

    def _rebooted(self) -> bool:
        return bool(self.boot != boot_id())

    def wipe(self, generation: int) -> None:
        """Overwrite with zeros whatever is not still to be applied, as of a generation of the store; `flush` syncs it.

        The owner calls this where it appends, or somebody who knows that there is none.
        """
        start, end = self.applied % self.capacity, self.head % self.capacity
        # Where the ring was never used it holds nothing.
        used = min(self.capacity, self.head)
        if self.applied == self.head:
            gaps = [(0, used)]
        else:
            gaps = [(end, start)] if start >= end else [(0, start), (end, used)]
        for low, high in gaps:
            for at in range(HEADER_BYTES + low, HEADER_BYTES + high, _CHUNK):
                size = min(_CHUNK, HEADER_BYTES + high - at)
                self._map[at : at + size] = bytes(size)
        self.wiped = generation

    def flush(self) -> None:
        """Make everything that was written durable."""
        self._map.flush()

    def close(self) -> None:
        """Unmap; the file stays."""
        self._words.release()
        self._map.close()
