"""Listening with several threads at one descriptor."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable


class Ear:
    """What the threads of a process sleep with: one of them listens at a descriptor, and wakes the others.

    If each listened by itself, the first to read what was written for all would keep the others asleep.
    """

    def __init__(self) -> None:
        self._heard = threading.Condition()
        self._listening = False

    def nap(self, fd: int, awake: Callable[[], bool], timeout: float) -> None:
        """Sleep until something can be read from `fd`, which is read, or `timeout` seconds have passed.

        Not at all if `awake()`, which has become true before anything is written to `fd`.
        """
        listens = False
        try:
            with self._heard:
                # Who has listened so far may have read what would have woken this one.
                if awake():
                    return
                if self._listening:
                    self._heard.wait(timeout)
                    return
                listens = self._listening = True
            poller = select.poll()
            poller.register(fd, select.POLLIN)
            poller.poll(timeout * 1000)
            with contextlib.suppress(BlockingIOError):
                os.read(fd, 4096)
        finally:
            if listens:
                with self._heard:
                    self._listening = False
                    self._heard.notify_all()
