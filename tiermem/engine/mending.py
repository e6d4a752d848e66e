"""Mending: L3 in a new generation, from what is intact of one that LMDB cannot walk."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Final

from tiermem.codec.serialize import decode
from tiermem.engine import generations
from tiermem.errors import CorruptionError, TiermemError
from tiermem.tiers.cold import ColdEnv
from tiermem.tiers.cold.layout import STORE_FORMAT, Identity, unpack_identity
from tiermem.tiers.cold.pages import PageFile
from tiermem.tiers.cold.rebuild import Rebuild
from tiermem.tiers.cold.salvage import Salvage
from tiermem.tiers.filelock import exclusive
from tiermem.tiers.journal import Journal

if TYPE_CHECKING:
    from tiermem.codec.frame import Frame
    from tiermem.engine.store import Store
    from tiermem.tiers.cold import Snapshot, Writer

ELSEWHERE: Final = "to repair it, close the store elsewhere"
PATIENCE: Final = 30.0
"""Seconds to wait for another process that is opening or compacting the same store."""


def salvage(store: Store, generation: int) -> tuple[int, list[str]]:
    """Make and publish a generation of what is intact in a damaged one: (its number, what was lost).

    The damaged file is kept beside it, as `gen-N.damaged`. The caller holds the store's open lock and knows that
    nobody uses that generation, save perhaps this process, which then moves.
    """
    root, config = store.root, store.config.cold
    raw_number, number = generation + 1, generation + 2
    for each in (raw_number, number):
        shutil.rmtree(root / f"gen-{each}", ignore_errors=True)
        (root / f"gen-{each}").mkdir()
    path = root / f"gen-{generation}" / "data.mdb"
    try:
        file = PageFile(path)
    except OSError as exc:
        raise CorruptionError(f"{path} cannot be read, so nothing can be saved of it: {exc}") from exc
    # First the rows as they are, then all that is derived from them.
    raw = ColdEnv(root, raw_number, config, create=True)
    try:
        with file:
            found = Salvage(file)
            found.run(raw)
        fresh = ColdEnv(root, number, config, create=True)
        try:
            with raw.read() as snapshot:
                for known, data in snapshot.dictionaries():
                    store.compressor.add(known, data)
                identity, lost = _identity(store, snapshot)

                def readable(frame: Frame) -> None:
                    decode(store.compressor.decompress(frame.codec, frame.dictionary, frame.body, frame.value_bytes))

                work = Rebuild(snapshot, fresh, readable)
                work.run(identity)
        finally:
            fresh.close()
    finally:
        raw.close()
    generations.publish(root, number)
    kept = generations.keep_damaged(root, generation)
    generations.remove_old(root, number)
    return number, [*found.lost, *lost, *work.lost, f"the damaged file is kept in {kept.name}"]


def salvage_open(store: Store) -> list[str]:
    """`salvage` of the generation this process has open; what was lost.

    Raises:
        CorruptionError: other processes have the store open too.
    """
    with store.move_lock, exclusive(store.root / "open.lock", PATIENCE):
        if store.control.live() != [store.slot]:
            raise CorruptionError(f"{store.cold.path / 'data.mdb'} is damaged; {ELSEWHERE}")
        with store.commit_lock:
            number, lost = salvage(store, store.generation)
            store.control.publish(0, number)
            store.move_to(number)
            with store.cold.read() as snapshot:
                state, stamp = snapshot.state(), snapshot.stamp
            with store.lock:
                # What L1 and the indexes hold may be among what was lost.
                store.hot.clear()
                for space in store.spaces.values():
                    space.forget()
                store.seen_sequence, store.seen_stamp = state.next_sequence, max(stamp, store.seen_stamp)
                store.observe(state.highest)
        journal = store.journal
        if journal is not None:

            def place(writer: Writer) -> None:
                # Of its own journal this process knows what was applied, whatever was lost.
                writer.set_mark(store.slot, journal.id, journal.applied)
                writer.finish()

            store.committer.leave(place)
    return lost


def _identity(store: Store, snapshot: Snapshot) -> tuple[Identity, list[str]]:
    row = snapshot.txn.get(b"identity", db=snapshot.dbs.meta)
    if row is not None:
        identity = unpack_identity(row)
        identity.moved_to = 0
        return identity, []
    store_id = b""
    for path in store.journals.paths():
        try:
            journal = Journal(path, writable=False)
        except TiermemError:
            continue
        store_id = store_id or journal.store_id
        journal.close()
    lost = ["the identity of the store is lost: its time is taken to be that of the clock given"]
    return Identity(STORE_FORMAT, store_id if any(store_id) else os.urandom(16), store.clock.domain), lost
