"""What `record_compression.py` compares and finds, the rule that chooses among it, and the page made of that."""

from __future__ import annotations

import math
import statistics
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from _sheets import Requirement, Sheet, number, origin, verdict
from _workload import SEED, Series, percentile

from tiermem import CodecConfig
from tiermem.codec.serialize import encode

OFF, DEFAULT = CodecConfig(level=0), CodecConfig()
LEVELS = sorted({1, 3, 9, DEFAULT.level})
KIB = 2**10
SETTINGS = list(
    dict.fromkeys(
        [OFF]
        + [replace(DEFAULT, level=level, dictionary_bytes=0) for level in LEVELS]
        + [replace(DEFAULT, level=level) for level in LEVELS]
        + [replace(DEFAULT, dictionary_bytes=size) for size in sorted({4 * KIB, 64 * KIB, DEFAULT.dictionary_bytes})]
        + [replace(DEFAULT, dictionary_samples=count) for count in (250, 500, 1000)]
    )
)
PLAIN = replace(DEFAULT, dictionary_bytes=0)
SLOWER = 1.5
"""Cold gets and storing may take this many times as long as without compression, by the mean over the data sets."""
TIE = 1.02
"""The default stays where no allowed setting makes the files smaller than by this."""
OF_A_CLASS = 300
STORE_COLUMNS = (
    "setting, value B, compressed, file B, file ×, put p50 µs, commit µs, stored ×, get p50 µs, get p95 µs, get ×"
)


@dataclass(frozen=True)
class DataSet:
    """Records to store: keys, values, and event times if they have any."""

    name: str
    text: str
    keys: list[str]
    values: list[Any]
    moments: list[float | None]

    @cached_property
    def encoded(self) -> list[bytes]:
        """The values as MessagePack."""
        return [encode(value) for value in self.values]


@dataclass
class Found:
    """What one setting did to one data set, an item for each turn; of puts and gets, nanoseconds of each call."""

    puts: list[array[int]] = field(default_factory=list)
    gets: list[array[int]] = field(default_factory=list)
    flushes: list[float] = field(default_factory=list)
    value_bytes: list[float] = field(default_factory=list)
    file_bytes: list[float] = field(default_factory=list)
    compressed: list[float] = field(default_factory=list)
    dictionaries: list[int] = field(default_factory=list)

    @property
    def put(self) -> Series:
        return Series("put", self.puts)

    @property
    def get(self) -> Series:
        return Series("get", self.gets)

    @property
    def stored(self) -> list[float]:
        """Nanoseconds a record, until it is fsynced: the median put, and its share of the flushes."""
        return [put + flush for put, flush in zip(self.put.medians, self.flushes, strict=True)]

    def middle(self, name: str) -> float:
        """The median over the turns."""
        return statistics.median(getattr(self, name))

    def over(self, other: Found, name: str) -> float:
        """The median of the ratios of the turns."""
        ours, theirs = (one.get.medians if name == "get" else getattr(one, name) for one in (self, other))
        return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))

    def summary(self) -> dict[str, Any]:
        """What is kept of it; times are nanoseconds a record."""
        kept = {name: known for name, known in asdict(self).items() if name not in ("puts", "gets")}
        return kept | {"put": self.put.summary(), "get": self.get.summary(), "stored": self.stored}


Results = dict[str, dict[CodecConfig, Found]]


def title(codec: CodecConfig) -> str:
    """A setting in a few words."""
    if not codec.level:
        return "none"
    if not codec.dictionary_bytes:
        return f"level {codec.level}, no dictionary"
    shape = f"{codec.dictionary_bytes / KIB:g} KiB after {codec.dictionary_samples:,}"
    return f"level {codec.level}, {shape}" + (" (default)" if codec == DEFAULT else "")


# -------------------------------------------------------------------------------------------------------------- rule


@dataclass(frozen=True)
class Costs:
    """A setting against none, by the geometric mean over the data sets; `worst` are cold gets where they cost most."""

    file: float
    get: float
    stored: float
    worst: float

    @classmethod
    def of(cls, results: Results, codec: CodecConfig) -> Costs:
        def each(name: str) -> list[float]:
            return [found[codec].over(found[OFF], name) for found in results.values()]

        mean = statistics.geometric_mean
        return cls(mean(each("file_bytes")), mean(each("get")), mean(each("stored")), max(each("get")))


