"""Tables of everything measured, as Markdown and on the terminal."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, Final

from _sheets import Sheet, origin, show
from _workload import RECORD_BYTES
from rich.console import Console

from latencybench.cells import HELD, THREADS, WARM
from latencybench.extras import SINGLE_EVERY
from latencybench.requirements import (
    Document,
    Found,
    beyond,
    committed_rate,
    group,
    memory,
    micro,
    rate,
    requirements,
    short,
    steps,
)

TITLES: Final = {
    "spin": "A loop that spins",
    "wait": "A loop that waits",
    "threads": "Four threads",
    "asyncio": "asyncio",
}
TEXTS: Final = {
    "spin": "One thread reads the clock in pure Python until the next operation is due, and never waits. The "
    "interpreter gives the committer's thread a turn only when it takes one from the loop.",
    "wait": "One thread waits in `select` on a pipe, with the time until the next operation as its timeout; when late "
    "it asks once, without waiting, before each operation, and so it does flat out. The system wakes a sleeper some "
    "50 µs late: see the row of the empty loop.",
    "threads": f"{THREADS} threads, each with a quarter of the rate, staggered, each waiting as above. Flat out they "
    "never wait and compete for the interpreter, which passes from one to the next every 5 ms.",
    "asyncio": f"{THREADS} tasks of one event loop, each with a quarter of the rate, sleep with `asyncio.sleep` until "
    "the next operation is due, and for no time when late. They await `amem.put`, which runs in a thread, and "
    "`amem.get`, which does not leave the loop's thread where L1 holds the value. The event loop's own timers have a "
    "resolution of a millisecond.",
}
KINDS: Final = (
    ("slot", "put", "a slot of a dict"),
    ("new", "put", "put, new keys"),
    ("held", "put", "put, in turns with gets"),
    ("held", "get", "get, in turns with puts"),
)
COLUMNS: Final = ("p50", "p99", "p99.9", "p99.99", "max")


def summary(document: Document) -> list[dict[str, Any]]:
    """The requirements as they are kept in the document."""
    return [asdict(one) | {"verdict": one.verdict} for one in requirements(document)]


def pace(found: Found) -> str:
    return f"{found['rate']:,}/s" if found["rate"] else "flat out"


def loop_sheet(document: Document, loop: str) -> Sheet:
    rows = []
    cells = [one for one in document["found"]["loops"] if one["loop"] == loop]
    for offered in dict.fromkeys(one["rate"] for one in cells):
        for mix, verb, name in KINDS:
            for one in cells:
                if (one["rate"], one["mix"]) != (offered, mix):
                    continue
                done = f"{rate(one):,.0f}"
                if offered and rate(one) < 0.98 * offered:
                    done += " (behind)"
                for kind, told in (("service", "the call"), ("due", "since due")):
                    times = one[verb][kind]
                    if times:
                        rows.append([pace(one), name, told, done, *(micro(times[column]) for column in COLUMNS)])
    columns = ["offered", "operation", "time", "done/s", *(f"{column} µs" for column in COLUMNS)]
    return Sheet(TITLES[loop], TEXTS[loop], columns, rows, words=3)


def memory_sheet(document: Document) -> Sheet:
    rows = []
    for one in document["found"]["loops"]:
        if one["mix"] == "slot":
            continue
        found = memory(one) or {}
        pending = [row[1] for row in one["backlog"]]
        journaled = max(row[2] for row in one["backlog"]) / 2**20
        own = [short(found.get(name)) for name in ("warm", "end", "most", "warm_files", "end_files")]
        flushed = [f"{statistics.median(pending):,.0f}", f"{max(pending):,}", f"{pending[-1]:,}", short(journaled)]
        flushed += [f"{one['flush_seconds'] * 1e3:,.0f}", f"{committed_rate(one):,.0f}"]
        mix = "new keys" if one["mix"] == "new" else "in turns"
        rows.append([TITLES[one["loop"]].lower().removeprefix("a loop that "), pace(one), mix, *own, *flushed])
    text = (
        "Resident MiB of the process when warm (after 10 s, or half of a shorter run), at the end, and at most in "
        "between, without the room for the times themselves; then the resident pages of mapped files, which are shared "
        "with the page cache and grow with the store. `pending`: records that were put and not yet committed, looked "
        "at once a second (median, most) and at the end; a key counts once, however often it was put, "
        "but not in the MiB of the journal that they take at most. Then how long `flush()` took, and the operations a "
        "second counted until it had returned."
    )
    columns = ["loop", "offered", "keys", "own, warm", "own, end", "own, most", "files, warm", "files, end"]
    columns += ["pending", "most", "at the end", "journaled, most", "flush ms", "done and flushed/s"]
    return Sheet("Memory and the backlog of the commit", text, columns, rows, words=3)


def overwrite_sheet(one: Found) -> Sheet:
    times = one["put"]["service"]
    pending = [row[1] for row in one["backlog"]]
    row = [f"{rate(one):,.0f}", f"{committed_rate(one):,.0f}", *(micro(times[column]) for column in COLUMNS)]
    row += [f"{max(pending):,}", f"{pending[-1]:,}", f"{one['flush_seconds']:.2f}"]
    text = (
        f"{one['records']:,} records, put in {one['loading_seconds']:.0f} s with a `flush()` every 10,000; then single "
        f"puts of keys chosen at random among them, flat out, for {one['elapsed']:.0f} s. {one['done']:,} were made."
    )
    columns = ["put", "made/s", "done and flushed/s", *(f"{column} µs" for column in COLUMNS)]
    columns += ["pending, most", "at the end", "flush s"]
    return Sheet("Overwriting at random", text, columns, [["overwriting", *row]])


def durable_sheet(document: Document) -> Sheet:
    rows = []
    runs = document["found"]["durable"]
    for threads in sorted({run["threads"] for run in runs}):
        own = [run for run in runs if run["threads"] == threads]
        rates = [rate(run) for run in own]
        each = statistics.median(run["done"] / max(1, run["commits"]) for run in own)
        row = [f"{threads}", f"{statistics.median(rates):,.0f}", f"{min(rates):,.0f}–{max(rates):,.0f}", short(each)]
        for column in COLUMNS:
            known = [run["put"][column] for run in own if run["put"][column] is not None]
            row.append(micro(statistics.median(known)) if known else "–")
        rows.append(row)
    ratios = group(document)
    told = f" Turn by turn the rates differ {min(ratios):.2f}- to {max(ratios):.2f}-fold." if ratios else ""
    text = (
        f"`put(durable=True)`, which returns after the fsync, by one thread and by many in turns of "
        f"{runs[0]['seconds']:g} s, each in a process of its own; medians of the turns. Threads that wait at the same "
        f"time share a commit.{told}"
    )
    columns = ["threads", "puts/s", "lowest–highest", "puts a commit", *(f"{column} µs" for column in COLUMNS)]
    return Sheet("Durable puts", text, columns, rows)


def start_sheet(one: Found) -> Sheet:
    rows = []
    for name, walls in one["walls"].items():
        bare = "bare, leaving at once" if "leaving" in name else "bare"
        inner = steps(one, name) if name in one["steps"] else {}
        row = [name, f"{statistics.median(walls) / 1e6:.1f}", f"{min(walls) / 1e6:.1f}"]
        row.append("–" if name == bare else f"{beyond(one, name, bare):.1f}")
        row += [short(inner.get(step)) for step in ("import", "open", "put", "get", "close")]
        rows.append(row)
    loaded = "are loaded" if one["heavy"] else "are not loaded"
    text = (
        f"{one['turns']} lives of each kind of interpreter, in turns, each timed from outside; then its steps, in "
        "milliseconds by its own clock. The store holds 1,000 values, and no vectors; numpy and faiss "
        f"{loaded}. “Leaving at once” ends without closing and without what an interpreter does when it ends. The "
        "first put makes the process's journal, which is fsynced."
    )
    columns = ["interpreter", "median ms", "best ms", "ms beyond bare", "import", "open", "put", "get", "close"]
    return Sheet("Start-up", text, columns, rows)


def position_sheet(one: Found) -> Sheet:
    names = {
        "mean of 1,000 lookups, the loop included": one["batches"],
        "one lookup, the clock taken off": one["singles"],
        "`ns.get` before each batch": one["refreshes"],
    }
    columns = ("p50", "p99", "p99.9", "p99.99", "max")
    rows = [
        [name, f"{times['count']:,}", *(short(times[column]) for column in columns)] for name, times in names.items()
    ]
    text = (
        f"`ns[key]` over {one['instruments']:,} instruments, held as `msgspec.Struct`s in a namespace opened with that "
        f"type, keys in shuffled order, for {one['elapsed']:.0f} s; the garbage collector is on. Meanwhile another "
        f"process puts {one['updates_per_second']:,.0f} updates/s into the same namespace. A lookup is as fresh as the "
        "last other call on the store, so before each batch one `ns.get` takes in what the other process committed; "
        f"{one['reread']:,} lookups then read a changed record anew. The mean of a batch hides a slow lookup among its "
        f"1,000; the single calls, timed in one batch of {SINGLE_EVERY}, show it. Of a single call "
        f"{one['clock']:.0f} ns, the median of reading the clock, are taken off; the loop takes at least "
        f"{one['loop']:.1f} ns a lookup and is in the mean. At the end every value was the last one written."
    )
    return Sheet("Looking up positions", text, ["ns", "count", *columns], rows)


def sheets(document: Document) -> Iterator[Sheet]:
    found = document["found"]
    if loops := found.get("loops"):
        for loop in dict.fromkeys(one["loop"] for one in loops):
            yield loop_sheet(document, loop)
        if any(one["mix"] != "slot" for one in loops):
            yield memory_sheet(document)
    yield from map(overwrite_sheet, found.get("overwrites", []))
    if found.get("durable"):
        yield durable_sheet(document)
    yield from map(start_sheet, found.get("start", []))
    yield from map(position_sheet, found.get("position", []))


def how(document: Document) -> list[str]:
    """What to know before reading the tables."""
    held = min(HELD, document["records"])
    return [
        f"Operations are due on a schedule: at 20,000/s every 50 µs, whether or not the one before has ended, for "
        f"{document['seconds']:g} s (the empty loop for 10 s at most). Two times are given for each. **The call** is "
        "what `put` or `get` itself took. **Since due** runs from the moment the operation was to begin to its end: "
        "one that comes late because another was slow, or because the loop woke late, has its waiting counted, so "
        "nothing is omitted because the loop itself stood still. Operations that had not begun when the time was up "
        "are not in the percentiles; where they are many, the row says “behind”, and since due says how far. Flat out "
        "nothing is due, and only the call is given: there a slow call delays others that are not measured.",
        f"Records have {RECORD_BYTES} bytes of MessagePack. “New keys”: every operation is a put of a new key, in "
        f"ascending order, after {WARM:,} puts and a `flush()`. “In turns”: every second operation is a get and the "
        f"others are puts, of keys chosen at random among {held:,} that L1 holds; the rate counts both. “A slot of "
        "a dict”: the same loop with a dict in place of the store; what it shows is the loop, the interpreter and the "
        "machine.",
        "Reading the clock once, some 50 ns, is in every time. Times go into arrays whose pages were all touched "
        "before, so that measuring allocates nothing for a call. The garbage collector runs as it does by default. "
        "Once a second the loop looks at `stats()`, and its schedule stands still meanwhile. Resident memory is read "
        "from another process. A percentile is shown where at least five samples lie above it.",
    ]


def markdown(document: Document, pictures: Mapping[str, str]) -> str:
    """The page that a run writes."""
    where = document["machine"]
    lines = [
        "# Latency",
        "",
        origin("latency.py", document, document["seed"]),
        "",
    ]
    if document["seconds"] < 60:
        lines += ["**A short run**, to see that everything works: no base for comparisons.", ""]
    if where["load"] > where["cores"] / 2:
        lines += ["**The machine was busy with other work** when this began: the times are worth little.", ""]
    for paragraph in how(document):
        lines += [paragraph, ""]
    lines += ["## Requirements", "", "| requirement | measured | |", "|---|---|---|"]
    lines += [f"| {one.text} | {one.measured} | {one.verdict} |" for one in requirements(document)]
    for told, picture in pictures.items():
        lines += ["", f"![{told}]({picture})"]
    for sheet in sheets(document):
        lines += ["", f"## {sheet.heading}", "", sheet.text, "", *sheet.lines()]
    return "\n".join(lines) + "\n"


def shown(console: Console, document: Document) -> None:
    """The same on the terminal."""
    demands = ((one.text, one.measured, one.verdict) for one in requirements(document))
    show(console, demands, sheets(document))
