"""The loops that operations are made in, and the times they note: nothing is allocated for a call."""

from __future__ import annotations

import asyncio
import os
import select
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

SECOND: Final = 10**9
NS: Final = "desk/orders"
SHARES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "p99.99": 0.9999, "p99.999": 0.99999}


def room(count: int) -> array[int]:
    """Room for so many times, every page of it in memory."""
    return array("q", bytes(8 * count))


def percentiles(times: array[int] | NDArray[np.int64]) -> dict[str, float | None]:
    """Nearest-rank percentiles in nanoseconds; None where fewer than five samples lie above."""
    ordered = np.sort(np.asarray(times))
    count = len(ordered)
    found: dict[str, float | None] = {"count": count}
    for name, share in SHARES.items():
        few = count == 0 or (share > 0.5 and count * (1 - share) < 4.999)
        found[name] = None if few else float(ordered[min(count - 1, int(share * count))])
    found["max"] = float(ordered[-1]) if count else None
    return found


@dataclass
class Worker:
    """One thread or task, its schedule, and the times of its operations.

    An operation is due every `period` nanoseconds from `due` on; with 0, as soon as the one before has ended. With
    `odd` = 1 every second one is a get. `service` is the time of the call, `late` the time from when it was due to
    its end; flat out the two are one array, as nothing is due. `probe` is called once a second, and the schedule
    stands still meanwhile.
    """

    put: Callable[..., Any]
    get: Callable[..., Any]
    keys: Iterator[str]
    values: Iterator[Any]
    odd: int
    service: array[int]
    late: array[int]
    period: int
    probe: Callable[[], None] | None
    due: int = 0
    stop: int = 0
    done: int = 0
    ended: int = 0
    paused: int = 0

    def begin(self, start: int, stop: int, offset: int) -> None:
        """Everything is due from `start` + `offset` on, and nothing is begun at or after `stop`."""
        self.due = start + offset if self.period else 0
        self.stop = stop

    def first_event(self) -> int:
        """When a loop must look up first."""
        return min(self.stop, perf_counter_ns() + SECOND) if self.probe else self.stop

    def event(self, now: int) -> int:
        """Look up: the time of the next look, 0 if it is time to end."""
        if now >= self.stop:
            return 0
        assert self.probe is not None
        self.probe()
        spent = perf_counter_ns() - now
        self.paused += spent
        self.due += spent if self.period else 0
        return min(self.stop, now + spent + SECOND)


def spin(worker: Worker) -> None:
    """Reads the clock until the next is due, as a loop of pure Python that never waits does."""
    clock, put, get, odd = perf_counter_ns, worker.put, worker.get, worker.odd
    service, late, period = worker.service, worker.late, worker.period
    event, done, end = worker.first_event(), 0, 0
    for done, key, value in zip(range(len(service)), worker.keys, worker.values, strict=False):
        due = worker.due
        start = clock()
        while start < due:
            start = clock()
        if done & odd:
            get(NS, key)
        else:
            put(NS, key, value)
        end = clock()
        late[done] = end - due
        service[done] = end - start
        worker.due = due + period
        if end >= event:
            event = worker.event(end)
            if not event:
                break
    worker.done, worker.ended = done + 1, end


def wait(worker: Worker) -> None:
    """Waits in `select` on a pipe until the next is due; if it is overdue, asks once without waiting."""
    clock, put, get, odd = perf_counter_ns, worker.put, worker.get, worker.odd
    service, late, period = worker.service, worker.late, worker.period
    ready = select.select
    reading, writing = os.pipe()
    watched, nothing = [reading], []
    event, done, end = worker.first_event(), 0, 0
    for done, key, value in zip(range(len(service)), worker.keys, worker.values, strict=False):
        due = worker.due
        left = due - clock()
        ready(watched, nothing, nothing, left / 1e9 if left > 0 else 0)
        start = clock()
        if done & odd:
            get(NS, key)
        else:
            put(NS, key, value)
        end = clock()
        late[done] = end - due
        service[done] = end - start
        worker.due = due + period
        if end >= event:
            event = worker.event(end)
            if not event:
                break
    worker.done, worker.ended = done + 1, end
    os.close(reading)
    os.close(writing)


async def turn(worker: Worker) -> None:
    """Sleeps in the event loop until the next is due; if it is overdue, lets others go first."""
    clock, put, get, odd = perf_counter_ns, worker.put, worker.get, worker.odd
    service, late, period = worker.service, worker.late, worker.period
    sleep = asyncio.sleep
    event, done, end = worker.first_event(), 0, 0
    for done, key, value in zip(range(len(service)), worker.keys, worker.values, strict=False):
        due = worker.due
        left = due - clock()
        await sleep(left / 1e9 if left > 0 else 0)
        start = clock()
        if done & odd:
            await get(NS, key)
        else:
            await put(NS, key, value)
        end = clock()
        late[done] = end - due
        service[done] = end - start
        worker.due = due + period
        if end >= event:
            event = worker.event(end)
            if not event:
                break
    worker.done, worker.ended = done + 1, end


def gathered(workers: Sequence[Worker], kind: str, of: int) -> NDArray[np.int64]:
    """The times of all puts (`of` = 0) or gets (1)."""
    parts = [np.asarray(getattr(one, kind), dtype=np.int64)[: one.done] for one in workers]
    if workers[0].odd:
        parts = [part[of::2] for part in parts]
    return np.concatenate(parts)
