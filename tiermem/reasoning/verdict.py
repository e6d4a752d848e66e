"""Verdicts: judges, which say how well a trajectory went from what is known of it."""

from __future__ import annotations

from typing import Protocol

from tiermem.trajectory.types import Label, StepVerdict, Trajectory, Verdict

__all__ = ["Judge", "Label", "StepVerdict", "Verdict"]


class Judge(Protocol):
    """Says how well a trajectory went. It reads nothing but the trajectory it is given, so it cannot see the future."""

    def judge(self, trajectory: Trajectory) -> Verdict:
        """The verdict on `trajectory` as it was known at the moment it was read of."""
        ...
