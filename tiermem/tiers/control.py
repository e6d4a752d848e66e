"""The control page and the client slots: how processes on one store notice each other.

`control` is a small mapped file: a commit counter, the generation, and a row per client slot.
It holds nothing that cannot be rebuilt. A client holds its slot by an fcntl lock on a file of the
slot's own, which it opens once and never probes; the lock goes with the process.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import mmap
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from tiermem.errors import CorruptionError, StorageError, file_error
from tiermem.tiers.bells import ASLEEP, DOZING, PAUSING, SLOTS, Bells
from tiermem.tiers.filelock import try_lock

MAGIC: Final = b"TMCTRL\x00\x02"
_HEADER_BYTES: Final = 4096
_ROW_WORDS: Final = 8
_SIZE: Final = _HEADER_BYTES + SLOTS * _ROW_WORDS * 8
_COUNTER: Final = 8
_GENERATION: Final = 16
_HELPER: Final = 24
"""One more than the slot of the helper process; 0 if there is none."""
_ANNOUNCED: Final = 32
_SLOT_BITS: Final = 9
HASTE: Final = 40
"""1 from when a client wants what it has journaled committed at once until the helper looks for that."""
_FIRST_ROW: Final = _HEADER_BYTES // 8
_TIME: Final = 0
_LOCK: Final = 1
"""Odd while the words behind it, which tell how far a journal is applied, are being written."""
_PROGRESS: Final = slice(2, 7)
_ASKING: Final = 1536
"""From this byte on, one byte a slot: 1 if the helper has not looked yet at what that client asks."""
_STALE: Final = 2048
"""From this byte on, two bytes a slot: 1 if there may be commits that client has not read, and 1 if its journal was
applied further by the helper."""
_ALL_STALE: Final = b"\x01" * SLOTS
_LARGEST: Final = 2**64 - 1
_BLIND_NAP: Final = 0.02
_MOMENT: Final = 0.25
"""Seconds for which the number of clients is believed to stay the same."""
_FLOAT: Final = struct.Struct("=d")
_WORD: Final = struct.Struct("=Q")


class Progress(NamedTuple):
    """How far the helper has applied a client's journal.

    The commits that brought it there left nothing in the log between the sequences `first` and `sequence`
    but what stands in that journal; `stamp` is the last one's.
    """

    journal: int
    applied: int
    first: int
    sequence: int
    stamp: int


class _Watch:
    """Stands where a client without a slot has no byte of its own: compares the counter instead."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._seen = -1

    def __getitem__(self, _: int) -> bool:
        return self._control.counter != self._seen

    def __setitem__(self, _: int, stale: int) -> None:
        self._seen = -1 if stale else self._control.counter


