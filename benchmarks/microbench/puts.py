"""Writes: each put timed, and puts flat out."""

from __future__ import annotations

import gc
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from typing import Any, Final

from _workload import Series, directory, key_names, record, settle

import tiermem
from microbench.rivals import STORES, stores
from microbench.scale import Scale
from microbench.subject import NS, Measured, Report, Store, pieces

Put = Callable[[str, Any], object]

NEW: Final = "`mem.put`, new keys"
HOT: Final = "`mem.put`, overwriting hot keys"
MANY: Final = "`mem.put_many` of 1000, each"
DURABLE: Final = "`mem.put(durable=True)`"
FLAT: Final = "`mem.put`"
FLUSHED: Final = "`mem.put`, until `flush` has returned"
KEPT: Final = [rival.kept for rival in STORES if rival.kept]
SYNCED: Final = [rival.synced for rival in STORES if rival.synced]

PIECE: Final = 500
"""Puts between two looks at the clock."""
FASTEST: Final = 400_000
"""Puts a second that there are keys for."""


def timed(write: Put, items: Sequence[tuple[str, Any]]) -> list[float]:
    """Nanoseconds of each write; reading the clock is in them, some 50 ns."""
    clock = time.perf_counter_ns
    spent = array("Q")
    for key, value in items:
        start = clock()
        write(key, value)
        spent.append(clock() - start)
    return [float(one) for one in spent]


@contextmanager
def opened(*, sync: bool) -> Iterator[list[Store]]:
    """The rivals that are there and are measured with such puts, each empty and in a directory of its own."""
    with ExitStack() as stack:
        found = []
        for rival in stores():
            if rival.synced if sync else rival.kept:
                found.append(rival(stack.enter_context(directory()), sync=sync))
                stack.callback(found[-1].close)
        yield found


def puts(scale: Scale, report: Report) -> Measured:
    """Writes one at a time; between two subjects the threads of this process come to rest."""
    records = [record(number) for number in range(scale.puts)]
    hot = key_names(scale.puts // 2)
    turns: dict[str, list[list[float]]] = {}
    accepted = committed = 0.0
    with ExitStack() as stack:
        mem = stack.enter_context(tiermem.open(stack.enter_context(directory()) / "store"))

        def put_many(prefix: str, values: Sequence[Any]) -> None:
            mem.put_many("desk/bulk", [(f"{prefix}-{number}", value) for number, value in enumerate(values)])

        mem.put_many("desk/hot", [(key, record(number)) for number, key in enumerate(hot)])
        for _ in range(4):
            for key in hot:
                mem.get("desk/hot", key)
        subjects: dict[str, tuple[Put, int]] = {
            NEW: (partial(mem.put, NS), scale.puts),
            HOT: (partial(mem.put, "desk/hot"), scale.puts),
            MANY: (put_many, 20),
            DURABLE: (partial(mem.put, "desk/durable", durable=True), scale.synced),
        }
        for other in stack.enter_context(opened(sync=True)):
            subjects[other.synced] = (other.put, scale.synced)
        for other in stack.enter_context(opened(sync=False)):
            subjects[other.kept] = (other.put, scale.sets if other.slow else scale.puts)
        report((scale.turns + 1) * len(subjects))
        # The turn before the first warms everything up and is not counted.
        for turn in range(-1, scale.turns):
            for name, (write, calls) in subjects.items():
                keys: Iterable[str] = (f"order-{turn + 1:03d}-{number:08d}" for number in range(calls))
                if name == HOT:
                    keys = (hot[number * 7919 % len(hot)] for number in range(calls))
                many = name == MANY
                items = [(key, records[:1000] if many else records[number]) for number, key in enumerate(keys)]
                settle()
                start = time.perf_counter()
                spent = timed(write, items)
                middle = time.perf_counter()
                mem.flush()
                if turn >= 0:
                    turns.setdefault(name, []).append([one / len(records[:1000]) for one in spent] if many else spent)
                    if name == NEW:
                        accepted += middle - start
                        committed += time.perf_counter() - start
                report(name.replace("`", ""))
        stats = mem.stats()
        assert not stats.degraded, stats.degraded
        facts = {
            "accepted_per_second": scale.turns * scale.puts / accepted,
            "committed_per_second": scale.turns * scale.puts / committed,
            "committer": stats.writes.committer,
        }
    return Measured({name: Series(name, found) for name, found in turns.items()}, facts)


def put_for(seconds: float, put: Put, keys: Iterable[Sequence[str]], values: Sequence[Any]) -> int:
    """How many puts of new keys were made until the time was over; `values` has one for each key of a piece."""
    clock = time.perf_counter
    end = clock() + seconds
    done = 0
    for piece in keys:
        for key, value in zip(piece, values, strict=True):
            put(key, value)
        done += len(piece)
        if clock() >= end:
            break
    return done


def flat(scale: Scale, report: Report) -> Measured:
    """Puts of new keys as fast as they go, a sample a turn; no clock is read around a put."""
    values = [record(number) for number in range(PIECE)]
    numbers = count()
    turns: dict[str, list[list[float]]] = {}
    calls: dict[str, int] = {}
    with directory() as root, tiermem.open(root / "store") as mem, opened(sync=False) as rivals:
        subjects: dict[str, Put] = {FLAT: partial(mem.put, NS)} | {other.kept: other.put for other in rivals}
        report((scale.turns + 1) * len(subjects))
        for turn in range(-1, scale.turns):
            for name, put in subjects.items():
                prefix = next(numbers)
                room = max(PIECE, round(scale.flat_seconds * FASTEST / PIECE) * PIECE)
                keys = pieces([f"order-{prefix:04d}-{number:08d}" for number in range(room)], PIECE)
                gc.collect()
                settle()
                start = time.perf_counter_ns()
                done = put_for(scale.flat_seconds, put, keys, values)
                spent = time.perf_counter_ns() - start
                mem.flush()
                flushed = time.perf_counter_ns() - start
                # The turn before the first warms everything up and is not counted.
                if turn >= 0:
                    turns.setdefault(name, []).append([spent / done])
                    calls[name] = calls.get(name, 0) + done
                    if name == FLAT:
                        turns.setdefault(FLUSHED, []).append([flushed / done])
                report(name.replace("`", ""))
        stats = mem.stats()
        assert not stats.degraded, stats.degraded
        facts = {
            "seconds": scale.flat_seconds,
            "calls": calls,
            "committer": stats.writes.committer,
        }
    return Measured({name: Series(name, found) for name, found in turns.items()}, facts)
