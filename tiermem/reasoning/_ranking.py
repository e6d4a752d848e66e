"""The order of a recall: similarity × recency × reliability, then marginal relevance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from tiermem.errors import InvalidArgument
from tiermem.reasoning._view import Table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tiermem.types import FloatArray

_GROUPS: Final = 8
"""For each row that is wanted."""


@dataclass(frozen=True)
class Ranking:
    """How a recall orders lessons.

    score = similarity^a × recency^b × reliability^c, each in [0, 1]; `similarity`, `recency` and `reliability` are the
    exponents a, b and c, and 0 leaves a part out. recency = 2^(-age / half_life), where the age of a lesson is the time
    since it was last confirmed, in seconds.

    diversity: λ of maximal marginal relevance (Carbonell & Goldstein 1998): each next hit has the highest
    λ score - (1 - λ) max cosine to the hits before it, not below 0; 1 orders by score alone. It chooses among the
    `pool` lessons of the highest scores, or 4 k if those are more.
    """

    similarity: float = 1.0
    recency: float = 1.0
    reliability: float = 1.0
    half_life: float = 30 * 86_400.0
    diversity: float = 0.7
    pool: int = 32

    def __post_init__(self) -> None:
        for name in ("similarity", "recency", "reliability"):
            weight = getattr(self, name)
            if not (math.isfinite(weight) and weight >= 0.0):
                raise InvalidArgument(f"the weight of {name} is a number ≥ 0, not {weight!r}")
        if not self.half_life > 0.0:
            raise InvalidArgument(f"a half-life is seconds > 0, not {self.half_life!r}")
        if not 0.0 <= self.diversity <= 1.0:
            raise InvalidArgument(f"λ lies in [0, 1], not {self.diversity!r}")
        if self.pool < 1:
            raise InvalidArgument(f"the pool is a number ≥ 1, not {self.pool!r}")


class Ranked(NamedTuple):
    """A row of the table and the parts of its score."""

    place: int
    score: float
    similarity: float
    recency: float
    reliability: float
    redundancy: float
    relevance: float


def rank(
    table: Table, query: FloatArray, k: int, at: float, ranking: Ranking, mask: NDArray[np.bool_] | None
) -> list[Ranked]:
    """The best min(k, matches) rows for a unit `query` (d,) at time `at`, in order; equal ones by id."""
    # A product a row: it starts no threads, and a lesson's score is the same in whatever company.
    similarity = np.vecdot(table.vectors, query)
    np.clip(similarity, 0.0, 1.0, out=similarity)
    ages = np.maximum(0.0, at - table.confirmed_at)
    logs = _log_scores(table, similarity, ages, ranking)
    wanted = max(ranking.pool, 4 * k)
    pool = _highest(logs, wanted, mask)
    # Rows are in the order of their ids, which a stable sort keeps among equals.
    pool = pool[np.argsort(-logs[pool], kind="stable")[:wanted]]
    scores, vectors = np.exp2(logs[pool]), table.vectors[pool]
    relevance = ranking.diversity * scores
    redundancy = np.zeros(len(pool), np.float32)
    found: list[Ranked] = []
    while len(found) < min(k, len(pool)):
        best = int(np.argmax(relevance))
        row = int(pool[best])
        found.append(
            Ranked(
                row,
                float(scores[best]),
                float(similarity[row]),
                float(np.exp2(-ages[row] / ranking.half_life)),
                float(table.reliability[row]),
                float(redundancy[best]),
                float(relevance[best]),
            )
        )
        np.maximum(redundancy, np.vecdot(vectors, vectors[best]), out=redundancy)
        chosen = relevance == -np.inf
        chosen[best] = True
        relevance = ranking.diversity * scores - (1.0 - ranking.diversity) * redundancy
        relevance[chosen] = -np.inf
    return found


def _highest(logs: NDArray[np.float64], wanted: int, mask: NDArray[np.bool_] | None) -> NDArray[np.intp]:
    """Rows that the mask lets through, among them the `wanted` of the highest scores and all that equal these."""
    if mask is not None:
        rows = np.flatnonzero(mask)
        return rows[_highest(logs[rows], wanted, None)]
    group = len(logs) // (_GROUPS * wanted)
    if not group:
        return np.arange(len(logs))
    # So many groups hold a row that is as high as this: no row below is among them.
    tops = np.maximum.reduceat(logs, np.arange(0, len(logs), group))
    return np.flatnonzero(logs >= np.partition(tops, len(tops) - wanted)[len(tops) - wanted])


def _log_scores(
    table: Table, similarity: FloatArray, ages: NDArray[np.float64], ranking: Ranking
) -> NDArray[np.float64]:
    """log2 of the scores: a product of small numbers would end at 0, where nothing has an order any more."""
    total = -ranking.recency / ranking.half_life * ages
    with np.errstate(divide="ignore"):
        # A weight of 0 leaves a part out, also where its logarithm is infinite.
        if ranking.similarity:
            total += ranking.similarity * np.log2(similarity)
        if ranking.reliability:
            total += ranking.reliability * table.log_reliability
    return total
