"""The async face: the verbs of `Memory`, awaitable.

It holds no logic of its own. A verb runs the sync one in a small pool of threads; what is hot is read
where the loop runs. Cancelling an await never leaves half a write: a call that had not begun does not
happen, one that had begun runs to its end, unheard.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from functools import partial, wraps
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Final, Generic, ParamSpec, Self, TypeVar

from tiermem.engine.batch import Batch
from tiermem.engine.memory import Memory, open
from tiermem.engine.namespace import Namespace
from tiermem.engine.streams import AsyncChanges, AsyncCursor, AsyncRows, Threads
from tiermem.protocols import Clock, Embedder
from tiermem.types import Moment, Where

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Future

P = ParamSpec("P")
R = TypeVar("R")
Sync_co = TypeVar("Sync_co", covariant=True)

_ABSENT: Final = object()


class _Face(Generic[Sync_co]):
    """A sync object and the threads its verbs run in."""

    def __init__(self, sync: Sync_co, threads: Threads) -> None:
        self._sync = sync
        self._threads = threads


def _awaited(
    verb: Callable[Concatenate[Sync_co, P], R],
) -> Callable[Concatenate[_Face[Sync_co], P], Coroutine[Any, Any, R]]:
    """A sync verb, awaitable: it has that one's signature and documentation."""

    @wraps(verb)
    async def awaited(self: _Face[Sync_co], /, *args: P.args, **kwargs: P.kwargs) -> R:
        return await self._threads.run(partial(getattr(self._sync, verb.__name__), *args, **kwargs))

    return awaited


class _AsyncBatch:
    """`async with`: gives the `Batch`, which collects, and makes its writes in a thread at the end."""

    def __init__(self, batch: Batch, threads: Threads) -> None:
        self._batch = batch
        self._threads = threads

    async def __aenter__(self) -> Batch:
        return self._batch.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            # Nothing is written: the block was left by an exception, maybe a cancellation.
            self._batch.__exit__(kind, exc, trace)
            return
        await self._threads.run(self._batch.__exit__, None, None, None)


