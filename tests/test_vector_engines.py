"""The engines that are shipped, against the conformance suite; and what is particular to each."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest

from tiermem.errors import CorruptionError, InvalidArgument, MissingExtra
from tiermem.protocols import VectorEngine
from tiermem.testing import VectorEngineSuite
from tiermem.testing.vector_engine import build, chunks, clustered
from tiermem.tiers.vector import codes
from tiermem.tiers.vector.faiss_engine import FaissEngine
from tiermem.tiers.vector.hnswlib_engine import HnswlibEngine

FAISS = ["hnsw_sq8", "hnsw", "flat", "ivf", "ivfpq"]


class TestHnswSq8(VectorEngineSuite):
    @pytest.fixture
    def engine(self) -> VectorEngine:
        return FaissEngine()


class TestHnsw(VectorEngineSuite):
    @pytest.fixture
    def engine(self) -> VectorEngine:
        return FaissEngine("hnsw")


class TestFlat(VectorEngineSuite):
    recall = 1.0

    @pytest.fixture
    def engine(self) -> VectorEngine:
        return FaissEngine("flat")


class TestIvf(VectorEngineSuite):
    @pytest.fixture
    def engine(self) -> VectorEngine:
        return FaissEngine("ivf")


class TestIvfPq(VectorEngineSuite):
    recall = 0.8
    exhaustive = False

    @pytest.fixture
    def engine(self) -> VectorEngine:
        return FaissEngine("ivfpq")


class TestHnswlib(VectorEngineSuite):
    @pytest.fixture
    def engine(self) -> VectorEngine:
        pytest.importorskip("hnswlib", reason="the extra tiermem[hnswlib] is not installed; it needs a compiler")
        return HnswlibEngine()


@pytest.mark.parametrize("index", FAISS)
def test_names_say_what_is_in_the_file(index: str, tmp_path: Path) -> None:
    points, _ = clustered(300, 8)
    engine = FaissEngine(index)
    build(engine, points, tmp_path / "graph")
    assert engine.name == f"faiss/{index}"
    for other in FAISS:
        if other != index:
            with pytest.raises(CorruptionError):
                FaissEngine(other).load(tmp_path / "graph", 8, 300)


@pytest.mark.parametrize("index", FAISS)
def test_one_thread_builds_the_same_bytes_again(index: str, tmp_path: Path) -> None:
    points, _ = clustered(1500, 16)
    for name in ("first", "second"):
        build(FaissEngine(index), points, tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


@pytest.mark.parametrize("index", ["hnsw", "hnsw_sq8"])
def test_rows_added_a_few_at_a_time_lie_as_high_as_others(index: str, tmp_path: Path) -> None:
    points, _ = clustered(1500, 8)
    engine, path = FaissEngine(index), tmp_path / "graph"
    build(engine, points[:500], path)
    for rows in range(500, 1500, 5):
        taken = chunks(points[: rows + 5])
        order = np.arange(rows + 5)
        assert engine.grow(path, rows, order, taken, 8, path, 1, lambda done: None, sample=points)
    levels = faiss.vector_to_array(faiss.read_index(str(path)).hnsw.levels)[500:]
    # One in `m` has links above the lowest level.
    assert 1000 / 16 / 2 < np.count_nonzero(levels > 1) < 1000 / 16 * 2


def _shares_a_step(path: Path) -> bool:
    index = faiss.read_index(str(path))
    return len(set(faiss.vector_to_array(faiss.downcast_index(index.storage).sq.trained).tolist())) == 2


@pytest.mark.parametrize("metric", ["euclidean", "dot"])
@pytest.mark.parametrize("uneven", [False, True])
def test_dimensions_share_a_step_unless_one_is_much_wider(metric: str, uneven: bool, tmp_path: Path) -> None:
    points = np.random.default_rng(3).normal(size=(1500, 16)).astype(np.float32)
    points[:, 3] *= 100 if uneven else 1
    points /= np.linalg.norm(points, axis=1).max()
    path, dot = tmp_path / "graph", metric == "dot"
    FaissEngine().build(chunks(points), 1500, 16, path, 1, lambda done: None, sample=points, inner_product=dot)
    assert _shares_a_step(path) != uneven
    graph = FaissEngine().load(path, 16, 1500, inner_product=dot)
    query = points[7] * np.float32(0.9)
    rows, distances = graph.search(query, 20, 400, None)
    exact = -points @ query if dot else ((points - query) ** 2).sum(axis=1)
    # Off by the noise of the codes, and by no factor.
    allowed = 6 * graph.noise * (1.0 if dot else 2 * np.sqrt(exact[rows].max()) + graph.noise * 16)
    assert 0 < graph.noise < 0.02
    assert np.abs(distances - exact[rows]).max() < allowed
    assert len(set(rows.tolist()) & set(np.argsort(exact)[:20].tolist())) >= 15


@pytest.mark.parametrize("wide", [16, 58])
def test_dimensions_do_not_share_a_step_that_leaves_others_no_digits(wide: int, tmp_path: Path) -> None:
    # Wide ones say of which kind a row is, narrow ones which of its kind.
    rng = np.random.default_rng(3)
    kinds = rng.choice([-1000.0, 1000.0], (20, wide))
    points = np.concatenate([kinds[np.arange(2000) % 20], rng.uniform(-1, 1, (2000, 64 - wide))], axis=1)
    points = (points / np.linalg.norm(points, axis=1).max()).astype(np.float32)
    build(FaissEngine(), points, tmp_path / "graph")
    assert not _shares_a_step(tmp_path / "graph")
    graph = FaissEngine().load(tmp_path / "graph", 64, 2000)
    found = 0
    for row in range(0, 2000, 50):
        nearest = np.argsort(((points - points[row]).astype(np.float64) ** 2).sum(axis=1))[:10]
        found += len(set(nearest.tolist()) & set(graph.search(points[row], 28, 128, None)[0].tolist()))
    assert found > 0.95 * 400


def test_what_hardly_varies_keeps_few_dimensions_from_no_step(tmp_path: Path) -> None:
    # As embeddings have it: some dimensions are always the same, and one in hundreds almost.
    points = np.random.default_rng(3).normal(size=(1100, 100)).astype(np.float32)
    points[:, 7], points[:, 8], points[:, 9] = 0.0, 0.5, points[:, 9] * 1e-6
    points /= np.linalg.norm(points, axis=1).max()
    build(FaissEngine(), points, tmp_path / "graph")
    assert _shares_a_step(tmp_path / "graph")


@pytest.mark.parametrize("wider", [1.0, 100.0])
def test_codes_are_made_anew_when_wider_or_narrower_rows_come(wider: float, tmp_path: Path) -> None:
    points = np.random.default_rng(3).normal(size=(1500, 16)).astype(np.float32)
    points[500:, 3] *= wider
    first, whole = points[:500] / 100, points / np.linalg.norm(points, axis=1).max()
    for start in (first, np.concatenate([first[:, :15], 100 * first[:, 15:]], axis=1)):
        build(FaissEngine(), start, tmp_path / "graph")
        order = np.arange(1500)
        grown = tmp_path / "grown"
        taken = chunks(whole)
        assert FaissEngine().grow(tmp_path / "graph", 500, order, taken, 16, grown, 1, lambda done: None, sample=whole)
        assert _shares_a_step(grown) != (wider > 1)
        graph = FaissEngine().load(grown, 16, 1500)
        for row in range(500, 1500, 50):
            assert row in graph.search(whole[row], 10, 400, None)[0]


def _uneven(rows: int, dimension: int) -> np.ndarray:
    """Points of very different lengths: the codes of most are the same."""
    rng = np.random.default_rng(4)
    points = rng.normal(size=(rows, dimension)) * np.exp(rng.normal(size=(rows, 1)))
    return (points / np.linalg.norm(points, axis=1).max()).astype(np.float32)


def _repeated(rows: int, dimension: int) -> np.ndarray:
    """Hundreds of rows with the same point, among others."""
    points = clustered(rows, dimension)[0]
    points[: rows // 2] = points[np.arange(rows // 2) % 4]
    return np.random.default_rng(5).permutation(points)


@pytest.mark.parametrize("points", [_uneven(6000, 16), _repeated(6000, 16), clustered(6000, 16)[0]])
@pytest.mark.parametrize("index", ["hnsw", "hnsw_sq8"])
@pytest.mark.parametrize("metric", ["euclidean", "dot"])
def test_every_row_lies_on_a_way(index: str, metric: str, points: np.ndarray, tmp_path: Path) -> None:
    engine, order = FaissEngine(index), np.random.default_rng(6).permutation(6000)
    built, grown, how = tmp_path / "built", tmp_path / "grown", {"sample": points, "inner_product": metric == "dot"}
    engine.build(chunks(points[:4000]), 4000, 16, built, 1, lambda done: None, **how)
    assert engine.grow(built, 4000, order, chunks(points), 16, grown, 1, lambda done: None, **how)
    for path, rows in ((built, 4000), (grown, 6000)):
        graph = engine.load(path, 16, rows, inner_product=metric == "dot")
        found, _ = graph.search(points[0], rows, rows, None)
        assert sorted(found.tolist()) == list(range(rows))


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e13])
def test_a_range_for_each_dimension_is_learned_as_if_from_the_whole_sample(scale: float) -> None:
    points = clustered(1500, 16)[0]
    points[:, 3] *= 100
    points *= np.float32(scale)
    ranges = []
    for learn in (codes.learn, lambda _, index, sample: index.train(codes.limited(sample))):
        index = FaissEngine()._empty(faiss, len(points), 16, len(points), faiss.METRIC_L2)
        storage = faiss.downcast_index(index.storage)
        storage.sq.rangestat_arg = codes._MARGIN
        assert not learn(faiss, index, points)
        ranges.append(faiss.vector_to_array(storage.sq.trained))
    assert np.array_equal(*ranges)
    assert len(ranges[0]) == 32


def test_the_opposite_in_very_many_dimensions_is_not_taken_for_the_nearest(tmp_path: Path) -> None:
    # Signs, of which half say the opposite of the others: in whole steps their distance is more than 32 bits hold.
    dimension = 40_000
    rng = np.random.default_rng(3)
    signs = rng.choice([-1, 1], dimension) * np.where(rng.random((60, dimension)) < 0.02, -1, 1)
    points = (np.concatenate([signs, -signs]) / np.sqrt(dimension)).astype(np.float32)
    build(FaissEngine(), points, tmp_path / "graph")
    graph = FaissEngine().load(tmp_path / "graph", dimension, 120)
    assert [graph.search(point, 1, 120, None)[0].tolist() for point in points] == [[row] for row in range(120)]


@pytest.mark.parametrize("scale", [1e-8, 1e-17])
def test_what_is_small_is_found_all_the_same(scale: float, tmp_path: Path) -> None:
    points = (np.random.default_rng(3).normal(size=(1500, 16)) * scale).astype(np.float32)
    build(FaissEngine(), points, tmp_path / "graph")
    assert _shares_a_step(tmp_path / "graph") == (scale > 1e-15)
    graph = FaissEngine().load(tmp_path / "graph", 16, 1500)
    assert all(row in graph.search(points[row], 10, 400, None)[0] for row in range(0, 1500, 50))


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="hnsw_sq8"):
        FaissEngine("annoy")
    for make in (FaissEngine, HnswlibEngine):
        with pytest.raises(InvalidArgument, match="m = 1"):
            make(m=1)
        with pytest.raises(InvalidArgument, match="ef_construction = 0"):
            make(ef_construction=0)


def test_a_full_disk_is_an_operating_system_error() -> None:
    points, _ = clustered(300, 8)
    with pytest.raises(OSError, match="No space") as caught:
        build(FaissEngine(), points, Path("/dev/full"))
    assert caught.value.errno == errno.ENOSPC


def test_a_point_of_another_dimension_is_refused(tmp_path: Path) -> None:
    points, queries = clustered(300, 8)
    build(FaissEngine(), points, tmp_path / "graph")
    index = FaissEngine().load(tmp_path / "graph", 8, 300)
    for wrong in (queries[0][:7], queries[:2], queries[:1]):
        with pytest.raises(ValueError, match="dimension 8"):
            index.search(wrong, 10, 64, None)


def test_an_absent_hnswlib_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "hnswlib", None)
    points, _ = clustered(300, 8)
    with pytest.raises(MissingExtra, match=r"tiermem\[hnswlib\]"):
        build(HnswlibEngine(), points, tmp_path / "graph")
    with pytest.raises(MissingExtra, match=r"tiermem\[hnswlib\]"):
        HnswlibEngine().load(tmp_path / "graph", 8, 300)


# A process of its own, because the pool of threads stays in the process that started it.
_POOL = """
import os, sys
from pathlib import Path
import faiss
from tiermem.testing.vector_engine import answers, bits_of, build, clustered, wait
from tiermem.tiers.vector.faiss_engine import FaissEngine

def tasks():
    return len(os.listdir("/proc/self/task"))

START = tasks()
engine, path = FaissEngine(sys.argv[1]), Path(sys.argv[2])
points, queries = clustered(12_000, 48)
build(engine, points, path)
index = engine.load(path, 48, len(points))
expected = answers(index, queries)
print("threads of one:", tasks() - START)

faiss.omp_set_num_threads(2)
faiss.knn(queries, points, 3)
print("a pool:", tasks() - START)
print("kept:", faiss.omp_get_max_threads())
engine.build(iter([points]), len(points), 48, path, 2, lambda _: None, sample=points)
child = os.fork()
if child == 0:
    same = False
    try:
        same = answers(index, queries) == expected
    finally:
        os._exit(0 if same else 1)
print("child:", wait(child))
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads can only be counted where /proc is")
@pytest.mark.parametrize("index", FAISS)
def test_a_pool_of_threads_is_neither_started_nor_needed(index: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", _POOL, index, str(tmp_path / "graph")],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.splitlines() == ["threads of one: 0", "a pool: 1", "kept: 2", "child: 0"]