def choice(costs: dict[CodecConfig, Costs], bound: float) -> CodecConfig:
    """The rule: the smallest files among the settings within the bound, the default where it is as good."""
    allowed = {codec: cost.file for codec, cost in costs.items() if codec == OFF or max(cost.get, cost.stored) <= bound}
    best = min(allowed, key=lambda codec: allowed[codec])
    return DEFAULT if allowed.get(DEFAULT, math.inf) <= TIE * allowed[best] else best


def demand(costs: dict[CodecConfig, Costs]) -> Requirement:
    """Whether the default is what the rule chooses."""
    chosen, ours = choice(costs, SLOWER), costs[DEFAULT]
    text = (
        f"the default has the smallest files (to {share(TIE - 1)}) of the settings whose cold gets and whose storing "
        f"take ≤ {SLOWER:g} × the time without compression; geometric means over the data sets"
    )
    shown = f"files {ours.file:.3f} ×, cold gets {ours.get:.2f} ×, storing {ours.stored:.2f} ×"
    if chosen != DEFAULT:
        other = costs[chosen]
        shown += f"; {title(chosen)}: {other.file:.3f} ×, {other.get:.2f} ×, {other.stored:.2f} ×"
    return Requirement(text, shown, chosen == DEFAULT, verdict(chosen == DEFAULT))


# ------------------------------------------------------------------------------------------------------------ tables


def share(part: float) -> str:
    return f"{100 * part:.0f} %"


