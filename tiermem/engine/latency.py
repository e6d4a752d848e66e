"""Latency histograms: how long calls take, where the configuration asks for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tiermem.reports import LatencyStats

VERBS: Final = (
    "get",
    "get_record",
    "get_many",
    "count",
    "latest",
    "search_similar",
    "search_many",
    "put",
    "put_many",
    "append",
    "update",
    "touch",
    "delete",
    "delete_many",
)
"""What is timed: calls on the store. A namespace's verbs call these, but for `ns[key]` and its `get`."""
_STEPS: Final = 8
"""Buckets for each doubling: a percentile is at most an eighth too high."""


class Histogram:
    """Counts of durations. Threads that call at once may lose a count between them."""

    __slots__ = ("counts", "longest")

    def __init__(self) -> None:
        self.counts = [0] * (64 * _STEPS)
        self.longest = 0

    def add(self, nanoseconds: int) -> None:
        """Count one call."""
        magnitude = max(nanoseconds.bit_length() - 4, 0)
        self.counts[min(magnitude * _STEPS + (nanoseconds >> magnitude), len(self.counts) - 1)] += 1
        self.longest = max(self.longest, nanoseconds)

    def summary(self) -> LatencyStats:
        """Count, percentiles and the longest, in seconds."""
        from tiermem.reports import LatencyStats

        counts = list(self.counts)
        total = sum(counts)

        def percentile(part: float) -> float:
            left = part * total
            for bucket, count in enumerate(counts):
                left -= count
                if count and left <= 0:
                    return min(_upper(bucket), self.longest) / 1e9
            return 0.0

        return LatencyStats(
            total, percentile(0.5), percentile(0.99), percentile(0.999), percentile(0.9999), self.longest / 1e9
        )


def _upper(bucket: int) -> int:
    """The longest duration counted in a bucket."""
    magnitude = max(bucket // _STEPS - 1, 0)
    return (bucket - magnitude * _STEPS + 1 << magnitude) - 1


def instrument(handle: object, histograms: dict[str, Histogram]) -> None:
    """Time the verbs of one handle from now on."""
    for name in VERBS:
        setattr(handle, name, _timed(getattr(handle, name), histograms.setdefault(name, Histogram())))


def _timed(verb: Callable[..., Any], histogram: Histogram) -> Callable[..., Any]:
    @wraps(verb)
    def timed(*args: Any, **named: Any) -> Any:
        begun = perf_counter_ns()
        try:
            return verb(*args, **named)
        finally:
            histogram.add(perf_counter_ns() - begun)

    return timed
