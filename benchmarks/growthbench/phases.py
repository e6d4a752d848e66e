"""One measurement in a fresh process: a specification on standard input, messages as JSON lines to a pipe."""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from _workload import HOT_ROUND, SEED, K, disk_bytes, percentile, record, settle, tick
from vectorbench.data import CHUNK, FloatArray, synthetic
from vectorbench.measure import forget, grown, memory

import tiermem

Spec = dict[str, Any]
Found = dict[str, Any]
Step = Callable[[str], object]
"""Called with a word on what has just been done."""

NS = "desk/orders"
POOL = 10_000
VALUE_BYTES = 200
DIMENSION = 64
GETS = 10_000
PUTS = 5_000
HOT = 10_000
HOT_ROUNDS = 20
SCANNED = 1_000
LATEST = 100
CALLS = 50
SEARCHES = 500
WARM = 100
EXACT = 30
SECONDS = 3.0
"""After so long no further call of a series is made, however few there were."""
_QUERIES, _WARM = 1, 2


def key_of(number: int) -> str:
    """The key of a record; keys are put in their order."""
    return f"instrument-{number:08d}"


def some(rows: int, count: int, salt: str) -> list[int]:
    """Numbers of records, each at most once while there are enough."""
    choose = random.Random(f"{SEED} {salt}")
    return choose.sample(range(rows), count) if count <= rows else choose.choices(range(rows), k=count)


def pool() -> list[dict[str, Any]]:
    """Values of VALUE_BYTES bytes of MessagePack, or a few less."""
    made = [record(number) for number in range(POOL)]
    over = len(msgspec.msgpack.encode(made[0])) - VALUE_BYTES
    return [fields | {"note": fields["note"][:-over]} for fields in made]


def narrow(matrix: FloatArray) -> FloatArray:
    """The first DIMENSION numbers of each row, divided by their length."""
    cut = matrix[:, :DIMENSION]
    return np.ascontiguousarray(cut / np.linalg.norm(cut, axis=1, keepdims=True), np.float32)


def times(calls: Iterable[Callable[[], object]]) -> list[float]:
    """Nanoseconds of each call, for SECONDS; reading the clock is in them, some 50 ns."""
    clock = time.perf_counter_ns
    spent = array("Q")
    end = clock() + int(SECONDS * 1e9)
    for call in calls:
        start = clock()
        call()
        now = clock()
        spent.append(now - start)
        if now > end:
            break
    return [float(one) for one in spent]


def summary(spent: Sequence[float]) -> Found:
    """Percentiles in seconds; None where too few samples lie above."""
    shares = (("p50", 0.5), ("p95", 0.95))
    found = {name: percentile(spent, share) for name, share in shares}
    return {name: None if value is None else value / 1e9 for name, value in found.items()} | {"count": len(spent)}


def opened(spec: Spec, config: tiermem.Config | None = None) -> tiermem.Memory:
    return tiermem.open(spec["store"], config=config)


def stored_bytes(root: Path) -> int:
    """What the files of a store take, less the journals, whose size is fixed."""
    return disk_bytes(root) - disk_bytes(root / "journals")


# ------------------------------------------------------------------------------------------------------------ phases