class Control:
    """The mapped control page of one store, and this process's slot in it.

    `stale[0]` is true if `missed[0]` or `moved[0]` is: there may be commits this client has not read, or its
    journal was applied further by the helper. Whoever commits sets them; the client clears them *before* it
    reads, so that nothing falls in between.
    """

    def __init__(self, root: Path, *, read_only: bool = False) -> None:
        """Map `root/control`, made anew if it is missing or foreign (unless `read_only`).

        The caller holds the store's open lock.
        """
        self.root = root
        self.path = root / "control"
        self.slot = -1
        self._lock_fd = -1
        self._counted = -_MOMENT
        self._shared = False
        if not self._usable():
            if read_only:
                raise CorruptionError(f"{self.path} is missing or damaged; opening the store for writing mends it")
            self._create()
        with self.path.open("rb" if read_only else "r+b") as file:
            access = mmap.ACCESS_READ if read_only else mmap.ACCESS_WRITE
            self._map = mmap.mmap(file.fileno(), _SIZE, access=access)
        self.words = memoryview(self._map).cast("Q")
        self._bytes = memoryview(self._map)
        self.bells = Bells(root / "clients", self._map)
        self.asking = self._bytes[_ASKING : _ASKING + SLOTS]
        self._missed = self._bytes[_STALE : _STALE + 2 * SLOTS : 2]
        self.stale: Any = _Watch(self)
        self.missed: Any = self.stale
        self.moved: Any = [0]

    def _usable(self) -> bool:
        try:
            with self.path.open("rb") as file:
                return os.fstat(file.fileno()).st_size == _SIZE and file.read(8) == MAGIC
        except FileNotFoundError:
            return False

    def _create(self) -> None:
        fresh = self.path.with_suffix(".new")
        fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            os.posix_fallocate(fd, 0, _SIZE)
            os.pwrite(fd, MAGIC, 0)
        except OSError as exc:
            raise file_error(exc)(f"control page cannot be created: {exc}") from exc
        finally:
            os.close(fd)
        os.rename(fresh, self.path)

    @property
    def counter(self) -> int:
        """A number no publisher writes twice: another value than before means there is something to read."""
        return self.words[_COUNTER]

    @property
    def announced(self) -> int:
        """The sequence that `publish` was last told."""
        return self.words[_ANNOUNCED]

    @property
    def generation(self) -> int:
        """Number of the LMDB environment in use, 0 if not yet published."""
        return self.words[_GENERATION]

    def publish(self, sequence: int, generation: int, but: int = -1) -> None:
        """Announce all commits up to `sequence` to all others except the slot `but`, and wake whoever waits."""
        self.words[_GENERATION] = generation
        self.words[_ANNOUNCED] = sequence
        # One sequence may be announced by several: the counter still differs, or who waits for another misses a commit.
        self.words[_COUNTER] = time.monotonic_ns() << _SLOT_BITS & _LARGEST | self.slot & SLOTS - 1
        start = 0
        for end in (*sorted({self.slot, but} - {-1}), SLOTS):
            self._missed[start:end] = _ALL_STALE[: end - start]
            start = end + 1
        self.bells.ring_all()

    def tell(self, slot: int, journal: int, applied: int, first: int, sequence: int, stamp: int) -> None:
        """Tell a client how far its journal was applied, by a commit of nothing else; only the helper does."""
        row = _FIRST_ROW + slot * _ROW_WORDS
        words = self.words
        known = words[row : row + _ROW_WORDS][_PROGRESS]
        if known[0] == journal and known[3] == first:
            first = known[2]
        writing = words[row + _LOCK] | 1
        words[row + _LOCK] = writing
        for at, word in enumerate((journal, applied, first, sequence, stamp), row + _PROGRESS.start):
            words[at] = word
        words[row + _LOCK] = writing + 1
        self._map[_STALE + 2 * slot + 1] = 1

    @property
    def progress(self) -> Progress | None:
        """What the helper told this client last; None if it is just being told, or never was."""
        row = _FIRST_ROW + self.slot * _ROW_WORDS
        lock = self.words[row + _LOCK]
        found = Progress(*self.words[row : row + _ROW_WORDS][_PROGRESS])
        return None if lock & 1 or not found.journal or self.words[row + _LOCK] != lock else found

    # The helper process: the client that applies everybody's journals.

    @property
    def helper(self) -> int:
        """The slot of the helper, -1 if there is none; one that was killed leaves its slot behind."""
        return self.words[_HELPER] - 1

    @helper.setter
    def helper(self, slot: int) -> None:
        self.words[_HELPER] = slot + 1

    def call_helper(self, *, haste: bool = False) -> None:
        """Wake the helper if it sleeps; with `haste` it does not let more gather before it commits."""
        if haste:
            # First: it looks at the word after it has said that it sleeps.
            self.words[HASTE] = 1
        self.bells.ring(self.helper, (DOZING, PAUSING) if haste else (DOZING,))

    def even(self, counter: int) -> None:
        """This client has read everything up to where the counter stood.

        Only now may its other threads think themselves up to date. A commit that was published meanwhile has
        changed the counter first; one published later sets the flag again.
        """
        missed, words = self.missed, self.words
        # No call in between: another thread of this process must not run where the flag may be wrong.
        missed[0] = 0
        if words[_COUNTER] != counter:
            missed[0] = 1

    def publish_time(self, now: float) -> None:
        """Announce this client's clock."""
        self.words[_FIRST_ROW + self.slot * _ROW_WORDS + _TIME] = _WORD.unpack(_FLOAT.pack(now))[0]

    def lowest_time(self) -> float:
        """The lowest clock any live client has published; -inf if one has published none."""
        lowest = math.inf
        for slot in self.live():
            word = self.words[_FIRST_ROW + slot * _ROW_WORDS + _TIME]
            lowest = min(lowest, _FLOAT.unpack(_WORD.pack(word))[0] if word else -math.inf)
        return -math.inf if lowest == math.inf else lowest

    @property
    def shared(self) -> bool:
        """Whether more than one client, the helper not counted, had the store open a moment ago."""
        now = time.monotonic()
        if now >= self._counted + _MOMENT:
            self._counted = now
            # Where the directory is gone, whoever commits says so.
            with contextlib.suppress(OSError):
                self._shared = len({*self.live()} - {self.helper}) > 1
        return self._shared

    def _lock_path(self, slot: int) -> Path:
        return self.root / "clients" / f"{slot:03d}.lock"

    def claim(self) -> int:
        """Take the lowest free slot.

        Raises:
            StorageError: all slots are taken.
        """
        for slot in range(SLOTS):
            fd = os.open(self._lock_path(slot), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            if try_lock(fd):
                self.slot, self._lock_fd = slot, fd
                row = _FIRST_ROW + slot * _ROW_WORDS
                self.words[row : row + _ROW_WORDS] = memoryview(bytes(_ROW_WORDS * 8)).cast("Q")
                self.bells.claim(slot)
                self.asking[slot] = 0
                at = _STALE + 2 * slot
                self.stale = memoryview(self._map)[at : at + 2].cast("H")
                self.missed, self.moved = self._bytes[at : at + 1], self._bytes[at + 1 : at + 2]
                self.missed[0] = 1
                return slot
            os.close(fd)
        raise StorageError(f"all {SLOTS} client slots of this store are taken")

    def live(self) -> list[int]:
        """The slots whose clients are alive, this one's included."""
        found = []
        for name in sorted(os.listdir(self.root / "clients")):
            if not name.endswith(".lock"):
                continue
            slot = int(name[:3])
            if slot == self.slot:
                found.append(slot)
                continue
            # A shared lock, for which reading is enough: a client that may only read counts too.
            fd = os.open(self._lock_path(slot), os.O_RDONLY | os.O_CLOEXEC)
            try:
                if not try_lock(fd, fcntl.LOCK_SH):
                    found.append(slot)
            finally:
                os.close(fd)
        return found

    def wait(self, seen: int, timeout: float) -> bool:
        """Sleep until the counter differs from `seen` or `timeout` seconds have passed; True if it differs."""
        if self.slot >= 0:
            return self.bells.listen(lambda: self.counter != seen, timeout, ASLEEP)
        deadline = time.monotonic() + timeout
        # A read-only client has no slot to be rung at.
        while self.counter == seen and not self.bells.closing and time.monotonic() < deadline:
            time.sleep(_BLIND_NAP)
        return self.counter != seen

    def doze(self, busy: Callable[[], bool], timeout: float, *, pausing: bool = False) -> None:
        """Sleep until called or `timeout` seconds have passed, unless `busy()` after who calls would be heard.

        Commits of others do not ring. pausing: neither does a call without haste.
        """
        self.bells.nap(busy, timeout, PAUSING if pausing else DOZING)

    def close(self, *, forked: bool = False) -> None:
        """Give up the slot, or what a fork left of it. The page stays mapped while another thread still looks at it."""
        self.bells.close(forked=forked)
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
        self._lock_fd = self.slot = -1
