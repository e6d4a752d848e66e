"""Processes beside each other: when a put of one is seen by another, and what a stopped or an idle one costs.

    python benchmarks/visibility.py [--seconds 4] [--parts visible,flush,stopped,idle] [--json FILE] [--out FILE]

A full run (all parts, 4 seconds each or more) writes docs/benchmarks/visibility.md; a narrower one only where `--out`
says so. Every process is an interpreter of its own. What a put takes to be seen is measured five times in turn. A full
run takes 15 minutes; nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from _sheets import REQUIREMENTS, Requirement, Sheet, number, origin, show, verdict
from _workload import SEED, machine, versions
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from visibilitybench import cells

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "visibility.md"
PARTS = ("visible", "flush", "stopped", "idle")
SECONDS = 4.0
ROUNDS = 5
RATE = 1_000
PAUSE = 0.0002
TURNS = 12
STOP = 1.5
CLIENTS = 4
IDLE = 10.0
TARGET_MS = 5.0
BLOCKED_MS = 1_000.0
IDLE_SHARE = 0.05

Document = dict[str, Any]


def steps(parts: list[str], seconds: float) -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    """(part, function of `cells`, its arguments) of every measurement."""
    if "visible" in parts:
        # Each row in every round: a disk that stalls for a while spoils a round of some rows, not a row.
        for _ in range(ROUNDS if seconds >= SECONDS else 1):
            for where in (cells.DISK, cells.MEMORY) if cells.SHM.is_dir() else (cells.DISK,):
                if where == cells.DISK:
                    yield "sync", "synced", (seconds,)
                for way in cells.WAYS:
                    yield "visible", "visible", (way, "auto", where, RATE, seconds)
                yield "visible", "visible", ("get", cells.ORDINARY, where, RATE, seconds)
                yield "visible", "visible", ("get", "thread", where, RATE, seconds)
                for home in ("auto", "thread"):
                    yield "visible", "visible", ("get", home, where, RATE, seconds, PAUSE)
    if "flush" in parts:
        yield "flush", "flushed", (2 * seconds,)
    if "stopped" in parts:
        turns = TURNS if seconds >= SECONDS else 2
        for home in cells.HOMES:
            for work in ("puts", "compare-and-sets"):
                yield "stopped", "stopped", (home, work, turns, STOP)
    if "idle" in parts:
        for home in ("thread", "helper"):
            yield "idle", "idle", (home, CLIENTS, IDLE if seconds >= SECONDS else seconds)


def measured(parts: list[str], seconds: float, console: Console) -> Document:
    """The document of a run."""
    document: Document = {
        "date": datetime.now(UTC).date().isoformat(),
        "seed": SEED,
        "seconds": seconds,
        "machine": machine(),
        "versions": versions(),
        "found": {part: [] for part in ("sync", *parts)},
    }
    planned = list(steps(parts, seconds))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Drawn where a measurement begins and not in between: drawing takes time from a core that is being measured.
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        task = progress.add_task("", total=len(planned))
        for part, name, arguments in planned:
            progress.update(task, description=" ".join(map(str, (name, *arguments))), refresh=True)
            document["found"][part].append(getattr(cells, name)(*arguments))
            progress.update(task, advance=1, refresh=True)
    document["load_at_end"] = round(os.getloadavg()[0], 2)
    return document


def over_rounds(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each cell that was measured in several rounds: medians, and the worst round."""
    rounds: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for one in found:
        rounds.setdefault((one["where"], one["way"], one["home"], one["pause"]), []).append(one)

    def tail(one: dict[str, Any]) -> float:
        return float(one["p99"] if one["p99"] is not None else one["max"])

    # Where commits were made at the end is that of the last round.
    return [
        {
            **same[-1],
            "count": sum(one["count"] for one in same),
            "p50": median(one["p50"] for one in same),
            "p99": median(map(tail, same)),
            "worst": max(map(tail, same)),
            "max": max(one["max"] for one in same),
            "rounds": len(same),
        }
        for same in rounds.values()
    ]