def load(spec: Spec, step: Step) -> Found:
    """A new store filled: with `put_many`, or a stream with `append`; the clock runs until all is committed."""
    rows, kind = spec["rows"], spec["kind"]
    values = pool() if kind != "stream" else []
    before = memory()
    making = 0.0
    with opened(spec) as mem:
        draws = synthetic(rows)
        start = time.perf_counter()
        for first in range(0, rows, CHUNK):
            numbers = range(first, min(first + CHUNK, rows))
            if kind == "stream":
                for number in numbers:
                    mem.append(NS, tick(number))
            else:
                begun = time.perf_counter()
                keys = [key_of(number) for number in numbers]
                items = [values[number % POOL] | {"order": number} for number in numbers]
                vectors = narrow(next(draws)) if kind == "vectors" else None
                making += time.perf_counter() - begun
                mem.put_many(NS, keys=keys, values=items, vectors=vectors)
            step(f"{numbers[-1] + 1:,} records")
        mem.flush()
        seconds = time.perf_counter() - start
        found: Found = {"seconds": seconds, "per_record": seconds / rows, "making": making, "memory": grown(before)}
        if kind == "vectors":
            start = time.perf_counter()
            mem.build_index(NS, progress=lambda done, of: step(f"{done:,} of {of:,} rows indexed"))
            found["build_index"] = time.perf_counter() - start
        stats = mem.stats()
        assert stats.cold.entries == rows, stats.cold
        found |= {"bytes_used": stats.cold.bytes_used, "degraded": list(stats.degraded)}
        found |= {"committer": stats.writes.committer, "dictionaries": stats.cold.dictionaries}
        start = time.perf_counter()
    found["close"] = time.perf_counter() - start
    size = stored_bytes(Path(spec["store"]))
    return found | {"file_bytes": size, "bytes_per_record": size / rows}


