"""Histories: a seeded sequence of operations, and the states a store may be in when it was interrupted."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, Final, NamedTuple, TypeAlias

from tiermem import Memory

State: TypeAlias = dict[str, dict[str, Any]]
"""Namespace to key to value. A record of a stream goes by its value, one with a vector is `[value, vector]`."""

NAMES: Final = ("desk/a", "desk/b", "notes")
STREAM: Final = "ticks"
VECTORS: Final = "vectors"
SOON: Final = 1e-4
"""Seconds in which a record expires that is gone before anybody looks."""
LATER: Final = 86_400.0
MOST_STATES: Final = 64
"""Operations in doubt double the states that are legal; a run that has more has gone wrong in another way."""

WEIGHTS: Final = {
    "put": 24,
    "sized": 10,
    "batch": 15,
    "delete": 12,
    "append": 10,
    "vector": 12,
    "lasting": 4,
    "passing": 4,
    "swap": 8,
    "durable": 6,
    "large": 3,
    "drop": 2,
    "flush": 3,
    "compact": 2,
}
"""How often each verb comes up in `steps`."""


class Step(NamedTuple):
    """One operation: a verb of `perform` and its arguments, which JSON can carry."""

    verb: str
    args: tuple[Any, ...] = ()

    @property
    def lasts(self) -> bool:
        """Whether it returns only once it, and all before it, is durable."""
        return self.verb in ("swap", "durable", "flush", "compact", "large") or (self.verb == "batch" and self.args[1])


def steps(
    seed: int,
    *,
    durable: bool = False,
    index: bool = False,
    under: str = "",
    weights: Mapping[str, int] = WEIGHTS,
) -> Iterator[Step]:
    """An endless sequence of operations that follows from the seed.

    durable: every plain put asks for `durable=True`. index: many vectors, and now and then segments are made of them.
    under: what the names of all namespaces begin with. weights: how often each verb comes up.
    """
    rng = random.Random(seed)
    names = tuple(under + name for name in NAMES)
    if index:
        weights = {**weights, "vector": 120, "index": 12}
    verbs, shares = list(weights), list(weights.values())
    number = 0
    while True:
        number += 1
        mark = f"{seed}:{number}"
        name, key = rng.choice(names), f"k{rng.randrange(12):02d}"
        verb = rng.choices(verbs, shares)[0]
        if verb in ("put", "sized"):
            size = 0 if verb == "put" else rng.choice((10, 200, 3000))
            yield Step("durable" if durable else "put", (name, key, [mark, rng.randbytes(size).hex()]))
        elif verb == "batch":
            writes: list[list[Any]] = [["put", other, f"batch{number % 3}", mark] for other in names]
            writes += [["delete", name, key], ["put", name, f"k{rng.randrange(12):02d}", mark]]
            yield Step("batch", (writes, durable))
        elif verb == "vector":
            vector = [float(rng.randrange(1, 100)) for _ in range(4)]
            yield Step("vector", (under + VECTORS, f"v{rng.randrange(60 if index else 8):02d}", mark, vector))
        elif verb == "swap":
            yield Step("swap", (name, f"s{rng.randrange(3)}", mark))
        elif verb == "large":
            yield Step("large", (name, key, [mark, rng.randbytes(20_000).hex()]))
        elif verb == "delete":
            yield Step("delete", (name, key))
        elif verb == "append":
            yield Step("append", (under + STREAM, mark))
        elif verb == "drop":
            yield Step("drop", (name,))
        elif verb in ("flush", "compact"):
            yield Step(verb)
        elif verb == "index":
            yield Step(verb, (under + VECTORS,))
        else:
            yield Step(verb, (name, key, mark))


def perform(mem: Memory, step: Step) -> None:
    """Do one step on a store."""
    verb, args = step
    if verb in ("put", "large"):
        mem.put(*args)
    elif verb == "durable":
        mem.put(*args, durable=True)
    elif verb == "lasting":
        mem.put(*args, ttl=LATER)
    elif verb == "passing":
        mem.put(*args, ttl=SOON)
    elif verb == "batch":
        with mem.batch(durable=args[1]) as batch:
            for write, *rest in args[0]:
                getattr(batch, write)(*rest)
    elif verb == "delete":
        mem.delete(*args)
    elif verb == "append":
        mem.append(*args)
    elif verb == "vector":
        mem.put(*args[:3], vector=args[3])
    elif verb == "swap":
        record = mem.get_record(args[0], args[1])
        mem.put(*args, if_version=record.version if record else 0)
    elif verb == "drop":
        mem.drop_namespace(*args)
    elif verb == "flush":
        mem.flush()
    elif verb == "compact":
        mem.compact()
    elif verb == "index" and args[0] in mem.namespaces():
        mem.build_index(*args)


def after(state: State, step: Step) -> State:
    """The state that a step makes of another."""
    verb, args = step
    made = {name: dict(records) for name, records in state.items()}

    def put(name: str, key: str, value: Any) -> None:
        made.setdefault(name, {})[key] = value

    if verb == "batch":
        for write, *rest in args[0]:
            if write == "put":
                put(*rest)
            else:
                made.get(rest[0], {}).pop(rest[1], None)
    elif verb in ("delete", "passing"):
        made.get(args[0], {}).pop(args[1], None)
    elif verb == "append":
        put(args[0], args[1], args[1])
    elif verb == "vector":
        put(args[0], args[1], [args[2], args[3]])
    elif verb == "drop":
        made.pop(args[0], None)
    elif verb not in ("flush", "compact", "index"):
        put(*args)
    return {name: records for name, records in made.items() if records}


def contents(mem: Memory, *, beside: str = "company", under: str = "") -> State:
    """What a store holds, asked for in several ways, which must agree; the namespace `beside` is left out.

    under: what the names of the namespaces begin with.

    Raises:
        AssertionError: `get`, `scan`, `count` and `search_similar` do not agree.
    """
    found: State = {}
    for name in mem.namespaces(under):
        if name == beside:
            continue
        kind = name.removeprefix(under)
        records = list(mem.scan(name))
        assert mem.count(name) == len(records), f"count({name!r}) is {mem.count(name)}, a scan finds {len(records)}"
        for one, other in pairwise(records):
            assert one.key < other.key, f"a scan of {name!r} has {one.key!r} before {other.key!r}"
        for record in records:
            value = mem.get(name, record.key)
            assert value == record.value, f"{name}/{record.key}: get finds {value!r}, a scan {record.value!r}"
        if kind == VECTORS and records:
            hits = mem.search_similar(name, [1.0, 1.0, 1.0, 1.0], k=1000)
            assert {(hit.key, hit.version) for hit in hits} == {(r.key, r.version) for r in records}, "search differs"
            found[name] = {r.key: [r.value, [] if r.vector is None else r.vector.tolist()] for r in records}
        elif records:
            found[name] = {record.value if kind == STREAM else record.key: record.value for record in records}
            assert len(found[name]) == len(records), f"a record of {name!r} is there twice"
    return found


class Legal:
    """The states that are legal: what was acknowledged is in all of them, what is in doubt in half of them."""

    def __init__(self, state: State | None = None) -> None:
        self.states: list[State] = [state or {}]

    def acknowledged(self, step: Step) -> None:
        """The step has returned."""
        self.states = [after(state, step) for state in self.states]

    def doubtful(self, step: Step) -> None:
        """The step was begun and has not returned, or has raised."""
        for state in list(self.states):
            other = after(state, step)
            if other not in self.states:
                self.states.append(other)
        assert len(self.states) <= MOST_STATES, "too many operations are in doubt"

    def seen(self, found: State) -> str:
        """Only the state that was found is left, if it is legal; else what it differs in from the nearest one."""
        if found in self.states:
            self.states = [found]
            return ""
        return min((differences(found, state) for state in self.states), key=len)


def differences(found: State, wanted: State) -> str:
    """Where two states differ, in words."""
    lines = [
        f"{name}/{key}: found {str(found.get(name, {}).get(key))[:60]}, not {str(wanted.get(name, {}).get(key))[:60]}"
        for name in sorted({*found, *wanted})
        for key in sorted({*found.get(name, {}), *wanted.get(name, {})})
        if found.get(name, {}).get(key) != wanted.get(name, {}).get(key)
    ]
    return "; ".join(lines[:10]) + (f"; and {len(lines) - 10} more" if len(lines) > 10 else "")