class AsyncNamespace(_Face[Namespace]):
    """One namespace of a store: every verb of `Namespace`, awaitable. It is no mapping."""

    def __init__(self, sync: Namespace, memory: AsyncMemory, threads: Threads, *, typed: bool) -> None:
        super().__init__(sync, threads)
        self._memory = memory
        self._typed = typed

    @property
    def name(self) -> str:
        """The namespace's name."""
        return self._sync.name

    def __repr__(self) -> str:
        return f"<tiermem.AsyncNamespace {self.name!r}>"

    async def get(self, key: str, default: Any = None, copy: bool = False) -> Any:
        """As `AsyncMemory.get`; values decoded as a type are always read in a thread."""
        if self._typed:
            return await self._threads.run(partial(self._sync.get, key, default, copy=copy))
        return await self._memory.get(self.name, key, default, copy=copy)

    async def peek(self, key: str, default: Any = None) -> Any:
        """As `Namespace.peek`, in the loop's thread."""
        return self._sync.peek(key, default)

    def scan(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        where: Where | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> AsyncRows:
        """As `AsyncMemory.scan`."""
        self._threads.check()
        rows = self._sync.scan(prefix, start=start, since=since, until=until, where=where, limit=limit, reverse=reverse)
        return AsyncRows(self._threads, rows)

    def changes(self, after: int | None = None, wait: float | None = None) -> AsyncChanges:
        """As `AsyncMemory.changes`, of this namespace."""
        return self._memory.changes(after, self.name, wait)

    get_record = _awaited(Namespace.get_record)
    get_many = _awaited(Namespace.get_many)
    latest = _awaited(Namespace.latest)
    contains = _awaited(Namespace.contains)
    count = _awaited(Namespace.count)
    put = _awaited(Namespace.put)
    update = _awaited(Namespace.update)
    touch = _awaited(Namespace.touch)
    delete = _awaited(Namespace.delete)
    delete_many = _awaited(Namespace.delete_many)
    clear = _awaited(Namespace.clear)
    put_many = _awaited(Namespace.put_many)
    append = _awaited(Namespace.append)
    search_similar = _awaited(Namespace.search_similar)
    search_many = _awaited(Namespace.search_many)
    build_index = _awaited(Namespace.build_index)


class AsyncMemory(_Face[Memory]):
    """An open store whose verbs are awaited. Made by `open_async`; belongs to one event loop.

    Up to four calls run at a time, in threads. `hit.value` and `hit.record` read where they are asked
    for; `await amem.get_record(hit.namespace, hit.key)` does not.
    """

    _closing: asyncio.Future[None] | None = None

    @property
    def clock(self) -> Clock:
        """As `Memory.clock`."""
        return self._sync.clock

    @property
    def embedder(self) -> Embedder | None:
        """As `Memory.embedder`."""
        return self._sync.embedder

    async def get(self, namespace: str, key: str, default: Any = None, copy: bool = False) -> Any:
        """As `Memory.get`. A value that L1 holds is returned without leaving the loop's thread."""
        self._threads.check()
        if self._sync.peek(namespace, key, _ABSENT) is not _ABSENT:
            # The sync verb again, so that the eviction policy learns of the hit.
            return self._sync.get(namespace, key, default, copy=copy)
        return await self._threads.run(partial(self._sync.get, namespace, key, default, copy=copy))

    async def peek(self, namespace: str, key: str, default: Any = None) -> Any:
        """As `Memory.peek`, in the loop's thread."""
        self._threads.check()
        return self._sync.peek(namespace, key, default)

    def scan(
        self,
        namespace: str,
        prefix: str = "",
        *,
        start: str | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        where: Where | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> AsyncRows:
        """As `Memory.scan`, to be iterated with `async for`; pages are fetched in a thread."""
        self._threads.check()
        rows = self._sync.scan(
            namespace, prefix, start=start, since=since, until=until, where=where, limit=limit, reverse=reverse
        )
        return AsyncRows(self._threads, rows)

    def changes(
        self, after: int | None = None, namespace: str | None = None, wait: float | None = None
    ) -> AsyncChanges:
        """As `Memory.changes`, to be iterated with `async for`; None: from when that begins."""
        self._threads.check()
        # Only checks the arguments: with a sequence to start from, nothing is read before the first item.
        self._sync.changes(0 if after is None else after, namespace, wait)
        return AsyncChanges(self._sync, self._threads, after, namespace, wait)

    async def cursor(self, name: str, namespace: str | None = None, *, start: int | None = None) -> AsyncCursor:
        """As `Memory.cursor`."""
        cursor = await self._threads.run(partial(self._sync.cursor, name, namespace, start=start))
        return AsyncCursor(self._sync, self._threads, name, namespace, cursor.position)

    def batch(self, *, durable: bool = False) -> _AsyncBatch:
        """As `Memory.batch`, for `async with`. The verbs of the batch itself are not awaited.

        They check and collect. Only the first vector of a namespace makes one commit at once, since it
        fixes the dimension: `create_namespace` beforehand spares the loop that.
        """
        self._threads.check()
        return _AsyncBatch(self._sync.batch(durable=durable), self._threads)

    def namespace(self, name: str, type: Any = None) -> AsyncNamespace:
        """As `Memory.namespace`, but no mapping."""
        self._threads.check()
        return AsyncNamespace(self._sync.namespace(name, type), self, self._threads, typed=type is not None)

    async def close(self) -> None:
        """Wait for the calls that run, commit what is pending and let go of the store; idempotent.

        From when this is called every other call raises ClosedError. Raises as `Memory.close`.
        """
        import asyncio

        first = self._closing is None
        if self._closing is None:
            self._threads.closed = True
            self._closing = asyncio.ensure_future(asyncio.to_thread(self._finish))
        if first or not self._closing.done():
            await asyncio.shield(self._closing)

    def _finish(self) -> None:
        self._threads.finish()
        self._sync.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<tiermem.AsyncMemory of {self._sync!r}>"

    get_record = _awaited(Memory.get_record)
    get_many = _awaited(Memory.get_many)
    latest = _awaited(Memory.latest)
    contains = _awaited(Memory.contains)
    count = _awaited(Memory.count)
    search_similar = _awaited(Memory.search_similar)
    search_many = _awaited(Memory.search_many)
    build_index = _awaited(Memory.build_index)
    namespaces = _awaited(Memory.namespaces)
    put = _awaited(Memory.put)
    update = _awaited(Memory.update)
    touch = _awaited(Memory.touch)
    delete = _awaited(Memory.delete)
    delete_many = _awaited(Memory.delete_many)
    put_many = _awaited(Memory.put_many)
    append = _awaited(Memory.append)
    create_namespace = _awaited(Memory.create_namespace)
    drop_namespace = _awaited(Memory.drop_namespace)
    flush = _awaited(Memory.flush)
    check = _awaited(Memory.check)
    compact = _awaited(Memory.compact)
    backup = _awaited(Memory.backup)
    stats = _awaited(Memory.stats)


class _Opening:
    """A store about to be opened: `await` it, or enter it with `async with`, which closes it again."""

    _memory: AsyncMemory

    def __init__(self, opener: Callable[[], Memory]) -> None:
        self._opener = opener

    async def _open(self) -> AsyncMemory:
        import asyncio

        threads = Threads()
        opening = threads.submit(self._opener)
        try:
            return AsyncMemory(await asyncio.wrap_future(opening), threads)
        except asyncio.CancelledError:
            # Nobody will hear of the handle that is being opened.
            opening.add_done_callback(_abandon)
            raise

    def __await__(self) -> Generator[Any, None, AsyncMemory]:
        return self._open().__await__()

    async def __aenter__(self) -> AsyncMemory:
        self._memory = await self._open()
        return self._memory

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._memory.close()


def _abandon(opening: Future[Memory]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def _awaitable(opener: Callable[P, Memory]) -> Callable[P, _Opening]:
    def open_async(*args: P.args, **kwargs: P.kwargs) -> _Opening:
        """Open a store for an event loop: `async with open_async(path) as amem:` or `amem = await open_async(path)`.

        Takes what `open` takes, and raises what it raises when it is awaited or entered.
        """
        return _Opening(partial(opener, *args, **kwargs))

    # Wrapped for its signature alone.
    return wraps(opener, assigned=(), updated=())(open_async)


open_async = _awaitable(open)
