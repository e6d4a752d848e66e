"""The change feed: every change once and in order, waiting, cursors that survive, and a log that is trimmed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tiermem
from tests.workers import INLINE, START, Peer, eventually
from tiermem import Change, ClosedError, Config, CursorExpired, InvalidArgument, Memory, SimulatedClock
from tiermem.engine import upkeep

LONG = 60.0


def brief(changes: Any) -> list[tuple[str, str, str]]:
    return [(change.namespace, change.key, change.op) for change in changes]


def keys(changes: Any) -> list[str]:
    return [change.key for change in changes]


# -------------------------------------------------------------------------------------------------------------- changes


def test_every_change_in_order(mem: Memory, clock: SimulatedClock) -> None:
    first = mem.put("a", "k", 1)
    second = mem.put("a", "k", 2)
    mem.put("b", "timed", 1, ttl=5.0)
    mem.delete("a", "k")
    mem.delete("a", "never")
    with mem.batch() as batch:
        batch.put("a", "x", 1)
        batch.put("b", "y", 1)
        batch.delete("b", "never")
    mem.update("a", "x", value=2)
    changes = list(mem.changes(0))
    assert brief(changes) == [
        ("a", "k", "put"),
        ("a", "k", "put"),
        ("b", "timed", "put"),
        ("a", "k", "delete"),
        ("a", "x", "put"),
        ("b", "y", "put"),
        ("a", "x", "put"),
    ]
    assert [change.sequence for change in changes] == list(range(1, 8))
    assert [change.version for change in changes][:2] == [first, second]
    assert all(isinstance(change, Change) for change in changes)
    clock.advance(5)
    mem.compact()
    mem.drop_namespace("a")
    assert brief(mem.changes(7)) == [("b", "timed", "expire"), ("a", "", "drop")]
    assert brief(mem.changes(7, namespace="a")) == [("a", "", "drop")]
    assert brief(mem.changes(5, "b")) == [("b", "y", "put"), ("b", "timed", "expire")]
    assert list(mem.changes(9)) == []
    assert list(mem.changes(10**6)) == []


def test_none_is_from_now(mem: Memory) -> None:
    mem.put("a", "before", 1)
    feed = mem.changes()
    mem.put("a", "after", 1)
    assert keys(feed) == ["after"]
    assert list(feed) == []


def test_from_every_position_in_pages(mem: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiermem.engine import feed

    for number in range(3000):
        mem.put("ab"[number % 2], f"k{number}", number)
        if number % 700 == 0:
            mem.flush()
    whole = list(mem.changes(0))
    assert keys(whole) == [f"k{number}" for number in range(3000)]
    for after in (1, 699, 700, 701, 1023, 1024, 1025, 2999, 3000):
        assert list(mem.changes(after)) == whole[after:]
    assert keys(mem.changes(5, "b")) == [f"k{number}" for number in range(5, 3000, 2)]
    monkeypatch.setattr(feed, "PAGE", 1)
    assert list(mem.changes(2990)) == whole[2990:]


def test_changes_of_another_process(mem: Memory, tmp_path: Path) -> None:
    mem.put("a", "k", 1)
    mem.flush()
    other = Peer(tmp_path / "store", config=Config(cold=INLINE), now=START)
    try:
        feed = mem.changes()
        other.put("a", "theirs", 1)
        other.flush()
        mem.put("a", "mine", 1)
        assert keys(feed) == ["theirs", "mine"]
        assert keys(other.call("changes", 0)) == ["k", "theirs", "mine"]
    finally:
        other.leave()


@pytest.mark.parametrize(
    "arguments",
    [
        {"after": -1},
        {"after": True},
        {"after": 1.0},
        {"after": "1"},
        {"after": 2**64},
        {"namespace": ""},
        {"namespace": "a//b"},
        {"wait": -1},
        {"wait": float("nan")},
        {"wait": "1"},
        {"wait": True},
    ],
)
def test_arguments_are_checked_at_once(mem: Memory, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        mem.changes(**arguments)


# -------------------------------------------------------------------------------------------------------------- waiting


def test_waiting_for_nothing_ends(mem: Memory) -> None:
    assert list(mem.changes(wait=0.02)) == []
    assert list(mem.changes(0, wait=0)) == []
    assert list(mem.changes(wait=0.0)) == []


def test_a_change_wakes_who_waits(mem: Memory) -> None:
    feed = mem.changes(wait=LONG)
    found: list[Change] = []

    def listen() -> None:
        found.append(next(feed))
        found.append(next(feed))

    thread = threading.Thread(target=listen)
    thread.start()
    mem.put("a", "first", 1, durable=True)
    assert eventually(lambda: len(found) == 1)
    mem.put("a", "second", 1, durable=True)
    thread.join(LONG / 2)
    assert keys(found) == ["first", "second"]


def test_a_change_of_another_process_wakes_who_waits(mem: Memory, tmp_path: Path) -> None:
    other = Peer(tmp_path / "store", config=Config(cold=INLINE), now=START)
    try:
        found: list[Change] = []
        feed = mem.changes(wait=LONG)
        thread = threading.Thread(target=lambda: found.append(next(feed)))
        thread.start()
        other.put("a", "theirs", 1, durable=True)
        thread.join(LONG / 2)
        assert keys(found) == ["theirs"]
    finally:
        other.leave()


def test_who_only_reads_waits_too(tmp_path: Path, clock: SimulatedClock) -> None:
    writer = Peer(tmp_path / "store", config=Config(cold=INLINE), now=START)
    try:
        writer.put("a", "k", 1, durable=True)
        with tiermem.open(tmp_path / "store", read_only=True, clock=clock) as mem:
            assert list(mem.changes(wait=0.05)) == []
            found: list[Change] = []
            feed = mem.changes(wait=LONG)
            thread = threading.Thread(target=lambda: found.append(next(feed)))
            thread.start()
            writer.put("a", "theirs", 1, durable=True)
            thread.join(LONG / 2)
            assert keys(found) == ["theirs"]
    finally:
        writer.leave()


def test_the_traffic_of_others_does_not_prolong_the_wait(mem: Memory) -> None:
    """Whoever waits for one namespace gets an answer in time, however busy another one is."""
    done, writes = threading.Event(), 0

    def write() -> None:
        nonlocal writes
        while not done.is_set() and writes < 200:
            writes += 1
            mem.put("busy", "k", writes, durable=True)
            time.sleep(0.02)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert list(mem.changes(namespace="quiet", wait=0.2)) == []
        assert writes < 200, "it ended only when the others fell silent"
    finally:
        done.set()
        thread.join()


def test_closing_under_who_waits(mem: Memory) -> None:
    mem.put("a", "k", 1, durable=True)
    feed = mem.changes(wait=LONG)
    cursor = mem.cursor("c")
    results: list[Any] = []
    started = threading.Barrier(3)

    def attempt(call: Callable[[], Any]) -> None:
        started.wait()
        try:
            results.append(call())
        except BaseException as exc:  # noqa: BLE001 - whatever it is, it is what the test looks at
            results.append(exc)

    threads = [
        threading.Thread(target=attempt, args=(call,)) for call in (lambda: next(feed), lambda: cursor.wait(LONG))
    ]
    for thread in threads:
        thread.start()
    started.wait()
    store = mem._store
    assert eventually(lambda: len(store.control.bells._sleepers) == 2)
    mem.close()
    for thread in threads:
        thread.join(LONG / 2)
    assert [type(result) for result in results] == [ClosedError, ClosedError], results


def test_after_closing_a_feed_says_so(mem: Memory) -> None:
    mem.put("a", "k", 1)
    feed, cursor = mem.changes(0), mem.cursor("c", start=0)
    mem.close()
    calls: list[Callable[[], Any]] = [
        lambda: next(feed),
        lambda: next(iter(cursor)),
        lambda: cursor.lag,
        lambda: cursor.wait(0.01),
        cursor.commit,
        cursor.delete,
    ]
    for call in calls:
        with pytest.raises(ClosedError):
            call()


# -------------------------------------------------------------------------------------------------------------- cursors


def test_a_cursor_yields_what_was_not_committed_again(mem: Memory) -> None:
    for number in range(10):
        mem.put("a", f"k{number}", number)
    cursor = mem.cursor("c", start=0)
    assert (cursor.name, cursor.namespace, cursor.position, cursor.lag) == ("c", None, 0, 10)
    rows = iter(cursor)
    assert keys(next(rows) for _ in range(4)) == ["k0", "k1", "k2", "k3"]
    assert (cursor.position, cursor.lag) == (4, 6)
    cursor.commit()
    assert keys(next(rows) for _ in range(3)) == ["k4", "k5", "k6"]
    # Another holder of the name begins behind what was committed.
    other = mem.cursor("c", start=9)
    assert other.position == 4
    assert keys(other) == [f"k{number}" for number in range(4, 10)]
    assert list(other) == []
    mem.put("a", "more", 1)
    assert keys(other) == ["more"]
    other.commit()
    assert mem.cursor("c").lag == 0
    assert mem.stats().log.cursors == {"c": 0}


def test_a_cursor_survives_reopening_and_belongs_to_no_process(
    mem: Memory, tmp_path: Path, clock: SimulatedClock
) -> None:
    for number in range(6):
        mem.put("a", f"k{number}", number)
    cursor = mem.cursor("c", start=0)
    for change in cursor:
        if change.key == "k2":
            cursor.commit()
            break
    mem.close()
    other = Peer(tmp_path / "store", config=Config(cold=INLINE), now=START)
    other.put("a", "theirs", 1)
    other.leave()
    with tiermem.open(tmp_path / "store", clock=clock) as again:
        assert keys(again.cursor("c")) == ["k3", "k4", "k5", "theirs"]
        assert keys(again.cursor("fresh")) == []


def test_a_new_cursor_starts_from_now_unless_told(mem: Memory) -> None:
    mem.put("a", "before", 1)
    cursor = mem.cursor("now")
    mem.put("a", "after", 1)
    assert keys(cursor) == ["after"]
    assert keys(mem.cursor("all", start=0)) == ["before", "after"]
    assert keys(mem.cursor("some", start=1)) == ["after"]


def test_a_cursor_of_one_namespace_passes_the_others(mem: Memory) -> None:
    cursor = mem.cursor("c", "a")
    for number in range(6):
        mem.put("ab"[number % 2], f"k{number}", number)
    assert (cursor.namespace, cursor.lag) == ("a", 6)
    assert keys(cursor) == ["k0", "k2", "k4"]
    assert cursor.lag == 0
    cursor.commit()
    for number in range(4):
        mem.put("b", f"x{number}", 1)
    assert list(cursor) == []
    cursor.commit()
    assert mem.stats().log.cursors == {"c": 0}, "what nobody asked for must not hold the log"
    for namespace in (None, "b"):
        with pytest.raises(InvalidArgument, match="follows"):
            mem.cursor("c", namespace)
    assert mem.cursor("c", "a").position == 10


def test_waiting_at_a_cursor(mem: Memory) -> None:
    cursor = mem.cursor("c")
    assert not cursor.wait(0.02)
    assert not cursor.wait(0)
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.append(cursor.wait(LONG)))
    thread.start()
    mem.put("a", "k", 1, durable=True)
    thread.join(LONG / 2)
    assert results == [True]
    assert cursor.wait(LONG)
    assert keys(cursor) == ["k"]


def test_a_deleted_cursor_is_forgotten(mem: Memory) -> None:
    mem.put("a", "k", 1)
    cursor = mem.cursor("c", start=0)
    assert mem.stats().log.cursors == {"c": 1}
    cursor.delete()
    assert mem.stats().log.cursors == {}
    assert mem.cursor("c").lag == 0


@pytest.mark.parametrize("name", ["", "x" * 256, "é" * 128, 5, None, b"c", "\ud800"])
def test_a_cursor_needs_a_name(mem: Memory, name: Any) -> None:
    with pytest.raises(InvalidArgument):
        mem.cursor(name)


@pytest.mark.parametrize("start", [-1, True, 1.0, "0", 5, 10**9])
def test_a_cursor_starts_inside_the_log(mem: Memory, start: Any) -> None:
    mem.put("a", "k", 1)
    with pytest.raises(InvalidArgument):
        mem.cursor("c", start=start)
    assert mem.stats().log.cursors == {}


def test_names_of_cursors_at_their_longest(mem: Memory) -> None:
    mem.put("a", "k", 1)
    for name in ("x" * 255, "é" * 127, " ", "a/b"):
        assert keys(mem.cursor(name, start=0)) == ["k"]
    assert len(mem.stats().log.cursors) == 4


# ------------------------------------------------------------------------------------------------------------ retention


@pytest.fixture
def trimming(tmp_path: Path, clock: SimulatedClock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    """A store that keeps 50 changes."""
    monkeypatch.setattr(upkeep, "SLACK", 10)
    cold = tiermem.ColdConfig(committer="inline", journal_bytes=2**20, sync_interval=60.0, log_retention=50)
    with tiermem.open(tmp_path / "store", config=Config(cold=cold), clock=clock) as mem:
        yield mem


def write(mem: Memory, number: int) -> None:
    for _ in range(number):
        mem.put("a", "k", 1)
        mem.flush()
    mem._store.committer.upkeep.run()


def test_the_log_keeps_what_it_is_told_to(trimming: Memory) -> None:
    write(trimming, 60)
    assert trimming.stats().log.first == 1, "not for every change"
    write(trimming, 140)
    log = trimming.stats().log
    assert log.last == 200
    assert 50 <= log.last - log.first + 1 <= 61
    assert len(list(trimming.changes(log.first - 1))) == log.last - log.first + 1
    for after in (0, 1, log.first - 2):
        with pytest.raises(CursorExpired, match="trimmed"):
            next(trimming.changes(after))
        with pytest.raises(CursorExpired):
            trimming.cursor("late", start=after)
    assert trimming.cursor("edge", start=log.first - 1).lag == log.last - log.first + 1
    assert trimming.check().ok


def test_a_named_cursor_holds_the_log(trimming: Memory) -> None:
    cursor = trimming.cursor("slow", start=0)
    write(trimming, 200)
    assert trimming.stats().log.first == 1
    assert len(list(cursor)) == 200
    write(trimming, 1)
    assert trimming.stats().log.first == 1, "nothing was committed yet"
    cursor.commit()
    write(trimming, 20)
    assert trimming.stats().log.first > 100
    cursor.delete()
    write(trimming, 200)
    with pytest.raises(CursorExpired):
        list(cursor)


def test_a_feed_that_is_overtaken_says_so(trimming: Memory) -> None:
    write(trimming, 20)
    feed = trimming.changes(0)
    assert next(feed).sequence == 1
    write(trimming, 300)
    with pytest.raises(CursorExpired):
        list(feed)


def test_a_position_kept_after_its_name_was_forgotten(trimming: Memory) -> None:
    """Committing behind the log's beginning would leave a cursor nobody can use."""
    write(trimming, 5)
    cursor = trimming.cursor("c", start=0)
    next(iter(cursor))
    cursor.delete()
    write(trimming, 300)
    with pytest.raises(CursorExpired):
        cursor.commit()
    assert trimming.check().ok


