"""Bad input: every refused call raises the promised error, names the problem and changes nothing."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest

import tiermem
from tiermem import Guard, InvalidArgument, Item
from tiermem.tiers.cold.layout import Identity, pack_row, unpack_identity


def _named(value: object) -> str:
    """Its repr without addresses: workers that share a run must collect the same names."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))[:60]


BASES = {
    tiermem.InvalidArgument: ValueError,
    tiermem.InvalidNamespace: ValueError,
    tiermem.InvalidKey: ValueError,
    tiermem.InvalidVector: ValueError,
    tiermem.DimensionMismatch: ValueError,
    tiermem.EmbedderMismatch: ValueError,
    tiermem.FilterError: ValueError,
    tiermem.EncodingError: TypeError,
    tiermem.RecordNotFound: KeyError,
    tiermem.LockTimeout: TimeoutError,
    tiermem.MissingExtra: ImportError,
}

INLINE = tiermem.ColdConfig(committer="inline", journal_bytes=2**20)
CONFIG = tiermem.Config(cold=INLINE)
START = 1_000_000.0


class Wordy(tiermem.HashEmbedder):
    """A hash embedder whose model name and results can be told."""

    def __init__(self, model: str, result: Any = None, dimension: int = 4) -> None:
        super().__init__(dimension)
        self.model = model
        self.result = result

    def embed(self, texts: Any) -> Any:
        return super().embed(texts) if self.result is None else self.result


class Nowhere(tzinfo):
    """A time zone that knows no offset: a datetime in it is naive all the same."""

    def utcoffset(self, _: datetime | None) -> None:
        return None

    def dst(self, _: datetime | None) -> None:
        return None

    def tzname(self, _: datetime | None) -> None:
        return None


@pytest.fixture
def mem(tmp_path: Path) -> Iterator[tiermem.Memory]:
    """A store with some of everything, all of it committed."""
    clock = tiermem.SimulatedClock(START)
    with tiermem.open(tmp_path / "store", config=CONFIG, clock=clock, embedder=Wordy("words")) as store:
        store.put("desk/obs", "a", {"px": 1.5}, vector=[1, 0, 0], metadata={"side": "buy", "n": 3})
        store.put("desk/obs", "b", [1, 2], vector=[0, 1, 0], metadata={"side": "sell"})
        store.put("desk/obs", "c", "plain")
        store.put("wide", "w", 1, vector=[1, 0, 0, 0, 0])
        store.create_namespace("dots", dimension=3, metric="dot")
        store.put("dots", "d", 1, vector=[0, 0, 0])
        store.put("notes", "n", 1, text="what did she say")
        store.put("timed", "t", 1, ttl=500.0)
        store.append("ticks", 1.5)
        store.cursor("reader", start=0)
        store.flush()
        yield store


def picture(mem: tiermem.Memory) -> dict[str, Any]:
    """Everything a user can see of a store, and the sizes of its files."""
    stats = mem.stats()
    names = mem.namespaces()
    return {
        "pending": (stats.writes.pending, stats.writes.pending_bytes),
        "log": stats.log,
        "names": names,
        "counted": dict(stats.namespaces),
        "vectors": {name: (part.dimension, part.metric, part.vectors) for name, part in stats.vectors.items()},
        "file": (stats.cold.bytes_used, stats.cold.file_bytes),
        "records": {
            (name, record.key): (
                repr(record._replace(vector=None)),
                None if record.vector is None else record.vector.tobytes(),
            )
            for name in names
            for record in mem.scan(name)
        },
        "counts": {name: mem.count(name) for name in names},
        "changes": list(mem.changes(0)),
    }


def complaints(
    mem: tiermem.Memory,
    call: Callable[[], object],
    error: type[BaseException],
    words: str = "",
    label: str = "",
) -> list[str]:
    """What is wrong with the way `call` is refused; nothing, if it is refused as promised."""
    before = picture(mem)
    found = []
    try:
        result = call()
        if isinstance(result, Iterator):
            result = list(result)
    except tiermem.TiermemError as exc:
        if not isinstance(exc, error):
            found.append(f"{label}: {type(exc).__name__} instead of {error.__name__}: {exc}")
        elif not str(exc).strip() or not re.search(words, str(exc)):
            found.append(f"{label}: the message does not name the problem ({words}): {exc}")
        if not isinstance(exc, BASES.get(type(exc), tiermem.TiermemError)):
            found.append(f"{label}: {type(exc).__name__} is no {BASES[type(exc)].__name__}")
    except Exception as exc:  # noqa: BLE001 - an error of any other kind is what is looked for
        found.append(f"{label}: undressed {type(exc).__name__}: {exc}")
    else:
        found.append(f"{label}: accepted, gave {result!r:.120}")
    try:
        after = picture(mem)
    except tiermem.TiermemError as exc:
        return [*found, f"{label}: left a store that cannot be read: {exc}"]
    if after != before:
        changed = [part for part in before if before[part] != after[part]]
        found.append(f"{label}: changed {changed}: {[(before[part], after[part]) for part in changed]!r:.600}")
    return found


def in_batch(mem: tiermem.Memory, fill: Callable[[tiermem.Batch], object]) -> Callable[[], None]:
    def call() -> None:
        with mem.batch() as batch:
            batch.put("desk/obs", "good", 1)
            fill(batch)

    return call


# ------------------------------------------------------------------------------------------------------------- names

UNHASHABLE: list[Any] = [[], {}, {1}, bytearray(b"x")]
BAD_NAMES: list[Any] = [
    *(None, 5, 1.5, True, b"desk/obs", object(), *UNHASHABLE, ("desk/obs",)),
    *("", "/", "/a", "a/", "a//b", "a/*", "a\0b", "\ud800", "a/\udfff", "x" * 256, "é" * 128),
]
BAD_KEYS: list[Any] = [
    *(None, 5, 1.5, True, b"a", object(), *UNHASHABLE, ("a",)),
    *("", "\ud800", "a\udfffb", "x" * 481, "é" * 241),
]

Verb = Callable[[tiermem.Memory, Any], Any]

BY_NAME: dict[str, Verb] = {
    "get": lambda m, x: m.get(x, "a"),
    "peek": lambda m, x: m.peek(x, "a"),
    "get_record": lambda m, x: m.get_record(x, "a"),
    "contains": lambda m, x: m.contains(x, "a"),
    "get_many": lambda m, x: m.get_many(x, ["a"]),
    "scan": lambda m, x: m.scan(x),
    "count": lambda m, x: m.count(x),
    "count where": lambda m, x: m.count(x, {"n": 3}),
    "latest": lambda m, x: m.latest(x),
    "put": lambda m, x: m.put(x, "a", 1),
    "put vector": lambda m, x: m.put(x, "a", 1, vector=[1, 2, 3]),
    "put durable": lambda m, x: m.put(x, "a", 1, durable=True),
    "put if_version": lambda m, x: m.put(x, "a", 1, if_version=0),
    "update": lambda m, x: m.update(x, "a", value=1),
    "touch": lambda m, x: m.touch(x, "a", ttl=1.0),
    "delete": lambda m, x: m.delete(x, "a"),
    "delete_many": lambda m, x: m.delete_many(x, ["a"]),
    "put_many": lambda m, x: m.put_many(x, [("a", 1)]),
    "put_many columns": lambda m, x: m.put_many(x, keys=["a"], values=[1]),
    "append": lambda m, x: m.append(x, 1),
    "batch.put": lambda m, x: in_batch(m, lambda b: b.put(x, "a", 1))(),
    "batch.append": lambda m, x: in_batch(m, lambda b: b.append(x, 1))(),
    "batch.delete": lambda m, x: in_batch(m, lambda b: b.delete(x, "a"))(),
    "guard": lambda m, x: m.put("desk/obs", "a", 1, guard=Guard(x, "a", 1)),
    "namespace": lambda m, x: m.namespace(x),
    "create_namespace": lambda m, x: m.create_namespace(x),
    "create_namespace dimension": lambda m, x: m.create_namespace(x, dimension=3),
    "drop_namespace": lambda m, x: m.drop_namespace(x),
    "search_similar in a list": lambda m, x: m.search_similar(["desk/obs", x], [1, 0, 0]),
    "search_many in a list": lambda m, x: m.search_many(["desk/obs", x], [[1, 0, 0]]),
}


@pytest.mark.parametrize("verb", BY_NAME)
def test_a_bad_namespace(mem: tiermem.Memory, verb: str) -> None:
    found = []
    for name in BAD_NAMES:
        if "in a list" in verb and name == "a/*":
            continue
        words = r"(?i)namespace|patterns?"
        found += complaints(mem, lambda n=name: BY_NAME[verb](mem, n), tiermem.InvalidNamespace, words, f"{name!r:.40}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", [5, 1.5, True, b"a", object(), "", "a//b", "\ud800", "x" * 256], ids=_named)
