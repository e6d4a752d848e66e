"""What is promised of single calls, and whether it was met."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from _sheets import Requirement, number, verdict
from _workload import COLD_ROUND

from microbench import hot, puts
from microbench.rivals import DiskCache, RocksDict
from microbench.sheets import RAW, RAW_MANY, RAW_RANGE, SAME, SAME_MANY, SAME_RANGE
from microbench.stream import LATEST
from microbench.subject import Measured

LRU: Final = "`cachetools.LRUCache.get`"
TTL: Final = "`cachebox.TTLCache.get`"
MICROSECOND: Final = 1e3
OFF: Final = ", compression off"


def judged(text: str, shown: str, holds: bool, turns: list[bool]) -> Requirement:
    """A bound on a median; `turns` are the verdicts of single turns, which are shown where they differ."""
    agreeing = turns.count(holds)
    often = "" if agreeing == len(turns) else f" in {agreeing} of {len(turns)} turns"
    return Requirement(text, shown, holds, verdict(holds) + often)


def bound(
    found: Measured, text: str, limit: float, ours: str, theirs: str, *, less: str | None = None, rate: bool = False
) -> Requirement:
    """Our time over theirs is at most `limit`; with `rate` it is theirs over ours, and at least that."""
    series = found.series
    if theirs not in series:
        return Requirement(text, f"no {theirs} here", None, "not measured")
    first, second = (theirs, ours) if rate else (ours, theirs)
    ratio = series[first].over(series[second], series[less] if less else None)
    shown = f"{ratio.middle:.3f} ({min(ratio.turns):.3f}–{max(ratio.turns):.3f}; by the best {ratio.best:.3f})"
    turns = [one >= limit if rate else one <= limit for one in ratio.turns]
    holds = ratio.middle >= limit if rate else ratio.middle <= limit
    one = judged(text, shown, holds, turns)
    return Requirement(one.text, one.measured, one.holds, one.verdict, ratio)


def within(found: Measured, text: str, limit: float, ours: str) -> Requirement:
    """The median of a row is at most `limit` nanoseconds, the loop included."""
    series = found.series[ours]
    low, high = min(series.medians), max(series.medians)
    shown = f"{number(series.median)} ns ({number(low)}–{number(high)}; the best {number(series.best)})"
    return judged(text, shown, series.median <= limit, [one <= limit for one in series.medians])


def of_hits(found: Measured) -> Iterator[Requirement]:
    yield bound(found, f"`mem.get` hit ≤ 1/2 of {LRU}", 0.5, "`mem.get`", LRU)
    yield bound(found, f"`mem.get` hit ≤ 0.4 × {LRU}", 0.4, "`mem.get`", LRU)
    yield bound(found, f"`mem.get` hit ≤ 1.5 × {TTL}, net of the loop", 1.5, "`mem.get`", TTL, less=hot.LOOP)
    for limit in (2.5, 1.8):
        text = f"`ns[key]` hit ≤ {limit} × `dict[key]`, net of the loop"
        yield bound(found, text, limit, "`ns[key]`", "`dict[key]`", less=hot.LOOP)
    for row in ("`mem.get`, record with a TTL", "`mem.get`, absent key", "`mem.get`, absent key, for the first time"):
        yield within(found, f"{row} ≤ 1 µs", MICROSECOND, row)


def of_puts(found: Measured) -> Iterator[Requirement]:
    yield bound(found, "`mem.put` p50 ≤ 1/8 of `diskcache.set` p50", 0.125, puts.NEW, DiskCache.kept)


def of_puts_flat_out(found: Measured) -> Iterator[Requirement]:
    for limit, rival in ((10.0, DiskCache), (1.0, RocksDict)):
        text = f"puts/s flat out ≥ {limit:g} × those of {rival.kept}"
        yield bound(found, text, limit, puts.FLAT, rival.kept, rate=True)


def of_cold_reads(found: Measured) -> Iterator[Requirement]:
    for limit in (4.0, 2.5):
        yield bound(found, f"cold `mem.get` ≤ {limit:g} × {RAW}", limit, "`mem.get`", RAW)
        yield bound(found, f"the same{OFF}", limit, f"`mem.get`{OFF}", RAW)
        yield bound(found, f"the same ≤ {limit:g} × {SAME}", limit, "`mem.get`", SAME)
    for ours, theirs, same in (("`mem.get_many`", RAW_MANY, SAME_MANY), ("`mem.scan`", RAW_RANGE, SAME_RANGE)):
        yield bound(found, f"{ours} of {COLD_ROUND:,} ≤ 1.5 × {theirs}", 1.5, ours, theirs)
        yield bound(found, f"the same{OFF}", 1.5, f"{ours}{OFF}", theirs)
        yield bound(found, f"the same ≤ 1.5 × {same}", 1.5, ours, same)


def of_streams(found: Measured) -> Iterator[Requirement]:
    reads = found.facts["latest"]
    shown = ", ".join(f"{count:,} of {rows:,}" for rows, count in reads.items())
    text = f"`mem.latest({LATEST})` reads O({LATEST}) rows: ≤ {2 * LATEST}, however long the stream"
    holds = max(reads.values()) <= 2 * LATEST
    yield Requirement(text, shown, holds, verdict(holds))


OF = {"hot": of_hits, "puts": of_puts, "flat": of_puts_flat_out, "cold": of_cold_reads, "stream": of_streams}


def requirements(found: dict[str, Measured]) -> Iterator[Requirement]:
    """The bounds on the sections that were measured, and what was found."""
    for name, of in OF.items():
        if name in found:
            yield from of(found[name])