def opening(spec: Spec, step: Step) -> Found:
    """A cold handle, and what it holds before and after one read."""
    before = memory()
    start = time.perf_counter()
    mem = opened(spec)
    ready = time.perf_counter()
    after = grown(before)
    begun = time.perf_counter()
    value = mem.get(NS, key_of(spec["rows"] // 2))
    read = time.perf_counter() - begun
    assert value is not None
    start_of_close = time.perf_counter()
    mem.close()
    closed = time.perf_counter() - start_of_close
    return {"open": ready - start, "first_get": read, "close": closed, "grown": after}


def reads(spec: Spec, step: Step) -> Found:
    """Reads of L3 with nothing in L1: single keys, ranges, the number of records, the newest."""
    rows = spec["rows"]
    salt = f"reads {spec['turn']}"
    # The last ones warm up.
    keys = [key_of(number) for number in some(rows, GETS + WARM, salt)]
    starts = [key_of(number) for number in some(max(1, rows - SCANNED), CALLS, salt)]
    scanned = min(rows, SCANNED)
    with opened(spec, tiermem.Config(hot=tiermem.HotConfig(max_bytes=0))) as mem:
        assert all(mem.get(NS, key) is not None for key in keys[GETS:])
        found = {"get": summary(times(partial(mem.get, NS, key) for key in keys[:GETS]))}
        step("get")

        def scan(start: str) -> None:
            assert sum(1 for _ in mem.scan(NS, start=start, limit=SCANNED)) == scanned

        found["scan"] = summary(times(partial(scan, start) for start in starts))
        assert mem.count(NS) == rows
        found["count"] = summary(times(partial(mem.count, NS) for _ in range(CALLS)))
        step("scan, count")
        found["latest"] = summary(times(partial(mem.latest, NS, LATEST) for _ in range(CALLS)))
    return found


def hot(spec: Spec, step: Step) -> Found:
    """Hits: the loop is in the time of each."""
    keys = [key_of(number) for number in some(spec["rows"], min(spec["rows"], HOT), "hot")]
    keys = [keys[place % len(keys)] for place in range(HOT_ROUND)]
    with opened(spec) as mem:
        get = mem.get
        for _ in range(4):
            for key in keys:
                get(NS, key)
        misses = mem.stats().hot.misses

        def again() -> None:
            for key in keys:
                get(NS, key)

        spent = times(again for _ in range(HOT_ROUNDS))
        assert mem.stats().hot.misses == misses, "not every read was a hit"
    return {"get": summary([one / len(keys) for one in spent])}


def puts(spec: Spec, step: Step) -> Found:
    """Single writes to keys spread over all there are: between those that exist, then to these themselves."""
    rows, turn = spec["rows"], spec["turn"]
    values = pool()
    found: Found = {}
    with opened(spec) as mem:
        for name, tail in (("new", f"+{turn}"), ("existing", "")):
            places = some(rows, min(rows, PUTS), f"{name} {turn}")
            items = [(key_of(place) + tail, values[place % POOL]) for place in places]
            settle()
            start = time.perf_counter()
            spent = times(partial(mem.put, NS, key, value) for key, value in items)
            mem.flush()
            seconds = time.perf_counter() - start
            found[name] = summary(spent) | {"committed": seconds / len(spent)}
            step(name)
    return found


def search(spec: Spec, step: Step) -> Found:
    """Searches with default settings; the share of the K best found is against exact searches."""
    queries = narrow(next(synthetic(SEARCHES, _QUERIES)))
    warm = narrow(next(synthetic(WARM, _WARM)))
    answers = []

    with opened(spec) as mem:

        def look(query: FloatArray) -> None:
            answers.append(mem.search_similar(NS, query, k=K))

        before = memory()
        start = time.perf_counter()
        look(warm[0])
        found: Found = {"first": time.perf_counter() - start}
        times(partial(look, query) for query in warm[1:])
        answers.clear()
        found["search"] = summary(times(partial(look, query) for query in queries))
        found["grown"] = grown(before)
        step("search")
        approximate = answers[:EXACT]
        exact = []
        call = partial(mem.search_similar, k=K, exact=True)
        found["exact"] = summary(times(lambda q=query: exact.append(call(NS, q)) for query in queries[:EXACT]))
        pairs = list(zip(approximate, exact, strict=False))
        same = sum(len({hit.key for hit in some_} & {hit.key for hit in best}) for some_, best in pairs)
        found["recall"] = same / sum(len(best) for _, best in pairs)
        found["segments"] = mem.stats().vectors[NS].segments
    return found


def latest(spec: Spec, step: Step) -> Found:
    """The newest rows of a stream."""
    with opened(spec) as mem:
        assert len(mem.latest(NS, LATEST)) == min(LATEST, spec["rows"])
        return {"latest": summary(times(partial(mem.latest, NS, LATEST) for _ in range(10 * CALLS)))}


def check(spec: Spec, step: Step) -> Found:
    """An audit of everything."""
    with opened(spec) as mem:
        start = time.perf_counter()
        report = mem.check()
        seconds = time.perf_counter() - start
        assert report.ok, report.problems[:3]
        assert report.records == spec["rows"], report
    return {"seconds": seconds}


def compact(spec: Spec, step: Step) -> Found:
    """L3 rewritten."""
    with opened(spec) as mem:
        start = time.perf_counter()
        gained = mem.compact()
        seconds = time.perf_counter() - start
        entries = mem.stats().cold.entries
    size = stored_bytes(Path(spec["store"]))
    return {"seconds": seconds, "gained": gained, "file_bytes": size, "bytes_per_record": size / entries}


def backup(spec: Spec, step: Step) -> Found:
    """A copy, on the same disk."""
    target = Path(spec["target"])
    with opened(spec) as mem:
        start = time.perf_counter()
        mem.backup(target)
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "bytes": disk_bytes(target)}


PHASES: dict[str, Callable[[Spec, Step], Found]] = {
    "load": load,
    "open": opening,
    "open_evicted": opening,
    "reads": reads,
    "hot": hot,
    "puts": puts,
    "search": search,
    "latest": latest,
    "check": check,
    "compact": compact,
    "backup": backup,
}


def fill_page_cache(root: Path) -> None:
    """Read every file under `root`, so that each measurement finds them where the one before did."""
    for path in root.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(2**20):
                    pass


def main() -> None:
    """Do what the specification says; the pipe is the descriptor given as argument."""
    spec = json.load(sys.stdin)
    store = Path(spec["store"])
    if spec["phase"] == "open_evicted":
        forget(store)
    else:
        fill_page_cache(store)
    with os.fdopen(int(sys.argv[1]), "w", buffering=1, encoding="utf-8") as pipe:

        def step(text: str) -> None:
            pipe.write(json.dumps({"step": text}) + "\n")

        before = memory()
        result = PHASES[spec["phase"]](spec, step)
        children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        after = memory()
        result |= {"before": before, "after": after, "peak": after["peak"], "children_peak": children}
        pipe.write(json.dumps({"result": result}) + "\n")


if __name__ == "__main__":
    main()
