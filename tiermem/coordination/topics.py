"""Topics: messages between processes, kept in the store."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tiermem.coordination._feed import Interest, Layout, Message, waiting
from tiermem.coordination._groups import Member
from tiermem.coordination._retention import Retention, registered, trim, weight
from tiermem.coordination._subscription import Consumer, Subscription, consumer_key, group_key, starting
from tiermem.errors import InvalidArgument, LagExceeded
from tiermem.types import Duration

if TYPE_CHECKING:
    from tiermem.engine.memory import Memory

__all__ = ["ConsumerState", "Message", "Retention", "Subscription", "Topics"]

EVERYTHING: Final = Retention()
CHECKS: Final = 8
"""How often a limit is looked at while it could be reached once more."""

SHARE: Final = 0.5
"""Of a publisher's time, what `publish` may spend on commits for long."""
CREDIT: Final = 0.01
"""Seconds of commits that a publisher may make one after the other before that counts."""
CHARGE: Final = 0.001
"""Seconds that a commit counts at most: one that was held up is no reason to leave the next to others."""


class ConsumerState(NamedTuple):
    """A durable consumer, or a group of them: where it stands, and how many messages it is behind."""

    name: str
    group: bool
    patterns: tuple[str, ...]
    sequence: int
    lag: int


class _Outlet:
    """What a publisher knows of one topic."""

    __slots__ = ("due", "limits", "published", "space", "unchecked", "weight")

    def __init__(self, space: str, limits: Retention) -> None:
        self.space = space
        self.limits = limits
        self.published = 0
        self.weight = 0
        self.due = 0.0
        self.unchecked = 0


