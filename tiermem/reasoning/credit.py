"""Credit: how far each step of a run is answerable for what followed it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tiermem.errors import InvalidArgument


def credit(scores: Sequence[float | None], discount: float) -> list[tuple[float, float]]:
    """(value, weight) of each step, from the scores of all of them; None: that step was not scored.

    With r the scores and γ the discount, value_i = Σ γ^(j-i) r_j / Σ γ^(j-i) over the scored steps j ≥ i: the
    discounted mean of what followed, in the range of the scores. weight_i = min(1, Σ γ^(j-i)): how near the outcomes
    are. Where nothing that follows was scored, (0.0, 0.0). γ = 0 leaves each step its own score.

    The sums are discounted returns, accumulated backwards: Sutton & Barto 2018, "Reinforcement Learning", eq. 3.9.

    Raises:
        InvalidArgument: a score that is not finite, or a discount outside [0, 1].

    >>> credit([None, None, 1.0], 0.5)
    [(1.0, 0.25), (1.0, 0.5), (1.0, 1.0)]
    """
    if not 0.0 <= discount <= 1.0:
        raise InvalidArgument(f"a discount lies in [0, 1], not {discount!r}")
    found: list[tuple[float, float]] = []
    total = mass = 0.0
    for score in reversed(scores):
        total *= discount
        mass *= discount
        if score is not None:
            if not math.isfinite(score):
                raise InvalidArgument(f"a score is finite, not {score!r}")
            total += score
            mass += 1.0
        found.append((total / mass, min(1.0, mass)) if mass > 0.0 else (0.0, 0.0))
    found.reverse()
    return found
