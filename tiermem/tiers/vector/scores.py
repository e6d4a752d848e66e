"""Scores: what a vector is compared by, and which rows are worth an exact comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SLACK: Final = 1e-4
"""Error allowed to a float32 score, relative to the norms; all rows that near the edge are scored again."""

_TINY: Final = 1e-30
"""Squares and products below this have lost digits to underflow."""

_HUGE: Final = 1e30
"""Where no squared norm is above this, no sum or product of two of them overflows."""

_FEW: Final = 4
"""So many times k rows are sooner scored exactly than ranked once more."""

_STRIP: Final = 512
"""Rows made points at a time: what is allocated in between stays in the processor's cache."""

_FAR: Final = 1e15
"""Points are no longer than 1; around one that is so far away they have no order in float32."""


def exact_scores(metric: str, rows: NDArray[np.float32], query: NDArray[np.float32]) -> NDArray[np.float64]:
    """The score of each float32 row (n, d) for `query` (d,), summed in float64.

    cosine: r·q / (|r||q|); dot: r·q; euclidean: -|r - q|. Independent of how rows are grouped.
    """
    wide, target = rows.astype(np.float64), query.astype(np.float64)
    if metric == "euclidean":
        wide -= target
        return np.asarray(-np.sqrt(np.vecdot(wide, wide)))
    # A product a row: its sum does not depend on what other rows there are.
    scores: NDArray[np.float64] = np.vecdot(wide, target)
    if metric == "cosine":
        scores /= np.sqrt(np.vecdot(wide, wide)) * np.sqrt(np.vecdot(target, target))
        np.minimum(scores, 1.0, out=scores)
        np.maximum(scores, -1.0, out=scores)
    return scores


def shortlist(
    metric: str,
    products: NDArray[np.float32],
    squares: NDArray[np.float32],
    query: NDArray[np.float32],
    k: int,
    least: float = -math.inf,
) -> NDArray[np.intp]:
    """Places of at least the k best among rows of these inner products with `query` and squared norms, ascending.

    Chosen with some slack, so that no rounding of float32 leaves out a row that belongs to the k best. Of those that
    score less than `least` any may be left out.
    """
    if len(products) <= k:
        return np.arange(len(products))
    rough: NDArray[np.floating[Any]] = products
    slack: NDArray[np.floating[Any]] | float
    with np.errstate(all="ignore"):
        square = float(query @ query)
        plain = min(square, float(squares.min())) > _TINY and max(square, float(squares.max())) < _HUGE
        if metric == "cosine":
            rough = products / np.sqrt(squares)
            slack = _SLACK * square**0.5
            bound = least * square**0.5
        elif metric == "euclidean":
            rough = 2.0 * products - squares
            slack = np.float32(_SLACK) * (squares + np.float32(square))
            bound = square - least * least if least < 0.0 else square
        else:
            slack = np.float32(_SLACK * square**0.5) * np.sqrt(squares)
            bound = least
        if plain:
            upper = rough + slack
            near = np.flatnonzero(upper >= bound)
            if len(near) <= _FEW * k:
                return near
            lowest = upper - 2 * slack
            odd = np.False_
        else:
            # At the ends of float32's range a rough score means nothing: such rows are scored exactly.
            scale = np.minimum(squares, square) if metric == "cosine" else squares
            odd = ~(np.isfinite(rough) & np.isfinite(squares) & np.isfinite(slack) & (scale > _TINY))
            lowest, upper = np.where(odd, -np.inf, rough - slack), rough + slack
        edge = np.partition(lowest, len(lowest) - k)[len(lowest) - k]
        return np.flatnonzero(odd | (upper >= edge))


def as_float32(vector: Sequence[float] | NDArray[Any]) -> NDArray[np.float32]:
    """`vector` as contiguous float32; TypeError or ValueError where numpy cannot."""
    array = np.asarray(vector)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"dtype {array.dtype} is not a number")
    with np.errstate(over="ignore"):
        return np.asarray(array, np.float32, order="C")


def as_points(metric: str, rows: NDArray[np.float32], largest: float) -> NDArray[np.float32]:
    """`rows` (n, d) as points of an engine, whose order around `as_point(query)` is that of the metric.

    Unit vectors for cosine, whose euclidean order it is; else shrunk to norms ≤ 1 by `largest`, the
    longest among all rows.
    """
    points = np.empty(rows.shape, np.float32)
    for start in range(0, len(rows), _STRIP):
        wide = rows[start : start + _STRIP].astype(np.float64)
        if metric == "cosine":
            wide /= np.sqrt(np.vecdot(wide, wide))[:, None]
        else:
            wide /= largest or 1.0
        points[start : start + _STRIP] = wide
    return points


def as_point(metric: str, query: NDArray[np.float32], largest: float) -> NDArray[np.float32]:
    """The point whose near rows are those most similar to `query`; see `as_points`."""
    wide = query.astype(np.float64)
    wide /= (largest if metric == "euclidean" else math.sqrt(np.dot(wide, wide))) or 1.0
    # A longer point would be beyond float32, or its squares would.
    return np.maximum(np.minimum(wide, _FAR), -_FAR).astype(np.float32)


def as_distance(metric: str, score: float, query: NDArray[np.float32], largest: float) -> float:
    """How far from `as_point(query)` the points of that score lie; see `as_points`.

    cosine: the squared distance of two unit vectors, 2 - 2s; euclidean: the squared distance; dot: minus the product.
    """
    if score == -math.inf:
        return math.inf
    if metric == "cosine":
        return 2.0 - 2.0 * score
    if metric == "euclidean":
        # A score of 0 or more is only reached where both are the same.
        gap = min(score, 0.0) / (largest or 1.0)
        return gap * gap
    wide = query.astype(np.float64)
    return -score / ((largest or 1.0) * (math.sqrt(np.dot(wide, wide)) or 1.0))
