"""Tables of hit ratios, free hits and times, as Markdown and on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from _sheets import Sheet, origin, show
from _workload import SEED
from rich.console import Console

from hitratiobench.simulation import POLICIES, Result
from hitratiobench.traces import LOOP_CAPACITY, READERS, ZIPF_EXPONENT, ZIPF_KEYS

SIZES = (0.01, 0.05, 0.10, 0.20)
LOOPS = (1.05, 1.2, 1.5, 2.0)


def rows(results: list[Result], field: str, sizes: tuple[float, ...] = SIZES) -> list[tuple[str, str, list[str]]]:
    """(trace, policy, one cell per size), the best policy of each column in **bold**."""
    out = []
    for trace in dict.fromkeys(result.trace for result in results if (result.trace == "loop") == (sizes is LOOPS)):
        of_trace = [result for result in results if result.trace == trace]
        for policy in dict.fromkeys(result.policy for result in of_trace):
            cells = []
            for share in sizes:
                column = {r.policy: getattr(r, field) for r in of_trace if r.share == share}
                rivals = [value for name, value in column.items() if name in POLICIES]
                best = min(rivals) if field == "ns" else max(rivals)
                value = column[policy]
                text = "" if value is None else f"{value:.0f}" if field == "ns" else f"{100 * value:.1f}"
                cells.append(f"**{text}**" if policy in POLICIES and value == best else text)
            if any(cells):
                out.append((trace, policy, cells))
    return out


HEADINGS = {
    "hits": "Hit ratio (%)",
    "free": "Share of the hits that were free (%)",
    "ns": "Policy time per trace request (ns)",
}

LOOP_HEADING = "Hit ratio (%) of a loop, by its length over the capacity"


def averages(results: list[Result]) -> list[str]:
    """Sentences on the recorded traces: each policy's mean, and its points at or above LRU."""
    lru = {(r.trace, r.share): r.hits for r in results if r.policy == "LRU"}
    lines = []
    for policy in dict.fromkeys(r.policy for r in results):
        own = [r for r in results if r.policy == policy and r.trace in READERS]
        if own:
            mean = 100 * sum(r.hits for r in own) / len(own)
            ahead = sum(r.hits >= lru[r.trace, r.share] for r in own)
            lines.append(f"{policy}: mean {mean:.1f}; at or above LRU at {ahead} of {len(own)} points")
    return lines


def sheets(results: list[Result]) -> Iterator[Sheet]:
    """All tables."""
    for field, heading in HEADINGS.items():
        cells = [[trace, policy, *found] for trace, policy, found in rows(results, field)]
        yield Sheet(heading, "", ["trace", "policy", *(f"{share:.0%}" for share in SIZES)], cells, words=2)
    cells = [[policy, *found] for _, policy, found in rows(results, "hits", LOOPS)]
    yield Sheet(LOOP_HEADING, "", ["policy", *(f"{length:.0%}" for length in LOOPS)], cells)


def markdown(document: dict[str, Any], results: list[Result]) -> str:
    """The page."""
    requests, rounds = document["requests"], document["loop_rounds"]
    lines = ["# Hit ratios of the eviction policies", "", origin("hit_ratio.py", document, SEED), ""]
    if document["quick"]:
        lines += [
            f"**A quick run**, to see that everything works: the first {requests:,} requests of each trace, which are "
            "no base for comparisons.",
            "",
        ]
    lines += [
        "Columns are the capacity as a share of the distinct keys of a trace; every entry costs 1. The best policy of",
        "each column is in bold; *optimal* is Belady's bound, which knows the future. A hit is *free* if it ran no",
        "policy code: the hot tier serves it with a plain dict lookup. Policy time counts `admit`, `touch` and",
        "`shrink`, spread over all requests, free ones included; times of separate runs do not compare.",
        "",
        "`oltp` is from the ARC paper (FAST 2003), `web12` from the cache2k benchmarks, `multi3` and `sprite` from",
        f"the LIRS paper (SIGMETRICS 2002). `zipf` is synthetic: {requests:,} independent requests over",
        f"{ZIPF_KEYS:,} keys, exponent {ZIPF_EXPONENT}, seed {SEED}. The loops read {LOOP_CAPACITY:,} keys and",
        f"more in order, {rounds} times, through a capacity of {LOOP_CAPACITY:,}.",
        "",
        *(f"Left out: {name}.\n" for name in document["absent"]),
    ]
    if means := averages(results):
        lines += ["Over the recorded traces:", "", *(f"- {line}" for line in means)]
    for sheet in sheets(results):
        lines += ["", f"## {sheet.heading}", "", *sheet.lines()]
    return "\n".join(lines) + "\n"


def shown(console: Console, results: list[Result]) -> None:
    """The same on the terminal."""
    show(console, [], sheets(results))
    for line in averages(results):
        console.print(line)
