"""Subscriptions: without a name, and those of durable consumers."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from tiermem.coordination._feed import (
    Interest,
    Layout,
    Message,
    Position,
    Reader,
    Ref,
    beginning,
    end,
    load,
    marks,
    waiting,
)
from tiermem.errors import ClosedError, CursorExpired, InvalidArgument, LagExceeded, LeaseLost, VersionConflict

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from tiermem.engine.memory import Memory

NAP: Final = 0.25
"""Seconds a waiting subscription sleeps at most before it looks whether it was closed."""
STRIDE: Final = 4_096
"""Changes after which a durable position lets the log be trimmed."""


class Subscription:
    """Messages of some topics as they come, in order; iterate it with `for` or `async for`, or `get` them.

    Made by `Topics.subscribe`; a context manager; safe to use from several threads, each of which then gets some of
    the messages. Waiting takes real seconds, whatever the store's clock. It belongs to the process that made it.
    """

    def __init__(
        self, mem: Memory, layout: Layout, interest: Interest, position: Position, marks: Mapping[str, str]
    ) -> None:
        self._mem = mem
        self._layout = layout
        self._interest = interest
        self._reader = Reader(mem, layout, interest, position)
        self._ready: deque[Message] = deque()
        self._marks = marks
        self._trimmed = 0
        self._closed = False
        self._process = os.getpid()
        self._waiter: ThreadPoolExecutor | None = None
        self._lock = threading.RLock()

    @property
    def patterns(self) -> tuple[str, ...]:
        """What it is subscribed to."""
        return self._interest.patterns

    @property
    def lag(self) -> int:
        """How many messages were published and not yet received; reads the log up to its end."""
        with self._lock:
            self._check()
            return len(self._ready) + waiting(self._mem, self._layout, self._interest, self._reader.position)

    def get(self, timeout: float | None = None) -> Message | None:
        """The next message, waiting up to `timeout` seconds (None: without end); None if there was none.

        Raises:
            LagExceeded: messages were trimmed before they could be read; told once, and the next call goes on
                behind them. For a member of a group also: it has acknowledged none of `prefetch` messages.
            LeaseLost: another subscriber has taken over the consumer's name, or it was forgotten.
            CursorExpired: the change log was trimmed past the position.
            ClosedError: the subscription or the store was closed.
        """
        if timeout is not None and (
            isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or math.isnan(timeout) or timeout < 0
        ):
            raise InvalidArgument(f"timeout is seconds ≥ 0 or None, not {timeout!r}")
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        self._check_process()
        while True:
            with self._lock:
                if self._fill():
                    return self._ready.popleft()
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self._reader.wait(min(left, NAP))

    def ack(self, message: Message) -> None:
        """Acknowledge a message: it is not delivered to this consumer, or group, again.

        Any order will do; what precedes an unacknowledged message counts once that is acknowledged too. Kill-safe when
        it returns. Acknowledging twice does nothing.

        Raises:
            LeaseLost: another subscriber has taken over; the message may be delivered again.
            InvalidArgument: the subscription has no consumer's name, so that nothing is kept.
        """
        if not isinstance(message, Message):
            raise InvalidArgument(f"what is acknowledged is a Message, not {type(message).__name__}")
        self._check_process()
        with self._lock:
            self._check()
            self._acknowledge(message)

    def close(self) -> None:
        """Let go of it; idempotent. What was not acknowledged is delivered again to whoever comes next."""
        if self._closed:
            return
        self._closed = True
        if self._process == os.getpid():
            with self._lock:
                self._leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Message:
        """The next message, however long it takes; the end once the subscription was closed."""
        try:
            message = self.get()
        except ClosedError:
            message = None
            if not self._closed:
                raise
        if message is None:
            raise StopIteration
        return message

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        """As `__next__`; it waits in a thread of its own, and one that is cancelled loses no message."""
        import asyncio
        from concurrent.futures import ThreadPoolExecutor

        self._check_process()
        if self._waiter is None:
            # One of its own: many that wait must not keep each other, or what else the loop does in threads, waiting.
            self._waiter = ThreadPoolExecutor(1, "tiermem-subscription")
        loop = asyncio.get_running_loop()
        while not self._closed:
            try:
                # Fetched there and taken here: what an await that was cancelled has fetched stays for the next one.
                if bool(self._ready) or await loop.run_in_executor(self._waiter, self._look):
                    return self._ready.popleft()
            except IndexError:
                # Another task was faster.
                continue
            except ClosedError:
                if not self._closed:
                    raise
        raise StopAsyncIteration

    def _look(self) -> bool:
        with self._lock:
            if self._fill():
                return True
        self._reader.wait(NAP)
        return False

    def _fill(self) -> bool:
        """See to it that a message is ready; False if there is none. The caller holds the lock."""
        self._check()
        while not self._ready and not self._trimmed and self._refill():
            # All that was found is gone: there may be more behind it.
            pass
        if self._trimmed:
            trimmed, self._trimmed = self._trimmed, 0
            raise LagExceeded(f"{trimmed} message(s) were trimmed before they could be read")
        return bool(self._ready)

    def _refill(self) -> bool:
        """Look for the next messages; False if there are none, stored or not."""
        before = self._reader.position
        try:
            found = self._reader.read()
            messages = self._load([ref for ref, _ in found])
        except BaseException:
            # Nothing is passed over: whoever tries again begins where this began.
            self._reader = self._reader.at(before)
            raise
        self._receive(before, found, messages)
        return bool(found)

    def _load(self, refs: Sequence[Ref]) -> list[Message]:
        messages, trimmed = load(self._mem, self._layout, refs, self._marks)
        self._trimmed += trimmed
        return messages

    def _receive(self, before: Position, found: list[tuple[Ref, Position]], messages: list[Message]) -> None:
        """Make what was found behind `before`, and is still stored, ready."""
        self._ready.extend(messages)

    def _check(self) -> None:
        if self._closed:
            raise ClosedError("the subscription was closed")
        self._check_process()

    def _check_process(self) -> None:
        # Before the lock is asked for: in a forked child a thread may hold it that only the parent has.
        if self._process != os.getpid():
            raise ClosedError("a subscription belongs to the process that made it, and this one was forked from that")

    def _acknowledge(self, message: Message) -> None:
        raise InvalidArgument("only a subscription with a consumer's name acknowledges: subscribe(..., consumer=name)")

    def _leave(self) -> None:
        self._ready.clear()


class Consumer(Subscription):
    """A subscription with a durable position under a name. The last one to subscribe under it holds the name."""

    def __init__(self, mem: Memory, layout: Layout, interest: Interest, name: str, start: str | int) -> None:
        self._key = consumer_key(name)
        self._epoch, position, marks = self._take_over(mem, layout, interest, start)
        super().__init__(mem, layout, interest, position, marks)
        # Of what was read and not acknowledged, in order: the position before it.
        self._open: dict[str, Position] = {}
        self._kept = position
        self._cursor = mem.cursor(f"{layout.root}:{self._key}", start=position.sequence)
        self._held = self._cursor.position

    def _take_over(
        self, mem: Memory, layout: Layout, interest: Interest, start: str | int
    ) -> tuple[int, Position, Mapping[str, str]]:
        register(mem, layout, interest, self._key, start)
        while True:
            # Whatever the holder before has acknowledged is seen from here on.
            mem.flush()
            record = mem.get_record(layout.consumers, self._key)
            if record is None:
                raise LeaseLost(f"{self._key!r} was forgotten")
            epoch, position = record.value["epoch"], durable_position(mem, layout, self._key, record.value)
            state = {**record.value, "epoch": epoch + 1, "sequence": position.sequence, "older": position.older}
            try:
                with mem.batch() as batch:
                    batch.put(layout.consumers, self._key, state, if_version=record.version)
                    batch.delete(layout.positions, f"{self._key}@{epoch}")
            except VersionConflict:
                continue
            return epoch + 1, position, state["marks"]

    def _check(self) -> None:
        super()._check()
        self._check_held()

    def _check_held(self) -> None:
        state = self._mem.get(self._layout.consumers, self._key)
        if state is None or state["epoch"] != self._epoch:
            what = "was forgotten" if state is None else "was taken over by another subscriber"
            raise LeaseLost(f"{self._key!r} {what}")

    def _receive(self, before: Position, found: list[tuple[Ref, Position]], messages: list[Message]) -> None:
        stored = {message.id for message in messages}
        for ref, behind in found:
            if ref.id in stored:
                self._open[ref.id] = before
            before = behind
        super()._receive(before, found, messages)
        if not self._open and self._reader.position.sequence - self._kept.sequence >= STRIDE:
            # Others' changes only: they must not hold the log.
            self._keep()

    def _acknowledge(self, message: Message) -> None:
        if self._open.pop(message.id, None) is not None:
            self._keep()

    def _keep(self) -> None:
        position = next(iter(self._open.values()), self._reader.position)
        if position != self._kept:
            self._mem.put(self._layout.positions, f"{self._key}@{self._epoch}", list(position))
            self._kept = position
        self._let_go(STRIDE)

    def _let_go(self, stride: int) -> None:
        """Let the log be trimmed up to the position that is kept, if that is far enough from where it is held."""
        if self._kept.sequence - self._held > stride:
            self._cursor.commit(self._kept.sequence)
            self._held = self._kept.sequence

    def _leave(self) -> None:
        super()._leave()
        try:
            self._check_held()
            self._let_go(0)
        except (ClosedError, LeaseLost):
            # The position was kept with the last acknowledgement; what holds the log is not ours to move any more.
            return


def consumer_key(name: str) -> str:
    """Under what a durable consumer is kept.

    Raises:
        InvalidArgument: it is no name.
    """
    return _key("consumer", name)


def group_key(name: str) -> str:
    """Under what a group is kept; as `consumer_key`."""
    return _key("group", name)


def _key(kind: str, name: str) -> str:
    if not isinstance(name, str) or not 1 <= len(valid := name.encode(errors="replace")) <= 200 or "\0" in name:
        raise InvalidArgument(f"the name of a {kind} is a str of 1 to 200 UTF-8 bytes, not {name!r}")
    if valid.decode() != name:
        raise InvalidArgument(f"the name of a {kind} is valid Unicode, not {name!r}")
    return f"{kind}:{name}"


def starting(mem: Memory, layout: Layout, interest: Interest, start: str | int) -> tuple[Position, dict[str, str]]:
    """The position meant by "latest", "earliest" or a sequence, and up to where topics were trimmed of what is meant.

    Raises:
        CursorExpired: the log no longer reaches back to that sequence.
        InvalidArgument: it is none of these, or lies ahead of the log.
    """
    if start == "latest":
        return end(mem), {}
    if start == "earliest":
        known = marks(mem, layout, interest)
        return beginning(mem), known
    if isinstance(start, bool) or not isinstance(start, int) or start < 0:
        raise InvalidArgument(f'start is "latest", "earliest" or a sequence ≥ 0, not {start!r}')
    if start > end(mem).sequence:
        raise InvalidArgument(f"start {start} lies ahead of the log, which ends at {mem.stats().log.last}")
    next(mem.changes(start), None)
    return Position(start), {}


def register(mem: Memory, layout: Layout, interest: Interest, key: str, start: str | int) -> Mapping[str, str]:
    """Make the record of a consumer or group if there is none; from then on the log is held for it.

    Returns up to where topics had been trimmed when it was made.

    Raises:
        InvalidArgument: it is there with other patterns.
    """
    while True:
        known = mem.get(layout.consumers, key)
        if known is not None:
            if tuple(known["patterns"]) != interest.patterns:
                raise InvalidArgument(
                    f"{key!r} is subscribed to {', '.join(known['patterns'])}; `Topics.forget` it to change that"
                )
            trimmed: Mapping[str, str] = known["marks"]
            return trimmed
        position, before = starting(mem, layout, interest, start)
        try:
            cursor = mem.cursor(f"{layout.root}:{key}", start=position.sequence)
            if cursor.position > position.sequence:
                # Another process is about to register the same: who holds the log for longer does no harm.
                cursor.commit(position.sequence)
        except CursorExpired:
            if start == "earliest":
                # Trimmed meanwhile: what was listed is older now.
                continue
            raise
        state = {
            "patterns": list(interest.patterns),
            "epoch": 0,
            "sequence": position.sequence,
            "older": position.older,
            "marks": before,
            "claims": {},
        }
        try:
            mem.put(layout.consumers, key, state, if_version=0)
        except VersionConflict:
            continue


def durable_position(mem: Memory, layout: Layout, key: str, state: dict[str, object]) -> Position:
    """How far a consumer or group has come, as far as this process can see."""
    kept = mem.get(layout.positions, f"{key}@{state['epoch']}")
    return Position(*kept) if kept is not None else Position(state["sequence"], state["older"])  # type: ignore[arg-type]  # as it was stored