def change(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %".replace("-", "−")


def conclusions(results: Results, costs: dict[CodecConfig, Costs]) -> Iterator[str]:
    """Sentences made of the numbers."""
    for name, found in results.items():
        none, ours, plain = found[OFF], found[DEFAULT], found[PLAIN]
        yield (
            f"{name}: by default a value takes {number(ours.middle('value_bytes'))} bytes instead of "
            f"{number(none.middle('value_bytes'))}, and {share(ours.middle('compressed'))} of them are compressed; "
            f"file {change(ours.over(none, 'file_bytes'))}, cold get {change(ours.over(none, 'get'))}, storing "
            f"{change(ours.over(none, 'stored'))}. Without a dictionary {share(plain.middle('compressed'))} are "
            f"compressed, and the file changes by {change(plain.over(none, 'file_bytes'))}."
        )
    base = costs[DEFAULT]
    for codec in SETTINGS:
        if codec not in (OFF, DEFAULT):
            cost = costs[codec]
            yield (
                f"{title(codec)} instead of the default: files {change(cost.file / base.file)}, cold gets "
                f"{change(cost.get / base.get)}, storing {change(cost.stored / base.stored)}."
            )


def choice_sheets(costs: dict[CodecConfig, Costs]) -> Iterator[Sheet]:
    yield Sheet(
        "All data sets",
        "Times without compression, by the geometric mean over the data sets. A setting is a zstd level, the largest "
        "size of a dictionary, and after how many records it is trained.",
        ["setting", "file ×", "cold get ×", "stored ×", "cold get ×, where it costs most"],
        [[title(codec), *(f"{part:.3f}" for part in asdict(cost).values())] for codec, cost in costs.items()],
    )
    bounds = sorted({1.1, 1.25, SLOWER, 2.0, math.inf})
    chosen = {bound: choice(costs, bound) for bound in bounds}
    yield Sheet(
        "What the rule chooses under other bounds",
        f"The requirement is the one of {SLOWER:g} ×.",
        ["bound", "choice", "file ×", "cold get ×", "stored ×"],
        [
            [
                "none" if bound == math.inf else f"{bound:g} ×",
                title(codec),
                *(f"{part:.3f}" for part in list(asdict(costs[codec]).values())[:3]),
            ]
            for bound, codec in chosen.items()
        ],
    )


def store_sheet(data: DataSet, found: dict[CodecConfig, Found]) -> Sheet:
    none = found[OFF]
    return Sheet(
        f"Stores of {data.name}",
        f"{len(data.keys):,} records: {data.text}. *value*: a value as it lies in L3; *file*: `data.mdb` after "
        "`compact` by record, with keys, headers, dictionaries and change log; *commit*: `flush` by record, with "
        "compression and fsyncs; *stored*: put and commit. Training is in none of them.",
        STORE_COLUMNS.split(", "),
        [
            [
                title(codec),
                number(kept.middle("value_bytes")),
                share(kept.middle("compressed")),
                number(kept.middle("file_bytes") / len(data.keys)),
                f"{kept.over(none, 'file_bytes'):.3f}",
                number(kept.put.median / 1e3),
                number(kept.middle("flushes") / 1e3),
                f"{kept.over(none, 'stored'):.2f}",
                number(kept.get.median / 1e3),
                number((percentile(kept.get.samples, 0.95) or 0) / 1e3),
                f"{kept.over(none, 'get'):.2f}",
            ]
            for codec, kept in found.items()
        ],
    )


def codec_sheets(rows: dict[str, Any], training: dict[str, Any]) -> Iterator[Sheet]:
    cells = []
    for name, row in rows.items():
        cells.append([name, f"{row['values']:,}", number(row["bytes"])])
        for part in (row.get("plain"), row.get("dictionary")):
            times = [] if part is None else [number(statistics.median(part[way])) for way in ("compress", "decompress")]
            cells[-1] += ["–"] * 3 if part is None else [f"{part['share']:.2f}", *times]
    headings = [f"{way}: {name}" for way in ("plain", "dict.") for name in ("bytes ×", "compress µs", "decompress µs")]
    yield Sheet(
        "The codec by itself",
        f"Values by their encoded bytes, at level {DEFAULT.level}, at most {OF_A_CLASS} of a class. The dictionary is "
        f"that of the default, trained on the first {DEFAULT.dictionary_samples:,} values, which are not among these. "
        "1.00: left as it is, since less than a tenth would be saved. `min_bytes` is 0 here; by default values under "
        f"{DEFAULT.min_bytes} bytes are compressed with a dictionary or not at all.",
        ["values of", "number", "mean B", *headings],
        cells,
    )
    yield Sheet(
        "Training",
        "One training, with its trial on held-out samples. 0 bytes: it did not help, and is not kept.",
        ["setting", "ms", "dictionary B"],
        [[name, number(statistics.median(one["ms"])), f"{one['bytes']:,}"] for name, one in training.items()],
    )


def markdown(document: dict[str, Any], demands: Sequence[Requirement], sheets: Sequence[Sheet]) -> str:
    """The page that a run writes."""
    where = document["machine"]
    lines = [
        "# Compression",
        "",
        origin("record_compression.py", document, SEED),
        "",
    ]
    if document["quick"]:
        lines += ["**A quick run**, to see that everything works: small, noisy, and no base for comparisons.", ""]
    # At the end the run itself counts for one to two.
    if where["load"] > where["cores"] / 2 or document["load_at_end"] > where["cores"]:
        lines += ["**The machine was busy with other work**: the times are worth little, the ratios are rough.", ""]
    lines += [
        "Every setting fills a fresh store, in rotation; then all stores are read in rotation, with nothing in L1 and "
        f"all pages in the page cache; {document['turns']} such turns. Figures are medians over the turns, ratios "
        "medians of the ratios of the turns. The clock is read around every call. A record stays as it was written: "
        "those put before a namespace has a dictionary are compressed without one, or not at all.",
        "",
        *(f"Left out: {name}.\n" for name in document["absent"]),
        "## Requirement",
        "",
        "| requirement | measured | |",
        "|---|---|---|",
        *(f"| {one.text} | {one.measured} | {one.verdict} |" for one in demands),
        "",
        "## What follows",
        "",
        *(f"- {line}" for line in document["conclusions"]),
    ]
    for sheet in sheets:
        lines += ["", f"## {sheet.heading}", "", sheet.text, "", *sheet.lines()]
    return "\n".join(lines) + "\n"
