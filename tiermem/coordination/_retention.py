"""Retention: which of the oldest messages of a topic go, and which are held for consumers."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tiermem.coordination._feed import Interest, Layout, Position
from tiermem.coordination._subscription import durable_position
from tiermem.errors import CursorExpired, InvalidArgument, VersionConflict

if TYPE_CHECKING:
    from tiermem.engine.memory import Memory

BATCH: Final = 4096
"""Messages trimmed in one commit."""
REACH: Final = 16_384
"""A consumer this many changes behind holds everything of its topics, so that finding out what it needs stays cheap."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How much of a topic is kept: messages beyond any of the limits are trimmed, oldest first.

    age: seconds by the store's clock. count: messages. bytes: of payloads, estimated. None: no limit.
    """

    age: float | None = None
    count: int | None = None
    bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("age", "count", "bytes"):
            limit = getattr(self, name)
            known = (int, float) if name == "age" else int
            if limit is not None and (
                isinstance(limit, bool) or not isinstance(limit, known) or not 0 <= limit <= sys.float_info.max
            ):
                raise InvalidArgument(f"Retention.{name} is a number ≥ 0 or None, not {limit!r}")


def weight(payload: Any) -> int:
    """About how many bytes a payload takes."""
    if isinstance(payload, (str, bytes, bytearray)):
        return len(payload) + 3
    if isinstance(payload, Mapping):
        return 3 + sum(weight(key) + weight(item) for key, item in payload.items())
    if isinstance(payload, (list, tuple)):
        return 3 + sum(map(weight, payload))
    return int(getattr(payload, "nbytes", 9))


class Held:
    """What live consumers still need: those that are registered, until they are forgotten."""

    def __init__(self, mem: Memory, layout: Layout) -> None:
        self._layout = layout
        self._consumers = [
            (Interest(state["patterns"]), position, claimed) for _, state, position, claimed in registered(mem, layout)
        ]
        self._listed: dict[str, set[str]] | None = {}
        if self._consumers:
            self._listed = self._read(mem, min(position.sequence for _, position, _ in self._consumers))

    def _read(self, mem: Memory, low: int) -> dict[str, set[str]] | None:
        """Which messages the log lists behind `low`, by namespace; None if that is too much to read, or gone."""
        listed: dict[str, set[str]] = {}
        try:
            for number, change in enumerate(mem.changes(low)):
                if number >= REACH:
                    return None
                if change.op == "put" and change.namespace.startswith(self._layout.messages):
                    listed.setdefault(change.namespace, set()).add(change.key)
        except CursorExpired:
            return None
        return listed

    def until(self, topic: str, ids: list[str]) -> list[str]:
        """The first of `ids`, in order, that no consumer of the topic needs."""
        wanting = [entry for entry in self._consumers if topic in entry[0]]
        if not wanting:
            return ids
        if self._listed is None:
            return []
        needed = self._listed.get(self._layout.space(topic), set()).union(*(claimed for _, _, claimed in wanting))
        olds = [position.older for _, position, _ in wanting if position.older is not None]
        for number, key in enumerate(ids):
            if key in needed or (olds and key > min(olds)):
                return ids[:number]
        return ids


def registered(mem: Memory, layout: Layout) -> Iterator[tuple[str, dict[str, Any], Position, set[str]]]:
    """(key, state, position, ids claimed and not known to be acknowledged) of each consumer and group."""
    for record in mem.scan(layout.consumers):
        state = record.value
        claimed = {
            key
            for token, refs in state["claims"].items()
            for key in {ref[2] for ref in refs}.difference(mem.get(layout.acks, token, ()))
        }
        yield record.key, state, durable_position(mem, layout, record.key, state), claimed


def trim(mem: Memory, layout: Layout, topic: str, limits: Retention, *, force: bool = False) -> int:
    """Remove what of a topic lies beyond the limits, up to what is held unless by `force`; how many messages.

    The highest id that was trimmed is kept, changed by compare-and-set: of two that trim at a time one does nothing,
    and who looks for a message that has gone learns why.
    """
    space = layout.space(topic)
    total = 0
    while True:
        mark = mem.get_record(layout.trimmed, topic)
        ids = list(_beyond(mem, space, limits))
        # What is needed is looked for after what may go: who publishes or subscribes in between is seen.
        doomed = ids if force or not ids else Held(mem, layout).until(topic, ids)
        if not doomed:
            return total
        last = max(doomed[-1], mark.value if mark is not None else "")
        try:
            with mem.batch() as batch:
                batch.put(layout.trimmed, topic, last, if_version=0 if mark is None else mark.version)
                for key in doomed:
                    batch.delete(space, key)
        except VersionConflict:
            return total
        total += len(doomed)
        if len(doomed) < BATCH:
            return total


def _beyond(mem: Memory, space: str, limits: Retention) -> Iterator[str]:
    """The ids of the oldest messages that a limit excludes, at most a batch of them."""
    most = 0
    if limits.count is not None:
        most = max(0, mem.count(space) - limits.count)
    if limits.age is not None:
        until = mem.clock.now() - limits.age
        most = max(most, sum(1 for _ in mem.scan(space, until=until, limit=BATCH)))
    if limits.bytes is not None:
        size = 0
        beyond = 0
        for record in mem.scan(space, reverse=True):
            size += weight(record.value[1])
            beyond += size > limits.bytes
        most = max(most, beyond)
    if most:
        for record in mem.scan(space, limit=min(most, BATCH)):
            yield record.key
