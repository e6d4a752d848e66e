"""The page, as Markdown and on the terminal."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from _sheets import Sheet, number, origin, show, styled
from _workload import SEED, K
from rich.console import Console

from growthbench import phases
from growthbench.figures import (
    Document,
    Series,
    all_memory,
    all_space,
    all_times,
    sentences,
    signed,
    turns,
)

BOUND_ROWS, BOUND = 1_000_000, 0.2
"""`open` of so many records takes less than so many seconds."""


def requirements(document: Document) -> Iterator[list[str]]:
    """The bound, what was measured, and whether it holds: by the slowest of all that were opened."""
    for kind, title in (("values", ""), ("vectors", ", with vectors")):
        text = f"`open` of a {BOUND_ROWS // 10**6}M-record store < {BOUND * 1e3:.0f} ms{title}"
        warm = turns(document, kind, BOUND_ROWS, "open", ("open",))
        cold = turns(document, kind, BOUND_ROWS, "open_evicted", ("open",))
        if not warm or not cold:
            yield [text, "not measured", "–"]
            continue
        shown = f"{statistics.median(warm) * 1e3:.1f} ms, {statistics.median(cold) * 1e3:.1f} ms from an empty page "
        shown += f"cache; the slowest of {len(warm) + len(cold)} {max(*warm, *cold) * 1e3:.1f} ms"
        yield [text, shown, "holds" if max(*warm, *cold) < BOUND else "**missed**"]


def across(document: Document, rows: Sequence[Series], unit: bool = True) -> list[list[str]]:
    """A line for each series: its value at every size, and how it grows."""
    return [
        [
            one.name,
            *([one.unit] if unit else []),
            *(number(one.at(size)) for size in document["sizes"]),
            signed(one.exponent),
            signed(one.last),
        ]
        for one in rows
    ]


def sheets(document: Document) -> Iterator[Sheet]:
    """All tables."""
    sizes = [f"{size:,}" for size in document["sizes"]]
    growth = ["exponent", "last step"]
    times = all_times(document)
    values = [one for one in times if one.kind == "values"]
    yield Sheet(
        "Values only",
        f"Records of {phases.VALUE_BYTES} bytes of MessagePack, put in the order of their keys, {phases.CHUNK:,} in a "
        "call; the time of each includes making it and ends when all are fsynced. "
        f"Cold reads have nothing in L1 (`HotConfig(max_bytes=0)`): {phases.GETS:,} keys at random. Hot ones: "
        f"{phases.HOT:,} keys, the loop included. Puts go to {phases.PUTS:,} keys (or as many as there are) spread "
        "over the whole store; p50 and p95 are of the call, *committed* counts until all are fsynced. `latest` of a "
        "namespace that is no stream reads all of it.",
        ["operation", "unit", *sizes, *growth],
        across(document, values),
        words=2,
    )
    vectors = [one for one in times if one.kind == "vectors"]
    if vectors:
        recalls = [turns(document, "vectors", size, "search", ("recall",)) for size in document["sizes"]]
        found = ["recall@10", "", *(f"{statistics.median(one):.3f}" if one else "–" for one in recalls), "–", "–"]
        yield Sheet(
            "With vectors",
            f"The same records, each with a vector of {phases.DIMENSION} float32 numbers, small so that a large store "
            "stays affordable. When all are put, `build_index` makes one segment of them, once. "
            f"The {K} most similar of {phases.SEARCHES} queries, default settings; the "
            f"recall is of {phases.EXACT} queries against `exact=True`.",
            ["operation", "unit", *sizes, *growth],
            [*across(document, vectors), found],
            words=2,
        )
    stream = [one for one in times if one.kind == "stream"]
    if stream:
        yield Sheet(
            "A stream",
            "Rows of 101 bytes, appended one by one.",
            ["operation", "unit", *sizes, *growth],
            across(document, stream),
            words=2,
        )
    private = {one.name: one for one in all_memory(document, "private_peak")}
    yield Sheet(
        "Memory",
        "MiB. The most that the process of each measurement had resident (VmHWM), mapped pages of the store included, "
        "which the system may take back; in brackets its private memory (RssAnon, looked at every 50 ms). The bare "
        f"process, interpreter and libraries, is in both: {bare(document)} before it opens the store. Loading and puts "
        "hold the values they write. The child that builds segments is not counted. *Bytes a record*: what each record "
        "adds between the two largest sizes.",
        ["process", *sizes, "bytes a record", "private ones"],
        [
            [
                one.name,
                *(
                    "–" if one.at(size) is None else f"{number(one.at(size))} ({number(private[one.name].at(size))})"
                    for size in document["sizes"]
                ),
                signed(one.marginal, 1),
                signed(private[one.name].marginal, 1),
            ]
            for one in all_memory(document)
        ],
    )
    yield Sheet(
        "What `open` holds",
        "MiB gained by `open` alone, the page cache full: private memory, and mapped pages.",
        ["store", *sizes],
        list(opened(document)),
    )
    yield Sheet(
        "Disk",
        "What the files take, less the journals, whose size is fixed; the change log is in it, up to its retention. "
        "A store of values is compacted after the puts, per record that it has by then.",
        ["files", "unit", *sizes, *growth],
        across(document, all_space(document)),
        words=2,
    )


def bare(document: Document) -> str:
    """The memory of a process before it opens a store."""
    found = [
        [result["before"][name] / 2**20 for name in ("anonymous", "file")]
        for of_kind in document["found"].values()
        for of_size in of_kind.values()
        for results in of_size.values()
        for result in results
    ]
    if not found:
        return "–"
    own, mapped = (statistics.median(column) for column in zip(*found, strict=True))
    return f"{own + mapped:.1f} ({own:.1f})"


def opened(document: Document) -> Iterator[list[str]]:
    """Memory gained by opening."""
    for kind, title in (("values", "values only"), ("vectors", "with vectors")):
        cells = []
        for size in document["sizes"]:
            own, mapped = (turns(document, kind, size, "open", ("grown", name)) for name in ("anonymous", "file"))
            shown = f"{statistics.median(own) / 2**20:.2f} + {statistics.median(mapped) / 2**20:.2f}" if own else "–"
            cells.append(shown)
        if set(cells) != {"–"}:
            yield [title, *cells]


def markdown(document: Document, plot: str | None) -> str:
    """The page that a run writes."""
    where = document["machine"]
    sizes = ", ".join(f"{size:,}" for size in document["sizes"])
    lines = [
        "# Cost as a store grows",
        "",
        origin("growth.py", document, SEED),
        "",
    ]
    # At the end the run itself counts for one to two.
    if where["load"] > where["cores"] / 2 or document["load_at_end"] > where["cores"]:
        lines += ["**The machine was busy with other work**: the times are worth little.", ""]
    beyond = [f"{size:,}" for size in document["sizes"] if size > document["values_only"]]
    lines += [
        f"Stores of {sizes} records. Every measurement is a process of its own, which finds the store's files in the "
        "page cache unless it says otherwise, and opens the store with defaults unless it says otherwise. Times are "
        f"medians over at most {document['turns']} turns, fewer where one takes long; memory is the largest of them. "
        "*Exponent*: the slope of log cost against log n, by least squares over all sizes; 0 is a cost that does not "
        "depend on the number of records, 1 one in proportion to it. *Last step*: the same between the two largest "
        "sizes.",
        "",
        *([f"Values only at {', '.join(beyond)}.", ""] if beyond else []),
        *(f"Failed, and left out: {failure.partition(' ended with')[0]}.\n" for failure in document["failures"]),
        "## Requirements",
        "",
        "| requirement | measured | |",
        "|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in requirements(document)),
        "",
        "## How costs grow",
        "",
        *(f"- {sentence}" for sentence in sentences(document)),
    ]
    if plot:
        lines += ["", f"![cost against the number of records]({plot})"]
    for sheet in sheets(document):
        lines += ["", f"## {sheet.heading}", "", sheet.text, "", *sheet.lines()]
    return "\n".join(lines) + "\n"


def shown(console: Console, document: Document) -> None:
    """The same on the terminal."""
    for sentence in sentences(document):
        console.print(styled(sentence), highlight=False)
    show(console, requirements(document), sheets(document))


def summary(document: Document) -> list[dict[str, str]]:
    """The requirements, for the JSON document."""
    return [dict(zip(("text", "measured", "verdict"), row, strict=True)) for row in requirements(document)]
