"""Searches over several segments and a tail: what one has found spares the others work, and loses nothing."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tiermem.policy import planner
from tiermem.protocols import Found, Row
from tiermem.tiers.vector import room
from tiermem.tiers.vector.faiss_engine import FaissEngine
from tiermem.tiers.vector.index import Part, VectorTier
from tiermem.tiers.vector.rowfile import Place, RowFile, write_rows
from tiermem.tiers.vector.scores import as_points, exact_scores, shortlist
from tiermem.tiers.vector.segment import Segment

METRICS = ["cosine", "dot", "euclidean"]
each_metric = pytest.mark.parametrize("metric", METRICS)
Points = np.ndarray[Any, Any]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., VectorTier]:
    """`make(metric, first=..., second=...)`: an index of a segment each, with graphs that are walked."""
    # Else comparing the few rows there are costs less.
    monkeypatch.setattr(planner, "FEW", 0)

    def segment(name: str, number: int, matrix: Points, metric: str, index: str) -> Part:
        count = len(matrix)
        place = Place(
            [f"{name}{row:05d}" for row in range(count)],
            [b""] * count,
            np.arange(1, count + 1, dtype=np.uint64),
            np.arange(count, dtype=np.float64),
            np.full(count, np.inf),
        )
        path = tmp_path / f"{name}.rows"
        rows = RowFile(path, number, write_rows(path, number, matrix.shape[1], metric, place, [matrix]))
        rows.scatter()
        points = as_points(metric, matrix, rows.about.largest)
        engine, graph = FaissEngine(index), path.with_suffix(".graph")
        dot = metric == "dot"
        engine.build(iter([points]), count, matrix.shape[1], graph, 1, lambda _: None, sample=points, inner_product=dot)
        return Part(Segment(rows, engine.load(graph, matrix.shape[1], count, inner_product=dot)))

    def tier(metric: str, *, index: str = "hnsw_sq8", **parts: Points) -> VectorTier:
        built = [segment(name, number, matrix, metric, index) for number, (name, matrix) in enumerate(parts.items())]
        return VectorTier(next(iter(parts.values())).shape[1], metric, built)

    return tier


def ask(tier: VectorTier, query: Points, k: int, **options: Any) -> list[Found]:
    given: dict[str, Any] = {
        "now": 0.0,
        "since": -math.inf,
        "until": math.inf,
        "where": None,
        "allows": None,
        "min_score": -math.inf,
        "effort": None,
        "exact": False,
        **options,
    }
    return tier.search(query, k, **given)


def best(metric: str, parts: dict[str, Points], query: Points, k: int) -> list[tuple[float, str]]:
    scored = [
        (-score, f"{name}{row:05d}")
        for name, matrix in parts.items()
        for row, score in enumerate(exact_scores(metric, matrix, query).tolist())
    ]
    return sorted(scored)[:k]


def draw(rows: int, dimension: int, seed: int) -> Points:
    return np.random.default_rng(seed).standard_normal((rows, dimension)).astype(np.float32)


@each_metric
@pytest.mark.parametrize("k", [1, 10])
def test_several_segments_find_what_one_would(make: Callable[..., VectorTier], metric: str, k: int) -> None:
    parts = {"a": draw(3000, 16, 1), "b": draw(1500, 16, 2), "c": draw(300, 16, 3)}
    tier = make(metric, **parts)
    found = wanted = 0
    for query in draw(40, 16, 4):
        right = best(metric, parts, query, k)
        hits = ask(tier, query, k)
        assert [(-hit.score, hit.key) for hit in hits] == sorted((-hit.score, hit.key) for hit in hits)
        found += len({hit.key for hit in hits} & {key for _, key in right})
        wanted += len(right)
    assert found >= 0.95 * wanted


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_noise_of_the_codes_hides_no_near_copy(make: Callable[..., VectorTier], metric: str) -> None:
    rng = np.random.default_rng(5)
    heads = draw(40, 64, 6)
    near = (heads[:, None] + 1e-3 * rng.standard_normal((40, 30, 64))).astype(np.float32)
    parts = {
        "a": np.concatenate([near[:, :15].reshape(-1, 64), draw(2400, 64, 7)]),
        "z": np.concatenate([near[:, 15:].reshape(-1, 64), draw(1500, 64, 8)]),
    }
    tier = make(metric, **parts)
    found = sum(
        len({hit.key for hit in ask(tier, query, 10)} & {key for _, key in best(metric, parts, query, 10)})
        for query in heads
    )
    assert found >= 0.97 * 400
    for row in range(0, 600, 40):
        query = parts["a"][row]
        assert ask(tier, query, 1)[0].key == f"a{row:05d}"
        floor = 0.999999 if metric == "cosine" else -1e-6
        assert f"a{row:05d}" in [hit.key for hit in ask(tier, query, 2, min_score=floor)]


@each_metric
def test_equal_scores_of_two_segments_are_ordered_by_key(make: Callable[..., VectorTier], metric: str) -> None:
    same = draw(1200, 16, 9)
    tier = make(metric, z=np.concatenate([same, 0.01 * draw(600, 16, 10)]), a=same)
    for row in range(0, 1200, 100):
        first, second = ask(tier, same[row], 2, exact=True)
        assert (first.score, first.key) == (second.score, second.key.replace("z", "a"))
        (hit,) = ask(tier, same[row], 1, effort=1200)
        assert (hit.score, hit.key) == (first.score, first.key)


def test_a_floor_is_no_reason_to_look_less_closely(make: Callable[..., VectorTier]) -> None:
    matrix = draw(6000, 96, 11)
    tier = make("cosine", index="hnsw", a=matrix)
    plain = floored = 0
    for query in draw(60, 96, 12):
        right = best("cosine", {"a": matrix}, query, 10)
        floor = -right[3][0]
        keys = {key for score, key in right if -score >= floor}
        plain += len(keys & {hit.key for hit in ask(tier, query, 10)})
        hits = ask(tier, query, 10, min_score=floor)
        assert all(hit.score >= floor for hit in hits)
        floored += len(keys & {hit.key for hit in hits})
    assert floored == plain


@each_metric
@pytest.mark.parametrize("floor", [-1e300, -1e150, 0.0, 1e300])
def test_any_floor_will_do(make: Callable[..., VectorTier], metric: str, floor: float) -> None:
    tier = make(metric, a=draw(1500, 8, 13))
    hits = ask(tier, draw(1, 8, 14)[0], 5, min_score=floor)
    assert all(hit.score >= floor for hit in hits)
    assert len(hits) == 5 or floor >= 0


def test_rows_updated_while_they_are_found_hide_no_other(make: Callable[..., VectorTier]) -> None:
    query = draw(1, 32, 15)[0]
    first, second = draw(2000, 32, 16), draw(1200, 32, 17)
    first[:3] = query * np.array([[1.0], [2.0], [3.0]], np.float32)
    second[:3] = query + 0.3 * second[:3]
    tier = make("cosine", x=first, y=second)
    rows = [Row(f"x{row:05d}", (-query).tobytes(), 10**9 + row, float(row), math.inf, b"") for row in range(3)]
    tier.tail.upsert([Row("other", draw(1, 32, 18)[0].tobytes(), 10**9, 0.0, math.inf, b"")])
    after_segments = tier.tail.search

    def late(*args: Any, **options: Any) -> list[Found]:
        # An update comes when the segments have been asked and the tail has not.
        tier.update(rows)
        return after_segments(*args, **options)

    tier.tail.search = late  # type: ignore[method-assign]  # a fault is put in its place
    assert {hit.key for hit in ask(tier, query, 3)} == {"y00000", "y00001", "y00002"}


@each_metric
def test_odd_rows_are_compared_without_making_all_odd(metric: str) -> None:
    matrix = draw(5000, 16, 19)
    matrix[7] *= np.float32(1e6)
    matrix[8] = np.float32(1e-25)
    matrix[9] = np.float32(3e37)
    with np.errstate(all="ignore"):
        squares = np.einsum("ij,ij->i", matrix, matrix)
        for query in draw(20, 16, 20):
            chosen = shortlist(metric, matrix @ query, squares, query, 10)
            scores = exact_scores(metric, matrix, query)
            best = set(np.argsort(-scores, kind="stable")[:10].tolist())
            assert best <= set(chosen.tolist())
            assert len(chosen) < 100


@each_metric
def test_rows_below_a_score_are_not_listed(metric: str) -> None:
    matrix = draw(5000, 16, 21)
    squares = np.einsum("ij,ij->i", matrix, matrix)
    for query in draw(20, 16, 22):
        scores = exact_scores(metric, matrix, query)
        ranked = np.argsort(-scores, kind="stable")
        for place in (0, 5, 9, 2000):
            least = float(scores[ranked[place]])
            chosen = shortlist(metric, matrix @ query, squares, query, 10, least)
            assert set(ranked[: min(place + 1, 10)].tolist()) <= set(chosen.tolist())
            assert len(chosen) < 15
        assert not len(shortlist(metric, matrix @ query, squares, query, 10, float(scores.max()) + 1.0))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with np.errstate(all="ignore"):
        yield


def test_the_memory_there_is_is_known() -> None:
    assert 2**20 < room.room() <= sys.maxsize


def test_the_limit_of_a_control_group_counts(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "memory.max").write_text("1048576\n")
    (tmp_path / "memory.max").write_text("2097152\n")
    assert room._limit(tmp_path, "/own", "memory.max") == 2**20
    assert room._limit(tmp_path, "/../elsewhere", "memory.max") == 2**21
    (tmp_path / "own" / "memory.max").write_text("max\n")
    (tmp_path / "memory.max").unlink()
    assert room._limit(tmp_path, "/own", "memory.max") == sys.maxsize


def test_scattered_rows_are_the_same_rows(make: Callable[..., VectorTier]) -> None:
    matrix = draw(3000, 40, 21)
    rows = make("dot", a=matrix).parts[0].segment.rows
    assert np.array_equal(rows.span(100, 2900), matrix[100:2900])
    assert np.array_equal(rows.take(np.array([5, 2999, 0])), matrix[[5, 2999, 0]])
    assert np.array_equal(rows.span(7, 7), matrix[7:7])
