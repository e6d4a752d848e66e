"""One loop at one rate: operations on a schedule, with the backlog of the commit once a second."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from functools import partial
from itertools import count, cycle
from time import perf_counter, perf_counter_ns
from typing import Any, Final

from _workload import SEED, directory, disk_bytes, key_names, record

import tiermem
from latencybench.loops import NS, SECOND, Worker, gathered, percentiles, room, spin, turn, wait

HELD: Final = 100_000
"""Records that are overwritten and read in turns."""
WARM: Final = 5_000
THREADS: Final = 4
MOST: Final = 500_000
"""Operations a second that there is room for where they are made flat out."""
LEAD: Final = 200_000_000
"""Nanoseconds between the last preparation and the first operation."""

Tell = Callable[[str], None]
Spec = dict[str, Any]
Found = dict[str, Any]


def values() -> list[dict[str, Any]]:
    """A thousand records."""
    return [record(number) for number in range(1000)]


class Slot:
    """What takes the store's place to show what the loop itself costs: one slot of a dict."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    def put(self, namespace: str, _key: str, value: Any) -> None:
        self.kept[namespace] = value

    def get(self, namespace: str, _key: str) -> Any:
        return self.kept.get(namespace)

    async def aput(self, namespace: str, _key: str, value: Any) -> None:
        self.kept[namespace] = value

    async def aget(self, namespace: str, _key: str) -> Any:
        return self.kept.get(namespace)


def backlog(mem: tiermem.Memory, since: float, rows: list[list[float]]) -> None:
    """Note what is journaled and not yet committed, and how much has been committed."""
    writes = mem.stats().writes
    rows.append([perf_counter() - since, writes.pending, writes.pending_bytes, writes.committed, writes.commits])


def load(mem: tiermem.Memory, keys: list[str], made: list[Any]) -> None:
    """Store a record under every key, and see it committed."""
    for first in range(0, len(keys), 10_000):
        part = keys[first : first + 10_000]
        mem.put_many(NS, list(zip(part, cycle(made), strict=False)))
        mem.flush()


def ascending(worker: int, workers: int) -> Iterator[str]:
    """New keys in their order; workers take them in turns."""
    return map("order-{:010d}".format, count(WARM + worker, workers))


