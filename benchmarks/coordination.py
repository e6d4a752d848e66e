"""Messages between two processes, beside Redis, multiprocessing.Queue and pyzmq; a lock from hand to hand.

    python benchmarks/coordination.py [--quick] [--turns N] [--channels NAME ...] [--json FILE] [--out FILE]

A full run takes some minutes and writes docs/benchmarks/coordination.md. Redis is measured where the `redis` client is
installed (extra `bench`) and `redis-server` is on the path: the server is started on loopback for each turn, and ended.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from _workload import SEED, machine, versions
from coordinationbench import locks, page
from coordinationbench.messages import CHANNELS, NAMES, measured, sync_seconds
from coordinationbench.rivals import DISTRIBUTIONS
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "coordination.md"
TURNS = 3
RATE = 500
COUNT = 2_500
FLAT_COUNT = 50_000
HAND_OVERS = 400


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="one turn of a tenth of the messages")
    add("--turns", type=int, default=TURNS, help=f"how often everything is measured ({TURNS})")
    add("--channels", nargs="+", choices=sorted(NAMES), metavar="NAME", help=f"some of: {', '.join(NAMES)}")
    add("--json", type=Path, metavar="FILE", help="write everything measured here")
    add("--render", type=Path, metavar="FILE", help="write the page of such a file, and measure nothing")
    add("--out", type=Path, help="write the page here (a full run: docs/benchmarks/coordination.md)")
    arguments = parser.parse_args()
    if arguments.turns < 1:
        parser.error("--turns is at least 1")
    return arguments


def document_of(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Everything measured in a run."""
    share = 10 if arguments.quick else 1
    turns = 1 if arguments.quick else arguments.turns
    wanted = [channel for channel in CHANNELS if channel.name in (arguments.channels or NAMES)]
    absent = {channel.name: why for channel in wanted if (why := channel.absent())}
    names = [channel.name for channel in wanted if channel.name not in absent]
    document: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "seed": SEED,
        "machine": machine(),
        "versions": versions(*DISTRIBUTIONS),
        "turns": turns,
        "rate": RATE,
        "count": COUNT // share,
        "flat_count": FLAT_COUNT // share,
        "absent": absent,
        "messages": [],
    }
    with tempfile.TemporaryDirectory(prefix="tiermem-bench-") as root:
        document["sync_ms"] = sync_seconds(Path(root)) * 1e3
    planned = []
    for turn in range(turns):
        order = names.copy()
        random.Random(SEED + turn).shuffle(order)
        planned += [(name, busy) for name in order for busy in (True, False) if busy or NAMES[name].gathers]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Drawn between measurements only: drawing takes time from a core that is being measured.
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        task = progress.add_task("", total=len(planned) + turns)
        for name, busy in planned:
            progress.update(task, description=f"{name}, {'busy' if busy else 'flat out'}", refresh=True)
            count, rate = (document["count"], RATE) if busy else (document["flat_count"], 0)
            document["messages"].append(measured(name, count, rate, busy=busy))
            progress.update(task, advance=1, refresh=True)
        document["locks"] = []
        for _ in range(turns):
            progress.update(task, description="a lock from hand to hand", refresh=True)
            document["locks"].append(locks.measured(HAND_OVERS // share))
            progress.update(task, advance=1, refresh=True)
    document["load_at_end"] = round(os.getloadavg()[0], 2)
    document["requirements"] = page.summary(document)
    return document


def main() -> None:
    arguments = parsed()
    console = Console()
    out = arguments.out
    if arguments.render:
        document = json.loads(arguments.render.read_text(encoding="utf-8"))
        out = out or PAGE
    else:
        document = document_of(arguments, console)
        if arguments.json:
            arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        full = not arguments.quick and not arguments.channels and arguments.turns >= TURNS
        out = out or (PAGE if full else None)
    page.shown(console, document)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page.markdown(document), encoding="utf-8")
        console.print(f"written: {out}", markup=False, highlight=False)


if __name__ == "__main__":
    main()