def test_who_was_left_behind_by_the_log_starts_anew(trimming: Memory, tmp_path: Path) -> None:
    trimming.put("a", "mine", 1, vector=[1, 0])
    trimming.flush()
    assert trimming.get("a", "mine") == 1
    assert len(trimming.search_similar("a", [1, 0])) == 1
    cold = tiermem.ColdConfig(committer="inline", journal_bytes=2**20, log_retention=0)
    other = Peer(tmp_path / "store", config=Config(cold=cold), now=START)
    try:
        other.put("a", "mine", 2, vector=[0, 1])
        for number in range(1100):
            other.put("a", f"k{number}", number)
        other.put("a", "new", 1, vector=[1, 1])
        other.compact()
        # This one has read none of it, and the log no longer holds it.
        assert trimming.get("a", "mine") == 2
        assert [hit.key for hit in trimming.search_similar("a", [1, 0])] == ["new", "mine"]
    finally:
        other.leave()


# ---------------------------------------------------------------------------------------------------------------- haste


@pytest.mark.parametrize("home", ["inline", "thread", "helper"])
def test_what_is_in_haste_does_not_wait_for_the_interval(tmp_path: Path, home: Any) -> None:
    slow = Config(cold=tiermem.ColdConfig(committer=home, journal_bytes=2**20, sync_interval=60.0))
    with tiermem.open(tmp_path / "store", config=slow) as mem:
        assert home != "helper" or eventually(lambda: mem.stats().writes.committer == "helper")
        other = Peer(tmp_path / "store", config=slow)
        try:
            for number in range(20):
                mem.put("a", f"k{number}", number)
                mem.flush(wait=False)
                assert eventually(lambda number=number: other.contains("a", f"k{number}")), number
        finally:
            other.leave()


def test_haste_changes_nothing_where_nothing_may_be_written(tmp_path: Path) -> None:
    with tiermem.open(tmp_path / "store") as mem:
        mem.put("a", "k", 1)
    with tiermem.open(tmp_path / "store", read_only=True) as mem:
        mem.flush(wait=False)
        mem.flush()
        assert mem.get("a", "k") == 1
    with pytest.raises(ClosedError):
        mem.flush(wait=False)


def test_a_cursor_keeps_any_position_up_to_the_end(mem: Memory) -> None:
    cursor = mem.cursor("c", start=0)
    for number in range(5):
        mem.put("a", f"k{number}", number)
    assert len(list(cursor)) == 5
    cursor.commit(2)
    assert cursor.position == 5, "what was yielded was yielded"
    assert keys(mem.cursor("c")) == ["k2", "k3", "k4"]
    for wrong in (6, -1, True, "2"):
        with pytest.raises(InvalidArgument):
            cursor.commit(wrong)
    assert mem.cursor("c").position == 2


def test_the_clock_of_a_store(mem: Memory, clock: SimulatedClock) -> None:
    assert mem.clock is clock