def cell(spec: Spec, tell: Tell) -> Found:
    """Operations of a `mix` in a `loop` at a `rate` (0: flat out) for `seconds`.

    "new": puts of new keys. "held": puts and gets in turns over records that L1 holds. "slot": puts into a dict.
    """
    loop, rate, seconds, mix = spec["loop"], spec["rate"], spec["seconds"], spec["mix"]
    workers = 1 if loop in {"spin", "wait"} else THREADS
    made = values()
    slot = Slot()
    with ExitStack() as stack:
        root = stack.enter_context(directory())
        mem = None if mix == "slot" else stack.enter_context(tiermem.open(root / "store"))
        held = key_names(min(HELD, spec["records"]))
        if mem is not None:
            for number in range(WARM):
                mem.put(NS, f"order-{number:010d}", made[number % len(made)])
            if mix == "held":
                load(mem, held, made)
                for _ in range(4):
                    for key in held:
                        mem.get(NS, key)
            mem.flush()
        chooser = random.Random(SEED)
        rows: list[list[float]] = []
        crew = []
        size = int((rate or MOST) * seconds / workers) + 1
        for number in range(workers):
            service = room(size)
            keys = cycle(chooser.choices(held, k=50_000)) if mix == "held" else ascending(number, workers)
            probe = None if mem is None or number else partial(backlog, mem, perf_counter(), rows)
            crew.append(
                Worker(
                    put=slot.put if mem is None else mem.put,
                    get=slot.get if mem is None else mem.get,
                    keys=keys,
                    values=cycle(made),
                    odd=int(mix == "held"),
                    service=service,
                    late=room(size) if rate else service,
                    period=workers * SECOND // rate if rate else 0,
                    probe=probe,
                )
            )
        gc.collect()
        if mem is not None:
            backlog(mem, perf_counter(), rows)
        tell("go")
        start = perf_counter_ns() + LEAD
        for number, worker in enumerate(crew):
            worker.begin(start, start + int(seconds * SECOND), number * worker.period // workers)
            if worker.probe is not None:
                worker.probe = partial(backlog, mem, perf_counter() + LEAD / SECOND, rows)
        RUNS[loop](crew, root / "store", slot if mem is None else None, start)
        elapsed = (max(worker.ended for worker in crew) - start) / SECOND
        found: Found = {**spec, "elapsed": elapsed, "done": sum(worker.done for worker in crew)}
        if mem is not None:
            backlog(mem, perf_counter() - elapsed, rows)
        tell("done")
        if mem is not None:
            begun = perf_counter()
            mem.flush()
            found |= {"flush_seconds": perf_counter() - begun, "backlog": rows}
            stats = mem.stats()
            assert not stats.degraded, stats.degraded
            assert stats.writes.pending == 0, stats.writes
            found |= {"disk_bytes": disk_bytes(root), "superseded": stats.writes.superseded}
    found["paused"] = max(worker.paused for worker in crew) / SECOND
    found["room_bytes"] = sum(8 * len(one.service) * (1 if one.late is one.service else 2) for one in crew)
    for of, verb in enumerate(("put", "get")[: 1 + crew[0].odd]):
        found[verb] = {
            "service": percentiles(gathered(crew, "service", of)),
            "due": percentiles(gathered(crew, "late", of)) if rate else None,
        }
    return found


def here(body: Callable[[Worker], None], crew: list[Worker], _path: Any, _slot: Any, start: int) -> None:
    """The loop in this thread."""
    until(start)
    body(crew[0])


def until(start: int) -> None:
    threading.Event().wait(max(0.0, (start - perf_counter_ns()) / SECOND))


def in_threads(crew: list[Worker], _path: Any, _slot: Any, start: int) -> None:
    """A thread for each worker: they wait for what is due in `select`; flat out they never wait."""

    def body(worker: Worker) -> None:
        until(start)
        (wait if worker.period else spin)(worker)

    threads = [threading.Thread(target=body, args=(worker,)) for worker in crew]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def in_tasks(crew: list[Worker], path: Any, slot: Slot | None, start: int) -> None:
    """A task for each worker in one event loop; the verbs of the async face are awaited."""

    async def body() -> None:
        async with nullcontext() if slot else tiermem.open_async(path) as amem:
            for worker in crew:
                worker.put = slot.aput if slot else amem.put
                worker.get = slot.aget if slot else amem.get
            await asyncio.sleep(max(0.0, (start - perf_counter_ns()) / SECOND))
            await asyncio.gather(*map(turn, crew))

    asyncio.run(body())


RUNS: Final[dict[str, Callable[[list[Worker], Any, Slot | None, int], None]]] = {
    "spin": partial(here, spin),
    "wait": partial(here, wait),
    "threads": in_threads,
    "asyncio": in_tasks,
}


def overwrites(spec: Spec, tell: Tell) -> Found:
    """Puts of keys that a large store holds already, chosen at random, flat out."""
    made, keys = values(), key_names(spec["records"])
    chosen = array("l", random.Random(SEED).choices(range(len(keys)), k=2_000_000))
    rows: list[list[float]] = []
    with directory() as root, tiermem.open(root / "store") as mem:
        begun = perf_counter()
        load(mem, keys, made)
        loading = perf_counter() - begun
        tell("loaded")
        size = int(MOST * spec["seconds"])
        service = room(size)
        order = map(keys.__getitem__, cycle(chosen))
        worker = Worker(mem.put, mem.get, order, cycle(made), 0, service, service, 0, None)
        gc.collect()
        tell("go")
        since = perf_counter()
        backlog(mem, since, rows)
        worker.probe = partial(backlog, mem, since, rows)
        start = perf_counter_ns()
        worker.begin(start, start + int(spec["seconds"] * SECOND), 0)
        spin(worker)
        backlog(mem, since, rows)
        tell("done")
        begun = perf_counter()
        mem.flush()
        flushing = perf_counter() - begun
        assert mem.count(NS) == len(keys)
        return {
            **spec,
            "elapsed": (worker.ended - start) / SECOND,
            "done": worker.done,
            "loading_seconds": loading,
            "flush_seconds": flushing,
            "backlog": rows,
            "disk_bytes": disk_bytes(root),
            "room_bytes": 8 * size,
            "put": {"service": percentiles(gathered([worker], "service", 0)), "due": None},
        }
