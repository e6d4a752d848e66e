"""Streams: records in the order of their event times, however they arrived, at the cost of what is asked for."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiermem
from tests.workers import INLINE, START, Peer
from tiermem import Config, Item, Memory, SimulatedClock
from tiermem.engine import follower

S = "desk/ticks"


def _nothing(mem: Memory) -> None:
    pass


def _flush(mem: Memory) -> None:
    mem.flush()


each_state = pytest.mark.parametrize("settle", [_nothing, _flush], ids=["pending", "committed"])


def values(records: Any) -> list[Any]:
    return [record.value for record in records]


@each_state
def test_append_and_latest(mem: Memory, clock: SimulatedClock, settle: Callable[[Memory], None]) -> None:
    assert mem.latest(S) == []
    keys = []
    for number in range(10):
        keys.append(mem.append(S, number, metadata={"n": number}, vector=[number, 1], ttl=100.0))
        clock.advance(1)
    settle(mem)
    assert keys == sorted(set(keys))
    assert [record.key for record in mem.scan(S)] == keys
    assert values(mem.latest(S, 3)) == [9, 8, 7]
    assert values(mem.latest(S)) == [9]
    assert values(mem.latest(S, 99)) == list(range(9, -1, -1))
    (record,) = mem.latest(S, 1)
    assert (record.namespace, record.key, record.metadata, record.at) == (S, keys[-1], {"n": 9}, START + 9)
    assert (record.created_at, record.expires_at) == (START + 9, START + 109)
    assert record.vector is not None
    assert mem.get(S, keys[4]) == 4
    assert [hit.key for hit in mem.search_similar(S, [1, 0], k=2)] == [keys[9], keys[8]]
    for refused in (0, -1, True, 1.5, "3", None):
        with pytest.raises(tiermem.InvalidArgument):
            mem.latest(S, refused)


@each_state
def test_what_has_the_same_time_keeps_the_order_of_arrival(mem: Memory, settle: Callable[[Memory], None]) -> None:
    for number in range(50):
        mem.append(S, number, at=START)
    with mem.batch() as batch:
        for number in range(50, 60):
            batch.append(S, number, at=START)
    settle(mem)
    assert values(mem.scan(S)) == list(range(60))
    assert values(mem.latest(S, 60)) == list(range(59, -1, -1))


TIMES = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, -1.0, 1.0, 1e-300, -1e-300, 1.7e308, -1.7e308, START]),
)


@settings(max_examples=20)
@given(times=st.lists(TIMES, max_size=25), bounds=st.tuples(TIMES, TIMES), committed=st.integers(0, 25))
def test_any_times_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, times: list[float], bounds: tuple[float, float], committed: int
) -> None:
    with tiermem.open(tmp_path_factory.mktemp("s"), config=Config(cold=INLINE), clock=SimulatedClock(START)) as mem:
        for number, at in enumerate(times):
            mem.append(S, number, at=at)
            if number == committed:
                mem.flush()
        wanted = sorted(range(len(times)), key=lambda number: (times[number] + 0.0, number))
        assert values(mem.scan(S)) == wanted
        assert values(mem.scan(S, reverse=True)) == wanted[::-1]
        for n in (1, 3, 30):
            assert values(mem.latest(S, n)) == wanted[::-1][:n]
        since, until = bounds
        inside = [number for number in wanted if since <= times[number] < until]
        assert values(mem.scan(S, since=since, until=until)) == inside
        assert values(mem.scan(S, since=since, until=until, reverse=True, limit=2)) == inside[::-1][:2]
        assert values(mem.scan(S, since=since)) == [number for number in wanted if since <= times[number]]
        assert values(mem.scan(S, until=until)) == [number for number in wanted if times[number] < until]


def test_event_times_are_numbers_or_aware_datetimes(mem: Memory) -> None:
    key = mem.append(S, 1, at=datetime(2024, 5, 1, tzinfo=UTC))
    record = mem.get_record(S, key)
    assert record is not None
    assert record.at == datetime(2024, 5, 1, tzinfo=UTC).timestamp()
    assert values(mem.scan(S, since=datetime(2024, 5, 1, tzinfo=UTC))) == [1]
    assert values(mem.scan(S, until=datetime(2024, 5, 1, tzinfo=UTC))) == []
    for refused in (datetime(2024, 5, 1), float("inf"), "now", True):
        with pytest.raises(tiermem.InvalidArgument):
            mem.append(S, 1, at=refused)
    assert mem.count(S) == 1


def test_the_latest_of_many_costs_what_is_asked_for(mem: Memory) -> None:
    rows = 50_000
    for number in range(rows):
        mem.append(S, number, at=START + number)
    mem.flush()

    def cost(call: Callable[[], Any]) -> tuple[Any, int]:
        before = mem.stats().cold.rows_read
        result = call()
        return result, mem.stats().cold.rows_read - before

    _, idle = cost(lambda: None)
    found, read = cost(lambda: mem.latest(S, 100))
    assert values(found) == list(range(rows - 1, rows - 101, -1))
    assert read - idle <= 110
    found, read = cost(lambda: mem.latest(S))
    assert (values(found), read - idle <= 2) == ([rows - 1], True)
    # A time range costs what lies in it; so do pending records on top.
    middle = START + rows / 2
    found, read = cost(lambda: list(mem.scan(S, since=middle, until=middle + 50)))
    assert (len(found), read - idle <= 60) == (50, True)
    found, read = cost(lambda: list(mem.scan(S, since=middle, limit=5, reverse=True)))
    assert (values(found), read - idle <= 10) == ([rows - 1 - i for i in range(5)], True)
    mem.append(S, "pending", at=middle)
    found, read = cost(lambda: mem.latest(S, 100))
    assert (values(found)[0], read - idle <= 110) == (rows - 1, True)
    assert mem.count(S) == rows + 1


# ------------------------------------------------------------------------------------- namespaces that are no streams


@each_state
def test_records_with_keys_of_their_own_are_ordered_by_time_too(mem: Memory, settle: Callable[[Memory], None]) -> None:
    for number, at in enumerate([5.0, 1.0, 9.0, 3.0, 9.0]):
        mem.put(S, f"k{number}", number, at=at)
    settle(mem)
    assert values(mem.latest(S, 9)) == [4, 2, 0, 3, 1]
    assert values(mem.latest(S, 2)) == [4, 2]
    assert values(mem.scan(S, since=3.0, until=9.0)) == [0, 3]


@each_state
def test_a_stream_that_gets_a_record_with_a_key_of_its_own(mem: Memory, settle: Callable[[Memory], None]) -> None:
    for number in range(5):
        mem.append(S, number, at=float(number))
    mem.flush()
    mem.put(S, "zzz", "old", at=-1.0)
    mem.put(S, "000", "new", at=99.0)
    settle(mem)
    assert values(mem.latest(S, 9)) == ["new", 4, 3, 2, 1, 0, "old"]
    assert values(mem.scan(S, since=3.0)) == ["new", 3, 4]
    assert values(mem.scan(S, until=1.0)) == [0, "old"]
    mem.delete_many(S, ["zzz", "000"])
    settle(mem)
    assert values(mem.latest(S, 2)) == [4, 3]
    mem.put_many(S, [Item("aaa", "item", at=50.0)])
    settle(mem)
    assert values(mem.latest(S, 1)) == ["item"]


@each_state
def test_a_record_of_a_stream_put_anew_at_another_time(mem: Memory, settle: Callable[[Memory], None]) -> None:
    keys = [mem.append(S, number, at=float(number)) for number in range(5)]
    settle(mem)
    mem.put(S, keys[0], "moved", at=100.0)
    settle(mem)
    assert values(mem.latest(S, 2)) == ["moved", 4]
    assert values(mem.scan(S, since=50.0)) == ["moved"]


def test_a_dropped_namespace_may_become_a_stream(mem: Memory) -> None:
    mem.put(S, "k", 1)
    assert values(mem.latest(S)) == [1]
    mem.drop_namespace(S)
    for number in range(600):
        mem.append(S, number, at=float(number))
    mem.flush()
    before = mem.stats().cold.rows_read
    assert values(mem.latest(S, 1)) == [599]
    assert mem.stats().cold.rows_read - before <= 3


@each_state
def test_expired_records_are_passed_over(mem: Memory, clock: SimulatedClock, settle: Callable[[Memory], None]) -> None:
    for number in range(600):
        mem.append(S, number, at=START + number, ttl=10.0 if number % 100 else None)
    settle(mem)
    clock.advance(10)
    assert values(mem.latest(S, 4)) == [500, 400, 300, 200]
    assert values(mem.scan(S)) == [0, 100, 200, 300, 400, 500]


def test_a_process_that_fell_far_behind_still_knows_what_it_holds(
    mem: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own record with a key of its own is pending; the others' changes are too many to be walked."""
    for number in range(5):
        mem.append(S, number, at=float(number))
    mem.flush()
    assert values(mem.latest(S, 1)) == [4]
    mem.put(S, "zzz", "old", at=-1.0)
    other = Peer(tmp_path / "store", config=Config(cold=INLINE), now=START)
    try:
        monkeypatch.setattr(follower, "FAR_BEHIND", 0)
        # Committed there; what is pending here stays pending.
        other.append("elsewhere", 1, durable=True)
        other.append(S, 5, at=5.0, durable=True)
        assert mem._store.spaces[S].pending
        assert values(mem.latest(S, 9)) == [5, 4, 3, 2, 1, 0, "old"]
        assert values(mem.scan(S, since=4.0)) == [4, 5]
    finally:
        other.leave()
