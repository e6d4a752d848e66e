"""The control page and the client slots: how processes on one store notice each other.

`control` is a small mapped file: a commit counter, the generation, and a row per client slot.
It holds nothing that cannot be rebuilt. A client holds its slot by an fcntl lock on a file of the
slot's own, which it opens once and never probes; the lock goes with the process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import mmap
import os
import select
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tiermem.errors import CorruptionError, LockTimeout, StorageError, file_error

SLOTS: Final = 512
MAGIC: Final = b"TMCTRL\x00\x01"
_HEADER_BYTES: Final = 4096
_ROW_WORDS: Final = 8
_SIZE: Final = _HEADER_BYTES + SLOTS * _ROW_WORDS * 8
_COUNTER: Final = 8
_GENERATION_SHIFT: Final = 48
_GENERATION: Final = 16
_FIRST_ROW: Final = _HEADER_BYTES // 8
_TIME: Final = 0
_WAITING: Final = 1024
"""From this byte on, one byte a slot: 1 while that client sleeps."""
_STALE: Final = 2048
"""From this byte on, one byte a slot: 1 if there may be commits that client has not read."""
_ALL_STALE: Final = b"\x01" * SLOTS
_NAP: Final = 0.25
_BLIND_NAP: Final = 0.02
_DOZE: Final = 0.001
_FLOAT: Final = struct.Struct("=d")
_WORD: Final = struct.Struct("=Q")


@contextlib.contextmanager
def exclusive(path: Path, timeout: float) -> Iterator[None]:
    """Hold the lock file `path`, which only this function opens.

    Raises:
        LockTimeout: another process held it for longer than `timeout` seconds.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + timeout
        while not _try_lock(fd):
            if time.monotonic() >= deadline:
                raise LockTimeout(f"{path.name} was held by another process for {timeout} s")
            # Opening is rare and short: a pause here is no wait on any path a user feels.
            time.sleep(0.002)
        yield
    finally:
        os.close(fd)


