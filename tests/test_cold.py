"""The cold tier: which version stands, every index in step with the records, and errors with names of our own."""

from __future__ import annotations

import math
import os
import random
import shutil
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import permutations
from pathlib import Path
from typing import Any

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.workers import eventually
from tiermem.clock import sortable
from tiermem.codec.compress import Compressor
from tiermem.codec.frame import HAS_VECTOR, NEVER, STREAM, peek, seal, unpack_frame
from tiermem.codec.operation import DELETE, PUT, Operation
from tiermem.config import CodecConfig, ColdConfig
from tiermem.errors import (
    ClosedError,
    CorruptionError,
    IncompatibleFormatError,
    ReadOnlyError,
    StorageError,
    StoreFullError,
)
from tiermem.tiers.cold import ColdEnv, Snapshot, Writer, upkeep
from tiermem.tiers.cold.env import check_file, translate
from tiermem.tiers.cold.layout import (
    CLOCK_SHIFT,
    OPS,
    REASSIGNED,
    SLOT_MASK,
    U32,
    U64,
    CursorInfo,
    Identity,
    NamespaceInfo,
    State,
    expiry_key,
    pack_row,
    stream_bound,
    stream_key,
    successor,
    unpack_cursor,
    unpack_identity,
    unpack_info,
    unpack_log_row,
)
from tiermem.tiers.cold.pages import PageFile
from tiermem.tiers.cold.snapshot import marked
from tiermem.tiers.cold.walking import walk, walk_apart

CONFIG = ColdConfig(map_size=2**28)


def version(clock: int, slot: int = 0) -> int:
    return clock << CLOCK_SHIFT | slot


def put(
    key: str,
    at_version: int,
    value: bytes = b"\x01",
    *,
    namespace: str = "n",
    expires: float = NEVER,
    now: float = 10.0,
    vector: bytes = b"",
    flags: int = 0,
    at: float = 10.0,
) -> Operation:
    flags |= HAS_VECTOR if vector else 0
    return Operation(PUT, flags, namespace, key, at_version, at, now, expires, b"", vector, value)


def delete(key: str, at_version: int, *, namespace: str = "n", now: float = 10.0) -> Operation:
    return Operation(DELETE, 0, namespace, key, at_version, now, now, NEVER, b"", b"", b"")


class Cold:
    """An environment with a writer at hand."""

    def __init__(self, root: Path, codec: CodecConfig | None = None) -> None:
        (root / "gen-1").mkdir(parents=True)
        self.root = root
        self.env = ColdEnv(root, 1, CONFIG, create=True)
        self.compressor = Compressor(codec or CodecConfig())
        self.samples: list[tuple[str, bytes]] = []

    def sampler(self, name: str, info: NamespaceInfo) -> Callable[[bytes], object] | None:
        return lambda value: self.samples.append((name, value))

    @contextmanager
    def writing(self) -> Iterator[Writer]:
        with self.env.write() as txn:
            writer = Writer(self.env, txn, self.compressor, "dot", self.sampler)
            yield writer
            writer.finish()

    def apply(self, *ops: Operation, decided: bool = False) -> list[int]:
        with self.writing() as writer:
            return [writer.apply(op, decided=decided) for op in ops]

    def do(self, step: Callable[[Writer], Any]) -> Any:
        with self.writing() as writer:
            return step(writer)

    def record(self, key: str, namespace: str = "n") -> tuple[int, bytes] | None:
        """(version, value) of a committed record."""
        with self.env.read() as snapshot:
            info = snapshot.info(namespace)
            if info is None or info.dropped:
                return None
            frame = snapshot.record(info.prefix + key.encode())
            if frame is None:
                return None
            body = self.compressor.decompress(frame.codec, frame.dictionary, frame.body, frame.value_bytes)
            return frame.version, body

    def state(self) -> State:
        with self.env.read() as snapshot:
            return snapshot.state()

    def changes(self, after: int = 0) -> list[tuple[int, str, str, str]]:
        with self.env.read() as snapshot:
            return [(sequence, name, key, OPS[op]) for sequence, (name, key, op, _) in snapshot.log(after)]


@pytest.fixture
def cold(tmp_path: Path) -> Iterator[Cold]:
    cold = Cold(tmp_path / "store")
    yield cold
    cold.env.close()


# ------------------------------------------------------------------------------------------------- which version stands


def test_a_plain_lower_version_is_void(cold: Cold) -> None:
    assert cold.apply(put("k", version(20), b"\x02")) == [version(20)]
    with cold.writing() as writer:
        assert writer.apply(put("k", version(19), b"\x03")) == 0
        assert writer.apply(put("k", version(20), b"\x04")) == 0
        assert writer.superseded == 2
        assert writer.changes == []
    assert cold.record("k") == (version(20), b"\x02")
    assert cold.apply(put("k", version(21), b"\x05")) == [version(21)]


def test_a_decided_write_always_takes_effect(cold: Cold) -> None:
    cold.apply(put("k", version(20, 3), b"\x02"))
    (given,) = cold.apply(put("k", version(7, 5), b"\x03"), decided=True)
    assert given > version(20, 3)
    assert given & REASSIGNED
    assert given & SLOT_MASK == 5, "it stays in the slot of the client that wrote it"
    assert cold.record("k") == (given, b"\x03")
    assert cold.state().highest == given


def test_a_late_plain_write_stands_above_a_decided_one(cold: Cold) -> None:
    (decided,) = cold.apply(put("k", version(20), b"\x02"), decided=True)
    assert decided == version(20)
    (late,) = cold.apply(put("k", version(3, 9), b"\x03"))
    assert late > decided
    assert cold.record("k") == (late, b"\x03")
    (gone,) = cold.apply(delete("k", version(2)), decided=True)
    assert gone > late
    (late,) = cold.apply(put("k", version(4), b"\x04"))
    assert cold.record("k") == (late, b"\x04")
    assert late > gone


@pytest.mark.parametrize("gone", [False, True])
def test_plain_writes_behind_a_decided_one_rank_as_their_clients_gave_them(cold: Cold, gone: bool) -> None:
    cold.apply(put("k", version(20), b"\x02"), decided=True)
    first = delete("k", version(5, 9)) if gone else put("k", version(5, 9), b"\x05")
    (lifted,) = cold.apply(first)
    assert lifted > version(20)
    assert cold.apply(put("k", version(4, 7), b"\x04")) == [0], "another client's, and older"
    (last,) = cold.apply(put("k", version(6, 9), b"\x06"))
    assert last > lifted, "the same client's next write was taken for one before it"
    assert cold.record("k") == (last, b"\x06")
    (other,) = cold.apply(put("k", version(7, 7), b"\x07"))
    assert cold.record("k") == (other, b"\x07")
    assert cold.apply(put("k", other + 1, b"\x08")) == [other + 1]


