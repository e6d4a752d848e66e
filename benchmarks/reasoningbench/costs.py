"""What recalling, distilling and consolidating cost."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from _workload import SEED, directory, percentile, settle

import tiermem
from tiermem.reasoning.distill import Judged, Situation
from tiermem.reasoning.inference import Evidence

START = 1_700_000_000.0
EVIDENCE = 20
"""Runs a made lesson is about."""
CENTRES, NOISE = 200, 0.4
SHARES = (0.5, 0.95, 0.99)


@contextmanager
def store() -> Iterator[tuple[tiermem.Memory, tiermem.SimulatedClock]]:
    clock = tiermem.SimulatedClock(START)
    with directory() as root, tiermem.open(root / "store", clock=clock) as mem:
        yield mem, clock


class Made:
    """A distiller that makes lessons of random vectors, so that a bank has as many as wanted."""

    def __init__(self, count: int, dimension: int) -> None:
        rng = np.random.default_rng(SEED)
        self.vectors = rng.standard_normal((count, dimension)).astype(np.float32)

    def distil(self, runs: Sequence[Judged]) -> list[Situation]:
        return [
            Situation(
                "success" if place % 2 else "failure",
                f"action {place % 7}",
                vector,
                tuple(
                    Evidence(runs[(place + other) % len(runs)].trajectory, float((place + other) % 3 > 0), 1.0)
                    for other in range(EVIDENCE)
                ),
                0.5,
                0.01,
            )
            for place, vector in enumerate(self.vectors)
        ]


def recall(lessons: int, dimension: int, queries: int) -> dict[str, Any]:
    """Microseconds of one recall of 5, by kind; and seconds of other things at that size."""
    rng = np.random.default_rng(SEED + 1)
    asked = rng.standard_normal((queries, dimension)).astype(np.float32)
    found: dict[str, Any] = {"lessons": lessons, "dimension": dimension}
    with store() as (mem, clock):
        trail = tiermem.Trajectories(mem)
        bank = tiermem.ReasoningBank(mem, distiller=Made(lessons, dimension))
        runs = []
        for _ in range(4 * EVIDENCE):
            run = trail.start("agent", "task")
            run.complete(success=True)
            runs.append(run)
        bank.learn(runs)
        assert len(bank.distil()) == lessons
        clock.advance(3600.0)
        settle()
        kinds: dict[str, dict[str, Any]] = {
            "recall": {},
            "with a filter": {"where": {"kind": "success"}},
            "as of an earlier time": {"as_of": START + 1800.0},
        }
        for name, options in kinds.items():
            bank.recall(asked[0], k=5, **options)
            times = []
            for query in asked:
                begin = time.perf_counter()
                hits = bank.recall(query, k=5, **options)
                times.append(1e6 * (time.perf_counter() - begin))
                assert len(hits) == 5
            found[name] = [percentile(times, share) for share in SHARES]
        begin = time.perf_counter()
        tiermem.ReasoningBank(mem).recall(asked[0], k=5)
        found["first recall of a process, s"] = time.perf_counter() - begin
        begin = time.perf_counter()
        bank.consolidate()
        found["consolidate, s"] = time.perf_counter() - begin
    return found


def distil(runs: int, steps: int, dimension: int) -> dict[str, Any]:
    """Seconds, and seconds of processor time, of learning and distilling that many runs of a planted world."""
    rng = np.random.default_rng(SEED)
    centres = rng.standard_normal((CENTRES, dimension))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    chances = rng.uniform(0.05, 0.95, CENTRES)
    found: dict[str, Any] = {"runs": runs, "steps": steps, "dimension": dimension}
    with store() as (mem, clock):
        trail = tiermem.Trajectories(mem)
        bank = tiermem.ReasoningBank(mem)
        ids = []
        for _ in range(runs):
            place = int(rng.integers(CENTRES))
            run = trail.start("agent", "task")
            rows = centres[place] + NOISE * rng.standard_normal((steps, dimension)) / dimension**0.5
            for row in rows:
                run.step(observation=place, action="go", vector=row)
            clock.advance(1.0)
            run.complete(success=bool(rng.random() < chances[place]))
            ids.append(run.id)
        settle()
        for name, work in (("learn", lambda: bank.learn(ids)), ("distil", bank.distil)):
            begin, spent = time.perf_counter(), time.process_time()
            work()
            found[name] = [time.perf_counter() - begin, time.process_time() - spent]
        found["found"] = sum(1 for _ in bank.lessons())
    return found
