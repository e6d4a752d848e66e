"""Records: every verb that writes or reads one, pending and committed alike, and the namespace as a mapping."""

from __future__ import annotations

import inspect
import subprocess
import threading
from collections.abc import Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import numpy as np
import pytest

import tiermem
from tests.workers import INLINE, START, Peer, eventually
from tiermem import (
    Config,
    CorruptionError,
    EncodingError,
    Guard,
    GuardFailed,
    Item,
    Memory,
    RecordNotFound,
    SimulatedClock,
    VersionConflict,
)
from tiermem.engine import proposals
from tiermem.engine.namespace import Namespace

NS = "desk/obs"


def config(**parts: Any) -> Config:
    return Config(**{"cold": INLINE, **parts})


Settle = Callable[[Memory], None]


def _flush(mem: Memory) -> None:
    mem.flush()


def _nothing(mem: Memory) -> None:
    pass


def _forget(mem: Memory) -> None:
    """Committed, and nothing of it in L1."""
    mem.flush()
    mem._store.hot.clear()


each_state = pytest.mark.parametrize("settle", [_nothing, _flush, _forget], ids=["pending", "committed", "cold"])


# ---------------------------------------------------------------------------------------------------------- put and get


@each_state
def test_put_get_and_the_whole_record(mem: Memory, clock: SimulatedClock, settle: Settle) -> None:
    version = mem.put(NS, "AIG", {"px": 48.21}, vector=[1, 2, 2], metadata={"side": "buy"}, ttl=3600.0, at=START - 5)
    settle(mem)
    assert mem.get(NS, "AIG") == {"px": 48.21}
    record = mem.get_record(NS, "AIG")
    assert record is not None
    assert record.vector is not None
    assert record.vector.dtype == np.float32
    assert record.vector.tolist() == [1.0, 2.0, 2.0]
    assert record._replace(vector=None) == (
        NS,
        "AIG",
        {"px": 48.21},
        {"side": "buy"},
        None,
        version,
        START - 5,
        START,
        START,
        START + 3600.0,
    )
    clock.advance(100)
    second = mem.put(NS, "AIG", 7)
    settle(mem)
    assert second > version
    record = mem.get_record(NS, "AIG")
    assert record is not None
    # Replaced whole: what was left out is gone; only the creation time stays.
    assert record == (NS, "AIG", 7, {}, None, second, START + 100, START, START + 100, None)
    assert mem.contains(NS, "AIG")
    assert mem.get(NS, "AIG") == 7


@each_state
def test_what_is_not_there(mem: Memory, settle: Settle) -> None:
    assert mem.get(NS, "k") is None
    assert mem.get(NS, "k", 5) == 5
    assert mem.get_record(NS, "k") is None
    assert not mem.contains(NS, "k")
    assert not mem.delete(NS, "k")
    assert mem.get_many(NS, ["k"]) == {}
    assert list(mem.scan(NS)) == []
    assert mem.count(NS) == 0
    mem.put(NS, "other", 1)
    settle(mem)
    assert mem.get(NS, "k", default=0) == 0
    assert mem.get_record(NS, "k") is None
    assert mem.peek(NS, "k", "none") == "none"


@each_state
def test_a_stored_none_is_not_an_absent_record(mem: Memory, settle: Settle) -> None:
    mem.put(NS, "k", None)
    settle(mem)
    for _ in range(4):
        assert mem.get(NS, "k", "default") is None
    assert mem.contains(NS, "k")
    assert mem.get_many(NS, ["k"]) == {"k": None}
    assert mem.peek(NS, "k", "default") is None


class Side(Enum):
    BUY = "buy"


@dataclass
class Fill:
    symbol: str
    quantity: int
    when: datetime | None = None


class Position(msgspec.Struct):
    symbol: str
    quantity: int
    cost: Decimal = Decimal(0)


VALUES: list[tuple[Any, Any]] = [
    (None, None),
    (True, True),
    (-(2**63), -(2**63)),
    (2**64 - 1, 2**64 - 1),
    (1.5, 1.5),
    ("été 𝄞", "été 𝄞"),
    (b"\x00\xff", b"\x00\xff"),
    ([1, [2, "x"]], [1, [2, "x"]]),
    ((1, (2,)), [1, [2]]),
    ({"a": {"b": [1]}}, {"a": {"b": [1]}}),
    (datetime(2024, 5, 1, 12, tzinfo=UTC), datetime(2024, 5, 1, 12, tzinfo=UTC)),
    (date(2024, 5, 1), date(2024, 5, 1)),
    (Decimal("1.50"), Decimal("1.50")),
    (UUID(int=5), UUID(int=5)),
    (Side.BUY, "buy"),
    (np.float32(0.5), 0.5),
    (np.int64(7), 7),
    (Fill("AIG", 3), {"symbol": "AIG", "quantity": 3, "when": None}),
    (Position("AIG", 3), {"symbol": "AIG", "quantity": 3, "cost": Decimal(0)}),
]


@each_state
def test_a_value_has_the_same_type_from_every_tier(mem: Memory, settle: Settle) -> None:
    for number, (value, _) in enumerate(VALUES):
        mem.put(NS, f"k{number}", value)
    settle(mem)
    for number, (_, wanted) in enumerate(VALUES):
        key = f"k{number}"
        record = mem.get_record(NS, key)
        assert record is not None
        for found in (mem.get(NS, key), mem.get(NS, key), mem.get(NS, key, copy=True), record.value):
            assert type(found) is type(wanted)
            assert found == wanted
        assert mem.get_many(NS, [key]) == {key: wanted}


@each_state
@pytest.mark.parametrize("dtype", ["<f4", ">i2", "?", "<U3", "<M8[s]", "<c8"])
def test_arrays_keep_dtype_and_shape(mem: Memory, settle: Settle, dtype: str) -> None:
    array = np.arange(6).astype(dtype).reshape(2, 3)
    mem.put(NS, "k", {"array": array})
    settle(mem)
    for copy in (False, True):
        found = mem.get(NS, "k", copy=copy)["array"]
        assert found.dtype == array.dtype
        assert np.array_equal(found, array)


@each_state
def test_nothing_is_shared_with_the_writer(mem: Memory, settle: Settle) -> None:
    value, metadata, vector = {"list": [1]}, {"tags": ["a"]}, np.array([1.0, 2.0])
    mem.put(NS, "k", value, metadata=metadata, vector=vector)
    value["list"].append(2)
    metadata["tags"].append("b")
    vector[0] = 9
    settle(mem)
    record = mem.get_record(NS, "k")
    assert record is not None
    assert (record.value, record.metadata) == ({"list": [1]}, {"tags": ["a"]})
    assert record.vector is not None
    assert record.vector.tolist() == [1.0, 2.0]
    record.vector[0] = 5
    record.value["list"].append(7)
    again = mem.get_record(NS, "k")
    assert again is not None
    assert again.vector is not None
    assert again.value == {"list": [1]}
    assert again.vector.tolist() == [1.0, 2.0]


@each_state
def test_a_copy_is_one_s_own(mem: Memory, settle: Settle) -> None:
    mem.put(NS, "k", {"list": [1]})
    settle(mem)
    for _ in range(4):
        mine = mem.get(NS, "k", copy=True)
        mine["list"].append(2)
        assert mem.get(NS, "k") == {"list": [1]}
    shared = mem.get(NS, "k")
    assert mem.get(NS, "k") is shared


def test_peek_looks_at_l1_alone(mem: Memory, clock: SimulatedClock) -> None:
    mem.put(NS, "k", 1)
    mem.put(NS, "timed", 2, ttl=10.0)
    mem.flush()
    assert mem.peek(NS, "k", "cold") == "cold"
    before = mem.stats()
    assert mem.get(NS, "k") == 1
    assert mem.get(NS, "timed") == 2
    assert (mem.peek(NS, "k"), mem.peek(NS, "timed")) == (1, 2)
    clock.advance(10)
    assert mem.peek(NS, "timed", "gone") == "gone"
    assert mem.stats().hot.misses == before.hot.misses + 2


@each_state
def test_keys_of_every_allowed_length(mem: Memory, settle: Settle) -> None:
    keys = ["k", "k" * 480, "é" * 240, "\x00", "𝄞", "a/b", " "]
    for number, key in enumerate(keys):
        mem.put("n" * 255, key, number)
    settle(mem)
    assert [mem.get("n" * 255, key) for key in keys] == list(range(len(keys)))
    assert [record.key for record in mem.scan("n" * 255)] == sorted(keys, key=str.encode)


def test_a_value_larger_than_a_journal_frame(mem: Memory) -> None:
    large = np.random.default_rng(1).bytes(2**20)
    version = mem.put(NS, "k", large)
    record = mem.get_record(NS, "k")
    assert record is not None
    assert (record.value, record.version) == (large, version)
    assert mem.get(NS, "k") == large
    mem.put(NS, "k", large[::-1], durable=True)
    assert mem.get(NS, "k") == large[::-1]
    with mem.batch() as batch:
        batch.put(NS, "k", large)
        batch.put(NS, "small", 1)
    assert (mem.get(NS, "k") == large, mem.get(NS, "small")) == (True, 1)
    assert mem.put_many(NS, [(f"m{i}", large) for i in range(3)]) == sorted(
        record.version for record in mem.scan(NS, "m")
    )


