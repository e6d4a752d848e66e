"""Where topics keep what they keep, and how messages are found again in the order of the change log."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tiermem.errors import InvalidArgument
from tiermem.namespaces import matcher
from tiermem.types import check_namespace

if TYPE_CHECKING:
    from tiermem.engine.memory import Memory

PAGE: Final = 1024
"""Changes, or older messages, read at a time."""


class Message(NamedTuple):
    """A received message. `at` is when it was published, in epoch seconds of the publisher's store clock.

    sequence: its place in the change log, which orders the messages of a store; 0 for one that was trimmed from the log
    before it was read.
    """

    id: str
    sequence: int
    topic: str
    payload: Any
    at: float


class Ref(NamedTuple):
    """A message that was found and not read."""

    sequence: int
    topic: str
    id: str


class Position(NamedTuple):
    """How far somebody has come: to `sequence` in the change log.

    older: not None while what the log no longer lists is still being delivered, in the order of ids: the last of these.
    """

    sequence: int
    older: str | None = None


class Layout:
    """The namespaces of the topics under one root."""

    def __init__(self, root: str) -> None:
        self.root = check_namespace(root)
        self.messages = f"{root}/messages/"
        self.consumers = f"{root}/consumers"
        self.positions = f"{root}/positions"
        self.members = f"{root}/members"
        self.acks = f"{root}/acks"
        self.trimmed = f"{root}/trimmed"

    def space(self, topic: str) -> str:
        """The namespace that holds the messages of a topic.

        Raises:
            InvalidNamespace: `topic` is no name of a topic.
        """
        return check_namespace(self.messages + check_namespace(topic))

    def topic(self, space: str) -> str | None:
        """The topic whose messages a namespace holds, if it does."""
        return space[len(self.messages) :] if space.startswith(self.messages) else None


class Interest:
    """Which topics are meant by some patterns."""

    def __init__(self, patterns: str | Sequence[str]) -> None:
        if not isinstance(patterns, (str, Sequence)):
            raise InvalidArgument(f"patterns are a str, or several in a list, not {type(patterns).__name__}")
        self.patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
        if not self.patterns:
            raise InvalidArgument("a subscription needs a pattern")
        self._matchers: list[Callable[[str], bool]] = [matcher(pattern) for pattern in self.patterns]

    def __contains__(self, topic: str) -> bool:
        return any(matches(topic) for matches in self._matchers)


class Reader:
    """Finds messages behind a position, in order: first those the log no longer lists, then those it does."""

    def __init__(self, mem: Memory, layout: Layout, interest: Interest, position: Position) -> None:
        self._mem = mem
        self._layout = layout
        self._interest = interest
        self._sequence, self._older = position
        self._topics: dict[str, str | None] = {}
        self._scan: Iterator[tuple[str, str]] | None = None
        self._ahead = position.sequence
        self._listed: set[str] = set()

    @property
    def position(self) -> Position:
        """Behind the last message found."""
        return Position(self._sequence, self._older)

    def at(self, position: Position) -> Reader:
        """A reader at another position, which need not find out again what this one knows."""
        if position == self.position:
            return self
        other = Reader(self._mem, self._layout, self._interest, position)
        other._topics = self._topics
        if position.sequence == self._sequence:
            other._ahead, other._listed = self._ahead, self._listed
        return other

    def read(self, limit: int = PAGE) -> list[tuple[Ref, Position]]:
        """Up to `limit` of the next messages, and the position behind each; none at the end.

        Raises:
            CursorExpired: the log was trimmed past the position.
        """
        while self._older is not None:
            found = self._read_older(limit)
            if found:
                return found
        while True:
            before = self._sequence
            listed: list[tuple[Ref, Position]] = []
            for change in islice(self._mem.changes(before), PAGE):
                self._sequence = sequence = change.sequence
                topic = self._topic(change.namespace)
                if topic is not None and change.op == "put":
                    listed.append((Ref(sequence, topic, change.key), Position(sequence)))
                    if len(listed) >= limit:
                        break
            if listed or self._sequence == before:
                return listed

    def wait(self, seconds: float) -> None:
        """Sleep until the log grows, at most so long."""
        next(self._mem.changes(self._sequence, None, seconds), None)

    def _read_older(self, limit: int) -> list[tuple[Ref, Position]]:
        after = self._older or ""
        if self._scan is None:
            self._scan = self._stored(after)
        page = list(islice(self._scan, limit))
        if not page:
            self._older, self._scan, self._listed = None, None, set()
            return []
        # What the log lists comes with it. This look comes after the page, so that it sees whatever the page holds.
        for change in self._mem.changes(self._ahead):
            self._ahead = change.sequence
            if change.op == "put" and self._topic(change.namespace) is not None:
                self._listed.add(change.key)
        self._older = page[-1][0]
        return [
            (Ref(0, topic, key), Position(self._sequence, key))
            for key, topic in page
            if key > after and key not in self._listed
        ]

    def _stored(self, after: str) -> Iterator[tuple[str, str]]:
        """(id, topic) of every stored message from id `after` on, in the order of ids."""

        def each(space: str, topic: str) -> Iterator[tuple[str, str]]:
            return ((record.key, topic) for record in self._mem.scan(space, start=after or None))

        spaces = self._mem.namespaces(self._layout.messages)
        return heapq.merge(*[each(space, topic) for space in spaces if (topic := self._topic(space)) is not None])

    def _topic(self, space: str) -> str | None:
        try:
            return self._topics[space]
        except KeyError:
            topic = self._layout.topic(space)
            found = self._topics[space] = topic if topic is not None and topic in self._interest else None
            return found


def beginning(mem: Memory) -> Position:
    """The position before everything that is retained."""
    first = mem.stats().log.first - 1
    return Position(first, "" if first else None)


def end(mem: Memory) -> Position:
    """The position behind everything any process has published so far."""
    mem.flush()
    return Position(mem.stats().log.last)


def waiting(mem: Memory, layout: Layout, interest: Interest, position: Position, most: int | None = None) -> int:
    """How many messages lie behind a position; counting stops at `most`. Reads the log up to its end."""
    reader = Reader(mem, layout, interest, position)
    total = 0
    while found := reader.read():
        total += len(found)
        if most is not None and total >= most:
            return most
    return total


def marks(mem: Memory, layout: Layout, interest: Interest) -> dict[str, str]:
    """Up to which id each topic was trimmed, those never trimmed left out."""
    return {record.key: record.value for record in mem.scan(layout.trimmed) if record.key in interest}


def load(
    mem: Memory, layout: Layout, refs: Sequence[Ref], before: Mapping[str, str] = MappingProxyType({})
) -> tuple[list[Message], int]:
    """The messages that are still stored, in order, and how many others were trimmed; what is left has expired.

    before: up to where topics had been trimmed when the reading began; that is not counted.
    """
    by_topic: dict[str, list[str]] = {}
    for ref in refs:
        by_topic.setdefault(ref.topic, []).append(ref.id)
    held = {topic: mem.get_many(layout.space(topic), ids) for topic, ids in by_topic.items()}
    messages: list[Message] = []
    trimmed = 0
    for sequence, topic, key in refs:
        found = held[topic].get(key)
        if found is not None:
            messages.append(Message(key, sequence, topic, found[1], found[0]))
        elif before.get(topic, "") < key <= mem.get(layout.trimmed, topic, ""):
            trimmed += 1
    return messages, trimmed