def test_a_bad_namespace_of_changes_a_cursor_or_a_search(mem: tiermem.Memory, name: Any) -> None:
    error = InvalidArgument
    found = complaints(mem, lambda: mem.changes(0, namespace=name), error, "(?i)namespace", "changes")
    if name != "":
        found += complaints(mem, lambda: mem.cursor("fresh", name), error, "(?i)namespace", "cursor")
    found += complaints(mem, lambda: mem.search_similar(name, [1, 0, 0]), error, "(?i)namespace", "search_similar")
    found += complaints(mem, lambda: mem.search_many(name, [[1, 0, 0]]), error, "(?i)namespace", "search_many")
    assert not found, "\n".join(found)


def test_a_cursor_on_the_empty_namespace_is_refused(mem: tiermem.Memory) -> None:
    found = complaints(mem, lambda: mem.cursor("fresh", ""), tiermem.InvalidNamespace, "(?i)namespace")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("pattern", ["a*", "**/a*", "de*/**", "desk/***", "a//**", "\ud800/**"])
def test_a_bad_pattern(mem: tiermem.Memory, pattern: str) -> None:
    words = "(?i)pattern|namespace"
    found = complaints(mem, lambda: mem.search_similar(pattern, [1, 0, 0]), InvalidArgument, words, pattern)
    assert not found, "\n".join(found)


BY_KEY: dict[str, Verb] = {
    "get": lambda m, x: m.get("desk/obs", x),
    "get in a new namespace": lambda m, x: m.get("nowhere", x),
    "peek": lambda m, x: m.peek("desk/obs", x),
    "get_record": lambda m, x: m.get_record("desk/obs", x),
    "contains": lambda m, x: m.contains("desk/obs", x),
    "get_many": lambda m, x: m.get_many("desk/obs", ["a", x]),
    "scan start": lambda m, x: m.scan("desk/obs", start=5 if x is None else x),
    "put": lambda m, x: m.put("desk/obs", x, 1),
    "put in a new namespace": lambda m, x: m.put("fresh", x, 1, vector=[1, 2]),
    "put if_version": lambda m, x: m.put("desk/obs", x, 1, if_version=0),
    "update": lambda m, x: m.update("desk/obs", x, value=1),
    "touch": lambda m, x: m.touch("desk/obs", x, ttl=1.0),
    "delete": lambda m, x: m.delete("desk/obs", x),
    "delete_many": lambda m, x: m.delete_many("desk/obs", ["a", x]),
    "delete_many, bad first": lambda m, x: m.delete_many("desk/obs", [x, "a"]),
    "put_many": lambda m, x: m.put_many("desk/obs", [("a", 1), (x, 1)]),
    "put_many Item": lambda m, x: m.put_many("desk/obs", [Item("a", 1), Item(x, 1)]),
    "put_many columns": lambda m, x: m.put_many("desk/obs", keys=["a", x], values=[1, 2]),
    "batch.put": lambda m, x: in_batch(m, lambda b: b.put("desk/obs", x, 1))(),
    "batch.delete": lambda m, x: in_batch(m, lambda b: b.delete("desk/obs", x))(),
    "guard": lambda m, x: m.put("desk/obs", "a", 1, guard=Guard("desk/obs", x, 1)),
    "ns[key]": lambda m, x: m.namespace("desk/obs")[x],
    "ns.get": lambda m, x: m.namespace("desk/obs").get(x),
    "ns[key] =": lambda m, x: m.namespace("desk/obs").__setitem__(x, 1),
    "del ns[key]": lambda m, x: m.namespace("desk/obs").__delitem__(x),
    "typed ns[key]": lambda m, x: m.namespace("desk/obs", type=dict)[x],
}


