"""Search: the best records under every filter, fresh, over one namespace or many, by vector or by text."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiermem
from tests.workers import INLINE, START, Peer
from tiermem import Config, DimensionMismatch, Hit, InvalidArgument, InvalidVector, Memory, SimulatedClock
from tiermem.engine import indexing, search
from tiermem.engine.loader import Loader
from tiermem.tiers.vector.scores import exact_scores

NS = "desk/obs"
METRICS = ["cosine", "dot", "euclidean"]


@pytest.fixture
def mem(tmp_path: Path, clock: SimulatedClock) -> Iterator[Memory]:
    embedder = tiermem.HashEmbedder(64)
    with tiermem.open(tmp_path / "store", config=Config(cold=INLINE), clock=clock, embedder=embedder) as mem:
        yield mem


def _nothing(mem: Memory) -> None:
    pass


def _flush(mem: Memory) -> None:
    mem.flush()


each_state = pytest.mark.parametrize("settle", [_nothing, _flush], ids=["pending", "committed"])
each_metric = pytest.mark.parametrize("metric", METRICS)


def keys(hits: list[Hit]) -> list[str]:
    return [hit.key for hit in hits]


@each_metric
@each_state
def test_the_best_k_are_found(mem: Memory, metric: Any, settle: Callable[[Memory], None]) -> None:
    mem.create_namespace(NS, dimension=8, metric=metric)
    matrix = np.random.default_rng(1).standard_normal((300, 8)).astype(np.float32)
    mem.put_many(NS, keys=[f"k{i:03}" for i in range(300)], values=list(range(300)), vectors=matrix)
    settle(mem)
    query = np.random.default_rng(2).standard_normal(8).astype(np.float32)
    scores = exact_scores(metric, matrix, query)
    best = np.argsort(-scores, kind="stable")
    for k in (1, 10, 299, 300, 1000):
        hits = mem.search_similar(NS, query, k=k)
        assert keys(hits) == [f"k{i:03}" for i in best[:k]]
        assert [hit.score for hit in hits] == scores[best[:k]].tolist()
    assert keys(mem.search_similar(NS, query.tolist(), exact=True)) == [f"k{i:03}" for i in best[:10]]
    assert keys(mem.search_similar(NS, query, k=300, min_score=float(scores[best[4]]))) == [
        f"k{i:03}" for i in best[:5]
    ]
    many = mem.search_many(NS, matrix[:4], k=3)
    assert [keys(hits) for hits in many] == [keys(mem.search_similar(NS, row, k=3)) for row in matrix[:4]]
    assert mem.search_many(NS, np.empty((0, 8))) == []


def test_scores_are_what_they_are_said_to_be(mem: Memory) -> None:
    for metric, score in (("cosine", 11 / math.sqrt(5 * 25)), ("dot", 11.0), ("euclidean", -math.sqrt(8))):
        mem.create_namespace(metric, dimension=2, metric=metric)
        mem.put(metric, "k", 1, vector=[1, 2])
        (hit,) = mem.search_similar(metric, [3, 4])
        assert hit.score == pytest.approx(score, rel=1e-12)
    (hit,) = mem.search_similar("cosine", [1, 2])
    assert hit.score <= 1.0
    assert hit.score == pytest.approx(1.0)


@each_state
def test_a_hit_says_what_it_is_and_loads_the_rest_when_asked(mem: Memory, settle: Callable[[Memory], None]) -> None:
    version = mem.put(NS, "k", {"px": 1}, vector=[1, 0], metadata={"side": "buy"}, at=START - 5)
    settle(mem)
    first, second = mem.search_similar(NS, [1, 0])[0], mem.search_similar(NS, [1, 0])[0]
    assert (first.namespace, first.key, first.version, first.metadata) == (NS, "k", version, {"side": "buy"})
    assert first.value == {"px": 1}
    assert first.record is first.record
    mem.put(NS, "k", "later", vector=[1, 0])
    # What was loaded stays; what was not is as it is now.
    assert first.value == {"px": 1}
    assert second.value == "later"
    assert second.record is not None
    assert second.record.version > version
    third = mem.search_similar(NS, [1, 0])[0]
    mem.delete(NS, "k")
    assert (third.value, third.record) == (None, None)
    assert "value" not in repr(third)
    with pytest.raises(AttributeError):
        third.score = 1.0


def test_a_search_that_needs_no_value_reads_none(mem: Memory) -> None:
    mem.put_many(NS, keys=[f"k{i}" for i in range(100)], values=["x"] * 100, vectors=np.eye(100))
    mem.flush()
    mem.search_similar(NS, np.eye(100)[3])
    before = mem.stats().cold.rows_read
    for row in np.eye(100):
        assert len(mem.search_similar(NS, row, k=5, where={"m": {"$exists": False}})) == 5
    assert mem.stats().cold.rows_read - before <= 1


@each_state
def test_filters_time_and_scores_combined(mem: Memory, clock: SimulatedClock, settle: Callable[[Memory], None]) -> None:
    for number in range(60):
        mem.put(
            NS,
            f"k{number:02}",
            number,
            vector=[math.cos(number / 20), math.sin(number / 20)],
            metadata={"n": number, "side": "buy" if number % 3 else "sell"},
            at=START + number,
            ttl=100.0 if number % 2 else None,
        )
    settle(mem)

    def found(**options: Any) -> list[int]:
        return [int(key[1:]) for key in keys(mem.search_similar(NS, [1, 0], k=100, **options))]

    assert found() == list(range(60))
    assert found(where={"side": "sell"}) == list(range(0, 60, 3))
    assert found(where={"n": {"$gte": 50}}, since=START + 55) == [55, 56, 57, 58, 59]
    assert found(since=START + 10, until=START + 12) == [10, 11]
    assert found(where={"side": "none"}) == []
    assert found(min_score=math.cos(2.5 / 20)) == [0, 1, 2]
    assert keys(mem.search_similar(NS, [1, 0], k=3, where={"n": {"$gt": 40}})) == ["k41", "k42", "k43"]
    clock.advance(100)
    assert found() == list(range(0, 60, 2))
    assert found(where={"side": "sell"}, until=START + 20) == [0, 6, 12, 18]


@settings(max_examples=15)
@given(
    writes=st.lists(
        st.tuples(st.sampled_from(["put", "bare", "delete", "update", "flush", "search"]), st.integers(0, 6)),
        max_size=40,
    )
)
def test_a_search_sees_every_write_at_once(
    tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[str, int]]
) -> None:
    model: dict[str, list[float]] = {}
    with tiermem.open(tmp_path_factory.mktemp("s"), config=Config(cold=INLINE)) as mem:
        mem.create_namespace(NS, dimension=2, metric="dot")
        for step, (verb, number) in enumerate(writes):
            key = f"k{number}"
            vector = [float(step), float(number)]
            if verb == "put":
                mem.put(NS, key, step, vector=vector)
                model[key] = vector
            elif verb == "bare":
                mem.put(NS, key, step)
                model.pop(key, None)
            elif verb == "delete":
                mem.delete(NS, key)
                model.pop(key, None)
            elif verb == "update" and key in model:
                mem.update(NS, key, vector=vector)
                model[key] = vector
            elif verb == "flush":
                mem.flush()
            else:
                hits = mem.search_similar(NS, [1, 1], k=20)
                assert {hit.key: hit.score for hit in hits} == {key: sum(vector) for key, vector in model.items()}
        hits = mem.search_similar(NS, [1, 1], k=20)
        assert {hit.key: hit.score for hit in hits} == {key: sum(vector) for key, vector in model.items()}


def test_what_another_process_writes_is_found(mem: Memory, tmp_path: Path) -> None:
    mem.put_many(NS, keys=["a", "b", "c"], values=[1, 2, 3], vectors=np.eye(3))
    assert keys(mem.search_similar(NS, [0, 0, 1], k=1)) == ["c"]
    mem.flush()
    other = Peer(tmp_path / "store", config=Config(cold=INLINE), now=START)
    try:
        other.put(NS, "d", 4, vector=[0, 0, 2], metadata={"m": 1})
        other.delete(NS, "c")
        other.put(NS, "a", 1, vector=[0, 1, 1])
        other.put(NS, "b", 1)
        other.flush()
        hits = mem.search_similar(NS, [0, 0, 1])
        assert [(hit.key, round(hit.score, 3)) for hit in hits] == [("d", 1.0), ("a", 0.707)]
        other.drop_namespace(NS)
        assert mem.search_similar(NS, [0, 0, 1]) == []
        other.put(NS, "n", 1, vector=[1, 1])
        other.flush()
        assert keys(mem.search_similar(NS, [0, 1])) == ["n"]
    finally:
        other.leave()


def test_after_opening_the_index_is_what_is_stored(tmp_path: Path) -> None:
    matrix = np.random.default_rng(3).standard_normal((9000, 4)).astype(np.float32)
    with tiermem.open(tmp_path / "store", config=Config(cold=INLINE)) as mem:
        mem.put_many(NS, keys=[f"k{i}" for i in range(9000)], values=[None] * 9000, vectors=matrix)
        wanted = [(hit.key, hit.score) for hit in mem.search_similar(NS, [1, 2, 3, 4], k=50)]
        mem.put(NS, "none", 1)
    with tiermem.open(tmp_path / "store", config=Config(cold=INLINE)) as mem:
        assert not mem.stats().vectors[NS].loaded
        mem.put(NS, "pending", 1, vector=[-1, -2, -3, -4])
        assert [(hit.key, hit.score) for hit in mem.search_similar(NS, [1, 2, 3, 4], k=50)] == wanted
        assert keys(mem.search_similar(NS, [-1, -2, -3, -4], k=1)) == ["pending"]
        vectors = mem.stats().vectors[NS]
        assert (vectors.loaded, vectors.rows, vectors.dimension, vectors.metric) == (True, 9001, 4, "cosine")


def test_a_first_search_beside_a_commit_is_not_silently_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tiermem.open(tmp_path / "store", config=Config(cold=INLINE)) as mem:
        mem.put(NS, "k", 1, vector=[1, 2])
    with tiermem.open(tmp_path / "store", config=Config(cold=INLINE)) as mem:
        resolve = Loader.resolve
        number = 0

        def beside(self: Loader, space: Any, snapshot: Any) -> bytes:
            # Another thread commits after the snapshot was opened and before it is used.
            nonlocal number
            if threading.current_thread() is threading.main_thread():
                number += 1
                thread = threading.Thread(target=lambda: mem.put("other", "k", number, durable=True))
                thread.start()
                thread.join()
            return resolve(self, space, snapshot)

        monkeypatch.setattr(Loader, "resolve", beside)
        assert keys(mem.search_similar(NS, [1, 2])) == ["k"]
    monkeypatch.undo()
    with tiermem.open(tmp_path / "store", config=Config(cold=INLINE)) as mem:
        monkeypatch.setattr(Loader, "resolve", beside)
        mem.put(NS, "second", 1, vector=[2, 1])
        assert sorted(keys(mem.search_similar(NS, [1, 2]))) == ["k", "second"]


def test_searches_beside_writes_find_every_row(tmp_path: Path) -> None:
    with tiermem.open(tmp_path / "store", config=Config(cold=INLINE)) as mem:
        rows = 500
        mem.put_many(NS, keys=[f"k{i}" for i in range(rows)], values=[0] * rows, vectors=np.ones((rows, 2)))
        done = threading.Event()
        failed: list[Any] = []

        def write() -> None:
            generator = np.random.default_rng(5)
            for step in range(12):
                mem.put_many(
                    NS,
                    keys=[f"k{i}" for i in range(rows)],
                    values=[step] * rows,
                    vectors=generator.standard_normal((rows, 2)),
                    metadatas=[{"step": step}] * rows,
                )
            done.set()

        def look() -> None:
            while not done.is_set():
                found = keys(mem.search_similar(NS, [1, 1], k=rows * 2, where={"none": {"$exists": False}}))
                if len(found) != rows or len(set(found)) != rows:
                    failed.append((len(found), len(set(found))))

        threads = [threading.Thread(target=work) for work in (write, look, look)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []


def test_a_damaged_vector_is_an_error_and_not_a_missing_hit(mem: Memory) -> None:
    mem.put(NS, "k", 1, vector=[1, 2])
    mem.put(NS, "z", 1, vector=[1, 2])
    mem.flush()
    store = mem._store
    with store.cold.read() as snapshot:
        info = snapshot.info(NS)
        assert info is not None
        key = info.prefix + b"k"
        row = bytes(snapshot.txn.get(key, db=snapshot.dbs.vectors))
    with store.cold.write() as txn:
        txn.put(key, row[:-1] + b"\xff", db=store.cold.dbs.vectors)
    for _ in range(2):
        with pytest.raises(tiermem.CorruptionError):
            mem.search_similar(NS, [1, 2])
    # A vector without a record is nobody's: no hit, and no reason to keep the others from being found.
    from tiermem.codec.frame import pack_vector

    with store.cold.write() as txn:
        txn.put(key, row, db=store.cold.dbs.vectors)
        stray = info.prefix + b"stray"
        txn.put(stray, pack_vector(stray, 5, b"x" * 8), db=store.cold.dbs.vectors)
    assert keys(mem.search_similar(NS, [1, 2])) == ["k", "z"]
    store.spaces[NS].index = None
    assert keys(mem.search_similar(NS, [1, 2])) == ["k", "z"]
    assert "stray" in str(mem.check().problems)
    with store.cold.write() as txn:
        txn.delete(info.prefix + b"stray", db=store.cold.dbs.vectors)
        txn.delete(key, db=store.cold.dbs.vectors)
    with pytest.raises(tiermem.CorruptionError, match="missing"):
        mem.get_record(NS, "k")


def test_an_index_whose_update_failed_is_loaded_anew(mem: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiermem.engine import indexing

    mem.put(NS, "a", 1, vector=[1, 0])
    assert keys(mem.search_similar(NS, [1, 0])) == ["a"]
    mem.put(NS, "b", 1, vector=[0, 1])

    def fail(*_: Any, **__: Any) -> Any:
        raise tiermem.StorageError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(indexing.reading, "fetch_many", fail)
        with pytest.raises(tiermem.StorageError):
            mem.search_similar(NS, [1, 0])
    assert keys(mem.search_similar(NS, [1, 0])) == ["a", "b"]


# --------------------------------------------------------------------------------------------------- several namespaces


@pytest.fixture
def desks(mem: Memory) -> Memory:
    for number, name in enumerate(["desk", "desk/a", "desk/a/x", "desk/b", "other", "desktop/c"]):
        mem.put(name, "k", number, vector=[number + 1, 1])
        mem.put(name, "same", number, vector=[1, 1])
    mem.create_namespace("desk/empty")
    return mem


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        ("desk/**", ["desk/a", "desk/a/x", "desk/b"]),
        ("desk/*", ["desk/a", "desk/b"]),
        ("desk/a/*", ["desk/a/x"]),
        ("**", ["desk", "desk/a", "desk/a/x", "desk/b", "desktop/c", "other"]),
        ("*", ["desk", "other"]),
        ("*/a", ["desk/a"]),
        ("**/*", ["desk/a", "desk/a/x", "desk/b", "desktop/c"]),
        ("desk/**/x", ["desk/a/x"]),
        ("none/**", []),
        (["other", "desk/*"], ["desk/a", "desk/b", "other"]),
        (["desk/a", "desk/**", "desk/a"], ["desk/a", "desk/a/x", "desk/b"]),
        (("desk/a", "none"), ["desk/a"]),
        ([], []),
    ],
)
@each_state
def test_patterns_and_lists(desks: Memory, names: Any, wanted: list[str], settle: Callable[[Memory], None]) -> None:
    settle(desks)
    hits = desks.search_similar(names, [1, 0], k=50)
    assert sorted({hit.namespace for hit in hits}) == wanted
    assert len(hits) == 2 * len(wanted)
    assert [(-hit.score, hit.namespace, hit.key) for hit in hits] == sorted(
        (-hit.score, hit.namespace, hit.key) for hit in hits
    )
    assert desks.search_similar(names, [1, 0], k=3)[:3] == [] or [
        (hit.namespace, hit.key) for hit in desks.search_similar(names, [1, 0], k=3)
    ] == [(hit.namespace, hit.key) for hit in hits[:3]]
    for hit in hits:
        record = desks.get_record(hit.namespace, hit.key)
        assert record is not None
        assert hit.value == record.value


@pytest.mark.parametrize("pattern", ["desk/***", "de*k", "desk/a*", "desk//**", "*x/a"])
def test_a_pattern_that_is_none(desks: Memory, pattern: str) -> None:
    with pytest.raises(InvalidArgument):
        desks.search_similar(pattern, [1, 0])


def test_the_first_vectors_of_a_batch_agree_or_none_is_stored(mem: Memory) -> None:
    def write() -> None:
        with mem.batch() as batch:
            batch.put(NS, "a", 1, vector=[1, 2])
            batch.put("other", "a", 1)
            batch.put(NS, "b", 1, vector=[1, 2, 3])

    with pytest.raises(DimensionMismatch):
        write()
    assert mem.namespaces() == []
    with pytest.raises(DimensionMismatch):
        mem.put_many(NS, [tiermem.Item("a", 1, vector=[1, 2]), tiermem.Item("b", 1, vector=[1, 2, 3])])
    assert mem.namespaces() == []
    mem.put(NS, "a", 1, vector=[1, 2, 3, 4])
    assert len(mem.search_similar(NS, [1, 1, 1, 1])) == 1


def test_scores_of_different_metrics_or_dimensions_are_not_mixed(desks: Memory) -> None:
    desks.create_namespace("dots", dimension=2, metric="dot")
    desks.put("dots", "k", 1, vector=[1, 1])
    with pytest.raises(InvalidArgument, match="metrics"):
        desks.search_similar(["dots", "desk/a"], [1, 0])
    desks.put("wide", "k", 1, vector=[1, 1, 1])
    with pytest.raises(DimensionMismatch):
        desks.search_similar(["desk/a", "wide"], [1, 0])


# -------------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ([1, 0, 0], DimensionMismatch),
        ([], InvalidVector),
        ([0, 0], InvalidVector),
        ([float("nan"), 0], InvalidVector),
        ([float("inf"), 0], InvalidVector),
        ([1e39, 0], InvalidVector),
        ([[1, 0]], InvalidVector),
        (5, InvalidVector),
        (None, InvalidVector),
        (["a", "b"], InvalidVector),
        ([True, False], InvalidVector),
    ],
)
def test_a_query_that_is_no_vector(mem: Memory, query: Any, error: type[Exception]) -> None:
    mem.put(NS, "k", 1, vector=[1, 0])
    with pytest.raises(error):
        mem.search_similar(NS, query)
    if error is InvalidVector:
        # Just as wrong where there is nothing to compare it with.
        with pytest.raises(error):
            mem.search_similar("none", query)


@pytest.mark.parametrize(
    "options",
    [
        {"k": 0},
        {"k": -1},
        {"k": True},
        {"k": 2.0},
        {"min_score": "high"},
        {"min_score": True},
        {"where": {"$bad": 1}},
        {"where": {"m": {"$gt": [1]}}},
        {"since": "yesterday"},
    ],
)
def test_options_that_are_refused(mem: Memory, options: dict[str, Any]) -> None:
    mem.put(NS, "k", 1, vector=[1, 0])
    with pytest.raises(InvalidArgument):
        mem.search_similar(NS, [1, 0], **options)
    with pytest.raises(InvalidArgument):
        mem.search_many(NS, [[1, 0]], **options)


def test_texts_and_vectors_are_not_mixed(mem: Memory) -> None:
    mem.put(NS, "k", 1, text="hello")
    with pytest.raises(InvalidArgument, match="not both"):
        mem.search_many(NS, ["hello", [1.0] * 64])


def test_a_namespace_s_dimension_and_metric_are_fixed(mem: Memory) -> None:
    mem.create_namespace(NS)
    mem.create_namespace(NS, dimension=3, metric="euclidean")
    mem.create_namespace(NS, dimension=3, metric="euclidean")
    mem.create_namespace(NS, dimension=3)
    mem.create_namespace(NS)
    with pytest.raises(DimensionMismatch):
        mem.create_namespace(NS, dimension=4)
    with pytest.raises(InvalidArgument):
        mem.create_namespace(NS, dimension=3, metric="dot")
    for refused in ({"dimension": 0}, {"dimension": True}, {"metric": "dot"}, {"dimension": 3, "metric": "manhattan"}):
        with pytest.raises(InvalidArgument):
            mem.create_namespace(NS, **refused)
    mem.put(NS, "k", 1, vector=[0, 0, 0])
    with pytest.raises(DimensionMismatch):
        mem.put(NS, "k", 1, vector=[0, 0])
    with pytest.raises(DimensionMismatch):
        mem.update(NS, "k", vector=[0, 0])
    assert mem.search_similar(NS, [3, 4, 0])[0].score == -5.0


def test_the_metric_of_the_configuration_is_the_one_of_new_namespaces(tmp_path: Path) -> None:
    config = Config(cold=INLINE, vector=tiermem.VectorConfig(metric="dot"))
    with tiermem.open(tmp_path / "store", config=config) as mem:
        mem.put(NS, "k", 1, vector=[3, 4])
        mem.put(NS, "zero", 1, vector=[0, 0])
        assert mem.search_similar(NS, [1, 1])[0].score == 7.0
    with tiermem.open(tmp_path / "store", config=Config(cold=INLINE)) as mem:
        assert mem.search_similar(NS, [1, 1])[0].score == 7.0
        assert mem.stats().vectors[NS].metric == "dot"


# ----------------------------------------------------------------------------------------------------------------- text


@each_state
def test_text(mem: Memory, settle: Callable[[Memory], None]) -> None:
    texts = {
        "rates": "the central bank raised interest rates",
        "oil": "crude oil prices fell on weak demand",
        "merger": "the merger of two insurance companies was approved",
    }
    for key, text in texts.items():
        mem.put("notes", key, text, text=text)
    settle(mem)
    assert keys(mem.search_similar("notes", "interest rates of the bank", k=1)) == ["rates"]
    assert keys(mem.search_similar("notes", "oil demand", k=1)) == ["oil"]
    assert [keys(hits) for hits in mem.search_many("notes", ["insurance merger", "crude"], k=1)] == [
        ["merger"],
        ["oil"],
    ]
    (hit,) = mem.search_similar("notes", texts["oil"], k=1)
    assert hit.score == pytest.approx(1.0)
    record = mem.get_record("notes", "oil")
    assert record is not None
    assert record.vector is not None
    assert record.vector.shape == (64,)
    key = mem.append("stream", 1, text="crude oil")
    with mem.batch() as batch:
        batch.put("notes", "batch", 1, text="copper")
        batch.append("stream", 2, text="copper")
    assert keys(mem.search_similar("stream", "crude oil", k=1)) == [key]
    assert keys(mem.search_similar("notes", "copper", k=1)) == ["batch"]
    assert len(mem.search_similar("**", "oil", k=99)) == 6
    # A vector of one's own may stand beside embedded ones, and a text may ask for vectors of one's own.
    mem.put("notes", "raw", 1, vector=record.vector)
    assert keys(mem.search_similar("notes", texts["oil"], k=2)) == ["oil", "raw"]


def test_the_model_is_kept_with_the_namespace(mem: Memory, tmp_path: Path, clock: SimulatedClock) -> None:
    vector = tiermem.HashEmbedder(64).embed(["hello"])[0]
    mem.put("raw", "k", 1, vector=vector)
    mem.put("notes", "k", 1, text="hello")
    mem.close()
    for embedder in (tiermem.HashEmbedder(32), tiermem.HashEmbedder(64)):
        if embedder.dimension == 64:
            embedder.model = "another"
        with tiermem.open(tmp_path / "store", clock=clock, embedder=embedder) as other:
            with pytest.raises(tiermem.EmbedderMismatch, match="tiermem-hash-64"):
                other.put("notes", "z", 1, text="hello")
            with pytest.raises(tiermem.EmbedderMismatch):
                other.search_similar("notes", "hello")
            assert keys(other.search_similar("notes", vector)) == ["k"]
    with tiermem.open(tmp_path / "store", clock=clock, embedder=tiermem.HashEmbedder(64)) as again:
        assert keys(again.search_similar("notes", "hello")) == ["k"]
        assert keys(again.search_similar("raw", "hello")) == ["k"]
        again.put("raw", "t", 1, text="hello")
        assert keys(again.search_similar("raw", "hello")) == ["k", "t"]


def test_refused_texts(mem: Memory, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="not both"):
        mem.put(NS, "k", 1, text="hello", vector=[1, 2])
    with pytest.raises(InvalidArgument, match="str"):
        mem.put(NS, "k", 1, text=b"hello")
    assert mem.namespaces() == []
    with tiermem.open(tmp_path / "plain") as plain:
        with pytest.raises(InvalidArgument, match="embedder"):
            plain.put(NS, "k", 1, text="hello")
        with pytest.raises(InvalidArgument, match="embedder"):
            plain.search_similar(NS, "hello")


# --------------------------------------------------------------------------------------------------------- the embedder


def test_the_hash_embedder() -> None:
    embedder = tiermem.HashEmbedder(32)
    assert (embedder.dimension, embedder.model) == (32, "tiermem-hash-32")
    texts = ["Crude oil", "crude OIL!", "oil crude", "", "...", "bank rates", "été", "\ud800 lone"]
    rows = embedder.embed(texts)
    assert (rows.shape, rows.dtype) == ((8, 32), np.float32)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-6)
    assert np.array_equal(rows[0], rows[1])
    assert np.allclose(rows[0], rows[2], atol=1e-6)
    assert rows[3].tolist() == rows[4].tolist() == [1.0] + [0.0] * 31
    assert np.array_equal(rows, tiermem.HashEmbedder(32).embed(texts))
    assert embedder.embed([]).shape == (0, 32)
    assert rows[0] @ rows[1] > rows[0] @ rows[5]
    wide = tiermem.HashEmbedder(512)
    alike, unlike = wide.embed(["the merger was approved", "the mergers were approved", "crude oil"]), 0.5
    assert alike[0] @ alike[1] > unlike > alike[0] @ alike[2]
    for refused in (1, 0, -5):
        with pytest.raises(InvalidArgument):
            tiermem.HashEmbedder(refused)


# ---------------------------------------------------------------------------------------------- vectors on their way in

numbers = st.sampled_from([0.0, -0.0, 1e-45, 1e-30, 1.0, -2.5, 1e30, 3.4e38, math.nan, math.inf, -math.inf])


@each_metric
def test_columns_are_checked_as_each_vector_is(tmp_path: Path, metric: str) -> None:
    config = Config(cold=INLINE, vector=tiermem.VectorConfig(metric=metric))
    with tiermem.open(tmp_path / "store", config=config) as mem:
        store, space = mem._store, mem._store.space(NS)

        def outcome(prepared: Callable[[], list[bytes]]) -> list[bytes] | str:
            try:
                return prepared()
            except InvalidVector as exc:
                return str(exc)

        @given(rows=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=4))
        def check(rows: list[tuple[float, float]]) -> None:
            alone = outcome(lambda: [search.prepare(store, space, row) for row in rows])
            assert outcome(lambda: search.matrix_bytes(store, space, rows)) == alone

        check()


@pytest.mark.parametrize("at", [1, 2])
def test_what_is_known_of_a_namespace_is_forgotten_under_a_search(
    mem: Memory, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    mem.put("n", "k", 1, vector=[1.0, 0.0])
    mem.flush()
    space = mem._current().space("n")
    whole = indexing.describe
    asked = 0

    def describe(*args: Any) -> Any:
        # As when it comes to light that another process has dropped the namespace, and filled it anew.
        nonlocal asked
        asked += 1
        known = whole(*args)
        if asked == at:
            space.forget()
        return known

    monkeypatch.setattr(indexing, "describe", describe)
    for _ in range(2):
        assert keys(mem.search_similar("n", [1.0, 0.0])) == ["k"]
    assert asked >= 2
