"""Posteriors: what so many hits among so many trials say about the true share of hits."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final, NamedTuple

from tiermem.errors import InvalidArgument

Z95: Final = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution: a two-sided interval of 95 %."""
_TINY: Final = 1e-300
_PRECISION: Final = 1e-15
_MOST_TERMS: Final = 10_000


class Interval(NamedTuple):
    """A range that a share lies in, within [0, 1]."""

    low: float
    high: float


def wilson(hits: float, trials: float, z: float = Z95) -> Interval:
    """The Wilson score interval of the share of hits; (0, 1) where nothing was tried.

    With p = hits / trials: (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n). Wilson, E. B. (1927), Probable inference,
    the law of succession, and statistical inference. Journal of the American Statistical Association 22.

    Raises:
        InvalidArgument: not 0 ≤ hits ≤ trials, or `z` is not positive.
    """
    _check(hits, trials)
    if not 0 < z < math.inf:
        raise InvalidArgument(f"z is a number > 0, not {z!r}")
    if trials == 0:
        return Interval(0.0, 1.0)
    share, room = hits / trials, z * z / trials
    centre = share + room / 2
    half = z * math.sqrt(share * (1 - share) / trials + room / (4 * trials))
    # At the ends the root cancels the centre, but for the last digit.
    low = (centre - half) / (1 + room) if hits else 0.0
    high = (centre + half) / (1 + room) if hits < trials else 1.0
    return Interval(low, high)


class Beta(NamedTuple):
    """A Beta distribution over a share: what is believed of it. Beta(1, 1), the uniform one, knows nothing."""

    a: float = 1.0
    b: float = 1.0

    @staticmethod
    def given(hits: float, trials: float) -> Beta:
        """The posterior after `hits` of `trials`, from the uniform prior: Beta(1 + hits, 1 + misses).

        Bayes' rule with the conjugate prior of the binomial; Gelman et al. (2013), Bayesian Data Analysis, 2.4.

        Raises:
            InvalidArgument: not 0 ≤ hits ≤ trials.
        """
        _check(hits, trials)
        return Beta(1.0 + hits, 1.0 + trials - hits)

    @property
    def mean(self) -> float:
        """The expected share, a / (a + b)."""
        return self.a / (self.a + self.b)

    @property
    def deviation(self) -> float:
        """The standard deviation, √(ab / (a + b)² (a + b + 1))."""
        total = self.a + self.b
        return math.sqrt(self.a * self.b / (total + 1)) / total

    def below(self, share: float) -> float:
        """The probability that the true share is at most `share`: the regularised incomplete beta function I(share).

        By its continued fraction, DLMF 8.17.22, evaluated with the algorithm of Lentz.

        Raises:
            InvalidArgument: `share` is not in [0, 1].
        """
        if not 0 <= share <= 1:
            raise InvalidArgument(f"a share lies in [0, 1], not {share!r}")
        return _incomplete_beta(self.a, self.b, float(share))

    def above(self, share: float) -> float:
        """The probability that the true share is at least `share`."""
        if not 0 <= share <= 1:
            raise InvalidArgument(f"a share lies in [0, 1], not {share!r}")
        return _incomplete_beta(self.b, self.a, 1.0 - share)

    def quantile(self, probability: float) -> float:
        """The share that the true one lies below with `probability`, in [0, 1]; by bisection, to the last bits."""
        low, high = 0.0, 1.0
        while low < (middle := (low + high) / 2) < high:
            if self.below(middle) < probability:
                low = middle
            else:
                high = middle
        return high

    def interval(self, confidence: float = 0.95) -> Interval:
        """The central range that holds the true share with `confidence`, in [0, 1]."""
        tail = (1.0 - confidence) / 2.0
        return Interval(self.quantile(tail), self.quantile(1.0 - tail))


def _check(hits: float, trials: float) -> None:
    if not 0 <= hits <= trials < math.inf:
        raise InvalidArgument(f"{hits!r} hits of {trials!r} trials")


# The same few counts come again and again: there are some hundred pairs up to twenty steps.
@lru_cache(maxsize=4096)
def _incomplete_beta(a: float, b: float, x: float) -> float:
    if not (0 < a < math.inf and 0 < b < math.inf):
        raise InvalidArgument(f"there is no Beta({a!r}, {b!r})")
    if x in (0.0, 1.0):
        return x
    if x > (a + 1) / (a + b + 2):
        # There the fraction converges slowly, and that of the other side quickly.
        return 1.0 - _incomplete_beta(b, a, 1.0 - x)
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    c, d = 1.0, 1.0 / _apart(1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, _MOST_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1.0 / _apart(1 + term * d)
            c = _apart(1 + term / c)
            fraction *= c * d
        if abs(c * d - 1) < _PRECISION:
            return min(1.0, math.exp(scale) * fraction / a)
    raise InvalidArgument(f"Beta({a!r}, {b!r}) is too narrow to be computed")


def _apart(x: float) -> float:
    """`x`, kept apart from 0, by which nothing can be divided."""
    return x if abs(x) > _TINY else _TINY
