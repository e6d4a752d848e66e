"""Segments: sealed in the background, in a process of its own; and what becomes of them, and of their files."""

from __future__ import annotations

import errno
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiermem
from tests.workers import INLINE, Peer
from tiermem import Config, CorruptionError, InvalidArgument, Item, Memory, VectorConfig
from tiermem.engine import builder, lanes, publishing, segments
from tiermem.engine.indexing import Indexing
from tiermem.engine.lanes import Lane
from tiermem.engine.workshop import Workshop
from tiermem.policy import merging, planner
from tiermem.tiers.cold import ColdEnv, sealed
from tiermem.tiers.vector import shelf
from tiermem.tiers.vector.faiss_engine import FaissEngine
from tiermem.tiers.vector.rowfile import RowFile

NS = "desk/obs"
DEADLINE = 60.0
ROWS = 1_200
"""Enough for a graph."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Callable[..., Memory]]:
    """`store(seal_rows=...)`: the store in `tmp_path`, opened; seals in this process, and only where told to."""
    opened: list[Memory] = []

    def make(name: str = "store", cold: tiermem.ColdConfig = INLINE, **vector: Any) -> Memory:
        config = Config(cold=cold, vector=VectorConfig(**{"engine": FaissEngine(), "seal_rows": 10**6, **vector}))
        opened.append(tiermem.open(tmp_path / name, config=config))
        return opened[-1]

    yield make
    for mem in opened:
        mem.close()


def fill(mem: Memory, name: str = NS, rows: int = ROWS, seed: int = 1) -> np.ndarray[Any, Any]:
    """Put random vectors under k0, k1, …; those."""
    matrix = np.random.default_rng(seed).standard_normal((rows, 16)).astype(np.float32)
    metadatas = [{"n": number % 7} for number in range(rows)]
    mem.put_many(
        name, keys=[f"k{number}" for number in range(rows)], values=range(rows), vectors=matrix, metadatas=metadatas
    )
    return matrix


def eventually(holds: Callable[[], bool]) -> None:
    limit = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.02)


def answers(mem: Memory, matrix: np.ndarray[Any, Any], name: Any = NS, **options: Any) -> list[list[tuple[str, float]]]:
    found = mem.search_many(name, matrix[:20], k=10, **options)
    return [[(hit.key, hit.score) for hit in hits] for hits in found]


def alike(mem: Memory, matrix: np.ndarray[Any, Any], **options: Any) -> bool:
    """Whether a broad search finds what comparing every row finds; where there is a graph, it is walked."""
    with pytest.MonkeyPatch.context() as patch:
        # Else so broad a walk is more than comparing the few rows there are.
        patch.setattr(planner, "FEW", 0)
        patch.setattr(planner, "WIDEST", 10**9)
        walked = answers(mem, matrix, effort=2_000, **options)
    return walked == answers(mem, matrix, exact=True, **options)


def files(path: Path, name: str = "store") -> list[Path]:
    return sorted(found for found in (path / name / "segments").iterdir() if found.suffix != ".lock")


def seal_more(mem: Memory, matrix: np.ndarray) -> None:
    """A second segment, a quarter as large as the one that `fill` makes."""
    for row in range(ROWS // 4):
        mem.put(NS, f"more{row}", row, vector=matrix[row] * 2)
    mem.flush()
    mem._store.sealer._make(NS, [], unsealed=True)


def seal_few(mem: Memory, name: str, start: int) -> None:
    """A segment of 20 rows of one point, from key number `start`."""
    for row in range(start, start + 20):
        mem.put(name, f"k{row}", row, vector=np.ones(4, np.float32))
    mem.flush()
    with mem._store.sealer._exclusively("seal", DEADLINE):
        mem._store.sealer._make(name, [], unsealed=True)


def vectors_of(mem: Memory, name: str = NS) -> Any:
    return mem.stats().vectors[name]


def test_vectors_are_sealed_in_the_background(tmp_path: Path, store: Callable[..., Memory]) -> None:
    mem = store(engine="faiss", seal_rows=2_000, cold=tiermem.ColdConfig(sync_interval=0.01))
    matrix = fill(mem, rows=3_000)
    before = answers(mem, matrix)
    assert vectors_of(mem).tail in (0, 3_000)
    eventually(lambda: vectors_of(mem).vector_backlog == 0 and vectors_of(mem).tail == 0)
    known = vectors_of(mem)
    assert (known.segments, known.rows, known.tail, known.tombstones) == (1, 3_000, 0, 0)
    assert [found.suffix for found in files(tmp_path)] == [".graph", ".rows"]
    assert mem.stats().degraded == ()
    (part,) = mem._store.spaces[NS].index.parts
    assert part.segment.graph is not None
    assert answers(mem, matrix, exact=True) == before
    assert alike(mem, matrix)
    assert alike(mem, matrix, where={"n": {"$lt": 4}})
    close = answers(mem, matrix)
    assert sum(hit in right for hits, right in zip(close, before, strict=True) for hit in hits) > 0.9 * 200
    # What is written stands at once.
    mem.put(NS, "k0", "anew", vector=matrix[1])
    mem.delete(NS, "k1")
    mem.put(NS, "k2", "bare")
    mem.update(NS, "k3", metadata={"n": 99})
    (best, *_) = mem.search_similar(NS, matrix[1])
    assert (best.key, best.value) == ("k0", "anew")
    assert best.score == pytest.approx(1.0)
    assert mem.search_similar(NS, matrix[3], 1, where={"n": 99})[0].key == "k3"
    assert not {"k1", "k2"} & {hit.key for hit in mem.search_similar(NS, matrix[1], 3_000)}
    known = vectors_of(mem)
    assert (known.rows, known.tail, known.tombstones, known.segments) == (2_998, 2, 4, 1)
    mem.flush()
    assert vectors_of(mem).vector_backlog == 4
    assert mem.check().ok
    after = answers(mem, matrix, effort=2_000)
    mem.close()
    mem = store()
    assert answers(mem, matrix, effort=2_000) == after
    assert (vectors_of(mem).segments, vectors_of(mem).tail) == (1, 2)


def test_build_index_tells_how_far_it_is(store: Callable[..., Memory]) -> None:
    mem = store(engine="faiss")
    matrix = fill(mem)
    told: list[tuple[int, int]] = []
    mem.build_index(NS, lambda done, total: told.append((done, total)))
    assert told[-1] == (ROWS, ROWS)
    assert told == sorted(told)
    assert (vectors_of(mem).segments, vectors_of(mem).vector_backlog) == (1, 0)
    told.clear()
    mem.namespace(NS).build_index(lambda done, total: told.append((done, total)))
    assert told == []
    mem.delete(NS, "k7")
    mem.build_index(NS, lambda done, total: told.append((done, total)))
    assert told[-1] == (ROWS - 1, ROWS - 1)
    assert alike(mem, matrix)
    assert (vectors_of(mem).segments, vectors_of(mem).tombstones) == (1, 0)
    for number in range(ROWS):
        mem.delete(NS, f"k{number}")
    mem.build_index(NS)
    assert answers(mem, matrix) == [[]] * 20
    assert (vectors_of(mem).segments, vectors_of(mem).vector_backlog) == (0, 0)
    assert mem.check().ok


def test_an_error_of_the_callback_is_the_callers_and_publishes_nothing(
    tmp_path: Path, store: Callable[..., Memory]
) -> None:
    def refuse(done: int, total: int) -> None:
        raise ZeroDivisionError

    for engine in ("faiss", FaissEngine("flat")):
        mem = store(engine=engine)
        matrix = fill(mem)
        with pytest.raises(ZeroDivisionError):
            mem.build_index(NS, refuse)
        assert vectors_of(mem).segments == 0
        assert alike(mem, matrix)
        mem.compact()
        assert files(tmp_path) == []
        mem.close()


class Slow(FaissEngine):
    """Builds once it is let to."""

    def __init__(self) -> None:
        super().__init__("flat")
        self.began, self.go = threading.Event(), threading.Event()

    def build(self, *arguments: Any, **options: Any) -> None:
        self.began.set()
        assert self.go.wait(DEADLINE)
        super().build(*arguments, **options)


def beside(mem: Memory, engine: Slow, meanwhile: Callable[[], None]) -> None:
    """Do something while a segment is being built."""
    engine.began.clear()
    engine.go.clear()
    with ThreadPoolExecutor(1) as pool:
        built = pool.submit(mem.build_index, NS)
        try:
            eventually(lambda: engine.began.is_set() or built.done())
            assert not built.done()
            meanwhile()
        finally:
            engine.go.set()
        built.result()


def test_what_is_written_beside_a_build_stands(store: Callable[..., Memory]) -> None:
    engine = Slow()
    mem = store(engine=engine)
    matrix = fill(mem)

    def meanwhile() -> None:
        mem.put(NS, "k0", 0, vector=matrix[1])
        mem.delete(NS, "k1")
        mem.put(NS, "new", 0, vector=matrix[2])
        mem.flush()
        mem.put(NS, "late", 0, vector=matrix[2])
        mem.delete(NS, "k5")
        assert [hit.key for hit in mem.search_similar(NS, matrix[2], 3)] == ["k2", "late", "new"]

    for _ in range(2):
        # First of what is unsealed, then with a segment as input.
        beside(mem, engine, meanwhile)
        assert [hit.key for hit in mem.search_similar(NS, matrix[2], 3)] == ["k2", "late", "new"]
        assert mem.search_similar(NS, matrix[1], 1)[0].key == "k0"
        assert {"k1", "k5"}.isdisjoint(hit.key for hit in mem.search_similar(NS, matrix[2], 2 * ROWS))
        mem._store.spaces[NS].index = None
        assert [hit.key for hit in mem.search_similar(NS, matrix[2], 3)] == ["k2", "late", "new"]
        assert len(mem.search_similar(NS, matrix[2], 2 * ROWS)) == ROWS
        assert mem.check().ok


def test_a_namespace_dropped_beside_a_build_stays_dropped(tmp_path: Path, store: Callable[..., Memory]) -> None:
    engine = Slow()
    mem = store(engine=engine)
    matrix = fill(mem)

    def meanwhile() -> None:
        mem.drop_namespace(NS)
        mem.put(NS, "k0", 0, vector=matrix[1])

    for _ in range(2):
        beside(mem, engine, meanwhile)
        assert answers(mem, matrix[:1]) == [[("k0", pytest.approx(mem.search_similar(NS, matrix[0])[0].score))]]
        assert (vectors_of(mem).segments, files(tmp_path)) == (0, [])
        assert mem.check().ok
        fill(mem)
        engine.go.set()
        mem.build_index(NS)
        mem.put(NS, "more", 0, vector=matrix[1])


def test_what_is_withdrawn_beside_a_build_is_found(store: Callable[..., Memory]) -> None:
    engine = Slow()
    mem = store(engine=engine)
    matrix = fill(mem)
    engine.go.set()
    mem.build_index(NS)
    mem.put(NS, "more", 0, vector=matrix[1])
    beside(mem, engine, lambda: mem._store.sealer.withdraw(NS))
    mem._store.spaces[NS].index = None
    assert len(mem.search_similar(NS, matrix[0], 2 * ROWS)) == ROWS + 1
    assert mem.check().ok


@pytest.mark.parametrize("loaded", [True, False], ids=["taken up", "loaded"])
def test_what_is_written_while_segments_are_opened_is_found(
    store: Callable[..., Memory], monkeypatch: pytest.MonkeyPatch, loaded: bool
) -> None:
    mem = store()
    matrix = fill(mem, rows=100)
    published = Indexing._published
    number = 0

    def beside(self: Indexing, *asked: Any) -> Any:
        nonlocal number
        found = published(self, *asked)
        number += 1
        mem.put(NS, f"late{number}", 1, vector=matrix[0])
        mem.delete(NS, f"k{number}")
        if number % 2:
            mem.flush()
        return found

    monkeypatch.setattr(Indexing, "_published", beside)
    for _ in range(4):
        if loaded:
            mem.search_similar(NS, matrix[0])
            mem.put(NS, "more", 1, vector=matrix[1])
            mem.build_index(NS)
        else:
            mem._store.spaces[NS].index = None
        found = {hit.key for hit in mem.search_similar(NS, matrix[0], 1_000)}
        late, gone = {f"late{at}" for at in range(1, number + 1)}, {f"k{at}" for at in range(1, number + 1)}
        assert found - {"more"} == {f"k{at}" for at in range(100)} - gone | late
    assert number >= 4


def test_a_namespace_dropped_while_segments_are_opened_stays_dropped(
    store: Callable[..., Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    mem = store()
    matrix = fill(mem, rows=100)
    mem.build_index(NS)
    mem._store.spaces[NS].index = None
    published = Indexing._published

    def beside(self: Indexing, *asked: Any) -> Any:
        found = published(self, *asked)
        mem.drop_namespace(NS)
        mem.put(NS, "k0", 1, vector=matrix[1])
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Indexing, "_published", beside)
        mem.search_similar(NS, matrix[0], 1_000)
    assert [hit.key for hit in mem.search_similar(NS, matrix[0], 1_000)] == ["k0"]


@pytest.mark.parametrize(
    ("unsealed", "again"),
    [(True, False), (False, False), (True, True), (False, True)],
    ids=["all merged", "the others merged", "sealed thrice", "sealed again"],
)
def test_a_segment_whose_keys_were_not_yet_settled_is_whole(
    store: Callable[..., Memory], monkeypatch: pytest.MonkeyPatch, unsealed: bool, again: bool
) -> None:
    """As after a crash between publishing and settling, or where a merge comes in between."""
    mem = store(engine=FaissEngine("flat"))
    matrix = fill(mem, rows=100)
    mem.build_index(NS)
    matrix[50:] = fill(mem, rows=100, seed=2)[50:]
    mem.put_many(NS, keys=[f"k{number}" for number in range(50)], values=range(50), vectors=matrix[:50])
    mem.flush()
    sealer = mem._store.sealer
    with monkeypatch.context() as patch:
        patch.setattr(sealed, "settle", lambda *_: None)
        sealer._make(NS, [], unsealed=True)
        assert vectors_of(mem).vector_backlog == 100
        assert alike(mem, matrix)
        if unsealed:
            # Sealed twice: one of the two is dead.
            sealer._make(NS, [], unsealed=True)
    with mem._store.cold.read() as snapshot:
        info = snapshot.info(NS)
        assert info is not None
        inputs = list(snapshot.segments(info.prefix))
    sealer._make(NS, [], unsealed=True) if again else sealer._make(NS, inputs, unsealed=unsealed)
    assert vectors_of(mem).segments == (1 + len(inputs) if again else 1)
    for _ in range(2):
        mem._store.spaces[NS].index = None
        assert len(mem.search_similar(NS, matrix[0], 200)) == 100
        assert alike(mem, matrix)
        assert mem.check().ok
        mem.build_index(NS)
        assert (vectors_of(mem).vector_backlog, vectors_of(mem).segments) == (0, 1)


def test_what_is_withdrawn_as_soon_as_it_is_published_is_found(
    store: Callable[..., Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    mem = store()
    matrix = fill(mem, rows=100)
    swap = publishing._swap

    def beside(store: Any, *arguments: Any) -> bool:
        done = swap(store, *arguments)
        store.sealer.withdraw(NS)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(publishing, "_swap", beside)
        mem.build_index(NS)
    assert (vectors_of(mem).segments, vectors_of(mem).vector_backlog) == (0, 100)
    mem._store.spaces[NS].index = None
    assert len(mem.search_similar(NS, matrix[0], 200)) == 100
    assert mem.check().ok


def test_closing_beside_a_build_loses_nothing(tmp_path: Path, store: Callable[..., Memory]) -> None:
    mem = store(engine="faiss", seal_rows=1_000, m=64, ef_construction=2_000)
    matrix = fill(mem)
    before = answers(mem, matrix)
    mem._store.sealer.wake(NS)
    sealer = mem._store.sealer
    eventually(lambda: bool(sealer._workshop._children) or vectors_of(mem).segments > 0)
    mem.close()
    assert sealer._workshop._children == set()
    mem = store()
    assert answers(mem, matrix, exact=True) == before
    assert mem.check().ok
    mem.build_index(NS)
    assert answers(mem, matrix, exact=True) == before
    mem._store.sealer.sweep()
    assert len(files(tmp_path)) == 2


def test_a_store_that_is_only_read_searches_segments_and_builds_none(
    tmp_path: Path, store: Callable[..., Memory]
) -> None:
    mem = store()
    matrix = fill(mem)
    mem.build_index(NS)
    mem.put_many(NS, keys=["a", "b"], values=[1, 2], vectors=matrix[:2])
    before = answers(mem, matrix, effort=2_000)
    mem.close()
    config = Config(cold=INLINE, vector=VectorConfig(seal_rows=16))
    kept = files(tmp_path)
    with tiermem.open(tmp_path / "store", config=config, read_only=True) as mem:
        assert answers(mem, matrix, effort=2_000) == before
        assert (vectors_of(mem).segments, vectors_of(mem).tail) == (1, 2)
        with pytest.raises(tiermem.ReadOnlyError):
            mem.build_index(NS)
        assert mem.check().ok
    assert files(tmp_path) == kept


def test_several_namespaces_are_searched_as_one(tmp_path: Path, store: Callable[..., Memory]) -> None:
    mem = store()
    matrices = [fill(mem, name, ROWS, seed) for seed, name in enumerate(["n/a", "n/b"])]
    before = answers(mem, matrices[0], "n/*")
    mem.build_index("n/a")
    assert answers(mem, matrices[0], "n/*", effort=2_000) == before
    mem.build_index("n/b")
    for number in range(0, ROWS, 3):
        mem.put("n/b", f"k{number}", 0, vector=matrices[1][number])
    assert answers(mem, matrices[0], "n/*", effort=2_000) == before
    assert {hit.namespace for hit in mem.search_similar("n/*", matrices[0][0], 100)} == {"n/a", "n/b"}
    assert len(files(tmp_path)) == 4
    mem.drop_namespace("n/a")
    assert len(files(tmp_path)) == 2
    assert answers(mem, matrices[0], "n/*", effort=2_000) == answers(mem, matrices[0], "n/b", exact=True)
    assert mem.check().ok


def test_a_store_that_another_process_compacts_while_a_segment_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the builder was to read is gone before it has opened it: it reads what took its place."""
    whole = Workshop.run
    compacted = []
    config = Config(vector=VectorConfig(seal_rows=10**6))
    with tiermem.open(tmp_path / "store", config=config) as mem:
        matrix = fill(mem)

        def run(self: Workshop, *job: Any) -> Any:
            if not compacted:
                other = Peer(tmp_path / "store")
                compacted.append(other.compact())
                assert other.leave() == 0
            return whole(self, *job)

        monkeypatch.setattr(Workshop, "run", run)
        mem.build_index(NS)
        assert mem.stats().generation == 2
        assert mem.stats().vectors[NS].segments == 1
        assert mem.search_similar(NS, matrix[7], k=1)[0].key == "k7"
        assert mem.check().ok


