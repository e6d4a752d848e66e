"""What every `VectorEngine` must do, as tests to inherit.

class TestMyEngine(VectorEngineSuite):
    @pytest.fixture
    def engine(self) -> MyEngine:
        return MyEngine()
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tiermem.errors import CorruptionError
from tiermem.protocols import GrowingEngine, VectorEngine, VectorIndex
from tiermem.testing.points import (
    CHUNK,
    EFFORT,
    K,
    Points,
    answers,
    best,
    bits_of,
    build,
    check,
    chunks,
    clustered,
    distances,
    near,
    nearest,
    wait,
)

ROWS, DIMENSION = 3000, 48


class VectorEngineSuite:
    """A subclass overrides `engine` and inherits the tests; the attributes say what the engine does not promise."""

    recall: float = 0.95
    """Of the 10 nearest rows, the part found among 40 candidates at effort 128, on the average."""

    exhaustive: bool = True
    """At an effort of all rows, every row is found."""

    @pytest.fixture
    def engine(self) -> VectorEngine:
        """The engine under test."""
        raise NotImplementedError("a subclass of VectorEngineSuite overrides the fixture `engine`")

    @pytest.fixture
    def make(self, engine: VectorEngine, tmp_path: Path) -> Callable[[Points], VectorIndex]:
        """`make(points)`: the points, built by one thread in chunks and loaded again."""

        def build_and_load(points: Points) -> VectorIndex:
            path = tmp_path / f"graph-{len(os.listdir(tmp_path))}"
            build(engine, points, path)
            return engine.load(path, points.shape[1], len(points))

        return build_and_load

    # ------------------------------------------------------------------------------------------ build and load

    def test_a_name_is_kept_beside_a_graph(self, engine: VectorEngine) -> None:
        assert isinstance(engine.name, str)
        assert 0 < len(engine.name.encode()) <= 255

    def test_recall_of_candidates(self, make: Callable[[Points], VectorIndex]) -> None:
        points, queries = clustered(ROWS, DIMENSION)
        assert self._recall(make(points), points, queries, None) >= self.recall

    def test_the_size_of_the_chunks_does_not_matter(self, engine: VectorEngine, tmp_path: Path) -> None:
        points, queries = clustered(ROWS, DIMENSION)
        build(engine, points, tmp_path / "graph", chunk=1 + len(points) // 2)
        index = engine.load(tmp_path / "graph", DIMENSION, len(points))
        assert self._recall(index, points, queries, None) >= self.recall

    def test_progress_reaches_the_rows(self, engine: VectorEngine, tmp_path: Path) -> None:
        points, _ = clustered(ROWS, 8)
        told: list[int] = []
        build(engine, points, tmp_path / "graph", progress=told.append)
        assert told[-1] == ROWS
        assert told == sorted(set(told))

    def test_progress_may_stop_a_build(self, engine: VectorEngine, tmp_path: Path) -> None:
        def stop(done: int) -> None:
            raise InterruptedError(f"after {done} rows")

        points, _ = clustered(ROWS, 8)
        with pytest.raises(InterruptedError):
            build(engine, points, tmp_path / "graph", progress=stop)

    @pytest.mark.parametrize("given", [999, 1001])
    def test_another_number_of_points_than_announced_is_refused(
        self, given: int, engine: VectorEngine, tmp_path: Path
    ) -> None:
        points, _ = clustered(given, 8)
        with pytest.raises(ValueError, match="1000"):
            build(engine, points, tmp_path / "graph", rows=1000)

    @pytest.mark.parametrize("known", [1, ROWS // 2, ROWS - 1, ROWS])
    @pytest.mark.parametrize("chunk", [CHUNK, ROWS])
    @pytest.mark.parametrize("behind", [False, True], ids=["scattered", "first"])
    def test_what_is_added_to_an_index_is_found(
        self, known: int, chunk: int, behind: bool, engine: VectorEngine, tmp_path: Path
    ) -> None:
        if not isinstance(engine, GrowingEngine):
            pytest.skip("the engine builds anew")
        points, queries = clustered(ROWS, DIMENSION)
        # Nothing of what is added lies as far out as some of it does.
        points[-1] *= 3
        old = np.sort(np.random.default_rng(known).permutation(ROWS)[:known]) if not behind else np.arange(known)
        came = np.concatenate([old, np.delete(np.arange(ROWS), old)])
        build(engine, points[old], tmp_path / "known")
        told: list[int] = []
        taken = chunks(points[came], chunk)
        arguments = tmp_path / "known", known, np.argsort(came), taken, DIMENSION, tmp_path / "graph", 1, told.append
        if not engine.grow(*arguments, sample=points):
            assert len(next(taken)) == min(chunk, ROWS)
            assert not told
            assert not (tmp_path / "graph").exists()
            return
        assert told[-1] == ROWS
        index = engine.load(tmp_path / "graph", DIMENSION, ROWS)
        assert self._recall(index, points, queries, None) >= self.recall
        assert all(row in near(index, points[row], K, EFFORT) for row in range(0, ROWS, 7))

    def test_an_index_that_is_no_good_is_not_added_to(self, engine: VectorEngine, tmp_path: Path) -> None:
        if not isinstance(engine, GrowingEngine):
            pytest.skip("the engine builds anew")
        points, _ = clustered(500, 8)
        build(engine, points[:300], tmp_path / "known")
        (tmp_path / "garbage").write_bytes(bytes(1000))
        for path, rows, dimension in (("garbage", 300, 8), ("known", 299, 8), ("known", 300, 7)):
            some = np.ascontiguousarray(points[:, :dimension])
            arguments = tmp_path / path, rows, np.arange(500), chunks(some), dimension, tmp_path / "graph", 1
            assert not engine.grow(*arguments, lambda done: None, sample=some)
            assert not (tmp_path / "graph").exists()

    def test_another_number_of_points_than_announced_is_not_added(self, engine: VectorEngine, tmp_path: Path) -> None:
        if not (isinstance(engine, GrowingEngine) and engine.grows):
            pytest.skip("the engine builds anew")
        points, _ = clustered(500, 8)
        build(engine, points[:300], tmp_path / "known")
        for given, announced, step in product((250, 399, 401), (300, 400), (1, -1)):
            order, taken = np.arange(announced)[::step], chunks(points[:given])
            arguments = tmp_path / "known", 300, order, taken, 8, tmp_path / "graph", 1
            with pytest.raises(ValueError, match=str(announced)):
                engine.grow(*arguments, lambda done: None, sample=points)
            assert not (tmp_path / "graph").exists()

    def test_bytes_behind_the_graph_are_ignored(self, engine: VectorEngine, tmp_path: Path) -> None:
        points, queries = clustered(500, 7)
        build(engine, points, tmp_path / "graph")
        before = answers(engine.load(tmp_path / "graph", 7, 500), queries)
        with (tmp_path / "graph").open("ab") as file:
            file.write(bytes(range(256)) + b"trailer")
        assert answers(engine.load(tmp_path / "graph", 7, 500), queries) == before

    def test_the_file_may_go_once_it_is_open(self, engine: VectorEngine, tmp_path: Path) -> None:
        points, queries = clustered(500, 16)
        build(engine, points, tmp_path / "graph")
        index = engine.load(tmp_path / "graph", 16, 500)
        before = answers(index, queries)
        (tmp_path / "graph").unlink()
        assert answers(index, queries) == before

    @pytest.mark.parametrize(("dimension", "rows"), [(16, 499), (16, 501), (15, 500), (17, 500)])
    def test_another_shape_is_refused(self, dimension: int, rows: int, engine: VectorEngine, tmp_path: Path) -> None:
        build(engine, clustered(500, 16)[0], tmp_path / "graph")
        with pytest.raises(CorruptionError):
            engine.load(tmp_path / "graph", dimension, rows)

    @pytest.mark.parametrize("kept", [0, 1, 3, 100])
    def test_a_file_cut_short_is_refused(self, kept: int, engine: VectorEngine, tmp_path: Path) -> None:
        build(engine, clustered(500, 16)[0], tmp_path / "graph")
        os.truncate(tmp_path / "graph", kept)
        with pytest.raises(CorruptionError):
            engine.load(tmp_path / "graph", 16, 500)

    def test_other_bytes_are_refused(self, engine: VectorEngine, tmp_path: Path) -> None:
        (tmp_path / "graph").write_bytes(np.random.default_rng(0).bytes(10_000))
        with pytest.raises(CorruptionError):
            engine.load(tmp_path / "graph", 16, 500)

    def test_a_file_name_need_not_be_text(self, engine: VectorEngine, tmp_path: Path) -> None:
        points, queries = clustered(100, 8)
        path = tmp_path / os.fsdecode(b"gr\xe9ph")
        build(engine, points, path)
        assert len(answers(engine.load(path, 8, 100), queries)) == len(queries)

    def test_private_bytes_are_counted(self, make: Callable[[Points], VectorIndex]) -> None:
        index = make(clustered(500, 16)[0])
        assert isinstance(index.nbytes, int)
        assert index.nbytes >= 0

    # -------------------------------------------------------------------------------------------------- search

    def test_distances_are_as_far_off_as_the_noise(self, make: Callable[[Points], VectorIndex]) -> None:
        points, queries = clustered(ROWS, DIMENSION)
        index = make(points)
        if math.isinf(index.noise):
            pytest.skip("the engine does not know")
        off = []
        for query in queries:
            rows, squares = index.search(query, K, EFFORT, None)
            true = distances(points, query, rows) ** 2
            # A squared distance d of points with that noise spreads by 2 √d times it; float32 by a little more.
            off.extend(((squares - true) / (2 * np.sqrt(true) * index.noise + 1e-4 * true)).tolist())
        assert np.sqrt(np.mean(np.square(off))) < 1.5

    def test_an_answer_is_distinct_rows_as_int64(self, make: Callable[[Points], VectorIndex]) -> None:
        points, queries = clustered(ROWS, DIMENSION)
        index = make(points)
        for query in queries:
            check(near(index, query, K, EFFORT, None), K, ROWS)
        assert len(near(index, queries[0], K, EFFORT, None)) == K

    def test_an_effort_of_all_rows_finds_every_row(self, make: Callable[[Points], VectorIndex]) -> None:
        if not self.exhaustive:
            pytest.skip("the engine does not promise it")
        points, queries = clustered(300, 24)
        index = make(points)
        for query in queries[:20]:
            assert sorted(near(index, query, 300, 300, None).tolist()) == list(range(300))
            assert best(index, points, query, 300, None) == nearest(points, query, K).tolist()

    def test_more_rows_than_there_are(self, make: Callable[[Points], VectorIndex]) -> None:
        points, queries = clustered(37, 5)
        index = make(points)
        for count in (37, 38, 1000):
            rows = near(index, queries[0], count, 1000, None)
            check(rows, count, 37)
            assert len(rows) == 37 or not self.exhaustive

    @pytest.mark.parametrize("rows", [1, 2, 3, 9, 17])
    def test_few_rows(self, rows: int, make: Callable[[Points], VectorIndex]) -> None:
        points, queries = clustered(rows, 12)
        index = make(points)
        assert sorted(near(index, queries[0], rows, EFFORT, None).tolist()) == list(range(rows))
        assert best(index, points, queries[0], EFFORT, None) == nearest(points, queries[0], K).tolist()
        assert near(index, queries[0], K, EFFORT, bits_of(np.zeros(rows, bool))).tolist() == []

    @pytest.mark.parametrize("dimension", [1, 2, 3, 7, 33, 127])
    def test_any_dimension(self, dimension: int, make: Callable[[Points], VectorIndex]) -> None:
        points, queries = clustered(400, dimension)
        assert self._recall(make(points), points, queries[:40], None, effort=400) >= self.recall

    def test_many_rows_at_one_point(self, make: Callable[[Points], VectorIndex]) -> None:
        points, queries = clustered(1000, 16)
        points[200:260] = points[200]
        index = make(points)
        rows = near(index, points[200], 60, 400, None)
        check(rows, 60, 1000)
        assert len(set(rows.tolist()) & set(range(200, 260))) >= 60 * self.recall
        assert self._recall(index, points, queries, None, effort=400) >= self.recall

    def test_nothing_but_one_point(self, make: Callable[[Points], VectorIndex]) -> None:
        points = np.ones((50, 6), np.float32)
        index = make(points)
        check(near(index, points[0], K, 50, None), K, 50)
        assert len(near(index, points[0], K, 50, None)) == K

    @pytest.mark.parametrize("scale", [1e-12, 1e12])
    def test_any_scale(self, scale: float, make: Callable[[Points], VectorIndex]) -> None:
        points, queries = clustered(1000, 16)
        points, queries = points * np.float32(scale), queries * np.float32(scale)
        assert self._recall(make(points), points, queries, None, effort=400) >= self.recall

    @pytest.mark.parametrize("scale", [1e-38, 1e38])
    def test_the_ends_of_the_range_do_no_harm(self, scale: float, make: Callable[[Points], VectorIndex]) -> None:
        points, queries = clustered(300, 16)
        points, queries = np.clip(points, -3, 3) * np.float32(scale), np.clip(queries, -3, 3) * np.float32(scale)
        mask = np.arange(300) % 2 == 0
        index = make(points)
        for query in queries[:10]:
            check(near(index, query, K, EFFORT, None), K, 300)
            check(near(index, query, K, EFFORT, bits_of(mask)), K, 300, mask)

    # ------------------------------------------------------------------------------------------------- filters

    @pytest.mark.parametrize("rows", [1000, 1001, 1007, 1024, 1087])
    @pytest.mark.parametrize("part", [0.5, 0.1])
    def test_only_allowed_rows_are_found(self, rows: int, part: float, make: Callable[[Points], VectorIndex]) -> None:
        points, queries = clustered(rows, 16)
        index = make(points)
        mask = np.random.default_rng(rows).random(rows) < part
        for query in queries[:30]:
            for effort in (K, EFFORT, rows):
                check(near(index, query, K, effort, bits_of(mask)), K, rows, mask)
        assert self._recall(index, points, queries[:30], mask, effort=rows) >= self.recall

    def test_few_allowed_rows(self, make: Callable[[Points], VectorIndex]) -> None:
        points, queries = clustered(1001, 16)
        index = make(points)
        mask = np.zeros(1001, bool)
        mask[[0, 7, 8, 500, 1000]] = True
        for query in queries[:20]:
            rows = near(index, query, K, 1001, bits_of(mask))
            check(rows, K, 1001, mask)
            assert len(rows) == 5 or not self.exhaustive

    def test_no_row_is_allowed(self, make: Callable[[Points], VectorIndex]) -> None:
        points, queries = clustered(1001, 16)
        none = bits_of(np.zeros(1001, bool))
        assert near(make(points), queries[0], K, 1001, none).tolist() == []

    def test_all_rows_allowed_is_no_filter(self, make: Callable[[Points], VectorIndex]) -> None:
        points, queries = clustered(1001, 16)
        index = make(points)
        every = bits_of(np.ones(1001, bool))
        for query in queries:
            expected = near(index, query, K, EFFORT, None).tolist()
            assert near(index, query, K, EFFORT, every).tolist() == expected
            # A filter leaves nothing behind for the next search.
            assert near(index, query, K, EFFORT, None).tolist() == expected

    # ----------------------------------------------------------------------------------- threads and processes

    def test_threads_get_the_answers_one_would(self, make: Callable[[Points], VectorIndex]) -> None:
        points, queries = clustered(ROWS, DIMENSION)
        index = make(points)
        masks = [None, *(bits_of(np.arange(ROWS) % step == 0) for step in (2, 3, 5))]

        def ask(number: int) -> list[int]:
            count, effort = (K, 5 * K)[number % 2], (64, EFFORT, 256)[number % 3]
            return list(near(index, queries[number % 100], count, effort, masks[number % 4]).tolist())

        alone = [ask(number) for number in range(400)]
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(ask, range(400))) == alone

    def test_a_search_starts_no_thread(self, make: Callable[[Points], VectorIndex]) -> None:
        tasks = Path("/proc/self/task")
        if not tasks.is_dir():
            pytest.skip("threads can only be counted where /proc is")
        # Large enough that a library would share one query out, if it ever does.
        points, queries = clustered(ROWS * 4, DIMENSION)
        index = make(points)
        half = bits_of(np.arange(len(points)) % 2 == 0)
        before = set(os.listdir(tasks))
        for query in queries[:10]:
            for count in (1, K, 200):
                near(index, query, count, 256, None)
                near(index, query, count, 256, half)
        assert set(os.listdir(tasks)) <= before

    @pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
    def test_a_forked_child_gets_the_answers_of_its_parent(self, make: Callable[[Points], VectorIndex]) -> None:
        points, queries = clustered(ROWS * 4, DIMENSION)
        index = make(points)
        expected = answers(index, queries)
        child = os.fork()
        if child == 0:
            same = False
            try:
                same = answers(index, queries) == expected
            finally:
                os._exit(0 if same else 1)
        assert wait(child) == 0

    def _recall(
        self,
        index: VectorIndex,
        points: Points,
        queries: Points,
        mask: NDArray[np.bool_] | None,
        effort: int = EFFORT,
    ) -> float:
        """The part of the K nearest rows that is best among 4 K candidates; rows as near as those count as well."""
        among = None if mask is None else np.flatnonzero(mask)
        hits = total = 0
        for query in queries:
            wanted = nearest(points, query, K, among)
            found = best(index, points, query, effort, None if mask is None else bits_of(mask))
            edge = distances(points, query, wanted).max() * (1 + 1e-6)
            hits += int(np.count_nonzero(distances(points, query, np.array(found, np.int64)) <= edge))
            total += len(wanted)
        return hits / total
