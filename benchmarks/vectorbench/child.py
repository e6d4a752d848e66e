"""One measurement in a fresh process: a specification on standard input, messages as JSON lines to a pipe."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _workload import disk_bytes

from vectorbench.confined import join, used
from vectorbench.data import BELOW, BUCKETS, WARM, DataSet, Step, buckets
from vectorbench.measure import allowed, forget, grown, memory, percentiles, recall, timed
from vectorbench.subject import Subject, subject

Spec = dict[str, Any]
COLD_SEARCHES = 10_000
COLD_BELOW = 100
"""The filter of every third of them: a tenth of the rows."""


def opened(spec: Spec) -> Subject:
    return subject(spec["subject"])(Path(spec["store"]))


def of(spec: Spec) -> DataSet:
    return DataSet(spec["data"], Path(spec["folder"]))


def build(spec: Spec, step: Step) -> dict[str, Any]:
    """Everything from vectors in a file to a closed store."""
    data, engine = of(spec), opened(spec)
    engine.load_library()
    engine.path.mkdir(parents=True)
    of_row = buckets(data.rows)
    before = memory()
    start = time.perf_counter()
    engine.build(data.base, of_row, step)
    seconds = time.perf_counter() - start
    found = {"seconds": seconds, "file_bytes": disk_bytes(engine.path), "memory": grown(before)}
    return found | getattr(engine, "built", {})


def search(spec: Spec, step: Step) -> dict[str, Any]:
    """Single searches with each effort; memory before the vectors are read for the recall."""
    data, engine = of(spec), opened(spec)
    queries, warm, soak = data.queries, data.warm, data.soak()
    engine.load_library()
    before = memory()
    start = time.perf_counter()
    engine.open()
    opening = time.perf_counter() - start
    points, answers = [], []
    efforts = spec.get("efforts") or engine.efforts()
    timed(engine.searching(efforts[0]), engine.rows, soak, spec["limit"])
    for effort in efforts:
        call = engine.searching(effort)
        timed(call, engine.rows, warm, spec["limit"] / 5)
        spent, found = timed(call, engine.rows, queries, spec["limit"])
        points.append({"effort": effort, "count": len(spent), **percentiles(spent)})
        answers.append(found)
        step(f"effort {effort or 'default'}")
    resident = grown(before)
    for point, rows in zip(points, answers, strict=True):
        point["recall"] = recall(data.base, queries, rows, data.truth[BUCKETS])
    details = engine.details()
    engine.close()
    return {"open_seconds": opening, "memory": resident, "resident": memory(), "points": points, "details": details}


def filters(spec: Spec, step: Step) -> list[dict[str, Any]]:
    """Filtered searches with the default effort, each filter less generous than the one before."""
    data, engine = of(spec), opened(spec)
    engine.load_library()
    engine.open()
    of_row = buckets(data.rows)
    rows = []
    for below in BELOW:
        call = engine.searching(None, below)
        timed(call, engine.rows, data.warm[: WARM // 10], spec["limit"] / 5)
        spent, answers = timed(call, engine.rows, data.queries, spec["limit"])
        best = data.truth[below]
        right = allowed(answers, of_row, below)
        rows.append(
            {
                "below": below,
                "share": below / BUCKETS,
                "matches": int((of_row < below).sum()),
                "count": len(spent),
                **percentiles(spent),
                "recall": recall(data.base, data.queries, right, best),
                "short": sum(len(np.unique(one)) < best.shape[1] for one in right),
                "forbidden": sum(len(one) - len(other) for one, other in zip(answers, right, strict=True)),
            }
        )
        step(f"{below / 10:g} %")
    engine.close()
    return rows


def churn(spec: Spec, step: Step) -> dict[str, Any]:
    """See `writing.churn`."""
    from vectorbench import writing

    return writing.churn(of(spec), Path(spec["store"]), step)


def ingest(spec: Spec, step: Step) -> dict[str, Any]:
    """See `writing.ingest`."""
    from vectorbench import writing

    return writing.ingest(of(spec), Path(spec["store"]), spec["seconds"], step)


def cold(spec: Spec, step: Step) -> dict[str, Any]:
    """The first search of a process, and its memory after many."""
    data = of(spec)
    queries = data.queries
    store = Path(spec["store"])
    if spec["evict"]:
        forget(store)
    engine = opened(spec)
    before = memory()
    begun = time.perf_counter()
    engine.open()
    ready = time.perf_counter()
    engine.searching(None)(queries[0])
    answered = time.perf_counter()
    spent, _ = timed(engine.searching(None), engine.rows, queries[1:], spec["limit"])
    found = {"open": ready - begun, "first_search": answered - ready, "next": percentiles(spent)}
    if spec["many"]:
        plain, filtered = engine.searching(None), engine.searching(None, COLD_BELOW)
        end = time.perf_counter() + 10 * spec["limit"]
        done = 0
        while done < COLD_SEARCHES and time.perf_counter() < end:
            (filtered if done % 3 == 0 else plain)(queries[done % len(queries)])
            done += 1
            if done % 1000 == 0:
                step(f"{done:,} searches")
        found |= {"searches": done, "memory": grown(before), "resident": memory()}
    engine.close()
    return found


def confined(spec: Spec, step: Step) -> dict[str, Any]:
    """Searches in a control group: everything that is read counts towards its memory, from an empty page cache on."""
    data, engine = of(spec), opened(spec)
    queries, warm = data.queries, data.warm
    forget(engine.path)
    group = Path(spec["group"])
    join(group)
    engine.open()
    call = engine.searching(None)
    timed(call, engine.rows, warm, spec["limit"])
    step("warm")
    spent, answers = timed(call, engine.rows, queries, spec["limit"])
    found = {"limit": spec["bytes"], "used": used(group), "memory": memory(), "count": len(spent)}
    found |= percentiles(spent)
    engine.close()
    return found | {"recall": recall(data.base, queries, answers, data.truth[BUCKETS])}


PHASES: dict[str, Callable[[Spec, Step], Any]] = {
    "build": build,
    "search": search,
    "filters": filters,
    "churn": churn,
    "ingest": ingest,
    "cold": cold,
    "confined": confined,
}


def main(descriptor: int) -> None:
    """Do what the specification says; the pipe is `descriptor`."""
    spec = json.load(sys.stdin)
    with os.fdopen(descriptor, "w", buffering=1, encoding="utf-8") as pipe:

        def step(text: str) -> None:
            pipe.write(json.dumps({"step": text}) + "\n")

        result = PHASES[spec["phase"]](spec, step)
        pipe.write(json.dumps({"result": result}) + "\n")
