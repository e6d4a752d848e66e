"""Topics: order, durable positions, groups, retention, lag limits, and processes that are killed."""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import tiermem
from tests import topicworkers
from tests.workers import INLINE, START, eventually, in_child, join
from tiermem import (
    ClosedError,
    Config,
    CursorExpired,
    InvalidArgument,
    LagExceeded,
    LeaseLost,
    Memory,
    Message,
    Retention,
    SimulatedClock,
    Subscription,
    Topics,
)
from tiermem.coordination._feed import PAGE
from tiermem.engine import upkeep

SHORT_LOG = tiermem.ColdConfig(committer="inline", journal_bytes=2**20, sync_interval=60.0, log_retention=0)
LONG = 30.0


@pytest.fixture
def forgetful(tmp_path: Path, clock: SimulatedClock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    """A store that trims its log as far as it may."""
    monkeypatch.setattr(upkeep, "SLACK", 0)
    with tiermem.open(tmp_path / "forgetful", config=Config(cold=SHORT_LOG), clock=clock) as mem:
        yield mem


@pytest.fixture
def topics(mem: Memory) -> Topics:
    return Topics(mem)


def received(subscription: Subscription, most: int | None = None) -> list[Message]:
    """What is there to be received, at most so many."""
    found: list[Message] = []
    while (most is None or len(found) < most) and (message := subscription.get(timeout=0)) is not None:
        found.append(message)
    return found


def payloads(subscription: Subscription, most: int | None = None) -> list[Any]:
    return [message.payload for message in received(subscription, most)]


def trim_log(mem: Memory) -> None:
    """Let the upkeep trim the log as far as it may."""
    mem.put("noise", "k", 0)
    mem.flush()
    mem._store.committer.upkeep.run()


# ------------------------------------------------------------------------------------------------ publish and subscribe


def test_what_is_published_is_received_once_and_in_order(topics: Topics, clock: SimulatedClock) -> None:
    subscription = topics.subscribe("fills/*")
    first = topics.publish("fills/AIG", {"px": 48.21})
    clock.advance(5)
    second = topics.publish("fills/IBM", None)
    topics.publish("orders/AIG", 1)
    topics.publish("fills/AIG/late", 1)
    one, two = received(subscription)
    assert one == Message(first, one.sequence, "fills/AIG", {"px": 48.21}, START)
    assert two == Message(second, two.sequence, "fills/IBM", None, START + 5)
    assert one.sequence < two.sequence
    assert first < second
    assert received(subscription) == []
    assert topics.topics() == ["fills/AIG", "fills/AIG/late", "fills/IBM", "orders/AIG"]
    assert topics.topics("*/AIG") == ["fills/AIG", "orders/AIG"]


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [("a/*", [1]), ("a/**", [1, 2]), ("**", [0, 1, 2, 3]), (["a", "b/*"], [0, 3]), ("*/x", [1, 3]), ("none", [])],
)
def test_patterns(topics: Topics, pattern: Any, wanted: list[int]) -> None:
    subscription = topics.subscribe(pattern)
    for number, topic in enumerate(["a", "a/x", "a/x/y", "b/x"]):
        topics.publish(topic, number)
    assert payloads(subscription) == wanted


def test_where_a_subscription_starts(topics: Topics, mem: Memory) -> None:
    early = [topics.publish("a", number) for number in range(3)]
    whole = received(topics.subscribe("a", start="earliest"))
    assert [message.id for message in whole] == early
    assert payloads(topics.subscribe("a", start=whole[0].sequence)) == [1, 2]
    latest = topics.subscribe("a", start="latest")
    topics.publish("a", 3)
    assert payloads(latest) == [3]
    for wrong in (mem.stats().log.last + 1, -1, True, 1.0, "now", None):
        with pytest.raises(InvalidArgument):
            topics.subscribe("a", start=wrong)  # type: ignore[arg-type]  # a stand-in, or wrong on purpose


def test_latest_is_what_comes_after_whatever_any_handle_has_published(topics: Topics, tmp_path: Path) -> None:
    with tiermem.open(tmp_path / "store", config=Config(cold=INLINE), clock=topics._mem.clock) as other:
        Topics(other, prompt=False).publish("a", "before")
        subscription = topics.subscribe("a")
        Topics(other).publish("a", "after")
        assert payloads(subscription) == ["after"]


