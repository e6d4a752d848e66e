"""What the async face iterates over, and the threads it works in: rows, changes, cursors."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tiermem.engine.memory import Memory
from tiermem.errors import ClosedError
from tiermem.types import Change, Record

if TYPE_CHECKING:
    from concurrent.futures import Future

R = TypeVar("R")

THREADS: Final = 4
"""Calls that run at the same time; further ones queue."""
WAITERS: Final = 64
"""Feeds and cursors that sleep at the same time, each in a thread of its own, made when first needed."""
NAP: Final = 0.2
"""Seconds a thread sleeps at most before it looks whether it is still wanted."""
ROWS: Final = 256
"""Rows of a scan fetched by one call."""
CHANGES: Final = 1024
"""Changes fetched by one call."""


class Threads:
    """The threads that one store's calls run in, and whether it may still be called."""

    def __init__(self) -> None:
        # Not at the top: whoever never runs a loop need not wait for the import.
        from concurrent.futures import ThreadPoolExecutor

        self._calls = ThreadPoolExecutor(THREADS, "tiermem-aio")
        # Those that sleep must not keep those that work from running.
        self._waits = ThreadPoolExecutor(WAITERS, "tiermem-aio-wait")
        self.closed = False

    def check(self) -> None:
        """ClosedError once `close` was called."""
        if self.closed:
            raise ClosedError("the store was closed")

    def submit(self, call: Callable[..., R], *args: Any) -> Future[R]:
        self.check()
        return self._calls.submit(call, *args)

    async def run(self, call: Callable[..., R], *args: Any) -> R:
        """`call(*args)` in a thread; cancelled before it began, it never runs."""
        import asyncio

        return await asyncio.wrap_future(self.submit(call, *args))

    async def nap(self, call: Callable[..., R], *args: Any) -> R:
        """As `run`, for a call that sleeps up to `NAP`."""
        import asyncio

        self.check()
        return await asyncio.wrap_future(self._waits.submit(call, *args))

    def finish(self) -> None:
        """Wait for what runs; `closed` must be True, so that nothing new begins."""
        self._waits.shutdown()
        self._calls.shutdown()


class AsyncRows(AsyncIterator[Record]):
    """Records of a scan, fetched page by page. A cancelled `anext` loses none of them."""

    def __init__(self, threads: Threads, records: Iterator[Record]) -> None:
        self._threads = threads
        self._records = records
        self._page: Future[list[Record]] | None = None
        self._ready: deque[Record] = deque()

    def __aiter__(self) -> AsyncRows:
        return self

    async def __anext__(self) -> Record:
        import asyncio

        while not self._ready:
            # The page belongs to this object, not to the await: whoever comes next finds it.
            page = self._page = self._page or self._threads.submit(list, islice(self._records, ROWS))
            rows = await asyncio.shield(asyncio.wrap_future(page))
            if self._page is page:
                self._page = None
                self._ready.extend(rows)
                if not rows:
                    raise StopAsyncIteration
        return self._ready.popleft()


class AsyncChanges(AsyncIterator[Change]):
    """Changes of the log as they come; after its end, iterating again looks for more."""

    def __init__(
        self, memory: Memory, threads: Threads, after: int | None, namespace: str | None, wait: float | None
    ) -> None:
        self._memory = memory
        self._threads = threads
        self._after = after
        self._namespace = namespace
        self._wait = wait or 0.0
        self._ready: deque[Change] = deque()

    @property
    def read(self) -> int | None:
        """The sequence up to which the log was read; None before the first read of one that starts from now."""
        return self._after

    def __aiter__(self) -> AsyncChanges:
        return self

    async def __anext__(self) -> Change:
        deadline = monotonic() + self._wait
        while not self._ready:
            if self._after is None:
                self._after = await self._threads.run(_newest, self._memory)
            start = self._after
            found, read = await self._threads.run(_read, self._memory, start, self._namespace)
            if self._after == start:
                self._after = read
                self._ready.extend(found)
            if read == start and not await grown(self._memory, self._threads, read, deadline):
                raise StopAsyncIteration
        return self._ready.popleft()


class AsyncCursor(AsyncIterator[Change]):
    """A named position in the change log, kept in the store: iterate, then `await commit()`.

    As `Cursor`: iterating ends where the log does, iterating again looks for more, and what was
    yielded but not committed is yielded again to the next holder of the name.
    """

    def __init__(self, memory: Memory, threads: Threads, name: str, namespace: str | None, position: int) -> None:
        self.name = name
        self.namespace = namespace
        self._memory = memory
        self._threads = threads
        self._position = position
        self._changes = AsyncChanges(memory, threads, position, namespace, None)

    @property
    def position(self) -> int:
        """The last sequence this object has yielded, or started from."""
        return self._position

    def __aiter__(self) -> AsyncCursor:
        return self

    async def __anext__(self) -> Change:
        try:
            change = await anext(self._changes)
        except StopAsyncIteration:
            # Changes of other namespaces are done with too, or they would hold the log for ever.
            self._position = max(self._position, self._changes.read or 0)
            raise
        self._position = change.sequence
        return change

    async def lag(self) -> int:
        """How many changes the log holds behind the position, other namespaces' included."""
        return await self._threads.run(_newest, self._memory) - self._position

    async def wait(self, timeout: float) -> bool:  # noqa: ASYNC109 - the signature of the sync verb
        """Sleep until the log grows behind the position, at most `timeout` seconds; True if it has."""
        return await grown(self._memory, self._threads, self._position, monotonic() + timeout)

    async def commit(self) -> None:
        """Keep the position: what was yielded so far is done with."""
        await self._threads.run(_keep, self._memory, self.name, self.namespace, self._position)

    async def delete(self) -> None:
        """Forget the name; the log is no longer held for it."""
        await self._threads.run(lambda: self._memory.cursor(self.name, self.namespace, start=self._position).delete())


def _newest(memory: Memory) -> int:
    memory.flush()
    return memory.stats().log.last


def _read(memory: Memory, after: int, namespace: str | None) -> tuple[list[Change], int]:
    """A page of changes behind `after`, and how far the log was read.

    Those of every namespace are read, so that the position passes those nobody asked for.
    """
    page = list(islice(memory.changes(after), CHANGES))
    read = page[-1].sequence if page else after
    return [change for change in page if namespace is None or change.namespace == namespace], read


def _look(memory: Memory, after: int, seconds: float) -> bool:
    return next(memory.changes(after, None, seconds), None) is not None


async def grown(memory: Memory, threads: Threads, after: int, deadline: float) -> bool:
    """True once the log has grown behind `after`; False at `deadline`."""
    while (left := deadline - monotonic()) > 0:
        if await threads.nap(_look, memory, after, min(left, NAP)):
            return True
    return False


def _keep(memory: Memory, name: str, namespace: str | None, position: int) -> None:
    """Commit what lies up to `position` under a cursor's name, and what follows if it is nobody's."""
    cursor = memory.cursor(name, namespace, start=position)
    last = None
    for change in cursor:
        if change.sequence > position:
            break
        last = change.sequence
    else:
        # Behind the position are changes of other namespaces at most, which must not hold the log.
        cursor.commit()
        return
    if last is not None:
        # This cursor has gone too far; one made anew stands at what was committed.
        cursor = memory.cursor(name, namespace, start=position)
        for change in cursor:
            if change.sequence >= last:
                break
        cursor.commit()
