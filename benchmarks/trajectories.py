"""Trajectories: what a step, a resolution, a listing and a verdict cost.

    python benchmarks/trajectories.py [--quick] [--turns 3] [--json FILE] [--out docs/benchmarks/trajectories.md]

One process, one thread that writes without a pause, stores of simulated time in a directory of their own, made anew for
each turn. Steps are put one by one, so that each survives the death of the process when its call returns.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from _sheets import REQUIREMENTS, Requirement, Sheet, number, origin, show, verdict
from _workload import SEED, directory, machine, settle, versions
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import tiermem
from tiermem.reasoning.verdict import DirectionHit, Judge, RelativeError, Return, SuccessLabel, Threshold

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "trajectories.md"
STEPS, OF_A_RUN, RUNS, TURNS = 100_000, 20, 10_000, 3
DIMENSION = 32
STEPS_A_SECOND, JUDGED_WITHIN = 50_000, 1.0
START = 1_700_000_000.0
JUDGES: tuple[Judge, ...] = (RelativeError(), Threshold(0.1), DirectionHit(), Return(), SuccessLabel())

Found = dict[str, list[float]]
"""Seconds an operation took, turn by turn."""


@contextmanager
def store() -> Iterator[tuple[tiermem.Trajectories, tiermem.SimulatedClock]]:
    clock = tiermem.SimulatedClock(START)
    with directory() as root, tiermem.open(root / "store", clock=clock) as mem:
        yield tiermem.Trajectories(mem), clock


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def observation(rng: random.Random) -> dict[str, Any]:
    """What an agent that trades looks at: 60 bytes or so of MessagePack."""
    return {"symbol": "AIG", "bid": 48.0 + rng.random(), "ask": 49.0 + rng.random(), "spread": rng.randrange(5)}


def one_run(steps: int, found: Found) -> None:
    """One long run: steps in a row, and until they are committed."""
    rng = random.Random(SEED)
    seen = [observation(rng) for _ in range(steps)]
    vectors = np.random.default_rng(SEED).normal(size=(steps, DIMENSION)).astype(np.float32)
    for name, given in (("step", None), (f"step with a vector of {DIMENSION}", vectors)):
        with store() as (trail, _):
            if given is not None:
                trail.mem.create_namespace("trajectories/steps", dimension=DIMENSION)
            step = trail.start("agent", "task").step

            def write(step: Callable[..., str] = step, given: Any = given) -> None:
                for place, item in enumerate(seen):
                    vector = None if given is None else given[place]
                    step(observation=item, action="buy", predicted=0.4, reward=0.1, vector=vector, at=START + place)

            spent = timed(write)
            flushed = timed(trail.mem.flush)
            found.setdefault(name, []).append(spent / steps)
            found.setdefault(f"{name}, counted until flush() returned", []).append((spent + flushed) / steps)


def many_runs(runs: int, found: Found) -> list[tiermem.Trajectory]:
    """Runs of 20 steps: written, resolved, completed, listed, got, exported and imported; what was listed."""
    rng = random.Random(SEED)
    seen = [observation(rng) for _ in range(1000)]
    guesses = [rng.gauss(0.1, 1.0) for _ in range(1000)]
    steps = runs * OF_A_RUN
    with store() as (trail, clock):
        ids: list[str] = []

        def write() -> None:
            for place in range(runs):
                run = trail.start(f"agent-{place % 10}", "task")
                for index in range(OF_A_RUN):
                    item = (place + index) % 1000
                    ids.append(run.step(observation=seen[item], predicted=guesses[item], reward=guesses[item - 1]))
                run.complete(success=place % 3 > 0)
                clock.advance(1.0)

        def resolve() -> None:
            for place, step in enumerate(ids):
                trail.resolve(step, guesses[place % 997])

        found.setdefault("step of a run of 20, its start and its end included", []).append(timed(write) / steps)
        found.setdefault("resolve", []).append(timed(resolve) / steps)
        settle()
        listed: list[tiermem.Trajectory] = []
        found.setdefault("list: a step", []).append(timed(lambda: listed.extend(trail.list())) / steps)
        half = START + runs / 2
        found.setdefault("list(as_of=): a step seen", []).append(timed(lambda: trail.list(as_of=half)) / (steps / 2))
        chosen = rng.sample(listed, min(runs, 1000))
        got = timed(lambda: [trail.get(one.id) for one in chosen]) / len(chosen)
        found.setdefault("get: a run of 20 steps", []).append(got)
        assert len(listed) == runs
        assert sum(len(one.pending) for one in listed) == 0
        with directory() as root:
            file = root / "runs.jsonl"
            found.setdefault("export_jsonl: a step", []).append(timed(lambda: trail.export_jsonl(file)) / steps)
            with store() as (other, later):
                later.set(clock.now())
                found.setdefault("import_jsonl: a step", []).append(timed(lambda: other.import_jsonl(file)) / steps)
                assert other.mem.count("trajectories/steps") == steps
    return listed


def judged(listed: list[tiermem.Trajectory], found: Found) -> None:
    """Every built-in judge on all runs, which are in memory."""
    for judge in JUDGES:

        def work(judge: Judge = judge) -> None:
            for one in listed:
                judge.judge(one)

        found.setdefault(type(judge).__name__, []).append(timed(work))


def sheets(document: dict[str, Any]) -> list[Sheet]:
    """The tables of the page."""
    rows, verdicts = [], []
    judges = {type(judge).__name__ for judge in JUDGES}
    for name, turns in document["seconds"].items():
        middle, low, high = statistics.median(turns), min(turns), max(turns)
        if name in judges:
            cells = [number(1e3 * seconds) for seconds in (middle, low, high)]
            verdicts.append([f"`{name}`", *cells, number(1e9 * middle / document["runs"] / OF_A_RUN)])
        else:
            rows.append([name, *(number(1e6 * seconds) for seconds in (middle, low, high)), number(1 / middle)])
    return [
        Sheet(
            "Writing and reading",
            f"{document['steps']:,} steps of one run, then {document['runs']:,} runs of {OF_A_RUN} steps, each of "
            "which predicts and is resolved. Reading and resolving is of what was committed or is being committed.",
            ["operation", "µs", "least", "most", "a second"],
            rows,
        ),
        Sheet(
            "Judging",
            f"{document['runs']:,} runs of {OF_A_RUN} resolved steps, in memory; confidence and interval included.",
            ["judge", "ms", "least", "most", "ns a step"],
            verdicts,
        ),
    ]


def demands(document: dict[str, Any]) -> list[Requirement]:
    """What has to hold, by the medians of the turns."""
    found = document["seconds"]
    rate = 1 / statistics.median(found["step"])
    whole = 1 / statistics.median(found["step, counted until flush() returned"])
    slowest = max((type(judge).__name__ for judge in JUDGES), key=lambda name: statistics.median(found[name]))
    spent = statistics.median(found[slowest]) * RUNS / document["runs"]
    return [
        Requirement(
            f"streaming append ≥ {STEPS_A_SECOND:,} steps/s",
            f"{rate:,.0f}/s; {whole:,.0f}/s counted until `flush()` had returned",
            rate >= STEPS_A_SECOND,
            verdict(rate >= STEPS_A_SECOND),
        ),
        Requirement(
            f"{RUNS:,} runs of {OF_A_RUN} steps judged in < {JUDGED_WITHIN:.0f} s",
            f"{spent:.2f} s by the slowest judge, `{slowest}`",
            spent < JUDGED_WITHIN,
            verdict(spent < JUDGED_WITHIN),
        ),
    ]


def markdown(document: dict[str, Any], bounds: list[Requirement], tables: list[Sheet]) -> str:
    """The page."""
    lines = ["# Trajectories", "", origin("trajectories.py", document, SEED), ""]
    lines += [
        f"One thread that writes without a pause. Medians of {document['turns']} turns, each in stores of its own, and "
        "the fastest and the slowest of them. A step is a `put`: kill-safe when its call returns.",
        "",
        "## Requirements",
        "",
        f"| {' | '.join(REQUIREMENTS)} |",
        "|---|---|---|",
        *(f"| {one.text} | {one.measured} | {one.verdict} |" for one in bounds),
    ]
    for table in tables:
        lines += ["", f"## {table.heading}", "", table.text, "", *table.lines()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=TURNS, help=f"stores of each kind ({TURNS})")
    parser.add_argument("--quick", action="store_true", help="small and short, to see that everything runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured here")
    parser.add_argument("--out", type=Path, help="write the page here (a full run: docs/benchmarks/trajectories.md)")
    arguments = parser.parse_args()
    steps, runs, turns = (10_000, 500, 1) if arguments.quick else (STEPS, RUNS, arguments.turns)
    console = Console()
    where, found = machine(), Found()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Drawn where a turn was done and not in between: drawing takes time from a core that is being measured.
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        task = progress.add_task("turns", total=turns)
        for _ in range(turns):
            one_run(steps, found)
            judged(many_runs(runs, found), found)
            progress.update(task, advance=1, refresh=True)
    document: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "seed": SEED,
        "quick": arguments.quick,
        "steps": steps,
        "runs": runs,
        "turns": turns,
        "machine": where,
        "load_at_end": machine()["load"],
        "versions": versions(),
        "seconds": found,
    }
    bounds, tables = demands(document), sheets(document)
    document["requirements"] = [asdict(one) for one in bounds]
    show(console, ((one.text, one.measured, one.verdict) for one in bounds), tables)
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    page = arguments.out or (PAGE if not arguments.quick and turns >= TURNS else None)
    if page:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(markdown(document, bounds, tables), encoding="utf-8")
        console.print(f"written: {page}", markup=False, highlight=False)


if __name__ == "__main__":
    main()
