"""Reads, writes, streams, exact search and start-up, beside plain dicts, caches, embedded stores and numpy.

    python benchmarks/bench_micro.py [--json FILE] [--out docs/benchmarks/micro.md] [--quick]

A full run writes the page; a quick one only where `--out` says so. Each section runs in a process of its own, its
subjects taking turns; a rival that is not installed is left out, and named.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from _sheets import show
from _workload import SEED, installed, machine, versions
from microbench.page import markdown
from microbench.requirements import requirements
from microbench.rivals import DISTRIBUTIONS
from microbench.rivals.sqlite_table import VERSION
from microbench.scale import FULL, QUICK
from microbench.sections import SECTIONS, run
from microbench.sheets import SHEETS
from microbench.subject import Measured
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "micro.md"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured here")
    parser.add_argument("--out", type=Path, help="write a Markdown page here (a full run: docs/benchmarks/micro.md)")
    parser.add_argument("--quick", action="store_true", help="small and short, to see that everything runs")
    parser.add_argument("--only", choices=SECTIONS, nargs="+", metavar="SECTION", help=f"some of {', '.join(SECTIONS)}")
    return parser.parse_args()


def main() -> None:
    arguments = parsed()
    scale = QUICK if arguments.quick else FULL
    console = Console()
    where = machine()
    absent = [name for name in DISTRIBUTIONS if installed(name) is None]
    for name in absent:
        console.print(f"left out: {name} is not installed")
    found: dict[str, Measured] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Drawn where a step was done and not in between: drawing takes time from a core that is being measured.
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        for name in arguments.only or SECTIONS:
            found[name] = run(name, scale, progress)
    demands = list(requirements(found))
    sheets = [sheet for name, measured in found.items() for sheet in SHEETS[name](measured, scale)]
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "seed": SEED,
        "scale": asdict(scale),
        "machine": where,
        "load_at_end": machine()["load"],
        "versions": versions(*DISTRIBUTIONS, "pytest-benchmark") | {"SQLite": VERSION},
        "absent": absent,
        "requirements": [asdict(one) for one in demands],
        "sections": {
            name: {
                "nanoseconds": {subject: series.summary() for subject, series in measured.series.items()},
                "facts": measured.facts,
            }
            for name, measured in found.items()
        },
    }
    show(console, ((one.text, one.measured, one.verdict) for one in demands), sheets)
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    page = arguments.out or (None if arguments.quick or arguments.only else PAGE)
    if page:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(markdown(document, demands, sheets), encoding="utf-8")
        console.print(f"written: {page}", markup=False, highlight=False)


if __name__ == "__main__":
    main()
