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

_NOISE: Final = 1e-5
"""More than two ways to sum the inner product of two unit vectors in float32 may differ."""


@dataclass(frozen=True)
class Ranking:
    """How a recall orders lessons.

    score = similarity^a × recency^b × reliability^c, each in [0, 1]; `similarity`, `recency` and `reliability` are the
    exponents a, b and c, and 0 leaves a part out. recency = 2^(-age / half_life), where the age of a lesson is the time
    since it was last confirmed, in seconds.

    diversity: λ of maximal marginal relevance (Carbonell & Goldstein 1998): each next hit has the highest
    λ score - (1 - λ) max cosine to the hits before it; 1 orders by score alone. It chooses among the `pool` lessons of
    the highest scores, or 4 k if those are more.
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
    """The best min(k, matches) rows for a unit `query` (d,) at time `at`, in order; equal ones by id.

    All rows are compared by one product of matrices, whose sums depend on how rows fall together; those in question are
    then computed one by one, so that a lesson's score is the same in whatever company.
    """
    ages = np.maximum(0.0, at - table.confirmed_at)
    wanted = max(ranking.pool, 4 * k)
    places = _candidates(table, query, ages, wanted, ranking, mask)
    vectors = table.vectors[places].astype(np.float64)
    similarity = np.clip((vectors * query).sum(axis=1), 0.0, 1.0)
    logs = _log_score(similarity, ages[places], table.reliability[places], ranking)
    scores = np.exp2(logs)
    # Rows are in the order of their ids, which a stable sort keeps among equals.
    pool = np.argsort(-logs, kind="stable")[:wanted]
    redundancy = np.zeros(len(pool))
    found: list[Ranked] = []
    while len(found) < min(k, len(pool)):
        relevance = ranking.diversity * scores[pool] - (1.0 - ranking.diversity) * redundancy
        relevance[[one.place for one in found]] = -np.inf
        best = int(np.argmax(relevance))
        row = pool[best]
        found.append(
            Ranked(
                best,
                float(scores[row]),
                float(similarity[row]),
                float(np.exp2(-ages[places[row]] / ranking.half_life)),
                float(table.reliability[places[row]]),
                float(redundancy[best]),
                float(relevance[best]),
            )
        )
        redundancy = np.maximum(redundancy, np.clip((vectors[pool] * vectors[row]).sum(axis=1), 0.0, 1.0))
    return [one._replace(place=int(places[pool[one.place]])) for one in found]


def _candidates(
    table: Table,
    query: FloatArray,
    ages: NDArray[np.float64],
    wanted: int,
    ranking: Ranking,
    mask: NDArray[np.bool_] | None,
) -> NDArray[np.int64]:
    """Rows among which are the `wanted` of the highest scores, by bounds on what the rough products tell."""
    if len(ages) <= wanted:
        return np.arange(len(ages)) if mask is None else np.flatnonzero(mask)
    rough = table.vectors @ query
    highest = _log_score(np.maximum(0.0, rough) + _NOISE, ages, table.reliability, ranking)
    if mask is not None:
        highest[~mask] = -np.inf
    best = np.argpartition(highest, -wanted)[-wanted:]
    lowest = _log_score(np.maximum(0.0, rough[best] - _NOISE), ages[best], table.reliability[best], ranking)
    found = highest >= lowest.min()
    return np.flatnonzero(found if mask is None else found & mask)


def _log_score(
    similarity: NDArray[np.floating], ages: NDArray[np.float64], reliability: NDArray[np.float64], ranking: Ranking
) -> NDArray[np.float64]:
    """log2 of the scores: a product of small numbers would end at 0, where nothing has an order any more."""
    total = -ranking.recency / ranking.half_life * ages
    with np.errstate(divide="ignore"):
        # A weight of 0 leaves a part out, also where its logarithm is infinite.
        if ranking.similarity:
            total += ranking.similarity * np.log2(similarity)
        if ranking.reliability:
            total += ranking.reliability * np.log2(reliability)
    return total
