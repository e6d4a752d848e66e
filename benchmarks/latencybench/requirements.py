"""What is promised about latency, and whether it was met."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

Document = dict[str, Any]
Found = dict[str, Any]

WARM: Final = 10.0
"""Seconds after which memory is to stay where it is, or half a shorter run."""
GROWTH: Final = 8.0
"""MiB that count as standing still."""
PACE: Final = 20_000
LIMITS: Final = {"p50": 5.0, "p99": 30.0, "p99.9": 100.0, "p99.99": 2000.0}
"""Microseconds of a put in the spinning loop at PACE."""
FLAT: Final = 150_000
OVERWRITES: Final = 40_000
GROUP: Final = 5.0
START: Final = 80.0
LOOKUP: Final = 100.0


@dataclass(frozen=True)
class Requirement:
    """A bound on what was measured; `holds` is None where too little was measured."""

    text: str
    measured: str
    holds: bool | None

    @property
    def verdict(self) -> str:
        return "not measured" if self.holds is None else "holds" if self.holds else "**missed**"


def cell(document: Document, loop: str, rate: int, mix: str) -> Found | None:
    """What was found in a loop at a rate."""
    cells = document["found"].get("loops", [])
    return next((one for one in cells if (one["loop"], one["rate"], one["mix"]) == (loop, rate, mix)), None)


def short(value: float | None) -> str:
    """Three digits or more."""
    if value is None:
        return "–"
    size = abs(value)
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def micro(value: float | None) -> str:
    return short(None if value is None else value / 1e3)


def rate(found: Found) -> float:
    """Operations a second while they were made."""
    return found["done"] / (found["elapsed"] - found.get("paused", 0.0))


def committed_rate(found: Found) -> float:
    """Operations a second until the last was committed and fsynced."""
    return found["done"] / (found["elapsed"] - found.get("paused", 0.0) + found["flush_seconds"])


def memory(found: Found) -> dict[str, float] | None:
    """Resident MiB, own and of mapped files, when warm and at the end; what the times themselves take is left out."""
    rows = [row for row in found["resident"] if any(row[1:])]
    warm = min(WARM, found["elapsed"] / 2)
    after = [row for row in rows if row[0] >= warm]
    if len(after) < 2:
        return None
    times = found["room_bytes"] / 2**20
    return {
        "warm": after[0][2] - times,
        "end": after[-1][2] - times,
        "most": max(row[2] for row in after) - times,
        "warm_files": after[0][3],
        "end_files": after[-1][3],
    }


def steps(found: Found, name: str) -> dict[str, float]:
    """Milliseconds of the steps of a start, medians."""
    names = ("import", "open", "put", "get", "close")
    return {step: spent / 1e6 for step, spent in zip(names, found["steps"][name], strict=False)}


def beyond(found: Found, name: str, bare: str) -> float:
    """Milliseconds that one kind of start takes beyond another, by medians."""
    return (statistics.median(found["walls"][name]) - statistics.median(found["walls"][bare])) / 1e6


def group(document: Document) -> list[float]:
    """How many times as many durable puts many threads make as one, turn by turn."""
    runs = document["found"].get("durable", [])
    turns = sorted({run["turn"] for run in runs})
    pairs = [sorted((run for run in runs if run["turn"] == turn), key=lambda run: run["threads"]) for turn in turns]
    return [rate(pair[-1]) / rate(pair[0]) for pair in pairs if len(pair) > 1]


def requirements(document: Document) -> Iterator[Requirement]:
    """Every bound for which something was measured."""
    found = document["found"]
    if paced := cell(document, "spin", PACE, "new"):
        yield from of_pace(paced)
    if flat := cell(document, "spin", 0, "new"):
        reached = committed_rate(flat)
        rows = flat["backlog"]
        shown = (
            f"{rate(flat):,.0f}/s made, {reached:,.0f}/s counted until `flush()` had returned; "
            f"{rows[-1][1]:,.0f} pending at the end, flushed in {flat['flush_seconds']:.2f} s"
        )
        text = f"flat out ≥ {FLAT:,} puts/s of new keys with the commit keeping up, over {flat['elapsed']:.0f} s"
        yield Requirement(text, shown, reached >= FLAT)
    for one in found.get("overwrites", []):
        reached = committed_rate(one)
        text = f"≥ {OVERWRITES:,}/s random overwrites among {one['records']:,} records"
        shown = f"{reached:,.0f}/s until `flush()` had returned, {rate(one):,.0f}/s without it"
        yield Requirement(text, shown, reached >= OVERWRITES)
    if ratios := group(document):
        middle = statistics.median(ratios)
        shown = f"{middle:.2f} × ({min(ratios):.2f}–{max(ratios):.2f})"
        most = max(run["threads"] for run in found["durable"])
        yield Requirement(f"durable puts: {most} threads ≥ {GROUP:g} × one thread", shown, middle >= GROUP)
    for one in found.get("start", []):
        spent = beyond(one, "import, open, put, get, leaving at once", "bare, leaving at once")
        text = f"import, open, put and get < {START:g} ms beyond a bare interpreter"
        yield Requirement(text, f"{spent:.1f} ms", spent < START)
    for one in found.get("position", []):
        p99 = one["batches"]["p99"]
        text = f"position lookup: p99 of the means of batches < {LOOKUP:g} ns"
        shown = f"{short(p99)} ns; p99 of single calls, the clock taken off: {short(one['singles']['p99'])} ns"
        yield Requirement(text, shown, None if p99 is None else p99 < LOOKUP)


def of_pace(found: Found) -> Iterator[Requirement]:
    """Those on the spinning loop at PACE."""
    service, due = found["put"]["service"], found["put"]["due"]
    for name, limit in LIMITS.items():
        both = service[name], due[name]
        text = f"put {name} ≤ {limit:,.0f} µs, spinning loop, {PACE:,}/s"
        shown = f"the call {micro(both[0])} µs; since it was due {micro(both[1])} µs"
        known = [one for one in both if one is not None]
        holds = max(known) <= limit * 1e3 if len(known) == 2 else None
        if holds is False and both[0] <= limit * 1e3:
            shown += " (the call alone holds)"
        yield Requirement(text, shown, holds)
    grown = memory(found)
    text = f"resident memory flat after {min(WARM, found['elapsed'] / 2):.0f} s (grows ≤ {GROWTH:g} MiB), same loop"
    if grown is None:
        yield Requirement(text, "too short", None)
        return
    own = grown["end"] - grown["warm"]
    yield Requirement(f"{text}: own memory", f"{own:+.1f} MiB, from {grown['warm']:.0f} MiB", own <= GROWTH)
    files = grown["end_files"] - grown["warm_files"]
    shown = f"{own + files:+.1f} MiB, of which mapped files {files:+.1f} MiB (the store itself takes "
    shown += f"{found['disk_bytes'] / 2**20:,.0f} MiB on disk at the end)"
    yield Requirement(f"{text}: pages of mapped files counted", shown, own + files <= GROWTH)
