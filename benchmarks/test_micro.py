"""The loops that `bench_micro.py` compares: hot reads, cold reads, exact search.

Each subject is measured by pytest-benchmark in several turns, and turns of different subjects alternate, so that what
the machine does meanwhile meets all of them. No assertion here is about time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from microbench import cold as cold_reads
from microbench import exact as exact_search
from microbench import hot as hot_reads
from microbench.scale import FULL, QUICK, Scale
from microbench.subject import Subject, Subjects

GROUPS = {"test_hot": hot_reads.names, "test_cold": cold_reads.names, "test_search": exact_search.names}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    scale = QUICK if metafunc.config.getoption("--quick") else FULL
    names = GROUPS[metafunc.function.__name__]()
    turns: Iterable[tuple[int, str]] = itertools.product(range(scale.turns), names)
    metafunc.parametrize(("turn", "name"), list(turns))


@pytest.fixture(scope="module")
def scale(request: pytest.FixtureRequest) -> Scale:
    return QUICK if request.config.getoption("--quick") else FULL


@pytest.fixture(scope="module")
def hot(scale: Scale) -> Iterator[Subjects]:
    with hot_reads.subjects(scale) as found:
        yield found


@pytest.fixture(scope="module")
def cold(scale: Scale) -> Iterator[Subjects]:
    with cold_reads.subjects(scale) as found:
        yield found


@pytest.fixture(scope="module")
def search(scale: Scale) -> Iterator[Subjects]:
    with exact_search.subjects(scale) as found:
        yield found


def measure(benchmark: Any, subject: Subject, name: str, turn: int, rounds: int) -> None:
    benchmark.extra_info.update(name=name, turn=turn, calls=subject.calls)
    benchmark.pedantic(
        subject.run, setup=lambda: ((*subject.arguments, next(subject.inputs)), {}), rounds=rounds, warmup_rounds=1
    )


def test_hot(benchmark: Any, hot: Subjects, name: str, turn: int, scale: Scale) -> None:
    measure(benchmark, hot[name], name, turn, scale.rounds)


def test_cold(benchmark: Any, cold: Subjects, name: str, turn: int, scale: Scale) -> None:
    measure(benchmark, cold[name], name, turn, scale.rounds)


def test_search(benchmark: Any, search: Subjects, name: str, turn: int, scale: Scale) -> None:
    measure(benchmark, search[name], name, turn, scale.queries)