def test_a_message_that_has_expired_is_not_received(topics: Topics, clock: SimulatedClock) -> None:
    subscription = topics.subscribe("a")
    topics.publish("a", "short", ttl=5.0)
    topics.publish("a", "long")
    clock.advance(5)
    assert payloads(subscription) == ["long"]


def test_waiting(topics: Topics) -> None:
    subscription = topics.subscribe("a")
    began = time.monotonic()
    assert subscription.get(timeout=0.05) is None
    assert time.monotonic() - began >= 0.05
    found: list[Message | None] = []
    waiting = threading.Thread(target=lambda: found.append(subscription.get(timeout=LONG)))
    waiting.start()
    topics.publish("b", 0)
    topics.publish("a", 1)
    waiting.join()
    assert found[0] is not None
    assert found[0].payload == 1


def test_iteration_ends_when_it_is_closed(topics: Topics) -> None:
    subscription = topics.subscribe("a")
    for number in range(3):
        topics.publish("a", number)
    seen = []
    for message in subscription:
        seen.append(message.payload)
        if len(seen) == 3:
            subscription.close()
    assert seen == [0, 1, 2]
    subscription.close()
    assert list(subscription) == []
    for call in (lambda: subscription.get(0), lambda: subscription.lag):
        with pytest.raises(ClosedError):
            call()


def test_a_closed_store_is_told_to_who_waits(mem: Memory, topics: Topics) -> None:
    with topics.subscribe("a") as subscription, topics.subscribe("a", consumer="c") as consumer:
        mem.close()
        for ended in (subscription, consumer):
            with pytest.raises(ClosedError):
                next(ended)


def test_async_iteration(topics: Topics) -> None:
    async def scenario() -> None:
        subscription = topics.subscribe("a", consumer="c")
        waiting = asyncio.ensure_future(anext(subscription))
        await asyncio.sleep(0.05)
        for number in range(20):
            await asyncio.to_thread(topics.publish, "a", number)
        seen = [await waiting]
        # A cancelled wait loses nothing, whenever it is cancelled.
        for pause in (0.0, 0.001, 0.01):
            cancelled = asyncio.ensure_future(anext(subscription))
            await asyncio.sleep(pause)
            if not cancelled.cancel():
                seen.append(await cancelled)
        async for message in subscription:
            seen.append(message)
            subscription.ack(message)
            if message.payload == 19:
                subscription.close()
        assert [message.payload for message in seen] == list(range(20))
        with pytest.raises(StopAsyncIteration):
            await anext(subscription)

    asyncio.run(scenario())


def test_async_iteration_needs_none_of_the_loop_s_threads(topics: Topics) -> None:
    release = threading.Event()

    async def scenario() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        busy = asyncio.ensure_future(asyncio.to_thread(release.wait))
        try:
            with topics.subscribe("a") as one, topics.subscribe("a") as other:
                topics.publish("a", 1)
                for subscription in (one, other):
                    message = await asyncio.wait_for(anext(subscription), LONG)
                    assert message.payload == 1
        finally:
            release.set()
            await busy

    asyncio.run(scenario())


def test_threads_share_a_subscription(topics: Topics) -> None:
    subscription = topics.subscribe("a")
    for number in range(300):
        topics.publish("a", number)
    seen: list[list[Any]] = [[] for _ in range(4)]

    def work(mine: list[Any]) -> None:
        while (message := subscription.get(timeout=0)) is not None:
            mine.append(message.payload)

    threads = [threading.Thread(target=work, args=(mine,)) for mine in seen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for mine in seen for number in mine) == list(range(300))
    assert all(mine == sorted(mine) for mine in seen)


def test_a_fork_has_no_subscription_and_may_subscribe(topics: Topics) -> None:
    subscription = topics.subscribe("a", consumer="c", start="earliest")
    topics.publish("a", 1)

    def child() -> None:
        with pytest.raises(ClosedError):
            subscription.get(timeout=0)
        subscription.close()
        topics.publish("a", 2)
        assert payloads(topics.subscribe("a", start="earliest")) == [1, 2]

    join(in_child(child))
    assert payloads(subscription) == [1, 2]