def test_a_value_too_large_for_l1_replaces_the_one_held_there(tmp_path: Path) -> None:
    hot = tiermem.HotConfig(max_bytes=2000)
    with tiermem.open(tmp_path / "store", config=config(hot=hot)) as mem:
        mem.put(NS, "k", "small")
        assert mem.get(NS, "k") == "small"
        mem.put(NS, "k", "large" * 1000)
        assert mem.get(NS, "k") == "large" * 1000
        assert mem.get(NS, "k") == "large" * 1000


def test_without_l1_everything_still_works(tmp_path: Path) -> None:
    with tiermem.open(tmp_path / "store", config=config(hot=tiermem.HotConfig(max_bytes=0))) as mem:
        mem.put(NS, "k", 1)
        assert mem.get(NS, "k") == 1
        mem.flush()
        assert mem.get(NS, "k") == 1
        assert mem.stats().hot.entries == 0


@pytest.mark.parametrize("policy", [None, tiermem.LRU])
def test_many_records_through_a_small_l1(tmp_path: Path, policy: Any) -> None:
    hot = tiermem.HotConfig(max_bytes=20_000, policy=policy)
    with tiermem.open(tmp_path / "store", config=config(hot=hot)) as mem:
        for round_ in range(3):
            for number in range(200):
                mem.put(NS, f"k{number}", [round_, number])
                assert mem.get(NS, f"k{number}") == [round_, number]
            for number in range(0, 200, 3):
                for _ in range(3):
                    assert mem.get(NS, f"k{number}") == [round_, number]
            assert mem.stats().hot.bytes <= 20_000
            mem.flush()


# ----------------------------------------------------------------------------------------------------------------- time


@each_state
@pytest.mark.parametrize("ttl", [10, 10.0, timedelta(seconds=10)])
def test_records_expire_by_the_store_s_clock(
    mem: Memory, clock: SimulatedClock, settle: Settle, ttl: float | timedelta
) -> None:
    mem.put(NS, "k", 1, ttl=ttl, vector=[1, 1])
    mem.put(NS, "stays", 2)
    settle(mem)
    ns = mem.namespace(NS)
    assert (mem.get(NS, "k"), ns["k"]) == (1, 1)
    clock.advance(9.5)
    assert (mem.get(NS, "k"), ns["k"], mem.count(NS)) == (1, 1, 2)
    clock.advance(0.5)
    assert mem.get(NS, "k") is None
    assert "k" not in ns
    with pytest.raises(KeyError):
        ns["k"]
    assert mem.get_record(NS, "k") is None
    assert not mem.contains(NS, "k")
    assert mem.get_many(NS, ["k", "stays"]) == {"stays": 2}
    assert [record.key for record in mem.scan(NS)] == ["stays"]
    assert mem.count(NS) == 1
    assert mem.search_similar(NS, [1, 1]) == []
    assert not mem.delete(NS, "k")
    with pytest.raises(RecordNotFound):
        mem.touch(NS, "k", ttl=5)
    # A new record, not the old one again.
    mem.put(NS, "k", 3, if_version=0)
    record = mem.get_record(NS, "k")
    assert record is not None
    assert record.created_at == START + 10


@each_state
def test_touch(mem: Memory, clock: SimulatedClock, settle: Settle) -> None:
    first = mem.put(NS, "k", {"a": 1}, vector=[1, 2], metadata={"m": 1}, ttl=10, at=START - 1)
    settle(mem)
    mem.get(NS, "k")
    clock.advance(5)
    second = mem.touch(NS, "k", ttl=60.0)
    assert second > first
    record = mem.get_record(NS, "k")
    assert record is not None
    assert record.expires_at == START + 65
    assert (record.value, record.metadata, record.at, record.created_at, record.updated_at) == (
        {"a": 1},
        {"m": 1},
        START - 1,
        START,
        START + 5,
    )
    assert record.vector is not None
    clock.advance(20)
    assert mem.get(NS, "k") == {"a": 1}
    mem.touch(NS, "k", ttl=None)
    clock.advance(1000)
    assert mem.get(NS, "k") == {"a": 1}
    record = mem.get_record(NS, "k")
    assert record is not None
    assert record.expires_at is None


def test_what_expired_is_removed_while_nothing_is_written(tmp_path: Path) -> None:
    thread = tiermem.ColdConfig(committer="thread", journal_bytes=2**20, sync_interval=0.01)
    with tiermem.open(tmp_path / "store", config=Config(cold=thread)) as mem:
        mem.put(NS, "k", 1, ttl=0.05)
        mem.put(NS, "stays", 2)
        mem.flush()
        assert eventually(lambda: mem.stats().cold.entries == 1, 8.0), "L3 still holds what has expired"


def test_what_expired_is_removed_when_the_clock_is_moved(mem: Memory, clock: SimulatedClock) -> None:
    for number in range(30):
        mem.put(NS, f"k{number}", number, ttl=10.0 + number)
    mem.flush()
    clock.advance(20)
    mem.compact()
    assert mem.stats().cold.entries == 19
    assert mem.count(NS) == 19
    assert mem.check().ok


# --------------------------------------------------------------------------------------------------------------- update


@each_state
def test_update_replaces_what_is_given(mem: Memory, clock: SimulatedClock, settle: Settle) -> None:
    mem.put(NS, "k", 1, vector=[1, 2], metadata={"m": 1}, ttl=50, at=START - 7)
    settle(mem)
    clock.advance(1)

    def record() -> tiermem.Record:
        found = mem.get_record(NS, "k")
        assert found is not None
        assert (found.at, found.created_at) == (START - 7, START)
        return found

    version = mem.update(NS, "k", value=None)
    assert (record().value, record().metadata, record().version) == (None, {"m": 1}, version)
    mem.update(NS, "k", metadata={"n": 2})
    assert (record().value, record().metadata, record().expires_at) == (None, {"n": 2}, START + 50)
    mem.update(NS, "k", vector=[3, 4], value="both")
    found = record()
    assert found.vector is not None
    assert (found.vector.tolist(), found.value) == ([3.0, 4.0], "both")
    mem.update(NS, "k", vector=None, metadata=None, ttl=None)
    assert (record().vector, record().metadata, record().expires_at, record().value) == (None, {}, None, "both")
    assert mem.search_similar(NS, [1, 1]) == []
    assert mem.get(NS, "k") == "both"
    before = record()
    assert mem.update(NS, "k") > before.version
    assert record()._replace(version=0) == before._replace(version=0)


def test_update_of_what_is_not_there(mem: Memory) -> None:
    with pytest.raises(RecordNotFound, match="no record 'k' in 'desk/obs'"):
        mem.update(NS, "k", value=1)
    mem.put(NS, "other", 1)
    with pytest.raises(RecordNotFound):
        mem.update(NS, "k", value=1)
    assert mem.namespaces() == [NS]