def _try_lock(fd: int, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.lockf(fd, kind | fcntl.LOCK_NB)
    except OSError as exc:
        if exc.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


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

    `stale[0]` is true if there may be commits this client has not read. Whoever commits sets it;
    the client clears it *before* it reads, so that nothing falls in between.
    """

    def __init__(self, root: Path, *, read_only: bool = False) -> None:
        """Map `root/control`, made anew if it is missing or foreign (unless `read_only`).

        The caller holds the store's open lock.
        """
        self.root = root
        self.path = root / "control"
        self.slot = -1
        self._lock_fd = -1
        self._bell = -1
        self._bells: dict[int, int] = {}
        self._sleepers = 0
        self._sleepers_lock = threading.Lock()
        self._closing = False
        if not self._usable():
            if read_only:
                raise CorruptionError(f"{self.path} is missing or damaged; opening the store for writing mends it")
            self._create()
        with self.path.open("rb" if read_only else "r+b") as file:
            access = mmap.ACCESS_READ if read_only else mmap.ACCESS_WRITE
            self._map = mmap.mmap(file.fileno(), _SIZE, access=access)
        self.words = memoryview(self._map).cast("Q")
        self.stale: Any = _Watch(self)

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
        """The commit counter: another value than before means there is something to read."""
        return self.words[_COUNTER]

    @property
    def announced(self) -> int:
        """The sequence that `publish` was last told."""
        return self.words[_COUNTER] & (1 << _GENERATION_SHIFT) - 1

    @property
    def generation(self) -> int:
        """Number of the LMDB environment in use, 0 if not yet published."""
        return self.words[_GENERATION]

    def publish(self, sequence: int, generation: int) -> None:
        """Announce the commit that ended at `sequence` to all others, and wake whoever waits."""
        self.words[_GENERATION] = generation
        # No value comes twice, or one who waits for another would miss a commit.
        self.words[_COUNTER] = generation << _GENERATION_SHIFT | sequence
        own, end = _STALE + self.slot, _STALE + SLOTS
        self._map[_STALE:own] = _ALL_STALE[: own - _STALE]
        self._map[own + 1 : end] = _ALL_STALE[: end - own - 1]
        at = self._map.find(b"\x01", _WAITING, _WAITING + SLOTS)
        while at >= 0:
            self._ring(at - _WAITING)
            at = self._map.find(b"\x01", at + 1, _WAITING + SLOTS)

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

    def _lock_path(self, slot: int) -> Path:
        return self.root / "clients" / f"{slot:03d}.lock"

    def journal_path(self, slot: int) -> Path:
        """Where the journal of `slot` lies."""
        return self.root / "journals" / f"{slot:03d}.journal"

    def claim(self) -> int:
        """Take the lowest free slot.

        Raises:
            StorageError: all slots are taken.
        """
        for slot in range(SLOTS):
            fd = os.open(self._lock_path(slot), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            if _try_lock(fd):
                self.slot, self._lock_fd = slot, fd
                self.words[_FIRST_ROW + slot * _ROW_WORDS + _TIME] = 0
                self._map[_WAITING + slot] = 0
                self.stale = memoryview(self._map)[_STALE + slot : _STALE + slot + 1]
                self.stale[0] = 1
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
                if not _try_lock(fd, fcntl.LOCK_SH):
                    found.append(slot)
            finally:
                os.close(fd)
        return found

    def journals(self) -> list[Path]:
        """Every journal file there is."""
        folder = self.root / "journals"
        return [folder / name for name in sorted(os.listdir(folder)) if name.endswith(".journal")]

    # A bell is a FIFO of the slot's own: whoever commits writes a byte to those that wait.

    def wait(self, seen: int, timeout: float) -> bool:
        """Sleep until the counter differs from `seen` or `timeout` seconds have passed; True if it differs."""
        deadline = time.monotonic() + timeout
        if self.slot < 0:
            # A read-only client has no slot to be rung at.
            while self.counter == seen and not self._closing and time.monotonic() < deadline:
                time.sleep(_BLIND_NAP)
            return self.counter != seen
        with self._sleepers_lock:
            if self._bell < 0:
                path = self._bell_path(self.slot)
                if not path.exists():
                    os.mkfifo(path)
                # Read and write: with a writer of its own a FIFO never reports end of file.
                self._bell = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            self._sleepers += 1
            self._map[_WAITING + self.slot] = 1
        poller = select.poll()
        poller.register(self._bell, select.POLLIN)
        try:
            while self.counter == seen and not self._closing and (left := deadline - time.monotonic()) > 0:
                # Another thread may read the byte that was meant for this one: hence a longest nap.
                poller.poll(min(left, _NAP) * 1000)
                with contextlib.suppress(BlockingIOError):
                    os.read(self._bell, 4096)
        finally:
            with self._sleepers_lock:
                self._sleepers -= 1
                if not self._sleepers:
                    self._map[_WAITING + self.slot] = 0
        return self.counter != seen

    def _bell_path(self, slot: int) -> Path:
        return self.root / "clients" / f"{slot:03d}.bell"

    def _ring(self, slot: int) -> None:
        fd = self._bells.get(slot, -1)
        try:
            if fd < 0:
                fd = self._bells[slot] = os.open(self._bell_path(slot), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.write(fd, b"\x01")
        except BlockingIOError:
            # Full: the sleeper has been rung already.
            return
        except OSError as exc:
            if exc.errno not in (errno.ENXIO, errno.EPIPE, errno.ENOENT):
                raise
            # Nobody holds the other end: the waiter died and left its mark behind.
            if fd >= 0:
                os.close(fd)
            self._bells.pop(slot, None)
            self._map[_WAITING + slot] = 0

    def close(self) -> None:
        """Give up the slot. The page stays mapped while another thread still looks at it."""
        self._closing = True
        while self._sleepers:
            # A descriptor that is polled must not be closed, or its number may be another file's.
            os.write(self._bell, b"\x01")
            time.sleep(_DOZE)
        for fd in (self._bell, *self._bells.values(), self._lock_fd):
            if fd >= 0:
                os.close(fd)
        self._bells.clear()
        self._bell = self._lock_fd = -1
        self.slot = -1
