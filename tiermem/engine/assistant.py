"""The helper process as a client sees it: hired when the thread falls behind, watched, replaced."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from tiermem.config import CodecConfig, ColdConfig, IndexType, Metric
from tiermem.engine.processes import Child
from tiermem.engine.scheduling import is_realtime
from tiermem.errors import TiermemError
from tiermem.tiers.filelock import holder

if TYPE_CHECKING:
    from tiermem.engine.store import Store

LOCK: Final = "helper.lock"
LOG: Final = "helper.log"
READY: Final = b"ready"
LOOK: Final = 0.25
"""Seconds between looks at whether the helper is there and keeps up."""
_STUCK: Final = 8
"""Looks at which nothing had been applied, and the client commits itself."""
_BEHIND: Final = 2.0
"""A thread has fallen behind when a round takes this many times what a write may wait."""
_SLOW: Final = 3
"""Rounds in a row that took too long: one alone may have met a slow disk."""
_LATE: Final = 10.0
"""A round that takes this many times `sync_interval` is enough by itself."""
_COMPANY: Final = 1.0
"""Seconds for which a client commits again and again beside others until it hires one."""
_PATIENCE: Final = 5.0
"""Seconds a helper has to come up."""
_FIRST_REST: Final = 1.0
_LONGEST_REST: Final = 60.0
"""Seconds until another is hired after one that did not last: doubled each time, from the first to the longest."""
_CATCHES: Final = 256
"""Most calls of `catch_up` at a look: each retires a few frames."""
_GLANCE: Final = 0.002
_GLANCES: Final = 50
"""How often, and how many times, a writer looks whether the helper has made room in its journal."""


class Orders(msgspec.Struct):
    """What a helper is told: where, by which clock, and the parts of the configuration that it works by."""

    root: bytes
    domain: str
    cold: ColdConfig
    codec: CodecConfig
    engine: Literal["faiss", "hnswlib"]
    index: IndexType
    m: int
    ef_construction: int
    metric: Metric
    seal_rows: int


class Assistant:
    """`present`: a helper had the store open at the last look, and is left to commit."""

    def __init__(self, store: Store) -> None:
        self.present = False
        self._store = store
        self._path = store.root / LOCK
        self._closing = False
        self._stood = -1
        self._stuck = 0
        self._slow = 0
        self._commits = 0
        self._committed = self._company = -math.inf
        self._coming: Child | None = None
        self._patience = 0.0
        self._rest = _FIRST_REST
        self._hirable = 0.0

    @property
    def _welcome(self) -> bool:
        return self._store.config.cold.committer in ("auto", "helper")

    def stop(self) -> None:
        """Nobody is hired any more; one that is there may have nobody left to work for."""
        self._closing = True
        if self.present:
            self._store.control.call_helper()

    def look(self) -> bool:
        """True if a helper is there; one that was stopped is ended, since it may hold the write lock."""
        store = self._store
        if not self._welcome or (not self.present and store.control.helper < 0):
            return False
        process = holder(self._path)
        if process > 0 and _stopped(process):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
            process = 0
        settled = process != 0 and self._settled(process)
        if settled:
            self._judge(process)
        elif self.present and not process:
            store.degraded["helper"] = f"the helper process has ended{_last_words(store.root / LOG)}"
        self.present = settled
        return settled

    def _settled(self, process: int) -> bool:
        """True if the helper in that process is the one that the control page names.

        One that was killed leaves its slot there, while the next is still on its way.
        """
        slot = self._store.control.helper
        if slot in (-1, self._store.slot):
            return False
        return holder(self._store.root / "clients" / f"{slot:03d}.lock") == process

    def _judge(self, process: int) -> None:
        """Say so where a helper is there, but not as it was asked for."""
        slow = False
        if self._store.config.cold.realtime:
            with suppress(ProcessLookupError):
                slow = not is_realtime(process)
        if slow:
            self._store.degraded["helper"] = "the helper process does not run at real-time priority"
        else:
            self._store.degraded.pop("helper", None)

    def sees_to_it(self) -> bool:
        """True if a helper is there and has applied something at one of the last looks, if there was anything."""
        store = self._store
        self._meet()
        if not self.look():
            self._stuck = 0
            return False
        try:
            store.control.publish_time(store.clock.now())
            for _ in range(_CATCHES):
                if not store.control.stale[0]:
                    break
                store.follower.catch_up()
        except (TiermemError, OSError):
            # Who commits in its place meets the same, and says so.
            return False
        journal = store.journal
        position = -1 if journal is None or journal.applied == journal.head else journal.applied
        self._stuck = self._stuck + 1 if position == self._stood >= 0 else 0
        self._stood = position
        if position >= 0:
            store.control.call_helper()
        # Not sooner: who commits waits for a lock that the helper may hold, and cannot look after it meanwhile.
        return self._stuck < _STUCK

    def told(self, name: str) -> bool:
        """Ask the helper to look at whether a namespace wants sealing; False if there is none, or it cannot be told."""
        if not self.present:
            return False
        try:
            with wishes(self._store.root, self._store.slot).open("ab") as file:
                file.write(wish(name, self._store.config.vector.seal_rows))
        except OSError as exc:
            if exc.errno is None:
                # No file's: a signal handler's.
                raise
            return False
        return True

    def advanced(self) -> bool:
        """Wait for the helper to make room in the journal; False if it made none."""
        store = self._store
        journal = store.journal
        if journal is None:
            return False
        before = journal.applied
        store.control.call_helper()
        for _ in range(_GLANCES):
            if store.control.stale[0]:
                store.follower.catch_up()
            if journal.applied > before:
                return True
            time.sleep(_GLANCE)
        return False

    def hire_if(self, seconds: float) -> None:
        """Start a helper if one is asked for, or needed: a round of commits took so many seconds, or others are there.

        A client that commits beside others holds them up if it is stopped, and they see late what a busy one writes.
        Until it has the store open, the thread goes on committing.
        """
        store = self._store
        self._meet()
        if not self._welcome or self.present or self._closing or self._coming or time.monotonic() < self._hirable:
            return
        self._slow = self._slow + 1 if seconds > _BEHIND * store.interval else 0
        if store.config.cold.committer == "helper" or self._slow >= _SLOW or self.late(seconds) or self._in_company():
            self._hire()

    def _in_company(self) -> bool:
        """True if this client has committed again and again for a while beside others."""
        store, now = self._store, time.monotonic()
        if store.committer.commits == self._commits:
            return False
        if not store.control.shared or now - self._committed > _COMPANY:
            self._company = now
        self._commits, self._committed = store.committer.commits, now
        return now - self._company >= _COMPANY

    def late(self, seconds: float) -> bool:
        """True if a round of so many seconds shows by itself that a thread falls behind."""
        return seconds > _LATE * self._store.config.cold.sync_interval

    def _hire(self) -> None:
        store, config, vector = self._store, self._store.config, self._store.config.vector
        orders = Orders(
            os.fsencode(store.root),
            store.clock.domain,
            config.cold,
            config.codec,
            vector.engine if isinstance(vector.engine, str) else "faiss",
            vector.index,
            vector.m,
            vector.ef_construction,
            vector.metric,
            vector.seal_rows,
        )
        now = time.monotonic()
        self._hirable = now + self._rest
        self._rest = min(_LONGEST_REST, 2 * self._rest)
        self._patience = now + _PATIENCE
        with (store.root / LOG).open("wb") as log:
            try:
                self._coming = Child("tiermem.engine.helper", msgspec.json.encode(orders) + b"\n", log.fileno())
            except OSError as exc:
                store.degraded["helper"] = f"no helper process came up: {exc}"

    def _meet(self) -> None:
        """See whether the helper that was hired has come up, or never will."""
        child = self._coming
        if child is None:
            return
        said = child.heard()
        if said is None and time.monotonic() < self._patience:
            return
        self.dismiss()
        # Another client's may be on its way.
        if self.look() or holder(self._path):
            self._store.degraded.pop("helper", None)
        else:
            self._store.degraded["helper"] = f"no helper process came up{_last_words(self._store.root / LOG)}"

    def dismiss(self) -> None:
        """Wait no more for the one that was hired."""
        child, self._coming = self._coming, None
        if child is not None:
            # It has only made the helper, so that nobody's child it is.
            child.end()


def wishes(root: Path, slot: int) -> Path:
    """Where a client names the namespaces that it has searched, and from how many unsealed rows they want sealing."""
    return root / "clients" / f"{slot:03d}.wishes"


def wish(name: str, rows: int) -> bytes:
    """That a namespace be sealed from so many unsealed rows on, as it is written there."""
    return f"{rows} {name}\0".encode()


def wished(data: bytes) -> Iterator[tuple[str, int]]:
    """The wishes in a file; one that was torn by a client that was killed is left out: it is named again."""
    for one in data.decode(errors="replace").split("\0")[:-1]:
        rows, _, name = one.partition(" ")
        if name and rows.isascii() and rows.isdigit() and len(rows) < 10:
            yield name, int(rows)


def _stopped(process: int) -> bool:
    """True if a process was stopped by a signal or a debugger; False where that cannot be known."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] in ("T", "t")


def _last_words(log: Path) -> str:
    """The last line a helper has written, behind a colon; empty if it wrote none."""
    with suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        return next((f": {line.strip()}" for line in reversed(lines) if line.strip()), "")
    return ""
