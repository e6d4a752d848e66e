"""Columns of a table, and its rows: who competes, and who wins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from _sheets import number
from _workload import Series, percentile

from microbench.subject import Measured

Column = tuple[str, Callable[[Series], float | None]]


def timings(unit: str, *shares: float) -> list[Column]:
    """The columns of percentiles in a unit, with the fastest sample where only the median is asked for."""
    scale = {"ns": 1.0, "µs": 1e3, "ms": 1e6}[unit]
    if not shares:
        return [
            (f"median {unit}", lambda series: series.median / scale),
            (f"best {unit}", lambda series: series.best / scale),
        ]

    def of(share: float) -> Column:
        def column(series: Series) -> float | None:
            found = max(series.samples) if share == 1 else percentile(series.samples, share)
            return None if found is None else found / scale

        return (f"{'max' if share == 1 else f'p{100 * share:g}'} {unit}", column)

    return [of(share) for share in shares]


def contest(
    found: Measured,
    names: Sequence[str],
    columns: Sequence[Column],
    base: str,
    *,
    apart: Sequence[str] = (),
    less: str | None = None,
) -> Iterator[list[str]]:
    """The rows of subjects that compete; the lowest of each column is bold, and that of the first named so.

    Those `apart` do not compete. The last cell is the time over that of `base`, `less` taken off both.
    """
    series = [found.series[name] for name in names if name in found.series]
    cost = found.series[less] if less else None
    cells: dict[str, list[str]] = {one.name: [] for one in series}
    for _, column in columns:
        values = {one.name: column(one) for one in series}
        rivals = [value for name, value in values.items() if value is not None and name not in apart]
        for name, value in values.items():
            won = name not in apart and len(rivals) > 1 and value == min(rivals)
            if not cells[name]:
                cells[name].append(f"**{name}**" if won else name)
            cells[name].append(f"**{number(value)}**" if won else number(value))
    for one in series:
        ratio = "–" if base not in found.series or one.name == less else f"{one.over(found.series[base], cost)}"
        cells[one.name].append(ratio)
    yield from cells.values()
