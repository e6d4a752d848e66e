"""Space: what deleting, overwriting and expiry leave on disk, what `compact` gives back, and what waits meanwhile.

    python benchmarks/space.py [--quick] [--json FILE] [--out FILE]

A full run writes docs/benchmarks/space.md; a quick one a page only where `--out` says so. SQLite and raw LMDB take the
same steps. A full run takes two minutes; nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from _sheets import REQUIREMENTS, Requirement, Sheet, number, origin, show, verdict
from _workload import RECORD_BYTES, SEED, machine, versions
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from spacebench import steps
from spacebench.stores import STORES, Tiermem

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "space.md"
RECORDS, VECTORS = 200_000, 20_000
FREE, SLACK = 0.01, 2**20
HALVED = 0.6
BLOCKED_MS = 1_000.0
GROWTH = 1.1
SETTLED = 2
"""The round behind which a file that is written over and over has found its size."""

Document = dict[str, Any]


def measured(*, quick: bool, console: Console) -> Document:
    """The document of a run."""
    records, vectors = (RECORDS // 20, VECTORS // 20) if quick else (RECORDS, VECTORS)
    document: Document = {
        "date": datetime.now(UTC).date().isoformat(),
        "seed": SEED,
        "quick": quick,
        "records": records,
        "vectors": vectors,
        "machine": machine(),
        "versions": versions() | {"sqlite": sqlite3.sqlite_version},
        "found": [],
    }
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Drawn where a step begins and not in between: drawing takes time from a core that is being measured.
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        task = progress.add_task("", total=len(STORES) * (len(steps.STEPS) + steps.ROUNDS))

        def told(text: str) -> None:
            progress.update(task, advance=1, description=text, refresh=True)

        for name in STORES:
            document["found"].append(steps.measured(name, records, vectors, told))
    document["load_at_end"] = round(os.getloadavg()[0], 2)
    return document


def files(parts: dict[str, int]) -> int:
    """Bytes on disk but for the journals, which are allocated once and used again."""
    return parts["all"] - parts.get("journals", 0)


def free(one: dict[str, Any]) -> int:
    """Bytes of L3 in no database."""
    return int(2 * one["databases"]["file"] - sum(one["databases"].values()))


def demands(found: list[dict[str, Any]]) -> list[Requirement]:
    """What was promised, beside what was measured."""
    made: list[Requirement] = []

    def ask(text: str, said: str, holds: bool) -> None:
        made.append(Requirement(text, said, holds, verdict(holds)))

    mine = next(one for one in found if one["store"] == Tiermem.name)
    taken = {one["step"]: one for one in mine["steps"]}
    full, half, written, left = (taken[name] for name in steps.STEPS)
    for text, what, later, before in (
        ("half of the records are deleted at random", "databases", half, full),
        ("half of the vectors are", "after", half, full),
        ("half of the records left expire", "databases", left, written),
    ):
        name = "records" if what == "databases" else "segments"
        share = later[what][name] / before[what][name]
        ask(f"{text}: behind `compact` {name} take ≤ {HALVED:g} × as much", f"{share:.2f} ×", share <= HALVED)
    most = max(free(one) / one["databases"]["file"] for one in mine["steps"])
    ask(
        "`compact` leaves no free pages: ≤ 1 % of the file, or 1 MiB, a second of writing later",
        f"at most {most:.1%}",
        all(free(one) <= max(SLACK, FREE * one["databases"]["file"]) for one in mine["steps"]),
    )
    longest = max(call["max"] or 0.0 for one in mine["steps"] for call in one["compaction"]["calls"].values())
    ask(
        "others work meanwhile: no put and no get of another process takes longer than a second",
        f"longest {number(longest)} ms",
        longest <= BLOCKED_MS,
    )
    growth = mine["rounds"][-1]["l3"] / mine["rounds"][SETTLED]["l3"]
    text = f"written over again and again, the file stops growing: round {steps.ROUNDS} ≤ {GROWTH:g} × round 3"
    ask(text, f"{growth:.2f} ×", growth <= GROWTH)
    return made


def sheets(document: Document) -> list[Sheet]:
    """The tables of what was measured."""
    found = document["found"]

    def mb(size: float) -> str:
        return number(size / 1e6)

    text = (
        "Megabytes. *Live* are keys, values as MessagePack, and float32 vectors that are there; *before* and *after* "
        "are the files of the store around the compaction, without the journals of tiermem (16.8 MB for each client, "
        "allocated once). Each step begins with what the one before has left."
    )
    body = [
        [
            one["step"],
            store["store"],
            mb(one["live"]),
            mb(files(one["before"])),
            mb(files(one["after"])),
            mb(files(one["before"]) - files(one["after"])),
            f"{files(one['after']) / one['live']:.2f}",
        ]
        for place in range(len(steps.STEPS))
        for store in found
        for one in (store["steps"][place],)
    ]
    columns = ["step", "store", "live", "before", "after", "given back", "after ÷ live"]
    made = [Sheet("On disk", text, columns, body, words=2)]
    mine = next(one for one in found if one["store"] == Tiermem.name)
    text = (
        "Megabytes of the pages of tiermem's databases, and of its segments. A compaction copies pages as they are, "
        "without those that are free; where an eighth of them could be saved by filling the others, it writes them "
        "anew, row by row. The change log holds the newest 250,000 changes."
    )
    names = [*steps.LARGE, "others"]
    body = [
        [
            one["step"],
            *(mb(one["databases"].get(name, 0)) for name in names),
            mb(free(one)),
            mb(one["after"]["segments"]),
        ]
        for one in mine["steps"]
    ]
    columns = ["behind `compact`", *names, "free", "segments"]
    made.append(Sheet("What is left in tiermem", text, columns, body))
    text = (
        "Seconds of the step, until it is on disk, and of the compaction; then the calls of another process, which "
        f"puts and gets by turns and sleeps {steps.PAUSE * 1e3:g} ms behind each pair: the longest while it was "
        f"compacted, and in brackets the longest in {steps.CALM:g} s before. Raw LMDB's copy is put in place of the "
        "file with nobody at work. Building the vector index is in tiermem's steps, the others have none."
    )

    def beside(one: dict[str, Any], verb: str) -> str:
        compaction = one["compaction"]
        if not compaction["calls"]:
            return "–"
        return f"{number(compaction['calls'][verb]['max'])} ({number(compaction['calm'][verb]['max'])})"

    body = [
        [
            one["step"],
            store["store"],
            number(one["seconds"]),
            number(one["compaction"]["seconds"]),
            beside(one, "put"),
            beside(one, "get"),
        ]
        for place in range(len(steps.STEPS))
        for store in found
        for one in (store["steps"][place],)
    ]
    columns = ["step", "store", "step s", "compaction s", "longest put ms", "longest get ms"]
    made.append(Sheet("Time, and who waits", text, columns, body, words=2))
    text = (
        "Megabytes of the files, without journals, when all records that are left are put again in random order, "
        f"{steps.ROUNDS} times, and nothing is compacted."
    )
    body = [[one["store"], *(mb(files(parts)) for parts in one["rounds"])] for one in found]
    made.append(Sheet("Written over again", text, ["store", *(f"{n + 1}." for n in range(steps.ROUNDS))], body))
    return made


def markdown(document: Document, bounds: list[Requirement], tables: list[Sheet]) -> str:
    """The page."""
    lines = ["# Space", "", origin("space.py", document, document["seed"]), ""]
    lines += [
        f"{document['records']:,} records of {RECORD_BYTES} bytes of MessagePack and {document['vectors']:,} vectors "
        f"of {steps.DIMENSION} dimensions. Half of both is deleted at random; what is left is written over, half of "
        "the records with a TTL; then that has passed. Behind every step a compaction, while another process works: "
        "`compact()` of tiermem with the default configuration and nothing in L1, `VACUUM` and a checkpoint of SQLite "
        "(write-ahead log, `synchronous=NORMAL`), a compacting copy of LMDB. The rivals write 10,000 rows in a "
        "transaction.",
        "",
    ]
    rows = [[bound.text, bound.measured, bound.verdict] for bound in bounds]
    for sheet in [Sheet("Requirements", "", list(REQUIREMENTS), rows, words=3), *tables]:
        lines += [f"## {sheet.heading}", ""] + ([sheet.text, ""] if sheet.text else []) + [*sheet.lines(), ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="a twentieth of the records, to see that everything runs")
    add("--json", type=Path, metavar="FILE", help="write everything measured here")
    add("--render", type=Path, metavar="FILE", help="write the page of such a file, and measure nothing")
    add("--out", type=Path, help="write the page here (a full run: docs/benchmarks/space.md)")
    arguments = parser.parse_args()
    console = Console()
    if arguments.render:
        document = json.loads(arguments.render.read_text(encoding="utf-8"))
    else:
        document = measured(quick=arguments.quick, console=console)
    bounds, tables = demands(document["found"]), sheets(document)
    document["requirements"] = [asdict(bound) for bound in bounds]
    show(console, [(bound.text, bound.measured, bound.verdict) for bound in bounds], tables)
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    out = arguments.out or (None if arguments.quick else PAGE)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(markdown(document, bounds, tables), encoding="utf-8")
        console.print(f"written: {out}", markup=False, highlight=False)


if __name__ == "__main__":
    main()
