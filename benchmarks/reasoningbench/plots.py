"""Calibration, and reliability over time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def draw(world: dict[str, Any], target: Path) -> str | None:
    """Write the picture; its name, or None without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        return None
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    said, went = (np.array(column, float) for column in zip(*world["pairs"], strict=True))
    edges = np.linspace(0.0, 1.0, 11)
    bins = np.clip(np.digitize(said, edges) - 1, 0, 9)
    left.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for place in np.unique(bins):
        inside = went[bins == place]
        error = 1.96 * np.sqrt(max(inside.mean() * (1 - inside.mean()), 0.25 / len(inside)) / len(inside))
        left.errorbar(said[bins == place].mean(), inside.mean(), error, marker="o", color="C0", capsize=2)
    left.set(xlabel="what the lesson said", ylabel="share that went well, 95 %", title="Calibration")
    for curve in world["curves"]:
        hours, held = zip(*curve["points"], strict=True)
        right.plot(hours, held, color="C3" if curve["turned"] else "C0", linewidth=1, alpha=0.8)
    right.axvline(world["half"], color="0.7", linewidth=1)
    right.set(xlabel="hours", ylabel="reliability", title="Reliability; red: the situation turns")
    figure.savefig(target, dpi=90)
    plt.close(figure)
    return target.name
