"""The async face: the same verbs, awaited; hits stay in the loop's thread; cancelling breaks nothing."""

from __future__ import annotations

import asyncio
import inspect
import random
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import tiermem
from tiermem.engine import streams
from tiermem.engine.aio import AsyncNamespace
from tiermem.engine.memory import Memory
from tiermem.engine.namespace import Namespace

NS = "desk/obs"
# The engine itself calls this one after a fork; it is no verb.
PLUMBING = {"attach"}


def verbs(kind: type) -> set[str]:
    found = {name for name, member in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}
    return found - PLUMBING


def own_verbs(kind: type) -> set[str]:
    return {name for name, member in vars(kind).items() if inspect.isfunction(member) and not name.startswith("_")}


class Gate:
    """An embedder that waits in its thread until it is let through."""

    model = "gate"
    dimension = 2

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()

    def embed(self, texts: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
        self.entered.release()
        assert self.open.wait(60)
        return np.ones((len(texts), 2), np.float32)


@asynccontextmanager
async def all_threads_busy(amem: tiermem.AsyncMemory, gate: Gate) -> AsyncIterator[list[asyncio.Task[int]]]:
    """Every thread is inside a put that goes on when this block has ended."""
    tasks = [asyncio.create_task(amem.put("gate", f"busy{n}", n, text="x")) for n in range(streams.THREADS)]
    for _ in tasks:
        await asyncio.to_thread(gate.entered.acquire)
    try:
        yield tasks
    finally:
        gate.open.set()
        await asyncio.gather(*tasks, return_exceptions=True)


# -------------------------------------------------------------------------------------------------------- signatures


def parameters(function: Any) -> inspect.Signature:
    return inspect.signature(function).replace(return_annotation=inspect.Signature.empty)


def test_the_verbs_are_the_same() -> None:
    assert own_verbs(tiermem.AsyncMemory) == verbs(Memory)
    assert own_verbs(AsyncNamespace) == own_verbs(Namespace)


@pytest.mark.parametrize("verb", sorted(verbs(Memory)))
def test_signatures_of_a_store_equal_the_sync_ones(verb: str) -> None:
    assert parameters(getattr(tiermem.AsyncMemory, verb)) == parameters(getattr(Memory, verb))


@pytest.mark.parametrize("verb", sorted(own_verbs(Namespace)))
def test_signatures_of_a_namespace_equal_the_sync_ones(verb: str) -> None:
    assert parameters(getattr(AsyncNamespace, verb)) == parameters(getattr(Namespace, verb))


def test_opening_has_the_same_signature() -> None:
    assert parameters(tiermem.open_async) == parameters(tiermem.open)


@pytest.mark.parametrize("face", [tiermem.AsyncMemory, AsyncNamespace])
def test_verbs_are_awaited_but_for_those_that_give_an_object(face: type) -> None:
    plain = {verb for verb in own_verbs(face) if not inspect.iscoroutinefunction(getattr(face, verb))}
    assert plain == {"scan", "changes", "batch", "namespace"} & own_verbs(face)


def test_importing_does_not_import_asyncio(run_python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = run_python("import sys, tiermem; print('asyncio' in sys.modules, 'concurrent.futures' in sys.modules)")
    assert done.stdout.split() == ["False", "False"]


# ------------------------------------------------------------------------------------------------ sync is the source


def plain(result: Any) -> Any:
    """A result without what differs between two stores: versions and the objects that hold them."""
    if isinstance(result, tiermem.Record):
        vector = None if result.vector is None else result.vector.tolist()
        return result._replace(version=0, vector=vector, key=result.key[:17])
    if isinstance(result, tiermem.Hit):
        return (result.namespace, result.key, result.score, result.metadata, result.value)
    if isinstance(result, tiermem.Change):
        return result._replace(version=0, key=result.key[:17])
    if isinstance(result, list):
        return [plain(item) for item in result]
    return result


V = [1.0, 0.0]
STEPS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("create_namespace", (NS,), {"dimension": 2, "metric": "dot"}),
    ("put_many", (NS, [tiermem.Item(f"k{n:04}", n, vector=[n, 1.0], metadata={"n": n}) for n in range(600)]), {}),
    ("get", (NS, "k0001"), {}),
    ("peek", (NS, "k0001"), {}),
    ("peek", (NS, "nothing", 7), {}),
    ("get", (NS, "nothing", 7), {}),
    ("get_record", (NS, "k0002"), {}),
    ("get_many", (NS, ["k0003", "nothing"]), {}),
    ("contains", (NS, "k0001"), {}),
    ("count", (NS,), {"where": {"n": {"$lt": 9}}}),
    ("update", (NS, "k0003"), {"metadata": {"n": -1}}),
    ("touch", (NS, "k0004"), {"ttl": 5.0}),
    ("delete", (NS, "k0005"), {}),
    ("delete", (NS, "k0005"), {}),
    ("delete_many", (NS,), {"prefix": "k059"}),
    ("append", ("desk/ticks", {"px": 1}), {"at": 5.0}),
    ("append", ("desk/ticks", {"px": 2}), {"at": 4.0}),
    ("latest", ("desk/ticks", 2), {}),
    ("scan", (NS,), {"prefix": "k00", "reverse": True}),
    ("scan", (NS,), {"where": {"n": {"$gt": 300}}}),
    ("search_similar", (NS, V), {"k": 3}),
    ("search_many", (NS, [V, [0.0, 1.0]]), {"k": 2, "where": {"n": {"$lt": 9}}}),
    ("build_index", (NS,), {}),
    ("search_similar", (NS, V), {"k": 3, "effort": 100}),
    ("namespaces", (), {"prefix": "desk"}),
    ("changes", (0,), {}),
    ("changes", (600, NS), {}),
    ("drop_namespace", (NS,), {}),
    ("namespaces", (), {}),
    ("flush", (), {}),
]
VERSIONED = {"put_many", "append", "update", "touch"}


def test_every_verb_gives_what_the_sync_verb_gives(tmp_path: Path) -> None:
    def sync() -> list[Any]:
        results = []
        with tiermem.open(tmp_path / "sync", clock=tiermem.SimulatedClock(10.0)) as mem:
            for verb, args, options in STEPS:
                result = getattr(mem, verb)(*args, **options)
                results.append(list(result) if verb in ("scan", "changes") else result)
            assert mem.check().ok
            return plain(results)

    async def awaited() -> list[Any]:
        results = []
        async with tiermem.open_async(tmp_path / "async", clock=tiermem.SimulatedClock(10.0)) as amem:
            for verb, args, options in STEPS:
                result = getattr(amem, verb)(*args, **options)
                rows = verb in ("scan", "changes")
                results.append([row async for row in result] if rows else await result)
            report = await amem.check()
            assert report.ok
            return plain(results)

    for (verb, args, _), expected, got in zip(STEPS, sync(), asyncio.run(awaited()), strict=True):
        if verb in VERSIONED:
            assert type(got) is type(expected), verb
        else:
            assert got == expected, (verb, args)


def test_a_namespace_has_the_verbs_of_the_store(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with tiermem.open_async(tmp_path) as amem:
            ns = amem.namespace(NS)
            assert ns.name == NS
            await ns.put("a", {"n": 1}, vector=V, metadata={"n": 1})
            await ns.put_many([("b", 2), ("c", 3)])
            assert await ns.get("a") == {"n": 1}
            assert await ns.get("z", 9) == 9
            assert [record.key async for record in ns.scan(start="b")] == ["b", "c"]
            assert [change.key async for change in ns.changes(0)] == ["a", "b", "c"]
            assert [hit.key for hit in await ns.search_similar(V)] == ["a"]
            assert await ns.count() == 3
            assert await ns.delete("b")
            await ns.clear()
            assert await ns.count() == 0
            assert "desk/obs" in repr(ns)

    asyncio.run(scenario())


class Position(msgspec.Struct):
    symbol: str
    shares: int


def test_a_namespace_decodes_as_its_type(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with tiermem.open_async(tmp_path) as amem:
            ns = amem.namespace("book", type=Position)
            await ns.put("AIG", Position("AIG", 3))
            assert await ns.get("AIG") == Position("AIG", 3)
            assert [record.value async for record in ns.scan()] == [Position("AIG", 3)]
            assert await amem.get("book", "AIG") == {"symbol": "AIG", "shares": 3}

    asyncio.run(scenario())


def test_compact_backup_and_stats(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with tiermem.open_async(tmp_path / "store") as amem:
            await amem.put_many(NS, [(f"k{n}", "x" * 1000) for n in range(300)])
            await amem.drop_namespace(NS)
            await amem.put(NS, "kept", 1)
            await amem.compact()
            copy = await amem.backup(tmp_path / "copy")
            assert (await amem.stats()).namespaces == {NS: 1}
        async with tiermem.open_async(copy) as other:
            assert await other.get(NS, "kept") == 1

    asyncio.run(scenario())


# -------------------------------------------------------------------------------------------------------------- hits


def test_a_hit_needs_no_thread_and_a_miss_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with tiermem.open_async(tmp_path) as amem:
            await amem.put_many(NS, [("free", {"n": 1}), ("cold", 3)])
            await amem.put(NS, "timed", 2, ttl=3600.0)
            ns = amem.namespace(NS)
            for key in ("free", "timed"):
                await amem.get(NS, key)

            def refuse(self: object, *args: object) -> None:
                raise AssertionError("a thread was asked for")

            with monkeypatch.context() as patch:
                patch.setattr(streams.Threads, "submit", refuse)
                assert await amem.get(NS, "free") == {"n": 1}
                assert await amem.get(NS, "timed") == 2
                assert await ns.get("timed") == 2
                assert await amem.peek(NS, "free") == {"n": 1}
                assert await amem.peek(NS, "cold", "absent") == "absent"
                own = await amem.get(NS, "free", copy=True)
                own["n"] = 9
                assert await amem.get(NS, "free") == {"n": 1}
                with pytest.raises(AssertionError, match="thread"):
                    await amem.get(NS, "cold")
            assert await amem.get(NS, "cold") == 3

    asyncio.run(scenario())


def test_where_a_get_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    get = Memory.get

    def watched(self: Memory, *args: Any, **options: Any) -> Any:
        threads.append(threading.get_ident())
        return get(self, *args, **options)

    monkeypatch.setattr(Memory, "get", watched)

    async def scenario() -> None:
        async with tiermem.open_async(tmp_path) as amem:
            await amem.put(NS, "k", 1)
            for _ in range(2):
                assert await amem.get(NS, "k") == 1

    asyncio.run(scenario())
    missed, hit = threads
    assert missed != threading.get_ident()
    assert hit == threading.get_ident()


def test_an_expired_entry_is_no_hit(tmp_path: Path) -> None:
    clock = tiermem.SimulatedClock(100.0)

    async def scenario() -> None:
        async with tiermem.open_async(tmp_path, clock=clock) as amem:
            await amem.put(NS, "k", 1, ttl=10.0)
            assert await amem.get(NS, "k") == 1
            assert amem.clock is clock
            assert amem.embedder is None
            clock.advance(10.0)
            assert await amem.get(NS, "k") is None
            assert await amem.peek(NS, "k", "gone") == "gone"

    asyncio.run(scenario())


@pytest.mark.parametrize("key", ["", 3, [], "x" * 481])
def test_what_is_no_key_is_refused(tmp_path: Path, key: Any) -> None:
    async def scenario() -> None:
        async with tiermem.open_async(tmp_path) as amem:
            with pytest.raises(tiermem.InvalidKey):
                await amem.get(NS, key)

    asyncio.run(scenario())


# ------------------------------------------------------------------------------------------------------ concurrency


def test_many_calls_at_a_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with tiermem.open_async(tmp_path) as amem:
            versions = await asyncio.gather(*(amem.put(NS, f"k{n}", n) for n in range(300)))
            assert len(set(versions)) == 300
            assert await asyncio.gather(*(amem.get(NS, f"k{n}") for n in range(300))) == list(range(300))

            async def raise_it(n: int) -> None:
                while True:
                    record = await amem.get_record(NS, "counter")
                    before, version = (record.value, record.version) if record else (0, 0)
                    try:
                        await amem.put(NS, "counter", before + 1, if_version=version)
                        return
                    except tiermem.VersionConflict:
                        continue

            await asyncio.gather(*(raise_it(n) for n in range(12)))
            assert await amem.get(NS, "counter") == 12

    asyncio.run(scenario())


def test_those_who_wait_do_not_hold_up_those_who_work(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with tiermem.open_async(tmp_path) as amem:
            await amem.put(NS, "before", 0)
            await amem.flush()
            last = (await amem.stats()).log.last
            waiting = [asyncio.create_task(anext(amem.changes(last, wait=60.0))) for _ in range(3 * streams.THREADS)]
            await asyncio.sleep(0.05)
            await amem.put(NS, "k", 1)
            changes = await asyncio.gather(*waiting)
            assert {change.key for change in changes} == {"k"}

    asyncio.run(scenario())


# ------------------------------------------------------------------------------------------------------ cancellation


async def cancelled(awaitable: Awaitable[Any]) -> None:
    """Start `awaitable`, and cancel it once it stands still."""
    task = asyncio.ensure_future(awaitable)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_put_cancelled_before_it_began_never_happens(tmp_path: Path) -> None:
    async def scenario() -> None:
        gate = Gate()
        async with tiermem.open_async(tmp_path, embedder=gate) as amem:
            async with all_threads_busy(amem, gate):
                await cancelled(amem.put(NS, "k", 1))
                await cancelled(amem.namespace(NS).put("k", 1))
            assert await amem.count("gate") == streams.THREADS
            assert await amem.get(NS, "k") is None
            assert [change.namespace async for change in amem.changes(0)] == ["gate"] * streams.THREADS

    asyncio.run(scenario())


def test_a_put_cancelled_after_it_began_happens_whole(tmp_path: Path) -> None:
    async def scenario() -> None:
        gate = Gate()
        async with tiermem.open_async(tmp_path, embedder=gate) as amem:
            put = asyncio.create_task(amem.put("gate", "k", {"n": 1}, text="x", metadata={"m": 2}))
            await asyncio.to_thread(gate.entered.acquire)
            put.cancel()
            with pytest.raises(asyncio.CancelledError):
                await put
            gate.open.set()
        with tiermem.open(tmp_path) as mem:
            record = mem.get_record("gate", "k")
            assert record is not None
            assert (record.value, record.metadata, record.vector is not None) == ({"n": 1}, {"m": 2}, True)
            assert mem.check().ok

    asyncio.run(scenario())


@pytest.mark.parametrize("seed", range(3))
def test_a_cancelled_batch_is_whole_or_absent(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)

    async def both(amem: tiermem.AsyncMemory, n: int) -> None:
        async with amem.batch() as batch:
            batch.put("left", f"k{n}", n)
            batch.put("right", f"k{n}", n, **({"if_version": 0} if n % 3 == 0 else {}))

    async def scenario() -> list[bool]:
        async with tiermem.open_async(tmp_path) as amem:
            tasks = [asyncio.create_task(both(amem, n)) for n in range(60)]
            for task in chance.sample(tasks, 40):
                await asyncio.sleep(chance.choice((0.0, 0.0002)))
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            return [result is None for result in results]

    acknowledged = asyncio.run(scenario())
    with tiermem.open(tmp_path) as mem:
        left, right = (set(mem.namespace(side)) for side in ("left", "right"))
        assert left == right
        assert {f"k{n}" for n, heard in enumerate(acknowledged) if heard} <= left
        assert mem.check().ok


def test_a_cancelled_scan_goes_on_where_it_was(tmp_path: Path) -> None:
    async def scenario() -> None:
        gate = Gate()
        async with tiermem.open_async(tmp_path, embedder=gate) as amem:
            await amem.put_many(NS, [(f"k{n:04}", n) for n in range(3 * streams.ROWS)])
            rows = amem.scan(NS)
            found = [(await anext(rows)).value for _ in range(streams.ROWS)]
            async with all_threads_busy(amem, gate):
                await cancelled(anext(rows))
                await cancelled(anext(rows))
            found += [row.value async for row in rows]
            assert found == list(range(3 * streams.ROWS))
            assert [row async for row in rows] == []

    asyncio.run(scenario())


def test_two_tasks_share_a_scan(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with tiermem.open_async(tmp_path) as amem:
            await amem.put_many(NS, [(f"k{n:04}", n) for n in range(1000)])
            rows = amem.scan(NS)

            async def take() -> list[int]:
                found = []
                async for row in rows:
                    found.append(row.value)
                    await asyncio.sleep(0)
                return found

            parts = await asyncio.gather(take(), take())
            assert sorted(parts[0] + parts[1]) == list(range(1000))

    asyncio.run(scenario())


# --------------------------------------------------------------------------------------------------------- iteration


def test_arguments_are_checked_when_given(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with tiermem.open_async(tmp_path) as amem:
            with pytest.raises(tiermem.FilterError):
                amem.scan(NS, where={"a": {"$nothing": 1}})
            with pytest.raises(tiermem.InvalidArgument):
                amem.changes(-1)
            with pytest.raises(tiermem.InvalidArgument):
                amem.changes(wait=-1.0)
            with pytest.raises(tiermem.InvalidNamespace):
                amem.namespace("a//b")

    asyncio.run(scenario())


def test_changes_from_now_end_and_go_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with tiermem.open_async(tmp_path) as amem:
            await amem.put(NS, "before", 0)
            feed = amem.changes()
            assert [change async for change in feed] == []
            await amem.put(NS, "after", 1)
            assert [change.key async for change in feed] == ["after"]

    asyncio.run(scenario())


def test_changes_of_one_namespace_end_while_others_are_written(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with tiermem.open_async(tmp_path) as amem:
            await amem.put(NS, "k", 1)
            feed = amem.changes(0, NS, wait=0.3)
            assert (await anext(feed)).key == "k"

            async def chatter() -> None:
                while True:
                    await amem.put("other", "k", 0)
                    await asyncio.sleep(0.02)

            noise = asyncio.create_task(chatter())
            assert [change async for change in feed] == []
            noise.cancel()
            with pytest.raises(asyncio.CancelledError):
                await noise

    asyncio.run(scenario())


def test_a_cancelled_feed_loses_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with tiermem.open_async(tmp_path) as amem:
            feed = amem.changes(0, wait=60.0)
            found = []
            for n in range(20):
                waiting = asyncio.create_task(anext(feed))
                await asyncio.sleep(0.001 * (n % 3))
                await amem.put(NS, f"k{n}", n)
                waiting.cancel()
                try:
                    found.append(await waiting)
                except asyncio.CancelledError:
                    found.append(await anext(feed))
            assert [change.key for change in found] == [f"k{n}" for n in range(20)]

    asyncio.run(scenario())


def test_a_trimmed_log_is_told(tmp_path: Path) -> None:
    config = tiermem.Config(cold=tiermem.ColdConfig(log_retention=0))

    async def scenario() -> None:
        async with tiermem.open_async(tmp_path, config=config) as amem:
            for part in range(5):
                await amem.put_many(NS, [(f"k{part}-{n}", n) for n in range(1000)])
                await amem.flush()
            await amem.compact()
            assert (await amem.stats()).log.first > 1
            with pytest.raises(tiermem.CursorExpired):
                await anext(amem.changes(0))

    asyncio.run(scenario())


def test_a_cursor_keeps_exactly_what_was_yielded(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with tiermem.open_async(tmp_path) as amem:
            await amem.put_many(NS, [(f"k{n}", n) for n in range(10)])
            cursor = await amem.cursor("reader", start=0)
            taken = [(await anext(cursor)).key for _ in range(4)]
            assert taken == [f"k{n}" for n in range(4)]
            assert cursor.position == 4
            assert await cursor.lag() == 6
            await cursor.commit()
            assert (await anext(cursor)).key == "k4"
        async with tiermem.open_async(tmp_path) as amem:
            cursor = await amem.cursor("reader")
            assert cursor.position == 4
            assert [change.key async for change in cursor] == [f"k{n}" for n in range(4, 10)]
            await cursor.commit()
            assert (await amem.stats()).log.cursors == {"reader": 0}
            await cursor.delete()
            assert (await amem.stats()).log.cursors == {}

    asyncio.run(scenario())


def test_a_cursor_of_one_namespace_lets_the_others_go(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with tiermem.open_async(tmp_path) as amem:
            cursor = await amem.cursor("reader", NS, start=0)
            await amem.put_many("other", [(f"k{n}", n) for n in range(5)])
            await amem.put(NS, "a", 1)
            await amem.put(NS, "b", 2)
            await amem.put_many("other", [(f"l{n}", n) for n in range(5)])
            assert (await anext(cursor)).key == "a"
            await cursor.commit()
            assert (await amem.stats()).log.cursors == {"reader": 6}
            assert [change.key async for change in cursor] == ["b"]
            assert await cursor.lag() == 0
            await cursor.commit()
            assert (await amem.stats()).log.cursors == {"reader": 0}
            await amem.put("other", "m", 1)
            assert [change.key async for change in cursor] == []
            await cursor.commit()
            assert (await amem.stats()).log.cursors == {"reader": 0}
            # What came before the commit, and was not yielded, stays to be yielded.
            await amem.put(NS, "c", 3)
            await cursor.commit()
            assert [change.key async for change in await amem.cursor("reader", NS)] == ["c"]

    asyncio.run(scenario())


def test_waiting_at_a_cursor(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with tiermem.open_async(tmp_path) as amem:
            cursor = await amem.cursor("reader")
            assert not await cursor.wait(0.05)
            waiting = asyncio.create_task(cursor.wait(60.0))
            await asyncio.sleep(0.05)
            await amem.put(NS, "k", 1)
            assert await waiting
            assert [change.key async for change in cursor] == ["k"]
            assert not await cursor.wait(0.0)

    asyncio.run(scenario())


# ----------------------------------------------------------------------------------------------------------- batches


def test_a_batch_happens_at_the_end_or_not_at_all(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with tiermem.open_async(tmp_path) as amem:
            async with amem.batch() as batch:
                batch.put(NS, "a", 1)
                key = batch.append("desk/ticks", 2)
                batch.delete(NS, "nothing")
                assert await amem.get(NS, "a") is None
            assert len(batch.versions) == 3
            assert await amem.get("desk/ticks", key) == 2

            async def interrupted() -> None:
                async with amem.batch() as batch:
                    batch.put(NS, "b", 1)
                    raise ZeroDivisionError

            async def conflicting() -> None:
                async with amem.batch(durable=True) as batch:
                    batch.put(NS, "b", 1)
                    batch.put(NS, "a", 2, if_version=0)

            with pytest.raises(ZeroDivisionError):
                await interrupted()
            with pytest.raises(tiermem.VersionConflict):
                await conflicting()
            assert await amem.get_many(NS, ["a", "b"]) == {"a": 1}

    asyncio.run(scenario())


# ----------------------------------------------------------------------------------------------- opening and closing


def test_opening_by_await_and_by_async_with(tmp_path: Path) -> None:
    async def scenario() -> None:
        amem = await tiermem.open_async(tmp_path)
        await amem.put(NS, "k", 1)
        assert str(tmp_path) in repr(amem)
        await amem.close()
        await amem.close()
        async with tiermem.open_async(tmp_path, read_only=False) as again, again as same:
            assert same is again
            assert await same.get(NS, "k") == 1

    asyncio.run(scenario())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tiermem-aio")]


def test_errors_of_opening_are_those_of_open(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    async def scenario() -> None:
        with pytest.raises(tiermem.IncompatibleFormatError):
            await tiermem.open_async(tmp_path / "file")
        with pytest.raises(tiermem.IncompatibleFormatError):
            async with tiermem.open_async(tmp_path / "nothing", read_only=True):
                pass

    asyncio.run(scenario())


def test_a_cancelled_opening_leaves_nothing_open(tmp_path: Path) -> None:
    tiermem.open(tmp_path).close()

    async def opened() -> None:
        async with tiermem.open_async(tmp_path, verify=True):
            pass

    async def scenario() -> None:
        await cancelled(opened())

    asyncio.run(scenario())
    # A handle left behind would refuse every other configuration for ever.
    config = tiermem.Config(cold=tiermem.ColdConfig(sync_interval=0.5))
    for attempt in range(200):
        try:
            tiermem.open(tmp_path, config=config).close()
            return
        except tiermem.ConfigMismatch:
            assert attempt < 199
            threading.Event().wait(0.05)


def test_close_waits_for_what_runs(tmp_path: Path) -> None:
    async def scenario() -> None:
        gate = Gate()
        amem = await tiermem.open_async(tmp_path, embedder=gate)
        put = asyncio.create_task(amem.put("gate", "k", 1, text="x"))
        await asyncio.to_thread(gate.entered.acquire)
        closing = [asyncio.create_task(amem.close()) for _ in range(2)]
        await asyncio.sleep(0.02)
        assert not any(task.done() for task in closing)
        with pytest.raises(tiermem.ClosedError):
            await amem.put(NS, "late", 1)
        gate.open.set()
        assert await put > 0
        await asyncio.gather(*closing)

    asyncio.run(scenario())
    with tiermem.open(tmp_path) as mem:
        assert mem.get("gate", "k") == 1
        assert mem.namespaces() == ["gate"]


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        amem = await tiermem.open_async(tmp_path)
        await amem.put(NS, "k", 1)
        assert await amem.get(NS, "k") == 1
        ns, rows, feed, batch = amem.namespace(NS), amem.scan(NS), amem.changes(0, wait=60.0), amem.batch()
        cursor = await amem.cursor("reader", start=0)
        assert (await anext(feed)).key == "k"
        waiting = asyncio.create_task(anext(feed))
        await asyncio.sleep(0.05)
        await amem.close()
        with pytest.raises(tiermem.ClosedError):
            await waiting
        calls: tuple[Callable[[], Awaitable[Any]], ...] = (
            lambda: amem.get(NS, "k"),
            lambda: amem.peek(NS, "k"),
            lambda: amem.put(NS, "k", 2),
            amem.stats,
            lambda: ns.get("k"),
            ns.count,
            lambda: anext(rows),
            lambda: anext(feed),
            lambda: anext(cursor),
            cursor.commit,
        )
        for call in calls:
            with pytest.raises(tiermem.ClosedError):
                await call()
        for make in (
            lambda: amem.scan(NS),
            amem.changes,
            amem.batch,
            lambda: amem.namespace(NS),
            ns.scan,
        ):
            with pytest.raises(tiermem.ClosedError):
                make()
        with pytest.raises(tiermem.ClosedError):
            async with batch as collecting:
                collecting.put(NS, "k", 3)

    asyncio.run(scenario())
