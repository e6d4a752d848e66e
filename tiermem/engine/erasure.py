"""Secure erase: what was deleted from a namespace leaves every file of the store."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tiermem.codec.compress import Compressor
from tiermem.engine import relocate
from tiermem.engine.upkeep import Upkeep
from tiermem.errors import TiermemError
from tiermem.tiers.cold import ColdEnv
from tiermem.tiers.cold.scrub import Scrub
from tiermem.tiers.filelock import exclusive
from tiermem.tiers.journal import Journal

if TYPE_CHECKING:
    from tiermem.engine.store import Store
    from tiermem.tiers.cold import Writer


def erase(store: Store, name: str) -> None:
    """Rewrite what may still hold values, metadata and vectors that were deleted from a namespace.

    Segments of the namespace are made anew, L3 goes row by row into a new generation without free pages, its
    dictionaries are trained anew on what is left, and journals are wiped: this client's and those of clients that
    have ended now, those of living ones as soon as they move to the new generation.
    """
    # Not only flushed: what dead clients left behind their heads is applied too, before it is wiped.
    store.committer.replay()
    store.committer.upkeep.run()
    if (store.root / "segments").is_dir():
        store.sealer.build(name)
        store.sealer.sweep()
    trained: dict[int, bytes] = {}

    def fill(writer: Writer, generation: int) -> None:
        fresh = ColdEnv(store.root, generation, store.config.cold, create=True)
        try:
            # A compressor of its own: a number counts only once the move is committed.
            scrub = Scrub(writer, fresh, frozenset((name,)), Compressor(store.config.codec))
            scrub.run()
            trained.update(scrub.trained)
        finally:
            fresh.close()

    relocate.move(store, fill)
    for number, data in trained.items():
        store.compressor.add(number, data)
    # It has samples of values, and would train the next dictionary on them.
    store.committer.upkeep = Upkeep(store)
    _wipe_journals(store)


def _wipe_journals(store: Store) -> None:
    store.committer.drain()
    with store.lock:
        own = store.journal
        if own is not None:
            own.wipe(store.generation)
    if own is not None:
        own.flush()
    # While the lock is held nobody takes the slot of a client that has ended, nor its journal.
    with exclusive(store.root / "open.lock", relocate.PATIENCE):
        live = store.control.live()
        for path in (store.root / "clients").glob("*.request"):
            # What a client that was killed had asked; a living one withdraws it by itself.
            if int(path.stem) not in live:
                os.truncate(path, 0)
        for path in store.journals.paths():
            slot = int(path.stem)
            if slot in live:
                continue
            try:
                journal = Journal(path, writable=True)
                with store.cold.read() as snapshot:
                    journal.applied = snapshot.applied(slot, journal.id, journal.head)
            except TiermemError:
                # Damaged, or not in service: it says so wherever it is asked.
                continue
            journal.wipe(store.generation)
            journal.flush()
            journal.close()
