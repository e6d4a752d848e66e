"""Cost as a store grows: load, open, get, put, scan, search, check, compact and backup, in time, memory and disk.

    python benchmarks/growth.py [--sizes 10000,100000,1000000] [--json FILE] [--out docs/benchmarks/growth.md]

Each measurement runs in a process of its own. Vectors and streams are left out beyond `--values-only` records. A run
over the default sizes or more writes the page and its plots; a smaller one only where `--out` says so. Stores are made
where temporary files go and are removed again: the largest takes some 4 GB for ten million records, three times that
while it is copied.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from _workload import SEED, directory, machine, versions
from growthbench import page, plots
from growthbench.run import Run
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "growth.md"
SIZES = [10_000, 100_000, 1_000_000]
VALUES_ONLY = 1_000_000
LEAST = 1_000


def sizes(text: str) -> list[int]:
    """A comma-separated list of numbers of records, in their order."""
    parts = [part.strip().replace("_", "") for part in text.split(",") if part.strip()]
    if not parts or any(not part.isdigit() or int(part) < LEAST for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of sizes of {LEAST} or more")
    return sorted({int(part) for part in parts})


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--sizes", type=sizes, default=SIZES, help="numbers of records (10000,100000,1000000)")
    add("--values-only", type=int, default=VALUES_ONLY, help="no vectors, no streams beyond so many (1000000)")
    add("--turns", type=int, default=3, help="processes for each measurement, where one does not take long (3)")
    add("--json", type=Path, metavar="FILE", help="write everything measured here, after each step")
    add("--render", type=Path, metavar="FILE", help="write the page of such a file, and measure nothing")
    add("--out", type=Path, metavar="FILE", help="write the page here, its plots beside it (docs/benchmarks/growth.md)")
    return parser.parse_args()


def measured(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """The document of a run."""
    document: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "seed": SEED,
        "sizes": arguments.sizes,
        "values_only": arguments.values_only,
        "turns": arguments.turns,
        "machine": machine(),
        "versions": versions(),
        "found": {},
        "failures": [],
    }
    target = arguments.json

    def save(found: dict[str, Any]) -> None:
        document.update(found, load_at_end=round(os.getloadavg()[0], 2))
        document["requirements"] = page.summary(document)
        if target:
            partial = target.with_suffix(".partial")
            partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            partial.replace(target)

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Drawn where a step was done and not in between: drawing takes time from a core that is being measured.
    with directory() as work, Progress(*columns, console=console, auto_refresh=False) as progress:
        options = (arguments.sizes, arguments.values_only, arguments.turns)
        Run(*options, work=work, console=console, progress=progress, save=save).everything()
    return document


def main() -> None:
    arguments = parsed()
    console = Console()
    if arguments.render:
        document = json.loads(arguments.render.read_text(encoding="utf-8"))
        out = arguments.out or PAGE
    else:
        document = measured(arguments, console)
        full = set(arguments.sizes) >= set(SIZES) and not document["failures"]
        out = arguments.out or (PAGE if full else None)
    page.shown(console, document)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        plot = plots.draw(document, out.with_suffix(".png"))
        if plot is None:
            console.print("no plots: matplotlib is not installed")
        out.write_text(page.markdown(document, plot), encoding="utf-8")
        console.print(f"written: {out}", markup=False, highlight=False)
    if document["failures"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
