"""Measurements that are no loop on a schedule: durable puts, start-up, looking up positions."""

from __future__ import annotations

import gc
import multiprocessing
import random
import shutil
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter_ns, sleep
from typing import Any, Final

import msgspec
import numpy as np
from _workload import SEED, compiling, directory, key_names

import tiermem
from latencybench.cells import Found, Spec, Tell, values
from latencybench.loops import NS, SECOND, percentiles, room

BATCH: Final = 1_000
SINGLE_EVERY: Final = 47
"""Lookups are timed one by one in one batch of so many; prime, so that every key has its turn."""
POSITIONS: Final = "desk/positions"
MOST_SYNCED: Final = 20_000
"""Durable puts a second that there is room for, in each thread."""


def durable(spec: Spec, tell: Tell) -> Found:
    """`put(durable=True)` of new keys, flat out, by a number of threads."""
    made = values()
    count = spec["threads"]
    times = [room(int(MOST_SYNCED * spec["seconds"])) for _ in range(count)]
    done = [0] * count
    with directory() as root, tiermem.open(root / "store") as mem:
        for number in range(20):
            mem.put(NS, f"warm-{number}", made[number], durable=True)
        stop = 0
        barrier = threading.Barrier(count + 1)

        def body(place: int) -> None:
            clock, spent, number = perf_counter_ns, times[place], 0
            barrier.wait()
            while number < len(spent):
                start = clock()
                if start >= stop:
                    break
                mem.put(NS, f"order-{place:02d}-{number:08d}", made[number % len(made)], durable=True)
                spent[number] = clock() - start
                number += 1
            done[place] = number

        threads = [threading.Thread(target=body, args=(place,)) for place in range(count)]
        for thread in threads:
            thread.start()
        before = mem.stats().writes.commits
        tell("go")
        begun = perf_counter_ns()
        stop = begun + int(spec["seconds"] * SECOND)
        barrier.wait()
        for thread in threads:
            thread.join()
        elapsed = (perf_counter_ns() - begun) / SECOND
        tell("done")
        commits = mem.stats().writes.commits - before
    together = np.concatenate([np.asarray(one)[:number] for one, number in zip(times, done, strict=True)])
    total = sum(done)
    return {**spec, "elapsed": elapsed, "done": total, "commits": commits, "put": percentiles(together)}


LEAVE = "import os\nos._exit(0)\n"
PHASES = """
import sys
from time import perf_counter_ns as clock
marks = [clock()]
import tiermem
marks.append(clock())
mem = tiermem.open(sys.argv[1])
marks.append(clock())
mem.put("desk/quotes", "AIG", {"px": 48.21})
marks.append(clock())
assert mem.get("desk/quotes", "AIG") == {"px": 48.21}
marks.append(clock())
"""
TOLD = 'print(*marks, flush=True)\n{"numpy", "faiss"} & set(sys.modules) and print("heavy", flush=True)\n'
CLOSED = "mem.close()\nmarks.append(clock())\n"
STARTS: Final[dict[str, tuple[str, str]]] = {
    "bare": ("pass\n", ""),
    "bare, leaving at once": (LEAVE, ""),
    "import": ("import tiermem\n", ""),
    "import, open, put, get, leaving at once": (PHASES + TOLD + LEAVE, "old"),
    "import, open, put, get, close": (PHASES + CLOSED + TOLD, "old"),
    "the same, a new store": (PHASES + CLOSED + TOLD, "new"),
}


def starts(spec: Spec, tell: Tell) -> Found:
    """Whole lives of interpreters in turns, and what their steps take by their own clocks."""
    walls: dict[str, list[int]] = {name: [] for name in STARTS}
    steps: dict[str, list[list[int]]] = {name: [] for name in STARTS}
    heavy = False
    with directory() as root:
        with tiermem.open(root / "old") as mem:
            mem.put_many("desk/quotes", [(key, {"px": 48.21}) for key in key_names(1000)])
        for number in range(-1, spec["turns"]):
            for name, (code, store) in STARTS.items():
                command = [sys.executable, "-c", code, str(root / store)]
                begun = perf_counter_ns()
                done = subprocess.run(command, check=True, cwd=root, capture_output=True, text=True, env=compiling())
                spent = perf_counter_ns() - begun
                heavy = heavy or "heavy" in done.stdout
                # The first turn compiles, and warms the page cache.
                if number >= 0:
                    walls[name].append(spent)
                    marks = [int(mark) for mark in done.stdout.split() if mark.isdigit()]
                    if marks:
                        steps[name].append([after - before for before, after in pairwise(marks)])
                if "leaving" in name and store:
                    # What was left in the journal is no burden of the next one.
                    tiermem.open(root / "old").close()
                shutil.rmtree(root / "new", ignore_errors=True)
            tell("turn")
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in steps.items() if rows
    }
    return {**spec, "walls": walls, "steps": medians, "heavy": heavy}


