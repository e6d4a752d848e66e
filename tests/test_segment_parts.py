"""The parts of segments: their files, the shelf, the planner, when to merge, and the points of a graph."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tiermem.codec.serialize import encode_metadata
from tiermem.errors import CorruptionError, IncompatibleFormatError, InvalidArgument
from tiermem.policy import filters, planner
from tiermem.policy.merging import FANOUT, GROWN, MOST_DEAD, YOUNG, YOUNG_FANOUT, due, taken_up
from tiermem.protocols import VectorEngine
from tiermem.tiers.vector import rowfile
from tiermem.tiers.vector.bits import count_bits, full_bits, set_bits
from tiermem.tiers.vector.choice import EngineOptions, engine_of
from tiermem.tiers.vector.faiss_engine import FaissEngine
from tiermem.tiers.vector.graphfile import load_graph, seal_graph
from tiermem.tiers.vector.hnswlib_engine import HnswlibEngine
from tiermem.tiers.vector.index import Part, VectorTier
from tiermem.tiers.vector.rowfile import Place, RowFile, hash_keys, write_rows
from tiermem.tiers.vector.scores import as_point, as_points, exact_scores
from tiermem.tiers.vector.segment import Segment, _Matching
from tiermem.tiers.vector.shelf import Shelf

METRICS = ["cosine", "dot", "euclidean"]
each_metric = pytest.mark.parametrize("metric", METRICS)


def place_of(count: int, **given: Any) -> Place:
    numbers = range(count)
    whole = {
        "keys": [f"schlüssel-{number}-日" for number in numbers],
        "metadata": [encode_metadata({"n": number % 3}) if number % 2 else b"" for number in numbers],
        "versions": np.arange(1, count + 1, dtype=np.uint64),
        "at": np.arange(count) // 3 * 1.0,
        "expires": np.where(np.arange(count) % 5, np.inf, 50.0),
        **given,
    }
    return Place(**whole)


def write(path: Path, place: Place, matrix: np.ndarray[Any, Any], number: int = 7, metric: str = "dot") -> RowFile:
    chunks = (matrix[start : start + 100] for start in range(0, len(matrix), 100))
    return RowFile(path, number, write_rows(path, number, matrix.shape[1], metric, place, chunks))


def matrix_of(count: int, dimension: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(count).standard_normal((count, dimension)).astype(np.float32)


# ----------------------------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize("dimension", [1, 5, 384])
@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 1000])
def test_rows_come_back_as_they_were_written(tmp_path: Path, count: int, dimension: int) -> None:
    place, matrix = place_of(count), matrix_of(count, dimension)
    rows = write(tmp_path / "r", place, matrix)
    assert (rows.rows, rows.dimension, rows.number, rows.about.metric) == (count, dimension, 7, "dot")
    assert rows.nbytes == (tmp_path / "r").stat().st_size
    assert [rows.key(row) for row in range(count)] == place.keys
    assert rows.heads(np.arange(count)) == list(zip(place.keys, place.metadata, strict=True))
    for name in ("versions", "at", "expires"):
        assert np.array_equal(getattr(rows, name), getattr(place, name))
    assert rows.first_expiry == (50.0 if count else math.inf)
    assert rows.about.largest == pytest.approx(np.linalg.norm(matrix, axis=1).max() if count else 0.0)
    assert np.array_equal(rows.span(0, count), matrix)
    rows = RowFile(tmp_path / "r", 7, seal_of(tmp_path / "r"))
    some = np.arange(count)[::-7]
    assert np.array_equal(rows.take(some), matrix[some])
    assert np.array_equal(rows.span(count // 3, count // 2), matrix[count // 3 : count // 2])
    assert np.allclose(rows.squares, np.einsum("ij,ij->i", matrix, matrix), rtol=1e-5)
    assert rows.find([*place.keys, "none"]).tolist() == [*range(count), -1]
    assert rows.find([]).tolist() == []
    chosen = filters.compile_filter({"n": 1})
    assert chosen is not None
    bits = rows.columns.bits(chosen.node)
    assert np.flatnonzero(np.unpackbits(bits, bitorder="little")).tolist() == [
        row for row in range(count) if row % 2 and row % 3 == 1
    ]


def seal_of(path: Path) -> int:
    return int(rowfile._CHECKSUM.unpack(path.read_bytes()[-rowfile._CHECKSUM.size :])[0])


@given(st.lists(st.text(min_size=1), unique=True), st.lists(st.text(min_size=1)))
def test_every_key_is_found_and_no_other(
    tmp_path_factory: pytest.TempPathFactory, keys: list[str], others: list[str]
) -> None:
    count = len(keys)
    rows = write(tmp_path_factory.mktemp("r") / "r", place_of(count, keys=keys), matrix_of(count, 1))
    assert rows.find(keys + others).tolist() == [keys.index(key) if key in keys else -1 for key in keys + others]


def test_keys_of_the_same_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rowfile, "hash_keys", lambda keys: np.array([len(key) for key in keys], np.uint64))
    keys = ["aa", "bb", "cc", "d", "eee", "fff"]
    rows = write(tmp_path / "r", place_of(6, keys=keys), matrix_of(6, 2))
    assert rows.find(["cc", "fff", "zz", "aa", "yyyy", "d", ""]).tolist() == [2, 5, -1, 0, -1, 3, -1]


def test_a_file_that_is_not_what_was_published_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r"
    write(path, place_of(40), matrix_of(40, 3))
    whole, seal = path.read_bytes(), seal_of(path)
    with pytest.raises(CorruptionError):
        RowFile(path, 8, seal)
    with pytest.raises(CorruptionError):
        RowFile(path, 7, seal + 1)
    with pytest.raises(CorruptionError):
        RowFile(tmp_path / "none", 7, seal)
    for damaged in (b"", whole[:-1], whole[:-200], whole[1:], b"x" + whole, whole + b"x"):
        path.write_bytes(damaged)
        with pytest.raises(CorruptionError):
            RowFile(path, 7, seal)


def test_every_flipped_byte_is_met_by_whoever_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "r"
    matrix = matrix_of(40, 3)
    place = place_of(40)
    whole = path.read_bytes() if write(path, place, matrix) else b""
    seal = seal_of(path)
    for at in range(0, len(whole), 5):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
        try:
            rows = RowFile(path, 7, seal)
        except (CorruptionError, IncompatibleFormatError):
            continue
        # Padding, or vectors: those are verified where they are read.
        if at < matrix.nbytes:
            assert not rows.damaged
            with pytest.raises(CorruptionError, match="vector of row"):
                rows.span(0, 40)
            assert rows.damaged
            with pytest.raises(CorruptionError):
                rows.take(np.array([at // 12]))
            other = 0 if at // 12 else 39
            assert np.array_equal(rows.take(np.array([other])), matrix[[other]])
        else:
            assert np.array_equal(rows.span(0, 40), matrix)
            assert [rows.key(row) for row in range(40)] == place.keys


@each_metric
def test_a_segment_without_a_graph_answers_exactly(tmp_path: Path, metric: str) -> None:
    count, matrix = 3000, matrix_of(3000, 6)
    place = place_of(count)
    rows = write(tmp_path / "r", place, matrix, metric=metric)
    dead = np.random.default_rng(1).choice(count, 300, replace=False)
    part = Part(Segment(rows, None))
    part.bury(dead)
    assert (part.live, part.dead) == (count - 300, 300)
    assert (part.places(place.keys, hash_keys(place.keys)) < 0).nonzero()[0].tolist() == sorted(dead.tolist())
    assert Part(part.segment, (~part.alive & full_bits(count)).tobytes()).live == part.live
    tier = VectorTier(6, metric, [part])
    chosen = filters.compile_filter({"n": 1})
    alive = np.ones(count, bool)
    alive[dead] = False
    query = matrix_of(1, 6)[0]
    scores = exact_scores(metric, matrix, query)
    numbers = np.arange(count)
    for where in (None, chosen):
        for since, until in ((-math.inf, math.inf), (17.0, 803.0), (17.0, 18.0), (5.0, 5.0), (2000.0, math.inf)):
            for now in (0.0, 50.0):
                allowed = alive & (place.at >= since) & (place.at < until) & (place.expires > now)
                if where is not None:
                    allowed &= (numbers % 2 == 1) & (numbers % 3 == 1)
                wanted = sorted((-scores[row], place.keys[row]) for row in np.flatnonzero(allowed))[:9]
                found = tier.search(
                    query,
                    9,
                    now=now,
                    since=since,
                    until=until,
                    where=where,
                    allows=None,
                    min_score=-math.inf,
                    effort=None,
                    exact=False,
                )
                assert [(-hit.score, hit.key) for hit in found] == wanted


@given(st.integers(0, 300))
def test_full_bits_are_as_many_as_the_rows(rows: int) -> None:
    bits = full_bits(rows)
    assert (count_bits(bits), len(bits) % 8) == (rows, 0)
    assert np.unpackbits(bits, bitorder="little")[:rows].all()


# --------------------------------------------------------------------------------------------------- graphs, the shelf


def build_graph(path: Path, engine: VectorEngine, points: np.ndarray[Any, Any]) -> None:
    engine.build(iter([points]), len(points), points.shape[1], path, 1, lambda done: None, sample=points)


@pytest.mark.parametrize("index", ["hnsw_sq8", "hnsw", "flat", "ivf", "ivfpq"])
def test_a_graph_is_opened_by_the_engine_that_wrote_it(tmp_path: Path, index: Any) -> None:
    engine = EngineOptions("faiss", index, 8, 40).make()
    assert engine_of(engine.name).name == engine.name
    path, points = tmp_path / "g", matrix_of(300, 8)
    rows = write(tmp_path / "r", place_of(300), points, 3, "euclidean")
    build_graph(path, engine, points)
    seal_graph(path, engine.name, 3, 99)
    graph = load_graph(path, rows, 99, engine_of)
    assert graph.search(points[17], 4, 300, None)[0][0] == 17


def test_an_engine_nobody_knows_is_named() -> None:
    assert engine_of(HnswlibEngine().name).name == "hnswlib"
    assert EngineOptions("hnswlib", "hnsw", 8, 40).make().name == "hnswlib"
    for name in ("faiss", "faiss/none", "", "mine"):
        with pytest.raises(InvalidArgument, match="engine"):
            engine_of(name)


def test_a_graph_that_is_not_what_was_sealed_is_refused(tmp_path: Path) -> None:
    path, points = tmp_path / "g", matrix_of(30, 8)
    named = {number: write(tmp_path / f"r{number}", place_of(30), points, number, "euclidean") for number in (3, 4)}
    build_graph(path, FaissEngine("flat"), points)
    seal_graph(path, "faiss/flat", 3, 99)
    whole = path.read_bytes()

    def load(number: int = 3, seal: int = 99) -> Any:
        return load_graph(path, named[number], seal, lambda name: FaissEngine("flat"))

    assert load().search(points[3], 1, 30, None)[0].tolist() == [3]
    for number, seal in ((4, 99), (3, 98)):
        with pytest.raises(CorruptionError, match="belongs to other"):
            load(number, seal)
    flipped = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(0, len(whole), 7)]
    for damaged in (b"", whole[:40], whole[:-1], whole[1:], whole + b"x", *flipped):
        path.write_bytes(damaged)
        with pytest.raises((CorruptionError, IncompatibleFormatError)):
            load()
    path.unlink()
    with pytest.raises(CorruptionError, match="cannot be read"):
        load()


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    shelf = Shelf(tmp_path, lambda name: FaissEngine("flat"))
    for number in (1, 2):
        matrix = matrix_of(20, 4)
        write(shelf.rows_path(number), place_of(20), matrix, number, "euclidean")
        build_graph(shelf.graph_path(number), FaissEngine("flat"), matrix)
        seal_graph(shelf.graph_path(number), "faiss/flat", number, seal_of(shelf.rows_path(number)))
    return shelf


def test_a_shelf_opens_each_segment_once_and_lets_go(shelf: Shelf) -> None:
    seals = {number: seal_of(shelf.rows_path(number)) for number in (1, 2)}
    first = shelf.segment(1, seals[1], graph=True)
    assert first.graph is not None
    assert shelf.segment(1, seals[1], graph=True) is first
    shelf.keep({2})
    assert shelf.segment(1, seals[1], graph=True) is not first
    assert (shelf.problems, shelf.condemned) == ({}, {})
    shelf.condemned[1] = "a block is damaged"
    with pytest.raises(CorruptionError, match="a block"):
        shelf.segment(1, seals[1], graph=True)
    shelf.keep({2})
    assert shelf.condemned == {}
    # A segment whose rows were wanted alone has its graph when it is searched.
    assert shelf.segment(2, seals[2], graph=False).rows.rows == 20
    assert shelf.segment(2, seals[2], graph=True).graph is not None


def test_a_shelf_does_without_a_graph_that_is_damaged(shelf: Shelf) -> None:
    shelf.graph_path(1).write_bytes(b"x" * 200)
    opened = shelf.segment(1, seal_of(shelf.rows_path(1)), graph=True)
    assert (opened.graph, list(shelf.problems)) == (None, [1])
    shelf.keep({2})
    assert shelf.problems == {}


def test_a_sweep_deletes_what_belongs_to_no_segment(shelf: Shelf) -> None:
    strange = [shelf.folder / name for name in ("seal.lock", "notes", "0123.rows", f"{9:016x}.txt")]
    for path in (*strange, shelf.rows_path(3), shelf.folder / f"{1:016x}.rows.new"):
        path.write_bytes(b"x" * 10)
    gone = sum(path.stat().st_size for path in (shelf.rows_path(2), shelf.graph_path(2)))
    assert shelf.sweep({1}) == gone + 20
    assert set(shelf.folder.iterdir()) == {*strange, shelf.rows_path(1), shelf.graph_path(1)}


# -------------------------------------------------------------------------------------------------------- the policies


@given(
    rows=st.integers(1, 10**9),
    share=st.floats(0, 1),
    k=st.integers(1, 10**6),
    effort=st.none() | st.integers(1, 10**7),
)
def test_a_walk_is_planned_only_where_it_is_cheaper(rows: int, share: float, k: int, effort: int | None) -> None:
    allowed = max(1, round(rows * share))
    way = planner.plan(rows, allowed, k, effort)
    if way.effort:
        assert way.rows >= k
        assert way.effort >= max(way.rows, effort or 0)
        assert allowed > planner.FEW * way.effort
        assert allowed > k
    else:
        assert way == planner.EXACTLY
    few = planner.FEW * max(effort or planner.EFFORT, k)
    assert not planner.plan(rows, min(rows, few), k, effort).effort
    # The fewer are allowed, the broader is the walk.
    whole = planner.plan(rows, rows, k, effort)
    assert not way.effort or whole.effort <= way.effort


@given(st.lists(st.tuples(st.integers(1, 10**6), st.floats(0, 1)), max_size=60), st.booleans())
def test_merging_what_is_due_ends(given: list[tuple[int, float]], growing: bool) -> None:
    sizes = {number: (rows, int(rows * share)) for number, (rows, share) in enumerate(given)}
    total = sum(rows - dead for rows, dead in sizes.values())
    for fresh in range(1000, 1200):
        taken = taken_up(sizes) if growing else []
        chosen = taken or due(sizes, growing=growing)
        if not chosen:
            break
        assert set(chosen) <= set(sizes)
        live = {number: rows - dead for number, (rows, dead) in sizes.items()}
        largest = max(chosen, key=lambda number: (live[number], number))
        if taken:
            assert len(taken) > 1
            assert sizes[largest][1] == 0
            assert max(live[number] for number in taken) < GROWN
            assert sum(live[number] for number in taken) < 2 * GROWN
            assert not set(taken) & set(due(sizes, growing=True))
        else:
            least = YOUNG_FANOUT if live[largest] < YOUNG else FANOUT
            assert len(chosen) >= least or all(sizes[number][1] > 0 for number in chosen)
        left = sum(live[number] for number in chosen)
        for number in chosen:
            del sizes[number]
        if left:
            sizes[fresh] = (left, 0)
    assert due(sizes, growing=growing) == []
    assert sum(rows - dead for rows, dead in sizes.values()) == total
    assert len(sizes) < FANOUT * 20
    assert all(dead <= rows * MOST_DEAD for rows, dead in sizes.values())


def test_the_smallest_are_merged_first_and_many_tombstones_are_swept() -> None:
    assert due({}) == due({1: (10, 0)}) == due({1: (10, 2)}) == []
    assert due({1: (10, 3)}) == [1]
    assert due({number: (4096 + 1000 * number, 0) for number in range(YOUNG_FANOUT)}) == list(range(YOUNG_FANOUT))
    assert due({number: (100**number, 0) for number in range(YOUNG_FANOUT)}) == []
    assert due(dict.fromkeys(range(FANOUT - 1), (YOUNG, 0))) == []
    assert due(dict.fromkeys(range(FANOUT), (YOUNG, 0))) == list(range(FANOUT))
    sizes = dict.fromkeys(range(10), (10**6, 0)) | dict.fromkeys(range(90, 90 + YOUNG_FANOUT), (50, 0))
    assert due(sizes) == list(range(90, 90 + YOUNG_FANOUT))


def test_what_can_grow_takes_up_the_others_once_they_are_worth_it() -> None:
    assert taken_up({}) == taken_up({1: (10, 0)}) == []
    assert taken_up({1: (16_000, 0), 2: (1_900, 0)}) == []
    assert taken_up({1: (16_000, 0), 2: (2_000, 0)}) == [1, 2]
    assert taken_up({1: (16_000, 0), 2: (1_000, 0), 3: (1_500, 0), 4: (10**6, 0)}) == [1, 2, 3]
    # Of one with dead rows nothing can be kept, so that it is linked anew as seldom as may be.
    assert taken_up({1: (16_000, 1), 2: (2_000, 0)}) == []
    assert due({1: (16_000, 1), 2: (17_000, 0)}, growing=True) == []
    assert due({1: (16_000, 1), 2: (16_000, 1)}, growing=True) == [1, 2]
    # Beside it the others grow, and are not left to wait for whatever else is merged.
    assert taken_up({1: (60_000, 1)} | dict.fromkeys((2, 3, 4), (2_048, 0))) == [2, 3, 4]
    assert taken_up({1: (60_000, 1), 2: (50_000, 9), 3: (8_000, 0), 4: (1_100, 5)}) == [3, 4]
    # What has grown takes up nothing more, and nothing becomes twice as large as that.
    assert taken_up({1: (GROWN, 0), 2: (GROWN - 1, 0)}) == []
    assert taken_up({1: (GROWN - 1, 0), 2: (GROWN - 2, 0), 3: (9_000, 0)}) == [2, 3]
    assert taken_up({1: (10, 10), 2: (20, 20)}) == []
    # What may be taken up before a large merge is done is not merged with what takes minutes.
    assert due(dict.fromkeys(range(1, FANOUT), (GROWN, 0)) | {0: (GROWN - 1, 0)}, growing=True) == []
    assert due(dict.fromkeys(range(1, FANOUT), (GROWN, 0)) | {0: (GROWN - 1, 1)}, growing=True) == [*range(FANOUT)]
    # The others are merged as ever.
    assert due(dict.fromkeys(range(FANOUT), (GROWN, 0)) | {9: (100, 0), 10: (100, 0)}, growing=True) == [*range(FANOUT)]


# -------------------------------------------------------------------------------------------------------------- points

LARGE = float(np.float32(1e30))
floats = st.floats(-LARGE, LARGE, width=32) | st.floats(-1, 1, width=32) | st.sampled_from([0.0, 1e-30, -1e-30, 1e30])


@each_metric
@given(st.data())
def test_points_of_any_size_are_finite(metric: str, data: st.DataObject) -> None:
    rows = data.draw(hnp.arrays(np.float32, (5, 3), elements=floats))
    query = data.draw(hnp.arrays(np.float32, (3,), elements=floats))
    if metric == "cosine":
        rows[~rows.any(axis=1)] = query[:] = 1.0
    largest = float(np.sqrt(np.square(rows.astype(np.float64)).sum(axis=1).max()))
    points, point = as_points(metric, rows, largest), as_point(metric, query, largest)
    assert points.dtype == point.dtype == np.float32
    assert points.shape == (5, 3)
    assert np.isfinite(points).all()
    assert np.isfinite(point).all()
    norms = np.linalg.norm(points.astype(np.float64), axis=1)
    assert (norms <= 1 + 1e-6).all()
    if metric == "cosine":
        assert norms == pytest.approx(np.ones(5), rel=1e-6)


@each_metric
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e18, 1e30])
def test_near_points_are_good_scores(metric: str, scale: float, tmp_path: Path) -> None:
    matrix = matrix_of(500, 8) * np.float32(scale)
    query = matrix_of(1, 8)[0] * np.float32(scale)
    largest = write(tmp_path / "r", place_of(500), matrix, metric=metric).about.largest
    points, point = as_points(metric, matrix, largest), as_point(metric, query, largest)
    wide = points.astype(np.float64)
    distances = -wide @ point if metric == "dot" else np.linalg.norm(wide - point, axis=1)
    scores = exact_scores(metric, matrix, query)
    ordered = scores[np.argsort(distances)] / abs(scores).max()
    assert (np.diff(ordered) <= 1e-5).all()


@each_metric
def test_the_point_of_a_query_far_away_is_finite(metric: str) -> None:
    for query in ([1e30, 1, 0], [-3e38, 3e38, 3e38], [1e-45, 0, 0]):
        for largest in (0.0, 1e-45, 1e-30, 1.0, 6e38):
            assert np.isfinite(as_point(metric, np.array(query, np.float32), largest)).all()


def test_a_directory_names_every_section(tmp_path: Path) -> None:
    about = write(tmp_path / "r", place_of(17), matrix_of(17, 5)).about
    spans = sorted((offset, offset + length) for offset, length, _ in about.sections.values())
    assert all(start % 64 == 0 for start, _ in spans)
    assert all(stop <= start for (_, stop), (start, _) in pairwise(spans))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(about), type=rowfile.Directory) == about


@given(st.lists(st.integers(0, 400)), st.lists(st.integers(0, 400)))
def test_matches_within_bits_are_those_that_have_both(ones: list[int], others: list[int]) -> None:
    first, second = (np.zeros(448, bool) for _ in range(2))
    first[ones], second[others] = True, True
    bits, both = (np.packbits(mask, bitorder="little") for mask in (first, first & second))
    assert set_bits(bits).tolist() == sorted(set(ones))
    matching = _Matching(bits)
    assert matching.count == len(set(ones))
    for _ in range(2):
        assert matching.within(both).tolist() == sorted({*ones} & {*others})
        assert matching.within(bits).tolist() == sorted(set(ones))


@given(st.integers(1, 12), st.floats(0, 0.05), st.integers(0, 2**32 - 1), st.booleans())
def test_whoever_may_be_among_the_nearest_contends(k: int, noise: float, seed: int, squared: bool) -> None:
    rng = np.random.default_rng(seed)
    true = 0.5 + np.sort(rng.random(40)) * 1.5
    # Each off by up to twice its standard deviation, the nearest ones by chance the other way.
    spread = 2 * noise * np.sqrt(true) if squared else np.full(40, noise)
    seen = np.abs(true + rng.uniform(-2, 2, 40) * spread)
    order = np.argsort(seen)
    count = planner.contenders(seen[order].tolist(), k, noise, squared=squared)
    assert k <= count <= 40
    assert set(np.argsort(true)[:k]) <= set(order[:count])


def test_whoever_has_no_distance_contends() -> None:
    assert planner.contenders([1.0, 2.0, math.nan, math.inf], 2, 0.1, squared=True) == 3
    assert planner.contenders([1.0, 2.0, 3.0], 1, math.inf, squared=True) == 3
    assert planner.contenders([0.0, 0.0, 3.0], 1, math.inf, squared=True) == 3
    assert planner.contenders([1.0], 2, 0.0, squared=False) == 1
    assert planner.contenders([1.0, 1.0, 1.0, 2.0], 2, 0.0, squared=False) == 3
