"""The incomplete beta function and its inverse: quantiles of the beta and of Student's t distribution."""

from __future__ import annotations

import math
from typing import Final

_TINY: Final = 1e-300
_PRECISION: Final = 1e-14
_ROUNDS: Final = 10_000


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b): P(X ≤ x) of X ~ Beta(a, b), for a, b > 0.

    The continued fraction of DLMF 8.17.22, evaluated by Lentz's method as Thompson & Barnett 1986 have it.
    """
    if x <= 0.0:
        return 0.0
    if x >= 1.0:
        return 1.0
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - incomplete_beta(b, a, 1.0 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    c, d = 1.0, 1.0 / _away(1.0 - (a + b) * x / (a + 1.0))
    fraction = d
    for m in range(1, _ROUNDS):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 / _away(1.0 + numerator * d)
            c = _away(1.0 + numerator / c)
            fraction *= c * d
        if abs(c * d - 1.0) < _PRECISION:
            break
    return front * fraction


def _away(value: float) -> float:
    """`value`, kept off zero: it is about to be divided by."""
    return value if abs(value) > _TINY else _TINY


def beta_quantile(a: float, b: float, share: float) -> float:
    """The x in [0, 1] with I_x(a, b) = share, by bisection to the last bits of a float."""
    low, high = 0.0, 1.0
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return middle
        if incomplete_beta(a, b, middle) < share:
            low = middle
        else:
            high = middle


def t_quantile(freedom: float, share: float) -> float:
    """The value that Student's t with `freedom` > 0 degrees of freedom stays below with probability `share`.

    From P(|T| > t) = I_x(freedom / 2, 1 / 2) with x = freedom / (freedom + t²): Abramowitz & Stegun 1964, 26.7.1.
    """
    if share < 0.5:
        return -t_quantile(freedom, 1.0 - share)
    # 1 - x is found, not x: where t is small, x is too near 1 to tell it from others.
    rest = beta_quantile(0.5, freedom / 2, 2.0 * share - 1.0)
    return math.sqrt(freedom * rest / (1.0 - rest)) if rest < 1.0 else math.inf