@pytest.mark.parametrize("verb", BY_KEY)
def test_a_bad_key(mem: tiermem.Memory, verb: str) -> None:
    found = []
    for key in BAD_KEYS:
        if verb in ("ns[key]", "typed ns[key]") and any(key is other for other in UNHASHABLE):
            # The lookup of a dict itself: what cannot be hashed is its TypeError.
            with pytest.raises(TypeError):
                BY_KEY[verb](mem, key)
            continue
        found += complaints(mem, lambda k=key: BY_KEY[verb](mem, k), tiermem.InvalidKey, "(?i)key", f"{key!r:.40}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("prefix", [0, 5, False, True, b"a", b"", [], object(), "\ud800"], ids=_named)
def test_a_bad_prefix(mem: tiermem.Memory, prefix: Any) -> None:
    found = complaints(mem, lambda: mem.scan("desk/obs", prefix), InvalidArgument, "(?i)key|prefix", "scan")
    call = lambda: mem.delete_many("desk/obs", prefix=prefix)  # noqa: E731 - a call of a table like the others
    found += complaints(mem, call, InvalidArgument, "(?i)key|prefix", "delete_many")
    if not isinstance(prefix, str) or len(prefix) == 1:
        found += complaints(mem, lambda: mem.namespaces(prefix), InvalidArgument, "(?i)prefix|namespace", "namespaces")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("prefix", [0, False, b"", [], ()], ids=_named)
def test_an_empty_thing_that_is_no_str_is_not_the_empty_prefix(tmp_path: Path, prefix: Any) -> None:
    """`prefix=""` means every record; `prefix=0` must not."""
    with tiermem.open(tmp_path / "s", config=CONFIG) as store:
        store.put("ns", "a", 1)
        with pytest.raises(InvalidArgument):
            store.delete_many("ns", prefix=prefix)
        assert store.get("ns", "a") == 1


# ------------------------------------------------------------------------------------------------ values and metadata

NESTED: list[Any] = []
for _ in range(300):
    NESTED = [NESTED]
CYCLE: list[Any] = []
CYCLE.append(CYCLE)

BAD_VALUES: list[Any] = [
    {1, 2},
    object(),
    {1: "int key"},
    {"x": {None: 1}},
    {("a",): 1},
    datetime(2024, 1, 1),
    [1, {"when": datetime(2024, 1, 1)}],
    datetime(2024, 1, 1, tzinfo=Nowhere()),
    1 + 2j,
    2**64,
    -(2**63) - 1,
    "\ud800",
    {"\ud800": 1},
    lambda: 1,
    int,
    iter([1]),
    NESTED,
    CYCLE,
    timedelta(seconds=1),
    np.array([object()]),
    np.array(["2024-01-01"], "M8[D]").astype(object),
]
BAD_METADATA: list[Any] = [
    5,
    "text",
    [("a", 1)],
    object(),
    0,
    [],
    False,
    "",
    np.array([1, 2]),
    {1: "x"},
    {"": 1},
    {"$gt": 1},
    {"a": None},
    {"a": {"nested": 1}},
    {"a": [[1]]},
    {"a": {1}},
    {"a": b"bytes"},
    {"a": datetime(2024, 1, 1)},
    {"a": [datetime(2024, 1, 1)]},
    {"a": 2**64},
    {"a": "\ud800"},
    {"a": date(2024, 1, 1)},
    {"a": object()},
]

WITH_VALUE: dict[str, Verb] = {
    "put": lambda m, x: m.put("desk/obs", "a", x),
    "put with a vector in a new namespace": lambda m, x: m.put("fresh", "a", x, vector=[1, 2]),
    "put durable": lambda m, x: m.put("desk/obs", "a", x, durable=True),
    "put if_version": lambda m, x: m.put("desk/obs", "new", x, if_version=0),
    "update": lambda m, x: m.update("desk/obs", "a", value=x),
    "append": lambda m, x: m.append("ticks", x),
    "put_many, last": lambda m, x: m.put_many("desk/obs", [("x", 1), ("y", 2), ("z", x)]),
    "put_many Items, last": lambda m, x: m.put_many("desk/obs", [Item("x", 1, vector=[1, 2, 3]), Item("z", x)]),
    "put_many columns, last": lambda m, x: m.put_many("desk/obs", keys=["x", "z"], values=[1, x]),
    "batch.put": lambda m, x: in_batch(m, lambda b: b.put("desk/obs", "a", x))(),
    "batch.append": lambda m, x: in_batch(m, lambda b: b.append("ticks", x))(),
    "ns[key] =": lambda m, x: m.namespace("desk/obs").__setitem__("a", x),
}
WITH_METADATA: dict[str, Verb] = {
    "put": lambda m, x: m.put("desk/obs", "a", 1, metadata=x),
    "put if_version": lambda m, x: m.put("desk/obs", "new", 1, metadata=x, if_version=0),
    "update": lambda m, x: m.update("desk/obs", "a", metadata=x),
    "append": lambda m, x: m.append("ticks", 1, metadata=x),
    "put_many, last": lambda m, x: m.put_many("desk/obs", [Item("x", 1), Item("y", 2, metadata=x)]),
    "put_many columns, last": lambda m, x: m.put_many("desk/obs", keys=["x", "y"], values=[1, 2], metadatas=[{}, x]),
    "batch.put": lambda m, x: in_batch(m, lambda b: b.put("desk/obs", "a", 1, metadata=x))(),
    "batch.append": lambda m, x: in_batch(m, lambda b: b.append("ticks", 1, metadata=x))(),
}


@pytest.mark.parametrize("verb", WITH_VALUE)
def test_a_value_that_cannot_be_stored(mem: tiermem.Memory, verb: str) -> None:
    found = []
    for value in BAD_VALUES:
        call = lambda v=value: WITH_VALUE[verb](mem, v)  # noqa: E731 - a call of a table like the others
        found += complaints(mem, call, tiermem.EncodingError, r"^value", f"{value!r:.40}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("verb", WITH_METADATA)
def test_metadata_that_cannot_be_stored(mem: tiermem.Memory, verb: str) -> None:
    found = []
    for metadata in BAD_METADATA:
        call = lambda v=metadata: WITH_METADATA[verb](mem, v)  # noqa: E731 - a call of a table like the others
        found += complaints(mem, call, tiermem.EncodingError, r"metadata", f"{metadata!r:.40}")
    assert not found, "\n".join(found)


# ----------------------------------------------------------------------------------------------------------- vectors

BAD_VECTORS: list[Any] = [
    5,
    "vector",
    b"1234",
    object(),
    [],
    [[1, 0, 0]],
    [[1, 0], [0]],
    ["a", "b", "c"],
    [None, 1, 2],
    [True, False, True],
    [1j, 0, 0],
    [float("nan"), 0, 1],
    [float("inf"), 0, 1],
    [1e39, 0, 0],
    [10**400, 0, 0],
    [0, 0, 0],
    [0.0, -0.0, 0.0],
    [1e-60, 0, 0],
    np.zeros((3, 1)),
    np.float32(3),
    {"a": 1},
    {1, 2, 3},
]
WRONG_DIMENSION: list[Any] = [[1], [1, 0], [1, 0, 0, 0], np.ones(384)]

WITH_VECTOR: dict[str, Verb] = {
    "put": lambda m, x: m.put("desk/obs", "a", 1, vector=x),
    "put in a new namespace": lambda m, x: m.put("fresh", "a", 1, vector=x),
    "put if_version": lambda m, x: m.put("desk/obs", "new", 1, vector=x, if_version=0),
    "update": lambda m, x: m.update("desk/obs", "a", vector=x),
    "append": lambda m, x: m.append("desk/obs", 1, vector=x),
    "put_many, last": lambda m, x: m.put_many("desk/obs", [Item("x", 1, vector=[1, 0, 0]), Item("y", 1, vector=x)]),
    "batch.put": lambda m, x: in_batch(m, lambda b: b.put("desk/obs", "a", 1, vector=x))(),
    "batch.append": lambda m, x: in_batch(m, lambda b: b.append("desk/obs", 1, vector=x))(),
    "search_similar": lambda m, x: m.search_similar("desk/obs", x),
    "search_many": lambda m, x: m.search_many("desk/obs", [[1, 0, 0], x]),
}


@pytest.mark.parametrize("verb", WITH_VECTOR)
def test_a_bad_vector(mem: tiermem.Memory, verb: str) -> None:
    found = []
    for vector in BAD_VECTORS:
        searched_text = "search" in verb and isinstance(vector, str)
        if searched_text:
            # A text where a vector may stand: embedded to another dimension, or mixed with vectors.
            continue
        call = lambda v=vector: WITH_VECTOR[verb](mem, v)  # noqa: E731 - a call of a table like the others
        found += complaints(mem, call, tiermem.InvalidVector, "(?i)vector", f"{vector!r:.40}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("verb", [verb for verb in WITH_VECTOR if "new namespace" not in verb])
def test_a_vector_of_another_dimension(mem: tiermem.Memory, verb: str) -> None:
    found = []
    for vector in WRONG_DIMENSION:
        call = lambda v=vector: WITH_VECTOR[verb](mem, v)  # noqa: E731 - a call of a table like the others
        found += complaints(mem, call, tiermem.DimensionMismatch, "dimension 3", f"{vector!r:.40}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("vectors", "error"),
    [
        (5, InvalidArgument),
        (object(), InvalidArgument),
        ([1, 0, 0], InvalidArgument),
        ([[1, 0, 0]], InvalidArgument),
        ([[1, 0, 0], [1, 0, 0], [1, 0, 0]], InvalidArgument),
        (np.zeros((2, 0)), tiermem.InvalidVector),
        (np.ones((2, 3, 1)), tiermem.InvalidVector),
        (np.ones(2), tiermem.InvalidVector),
        ([[1, 0, 0], [1, 0]], tiermem.InvalidVector),
        ([[1, 0, 0], None], tiermem.InvalidVector),
        ([[1, 0, 0], [0, 0, 0]], tiermem.InvalidVector),
        ([[1, 0, 0], [1, float("nan"), 0]], tiermem.InvalidVector),
        ([[1, 0, 0], [1, float("inf"), 0]], tiermem.InvalidVector),
        ("ab", tiermem.InvalidVector),
        (np.ones((2, 4)), tiermem.DimensionMismatch),
    ],
    ids=_named,
)
def test_a_bad_column_of_vectors(mem: tiermem.Memory, vectors: Any, error: type[Exception]) -> None:
    call = lambda: mem.put_many("desk/obs", keys=["x", "y"], values=[1, 2], vectors=vectors)  # noqa: E731 - as above
    found = complaints(mem, call, error, "(?i)vector|matrix|number", "put_many")
    assert not found, "\n".join(found)


FRESH: dict[str, tuple[Callable[[tiermem.Memory], object], type[Exception]]] = {
    "put_many whose last vector is short": (
        lambda m: m.put_many("fresh", [Item("a", 1, vector=[1, 2]), Item("b", 1, vector=[1])]),
        tiermem.DimensionMismatch,
    ),
    "put_many whose last value is bad": (
        lambda m: m.put_many("fresh", [Item("a", 1, vector=[1, 2]), Item("b", {1})]),
        tiermem.EncodingError,
    ),
    "put_many whose last key is bad": (
        lambda m: m.put_many("fresh", [Item("a", 1, vector=[1, 2]), ("", 1)]),
        tiermem.InvalidKey,
    ),
    "put_many columns, a zero row": (
        lambda m: m.put_many("fresh", keys=["a", "b"], values=[1, 2], vectors=[[1, 2], [0, 0]]),
        tiermem.InvalidVector,
    ),
    "batch whose last item is bad": (
        in_batch,  # type: ignore[dict-item]  # replaced below: it needs a batch of its own
        tiermem.EncodingError,
    ),
    "a negative if_version": (
        lambda m: m.put("fresh", "a", 1, vector=[1, 2], if_version=-1),
        InvalidArgument,
    ),
    "a guard that is none": (
        lambda m: m.put("fresh", "a", 1, vector=[1, 2], guard=("desk/obs", "a", 1)),  # type: ignore[arg-type]  # of a wrong type
        InvalidArgument,
    ),
    "a lost compare-and-set": (
        lambda m: m.put("fresh", "a", 1, vector=[1, 2], if_version=77),
        tiermem.VersionConflict,
    ),
    "a failed guard": (
        lambda m: m.put("fresh", "a", 1, vector=[1, 2], guard=Guard("desk/obs", "a", 77)),
        tiermem.GuardFailed,
    ),
    "update of nothing": (
        lambda m: m.update("fresh", "a", vector=[1, 2]),
        tiermem.RecordNotFound,
    ),
    "a zero vector": (lambda m: m.put("fresh", "a", 1, vector=[0, 0]), tiermem.InvalidVector),
    "a bad text": (lambda m: m.put("fresh", "a", 1, text=5), InvalidArgument),  # type: ignore[arg-type]  # of a wrong type
    "vector and text": (lambda m: m.put("fresh", "a", 1, vector=[1, 2], text="x"), InvalidArgument),
}


def _bad_batch(mem: tiermem.Memory) -> None:
    with mem.batch() as batch:
        batch.put("fresh", "a", 1, vector=[1, 2])
        batch.put("fresh", "b", {1})


FRESH["batch whose last item is bad"] = (_bad_batch, tiermem.EncodingError)


@pytest.mark.parametrize("case", FRESH)
def test_a_refused_write_does_not_make_its_namespace(tmp_path: Path, case: str) -> None:
    """Not even its dimension: the next writer may choose another one."""
    call, error = FRESH[case]
    with tiermem.open(tmp_path / "s", config=CONFIG, embedder=Wordy("words")) as store:
        store.put("desk/obs", "a", 1)
        store.flush()
        found = complaints(store, lambda: call(store), error, "", case)
        assert "fresh" not in store.namespaces()
        assert not found, "\n".join(found)
        store.put("fresh", "z", 1, vector=[1, 2, 3, 4, 5])


def test_a_batch_given_up_does_not_make_its_namespace(tmp_path: Path) -> None:
    with tiermem.open(tmp_path / "s", config=CONFIG) as store:
        store.put("desk/obs", "a", 1)
        store.flush()
        before = picture(store)
        with contextlib.suppress(KeyboardInterrupt), store.batch() as batch:
            batch.put("fresh", "a", 1, vector=[1, 2])
            raise KeyboardInterrupt
        assert picture(store) == before


# ----------------------------------------------------------------------------------------------------- other arguments

BAD_TIMES: list[Any] = [
    datetime(2024, 1, 1),
    datetime(2024, 1, 1, tzinfo=Nowhere()),
    date(2024, 1, 1),
    "2024-01-01",
    float("nan"),
    float("inf"),
    -float("inf"),
    True,
    10**400,
    timedelta(1),
    object(),
    [],
]
AT_A_TIME: dict[str, Verb] = {
    "put at": lambda m, x: m.put("desk/obs", "a", 1, at=x),
    "append at": lambda m, x: m.append("ticks", 1, at=x),
    "put_many at": lambda m, x: m.put_many("desk/obs", [Item("x", 1), Item("y", 1, at=x)]),
    "batch at": lambda m, x: in_batch(m, lambda b: b.put("desk/obs", "a", 1, at=x))(),
    "scan since": lambda m, x: m.scan("desk/obs", since=x),
    "scan until": lambda m, x: m.scan("desk/obs", until=x),
    "search since": lambda m, x: m.search_similar("desk/obs", [1, 0, 0], since=x),
    "search until": lambda m, x: m.search_similar("desk/obs", [1, 0, 0], until=x),
    "search_many since": lambda m, x: m.search_many("desk/obs", [[1, 0, 0]], since=x),
}
BAD_TTLS: list[Any] = [
    *(0, 0.0, -1, -0.5, float("nan"), float("inf"), -float("inf"), True, False, "60", 10**400),
    *(timedelta(0), timedelta(seconds=-1), datetime(2024, 1, 1, tzinfo=UTC), object(), []),
]
WITH_TTL: dict[str, Verb] = {
    "put": lambda m, x: m.put("desk/obs", "a", 1, ttl=x),
    "update": lambda m, x: m.update("desk/obs", "a", ttl=x),
    "touch": lambda m, x: m.touch("desk/obs", "a", ttl=x),
    "append": lambda m, x: m.append("ticks", 1, ttl=x),
    "put_many": lambda m, x: m.put_many("desk/obs", [Item("x", 1), Item("y", 1, ttl=x)]),
    "batch": lambda m, x: in_batch(m, lambda b: b.put("desk/obs", "a", 1, ttl=x))(),
}
BAD_FILTERS: list[Any] = [
    5,
    "side",
    [("side", "buy")],
    0,
    [],
    {1: 2},
    {"side": None},
    {"side": {}},
    {"side": {"$like": "b"}},
    {"$nor": [{"a": 1}]},
    {"$gt": 3},
    {"$and": []},
    {"$and": {"a": 1}},
    {"$or": [5]},
    {"$not": 5},
    {"n": {"$gt": True}},
    {"n": {"$gt": [1]}},
    {"n": {"$in": 5}},
    {"n": {"$in": "abc"}},
    {"n": {"$exists": 1}},
    {"n": {"$starts_with": 1}},
    {"n": {"$contains": [1]}},
    {"n": {"$and": [1]}},
    {"n": {1: 2}},
    {"n": object()},
    {"n": b"x"},
    {"when": datetime(2024, 1, 1)},
    {"when": {"$lt": datetime(2024, 1, 1)}},
    {"when": {"$lt": datetime(2024, 1, 1, tzinfo=Nowhere())}},
    {"when": {"$in": [datetime(2024, 1, 1)]}},
    {"when": np.datetime64("2024-01-01")},
]
FILTERED: dict[str, Verb] = {
    "scan": lambda m, x: m.scan("desk/obs", where=x),
    "count": lambda m, x: m.count("desk/obs", x),
    "delete_many": lambda m, x: m.delete_many("desk/obs", where=x),
    "delete_many keys": lambda m, x: m.delete_many("desk/obs", ["a"], where=x),
    "search_similar": lambda m, x: m.search_similar("desk/obs", [1, 0, 0], where=x),
    "search_many": lambda m, x: m.search_many("desk/obs", [[1, 0, 0]], where=x),
}
NOT_POSITIVE: list[Any] = [0, -1, True, False, 1.5, 2.0, "3", None, float("nan"), [1], object()]
COUNTED: dict[str, Verb] = {
    "search_similar k": lambda m, x: m.search_similar("desk/obs", [1, 0, 0], k=x),
    "search_many k": lambda m, x: m.search_many("desk/obs", [[1, 0, 0]], k=x),
    "latest n": lambda m, x: m.latest("desk/obs", x),
    "scan limit": lambda m, x: m.scan("desk/obs", limit=x),
    "create_namespace dimension": lambda m, x: m.create_namespace("fresh", dimension=x),
}
BAD_VERSIONS: list[Any] = [-1, True, False, 1.0, "1", [1], object()]
VERSIONED: dict[str, Verb] = {
    "put": lambda m, x: m.put("desk/obs", "a", 1, if_version=x),
    "delete": lambda m, x: m.delete("desk/obs", "a", if_version=x),
    "delete of nothing": lambda m, x: m.delete("desk/obs", "absent", if_version=x),
    "batch.put": lambda m, x: in_batch(m, lambda b: b.put("desk/obs", "a", 1, if_version=x))(),
    "batch.delete": lambda m, x: in_batch(m, lambda b: b.delete("desk/obs", "a", if_version=x))(),
    "guard": lambda m, x: m.put("desk/obs", "a", 1, guard=Guard("desk/obs", "b", x)),
    "batch guard": lambda m, x: in_batch(m, lambda b: b.append("ticks", 1, guard=Guard("desk/obs", "b", x)))(),
}
BAD_GUARDS: list[Any] = [5, "a", ("desk/obs", "a", 1), {"namespace": "a"}, True, [], Item("a", 1)]
GUARDED: dict[str, Verb] = {
    "put": lambda m, x: m.put("desk/obs", "a", 1, guard=x),
    "delete": lambda m, x: m.delete("desk/obs", "a", guard=x),
    "delete of nothing": lambda m, x: m.delete("desk/obs", "absent", guard=x),
    "batch.put": lambda m, x: in_batch(m, lambda b: b.put("desk/obs", "a", 1, guard=x))(),
    "batch.append": lambda m, x: in_batch(m, lambda b: b.append("ticks", 1, guard=x))(),
    "batch.delete": lambda m, x: in_batch(m, lambda b: b.delete("desk/obs", "a", guard=x))(),
}


def sweep(mem: tiermem.Memory, verbs: dict[str, Verb], bad: list[Any], error: type[Exception], words: str) -> list[str]:
    found = []
    for verb, call in verbs.items():
        for given in bad:
            found += complaints(mem, lambda c=call, g=given: c(mem, g), error, words, f"{verb} {given!r:.60}")
    return found


@pytest.mark.parametrize("verb", AT_A_TIME)
def test_a_bad_time(mem: tiermem.Memory, verb: str) -> None:
    found = sweep(mem, {verb: AT_A_TIME[verb]}, BAD_TIMES, InvalidArgument, "(?i)time")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("verb", WITH_TTL)
def test_a_bad_ttl(mem: tiermem.Memory, verb: str) -> None:
    found = sweep(mem, {verb: WITH_TTL[verb]}, BAD_TTLS, InvalidArgument, "ttl")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("verb", FILTERED)
def test_a_bad_filter(mem: tiermem.Memory, verb: str) -> None:
    found = sweep(mem, {verb: FILTERED[verb]}, BAD_FILTERS, tiermem.FilterError, "^where")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("verb", COUNTED)
def test_a_bad_count(mem: tiermem.Memory, verb: str) -> None:
    allowed = {"scan limit": (0, None), "create_namespace dimension": (None,)}.get(verb, ())
    bad = [x for x in NOT_POSITIVE if not any(x is y for y in allowed)]
    found = sweep(mem, {verb: COUNTED[verb]}, bad, InvalidArgument, verb.split()[1])
    assert not found, "\n".join(found)


@pytest.mark.parametrize("verb", VERSIONED)
def test_a_bad_version(mem: tiermem.Memory, verb: str) -> None:
    found = sweep(mem, {verb: VERSIONED[verb]}, BAD_VERSIONS, InvalidArgument, "version")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("verb", GUARDED)
def test_a_bad_guard(mem: tiermem.Memory, verb: str) -> None:
    found = sweep(mem, {verb: GUARDED[verb]}, BAD_GUARDS, InvalidArgument, "guard")
    assert not found, "\n".join(found)


ODD: dict[str, tuple[Callable[[tiermem.Memory], object], type[Exception], str]] = {
    # How many things a call wants, and of which shape.
    "put_many of nothing": (lambda m: m.put_many("desk/obs"), InvalidArgument, "put_many"),
    "put_many both ways": (
        lambda m: m.put_many("desk/obs", [("a", 1)], keys=["a"], values=[1]),
        InvalidArgument,
        "put_many",
    ),
    "put_many keys only": (lambda m: m.put_many("desk/obs", keys=["a"]), InvalidArgument, "values"),
    "put_many values only": (lambda m: m.put_many("desk/obs", values=[1]), InvalidArgument, "keys"),
    "put_many short values": (lambda m: m.put_many("desk/obs", keys=["x", "y"], values=[1]), InvalidArgument, "values"),
    "put_many long values": (lambda m: m.put_many("desk/obs", keys=["x"], values=[1, 2]), InvalidArgument, "values"),
    "put_many short metadatas": (
        lambda m: m.put_many("desk/obs", keys=["x", "y"], values=[1, 2], metadatas=[{}]),
        InvalidArgument,
        "metadatas",
    ),
    "put_many keys is a str": (lambda m: m.put_many("desk/obs", keys="xy", values=[1, 2]), InvalidArgument, "keys"),
    "put_many keys is a number": (lambda m: m.put_many("desk/obs", keys=5, values=[1]), InvalidArgument, "keys"),
    "put_many values is a number": (lambda m: m.put_many("desk/obs", keys=["x"], values=5), InvalidArgument, "values"),
    "put_many metadatas is a number": (
        lambda m: m.put_many("desk/obs", keys=["x"], values=[1], metadatas=5),
        InvalidArgument,
        "metadatas",
    ),
    "put_many metadatas is a dict": (
        lambda m: m.put_many("desk/obs", keys=["x"], values=[1], metadatas={"side": "buy"}),
        InvalidArgument,
        "metadatas",
    ),
    "put_many of a number": (lambda m: m.put_many("desk/obs", 5), InvalidArgument, "items"),
    "put_many of a str": (lambda m: m.put_many("desk/obs", "ab"), InvalidArgument, "items"),
    "put_many of a dict": (lambda m: m.put_many("desk/obs", {"a": 1}), InvalidArgument, "items"),
    "put_many of triples": (lambda m: m.put_many("desk/obs", [("x", 1), ("y", 1, 2)]), InvalidArgument, r"items\[1\]"),
    "put_many of lists": (lambda m: m.put_many("desk/obs", [("x", 1), ["y", 1]]), InvalidArgument, r"items\[1\]"),
    "get_many of a str": (lambda m: m.get_many("desk/obs", "abc"), InvalidArgument, "keys"),
    "get_many of a number": (lambda m: m.get_many("desk/obs", 5), InvalidArgument, "keys"),
    "get_many of None": (lambda m: m.get_many("desk/obs", None), InvalidArgument, "keys"),
    "delete_many of nothing": (lambda m: m.delete_many("desk/obs"), InvalidArgument, "keys"),
    "delete_many where {}": (lambda m: m.delete_many("desk/obs", where={}), InvalidArgument, "filter"),
    "delete_many of a str": (lambda m: m.delete_many("desk/obs", "abc"), InvalidArgument, "keys"),
    "delete_many of a number": (lambda m: m.delete_many("desk/obs", 5), InvalidArgument, "keys"),
    "delete_many keys and prefix": (lambda m: m.delete_many("desk/obs", ["a"], prefix=""), InvalidArgument, "prefix"),
    # Records that are not there, versions that are not met.
    "update of nothing": (lambda m: m.update("desk/obs", "absent", value=1), tiermem.RecordNotFound, "'absent'"),
    "touch of nothing": (lambda m: m.touch("desk/obs", "absent", ttl=1), tiermem.RecordNotFound, "'absent'"),
    "update in no namespace": (lambda m: m.update("nowhere", "a", value=1), tiermem.RecordNotFound, "'nowhere'"),
    "put if_version 0 over": (lambda m: m.put("desk/obs", "a", 1, if_version=0), tiermem.VersionConflict, "'a'"),
    "put if_version high": (lambda m: m.put("desk/obs", "a", 1, if_version=2**70), tiermem.VersionConflict, "'a'"),
    "delete if_version": (lambda m: m.delete("desk/obs", "a", if_version=7), tiermem.VersionConflict, "'a'"),
    "delete of nothing if_version": (
        lambda m: m.delete("desk/obs", "absent", if_version=7),
        tiermem.VersionConflict,
        "'absent'",
    ),
    "guard": (lambda m: m.put("ticks", "a", 1, guard=Guard("wide", "w", 7)), tiermem.GuardFailed, "'w'"),
    "batch if_version": (
        lambda m: in_batch(m, lambda b: b.put("wide", "w", 1, if_version=7))(),
        tiermem.VersionConflict,
        "'w'",
    ),
    # Searches.
    "min_score is a str": (lambda m: m.search_similar("wide", [1] * 5, min_score="0"), InvalidArgument, "min_score"),
    "min_score is a bool": (lambda m: m.search_similar("wide", [1] * 5, min_score=True), InvalidArgument, "min_score"),
    "min_score is NaN": (
        lambda m: m.search_similar("wide", [1] * 5, min_score=float("nan")),
        InvalidArgument,
        "min_score",
    ),
    "min_score is enormous": (
        lambda m: m.search_similar("wide", [1] * 5, min_score=10**400),
        InvalidArgument,
        "min_score",
    ),
    "namespaces of two dimensions": (
        lambda m: m.search_similar(["desk/obs", "wide"], [1, 0, 0]),
        tiermem.DimensionMismatch,
        "'wide' has dimension 5",
    ),
    "namespaces of two metrics": (
        lambda m: m.search_similar(["desk/obs", "dots"], [1, 0, 0]),
        InvalidArgument,
        "(?i)metric",
    ),
    "pattern over two dimensions": (lambda m: m.search_similar("**", [1, 0, 0]), InvalidArgument, "dimension|metric"),
    "search_many of a number": (lambda m: m.search_many("desk/obs", 5), InvalidArgument, "quer"),
    "search_many of None": (lambda m: m.search_many("desk/obs", None), InvalidArgument, "quer"),
    "search_many of one vector": (lambda m: m.search_many("desk/obs", [1.0, 0, 0]), tiermem.InvalidVector, "vector"),
    "search_many of one text": (lambda m: m.search_many("notes", "she"), InvalidArgument, "quer"),
    "search_many of one vector, nowhere": (lambda m: m.search_many([], [1.0]), InvalidArgument, "vector|namespace"),
    "texts and vectors": (lambda m: m.search_many("notes", ["she", [1, 0, 0, 0]]), InvalidArgument, "texts or vectors"),
    "text of another dimension": (
        lambda m: m.search_similar("desk/obs", "she"),
        tiermem.DimensionMismatch,
        "dimension",
    ),
    "text into another dimension": (
        lambda m: m.put("desk/obs", "a", 1, text="she"),
        tiermem.DimensionMismatch,
        "dimension",
    ),
    "text that is none": (lambda m: m.put("notes", "a", 1, text=5), InvalidArgument, "text"),
    "text and vector": (lambda m: m.put("notes", "a", 1, text="x", vector=[1] * 4), InvalidArgument, "not both"),
    "text with a surrogate": (lambda m: m.put("notes", "a", {1}, text="\ud800"), tiermem.EncodingError, "value"),
    # Namespaces.
    "metric of another name": (
        lambda m: m.create_namespace("fresh", dimension=3, metric="manhattan"),
        InvalidArgument,
        "metric",
    ),
    "metric of another type": (
        lambda m: m.create_namespace("fresh", dimension=3, metric=[]),
        InvalidArgument,
        "metric",
    ),
    "metric alone": (lambda m: m.create_namespace("fresh", metric="dot"), InvalidArgument, "dimension"),
    "another dimension": (lambda m: m.create_namespace("desk/obs", dimension=4), tiermem.DimensionMismatch, "3"),
    "another metric": (
        lambda m: m.create_namespace("desk/obs", dimension=3, metric="dot"),
        InvalidArgument,
        "'cosine'",
    ),
    "an enormous dimension": (lambda m: m.create_namespace("fresh", dimension=2**80), InvalidArgument, "dimension"),
    "a type nothing decodes into": (
        lambda m: m.namespace("desk/obs", type=object()),
        tiermem.EncodingError,
        "decoded",
    ),
    "an unhashable type": (lambda m: m.namespace("desk/obs", type=[]), tiermem.TiermemError, "decode"),
    # The feed.
    "after is negative": (lambda m: m.changes(-1), InvalidArgument, "after"),
    "after is a bool": (lambda m: m.changes(True), InvalidArgument, "after"),
    "after is a str": (lambda m: m.changes("1"), InvalidArgument, "after"),
    "after is a float": (lambda m: m.changes(1.0), InvalidArgument, "after"),
    "after is enormous": (lambda m: m.changes(2**64), InvalidArgument, "after"),
    "after is just too large": (lambda m: m.changes(2**64 - 1), InvalidArgument, "after"),
    "wait is negative": (lambda m: m.changes(0, wait=-1), InvalidArgument, "wait"),
    "wait is NaN": (lambda m: m.changes(0, wait=float("nan")), InvalidArgument, "wait"),
    "wait is a str": (lambda m: m.changes(0, wait="1"), InvalidArgument, "wait"),
    "wait is a bool": (lambda m: m.changes(0, wait=True), InvalidArgument, "wait"),
    "cursor without a name": (lambda m: m.cursor(""), InvalidArgument, "cursor"),
    "cursor named by a number": (lambda m: m.cursor(5), InvalidArgument, "cursor"),
    "cursor of a long name": (lambda m: m.cursor("x" * 256), InvalidArgument, "cursor"),
    "cursor with a surrogate": (lambda m: m.cursor("\ud800"), InvalidArgument, "cursor"),
    "cursor start is a str": (lambda m: m.cursor("fresh", start="1"), InvalidArgument, "start"),
    "cursor start is a float": (lambda m: m.cursor("fresh", start=1.5), InvalidArgument, "start"),
    "cursor start is a bool": (lambda m: m.cursor("fresh", start=True), InvalidArgument, "start"),
    "cursor start is negative": (lambda m: m.cursor("fresh", start=-1), InvalidArgument, "start"),
    "cursor start is enormous": (lambda m: m.cursor("fresh", start=2**80), InvalidArgument, "start"),
    "cursor start lies ahead": (lambda m: m.cursor("fresh", start=10**6), InvalidArgument, "start"),
    "cursor of another namespace": (lambda m: m.cursor("reader", "wide"), InvalidArgument, "'reader'"),
    # Housekeeping.
    "backup to a number": (lambda m: m.backup(5), InvalidArgument, "(?i)path|target"),
    "backup with a NUL": (lambda m: m.backup("a\0b"), tiermem.TiermemError, "."),
}


@pytest.mark.parametrize("case", ODD)
def test_an_odd_argument(mem: tiermem.Memory, case: str) -> None:
    call, error, words = ODD[case]
    found = complaints(mem, lambda: call(mem), error, words, case)
    assert not found, "\n".join(found)


def test_backup_into_what_is_there(mem: tiermem.Memory, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_text("x")
    before = sorted(tmp_path.iterdir())
    found = complaints(mem, lambda: mem.backup(folder), InvalidArgument, "not an empty directory")
    found += complaints(mem, lambda: mem.backup(folder / "file"), InvalidArgument, "not an empty directory")
    found += complaints(mem, lambda: mem.backup(folder / "file" / "x"), tiermem.StorageError, "backup")
    assert not found, "\n".join(found)
    assert sorted(tmp_path.iterdir()) == before


def test_a_batch_that_has_ended(mem: tiermem.Memory) -> None:
    with mem.batch() as batch:
        pass
    found = complaints(mem, lambda: batch.put("desk/obs", "a", 1), InvalidArgument, "ended")
    assert not found, "\n".join(found)


def test_the_mapping_refuses_as_a_mapping_does(mem: tiermem.Memory) -> None:
    ns = mem.namespace("desk/obs")
    with pytest.raises(KeyError):
        ns["absent"]
    with pytest.raises(KeyError):
        del ns["absent"]
    with pytest.raises(KeyError):
        ns.pop("absent")
    assert "absent" not in ns
    assert 5 not in ns


def test_the_builtin_base_of_every_error() -> None:
    for name in tiermem.__all__:
        kind = getattr(tiermem, name)
        if isinstance(kind, type) and issubclass(kind, Exception):
            assert issubclass(kind, tiermem.TiermemError)
            assert issubclass(kind, BASES.get(kind, Exception)), name


# ---------------------------------------------------------------------------------------------------------- embedders


def test_text_needs_an_embedder(tmp_path: Path) -> None:
    with tiermem.open(tmp_path / "s", config=CONFIG) as store:
        store.put("notes", "n", 1, vector=[1, 0])
        store.flush()
        found = complaints(store, lambda: store.put("notes", "a", 1, text="x"), InvalidArgument, "embedder")
        found += complaints(store, lambda: store.append("notes", 1, text="x"), InvalidArgument, "embedder")
        found += complaints(store, lambda: store.search_similar("notes", "x"), InvalidArgument, "embedder")
        found += complaints(store, lambda: store.search_many("notes", ["x"]), InvalidArgument, "embedder")
        assert not found, "\n".join(found)


def test_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with tiermem.open(path, config=CONFIG, embedder=Wordy("first")) as store:
        store.put("notes", "n", 1, text="she said")
    with tiermem.open(path, config=CONFIG, embedder=Wordy("second")) as store:
        words = "'first'"
        error = tiermem.EmbedderMismatch
        found = complaints(store, lambda: store.put("notes", "a", 1, text="x"), error, words, "put")
        found += complaints(store, lambda: store.append("notes", 1, text="x"), error, words, "append")
        found += complaints(store, lambda: store.search_similar("notes", "x"), error, words, "search_similar")
        found += complaints(store, lambda: store.search_many("notes", ["x"]), error, words, "search_many")
        found += complaints(store, lambda: store.search_similar("**", "x"), error, words, "pattern")
        assert not found, "\n".join(found)


def test_another_model_of_another_dimension_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with tiermem.open(path, config=CONFIG, embedder=Wordy("first")) as store:
        store.put("notes", "n", 1, text="she said")
    with tiermem.open(path, config=CONFIG, embedder=Wordy("second", dimension=8)) as store:
        error = tiermem.EmbedderMismatch
        found = complaints(store, lambda: store.put("notes", "a", 1, text="x"), error, "'first'")
        assert not found, "\n".join(found)
        found = complaints(store, lambda: store.search_similar("notes", "x"), error, "'first'")
        assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "result",
    [
        np.zeros((1, 3), np.float32),
        np.ones((2, 4), np.float32),
        np.ones(4, np.float32),
        np.full((1, 4), np.nan, np.float32),
        np.zeros((1, 4), np.float32),
        np.array([["a", "b", "c", "d"]]),
        [[1.0, 0.0, 0.0]],
        [1.0, 0.0, 0.0, 0.0],
        "vector",
        5,
    ],
    ids=_named,
)
def test_an_embedder_that_breaks_its_promise(tmp_path: Path, result: Any) -> None:
    path = tmp_path / "s"
    with tiermem.open(path, config=CONFIG, embedder=Wordy("words")) as store:
        store.put("notes", "n", 1, text="she said")
    with tiermem.open(path, config=CONFIG, embedder=Wordy("words", result)) as store:
        error = tiermem.InvalidVector
        found = complaints(store, lambda: store.put("notes", "a", 1, text="x"), error, "(?i)vector|shape", "put")
        found += complaints(store, lambda: store.put("fresh", "a", 1, text="x"), error, "(?i)vector|shape", "fresh")
        found += complaints(store, lambda: store.search_similar("notes", "x"), error, "(?i)vector|shape", "search")
        assert not found, "\n".join(found)


# ------------------------------------------------------------------------------------------------- opening and closing


def make(path: Path) -> None:
    with tiermem.open(path, config=CONFIG) as store:
        store.put("ns", "k", {"x": 1}, vector=[1, 0])


def files(path: Path) -> dict[str, bytes | None]:
    """Every file under `path` with its bytes; locks, which carry none, without."""
    return {
        str(entry.relative_to(path)): None if entry.name == "lock.mdb" else entry.read_bytes()
        for entry in sorted(path.rglob("*"))
        if entry.is_file()
    }


@pytest.mark.parametrize("read_only", [False, True])
def test_a_directory_that_is_a_file(tmp_path: Path, read_only: bool) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(tiermem.IncompatibleFormatError, match="is a file"):
        tiermem.open(path, read_only=read_only)
    assert path.read_text() == "precious"


def test_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(tiermem.TiermemError, match="file"):
        tiermem.open(tmp_path / "file" / "store")


@pytest.mark.parametrize("read_only", [False, True])
def test_a_directory_of_something_else(tmp_path: Path, read_only: bool) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(tiermem.IncompatibleFormatError, match="holds no store"):
        tiermem.open(tmp_path, read_only=read_only)
    assert [entry.name for entry in tmp_path.iterdir()] == ["letter.txt"]


def test_a_foreign_environment(tmp_path: Path) -> None:
    """Right names around an LMDB environment that is no store."""
    make(tmp_path / "s")
    for name in ("data.mdb", "lock.mdb"):
        (tmp_path / "s" / "gen-1" / name).unlink()
    with lmdb.open(str(tmp_path / "s" / "gen-1"), max_dbs=4) as env, env.begin(write=True) as txn:
        txn.put(b"k", b"v")
    before = (tmp_path / "s" / "gen-1" / "data.mdb").read_bytes()
    for read_only in (True, False):
        with pytest.raises(tiermem.IncompatibleFormatError, match="no tiermem store"):
            tiermem.open(tmp_path / "s", read_only=read_only)
    assert (tmp_path / "s" / "gen-1" / "data.mdb").read_bytes() == before


def test_read_only_makes_no_store(tmp_path: Path) -> None:
    with pytest.raises(tiermem.IncompatibleFormatError, match="holds no store"):
        tiermem.open(tmp_path / "missing", read_only=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", [None, 5, b"store", [], "a\0b", ""], ids=_named)
def test_a_path_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").write_text("x")
    with pytest.raises(tiermem.TiermemError) as caught:
        tiermem.open(path)
    assert str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["something"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"config": {}}, "config"),
        ({"config": {"hot": 1}}, "config"),
        ({"config": 5}, "config"),
        ({"config": tiermem.ColdConfig()}, "config"),
        ({"clock": 5}, "clock"),
        ({"clock": tiermem.SimulatedClock}, "clock"),
        ({"clock": lambda: 5.0}, "clock"),
        ({"embedder": 5}, "embedder"),
        ({"embedder": "hash"}, "embedder"),
        ({"embedder": tiermem.HashEmbedder}, "embedder"),
    ],
    ids=_named,
)
def test_open_with_things_of_another_kind(tmp_path: Path, arguments: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidArgument, match=word):
        tiermem.open(tmp_path / "s", **arguments)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("tiermem store 2\ngen-1\n", tiermem.IncompatibleFormatError),
        ("tiermem store 10\ngen-1\n", tiermem.IncompatibleFormatError),
        ("another store 1\ngen-1\n", tiermem.IncompatibleFormatError),
        ("", tiermem.TiermemError),
        ("\0" * 22, tiermem.TiermemError),
        ("tiermem store 1\n", tiermem.CorruptionError),
        ("tiermem store 1\ngen-\n", tiermem.CorruptionError),
        ("tiermem store 1\ngen-x\n", tiermem.CorruptionError),
        ("tiermem store 1\ngen-7\n", tiermem.CorruptionError),
        ("tiermem store 1\ngen-²\n", tiermem.CorruptionError),
        ("tiermem store 1\ngen-" + "9" * 5000 + "\n", tiermem.CorruptionError),
        ("tiermem store 1\n../gen-1\n", tiermem.CorruptionError),
    ],
    ids=_named,
)
def test_a_current_file_of_another_format(tmp_path: Path, text: str, error: type[Exception]) -> None:
    path = tmp_path / "s"
    make(path)
    (path / "CURRENT").write_text(text, encoding="utf-8")
    before = files(path)
    for read_only in (True, False):
        with pytest.raises(error, match=r"CURRENT|store|gen-"):
            tiermem.open(path, read_only=read_only)
    assert files(path) == before
    # Put right, the store is whole: nothing was touched.
    (path / "CURRENT").write_text("tiermem store 1\ngen-1\n")
    with tiermem.open(path, config=CONFIG) as store:
        assert store.get("ns", "k") == {"x": 1}


