"""Similar situations: threshold clustering of vectors, the same for every order of the rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from xxhash import xxh3_64_intdigest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tiermem.types import FloatArray

_BLOCK: Final = 2048
"""Rows compared at a time."""
_ROUNDS: Final = 2
"""How often centres move to the middle of their members."""


class Clusters(NamedTuple):
    """`labels` (n,): the cluster of each row, -1 for none. `centres` (k, d): unit vectors, largest cluster first."""

    labels: NDArray[np.int64]
    centres: FloatArray


_EXACT: Final = 1.0 - 1e-6
"""The cosine that float32 rows of one direction are sure to have: 1, but for rounding."""


def reachable(cosine: float) -> float:
    """A threshold of cosines that rows of one direction reach."""
    return min(cosine, _EXACT)


def unit_rows(vectors: FloatArray) -> FloatArray:
    """Float32 rows of length 1; a row of zeros stays."""
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    lengths[lengths == 0.0] = 1.0
    return np.ascontiguousarray(vectors / lengths[:, None], np.float32)


def cluster(vectors: FloatArray, similarity: float, *, seed: int, limit: int) -> Clusters:
    """Group rows (n, d) around centres: a row belongs to the nearest centre whose cosine is ≥ `similarity`, if any.

    The leader algorithm (Hartigan 1975, "Clustering Algorithms", ch. 3) finds at most `limit` first centres; these
    then move to the mean of their rows, and those within `similarity` of a larger one join it. The leader algorithm
    depends on the order of the rows; here it is that of a hash of each row under `seed`, so that the same rows give the
    same clusters in whatever order they come. A row that occurs alone forms no cluster. O(n k d) time for k centres.
    """
    similarity = reachable(similarity)
    points = unit_rows(vectors)
    rows = np.fromiter((xxh3_64_intdigest(row, seed) for row in points), np.uint64, len(points))
    order = np.argsort(rows, kind="stable")
    points = points[order]
    points = points[np.any(points, axis=1)] if len(points) else points
    centres = _leaders(points, similarity, limit)
    for _ in range(_ROUNDS):
        centres = _merged(*_means(points, _nearest(points, centres, similarity), len(centres)), similarity)
    _, sizes = _means(points, _nearest(points, centres, similarity), len(centres))
    kept = centres[np.argsort(-sizes, kind="stable")][: int(np.count_nonzero(sizes > 1))]
    labels = np.empty(len(order), np.int64)
    labels[order] = _nearest(unit_rows(vectors[order]), kept, similarity)
    return Clusters(labels, kept)


def _leaders(points: FloatArray, similarity: float, limit: int) -> FloatArray:
    """Rows such that none is within `similarity` of an earlier one, and every row is of one of them, up to `limit`."""
    found = np.empty((min(limit, len(points)), points.shape[1]), np.float32)
    count = 0
    for start in range(0, len(points), _BLOCK):
        block = points[start : start + _BLOCK]
        if count:
            block = block[(block @ found[:count].T).max(axis=1) < similarity]
        near = block @ block.T >= similarity
        open_ = np.ones(len(block), bool)
        for place in range(len(block)):
            if open_[place]:
                if count == limit:
                    return found
                found[count] = block[place]
                count += 1
                open_ &= ~near[place]
    return found[:count]


def _nearest(points: FloatArray, centres: FloatArray, similarity: float) -> NDArray[np.int64]:
    """The number of the nearest centre of each row, -1 where none is within `similarity`."""
    labels = np.full(len(points), -1, np.int64)
    if not len(centres):
        return labels
    for start in range(0, len(points), _BLOCK):
        scores = points[start : start + _BLOCK] @ centres.T
        best = scores.argmax(axis=1)
        near = scores[np.arange(len(best)), best] >= similarity
        labels[start : start + _BLOCK][near] = best[near]
    return labels


def _means(points: FloatArray, labels: NDArray[np.int64], count: int) -> tuple[FloatArray, NDArray[np.int64]]:
    """The direction of the mean of every cluster, and its size; zeros for an empty one."""
    sizes = np.bincount(labels[labels >= 0], minlength=count)
    order = np.argsort(labels, kind="stable")[np.count_nonzero(labels < 0) :]
    sums = np.zeros((count, points.shape[1]), np.float64)
    filled = np.flatnonzero(sizes)
    if len(filled):
        starts = np.concatenate(([0], np.cumsum(sizes[filled])[:-1]))
        sums[filled] = np.add.reduceat(points[order], starts, axis=0, dtype=np.float64)
    return unit_rows(sums.astype(np.float32)), sizes


def _merged(centres: FloatArray, sizes: NDArray[np.int64], similarity: float) -> FloatArray:
    """The centres, largest first, without those of single rows and those within `similarity` of a larger one."""
    order = np.argsort(-sizes, kind="stable")
    order = order[sizes[order] > 1]
    return _leaders(centres[order], similarity, len(order)) if len(order) else centres[:0]
