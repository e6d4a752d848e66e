"""The committer: drains journals into L3, one transaction a batch, inline or in a thread."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tiermem.codec.operation import Operation, unpack_operations
from tiermem.engine.transaction import Transaction
from tiermem.engine.upkeep import Upkeep
from tiermem.errors import CorruptionError, IncompatibleFormatError, StorageError, TiermemError
from tiermem.tiers.cold import Writer, sealed
from tiermem.tiers.cold.snapshot import marked
from tiermem.tiers.journal import Journal

if TYPE_CHECKING:
    from tiermem.engine.store import Decision, Store

SLICE: Final = 0.002
"""Seconds of work in one background commit: the write lock is held no longer."""
ROOM_SLICE: Final = 0.004
"""The same where a writer waits for room in the journal and does the work itself."""
IDLE: Final = 1.0
"""Seconds between looks at what expired while nothing is written."""
RETRY: Final = 0.5
WRAPS: Final = 20
"""Tries at reading a journal that its owner keeps going round."""


class Committer:
    """Moves what was journaled into L3. `roused` is False while a writer must call `rouse`."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.roused = False
        self.commits = 0
        self.committed = 0
        self.superseded = 0
        self.last_seconds = 0.0
        self.upkeep = Upkeep(store)
        self._foreign: dict[Path, tuple[int, Journal]] = {}
        self._turnstile = threading.Lock()
        self._group = threading.Condition()
        self._led = False
        self._thread: threading.Thread | None = None
        self._event = threading.Event()
        self._hurry = threading.Event()
        self._stop = False
        self._due = 0.0

    @property
    def home(self) -> str:
        """Where commits are made: "inline" or "thread"."""
        return "inline" if self.store.config.cold.committer == "inline" else "thread"

    def rouse(self) -> None:
        """Something was journaled: see to it that it is committed within `sync_interval`."""
        if self.home == "inline":
            now = time.monotonic()
            if not self._due:
                self._due = now + self.store.config.cold.sync_interval
            elif now >= self._due:
                self._due = 0.0
                self._work()
            return
        self.roused = True
        self._event.set()

    def start(self) -> None:
        """Start the background thread, unless commits are made inline.

        It also looks after what other clients leave behind and what expires while nothing is written.
        """
        if self.home == "thread" and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="tiermem-committer", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        pause = self.store.config.cold.sync_interval / 2
        while not self._stop:
            if self._event.wait(IDLE):
                self._hurry.wait(pause)
            if self._stop:
                return
            self._event.clear()
            self._hurry.clear()
            self.roused = False
            if not self._work() and not self._stop:
                self.roused = True
                self._hurry.wait(RETRY)
                self._event.set()

    def _work(self) -> bool:
        """Commit and keep up; False if that failed. The write that caused it was acknowledged before."""
        store = self.store
        try:
            self.drain()
            self.upkeep.run_if_due()
        except (TiermemError, OSError) as exc:
            if not store.closed:
                # Nothing is lost: it stays journaled, is shown in `stats()`, and is tried again.
                store.degraded["committer"] = f"the last commit failed: {exc}"
            return False
        return True

    def drain(self) -> None:
        """Commit, slice by slice, everything this process had journaled when called.

        One thread commits for all that wait here: what they journal during its fsync is in the next transaction.
        """
        journal = self.store.journal
        if journal is None:
            return
        head = journal.head
        while journal.applied < head:
            leads = False
            try:
                with self._group:
                    while self._led and journal.applied < head:
                        self._group.wait()
                    if journal.applied >= head:
                        return
                    self._led = leads = True
                self.commit()
            finally:
                if leads:
                    with self._group:
                        self._led = False
                        self._group.notify_all()

    def make_room(self, need: int) -> None:
        """Commit until `need` bytes fit into the journal; the writer that found it full does the work."""
        journal = self.store.journal
        if journal is None:
            return
        # A frame may leave as much unused at the end of the ring as it takes.
        while journal.capacity - (journal.head - journal.applied) < min(2 * need, journal.capacity):
            self.commit(budget=ROOM_SLICE)

    def flush(self) -> None:
        """Commit what every process had journaled when called."""
        self.commit(everything=True)

    def replay(self) -> None:
        """Commit what clients that have died had journaled, and what the living have."""
        control = self.store.control
        dead = {int(path.stem) for path in control.journals()}.difference(control.live())
        if self.store.journal is None:
            # The journal found in one's own slot is a predecessor's.
            dead.add(self.store.slot)
        self.commit(everything=True, dead=frozenset(dead))

    def commit(
        self,
        *,
        everything: bool = False,
        dead: frozenset[int] = frozenset(),
        decision: Decision | None = None,
        budget: float = SLICE,
        work: Callable[[Writer], None] | None = None,
    ) -> list[int]:
        """One transaction: own journal (for `budget` seconds), with `everything` all others, then the rest.

        Of `dead` slots intact frames behind the head are applied too. `decision` returns what to apply
        once all journals were drained; `work` may do anything. Returns the versions `decision`'s got.
        """
        store = self.store
        if everything:
            # In slices first: the one transaction that must hold all of it stays short.
            self.drain()
        failure: TiermemError | None = None
        versions: list[int] = []
        drafts: Sequence[Any] = ()
        started = time.perf_counter()
        with self._turn(), ExitStack() as stack:
            store.check_writable()
            writer = stack.enter_context(self._transaction())
            mark = 0 if store.journal is None else writer.applied(store.slot, store.journal.id, store.journal.head)
            # From here on: whoever had to wait for the lock has all the more to commit.
            deadline = None if everything else time.perf_counter() + budget
            own, position = self._drain_own(writer, mark, deadline)
            first_other = len(writer.changes)
            if everything:
                self._drain_others(writer, dead)
            if decision is not None:
                try:
                    drafts = decision(writer)
                except TiermemError as exc:
                    # The decision changed nothing; what was drained is still worth committing.
                    failure = exc
            with store.lock:
                store.observe(writer.counters.highest)
                for _, op in drafts:
                    op.version = store.next_version()
            versions = [writer.apply(op, decided=True) for _, op in drafts]
            if work is not None:
                work(writer)
            transaction = writer.finish()
            stack.close()
            self._settle(writer, mark, own, position, first_other, transaction)
            self.last_seconds = time.perf_counter() - started
            store.degraded.pop("committer", None)
        if failure is not None:
            raise failure
        return versions

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Hold the commit lock. A thread that commits again and again lets one that waits go first."""
        with self._turnstile:
            self.store.commit_lock.acquire()
        try:
            yield
        finally:
            self.store.commit_lock.release()

    def _transaction(self) -> Transaction:
        return Transaction(self.store, self.upkeep.sample)

    def _drain_own(self, writer: Writer, mark: int, deadline: float | None) -> tuple[list[tuple[Operation, int]], int]:
        journal = self.store.journal
        own: list[tuple[Operation, int]] = []
        position = mark
        if journal is None:
            return own, position
        for frame in journal.frames(mark):
            own.extend([(op, writer.apply(op)) for op in unpack_operations(frame.payload)])
            position = frame.end
            if deadline is not None and time.perf_counter() > deadline:
                break
        if position != mark:
            writer.set_mark(self.store.slot, journal.id, position)
        return own, position

    def _drain_others(self, writer: Writer, dead: frozenset[int] = frozenset()) -> None:
        store = self.store
        missing = marked(writer)
        for path in store.control.journals():
            slot = int(path.stem)
            missing.discard(slot)
            if store.journal is not None and slot == store.slot:
                continue
            journal = self.foreign(path)
            if journal is None:
                continue
            mark = position = writer.applied(slot, journal.id, journal.head)
            for frame in journal.frames(mark, beyond=slot in dead):
                for op in unpack_operations(frame.payload):
                    writer.apply(op)
                position = frame.end
            if position != mark:
                writer.set_mark(slot, journal.id, position)
        if missing:
            raise CorruptionError(f"journal {min(missing):03d} is missing: writes it held may be lost")

    def foreign(self, path: Path) -> Journal | None:
        """The journal of another client, mapped; None if it is not in service or has gone.

        Raises:
            IncompatibleFormatError: it belongs to another store.
        """
        try:
            inode = os.stat(path).st_ino
        except FileNotFoundError:
            return None
        known = self._foreign.get(path)
        if known is not None and known[0] == inode:
            journal = known[1]
            journal.refresh()
        else:
            journal = Journal(path, writable=False)
            if known is not None:
                known[1].close()
            self._foreign[path] = (inode, journal)
        if journal.id and journal.store_id != self.store.store_id:
            raise IncompatibleFormatError(f"journal {path.name} belongs to another store")
        return journal

    def unapplied(self, path: Path) -> list[Operation]:
        """What another client has journaled and nobody has applied.

        Raises:
            CorruptionError: it cannot be read.
        """
        for _ in range(WRAPS):
            journal = self.foreign(path)
            if journal is None:
                return []
            with self.store.cold.read() as snapshot:
                mark = snapshot.applied(int(path.stem), journal.id, journal.head)
            try:
                return list(operations(journal, mark, journal.head))
            except CorruptionError:
                # The owner may have gone round the ring meanwhile: then the mark has moved on too.
                with self.store.cold.read() as snapshot:
                    if snapshot.applied(int(path.stem), journal.id, journal.head) == mark:
                        raise
        raise StorageError(f"journal {path.name} is written faster than it can be read")

    def _settle(
        self,
        writer: Writer,
        mark: int,
        own: list[tuple[Operation, int]],
        position: int,
        first_other: int,
        transaction: int,
    ) -> None:
        """Make this process agree with what was just committed."""
        store = self.store
        sequence = writer.counters.next_sequence
        with store.lock:
            journal = store.journal
            store.follower.retire(mark)
            for op, version in own:
                space = store.spaces.get(op.namespace)
                if space is None:
                    continue
                known = space.pending.get(op.key)
                if known is not None and known.version == op.version:
                    del space.pending[op.key]
                    if version != op.version:
                        store.follower.absorb([(op.namespace, op.key, 0, version)], own=True)
            if journal is not None and position > journal.applied:
                journal.applied = position
            store.follower.absorb(writer.changes[first_other:], own=True)
            store.observe(writer.counters.highest)
            # Whatever was read before this commit is out of date for what it retired.
            store.seen_stamp = max(store.seen_stamp, transaction)
            followed = writer.first_new == store.seen_sequence
            if followed:
                store.seen_sequence = sequence
        self.commits += 1
        self.committed += len(writer.changes)
        self.superseded += writer.superseded
        store.control.publish_time(store.clock.now())
        self.upkeep.ripen(sealed.ripe(writer, store.config.vector.seal_rows))
        if writer.changes:
            store.control.publish(sequence, store.generation)
        if not followed:
            store.follower.catch_up()

    def open_journal(self) -> None:
        """Put a journal of this process's own into service, fsynced with its directory."""
        store = self.store
        with self._turn():
            store.check_writable()
            if store.journal is not None:
                return
            path = store.control.journal_path(store.slot)
            fresh = Journal.create(path.with_suffix(".fresh"), store.config.cold.journal_bytes)
            journal_id = int.from_bytes(os.urandom(8)) | 1
            fresh.reset(store.store_id, journal_id)
            # The predecessor is applied, and both are named, before the one takes the other's place.
            with self._transaction() as writer:
                self._drain_others(writer)
                old = self.foreign(path)
                before = (0, 0) if old is None else (old.id, writer.applied(store.slot, old.id, old.head))
                writer.set_mark(store.slot, journal_id, 0, before)
                stamp = writer.finish()
            self._settle(writer, 0, [], 0, 0, stamp)
            fresh.publish(path)
            with self._transaction() as writer:
                writer.set_mark(store.slot, journal_id, 0)
                stamp = writer.finish()
            self._settle(writer, 0, [], 0, 0, stamp)
            known = self._foreign.pop(path, None)
            if known is not None:
                known[1].close()
            store.journal = fresh

    def leave(self, move: Callable[[Writer], None]) -> None:
        """Commit `move`, which marks this environment as left, in a transaction that drains nothing."""
        with self._turn():
            self.store.check_writable()
            with self._transaction() as writer:
                move(writer)

    def stop(self) -> None:
        """End the thread; what is pending stays journaled."""
        self._stop = True
        self._event.set()
        self._hurry.set()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        for _, journal in self._foreign.values():
            journal.close()
        self._foreign.clear()


def operations(journal: Journal, start: int, end: int) -> Iterator[Operation]:
    """The operations in the frames of `journal` between two positions."""
    for frame in journal.frames(start, end):
        yield from unpack_operations(frame.payload)