def test_updates_of_different_parts_both_stand(mem: Memory) -> None:
    mem.put(NS, "k", 0, metadata={"m": 0})
    threads = [
        threading.Thread(target=lambda: [mem.update(NS, "k", value=i) for i in range(20)]),
        threading.Thread(target=lambda: [mem.update(NS, "k", metadata={"m": i}) for i in range(20)]),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    record = mem.get_record(NS, "k")
    assert record is not None
    assert (record.value, record.metadata) == (19, {"m": 19})


def test_update_of_a_stream_s_record_keeps_the_stream(mem: Memory) -> None:
    keys = [mem.append("s", i, at=float(i)) for i in range(5)]
    mem.update("s", keys[1], value="new")
    assert [record.value for record in mem.latest("s", 9)] == [4, 3, 2, "new", 0]
    read = mem.stats().cold.rows_read
    assert [record.value for record in mem.latest("s", 1)] == [4]
    assert mem.stats().cold.rows_read - read <= 2


# ----------------------------------------------------------------------------------------------------------- conditions


@each_state
def test_compare_and_set(mem: Memory, settle: Settle) -> None:
    first = mem.put(NS, "k", 1, if_version=0)
    with pytest.raises(VersionConflict) as caught:
        mem.put(NS, "k", 2, if_version=0)
    assert (caught.value.expected, caught.value.found) == (0, first)
    second = mem.put(NS, "k", 2)
    settle(mem)
    with pytest.raises(VersionConflict):
        mem.put(NS, "k", 3, if_version=first)
    assert mem.get(NS, "k") == 2
    third = mem.put(NS, "k", 3, if_version=second)
    assert third > second
    assert mem.get(NS, "k") == 3
    with pytest.raises(VersionConflict):
        mem.delete(NS, "k", if_version=second)
    assert mem.delete(NS, "k", if_version=third)
    with pytest.raises(VersionConflict):
        mem.delete(NS, "k", if_version=third)
    assert not mem.delete(NS, "k", if_version=0)
    assert mem.put(NS, "k", 4, if_version=0) > third


@each_state
def test_guards(mem: Memory, settle: Settle) -> None:
    version = mem.put("locks", "k", 1)
    settle(mem)
    guard, stale, absent = Guard("locks", "k", version), Guard("locks", "k", version - 1), Guard("locks", "z", 0)
    mem.put(NS, "k", 1, guard=guard)
    mem.put(NS, "k", 2, guard=absent)
    with pytest.raises(GuardFailed, match="'k' in 'locks'"):
        mem.put(NS, "k", 3, guard=stale)
    with pytest.raises(GuardFailed):
        mem.delete(NS, "k", guard=stale)
    with pytest.raises(GuardFailed):
        mem.put("fresh", "k", 3, guard=Guard("none", "k", 1))
    assert mem.get(NS, "k") == 2
    assert mem.delete(NS, "k", guard=guard)
    assert not mem.delete(NS, "k", guard=guard)


def test_a_write_refused_by_a_condition_changes_nothing(mem: Memory) -> None:
    with pytest.raises(VersionConflict):
        mem.put("fresh", "k", 1, vector=[1, 2, 3], if_version=5)
    assert mem.namespaces() == []
    mem.put("fresh", "k", 1, vector=[1, 2])
    assert len(mem.search_similar("fresh", [1, 1])) == 1


def test_a_condition_on_the_write_itself_and_a_guard(mem: Memory) -> None:
    version = mem.put(NS, "k", 1)
    mem.put(NS, "k", 2, if_version=version, guard=Guard(NS, "k", version))
    assert mem.get(NS, "k") == 2


def test_one_of_many_compare_and_sets_wins(mem: Memory) -> None:
    version = mem.put(NS, "k", -1)
    won: list[int] = []

    def attempt(number: int) -> None:
        try:
            mem.put(NS, "k", number, if_version=version)
        except VersionConflict:
            return
        won.append(number)

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert mem.get(NS, "k") == won[0]


def test_a_put_beside_a_compare_and_set_is_seen_by_its_writer(mem: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A put acknowledged while a compare-and-set is being committed comes after it, for every reader."""
    first = mem.put(NS, "k", "first")
    decide = proposals.decide

    def beside(*arguments: Any) -> Any:
        ops = decide(*arguments)
        # Its journal has been drained: what is put now is applied by a later commit.
        mem.put(NS, "k", "plain")
        return ops

    monkeypatch.setattr(proposals, "decide", beside)
    mem.put(NS, "k", "set", if_version=first)
    seen = [mem.get(NS, "k")]
    record = mem.get_record(NS, "k")
    assert record is not None
    seen.append(record.value)
    mem.flush()
    seen.append(mem.get(NS, "k"))
    assert seen == ["plain"] * 3


# --------------------------------------------------------------------------------------------------------------- delete


@each_state
def test_delete(mem: Memory, settle: Settle) -> None:
    mem.put(NS, "k", 1, vector=[1, 1])
    settle(mem)
    mem.get(NS, "k")
    assert mem.delete(NS, "k")
    assert mem.get(NS, "k") is None
    assert not mem.contains(NS, "k")
    assert not mem.delete(NS, "k")
    settle(mem)
    assert mem.get(NS, "k") is None
    assert mem.count(NS) == 0
    assert mem.search_similar(NS, [1, 1]) == []
    assert not mem.delete(NS, "k", durable=True)
    mem.put(NS, "k", 2)
    assert mem.delete(NS, "k", durable=True)
    mem.put(NS, "k", 3)
    settle(mem)
    assert mem.get(NS, "k") == 3


@each_state
def test_delete_many(mem: Memory, settle: Settle) -> None:
    def fill() -> None:
        for number in range(10):
            mem.put(NS, f"a{number}", number, metadata={"n": number})
        mem.put(NS, "b", 1)
        settle(mem)

    fill()
    assert mem.delete_many(NS, ["a1", "a2", "a2", "none"]) == 2
    assert mem.delete_many(NS, keys=iter(["a3"])) == 1
    assert mem.delete_many(NS, []) == 0
    assert mem.delete_many(NS, prefix="a", where={"n": {"$gte": 8}}) == 2
    assert mem.delete_many(NS, where={"n": 0}) == 1
    assert mem.delete_many(NS, ["a4", "a5", "b"], where={"n": {"$gt": 4}}) == 1
    assert [record.key for record in mem.scan(NS)] == ["a4", "a6", "a7", "b"]
    assert mem.delete_many(NS, prefix="a") == 3
    assert mem.delete_many(NS, prefix="zz") == 0
    assert mem.delete_many(NS, prefix="") == 1
    assert mem.count(NS) == 0
    fill()
    assert mem.count(NS) == 11
    for refused in ({}, {"where": {}}, {"where": None}):
        with pytest.raises(tiermem.InvalidArgument):
            mem.delete_many(NS, **refused)
    for refused in ({"keys": "a1"}, {"keys": ["a1"], "prefix": "a"}):
        with pytest.raises(tiermem.InvalidArgument):
            mem.delete_many(NS, **refused)
    assert mem.count(NS) == 11


# ------------------------------------------------------------------------------------------------------------- put many


@each_state
def test_put_many_items(mem: Memory, clock: SimulatedClock, settle: Settle) -> None:
    items: list[Any] = [
        ("pair", 1),
        Item("item", [2], vector=[1, 2], metadata={"m": 1}, ttl=10.0, at=START - 3),
        Item("timed", 3, ttl=timedelta(seconds=5), at=datetime.fromtimestamp(START, UTC)),
        ("pair", "again"),
    ]
    versions = mem.put_many(NS, iter(items))
    settle(mem)
    assert len(versions) == 4
    assert versions == sorted(set(versions))
    assert mem.get_many(NS, ["timed", "item", "pair", "none"]) == {"timed": 3, "item": [2], "pair": "again"}
    assert list(mem.get_many(NS, ["timed", "item", "pair"])) == ["timed", "item", "pair"]
    record = mem.get_record(NS, "item")
    assert record is not None
    assert (record.metadata, record.at, record.expires_at, record.version) == (
        {"m": 1},
        START - 3,
        START + 10,
        versions[1],
    )
    clock.advance(5)
    assert mem.count(NS) == 2
    assert mem.put_many(NS, []) == []


@each_state
def test_put_many_columns(mem: Memory, settle: Settle) -> None:
    keys = [f"k{i}" for i in range(50)]
    matrix = np.random.default_rng(2).standard_normal((50, 3))
    versions = mem.put_many(
        NS,
        keys=keys,
        values=list(range(50)),
        vectors=matrix,
        metadatas=[{"n": i} if i % 2 else None for i in range(50)],
    )
    settle(mem)
    assert versions == [record.version for record in sorted(mem.scan(NS), key=lambda record: record.version)]
    record = mem.get_record(NS, "k7")
    assert record is not None
    assert (record.value, record.metadata) == (7, {"n": 7})
    assert np.array_equal(record.vector, matrix[7].astype(np.float32))
    assert mem.search_similar(NS, matrix[11], k=1)[0].key == "k11"
    mem.put_many(NS, keys=["x", "y"], values=np.array([1.5, 2.5]), durable=True)
    assert mem.get_many(NS, ["x", "y"]) == {"x": 1.5, "y": 2.5}
    assert mem.put_many(NS, keys=[], values=[], vectors=np.empty((0, 3))) == []


def test_put_many_tells_how_far_it_is(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    small = tiermem.Config(cold=tiermem.ColdConfig(journal_bytes=2**20))
    with tiermem.open(tmp_path, config=small) as mem:
        names = [f"k{number}" for number in range(700)]
        mem.put_many(
            "n", keys=names, values=["x" * 1000] * 700, progress=lambda done, total: told.append((done, total))
        )
        mem.namespace("n").put_many([("one", 1)], progress=lambda done, total: told.append((done, total)))
        assert mem.count("n") == 701
    *parts, last = told
    assert len(parts) > 3
    assert parts == sorted(set(parts))
    assert parts[-1] == (700, 700)
    assert last == (1, 1)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"items": [("k", 1)], "keys": ["k"]},
        {"items": [("k", 1)], "vectors": [[1, 2]]},
        {"keys": ["k"]},
        {"values": [1]},
        {"keys": ["k"], "values": []},
        {"keys": ["k"], "values": [1], "vectors": [[1, 2], [3, 4]]},
        {"keys": ["k"], "values": [1], "metadatas": []},
        {"items": [("k", 1, 2)]},
        {"items": ["ab"]},
        {"items": [("good", 1), ["bad", 2]]},
    ],
)
def test_put_many_refused_stores_nothing(mem: Memory, arguments: dict[str, Any]) -> None:
    with pytest.raises(tiermem.InvalidArgument):
        mem.put_many(NS, **arguments)
    assert mem.namespaces() == []


@pytest.mark.parametrize(
    ("vectors", "error"),
    [
        ([[1, 2], [1, 2, 3]], tiermem.InvalidVector),
        ([[1, 2], [0, 0]], tiermem.InvalidVector),
        ([[1, 2], [float("nan"), 0]], tiermem.InvalidVector),
        ([1, 2], tiermem.InvalidVector),
        ([["a", "b"], ["c", "d"]], tiermem.InvalidVector),
        ([[1, 2, 3], [1, 2, 3]], tiermem.DimensionMismatch),
        (np.empty((2, 0)), tiermem.InvalidVector),
    ],
)
def test_vectors_are_checked_before_the_first_is_stored(mem: Memory, vectors: Any, error: type[Exception]) -> None:
    mem.put(NS, "there", 1, vector=[1, 2])
    with pytest.raises(error):
        mem.put_many(NS, keys=["a", "b"], values=[1, 2], vectors=vectors)
    assert mem.count(NS) == 1


def test_more_than_the_journal_holds(mem: Memory) -> None:
    items = [(f"k{i:05}", "x" * 500) for i in range(6000)]
    versions = mem.put_many(NS, items)
    assert versions == sorted(set(versions))
    assert mem.count(NS) == 6000
    stats = mem.stats().writes
    assert stats.pending_bytes <= stats.journal_bytes == 2**20


@pytest.mark.parametrize("committer", ["inline", "thread", "auto"])
def test_memory_is_bounded_when_the_committer_cannot_keep_up(tmp_path: Path, committer: Any) -> None:
    cold = tiermem.ColdConfig(committer=committer, journal_bytes=2**16, sync_interval=30.0)
    with tiermem.open(tmp_path / "store", config=Config(cold=cold)) as mem:
        most = 0
        for number in range(4000):
            mem.put(NS, f"k{number % 1500}", "x" * (number % 700))
            if number % 25 == 0:
                writes = mem.stats().writes
                assert writes.pending_bytes <= writes.journal_bytes == 2**16
                most = max(most, writes.pending)
        assert 0 < most < 2**16 // 60
        assert mem.count(NS) == 1500
        assert mem.check().ok


# ------------------------------------------------------------------------------------------------------- scan and count


@each_state
def test_scan(mem: Memory, settle: Settle) -> None:
    keys = ["a", "a1", "a1x", "a2", "b", "é", "𝄞"]
    for number, key in enumerate(keys):
        mem.put(NS, key, number, metadata={"n": number}, at=START + number)
    mem.put("desk/obs2", "a", 1)
    settle(mem)

    def found(*args: Any, **options: Any) -> list[str]:
        return [record.key for record in mem.scan(NS, *args, **options)]

    assert found() == keys
    assert found(reverse=True) == keys[::-1]
    assert found("a1") == ["a1", "a1x"]
    assert found("a", start="a1x") == ["a1x", "a2"]
    assert found("a", start="a1x", reverse=True) == ["a1x", "a1", "a"]
    assert found("a", start="Z") == ["a", "a1", "a1x", "a2"]
    assert found("a", start="z", reverse=True) == ["a2", "a1x", "a1", "a"]
    assert found(start="a3") == ["b", "é", "𝄞"]
    assert found(start="a3", reverse=True) == ["a2", "a1x", "a1", "a"]
    assert found(limit=2) == ["a", "a1"]
    assert found(limit=2, reverse=True) == ["𝄞", "é"]
    assert found(limit=0) == []
    assert found(since=START + 2, until=START + 4) == ["a1x", "a2"]
    assert found(until=datetime.fromtimestamp(START + 1, UTC)) == ["a"]
    assert found(where={"n": {"$gte": 3}}, limit=2) == ["a2", "b"]
    assert found(where={"n": {"$lt": 3}}, reverse=True) == ["a1x", "a1", "a"]
    assert found("x") == []
    assert found(since=START + 5, until=START + 5) == []
    assert mem.count(NS) == 7
    assert mem.count(NS, where={"n": {"$gt": 4}}) == 2
    assert mem.count(NS, {}) == 7
    record = next(mem.scan(NS, "b"))
    assert (record.namespace, record.value, record.metadata) == (NS, 4, {"n": 4})


def test_scan_merges_what_is_pending(mem: Memory) -> None:
    for number in range(0, 1000, 2):
        mem.put(NS, f"k{number:04}", "committed", vector=[number, 1])
    mem.flush()
    for number in range(0, 1000, 5):
        mem.put(NS, f"k{number:04}", "pending")
    for number in range(0, 1000, 7):
        mem.delete(NS, f"k{number:04}")
    wanted = {
        f"k{number:04}": "pending" if number % 5 == 0 else "committed"
        for number in range(1000)
        if (number % 5 == 0 or number % 2 == 0) and number % 7
    }
    for reverse in (False, True):
        found = [(record.key, record.value) for record in mem.scan(NS, reverse=reverse)]
        assert found == sorted(wanted.items(), reverse=reverse)
        for limit in (1, 3, 255, 256, 257, 400):
            part = [record.key for record in mem.scan(NS, limit=limit, reverse=reverse)]
            assert part == sorted(wanted, reverse=reverse)[:limit]
    assert mem.count(NS) == len(wanted)
    assert mem.get_many(NS, [f"k{i:04}" for i in range(1000)]) == wanted
    with_vectors = {record.key for record in mem.scan(NS) if record.vector is not None}
    assert with_vectors == {key for key, value in wanted.items() if value == "committed"}


def test_scan_while_the_store_changes(mem: Memory) -> None:
    for number in range(2000):
        mem.put(NS, f"k{number:04}", number)
    mem.flush()
    seen = []
    for record in mem.scan(NS):
        seen.append(record.key)
        if len(seen) == 10:
            mem.delete_many(NS, [f"k{number:04}" for number in range(1500, 1600)])
            mem.put(NS, "k1999z", "new")
        if len(seen) == 300:
            mem.flush()
    assert seen == sorted(set(seen))
    assert "k1550" not in seen
    assert seen[-1] == "k1999z"
    # Nothing stays open: an iterator that was given up holds no snapshot.
    rows = mem.scan(NS)
    next(rows)
    mem.put(NS, "a", 1)
    mem.flush()
    assert mem.stats().cold.oldest_reader == 0


def test_arguments_of_a_scan_are_checked_at_once(mem: Memory) -> None:
    for arguments in ({"limit": -1}, {"limit": True}, {"where": {"$bad": 1}}, {"since": float("nan")}, {"start": ""}):
        with pytest.raises(tiermem.InvalidArgument):
            mem.scan(NS, **arguments)


# ---------------------------------------------------------------------------------------------------------------- batch


@each_state
def test_a_batch_across_namespaces(mem: Memory, clock: SimulatedClock, settle: Settle) -> None:
    mem.put("a", "gone", 1)
    mem.put("a", "stays", 1)
    settle(mem)
    with mem.batch() as batch:
        batch.put("a", "k", 1, vector=[1, 2], metadata={"m": 1}, ttl=10, at=START - 1)
        batch.put("b", "k", 2)
        batch.delete("a", "gone")
        batch.delete("a", "never")
        key = batch.append("s", 3, at=START)
        batch.put("a", "k2", "first")
        batch.put("a", "k2", "last")
        assert len(batch) == 7
        assert mem.get("a", "k") is None, "nothing happens before the end"
    settle(mem)
    assert len(batch.versions) == 7
    assert mem.get("a", "gone") is None
    assert (mem.get("a", "k"), mem.get("b", "k"), mem.get("s", key), mem.get("a", "k2")) == (1, 2, 3, "last")
    assert mem.latest("s")[0].key == key
    record = mem.get_record("a", "k")
    assert record is not None
    assert (record.version, record.expires_at, record.at) == (batch.versions[0], START + 10, START - 1)
    with pytest.raises(tiermem.InvalidArgument, match="ended"):
        batch.put("a", "late", 1)


def test_an_exception_discards_a_batch(mem: Memory) -> None:
    def write(last: Any) -> None:
        with mem.batch() as batch:
            batch.put(NS, "k", 1)
            batch.put(NS, "z", last)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write(1)
    with pytest.raises(EncodingError):
        write(object())
    assert mem.namespaces() == []
    with mem.batch() as batch:
        pass
    assert batch.versions == []


@pytest.mark.parametrize("durable", [False, True])
def test_a_batch_with_conditions_is_all_or_nothing(mem: Memory, durable: bool) -> None:
    version = mem.put("a", "k", 1)
    with mem.batch(durable=durable) as batch:
        batch.put("a", "k", 2, if_version=version)
        batch.put("b", "k", 2, guard=Guard("a", "k", version))
        batch.delete("c", "none", if_version=0)
        batch.append("s", 1, guard=Guard("a", "k", version))
    assert mem.get("a", "k") == mem.get("b", "k") == 2
    assert batch.versions[0] > version

    def write(**bad: Any) -> None:
        with mem.batch(durable=durable) as batch:
            batch.put("a", "new", 3)
            batch.put("a", "k", 3, **bad)

    with pytest.raises(VersionConflict):
        write(if_version=version)
    with pytest.raises(GuardFailed):
        write(guard=Guard("a", "k", 5))
    assert mem.get("a", "new") is None
    assert mem.get("a", "k") == 2
    record = mem.get_record("a", "k")
    assert record is not None
    with mem.batch(durable=durable) as batch:
        batch.delete("a", "k", if_version=record.version)
        batch.delete("b", "k", guard=Guard("a", "k", record.version))
    assert (mem.count("a"), mem.count("b")) == (0, 0)


def test_a_durable_batch_and_put_are_committed(mem: Memory) -> None:
    mem.put(NS, "k", 1, durable=True)
    assert mem.stats().writes.pending == 0
    with mem.batch(durable=True) as batch:
        batch.put(NS, "k", 2)
    assert mem.stats().writes.pending == 0
    mem.put(NS, "k", 3)
    assert mem.stats().writes.pending == 1


# ----------------------------------------------------------------------------------------------------------- namespaces


def test_namespaces_are_listed_made_and_dropped(mem: Memory) -> None:
    mem.put("b/x", "k", 1)
    mem.put("a", "k", 1)
    assert mem.namespaces() == ["a", "b/x"]
    mem.flush()
    mem.create_namespace("b/y")
    mem.create_namespace("b/y")
    assert mem.namespaces() == ["a", "b/x", "b/y"]
    assert mem.namespaces("b/") == ["b/x", "b/y"]
    assert mem.namespaces("c") == []
    assert mem.drop_namespace("b/x")
    assert not mem.drop_namespace("b/x")
    assert mem.namespaces() == ["a", "b/y"]


@each_state
def test_a_dropped_namespace_is_gone_and_can_be_made_anew(mem: Memory, settle: Settle) -> None:
    ns = mem.namespace(NS)
    for number in range(20):
        mem.put(NS, f"k{number}", number, vector=[number, 1, 1], ttl=50.0 if number % 2 else None)
    settle(mem)
    assert ns["k3"] == 3
    assert len(mem.search_similar(NS, [1, 1, 1], k=50)) == 20
    assert mem.drop_namespace(NS)
    assert mem.get(NS, "k3") is None
    with pytest.raises(KeyError):
        ns["k3"]
    assert (mem.count(NS), list(mem.scan(NS)), mem.search_similar(NS, [1, 1, 1])) == (0, [], [])
    assert mem.namespaces() == []
    # Another dimension: nothing is left of the former one.
    mem.put(NS, "k3", "new", vector=[1, 2])
    settle(mem)
    assert ns["k3"] == "new"
    assert [hit.key for hit in mem.search_similar(NS, [1, 1])] == ["k3"]
    assert mem.stats().cold.entries in (0, 1)
    mem.flush()
    assert mem.check().ok


def test_a_vector_put_beside_a_drop_is_still_searchable(mem: Memory) -> None:
    """The namespace is dropped after the vector was checked against it and before it is journaled."""
    mem.put(NS, "k", 1, vector=[1, 2, 3])
    store = mem._store
    submit = store.submit

    def late(*write: Any) -> int:
        store.submit = submit
        mem.drop_namespace(NS)
        return submit(*write)

    store.submit = late
    mem.put(NS, "late", 1, vector=[1, 2, 4])
    mem.flush()
    assert mem.check().problems == ()
    assert [hit.key for hit in mem.search_similar(NS, [1, 2, 3])] == ["late"]


# ------------------------------------------------------------------------------------------------------------ a mapping


@each_state
def test_a_namespace_is_a_mutable_mapping(mem: Memory, settle: Settle) -> None:
    ns = mem.namespace(NS)
    assert isinstance(ns, MutableMapping)
    assert isinstance(ns, Mapping)
    assert (len(ns), list(ns), bool(ns)) == (0, [], False)
    ns["b"] = 1
    ns["a"] = [2]
    settle(mem)
    assert (ns["b"], ns["a"]) == (1, [2])
    assert (ns["b"], ns["a"]) == (1, [2])
    assert (len(ns), list(ns)) == (2, ["a", "b"])
    assert "a" in ns
    assert "z" not in ns
    assert 5 not in ns
    assert (dict(ns), dict(ns.items()), list(ns.values())) == ({"a": [2], "b": 1}, {"a": [2], "b": 1}, [[2], 1])
    assert ns == {"a": [2], "b": 1}
    assert ns.get("z") is None
    assert ns.get("z", 3) == 3
    assert ns.setdefault("b", 9) == 1
    assert ns.setdefault("c", 9) == 9
    assert ns.pop("c") == 9
    assert ns.pop("c", "default") == "default"
    with pytest.raises(KeyError):
        ns.pop("c")
    with pytest.raises(KeyError):
        ns["c"]
    with pytest.raises(KeyError):
        del ns["c"]
    del ns["b"]
    settle(mem)
    assert ns.popitem() == ("a", [2])
    with pytest.raises(KeyError):
        ns.popitem()
    ns["x"] = 1
    ns["y"] = 2
    ns.clear()
    assert len(ns) == 0
    assert mem.count(NS) == 0
    assert repr(ns) == "<tiermem.Namespace 'desk/obs'>"
    with pytest.raises(NotImplementedError):
        Namespace()["a"]


def test_two_mappings_of_one_namespace_share_what_is_hot(mem: Memory) -> None:
    first, second = mem.namespace(NS), mem.namespace(NS)
    first["k"] = {"a": 1}
    assert first["k"] is second["k"] is mem.get(NS, "k")
    second["k"] = {"a": 2}
    assert first["k"] == {"a": 2}


def _verbs(kind: type) -> dict[str, inspect.Signature]:
    found = {}
    for name, method in inspect.getmembers(kind, inspect.isfunction):
        if not name.startswith("_"):
            found[name] = inspect.signature(method)
    return found


@pytest.mark.parametrize(
    "verb",
    sorted(name for name, signature in _verbs(Memory).items() if list(signature.parameters)[1:2] == ["namespace"]),
)
def test_every_verb_is_there_less_its_first_argument(verb: str) -> None:
    wanted = list(_verbs(Memory)[verb].parameters.values())
    assert verb in vars(Namespace), f"Namespace.{verb} is missing"
    assert list(_verbs(Namespace)[verb].parameters.values()) == [wanted[0], *wanted[2:]]


@each_state
def test_every_verb_of_a_namespace(mem: Memory, clock: SimulatedClock, settle: Settle) -> None:
    ns = mem.namespace(NS)
    version = ns.put("k", 1, vector=[1, 0], metadata={"m": 1}, ttl=100, at=START, durable=True)
    assert ns.put("k", 2, vector=[1, 0], if_version=version, guard=Guard(NS, "k", version)) > version
    ns.update("k", value=3, metadata={"m": 2})
    ns.touch("k", ttl=500)
    ns.put_many([("a", 1), Item("b", 2, vector=[0, 1])])
    ns.put_many(keys=["c"], values=[3], vectors=[[1, 1]], metadatas=[{"m": 2}], durable=True)
    settle(mem)
    assert ns.get("k", copy=True) == 3
    assert ns.contains("k")
    assert not ns.contains("none")
    record = ns.get_record("k")
    assert record is not None
    assert (record.value, record.metadata, record.expires_at) == (3, {"m": 2}, START + 500)
    assert ns.get_many(["b", "a"]) == {"b": 2, "a": 1}
    assert [found.key for found in ns.scan("", start="b", where={"m": 2}, limit=5)] == ["c", "k"]
    assert [found.key for found in ns.scan(reverse=True, since=START, until=START + 1)] == ["k", "c", "b", "a"]
    assert (ns.count(), ns.count({"m": 2})) == (4, 2)
    assert [hit.key for hit in ns.search_similar([0, 1], k=2, min_score=0.1)] == ["b", "c"]
    assert [hit.key for hit in ns.search_similar([0, 1], where={"m": 2}, since=START, until=START + 1, exact=True)] == [
        "c",
        "k",
    ]
    assert [[hit.key for hit in hits] for hits in ns.search_many([[0, 1], [1, 0]], k=1)] == [["b"], ["k"]]
    assert [change.key for change in ns.changes(0)][-1] == "c"
    assert ns.delete("a")
    assert not ns.delete("a", durable=True)
    assert ns.delete_many(["b"]) == 1
    assert ns.delete_many(prefix="c", where={"m": 2}) == 1
    clock.advance(1)
    key = ns.append(9, metadata={"m": 3}, durable=True)
    assert [found.key for found in ns.latest(2)] == [key, "k"]
    assert list(ns) == sorted([key, "k"])


# ----------------------------------------------------------------------------------------------------- typed namespaces


@each_state
def test_values_of_a_type_come_back_as_themselves(mem: Memory, clock: SimulatedClock, settle: Settle) -> None:
    structs = mem.namespace("positions", type=Position)
    fills = mem.namespace("fills", type=Fill)
    structs["a"] = Position("AIG", 5, Decimal("1.5"))
    fills["a"] = Fill("AIG", 3, datetime(2024, 5, 1, tzinfo=UTC))
    settle(mem)
    for _ in range(3):
        assert structs["a"] == Position("AIG", 5, Decimal("1.5"))
        assert fills["a"] == Fill("AIG", 3, datetime(2024, 5, 1, tzinfo=UTC))
    assert isinstance(structs.get("a", copy=True), Position)
    assert structs.get("a", copy=True) is not structs["a"]
    record = fills.get_record("a")
    assert record is not None
    assert isinstance(record.value, Fill)
    assert isinstance(structs.get_many(["a"])["a"], Position)
    assert [type(found.value) for found in structs.scan()] == [Position]
    assert [type(found.value) for found in structs.latest(1)] == [Position]
    assert list(structs.values()) == [Position("AIG", 5, Decimal("1.5"))]
    assert mem.get("positions", "a") == {"symbol": "AIG", "quantity": 5, "cost": Decimal("1.5")}
    # A write through one face is seen by all.
    mem.put("positions", "a", {"symbol": "IBM", "quantity": 1, "cost": Decimal(2)})
    assert structs["a"] == Position("IBM", 1, Decimal(2))
    clock.advance(1)
    structs.put("timed", Position("X", 1), ttl=5)
    assert structs["timed"].symbol == "X"
    clock.advance(5)
    assert "timed" not in structs


@each_state
def test_a_value_that_does_not_fit_its_type(mem: Memory, settle: Settle) -> None:
    typed = mem.namespace("positions", type=Position)
    typed["a"] = Position("AIG", 5)
    assert typed["a"].quantity == 5
    mem.put("positions", "a", "no position")
    settle(mem)
    for _ in range(2):
        with pytest.raises(EncodingError, match="Position"):
            typed["a"]
    assert mem.get("positions", "a") == "no position"
    mem.put("positions", "a", {"symbol": "AIG", "quantity": 6})
    assert typed["a"].quantity == 6


@each_state
def test_keys_are_listed_whatever_the_values_are(mem: Memory, settle: Settle) -> None:
    typed = mem.namespace("positions", type=Position)
    mem.put("positions", "bad", "no position")
    typed["good"] = Position("AIG", 5)
    settle(mem)
    assert list(typed) == ["bad", "good"]
    assert "bad" in typed
    assert len(typed) == 2


# ----------------------------------------------------------------------------------------------- beside other processes


def test_what_another_process_puts_is_seen(mem: Memory, tmp_path: Path, peer: Callable[..., Peer]) -> None:
    mem.put(NS, "k", 1)
    mem.flush()
    ns = mem.namespace(NS)
    assert (mem.get(NS, "k"), ns["k"]) == (1, 1)
    other = peer(tmp_path / "store", config=config(), now=START)
    assert other.get(NS, "k") == 1
    other.put(NS, "k", 2)
    other.flush()
    assert mem.get(NS, "k") == 2
    assert ns["k"] == 2
    mem.put(NS, "k", 3)
    mem.flush()
    assert other.get(NS, "k") == 3
    other.delete(NS, "k")
    other.flush()
    assert mem.get(NS, "k") is None


def test_two_threads_that_follow_at_once(
    mem: Memory, tmp_path: Path, peer: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another process has flushed is seen by every thread, also while one of them reads the log."""
    from tiermem.engine.follower import Follower

    mem.put(NS, "k", "old")
    mem.flush()
    assert mem.get(NS, "k") == "old"
    other = peer(tmp_path / "store", config=config(), now=START)
    other.put(NS, "k", "new")
    other.flush()
    follow = Follower._follow
    seen: list[Any] = []
    second = threading.Thread(target=lambda: seen.append(mem.get(NS, "k")))

    def beside(self: Follower) -> None:
        if second.ident is None:
            second.start()
            second.join(0.5)
        follow(self)

    monkeypatch.setattr(Follower, "_follow", beside)
    assert mem.get(NS, "k") == "new"
    second.join()
    assert seen == ["new"]


def test_after_a_compaction_elsewhere_changes_are_still_seen(
    mem: Memory, tmp_path: Path, peer: Callable[..., Peer]
) -> None:
    mem.put(NS, "k", 1)
    mem.flush()
    assert mem.get(NS, "k") == 1
    other = peer(tmp_path / "store", config=config(), now=START)
    for value in range(2, 6):
        other.compact()
        assert mem.get(NS, "k") == value - 1
        other.put(NS, "k", value)
        other.flush()
        assert mem.get(NS, "k") == value


@pytest.mark.parametrize("times", [1, 2])
def test_a_reader_that_may_not_write_follows(tmp_path: Path, clock: SimulatedClock, times: int) -> None:
    root = tmp_path / "store"
    writer = Peer(root, config=config(), now=START)
    try:
        writer.put(NS, "k", 1)
        writer.put(NS, "v", 1, vector=[1, 0])
        writer.flush()
        with tiermem.open(root, read_only=True, clock=clock) as mem:
            for _ in range(3):
                assert mem.get(NS, "k") == 1
            assert [hit.key for hit in mem.search_similar(NS, [0, 1])] == ["v"]
            for value in range(2, 2 + times):
                writer.put(NS, "k", value)
                writer.put(NS, f"w{value}", 1, vector=[0, 1])
                writer.flush()
                assert mem.get(NS, "k") == value
                assert {hit.key for hit in mem.search_similar(NS, [0, 1])} == {
                    "v",
                    *(f"w{i}" for i in range(2, value + 1)),
                }
            writer.delete(NS, "k")
            writer.flush()
            assert mem.get(NS, "k") is None
            writer.compact()
            writer.put(NS, "k", "compacted")
            writer.flush()
            assert mem.get(NS, "k") == "compacted"
    finally:
        writer.leave()


def test_a_reader_that_may_not_write_sees_what_is_only_journaled(tmp_path: Path, clock: SimulatedClock) -> None:
    root = tmp_path / "store"
    writer = Peer(root, config=config(), now=START)
    try:
        writer.put(NS, "k", 1)
        writer.put(NS, "v", 2, vector=[1, 0])
        writer.flush()
        writer.put(NS, "k", "journaled")
        writer.put("new/ns", "k", [1, 2])
        writer.delete(NS, "v")
        with tiermem.open(root, read_only=True, clock=clock) as mem:
            assert mem.get(NS, "k") == "journaled"
            assert mem.get("new/ns", "k") == [1, 2]
            assert not mem.contains(NS, "v")
            assert mem.namespaces() == [NS, "new/ns"]
            assert mem.count(NS) == 1
            assert mem.search_similar(NS, [1, 0]) == []
            assert mem.check().problems == ()
            mem.flush()
            with pytest.raises(tiermem.ReadOnlyError):
                mem.put(NS, "k", 2)
            with pytest.raises(tiermem.ReadOnlyError):
                mem.check(repair=True)
            writer.put(NS, "k", "later")
            writer.flush()
            assert mem.get(NS, "k") == "later"
    finally:
        writer.leave()


@pytest.mark.parametrize("read_first", [False, True])
def test_a_dictionary_trained_by_another_process_is_used(
    tmp_path: Path, peer: Callable[..., Peer], read_first: bool
) -> None:
    codec = tiermem.CodecConfig(dictionary_bytes=1024, dictionary_samples=64)
    quote = {"symbol": "AIG", "venue": "XNYS", "condition": "regular trade", "note": "filled at market"}
    with tiermem.open(tmp_path / "store", config=config(codec=codec)) as mem:
        mem.put("q", "first", 1)
        mem.flush()
        other = peer(tmp_path / "store", config=config(codec=codec))
        other.put_many("q", [(f"k{i}", {**quote, "price": i * 1.25}) for i in range(400)])
        other.compact()
        assert mem.stats().cold.dictionaries == 1
        other.put("q", "theirs", {**quote, "price": 5.0})
        other.flush()
        if read_first:
            assert mem.get("q", "theirs") == {**quote, "price": 5.0}
        mem.put("q", "mine", {**quote, "price": 7.0})
        mem.flush()
        assert mem.get("q", "mine") == {**quote, "price": 7.0}
        mem._store.hot.clear()
        assert mem.get("q", "mine") == {**quote, "price": 7.0}
        assert other.get("q", "mine") == {**quote, "price": 7.0}


def test_a_read_that_began_before_a_commit_does_not_fill_l1_with_the_past(
    tmp_path: Path, peer: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process has committed in between, so this one follows its own commit in a second step."""
    with tiermem.open(tmp_path / "store", config=config()) as mem:
        mem.put(NS, "k", "old" * 300)
        mem.flush()
        other = peer(tmp_path / "store", config=config())
        store, loader = mem._store, mem._store.loader
        store.hot.clear()
        read, committed, filled = threading.Event(), threading.Event(), threading.Event()
        expand, publish_time = loader.expand, store.control.publish_time

        def paused(*args: Any) -> bytes:
            # The row has been read; the commit comes before it enters L1.
            if threading.current_thread() is thread:
                read.set()
                committed.wait(20)
            return expand(*args)

        def announced(now: float) -> None:
            committed.set()
            filled.wait(5)
            publish_time(now)

        def look() -> None:
            mem.get(NS, "k")
            filled.set()

        monkeypatch.setattr(loader, "expand", paused)
        thread = threading.Thread(target=look)
        thread.start()
        assert read.wait(20)
        mem.put(NS, "k", "new")
        other.put(NS, "unrelated", 1)
        other.call("update", NS, "unrelated", value=2)
        monkeypatch.setattr(store.control, "publish_time", announced)
        store.committer.drain()
        monkeypatch.setattr(store.control, "publish_time", publish_time)
        thread.join(20)
        assert mem.get(NS, "k") == "new"
        mem.flush()
        assert mem.get(NS, "k") == "new"


# --------------------------------------------------------------------------------------------------------- housekeeping


def test_a_check_of_a_store_that_is_being_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the records are looked at, the journal goes round more than once."""
    from tiermem.engine import audit

    cold = tiermem.ColdConfig(committer="inline", journal_bytes=2**16, sync_interval=60.0)
    with tiermem.open(tmp_path / "store", config=Config(cold=cold)) as mem:
        mem.put(NS, "k", 1)
        run = audit._Audit.run

        def beside(self: Any) -> None:
            thread = threading.Thread(target=lambda: [mem.put(NS, f"k{i}", "x" * 1000) for i in range(300)])
            thread.start()
            thread.join()
            run(self)

        monkeypatch.setattr(audit._Audit, "run", beside)
        assert mem.check().problems == ()


def test_handles_on_one_directory_share_the_store(tmp_path: Path, clock: SimulatedClock) -> None:
    first = tiermem.open(tmp_path / "store", config=config(), clock=clock)
    second = tiermem.open(tmp_path / "store", clock=clock)
    first.put(NS, "k", 1)
    assert second.get(NS, "k") == 1
    assert repr(first) == f"<tiermem.Memory {str(tmp_path / 'store')!r}>"
    first.close()
    first.close()
    assert repr(first).endswith("closed>")
    with pytest.raises(tiermem.ClosedError):
        first.get(NS, "k")
    second.put(NS, "k", 2)
    assert second.get(NS, "k") == 2
    second.close()
    with tiermem.open(tmp_path / "store", clock=clock) as mem:
        assert mem.get(NS, "k") == 2


def test_compaction_gives_space_back_and_loses_nothing(mem: Memory) -> None:
    noise = np.random.default_rng(4)
    for number in range(400):
        mem.put(NS, f"k{number}", noise.bytes(3000), vector=noise.standard_normal(3))
    mem.flush()
    mem.delete_many(NS, [f"k{number}" for number in range(10, 400)])
    kept = dict(mem.namespace(NS))
    hits = [(hit.key, hit.score) for hit in mem.search_similar(NS, [1, 1, 1])]
    assert mem.compact() > 400_000
    assert mem.stats().generation == 2
    assert dict(mem.namespace(NS)) == kept
    assert [(hit.key, hit.score) for hit in mem.search_similar(NS, [1, 1, 1])] == hits
    mem.put(NS, "k1", "after")
    assert mem.get(NS, "k1") == "after"
    assert mem.check().ok
    assert [path.name for path in Path(mem.stats().path).glob("gen-*")] == ["gen-2"]


def test_two_threads_that_compact_at_once(run_python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = run_python(
        """
        import threading
        import tiermem

        mem = tiermem.open("store")
        for number in range(300):
            mem.put("n", f"k{number}", "x" * 2000)
        mem.flush()
        committer = mem._store.committer
        leave, barrier = committer.leave, threading.Barrier(2)

        def together(move):
            try:
                barrier.wait(3)
            except threading.BrokenBarrierError:
                pass
            leave(move)

        committer.leave = together
        threads = [threading.Thread(target=mem.compact, daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(15)
        alive = any(thread.is_alive() for thread in threads)
        print("stuck" if alive else "done", flush=True)
        if alive:
            import os
            os._exit(1)
        mem.put("n", "after", 1)
        mem.close()
        with tiermem.open("store") as mem:
            print(mem.count("n"), mem.check().ok)
        """,
        check=False,
    )
    assert done.stdout.split() == ["done", "301", "True"], done.stderr


def test_a_backup_is_a_store_of_its_own(mem: Memory, tmp_path: Path, clock: SimulatedClock) -> None:
    for number in range(50):
        mem.put(NS, f"k{number}", number, vector=[number, 1])
    mem.cursor("c", start=0)
    path = mem.backup(tmp_path / "copy")
    assert path == tmp_path / "copy"
    mem.put(NS, "k0", "later")
    with tiermem.open(path, clock=clock, config=config()) as copy:
        assert dict(copy.namespace(NS)) == {f"k{number}": number for number in range(50)}
        assert copy.check().ok
        copy.put(NS, "k1", "copied")
        assert len(list(copy.cursor("c"))) == 51
    assert (mem.get(NS, "k0"), mem.get(NS, "k1")) == ("later", 1)


def test_dictionaries_are_trained_on_the_way(tmp_path: Path) -> None:
    codec = tiermem.CodecConfig(dictionary_bytes=1024, dictionary_samples=64)
    cold = tiermem.ColdConfig(committer="thread", journal_bytes=2**20, sync_interval=0.01)
    quote = {"symbol": "AIG", "venue": "XNYS", "condition": "regular trade", "note": "filled at market"}
    with tiermem.open(tmp_path / "store", config=Config(cold=cold, codec=codec)) as mem:
        number = 0

        def write() -> int:
            nonlocal number
            for _ in range(100):
                number += 1
                mem.put("q", f"k{number}", {**quote, "price": number * 1.25})
            mem.flush()
            return mem.stats().cold.dictionaries

        assert eventually(write), "no dictionary was trained"
        mem.put("q", "last", quote)
        mem.flush()
        mem._store.hot.clear()
        for key in ("k1", "last", f"k{number}"):
            assert mem.get("q", key)["venue"] == "XNYS"
        with mem._store.cold.read() as snapshot:
            info = snapshot.info("q")
            assert info is not None
            frame = snapshot.record(info.prefix + b"last")
            assert frame is not None
            assert frame.dictionary == info.dictionary > 0
        assert mem.check().ok
    with tiermem.open(tmp_path / "store") as mem:
        assert mem.get("q", "last") == quote


def test_training_is_left_alone_where_it_is_off_or_useless(tmp_path: Path) -> None:
    noise = np.random.default_rng(6)
    for name, codec in (
        ("off", tiermem.CodecConfig(dictionary_bytes=0, dictionary_samples=16)),
        ("level", tiermem.CodecConfig(level=0, dictionary_samples=16)),
        ("noise", tiermem.CodecConfig(dictionary_samples=16)),
    ):
        with tiermem.open(tmp_path / name, config=config(codec=codec)) as mem:
            for number in range(64):
                mem.put("q", f"k{number}", noise.bytes(200))
            mem.flush()
            upkeep = mem._store.committer.upkeep
            assert upkeep.train() == []
            for number in range(64):
                mem.put("q", f"k{number}", noise.bytes(200))
            mem.flush()
            # Found useless once, it is not tried again before there are many times the records.
            assert upkeep.train() == []
            mem.put("gone", "k", noise.bytes(200))
            for number in range(20):
                mem.put("gone", f"k{number}", noise.bytes(200))
            mem.drop_namespace("gone")
            assert upkeep.train() == []
            assert mem.stats().cold.dictionaries == 0


def test_a_record_damaged_on_disk_is_no_value(mem: Memory) -> None:
    mem.put(NS, "k", "x" * 100)
    mem.put(NS, "good", 1)
    mem.flush()
    store = mem._store
    with store.cold.read() as snapshot:
        info = snapshot.info(NS)
        assert info is not None
        key = info.prefix + b"k"
        row = bytearray(snapshot.txn.get(key, db=snapshot.dbs.records))
    row[-5] ^= 1
    with store.cold.write() as txn:
        txn.put(key, bytes(row), db=store.cold.dbs.records)
    for read in (lambda: mem.get(NS, "k"), lambda: mem.get_record(NS, "k"), lambda: list(mem.scan(NS))):
        with pytest.raises(CorruptionError):
            read()
    assert mem.get(NS, "good") == 1
    assert not mem.check().ok


def test_versions_rise_though_the_machine_s_clock_stands_still_or_goes_back(
    mem: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from time import time_ns

    from tiermem.engine import store

    versions = [mem.put(NS, "first", 1)]
    now = time_ns()
    for step in (0, 0, -10_000_000_000, 0, 5_000_000_000, -1):
        monkeypatch.setattr(store, "time_ns", lambda moment=now + step: moment)
        versions.append(mem.put(NS, "k", step))
        versions.append(mem.update(NS, "k", metadata={"step": step}))
        versions.append(mem.put_many(NS, [("a", 1), ("b", 2)])[1])
    assert versions == sorted(set(versions))
    assert mem.get(NS, "k") == -1


def test_a_look_at_other_processes_that_failed_is_repeated(
    mem: Memory, tmp_path: Path, peer: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    mem.put(NS, "k", 1)
    mem.flush()
    assert mem.get(NS, "k") == 1
    other = peer(tmp_path / "store", config=config(), now=START)
    other.put(NS, "k", 2)
    other.flush()
    cold = mem._store.cold

    def fail() -> Any:
        raise tiermem.StorageError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(cold, "read", fail)
        with pytest.raises(tiermem.StorageError):
            mem.get(NS, "k")
    assert mem.get(NS, "k") == 2


def test_flush_with_nothing_to_do(mem: Memory) -> None:
    mem.flush()
    mem.flush()
    assert mem.stats().writes.committed == 0


def test_a_key_known_to_be_absent_is_found_once_it_is_there(mem: Memory, clock: SimulatedClock) -> None:
    def lacks(key: str) -> None:
        for _ in range(3):
            assert mem.get("n", key) is None
            assert mem.get("n", key, "default") == "default"
            assert not mem.contains("n", key)
            with pytest.raises(KeyError, match=key):
                mem.namespace("n")[key]
            assert mem.namespace("n", dict).get(key) is None

    keys = ["put", "cas", "batch", "many", "update", "ttl"]
    for key in keys:
        lacks(key)
    mem.put("n", "put", {"v": 1})
    assert mem.get("n", "put") == mem.namespace("n")["put"] == mem.namespace("n", dict)["put"] == {"v": 1}
    mem.flush()
    for key in keys[1:]:
        lacks(key)
    mem.put("n", "cas", {"v": 2}, if_version=0)
    assert mem.get("n", "cas") == mem.namespace("n", dict)["cas"] == {"v": 2}
    with mem.batch() as batch:
        batch.put("n", "batch", {"v": 3})
        batch.delete("n", "put")
    assert mem.get("n", "batch") == {"v": 3}
    lacks("put")
    mem.put_many("n", [("many", {"v": 4}), ("put", {"v": 5})])
    assert (mem.get("n", "many"), mem.get("n", "put")) == ({"v": 4}, {"v": 5})
    mem.put("n", "ttl", {"v": 6}, ttl=10)
    for _ in range(9):
        assert mem.get("n", "ttl") == mem.namespace("n")["ttl"] == {"v": 6}
    clock.advance(10)
    lacks("ttl")
    mem.put("n", "ttl", {"v": 7})
    assert mem.get("n", "ttl") == {"v": 7}
    mem.drop_namespace("n")
    lacks("ttl")
    mem.put("n", "ttl", {"v": 8})
    assert mem.get("n", "ttl") == {"v": 8}


def test_durable_puts_of_many_threads_share_commits(tmp_path: Path) -> None:
    with tiermem.open(tmp_path / "store", config=config()) as mem:
        mem.put("n", "first", 0, durable=True)
        before = mem.stats().writes.commits

        def work(number: int) -> None:
            for count in range(40):
                mem.put("n", f"{number}-{count}", count, durable=True)

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(work, range(16)))
        writes = mem.stats().writes
        assert writes.pending == 0
        assert writes.commits - before < 16 * 40 * 3 // 4
        assert mem.count("n") == 16 * 40 + 1


def test_a_durable_put_whose_commit_fails_says_so_in_every_thread(tmp_path: Path) -> None:
    with tiermem.open(tmp_path / "store", config=config(cold=tiermem.ColdConfig(sync_interval=60.0))) as mem:
        mem.put("n", "first", 0, durable=True)
        committer = mem._current().committer
        whole = committer.commit

        def broken(**how: Any) -> list[int]:
            raise tiermem.StorageError("no commit today")

        committer.commit = broken  # type: ignore[method-assign]  # a fault is put in its place

        def work(number: int) -> str:
            try:
                mem.put("n", f"k{number}", number, durable=True)
            except tiermem.StorageError as exc:
                return str(exc)
            return ""

        try:
            with ThreadPoolExecutor(8) as pool:
                assert list(pool.map(work, range(8))) == ["no commit today"] * 8
        finally:
            committer.commit = whole  # type: ignore[method-assign]  # a fault is put in its place
        mem.put("n", "last", 1, durable=True)
        assert mem.count("n") == 10
        assert mem.stats().writes.pending == 0


def test_get_many_reads_one_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = Peer(tmp_path / "store")
    try:
        peer.put("n", "a", 0)
        peer.flush()
        with tiermem.open(tmp_path / "store", config=config()) as mem:
            mem.put("n", "b", 0)
            environment = type(mem._current().cold)
            whole = environment.read
            asked = 0

            def read(cold: Any, **options: Any) -> Any:
                nonlocal asked
                asked += 1
                if asked == 2:
                    peer.put_many("n", [("a", 1), ("b", 1)])
                    peer.flush()
                return whole(cold, **options)

            monkeypatch.setattr(environment, "read", read)
            found = mem.get_many("n", ["a", "b"])
            monkeypatch.undo()
            assert found == {"a": 0, "b": 0}
    finally:
        peer.leave()


def test_a_limit_behind_many_expired_records_takes_few_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = tiermem.SimulatedClock(start=100.0)
    inline = tiermem.Config(cold=tiermem.ColdConfig(committer="inline"))
    with tiermem.open(tmp_path / "store", config=inline, clock=clock) as mem:
        mem.put_many("n", (tiermem.Item(f"{number:04d}", number, ttl=1.0) for number in range(2000)))
        mem.put_many("n", [("x", 1), ("y", 2), ("z", 3)])
        mem.flush()
        clock.advance(10.0)
        environment = type(mem._current().cold)
        whole = environment.read
        snapshots = 0

        def read(cold: Any, **options: Any) -> Any:
            nonlocal snapshots
            snapshots += 1
            return whole(cold, **options)

        monkeypatch.setattr(environment, "read", read)
        assert [record.value for record in mem.scan("n", limit=2)] == [1, 2]
        assert snapshots < 10
        assert [record.value for record in mem.scan("n", limit=1, reverse=True)] == [3]
        monkeypatch.undo()


@pytest.mark.parametrize("again", [True, False])
def test_a_namespace_dropped_under_a_read_leaves_nothing_in_l1(mem: Memory, again: bool) -> None:
    mem.put("n", "k", "old")
    mem.flush()
    assert mem.get("n", "other") is None
    store = mem._current()
    store.hot.clear()
    cold, value = store.cold, store.cold.value

    def late(key: bytes) -> Any:
        # Between the look at the namespace's prefix and the snapshot.
        del cold.value  # type: ignore[method-assign]  # the class's own is found again
        store.committer.commit(everything=True, work=lambda writer: writer.drop("n"))
        if again:
            mem.put("n", "k", "new")
            mem.flush()
        return value(key)

    cold.value = late  # type: ignore[method-assign]  # a fault is put in its place
    mem.get("n", "k")
    record = mem.get_record("n", "k")
    assert mem.get("n", "k") == (record and record.value) == ("new" if again else None)


class Interrupted(BaseException):
    """Stands for what a signal handler raises wherever it happens to run."""


@pytest.mark.parametrize("after", [0, 1, 7])
@pytest.mark.parametrize("verb", ["put", "batch"])
def test_a_write_that_is_interrupted_behind_its_journal_frame_stands_whole(
    tmp_path: Path, verb: str, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold = tiermem.ColdConfig(committer="inline", sync_interval=60.0)
    with tiermem.open(tmp_path / "s", config=tiermem.Config(cold=cold)) as mem:
        mem.put("n", "first", 0)
        store = mem._store
        whole, left = store.pend, [after]

        def pend(*args: Any) -> None:
            if not left[0]:
                left[0] = -1
                raise Interrupted
            left[0] -= 1
            whole(*args)

        def write() -> None:
            if verb == "put":
                for number in range(after + 1):
                    mem.put("n", f"k{number}", number)
            else:
                with mem.batch() as batch:
                    for number in range(20):
                        batch.put("n", f"k{number}", number)

        monkeypatch.setattr(store, "pend", pend)
        with pytest.raises(Interrupted):
            write()
        monkeypatch.undo()
        mem.put("n", "last", 1)
        count = 2 + (after + 1 if verb == "put" else 20)
        assert mem.count("n") == count
        mem.flush()
        assert mem.stats().writes.pending == mem.stats().writes.pending_bytes == 0
        assert mem.count("n") == count
    with tiermem.open(tmp_path / "s") as mem:
        assert mem.count("n") == count


def test_names_of_a_class_of_their_own_are_strings(mem: Memory) -> None:
    """As numpy's are: what is written is encoded long after the call that was given them."""
    key, name = np.str_("k"), np.str_("numpy/names")
    first = mem.put(name, key, 1)
    mem.put(NS, "plain", 1, guard=Guard(name, key, first))
    with mem.batch() as batch:
        batch.put(name, key, 2, if_version=first)
    mem.update(name, key, metadata={"n": 1})
    mem.put_many(name, [(np.str_("m"), 3)])
    mem.flush()
    assert mem.get("numpy/names", "k") == mem.get(name, key) == 2
    assert mem.delete(name, np.str_("m"))
    mem.flush()
    assert {(change.namespace, change.key) for change in mem.changes(after=0)} == {
        ("numpy/names", "k"),
        ("numpy/names", "m"),
        (NS, "plain"),
    }
