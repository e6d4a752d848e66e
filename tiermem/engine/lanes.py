"""Lanes: background work, one namespace after the other, in a thread of its own."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

from tiermem.errors import LockTimeout, TiermemError

T = TypeVar("T")

FIRST_REST: Final = 0.5
LONGEST_REST: Final = 300.0
"""Seconds until what failed is tried again: doubled each time, from the first to the longest."""
BUSY: Final = 0.25
"""Seconds until a lane tries again where others were at such work: it is the same for all namespaces."""
_STRETCH: Final = 128
"""Rows handled by Python in one go: a fraction of a millisecond."""
_PAUSE: Final = 0.0001
"""Seconds in which another thread wakes up and takes the interpreter."""


def unhurried(things: Iterable[T]) -> Iterator[T]:
    """`things`, with pauses: who searches meanwhile would wait milliseconds for the interpreter, again and again."""
    for number, thing in enumerate(things, 1):
        yield thing
        if not number % _STRETCH:
            time.sleep(_PAUSE)


class Lane:
    """A thread that does one kind of work, namespace by namespace; started when first woken."""

    def __init__(self, name: str, work: Callable[[str], None]) -> None:
        self._name = name
        self._work = work
        self._wanted: dict[str, None] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._rest: dict[str, tuple[float, float]] = {}
        self.failed: dict[str, str] = {}

    def wake(self, name: str) -> None:
        """There may be work in a namespace; what has just failed there is left alone for a while."""
        with self._changed:
            if self._stopped:
                return
            self._wanted[name] = None
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def _next(self) -> str | None:
        """The next namespace to look at, once there is one; None where the lane was stopped."""
        with self._changed:
            while not self._stopped:
                now = time.monotonic()
                soonest = math.inf
                for name in self._wanted:
                    ready = self._rest.get(name, (0.0, 0.0))[0]
                    if ready <= now:
                        del self._wanted[name]
                        return name
                    soonest = min(soonest, ready)
                self._changed.wait(None if soonest == math.inf else soonest - now)
        return None

    def _run(self) -> None:
        while (name := self._next()) is not None:
            try:
                self._work(name)
                self.forgive(name)
            except LockTimeout:
                # Whoever is at it may do so in another namespace: nobody else would look at this one.
                with self._changed:
                    self._wanted[name] = None
                    self._changed.wait_for(lambda: self._stopped, BUSY)
            except (TiermemError, OSError) as exc:
                # Nothing is lost: what is not sealed is searched exactly, and is tried again.
                self._blame(name, exc)
            except BaseException as exc:
                # Not foreseen: it is shown and ends this thread, and the next one to wake the lane starts another.
                self._blame(name, exc)
                with self._changed:
                    self._thread = None
                raise

    def _blame(self, name: str, exc: BaseException) -> None:
        told = f"segments of {name!r} could not be built: {str(exc) or type(exc).__name__}"
        self.failed = {**self.failed, name: told}
        pause = min(LONGEST_REST, 2 * self._rest.get(name, (0.0, FIRST_REST / 2))[1])
        self._rest[name] = time.monotonic() + pause, pause
        with self._changed:
            self._wanted[name] = None

    def forgive(self, name: str) -> None:
        """What failed in a namespace has been done."""
        self.failed = {other: told for other, told in self.failed.items() if other != name}
        self._rest.pop(name, None)

    def stop(self) -> None:
        """End the thread."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
