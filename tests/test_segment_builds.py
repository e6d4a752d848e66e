"""What a built segment holds, and which keys it settles: the rows that L3 has, whatever was written beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tiermem
from tests.workers import INLINE
from tiermem import Config, CorruptionError, Item, Memory, VectorConfig
from tiermem.codec.frame import HAS_VECTOR, pack_vector
from tiermem.engine import builder, publishing
from tiermem.engine.commit import Committer
from tiermem.tiers.vector import scores
from tiermem.tiers.vector.faiss_engine import FaissEngine
from tiermem.tiers.vector.scores import as_points

NS = "desk"
METRICS = ["cosine", "dot", "euclidean"]
DIMENSION = 5

keys = st.sampled_from([f"{letter}{number}" for letter in "aé" for number in range(9)])
vectors = st.integers(1, 10**6).map(lambda seed: np.random.default_rng(seed).standard_normal(DIMENSION))
puts = st.tuples(
    st.just("put"),
    keys,
    st.none() | vectors,
    st.none() | st.fixed_dictionaries({"n": st.integers(0, 3)}),
    st.integers(0, 5),
    st.none() | st.just(10**9),
)
changes = st.lists(puts | st.tuples(st.just("delete"), keys) | st.just(("flush",)), max_size=40)


@pytest.fixture(autouse=True)
def _strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows are several strips, and few keys several slices."""
    monkeypatch.setattr(builder, "_STRIP", 7)
    monkeypatch.setattr(scores, "_STRIP", 3)
    monkeypatch.setattr(publishing, "SLICE", 5)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Callable[..., Memory]]:
    """`store()`: a new store that seals in this process, and only where told to."""
    opened: list[Memory] = []

    def make() -> Memory:
        config = Config(cold=INLINE, vector=VectorConfig(engine=FaissEngine("flat"), seal_rows=10**6))
        opened.append(tiermem.open(tmp_path / str(len(opened)), config=config))
        return opened[-1]

    yield make
    for mem in opened:
        mem.close()


def change(mem: Memory, made: list[tuple[Any, ...]]) -> None:
    for what, *arguments in made:
        if what == "put":
            key, vector, metadata, at, ttl = arguments
            mem.put(NS, key, 0, vector=vector, metadata=metadata, at=float(at), ttl=ttl)
        elif what == "delete":
            mem.delete(NS, *arguments)
        else:
            mem.flush()


def stored(mem: Memory) -> list[tuple[Any, ...]]:
    """Everything about the vectors of L3, read one by one, in order of time and key."""
    with mem._store.cold.read() as snapshot:
        info = snapshot.info(NS)
        assert info is not None
        found = []
        for raw, _ in snapshot.rows(snapshot.dbs.records, info.prefix):
            frame, vector = snapshot.record(raw), snapshot.vector(raw)
            assert frame is not None
            assert (vector is not None) == bool(frame.flags & HAS_VECTOR)
            if vector is not None:
                row = (raw[4:].decode(), frame.version, frame.expires, frame.metadata, vector[1])
                found.append((frame.at, *row))
    return sorted(found)


def built(mem: Memory) -> list[tuple[Any, ...]]:
    """The same of the segment there is, if there is one; every row of it is alive, and every key settled."""
    with mem._store.cold.read() as snapshot:
        info = snapshot.info(NS)
        assert info is not None
        assert (info.unsealed, list(snapshot.unsealed(info.prefix))) == (0, [])
        segments = snapshot.segments(info.prefix)
    if not segments:
        return []
    ((number, known),) = segments.items()
    assert not known.dead_rows
    rows = mem._store.sealer.shelf.segment(number, known.seal, graph=known.graph).rows
    every = np.arange(rows.rows)
    assert (np.diff(rows.at) >= 0).all()
    columns = rows.at.tolist(), rows.heads(every), rows.versions.tolist(), rows.expires.tolist(), rows.take(every)
    return sorted(
        (at, key, version, expires, metadata, vector.tobytes())
        for at, (key, metadata), version, expires, vector in zip(*columns, strict=True)
    )


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds=st.lists(changes, min_size=1, max_size=3), awaited=st.booleans())
def test_a_segment_holds_what_l3_does(
    store: Callable[..., Memory], rounds: list[list[tuple[Any, ...]]], awaited: bool
) -> None:
    with store() as mem:
        mem.put(NS, "first", 0, vector=[1.0] * DIMENSION)
        for made in rounds:
            change(mem, made)
            if not awaited:
                mem.search_similar(NS, [1.0] * DIMENSION)
            mem.build_index(NS)
            assert built(mem) == stored(mem)
            assert mem.check().ok