class Topics:
    """Publishing and subscribing on one store; as many of them as one likes, in any process.

    Messages are records in `<root>/messages/<topic>`, and the change log orders them: every subscriber receives the
    messages of a topic, and those of all its topics, in the order in which they were committed, which for one
    publisher is the order in which it published. Nothing orders two publishers but commits: a message is behind
    another for everybody once that has been received by anybody.

    Written with the store's public operations. It assumes of them that the change log lists every commit once and in
    order, that a put is kill-safe when it returns, that compare-and-set is linearizable, and that a named cursor holds
    the log. Delivery is at least once under a consumer's name or in a group, at most once without.

    mem: the store. retention: limits for every topic, or by pattern (the first that matches); the publisher trims now
    and then as it publishes, and `trim` does so at once. max_lag: most messages a registered consumer of a topic may
    be behind; `publish` raises beyond. prompt: `publish` commits in the call, as long as commits do not take half of
    the publisher's time; False: it leaves that to whoever commits for the store, and never waits for a disk. root:
    where all of it lies.
    """

    def __init__(
        self,
        mem: Memory,
        *,
        retention: Retention | Mapping[str, Retention] | None = None,
        max_lag: int | None = None,
        prompt: bool = True,
        root: str = "topics",
    ) -> None:
        by_pattern = retention if isinstance(retention, Mapping) else {"**": retention or EVERYTHING}
        if not all(isinstance(limits, Retention) for limits in by_pattern.values()):
            raise InvalidArgument("retention is a Retention, or one for each of some patterns")
        if max_lag is not None and (isinstance(max_lag, bool) or not isinstance(max_lag, int) or max_lag < 1):
            raise InvalidArgument(f"max_lag is a number of messages ≥ 1 or None, not {max_lag!r}")
        self._mem = mem
        self._layout = Layout(root)
        self._retention = [(Interest(pattern), limits) for pattern, limits in by_pattern.items()]
        self._max_lag = max_lag
        self._prompt = prompt
        self._outlets: dict[str, _Outlet] = {}
        self._credit = CREDIT
        self._looked = 0.0

    def publish(self, topic: str, payload: Any, *, ttl: Duration | None = None, durable: bool = False) -> str:
        """Publish a message; its id, which is unique in the store and sorts by time.

        topic: named as a namespace is. payload: any value a record may have. ttl: seconds or timedelta after which
        it is no longer delivered. durable: return after the fsync.

        Returns once the message survives the death of this process. Received it is once it is committed.

        Raises:
            LagExceeded: a registered consumer of the topic is more than `max_lag` messages behind.
            InvalidNamespace, EncodingError, InvalidArgument, ReadOnlyError, ClosedError: nothing was published.
            StoreFullError, StorageError: it may have been, and is received once there is room.
        """
        try:
            outlet = self._outlets[topic]
        except (KeyError, TypeError):
            outlet = self._outlet(topic)
        if self._max_lag is not None:
            self._check_lag(topic, outlet, self._max_lag)
        mem = self._mem
        now = mem.clock.now()
        began = time.perf_counter()
        self._credit = min(CREDIT, self._credit + SHARE * (began - self._looked))
        self._looked = began
        if durable or (self._prompt and self._credit > 0.0):
            key = mem.append(outlet.space, [now, payload], at=now, ttl=ttl, durable=True)
            self._credit -= min(time.perf_counter() - began, CHARGE)
        else:
            # The next commit in a call takes it along, or whoever else commits is faster.
            key = mem.append(outlet.space, [now, payload], at=now, ttl=ttl)
            mem.flush(wait=False)
        if outlet.limits is not EVERYTHING:
            self._retain(topic, outlet, payload, now)
        return key

    def subscribe(
        self,
        pattern: str | Sequence[str],
        *,
        start: str | int = "latest",
        consumer: str | None = None,
        group: str | None = None,
        lease: float = 30.0,
        prefetch: int = 64,
    ) -> Subscription:
        """Receive the messages of the topics that match; a topic need not exist yet.

        pattern: a topic, or with `*` for any one part and `**` for one or more; or several of these.
        start: "latest" (what is committed from now on), "earliest" (all that is retained), or a sequence (what is
            behind it). Under a name it counts when the name is new.
        consumer: a name under which the position is kept; whoever subscribes under it goes on behind what was
            acknowledged, and takes it over from whoever held it.
        group: each message goes to one member of the group. A member claims up to `prefetch` messages at a time,
            and if it neither receives nor acknowledges for `lease` seconds by the store's clock, what it has not
            acknowledged goes to others, before anything else. `consumer` then only names the member. In a group
            messages are handed out in order, and one member may be done before another.

        Without a name nothing is kept. From "earliest" those that the change log no longer lists come first, in the
        order of their ids.

        Raises:
            InvalidArgument, InvalidNamespace; CursorExpired: the log does not reach back to that sequence.
        """
        interest = Interest(pattern)
        if group is not None:
            if isinstance(lease, bool) or not isinstance(lease, (int, float)) or not 0 < lease <= sys.float_info.max:
                raise InvalidArgument(f"lease is seconds > 0, not {lease!r}")
            if isinstance(prefetch, bool) or not isinstance(prefetch, int) or prefetch < 1:
                raise InvalidArgument(f"prefetch is a number of messages ≥ 1, not {prefetch!r}")
            name = "" if consumer is None else consumer_key(consumer).partition(":")[2]
            return Member(self._mem, self._layout, interest, group, name, start, lease, prefetch)
        if consumer is not None:
            return Consumer(self._mem, self._layout, interest, consumer, start)
        return Subscription(self._mem, self._layout, interest, *starting(self._mem, self._layout, interest, start))

    def topics(self, pattern: str = "**") -> list[str]:
        """The topics that match and have, or had, messages; sorted."""
        interest = Interest(pattern)
        cut = len(self._layout.messages)
        return [name for space in self._mem.namespaces(self._layout.messages) if (name := space[cut:]) in interest]

    def consumers(self) -> list[ConsumerState]:
        """The registered consumers and groups; counts what each has not acknowledged, or not been handed out."""
        found = []
        for key, state, position, claimed in registered(self._mem, self._layout):
            kind, _, name = key.partition(":")
            interest = Interest(state["patterns"])
            lag = len(claimed) + waiting(self._mem, self._layout, interest, position)
            found.append(ConsumerState(name, kind == "group", interest.patterns, position.sequence, lag))
        return found

    def forget(self, consumer: str | None = None, *, group: str | None = None) -> bool:
        """Remove a consumer or a group: nothing is held for it any more; True if it was there.

        Whoever is subscribed under that name gets `LeaseLost`.
        """
        if (consumer is None) == (group is None):
            raise InvalidArgument("forget takes the name of a consumer or of a group")
        key = consumer_key(consumer) if consumer is not None else group_key(str(group))
        mem, layout = self._mem, self._layout
        state = mem.get(layout.consumers, key)
        if state is None:
            return False
        # First: were this call to end here, the next one would still find what it has to remove.
        mem.cursor(f"{layout.root}:{key}").delete()
        with mem.batch() as batch:
            batch.delete(layout.consumers, key)
            batch.delete(layout.positions, f"{key}@{state['epoch']}")
            for token in state["claims"]:
                batch.delete(layout.acks, token)
                batch.delete(layout.members, token)
        return True

    def trim(self, pattern: str = "**", *, retention: Retention | None = None, force: bool = False) -> int:
        """Remove the messages that retention no longer covers, now; how many.

        retention: other limits than those this object was made with. force: also what registered consumers have not
        acknowledged yet; whoever then looks for it gets `LagExceeded`.
        """
        if retention is not None and not isinstance(retention, Retention):
            raise InvalidArgument(f"retention is a Retention, not {type(retention).__name__}")
        return sum(
            trim(self._mem, self._layout, topic, retention or self._limits(topic), force=force)
            for topic in self.topics(pattern)
        )

    def _outlet(self, topic: str) -> _Outlet:
        space = self._layout.space(topic)
        outlet = self._outlets[topic] = _Outlet(space, self._limits(topic))
        return outlet

    def _limits(self, topic: str) -> Retention:
        return next((limits for interest, limits in self._retention if topic in interest), EVERYTHING)

    def _check_lag(self, topic: str, outlet: _Outlet, most: int) -> None:
        outlet.unchecked -= 1
        if outlet.unchecked >= 0:
            return
        for key, state, position, claimed in registered(self._mem, self._layout):
            interest = Interest(state["patterns"])
            if topic in interest:
                behind = len(claimed) + waiting(self._mem, self._layout, interest, position, most + 1)
                if behind > most:
                    # Looked at again by the next call.
                    outlet.unchecked = 0
                    raise LagExceeded(f"{key!r} is more than {most} messages behind: nothing published to {topic!r}")
        outlet.unchecked = most // CHECKS

    def _retain(self, topic: str, outlet: _Outlet, payload: Any, now: float) -> None:
        """Trim if as much was published since that it is worth while."""
        limits = outlet.limits
        outlet.published += 1
        if limits.bytes is not None:
            outlet.weight += weight(payload)
        if (
            (limits.count is not None and outlet.published > limits.count // CHECKS)
            or (limits.bytes is not None and outlet.weight > limits.bytes // CHECKS)
            or (limits.age is not None and now >= outlet.due)
        ):
            outlet.published = outlet.weight = 0
            outlet.due = now + (limits.age or 0.0) / CHECKS
            trim(self._mem, self._layout, topic, limits)
