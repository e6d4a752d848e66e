"""Compaction, rebuilding and backup: L3 in a new environment, the old one left or kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tiermem.codec.frame import Frame
from tiermem.codec.serialize import decode
from tiermem.engine import generations, opening, segments, verification
from tiermem.errors import InvalidArgument, TiermemError, file_error
from tiermem.tiers.cold import ColdEnv
from tiermem.tiers.cold.layout import pack_row
from tiermem.tiers.cold.rebuild import Rebuild
from tiermem.tiers.cold.repack import repack, worth_repacking
from tiermem.tiers.control import Control
from tiermem.tiers.filelock import exclusive

if TYPE_CHECKING:
    from tiermem.engine.store import Store
    from tiermem.tiers.cold import Writer

PATIENCE: Final = opening.OPEN_TIMEOUT


def compact(store: Store) -> int:
    """Rewrite L3 without its free pages, and without gaps in the others if there are many; the bytes gained."""
    store.handover.flush()
    store.committer.upkeep.run()
    folder = store.root / "segments"
    before = _bytes(store)
    with _dressed(f"{store.root} cannot be compacted"):
        if folder.is_dir():
            segments.tidy(store)
        with store.cold.read() as snapshot:
            sparse = worth_repacking(snapshot)

        def fill(writer: Writer, generation: int) -> None:
            if not sparse:
                # The copy is of the last commit: what its transaction would have drained is drained again there.
                store.cold.copy(store.root / f"gen-{generation}")
                return
            fresh = ColdEnv(store.root, generation, store.config.cold, create=True)
            try:
                repack(writer, fresh)
            finally:
                fresh.close()

        move(store, fill)
    return before - _bytes(store)


def _bytes(store: Store) -> int:
    """Bytes of L3 and the segments on disk."""
    while True:
        generation = store.generation
        try:
            return (store.cold.path / "data.mdb").stat().st_size + segments.file_bytes(store.root / "segments")
        except FileNotFoundError:
            # Another process has compacted since, and removed what was left.
            store.move_to(generations.current(store.root))
            if store.generation == generation:
                raise


def rebuild(store: Store) -> list[str]:
    """Derive L3 anew from its intact records; what was lost. Journals that cannot be read are set aside."""
    lost = opening.set_aside(store)
    store.handover.flush()

    def fill(writer: Writer, generation: int) -> None:
        fresh = ColdEnv(store.root, generation, store.config.cold, create=True)

        def readable(frame: Frame) -> None:
            decode(store.loader.expand(frame.codec, frame.dictionary, frame.body, frame.value_bytes))

        try:
            work = Rebuild(writer, fresh, readable)
            work.run(writer.identity())
            lost.extend(work.lost)
        finally:
            fresh.close()

    with _dressed(f"{store.root} cannot be rebuilt"):
        move(store, fill)
    return lost


@contextmanager
def _dressed(what: str) -> Iterator[None]:
    """An error of the file system inside is one of ours, and begins with `what`."""
    try:
        yield
    except TiermemError:
        # Of which one is an OSError as well: a lock that was not granted in time.
        raise
    except OSError as exc:
        raise file_error(exc)(f"{what}: {exc}") from exc


def move(store: Store, fill: Callable[[Writer, int], None]) -> None:
    """Make the next generation by `fill` and leave the present one for it.

    The old environment is marked as left in the transaction that held off every other writer, so no
    write can be lost to it; processes that still have it open move when they next write or look.
    """
    with store.move_lock, exclusive(store.root / "open.lock", PATIENCE):
        generation = 0
        folder = store.root

        def leave(writer: Writer) -> None:
            # Another process may have moved on meanwhile: the transaction says where the store is.
            nonlocal generation, folder
            generation = writer.env.generation + 1
            folder = store.root / f"gen-{generation}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            fill(writer, generation)
            identity = writer.identity()
            identity.moved_to = generation
            writer.txn.put(b"identity", pack_row(b"identity", identity), db=writer.dbs.meta)
            generations.sync_folder(folder)
            generations.sync_folder(store.root)

        try:
            store.committer.leave(leave)
        except BaseException:
            if folder != store.root and not _perhaps_left(store, generation):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        generations.publish(store.root, generation)
        store.control.publish(0, generation)
        store.move_to(generation)
        generations.remove_old(store.root, generation)
    store.handover.flush()


def _perhaps_left(store: Store, generation: int) -> bool:
    """Whether the present environment says that it was left, or cannot be asked: a commit that failed may stand.

    What is kept in vain the next opening removes.
    """
    try:
        with store.cold.read() as snapshot:
            return snapshot.identity().moved_to == generation
    except TiermemError:
        return True


def backup(store: Store, target: str | os.PathLike[str]) -> Path:
    """A store of its own at `target` that equals this one at one moment; its path.

    Every journal is drained first. The copy takes a new identity, so that journals of this store can
    never be replayed into it.
    """
    root = generations.as_path(target)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise InvalidArgument(f"{root} exists and is not an empty directory")
    if not store.read_only:
        store.handover.flush()
    with _dressed(f"backup to {root} failed"):
        generations.make_folder(root)
        (root / opening.UNFINISHED).touch()
        folder = root / "gen-1"
        folder.mkdir()
        with segments.held(store) as files:
            store.cold.copy(folder)
            files.take(store.root / "segments")
            for name in ("journals", "clients", "segments"):
                (root / name).mkdir()
            files.write(root / "segments")
    copy = ColdEnv(root, 1, store.config.cold)
    try:
        with copy.read() as snapshot:
            identity = snapshot.identity()
            marks = [key for key, _ in snapshot.rows(snapshot.dbs.marks)]
        identity.store_id = os.urandom(16)
        identity.moved_to = 0
        with copy.write() as txn:
            txn.put(b"identity", pack_row(b"identity", identity), db=copy.dbs.meta)
            for mark in marks:
                txn.delete(mark, db=copy.dbs.marks)
        segments.verify_copies(store, copy, root / "segments")
    finally:
        copy.close()
    with _dressed(f"backup to {root} failed"):
        generations.publish(root, 1)
        control = Control(root)
        verification.note_copy(control, folder, 1)
        control.close()
        (root / opening.UNFINISHED).unlink()
        generations.sync_folder(root)
    return root