@pytest.mark.parametrize("read_only", [False, True])
def test_a_store_of_a_newer_format(tmp_path: Path, read_only: bool) -> None:
    path = tmp_path / "s"
    make(path)

    def rewrite(form: int) -> None:
        with lmdb.open(str(path / "gen-1"), max_dbs=20) as env:
            meta = env.open_db(b"meta", create=False)
            with env.begin(write=True) as txn:
                identity: Identity = unpack_identity(txn.get(b"identity", db=meta))
                identity.format = form
                txn.put(b"identity", pack_row(b"identity", identity), db=meta)

    rewrite(2)
    before = files(path)
    with pytest.raises(tiermem.IncompatibleFormatError, match="format 2"):
        tiermem.open(path, read_only=read_only)
    assert files(path) == before
    rewrite(1)
    with tiermem.open(path, config=CONFIG) as store:
        assert store.get("ns", "k") == {"x": 1}


def test_a_clock_of_the_other_domain(tmp_path: Path) -> None:
    make(tmp_path / "s")
    with pytest.raises(tiermem.TimeDomainMismatch, match="real"):
        tiermem.open(tmp_path / "s", clock=tiermem.SimulatedClock(5.0))
    with tiermem.open(tmp_path / "s", config=CONFIG) as store:
        assert store.get("ns", "k") == {"x": 1}


def test_a_second_opening_that_asks_for_something_else(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with tiermem.open(path, config=CONFIG, embedder=Wordy("words")) as first:
        first.put("ns", "k", 1)
        other = tiermem.Config(hot=tiermem.HotConfig(max_bytes=1), cold=INLINE)
        for arguments, word in (
            ({"config": other}, "config"),
            ({"config": tiermem.Config()}, "config"),
            ({"clock": tiermem.SimulatedClock(1.0)}, "clock"),
            ({"embedder": Wordy("another")}, "embedder"),
        ):
            with pytest.raises(tiermem.ConfigMismatch, match=word):
                tiermem.open(path, **arguments)  # type: ignore[arg-type]  # one of several keywords each
        with tiermem.open(path, config=CONFIG) as second:
            assert second.get("ns", "k") == 1
        assert first.get("ns", "k") == 1
    with tiermem.open(path, read_only=True), pytest.raises(tiermem.ConfigMismatch, match="read-only"):
        tiermem.open(path)


def test_a_read_only_handle_on_an_open_store_is_read_only(tmp_path: Path) -> None:
    with tiermem.open(tmp_path / "s", config=CONFIG) as store:
        store.put("ns", "k", 1)
        with tiermem.open(tmp_path / "s", read_only=True) as reader:
            assert reader.get("ns", "k") == 1
            with pytest.raises(tiermem.ReadOnlyError):
                reader.put("ns", "k", 2)
        assert store.get("ns", "k") == 1


@pytest.mark.parametrize(
    ("part", "arguments"),
    [
        (tiermem.HotConfig, {"max_bytes": -1}),
        (tiermem.HotConfig, {"max_bytes": "1"}),
        (tiermem.HotConfig, {"max_bytes": 1.5}),
        (tiermem.HotConfig, {"policy": "lru"}),
        (tiermem.VectorConfig, {"metric": "manhattan"}),
        (tiermem.VectorConfig, {"metric": None}),
        (tiermem.VectorConfig, {"metric": []}),
        (tiermem.VectorConfig, {"engine": "scann"}),
        (tiermem.VectorConfig, {"index": "trees"}),
        (tiermem.VectorConfig, {"m": 1}),
        (tiermem.VectorConfig, {"ef_construction": 0}),
        (tiermem.VectorConfig, {"seal_rows": 15}),
        (tiermem.ColdConfig, {"map_size": 0}),
        (tiermem.ColdConfig, {"map_size": 2**20 - 1}),
        (tiermem.ColdConfig, {"map_size": 2**70}),
        (tiermem.ColdConfig, {"map_size": "1"}),
        (tiermem.ColdConfig, {"map_size": 2.0**30}),
        (tiermem.ColdConfig, {"sync_interval": 0}),
        (tiermem.ColdConfig, {"sync_interval": -1}),
        (tiermem.ColdConfig, {"sync_interval": 61}),
        (tiermem.ColdConfig, {"sync_interval": float("nan")}),
        (tiermem.ColdConfig, {"sync_interval": "1"}),
        (tiermem.ColdConfig, {"committer": "process"}),
        (tiermem.ColdConfig, {"committer": None}),
        (tiermem.ColdConfig, {"journal_bytes": 2**15}),
        (tiermem.ColdConfig, {"journal_bytes": 2**20 + 1}),
        (tiermem.ColdConfig, {"journal_bytes": float(2**20)}),
        (tiermem.ColdConfig, {"journal_bytes": None}),
        (tiermem.ColdConfig, {"log_retention": -1}),
        (tiermem.ColdConfig, {"log_retention": 1.5}),
        (tiermem.ColdConfig, {"max_readers": 0}),
        (tiermem.ColdConfig, {"max_readers": 10**6}),
        (tiermem.ColdConfig, {"max_readers": 1.5}),
        (tiermem.CodecConfig, {"level": -1}),
        (tiermem.CodecConfig, {"level": 20}),
        (tiermem.CodecConfig, {"level": 1.5}),
        (tiermem.CodecConfig, {"min_bytes": -1}),
        (tiermem.CodecConfig, {"dictionary_bytes": 100}),
        (tiermem.CodecConfig, {"dictionary_samples": 15}),
        (tiermem.CodecConfig, {"dictionary_samples": "many"}),
        (tiermem.Config, {"time_domain": "virtual"}),
        (tiermem.Config, {"hot": 5}),
        (tiermem.Config, {"hot": None}),
        (tiermem.Config, {"cold": tiermem.HotConfig()}),
        (tiermem.Config, {"vector": {}}),
        (tiermem.Config, {"codec": "zstd"}),
        (tiermem.HashEmbedder, {"dimension": 1}),
        (tiermem.HashEmbedder, {"dimension": "8"}),
        (tiermem.HashEmbedder, {"dimension": 2.5}),
        (tiermem.SimulatedClock, {"start": float("nan")}),
        (tiermem.SimulatedClock, {"start": datetime(2024, 1, 1)}),
        (tiermem.SimulatedClock, {"start": 10**400}),
    ],
    ids=_named,
)
def test_a_bad_configuration(part: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        part(**arguments)
    name = next(iter(arguments))
    spoken = {"committer": "committer", "dictionary_bytes": "dictionary", "time_domain": "time domain", "start": "time"}
    assert spoken.get(name, name) in str(caught.value)


def test_a_simulated_clock_does_not_go_back() -> None:
    clock = tiermem.SimulatedClock(100.0)
    for call in (lambda: clock.advance(-1), lambda: clock.set(99), lambda: clock.advance(float("nan"))):
        with pytest.raises(InvalidArgument, match="time"):
            call()
    assert clock.now() == 100.0


CLOSED: dict[str, Callable[[tiermem.Memory], object]] = {
    "get": lambda m: m.get("ns", "k"),
    "peek": lambda m: m.peek("ns", "k"),
    "get_record": lambda m: m.get_record("ns", "k"),
    "contains": lambda m: m.contains("ns", "k"),
    "get_many": lambda m: m.get_many("ns", ["k"]),
    "scan": lambda m: m.scan("ns"),
    "count": lambda m: m.count("ns"),
    "latest": lambda m: m.latest("ns"),
    "search_similar": lambda m: m.search_similar("ns", [1, 0]),
    "search_many": lambda m: m.search_many("ns", [[1, 0]]),
    "namespaces": lambda m: m.namespaces(),
    "changes": lambda m: m.changes(0),
    "cursor": lambda m: m.cursor("c"),
    "put": lambda m: m.put("ns", "k", 2),
    "update": lambda m: m.update("ns", "k", value=2),
    "touch": lambda m: m.touch("ns", "k", ttl=2),
    "delete": lambda m: m.delete("ns", "k"),
    "delete_many": lambda m: m.delete_many("ns", ["k"]),
    "put_many": lambda m: m.put_many("ns", [("k", 2)]),
    "append": lambda m: m.append("ns", 2),
    "batch": lambda m: m.batch(),
    "namespace": lambda m: m.namespace("ns"),
    "create_namespace": lambda m: m.create_namespace("new"),
    "drop_namespace": lambda m: m.drop_namespace("ns"),
    "flush": lambda m: m.flush(),
    "check": lambda m: m.check(),
    "compact": lambda m: m.compact(),
    "build_index": lambda m: m.build_index("ns"),
    "backup": lambda m: m.backup("never"),
    "stats": lambda m: m.stats(),
}
READ = frozenset(
    {
        "search_many",
        "scan",
        "count",
        "peek",
        "get_many",
        "get_record",
        "namespace",
        "changes",
        "check",
        "contains",
        "latest",
        "flush",
        "search_similar",
        "get",
        "backup",
        "stats",
        "namespaces",
    }
)


def test_every_verb_is_in_the_tables() -> None:
    # What a store goes by, its clock and its embedder, is no verb, and can be asked for after the end.
    verbs = {
        name for name in dir(tiermem.Memory) if not name.startswith("_") and callable(getattr(tiermem.Memory, name))
    }
    assert verbs - {"close"} <= set(CLOSED)


@pytest.mark.parametrize("others", [0, 1], ids=["the last handle", "another handle stays open"])
def test_after_close_every_verb_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: int) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "s")
    wrong = []
    with contextlib.ExitStack() as stack:
        for _ in range(others):
            stack.enter_context(tiermem.open(tmp_path / "s", config=CONFIG))
        store = tiermem.open(tmp_path / "s", config=CONFIG)
        store.close()
        store.close()
        for verb, call in CLOSED.items():
            try:
                result = call(store)
                if isinstance(result, Iterator):
                    list(result)
            except tiermem.ClosedError as exc:
                if "closed" not in str(exc):
                    wrong.append(f"{verb}: {exc}")
            except Exception as exc:  # noqa: BLE001 - an error of any other kind is what is looked for
                wrong.append(f"{verb}: {type(exc).__name__}: {exc}")
            else:
                wrong.append(f"{verb}: {result!r}")
        assert "closed" in repr(store)
    assert not wrong, "\n".join(wrong)
    with tiermem.open(tmp_path / "s", read_only=True) as store:
        assert store.get("ns", "k") == {"x": 1}


def test_what_was_made_before_close_says_so_after(tmp_path: Path) -> None:
    make(tmp_path / "s")
    store = tiermem.open(tmp_path / "s", config=CONFIG)
    ns = store.namespace("ns")
    ns["hot"] = 1
    assert ns["hot"] == 1
    assert ns["k"] == {"x": 1}
    typed = store.namespace("ns", type=dict)
    assert typed["k"] == {"x": 1}
    scan, changes, cursor = store.scan("ns"), store.changes(0), store.cursor("c", start=0)
    begun, hit = store.scan("ns"), store.search_similar("ns", [1, 0])[0]
    next(begun)
    batch = store.batch()
    batch.__enter__()
    batch.put("ns", "never", 1)
    store.close()
    calls: dict[str, Callable[[], object]] = {
        "ns[hot]": lambda: ns["hot"],
        "ns[k]": lambda: ns["k"],
        "ns[absent]": lambda: ns["absent"],
        "typed": lambda: typed["k"],
        "ns.get": lambda: ns.get("k"),
        "ns.put": lambda: ns.put("k", 1),
        "ns[k] =": lambda: ns.__setitem__("k", 1),
        "del ns[k]": lambda: ns.__delitem__("k"),
        "len": lambda: len(ns),
        "in": lambda: "k" in ns,
        "iter": lambda: list(ns),
        "ns.get_many": lambda: ns.get_many(["k"]),
        "ns.latest": ns.latest,
        "scan": lambda: list(scan),
        "changes": lambda: list(changes),
        "cursor": lambda: list(cursor),
        "cursor.lag": lambda: cursor.lag,
        "cursor.wait": lambda: cursor.wait(0.0),
        "cursor.commit": cursor.commit,
        "cursor.delete": cursor.delete,
        "hit.value": lambda: hit.value,
        "batch": lambda: batch.__exit__(None, None, None),
    }
    wrong = []
    for name, call in calls.items():
        try:
            wrong.append(f"{name}: {call()!r}")
        except tiermem.ClosedError:
            continue
        except Exception as exc:  # noqa: BLE001 - an error of any other kind is what is looked for
            wrong.append(f"{name}: {type(exc).__name__}: {exc}")
    assert not wrong, "\n".join(wrong)
    with tiermem.open(tmp_path / "s", read_only=True) as store:
        assert {record.key for record in store.scan("ns")} == {"hot", "k"}


def test_read_only_refuses_every_write(tmp_path: Path) -> None:
    path = tmp_path / "s"
    make(path)
    before = files(path)
    wrong = []
    with tiermem.open(path, read_only=True) as store:
        seen = picture(store)
        for verb, call in CLOSED.items():
            if verb in READ:
                continue
            try:
                wrong.append(f"{verb}: {call(store)!r}")
            except tiermem.ReadOnlyError as exc:
                if "read-only" not in str(exc):
                    wrong.append(f"{verb}: {exc}")
            except Exception as exc:  # noqa: BLE001 - an error of any other kind is what is looked for
                wrong.append(f"{verb}: {type(exc).__name__}: {exc}")
        ns = store.namespace("ns")
        for name, write in {
            "ns[k] =": lambda: ns.__setitem__("k", 1),
            "del ns[k]": lambda: ns.__delitem__("k"),
            "ns.clear": ns.clear,
            "check(repair=True)": lambda: store.check(repair=True),
            "put of nonsense": lambda: store.put("ns", "k", {1}),
            "delete of nothing": lambda: store.delete("ns", "absent"),
            "empty put_many": lambda: store.put_many("ns", []),
        }.items():
            with contextlib.suppress(tiermem.ReadOnlyError):
                wrong.append(f"{name}: {write()!r}")
        store.flush()
        assert picture(store) == seen
        assert store.check().ok
    assert not wrong, "\n".join(wrong)
    assert files(path) == before


