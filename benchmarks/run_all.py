"""Every benchmark, one after the other: a short version of each, or all of them in full.

    python benchmarks/run_all.py [--only micro latency] [--out DIR]
    python benchmarks/run_all.py --full [--only micro latency] [--out DIR]

The short versions together take less than ten minutes on two cores; their pages, plots and JSON go to
bench-results/short. Full runs take most of a day, 24 GiB of memory and 20 GB of disk, most of it for a million
vectors; they write the pages under docs/benchmarks, and their JSON to bench-results/full. What a benchmark lacks, a
rival or recorded data, is left out; one that fails does not keep the others from running.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from _sheets import Sheet, show
from rich.console import Console

HERE = Path(__file__).resolve().parent
PAGES = HERE.parent / "docs" / "benchmarks"
RESULTS = HERE.parent / "bench-results"


@dataclass(frozen=True)
class Job:
    """A script, its page, and what it is told beside where to write: in short, and in full."""

    name: str
    script: str
    page: str
    short: str
    full: str = ""


JOBS = (
    Job("micro", "bench_micro.py", "micro.md", "--quick"),
    Job(
        "latency",
        "latency.py",
        "latency.md",
        "--seconds 1 --loops spin,wait,asyncio --rates 20000,flat --records 20000 --starts 3",
    ),
    Job("trajectories", "trajectories.py", "trajectories.md", "--quick"),
    Job("reasoning", "reasoning.py", "reasoning.md", "--quick"),
    Job("visibility", "visibility.py", "visibility.md", "--seconds 1"),
    Job("coordination", "coordination.py", "coordination.md", "--quick"),
    Job("growth", "growth.py", "growth.md", "--sizes 1000,10000 --turns 1"),
    Job("space", "space.py", "space.md", "--quick"),
    Job("compression", "record_compression.py", "compression.md", "--quick"),
    Job("hit_ratio", "hit_ratio.py", "hit_ratio.md", "--quick"),
    Job(
        "vectors",
        "vectors.py",
        "vectors.md",
        # Not the embedded databases: each of their processes makes ten thousand slow searches before it is timed.
        "--sizes 10000 --data synthetic --subjects tiermem,hnswlib,faiss,usearch --turns 1 --seconds 5 --limit 2",
        "--sizes 10000,100000,1000000",
    ),
    Job("inner_product", "inner_product.py", "inner_product.md", "--rows 2000"),
)


@dataclass(frozen=True)
class Ended:
    """How a script ended, after how many seconds, and whether it wrote its page."""

    job: Job
    code: int
    seconds: float
    found: Path
    page: bool

    @property
    def state(self) -> str:
        if self.code == 0:
            return "ran" if self.page else "ran, no page"
        return "no data" if self.code == os.EX_NOINPUT else f"**failed ({self.code})**"

    @property
    def bad(self) -> bool:
        return self.code not in (0, os.EX_NOINPUT)

    def cells(self) -> list[str]:
        """A row of the table at the end: the bounds that were held and missed are those in the script's JSON."""
        demands = []
        if self.found.exists():
            demands = json.loads(self.found.read_text(encoding="utf-8")).get("requirements", [])
        verdicts = [str(one["verdict"]) for one in demands]
        held, missed = (sum(word in verdict for verdict in verdicts) for word in ("holds", "missed"))
        counts = (held, missed, len(verdicts) - held - missed)
        return [self.job.name, self.state, f"{self.seconds:,.0f}", *(str(count) for count in counts)]


def run(job: Job, out: Path, *, full: bool) -> Ended:
    """One script to its end; a full run writes its page where it belongs, by itself."""
    found = out / f"{job.name}.json"
    found.unlink(missing_ok=True)
    options = job.full.split() if full else [*job.short.split(), "--out", str(out / job.page)]
    if job.name == "vectors":
        options += ["--work", str(out / "vectors-work")]
    page = (PAGES if full else out) / job.page
    began, start = time.time(), time.monotonic()
    done = subprocess.run([sys.executable, str(HERE / job.script), *options, "--json", str(found)], check=False)
    written = page.exists() and page.stat().st_mtime >= began
    return Ended(job, done.returncode, time.monotonic() - start, found, written)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [job.name for job in JOBS]
    parser.add_argument("--full", action="store_true", help="everything, and the pages under docs/benchmarks")
    parser.add_argument("--only", choices=names, nargs="+", metavar="NAME", help=f"some of {', '.join(names)}")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where results go (bench-results/short or .../full)")
    arguments = parser.parse_args()
    out = (arguments.out or RESULTS / ("full" if arguments.full else "short")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    ended = []
    for job in JOBS:
        if job.name in (arguments.only or names):
            console.rule(job.script)
            ended.append(run(job, out, full=arguments.full))
    columns = ["benchmark", "", "seconds", "bounds held", "missed", "not measured"]
    show(console, [], [Sheet("Benchmarks", "", columns, [one.cells() for one in ended], words=2)])
    console.print(f"{sum(one.seconds for one in ended):,.0f} s; results: {out}", markup=False, highlight=False)
    if any(one.bad for one in ended):
        sys.exit(1)


if __name__ == "__main__":
    main()
