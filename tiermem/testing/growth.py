"""Growth: what processes and files take, measured over time."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Series:
    """What one measure was over time: (seconds since the beginning, MiB)."""

    points: list[tuple[float, float]] = field(default_factory=list)

    def add(self, moment: float, mib: float) -> None:
        """One more measurement."""
        self.points.append((moment, mib))

    def add_memory(self, moment: float, pid: int) -> None:
        """What a process holds in memory that is not mapped from files, if there is such a process."""
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
                if line.startswith("RssAnon:"):
                    self.add(moment, int(line.split()[1]) / 1024)

    def between(self, start: float, end: float) -> list[float]:
        """The values from `start` up to `end` seconds."""
        return [mib for moment, mib in self.points if start <= moment < end]

    def growth(self, start: float) -> float:
        """By how many MiB it has grown since `start`: the slope of a straight line through the points, times the span.

        The line is the one of least squares.
        """
        points = [(moment, mib) for moment, mib in self.points if moment >= start]
        if len(points) < 2:
            return 0.0
        middle = sum(moment for moment, _ in points) / len(points)
        level = sum(mib for _, mib in points) / len(points)
        spread = sum((moment - middle) ** 2 for moment, _ in points)
        slope = sum((moment - middle) * (mib - level) for moment, mib in points) / spread if spread else 0.0
        return slope * (points[-1][0] - points[0][0])
