"""Shared work: of the threads that wait for the same thing, one does it for all."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from tiermem.engine.reentry import owned

_NAP: Final = 0.25
"""Most seconds a thread waits for another's work."""


class Shared:
    """Threads that wait, and the one among them that works.

    Each waits with a lock of its own: if they queued for one, the thread that has just been served would be the next to
    get it, and work for itself alone.
    """

    def __init__(self) -> None:
        self._working = threading.RLock()
        self._waiting: deque[threading.Lock] = deque()

    def until(self, done: Callable[[], bool], work: Callable[[], object]) -> None:
        """Return once `done()`; as a rule one thread at a time calls `work()`, as often as it takes.

        What `work` raises is raised to the thread that called it, and another goes on.
        """
        while not done():
            if not self._work(done, work) and not self._wait():
                # Whoever works is slow, or was ended by an interrupt before it could say so.
                work()

    def _work(self, done: Callable[[], bool], work: Callable[[], object]) -> bool:
        try:
            mine = self._working.acquire(blocking=False)
            if mine and not done():
                work()
            return mine
        finally:
            # An interrupt may come just behind the acquiring, or have come before a releasing.
            if owned(self._working):
                while owned(self._working):
                    self._working.release()
                self._wake()

    def _wait(self) -> bool:
        """Wait to be woken; False if nobody did."""
        own = threading.Lock()
        own.acquire()
        self._waiting.append(own)
        # Whoever works now finds this thread waiting when that is done; whoever was done before did not.
        if self._working.acquire(blocking=False):
            self._working.release()
            return True
        return own.acquire(timeout=_NAP)

    def _wake(self) -> None:
        with suppress(IndexError):
            while True:
                self._waiting.popleft().release()
