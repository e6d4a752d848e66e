"""Subjects of exact search: one namespace of unit vectors with metadata, and the same as a matrix and columns."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
from _workload import SEED, K, directory, unit_vectors

import tiermem
from microbench.rivals import numpy_scan
from microbench.scale import Scale
from microbench.subject import NS, Subject, Subjects

SHARES: Final = {"half": 2, "tenth": 10}
PAIRS: Final = {
    "`mem.search_similar`": "plain numpy scan",
    "`mem.search_similar`, filter lets half through": "plain numpy scan of half",
    "`mem.search_similar`, filter lets a tenth through": "plain numpy scan of a tenth",
}


def names() -> list[str]:
    """The rows in the order of their turns, ours before theirs."""
    return [name for pair in PAIRS.items() for name in pair]


@contextmanager
def subjects(scale: Scale) -> Iterator[Subjects]:
    """Searches that are given one query after the other."""
    matrix = unit_vectors(scale.vectors)
    queries = unit_vectors(scale.queries * scale.turns, SEED + 1)
    columns = {name: np.arange(scale.vectors) % share for name, share in SHARES.items()}
    metadatas = [{name: number % share for name, share in SHARES.items()} for number in range(scale.vectors)]
    keys = [f"row-{number:06d}" for number in range(scale.vectors)]
    with directory() as root, tiermem.open(root / "store") as mem:
        mem.put_many(NS, keys=keys, values=[None] * scale.vectors, vectors=matrix, metadatas=metadatas)
        mem.flush()
        ask = functools.partial(mem.search_similar, NS, k=K, exact=True)
        ours = [ask, *(functools.partial(ask, where={name: 1}) for name in SHARES)]
        theirs = [functools.partial(numpy_scan.search, matrix)]
        theirs += [functools.partial(numpy_scan.search_where, matrix, columns[name], 1) for name in SHARES]
        for one, other in zip(ours, theirs, strict=True):
            for query in queries[:3]:
                assert [hit.key for hit in one(query)] == [keys[row] for row in other(query)]

        def subject(run: Callable[..., object]) -> Subject:
            return Subject(run, (), itertools.cycle(queries))

        runs = [run for pair in zip(ours, theirs, strict=True) for run in pair]
        yield {name: subject(run) for name, run in zip(names(), runs, strict=True)}
