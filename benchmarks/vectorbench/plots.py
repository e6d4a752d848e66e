"""Recall against latency, a picture for each data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vectorbench.curves import front, points
from vectorbench.requirements import turns_of
from vectorbench.subject import SUBJECTS

LOWEST = 0.8
TICKS = (0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0)


def stretched(recall: Any) -> Any:
    """The axis of recall: each nine takes as much room."""
    return -np.log10(np.clip(1.0005 - np.asarray(recall, dtype=float), 1e-9, None))


def shrunk(place: Any) -> Any:
    """The inverse of `stretched`."""
    return 1.0005 - 10.0 ** -np.asarray(place, dtype=float)


def draw(document: dict[str, Any], folder: Path) -> dict[str, str]:
    """Write `vectors-<data set>.png` for each that was searched; their names. Nothing without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        return {}
    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    names = {}
    for data, found in document["searches"].items():
        figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
        for place, name in enumerate(one for one in SUBJECTS if one in found):
            own = [point for point in points(turns_of(document, data, name)) if point["p50"] is not None]
            own = [point for point in own if point["recall"] >= LOWEST]
            color, label = f"C{place}", name
            curve = front([point for point in own if point["effort"] is not None], "p50")
            if curve:
                xs, ys = zip(*curve, strict=True)
                width = 2.5 if name == "tiermem" else 1.2
                axes.plot(xs, ys, color=color, label=label, marker=".", linewidth=width)
                label = None
            for point in own:
                if point["effort"] is None:
                    axes.plot(point["recall"], point["p50"], "*", color=color, markersize=11, label=label)
        axes.set_xscale("function", functions=(stretched, shrunk))
        axes.set_yscale("log")
        axes.set_xlim(LOWEST, 1.0001)
        axes.xaxis.set_major_locator(FixedLocator(TICKS))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set(xlabel="recall@10", ylabel="p50 of one search, µs", title=f"{data} (star: default settings)")
        axes.grid(visible=True, which="both", alpha=0.25)
        axes.legend(fontsize=8)
        names[data] = f"vectors-{data}.png"
        figure.savefig(folder / names[data], dpi=80)
        plt.close(figure)
    return names