@pytest.mark.parametrize("searched", [True, False], ids=["searched", "awaited"])
@pytest.mark.parametrize("when", ["rows", "publishing", "settling"])
def test_what_is_written_before_keys_are_settled_stays_unsealed(
    store: Callable[..., Memory], monkeypatch: pytest.MonkeyPatch, when: str, searched: bool
) -> None:
    mem = store()
    matrix = np.random.default_rng(1).standard_normal((60, DIMENSION))
    mem.put_many(NS, [Item(f"k{number:02d}", 0, vector=vector) for number, vector in enumerate(matrix)])
    if searched:
        mem.search_similar(NS, matrix[0])
    write_rows, commit = builder.write_rows, Committer.commit
    works = {"rows": "write_rows", "publishing": "work", "settling": "settle"}
    written = False

    def beside(name: str) -> None:
        nonlocal written
        if not written and name == works[when]:
            written = True
            mem.put(NS, "k07", 1, vector=matrix[8])
            mem.update(NS, "k50", vector=None)
            mem.delete(NS, "k58")
            mem.put(NS, "k99", 1, vector=matrix[9])
            mem.flush()

    def writing(*arguments: Any) -> int:
        beside("write_rows")
        return write_rows(*arguments)

    def committing(committer: Committer, **named: Any) -> Any:
        work = named.get("work")
        if getattr(work, "__module__", "") == publishing.__name__:
            beside(work.__name__)
        return commit(committer, **named)

    monkeypatch.setattr(builder, "write_rows", writing)
    monkeypatch.setattr(Committer, "commit", committing)
    mem.build_index(NS)
    assert written
    with mem._store.cold.read() as snapshot:
        info = snapshot.info(NS)
        assert info is not None
        unsealed = list(snapshot.unsealed(info.prefix))
        assert info.unsealed == len(unsealed)
    # What is gone by the time it is published is dead in it.
    assert unsealed == (["k07", "k99"] if when == "rows" else ["k07", "k50", "k58", "k99"])
    for _ in range(2):
        found = {hit.key: hit.version for hit in mem.search_similar(NS, matrix[8], 100)}
        assert found == {key: mem.get_record(NS, key).version for key in found}
        assert found.keys() == {f"k{number:02d}" for number in range(60)} - {"k50", "k58"} | {"k99"}
        assert [hit.key for hit in mem.search_similar(NS, matrix[8], 2)] == ["k07", "k08"]
        mem._store.spaces[NS].index = None
    assert mem.check().ok
    mem.build_index(NS)
    assert built(mem) == stored(mem)


@pytest.mark.parametrize("damaged", [True, False], ids=["damaged", "of another version"])
def test_a_vector_that_is_not_as_its_record_says_ends_the_build(store: Callable[..., Memory], damaged: bool) -> None:
    mem = store()
    for number in range(20):
        mem.put(NS, f"k{number}", 0, vector=[1.0, number])
    mem.flush()

    def spoil(writer: Any) -> None:
        key = writer.live(NS).prefix + b"k3"
        row = bytes(writer.txn.get(key, db=writer.dbs.vectors))
        row = row[:-1] + bytes([row[-1] ^ 1]) if damaged else pack_vector(key, 5, row[16:])
        writer.txn.put(key, row, db=writer.dbs.vectors)
        writer.wrote = True

    mem._store.committer.commit(work=spoil)
    with pytest.raises(CorruptionError, match="k3"):
        mem.build_index(NS)
    assert mem.stats().vectors[NS].segments == 0


# ------------------------------------------------------------------------------------------ what an engine learns from

LARGE = float(np.float32(1e30))
matrices = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 40), st.integers(1, 4)),
    elements=st.floats(-LARGE, LARGE, width=32) | st.floats(-1, 1, width=32),
)


@pytest.mark.parametrize("metric", METRICS)
@given(matrix=matrices, few=st.integers(1, 50), size=st.integers(1, 9))
def test_a_sample_taken_in_passing_is_that_of_all_points(
    metric: str, matrix: np.ndarray[Any, Any], few: int, size: int
) -> None:
    if metric == "cosine":
        matrix[~matrix.any(axis=1)] = 1.0
    rows, dimension = matrix.shape
    largest = float(np.sqrt(np.square(matrix.astype(np.float64)).sum(axis=1).max()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "_SAMPLE_BYTES", few * 4 * dimension)
        sample = builder._Sample(metric, rows, dimension)
    chunks = [matrix[start : start + size] for start in range(0, rows, size)]
    assert [id(chunk) for chunk in sample.over(chunks)] == [id(chunk) for chunk in chunks]
    points = as_points(metric, matrix, largest)
    found = sample.points(largest)
    few = min(few, rows)
    assert len(found) == (rows if few == rows else few + 2)
    assert np.array_equal(found[:few], points[np.arange(few) * rows // few])
    assert np.array_equal(found.min(axis=0), points.min(axis=0))
    assert np.array_equal(found.max(axis=0), points.max(axis=0))


@pytest.mark.parametrize("metric", METRICS)
@given(matrix=matrices)
def test_points_do_not_depend_on_how_rows_are_grouped(metric: str, matrix: np.ndarray[Any, Any]) -> None:
    if metric == "cosine":
        matrix[~matrix.any(axis=1)] = 1.0
    alone = [as_points(metric, row[None], LARGE) for row in matrix]
    assert np.array_equal(as_points(metric, matrix, LARGE), np.concatenate(alone))
