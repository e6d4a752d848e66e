"""The helper: a process that commits what all clients of a store have journaled, and does its upkeep.

A writer that never waits keeps the interpreter to itself, and a thread beside it gets little done. The helper
reads the journals from outside. There is one a store, elected by a file lock; it is a client that never writes,
and leaves when it is the last. Whatever befalls it, the journals stand, and any client can commit them.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from tiermem.config import Config, VectorConfig
from tiermem.engine import opening
from tiermem.engine.assistant import LOCK, LOG, READY, Orders, wished
from tiermem.engine.processes import drop_inherited
from tiermem.engine.scheduling import ordinary, prompt, realtime
from tiermem.errors import LockTimeout, StorageError
from tiermem.tiers.control import HASTE as HASTE_WORD
from tiermem.tiers.filelock import exclusive, hold

if TYPE_CHECKING:
    from tiermem.engine.store import Store

SLICE: Final = 0.005
"""Seconds of work in one commit: another client that commits waits no longer."""
HASTE: Final = 256 * 2**10
"""Bytes behind from which the next commit follows at once; below, a commit gathers what a pause brings."""
FLOOD: Final = 2**20
FLOOD_SLICE: Final = 0.015
"""Bytes behind from which a commit takes so many seconds: fsyncs would take a quarter of the time."""
BREATH: Final = 0.0001
"""Seconds between two commits in haste, in which others get the write lock."""
GLANCE: Final = 0.25
"""Seconds between looks at what clients wish for."""
IDLE: Final = 1.0
"""Seconds between looks at what expired, and who is left, while nothing is written."""


class Endless:
    """The clock of one who holds nothing back: sweeps go by the slowest of the clients' clocks."""

    def __init__(self, domain: str) -> None:
        self.domain = domain

    def now(self) -> float:
        """Later than everything."""
        return math.inf


class Helper:
    """Commits until it is the last client."""

    def __init__(self, store: Store, lock: int) -> None:
        self._store = store
        self._lock = lock
        self._ended = threading.Event()
        self._failed: list[BaseException] = []
        self._urgent = False

    def run(self) -> None:
        """Commit what is journaled, in short transactions, and sleep while nothing is.

        Raises:
            TiermemError, OSError: it cannot go on; clients do without it, and meet the same.
        """
        # To train a dictionary takes longer than a journal takes to fill.
        tending = threading.Thread(target=self._tend, name="tiermem-upkeep")
        tending.start()
        try:
            prompt()
            self._commit()
        finally:
            self._ended.set()
            tending.join()
        if self._failed:
            raise self._failed[0]

    def _rank(self, behind: int) -> None:
        """A commit sleeps in each sync; where loops spin on all cores, it goes on when the system lets it.

        Who is far behind is prompt no more, and leaves others a share of each core.
        """
        wanted = self._store.config.cold.realtime
        urgent = behind <= HASTE if wanted is None else wanted
        if urgent != self._urgent:
            self._urgent = urgent
            # Clients see whether it runs so.
            with suppress(OSError):
                (realtime if urgent else ordinary)()
                if not urgent:
                    prompt()

    def _tend(self) -> None:
        try:
            while not self._ended.wait(GLANCE):
                self._grant()
                self._store.committer.upkeep.run_if_due()
        except BaseException as exc:
            self._failed.append(exc)
            raise

    def _grant(self) -> None:
        """See to the namespaces that clients have named."""
        store = self._store
        for path in sorted((store.root / "clients").glob("*.wishes")):
            taken = path.with_suffix(".granted")
            with suppress(FileNotFoundError):
                path.rename(taken)
                for name, rows in wished(taken.read_bytes()):
                    store.sealer.wake(name, rows)
                taken.unlink()

    def _commit(self) -> None:
        store, control = self._store, self._store.control
        rested = True
        while not self._failed:
            if control.generation > store.generation:
                # What was left is on the disk as long as anybody has it open.
                store.move_to(control.generation)
            # Before it is looked: whoever is in haste from here on may not be seen.
            control.words[HASTE_WORD] = 0
            if store.handover.serve():
                rested = False
                continue
            behind = store.journals.behind()
            self._rank(behind)
            if behind:
                store.committer.commit(others=True, budget=SLICE if behind < FLOOD else FLOOD_SLICE)
                if behind > HASTE:
                    time.sleep(BREATH)
                else:
                    store.rounds.gather(self._nap)
            elif not rested:
                # Who has written while this went on may not have rung.
                store.rounds.gather(self._nap)
            elif self._left_alone():
                return
            else:
                control.doze(lambda: any(control.asking) or store.journals.behind() > 0, IDLE)
            rested = not behind

    def _nap(self, seconds: float) -> bool:
        """Sleep so long at most; True if somebody is in haste."""
        control = self._store.control
        control.doze(lambda: control.words[HASTE_WORD] != 0, seconds, pausing=True)
        return control.words[HASTE_WORD] != 0

    def _left_alone(self) -> bool:
        """True if there is no other client, and whoever comes finds no helper."""
        store = self._store
        try:
            store.check_place()
        except StorageError:
            return True
        if store.control.live() != [store.slot]:
            return False
        # Who opens the store looks for a helper afterwards: it counts here already, or finds none.
        with suppress(LockTimeout), exclusive(store.root / "open.lock", 0.0):
            if store.control.live() == [store.slot]:
                store.control.helper = -1
                (store.root / LOG).unlink(missing_ok=True)
                os.close(self._lock)
                return True
        return False


def main() -> int:
    """Be the helper of the store named on standard input, unless there is one; say when it is ready."""
    drop_inherited()
    orders = msgspec.json.decode(sys.stdin.buffer.readline(), type=Orders)
    if os.fork():
        # Nobody's child, it needs nobody to wait for it.
        os._exit(0)
    # Keys that interrupt the client do not reach it; the session stays the client's, and the system divides the cores
    # between sessions first.
    os.setpgid(0, 0)
    root = Path(os.fsdecode(orders.root))
    os.chdir(root)
    lock = hold(root / LOCK)
    if lock < 0:
        return 0
    config = Config(
        vector=VectorConfig(
            engine=orders.engine,
            index=orders.index,
            m=orders.m,
            ef_construction=orders.ef_construction,
            metric=orders.metric,
            seal_rows=orders.seal_rows,
        ),
        cold=replace(orders.cold, committer="inline"),
        codec=orders.codec,
    )
    store = opening.acquire(root, config, Endless(orders.domain), None, False, False, False)
    store.control.helper = store.slot
    with suppress(BrokenPipeError):
        # Whoever asked for it may have gone; there may be others.
        os.write(1, READY)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):
        os.dup2(nowhere, stream)
    Helper(store, lock).run()
    opening.release(store)
    return 0


if __name__ == "__main__":
    sys.exit(main())