def test_a_fork_does_not_wait_for_a_thread_that_only_its_parent_has(topics: Topics) -> None:
    subscription = topics.subscribe("a", consumer="c")
    topics.publish("a", 1)
    message = asyncio.run(anext(subscription))
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with subscription._lock:
            held.set()
            done.wait(LONG)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(LONG)

    def child() -> None:
        for call in (
            lambda: subscription.get(timeout=0),
            lambda: subscription.ack(message),
            lambda: asyncio.run(anext(subscription)),
        ):
            with pytest.raises(ClosedError):
                call()

    child_process = in_child(child)
    try:
        join(child_process)
    finally:
        done.set()
        thread.join()


def test_a_store_that_may_only_be_read(topics: Topics, mem: Memory, tmp_path: Path, clock: SimulatedClock) -> None:
    topics.publish("a", 1)
    mem.close()
    with tiermem.open(tmp_path / "store", read_only=True, clock=clock) as reading:
        assert payloads(Topics(reading).subscribe("a", start="earliest")) == [1]
        with pytest.raises(tiermem.ReadOnlyError):
            Topics(reading).publish("a", 2)
        with pytest.raises(tiermem.ReadOnlyError):
            Topics(reading).subscribe("a", consumer="c")


class Public:
    """A store of which only what is public can be reached."""

    def __init__(self, mem: Memory) -> None:
        self.__mem = mem

    def __getattr__(self, name: str) -> Any:
        assert not name.startswith("_"), f"{name} is not public"
        return getattr(self.__mem, name)


def test_only_public_operations_are_used(mem: Memory) -> None:
    topics = Topics(Public(mem), retention=Retention(count=5, age=60.0, bytes=10_000), max_lag=100)  # type: ignore[arg-type]  # a stand-in, or wrong on purpose
    kinds: list[dict[str, Any]] = [{}, {"consumer": "c"}, {"group": "g"}]
    subscriptions = [topics.subscribe("**", start="earliest", **kind) for kind in kinds]
    for number in range(10):
        topics.publish("a", number)
    for subscription, kind in zip(subscriptions, kinds, strict=True):
        messages = received(subscription)
        assert [message.payload for message in messages] == list(range(10))
        assert subscription.lag == 0
        if kind:
            for message in messages:
                subscription.ack(message)
        subscription.close()
    assert topics.trim() == 5
    assert {state.lag for state in topics.consumers()} == {0}
    assert topics.forget("c")
    assert topics.forget(group="g")


@pytest.mark.parametrize(
    "call",
    [
        lambda t: t.publish("a/*", 1),
        lambda t: t.publish("", 1),
        lambda t: t.publish("a//b", 1),
        lambda t: t.publish("n" * 250, 1),
        lambda t: t.publish(5, 1),
        lambda t: t.publish(["a"], 1),
        lambda t: t.publish({}, 1),
        lambda t: t.publish("a", object()),
        lambda t: t.publish("a", 1, ttl=0),
        lambda t: t.subscribe("a*"),
        lambda t: t.subscribe([]),
        lambda t: t.subscribe(5),
        lambda t: t.subscribe("a", consumer=""),
        lambda t: t.subscribe("a", consumer=5),
        lambda t: t.subscribe("a", consumer="c" * 300),
        lambda t: t.subscribe("a", group=""),
        lambda t: t.subscribe("a", group="g", consumer="\ud800"),
        lambda t: t.subscribe("a", consumer="\ud800"),
        lambda t: t.subscribe("a", group="g", lease=0),
        lambda t: t.subscribe("a", group="g", lease="1"),
        lambda t: t.subscribe("a", group="g", lease=10**400),
        lambda t: t.subscribe("a", group="g", prefetch=0),
        lambda t: t.subscribe("a").get(timeout=-1),
        lambda t: t.subscribe("a").get(timeout="1"),
        lambda t: t.subscribe("a").ack(t.publish("a", 1)),
        lambda t: t.subscribe("a").ack(Message("i", 1, "a", 1, 0.0)),
        lambda t: t.forget(),
        lambda t: t.forget("c", group="g"),
        lambda t: Topics(t._mem, retention=5),
        lambda t: Topics(t._mem, retention={"a*": Retention()}),
        lambda t: Topics(t._mem, max_lag=0),
        lambda t: Topics(t._mem, root="a//b"),
        lambda _: Retention(count=-1),
        lambda _: Retention(count=1.5),
        lambda _: Retention(age=float("nan")),
        lambda _: Retention(bytes=True),
        lambda _: Retention(age=10**400),
        lambda t: t.trim(retention=0),
        lambda t: t.trim(retention={"count": 1}),
    ],
)
def test_bad_input_changes_nothing(topics: Topics, mem: Memory, call: Any) -> None:
    before = topics.topics()
    with pytest.raises((InvalidArgument, tiermem.EncodingError)):
        call(topics)
    assert [name for name in topics.topics() if name != "a"] == before
    assert topics.consumers() == []


