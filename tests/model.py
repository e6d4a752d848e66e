"""A store as a plain dict, and a store held against it: every answer is compared with what the dict says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import copy, deepcopy
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import tiermem
from tiermem import Change, Config, Item, Record

STREAM = "s"
NAMES = ("n", "n/m", "ü", STREAM)
KEYS = ("a", "aa", "b", "a\x00b", "é", "日本", "\U0001f600", "ü" * 9)
ABSENT = object()

# Filters beside what they mean, written out by hand.
WHERES: tuple[tuple[dict[str, Any] | None, Callable[[Mapping[str, Any]], bool]], ...] = (
    (None, lambda m: True),
    ({"side": "buy"}, lambda m: m.get("side") == "buy"),
    ({"side": {"$ne": "buy"}}, lambda m: m.get("side") != "buy"),
    ({"n": {"$gte": 2}}, lambda m: m.get("n", -1) >= 2),
    ({"n": {"$exists": False}}, lambda m: "n" not in m),
    ({"tags": {"$contains": "x"}}, lambda m: "x" in m.get("tags", ())),
    ({"$or": [{"n": 1}, {"side": "sell"}]}, lambda m: m.get("n") == 1 or m.get("side") == "sell"),
    ({"$not": {"side": {"$in": ["buy", "sell"]}}}, lambda m: m.get("side") not in ("buy", "sell")),
)


class Write(NamedTuple):
    """What a put is given beside its name and key."""

    value: Any
    vector: tuple[float, ...] | None = None
    metadata: dict[str, Any] | None = None
    ttl: float | timedelta | None = None
    at: float | datetime | None = None


class Row(NamedTuple):
    """A record of the model. `arrival` counts appends, and is 0 for a record that was put."""

    value: Any
    metadata: dict[str, Any]
    vector: np.ndarray[Any, Any] | None
    version: int
    at: float
    created: float
    updated: float
    expires: float
    arrival: int = 0


class Query(NamedTuple):
    """What a search is given beside its namespaces and its vector."""

    k: int
    where: int = 0
    since: float | None = None
    until: float | None = None
    min_score: float | None = None


def seconds(moment: float | timedelta | datetime) -> float:
    """A duration or an event time as a float."""
    if isinstance(moment, timedelta):
        return moment.total_seconds()
    return moment.timestamp() if isinstance(moment, datetime) else float(moment)


def plain(value: Any) -> Any:
    """`value` as a store gives it back: tuples have become lists."""
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return {name: plain(item) for name, item in value.items()} if isinstance(value, dict) else value


def spoil(value: Any) -> None:
    """Change a mutable value in place, all the way down."""
    if isinstance(value, dict):
        for item in value.values():
            spoil(item)
        value["spoiled"] = True
    elif isinstance(value, list):
        for item in value:
            spoil(item)
        value.append("spoiled")
    elif isinstance(value, np.ndarray):
        value += 1


def score(metric: str, row: np.ndarray[Any, Any], query: np.ndarray[Any, Any]) -> float:
    """The similarity of two float32 vectors, in float64."""
    a, b = row.astype(np.float64), query.astype(np.float64)
    if metric == "euclidean":
        return -float(np.linalg.norm(a - b))
    dot = float(a @ b)
    return dot if metric == "dot" else dot / float(np.linalg.norm(a) * np.linalg.norm(b))


def ordered(rows: Mapping[str, Row]) -> dict[str, Row]:
    """`rows` in the order of their keys' UTF-8 bytes."""
    return dict(sorted(rows.items(), key=lambda item: item[0].encode()))


class Twin:
    """A store and the model of it. Every call goes to both, and their answers must agree."""

    def __init__(self, path: Path, start: float, metric: str) -> None:
        self.path = path
        self.metric = metric
        self.clock = tiermem.SimulatedClock(start)
        self.rows: dict[str, dict[str, Row]] = {name: {} for name in NAMES}
        self.kinds: dict[str, tuple[int, str]] = {}
        self.certain: set[str] = set()
        self.acknowledged: set[tuple[str, str, int]] = set()
        self.highest: dict[tuple[str, str], int] = {}
        self.log: list[Change] = []
        self.cursors: dict[str, int] = {}
        self.arrivals = 0
        self.views: dict[str, tiermem.Namespace] = {}
        self.still = True
        self.mem: tiermem.Memory

    def open(self, config: Config, *, read_only: bool = False) -> None:
        """Open the store."""
        self.mem = tiermem.open(self.path, config=config, clock=self.clock, read_only=read_only)
        self.views = {name: self.mem.namespace(name) for name in NAMES}

    # The model

    @property
    def now(self) -> float:
        return self.clock.now()

    def live(self, name: str) -> dict[str, Row]:
        """The unexpired rows of a namespace, in key order."""
        return ordered({key: row for key, row in self.rows[name].items() if row.expires > self.now})

    def row(self, name: str, key: str) -> Row | None:
        """The unexpired row of a key."""
        return self.live(name).get(key)

    def version(self, name: str, key: str) -> int:
        """The version of a key, 0 if it is absent."""
        row = self.row(name, key)
        return 0 if row is None else row.version

    def key(self, name: str, key: str | int) -> str:
        """A key, or the one meant by its place among those that are there."""
        if isinstance(key, str):
            return key
        present = sorted(self.rows[name], key=str.encode)
        return present[key % len(present)] if present else KEYS[key % len(KEYS)]

    def shaped(self, name: str, vector: Iterable[float] | None) -> np.ndarray[Any, Any] | None:
        """`vector` cut to the dimension of the namespace, which has one."""
        if vector is None:
            return None
        array = np.array(list(vector), np.float32)[: self.kinds[name][0]]
        if not array.any():
            array[0] = 1.0
        return array

    def settle(self, name: str, key: str, write: Write, version: int, arrival: int = 0) -> None:
        """Put a row into the model, the store having acknowledged it at `version`."""
        before = self.row(name, key)
        expires = np.inf if write.ttl is None else self.now + seconds(write.ttl)
        self.certain.add(name)
        self._acknowledge(name, key, version)
        self.rows[name][key] = Row(
            plain(write.value),
            plain(write.metadata or {}),
            self.shaped(name, write.vector),
            version,
            self.now if write.at is None else seconds(write.at),
            self.now if before is None else before.created,
            self.now,
            expires,
            arrival,
        )

    def _acknowledge(self, name: str, key: str, version: int) -> None:
        assert version > self.highest.get((name, key), 0), "versions rise with every write of a key"
        self.highest[name, key] = version
        self.acknowledged.add((name, key, version))

    def create(self, name: str, dimension: int, metric: Any) -> None:
        """`create_namespace`."""
        self.mem.create_namespace(name, dimension=dimension, metric=metric)
        self.kinds.setdefault(name, (dimension, metric or self.metric))
        self.certain.add(name)

    def fork(self, path: Path) -> Twin:
        """A twin of the same records at another place, still to be opened."""
        other = copy(self)
        other.path, other.clock = path, tiermem.SimulatedClock(self.now)
        other.rows = {name: dict(rows) for name, rows in self.rows.items()}
        for part in ("kinds", "certain", "acknowledged", "highest", "cursors"):
            setattr(other, part, getattr(self, part).copy())
        return other

    def given(self, name: str, write: Write) -> dict[str, Any]:
        """Arguments of a put, all of them the caller's to change afterwards."""
        vector = self.shaped(name, write.vector)
        return {
            "value": deepcopy(write.value),
            "vector": None if vector is None else vector.copy(),
            "metadata": deepcopy(write.metadata),
            "ttl": write.ttl,
            "at": write.at,
        }

    # Writes

    def put(self, name: str, key: str, write: Write, **conditions: Any) -> None:
        """`put` under conditions that hold."""
        given = self.given(name, write)
        version = self.mem.put(name, key, **given, **conditions)
        for part in given.values():
            spoil(part)
        self.settle(name, key, write, version)

    def append(self, name: str, write: Write) -> None:
        """`append`."""
        given = self.given(name, write)
        key = self.mem.append(name, **given)
        for part in given.values():
            spoil(part)
        self.arrivals += 1
        record = self.mem.get_record(name, key)
        assert record is not None, "an appended record is there at once"
        self.settle(name, key, write, record.version, self.arrivals)

    def put_many(self, name: str, items: list[tuple[str, Write]], columns: bool) -> None:
        """`put_many`, as items or as columns."""
        args = [self.given(name, write) for _, write in items]
        matrix = np.array([given["vector"] for given in args]) if columns and items[0][1].vector else None
        if columns:
            versions = self.mem.put_many(
                name,
                keys=[key for key, _ in items],
                values=[given["value"] for given in args],
                vectors=matrix,
                metadatas=[given["metadata"] for given in args],
            )
        else:
            versions = self.mem.put_many(
                name, [Item(key, **given) for (key, _), given in zip(items, args, strict=True)]
            )
        for part in [matrix, *(part for given in args for part in given.values())]:
            spoil(part)
        for (key, write), version in zip(items, versions, strict=True):
            self.settle(name, key, write, version)

    def delete(self, name: str, key: str, **conditions: Any) -> None:
        """`delete` under conditions that hold."""
        existed = self.row(name, key) is not None
        assert self.mem.delete(name, key, **conditions) == existed
        if existed or conditions:
            self.remove(name, key)

    def remove(self, name: str, key: str) -> None:
        """Take a row out of the model, the store having been told to."""
        self.rows[name].pop(key, None)

    def update(self, name: str, key: str, parts: dict[str, Any], *, touch: bool = False) -> None:
        """`update` or `touch`, of a record that may be absent."""
        given = deepcopy(parts)
        if "vector" in parts:
            given["vector"] = self.shaped(name, parts["vector"])
        change = partial(self.mem.touch if touch else self.mem.update, name, key, **given)
        if self.row(name, key) is None:
            with pytest.raises(tiermem.RecordNotFound):
                change()
            return
        version = change()
        changed: dict[str, Any] = {}
        if "value" in parts:
            changed["value"] = plain(parts["value"])
        if "metadata" in parts:
            changed["metadata"] = plain(parts["metadata"] or {})
        if "vector" in parts:
            changed["vector"] = self.shaped(name, parts["vector"])
        if "ttl" in parts:
            changed["expires"] = np.inf if parts["ttl"] is None else self.now + seconds(parts["ttl"])
        for part in given.values():
            spoil(part)
        self._acknowledge(name, key, version)
        self.rows[name][key] = self.rows[name][key]._replace(version=version, updated=self.now, **changed)

    def delete_many(self, name: str, chosen: dict[str, Any], where: int) -> None:
        """`delete_many` by keys or prefix, and a filter."""
        given, matches = WHERES[where]
        if "keys" in chosen:
            chosen = {"keys": [self.key(name, key) for key in chosen["keys"]]}
        if not chosen and given is None:
            with pytest.raises(tiermem.InvalidArgument):
                self.mem.delete_many(name)
            return
        doomed = [
            key
            for key, row in self.live(name).items()
            if matches(row.metadata) and key in chosen.get("keys", [key]) and key.startswith(chosen.get("prefix", ""))
        ]
        assert self.mem.delete_many(name, where=given, **chosen) == len(doomed)
        for key in doomed:
            del self.rows[name][key]

    def drop(self, name: str) -> None:
        """`drop_namespace`."""
        assert self.mem.drop_namespace(name) == (name in self.certain)
        self.rows[name] = {}
        self.kinds.pop(name, None)
        self.certain.discard(name)

    # Reads

    def same(self, record: Record | None, name: str, key: str) -> None:
        """A record is what the model says it is."""
        row = self.row(name, key)
        if row is None or record is None:
            assert record is None, f"{key!r} is gone"
            assert row is None, f"{key!r} is lost"
            return
        expected = Record(
            name,
            key,
            row.value,
            row.metadata,
            None,
            row.version,
            row.at,
            row.created,
            row.updated,
            None if row.expires == np.inf else row.expires,
        )
        assert record._replace(vector=None) == expected
        if row.vector is None:
            assert record.vector is None
        else:
            assert record.vector is not None
            assert record.vector.dtype == np.float32
            assert np.array_equal(record.vector, row.vector)

    def look(self, name: str, key: str) -> None:
        """Every way to read one record."""
        row = self.row(name, key)
        expected = ABSENT if row is None else row.value
        for _ in range(2):
            assert self.mem.get(name, key, ABSENT) == expected
            assert self.views[name].get(key, ABSENT) == expected
        own = self.mem.get(name, key, ABSENT, copy=True)
        assert own == expected
        spoil(own)
        record = self.mem.get_record(name, key)
        self.same(record, name, key)
        for part in record or ():
            spoil(part)
        assert self.mem.contains(name, key) == (row is not None)
        assert self.mem.get(name, key, ABSENT) == expected

    def read(self, name: str) -> None:
        """Every way to read one namespace."""
        live = self.live(name)
        records = list(self.mem.scan(name))
        assert [record.key for record in records] == list(live)
        for record in records:
            self.same(record, name, record.key)
        assert self.mem.count(name) == len(live) == len(self.views[name])
        found = self.mem.get_many(name, [*KEYS, *live, *reversed(KEYS)])
        assert found == {key: row.value for key, row in live.items()}
        assert list(found) == [key for key in dict.fromkeys([*KEYS, *live]) if key in live]
        appended = [row.arrival for row in live.values() if row.arrival]
        in_time = sorted((row.at, row.arrival) for row in live.values() if row.arrival)
        assert appended == [arrival for _, arrival in in_time], "keys of a stream sort by time, then by arrival"
        for n in (1, 3, 100):
            self.latest(name, n)

    def latest(self, name: str, n: int) -> None:
        """`latest`: ties of event time go by arrival where every record was appended."""
        live = self.live(name)
        records = self.mem.latest(name, n)
        for record in records:
            self.same(record, name, record.key)
        assert len({record.key for record in records}) == len(records)
        newest = sorted(((row.at, row.arrival, key) for key, row in live.items()), reverse=True)[:n]
        assert [record.at for record in records] == [at for at, _, _ in newest]
        if all(row.arrival for row in self.rows[name].values()):
            assert [record.key for record in records] == [key for _, _, key in newest]

    def scan(self, name: str, where: int, *, prefix: str, start: str | None, limit: int | None, **options: Any) -> None:
        """`scan` and `count` under every option."""
        given, matches = WHERES[where]
        since, until, reverse = options["since"], options["until"], options["reverse"]
        rows = {
            key: row
            for key, row in self.live(name).items()
            if key.startswith(prefix)
            and (since is None or row.at >= seconds(since))
            and (until is None or row.at < seconds(until))
            and matches(row.metadata)
        }
        wanted = list(reversed(rows)) if reverse else list(rows)
        if start is not None:
            edge = start.encode()
            wanted = [key for key in wanted if (key.encode() <= edge if reverse else key.encode() >= edge)]
        found = list(self.mem.scan(name, prefix, start=start, where=given, limit=limit, **options))
        assert [record.key for record in found] == wanted[:limit]
        for record in found:
            self.same(record, name, record.key)
        assert self.mem.count(name, given) == sum(matches(row.metadata) for row in self.live(name).values())

    def search(self, names: list[str], query: Iterable[float], q: Query, pattern: str | None = None) -> None:
        """`search_similar` over namespaces of one metric and dimension."""
        where, matches = WHERES[q.where]
        scores: dict[tuple[str, str], float] = {}
        given = np.array(list(query), np.float32)
        for name in names:
            if name in self.kinds:
                given = given[: self.kinds[name][0]]
        if not given.any():
            given[0] = 1.0
        for name in names:
            for key, row in self.live(name).items():
                in_time = (q.since is None or row.at >= q.since) and (q.until is None or row.at < q.until)
                if row.vector is not None and in_time and matches(row.metadata):
                    scores[name, key] = score(self.kinds[name][1], row.vector, given)
        near = {place: 1e-5 * max(1.0, abs(value)) for place, value in scores.items()}
        floor = -np.inf if q.min_score is None else q.min_score
        sure = sum(value > floor + near[place] for place, value in scores.items())
        scores = {place: value for place, value in scores.items() if value >= floor - near[place]}
        ask = pattern or (names[0] if len(names) == 1 else names)
        options: dict[str, Any] = {"where": where, "since": q.since, "until": q.until, "min_score": q.min_score}
        hits = self.mem.search_similar(ask, given, q.k, **options)
        for again in self.mem.search_many(ask, np.array([given, given]), q.k, exact=True, **options):
            assert [(hit.namespace, hit.key, hit.score) for hit in again] == [
                (hit.namespace, hit.key, hit.score) for hit in hits
            ]
        assert min(q.k, sure) <= len(hits) <= min(q.k, len(scores))
        found = [(hit.namespace, hit.key) for hit in hits]
        assert len(set(found)) == len(found)
        for hit, place in zip(hits, found, strict=True):
            row = self.rows[hit.namespace][hit.key]
            assert abs(hit.score - scores[place]) <= near[place]
            assert (hit.version, hit.metadata, hit.value) == (row.version, row.metadata, row.value)
            self.same(hit.record, hit.namespace, hit.key)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        if len(hits) == q.k:
            assert all(scores[place] <= hits[-1].score + near[place] for place in scores.keys() - set(found))

    def names(self) -> None:
        """`namespaces`, before and after everything is committed."""
        for _ in range(2):
            for prefix in ("", "n", "n/"):
                assert self.mem.namespaces(prefix) == sorted(name for name in self.certain if name.startswith(prefix))
            self.mem.flush()

    def follow(self) -> list[Change]:
        """The change log explains exactly which keys exist, and names every write that was acknowledged."""
        log = list(self.mem.changes(0))
        assert [change.sequence for change in log] == list(range(1, len(log) + 1))
        assert log[: len(self.log)] == self.log, "the past does not change"
        self.log = log
        last: dict[tuple[str, str], Change] = {}
        for change in log:
            if change.op == "drop":
                last = {place: known for place, known in last.items() if place[0] != change.namespace}
            else:
                last[change.namespace, change.key] = change
        there = {(name, key): change.version for (name, key), change in last.items() if change.op == "put"}
        kept = {(name, key): row.version for name in NAMES for key, row in self.rows[name].items()}
        live = {(name, key): row.version for name in NAMES for key, row in self.live(name).items()}
        assert live.items() <= there.items() <= kept.items()
        puts = [(change.namespace, change.key, change.version) for change in log if change.op == "put"]
        assert len(set(puts)) == len(puts)
        assert set(puts) == self.acknowledged
        for name in NAMES[:2]:
            assert list(self.mem.changes(0, name)) == [change for change in log if change.namespace == name]
        assert list(self.mem.changes()) == []
        return log

    def resume(self, follows: str | None, commits: bool, steps: int) -> None:
        """A named cursor goes on behind what was committed under its name."""
        name = f"cursor of {follows}"
        cursor = self.mem.cursor(name, follows, start=0)
        position = self.cursors.get(name, 0)
        assert cursor.position == position
        log = self.follow()
        assert cursor.lag == len(log) - position
        waiting = [change for change in log[position:] if follows in (None, change.namespace)]
        assert list(islice(cursor, steps)) == waiting[:steps]
        if steps > len(waiting):
            assert cursor.lag == 0
        if commits:
            cursor.commit()
            self.cursors[name] = cursor.position
            assert self.mem.stats().log.cursors[name] == cursor.lag

    def everything(self, *, audit: bool = True) -> None:
        """Compare the whole store with the model."""
        for name in NAMES:
            for key in {**dict.fromkeys(KEYS), **self.rows[name]}:
                self.look(name, key)
            self.read(name)
            for number in range(len(WHERES)):
                for reverse in (False, True):
                    # A limit makes the pages small, so that what a filter leaves out spans several.
                    options: dict[str, Any] = {"since": None, "until": None, "reverse": reverse}
                    self.scan(name, number, prefix="", start=None, limit=2, **options)
            if name in self.kinds:
                self.search([name], (1.0, 0.5, -0.25), Query(k=100))
        self.follow()
        self.names()
        stats = self.mem.stats()
        assert str(stats)
        assert stats.log.last == len(self.log)
        if audit:
            report = self.mem.check()
            assert report.ok, str(report)
            assert sum(len(self.live(name)) for name in NAMES) <= report.records
