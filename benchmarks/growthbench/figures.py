"""What was measured, as series over the sizes, and how they grow."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Document = dict[str, Any]
Point = tuple[int, float]
"""A number of records, and what was measured at it."""

FLAT, LESS, MORE = 0.1, 0.8, 1.15
"""Exponents below which a cost counts as flat, as growing more slowly than, and in proportion to, the records."""
PRIVATE = 1
"""Bytes a record that private memory may grow by without being named."""
UNITS = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "MiB": 2.0**20, "B": 1.0, "": 1.0}
KINDS = {"values": "values only", "vectors": "with vectors", "stream": "a stream"}
TIMES: list[tuple[str, str, str, tuple[str, ...], str]] = [
    ("`put_many`, each, committed", "values", "load", ("per_record",), "µs"),
    ("`open`, p50", "values", "open", ("open",), "ms"),
    ("`open`, page cache empty", "values", "open_evicted", ("open",), "ms"),
    ("first `get` after `open`, page cache empty", "values", "open_evicted", ("first_get",), "ms"),
    ("`get`, hot", "values", "hot", ("get", "p50"), "ns"),
    ("`get`, cold, p50", "values", "reads", ("get", "p50"), "µs"),
    ("`get`, cold, p95", "values", "reads", ("get", "p95"), "µs"),
    ("`scan` of 1,000", "values", "reads", ("scan", "p50"), "ms"),
    ("`count`", "values", "reads", ("count", "p50"), "µs"),
    ("`latest(100)`, no stream", "values", "reads", ("latest", "p50"), "ms"),
    ("`put`, new key, p50", "values", "puts", ("new", "p50"), "µs"),
    ("`put`, new key, p95", "values", "puts", ("new", "p95"), "µs"),
    ("`put`, new key, each, committed", "values", "puts", ("new", "committed"), "µs"),
    ("`put`, existing key, p50", "values", "puts", ("existing", "p50"), "µs"),
    ("`put`, existing key, p95", "values", "puts", ("existing", "p95"), "µs"),
    ("`put`, existing key, each, committed", "values", "puts", ("existing", "committed"), "µs"),
    ("`check`", "values", "check", ("seconds",), "s"),
    ("`compact`", "values", "compact", ("seconds",), "s"),
    ("`backup`", "values", "backup", ("seconds",), "s"),
    ("`put_many` with vectors, each, committed", "vectors", "load", ("per_record",), "µs"),
    ("`build_index`", "vectors", "load", ("build_index",), "s"),
    ("`open` with vectors, p50", "vectors", "open", ("open",), "ms"),
    ("`open` with vectors, page cache empty", "vectors", "open_evicted", ("open",), "ms"),
    ("first search of a process", "vectors", "search", ("first",), "ms"),
    ("search, p50", "vectors", "search", ("search", "p50"), "µs"),
    ("search, p95", "vectors", "search", ("search", "p95"), "µs"),
    ("exact search, p50", "vectors", "search", ("exact", "p50"), "ms"),
    ("`check` with vectors", "vectors", "check", ("seconds",), "s"),
    ("`compact` with vectors", "vectors", "compact", ("seconds",), "s"),
    ("`backup` with vectors", "vectors", "backup", ("seconds",), "s"),
    ("`append`, each, committed", "stream", "load", ("per_record",), "µs"),
    ("`latest(100)` of a stream", "stream", "latest", ("latest", "p50"), "µs"),
]
"""Name, kind of store, phase, where its result has the seconds, and the unit for the page."""
SPACE: list[tuple[str, str, str, tuple[str, ...], str]] = [
    (f"{name}, {KINDS[kind]}", kind, phase, (key,), unit)
    for kind in ("values", "vectors", "stream")
    for name, phase, key, unit in (
        ("bytes a record", "load", "bytes_per_record", "B"),
        ("bytes a record after `compact`", "compact", "bytes_per_record", "B"),
        ("`backup`, MiB", "backup", "bytes", "MiB"),
    )
    if kind != "stream" or phase == "load"
]
PHASES = {
    "load": "loading",
    "open": "`open`, one `get`",
    "reads": "cold reads",
    "hot": "hot reads",
    "puts": "puts",
    "search": "searches",
    "latest": "`latest`",
    "check": "`check`",
    "compact": "`compact`",
    "backup": "`backup`",
}


@dataclass(frozen=True, slots=True)
class Series:
    """One cost at each size it was measured at, in bytes or seconds."""

    name: str
    kind: str
    phase: str
    unit: str
    points: list[Point]

    def at(self, rows: int) -> float | None:
        """In the unit of the page; None where it was not measured."""
        value = dict(self.points).get(rows)
        return None if value is None else value / UNITS[self.unit]

    @property
    def exponent(self) -> float | None:
        """The slope of log cost against log n, by least squares over all sizes."""
        return slope(self.points)

    @property
    def last(self) -> float | None:
        """The same between the two largest sizes."""
        return slope(self.points[-2:])

    @property
    def marginal(self) -> float | None:
        """What one more record costs between the two largest sizes."""
        if len(self.points) < 2:
            return None
        (fewer, less), (rows, more) = self.points[-2:]
        return (more - less) / (rows - fewer)


def slope(points: Sequence[Point]) -> float | None:
    """None for fewer than two points."""
    known = [(math.log(rows), math.log(value)) for rows, value in points if value > 0]
    if len(known) < 2:
        return None
    return statistics.linear_regression(*zip(*known, strict=True)).slope


def turns(document: Document, kind: str, rows: int, phase: str, keys: Sequence[str]) -> list[float]:
    """What every turn of a phase found under `keys`."""
    results = document["found"].get(kind, {}).get(str(rows), {}).get(phase, [])
    found = []
    for result in results:
        value: Any = result
        for key in keys:
            value = None if value is None else value.get(key)
        if value is not None:
            found.append(float(value))
    return found


def series(
    document: Document,
    name: str,
    kind: str,
    phase: str,
    keys: Sequence[str],
    unit: str,
    over: Callable[[list[float]], float] = statistics.median,
) -> Series:
    """The median over the turns, or what `over` makes of them, at each size."""
    each = [(rows, turns(document, kind, rows, phase, keys)) for rows in document["sizes"]]
    return Series(name, kind, phase, unit, [(rows, over(found)) for rows, found in each if found])


def all_times(document: Document) -> list[Series]:
    """Every time that was measured."""
    return [one for row in TIMES if (one := series(document, *row)).points]


def all_space(document: Document) -> list[Series]:
    """Every number of bytes on disk."""
    return [one for row in SPACE if (one := series(document, *row)).points]


def all_memory(document: Document, key: str = "peak") -> list[Series]:
    """The largest of the turns: `peak` (VmHWM) or `private_peak` of the process of each phase."""
    rows = [(f"{name}, {KINDS[kind]}", kind, phase) for kind in KINDS for phase, name in PHASES.items()]
    made = [series(document, *row, (key,), "MiB", max) for row in rows]
    return [one for one in made if one.points]


def sentences(document: Document) -> list[str]:
    """Which costs grow how, from the exponents."""
    groups: dict[str, list[tuple[float, str]]] = {}
    for one in all_times(document):
        exponent = one.exponent
        if exponent is None:
            continue
        if exponent < -FLAT:
            group = "Less in a larger store (an exponent below −0.1)"
        elif exponent < FLAT:
            group = "Flat (−0.1 to 0.1)"
        elif exponent < LESS:
            group = "Growing more slowly than the records (0.1 to 0.8)"
        elif exponent < MORE:
            group = "Growing in proportion (0.8 to 1.15)"
        else:
            group = "Growing faster than the records (above 1.15)"
        groups.setdefault(group, []).append((exponent, one.name))
    ordered = sorted(groups.items(), key=lambda item: min(item[1]))
    said = [f"{group}: {'; '.join(f'{name} {signed(e)}' for e, name in sorted(found))}." for group, found in ordered]
    added = [(one.marginal, one.name) for one in all_memory(document, "private_peak")]
    grown = [f"{name} {signed(each, 1)}" for each, name in added if each is not None and each >= PRIVATE]
    if any(each is not None for each, _ in added):
        what = f"Private memory that grows by {PRIVATE} byte a record or more, in bytes"
        said.append(f"{what}: {'; '.join(grown) or 'none'}.")
    return said


def signed(value: float | None, digits: int = 2) -> str:
    """With the sign that belongs to numbers, and none for zero."""
    if value is None:
        return "–"
    return f"{round(value, digits) + 0.0:,.{digits}f}".replace("-", "−")
