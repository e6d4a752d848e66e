"""The bounds that were set, and what was measured against each."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vectorbench.curves import chosen, default, points, ratio
from vectorbench.data import REAL
from vectorbench.writing import PUTS_PER_SECOND, SEARCHES_PER_SECOND

MILLION, HUNDRED = "synthetic-1000000", "synthetic-100000"
TITLES = {MILLION: "1M × 384", HUNDRED: "100k × 384", REAL: "real vectors"}
Document = dict[str, Any]


@dataclass(frozen=True)
class Requirement:
    """A bound on what was measured; `holds` is None where it was not."""

    text: str
    measured: str = "not measured"
    holds: bool | None = None

    @property
    def verdict(self) -> str:
        return "–" if self.holds is None else "holds" if self.holds else "**missed**"


def effort_name(effort: int | None) -> str:
    """As the page calls it."""
    return "default" if effort is None else f"effort {effort}"


def turns_of(document: Document, data: str, subject: str) -> list[dict[str, Any]]:
    """The searches of a subject, a turn each."""
    found: list[dict[str, Any]] = document["searches"].get(data, {}).get(subject, [])
    return found


def private(document: Document, data: str, subject: str) -> float | None:
    """Private bytes that opening and searching took, the median of the turns."""
    found = [turn["memory"]["anonymous"] for turn in turns_of(document, data, subject)]
    return statistics.median(found) if found else None


def searching(document: Document, data: str, floor: float) -> Iterator[Requirement]:
    """Recall, speed and memory of one data set."""
    title = TITLES[data]
    texts = (
        f"{title}: recall@10 ≥ {floor} with default settings",
        f"{title}: p95 ≤ 1.1 × raw hnswlib's at the same recall",
        f"{title}: p95 < 1 ms",
        f"{title}: private memory of vectors and index ≤ 1/10 of hnswlib's",
    )
    ours, theirs = turns_of(document, data, "tiermem"), turns_of(document, data, "hnswlib")
    curve = points(ours)
    own, point = default(curve), chosen(curve, floor)
    if own is None or point is None:
        yield from map(Requirement, texts)
        return
    text = f"{own['recall']:.4f}"
    if own["recall"] < floor and point["recall"] >= floor:
        text += f" ({effort_name(point['effort'])}: {point['recall']:.4f})"
    yield Requirement(texts[0], text, own["recall"] >= floor)
    # The speed that counts is that of a search good enough.
    where = f"{effort_name(point['effort'])}, recall {point['recall']:.4f}"
    good = point["recall"] >= floor
    found = ratio(ours, theirs, point["effort"], "p95")
    if found is None:
        yield Requirement(texts[1])
    else:
        middle = found.middle
        # A lower bound that is small enough says nothing; an upper one that is too large neither.
        known = good and not (middle.bound == "≥ " and middle.value <= 1.1)
        known = known and not (middle.bound == "≤ " and middle.value > 1.1)
        holds = None if good and not known else good and middle.value <= 1.1
        yield Requirement(texts[1], f"{found} ({where})", holds)
    if point["p95"] is None:
        yield Requirement(texts[2])
    else:
        yield Requirement(texts[2], f"{point['p95'] / 1e3:.3f} ms ({where})", good and point["p95"] < 1000)
    mine, other = private(document, data, "tiermem"), private(document, data, "hnswlib")
    if mine is None or not other:
        yield Requirement(texts[3])
    else:
        text = f"{mine / 2**20:.1f} of {other / 2**20:.0f} MiB: 1/{other / max(mine, 1):.1f}"
        yield Requirement(texts[3], text, mine <= other / 10)


def against_chroma(document: Document) -> Requirement:
    """Chroma as it comes, tiermem at no less recall."""
    text = f"{TITLES[REAL]}: ≥ 4 × Chroma's speed at no less recall"
    theirs = default(points(turns_of(document, REAL, "chromadb")))
    ours = points(turns_of(document, REAL, "tiermem"))
    if theirs is None or not ours:
        return Requirement(text)
    mine = chosen(ours, theirs["recall"])
    assert mine is not None
    speed = theirs["p50"] / mine["p50"]
    better = mine["recall"] >= theirs["recall"]
    found = (
        f"{speed:.1f} × by p50 ({mine['p50']:,.0f} µs at {mine['recall']:.4f}, {effort_name(mine['effort'])}; "
        f"{theirs['p50']:,.0f} µs at {theirs['recall']:.4f}, its default)"
    )
    return Requirement(text, found, better and speed >= 4)


def filtering(document: Document) -> Iterator[Requirement]:
    """Filters at a million rows, and full answers everywhere."""
    texts = (f"{TITLES[MILLION]}, filters: recall ≥ 0.98", f"{TITLES[MILLION]}, filters: p95 < 5 ms")
    rows = document["filters"].get(MILLION, {}).get("tiermem")
    if not rows:
        yield from map(Requirement, texts)
    else:
        worst = min(rows, key=lambda row: row["recall"])
        text = f"at worst {worst['recall']:.4f} ({worst['share']:.1%} allowed)"
        yield Requirement(texts[0], text, worst["recall"] >= 0.98)
        slow = max(rows, key=lambda row: row["p95"] or 0.0)
        if slow["p95"] is None:
            yield Requirement(texts[1])
        else:
            text = f"at worst {slow['p95'] / 1e3:.2f} ms ({slow['share']:.1%} allowed)"
            yield Requirement(texts[1], text, slow["p95"] < 5000)
    text = "filters: always min(k, matches) hits"
    known = [row for found in document["filters"].values() for row in found.get("tiermem", [])]
    if not known:
        yield Requirement(text)
    else:
        short, asked = sum(row["short"] for row in known), sum(row["count"] for row in known)
        yield Requirement(text, f"{short} of {asked:,} answers short, all data sets", not short)


def writing(document: Document) -> Iterator[Requirement]:
    """Churn and ingest."""
    texts = (
        "churn: recall within 0.01 of a fresh store's",
        "churn: every live key found by its own vector",
        "churn: disk after `compact` ≤ 1.3 × a fresh store's",
    )
    found = next(iter(document["churn"].values()), None)
    if found is None:
        yield from map(Requirement, texts)
    else:
        recall = min(found["recall"], found["recall_at_once"])
        text = f"{recall:.4f} beside {found['recall_fresh']:.4f}"
        yield Requirement(texts[0], text, recall >= found["recall_fresh"] - 0.01)
        own = found["own"]
        yield Requirement(texts[1], f"{own['found']:,} of {own['asked']:,}", own["found"] == own["asked"])
        disk = found["disk_bytes_compacted"] / found["disk_bytes_fresh"]
        yield Requirement(texts[2], f"{disk:.2f} ×", disk <= 1.3)
    texts = (
        f"searches at {PUTS_PER_SECOND:,} puts/s, one after the other: p95 < 2 ms",
        f"the same, {SEARCHES_PER_SECOND} searches/s: p95 < 2 ms",
        f"searches at {PUTS_PER_SECOND:,} puts/s: recall ≥ 0.98",
        "`put_many` of 1,000 × 384: p50 < 10 ms",
    )
    found = next(iter(document["ingest"].values()), None)
    if found is None:
        yield from map(Requirement, texts)
        return
    fed = True
    for text, name in zip(texts, ("searches", "paced"), strict=False):
        turn = found[name]
        fed = fed and turn["puts_per_second"] >= 0.95 * PUTS_PER_SECOND
        kept = fed and turn["per_second"] >= 0.95 * SEARCHES_PER_SECOND
        if turn["p95"] is None:
            yield Requirement(text)
            continue
        rates = f"{turn['puts_per_second']:,.0f} puts/s and {turn['per_second']:,.0f} searches/s were reached"
        yield Requirement(text, f"{turn['p95'] / 1e3:.2f} ms; {rates}", kept and turn["p95"] < 2000)
    yield Requirement(texts[2], f"{found['recall']:.4f}", fed and found["recall"] >= 0.98)
    p50 = found["batches"]["p50"]
    yield Requirement(texts[3], f"{p50 / 1e3:.2f} ms", p50 < 10_000)


def starting(document: Document) -> Iterator[Requirement]:
    """The slowest start of the largest store."""
    texts = ("open ≤ 200 ms", "first search in a fresh process ≤ 1 s")
    names = [name for name in document["cold"] if document["cold"][name]]
    if not names:
        yield from map(Requirement, texts)
        return
    largest = max(names, key=lambda name: document["datasets"][name]["rows"])
    starts = document["cold"][largest]
    for text, name, bound in zip(texts, ("open", "first_search"), (0.2, 1.0), strict=True):
        worst = max(start[name] for start in starts)
        rows = document["datasets"][largest]["rows"]
        measured = f"{worst * 1e3:.0f} ms, the slowest of {len(starts)} at {rows:,} rows"
        yield Requirement(text, measured, worst <= bound)


def remaining(document: Document) -> Iterator[Requirement]:
    """Memory of a million rows, and what is left of speed and recall with little of it."""
    text = f"{TITLES[MILLION]}: private memory after 10,000 searches < 300 MB"
    starts = [start for start in document["cold"].get(MILLION, []) if start.get("searches", 0) >= 10_000]
    if starts:
        held = max(start["resident"]["anonymous"] for start in starts)
        mapped = max(start["resident"]["file"] for start in starts)
        yield Requirement(text, f"{held / 1e6:.0f} MB (mapped files: {mapped / 1e6:,.0f} MB)", held < 300e6)
    else:
        yield Requirement(text)
    texts = (f"{TITLES[MILLION]} in 1 GiB: recall@10 ≥ 0.97", f"{TITLES[MILLION]} in 1 GiB: p95 < 2 ms")
    found = document.get("confined", {}).get(MILLION)
    if not found or found["p95"] is None:
        yield from map(Requirement, texts)
    else:
        yield Requirement(texts[0], f"{found['recall']:.4f}", found["recall"] >= 0.97)
        yield Requirement(texts[1], f"{found['p95'] / 1e3:.2f} ms", found["p95"] < 2000)


def loading(document: Document) -> Iterator[Requirement]:
    """The time of a bulk load beside that of the bare graph."""
    for data, title in TITLES.items():
        text = f"{title}: bulk load of everything ≤ 1.5 × a bare faiss build"
        builds = document["builds"].get(data, {})
        if "tiermem" not in builds or "faiss" not in builds:
            yield Requirement(text)
            continue
        ours, theirs = builds["tiermem"]["seconds"], builds["faiss"]["seconds"]
        yield Requirement(text, f"{ours:.1f} s, {ours / theirs:.2f} × {theirs:.1f} s", ours <= 1.5 * theirs)


def requirements(document: Document) -> list[Requirement]:
    """All of them."""
    found = [*searching(document, MILLION, 0.98), *searching(document, HUNDRED, 0.99), *searching(document, REAL, 0.99)]
    found.append(against_chroma(document))
    return [
        *found,
        *filtering(document),
        *writing(document),
        *starting(document),
        *remaining(document),
        *loading(document),
    ]
