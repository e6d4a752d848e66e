"""Opening and closing: making a store, finding the live generation, replaying journals, forks, exit."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from pathlib import Path
from typing import Any, Final

from tiermem.config import Config
from tiermem.engine import generations, verification
from tiermem.engine.store import Store
from tiermem.errors import (
    ClosedError,
    ConfigMismatch,
    CorruptionError,
    IncompatibleFormatError,
    InvalidArgument,
    TiermemError,
    TimeDomainMismatch,
    file_error,
)
from tiermem.protocols import Clock, Embedder
from tiermem.tiers.cold import ColdEnv, Writer
from tiermem.tiers.cold.layout import STORE_FORMAT, Identity, State, pack_row
from tiermem.tiers.cold.snapshot import marked
from tiermem.tiers.control import Control
from tiermem.tiers.filelock import exclusive

OPEN_TIMEOUT: Final = 30.0
"""Seconds to wait for another process that is opening or compacting the same store."""

UNFINISHED: Final = "UNFINISHED"
"""A file that stands in a backup until it is whole."""

_registry: dict[tuple[int, int], Store] = {}
"""Open stores of this process by device and inode of their directory: LMDB allows one environment each."""
_registry_lock = threading.Lock()


def acquire(
    path: str | os.PathLike[str],
    config: Config | None,
    clock: Clock | None,
    embedder: Embedder | None,
    read_only: bool,
    verify: bool,
    repair: bool,
) -> Store:
    """The store at `path`, opened, or shared with the handle that has it open in this process."""
    _check_arguments(config, clock, embedder)
    root = generations.as_path(path)
    with _registry_lock:
        try:
            _prepare(root, read_only)
            place = root.stat()
        except OSError as exc:
            raise file_error(exc)(f"{root} cannot be opened: {exc}") from exc
        known = _registry.get((place.st_dev, place.st_ino))
        if known is not None:
            _compatible(known, config, clock, embedder, read_only)
            known.users += 1
            return known
        store = Store(root.resolve(), config or Config(), clock, embedder, read_only)
        try:
            if repair and not read_only:
                verification.outlast_helper(root)
            _open(store, verify=verify, repair=repair)
        except TiermemError:
            # Of which one is an OSError as well: a lock that was not granted in time.
            raise
        except OSError as exc:
            raise file_error(exc)(f"{root} cannot be opened: {exc}") from exc
        store.users = 1
        if not read_only:
            store.rounds.start()
        _registry[place.st_dev, place.st_ino] = store
        return store


def _check_arguments(config: object, clock: object, embedder: object) -> None:
    if config is not None and not isinstance(config, Config):
        raise InvalidArgument(f"config is a tiermem.Config, not {type(config).__name__}")
    if clock is not None and (isinstance(clock, type) or getattr(clock, "domain", "") not in ("real", "simulated")):
        raise InvalidArgument("clock is an object with now() and a domain, as tiermem.SimulatedClock(start)")
    if embedder is not None and (
        isinstance(embedder, type)
        or not isinstance(getattr(embedder, "model", None), str)
        or not isinstance(getattr(embedder, "dimension", None), int)
        or not callable(getattr(embedder, "embed", None))
    ):
        raise InvalidArgument("embedder is an object with model, dimension and embed(texts)")


def release(store: Store) -> None:
    """One handle less; the last one commits what is pending and closes."""
    with _registry_lock:
        store.users -= 1
        if store.users > 0 or store.closed:
            return
        for place in [place for place, known in _registry.items() if known is store]:
            del _registry[place]
        _close(store)


def _compatible(
    store: Store, config: Config | None, clock: Clock | None, embedder: Embedder | None, read_only: bool
) -> None:
    """A second handle in one process shares the first's tiers, so it cannot ask for others."""
    for name, wanted, present in (
        ("config", config, store.config),
        ("embedder", embedder, store.embedder),
    ):
        if wanted is not None and wanted != present:
            raise ConfigMismatch(f"{store.root} is open in this process with another {name}")
    if clock is not None and clock is not store.clock and clock.domain + store.clock.domain != "realreal":
        raise ConfigMismatch(f"{store.root} is open in this process with another clock")
    if store.read_only and not read_only:
        raise ConfigMismatch(f"{store.root} is open read-only in this process; close that handle first")


