"""Cost against the number of records, one picture of small panels."""

from __future__ import annotations

from pathlib import Path

from growthbench.figures import UNITS, Document, Series, all_memory, all_space, all_times

PANELS: list[tuple[str, str, tuple[str, ...]]] = [
    ("get", "µs", ("`get`, hot", "`get`, cold, p50", "`get`, cold, p95")),
    (
        "put",
        "µs",
        (
            "`put_many`, each, committed",
            "`put`, new key, p50",
            "`put`, new key, p95",
            "`put`, new key, each, committed",
            "`put`, existing key, p50",
            "`put`, existing key, each, committed",
        ),
    ),
    ("scan, count, latest", "ms", ("`scan` of 1,000", "`count`", "`latest(100)`, no stream")),
    (
        "open",
        "ms",
        (
            "`open`, p50",
            "`open`, page cache empty",
            "`open` with vectors, p50",
            "`open` with vectors, page cache empty",
            "first search of a process",
        ),
    ),
    ("search", "ms", ("search, p50", "search, p95", "exact search, p50")),
    ("check, compact, backup: values", "s", ("`check`", "`compact`", "`backup`")),
    (
        "the same, with vectors",
        "s",
        ("`check` with vectors", "`compact` with vectors", "`backup` with vectors", "`build_index`"),
    ),
    ("a stream", "µs", ("`append`, each, committed", "`latest(100)` of a stream")),
]
"""Title, unit, and the series."""


def draw(document: Document, target: Path) -> str | None:
    """Write the picture; its name, or None without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        return None
    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.axes import Axes

    def panel(axes: Axes, title: str, unit: str, lines: list[Series]) -> None:
        for one in lines:
            xs, ys = zip(*one.points, strict=True)
            scaled = [value / UNITS[unit] for value in ys]
            axes.plot(xs, scaled, marker=".", linewidth=1.2, label=one.name.replace("`", ""))
        if not lines:
            axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
            axes.set(xticks=[], yticks=[], title=title)
            return
        axes.set(xscale="log", yscale="log", title=f"{title}, {unit}")
        axes.grid(visible=True, which="major", alpha=0.25)
        axes.legend(fontsize=6)

    times = {one.name: one for one in all_times(document)}
    figure, grid = plt.subplots(4, 3, figsize=(12, 13), layout="constrained")
    places = iter(grid.flat)
    for title, unit, names in PANELS:
        panel(next(places), title, unit, [times[name] for name in names if name in times])
    for key, what in (("peak", "peak of resident memory"), ("private_peak", "peak of private memory")):
        memory = all_memory(document, key)
        for kind, title in (("values", "values"), ("vectors", "with vectors")):
            if key == "peak" or kind == "values":
                panel(next(places), f"{what}: {title}", "MiB", [one for one in memory if one.kind == kind])
    space = [one for one in all_space(document) if one.unit == "B"]
    panel(next(places), "disk: bytes a record", "B", space)
    for axes in places:
        axes.axis("off")
    for axes in grid[-1]:
        axes.set_xlabel("records")
    figure.savefig(target, dpi=80)
    plt.close(figure)
    return target.name