@pytest.mark.parametrize("gone", [False, True])
def test_what_is_older_than_what_a_decided_write_found_comes_too_late(cold: Cold, gone: bool) -> None:
    """It came into a journal that was drained before the one that held the newer."""
    cold.apply(put("k", version(10, 1), b"\x01"))
    (decided,) = cold.apply(delete("k", version(20)) if gone else put("k", version(20), b"\x02"), decided=True)
    assert cold.apply(put("k", version(9, 2), b"\x03")) == [0]
    assert cold.apply(delete("k", version(8, 2))) == [0]
    (late,) = cold.apply(put("k", version(11, 2), b"\x04"))
    assert late > decided
    assert cold.record("k") == (late, b"\x04")


def test_a_row_of_decided_writes_ranks_as_what_the_first_found(cold: Cold) -> None:
    cold.apply(put("k", version(10, 1), b"\x01"))
    for number in (20, 21, 22):
        cold.apply(put("k", version(number), b"\x02"), decided=True)
    cold.apply(delete("k", version(23)), decided=True)
    cold.apply(put("k", version(24), b"\x02"), decided=True)
    assert cold.apply(put("k", version(10, 1), b"\x03"), put("k", version(9, 3), b"\x03")) == [0, 0]
    (late,) = cold.apply(put("k", version(12, 2), b"\x04"))
    assert cold.record("k") == (late, b"\x04")


def test_a_client_cannot_set_flags_of_the_store(cold: Cold) -> None:
    cold.apply(put("k", version(20)), put("k", version(21), flags=0xFC | STREAM))
    with cold.env.read() as snapshot:
        info = snapshot.info("n")
        assert info is not None
        assert peek(snapshot.txn.get(info.prefix + b"k", db=snapshot.dbs.records)).flags == STREAM


def test_a_deleted_record_stays_deleted(cold: Cold) -> None:
    cold.apply(put("k", version(20)), delete("k", version(30)))
    assert cold.apply(put("k", version(25))) == [0]
    assert cold.record("k") is None
    assert cold.state().floors == 1
    assert cold.apply(put("k", version(31))) == [version(31)]
    assert cold.state().floors == 0


def test_deleting_what_is_not_there_leaves_a_floor(cold: Cold) -> None:
    cold.apply(put("other", version(1)))
    assert cold.apply(delete("k", version(30))) == [version(30)]
    assert cold.changes() == [(1, "n", "other", "put")]
    assert cold.apply(put("k", version(29))) == [0]


def test_deleting_in_a_namespace_that_is_not_there_leaves_a_floor(cold: Cold) -> None:
    cold.apply(delete("k", version(30)))
    cold.apply(put("k", version(29)))
    assert cold.record("k") is None, "an older journal brought back what had been deleted"


def test_a_lower_delete_is_void(cold: Cold) -> None:
    cold.apply(put("k", version(20)))
    assert cold.apply(delete("k", version(19))) == [0]
    assert cold.record("k") == (version(20), b"\x01")


def test_after_floors_were_forgotten_late_writes_stand_above_the_horizon(cold: Cold) -> None:
    cold.apply(put("k", version(20)), delete("k", version(30)))
    cold.do(upkeep.purge_floors)
    state = cold.state()
    assert (state.floors, state.horizon) == (0, version(30))
    (late,) = cold.apply(put("k", version(5, 2), b"\x07"))
    assert late > version(30)
    assert cold.record("k") == (late, b"\x07")
    # Above the horizon nothing is changed.
    assert cold.apply(put("new", late + 5)) == [late + 5]
    cold.do(upkeep.purge_floors)
    assert cold.state().horizon == version(30), "without floors there is nothing to forget"


def test_a_floor_outlives_the_transaction_that_set_it(cold: Cold) -> None:
    """Beside the drain something may have come into a journal that is older than a delete in one that came later."""
    cold.apply(put("k", version(10)), put("other", version(11)), delete("other", version(12)))

    def drained(writer: Any) -> None:
        assert writer.apply(delete("k", version(30))) == version(30)
        upkeep.purge_floors(writer)

    cold.do(drained)
    assert (cold.state().floors, cold.state().horizon) == (1, version(12))
    assert cold.apply(put("k", version(29))) == [0]
    assert cold.record("k") is None
    assert cold.apply(put("other", version(11, 3)))[0] > version(12)
    cold.do(upkeep.purge_floors)
    assert cold.state().floors == 0


def test_a_drop_leaves_a_floor_for_the_whole_namespace(cold: Cold) -> None:
    cold.apply(put("k", version(20)), put("z", version(21)))
    assert cold.do(lambda writer: writer.drop("n"))
    assert not cold.do(lambda writer: writer.drop("n"))
    assert not cold.do(lambda writer: writer.drop("never"))
    assert cold.record("k") is None
    floor = cold.state().highest
    (late,) = cold.apply(put("k", version(22), b"\x09"))
    assert late > floor, "it was acknowledged after the drop had drained every journal"
    assert cold.record("k") == (late, b"\x09")
    assert cold.record("z") is None
    assert [change[3] for change in cold.changes()] == ["put", "put", "drop", "put"]


def test_a_record_that_had_expired_when_it_was_replaced_is_a_new_one(cold: Cold) -> None:
    def created() -> float:
        with cold.env.read() as snapshot:
            info = snapshot.info("n")
            assert info is not None
            frame = snapshot.record(info.prefix + b"k")
            assert frame is not None
            return frame.created

    cold.apply(put("k", version(1), now=10.0, expires=50.0))
    cold.apply(put("k", version(2), now=20.0, expires=30.0))
    assert created() == 10.0
    cold.apply(put("k", version(3), now=30.0))
    assert created() == 30.0
    # Replayed after it has expired, a put still replaces what was there.
    cold.apply(put("k", version(4), now=40.0, expires=41.0))
    assert cold.record("k") == (version(4), b"\x01")


@settings(max_examples=60)
@given(
    writes=st.lists(st.tuples(st.sampled_from("pd"), st.sampled_from("ab"), st.integers(1, 40)), max_size=4),
    data=st.data(),
)
def test_plain_writes_come_to_the_same_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[str, str, int]], data: st.DataObject
) -> None:
    """Journals are drained in an order nobody chose: the highest version of each key stands all the same."""
    clocks = data.draw(st.permutations(range(1, len(writes) + 1)))
    ops = [
        put(key, version(clock), bytes((value,))) if kind == "p" else delete(key, version(clock))
        for (kind, key, value), clock in zip(writes, clocks, strict=True)
    ]
    wanted = {}
    for op in sorted(ops, key=lambda op: op.version):
        wanted[op.key] = (op.version, op.value) if op.kind == PUT else None
    orders = list(permutations(ops))
    for order in data.draw(st.sampled_from([orders, orders[::-1]]))[:6]:
        cold = Cold(tmp_path_factory.mktemp("order"))
        for op in order:
            cold.apply(op)
        assert {key: cold.record(key) for key in wanted} == wanted
        cold.env.close()
        shutil.rmtree(cold.root)