class Position(msgspec.Struct):
    """What a loop looks up."""

    symbol: str
    quantity: int
    price: float
    currency: str
    revision: int


def writing(path: str, keys: list[str], rate: int, connection: Connection) -> None:
    """Another process: updates on a schedule until told to end; sends the last revision of each key."""
    chooser = random.Random(SEED)
    last: dict[str, int] = {}
    done, late = 0, 0
    with tiermem.open(Path(path)) as mem:
        mem.get(POSITIONS, keys[0])
        connection.send("ready")
        start = perf_counter_ns()
        while not connection.poll():
            due = start + done * SECOND // rate
            left = due - perf_counter_ns()
            if left > 0:
                sleep(left / SECOND)
            done += 1
            key = chooser.choice(keys)
            last[key] = done
            mem.put(POSITIONS, key, Position(key, done, 48.0 + done % 100, "USD", done))
            late = max(late, perf_counter_ns() - due)
        elapsed = (perf_counter_ns() - start) / SECOND
        mem.flush()
    connection.send((last, done, elapsed, late))


def positions(spec: Spec, tell: Tell) -> Found:
    """`ns[key]` on positions that another process updates: means of batches, and single calls."""
    keys = [f"XNYS:{number:05d}" for number in range(spec["instruments"])]
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with directory() as root, tiermem.open(root / "store") as mem:
        mem.put_many(POSITIONS, [(key, Position(key, 100, 48.0, "USD", 0)) for key in keys])
        mem.flush()
        ns = mem.namespace(POSITIONS, type=Position)
        shuffled = random.Random(SEED).sample(keys, len(keys))
        orders = [shuffled[first : first + BATCH] for first in range(0, len(keys), BATCH)]
        orders = [order for order in orders if len(order) == BATCH]
        for _ in range(6):
            for key in keys:
                assert type(ns[key]) is Position
        writer = context.Process(target=writing, args=(str(root / "store"), keys, spec["updates"], theirs))
        writer.start()
        assert ours.recv() == "ready"
        empty = cost_of_the_clock()
        loop = min(timed_batch(order) for order in orders for _ in range(100)) / BATCH
        batches, refreshes = room(int(40_000 * spec["seconds"])), room(int(40_000 * spec["seconds"]))
        singles = room(int(200_000 * spec["seconds"]))
        before = mem.stats().hot.misses
        gc.collect()
        assert gc.isenabled()
        tell("go")
        begun = perf_counter_ns()
        made, single = look(ns.get, ns, orders, (batches, refreshes, singles), begun + int(spec["seconds"] * SECOND))
        elapsed = (perf_counter_ns() - begun) / SECOND
        tell("done")
        reread = mem.stats().hot.misses - before
        ours.send("end")
        last, written, wrote_for, late = ours.recv()
        writer.join()
        ns.get(keys[0])
        wrong = [key for key in keys if ns[key].revision != last.get(key, 0)]
        assert not wrong, f"{len(wrong)} positions are out of date"
    return {
        **spec,
        "elapsed": elapsed,
        "batches": percentiles(np.asarray(batches)[:made] / BATCH),
        "refreshes": percentiles(np.asarray(refreshes)[:made]),
        "singles": percentiles(np.asarray(singles)[:single] - empty),
        "clock": empty,
        "loop": loop,
        "reread": reread,
        "written": written,
        "updates_per_second": written / wrote_for,
        "latest_update": late,
    }


def look(
    refresh: Callable[[str], Any], ns: Any, orders: list[list[str]], rooms: tuple[Any, Any, Any], stop: int
) -> tuple[int, int]:
    """Batch after batch until `stop`: a call that takes in what others wrote, then lookups; how many of both kinds."""
    clock = perf_counter_ns
    batches, refreshes, singles = rooms
    made = single = at = turn = 0
    end = clock()
    while end < stop and made < len(batches):
        order = orders[at]
        at = at + 1 if at + 1 < len(orders) else 0
        turn += 1
        start = clock()
        refresh(order[0])
        middle = clock()
        if turn % SINGLE_EVERY == 0 and single + BATCH <= len(singles):
            for key in order:
                begun = clock()
                ns[key]
                singles[single] = clock() - begun
                single += 1
            end = clock()
            continue
        for key in order:
            ns[key]
        end = clock()
        refreshes[made] = middle - start
        batches[made] = end - middle
        made += 1
    return made, single


def cost_of_the_clock() -> float:
    """Median nanoseconds between two readings with nothing between them."""
    clock = perf_counter_ns
    spent = room(100_000)
    for place in range(len(spent)):
        begun = clock()
        spent[place] = clock() - begun
    return statistics.median(spent)


def timed_batch(order: list[str]) -> int:
    """Nanoseconds of the loop of a batch alone."""
    start = perf_counter_ns()
    for _ in order:
        pass
    return perf_counter_ns() - start
