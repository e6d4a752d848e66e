"""The committer: drains journals into L3, one transaction a batch."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from tiermem.codec.operation import Operation
from tiermem.engine.assistant import Assistant
from tiermem.engine.journals import Mark, stretch
from tiermem.engine.reentry import owned, refuse_inside
from tiermem.engine.shared import Shared
from tiermem.engine.transaction import Transaction
from tiermem.engine.upkeep import Upkeep
from tiermem.tiers.bells import ASLEEP
from tiermem.tiers.cold import Writer, sealed
from tiermem.tiers.journal import Journal

if TYPE_CHECKING:
    from tiermem.engine.store import Store

SLICE: Final = 0.002
"""Seconds of work in one background commit: the write lock is held no longer."""
ROOM_SLICE: Final = 0.004
"""The same where a writer waits for room in the journal and does the work itself."""
LARGE: Final = 2**18
LOAD_SLICE: Final = 0.05
"""Where a frame of so many bytes waits for room, a load is under way: an fsync for each would be most of the work."""


class Drained(NamedTuple):
    """What one transaction applied of this process's journal: up to where, the operations and their versions."""

    mark: int
    position: int
    ops: list[Operation]
    versions: list[int]


NOTHING: Final = Drained(0, 0, [], [])


class Committer:
    """Moves what was journaled into L3."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.commits = 0
        self.committed = 0
        self.superseded = 0
        self.last_seconds = 0.0
        self.upkeep = Upkeep(store)
        self.assistant = Assistant(store)
        self._shared = Shared()
        self._turnstile = threading.RLock()  # a signal handler may meet it again, while this thread waits in it

    def drain(self) -> None:
        """Commit, slice by slice, everything this process had journaled when called.

        One thread commits for all that wait here: what they journal during its fsync is in the next transaction.
        """
        journal = self.store.journal
        if journal is None or journal.applied >= (head := journal.head):
            return
        # Whoever commits may need what the interrupted call holds.
        refuse_inside(self.store.lock, self.store.commit_lock)
        if not self.store.handover.drained(journal, head):
            self._shared.until(lambda: journal.applied >= head or self.store.journal is not journal, self.commit)
        if journal.applied < head:
            # Closed, or in a child that a signal handler has forked meanwhile: there it is the parent's.
            self.store.check_open()

    def keep_up(self, commit: Callable[[], None], enough: Callable[[], bool]) -> None:
        """The same by calls of `commit`, until `enough()`."""
        journal = self.store.journal
        if journal is not None:
            head = journal.head
            self._shared.until(lambda: journal.applied >= head or enough(), commit)

    def make_room(self, need: int) -> None:
        """Commit until `need` bytes fit into the journal; the writer that found it full does the work."""
        journal = self.store.journal
        if journal is None:
            return
        # A frame may leave as much unused at the end of the ring as it takes.
        while journal.capacity - (journal.head - journal.applied) < min(2 * need, journal.capacity):
            if not (self.assistant.present and self.assistant.advanced()):
                self.commit(budget=ROOM_SLICE if need < LARGE else LOAD_SLICE)

    def replay(self) -> None:
        """Commit what clients that have died had journaled, and what the living have."""
        control = self.store.control
        dead = {int(path.stem) for path in self.store.journals.paths()}.difference(control.live())
        if self.store.journal is None:
            # The journal found in one's own slot is a predecessor's.
            dead.add(self.store.slot)
        self.commit(everything=True, dead=frozenset(dead))

    def commit(
        self,
        *,
        everything: bool = False,
        others: bool = False,
        dead: frozenset[int] = frozenset(),
        budget: float = SLICE,
        work: Callable[[Writer], None] | None = None,
        turn: bool = True,
    ) -> None:
        """One transaction: own journal (for `budget` seconds), with `others` theirs too, then the rest.

        With `everything` all journals are drained, whatever that takes; of `dead` slots intact frames behind the
        head are applied too. `work` may do anything once that was done. turn: False where the caller has it.
        """
        store = self.store
        if everything and turn:
            # In slices first: the one transaction that must hold all of it stays short.
            self.drain()
        moved: dict[int, Mark] = {}
        started = time.perf_counter()
        with self.turn() if turn else nullcontext():
            store.check_writable()
            with self._transaction() as writer:
                # From here on: whoever had to wait for the lock has all the more to commit.
                deadline = math.inf if everything else time.perf_counter() + budget
                own = self._drain_own(writer, deadline)
                first_other = len(writer.changes)
                if everything or others:
                    moved = store.journals.drain(writer, dead, deadline)
                if work is not None:
                    work(writer)
                transaction = writer.finish()
            self._settle(writer, own, first_other, transaction, moved, told=others, loud=everything)
            self.last_seconds = time.perf_counter() - started
            store.degraded.pop("committer", None)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the commit lock. A thread that commits again and again lets one that waits go first."""
        lock = self.store.commit_lock
        refuse_inside(self.store.lock, lock)
        try:
            with self._turnstile:
                lock.acquire()
            yield
        finally:
            # An interrupt may come just before it was taken, or just behind.
            if owned(lock):
                lock.release()

    def _transaction(self) -> Transaction:
        return Transaction(self.store, self.upkeep.sampler)

    def _drain_own(self, writer: Writer, deadline: float) -> Drained:
        store, journal = self.store, self.store.journal
        if journal is None:
            return NOTHING
        position = mark = writer.applied(store.slot, journal.id, journal.head)
        ops: list[Operation] = []
        versions: list[int] = []
        done = 0
        while True:
            with store.lock:
                # Another thread may have retired some meanwhile: that moves the others forward.
                while done and (done > len(store.line) or store.line[done - 1].end > position):
                    done -= 1
                waiting = stretch(islice(store.line, done, None))
            if not waiting:
                break
            done += len(waiting)
            part = [op for op in waiting if op.end > position]
            # One record alone may wait for the interpreter a dozen times.
            made = writer.apply_all(part, deadline)
            versions.extend(made)
            ops.extend(part[: len(made)])
            position = max(position, (part[: len(made)] if len(made) < len(part) else waiting)[-1].end)
            if time.perf_counter() > deadline:
                break
        if position != mark:
            writer.set_mark(store.slot, journal.id, position)
        return Drained(mark, position, ops, versions)

    def _settle(
        self,
        writer: Writer,
        own: Drained,
        first_other: int,
        transaction: int,
        moved: Mapping[int, Mark] = MappingProxyType({}),
        *,
        told: bool = False,
        loud: bool = False,
    ) -> None:
        """Make this process agree with what was just committed, which `moved` the marks of others.

        With `told` the one client of which all of it was, if there is one, is told so. If `loud`, all are told
        even of nothing: who made an earlier commit may not have come to announce it yet.
        """
        store = self.store
        first, sequence = writer.first_new, writer.counters.next_sequence
        with store.lock:
            store.follower.retire(own.mark)
            for op, version in zip(own.ops, own.versions, strict=True):
                space = store.spaces.get(op.namespace)
                if space is not None and space.pending.get(op.key) is op:
                    del space.pending[op.key]
                    if version != op.version:
                        store.follower.absorb([(op.namespace, op.key, 0, version)], own=True)
            store.follower.retire(own.position)
            store.follower.absorb(writer.changes[first_other:], own=True)
            store.observe(writer.counters.highest)
            # Whatever was read before this commit is out of date for what it retired.
            store.seen_stamp = max(store.seen_stamp, transaction)
            followed = first == store.seen_sequence
            if followed:
                store.seen_sequence = sequence
        self.commits += 1
        self.committed += len(writer.changes)
        self.superseded += writer.superseded
        store.control.publish_time(store.clock.now())
        self.upkeep.ripen(sealed.ripe(writer, store.config.vector.seal_rows))
        only = -1
        # Where the generation has not been announced, all have to look.
        if told and len(moved) == 1 and store.control.generation == store.generation:
            ((only, mark),) = moved.items()
            store.control.tell(only, *mark, first, sequence, transaction)
        if loud or writer.changes or (moved and (writer.superseded or only < 0)):
            store.control.publish(sequence, store.generation, but=only)
        elif only >= 0:
            # It may wait for what has changed nothing.
            store.control.bells.ring(only, (ASLEEP,))
        if not followed:
            store.control.missed[0] = 1
            store.follower.catch_up()

    def open_journal(self) -> None:
        """Put a journal of this process's own into service, fsynced with its directory."""
        store = self.store
        with self.turn():
            store.check_writable()
            if store.journal is not None:
                return
            path = store.journals.path(store.slot)
            fresh = Journal.create(path.with_suffix(".fresh"), store.config.cold.journal_bytes)
            journal_id = int.from_bytes(os.urandom(8)) | 1
            fresh.reset(store.store_id, journal_id)
            # The predecessor is applied, and both are named, before the one takes the other's place.
            with self._transaction() as writer:
                moved = store.journals.drain(writer)
                old = store.journals.of(path)
                before = (0, 0) if old is None else (old.id, writer.applied(store.slot, old.id, old.head))
                writer.set_mark(store.slot, journal_id, 0, before)
                stamp = writer.finish()
            self._settle(writer, NOTHING, 0, stamp, moved)
            fresh.publish(path)
            with self._transaction() as writer:
                writer.set_mark(store.slot, journal_id, 0)
                stamp = writer.finish()
            self._settle(writer, NOTHING, 0, stamp)
            store.journals.forget(path)
            store.line.clear()
            store.journal = fresh

    def leave(self, move: Callable[[Writer], None]) -> None:
        """Commit `move`, which marks this environment as left, in a transaction that drains nothing."""
        with self.turn():
            self.store.check_writable()
            with self._transaction() as writer:
                move(writer)
