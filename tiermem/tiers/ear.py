"""Listening with several threads at one descriptor."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections import deque
from collections.abc import Callable


class Ear:
    """What the threads of a process sleep with: one of them listens at a descriptor, and wakes the others.

    If each listened by itself, the first to read what was written for all would keep the others asleep. There is no
    condition: an interrupt could leave its lock held.
    """

    def __init__(self) -> None:
        self._listening = threading.RLock()
        self._others: deque[threading.Lock] = deque()

    def nap(self, fd: int, awake: Callable[[], bool], timeout: float) -> None:
        """Sleep until something can be read from `fd`, which is read, or `timeout` seconds have passed.

        Not at all if `awake()`, which has become true before anything is written to `fd`. Some naps end early.
        """
        own = threading.Lock()
        own.acquire()
        # First: who has listened so far may have read what would have woken this one, and finds it here.
        self._others.append(own)
        try:
            if awake():
                return
            if not self._listening.acquire(blocking=False):
                own.acquire(timeout=timeout)
                return
            poller = select.poll()
            poller.register(fd, select.POLLIN)
            poller.poll(timeout * 1000)
            with contextlib.suppress(BlockingIOError):
                os.read(fd, 4096)
        finally:
            # Asked of the lock itself: an interrupt may have come just behind the acquiring.
            if self._listening._is_owned():  # type: ignore[attr-defined]  # what threading.Condition asks, too
                self._listening.release()
                self._wake()
            else:
                with contextlib.suppress(ValueError):
                    self._others.remove(own)

    def _wake(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._others.popleft().release()
