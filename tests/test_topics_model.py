"""Topics against plain lists: published, received, acknowledged, trimmed, closed and left to die in any order."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import tiermem
from tiermem import Config, LagExceeded, LeaseLost, Message, Retention, SimulatedClock, Subscription, Topics
from tiermem.engine import upkeep

TOPICS = ("a", "a/x", "b/x")
MEANT = {"**": set(TOPICS), "a/*": {"a/x"}, "*/x": {"a/x", "b/x"}, "a": {"a"}}
LEASE = 10.0
COLD = tiermem.ColdConfig(committer="inline", journal_bytes=2**20, sync_interval=60.0, log_retention=3)


class Plain:
    """What a subscription without a name has before it."""

    def __init__(self, subscription: Subscription, queue: list[str]) -> None:
        self.subscription = subscription
        self.queue = queue


class Durable:
    """A consumer: what it has received of `queue` and not acknowledged, and who holds its name."""

    def __init__(self, pattern: str, queue: list[str]) -> None:
        self.pattern = pattern
        self.queue = queue
        self.acked: set[str] = set()
        self.received = 0
        self.holder: Subscription | None = None


class TopicsModel(RuleBasedStateMachine):
    """Messages are known by their ids; `order` is what was published and not trimmed, oldest first."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = SimulatedClock(1000.0)
        self.order: list[tuple[str, str]] = []
        self.messages: dict[str, Message] = {}
        self.plain: list[Plain] = []
        self.durable: dict[str, Durable] = {}
        self.members: list[Subscription] = []
        self.claimed: dict[str, tuple[Subscription, Message]] = {}
        self.ungrouped: list[str] | None = None
        self.trimmed: set[str] = set()

    @initialize()
    def open(self) -> None:
        self.mem = tiermem.open(Path(self.folder.name) / "store", config=Config(cold=COLD), clock=self.clock)
        self.topics = Topics(self.mem)

    def teardown(self) -> None:
        if self.ungrouped is not None:
            self._drain_the_group()
        self.mem.close()
        self.folder.cleanup()

    def _meant(self, pattern: str) -> list[str]:
        return [key for key, topic in self.order if topic in MEANT[pattern]]

    @rule(
        topics=st.lists(st.sampled_from(TOPICS), min_size=1, max_size=6),
        payload=st.integers(-9, 9),
        durable=st.booleans(),
    )
    def publish(self, topics: list[str], payload: int, durable: bool) -> None:
        for topic in topics:
            key = self.topics.publish(topic, payload, durable=durable)
            self.order.append((key, topic))
            self.messages[key] = Message(key, 0, topic, payload, self.clock.now())
            for plain in self.plain:
                if topic in MEANT[plain.subscription.patterns[0]]:
                    plain.queue.append(key)
            for known in self.durable.values():
                if topic in MEANT[known.pattern]:
                    known.queue.append(key)
            if self.ungrouped is not None:
                self.ungrouped.append(key)

    @rule(pattern=st.sampled_from(sorted(MEANT)), earliest=st.booleans())
    def subscribe(self, pattern: str, earliest: bool) -> None:
        subscription = self.topics.subscribe(pattern, start="earliest" if earliest else "latest")
        self.plain.append(Plain(subscription, self._meant(pattern) if earliest else []))

    @precondition(lambda self: self.plain)
    @rule(data=st.data(), most=st.sampled_from([1, 3, 50]))
    def receive(self, data: st.DataObject, most: int) -> None:
        plain = data.draw(st.sampled_from(self.plain))
        for _ in range(most):
            self._next(plain.subscription, plain.queue)

    def _next(self, subscription: Subscription, queue: list[str]) -> Message | None:
        """Receive one message; it is the first of `queue` that was not trimmed. What was is told of, or was in hand."""
        message = None
        with suppress(LagExceeded):
            message = subscription.get(timeout=0)
            while queue and queue[0] in self.trimmed and (message is None or queue[0] != message.id):
                queue.pop(0)
            if message is None:
                assert not queue
            else:
                self._same(message)
                assert message.id == queue.pop(0)
        return message

    def _same(self, message: Message) -> None:
        expected = self.messages[message.id]
        assert message._replace(sequence=0) == expected

    @rule(name=st.sampled_from(["c", "c", "d"]), pattern=st.sampled_from(sorted(MEANT)), earliest=st.booleans())
    def subscribe_under_a_name(self, name: str, pattern: str, earliest: bool) -> None:
        known = self.durable.get(name)
        if known is None:
            known = self.durable[name] = Durable(pattern, self._meant(pattern) if earliest else [])
        before = known.holder
        known.holder = self.topics.subscribe(known.pattern, consumer=name, start="earliest" if earliest else "latest")
        # What was acknowledged at the beginning is done with; the rest comes again.
        while known.queue and (known.queue[0] in known.acked or known.queue[0] in self.trimmed):
            known.queue.pop(0)
        known.received = 0
        if before is not None:
            with pytest.raises(LeaseLost):
                before.get(timeout=0)

    @precondition(lambda self: any(known.holder for known in self.durable.values()))
    @rule(data=st.data(), most=st.sampled_from([0, 1, 3, 50]))
    def receive_and_acknowledge(self, data: st.DataObject, most: int) -> None:
        known = data.draw(st.sampled_from([known for known in self.durable.values() if known.holder]))
        assert known.holder is not None
        for _ in range(most):
            rest = known.queue[known.received :]
            size = len(rest)
            self._next(known.holder, rest)
            known.received += size - len(rest)
        received = known.queue[: known.received]
        for key in data.draw(st.lists(st.sampled_from(received), max_size=4) if received else st.just([])):
            known.holder.ack(self.messages[key])
            known.acked.add(key)

    @precondition(lambda self: self.durable)
    @rule(data=st.data())
    def die_and_come_back(self, data: st.DataObject) -> None:
        """All that was not acknowledged, with what came behind it, comes again."""
        name = data.draw(st.sampled_from(sorted(self.durable)))
        self.subscribe_under_a_name(name, "**", True)
        known = self.durable[name]
        assert known.holder is not None
        rest = known.queue.copy()
        while self._next(known.holder, rest) is not None:
            pass
        known.received = len(known.queue)

    @precondition(lambda self: any(known.holder for known in self.durable.values()))
    @rule(data=st.data())
    def close_a_consumer(self, data: st.DataObject) -> None:
        known = data.draw(st.sampled_from([known for known in self.durable.values() if known.holder]))
        assert known.holder is not None
        known.holder.close()
        known.holder = None

    @precondition(lambda self: self.durable)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.durable)))
        assert self.topics.forget(name)
        holder = self.durable.pop(name).holder
        if holder is not None:
            with pytest.raises(LeaseLost):
                holder.get(timeout=0)

    @precondition(lambda self: len(self.members) < 3)
    @rule(prefetch=st.integers(1, 4))
    def join_the_group(self, prefetch: int) -> None:
        if self.ungrouped is None:
            self.ungrouped = [key for key, _ in self.order]
        self.members.append(self.topics.subscribe("**", group="g", start="earliest", lease=LEASE, prefetch=prefetch))

    @precondition(lambda self: self.members)
    @rule(data=st.data(), acknowledged=st.booleans())
    def receive_in_the_group(self, data: st.DataObject, acknowledged: bool) -> None:
        member = data.draw(st.sampled_from(self.members))
        try:
            message = member.get(timeout=0)
        except LagExceeded:
            return
        if message is not None:
            self._same(message)
            assert message.id not in self.claimed, "another member has it"
            assert self.ungrouped is not None
            self.ungrouped.remove(message.id)
            if acknowledged:
                member.ack(message)
            else:
                self.claimed[message.id] = (member, message)

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def leave_the_group(self, data: st.DataObject) -> None:
        member = data.draw(st.sampled_from(self.members))
        self.members.remove(member)
        member.close()
        self._given_back([member])

    @precondition(lambda self: self.members)
    @rule()
    def all_members_are_away_for_too_long(self) -> None:
        self.clock.advance(LEASE + 1)
        gone, self.members = self.members, []
        self._given_back(gone)

    def _given_back(self, members: list[Subscription]) -> None:
        assert self.ungrouped is not None
        for key, (member, _) in list(self.claimed.items()):
            if member in members:
                del self.claimed[key]
                self.ungrouped.append(key)

    @rule(keep=st.integers(0, 10))
    def trim(self, keep: int) -> None:
        before = {topic: [key for key, of in self.order if of == topic] for topic in TOPICS}
        total = self.topics.trim(retention=Retention(count=keep))
        left = {record.key for topic in self.topics.topics() for record in self.mem.scan(f"topics/messages/{topic}")}
        gone = {key for key, _ in self.order if key not in left}
        assert total == len(gone)
        for topic, keys in before.items():
            assert [key for key in keys if key in gone] == keys[: len(gone.intersection(keys))], "the oldest go"
            assert len(left.intersection(keys)) >= min(keep, len(keys))
            needed = [known for known in self.durable.values() if topic in MEANT[known.pattern]]
            if not needed and self.ungrouped is None:
                assert len(left.intersection(keys)) == min(keep, len(keys))
        for known in self.durable.values():
            assert all(key in known.acked for key in gone.intersection(known.queue)), "a live consumer needs it"
        assert not gone.intersection(self.ungrouped or ())
        assert not gone.intersection(self.claimed)
        self.order = [entry for entry in self.order if entry[0] in left]
        self.trimmed |= gone

    @rule()
    def trim_the_log(self) -> None:
        self.mem.flush()
        slack, upkeep.SLACK = upkeep.SLACK, 0
        try:
            self.mem._store.committer.upkeep.run()
        finally:
            upkeep.SLACK = slack
        # Those without a name are not waited for.
        first = self.mem.stats().log.first
        for plain in list(self.plain):
            if plain.subscription._reader.position.sequence + 1 < first:
                with pytest.raises(tiermem.CursorExpired):
                    list(iter(lambda plain=plain: plain.subscription.get(timeout=0), None))
                self.plain.remove(plain)

    @invariant()
    def lags_are_what_is_left(self) -> None:
        for plain in getattr(self, "plain", ())[:1]:
            assert plain.subscription.lag >= sum(key not in self.trimmed for key in plain.queue)

    def _drain_the_group(self) -> None:
        """In the end a new member has received everything nobody has acknowledged."""
        self.clock.advance(LEASE + 1)
        left: list[Any] = []
        with self.topics.subscribe("**", group="g", lease=LEASE, prefetch=3) as member:
            for message in iter(lambda: member.get(timeout=0), None):
                left.append(message.id)
                member.ack(message)
        assert self.ungrouped is not None
        assert sorted(left) == sorted([*self.ungrouped, *self.claimed])


TestTopicsModel = TopicsModel.TestCase
TestTopicsModel.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


@pytest.mark.slow
class TestTopicsModelAtLength(TopicsModel.TestCase):
    """The same, for longer."""

    settings = settings(max_examples=1000, stateful_step_count=60, deadline=None)
