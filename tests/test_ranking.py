"""The order of a recall, against a sort of all there is."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tiermem.reasoning._ranking import Ranking, rank
from tiermem.reasoning._view import Table

ALL_BY_SCORE = Ranking(diversity=1.0, half_life=10.0, pool=1)


@given(
    rows=st.integers(1, 900),
    k=st.integers(1, 6),
    seed=st.integers(0, 2**32 - 1),
    shown=st.one_of(st.none(), st.floats(0.0, 1.0)),
    distinct=st.integers(1, 40),
)
def test_the_best_are_those_of_a_sort_of_all(rows: int, k: int, seed: int, shown: float | None, distinct: int) -> None:
    rng = np.random.default_rng(seed)
    # Few distinct rows: many of the same score, among them those of score 0.
    vectors = rng.standard_normal((distinct, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    holds = rng.integers(0, 3, distinct) / 2
    made = rng.integers(0, distinct, rows)
    with np.errstate(divide="ignore"):
        logs = np.log2(holds)
    confirmed = rng.integers(0, 3, distinct).astype(np.float64)
    ids = [f"lesson {row:04d}" for row in range(rows)]
    table = Table(ids, vectors[made], holds[made], logs[made], confirmed[made], [{}] * rows, {})
    query = vectors[0]
    mask = None if shown is None else rng.random(rows) < shown

    similarity = np.clip(np.vecdot(table.vectors, query), 0.0, 1.0).astype(np.float64)
    scores = similarity * 2.0 ** (-np.maximum(0.0, 5.0 - table.confirmed_at) / 10.0) * table.reliability
    allowed = [row for row in range(rows) if mask is None or mask[row]]
    expected = sorted(allowed, key=lambda row: (-round(float(scores[row]), 6), row))[:k]

    found = rank(table, query, k, 5.0, ALL_BY_SCORE, mask)
    assert np.allclose([one.score for one in found], scores[expected], atol=1e-6)
    assert len({one.place for one in found} & set(allowed)) == len(found) == len(expected)
    by_score = [one.place for one in found if one.score > 0.0]
    assert by_score == sorted(by_score, key=lambda row: (-round(float(scores[row]), 6), row))
