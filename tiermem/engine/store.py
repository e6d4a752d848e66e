"""The store: the state all handles of one directory share in this process, and its write path.

Two locks, taken in this order: `commit_lock` (one commit at a time) and `lock` (journal appends,
pending tables, L1). Nothing that can block is done under `lock`.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING
from weakref import WeakMethod

from tiermem.clock import SystemClock
from tiermem.codec.compress import Compressor
from tiermem.codec.frame import STREAM
from tiermem.codec.operation import DELETE, PUT, Operation, pack_operation, unpack_operations
from tiermem.config import Config
from tiermem.engine import generations
from tiermem.engine.commit import Committer
from tiermem.engine.follower import Follower
from tiermem.engine.handover import Handover
from tiermem.engine.indexing import Indexing
from tiermem.engine.journals import Journals
from tiermem.engine.latency import Histogram
from tiermem.engine.loader import Loader
from tiermem.engine.proposals import Proposal
from tiermem.engine.reentry import refuse_reentry
from tiermem.engine.rounds import Rounds
from tiermem.engine.space import Decode, Space, Spaces, Tables
from tiermem.errors import ClosedError, EncodingError, ReadOnlyError, StorageError, TiermemError, file_error
from tiermem.policy.eviction import DEFAULT
from tiermem.protocols import Clock, Embedder
from tiermem.tiers.cold import ColdEnv
from tiermem.tiers.cold.layout import CLOCK_SHIFT
from tiermem.tiers.control import Control
from tiermem.tiers.hot import HotTier, Table, cost_of
from tiermem.tiers.journal import Journal
from tiermem.types import check_namespace

if TYPE_CHECKING:
    from tiermem.engine.sealing import Sealer

Draft = tuple[Space, Operation]


class Store:
    """One open directory. Made by `opening.acquire`, shared by every handle on it."""

    cold: ColdEnv
    control: Control

    def __init__(self, root: Path, config: Config, clock: Clock | None, embedder: Embedder | None, read_only: bool):
        self.root = root
        self.config = config
        self.clock: Clock = SystemClock() if clock is None else clock
        self.embedder = embedder
        self.read_only = read_only
        self.lock = threading.Lock()
        self.commit_lock = threading.RLock()
        self.move_lock = threading.Lock()
        self.closed = False
        self.users = 0
        self.reopened: list[WeakMethod[Callable[[], None]]] = []
        self.store_id = b""
        self.generation = 0
        # A client without a slot, as one that only reads, has written nothing.
        self.slot = -1
        policy = (config.hot.policy or DEFAULT)(config.hot.max_bytes)
        self.hot = HotTier(policy, config.hot.max_bytes, self.clock.now)
        self.spaces = Spaces(self)
        self.tables = Tables(self)
        self.compressor = Compressor(config.codec)
        self.committer = Committer(self)
        self.rounds = Rounds(self)
        self.handover = Handover(self)
        self.follower = Follower(self)
        self.loader = Loader(self)
        self.indexing = Indexing(self)
        self._sealer: Sealer | None = None
        self._place = _place(root)
        self.journal: Journal | None = None
        self.journals = Journals(self)
        # What stands in the journal and is not known to be committed, in order.
        self.line: deque[Operation] = deque()
        self.degraded: dict[str, str] = {}
        self.latency: dict[str, Histogram] = {}
        self.cold_hits = 0
        self.cold_misses = 0
        self.seen_sequence = 1
        self.seen_stamp = 0
        self._last = 0

    def space(self, name: str) -> Space:
        """What this process keeps of a namespace; InvalidNamespace if `name` is none."""
        try:
            return self.spaces[name]
        except TypeError:
            # Unhashable: the check says what it should have been.
            check_namespace(name)
            raise

    @property
    def sealer(self) -> Sealer:
        """What builds and opens segments; it and numpy are loaded where vectors are met."""
        if self._sealer is None:
            from tiermem.engine.sealing import Sealer

            with self.lock:
                if self._sealer is None:
                    self._sealer = Sealer(self)
        return self._sealer

    @property
    def troubles(self) -> list[str]:
        """What does not work as it should at this moment, in words."""
        lanes = [] if self._sealer is None else self._sealer.lanes
        return [*self.degraded.values(), *(trouble for lane in lanes for trouble in lane.failed.values())]

    @property
    def interval(self) -> float:
        """Seconds that a write may wait to be committed: fewer where other clients wait to see it."""
        cold = self.config.cold
        return min(cold.sync_interval, cold.share_interval) if self.control.shared else cold.sync_interval

    def stop_sealing(self) -> None:
        """End what builds segments, if anything does."""
        if self._sealer is not None:
            self._sealer.stop()

    # Versions

    def next_version(self) -> int:
        """A version above every one given or seen by this process. The caller holds `lock`."""
        now = time_ns() // 1000
        if now <= self._last:
            now = self._last + 1
        self._last = now
        return now << CLOCK_SHIFT | self.slot

    def observe(self, version: int) -> None:
        """Versions given from now on lie above `version`."""
        self._last = max(self._last, version >> CLOCK_SHIFT)

    # Writing

    def submit(self, space: Space, op: Operation, rouse: bool = True) -> int:
        """Journal one operation and make it visible; its version. Kill-safe when this returns.

        Without `rouse` the caller sees to it that it is committed.
        """
        while True:
            if self.lock.locked():
                refuse_reentry(self.lock)
            with self.lock:
                journal = self.journal
                if journal is not None:
                    # `next_version`, without the call.
                    now = time_ns() // 1000
                    if now <= self._last:
                        now = self._last + 1
                    self._last = now
                    op.version = now << CLOCK_SHIFT | self.slot
                    payload = pack_operation(op, space.raw, op.key.encode())
                    try:
                        if len(payload) <= journal.largest and (end := journal.append(payload, 1)):
                            op.end = end
                            self.line.append(op)
                            self.pend(space, op)
                            break
                    except BaseException:
                        self._mend_line(journal)
                        raise
            if journal is None:
                self.committer.open_journal()
            elif len(payload) > journal.largest:
                return self.handover.decide(Proposal(op.now, self.config.vector.metric, [op]))[0]
            else:
                self.committer.make_room(len(payload))
        rounds = self.rounds
        if rouse and not rounds.roused:
            rounds.rouse()
        return op.version

    def submit_all(self, drafts: Sequence[Draft]) -> list[int]:
        """Journal several operations as one frame, all or nothing; their versions."""
        while True:
            if self.lock.locked():
                refuse_reentry(self.lock)
            with self.lock:
                journal = self.journal
                if journal is not None:
                    for _, op in drafts:
                        op.version = self.next_version()
                    payload = b"".join([pack_operation(op, space.raw, op.key.encode()) for space, op in drafts])
                    try:
                        if len(payload) <= journal.largest and (end := journal.append(payload, len(drafts))):
                            for space, op in drafts:
                                op.end = end
                                self.line.append(op)
                                self.pend(space, op)
                            break
                    except BaseException:
                        self._mend_line(journal)
                        raise
            if journal is None:
                self.committer.open_journal()
            elif len(payload) > journal.largest:
                ops = [op for _, op in drafts]
                return self.handover.decide(Proposal(ops[0].now, self.config.vector.metric, ops))
            else:
                self.committer.make_room(len(payload))
        if not self.rounds.roused:
            self.rounds.rouse()
        return [op.version for _, op in drafts]

    def _mend_line(self, journal: Journal) -> None:
        """A write was interrupted: what it has journaled stands, and takes its place in line.

        The caller holds `lock`.
        """
        known = {op.version: op for op in self.line}
        line = deque(op for op in self.line if op.end <= journal.applied)
        for frame in journal.frames(journal.applied):
            for op in unpack_operations(frame.payload):
                kept = known.get(op.version, op)
                kept.end = frame.end
                line.append(kept)
        self.line = line
        for op in line:
            space = self.spaces.get(op.namespace)
            if space is not None and op.end > journal.applied:
                shown = space.pending.get(op.key)
                if shown is None or shown.version < op.version:
                    self.pend(space, op)

    def check_open(self) -> None:
        """ClosedError once the store was closed."""
        if self.closed:
            raise ClosedError("the store was closed")

    def check_place(self) -> None:
        """StorageError once the directory was removed, or another has taken its place."""
        try:
            place = _place(self.root)
        except PermissionError:
            # Who has dropped privileges since goes on in the files that are open.
            return
        except OSError as exc:
            raise file_error(exc)(f"{self.root} cannot be looked up: {exc}") from exc
        if place != self._place:
            raise StorageError(f"{self.root} was removed while it was open")

    def check_writable(self) -> None:
        """ClosedError or ReadOnlyError where nothing may be written."""
        self.check_open()
        if self.read_only:
            raise ReadOnlyError(f"{self.root} was opened read-only")

    def pend(self, space: Space, op: Operation) -> None:
        """Show an operation that was journaled. The caller holds `lock`."""
        pending = space.pending
        before = pending.get(op.key)
        if before is not None:
            if before.kind == DELETE or before.expires <= op.now:
                op.created = op.now
            else:
                op.created = before.created
                op.first = before.now if before.first is None else before.first
        pending[op.key] = op
        if op.kind == PUT:
            space.made = True
            space.keyed = space.keyed or not op.flags & STREAM
        for table, decode in space.tables:
            table.absent.discard(op.key)
            if op.key in table or op.key in table.watched or op.key in table.timed:
                self._refresh(table, decode, op)
        if space.index is not None:
            space.touched.add(op.key)

    def _refresh(self, table: Table, decode: Decode, op: Operation) -> None:
        if op.kind == PUT and op.expires > op.now:
            try:
                value = decode(op.value)
            except EncodingError:
                # Not of this table's type: whoever reads it there gets that error.
                self.hot.drop(table, op.key)
                return
            self.hot.fill(table, op.key, value, cost_of(value, len(op.value)), op.expires)
        else:
            self.hot.drop(table, op.key)

    def after_fork(self) -> None:
        """In the child: let go of all that is the parent's. The caller opens the store again."""
        self.lock = threading.Lock()
        self.commit_lock = threading.RLock()
        self.move_lock = threading.Lock()
        self.control.close(forked=True)
        if self.journal is not None:
            self.journal.close()
            self.journal = None
        self.journals = Journals(self)
        self.line.clear()
        self.committer.assistant.dismiss()
        self.committer = Committer(self)
        self.rounds = Rounds(self)
        self.handover.close()
        self.indexing = Indexing(self)
        if self._sealer is not None:
            self._sealer.abandon()
            self._sealer = None
        self.hot.clear()
        for space in self.spaces.values():
            space.pending = {}
            space.index_lock = threading.Lock()
            space.forget()

    # Generations

    def move_to(self, generation: int) -> None:
        """Leave the environment of an older generation for that of a newer one."""
        with self.lock:
            if generation <= self.generation:
                return
            old = self.cold
            while True:
                try:
                    self.cold = generations.connect(self.root, generation, self.config.cold, read_only=self.read_only)
                    break
                except TiermemError:
                    # Left, and removed, since it was named: then another is named by now.
                    newest = generations.current(self.root)
                    if newest <= generation:
                        raise
                    generation = newest
            self.generation = generation
        self.committer.upkeep.forget_samples()
        # Whoever has taken hold of the old one, and not begun to read, goes on in the new one.
        old.successor = self.cold
        old.close()


def _place(root: Path) -> tuple[int, int] | None:
    """What tells a directory from another of the same path; None where there is none."""
    try:
        found = os.stat(root)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino
