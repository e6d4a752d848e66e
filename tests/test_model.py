"""Stores driven at random beside a plain dict: two of them in step, one starved of memory and one not."""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import tiermem
from tests.model import ABSENT, KEYS, NAMES, STREAM, WHERES, Query, Twin, Write, spoil
from tests.workers import NO_BELLS
from tiermem import CodecConfig, ColdConfig, Config, Guard, HotConfig, Item, VectorConfig

START = 10.0


def config(
    hot: int, committer: Any, sync_interval: float, journal_bytes: int = 2**16, policy: Any = None, level: int = 3
) -> Config:
    """A configuration in which little fits anywhere, so that much happens."""
    return Config(
        hot=HotConfig(max_bytes=hot, policy=policy),
        cold=ColdConfig(
            map_size=2**28,
            sync_interval=sync_interval,
            committer=committer,
            journal_bytes=journal_bytes,
            max_readers=16,
        ),
        codec=CodecConfig(level=level, min_bytes=64, dictionary_bytes=1024, dictionary_samples=16),
    )


# Never committed by itself: what is pending stays so until something needs it committed.
NEVER = 60.0
AT_ONCE = 1e-6
CONFIGS = (
    config(300, "inline", AT_ONCE),
    config(2**28, "thread", NEVER, 2**20),
    config(1500, "thread", NEVER),
    config(4000, "inline", AT_ONCE, policy=tiermem.LRU, level=0),
    config(0, "inline", NEVER, 2**20),
    # Commits while the rules run: nothing here depends on when.
    config(2**28, "thread", 1e-3),
)
BUSY = CONFIGS[-1]

values = st.one_of(
    st.sampled_from([None, True, 0, -1, 2**62, 1.5, "", "text", b"\x00\xff", [], [1, [2]], (1, (2,)), {}]),
    st.sampled_from([{"px": 48.21, "tags": ["a"]}, {"px": 48.22, "more": {"deep": [None]}}]),
    st.builds(lambda size: {"text": "ab" * size}, st.sampled_from([100, 3000, 40_000])),
    st.builds(lambda size: random.Random(size).randbytes(size), st.sampled_from([300, 5000, 30_000])),
)
vectors = st.tuples(*[st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0, 1e-3, 1e3])] * 3)
metadatas = st.fixed_dictionaries(
    {},
    optional={
        "side": st.sampled_from(["buy", "sell"]),
        "n": st.integers(0, 3),
        "tags": st.lists(st.sampled_from("xyz"), max_size=2),
    },
)
ttls = st.sampled_from([0.5, 1, 3.0, 8, timedelta(seconds=2.5)])
moments = st.one_of(
    st.sampled_from([-3.0, 0.0, 5, 9.75, 10.0, 11.5, 14.0]), st.just(datetime(1970, 1, 1, 0, 0, 12, tzinfo=UTC))
)
writes = st.builds(
    Write,
    value=values,
    vector=st.none() | vectors,
    metadata=st.none() | metadatas,
    ttl=st.none() | ttls,
    at=st.none() | moments,
)
queries = st.builds(
    Query,
    k=st.sampled_from([1, 2, 5, 50]),
    where=st.integers(0, len(WHERES) - 1),
    since=st.none() | moments,
    until=st.none() | moments,
    min_score=st.none() | st.sampled_from([-1.5, 0.0, 0.7, 1.0]),
).map(lambda q: q._replace(since=_float(q.since), until=_float(q.until)))
# A few places are written again and again.
keyed = st.sampled_from(["n", "n", "n/m", "ü"])
names = st.sampled_from(NAMES)
keys = st.sampled_from(["a", "a", "a", "é", "é", *KEYS])
# A number stands for the key at that place among those that are there: streams name their own.
places = keys | st.integers(0, 5)
dimensions = st.sampled_from([2, 3])
pauses = st.sampled_from([0.0, 0.5, 1.0])
expectations = st.sampled_from(["right", "right", "wrong", "stale", "zero"])


def _float(moment: Any) -> float | None:
    return moment.timestamp() if isinstance(moment, datetime) else moment


def expected(twin: Twin, name: str, key: str, expectation: str) -> int:
    """A version to ask for, by how it relates to the one that is there."""
    there = twin.version(name, key)
    return {"right": there, "wrong": there + 1024, "stale": max(0, there - 1), "zero": 0}[expectation]


class Machine(RuleBasedStateMachine):
    """Every rule does the same to each twin."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="tiermem-model-"))
        self.copies = 0
        self.twins: list[Twin] = []
        self.watch = "nothing"
        self.steps = self.advanced = 0

    @initialize(
        metric=st.sampled_from(["cosine", "dot", "euclidean"]),
        watch=st.sampled_from(["nothing", "values", "searches", "everything"]),
        given=st.lists(st.tuples(keyed, keys, writes), max_size=8),
        pause=pauses,
    )
    def begin(self, metric: Any, watch: str, given: list[tuple[str, str, Write]], pause: float) -> None:
        self.vector = VectorConfig(metric=metric)
        self.watch = watch
        for number, chosen in enumerate(CONFIGS[:2]):
            twin = Twin(self.folder / f"twin-{number}", START, metric)
            self.twins.append(twin)
            self.open(twin, chosen)
        self.put(given, 3, pause, durable=False, look=True)

    def open(self, twin: Twin, chosen: Config, *, read_only: bool = False) -> None:
        twin.open(replace(chosen, vector=self.vector), read_only=read_only)
        twin.still = chosen is not BUSY

    def ready(self, name: str, write: Write, dimension: int, *, by_itself: bool = True) -> None:
        """Before a vector is given: the namespace has a dimension, by itself or because it was made with one."""
        for twin in self.twins:
            if write.vector is not None and name not in twin.kinds:
                if by_itself:
                    twin.kinds[name] = (dimension, twin.metric)
                else:
                    twin.create(name, dimension, None)

    # Writes

    @rule(
        given=st.lists(st.tuples(keyed, keys, writes), min_size=1, max_size=6),
        dimension=dimensions,
        pause=pauses,
        durable=st.booleans(),
        look=st.booleans(),
    )
    def put(self, given: list[tuple[str, str, Write]], dimension: int, pause: float, durable: bool, look: bool) -> None:
        for name, key, write in given:
            self.ready(name, write, dimension)
            for twin in self.twins:
                twin.clock.advance(pause)
                twin.put(name, key, write, durable=durable)
                if look:
                    twin.look(name, key)

    @rule(key=places, write=writes)
    def put_into_a_stream(self, key: str | int, write: Write) -> None:
        self.ready(STREAM, write, 3)
        for twin in self.twins:
            twin.put(STREAM, twin.key(STREAM, key), write)

    @rule(name=keyed, key=keys, first=values, second=values)
    def map(self, name: str, key: str, first: Any, second: Any) -> None:
        for twin in self.twins:
            for value in (first, second):
                twin.views[name][key] = value
                record = twin.mem.get_record(name, key)
                assert record is not None
                twin.settle(name, key, Write(value), record.version)
            del twin.views[name][key]
            del twin.rows[name][key]
            with pytest.raises(KeyError):
                del twin.views[name][key]

    @rule(name=st.sampled_from([STREAM, STREAM, "n"]), write=writes, times=st.integers(1, 3))
    def append(self, name: str, write: Write, times: int) -> None:
        self.ready(name, write, 3)
        for twin in self.twins:
            for _ in range(times):
                twin.append(name, write)

    @rule(
        name=keyed,
        items=st.lists(st.tuples(keys, writes), max_size=5),
        columns=st.booleans(),
        vector=st.none() | vectors,
    )
    def put_many(self, name: str, items: list[tuple[str, Write]], columns: bool, vector: Any) -> None:
        if columns:
            items = [(key, Write(write.value, vector, write.metadata)) for key, write in items]
        for _, write in items:
            self.ready(name, write, 2)
        for twin in self.twins:
            twin.put_many(name, items, columns and bool(items))

    @rule(
        name=names,
        key=places,
        parts=st.fixed_dictionaries(
            {},
            optional={
                "value": values,
                "metadata": st.none() | metadatas,
                "vector": st.none() | vectors,
                "ttl": st.none() | ttls,
            },
        ),
    )
    def update(self, name: str, key: str | int, parts: dict[str, Any]) -> None:
        self.ready(name, Write(None, parts.get("vector")), 3, by_itself=False)
        for twin in self.twins:
            twin.update(name, twin.key(name, key), parts, touch=parts.keys() == {"ttl"})

    @rule(name=names, key=places)
    def delete(self, name: str, key: str | int) -> None:
        for twin in self.twins:
            twin.delete(name, twin.key(name, key))

    @rule(
        name=names,
        chosen=st.one_of(
            st.fixed_dictionaries({"keys": st.lists(places, max_size=4)}),
            st.fixed_dictionaries({"prefix": st.sampled_from(["", "a", "é", "日", "8"])}),
            st.just({}),
        ),
        where=st.integers(0, len(WHERES) - 1),
    )
    def delete_many(self, name: str, chosen: dict[str, Any], where: int) -> None:
        for twin in self.twins:
            twin.delete_many(name, chosen, where)

    @rule(name=keyed, key=keys, write=writes, expectation=expectations, other=names, guard=st.none() | expectations)
    def compare_and_set(
        self, name: str, key: str, write: Write, expectation: str, other: str, guard: str | None
    ) -> None:
        self.ready(name, write, 3, by_itself=False)
        for twin in self.twins:
            conditions, error = self.conditions(twin, name, key, expectation, other, guard)
            if error is None:
                twin.put(name, key, write, **conditions)
            else:
                with pytest.raises(error):
                    twin.mem.put(name, key, **twin.given(name, write), **conditions)

    @rule(name=names, key=places, expectation=expectations, other=names, guard=st.none() | expectations)
    def compare_and_delete(self, name: str, key: str | int, expectation: str, other: str, guard: str | None) -> None:
        for twin in self.twins:
            place = twin.key(name, key)
            conditions, error = self.conditions(twin, name, place, expectation, other, guard)
            if error is None:
                twin.delete(name, place, **conditions)
            else:
                with pytest.raises(error):
                    twin.mem.delete(name, place, **conditions)

    @staticmethod
    def conditions(
        twin: Twin, name: str, key: str, expectation: str, other: str, guard: str | None
    ) -> tuple[dict[str, Any], type[Exception] | None]:
        """Conditions of a write, and the error they are going to cause."""
        version = expected(twin, name, key, expectation)
        found: dict[str, Any] = {"if_version": version}
        error: type[Exception] | None = None
        if guard is not None:
            guarding = twin.key(other, 0)
            found["guard"] = Guard(other, guarding, expected(twin, other, guarding, guard))
            if found["guard"].version != twin.version(other, guarding):
                error = tiermem.GuardFailed
        if version != twin.version(name, key):
            error = tiermem.VersionConflict
        return found, error

    @rule(
        actions=st.lists(
            st.tuples(st.sampled_from(["put", "put", "delete", "append"]), keyed, keys, writes), min_size=1, max_size=5
        ),
        ending=st.sampled_from(["plain", "plain", "held", "conflict", "guarded", "interrupted"]),
    )
    def batch(self, actions: list[tuple[str, str, str, Write]], ending: str) -> None:
        for _, name, _, write in actions:
            self.ready(name, write, 3, by_itself=False)
        for twin in self.twins:
            with suppress(ZeroDivisionError, tiermem.VersionConflict, tiermem.GuardFailed):
                done = []
                with twin.mem.batch() as batch:
                    for number, (verb, name, key, write) in enumerate(actions):
                        given = twin.given(name, write)
                        conditions: dict[str, Any] = {}
                        if ending == "held" or number:
                            conditions["guard"] = Guard("n", "b", twin.version("n", "b"))
                        elif ending == "guarded":
                            conditions["guard"] = Guard("n", "b", twin.version("n", "b") + 1)
                        elif ending == "conflict" and verb != "append":
                            conditions["if_version"] = twin.version(name, key) + 1
                        if ending == "plain":
                            conditions = {}
                        if verb == "put":
                            batch.put(name, key, **given, **conditions)
                        elif verb == "delete":
                            batch.delete(name, key, **conditions)
                        made = batch.append(name, **given, **conditions) if verb == "append" else key
                        done.append((verb, name, made, write))
                        for part in given.values():
                            spoil(part)
                    if ending == "interrupted":
                        raise ZeroDivisionError
                assert ending in ("plain", "held") or (ending == "conflict" and actions[0][0] == "append")
                assert len(batch.versions) == len(done)
                for (verb, name, key, write), version in zip(done, batch.versions, strict=True):
                    if verb == "delete":
                        twin.remove(name, key)
                    else:
                        twin.arrivals += verb == "append"
                        twin.settle(name, key, write, version, twin.arrivals if verb == "append" else 0)

    # Reads

    @rule(name=names, key=places, n=st.integers(1, 4))
    def look(self, name: str, key: str | int, n: int) -> None:
        for twin in self.twins:
            twin.look(name, twin.key(name, key))
            twin.latest(name, n)

    @rule(
        name=names,
        prefix=st.sampled_from(["", "", "a", "é", "日", "ü", "8", "c"]),
        start=st.none() | places,
        since=st.none() | moments,
        until=st.none() | moments,
        where=st.integers(0, len(WHERES) - 1),
        limit=st.sampled_from([None, None, 0, 1, 2, 5]),
        reverse=st.booleans(),
    )
    def scan(self, name: str, where: int, start: str | int | None, **options: Any) -> None:
        for twin in self.twins:
            twin.scan(name, where, start=None if start is None else twin.key(name, start), **options)

    @rule(name=names, vector=vectors, query=queries)
    def search(self, name: str, vector: Any, query: Query) -> None:
        for twin in self.twins:
            twin.search([name], vector, query)

    @rule(vector=vectors, query=queries, pattern=st.sampled_from([None, "**", "n/*"]))
    def search_several(self, vector: Any, query: Query, pattern: str | None) -> None:
        for twin in self.twins:
            chosen = {None: ["n", "n/m"], "**": list(NAMES), "n/*": ["n/m"]}[pattern]
            kinds = {twin.kinds[name] for name in chosen if name in twin.kinds}
            if len(kinds) <= 1:
                twin.search(chosen, vector, query, pattern)
            else:
                # Scores of different metrics or dimensions have no order.
                with pytest.raises(tiermem.InvalidArgument):
                    twin.mem.search_similar(pattern or chosen, vector, query.k)

    @rule(name=keyed, key=keys)
    def refuse(self, name: str, key: str) -> None:
        for twin in self.twins:
            if name in twin.kinds:
                wrong = np.ones(twin.kinds[name][0] + 1, np.float32)
                with pytest.raises(tiermem.DimensionMismatch):
                    twin.mem.put(name, key, 1, vector=wrong)
                with pytest.raises(tiermem.DimensionMismatch):
                    twin.mem.search_similar(name, wrong)
            with pytest.raises(tiermem.EncodingError):
                twin.mem.put(name, key, {"a": {1, 2}})
            twin.look(name, key)

    @rule(follows=st.sampled_from([None, "n", STREAM]), commits=st.booleans(), steps=st.sampled_from([1, 3, 1000]))
    def cursor(self, follows: str | None, commits: bool, steps: int) -> None:
        for twin in self.twins:
            twin.resume(follows, commits, steps)

    # Time and housekeeping

    @rule(seconds=st.sampled_from([0.5, 1, 2.5, 10]))
    @precondition(lambda self: self.advanced < self.steps)
    def advance(self, seconds: float) -> None:
        for twin in self.twins:
            twin.clock.advance(seconds)
        # Not twice in a row.
        self.advanced = self.steps + 1

    @rule(
        name=names,
        drop=st.booleans(),
        dimension=dimensions,
        metric=st.sampled_from([None, "cosine", "dot", "euclidean"]),
    )
    def remake(self, name: str, drop: bool, dimension: int, metric: Any) -> None:
        for twin in self.twins:
            if drop:
                twin.drop(name)
            elif name not in twin.kinds:
                twin.create(name, dimension, metric)

    @rule(chore=st.sampled_from(["flush", "follow", "names", "everything", "compact"]))
    def keep_house(self, chore: str) -> None:
        for twin in self.twins:
            if chore == "flush":
                twin.mem.flush()
            elif chore == "follow":
                twin.follow()
            elif chore == "names":
                twin.names()
            elif chore == "everything":
                twin.everything()
            else:
                twin.mem.compact()
                report = twin.mem.check()
                assert report.ok, str(report)
                assert report.records == sum(len(twin.live(name)) for name in NAMES), "what had expired is gone"

    @rule(number=st.integers(0, 1), chosen=st.sampled_from(CONFIGS), read_only=st.booleans())
    def reopen(self, number: int, chosen: Config, read_only: bool) -> None:
        twin = self.twins[number]
        twin.mem.close()
        twin.mem.close()
        with pytest.raises(tiermem.ClosedError):
            twin.mem.get("n", "a")
        with pytest.raises(tiermem.ClosedError):
            twin.views["n"]["a"]
        if read_only:
            self.open(twin, chosen, read_only=True)
            with twin.mem:
                with pytest.raises(tiermem.ReadOnlyError):
                    twin.mem.put("n", "a", 1)
                twin.everything()
        self.open(twin, chosen)

    @rule(name=keyed, key=keys, write=writes)
    def share(self, name: str, key: str, write: Write) -> None:
        self.ready(name, write, 3)
        for twin in self.twins:
            mine = twin.mem
            with tiermem.open(twin.path, clock=twin.clock) as twin.mem:
                twin.put(name, key, write)
                twin.look(name, key)
            twin.mem = mine
            twin.look(name, key)

    @rule(number=st.integers(0, 1), chosen=st.sampled_from(CONFIGS), write=writes, crash=st.booleans())
    def duplicate(self, number: int, chosen: Config, write: Write, crash: bool) -> None:
        twin = self.twins[number]
        self.copies += 1
        place = self.folder / f"copy-{self.copies}"
        if crash and twin.still:
            # What lies on disk between two calls is what a killed process leaves behind.
            shutil.copytree(twin.path, place, ignore=NO_BELLS)
        else:
            assert twin.mem.backup(place) == place
        other = twin.fork(place)
        self.open(other, chosen)
        try:
            other.everything()
            other.put("n", "a", write._replace(vector=None))
            other.drop("n/m")
            other.everything()
        finally:
            other.mem.close()
            shutil.rmtree(other.path)

    @invariant()
    def counted(self) -> None:
        self.steps += 1

    @invariant()
    @precondition(lambda self: self.watch != "nothing")
    def watched(self) -> None:
        for twin in self.twins:
            for name in NAMES:
                if self.watch == "everything":
                    twin.read(name)
                if self.watch != "values":
                    twin.search([name], (1.0, -0.5, 0.25), Query(k=3))
                if self.watch != "searches":
                    for key in (*KEYS, *twin.rows[name]):
                        row = twin.row(name, key)
                        assert twin.mem.get(name, key, ABSENT) == (ABSENT if row is None else row.value)

    def teardown(self) -> None:
        failed = sys.exc_info()[0] is not None
        try:
            for twin in self.twins:
                if not failed:
                    twin.everything()
        finally:
            for twin in self.twins:
                twin.mem.close()
            shutil.rmtree(self.folder)


TestModel = pytest.mark.timeout(3600)(Machine.TestCase)
profile = settings.get_profile(settings.get_current_profile_name())
TestModel.settings = settings(max_examples=max(1, profile.max_examples * 4 // 5), stateful_step_count=40)


# What the machine has found, and what it does not reach, one case each.


@pytest.fixture
def clock() -> tiermem.SimulatedClock:
    return tiermem.SimulatedClock(START)


@pytest.fixture
def open_store(tmp_path: Path, clock: tiermem.SimulatedClock) -> Iterator[Callable[..., tiermem.Memory]]:
    """`open_store(hot=..., cold=...)`: a store that commits nothing by itself."""
    opened: list[tiermem.Memory] = []

    def make(hot: int = 2**20, **cold: Any) -> tiermem.Memory:
        cold = {"committer": "thread", "sync_interval": NEVER, "journal_bytes": 2**16, "map_size": 2**28, **cold}
        chosen = Config(hot=HotConfig(max_bytes=hot), cold=ColdConfig(**cold))
        opened.append(tiermem.open(tmp_path / "store", config=chosen, clock=clock))
        return opened[-1]

    yield make
    for mem in opened:
        mem.close()


def test_a_value_too_large_for_the_hot_tier_replaces_the_one_in_it(open_store: Callable[..., tiermem.Memory]) -> None:
    mem = open_store(hot=1500)
    ns = mem.namespace("n")
    mem.put("n", "a", "small")
    assert mem.get("n", "a") == ns["a"] == "small"
    mem.put("n", "a", b"large" * 1000)
    assert mem.get("n", "a") == ns["a"] == b"large" * 1000
    mem.put("n", "a", "small again", ttl=60)
    assert mem.get("n", "a") == "small again"
    mem.put("n", "a", b"large" * 1000)
    assert mem.get("n", "a") == ns["a"] == b"large" * 1000


def test_the_creation_of_a_record_does_not_depend_on_when_it_is_committed(
    open_store: Callable[..., tiermem.Memory], clock: tiermem.SimulatedClock
) -> None:
    mem = open_store()
    mem.put("n", "a", 1)
    for value in (2, 3):
        clock.advance(1.0)
        mem.put("n", "a", value)
    pending = mem.get_record("n", "a")
    mem.flush()
    assert pending == mem.get_record("n", "a")
    assert pending is not None
    assert (pending.created_at, pending.updated_at) == (START, START + 2)


def test_a_record_put_anew_over_an_expired_one_was_created_then(
    open_store: Callable[..., tiermem.Memory], clock: tiermem.SimulatedClock
) -> None:
    mem = open_store()
    mem.put("n", "a", 1, ttl=1.0)
    mem.flush()
    for value in (2, 3, 4):
        clock.advance(2.0)
        mem.put("n", "a", value)
    pending = mem.get_record("n", "a")
    mem.flush()
    assert pending == mem.get_record("n", "a")
    assert pending is not None
    assert pending.created_at == START + 2


def test_a_put_whose_condition_fails_fixes_no_dimension(open_store: Callable[..., tiermem.Memory]) -> None:
    mem = open_store()
    with pytest.raises(tiermem.VersionConflict):
        mem.put("n", "a", 1, vector=[1.0, 2.0], if_version=7)
    with pytest.raises(tiermem.GuardFailed):
        mem.put("n", "a", 1, vector=[1.0, 2.0], guard=Guard("m", "a", 7))
    assert mem.namespaces() == []
    mem.put("n", "a", 1, vector=[1.0, 2.0, 3.0])


def test_a_batch_that_is_discarded_leaves_nothing(open_store: Callable[..., tiermem.Memory]) -> None:
    mem = open_store()
    with suppress(ZeroDivisionError), mem.batch() as batch:
        batch.put("n", "a", 1, vector=[1.0, 2.0])
        raise ZeroDivisionError
    assert mem.namespaces() == []
    mem.put("n", "a", 1, vector=[1.0, 2.0, 3.0])


def test_many_puts_of_which_one_is_refused_leave_nothing(open_store: Callable[..., tiermem.Memory]) -> None:
    mem = open_store()
    with pytest.raises(tiermem.DimensionMismatch):
        mem.put_many("n", [Item("a", 1, vector=[1.0, 2.0]), Item("b", 1, vector=[1.0, 2.0, 3.0])])
    assert mem.namespaces() == []
    mem.put("n", "a", 1, vector=[1.0, 2.0, 3.0])


def test_the_names_do_not_depend_on_when_writes_are_committed(open_store: Callable[..., tiermem.Memory]) -> None:
    mem = open_store()
    mem.put("n", "a", 1)
    mem.delete("n", "a")
    pending = mem.namespaces()
    mem.flush()
    assert pending == mem.namespaces()


def test_a_delete_of_nothing_makes_no_namespace(open_store: Callable[..., tiermem.Memory]) -> None:
    mem = open_store()
    assert mem.delete("n", "a", if_version=0) is False
    with mem.batch() as batch:
        batch.delete("m", "a")
    mem.flush()
    assert mem.namespaces() == []
    assert mem.check().problems == ()
    assert mem.drop_namespace("n") is False
    mem.put("n", "a", 1, if_version=0)
    assert (mem.namespaces(), mem.check().problems) == (["n"], ())


def test_no_columns_are_no_records(open_store: Callable[..., tiermem.Memory]) -> None:
    mem = open_store()
    assert mem.put_many("n", []) == []
    assert mem.put_many("n", keys=[], values=[]) == []
    assert mem.put_many("n", keys=[], values=[], vectors=np.empty((0, 3)), metadatas=[]) == []
    assert mem.count("n") == 0


def test_the_longest_key_has_room_in_every_index(
    open_store: Callable[..., tiermem.Memory], clock: tiermem.SimulatedClock
) -> None:
    mem = open_store()
    key = "ü" * 240
    mem.put("n", key, 1, ttl=5, vector=[1.0, 2.0], metadata={"n": 1})
    mem.flush()
    assert [record.key for record in mem.scan("n", start=key)] == [key]
    assert [record.key for record in mem.scan("n", start=key, reverse=True)] == [key]
    with pytest.raises(tiermem.InvalidKey):
        mem.put("n", key + "a", 1)
    clock.advance(5.0)
    mem.compact()
    assert (mem.count("n"), mem.check().problems) == (0, ())
    assert [change.op for change in mem.changes(0)] == ["put", "expire"]


def test_a_named_cursor_holds_the_log(open_store: Callable[..., tiermem.Memory]) -> None:
    mem = open_store(log_retention=0)
    cursor = mem.cursor("c", start=0)
    for number in range(5):
        mem.put("n", str(number), number)
        mem.flush()
    mem.delete("n", "0")
    mem.compact()
    assert [change.sequence for change in mem.changes(0)] == [1, 2, 3, 4, 5, 6]
    assert [change.op for change in cursor] == ["put"] * 5 + ["delete"]
    cursor.commit()
    mem.delete("n", "1")
    mem.compact()
    with pytest.raises(tiermem.CursorExpired):
        list(mem.changes(0))
    assert [(change.op, change.key) for change in mem.cursor("c")] == [("delete", "1")]


def test_a_batch_larger_than_the_journal_is_one_commit(open_store: Callable[..., tiermem.Memory]) -> None:
    mem = open_store()
    with mem.batch() as batch:
        for number in range(40):
            batch.put("n", str(number), bytes([number]) * 5000)
    assert mem.count("n") == len(batch.versions) == 40
    for number, version in enumerate(batch.versions):
        record = mem.get_record("n", str(number))
        assert record is not None
        assert (record.value, record.version) == (bytes([number]) * 5000, version)
