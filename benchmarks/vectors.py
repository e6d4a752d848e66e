"""Vector search of tiermem beside graph libraries and embedded vector databases: recall, latency, memory, upkeep.

    python benchmarks/vectors.py [--sizes 10000,100000,1000000] [--subjects tiermem,hnswlib] [--parts search,filters]

A full run (all subjects, data and parts, both default sizes or more) writes docs/benchmarks/vectors.md and its plots;
a narrower one only where `--out` says so. The rivals are the extra `bench-vectors`; one that is not installed is left
out, and named. A million rows need 24 GiB of memory, 20 GB of disk, and hours; they are measured only when asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from _workload import OURS, file_system, machine
from _workload import installed as distribution
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from vectorbench import child, page, plots
from vectorbench.data import REAL, SEED
from vectorbench.run import LARGE, PARTS, Options, Run, installed, known_subjects

import tiermem

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "vectors.md"
SIZES = [10_000, 100_000]
DATA = ["synthetic", REAL]
LARGE_SUBJECTS = ["tiermem", "hnswlib", "faiss"]
SECONDS = 120.0


def listed(known: list[str] | None = None) -> Callable[[str], list[Any]]:
    """What reads a comma-separated list: names that are known, or else positive numbers."""

    def read(text: str) -> list[Any]:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        wrong = [part for part in parts if (part not in known if known else not part.isdigit() or int(part) < 100)]
        if wrong or not parts:
            choices = f"some of {', '.join(known)}" if known else "sizes of 100 or more"
            raise argparse.ArgumentTypeError(f"{text!r} is not {choices}")
        return parts if known else [int(part) for part in parts]

    return read


def versions(subjects: list[str]) -> dict[str, str]:
    """Of everything that was measured or measures."""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    found = {"tiermem": tiermem.__version__, "python": python}
    found |= {name: known for name in OURS if (known := distribution(name))}
    return found | {name: known for name in subjects if name != "faiss" and (known := installed(name))}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subjects = known_subjects()
    add = parser.add_argument
    add("--sizes", type=listed(), default=SIZES, help="rows of the synthetic data sets (10000,100000)")
    add("--data", type=listed(DATA), default=DATA, help=f"some of {', '.join(DATA)}")
    add("--subjects", type=listed(subjects), default=subjects, help=f"some of {', '.join(subjects)}")
    add("--large", type=listed(subjects), default=LARGE_SUBJECTS, help=f"those of them beyond {LARGE:,} rows")
    add("--parts", type=listed(list(PARTS)), default=list(PARTS), help=f"some of {', '.join(PARTS)}")
    add("--turns", type=int, default=3, help="fresh processes that search each store (3)")
    add("--seconds", type=float, default=SECONDS, help="how long the ingest lasts (120)")
    add("--write-limit", type=int, default=100_000, help="churn and ingest take the largest size up to this (100000)")
    add("--limit", type=float, default=30.0, help="most seconds for one series of searches (30)")
    default = Path(tempfile.gettempdir()) / "tiermem-vectors"
    add("--work", type=Path, default=default, help=f"data sets and stores go here ({default})")
    add("--keep", action="store_true", help="leave stores in the work directory, and use those found there")
    add("--json", type=Path, metavar="FILE", help="write everything measured here, after each step")
    add("--render", type=Path, nargs="+", metavar="FILE", help="write the page of such files, and measure nothing")
    add("--out", type=Path, help="write the page here, its plots beside it (a full run: docs/benchmarks/vectors.md)")
    add("--child", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def merged(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """One document of several runs: of what two have measured of a data set, the last counts."""
    document, *others = documents
    for other in others:
        for part in ("datasets", "builds", "searches", "filters", "churn", "ingest", "cold", "confined"):
            document.setdefault(part, {}).update(other.get(part, {}))
        for part in ("skipped", "failures"):
            document[part] += [text for text in other[part] if text not in document[part]]
        document["versions"] |= other["versions"]
        document["load_at_end"] = other["load_at_end"]
    document["runs"] = len(documents)
    days = sorted({one["date"] for one in documents})
    document["date"] = " to ".join(dict.fromkeys((days[0], days[-1])))
    return document


def measured(options: Options, target: Path | None, console: Console) -> dict[str, Any]:
    """The document of a run."""
    options.work.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "seed": SEED,
        "options": asdict(options) | {"work": str(options.work)},
        "machine": machine() | {"file_system": file_system(options.work)},
        "versions": versions(options.subjects),
    }

    def save(found: dict[str, Any]) -> None:
        document.update(found, load_at_end=round(os.getloadavg()[0], 2))
        document["requirements"] = page.summary(document)
        if target:
            partial = target.with_suffix(".partial")
            partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            partial.replace(target)

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Drawn where a step was done and not in between: drawing takes time from a core that is being measured.
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        save(Run(options, console, progress, save).everything())
    return document


def main() -> None:
    arguments = parsed()
    if arguments.child is not None:
        child.main(arguments.child)
        return
    console = Console()
    out = arguments.out
    if arguments.render:
        document = merged([json.loads(file.read_text(encoding="utf-8")) for file in arguments.render])
        out = out or PAGE
    else:
        names = ("sizes", "data", "subjects", "large", "parts", "turns", "seconds", "write_limit", "limit", "keep")
        chosen = {name: getattr(arguments, name) for name in names}
        options = Options(**chosen, work=arguments.work.resolve())
        document = measured(options, arguments.json, console)
        full = set(arguments.sizes) >= set(SIZES) and arguments.seconds >= SECONDS
        full = full and len(set(arguments.subjects)) == len(known_subjects())
        full = full and set(arguments.data) == set(DATA) and set(arguments.parts) == set(PARTS)
        out = out or (PAGE if full and not document["failures"] else None)
    page.shown(console, document)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        found = plots.draw(document, out.parent)
        out.write_text(page.markdown(document, found), encoding="utf-8")
        console.print(f"written: {out}", markup=False, highlight=False)
    if document["failures"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
