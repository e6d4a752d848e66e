"""Bells: how a process that sleeps is woken by another, and says in the control page what it sleeps for."""

from __future__ import annotations

import contextlib
import errno
import math
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tiermem.tiers.ear import Ear

SLOTS: Final = 512
_WAITING: Final = 1024
"""From this byte of the page on, one byte a slot: what that client sleeps for, 0 if it does not."""
ASLEEP: Final = 1
"""A client waits for a commit."""
PAUSING: Final = 2
"""The helper lets writes gather: only haste disturbs it."""
DOZING: Final = 3
"""The helper waits for work."""
LISTENING: Final = 4
"""A client waits for the helper's answer."""
_NAP: Final = 0.25  # at most: whoever rings may fail to
_DOZE: Final = 0.001
_LAST_NAP: Final = 5.0
"""Seconds that closing waits for who sleeps; after that the descriptor is left to the end of the process."""


class Bells:
    """The FIFO of this client, which others write a byte to, and those of others. `closing`: nobody sleeps any more."""

    def __init__(self, folder: Path, page: mmap.mmap) -> None:
        self.closing = False
        self._folder = folder
        self._map = page
        self._slot = -1
        self._bell = -1
        self._others: dict[int, int] = {}
        self._sleepers: dict[object, int] = {}
        # Signal handlers sleep and ring, too.
        self._sleepers_lock = threading.RLock()
        self._ringing = threading.RLock()
        self._ear = Ear()

    def claim(self, slot: int) -> None:
        """Be rung as the client in `slot`, which nobody else is."""
        self._slot = slot
        self._map[_WAITING + slot] = 0

    def listen(self, heard: Callable[[], bool], timeout: float, how: int) -> bool:
        """Sleep until `heard()`, at most `timeout` seconds; whether it is. `how`: what is slept for."""
        deadline = time.monotonic() + timeout
        try:
            with self._within_hearing(how):
                while not (done := heard()) and not self.closing and (left := deadline - time.monotonic()) > 0:
                    self._ear.nap(self._bell, heard, min(left, _NAP))
            return done
        except OSError:
            if not self.closing:
                raise
            # Closed before this thread slept.
            return heard()

    def nap(self, awake: Callable[[], bool], timeout: float, how: int) -> None:
        """Sleep until rung or `timeout` seconds have passed, unless `awake()` after who rings would be heard."""
        with self._within_hearing(how):
            self._ear.nap(self._bell, awake, timeout)

    def hang(self) -> None:
        """Make the FIFO of this client, unless that was done.

        Raises:
            OSError: it cannot be made here, or no more files can be opened.
        """
        with self._sleepers_lock:
            if self.closing or self._slot < 0:
                raise OSError(errno.EBADF, "nobody sleeps any more")
            if self._bell < 0:
                path = self._path(self._slot)
                with contextlib.suppress(FileExistsError):
                    os.mkfifo(path)
                # Read and write: with a writer of its own a FIFO never reports end of file.
                fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
                if self._bell < 0:
                    self._bell = fd
                else:
                    # A handler was quicker.
                    os.close(fd)

    @contextlib.contextmanager
    def _within_hearing(self, how: int) -> Iterator[None]:
        sleeper = object()
        try:
            self.hang()
            with self._sleepers_lock:
                self._sleepers[sleeper] = how
                self._say()
            yield
        finally:
            # Wherever an interrupt came in between: no sleeper is left behind.
            with self._sleepers_lock:
                self._sleepers.pop(sleeper, None)
                self._say()

    def _say(self) -> None:
        # Who waits for a commit is rung for everything: what the others of this process wait for is among it.
        self._map[_WAITING + self._slot] = min(list(self._sleepers.values()), default=0)

    def _path(self, slot: int) -> Path:
        return self._folder / f"{slot:03d}.bell"

    def ring_all(self) -> None:
        """Wake everybody who waits for a commit."""
        at = self._map.find(b"\x01", _WAITING, _WAITING + SLOTS)
        while at >= 0:
            self._ring(at - _WAITING)
            at = self._map.find(b"\x01", at + 1, _WAITING + SLOTS)

    def ring(self, slot: int, among: tuple[int, ...]) -> None:
        """Wake the client in `slot` if it sleeps for one of these."""
        if slot >= 0 and self._map[_WAITING + slot] in among:
            self._ring(slot)

    def _ring(self, slot: int) -> None:
        with self._ringing:
            if not self.closing:
                self._write(slot)

    def _write(self, slot: int) -> None:
        fd = self._others.get(slot, -1)
        try:
            if fd < 0:
                fd = self._others[slot] = os.open(self._path(slot), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.write(fd, b"\x01")
        except BlockingIOError:
            # Full: the sleeper has been rung already.
            return
        except OSError as exc:
            # Not twice: a handler may have done so.
            if fd >= 0 and self._others.get(slot) == fd:
                del self._others[slot]
                os.close(fd)
            if exc.errno in (errno.ENXIO, errno.EPIPE, errno.ENOENT):
                # Nobody holds the other end: the waiter died and left its mark behind.
                self._map[_WAITING + slot] = 0
            # Anything else says nothing of the commit, which stands; who sleeps looks again by itself after a nap.

    def close(self, *, forked: bool = False) -> None:
        """Let nobody sleep any more. Of the threads that slept, a forked child has none."""
        self.closing = True
        deadline = -math.inf if forked else time.monotonic() + _LAST_NAP
        while self._sleepers and time.monotonic() < deadline:
            # A descriptor that is polled must not be closed, or its number may be another file's.
            with contextlib.suppress(BlockingIOError):
                os.write(self._bell, b"\x01")
            time.sleep(_DOZE)
        # Of the threads that ring, a forked child has none either.
        with contextlib.nullcontext() if forked else self._ringing:
            if self._sleepers and not forked:
                self._bell = -1
            for fd in (self._bell, *self._others.values()):
                if fd >= 0:
                    os.close(fd)
            self._others.clear()
            self._bell = self._slot = -1