def _prepare(root: Path, read_only: bool) -> None:
    if root.exists() and not root.is_dir():
        raise IncompatibleFormatError(f"{root} is a file, not the directory of a store")
    if (root / UNFINISHED).exists():
        raise IncompatibleFormatError(f"{root} holds a backup that was interrupted; remove it and make it again")
    if read_only:
        if not (root / "CURRENT").exists():
            raise IncompatibleFormatError(f"{root} holds no store, and read_only makes none")
        return
    generations.make_folder(root)
    if not (root / "CURRENT").exists():
        foreign = [
            name
            for name in os.listdir(root)
            if name not in ("open.lock", "CURRENT.new", "gen-1", "journals", "clients")
        ]
        # Asked again: another process may have made the store since.
        if foreign and not (root / "CURRENT").exists():
            raise IncompatibleFormatError(
                f"{root} is not empty and holds no store (found {min(foreign)!r}); give a directory of its own"
            )
    for name in ("journals", "clients"):
        (root / name).mkdir(exist_ok=True)


def _open(store: Store, *, verify: bool = False, repair: bool = False, forked: bool = False) -> None:
    root = store.root
    with contextlib.ExitStack() as undo:
        if not store.read_only or os.access(root / "open.lock", os.W_OK):
            undo.enter_context(exclusive(root / "open.lock", OPEN_TIMEOUT))
        made = not (root / "CURRENT").exists()
        if made:
            _create(store)
        generation = generations.current(root)
        store.control = Control(root, read_only=store.read_only)
        undo_control = undo.enter_context(contextlib.ExitStack())
        undo_control.callback(store.control.close)
        if not (made or forked):
            generation = _look_at(store, generation, verify=verify, repair=repair)
        cold = generations.connect(root, generation, store.config.cold, read_only=store.read_only)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(cold.close)
            if not (made or forked or verify or repair) and verification.doubted(store.control, cold):
                # Before anything is read: what leads to the wrong place may end this process.
                verification.verify_pages(cold.path)
            identity = _identity(cold)
            while identity.moved_to:
                # A compaction had committed its move and died, or failed, before saying so.
                on_failure.pop_all().close()
                generation = identity.moved_to
                if not store.read_only:
                    generations.publish(root, generation)
                cold = generations.connect(root, generation, store.config.cold, read_only=store.read_only)
                on_failure.callback(cold.close)
                identity = _identity(cold)
            if identity.format > STORE_FORMAT:
                raise IncompatibleFormatError(
                    f"{root} has store format {identity.format}; this version reads up to {STORE_FORMAT}"
                )
            store.cold, store.generation, store.store_id = cold, generation, identity.store_id
            _check_time(store, identity)
            if not store.read_only:
                store.slot = store.control.claim()
                store.handover.withdraw()
                if store.control.generation < generation:
                    store.control.publish(0, generation)
                generations.remove_old(root, generation)
            if repair and not store.read_only:
                store.degraded.update((f"repair {lost}", lost) for lost in set_aside(store))
            _settle_in(store)
            on_failure.pop_all()
            undo_control.pop_all()
    for attach in (ref() for ref in store.reopened):
        if attach is not None:
            attach()


def _identity(cold: ColdEnv) -> Identity:
    with cold.read() as snapshot:
        return snapshot.identity()


def _look_at(store: Store, generation: int, *, verify: bool, repair: bool) -> int:
    """Walk the pages of the generation about to be opened where that is asked for; which one to open.

    With `repair` a damaged one is replaced by what can be saved of it.
    """
    folder = store.root / f"gen-{generation}"
    # Beside others nothing can be repaired, nor is there a need: what they have open, they have looked at.
    repair = repair and not store.read_only and not store.control.live()
    if not (verify or repair):
        return generation
    try:
        verification.verify_pages(folder)
    except CorruptionError as exc:
        if not repair:
            raise
        from tiermem.engine import mending

        fresh, lost = mending.salvage(store, generation)
        store.degraded.update((f"repair {what}", what) for what in (str(exc), *lost))
        return fresh
    return generation


def set_aside(store: Store) -> list[str]:
    """Rename the journals of other clients that cannot be replayed, forget missing ones; what was lost with each."""
    lost: list[str] = []
    with store.cold.read() as snapshot:
        gone = marked(snapshot)
    own = store.journal
    set_aside_now: set[int] = set()
    for path in store.journals.paths():
        slot = int(path.stem)
        gone.discard(slot)
        if own is not None and slot == store.slot:
            continue
        try:
            store.journals.unapplied(path)
        except TiermemError as exc:
            aside = path.with_suffix(".damaged")
            path.rename(aside)
            set_aside_now.add(slot)
            lost.append(f"journal set aside as {aside.name}: {exc}")
    lost.extend(f"journal {slot:03d} is missing" for slot in gone - set_aside_now)

    def forget(writer: Writer) -> None:
        for slot in gone | set_aside_now:
            writer.set_mark(slot, None)
        writer.finish()

    if gone or set_aside_now:
        store.committer.leave(forget)
    return lost


