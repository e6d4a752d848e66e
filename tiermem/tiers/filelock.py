"""Locks on files: they go with the process that holds them, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tiermem.errors import LockTimeout

_FLOCK: Final = struct.Struct("hhqqi4x")
"""`struct flock`: type, whence, start, length, process."""


@contextmanager
def exclusive(path: Path, timeout: float) -> Iterator[None]:
    """Hold the lock file `path`, which only this function opens.

    Raises:
        LockTimeout: another process held it for longer than `timeout` seconds.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + timeout
        while not try_lock(fd):
            if time.monotonic() >= deadline:
                raise LockTimeout(f"{path.name} was held by another process for {timeout} s")
            # Opening is rare and short: a pause here is no wait on any path a user feels.
            time.sleep(0.002)
        yield
    finally:
        os.close(fd)


def try_lock(fd: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Take an fcntl lock on an open file; False if another process holds one in the way."""
    try:
        fcntl.lockf(fd, kind | fcntl.LOCK_NB)
    except OSError as exc:
        if exc.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def hold(path: Path) -> int:
    """Take the lock file `path` for as long as this process lives: its descriptor, -1 if another holds it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    if try_lock(fd):
        return fd
    os.close(fd)
    return -1


def holder(path: Path) -> int:
    """The process that holds the lock file `path`, -1 if it cannot be named, 0 if none does.

    Never asked by the process that may hold it itself: closing the file gives up a lock of one's own on it.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        found = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)))
    finally:
        os.close(fd)
    return 0 if found[0] == fcntl.F_UNLCK else int(found[4]) or -1