def test_compaction_shrinks_segments_that_hold_many_tombstones(tmp_path: Path, store: Callable[..., Memory]) -> None:
    mem = store()
    matrix = fill(mem)
    mem.build_index(NS)
    mem.delete_many(NS, [f"k{number}" for number in range(0, ROWS, 5)])
    mem.delete_many(NS, [f"k{number}" for number in range(1, ROWS, 5)])
    before = answers(mem, matrix, exact=True)
    size = sum(path.stat().st_size for path in files(tmp_path))
    assert mem.compact() > 0
    assert sum(path.stat().st_size for path in files(tmp_path)) < size * 0.7
    known = vectors_of(mem)
    assert (known.segments, known.vector_backlog, known.tombstones) == (1, 0, 0)
    assert answers(mem, matrix, effort=2_000) == before
    assert mem.check().ok


def test_a_backup_carries_the_segments(tmp_path: Path, store: Callable[..., Memory]) -> None:
    mem = store()
    matrix = fill(mem)
    mem.build_index(NS)
    mem.put(NS, "more", 1, vector=matrix[0])
    before = answers(mem, matrix, effort=2_000)
    mem.backup(tmp_path / "copy")
    assert [path.name for path in files(tmp_path, "copy")] == [path.name for path in files(tmp_path)]
    copy = store("copy")
    assert (vectors_of(copy).segments, vectors_of(copy).vector_backlog) == (1, 1)
    assert answers(copy, matrix, effort=2_000) == before
    assert copy.check().ok