NOBODY = 65534

AS_NOBODY = """
import os, sys
import tiermem
import tiermem.engine.sealing, tiermem.tiers.vector.index  # read while they may be read
path, mode = sys.argv[1:]
os.setgid(65534); os.setuid(65534)
try:
    with tiermem.open(path, read_only=mode == "read") as mem:
        assert mem.get("ns", "k") == {"x": 1}
        assert [record.key for record in mem.scan("ns")] == ["k"]
        assert [hit.key for hit in mem.search_similar("ns", [1, 0])] == ["k"]
        assert mem.count("ns") == 1 and mem.namespaces() == ["ns"]
        assert [change.op for change in mem.changes(0)] == ["put"]
        assert mem.check().ok
        assert mem.stats().namespaces == {"ns": 1}
        print("read")
except tiermem.TiermemError as exc:
    print(type(exc).__name__, exc)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
@pytest.mark.parametrize("mode", ["read", "write"])
def test_a_directory_that_may_only_be_read(
    tmp_path: Path, run_python: Callable[..., subprocess.CompletedProcess[str]], mode: str
) -> None:
    path = tmp_path / "s"
    make(path)
    before = files(path)
    opened = []
    for folder in [*reversed(path.parents), path]:
        status = folder.stat()
        if not status.st_mode & 0o001 and status.st_uid == 0:
            opened.append((folder, status.st_mode))
            folder.chmod(status.st_mode & 0o7777 | 0o011)
    try:
        done = run_python(AS_NOBODY, path, mode, cwd=Path("/"))
    finally:
        for folder, bits in opened:
            folder.chmod(bits & 0o7777)
    words = done.stdout.split()
    assert words, done.stderr
    assert words[0] in ({"read"} if mode == "read" else {"StorageError", "ReadOnlyError"}), done.stdout
    assert files(path) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_a_place_where_nothing_may_be_made(
    tmp_path: Path, run_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = run_python(AS_NOBODY, "/never-a-store", "write", cwd=Path("/"))
    assert done.stdout.split()[:1] in (["StorageError"], ["ReadOnlyError"]), done.stdout
    assert not Path("/never-a-store").exists()
