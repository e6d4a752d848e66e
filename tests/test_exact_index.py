"""The exact index: the min(k, matches) best rows, whatever the metric, the range of the numbers and the moment."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tiermem.protocols import Found, Row
from tiermem.tiers.vector.exact import ExactIndex
from tiermem.tiers.vector.scores import as_float32, exact_scores

METRICS = ["cosine", "dot", "euclidean"]
NEVER = math.inf
each_metric = pytest.mark.parametrize("metric", METRICS)


def row(key: str, vector: Sequence[float], **fields: Any) -> Row:
    given = {"version": 1, "at": 0.0, "expires": NEVER, "metadata": b"", **fields}
    return Row(key, np.asarray(vector, "<f4").tobytes(), *(given[name] for name in Row._fields[2:]))


def search(index: ExactIndex, query: Sequence[float], k: int, **options: Any) -> list[Found]:
    bounds: dict[str, Any] = {
        "now": 0.0,
        "since": -NEVER,
        "until": NEVER,
        "allows": None,
        "min_score": -NEVER,
    }
    return index.search(np.asarray(query, np.float32), k, **{**bounds, **options})


def keys(found: list[Found]) -> list[str]:
    return [hit.key for hit in found]


def oracle(metric: str, vector: Sequence[float], query: Sequence[float]) -> float:
    """The score by its definition, in exact sums of float64 products."""
    a, b = [float(np.float32(x)) for x in vector], [float(np.float32(x)) for x in query]
    if metric == "euclidean":
        return -math.dist(a, b)
    product = math.fsum(x * y for x, y in zip(a, b, strict=True))
    if metric == "dot":
        return product
    return max(-1.0, min(1.0, product / (math.hypot(*a) * math.hypot(*b))))


def check(metric: str, found: list[Found], vectors: dict[str, Sequence[float]], query: Sequence[float], k: int) -> None:
    """`found` is what the oracle would choose, up to the last digits of a float64."""
    scores = {key: oracle(metric, vector, query) for key, vector in vectors.items()}
    slack = 1e-12 * max([1e-300, *(abs(score) for score in scores.values())])
    if metric != "cosine":
        sizes = [math.hypot(*map(float, vector)) for vector in [*vectors.values(), query]]
        slack += 1e-12 * (max(sizes) ** 2 if metric == "dot" else max(sizes))
    assert len(found) == min(k, len(vectors))
    assert len(set(keys(found))) == len(found)
    for hit in found:
        assert hit.score == pytest.approx(scores[hit.key], rel=1e-9, abs=slack)
    assert [(-hit.score, hit.key) for hit in found] == sorted((-hit.score, hit.key) for hit in found)
    best = sorted(scores.values(), reverse=True)[: len(found)]
    for hit, wanted in zip(found, best, strict=True):
        assert hit.score >= wanted - 2 * slack, "a better row was left out"


# ----------------------------------------------------------------------------------------------------- scores and ranks


@st.composite
def collections(draw: st.DrawFn, magnitudes: st.SearchStrategy[float]) -> tuple[list[list[float]], list[float]]:
    """Vectors and a query whose magnitudes are drawn one by one; none is zero."""
    dimension = draw(st.integers(1, 5))
    parts = st.floats(-1, 1, width=32).map(lambda x: round(x, 2))
    directions = st.lists(parts, min_size=dimension, max_size=dimension).filter(any)

    def scaled(direction: list[float]) -> list[float]:
        size = draw(magnitudes)
        return [float(np.float32(x * size)) for x in direction]

    vectors = [scaled(direction) for direction in draw(st.lists(directions, min_size=1, max_size=30))]
    query = scaled(draw(directions))
    vectors = [vector for vector in vectors if any(vector)] or [[1.0] * dimension]
    return vectors, query if any(query) else [1.0] * dimension


def assert_exact(metric: str, vectors: list[list[float]], query: list[float], k: int) -> None:
    index = ExactIndex(len(query), metric)
    named = {f"k{number:02}": vector for number, vector in enumerate(vectors)}
    index.upsert(row(key, vector) for key, vector in named.items())
    check(metric, search(index, query, k), named, query, k)


@each_metric
@given(case=collections(st.sampled_from([1.0, 0.5, 3.0, 100.0])), k=st.integers(1, 12))
def test_the_best_rows_of_ordinary_numbers(metric: str, case: tuple[list[list[float]], list[float]], k: int) -> None:
    assert_exact(metric, *case, k)


@each_metric
@given(case=collections(st.floats(-45, 38).map(lambda power: 10.0**power)), k=st.integers(1, 4))
@example(case=([[1e20, 0.0], [1.0, 1.0]], [1.0, 0.0]), k=1)
@example(case=([[1e-25, 0.0], [1.0, 1.0]], [1.0, 0.0]), k=1)
@example(case=([[3e-23, 0.0], [2e-23, 2.2e-23], [1e-22, 9e-23]], [1.0, 0.0]), k=1)
def test_the_best_rows_over_the_whole_range_of_float32(
    metric: str, case: tuple[list[list[float]], list[float]], k: int
) -> None:
    assert_exact(metric, *case, k)


@each_metric
@pytest.mark.parametrize("size", [3e38, 1e38, 1e20, 1e19, 3e18, 1e-19, 1e-21, 3e-22, 5e-23, 1e-38, 1e-44])
def test_numbers_at_the_ends_of_float32(metric: str, size: float) -> None:
    rng = np.random.default_rng(5)
    vectors = (rng.standard_normal((50, 4)).clip(-1, 1) * size).astype(np.float32)
    vectors = vectors[vectors.any(axis=1)]
    query = (rng.standard_normal(4).clip(-1, 1) * size).astype(np.float32)
    if not query.any():
        query[0] = np.float32(size)
    assert_exact(metric, vectors.tolist(), query.tolist(), 5)
    assert_exact(metric, vectors.tolist(), [1.0, -1.0, 0.5, 0.0], 5)


@each_metric
def test_many_rows_in_many_blocks(metric: str) -> None:
    rng = np.random.default_rng(7)
    matrix = rng.standard_normal((20_000, 8)).astype(np.float32)
    index = ExactIndex(8, metric)
    for start in range(0, len(matrix), 3000):
        index.upsert(row(f"k{start + i:05}", vector) for i, vector in enumerate(matrix[start : start + 3000]))
    assert len(index) == 20_000
    assert index.nbytes >= matrix.nbytes
    for query in rng.standard_normal((5, 8)).astype(np.float32):
        truth = exact_scores(metric, matrix, query)
        best = np.argsort(-truth, kind="stable")[:50]
        assert keys(search(index, query.tolist(), 50)) == [f"k{i:05}" for i in best]


@each_metric
def test_a_row_s_score_does_not_depend_on_its_neighbours(metric: str) -> None:
    rng = np.random.default_rng(8)
    matrix = rng.standard_normal((300, 33)).astype(np.float32)
    query = rng.standard_normal(33).astype(np.float32)
    alone = [float(exact_scores(metric, matrix[i : i + 1], query)[0]) for i in range(300)]
    assert exact_scores(metric, matrix, query).tolist() == alone


@each_metric
def test_equal_scores_are_ordered_by_key(metric: str) -> None:
    index = ExactIndex(2, metric)
    names = ["b", "a", "é", "z", "𝄞", "\uffee", "B", "aa"]
    index.upsert(row(name, [1, 2]) for name in names)
    wanted = sorted(names, key=lambda name: name.encode())
    assert keys(search(index, [1, 1], 99)) == wanted
    for k in range(1, len(names)):
        assert keys(search(index, [1, 1], k)) == wanted[:k]


def test_a_zero_row_where_the_metric_allows_one() -> None:
    for metric, score in (("dot", 0.0), ("euclidean", -math.sqrt(2))):
        index = ExactIndex(2, metric)
        index.upsert([row("zero", [0, 0])])
        (hit,) = search(index, [1, 1], 3)
        assert hit.score == pytest.approx(score)
        assert math.copysign(1, hit.score) == math.copysign(1, score)


@each_metric
def test_more_is_asked_for_than_there_is(metric: str) -> None:
    index = ExactIndex(2, metric)
    assert search(index, [1, 1], 5) == []
    index.upsert([row("a", [1, 2]), row("b", [2, 1])])
    assert len(search(index, [1, 1], 5)) == 2


# ------------------------------------------------------------------------------------------------------------- filters


def test_a_result_says_what_was_put_in() -> None:
    index = ExactIndex(2, "dot")
    index.upsert([row("a", [1, 2], version=7, at=5.5, metadata=b"meta")])
    (hit,) = search(index, [1, 1], 1)
    assert (hit.key, hit.score, hit.version, hit.metadata) == ("a", 3.0, 7, b"meta")


def test_time_bounds_expiry_metadata_and_scores() -> None:
    index = ExactIndex(1, "dot")
    index.upsert(
        row(f"k{i}", [i + 1], at=float(i), expires=100.0 + i if i % 2 else NEVER, metadata=bytes((i % 3,)))
        for i in range(10)
    )

    def found(**options: Any) -> list[int]:
        return [int(key[1:]) for key in keys(search(index, [1], 99, **options))]

    assert found(since=3.0) == [9, 8, 7, 6, 5, 4, 3]
    assert found(until=3.0) == [2, 1, 0]
    assert found(since=3.0, until=5.0) == [4, 3]
    assert found(since=3.0, until=3.0) == []
    assert found(now=105.0) == [9, 8, 7, 6, 4, 2, 0]
    assert found(now=104.999) == [9, 8, 7, 6, 5, 4, 2, 0]
    assert found(allows=lambda metadata: metadata == b"\x01") == [7, 4, 1]
    assert found(allows=lambda metadata: False) == []
    assert found(min_score=8.0) == [9, 8, 7]
    assert found(min_score=8.0001) == [9, 8]
    assert found(since=2.0, until=9.0, now=103.0, allows=lambda metadata: metadata != b"\x00", min_score=6.0) == [
        8,
        7,
        5,
    ]


@each_metric
@given(
    chosen=st.sets(st.integers(0, 199), max_size=60),
    k=st.integers(1, 20),
    seed=st.integers(0, 5),
)
def test_a_selective_filter_still_gives_k(metric: str, chosen: set[int], k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((200, 3)).astype(np.float32)
    index = ExactIndex(3, metric)
    index.upsert(row(f"k{i:03}", vector, metadata=bytes((i,))) for i, vector in enumerate(matrix))
    query = rng.standard_normal(3).astype(np.float32).tolist()
    found = search(index, query, k, allows=lambda metadata: metadata[0] in chosen)
    check(metric, found, {f"k{i:03}": matrix[i].tolist() for i in chosen}, query, k)


def test_a_filter_is_asked_only_of_rows_that_could_be_hits() -> None:
    index = ExactIndex(1, "dot")
    index.upsert(row(f"k{i}", [i], at=float(i), metadata=bytes((i,))) for i in range(10))
    index.remove(["k3"])
    asked: list[int] = []
    search(index, [1], 1, since=2.0, until=6.0, allows=lambda metadata: not asked.append(metadata[0]))
    assert asked == [2, 4, 5]


# ------------------------------------------------------------------------------------------------------------- changes


class IndexMachine(RuleBasedStateMachine):
    """Upserts and removals against a dict of live rows."""

    @initialize(metric=st.sampled_from(METRICS))
    def begin(self, metric: str) -> None:
        self.metric = metric
        self.index = ExactIndex(2, metric)
        self.rows: dict[str, tuple[list[float], int]] = {}
        self.version = 0
        self.seed = 0

    @rule(first=st.integers(0, 150), size=st.integers(0, 120), twice=st.booleans())
    def upsert(self, first: int, size: int, twice: bool) -> None:
        self.seed += 1
        rng = np.random.default_rng(self.seed)
        batch = []
        for number in [*range(first, first + size), *([first] if twice and size else [])]:
            self.version += 1
            vector = rng.standard_normal(2).astype(np.float32).tolist()
            self.rows[f"k{number:03}"] = (vector, self.version)
            batch.append(row(f"k{number:03}", vector, version=self.version))
        self.index.upsert(iter(batch))

    @rule(first=st.integers(0, 150), size=st.integers(0, 120))
    def remove(self, first: int, size: int) -> None:
        gone = [f"k{number:03}" for number in range(first, first + size)]
        self.index.remove(gone)
        for key in gone:
            self.rows.pop(key, None)

    @rule(k=st.integers(1, 300))
    def search(self, k: int) -> None:
        query = [1.0, 0.25]
        found = search(self.index, query, k)
        check(self.metric, found, {key: vector for key, (vector, _) in self.rows.items()}, query, k)
        assert all(hit.version == self.rows[hit.key][1] for hit in found)

    @invariant()
    def counters_are_right(self) -> None:
        if hasattr(self, "index"):
            assert len(self.index) == len(self.rows)
            assert self.index.tombstones <= max(64, len(self.rows))
            for key in ("k000", "k075", "k149", "none"):
                assert self.index.version(key) == self.rows.get(key, (None, 0))[1]


TestIndex = IndexMachine.TestCase


def test_updates_do_not_let_the_index_grow() -> None:
    index = ExactIndex(4, "dot")
    for version in range(1, 400):
        index.upsert([row(f"k{i}", [version, i, 0, 1], version=version) for i in range(50)])
        assert index.nbytes < 64 * 1024
    assert len(index) == 50
    assert {hit.version for hit in search(index, [1, 1, 1, 1], 99)} == {399}
    index.remove([f"k{i}" for i in range(50)])
    assert (len(index), search(index, [1, 1, 1, 1], 99)) == (0, [])
    index.upsert([row("back", [1, 1, 1, 1])])
    assert keys(search(index, [1, 1, 1, 1], 99)) == ["back"]


# ---------------------------------------------------------------------------------------------- searches beside writes


def during(index: ExactIndex, change: Callable[[], None], k: int) -> list[Found]:
    """A search in whose middle `change` happens."""
    asked = 0

    def allows(metadata: bytes) -> bool:
        nonlocal asked
        asked += 1
        if asked == 1:
            change()
        return True

    return search(index, [1.0, 1.0], k, allows=allows)


@pytest.mark.parametrize("rows", [30, 64, 65, 100, 300])
def test_a_row_updated_during_a_search_is_found_once(rows: int) -> None:
    index = ExactIndex(2, "dot")
    # Several blocks, from one upsert each.
    for start in range(0, rows, 10):
        index.upsert(row(f"k{i:03}", [i, 1]) for i in range(start, min(start + 10, rows)))
    for changed in (range(1), range(rows - 1, rows), range(0, rows, 7)):
        found = during(index, lambda chosen=changed: index.upsert(row(f"k{i:03}", [i, 2]) for i in chosen), 999)
        assert len(keys(found)) == len(set(keys(found))), "a row was found twice"
        assert len(found) == rows, "a row that was there all the time was not found"


def test_a_search_beside_updates_finds_every_row() -> None:
    rows, rounds = 2000, 8
    index = ExactIndex(2, "dot")
    index.upsert(row(f"k{i}", [i, 1]) for i in range(rows))
    wrong: list[tuple[int, int]] = []
    done = threading.Event()
    searched = 0

    def look() -> None:
        nonlocal searched
        while not done.is_set():
            found = keys(search(index, [1, 1], rows))
            searched += 1
            if not len(set(found)) == len(found) == rows:
                wrong.append((len(found), len(set(found))))

    thread = threading.Thread(target=look)
    thread.start()
    for version in range(2, rounds):
        index.upsert([row(f"k{i}", [i, version], version=version) for i in range(rows)])
    done.set()
    thread.join()
    assert searched
    assert wrong == [], "(found, different ones): every search should have found all rows, once each"


# ------------------------------------------------------------------------------------------------------- as_float32


@pytest.mark.parametrize("vector", [[1, 2], (1.5, 2), np.arange(3), np.arange(3, dtype=np.float16), [[1.0], [2.0]]])
def test_numbers_become_float32(vector: Any) -> None:
    array = as_float32(vector)
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    assert array.tolist() == np.asarray(vector).tolist()


def test_strides_and_overflow() -> None:
    assert as_float32(np.arange(10.0)[::2]).flags.c_contiguous
    assert as_float32([1e39])[0] == np.inf


@pytest.mark.parametrize("vector", ["text", ["a"], [True], [None], [1j], None, [2**70], np.array([object()])])
def test_what_is_no_number(vector: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        as_float32(vector)


def test_ragged_rows() -> None:
    with pytest.raises(ValueError):
        as_float32([[1.0], [1.0, 2.0]])
