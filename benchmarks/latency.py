"""Latency as a program feels it: puts and gets in four kinds of loops, on a schedule and flat out; memory over time.

    python benchmarks/latency.py [--seconds 60] [--loops spin,wait] [--rates 20000,flat] [--parts loops,durable]

A full run (all parts, loops and rates, 60 seconds each or more) writes docs/benchmarks/latency.md and its plots; a
narrower one only where `--out` says so. Every measurement runs in a process of its own. A full run takes three quarters
of an hour, 2 GiB of memory and some GB of disk; nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from _workload import OURS, SEED, installed, machine
from latencybench import children, page, plots
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import tiermem

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "latency.md"
LOOPS = ["spin", "wait", "threads", "asyncio"]
RATES = ["1000", "20000", "100000", "flat"]
PARTS = ["loops", "overwrites", "durable", "start", "position"]
MIXES = ["slot", "new", "held"]
SECONDS = 60.0
RECORDS = 1_000_000
THREADS = (1, 16)
TURNS = 3
STARTS = 25
SLOT_SECONDS = 10.0

Step = tuple[str, str, dict[str, Any]]
"""The part it belongs to, the section that measures it, and what that is told."""


def listed(known: list[str], *, numbers: bool = False) -> Callable[[str], list[str]]:
    """What reads a comma-separated list of known names, and of positive numbers where they will do."""

    def read(text: str) -> list[str]:
        parts = [part.strip().replace("_", "") for part in text.split(",") if part.strip()]
        wrong = [part for part in parts if part not in known and not (numbers and part.isdigit() and int(part))]
        if wrong or not parts:
            raise argparse.ArgumentTypeError(f"{text!r} is not some of {', '.join(known)}")
        return parts

    return read


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--seconds", type=float, default=SECONDS, help="how long each loop runs (60)")
    add("--rates", type=listed(RATES, numbers=True), default=RATES, help=f"operations a second ({','.join(RATES)})")
    add("--loops", type=listed(LOOPS), default=LOOPS, help=f"some of {', '.join(LOOPS)}")
    add("--parts", type=listed(PARTS), default=PARTS, help=f"some of {', '.join(PARTS)}")
    add("--records", type=int, default=RECORDS, help="records of the store that is overwritten at random (1000000)")
    add("--starts", type=int, default=STARTS, help="lives of each kind of interpreter (25)")
    add("--json", type=Path, metavar="FILE", help="write everything measured here, after each measurement")
    add("--render", type=Path, metavar="FILE", help="write the page of such a file, and measure nothing")
    add("--out", type=Path, help="write the page here, its plots beside it (a full run: docs/benchmarks/latency.md)")
    arguments = parser.parse_args()
    if arguments.seconds <= 0 or arguments.records < 1000 or arguments.starts < 1:
        parser.error("--seconds and --starts are positive, --records is at least 1000")
    return arguments


def steps(arguments: argparse.Namespace) -> Iterator[Step]:
    """Every measurement of a run, in order."""
    seconds, records = arguments.seconds, arguments.records
    if "loops" in arguments.parts:
        for loop in arguments.loops:
            for rate in arguments.rates:
                for mix in MIXES:
                    pace = 0 if rate == "flat" else int(rate)
                    spec = {"loop": loop, "rate": pace, "mix": mix, "seconds": seconds, "records": records}
                    if mix == "slot":
                        spec["seconds"] = min(SLOT_SECONDS, seconds)
                    # Flat out there is nothing to be late for, so the loop alone says nothing.
                    if pace or mix != "slot":
                        yield "loops", "cell", spec
    if "overwrites" in arguments.parts:
        yield "overwrites", "overwrites", {"records": records, "seconds": seconds}
    if "durable" in arguments.parts:
        for turn in range(TURNS):
            for threads in THREADS:
                yield "durable", "durable", {"turn": turn, "threads": threads, "seconds": seconds / 6}
    if "start" in arguments.parts:
        yield "start", "start", {"turns": arguments.starts}
    if "position" in arguments.parts:
        yield "position", "position", {"instruments": 10_000, "updates": 1_000, "seconds": seconds}


def title(section: str, spec: dict[str, Any]) -> str:
    if section == "cell":
        return f"{spec['loop']} {spec['rate'] or 'flat out'} {spec['mix']}"
    return f"durable, {spec['threads']} thread(s)" if section == "durable" else section


def measured(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """The document of a run."""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    document: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "seed": SEED,
        "seconds": arguments.seconds,
        "records": arguments.records,
        "machine": machine(),
        "versions": {"tiermem": tiermem.__version__, "python": python}
        | {name: known for name in OURS if (known := installed(name))},
        "found": {part: [] for part in arguments.parts},
    }
    planned = list(steps(arguments))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Drawn where a measurement begins and not in between: drawing takes time from a core that is being measured.
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        task = progress.add_task("", total=len(planned))
        for part, section, spec in planned:
            progress.update(task, description=title(section, spec), refresh=True)
            found = children.run(section, spec, lambda _: None)
            document["found"][part].append(found)
            document["load_at_end"] = round(os.getloadavg()[0], 2)
            document["requirements"] = page.summary(document)
            if arguments.json:
                partial = arguments.json.with_suffix(".partial")
                partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
                partial.replace(arguments.json)
            progress.update(task, advance=1, refresh=True)
    return document


def main() -> None:
    arguments = parsed()
    console = Console()
    out = arguments.out
    if arguments.render:
        document = json.loads(arguments.render.read_text(encoding="utf-8"))
        out = out or PAGE
    else:
        document = measured(arguments, console)
        full = arguments.seconds >= SECONDS and arguments.records >= RECORDS and arguments.starts >= STARTS
        full = full and set(arguments.loops) == set(LOOPS) and set(arguments.rates) >= set(RATES)
        out = out or (PAGE if full and set(arguments.parts) == set(PARTS) else None)
    page.shown(console, document)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        found = plots.draw(document, out)
        if found is None:
            console.print("no plots: matplotlib is not installed")
        out.write_text(page.markdown(document, found or {}), encoding="utf-8")
        console.print(f"written: {out}", markup=False, highlight=False)


if __name__ == "__main__":
    main()
