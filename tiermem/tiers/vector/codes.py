"""8-bit codes of faiss: steps of its own for each dimension, or where that costs little the same for all.

Of whole steps of one size the library compares codes as integers, without a look at the range of each
dimension, so that a graph is made sooner. But wide dimensions would take the digits of narrow ones, which may
be what tells near rows apart; and a search, whose point is not to be rounded, reads the same codes as it reads
all others.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MARGIN: Final = 0.05
"""How far the range of a dimension goes beyond the training points, relative to their spread."""
_LARGEST: Final = 1e15
"""Larger coordinates count as this one in training: sums of squares of their differences stay below float32's end."""
_SMALLEST: Final = 1e-15
"""Where no coordinate is larger, a step is near the end of float32's range, where numbers have few digits."""
_COARSER: Final = 2.0
"""So many times the steps of the dimensions' own, in the mean square, the one for all may be;"""
_COARSEST: Final = 8.0
"""and so many times that of any dimension whose range is not empty,"""
_SPARED: Final = 100
"""but for one dimension in so many."""
_TOP: Final = 127
_LEVELS: Final = 255
_MOST: Final = (2**31 - 1) // (2 * _TOP) ** 2
"""Dimensions, the squares of whose differences in whole steps the library can add up: it does so in 32 bits."""


def limited(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """`points` with no number so large that its square overflows."""
    return np.clip(points, -_LARGEST, _LARGEST)


def learn(faiss: Any, graph: Any, sample: NDArray[np.float32]) -> float:
    """Have the codes of a graph, which has none yet, fit all within the reach of `sample`.

    The step if all share one, else 0: `whole_steps` of it are to be added, and `settle` called at the end.
    """
    storage = faiss.downcast_index(graph.storage)
    reach = limited(np.stack([sample.min(axis=0), sample.max(axis=0)]))
    furthest = float(np.abs(reach).max())
    own = (reach[1].astype(np.float64) - reach[0]) / 2
    narrow = np.count_nonzero((own > 0) & (own * _COARSEST < furthest))
    even = furthest <= _COARSER * math.sqrt(np.square(own).mean()) and narrow * _SPARED <= graph.d
    graph.is_trained = True
    if even and furthest >= _SMALLEST and graph.d <= _MOST:
        storage.sq = faiss.ScalarQuantizer(graph.d, faiss.ScalarQuantizer.QT_8bit_direct_signed)
        storage.is_trained = True
        return furthest * (1 + _MARGIN) / _TOP
    storage.sq = faiss.ScalarQuantizer(graph.d, faiss.ScalarQuantizer.QT_8bit)
    storage.sq.rangestat = faiss.ScalarQuantizer.RS_minmax
    storage.sq.rangestat_arg = _MARGIN
    storage.train(reach)
    return 0.0


def whole_steps(points: NDArray[np.float32], step: float) -> NDArray[np.float32]:
    """`points` in steps of that size; as they are for 0."""
    if not step:
        return points
    steps: NDArray[np.float32] = np.rint(points / np.float32(step))
    return np.clip(steps, -_TOP, _TOP, out=steps)


def settle(faiss: Any, graph: Any, step: float) -> None:
    """Say in the graph what its codes mean: n + 128 for n steps, as if a range was learned for each dimension.

    For 0 they were learned so.
    """
    if not step:
        return
    storage = faiss.downcast_index(graph.storage)
    storage.sq = faiss.ScalarQuantizer(graph.d, faiss.ScalarQuantizer.QT_8bit)
    # The lowest number of each dimension, then the width of its range; a code means the middle of its step.
    learned = np.repeat(np.array([-(_TOP + 1.5) * step, _LEVELS * step], np.float32), graph.d)
    faiss.copy_array_to_vector(learned, storage.sq.trained)


def noise(faiss: Any, graph: Any) -> float:
    """A step over √12, the root mean square over all dimensions."""
    steps = faiss.vector_to_array(faiss.downcast_index(graph.storage).sq.trained)[graph.d :] / _LEVELS
    return math.sqrt(float(np.square(steps, dtype=np.float64).mean()) / 12)
