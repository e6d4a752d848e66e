"""Subjects of hot reads: caches that hold the same objects under the same keys."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from _workload import COLD_ROUND, HOT_ROUND, directory, key_names, zipf

import tiermem
from microbench.rivals import CACHES, caches
from microbench.scale import Scale
from microbench.subject import DAY, NS, Lookup, Subject, Subjects, get, get_from, nothing, own, pieces, subscript

EXPIRING: Final = "desk/expiring"
FIRST_ROUND: Final = 250
"""Keys of a round that asks for each absent key once: what is known to be absent is bounded, and is to have room."""

LOOP: Final = "the loop alone"
OURS: Final[dict[str, Lookup]] = {
    "`ns[key]`": "hit",
    "`mem.get`": "hit",
    "`ns.get`": "hit",
    "`ns[key]`, record with a TTL": "expiring",
    "`mem.get`, record with a TTL": "expiring",
    "`mem.get`, absent key": "absent",
    "`mem.get`, absent key, for the first time": "absent",
}


def rows(*kinds: Lookup) -> list[str]:
    """The rows of some kinds, ours first, whoever is there."""
    known = [OURS, *(rival.rows for rival in CACHES)]
    return [name for found in known for name, kind in found.items() if kind in kinds]


def names() -> list[str]:
    """The rows of all that are there, in the order of their turns."""
    return [LOOP, *OURS, *(name for rival in caches() for name in rival.rows)]


def warm(mem: tiermem.Memory, name: str, keys: Sequence[str]) -> tiermem.Namespace:
    """A namespace with a value for every key, read until no hit runs the policy any more."""
    for _ in range(4):
        get_from(mem, name, keys)
    before = mem.stats().hot
    get_from(mem, name, keys)
    after = mem.stats().hot
    assert after.misses == before.misses, "some keys are not in L1"
    assert after.watched_hits == before.watched_hits, "some hits run the policy"
    return mem.namespace(name)


def strangers(prefix: str, rounds: int, size: int) -> list[Sequence[str]]:
    """Keys that nobody holds, by rounds."""
    return pieces([f"{prefix}-{number:08d}" for number in range(rounds * size)], size)


@contextmanager
def subjects(scale: Scale) -> Iterator[Subjects]:
    """Caches filled alike, and lookups that all hit, or all miss.

    Keys go in by rank, so what is often read lies close together in memory, for every subject alike.
    """
    keys = key_names(scale.keys)
    lookups = pieces(zipf(keys, scale.rounds * HOT_ROUND), HOT_ROUND)
    absent = strangers("absent", scale.rounds, COLD_ROUND)
    first = strangers("stranger", (scale.rounds + 1) * scale.turns, FIRST_ROUND)
    asked = 0

    def once() -> Iterator[Sequence[str]]:
        nonlocal asked
        for piece in first:
            asked += len(piece)
            yield piece

    with directory() as root, tiermem.open(root / "store") as mem:
        mem.put_many(NS, zip(keys, itertools.count(), strict=False))
        mem.put_many(EXPIRING, (tiermem.Item(key, number, ttl=float(DAY)) for number, key in enumerate(keys)))
        mem.flush()
        ns, expiring = warm(mem, NS, keys), warm(mem, EXPIRING, keys)
        values = {key: ns[key] for key in keys}
        for piece in absent:
            get_from(mem, NS, piece)

        def hits(loop: Callable[..., None], *arguments: Any) -> Subject:
            return Subject(own(loop), arguments, itertools.cycle(lookups), HOT_ROUND)

        def misses(loop: Callable[..., None], *arguments: Any) -> Subject:
            return Subject(own(loop), arguments, itertools.cycle(absent), COLD_ROUND)

        found = {
            LOOP: hits(nothing),
            "`ns[key]`": hits(subscript, ns),
            "`mem.get`": hits(get_from, mem, NS),
            "`ns.get`": hits(get, ns),
            "`ns[key]`, record with a TTL": hits(subscript, expiring),
            "`mem.get`, record with a TTL": hits(get_from, mem, EXPIRING),
            "`mem.get`, absent key": misses(get_from, mem, NS),
            "`mem.get`, absent key, for the first time": Subject(own(get_from), (mem, EXPIRING), once(), FIRST_ROUND),
        }
        for rival in caches():
            filled = rival().lookups(values)
            assert filled.keys() == rival.rows.keys()
            for name, (loop, cache) in filled.items():
                found[name] = (misses if rival.rows[name] == "absent" else hits)(loop, cache)
        before = mem.stats().hot
        assert 0 < before.bytes < before.max_bytes, "L1 has no budget"
        yield found
        after = mem.stats().hot
        assert after.watched_hits == before.watched_hits, "some hits ran the policy"
        assert after.misses - before.misses == asked, "an absent key was looked for twice, or a hit was a miss"
