"""`check`: every frame, checksum, index row and counter of a live store, held against each other."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from tiermem.codec.frame import HAS_VECTOR, NEVER, STREAM, unpack_frame, unpack_vector, unseal
from tiermem.codec.serialize import decode, decode_metadata
from tiermem.engine import mending, relocate, segments
from tiermem.engine.transaction import Transaction
from tiermem.engine.verification import damage_of
from tiermem.errors import CorruptionError, TiermemError
from tiermem.reports import CheckReport
from tiermem.tiers.cold.layout import OPS, U32, U64, NamespaceInfo, expiry_key, unpack_info, unpack_log_row
from tiermem.tiers.cold.walking import walk_apart

if TYPE_CHECKING:
    from collections.abc import Callable

    from tiermem.engine.store import Store
    from tiermem.tiers.cold import Snapshot

PAGES: Final = "data.mdb: "
MOST: Final = 1_000
"""Problems listed at most; the rest are counted."""


class _Audit:
    """One pass over a snapshot."""

    def __init__(self, store: Store, snapshot: Snapshot) -> None:
        self.store = store
        self.snapshot = snapshot
        self.problems: list[str] = []
        self.records = 0
        self.vectors = 0
        self.changes = 0
        self.found: dict[bytes, Counter[str]] = {}
        self.names: dict[bytes, str] = {}
        self.infos: dict[bytes, NamespaceInfo] = {}
        self.highest = snapshot.state().highest
        self.garbage = {key for key, _ in snapshot.rows(snapshot.dbs.garbage)}

    def say(self, problem: str) -> None:
        self.problems.append(problem)

    def attempt(self, step: Callable[[], None]) -> None:
        """Run one step; an error it ends in is a finding."""
        try:
            step()
        except TiermemError as exc:
            self.say(str(exc))

    def run(self) -> None:
        for step in (
            self._namespaces,
            self._records,
            self._vectors,
            self._expiry,
            self._counters,
            self._log,
            self._dictionaries,
            self._cursors,
            self._journals,
            self._segments,
        ):
            self.attempt(step)

    def _namespaces(self) -> None:
        for key, row in self.snapshot.rows(self.snapshot.dbs.namespaces):
            info = unpack_info(key, row)
            if not info.dropped:
                self.names[info.prefix] = key.decode()
                self.infos[info.prefix] = info
        for prefix, row in self.snapshot.rows(self.snapshot.dbs.names):
            if prefix in self.garbage:
                continue
            if self.names.get(prefix) != unseal(prefix, row).decode():
                self.say(
                    f"namespace id {prefix.hex()} and name {unseal(prefix, row).decode()!r} do not belong together"
                )

    def _records(self) -> None:
        for key, row in self.snapshot.rows(self.snapshot.dbs.records):
            self.records += 1
            self.attempt(lambda key=key, row=row: self._record(key, row))  # type: ignore[misc]  # bound now, run now

    def _record(self, key: bytes, row: memoryview) -> None:
        prefix = key[:4]
        if prefix in self.garbage:
            self.records -= 1
            return
        tally = self.found.setdefault(prefix, Counter())
        tally["records"] += 1
        frame = unpack_frame(key, row)
        name = self.names.get(prefix)
        if name is None:
            self.say(f"record {key!r} belongs to no namespace")
            return
        tally["timed"] += frame.expires != NEVER
        tally["vectors"] += bool(frame.flags & HAS_VECTOR)
        tally["keyed"] += not frame.flags & STREAM
        decode(self.store.loader.expand(frame.codec, frame.dictionary, frame.body, frame.value_bytes))
        decode_metadata(frame.metadata)
        if frame.flags & HAS_VECTOR:
            vector = self.snapshot.vector(key)
            if vector is None:
                self.say(f"record {key!r} says it has a vector, and has none")
            elif vector[0] != frame.version:
                self.say(f"record {key!r} is of version {frame.version}, its vector of {vector[0]}")
        if frame.expires != NEVER:
            index_key = expiry_key(frame.expires, key)
            if self.snapshot.txn.get(index_key, db=self.snapshot.dbs.expiry) is None:
                self.say(f"record {key!r} expires, but the expiry index does not know")
        if frame.version > self.highest:
            self.say(f"record {key!r} has version {frame.version}, above the store's highest")

    def _vectors(self) -> None:
        for key, row in self.snapshot.rows(self.snapshot.dbs.vectors):
            if key[:4] in self.garbage:
                continue
            self.vectors += 1
            version, raw = unpack_vector(key, row)
            info = self.infos.get(key[:4])
            if info is not None and len(raw) != info.dimension * 4:
                self.say(
                    f"vector {key!r} has dimension {len(raw) // 4}, its namespace {info.dimension}: not searchable"
                )
            if self.snapshot.txn.get(key, db=self.snapshot.dbs.records) is None:
                self.say(f"vector {key!r} of version {version} belongs to no record")

    def _expiry(self) -> None:
        for index_key, _ in self.snapshot.rows(self.snapshot.dbs.expiry):
            key = index_key[8:]
            frame = None if key[:4] in self.garbage else self.snapshot.record(key)
            if key[:4] not in self.garbage and (frame is None or expiry_key(frame.expires, key) != index_key):
                self.say(f"the expiry index points to {key!r}, which does not expire then")

    def _counters(self) -> None:
        for prefix, info in self.infos.items():
            tally = self.found.get(prefix, Counter())
            for what, counted in (("records", info.records), ("timed", info.timed), ("vectors", info.vectors)):
                if tally[what] != counted:
                    self.say(f"namespace {self.names[prefix]!r} counts {counted} {what}, and holds {tally[what]}")
            if info.ordered and tally["keyed"]:
                self.say(f"namespace {self.names[prefix]!r} is marked as a stream, and is not one")

    def _log(self) -> None:
        state = self.snapshot.state()
        expected = state.first_sequence
        for key, row in self.snapshot.rows(self.snapshot.dbs.log):
            first = U64.unpack(key)[0]
            if first != expected:
                self.say(f"the change log jumps from {expected - 1} to {first}")
            _, rows = unpack_log_row(key, row)
            if any(not 0 <= op < len(OPS) for _, _, op, _ in rows):
                self.say(f"the change log holds an unknown operation behind {first}")
            self.changes += len(rows)
            expected = first + len(rows)
        if expected != state.next_sequence:
            self.say(f"the change log ends at {expected - 1}, the store counts {state.next_sequence - 1}")
        floors = sum(1 for _ in self.snapshot.rows(self.snapshot.dbs.floors))
        if floors != state.floors:
            self.say(f"the store counts {state.floors} floors, and holds {floors}")

    def _dictionaries(self) -> None:
        known = {number for number, _ in self.snapshot.dictionaries()}
        for key, _ in self.snapshot.rows(self.snapshot.dbs.dictionaries):
            if U32.unpack(key)[0] not in known:
                self.say(f"dictionary {U32.unpack(key)[0]} is damaged")
        for prefix, info in self.infos.items():
            if info.dictionary and info.dictionary not in known:
                self.say(f"namespace {self.names[prefix]!r} uses dictionary {info.dictionary}, which is missing")

    def _cursors(self) -> None:
        state = self.snapshot.state()
        for name, cursor in self.snapshot.cursors():
            if not state.first_sequence - 1 <= cursor.position < state.next_sequence:
                self.say(f"cursor {name!r} stands at {cursor.position}, outside the log")

    def _journals(self) -> None:
        for path in self.store.journals.paths():
            own = self.store.journal
            if own is None or own.path != path:
                try:
                    self.store.journals.unapplied(path)
                except TiermemError as exc:
                    self.say(str(exc))

    def _segments(self) -> None:
        for prefix, info in self.infos.items():
            if info.dimension:
                for problem in segments.audit(self.store, self.snapshot, self.names[prefix], info):
                    self.say(problem)


def check(store: Store, *, repair: bool) -> CheckReport:
    """Audit the store; with `repair`, rebuild it from its intact records if anything is wrong.

    Raises:
        CorruptionError: LMDB's own pages are damaged, and other processes have the store open.
    """
    store.check_place()
    if not repair:
        return _look(store)
    store.check_writable()
    # What an opening with `repair` lost is over and done with once it was told here.
    told = [store.degraded.pop(what) for what in list(store.degraded) if what.startswith("repair ")]
    try:
        report = _look(store)
        if any(problem.startswith(PAGES) for problem in report.problems):
            told = [*told, *report.problems, *mending.salvage_open(store)]
            report = _look(store)
    except CorruptionError as exc:
        if str(exc).endswith(mending.ELSEWHERE):
            raise
        # A journal that cannot be replayed stops the flush before the look.
        problems: tuple[str, ...] = (str(exc),)
    else:
        problems = report.problems
        if report.ok:
            return replace(report, repaired=tuple(told))
    if all(problem.startswith(segments.TROUBLE) for problem in problems):
        # L2 is derived: L3 need not be touched.
        for name in segments.namespaces(store):
            store.sealer.withdraw(name)
            store.sealer.build(name)
        return replace(_look(store), repaired=(*told, *problems))
    repaired = relocate.rebuild(store)
    return replace(_look(store), repaired=(*told, *problems, *repaired))


def _walk(store: Store) -> list[str]:
    """What is wrong with the pages. Inside a write transaction nobody else writes: they are walked as they lie."""
    with store.commit_lock, Transaction(store, lambda *_: None) as writer:
        return [f"{PAGES}{problem}" for problem in walk_apart(writer.env.path)]


def _look(store: Store) -> CheckReport:
    problems: list[str] = []
    records = vectors = changes = 0
    if store.read_only:
        problems += [f"{PAGES}{problem}" for problem in damage_of(store.cold.path)]
    else:
        problems += _walk(store)
    if not problems:
        if not store.read_only:
            store.handover.flush()
        with store.cold.read() as snapshot:
            audit = _Audit(store, snapshot)
            audit.run()
        problems += audit.problems
        records, vectors, changes = audit.records, audit.vectors, audit.changes
    # Where a pointer leads nowhere, following it here might end this process: then the pages are all there is to tell.
    # That a helper has ended is worth showing, and nothing that is stored suffers from it.
    problems += [trouble for trouble in store.troubles if trouble != store.degraded.get("helper")]
    if len(problems) > MOST:
        problems = [*problems[:MOST], f"and {len(problems) - MOST} more"]
    return CheckReport(
        records=records,
        vectors=vectors,
        changes=changes,
        journals=len(store.journals.paths()),
        pages_verified=True,
        problems=tuple(problems),
    )