# ------------------------------------------------------------------------------------------------- what is kept in step


def recount(cold: Cold) -> None:
    """Every index row and counter, counted anew from the records."""
    with cold.env.read() as snapshot:
        dbs, txn = snapshot.dbs, snapshot.txn
        garbage = {key for key, _ in snapshot.rows(dbs.garbage)}
        infos = {info.prefix: info for _, info in snapshot.infos()}
        tally = {prefix: [0, 0, 0, True] for prefix in infos}
        expiry, vectors = set(), set()
        for key, row in snapshot.rows(dbs.records):
            frame = unpack_frame(key, row)
            if frame.expires != NEVER:
                expiry.add(expiry_key(frame.expires, key))
            if frame.flags & HAS_VECTOR and key[:4] not in garbage:
                vectors.add(key)
                found = snapshot.vector(key)
                assert found is not None
                assert found[0] == frame.version
            if key[:4] in garbage:
                continue
            count = tally[key[:4]]
            count[0] += 1
            count[1] += frame.expires != NEVER
            count[2] += bool(frame.flags & HAS_VECTOR)
            count[3] = count[3] and bool(frame.flags & STREAM)
        for prefix, info in infos.items():
            assert (info.records, info.timed, info.vectors) == tuple(tally[prefix][:3])
            assert not info.ordered or tally[prefix][3]
            assert txn.get(prefix, db=dbs.names) is not None
        assert {key for key, _ in snapshot.rows(dbs.expiry)} == expiry
        assert {key for key, _ in snapshot.rows(dbs.vectors) if key[:4] not in garbage} == vectors
        state = snapshot.state()
        assert sum(1 for _ in snapshot.rows(dbs.floors)) == state.floors
        sequences = [sequence for sequence, _ in snapshot.log(0)]
        assert sequences == list(range(state.first_sequence, state.next_sequence))