def _settle_in(store: Store) -> None:
    """Replay every journal and start from the newest commit."""
    store.control.missed[0] = 0
    with store.cold.read() as snapshot:
        verification.check_announced(store.control, snapshot)
        state = snapshot.state()
        for number, data in snapshot.dictionaries():
            store.compressor.add(number, data)
        store.seen_stamp = snapshot.stamp
    store.seen_sequence = state.next_sequence
    store.observe(state.highest)
    if store.read_only:
        store.follower.overlay()
    else:
        store.control.publish_time(store.clock.now())
        store.cold.clear_stale_readers()
        store.committer.replay()


def _create(store: Store) -> None:
    root = store.root
    folder = root / "gen-1"
    folder.mkdir(exist_ok=True)
    for name in ("data.mdb", "lock.mdb"):
        # What an interrupted creation left behind was never the live generation.
        (folder / name).unlink(missing_ok=True)
    cold = ColdEnv(root, 1, store.config.cold, create=True)
    try:
        with cold.write() as txn:
            identity = Identity(STORE_FORMAT, os.urandom(16), store.clock.domain)
            txn.put(b"identity", pack_row(b"identity", identity), db=cold.dbs.meta)
            txn.put(b"state", State().pack(), db=cold.dbs.meta)
    finally:
        cold.close()
    # Whoever made the directory may have died before its name was durable. One that cannot be read is its owner's care.
    with contextlib.suppress(PermissionError):
        generations.sync_folder(root.parent)
    generations.publish(root, 1)


def _check_time(store: Store, identity: Identity) -> None:
    domain = store.clock.domain
    if identity.time_domain == domain:
        return
    if store.config.time_domain != domain or store.read_only:
        raise TimeDomainMismatch(
            f"{store.root} goes by {identity.time_domain} time, the clock given is {domain}; "
            f"Config(time_domain={domain!r}) converts the store"
        )
    identity.time_domain = domain
    with store.cold.write() as txn:
        txn.put(b"identity", pack_row(b"identity", identity), db=store.cold.dbs.meta)


def _close(store: Store) -> None:
    failure: TiermemError | None = None
    store.stop_sealing()
    if not store.read_only:
        try:
            store.committer.drain()
        except TiermemError as exc:
            # What could not be committed stays in the journal and is replayed by the next opening.
            failure = exc
    store.closed = True
    store.rounds.stop()
    with store.commit_lock, store.lock:
        store.hot.close(_after_close)
        store.handover.close()
        if store.journal is not None:
            if store.journal.wiped != store.control.generation:
                # Somebody erased something, and this client did nothing since.
                store.journal.wipe(store.control.generation)
            store.journal.close()
            store.journal = None
    if not store.read_only:
        verification.note_close(store)
    store.cold.close()
    store.control.close()
    if failure is not None:
        raise failure


def _after_close(table: Any, key: str) -> Any:
    raise ClosedError("the store was closed")


def _close_all() -> None:
    for store in list(_registry.values()):
        store.users = 1
        release(store)


# A fork copies locks as they stand, and maps and transactions that belong to the parent. So the forking
# thread takes every lock first and closes LMDB; parent and child each open it again for themselves.


def _before_fork() -> None:
    _registry_lock.acquire()
    for store in _registry.values():
        store.commit_lock.acquire()
        # Before `lock`, which a reader may need to end.
        store.cold.pause()
        store.lock.acquire()


def _after_fork_in_parent() -> None:
    left = []  # those whose environment another process has compacted, and removed, meanwhile
    for store in _registry.values():
        try:
            store.cold.resume()
        except (TiermemError, OSError):
            left.append(store)
        finally:
            store.lock.release()
            store.commit_lock.release()
    _registry_lock.release()
    for store in left:
        try:
            store.move_to(generations.current(store.root))
        except (TiermemError, OSError) as exc:
            store.degraded["fork"] = f"L3 could not be opened again after a fork: {exc}"
            store.cold.close()


def _after_fork_in_child() -> None:
    _registry_lock.release()
    for place, store in list(_registry.items()):
        try:
            store.after_fork()
            _open(store, forked=True)
            if not store.read_only:
                store.rounds.start()
        except (TiermemError, OSError):
            # Every later call says ClosedError: better than a child that dies in a hook.
            del _registry[place]
            store.closed = True
            store.hot.close(_after_close)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
atexit.register(_close_all)
