"""Rounds: when what was journaled is committed, inline or by a thread of its own, and when that calls for a helper."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from tiermem.engine.assistant import LOOK
from tiermem.engine.reentry import Flag
from tiermem.errors import TiermemError

if TYPE_CHECKING:
    from tiermem.engine.store import Store

RETRY: Final = 0.5
_LATE: Final = 0.1
"""Seconds at work after which the thread is given the interpreter."""
_WAY: Final = 0.002
"""Seconds for which it is, unless it is done sooner: a commit takes about one."""


class Rounds:
    """`roused` is False while a writer must call `rouse`."""

    def __init__(self, store: Store) -> None:
        self.roused = False
        self._store = store
        self._assistant = store.committer.assistant
        self._thread: threading.Thread | None = None
        self._event = Flag()
        self._hurry = Flag()
        self._rested = Flag()
        self._working = False
        self._overdue = 0.0  # until then the thread has time for what it works at
        self._since = 0.0  # when it was called for that
        self._stop = False
        self._due = 0.0

    @property
    def home(self) -> str:
        """Where commits are made: "inline", "thread" or "helper"."""
        if self._store.config.cold.committer == "inline":
            return "inline"
        return "helper" if self._assistant.present else "thread"

    def rouse(self) -> None:
        """Something was journaled: see to it that it is committed within `sync_interval`."""
        if self._store.config.cold.committer == "inline":
            now = time.monotonic()
            if not self._due:
                self._due = now + self._store.config.cold.sync_interval
            elif now >= self._due:
                self._due = 0.0
                self._work()
            return
        if self._assistant.present:
            self.roused = True
            self._store.control.call_helper()
        elif self._working:
            # It is at work, and comes back to what was journaled meanwhile.
            self._event.set()
            if time.monotonic() > self._overdue:
                self._give_way()
        else:
            self.roused = True
            self._wake()

    def _wake(self) -> None:
        self._since = time.monotonic()
        self._event.set()

    def _give_way(self) -> None:
        """Let the thread have the interpreter for a moment.

        It asks for it whenever it was without for 5 ms. Who gives it away for less, again and again, as with each
        short system call, is never asked: the thread would get nowhere, with LMDB's write lock in its hands.
        """
        self._overdue = time.monotonic() + _LATE
        self._rested.wait(_WAY)

    def hasten(self) -> None:
        """What this process has journaled is to be committed now; only where nobody else does, wait for that."""
        if self._store.config.cold.committer == "inline":
            self._store.committer.drain()
        elif self._assistant.present:
            self._store.control.call_helper(haste=True)
        else:
            self._hurry.set()
            self._wake()

    def gather(self, nap: Callable[[float], bool]) -> None:
        """Wait while writes gather for a commit, unless `nap`, told to sleep for so many seconds, says to hurry."""
        began = time.monotonic()
        # Others that wait to see them may come meanwhile.
        while (left := began + self._store.interval / 2 - time.monotonic()) > 0 and not nap(min(LOOK, left)):
            pass

    def start(self) -> None:
        """Start the background thread, unless commits are made inline.

        It also looks after what others leave behind and what expires, or after the helper that does.
        """
        if self._store.config.cold.committer != "inline" and self._thread is None:
            self._assistant.look()
            self._thread = threading.Thread(target=self._run, name="tiermem-committer", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        self._hire_if(0.0)
        while not self._stop:
            if woken := self._event.wait(LOOK):
                self.gather(self._hurry.wait)
            if self._stop:
                return
            self._rested.clear()
            self._overdue = time.monotonic() + _LATE
            self._working = True
            self._event.clear()
            self._hurry.clear()
            done = self._look_after(woken)
            self._since = time.monotonic()
            self._working = False
            self._rested.set()
            if not (done or self._stop):
                self._hurry.wait(RETRY)
                self._wake()

    def _look_after(self, woken: bool) -> bool:
        """See to it that what was journaled is committed; False if that failed."""
        try:
            if self._assistant.sees_to_it():
                return True
        except OSError as exc:
            self._store.degraded["helper"] = f"the helper cannot be looked after: {exc}"
        self.roused = False
        done = self._work()
        if done:
            # What had to wait for this thread to wake up has waited, too; but it lets writes gather.
            late = time.monotonic() - self._since - self._store.interval / 2
            self._hire_if(late if woken else 0.0)
        return done

    def _round(self) -> None:
        """One commit of several. While this thread waits for the interpreter, more comes than it commits."""
        began = time.monotonic()
        self._store.committer.commit()
        seconds = time.monotonic() - began
        if self._assistant.late(seconds):
            self._hire_if(seconds)

    def _hire_if(self, seconds: float) -> None:
        try:
            self._assistant.hire_if(seconds)
        except OSError as exc:
            self._store.degraded["helper"] = f"no helper process could be started: {exc}"

    def _work(self) -> bool:
        """Commit and keep up; False if that failed. The write that caused it was acknowledged before."""
        store = self._store
        try:
            # Where one is there that is stuck, this thread stands in for it.
            there = self._assistant.present
            store.committer.keep_up(self._round, lambda: self._assistant.present and not there)
            if store.control.stale[0]:
                # Whoever reads by `ns[key]` alone never looks.
                store.follower.catch_up()
            store.committer.upkeep.run_if_due()
        except (TiermemError, OSError) as exc:
            if not store.closed:
                # Nothing is lost: it stays journaled, is shown in `stats()`, and is tried again.
                store.degraded["committer"] = f"the last commit failed: {exc}"
            return False
        return True

    def stop(self) -> None:
        """End the thread; what is pending stays journaled."""
        self._stop = True
        self._assistant.stop()
        self._event.set()
        self._hurry.set()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self._assistant.dismiss()
