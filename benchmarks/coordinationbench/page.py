"""The page of a run, as Markdown and on the terminal."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from _sheets import Requirement, Sheet, number, origin, show, verdict
from rich.console import Console

from coordinationbench import locks
from coordinationbench.messages import CHANNELS
from coordinationbench.topics import Prompt

Document = dict[str, Any]
BOUNDS: Final = {"p50": 1.0, "p99": 5.0}
"""Milliseconds a message may be under way while both are busy."""
PACE: Final = 20_000
TEXTS: Final = {
    "busy": "Both processes run a loop of pure Python that never waits: the publisher reads the clock until the next "
    "message is due, the consumer asks without waiting, and counts to 200 in between. From before the call that "
    "sends to when the consumer has the message. With two cores, whatever needs a third process or thread, as a "
    "server does, waits for one of the two to be interrupted. Medians of {turns} turn(s) of {count:,} messages at "
    "{rate:,}/s; the call is the publisher's. The lowest p50 and p99 are in bold.",
    "flat": "One publisher sends {count:,} messages one after the other, one consumer receives them and waits where "
    "there are none; until the last was received. Medians of {turns} turn(s). `sent` is how many a second the "
    "publisher alone got rid of. The highest rate is in bold.",
}


def requirements(document: Document) -> list[Requirement]:
    """What was promised, and whether it holds."""
    found = []
    busy = rows(document, busy=True)
    flat = rows(document, busy=False)
    mine = busy.get(Prompt.name)
    for label, bound in BOUNDS.items():
        middle = mine and mine["under_way"][label]
        text = f"publish → received {label} < {bound:g} ms while both are busy"
        holds = None if middle is None else middle < bound * 1e6
        found.append(_bound(text, f"{number(middle / 1e6 if middle else None)} ms", holds))
    mine = flat.get(Prompt.name)
    holds = None if mine is None else mine["per_second"] >= PACE and mine["received"] == mine["sent"]
    told = "–" if mine is None else f"{mine['per_second']:,.0f}/s, {mine['received']:,} of {mine['sent']:,} received"
    found.append(_bound(f"{PACE:,} messages/s from one publisher to one consumer", told, holds))
    return found + locks.requirements(document)


def _bound(text: str, measured: str, holds: bool | None) -> Requirement:
    return Requirement(text, measured, holds, "not measured" if holds is None else verdict(holds))


def rows(document: Document, *, busy: bool) -> dict[str, dict[str, Any]]:
    """By channel: the median over the turns of each figure; of received and sent, the turn that lost most."""
    found: dict[str, dict[str, Any]] = {}
    for channel in CHANNELS:
        turns = [one for one in document["messages"] if one["channel"] == channel.name and one["busy"] == busy]
        if not turns:
            continue
        worst = min(turns, key=lambda one: one["received"] - one["sent"])
        found[channel.name] = {
            "received": worst["received"],
            "sent": worst["sent"],
            "per_second": statistics.median(one["per_second"] for one in turns),
            "sent_per_second": statistics.median(one["sent_per_second"] for one in turns),
            **{kind: _middle([one[kind] for one in turns]) for kind in ("under_way", "call")},
        }
    return found


def _middle(turns: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
    known = {label: [turn[label] for turn in turns if turn[label] is not None] for label in turns[0]}
    return {label: statistics.median(values) if values else None for label, values in known.items()}


def sheets(document: Document) -> list[Sheet]:
    """The tables of a run."""
    found = []
    busy = rows(document, busy=True)
    if busy:
        best = {
            label: min((row["under_way"][label] or float("inf") for row in busy.values()), default=None)
            for label in BOUNDS
        }
        cells = []
        for name, row in busy.items():
            shown = [f"`{name}`" if name.startswith("tier") else name, f"{row['received']:,} of {row['sent']:,}"]
            for label, value in row["under_way"].items():
                text = number(None if value is None else value / 1e6)
                shown.append(f"**{text}**" if value is not None and value == best.get(label) else text)
            shown += [number(row["call"][label] / 1e3 if row["call"][label] else None) for label in ("p50", "p99")]
            cells.append(shown)
        columns = ["channel", "received", "p50 ms", "p99 ms", "p99.9 ms", "max ms", "call p50 µs", "call p99 µs"]
        text = TEXTS["busy"].format(turns=document["turns"], count=document["count"], rate=document["rate"])
        found.append(Sheet("Publish → received while both are busy", text, columns, cells))
    flat = rows(document, busy=False)
    if flat:
        fastest = max(row["per_second"] for row in flat.values())
        cells = [
            [
                f"`{name}`" if name.startswith("tier") else name,
                f"{row['received']:,} of {row['sent']:,}",
                f"**{row['per_second']:,.0f}**" if row["per_second"] == fastest else f"{row['per_second']:,.0f}",
                f"{row['sent_per_second']:,.0f}",
            ]
            for name, row in flat.items()
        ]
        text = TEXTS["flat"].format(turns=document["turns"], count=document["flat_count"])
        found.append(Sheet("One to one, flat out", text, ["channel", "received", "messages/s", "sent/s"], cells))
    return found + locks.sheets(document)


def markdown(document: Document) -> str:
    """The page."""
    lines = ["# Coordination", "", origin("coordination.py", document, document["seed"]), ""]
    lines += [f"Syncing a page of a file takes {document['sync_ms']:.2f} ms there (median)."]
    if document["absent"]:
        lines += ["", "Left out: " + "; ".join(f"{name} ({why})" for name, why in document["absent"].items()) + "."]
    lines += ["", "## Requirements", "", "| requirement | measured | |", "|---|---|---|"]
    lines += [f"| {one.text} | {one.measured} | {one.verdict} |" for one in requirements(document)]
    lines += ["", "## What is compared", "", "| channel | what a message has been promised |", "|---|---|"]
    measured = {one["channel"] for one in document["messages"]}
    lines += [f"| {channel.name} | {channel.promise} |" for channel in CHANNELS if channel.name in measured]
    for sheet in sheets(document):
        lines += ["", f"## {sheet.heading}", "", sheet.text, "", *sheet.lines()]
    return "\n".join(lines) + "\n"


def summary(document: Document) -> list[dict[str, Any]]:
    """The requirements as they are kept in the document."""
    return [asdict(one) for one in requirements(document)]


def shown(console: Console, document: Document) -> None:
    """The tables on the terminal."""
    show(console, [(one.text, one.measured, one.verdict) for one in requirements(document)], sheets(document))
    for name, why in document["absent"].items():
        console.print(f"left out: {name}: {why}", markup=False, highlight=False)