# ---------------------------------------------------------------------------------------- what the log no longer lists


def test_earliest_reaches_behind_the_log(forgetful: Memory, clock: SimulatedClock) -> None:
    topics = Topics(forgetful)
    for number in range(600):
        topics.publish(f"a/{number % 3}", number)
    trim_log(forgetful)
    with pytest.raises(CursorExpired):
        topics.subscribe("a/*", start=1)
    subscription = topics.subscribe("a/*", start="earliest", consumer="c")
    for number in range(600, 610):
        topics.publish(f"a/{number % 3}", number)
    first = received(subscription, 300)
    assert {message.sequence for message in first} == {0}
    for message in first[:250]:
        subscription.ack(message)
    for number in range(610, 620):
        topics.publish(f"a/{number % 3}", number)
    trim_log(forgetful)
    assert [message.payload for message in first] + payloads(subscription) == list(range(620))
    subscription.close()
    again = received(topics.subscribe("a/*", consumer="c"))
    assert [message.payload for message in again] == list(range(250, 620)), "what was not acknowledged comes again"
    listed = [message.sequence for message in again if message.sequence]
    assert len(listed) == 20
    assert listed == sorted(listed)


def test_a_group_reaches_behind_the_log(forgetful: Memory) -> None:
    topics = Topics(forgetful)
    for number in range(50):
        topics.publish("a", number)
    trim_log(forgetful)
    members = [topics.subscribe("a", start="earliest", group="g", prefetch=7) for _ in range(2)]
    topics.publish("a", 50)
    seen = []
    while any(found := [message for member in members if (message := member.get(0)) is not None]):
        seen += [message.payload for message in found]
        for member in members:
            for message in found:
                member.ack(message)
    assert sorted(seen) == list(range(51))


def test_the_log_is_held_for_consumers_and_groups(forgetful: Memory) -> None:
    topics = Topics(forgetful)
    consumer = topics.subscribe("a", consumer="c")
    topics.subscribe("a", group="g").close()
    for number in range(5):
        topics.publish("a", number)
    consumer.close()
    trim_log(forgetful)
    assert [message.sequence > 0 for message in received(topics.subscribe("a", consumer="c"))] == [True] * 5
    assert payloads(topics.subscribe("a", group="g")) == list(range(5))
    first = forgetful.stats().log.first
    assert topics.forget("c")
    assert topics.forget(group="g")
    assert not topics.forget("c")
    trim_log(forgetful)
    assert forgetful.stats().log.first > first


# ----------------------------------------------------------------------------------------------------------- consumers


def test_a_consumer_goes_on_behind_what_it_acknowledged(topics: Topics) -> None:
    for number in range(5):
        topics.publish("a", number)
    first = topics.subscribe("a", consumer="c", start="earliest")
    messages = received(first, 4)
    for index in (0, 2, 1):
        first.ack(messages[index])
        first.ack(messages[index])
    # Not closed: as if the process had been killed.
    second = topics.subscribe("a", consumer="c", start="latest")
    assert payloads(second) == [3, 4]
    with pytest.raises(LeaseLost):
        first.get(timeout=0)
    with pytest.raises(LeaseLost):
        first.ack(messages[3])
    first.close()
    assert [state.lag for state in topics.consumers()] == [2]


def test_what_precedes_an_unacknowledged_message_counts_later(topics: Topics) -> None:
    subscription = topics.subscribe("a", consumer="c")
    for number in range(3):
        topics.publish("a", number)
    zero, one, two = received(subscription)
    subscription.ack(two)
    subscription.ack(one)
    assert payloads(topics.subscribe("a", consumer="c")) == [0, 1, 2]
    subscription = topics.subscribe("a", consumer="c")
    zero, one, two = received(subscription)
    subscription.ack(one)
    subscription.ack(zero)
    assert payloads(topics.subscribe("a", consumer="c")) == [2]


