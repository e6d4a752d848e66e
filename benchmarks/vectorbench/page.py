"""Tables of everything measured, as Markdown and on the terminal."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from _sheets import Sheet, number, origin, show
from rich.console import Console

from vectorbench.curves import PERCENTILES, Read, latency_at, points
from vectorbench.data import SOAK, WARM
from vectorbench.requirements import Document, private, requirements, turns_of
from vectorbench.subject import SUBJECTS, subject
from vectorbench.writing import BURST, PUTS_PER_SECOND, ROUNDS, SEARCHES_PER_SECOND, SHARE

LEVELS = (0.95, 0.98, 0.99, 0.995)
"""Recalls at which curves are compared."""


def mib(value: float | None) -> float | None:
    return None if value is None else value / 2**20


def contest(names: Sequence[str], columns: Sequence[Sequence[float | None]], best: str = "min") -> list[list[str]]:
    """A row for each name; the best of each column is bold, and the name that is best in the last column."""
    rows = [[name] for name in names]
    for place, column in enumerate(columns):
        known = [value for value in column if value is not None]
        top = (min if best == "min" else max)(known) if len(known) > 1 else None
        for row, value in zip(rows, column, strict=True):
            won = value is not None and value == top
            row.append(f"**{number(value)}**" if won else number(value))
            if won and place == len(columns) - 1:
                row[0] = f"**{row[0]}**"
    return rows


def subjects_of(document: Document, part: str, data: str) -> list[str]:
    """Those that a part measured, in their order."""
    return [name for name in SUBJECTS if name in document[part].get(data, {})]


def build_sheet(document: Document, data: str) -> Sheet:
    names = subjects_of(document, "builds", data)
    builds = document["builds"][data]
    searches = {name: turns_of(document, data, name) for name in names}

    def resident(name: str, kind: str) -> float | None:
        found = [turn["memory"][kind] for turn in searches[name]]
        return statistics.median(found) if found else None

    columns = [
        [builds[name]["seconds"] for name in names],
        [mib(builds[name]["file_bytes"]) for name in names],
        [mib(resident(name, "file")) for name in names],
        [mib(resident(name, "shared")) for name in names],
        [mib(private(document, data, name)) for name in names],
    ]
    return Sheet(
        f"{data}: building and memory",
        "Seconds from vectors in a file to a closed index or store, with the threads each takes by itself. Memory is "
        "what a fresh process gained by opening the finished store and searching it with every effort: mapped files "
        "(which the system may take back), shared memory, and private memory (which it may not).",
        ["subject", "build s", "files MiB", "mapped MiB", "shared MiB", "private MiB"],
        contest(names, columns),
    )


def curve_sheet(document: Document, data: str) -> Sheet:
    rows = []
    for name in subjects_of(document, "searches", data):
        for point in points(turns_of(document, data, name)):
            effort = "default" if point["effort"] is None else str(point["effort"])
            rows.append([name, effort, f"{point['recall']:.4f}", *(number(point[one]) for one in PERCENTILES)])
    return Sheet(
        f"{data}: recall and latency",
        "One search after the other, k = 10.",
        ["subject", "effort", "recall@10", "p50 µs", "p95 µs", "p99 µs"],
        rows,
    )


def level_sheet(document: Document, data: str, name: str) -> Sheet:
    """Latency at equal recall; a bound competes with nobody."""
    names = subjects_of(document, "searches", data)
    read: dict[str, list[Read | None]] = {}
    for one in names:
        found = points(turns_of(document, data, one))
        read[one] = [latency_at(found, level, name) for level in LEVELS]
        # Where a curve ends below a recall, nothing is known of its latency there.
        read[one] = [None if at is None or at.bound == "≥ " else at for at in read[one]]
    base = read.get("hnswlib", [None] * len(LEVELS))
    rows = []
    for one in names:
        cells = [one]
        for place, at in enumerate(read[one]):
            rivals = [other[place] for other in read.values()]
            best = min((rival.value for rival in rivals if rival is not None), default=None)
            text = "–" if at is None else f"{at.bound}{number(at.value)}"
            cells.append(f"**{text}**" if at is not None and at.value == best and len(names) > 1 else text)
            other = base[place]
            if at is None or other is None or (at.bound and other.bound and one != "hnswlib"):
                cells.append("–")
            else:
                bound = "≥ " if other.bound and not at.bound else at.bound if not other.bound else ""
                cells.append(f"{bound}{at.value / other.value:.2f}")
        rows.append(cells)
    columns = [text for level in LEVELS for text in (f"µs @ {level}", "× hnswlib")]
    return Sheet(
        f"{data}: {name} at equal recall",
        "Read between the measured points (log latency against log (1 − recall)). ≤: even the least effort measured "
        "finds more. –: no effort measured finds as much.",
        ["subject", *columns],
        rows,
    )


def filter_sheet(document: Document, data: str) -> Sheet:
    found = document["filters"][data]
    rows = []
    names = subjects_of(document, "filters", data)
    for place, row in enumerate(next(iter(found.values()))):
        best = {one: min(found[name][place][one] or float("inf") for name in names) for one in ("p50", "p95")}
        most = max(found[name][place]["recall"] for name in names)
        for name in names:
            own = found[name][place]
            cells = [f"**{number(own[one])}**" if own[one] == best[one] else number(own[one]) for one in best]
            recall = f"**{own['recall']:.4f}**" if own["recall"] == most else f"{own['recall']:.4f}"
            cells = [f"{row['share']:.1%}", name, recall, *cells, f"{own['short']:,} of {own['count']:,}"]
            rows.append([*cells, str(own["forbidden"])])
    return Sheet(
        f"{data}: filtered",
        "`bucket < x` lets a share of the rows through; default efforts. An answer is short if it has fewer than "
        "min(k, matches) hits; forbidden hits are those the filter should have kept out.",
        ["allowed", "subject", "recall@10", "p50 µs", "p95 µs", "short answers", "forbidden hits"],
        rows,
    )


def churn_sheet(document: Document, data: str) -> Sheet:
    found = document["churn"][data]

    def stats(name: str) -> str:
        known = found.get(name, {})
        return f"{known.get('segments', '–')} / {known.get('tail', '–')} / {known.get('tombstones', '–')}"

    def own(name: str) -> str:
        return f"{found[name]['found']:,} of {found[name]['asked']:,}"

    def size(name: str) -> str:
        return number(mib(found[name]))

    once = ["after the last round", f"{found['recall_at_once']:.4f}", "–", "–", stats("stats_at_once")]
    rest = ["come to rest", f"{found['recall']:.4f}", own("own"), size("disk_bytes"), stats("stats")]
    compact = ["after `compact`", f"{found['recall_compacted']:.4f}", "–", size("disk_bytes_compacted")]
    fresh = ["fresh store", f"{found['recall_fresh']:.4f}", own("own_fresh"), size("disk_bytes_fresh"), "–"]
    last = ["fresh store, after `compact`", "–", "–", size("disk_bytes_fresh_compacted"), "–"]
    rounds = ", ".join(number(one) for one in found["rounds_seconds"])
    return Sheet(
        f"{data}: churn",
        f"{ROUNDS} rounds, each deletes {SHARE:.0%} of {found['rows']:,} keys and puts them again with new vectors "
        f"(seconds each: {rounds}); `compact` took {number(found['compact_seconds'])} s. Live keys were looked for by "
        f"their own vectors; no score was off by more than {found['own']['largest_score_error']:.1g}.",
        ["store", "recall@10", "own vector found", "disk MiB", "segments / tail / tombstones"],
        [once, rest, [*compact, stats("stats_compacted")], fresh, last],
    )


def ingest_sheet(document: Document, data: str) -> Sheet:
    found = document["ingest"][data]
    batches = f"`put_many` of {found['batches']['rows']:,}"
    turns = {"one after the other": found["searches"], f"{SEARCHES_PER_SECOND} a second": found["paced"]}
    named = {f"`search_similar`, {name}": turn for name, turn in turns.items()}
    named |= {f"`put` beside searches {name}": turn["puts"] for name, turn in turns.items()}
    named[batches] = found["batches"]
    columns = (*PERCENTILES, "max")
    rows = [[name, f"{row['count']:,}", *(number(row[one]) for one in columns)] for name, row in named.items()]
    stats = ", ".join(f"{name} {value}" for name, value in found["stats"].items())
    return Sheet(
        f"{data}: ingest",
        f"On top of {found['rows_before']:,} rows, one thread puts {PUTS_PER_SECOND:,} vectors a second (bursts of "
        f"{BURST}), another searches: first as fast as it can ({found['searches']['per_second']:,.0f} a second), then "
        f"{SEARCHES_PER_SECOND} times a second, from a core that slept in between. Recall of 1,000 queries right at "
        "the end: "
        f"{found['recall']:.4f}. Then batches on their own, into an empty namespace. At the end: {stats}.",
        ["call", "calls", *(f"{one} µs" for one in columns)],
        rows,
    )


def _confined(document: Document, data: str) -> str:
    found = document.get("confined", {}).get(data)
    if not found:
        return ""
    return (
        f"\n\nConfined to {mib(found['limit']):,.0f} MiB of memory, page cache included, with an empty one at the "
        f"start: recall {found['recall']:.4f}, p50 {number(found['p50'])} µs, p95 {number(found['p95'])} µs, p99 "
        f"{number(found['p99'])} µs of {found['count']:,} searches after {WARM} others; at the end the group held "
        f"{mib(found['used']):,.0f} MiB, {mib(found['memory']['anonymous']):,.0f} of them private."
    )


def cold_sheet(document: Document, data: str) -> Sheet:
    rows = []
    for start in document["cold"][data]:
        cells = ["dropped" if start["evicted"] else "warm"]
        cells += [number(start[one] * 1e3) for one in ("open", "first_search")]
        cells += [number(start["next"][one]) for one in ("p50", "p95")]
        grown = start.get("memory")
        cells += [number(mib(grown[one])) if grown else "–" for one in ("anonymous", "file", "shared")]
        rows.append([*cells, f"{start['searches']:,}" if grown else "–"])
    return Sheet(
        f"{data}: cold start",
        "`tiermem.open` and the first search in fresh processes, the first with the files of the store dropped from "
        "the page cache. Memory is what the process gained until the end of its searches, a third of them filtered, "
        f"libraries included.{_confined(document, data)}",
        [
            "page cache",
            "open ms",
            "first search ms",
            "next 999: p50 µs",
            "p95 µs",
            "private MiB",
            "mapped MiB",
            "shared MiB",
            "searches",
        ],
        rows,
    )


def sheets(document: Document) -> Iterator[Sheet]:
    """All tables, by data set."""
    for data in document["datasets"]:
        if document["builds"].get(data):
            yield build_sheet(document, data)
        if document["searches"].get(data):
            for name in ("p50", "p95"):
                yield level_sheet(document, data, name)
            yield curve_sheet(document, data)
        if document["filters"].get(data):
            yield filter_sheet(document, data)
        if document["cold"].get(data):
            yield cold_sheet(document, data)
        if document["churn"].get(data):
            yield churn_sheet(document, data)
        if document["ingest"].get(data):
            yield ingest_sheet(document, data)


def markdown(document: Document, plots: dict[str, str]) -> str:
    """The page; `plots` are the files of the plots by data set."""
    where, options = document["machine"], document["options"]
    measured = [name for name in SUBJECTS if any(name in found for found in document["builds"].values())]
    lines = [
        "# Vector search",
        "",
        origin("vectors.py", document, document["seed"]),
        "",
    ]
    if where["load"] > where["cores"] / 2:
        lines += ["**The machine was busy with other work**: the times are worth little, the ratios are rough.", ""]
    lines += [
        "Every subject builds its store in a fresh process, and is opened and searched in further ones, which take "
        f"turns ({options['turns']} or more each): times are medians over the turns, recalls are against exact "
        f"answers. The first {SOAK:,} searches of a process are not timed: what a store costs that was just opened "
        "stands under *cold start*. Numerical libraries have one thread while searching; engines with threads of "
        "their own keep them. tiermem is measured through its whole public call. Times of different runs do not "
        "compare, ratios do. In bold: the best of those that compete."
        + (" Data sets, and upkeep, were measured in runs of their own." if document.get("runs", 1) > 1 else ""),
        "",
        *(f"- `{name}`: {subject(name).setup}." for name in measured),
        "",
        *(f"Left out: {text}.\n" for text in document["skipped"]),
        *(f"Failed: {text.partition(' ended with')[0]}.\n" for text in document["failures"]),
        "## Requirements",
        "",
        "| requirement | measured | |",
        "|---|---|---|",
        *(f"| {one.text} | {one.measured} | {one.verdict} |" for one in requirements(document)),
    ]
    drawn = set()
    for sheet in sheets(document):
        data = sheet.heading.partition(":")[0]
        lines += ["", f"## {sheet.heading}", "", sheet.text, ""]
        if data in plots and "equal recall" in sheet.heading and data not in drawn:
            drawn.add(data)
            lines += [f"![recall against latency, {data}]({plots[data]})", ""]
        lines += sheet.lines()
    return "\n".join(lines) + "\n"


def shown(console: Console, document: Document) -> None:
    """The same on the terminal."""
    demands = ((one.text, one.measured, one.verdict) for one in requirements(document))
    show(console, demands, sheets(document))


def summary(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The requirements, for the JSON document."""
    return [
        {"text": one.text, "measured": one.measured, "holds": one.holds, "verdict": one.verdict}
        for one in requirements(document)
    ]