def demands(found: dict[str, list[dict[str, Any]]]) -> list[Requirement]:
    """What was promised, beside what was measured."""
    made: list[Requirement] = []

    def ask(text: str, said: str, holds: bool) -> None:
        made.append(Requirement(text, said, holds, verdict(holds)))

    for one in over_rounds(found.get("visible", [])):
        if one["home"] == "auto" and one["way"] != "ns[key]":
            loop = ("both spin" if not one["pause"] else "the reader waits") + f", store {one['where']}"
            said = f"{number(one['p99'])} ms"
            if one["rounds"] > 1:
                said += f" (worst of {one['rounds']} rounds: {number(one['worst'])})"
            ask(f"a put is seen by `{one['way']}` within 5 ms at p99, {RATE:,}/s, {loop}", said, one["p99"] < TARGET_MS)
    for one in found.get("flush", []):
        ask("seen at once after `flush()`", f"{one['missed']} of {one['looks']:,} missed", not one["missed"])
    for one in found.get("stopped", []):
        if one["home"] == "thread":
            continue
        longest = max(one["longest"].values())
        text = f"a stopped writer ({one['work']}, {one['home']}) blocks nobody for longer than a second"
        ask(text, f"longest call {number(longest)} ms", longest <= BLOCKED_MS)
    for one in found.get("idle", []):
        text = f"{one['clients']} open clients do not poll ({one['home']})"
        ask(text, f"{one['all']:.2%} of a core, all together", one["all"] <= IDLE_SHARE)
    return made


def stalls(syncs: list[dict[str, Any]]) -> str:
    """What the disk itself took."""
    if not syncs:
        return ""
    p50, p99 = (number(median(one[share] for one in syncs)) for share in ("p50", "p99"))
    share = ", ".join(f"{one['stalled']:.1%}" for one in syncs)
    return (
        f"A sync of one page of a file on this disk, with nothing else at work, took {p50} ms at p50 and {p99} at p99, "
        f"{number(max(one['max'] for one in syncs))} at most; syncs of more than 5 ms took, of the time of each round, "
        f"{share}: where that is more than 1%, no p99 below 5 ms can be had."
    )


def sheets(found: dict[str, list[dict[str, Any]]]) -> list[Sheet]:
    """The tables of what was measured."""
    made = []
    if rows := over_rounds(found.get("visible", [])):
        text = (
            "The writer puts on a schedule in a loop of pure Python that never waits. The reader looks again and "
            f"again, in a loop that never waits either, or that sleeps {PAUSE * 1e3:g} ms after each look. The "
            "time runs from the beginning of the put to the end of the first look that finds it, or a later one: "
            f"the look is in it. Two seconds of the same load went before. {rows[0]['rounds']} rounds of "
            f"{rows[0]['seconds']:g} s each, in turn, a new store in each: medians of them, and the worst. "
            "`committer` is what was asked for, and where commits were made at the end. `ns[key]` alone never looks at "
            "what others committed: a thread "
            "does for it, four times a second. Where as many loops spin as there are cores, the helper has none of its "
            "own; it runs at real-time priority where the user may do that, as here. At ordinary priority it may have "
            "to wait for a tick of the system's clock (4 ms) after each of the two syncs of a commit. What is "
            "committed is synced before anybody sees it: a store in memory (`/dev/shm`) shows what is left. "
        )
        text += stalls(found.get("sync", []))
        columns = ["store", "seen by", "committer", "reader", "puts", "p50 ms", "p99 ms", "worst p99 ms", "max ms"]
        body = [
            [
                one["where"],
                f"`{one['way']}`",
                one["home"] if one["home"] == one["committer"] else f"{one['home']}: {one['committer']}",
                "waits" if one["pause"] else "spins",
                f"{one['count']:,}",
                *(number(one[share]) for share in ("p50", "p99", "worst", "max")),
            ]
            for one in rows
        ]
        made.append(Sheet("From one process to another", text, columns, body, words=4))
    if rows := found.get("flush"):
        text = (
            "One process puts a number, flushes, and writes the number on a shared page; the other reads the page "
            "and then gets the record, in a loop that never waits. The times are those of `flush()`."
        )
        body = [
            [
                f"{one['looks']:,}",
                f"{one['missed']:,}",
                f"{one['count']:,}",
                *(number(one[p]) for p in ("p50", "p99", "max")),
            ]
            for one in rows
        ]
        made.append(
            Sheet("Behind a flush", text, ["looks", "missed", "flushes", "p50 ms", "p99 ms", "max ms"], body, words=0)
        )
    if rows := found.get("stopped"):
        verbs = list(rows[0]["longest"])
        text = (
            f"One process writes without a pause and is stopped (SIGSTOP) for {rows[0]['pause']:g} s at a random "
            f"moment, {rows[0]['turns']} times. Another goes on meanwhile; its longest calls, in milliseconds. "
            "Whoever is stopped inside a transaction holds LMDB's write lock: a plain put never waits for it, a "
            "conditional write and `flush()` do. Where a helper commits, clients leave theirs to it and take no lock; "
            "by default there is one soon after two clients write. Who asks for a `thread` has none. "
            "“Blocked”: turns in which a call took longer than a second."
        )
        body = [
            [one["work"], one["home"], *(number(one["longest"][name]) for name in verbs), str(one["blocked"])]
            for one in rows
        ]
        made.append(Sheet("Beside a stopped writer", text, ["it makes", "committer", *verbs, "blocked"], body, words=2))
    if rows := found.get("idle"):
        text = (
            "Clients that have the store open and do nothing, one of which waits in `changes(wait=60)`: processor "
            f"time, as a share of a core, over {rows[0]['seconds']:g} s."
        )
        body = [
            [
                one["home"],
                str(one["clients"]),
                f"{one['client']:.3%}",
                f"{one['waiting']:.3%}",
                "–" if one["helper"] is None else f"{one['helper']:.3%}",
                f"{one['all']:.3%}",
            ]
            for one in rows
        ]
        columns = ["committer", "clients", "a client", "the one that waits", "the helper", "all"]
        made.append(Sheet("Idle", text, columns, body))
    return made


