"""The steps: filled, thinned out, written over, expired; behind each a compaction while another process works."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import lmdb
import msgspec
import numpy as np
from _workload import RECORD_BYTES, SEED, directory, key_names, record
from visibilitybench.cells import peers, percentiles

from spacebench.stores import STORES, Rows, Store, Tiermem

DIMENSION: Final = 128
PAUSE: Final = 0.001
"""Seconds the process beside sleeps behind a put and a get."""
CALM: Final = 1.0
"""Seconds it works before the compaction begins, for comparison."""
KEYS: Final = 1_000
"""Records the process beside writes, one after the other, again and again."""
LARGE: Final = ("records", "vectors", "log", "floors")
ROUNDS: Final = 6
"""How often all is written over without a compaction."""
STEPS: Final = ("filled", "half deleted", "all overwritten", "half expired")
Told = Callable[[str], object]


def beside(pipe: Connection, name: str, root: Path, now: float, keys: Sequence[str]) -> None:
    """Put and get by turns until told to stop; when each call began and how long it took, in nanoseconds."""
    clock, rng = time.perf_counter_ns, random.Random(SEED)
    store = STORES[name](root, now)
    found: dict[str, list[tuple[int, int]]] = {"put": [], "get": []}
    pipe.send("ready")
    number = 0
    while not pipe.poll():
        begun = clock()
        store.put(f"load-{number % KEYS:04d}", {"number": number})
        found["put"].append((begun, clock() - begun))
        key = rng.choice(keys)
        begun = clock()
        value = store.get(key)
        found["get"].append((begun, clock() - begun))
        assert value["order"] >= 0
        number += 1
        time.sleep(PAUSE)
    pipe.recv()
    store.close()
    pipe.send(found)


def compacted(store: Store, keys: Sequence[str]) -> dict[str, Any]:
    """Compact; how long that took, and of what goes on meanwhile, and went on before, the calls' milliseconds."""
    clock = time.perf_counter_ns
    if not store.online:
        begun = clock()
        store.compact()
        return {"seconds": (clock() - begun) / 1e9, "calls": {}, "calm": {}}
    with peers((beside, store.name, store.root, store.now, keys)) as (peer,):
        time.sleep(CALM)
        begun = clock()
        store.compact()
        ended = clock()
        peer.tell("stop")
        calls = peer.answer()

    def chosen(verb: str, *, meanwhile: bool) -> dict[str, Any]:
        # A call that began before and lasted into it belongs to it.
        kept = [t for at, t in calls[verb] if at <= ended and (at + t >= begun) == meanwhile]
        return percentiles([float(t) for t in kept])

    return {
        "seconds": (ended - begun) / 1e9,
        "calls": {verb: chosen(verb, meanwhile=True) for verb in calls},
        "calm": {verb: chosen(verb, meanwhile=False) for verb in calls},
    }


def databases(pipe: Connection, data: Path) -> None:
    """Bytes of the pages of each of L3's larger databases, of all others, and of the file."""
    pipe.send("ready")
    found: dict[str, int] = {}
    # In a process of its own: one that has the store open may not open its file a second time.
    with lmdb.open(str(data.parent), readonly=True, lock=False, max_dbs=20) as env, env.begin() as txn:
        for name in (None, *(bytes(key) for key, _ in txn.cursor())):
            stat = txn.stat(env.open_db(name, txn=txn, create=False))
            pages = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
            known = name.decode() if name else ""
            known = known if known in LARGE else "others"
            found[known] = found.get(known, 0) + pages * stat["psize"]
    pipe.send(found | {"file": data.stat().st_size})


def vectors(count: int, seed: int) -> Rows:
    """Float32 vectors of shape (count, DIMENSION)."""
    return np.random.default_rng(seed).standard_normal((count, DIMENSION), np.float32)


def measured(name: str, records: int, rows: int, told: Told) -> dict[str, Any]:
    """All steps of one store, and how its files grow where all is written over again and again."""
    rng = random.Random(SEED)
    keys, points = key_names(records), [f"vector-{number:06d}" for number in range(rows)]
    values, seen = [record(number) for number in range(records)], vectors(rows, SEED)
    encode = msgspec.msgpack.Encoder().encode
    found: dict[str, Any] = {"store": name, "steps": [], "rounds": []}
    with directory() as folder:
        store = STORES[name](folder / "store")
        living, kept = keys, points

        def step(title: str, work: Callable[[], None]) -> None:
            told(f"{name}: {title}")
            begun = time.perf_counter()
            work()
            os.sync()
            one: dict[str, Any] = {"step": title, "seconds": time.perf_counter() - begun}
            one["live"] = sum(len(key) + RECORD_BYTES for key in living)
            one["live"] += sum(len(key) + 4 * DIMENSION for key in kept)
            one["before"] = store.parts()
            one |= {"compaction": compacted(store, living)}
            one["after"] = store.parts()
            if isinstance(store, Tiermem):
                with peers((databases, store.data())) as (peer,):
                    one["databases"] = peer.answer()
            found["steps"].append(one)

        def fill() -> None:
            store.put_records(keys, values)
            store.put_vectors(points, seen)

        assert len(encode(values[0])) == RECORD_BYTES
        step(STEPS[0], fill)
        rng.shuffle(order := list(range(records)))
        rng.shuffle(places := list(range(rows)))
        half = records // 2
        living = [keys[number] for number in sorted(order[half:])]
        kept = [points[number] for number in sorted(places[rows // 2 :])]
        step(
            STEPS[1],
            lambda: store.delete([keys[n] for n in order[:half]], [points[n] for n in places[: rows // 2]]),
        )
        expiring = set(rng.sample(living, len(living) // 2))
        fresh = [record(records + number) for number in range(len(living))]

        def overwrite() -> None:
            store.put_records(living, fresh, expiring)
            store.put_vectors(kept, vectors(len(kept), SEED + 1))

        step(STEPS[2], overwrite)
        living = [key for key in living if key not in expiring]
        step(STEPS[3], store.expire)
        for number in range(ROUNDS):
            told(f"{name}: written over again, {number + 1} of {ROUNDS}")
            rng.shuffle(living)
            store.put_records(living, fresh[: len(living)])
            found["rounds"].append(store.parts())
        store.close()
    return found
