"""Hit ratios of eviction policies on public cache traces, beside the optimal bound.

    python benchmarks/hit_ratio.py [--data DIR] [--json FILE] [--out docs/benchmarks/hit_ratio.md] [--quick]

Every policy runs behind `EvictionPolicy` with unit costs, as the hot tier would call it: a hit on a free entry calls
nothing. SIEVE, S3-FIFO and CAR are here for comparison only; each sets bits or counters on a hit and nothing else, so
each has an exact free state: the one another hit would not change. A full run on all traces writes the page; another
only where `--out` says so. A trace that is not in the data directory is left out, and named.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from _workload import SEED, machine, versions
from hitratiobench.page import LOOPS, SIZES, markdown, shown
from hitratiobench.simulation import POLICIES, Result, optimal, simulate
from hitratiobench.traces import LOOP_CAPACITY, READERS, entries, loop_over, zipf
from rich.console import Console
from rich.progress import Progress
from vectorbench.data import real_folder

from tiermem.protocols import EntryId

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "hit_ratio.md"
REQUESTS, ROUNDS = 400_000, 50
"""Of the synthetic trace, and of the loops."""
QUICK_REQUESTS, QUICK_ROUNDS = 20_000, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = real_folder()
    parser.add_argument("--data", type=Path, default=default, help="directory of the traces (TIERMEM_DATA)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results here")
    parser.add_argument("--out", type=Path, help="write the page here (a full run: docs/benchmarks/hit_ratio.md)")
    parser.add_argument("--quick", action="store_true", help="the beginning of each trace, to see that everything runs")
    arguments = parser.parse_args()
    quick = arguments.quick
    requests, rounds = (QUICK_REQUESTS, QUICK_ROUNDS) if quick else (REQUESTS, ROUNDS)
    console, where = Console(), machine()
    traces: dict[str, list[EntryId]] = {}
    absent = []
    for name, (file, read) in READERS.items():
        if (arguments.data / file).exists():
            traces[name] = entries(read(arguments.data / file)[: requests if quick else None])
        else:
            absent.append(f"no {file} in the data directory")
            console.print(f"skipped {name}: {absent[-1]}")
    traces["zipf"] = entries(zipf(requests))
    runs = [(name, share, trace, int(len(set(trace)) * share)) for name, trace in traces.items() for share in SIZES]
    runs += [("loop", length, entries(loop_over(length, rounds)), LOOP_CAPACITY) for length in LOOPS]
    results: list[Result] = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("simulating", total=len(runs) * (len(POLICIES) + 1))
        for name, share, trace, capacity in runs:
            for policy, make in POLICIES.items():
                progress.update(task, description=f"{name} {share:.0%} {policy}")
                results.append(Result(name, share, capacity, policy, *simulate(make, trace, capacity)))
                progress.advance(task)
            results.append(Result(name, share, capacity, "optimal", optimal(trace, capacity)))
            progress.advance(task)
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "seed": SEED,
        "quick": quick,
        "requests": requests,
        "loop_rounds": rounds,
        "machine": where,
        "load_at_end": machine()["load"],
        "versions": versions(),
        "absent": absent,
        "results": [asdict(result) for result in results],
    }
    shown(console, results)
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    page = arguments.out or (None if quick or absent else PAGE)
    if page:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(markdown(document, results), encoding="utf-8")
        console.print(f"written: {page}", markup=False, highlight=False)


if __name__ == "__main__":
    main()
