"""Rebuilding L3 from its intact records: every index and counter derived anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tiermem.codec.frame import HAS_VECTOR, NEVER, STREAM, Frame, pack_frame, seal, unpack_frame
from tiermem.errors import CorruptionError, TiermemError
from tiermem.tiers.cold.layout import (
    U32,
    U64,
    Identity,
    NamespaceInfo,
    State,
    expiry_key,
    pack_row,
    unpack_cursor,
    unpack_info,
    unpack_log_row,
)

if TYPE_CHECKING:
    from tiermem.tiers.cold.env import ColdEnv
    from tiermem.tiers.cold.snapshot import Snapshot


class Rebuild:
    """One rebuild from the snapshot `old` into the empty environment `new`; `lost` lists what was not kept."""

    def __init__(self, old: Snapshot, new: ColdEnv, readable: Callable[[Frame], object]) -> None:
        self.old = old
        self.new = new
        self.lost: list[str] = []
        self._readable = readable
        self._names: dict[bytes, str] = {}
        self._infos: dict[str, NamespaceInfo] = {}
        self._state = State()
        self._dictionaries_kept: set[int] = set()

    def run(self, identity: Identity) -> None:
        """Copy and derive everything; `identity` becomes the new environment's."""
        with self.new.write() as txn:
            self._dictionaries(txn)
            self._namespaces()
            for key, row in self.old.rows(self.old.dbs.records):
                try:
                    self._record(txn, key, row)
                except TiermemError as exc:
                    self.lost.append(f"record {self._told(key)} is lost: {exc}")
            self._log(txn)
            for key, row in self.old.rows(self.old.dbs.marks):
                txn.put(key, bytes(row), db=self.new.dbs.marks)
            for name, info in self._infos.items():
                raw = name.encode()
                txn.put(raw, pack_row(raw, info), db=self.new.dbs.namespaces)
                if not info.dropped:
                    txn.put(info.prefix, seal(info.prefix, raw), db=self.new.dbs.names)
            txn.put(b"identity", pack_row(b"identity", identity), db=self.new.dbs.meta)
            # Whatever stood between deleted records and old journals is gone: late puts rank above it.
            self._state.horizon = self._state.highest
            txn.put(b"state", self._state.pack(), db=self.new.dbs.meta)

    def _told(self, key: bytes) -> str:
        return f"{key[4:].decode(errors='replace')!r} of {self._names.get(key[:4], key[:4].hex())!r}"

    def _attempt(self, what: str, step: Callable[[], None]) -> bool:
        try:
            step()
        except TiermemError as exc:
            self.lost.append(f"{what}: {exc}")
            return False
        return True

    def _dictionaries(self, txn: Any) -> None:
        def copy() -> None:
            for number, data in self.old.dictionaries():
                key = U32.pack(number)
                txn.put(key, seal(key, data), db=self.new.dbs.dictionaries)
                self._state.next_dictionary = max(self._state.next_dictionary, number + 1)
                self._dictionaries_kept.add(number)
            for key, _ in self.old.rows(self.old.dbs.dictionaries):
                if U32.unpack(key)[0] not in self._dictionaries_kept:
                    self.lost.append(f"dictionary {U32.unpack(key)[0]} is lost, with what was compressed with it")

        self._attempt("dictionaries lost", copy)

        def keep() -> None:
            state = self.old.state()
            self._state.highest, self._state.commits = state.highest, state.commits
            self._state.next_sequence = self._state.first_sequence = state.next_sequence
            self._state.next_dictionary = max(self._state.next_dictionary, state.next_dictionary)

        self._attempt("counters derived anew", keep)

    def _namespaces(self) -> None:
        for raw, row in self.old.rows(self.old.dbs.namespaces):
            try:
                info = unpack_info(raw, row)
            except TiermemError as exc:
                self.lost.append(f"namespace derived anew: {exc}")
                continue
            # What was written with a dictionary that is lost is lost; what comes is written without.
            known = info.dictionary in self._dictionaries_kept
            self._infos[raw.decode()] = NamespaceInfo(
                info.id,
                info.dimension,
                info.metric,
                info.model,
                made=info.made,
                epoch=info.epoch + 1,
                dropped=info.dropped,
                floor=info.floor,
                dictionary=info.dictionary if known else 0,
                trained=info.trained if known else 0,
            )
        garbage = {key for key, _ in self.old.rows(self.old.dbs.garbage)}
        for prefix, row in self.old.rows(self.old.dbs.names):
            name = bytes(row[8:]).decode(errors="replace")
            if prefix not in garbage:
                self._names[prefix] = name
                self._infos.setdefault(name, NamespaceInfo(U32.unpack(prefix)[0]))
        for name, info in self._infos.items():
            if not info.dropped:
                self._names[info.prefix] = name
            self._state.next_namespace = max(self._state.next_namespace, info.id + 1)

    def _record(self, txn: Any, key: bytes, row: memoryview) -> None:
        name = self._names.get(key[:4])
        if name is None:
            return
        frame = unpack_frame(key, row)
        self._readable(frame)
        info = self._infos[name]
        data = bytes(row)
        if frame.flags & HAS_VECTOR:
            vector = self.old.txn.get(key, db=self.old.dbs.vectors)
            try:
                found = self.old.vector(key)
                if found is None or vector is None or found[0] != frame.version:
                    raise CorruptionError(f"vector {key!r} is missing or of another version")
            except TiermemError as exc:
                self.lost.append(f"vector of {self._told(key)} is lost: {exc}")
                data = _without_vector(key, frame)
            else:
                txn.put(key, bytes(vector), db=self.new.dbs.vectors)
                # No segment is taken over: they are derived, and are made anew.
                txn.put(key, b"", db=self.new.dbs.unsealed)
                info.vectors += 1
                info.unsealed += 1
                info.dimension = info.dimension or len(found[1]) // 4
                info.metric = info.metric or "cosine"
        txn.put(key, data, db=self.new.dbs.records)
        if frame.expires != NEVER:
            txn.put(expiry_key(frame.expires, key), b"", db=self.new.dbs.expiry)
            info.timed += 1
        info.made = True
        info.records += 1
        info.ordered = info.ordered and bool(frame.flags & STREAM)
        self._state.highest = max(self._state.highest, frame.version)

    def _log(self, txn: Any) -> None:
        """Keep the newest unbroken run of intact log rows, and the cursors that stand in it."""
        kept: list[tuple[bytes, bytes, int]] = []
        for key, row in self.old.rows(self.old.dbs.log):
            try:
                size = len(unpack_log_row(key, row)[1])
            except TiermemError as exc:
                self.lost.append(f"change log cut: {exc}")
                kept = []
                continue
            if kept and U64.unpack(kept[-1][0])[0] + kept[-1][2] != U64.unpack(key)[0]:
                self.lost.append("change log cut: it has a gap")
                kept = []
            kept.append((key, bytes(row), size))
        state = self._state
        if kept:
            state.first_sequence = int(U64.unpack(kept[0][0])[0])
            end = int(U64.unpack(kept[-1][0])[0]) + kept[-1][2]
            if end < state.next_sequence:
                self.lost.append("change log emptied: its end is missing")
                kept, state.first_sequence = [], state.next_sequence
            state.next_sequence = max(end, state.next_sequence)
        for key, data, _ in kept:
            txn.put(key, data, db=self.new.dbs.log)
        for key, row in self.old.rows(self.old.dbs.cursors):
            try:
                cursor = unpack_cursor(key, row)
            except TiermemError as exc:
                self.lost.append(f"cursor lost: {exc}")
                continue
            if state.first_sequence - 1 <= cursor.position < state.next_sequence:
                txn.put(key, bytes(row), db=self.new.dbs.cursors)
            else:
                self.lost.append(f"cursor lost: {key.decode()!r} stood outside the log that is left")


def _without_vector(key: bytes, frame: Frame) -> bytes:
    return pack_frame(
        key,
        codec=frame.codec,
        flags=frame.flags & ~HAS_VECTOR,
        dictionary=frame.dictionary,
        version=frame.version,
        given=frame.given,
        at=frame.at,
        created=frame.created,
        updated=frame.updated,
        expires=frame.expires,
        metadata=frame.metadata,
        value_bytes=frame.value_bytes,
        body=frame.body,
    )
