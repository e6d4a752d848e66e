"""What outcomes say: a posterior of success, the effect of a lesson, and how surprising a group of outcomes is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from tiermem.errors import InvalidArgument
from tiermem.reasoning._beta import beta_quantile, incomplete_beta, t_quantile

_STEEPEST: Final = 2.0**20
_HALVINGS: Final = 20


class Posterior(NamedTuple):
    """A beta distribution over a probability: what is believed of it after some outcomes.

    The prior is uniform, Beta(1, 1) (Bayes 1763); an outcome counts with its degree of success in [0, 1], times its
    weight, on one side, and with the rest of its weight on the other.

    >>> Posterior.of([(1.0, 1.0), (1.0, 1.0), (0.0, 1.0)])
    Posterior(alpha=3.0, beta=2.0)
    """

    alpha: float = 1.0
    beta: float = 1.0

    @classmethod
    def of(cls, outcomes: Sequence[tuple[float, float]]) -> Posterior:
        """From (degree of success in [0, 1], weight ≥ 0) of each outcome. The order does not matter."""
        wins = math.fsum(value * weight for value, weight in outcomes)
        losses = math.fsum((1.0 - value) * weight for value, weight in outcomes)
        return cls(1.0 + wins, 1.0 + losses)

    @property
    def mean(self) -> float:
        """The expected probability."""
        return self.alpha / (self.alpha + self.beta)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """The central interval that holds the probability with `confidence`, in (0, 1)."""
        tail = (1.0 - check_confidence(confidence)) / 2.0
        return beta_quantile(self.alpha, self.beta, tail), beta_quantile(self.alpha, self.beta, 1.0 - tail)

    def above(self, threshold: float) -> float:
        """How likely it is that the probability lies above `threshold`."""
        return 1.0 - incomplete_beta(self.alpha, self.beta, threshold)


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


def surprise(values: Sequence[float], weights: Sequence[float], baseline: float) -> float:
    """A bound on the two-sided p-value of weighted values in [0, 1] drawn from a population whose mean is `baseline`.

    For S = Σ w_i v_i, P(S ≥ s) ≤ min over t > 0 of exp(-t s) Π (1 - μ + μ exp(t w_i)), and the same below: the bound
    of Chernoff with the lemma of Hoeffding 1963, "Probability inequalities for sums of bounded random variables",
    theorem 1, and section 6 for draws without replacement. With equal weights it is exp(-n KL(x‖μ)) for the mean x:
    exact, but for the factor 2 of the two sides, where all values are 0 or all are 1. No distribution is assumed, and
    no sample is too small.
    """
    total = math.fsum(value * weight for value, weight in zip(values, weights, strict=True))
    mass = math.fsum(weights)
    if mass <= 0.0 or total == baseline * mass:
        return 1.0
    if total < baseline * mass:
        total, baseline = mass - total, 1.0 - baseline
    if baseline <= 0.0:
        return 0.0
    if total >= mass:
        # Everything went one way: the infimum is that of t → ∞.
        return min(1.0, 2.0 * baseline ** sum(weight > 0.0 for weight in weights))
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