def test_a_consumer_keeps_its_patterns(topics: Topics) -> None:
    topics.subscribe(["a", "b"], consumer="c").close()
    topics.subscribe("a", group="c").close()
    with pytest.raises(InvalidArgument, match="a, b"):
        topics.subscribe("a", consumer="c")
    subscription = topics.subscribe(("a", "b"), consumer="c")
    assert topics.forget("c")
    with pytest.raises(LeaseLost, match="forgotten"):
        subscription.get(timeout=0)
    assert [state.name for state in topics.consumers()] == ["c"]
    assert topics.consumers()[0].group


def test_changes_of_others_do_not_hold_the_log(mem: Memory, topics: Topics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiermem.coordination._subscription.STRIDE", 10)
    subscription = topics.subscribe("a", consumer="c")
    held = dict(mem.stats().log.cursors)
    for number in range(100):
        mem.put("noise", f"k{number}", number)
    assert received(subscription) == []
    assert dict(mem.stats().log.cursors) != held
    assert max(mem.stats().log.cursors.values()) < 100


# -------------------------------------------------------------------------------------------------------------- groups


def test_each_message_goes_to_one_member(topics: Topics) -> None:
    members = [topics.subscribe("a", group="g", consumer=f"m{number}", prefetch=3) for number in range(3)]
    for number in range(30):
        topics.publish("a", number)
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    # In turns, until none of them finds any more.
    idle = 0
    while idle < len(members):
        for index, member in enumerate(members):
            message = member.get(timeout=0)
            idle = 0 if message else idle + 1
            if message:
                seen[index].append(message.payload)
                member.ack(message)
    assert sorted(number for mine in seen.values() for number in mine) == list(range(30))
    assert all(mine == sorted(mine) and mine for mine in seen.values())
    assert topics.consumers()[0].lag == 0


def test_what_a_dead_member_had_goes_to_another(topics: Topics, clock: SimulatedClock) -> None:
    dead = topics.subscribe("a", group="g", lease=10.0, prefetch=4)
    other = topics.subscribe("a", group="g", lease=10.0, prefetch=10)
    for number in range(6):
        topics.publish("a", number)
    messages = received(dead, 3)
    dead.ack(messages[1])
    assert payloads(other) == [4, 5]
    clock.advance(5)
    dead.ack(messages[2])
    clock.advance(9)
    assert payloads(other) == [], "it lives until its lease is over"
    clock.advance(2)
    assert payloads(other) == [0, 3]
    with pytest.raises(LeaseLost):
        dead.ack(messages[0])
    assert dead.get(timeout=0) is None
    topics.publish("a", 6)
    assert payloads(dead) == [6], "it is a member again"


def test_a_member_that_was_away_has_lost_also_what_nobody_had_room_for(topics: Topics, clock: SimulatedClock) -> None:
    away = topics.subscribe("a", group="g", lease=10.0, prefetch=8)
    others = [topics.subscribe("a", group="g", lease=10.0, prefetch=2) for _ in range(2)]
    for number in range(6):
        topics.publish("a", number)
    first = away.get(timeout=0)
    assert first is not None
    clock.advance(11)
    assert [payloads(other, 2) for other in others] == [[0, 1], [2, 3]]
    assert payloads(away) == [4, 5], "each message is one member's"
    with pytest.raises(LeaseLost):
        away.ack(first)
    assert topics.consumers()[0].lag == 6


@pytest.mark.parametrize("cause", [KeyboardInterrupt, tiermem.StorageError])
def test_what_was_claimed_and_never_handed_out_goes_to_another(
    topics: Topics, mem: Memory, clock: SimulatedClock, monkeypatch: pytest.MonkeyPatch, cause: type[BaseException]
) -> None:
    def fails(*_: Any) -> None:
        raise cause

    member = topics.subscribe("a", group="g", lease=10.0)
    monkeypatch.setattr("tiermem.coordination._groups.STRIDE", 0)
    topics.publish("a", 1)
    with monkeypatch.context() as patch:
        patch.setattr("tiermem.engine.feed.Cursor.commit", fails)
        with pytest.raises(cause):
            member.get(timeout=0)
    topics.publish("a", 2)
    assert payloads(member, 1) == [2]
    clock.advance(9)
    assert member.get(timeout=0) is None
    clock.advance(9)
    assert payloads(member) == [1]


def test_a_member_that_lets_go_of_the_log_late_loses_nothing(topics: Topics, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*_: Any) -> None:
        raise CursorExpired("another member was further")

    member = topics.subscribe("a", group="g")
    monkeypatch.setattr("tiermem.coordination._groups.STRIDE", 0)
    monkeypatch.setattr("tiermem.engine.feed.Cursor.commit", late)
    topics.publish("a", 1)
    assert payloads(member) == [1]


def test_forgetting_can_be_tried_again(topics: Topics, mem: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    topics.subscribe("a", consumer="c")
    for room in (tiermem.engine.feed.Cursor, Memory):
        with monkeypatch.context() as patch:
            patch.setattr(room, "delete" if room is not Memory else "batch", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                topics.forget("c")
        assert [state.name for state in topics.consumers()] == ["c"]
    assert topics.forget("c")
    assert not mem.stats().log.cursors
    assert not topics.forget("c")


def test_a_group_that_is_forgotten(topics: Topics) -> None:
    member = topics.subscribe("a", group="g")
    topics.publish("a", 1)
    message = member.get(timeout=0)
    assert message is not None
    topics.publish("a", 2)
    assert topics.forget(group="g")
    with pytest.raises(LeaseLost):
        member.ack(message)
    with pytest.raises(LeaseLost, match="forgotten"):
        member.get(timeout=0)
    member.close()
    assert payloads(topics.subscribe("a", group="g", start="earliest")) == [1, 2]


def test_a_member_that_finds_nothing_does_not_read_the_same_changes_again(mem: Memory, topics: Topics) -> None:
    member = topics.subscribe("a", group="g")
    for number in range(50):
        mem.put("noise", f"k{number}", number)
    assert member.get(timeout=0) is None
    at = member._reader.position.sequence
    assert at >= 50
    mem.put("noise", "k", 1)
    assert member.get(timeout=0) is None
    assert member._reader.position.sequence == at + 1
    topics.publish("a", 1)
    assert payloads(topics.subscribe("a", group="g")) == [1]
    assert member.get(timeout=0) is None
    topics.publish("a", 2)
    assert payloads(member) == [2]


def test_what_a_member_leaves_goes_to_another(topics: Topics) -> None:
    with topics.subscribe("a", group="g", prefetch=5) as leaving:
        for number in range(8):
            topics.publish("a", number)
        for message in received(leaving, 2):
            leaving.ack(message)
    assert payloads(topics.subscribe("a", group="g")) == [2, 3, 4, 5, 6, 7]


def test_a_member_that_acknowledges_nothing_is_told(topics: Topics) -> None:
    member = topics.subscribe("a", group="g", prefetch=2)
    for number in range(3):
        topics.publish("a", number)
    first, _ = received(member, 2)
    with pytest.raises(LagExceeded, match="acknowledge"):
        member.get(timeout=0)
    member.ack(first)
    assert payloads(member, 1) == [2]


def test_an_expired_message_is_in_nobodys_way(topics: Topics, clock: SimulatedClock) -> None:
    consumer = topics.subscribe("a", consumer="c")
    member = topics.subscribe("a", group="g", prefetch=1)
    topics.publish("a", 1, ttl=1.0)
    topics.publish("a", 2)
    clock.advance(1)
    assert payloads(consumer) == [2]
    assert eventually(lambda: payloads(member, 1)) == [2]


# ----------------------------------------------------------------------------------------------------------- retention


def test_retention_by_count_age_and_bytes(topics: Topics, clock: SimulatedClock) -> None:
    for number in range(10):
        topics.publish("a", "x" * 100)
        topics.publish("b", number)
        clock.advance(1)
    assert topics.trim() == 0
    assert topics.trim("b", retention=Retention(count=7)) == 3
    assert topics.trim("b", retention=Retention(age=5.0, count=7)) == 2
    assert topics.trim("a", retention=Retention(bytes=350)) == 7
    assert payloads(topics.subscribe("b", start="earliest")) == [5, 6, 7, 8, 9]
    assert len(payloads(topics.subscribe("a", start="earliest"))) == 3
    assert topics.trim(retention=Retention(count=0)) == 8


def test_a_publisher_trims_as_it_goes(mem: Memory) -> None:
    topics = Topics(mem, retention={"short/*": Retention(count=40), "**": Retention(count=1000)})
    for number in range(200):
        topics.publish("short/a", number)
        topics.publish("long", number)
    kept = payloads(topics.subscribe("short/*", start="earliest"))
    assert kept == list(range(200 - len(kept), 200))
    assert 40 <= len(kept) <= 46
    assert len(payloads(topics.subscribe("long", start="earliest"))) == 200
    by_size = Topics(mem, retention=Retention(bytes=4000))
    for _ in range(100):
        by_size.publish("sized", b"x" * 100)
    assert 4000 / 103 - 1 <= len(payloads(topics.subscribe("sized", start="earliest"))) <= 46


def test_nothing_goes_that_a_live_consumer_needs(topics: Topics) -> None:
    consumer = topics.subscribe("a", consumer="c")
    member = topics.subscribe("a", group="g")
    for number in range(10):
        topics.publish("a", number)
        topics.publish("b", number)
    nothing = Retention(count=0)
    assert topics.trim(retention=nothing) == 10, "nobody is subscribed to b"
    messages = received(consumer, 6)
    for message in messages[:4]:
        consumer.ack(message)
    assert topics.trim(retention=nothing) == 0, "the group has them all before it"
    claimed = received(member)
    assert topics.trim(retention=nothing) == 0, "claimed is not acknowledged"
    for message in claimed:
        member.ack(message)
    member.close()
    assert topics.trim(retention=nothing) == 4
    assert [message.payload for message in messages[4:]] + payloads(consumer) == [4, 5, 6, 7, 8, 9]
    late = topics.subscribe("a", consumer="late", start="earliest")
    assert topics.trim(retention=nothing, force=True) == 6
    with pytest.raises(LagExceeded, match="6 message"):
        late.get(timeout=0)
    topics.publish("a", 10)
    assert payloads(late) == [10]


def test_who_is_far_behind_holds_everything(topics: Topics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiermem.coordination._retention.REACH", 5)
    consumer = topics.subscribe("a", consumer="c")
    for number in range(10):
        topics.publish("a", number)
        topics.publish("b", number)
    for message in received(consumer)[:4]:
        consumer.ack(message)
    assert topics.trim(retention=Retention(count=0)) == 10, "what the others do not need goes"
    assert topics.topics("a") == ["a"]
    for message in received(topics.subscribe("a", consumer="c")):
        assert message.payload >= 4


def test_a_subscription_without_a_name_is_told_what_it_missed(topics: Topics) -> None:
    subscription = topics.subscribe("a")
    for number in range(5):
        topics.publish("a", number)
    assert topics.trim(retention=Retention(count=2)) == 3
    with pytest.raises(LagExceeded, match="3 message"):
        next(subscription)
    assert payloads(subscription) == [3, 4]


def test_of_two_that_trim_one_does(topics: Topics, mem: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiermem.coordination import _retention

    for number in range(10):
        topics.publish("a", number)
    beyond = _retention._beyond

    def slowly(*args: Any) -> list[str]:
        found = list(beyond(*args))
        if len(found) == 6:
            monkeypatch.setattr(_retention, "_beyond", beyond)
            assert topics.trim(retention=Retention(count=4)) == 6
        return found

    monkeypatch.setattr(_retention, "_beyond", slowly)
    assert topics.trim(retention=Retention(count=4)) == 0
    assert payloads(topics.subscribe("a", start="earliest")) == [6, 7, 8, 9]


def test_what_is_published_while_it_is_decided_what_goes_stays(topics: Topics, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiermem.coordination import _retention

    consumer = topics.subscribe("a", consumer="c")
    topics.publish("a", 0)
    consumer.ack(received(consumer)[0])
    beyond = _retention._beyond

    def late(*args: Any) -> list[str]:
        topics.publish("a", 1)
        return list(beyond(*args))

    monkeypatch.setattr(_retention, "_beyond", late)
    assert topics.trim(retention=Retention(count=0)) == 1
    assert payloads(consumer) == [1]


def test_a_publisher_is_held_back_by_a_consumer_that_lags(mem: Memory) -> None:
    topics = Topics(mem, max_lag=10)
    consumer = topics.subscribe("a", consumer="slow")
    published = 0
    with contextlib.suppress(LagExceeded):
        while published < 100:
            topics.publish("a", published)
            published += 1
    assert 10 <= published <= 13
    with pytest.raises(LagExceeded, match="slow"):
        topics.publish("a", -1)
    topics.publish("b", "nobody is behind here")
    assert consumer.lag == published
    for message in received(consumer):
        consumer.ack(message)
    topics.publish("a", published)
    assert payloads(consumer) == [published]


# ----------------------------------------------------------------------------------------------------------- processes


def _process(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, topicworkers.__file__, *map(str, arguments)])


@pytest.mark.parametrize(
    ("publishers", "members", "messages"),
    [(3, 3, 300), pytest.param(8, 4, 10_000, marks=pytest.mark.slow)],
    ids=["short", "full"],
)
def test_consumers_that_are_killed_lose_nothing(tmp_path: Path, publishers: int, members: int, messages: int) -> None:
    """Every message is processed at least once by each consumer of its own, and by a group; topics keep their order."""
    chance = random.Random(7)
    store = tmp_path / "store"
    with tiermem.open(store) as mem:
        topics = Topics(mem)
        lives = {f"alone{number}": "-" for number in range(2)} | {f"member{number}": "g" for number in range(members)}
        logs = {name: tmp_path / f"{name}.log" for name in lives}

        def consume(name: str) -> subprocess.Popen[bytes]:
            return _process("consume", store, name, lives[name], logs[name])

        expected = {
            (f"work/p{number}" if at % topicworkers.TOPICS else "work/shared", f"p{number}", at)
            for number in range(publishers)
            for at in range(messages)
        }
        publishing = [_process("publish", store, f"p{number}", messages) for number in range(publishers)]
        running = {name: consume(name) for name in lives}

        def done() -> bool:
            groups: dict[str, set[Any]] = {}
            for name, path in logs.items():
                if path.exists():
                    groups.setdefault(name if lives[name] == "-" else "group", set()).update(_processed(path))
            return len(groups) == 3 and all(found >= expected for found in groups.values())

        kills = 0
        deadline = time.monotonic() + 900
        try:
            while any(one.poll() is None for one in publishing) or not done():
                assert time.monotonic() < deadline, "not everything was processed in time"
                time.sleep(chance.uniform(0.2, 0.8))
                if kills < 4 * len(lives):
                    victim = chance.choice(sorted(lives))
                    running[victim].kill()
                    running[victim].wait()
                    running[victim] = consume(victim)
                    kills += 1
        finally:
            for process in running.values():
                process.kill()
                process.wait()
        assert [process.wait() for process in publishing] == [0] * publishers
        assert kills
        assert done(), "something was lost"
        for name, group in lives.items():
            if group == "-":
                _check_order(logs[name])
        assert topics.trim(retention=Retention(count=0), force=True) == publishers * messages


def _processed(path: Path) -> set[tuple[str, str, int]]:
    # The last line of a life may have been cut short by the kill: then it was not acknowledged either.
    lines = [line.split() for line in path.read_text().splitlines()]
    return {(line[0], line[2], int(line[3])) for line in lines if len(line) == 4}


def _check_order(path: Path) -> None:
    """Every life goes on where messages were not acknowledged, and what comes anew comes in order."""
    newest: dict[str, int] = {}
    numbers: dict[tuple[str, str], int] = {}
    last: dict[str, int] = {}
    for line in path.read_text().splitlines():
        if line == "life":
            last = {}
            continue
        topic, sequence, publisher, number = line.split()
        at = int(sequence)
        assert at > last.get(topic, 0), "a life sees each message once, in order"
        last[topic] = at
        if at > newest.get(topic, 0):
            newest[topic] = at
            assert int(number) > numbers.get((topic, publisher), -1), "what one publisher published is in its order"
            numbers[topic, publisher] = int(number)


@pytest.mark.parametrize(
    "kind", [{}, {"consumer": "c"}, {"group": "g", "prefetch": 3}], ids=["plain", "durable", "group"]
)
def test_many_that_are_gone_do_not_hide_the_next(mem: Memory, clock: SimulatedClock, kind: dict[str, Any]) -> None:
    topics = Topics(mem)
    for number in range(PAGE + 5):
        topics.publish("a", number, ttl=1.0)
    topics.publish("a", "last")
    clock.advance(2.0)
    with topics.subscribe("a", start="earliest", **kind) as subscription:
        message = subscription.get(timeout=0)
        assert message is not None
        assert message.payload == "last"