def test_a_backup_carries_what_is_published_while_it_begins(
    tmp_path: Path, store: Callable[..., Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    mem = store()
    matrix = fill(mem)
    mem.build_index(NS)
    copied = ColdEnv.copy

    def beside(self: ColdEnv, folder: Path) -> None:
        mem.put(NS, "more", 1, vector=matrix[0])
        mem.build_index(NS)
        copied(self, folder)

    with monkeypatch.context() as patch:
        patch.setattr(ColdEnv, "copy", beside)
        mem.backup(tmp_path / "copy")
    copy = store("copy")
    assert (vectors_of(copy).segments, vectors_of(copy).vector_backlog) == (1, 0)
    assert answers(copy, matrix, exact=True) == answers(mem, matrix, exact=True)
    assert [path.name for path in files(tmp_path, "copy")] == [path.name for path in files(tmp_path)]


@pytest.mark.parametrize("suffix", [".rows", ".graph"])
@pytest.mark.parametrize("damage", ["a byte", "the end", "gone"])
def test_a_damaged_segment_costs_time_and_no_answer(
    tmp_path: Path, store: Callable[..., Memory], suffix: str, damage: str
) -> None:
    mem = store()
    matrix = fill(mem)
    mem.build_index(NS)
    before = answers(mem, matrix, exact=True)
    mem.close()
    (path,) = [found for found in files(tmp_path) if found.suffix == suffix]
    raw = path.read_bytes()
    path.unlink()
    if damage != "gone":
        # In place of the file, since others may have mapped it.
        path.write_bytes(raw[:-9] if damage == "the end" else raw[:4_000] + bytes([raw[4_000] ^ 1]) + raw[4_001:])
    mem = store()
    mem.backup(tmp_path / "copy")
    copy = store("copy")
    assert (vectors_of(copy).segments, vectors_of(copy).vector_backlog) == (0, ROWS)
    assert answers(copy, matrix) == before
    assert copy.check().ok
    report = mem.check()
    assert all(problem.startswith("segments of") for problem in report.problems)
    assert not report.ok
    assert answers(mem, matrix, exact=True) == before
    assert answers(mem, matrix, effort=2_000) == before
    report = mem.check(repair=True)
    assert report.ok
    mem.build_index(NS)
    assert (vectors_of(mem).segments, vectors_of(mem).vector_backlog) == (1, 0)
    assert answers(mem, matrix, effort=2_000) == before
    assert mem.stats().degraded == ()


def test_a_damaged_segment_is_built_anew_by_itself(tmp_path: Path, store: Callable[..., Memory]) -> None:
    mem = store()
    matrix = fill(mem)
    mem.build_index(NS)
    before = answers(mem, matrix, exact=True)
    mem.close()
    rows = next(found for found in files(tmp_path) if found.suffix == ".rows")
    raw = rows.read_bytes()
    rows.unlink()
    rows.write_bytes(bytes([raw[0] ^ 1]) + raw[1:])
    mem = store(seal_rows=1_000)
    assert answers(mem, matrix, exact=True) == before

    def mended() -> bool:
        assert answers(mem, matrix, exact=True) == before
        known = vectors_of(mem)
        return (known.segments, known.vector_backlog, known.tail, mem.stats().degraded) == (1, 0, 0, ())

    eventually(mended)
    mem.compact()
    assert not rows.exists()
    assert mended()
    assert mem.check().ok


# What cannot be meant.


@pytest.mark.parametrize("effort", [0, -1, True, 1.5, "x", [64]])
def test_an_effort_is_a_positive_int(store: Callable[..., Memory], effort: Any) -> None:
    mem = store()
    mem.put(NS, "k", 1, vector=[1, 0])
    with pytest.raises(InvalidArgument, match="effort"):
        mem.search_similar(NS, [1, 0], effort=effort)
    with pytest.raises(InvalidArgument, match="effort"):
        mem.namespace(NS).search_many([[1, 0]], effort=effort)


@pytest.mark.parametrize(
    "given",
    [
        *({"engine": engine} for engine in ("", "scann", None, 5, FaissEngine, object())),
        *({"index": index} for index in ("", "hnswlib", None, 5, ["flat"])),
        *({"m": m} for m in (0, 1, True, 16.0, "16", None)),
        *({"ef_construction": breadth} for breadth in (0, -1, True, 128.0, None)),
        *({"seal_rows": rows} for rows in (0, 15, True, 8192.0, "many", None)),
    ],
    ids=lambda given: str(given).partition(" at 0x")[0],
)
def test_a_vector_config_says_what_is_wrong_with_it(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=f"VectorConfig.{next(iter(given))}"):
        VectorConfig(**given)


def test_only_a_namespace_that_is_there_has_an_index_built(tmp_path: Path, store: Callable[..., Memory]) -> None:
    mem = store()
    for name in ("", "/", "a//b", "x" * 1_000, None, 5, b"n"):
        with pytest.raises(tiermem.InvalidNamespace):
            mem.build_index(name)  # type: ignore[arg-type]  # wrong on purpose
    mem.build_index("absent")
    mem.put("bare", "k", 1)
    mem.build_index("bare")
    mem.create_namespace("empty", dimension=3)
    mem.build_index("empty")
    assert mem.namespaces() == ["bare", "empty"]
    mem.put(NS, "k", 1, vector=[1, 0])
    for progress in (5, "x", [print]):
        with pytest.raises(InvalidArgument, match="progress"):
            mem.build_index(NS, progress)  # type: ignore[arg-type]  # wrong on purpose
    assert [known.segments for known in mem.stats().vectors.values()] == [0, 0] or vectors_of(mem).segments == 0
    assert [hit.key for hit in mem.search_similar(NS, [1, 0])] == ["k"]


def test_a_process_that_cannot_open_a_segment_now_says_so_and_takes_nothing_back(
    store: Callable[..., Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    mem = store()
    matrix = fill(mem, rows=2_000)
    mem.build_index(NS)
    mem.close()
    mem = store()

    def lacking(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOMEM, "no room for another map")

    with monkeypatch.context() as patch:
        patch.setattr("tiermem.tiers.vector.rowfile.mmap.mmap", lacking)
        with pytest.raises(tiermem.StorageError, match="cannot be read"):
            mem.search_similar(NS, matrix[0])
    assert mem.search_similar(NS, matrix[0], k=1)[0].key == "k0"
    assert (vectors_of(mem).segments, vectors_of(mem).tail) == (1, 0)
    assert mem.stats().degraded == ()


def test_what_an_engine_learns_from_reaches_as_far_as_any_point(
    store: Callable[..., Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples: list[np.ndarray[Any, Any]] = []

    class Learning(FaissEngine):
        def build(self, *arguments: Any, **options: Any) -> None:
            samples.append(options["sample"])
            super().build(*arguments, **options)

    monkeypatch.setattr(builder, "_SAMPLE_BYTES", 100 * 16 * 4)
    mem = store(engine=Learning(), metric="euclidean")
    matrix = fill(mem)
    mem.put(NS, "far", 0, vector=np.linspace(-90, 90, 16))
    mem.build_index(NS)
    (sample,) = samples
    points = np.concatenate([matrix, [np.linspace(-90, 90, 16)]])
    points /= np.linalg.norm(points, axis=1).max()
    assert sample.shape == (102, 16)
    assert np.allclose(sample.min(axis=0), points.min(axis=0))
    assert np.allclose(sample.max(axis=0), points.max(axis=0))
    assert alike(mem, matrix)


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_a_graph_grows_as_long_as_all_its_rows_are_alive(store: Callable[..., Memory], metric: str) -> None:
    grown: list[int] = []

    class Growing(FaissEngine):
        def grow(self, known: Path, rows: int, *arguments: Any, **options: Any) -> bool:
            done = super().grow(known, rows, *arguments, **options)
            grown.append(rows if done else 0)
            return done

    mem = store(engine=Growing(), metric=metric)
    rng = np.random.default_rng(5)
    matrix, more = rng.standard_normal((ROWS, 16)), rng.standard_normal((300, 16)) * 9
    # The times are given: in another order the same rows make another graph, in which others may be hard to reach.
    mem.put_many(NS, [Item(f"k{row}", row, vector=vector, at=1e3 + row) for row, vector in enumerate(matrix)])
    mem.build_index(NS)
    # Before, between and behind the others in time, and the longest of all.
    for number, vector in enumerate(more):
        mem.put(NS, f"more{number}", number, vector=vector, at=850.5 + 5 * number)
    mem.build_index(NS)
    assert grown == [ROWS]
    assert vectors_of(mem).tail == 0
    assert alike(mem, matrix)
    for number in range(0, 300, 7):
        assert f"more{number}" in [hit.key for hit in mem.search_similar(NS, more[number], k=10)]
    # A row that is gone cannot be taken out of a graph, and one that was replaced is gone.
    mem.put(NS, "more7", 0, vector=more[8])
    mem.build_index(NS)
    assert grown == [ROWS]
    assert alike(mem, more)


@pytest.mark.parametrize(("index", "segments"), [("hnsw", 1), ("hnsw_sq8", 1), ("flat", 2), ("ivf", 2), ("ivfpq", 2)])
def test_only_what_grows_takes_up_much_smaller_segments(
    store: Callable[..., Memory], monkeypatch: pytest.MonkeyPatch, index: str, segments: int
) -> None:
    mem = store(engine=FaissEngine(index))
    matrix = fill(mem)
    sealer = mem._store.sealer
    mem.build_index(NS)
    seal_more(mem, matrix)
    assert vectors_of(mem).segments == 2
    looked_at: list[Path] = []
    verify = builder.verify_graph
    monkeypatch.setattr(builder, "verify_graph", lambda path, *rest: looked_at.append(path) or verify(path, *rest))
    sealer._tend(NS)
    assert vectors_of(mem).segments == segments
    # Where they are made one all the same, the graph that was there is of no use to what does not grow.
    mem.build_index(NS)
    assert vectors_of(mem).segments == 1
    assert len(looked_at) == 2 - segments


def test_what_is_sealed_is_taken_up_beside_a_large_merge(
    store: Callable[..., Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "FANOUT", 2)
    for name in ("YOUNG", "GROWN"):
        monkeypatch.setattr(merging, name, 400)
    mem = store(seal_rows=50)
    sealer = mem._store.sealer
    # Only what is called here seals and merges.
    monkeypatch.setattr(Lane, "wake", lambda lane, name: None)
    matrix = np.random.default_rng(1).standard_normal((1_200, 16)).astype(np.float32)

    def put(start: int, stop: int) -> None:
        for row in range(start, stop):
            mem.put(NS, f"k{row}", row, vector=matrix[row])
        mem.flush()

    for start in (0, 400):
        put(start, start + 400)
        sealer._tend(NS)
    assert vectors_of(mem).segments == 2
    reached, released = threading.Event(), threading.Event()
    jobs: list[tuple[int, int, int]] = []
    build = builder.build

    def slowly(env: Any, files: Any, job: builder.Job, *rest: Any) -> builder.Built:
        if len(job.inputs) == 2:
            reached.set()
            assert released.wait(DEADLINE)
        built = build(env, files, job, *rest)
        jobs.append((built.rows, len(job.inputs), job.nice))
        return built

    monkeypatch.setattr(builder, "build", slowly)
    with ThreadPoolExecutor(1) as pool:
        merged = pool.submit(sealer._merge, NS)
        assert reached.wait(DEADLINE)
        for start in range(800, 1_200, 100):
            put(start, start + 100)
            sealer._tend(NS)
            assert vectors_of(mem).segments == 3
        released.set()
        merged.result()
    # Sealing comes first, and is linked to what takes it up.
    assert jobs == [(100, 0, 12), (200, 1, 12), (300, 1, 12), (400, 1, 12), (800, 2, 19)]
    assert vectors_of(mem).segments == 2
    assert vectors_of(mem).tail == 0
    assert alike(mem, matrix)


def test_each_namespace_has_its_turn_to_be_sealed(
    store: Callable[..., Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    mem = store(engine=FaissEngine("flat"), seal_rows=16)
    sealer = mem._store.sealer
    vector = np.ones(4, np.float32)
    for name in ("desk/busy", "desk/other"):
        for row in range(20):
            mem.put(name, f"k{row}", row, vector=vector)
    mem.flush()
    order: list[str] = []
    build = builder.build

    def busy(env: Any, files: Any, job: builder.Job, *rest: Any) -> builder.Built:
        order.append(job.namespace)
        built = build(env, files, job, *rest)
        if job.namespace == "desk/busy" and "desk/other" not in order and len(order) < 10:
            # There is always more to do.
            for row in range(20):
                mem.put("desk/busy", f"more{len(order)}-{row}", row, vector=vector)
            mem.flush()
        return built

    monkeypatch.setattr(builder, "build", busy)
    sealer.wake("desk/busy")
    sealer.wake("desk/other")
    eventually(lambda: vectors_of(mem, "desk/other").vector_backlog == 0)
    eventually(lambda: vectors_of(mem, "desk/busy").vector_backlog == 0)
    assert order[:3].count("desk/other") == 1


def test_what_was_withdrawn_before_it_was_read_is_looked_at_anew(
    store: Callable[..., Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    mem = store(seal_rows=50)
    sealer = mem._store.sealer
    matrix = fill(mem)
    mem.build_index(NS)
    seal_more(mem, matrix)
    build = builder.build
    withdrawn: list[int] = []

    def late(env: Any, files: Any, job: builder.Job, *rest: Any) -> builder.Built:
        if job.inputs and not withdrawn:
            withdrawn.extend(job.inputs)
            sealer.withdraw(NS)
        return build(env, files, job, *rest)

    monkeypatch.setattr(builder, "build", late)
    sealer._tend(NS)
    assert len(withdrawn) == 2
    eventually(lambda: (vectors_of(mem).segments, vectors_of(mem).tail) == (1, 0))
    assert sealer.merging.failed == sealer.sealing.failed == {}
    assert mem.stats().degraded == ()
    assert alike(mem, matrix)


def test_what_is_due_is_done_after_others_have_been_at_it(
    store: Callable[..., Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    mem = store(engine=FaissEngine("flat"), seal_rows=16)
    sealer = mem._store.sealer
    vector = np.ones(4, np.float32)
    names = ["desk/seal", "desk/merge"]
    with sealer._exclusively("merge", DEADLINE), sealer._exclusively("seal", DEADLINE):
        for start in (0, 16):
            for name in names:
                for row in range(start, start + 16):
                    mem.put(name, f"k{row}", row, vector=vector)
            mem.flush()
            if not start:
                sealer._make("desk/merge", [], unsealed=True)
        sealer._make("desk/merge", [], unsealed=True)
        tried: set[str] = set()
        exclusively = sealer._exclusively
        monkeypatch.setattr(sealer, "_exclusively", lambda kind, *rest: tried.add(kind) or exclusively(kind, *rest))
        sealer.merging.wake("desk/merge")
        eventually(lambda: "merge" in tried)
        sealer._tidy = True
        sealer.sealing.wake("desk/seal")
        eventually(lambda: tried == {"seal", "merge"})
        # Both have found somebody at work.
    # Nobody asks again, nor searches.
    eventually(lambda: vectors_of(mem, "desk/seal").vector_backlog == 0)
    eventually(lambda: vectors_of(mem, "desk/merge").segments == 1)
    assert sealer.merging.failed == sealer.sealing.failed == {}


def test_what_failed_to_grow_is_tried_again(store: Callable[..., Memory], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "FIRST_REST", 0.05)
    mem = store(seal_rows=10**6)
    sealer = mem._store.sealer
    matrix = fill(mem)
    mem.build_index(NS)
    seal_more(mem, matrix)
    build = builder.build
    left = [2]

    def full(*arguments: Any) -> builder.Built:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return build(*arguments)

    monkeypatch.setattr(builder, "build", full)
    sealer.sealing.wake(NS)
    eventually(lambda: vectors_of(mem).segments == 1)
    eventually(lambda: mem.stats().degraded == ())
    assert left[0] < 0
    assert alike(mem, matrix)


def test_each_namespace_has_its_turn_to_be_merged(
    store: Callable[..., Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    mem = store(engine=FaissEngine("flat"))
    sealer = mem._store.sealer
    starts = itertools.count(0, 20)
    for name in ("desk/busy", "desk/other"):
        seal_few(mem, name, next(starts))
        seal_few(mem, name, next(starts))
    order: list[str] = []
    build = builder.build

    def busy(env: Any, files: Any, job: builder.Job, *rest: Any) -> builder.Built:
        built = build(env, files, job, *rest)
        if job.inputs:
            order.append(job.namespace)
            if job.namespace == "desk/busy" and "desk/other" not in order and len(order) < 10:
                # There is always more to do.
                seal_few(mem, "desk/busy", next(starts))
                seal_few(mem, "desk/busy", next(starts))
        return built

    monkeypatch.setattr(builder, "build", busy)
    with sealer._exclusively("merge", DEADLINE):
        sealer.merging.wake("desk/busy")
        sealer.merging.wake("desk/other")
    eventually(lambda: vectors_of(mem, "desk/other").segments == 1)
    assert order[:3].count("desk/other") == 1


@pytest.mark.parametrize("late", [False, True])
def test_an_index_is_built_though_its_segments_are_withdrawn_meanwhile(
    store: Callable[..., Memory], monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    mem = store()
    sealer = mem._store.sealer
    matrix = fill(mem)
    mem.build_index(NS)
    mem.put(NS, "more", 0, vector=matrix[0] * 2)
    build = builder.build
    withdrawn: list[int] = []

    def beside(env: Any, files: Any, job: builder.Job, *rest: Any) -> builder.Built:
        built = build(env, files, job, *rest) if late else None
        if not withdrawn:
            # As a repair in another process does, which holds no lock of those who build.
            withdrawn.extend(job.inputs)
            sealer.withdraw(NS)
        return built or build(env, files, job, *rest)

    monkeypatch.setattr(builder, "build", beside)
    mem.build_index(NS)
    assert len(withdrawn) == 1
    assert (vectors_of(mem).segments, vectors_of(mem).vector_backlog) == (1, 0)
    assert alike(mem, matrix)


def test_what_was_merged_while_damage_was_looked_for_is_not_damaged(
    store: Callable[..., Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    mem = store(engine=FaissEngine("flat"))
    sealer = mem._store.sealer
    for start in range(0, 60, 20):
        seal_few(mem, NS, start)
    with mem._store.cold.read() as snapshot:
        first, second, third = snapshot.segments(snapshot.info(NS).prefix)
    damaged = segments.damaged
    looks = 0

    def slowly(*arguments: Any) -> dict[int, str]:
        nonlocal looks
        looks += 1
        # The other lane is done with its own.
        sealer._make(NS, [second, third], unsealed=False)
        return damaged(*arguments)

    build = builder.build

    def spoilt(env: Any, files: Any, job: builder.Job, *rest: Any) -> builder.Built:
        if job.inputs == [first]:
            raise CorruptionError("a record of L3")
        return build(env, files, job, *rest)

    monkeypatch.setattr(segments, "damaged", slowly)
    monkeypatch.setattr(builder, "build", spoilt)
    with pytest.raises(CorruptionError, match="a record of L3"):
        sealer._make_or_condemn(NS, [first], unsealed=False, nice=19)
    assert looks == 1
    assert sealer.shelf.condemned == {}
    # And whoever finds that its own input is gone need not read the others.
    assert sealer._make_or_condemn(NS, [third], unsealed=False, nice=19) == -1
    assert looks == 1


def test_a_graph_that_is_gone_before_it_grows_is_no_failure(
    store: Callable[..., Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    mem = store()
    sealer = mem._store.sealer
    matrix = fill(mem)
    mem.build_index(NS)
    seal_more(mem, matrix)
    verify = builder.verify_graph

    def late(path: Path, *rest: Any) -> str:
        named = verify(path, *rest)
        monkeypatch.setattr(builder, "verify_graph", verify)
        # Another process merges both, and deletes their files.
        with mem._store.cold.read() as snapshot:
            inputs = list(snapshot.segments(snapshot.info(NS).prefix))
        sealer._make(NS, inputs, unsealed=False)
        return named

    monkeypatch.setattr(builder, "verify_graph", late)
    sealer._tend(NS)
    assert vectors_of(mem).segments == 1
    assert sealer.sealing.failed == {}
    assert alike(mem, matrix)


def test_a_damaged_graph_is_built_anew_from_its_rows(tmp_path: Path, store: Callable[..., Memory]) -> None:
    class Built(FaissEngine):
        def grow(self, *arguments: Any, **options: Any) -> bool:
            raise AssertionError("a damaged file reached the library")

    mem = store(engine=Built())
    matrix = fill(mem)
    mem.build_index(NS)
    (path,) = (found for found in files(tmp_path) if found.suffix == ".graph")
    # It is mapped: another file takes its place.
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)
    mem.put(NS, "more", 0, vector=matrix[0] * 2)
    mem.build_index(NS)
    assert mem.check().ok
    assert alike(mem, matrix)


@pytest.mark.parametrize("left", [0, 2**60])
def test_rows_are_read_one_by_one_only_where_memory_is_scarce(
    store: Callable[..., Memory], monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    scattered: list[int] = []
    monkeypatch.setattr(shelf, "room", lambda: left)
    whole = RowFile.scatter
    monkeypatch.setattr(RowFile, "scatter", lambda rows: (scattered.append(rows.number), whole(rows)))
    asked: list[int] = []
    prefetch = RowFile._prefetch
    monkeypatch.setattr(RowFile, "_prefetch", lambda file, rows: (asked.append(len(rows)), prefetch(file, rows)))
    mem = store()
    matrix = fill(mem)
    mem.build_index(NS)
    assert alike(mem, matrix)
    assert len(scattered) == (left == 0)
    # Those that are there are asked for all at once, before the first is read.
    assert bool(asked) == (left == 0)
    assert max(asked, default=10) >= 10
