"""Percentiles of puts, and memory and backlog over time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from latencybench.loops import SHARES
from latencybench.page import TITLES, pace
from latencybench.requirements import Document, Found

PANEL = (4.2, 3.2)


def draw(document: Document, page: Path) -> dict[str, str] | None:
    """Write pictures beside the page; what they show and their names. None without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        return None
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    cells = [one for one in document["found"].get("loops", []) if one["mix"] == "new"]
    loops = list(dict.fromkeys(one["loop"] for one in cells))
    if not loops:
        return {}
    names = {}
    size = (PANEL[0] * len(loops), PANEL[1])
    figure, panels = plt.subplots(1, len(loops), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axes, loop in zip(panels[0], loops, strict=True):
        curves(axes, [one for one in cells if one["loop"] == loop])
        axes.set(title=TITLES[loop], xlabel="percentile")
    panels[0][0].set_ylabel("put, new keys, µs")
    panels[0][-1].legend(fontsize=7)
    told = "Percentiles of a put: dotted the call, solid since it was due, by rate"
    names[told] = f"{page.stem}-percentiles.png"
    figure.savefig(page.parent / names[told], dpi=80)
    plt.close(figure)

    size = (PANEL[0] * len(loops), 2 * PANEL[1])
    figure, panels = plt.subplots(2, len(loops), figsize=size, sharey="row", squeeze=False, layout="constrained")
    for (upper, lower), loop in zip(zip(*panels, strict=True), loops, strict=True):
        for place, one in enumerate(one for one in cells if one["loop"] == loop):
            over_time(upper, lower, one, f"C{place}")
        upper.set(title=TITLES[loop])
        lower.set(xlabel="seconds")
        lower.set_yscale("symlog", linthresh=100)
    panels[0][0].set_ylabel("resident MiB")
    panels[1][0].set_ylabel("pending records")
    panels[0][-1].legend(fontsize=7)
    told = "Resident memory (solid: own, dotted: with mapped files) and records waiting for a commit, puts of new keys"
    names[told] = f"{page.stem}-memory.png"
    figure.savefig(page.parent / names[told], dpi=80)
    plt.close(figure)
    return names


def curves(axes: Any, cells: list[Found]) -> None:
    """A panel of percentiles, each nine as wide as the one before."""
    ticks = [*SHARES, "max"]
    for place, one in enumerate(cells):
        for kind, style in (("service", ":"), ("due", "-")):
            times = one["put"][kind]
            if times is None:
                continue
            known = [(at, times[name] / 1e3) for at, name in enumerate(ticks) if times[name] is not None]
            label = pace(one) if kind == ("due" if one["rate"] else "service") else None
            axes.plot(*zip(*known, strict=True), style, color=f"C{place}", label=label, marker=".", linewidth=1.2)
    axes.set_yscale("log")
    axes.set_xticks(range(len(ticks)), ticks, rotation=45, fontsize=7)
    axes.grid(visible=True, alpha=0.25)


def over_time(upper: Any, lower: Any, one: Found, color: str) -> None:
    """Memory above, without the room for the times; the backlog below."""
    times = one["room_bytes"] / 2**20
    rows = [row for row in one["resident"] if any(row[1:])]
    seconds = [row[0] for row in rows]
    upper.plot(seconds, [row[2] - times for row in rows], color=color, label=pace(one), linewidth=1.2)
    upper.plot(seconds, [row[1] - times for row in rows], ":", color=color, linewidth=1.2)
    lower.plot([row[0] for row in one["backlog"]], [row[1] for row in one["backlog"]], color=color, linewidth=1)
    for axes in (upper, lower):
        axes.grid(visible=True, alpha=0.25)