def markdown(document: Document, bounds: list[Requirement], tables: list[Sheet]) -> str:
    """The page."""
    lines = ["# Visibility", "", origin("visibility.py", document, document["seed"]), ""]
    lines += [
        "Several processes on one store, each an interpreter of its own, with the default configuration but for the"
    ]
    lines += ["committer where a table names one. Times of different processes are read from one monotonic clock.", ""]
    rows = [[bound.text, bound.measured, bound.verdict] for bound in bounds]
    first = Sheet("Requirements", "", list(REQUIREMENTS), rows, words=3)
    for sheet in [first, *tables]:
        lines += [f"## {sheet.heading}", ""] + ([sheet.text, ""] if sheet.text else []) + [*sheet.lines(), ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--seconds", type=float, default=SECONDS, help="how long each measurement takes (8)")
    add("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    add("--json", type=Path, metavar="FILE", help="write everything measured here")
    add("--render", type=Path, metavar="FILE", help="write the page of such a file, and measure nothing")
    add("--out", type=Path, help="write the page here (a full run: docs/benchmarks/visibility.md)")
    arguments = parser.parse_args()
    parts = [part for part in PARTS if part in arguments.parts.split(",")]
    if not parts or arguments.seconds <= 0:
        parser.error(f"--parts are some of {', '.join(PARTS)}, --seconds are positive")
    console = Console()
    if arguments.render:
        document = json.loads(arguments.render.read_text(encoding="utf-8"))
        out = arguments.out or PAGE
    else:
        document = measured(parts, arguments.seconds, console)
        full = arguments.seconds >= SECONDS and parts == list(PARTS)
        out = arguments.out or (PAGE if full else None)
    bounds, tables = demands(document["found"]), sheets(document["found"])
    document["requirements"] = [{"text": b.text, "measured": b.measured, "verdict": b.verdict} for b in bounds]
    show(console, [(b.text, b.measured, b.verdict) for b in bounds], tables)
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(markdown(document, bounds, tables), encoding="utf-8")
        console.print(f"written: {out}", markup=False, highlight=False)


if __name__ == "__main__":
    main()