class ColdMachine(RuleBasedStateMachine):
    """Random transactions against a dict; every index and counter is recounted after each."""

    names = st.sampled_from(["n", "m/x"])
    keys = st.sampled_from(["a", "b", "c", "d"])

    @initialize()
    def begin(self) -> None:
        import tempfile

        self.folder = tempfile.mkdtemp(prefix="tiermem-cold-")
        self.cold = Cold(Path(self.folder) / "store")
        self.model: dict[tuple[str, str], tuple[bytes, float]] = {}
        self.clock = 100
        self.now = 10.0

    def next(self) -> int:
        self.clock += 1
        self.clock = max(self.clock, (self.cold.state().highest >> CLOCK_SHIFT) + 1)
        return version(self.clock)

    @rule(
        name=names,
        key=keys,
        value=st.sampled_from([b"\x01", b"\x02" * 60, b"\x03" * 1899, b"\x04" * 5000]),
        ttl=st.sampled_from([None, None, 5.0, 50.0]),
        vector=st.booleans(),
        stream=st.booleans(),
        decided=st.booleans(),
    )
    def put(
        self, name: str, key: str, value: bytes, ttl: float | None, vector: bool, stream: bool, decided: bool
    ) -> None:
        expires = NEVER if ttl is None else self.now + ttl
        op = put(
            key,
            self.next(),
            value,
            namespace=name,
            expires=expires,
            now=self.now,
            vector=struct.pack("<2f", 1, 2) if vector else b"",
            flags=STREAM if stream else 0,
        )
        assert self.cold.apply(op, decided=decided) == [op.version]
        self.model[name, key] = (value, expires)

    @rule(name=names, key=keys)
    def late(self, name: str, key: str) -> None:
        if (name, key) in self.model:
            with self.cold.env.read() as snapshot:
                info = snapshot.info(name)
                assert info is not None
                row = snapshot.txn.get(info.prefix + key.encode(), db=snapshot.dbs.records)
                head = peek(row)
            given = self.cold.apply(put(key, head.version - 1, b"\x09", namespace=name, now=self.now))[0]
            # A decided write is followed by what is newer than what it found; a plain one stands against lower ones.
            if head.version - 1 > head.given or (info.floor >= head.version - 1 > 0 and given):
                assert given > head.version
                self.model[name, key] = (b"\x09", NEVER)
            else:
                assert given == 0

    @rule(name=names, key=keys, decided=st.booleans())
    def delete(self, name: str, key: str, decided: bool) -> None:
        self.cold.apply(delete(key, self.next(), namespace=name, now=self.now), decided=decided)
        self.model.pop((name, key), None)

    @rule(name=names)
    def drop(self, name: str) -> None:
        self.cold.do(lambda writer: writer.drop(name))
        self.model = {place: kept for place, kept in self.model.items() if place[0] != name}

    @rule(limit=st.integers(1, 6))
    def collect(self, limit: int) -> None:
        assert self.cold.do(lambda writer: upkeep.collect(writer, limit)) <= limit

    @rule(limit=st.integers(1, 6))
    def sweep(self, limit: int) -> None:
        self.cold.do(lambda writer: upkeep.sweep(writer, self.now, limit))
        gone = {place for place, (_, expires) in self.model.items() if expires <= self.now}
        for name, key in gone:
            if self.cold.record(key, name) is None:
                del self.model[name, key]

    @rule()
    def purge(self) -> None:
        self.cold.do(upkeep.purge_floors)

    @rule(keep=st.integers(0, 6))
    def trim(self, keep: int) -> None:
        self.cold.do(lambda writer: upkeep.trim_log(writer, keep))
        state = self.cold.state()
        assert state.next_sequence - state.first_sequence >= min(keep, state.next_sequence - state.first_sequence)

    @rule(seconds=st.sampled_from([1.0, 10.0, 100.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def in_step(self) -> None:
        if hasattr(self, "cold"):
            recount(self.cold)
            for (name, key), (value, _) in self.model.items():
                found = self.cold.record(key, name)
                assert found is not None
                assert found[1] == value
            live = sum(info.records for info in self.infos())
            assert live == len(self.model)

    def infos(self) -> list[NamespaceInfo]:
        with self.cold.env.read() as snapshot:
            return [info for _, info in snapshot.infos()]

    def teardown(self) -> None:
        if hasattr(self, "cold"):
            self.cold.env.close()
            shutil.rmtree(self.folder)


TestCold = ColdMachine.TestCase
TestCold.settings = settings(max_examples=25, stateful_step_count=30)


RUNS = st.lists(
    st.builds(
        lambda name, number, kind, clock, slot: (
            delete(f"k{number:02d}", version(clock, slot), namespace=name)
            if kind == "delete"
            else put(
                f"k{number:02d}",
                version(clock, slot),
                b"\x01" * (number + 40),
                namespace=name,
                expires=50.0 if kind == "ttl" else NEVER,
                vector=struct.pack("<2f", 1, 2) if kind == "vector" else b"",
                flags=STREAM if kind == "stream" else 0,
            )
        ),
        st.sampled_from(["n", "n", "n", "m/x"]),
        st.integers(0, 30),
        st.sampled_from(["put", "put", "put", "put", "stream", "ttl", "vector", "delete"]),
        st.integers(1, 60),
        st.integers(0, 1),
    ),
    max_size=30,
)


@given(
    runs=st.lists(st.tuples(RUNS, st.booleans(), st.sampled_from(["", "", "drop", "purge"])), min_size=1, max_size=4)
)
def test_applying_many_equals_applying_each(tmp_path_factory: pytest.TempPathFactory, runs: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("many")
    one, many = Cold(folder / "one"), Cold(folder / "many")
    for run, ascending, then in runs:
        ops = sorted(run, key=lambda op: (op.namespace, op.key)) if ascending else run
        versions = one.do(lambda writer, ops=ops: [writer.apply(op) for op in ops])
        assert many.do(lambda writer, ops=ops: writer.apply_all(ops)) == versions
        for cold in (one, many):
            if then == "drop":
                cold.do(lambda writer: writer.drop("n"))
            elif then == "purge":
                cold.do(upkeep.purge_floors)
    recount(many)
    assert everything(many) == everything(one)
    assert many.changes() == one.changes()
    assert many.samples == one.samples
    for cold in (one, many):
        cold.env.close()


def test_applying_many_stops_at_a_deadline_behind_a_whole_frame(tmp_path: Path) -> None:
    """No frame is torn: of three, the first is applied, whatever the time."""
    cold = Cold(tmp_path)
    ops = [put(f"k{number}", number + 1, expires=1e12) for number in range(6)]
    for op, end in zip(ops, (10, 10, 20, 20, 20, 30), strict=True):
        op.end = end
    assert len(cold.do(lambda writer: writer.apply_all(ops, 0.0))) == 2
    assert len(cold.do(lambda writer: writer.apply_all(ops[2:], 0.0))) == 3
    assert len(cold.do(lambda writer: writer.apply_all(ops[5:], 0.0))) == 1
    cold.env.close()


def everything(cold: Cold) -> dict[str, list[tuple[bytes, bytes]]]:
    """Every row of every database but the log's, whose commits may be cut differently."""
    with cold.env.read() as snapshot:
        dbs = {name: getattr(snapshot.dbs, name) for name in snapshot.dbs._fields if name != "log"}
        return {name: [(key, bytes(row)) for key, row in snapshot.rows(db)] for name, db in dbs.items()}


def test_a_transaction_that_writes_nothing_writes_no_row(cold: Cold) -> None:
    cold.apply(put("k", version(5)))
    before = cold.state()
    cold.do(lambda writer: writer.apply(put("k", version(4))))
    cold.do(lambda writer: writer.live("n"))
    assert cold.state() == before
    cold.do(lambda writer: writer.changed("fresh"))
    assert cold.state().commits == before.commits + 1


def test_samples_are_the_small_records(cold: Cold) -> None:
    cold.apply(*(put(f"k{size}", version(size + 1), b"x" * size) for size in (1, 47, 48, 8192, 8193)))
    assert [(name, len(value)) for name, value in cold.samples] == [("n", 48), ("n", 8192)]


def test_a_large_value_replaced_many_times_does_not_let_the_file_grow(cold: Cold) -> None:
    noise = random.Random(1)
    for number in range(1, 60):
        cold.apply(put("k", version(number), noise.randbytes(40_000 - number * 500)))
    used, size, behind = cold.env.sizes()
    assert used <= size
    assert used < 600_000
    assert behind == 0


# --------------------------------------------------------------------------------------------------------------- upkeep


def test_a_sweep_takes_what_is_due_and_no_more(cold: Cold) -> None:
    cold.apply(*(put(f"k{i}", version(i + 1), expires=float(20 + i)) for i in range(10)), put("stays", version(99)))
    assert cold.do(lambda writer: upkeep.sweep(writer, 19.9, 100)) == 0
    assert cold.do(lambda writer: upkeep.sweep(writer, 22.0, 2)) == 2
    assert cold.do(lambda writer: upkeep.sweep(writer, 22.0, 100)) == 1
    with cold.env.read() as snapshot:
        info = snapshot.info("n")
        assert info is not None
        assert (info.records, info.timed) == (8, 7)
    assert [change[2:] for change in cold.changes(11)] == [("k0", "expire"), ("k1", "expire"), ("k2", "expire")]
    # What was swept does not come back from a journal that still holds it.
    assert cold.apply(put("k0", version(1))) == [0]
    assert cold.do(lambda writer: upkeep.sweep(writer, math.inf, 100)) == 7
    recount(cold)


def test_a_sweep_before_the_epoch(cold: Cold) -> None:
    cold.apply(put("old", version(1), expires=-500.0), put("older", version(2), expires=-501.0))
    assert cold.do(lambda writer: upkeep.sweep(writer, -501.0, 100)) == 1
    assert cold.record("older") is None
    assert cold.record("old") is not None


def test_a_row_of_the_expiry_index_that_points_nowhere_is_removed(cold: Cold) -> None:
    cold.apply(put("k", version(1), expires=50.0))
    with cold.env.read() as snapshot:
        info = snapshot.info("n")
        assert info is not None
    stray = [
        expiry_key(5.0, info.prefix + b"none"),
        expiry_key(5.0, info.prefix + b"k"),
        expiry_key(5.0, b"\0\0\0\x63x"),
    ]
    with cold.env.write() as txn:
        for key in stray:
            txn.put(key, b"", db=cold.env.dbs.expiry)
    assert cold.do(lambda writer: upkeep.sweep(writer, 10.0, 100)) == 3
    recount(cold)
    assert cold.record("k") is not None


def test_a_sweep_leaves_dropped_namespaces_to_collect(cold: Cold) -> None:
    cold.apply(put("k", version(1), expires=5.0), put("other", version(2), namespace="m", expires=5.0))
    cold.do(lambda writer: writer.drop("n"))
    cold.do(lambda writer: upkeep.sweep(writer, 10.0, 100))
    assert [change[1:] for change in cold.changes(3)] == [("m", "other", "expire")]
    cold.apply(put("k", version(2**40), expires=5.0))
    cold.do(lambda writer: upkeep.sweep(writer, 10.0, 100))
    assert cold.record("k") is None
    while cold.do(lambda writer: upkeep.collect(writer, 100)):
        pass
    recount(cold)
    with cold.env.read() as snapshot:
        assert list(snapshot.rows(snapshot.dbs.expiry)) == []
        assert list(snapshot.rows(snapshot.dbs.garbage)) == []


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
def test_collect_in_small_steps(cold: Cold, limit: int) -> None:
    raw = struct.pack("<2f", 1, 2)
    cold.apply(*(put(f"k{i}", version(i + 1), vector=raw, expires=50.0) for i in range(5)))
    cold.apply(*(delete(f"d{i}", version(i + 50)) for i in range(3)))
    cold.apply(put("k", version(80), namespace="m"))
    cold.do(lambda writer: writer.drop("n"))
    steps = 0
    while True:
        with cold.env.read() as snapshot:
            if next(snapshot.rows(snapshot.dbs.garbage), None) is None:
                break
        assert cold.do(lambda writer: upkeep.collect(writer, limit)) <= limit
        recount(cold)
        steps += 1
    assert steps >= 13 // limit
    with cold.env.read() as snapshot:
        for db in (snapshot.dbs.vectors, snapshot.dbs.expiry, snapshot.dbs.floors):
            assert list(snapshot.rows(db)) == []
        assert [key[4:] for key, _ in snapshot.rows(snapshot.dbs.records)] == [b"k"]


def test_the_log_is_trimmed_to_what_is_kept(cold: Cold) -> None:
    for number in range(10):
        cold.apply(*(put(f"k{number}-{i}", version(number * 10 + i + 1)) for i in range(3)))
    assert cold.state().next_sequence == 31
    cold.do(lambda writer: upkeep.trim_log(writer, 30))
    assert cold.state().first_sequence == 1
    cold.do(lambda writer: upkeep.trim_log(writer, 10))
    # The row that holds the oldest change to be kept stays whole.
    assert cold.state().first_sequence == 19
    assert [change[0] for change in cold.changes()] == list(range(19, 31))
    cold.do(lambda writer: upkeep.trim_log(writer, 0))
    assert cold.state().first_sequence == 28


def test_the_log_is_not_trimmed_past_a_cursor(cold: Cold) -> None:
    for number in range(10):
        cold.apply(put(f"k{number}", version(number + 1)))
    cold.do(lambda writer: writer.set_cursor("slow", CursorInfo(3)))
    cold.do(lambda writer: writer.set_cursor("fast", CursorInfo(8, "n")))
    cold.do(lambda writer: upkeep.trim_log(writer, 0))
    assert [change[0] for change in cold.changes(3)] == list(range(4, 11))
    assert cold.state().first_sequence == 4
    with cold.env.read() as snapshot:
        assert dict(snapshot.cursors()) == {"fast": CursorInfo(8, "n"), "slow": CursorInfo(3)}
    cold.do(lambda writer: writer.set_cursor("slow", None))
    cold.do(lambda writer: upkeep.trim_log(writer, 0))
    assert cold.state().first_sequence == 9


@settings(max_examples=25)
@given(sizes=st.lists(st.integers(1, 5), max_size=8), keep=st.integers(0, 12))
def test_the_log_from_every_position(tmp_path_factory: pytest.TempPathFactory, sizes: list[int], keep: int) -> None:
    cold = Cold(tmp_path_factory.mktemp("log"))
    number = 0
    for size in sizes:
        ops = []
        for _ in range(size):
            number += 1
            ops.append(put(f"k{number}", version(number), namespace="nm"[number % 2]))
        cold.apply(*ops)
    whole = [(i, "nm"[i % 2], f"k{i}", "put") for i in range(1, number + 1)]
    for after in range(number + 3):
        assert cold.changes(after) == whole[after:]
    cold.do(lambda writer: upkeep.trim_log(writer, keep))
    first = cold.state().first_sequence
    assert first <= max(1, number + 1 - keep)
    for after in range(number + 3):
        assert cold.changes(after) == whole[max(after, first - 1) :]
    cold.env.close()
    shutil.rmtree(cold.root)


def test_dictionaries_are_numbered_and_used_from_then_on(cold: Cold) -> None:
    alike = [b'{"symbol": "SYM%d", "venue": "XNYS", "condition": "regular"}' % (i % 7) for i in range(200)]
    trained = Compressor(CodecConfig(dictionary_bytes=512)).train(alike)
    assert trained is not None
    cold.apply(put("before", version(1), alike[0]))
    assert cold.do(lambda writer: upkeep.add_dictionary(writer, "n", trained)) == 1
    assert cold.do(lambda writer: upkeep.add_dictionary(writer, "m", trained)) == 2
    with cold.env.read() as snapshot:
        assert dict(snapshot.dictionaries()) == {1: trained, 2: trained}
        for number, data in snapshot.dictionaries():
            cold.compressor.add(number, data)
    cold.apply(put("after", version(2), alike[1]))
    with cold.env.read() as snapshot:
        info = snapshot.info("n")
        assert info is not None
        frame = snapshot.record(info.prefix + b"after")
        assert frame is not None
        assert (frame.dictionary, info.dictionary) == (1, 1)
        assert len(frame.body) < len(alike[1])
    assert cold.record("before") == (version(1), alike[0])
    assert cold.record("after") == (version(2), alike[1])


# ------------------------------------------------------------------------------------------------------------ snapshots


def test_rows_of_a_range_in_both_directions(cold: Cold) -> None:
    names = [b"a", b"ab", b"abc", b"b", b"b\xff", b"b\xff\xff", b"c"]
    with cold.env.write() as txn:
        for name in names:
            txn.put(name, b"", db=cold.env.dbs.meta)
    bounds = [b"", b"a", b"aa", b"ab", b"ac", b"b", b"b\xff", b"b\xff\xff\xff", b"c", b"d", b"\xff"]
    with cold.env.read() as snapshot:
        for prefix in (b"", b"a", b"ab", b"b", b"b\xff", b"c", b"x", b"\xff"):
            for start in bounds:
                for stop in bounds:
                    wanted = [
                        name
                        for name in names
                        if name.startswith(prefix) and name >= start and (not stop or name < stop)
                    ]
                    for reverse in (False, True):
                        found = [key for key, _ in snapshot.rows(snapshot.dbs.meta, prefix, start, stop, reverse)]
                        assert found == (wanted[::-1] if reverse else wanted), (prefix, start, stop, reverse)
        read = cold.env.rows_read
        next(snapshot.rows(snapshot.dbs.meta))
        assert cold.env.rows_read == read + 1


def test_blocks_of_records_in_both_directions(cold: Cold) -> None:
    keys = ["a", "ab", "b", "c\0", "é"]
    cold.apply(*(put(key, version(1), namespace=name) for name in ("m", "n", "o") for key in keys))
    with cold.env.read(buffers=False) as snapshot:
        info = snapshot.info("n")
        assert info is not None
        stored = [info.prefix + key.encode() for key in keys]
        bounds = [info.prefix, *stored, *(key + b"\0" for key in stored), successor(info.prefix)]
        for low in bounds:
            for high in bounds:
                wanted = [key for key in stored if low <= key < high]
                for size in (1, 3, 9):
                    ahead, back = (snapshot.block(low, high, size, reverse) for reverse in (False, True))
                    assert [key for key, _ in ahead] == wanted[:size], (low, high)
                    assert [key for key, _ in back] == wanted[::-1][:size], (low, high)
        rows = [row for _, row in snapshot.block(info.prefix, successor(info.prefix), 9, False)]
        assert snapshot.frames([*stored, b"none", stored[0]]) == [*rows, None, rows[0]]
        assert {type(row) for row in rows} == {bytes}


def test_a_snapshot_does_not_see_what_comes_later(cold: Cold) -> None:
    cold.apply(put("k", version(1)))
    with cold.env.read() as snapshot:
        stamp = snapshot.stamp
        thread = threading.Thread(target=lambda: cold.apply(put("k", version(2), b"\x05")))
        thread.start()
        thread.join()
        info = snapshot.info("n")
        assert info is not None
        frame = snapshot.record(info.prefix + b"k")
        assert frame is not None
        assert frame.version == version(1)
        assert cold.env.sizes()[2] == 1, "a reader one commit behind"
        with cold.env.read() as later:
            assert later.stamp > stamp
    assert cold.env.sizes()[2] == 0
    assert cold.record("k") == (version(2), b"\x05")


def test_a_store_without_identity_is_none_of_ours(cold: Cold) -> None:
    with cold.env.read() as snapshot, pytest.raises(IncompatibleFormatError):
        snapshot.identity()
    with cold.env.read() as snapshot:
        assert snapshot.state() == State()
        assert marked(snapshot) == set()
        assert (snapshot.info("n"), snapshot.vector(b"x"), snapshot.record(b"x")) == (None,) * 3
    with cold.env.read(buffers=False) as snapshot:
        assert (snapshot.frames([b"x"]), snapshot.block(b"", b"x", 9, False)) == ([None], [])
    assert cold.env.value(b"x")[1] is None


def test_marks(cold: Cold) -> None:
    def applied(slot: int, journal_id: int, head: int) -> int:
        with cold.env.read() as snapshot:
            return snapshot.applied(slot, journal_id, head)

    cold.do(lambda writer: writer.set_mark(3, 7, 4096))
    cold.do(lambda writer: writer.set_mark(511, 2**63, 1))
    assert applied(3, 7, 5000) == 4096
    assert applied(511, 2**63, 1) == 1
    with cold.env.read() as snapshot:
        assert marked(snapshot) == {3, 511}
    # A journal that was never put into service holds nothing; any other must be the one that is named.
    assert applied(5, 0, 0) == applied(5, 8, 0) == 0
    with pytest.raises(CorruptionError, match="position is not known"):
        applied(5, 8, 16)
    with pytest.raises(CorruptionError):
        applied(3, 8, 5000)
    # While one takes the place of another, either may be found there.
    cold.do(lambda writer: writer.set_mark(3, 9, 0, (7, 5000)))
    assert (applied(3, 7, 5000), applied(3, 9, 100)) == (5000, 0)
    cold.do(lambda writer: writer.set_mark(3, 9, 0))
    with pytest.raises(CorruptionError):
        applied(3, 7, 5000)
    cold.do(lambda writer: writer.set_mark(3, None))
    with cold.env.read() as snapshot:
        assert marked(snapshot) == {511}


def damage(cold: Cold, db: str, key: bytes) -> None:
    with cold.env.write() as txn:
        row = bytearray(txn.get(key, db=getattr(cold.env.dbs, db)))
        row[-1] ^= 1
        row[20] ^= 0xFF
        txn.put(key, bytes(row), db=getattr(cold.env.dbs, db))


@pytest.mark.parametrize("decided", [False, True])
@pytest.mark.parametrize("late", [False, True])
def test_a_damaged_record_does_not_stand_in_the_way(cold: Cold, decided: bool, late: bool) -> None:
    raw = struct.pack("<2f", 1, 2)
    cold.apply(put("k", version(20), b"old", vector=raw, expires=50.0), put("z", version(21)))
    with cold.env.read() as snapshot:
        info = snapshot.info("n")
        assert info is not None
    damage(cold, "records", info.prefix + b"k")
    with pytest.raises(CorruptionError):
        cold.record("k")
    (given,) = cold.apply(put("k", version(5 if late else 30), b"new"), decided=decided)
    assert given > version(21), "what stood there cannot be known, so the write is put above everything"
    assert cold.record("k") == (given, b"new")
    recount(cold)


def test_a_damaged_record_can_be_deleted_and_others_hear_of_it(cold: Cold) -> None:
    cold.apply(put("k", version(20), expires=50.0))
    with cold.env.read() as snapshot:
        info = snapshot.info("n")
        assert info is not None
    damage(cold, "records", info.prefix + b"k")
    assert cold.apply(delete("k", version(30)))[0] > version(20)
    assert cold.record("k") is None
    recount(cold)
    assert cold.changes() == [(1, "n", "k", "put"), (2, "n", "k", "delete")]


def test_a_damaged_record_is_not_swept_away_silently(cold: Cold) -> None:
    cold.apply(put("k", version(20), expires=50.0), put("z", version(21), expires=50.0))
    with cold.env.read() as snapshot:
        info = snapshot.info("n")
        assert info is not None
    damage(cold, "records", info.prefix + b"k")
    cold.do(lambda writer: upkeep.sweep(writer, 60.0, 100))
    assert cold.record("z") is None
    with pytest.raises(CorruptionError):
        cold.record("k")


def test_a_damaged_floor_lets_late_writes_stand(cold: Cold) -> None:
    cold.apply(put("k", version(20)), delete("k", version(30)))
    with cold.env.read() as snapshot:
        info = snapshot.info("n")
        assert info is not None
    with cold.env.write() as txn:
        txn.put(info.prefix + b"k", b"no floor", db=cold.env.dbs.floors)
    (late,) = cold.apply(put("k", version(25), b"\x07"))
    assert late > version(30)
    assert cold.record("k") == (late, b"\x07")


def test_a_vector_in_a_namespace_without_dimension_gives_it_one(cold: Cold) -> None:
    cold.apply(put("k", version(1), vector=struct.pack("<3f", 1, 2, 3)))
    with cold.env.read() as snapshot:
        info = snapshot.info("n")
        assert info is not None
        assert (info.dimension, info.metric, info.vectors) == (3, "dot", 1)


def test_a_log_row_that_makes_no_sense(cold: Cold) -> None:
    cold.apply(put("k", version(1)))
    for rows in ([(0, "k", 9, 1)], [(0, "k", -1, 1)], [(3, "k", 0, 1)]):
        key = U64.pack(2)
        with cold.env.write() as txn:
            txn.put(key, pack_row(key, (["n"], rows)), db=cold.env.dbs.log)
        with pytest.raises(CorruptionError):
            cold.changes()


# --------------------------------------------------------------------------------------------------------------- layout


@given(a=st.floats(allow_nan=False), b=st.floats(allow_nan=False))
def test_keys_of_moments_sort_as_the_moments_do(a: float, b: float) -> None:
    assert (sortable(a) < sortable(b)) == (a < b)
    assert (expiry_key(a, b"z") < expiry_key(b, b"a")) == (a < b or (a == b and False))
    assert (stream_key(a, 5) < stream_key(b, 5)) == (a < b)
    assert stream_bound(a) <= stream_key(a, 0)
    assert (stream_key(a, 2**64 - 1) < stream_bound(b)) == (a < b)
    assert stream_key(a, 1) < stream_key(a, 2)


def test_the_two_zeros_are_one_moment() -> None:
    assert sortable(0.0) == sortable(-0.0)


@given(prefix=st.binary(max_size=4), tail=st.binary(max_size=3))
def test_the_successor_of_a_prefix(prefix: bytes, tail: bytes) -> None:
    high = successor(prefix)
    if high:
        assert prefix + tail < high
        assert not high.startswith(prefix)
    else:
        assert prefix.strip(b"\xff") == b""


def test_small_rows_read_back_and_damage_is_found() -> None:
    info = NamespaceInfo(
        id=5, dimension=3, metric="dot", model="model", records=1, timed=2, vectors=3, ordered=False, floor=9
    )
    identity = Identity(format=1, store_id=b"x" * 16, time_domain="real", moved_to=2)
    for row, unpack in (
        (info, unpack_info),
        (CursorInfo(4, "n"), unpack_cursor),
        ((["n"], [(0, "k", 1, 2)]), unpack_log_row),
    ):
        data = pack_row(b"key", row)
        assert unpack(b"key", data) == row
        with pytest.raises(CorruptionError):
            unpack(b"kez", data)
        with pytest.raises(CorruptionError):
            unpack(b"key", data[:-1] + bytes((data[-1] ^ 1,)))
        with pytest.raises(CorruptionError, match="intact but cannot be read"):
            unpack(b"key", seal(b"key", b"\xc1"))
    assert unpack_identity(pack_row(b"identity", identity)) == identity
    assert info.prefix == U32.pack(5)


def test_the_state_row() -> None:
    state = State(next_sequence=5, first_sequence=2, highest=77, horizon=66, next_namespace=3, floors=1, commits=9)
    assert State.unpack(state.pack()) == state
    with pytest.raises(CorruptionError, match="5 bytes, not 64"):
        State.unpack(seal(b"state", b"short"))
    with pytest.raises(CorruptionError):
        State.unpack(b"x" + state.pack()[1:])


# ------------------------------------------------------------------------------------------------------ the environment


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (lmdb.MapFullError("full"), StoreFullError),
        (lmdb.DiskError("disk"), StoreFullError),
        (lmdb.Error("mdb_txn_commit: No space left on device"), StoreFullError),
        (lmdb.Error("File too large"), StoreFullError),
        (lmdb.Error("Disk quota exceeded"), StoreFullError),
        (lmdb.CorruptedError("c"), CorruptionError),
        (lmdb.PageNotFoundError("p"), CorruptionError),
        (lmdb.InvalidError("i"), CorruptionError),
        (lmdb.VersionMismatchError("v"), IncompatibleFormatError),
        (lmdb.IncompatibleError("i"), IncompatibleFormatError),
        (lmdb.ReadonlyError("r"), ReadOnlyError),
        (lmdb.PanicError("p"), StorageError),
        (lmdb.Error("Attempt to operate on closed/deleted/dropped object."), ClosedError),
        (lmdb.ReadersFullError("r"), StorageError),
        (lmdb.BadTxnError("b"), StorageError),
        (lmdb.Error("anything"), StorageError),
    ],
)
def test_errors_of_lmdb_in_words_of_our_own(error: lmdb.Error, kind: type[Exception]) -> None:
    ours = translate(error, Path("store/gen-1"))
    assert type(ours) is kind
    assert str(error) in str(ours) or kind is ClosedError


def test_an_error_inside_a_transaction_is_translated_and_undoes_it(cold: Cold) -> None:
    def write() -> None:
        with cold.env.write() as txn:
            txn.put(b"k", b"v", db=cold.env.dbs.meta)
            txn.put(b"k" * 600, b"", db=cold.env.dbs.meta)

    with pytest.raises(StorageError) as caught:
        write()
    assert isinstance(caught.value.__cause__, lmdb.Error)
    with cold.env.read() as snapshot:
        assert snapshot.txn.get(b"k", db=snapshot.dbs.meta) is None
    with pytest.raises(ReadOnlyError) as refused, cold.env.read() as snapshot:
        snapshot.txn.put(b"k", b"v", db=cold.env.dbs.meta)
    assert isinstance(refused.value.__cause__, lmdb.ReadonlyError)


def test_a_map_that_is_full(tmp_path: Path) -> None:
    (tmp_path / "gen-1").mkdir()
    env = ColdEnv(tmp_path, 1, ColdConfig(map_size=2**20), create=True)
    with pytest.raises(StoreFullError, match="map_size"), env.write() as txn:
        txn.put(b"k", bytes(2**21), db=env.dbs.meta)
    with env.write() as txn:
        txn.put(b"k", b"v", db=env.dbs.meta)
    env.close()


def test_more_readers_than_there_is_room_for(tmp_path: Path) -> None:
    (tmp_path / "gen-1").mkdir()
    env = ColdEnv(tmp_path, 1, ColdConfig(max_readers=1), create=True)

    def crowd() -> None:
        with ExitStack() as stack:
            for _ in range(500):
                stack.enter_context(env.read())

    with pytest.raises(StorageError, match="MDB_READERS_FULL"):
        crowd()
    with env.read():
        pass
    env.close()


def test_closing_waits_for_readers_and_refuses_new_ones(cold: Cold) -> None:
    cold.apply(put("k", version(1)))
    closed = threading.Event()

    def close() -> None:
        cold.env.close()
        closed.set()

    with cold.env.read() as snapshot:
        thread = threading.Thread(target=close)
        thread.start()
        assert eventually(lambda: cold.env.closing)
        with pytest.raises(ClosedError), cold.env.read():
            pass
        with pytest.raises(ClosedError), cold.env.write():
            pass
        assert not closed.is_set()
        assert snapshot.state().highest == version(1)
    thread.join(30)
    assert closed.is_set()
    cold.env.close()


def test_a_copy_is_a_store_of_its_own(cold: Cold, tmp_path: Path) -> None:
    cold.apply(*(put(f"k{i}", version(i + 1)) for i in range(100)))
    (tmp_path / "copy" / "gen-1").mkdir(parents=True)
    cold.env.copy(tmp_path / "copy" / "gen-1")
    copy = ColdEnv(tmp_path / "copy", 1, CONFIG, read_only=True)
    with copy.read() as snapshot:
        assert snapshot.state() == cold.state()
    with pytest.raises(ReadOnlyError), copy.write():
        pass
    copy.close()
    assert walk(tmp_path / "copy" / "gen-1") == []
    with pytest.raises(StorageError):
        cold.env.copy(tmp_path / "absent")


def test_a_foreign_environment(tmp_path: Path) -> None:
    (tmp_path / "gen-1").mkdir()
    with lmdb.open(str(tmp_path / "gen-1"), max_dbs=1) as env, env.begin(write=True) as txn:
        txn.put(b"k", b"v")
    for read_only in (False, True):
        with pytest.raises(IncompatibleFormatError, match="no tiermem store"):
            ColdEnv(tmp_path, 1, CONFIG, read_only=read_only)


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """`data.mdb` of a store of some 100 pages, closed."""
    cold = Cold(tmp_path / "store")
    noise = random.Random(2)
    cold.apply(*(put(f"k{i:03}", version(i + 1), noise.randbytes(3000)) for i in range(100)))
    cold.env.close()
    return tmp_path / "store" / "gen-1" / "data.mdb"


def test_an_intact_file(closed: Path) -> None:
    assert check_file(closed) == ""
    assert walk(closed.parent) == []


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda path: path.unlink(), "missing"),
        (lambda path: os.truncate(path, 0), "too short"),
        (lambda path: os.truncate(path, 100), "too short"),
        (lambda path: os.truncate(path, 4096), "no valid meta page"),
        (lambda path: os.truncate(path, 4096 * 40), "truncated"),
        (lambda path: path.write_bytes(b"x" * 100_000), "no valid meta page"),
        (lambda path: path.write_bytes(bytes(100_000)), "no valid meta page"),
    ],
)
def test_a_file_that_must_not_be_mapped(closed: Path, damage: Callable[[Path], Any], word: str) -> None:
    damage(closed)
    assert word in check_file(closed)
    with pytest.raises(CorruptionError, match=word):
        ColdEnv(closed.parent.parent, 1, CONFIG)
    if closed.exists():
        assert walk(closed.parent)


