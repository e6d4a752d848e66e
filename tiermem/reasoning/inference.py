"""What outcomes say: the effect of a lesson, and how surprising a group of outcomes is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from tiermem.errors import InvalidArgument
from tiermem.reasoning.posterior import Beta

_STEEPEST: Final = 2.0**20
_HALVINGS: Final = 20


def t_quantile(freedom: float, probability: float) -> float:
    """What Student's t with `freedom` > 0 degrees of freedom stays below with `probability`, in (0, 1).

    From P(|T| > t) = I_x(freedom / 2, 1 / 2) with x = freedom / (freedom + t²): Abramowitz & Stegun 1964, 26.7.1.
    """
    if probability < 0.5:
        return -t_quantile(freedom, 1.0 - probability)
    # 1 - x is found, not x: where t is small, x is too near 1 to be told from it.
    rest = Beta(0.5, freedom / 2.0).quantile(2.0 * probability - 1.0)
    return math.sqrt(freedom * rest / (1.0 - rest)) if rest < 1.0 else math.inf


class Evidence(NamedTuple):
    """What one trajectory says of a situation: how far it went well there, in [0, 1], and how much that weighs, ≤ 1."""

    trajectory: str
    value: float
    weight: float


class Sample(NamedTuple):
    """A number of outcomes, their mean, and their variance (of n - 1; 0 for a single one)."""

    size: int
    mean: float
    variance: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Sample:
        """Of at least one value. The order does not matter."""
        mean = math.fsum(values) / len(values)
        squares = math.fsum((value - mean) ** 2 for value in values)
        return cls(len(values), mean, squares / (len(values) - 1) if len(values) > 1 else 0.0)


class Effect(NamedTuple):
    """What using a lesson changed: the runs that used it against those in its situation that did not."""

    used: Sample
    unused: Sample

    @property
    def difference(self) -> float:
        """Mean with − mean without."""
        return self.used.mean - self.unused.mean

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Where the difference lies with `confidence`, in (0, 1); unbounded unless both samples hold two outcomes.

        Welch 1947, "The generalization of 'Student's' problem when several different population variances are
        involved", with the degrees of freedom of Satterthwaite 1946. Where neither sample varies there is no
        estimate of the error, and the interval is unbounded too.
        """
        check_confidence(confidence)
        if min(self.used.size, self.unused.size) < 2:
            return -math.inf, math.inf
        one = self.used.variance / self.used.size
        two = self.unused.variance / self.unused.size
        if one + two <= 0.0:
            return -math.inf, math.inf
        freedom = (one + two) ** 2 / (one**2 / (self.used.size - 1) + two**2 / (self.unused.size - 1))
        half = t_quantile(freedom, (1.0 + confidence) / 2.0) * math.sqrt(one + two)
        return self.difference - half, self.difference + half


def surprise(evidence: Sequence[Evidence], baseline: float) -> float:
    """A bound on the two-sided p-value of evidence that is drawn from a population whose mean is `baseline`.

    For S = Σ w_i v_i over values v_i in [0, 1] of weights w_i, P(S ≥ s) ≤ exp(-t s) Π (1 - μ + μ exp(t w_i)) for every
    t > 0, and the same below: the bound of Chernoff with the lemma of Hoeffding 1963, "Probability inequalities for
    sums of bounded random variables", theorem 1, and section 6 for draws without replacement. With equal weights it is
    exp(-n KL(x‖μ)) for the mean x: exact, but for the factor 2 of the two sides, where all values are 0 or all are 1.
    No distribution is assumed, and no sample is too small.
    """
    weighty = [one for one in evidence if one.weight > 0.0]
    weights = [one.weight for one in weighty]
    total = math.fsum(one.value * one.weight for one in weighty)
    mass = math.fsum(weights)
    if mass <= 0.0 or total == baseline * mass:
        return 1.0
    end = 1.0
    if total < baseline * mass:
        total, baseline, end = mass - total, 1.0 - baseline, 0.0
    if baseline <= 0.0:
        return 0.0
    # Of the values, not of their sum: what weighs next to nothing is lost in that.
    if all(one.value == end for one in weighty):
        # Everything went one way: the infimum is that of t → ∞.
        return min(1.0, 2.0 * baseline ** len(weighty))
    low, high = 0.0, 1.0
    tilted = np.asarray(weights, np.float64)

    def excess(t: float) -> float:
        """The derivative of the logarithm of the bound."""
        return float((tilted * (baseline / (baseline + (1.0 - baseline) * np.exp(-t * tilted)))).sum()) - total

    while excess(high) < 0.0 and high < _STEEPEST:
        low, high = high, 2.0 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        if excess(middle) < 0.0:
            low = middle
        else:
            high = middle
    # Every t gives a bound; that it is not quite the best one costs nothing but a little power.
    bound = float(np.logaddexp(math.log1p(-baseline), math.log(baseline) + high * tilted).sum()) - high * total
    return min(1.0, 2.0 * math.exp(min(0.0, bound)))


def holm(p_values: Sequence[float], confidence: float) -> list[bool]:
    """Which hypotheses are rejected so that with probability `confidence` none is rejected wrongly.

    Holm 1979, "A simple sequentially rejective multiple test procedure": it holds however the tests depend on each
    other.
    """
    level = 1.0 - check_confidence(confidence)
    rejected = [False] * len(p_values)
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[place] > level / (len(p_values) - rank):
            break
        rejected[place] = True
    return rejected


def check_confidence(confidence: float) -> float:
    """`confidence`, if it lies in (0, 1)."""
    if isinstance(confidence, bool) or not isinstance(confidence, int | float) or not 0.0 < confidence < 1.0:
        raise InvalidArgument(f"a confidence lies between 0 and 1, not at {confidence!r}")
    return float(confidence)
