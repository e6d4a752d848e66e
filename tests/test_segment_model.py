"""Segments: whatever was sealed, merged, damaged or copied, a search answers as if it compared every vector."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import tiermem
from tests.workers import INLINE, START
from tiermem import Config, Hit, SimulatedClock, VectorConfig
from tiermem.engine import builder
from tiermem.policy import planner
from tiermem.tiers.vector.faiss_engine import FaissEngine
from tiermem.tiers.vector.scores import exact_scores

DIMENSION = 4
METRICS = {"c": "cosine", "d": "dot", "e": "euclidean", "e/x": "euclidean"}
NAMES = list(METRICS)
KEYS = [f"k{number:02}" for number in range(48)]
DEADLINE = 60.0


class Row(NamedTuple):
    """What the model holds of a record."""

    vector: tuple[int, ...] | None
    metadata: dict[str, Any]
    at: float
    expires: float


class Query(NamedTuple):
    """A search; `until` counts from `since`."""

    vector: tuple[int, ...]
    k: int
    where: int
    since: float | None
    until: float | None
    floor: float | None
    exact: bool


WHERES: list[tuple[dict[str, Any] | None, Callable[[dict[str, Any]], bool]]] = [
    (None, lambda m: True),
    ({"side": "buy"}, lambda m: m.get("side") == "buy"),
    ({"n": {"$gte": 2}}, lambda m: m.get("n", -1) >= 2),
    ({"side": {"$exists": False}}, lambda m: "side" not in m),
    ({"n": 3, "side": "sell"}, lambda m: (m.get("n"), m.get("side")) == (3, "sell")),
]

names = st.sampled_from(NAMES)
vectors = st.tuples(*[st.integers(-3, 3)] * DIMENSION).filter(any)
metadatas = st.sampled_from([{}, {"side": "buy"}, {"side": "sell", "n": 3}, {"n": 1}, {"side": "buy", "n": 2}])
times = st.integers(0, 9).map(lambda number: START + number)
queries = st.builds(
    Query,
    vectors,
    k=st.sampled_from([1, 3, 10, 100]),
    where=st.integers(0, len(WHERES) - 1),
    since=st.none() | times,
    until=st.none() | times,
    floor=st.sampled_from([None, None, None, -1.0, 0.0, 0.5]),
    exact=st.booleans(),
)
writes = st.builds(
    lambda vector, metadata, at, ttl: (vector, metadata, at, ttl),
    st.none() | vectors | vectors | vectors,
    metadatas,
    times,
    st.sampled_from([None, None, None, 5.0]),
)


def matched(hits: list[Hit]) -> list[tuple[str, str]]:
    return [(hit.namespace, hit.key) for hit in hits]


class Machine(RuleBasedStateMachine):
    """A store whose small segments get graphs, against a dict of rows per namespace."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="tiermem-segments-"))
        self.path = self.folder / "store"
        self.copies = 0
        self.clock = SimulatedClock(START)
        self.rows: dict[str, dict[str, Row]] = {name: {} for name in NAMES}
        self.patch = pytest.MonkeyPatch()

    @initialize(
        graph=st.sampled_from(["hnsw", "flat", None]),
        seal_rows=st.sampled_from([16, 10_000]),
        seeds=st.lists(st.tuples(names, st.integers(0, 99), st.booleans()), max_size=6),
    )
    def begin(self, graph: Any, seal_rows: int, seeds: list[tuple[str, int, bool]]) -> None:
        self.graph = graph
        if graph is not None:
            self.patch.setattr(builder, "GRAPH_ROWS", 8)
            self.patch.setattr(planner, "FEW", 0)
            self.patch.setattr(planner, "WIDEST", 10**9)
        engine = FaissEngine(graph or "flat", m=8, ef_construction=40)
        self.config = Config(cold=INLINE, vector=VectorConfig(engine=engine, seal_rows=seal_rows))
        self.open()
        for name, metric in METRICS.items():
            self.mem.create_namespace(name, dimension=DIMENSION, metric=metric)
        for name, seed, sealed in seeds:
            generator = np.random.default_rng(seed)
            for number in range(0, len(KEYS), 1 + seed % 3):
                vector = (1 + number % 3, *generator.integers(-3, 4, DIMENSION - 1).tolist())
                ttl = 5.0 if seed % 4 == number % 4 == 0 else None
                self._put(name, KEYS[number], (vector, {"n": number % 5}, START + number % 10, ttl))
            if sealed:
                self.seal(name)

    def open(self) -> None:
        self.mem = tiermem.open(self.path, config=self.config, clock=self.clock)

    def live(self, name: str) -> dict[str, Row]:
        now = self.clock.now()
        return {key: row for key, row in self.rows[name].items() if row.expires > now}

    # Writes

    def _put(self, name: str, key: str, write: tuple[Any, ...]) -> None:
        vector, metadata, at, ttl = write
        self.mem.put(name, key, 1, vector=vector, metadata=metadata, at=at, ttl=ttl)
        expires = np.inf if ttl is None else self.clock.now() + ttl
        self.rows[name][key] = Row(vector, metadata, at, expires)

    @rule(name=names, key=st.sampled_from(KEYS), write=writes)
    def put(self, name: str, key: str, write: tuple[Any, ...]) -> None:
        self._put(name, key, write)

    @rule(name=names, given=st.lists(st.tuples(st.sampled_from(KEYS), writes), min_size=16, max_size=40))
    def put_many(self, name: str, given: list[tuple[str, tuple[Any, ...]]]) -> None:
        for key, write in given:
            self._put(name, key, write)

    @rule(name=names, key=st.sampled_from(KEYS), vector=st.none() | vectors, metadata=metadatas)
    def update(self, name: str, key: str, vector: Any, metadata: dict[str, Any]) -> None:
        row = self.live(name).get(key)
        if row is None:
            with pytest.raises(tiermem.RecordNotFound):
                self.mem.update(name, key, vector=vector)
        else:
            self.mem.update(name, key, vector=vector, metadata=metadata)
            self.rows[name][key] = row._replace(vector=vector, metadata=metadata)

    @rule(name=names, chosen=st.sets(st.sampled_from(KEYS), min_size=1, max_size=20))
    def delete(self, name: str, chosen: set[str]) -> None:
        self.mem.delete_many(name, sorted(chosen))
        for key in chosen:
            self.rows[name].pop(key, None)

    @rule(name=names)
    def drop(self, name: str) -> None:
        self.mem.drop_namespace(name)
        self.rows[name] = {}
        self.mem.create_namespace(name, dimension=DIMENSION, metric=METRICS[name])

    @rule(seconds=st.sampled_from([1.0, 4.0]))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    # What must change no answer

    @rule(name=names)
    def seal(self, name: str) -> None:
        sealer = self.mem._store.sealer
        self.mem.flush()
        with sealer._exclusively("seal", DEADLINE):
            sealer._make(name, [], unsealed=True)

    @rule(name=names, both=st.booleans())
    def merge(self, name: str, both: bool) -> None:
        sealer = self.mem._store.sealer
        with sealer._exclusively("merge", DEADLINE):
            with self.mem._store.cold.read() as snapshot:
                info = snapshot.info(name)
                assert info is not None
                published = sorted(snapshot.segments(info.prefix))
            if len(published) > both:
                sealer._make(name, published[: 1 + both], unsealed=False)

    @rule(name=names)
    def build_index(self, name: str) -> None:
        self.mem.build_index(name)
        found = self.mem.stats().vectors[name]
        assert found.vector_backlog == 0
        assert found.segments <= 1

    @rule(name=names)
    def forget(self, name: str) -> None:
        self.mem._store.spaces[name].index = None

    @rule(chore=st.sampled_from(["flush", "compact", "reopen", "check"]))
    def keep_house(self, chore: str) -> None:
        if chore == "flush":
            self.mem.flush()
        elif chore == "compact":
            self.mem.compact()
        elif chore == "check":
            report = self.mem.check()
            assert report.ok, str(report)
        else:
            self.mem.close()
            self.open()

    @rule()
    @precondition(lambda self: self.copies < 3)
    def move_to_a_backup(self) -> None:
        self.copies += 1
        path = self.mem.backup(self.folder / f"copy-{self.copies}")
        known = {name: found.segments for name, found in self.mem.stats().vectors.items()}
        self.mem.close()
        self.path = path
        self.open()
        if self.config.vector.seal_rows > 16:
            assert {name: found.segments for name, found in self.mem.stats().vectors.items()} == known

    # Searches

    @rule(name=names, query=queries)
    def search(self, name: str, query: Query) -> None:
        self.ask([name], query)

    @rule(query=queries)
    def search_two(self, query: Query) -> None:
        self.ask(["e", "e/x"], query)

    @invariant()
    def found(self) -> None:
        for name in NAMES:
            self.ask([name], Query((1, -2, 0, 3), 5, 0, None, None, None, exact=False))

    def ask(self, chosen: list[str], query: Query) -> None:
        where, allows = WHERES[query.where]
        since, until = query.since or -np.inf, query.until or np.inf
        asked = np.array(query.vector, np.float32)
        wanted: list[tuple[float, str, str]] = []
        for name in chosen:
            rows = {
                key: row
                for key, row in self.live(name).items()
                if row.vector and since <= row.at < until and allows(row.metadata)
            }
            if rows:
                scores = exact_scores(METRICS[name], np.array([row.vector for row in rows.values()], np.float32), asked)
                wanted.extend((-score, name, key) for key, score in zip(rows, scores.tolist(), strict=True))
        wanted = sorted(entry for entry in wanted if query.floor is None or -entry[0] >= query.floor)
        hits = self.mem.search_similar(
            chosen,
            asked,
            query.k,
            where=where,
            since=query.since,
            until=query.until,
            min_score=query.floor,
            exact=query.exact,
            effort=2_000,
        )
        best = wanted[: query.k]
        assert [hit.score for hit in hits] == sorted([hit.score for hit in hits], reverse=True)
        if query.exact or self.graph is None:
            assert [(-hit.score, hit.namespace, hit.key) for hit in hits] == best
        elif self.graph == "flat":
            # Which of those that tie with the last are found is up to the graph.
            assert [hit.score for hit in hits] == [-score for score, _, _ in best]
            assert set(matched(hits)) <= {(name, key) for _, name, key in wanted}
        else:
            assert len(hits) == len(set(matched(hits)))
            assert {(-hit.score, hit.namespace, hit.key) for hit in hits} <= set(wanted)
            if query.floor is None:
                assert len(hits) == len(best)
                assert sum(hit.score >= -best[-1][0] for hit in hits) * 2 >= len(best)

    def teardown(self) -> None:
        try:
            if hasattr(self, "mem"):
                report = self.mem.check()
                assert report.ok, str(report)
        finally:
            if hasattr(self, "mem"):
                self.mem.close()
            self.patch.undo()
            shutil.rmtree(self.folder)


TestModel = Machine.TestCase
profile = settings.get_profile(settings.get_current_profile_name())
TestModel.settings = settings(max_examples=max(1, profile.max_examples * 2 // 5), stateful_step_count=30)