@pytest.mark.parametrize("page", [0, 1])
@pytest.mark.parametrize("offset", [10, 16])
def test_a_damaged_meta_page(closed: Path, page: int, offset: int) -> None:
    data = bytearray(closed.read_bytes())
    data[page * 4096 + offset] ^= 0xFF
    closed.write_bytes(data)
    assert "no valid meta page" in check_file(closed)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_file_of_another_version_of_lmdb(closed: Path, read_only: bool) -> None:
    data = bytearray(closed.read_bytes())
    for page in (0, 1):
        struct.pack_into("=I", data, page * 4096 + 20, 999)
    closed.write_bytes(data)
    assert check_file(closed) == ""
    with pytest.raises(IncompatibleFormatError, match="another LMDB format"):
        ColdEnv(closed.parent.parent, 1, CONFIG, read_only=read_only)


@pytest.mark.parametrize("size", [0, 100, 4097, 2**31])
def test_a_page_size_that_is_none(closed: Path, size: int) -> None:
    data = bytearray(closed.read_bytes())
    struct.pack_into("=I", data, 40, size)
    closed.write_bytes(data)
    assert "no valid meta page" in check_file(closed)


def test_a_file_without_its_last_freed_pages_opens(closed: Path) -> None:
    # A commit may free what lies at the end and never write it.
    cold_env = ColdEnv(closed.parent.parent, 1, CONFIG)
    with cold_env.write() as txn:
        txn.drop(cold_env.dbs.records, delete=False)
    for _ in range(3):
        with cold_env.write() as txn:
            txn.put(b"state", State().pack(), db=cold_env.dbs.meta)
    cold_env.close()
    os.truncate(closed, closed.stat().st_size - 8192)
    assert "truncated" in check_file(closed)
    assert walk(closed.parent) == []
    again = ColdEnv(closed.parent.parent, 1, CONFIG)
    with again.read() as snapshot:
        assert snapshot.state() == State()
    again.close()


def test_damage_inside_a_page_is_found_by_walking(closed: Path) -> None:
    data = bytearray(closed.read_bytes())
    with PageFile(closed) as file:
        page = file.databases(file.page(file.metas[-1].main.root))["records"].root
    data[page * 4096 + 12 : page * 4096 + 14] = b"\xff\xff"
    closed.write_bytes(data)
    assert check_file(closed) == ""
    assert walk(closed.parent)
    assert walk_apart(closed.parent) == walk(closed.parent)


def test_stale_readers_are_counted_and_cleared(cold: Cold) -> None:
    assert cold.env.clear_stale_readers() == 0


def test_stamps_rise_over_generations(cold: Cold, tmp_path: Path) -> None:
    cold.apply(put("k", version(1)))
    (cold.root / "gen-2").mkdir()
    cold.env.copy(cold.root / "gen-2")
    later = ColdEnv(cold.root, 2, CONFIG)
    with cold.env.read() as snapshot, later.read() as copied:
        assert isinstance(copied, Snapshot)
        assert copied.txn.id() <= snapshot.txn.id()
        assert copied.stamp > snapshot.stamp
    later.close()
