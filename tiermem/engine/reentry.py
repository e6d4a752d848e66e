"""Calls from a signal handler: what they would wait for may be held by the call that it has interrupted."""

from __future__ import annotations

import gc
import sys
import threading
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Final

from tiermem.errors import LockTimeout

PATIENCE: Final = 5.0
"""Seconds until a lock counts as held by the call that was interrupted, where there is one."""
_OURS: Final = "tiermem."
_BETWEEN: Final = frozenset({"contextlib", "functools", "threading"})
"""What the engine calls itself through."""


class Flag:
    """What one thread waits for and others set: a `threading.Event` that an interrupt cannot leave locked."""

    def __init__(self) -> None:
        # Its methods are C, and `put` is made for signal handlers.
        self._set: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        """Let the waiting thread go on, now or when it next waits."""
        if self._set.empty():
            self._set.put(None)

    def wait(self, timeout: float) -> bool:
        """Wait until it is set, at most `timeout` seconds; True if it is."""
        with suppress(Empty):
            self._set.get(timeout=timeout)
            self._set.put(None)
        return not self._set.empty()

    def clear(self) -> None:
        """It is not set any more."""
        with suppress(Empty):
            while True:
                self._set.get_nowait()


def refuse_reentry(lock: threading.Lock) -> None:
    """Called where `lock` is held: returns at once unless this call interrupts another, else once the lock is free.

    Raises:
        LockTimeout: it stays held; nothing has been done.
    """
    if not _interrupting():
        return
    if not lock.acquire(timeout=PATIENCE):
        raise _reentered()
    lock.release()


def owned(lock: threading.RLock) -> bool:
    """True if this thread holds `lock`."""
    return bool(lock._is_owned())  # type: ignore[attr-defined]  # what threading.Condition asks, too


def refuse_inside(lock: threading.Lock, commit_lock: threading.RLock) -> None:
    """LockTimeout where this call interrupts one of the same thread that holds either lock of a store.

    What is left of a call that an interrupt has ended may still be held by the interrupt's own traceback, or be a lock
    that was about to be released.
    """
    if lock.locked():
        refuse_reentry(lock)
    if owned(commit_lock) and not _interrupting():
        gc.collect()
        while owned(commit_lock) and threading.current_thread() is threading.main_thread():
            commit_lock.release()
    if owned(commit_lock):
        raise _reentered()


def _reentered() -> LockTimeout:
    """That a call cannot be served, since it interrupts one that has to end first."""
    return LockTimeout(
        "the store was called by a signal handler that has interrupted a call of the same thread: "
        "set a flag in the handler, or raise, and call the store outside of it"
    )


def _interrupting() -> bool:
    """True if this thread was inside the package, left it, and came back, as it does in a signal handler."""
    if threading.current_thread() is not threading.main_thread():
        # Handlers run in the main thread only.
        return False
    frame: FrameType | None = sys._getframe(1)
    left = False
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        ours = name.startswith(_OURS)
        if ours and left:
            return True
        left = left or not (ours or name in _BETWEEN)
        frame = frame.f_back
    return False
