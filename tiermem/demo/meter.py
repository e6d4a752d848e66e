"""How long calls took, kept cheaply: one whole number a call, sorted once at the end."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter_ns


@dataclass(frozen=True, slots=True)
class Timing:
    """What one verb cost: calls, calls a second while inside it, and latencies in microseconds."""

    calls: int
    timed: int
    per_second: float
    p50: float
    p99: float
    p999: float
    worst: float


class Verb:
    """The calls of one verb. `calls` counts all of them, `times` holds the timed ones in nanoseconds."""

    __slots__ = ("calls", "times")

    def __init__(self) -> None:
        self.calls = 0
        self.times = array("q")

    def took(self, nanoseconds: int) -> None:
        """Count one call that was timed."""
        self.calls += 1
        self.times.append(nanoseconds)

    def sample(self, nanoseconds: int) -> None:
        """Keep the time of a call that was counted already."""
        self.times.append(nanoseconds)

    def timing(self) -> Timing:
        """The quantiles by nearest rank: the smallest time that so large a share of the calls stayed within."""
        times = sorted(self.times)
        if not times:
            return Timing(self.calls, 0, 0.0, 0.0, 0.0, 0.0, 0.0)

        def rank(share: float) -> float:
            return times[math.ceil(share * len(times)) - 1] / 1000

        rate = len(times) / max(sum(times), 1) * 1e9
        return Timing(self.calls, len(times), rate, rank(0.5), rank(0.99), rank(0.999), times[-1] / 1000)


class Meter:
    """The verbs by name, in the order they were first used."""

    def __init__(self) -> None:
        self._verbs: dict[str, Verb] = {}

    def verb(self, name: str) -> Verb:
        """The verb of this name, made at first use."""
        return self._verbs.setdefault(name, Verb())

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Time what is done inside, as one call; for verbs of ten microseconds and more."""
        started = perf_counter_ns()
        yield
        self.verb(name).took(perf_counter_ns() - started)

    def timings(self) -> dict[str, Timing]:
        """Every verb that was called."""
        return {name: verb.timing() for name, verb in self._verbs.items() if verb.calls}


def timer_cost() -> float:
    """Microseconds that timing a call adds to it: the median of 1,001 empty timings."""
    times = []
    for _ in range(1001):
        started = perf_counter_ns()
        times.append(perf_counter_ns() - started)
    return sorted(times)[500] / 1000
