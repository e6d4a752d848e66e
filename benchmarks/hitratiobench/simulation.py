"""Simulations: each policy behind its protocol, and the bound that knows the future."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass

from hitratiobench.rivals.car import CAR
from hitratiobench.rivals.s3fifo import S3FIFO
from hitratiobench.rivals.sieve import Sieve
from tiermem.policy.eviction import DEFAULT, LRU
from tiermem.protocols import EntryId, EvictionPolicy

POLICIES: dict[str, Callable[[int], EvictionPolicy]] = {
    "LRU": LRU,
    "SIEVE": Sieve,
    "CAR": CAR,
    "S3-FIFO": S3FIFO,
    DEFAULT.__name__: DEFAULT,
}


@dataclass(frozen=True, slots=True)
class Result:
    """One simulation.

    `share` is the capacity over the distinct keys, for a loop the distinct keys over the capacity; `free` the share of
    the hits that called nothing; `ns` the policy's time per trace request.
    """

    trace: str
    share: float
    capacity: int
    policy: str
    hits: float
    free: float | None = None
    ns: float | None = None


def optimal(trace: list[EntryId], capacity: int) -> float:
    """Hit ratio of Belady's MIN with bypass: evict what is used farthest ahead, the newcomer included.

    L. A. Belady: A study of replacement algorithms for a virtual-storage computer. IBM Systems Journal 5(2), 1966.
    """
    following = [0] * len(trace)
    seen: dict[EntryId, int] = {}
    for i in range(len(trace) - 1, -1, -1):
        following[i] = seen.get(trace[i], len(trace) + i)
        seen[trace[i]] = i
    resident: dict[EntryId, int] = {}
    heap: list[tuple[int, EntryId]] = []
    hits = 0
    for i, entry in enumerate(trace):
        hits += entry in resident
        resident[entry] = following[i]
        heapq.heappush(heap, (-following[i], entry))
        while len(resident) > capacity:
            ahead, farthest = heapq.heappop(heap)
            if resident.get(farthest) == -ahead:
                del resident[farthest]
    return hits / len(trace)


def simulate(make: Callable[[int], EvictionPolicy], trace: list[EntryId], capacity: int) -> tuple[float, float, float]:
    """(hit ratio, share of free hits, nanoseconds of policy code per request)."""
    policy = make(capacity)
    free: set[EntryId] = set()
    watched: set[EntryId] = set()
    calls: list[tuple[bool, EntryId]] = []
    hits = free_hits = 0
    for entry in trace:
        if entry in free:
            free_hits += 1
            continue
        miss = entry not in watched
        calls.append((miss, entry))
        if miss:
            (free if policy.admit(entry, 1) else watched).add(entry)
        else:
            hits += 1
            if policy.touch(entry):
                watched.remove(entry)
                free.add(entry)
        demoted, evicted = policy.shrink()
        free.difference_update(demoted)
        watched.update(demoted)
        for gone in evicted:
            free.discard(gone)
            watched.discard(gone)
    hits += free_hits
    seconds = min(replay(make, capacity, calls) for _ in range(3)) - min(loop(calls) for _ in range(3))
    return hits / len(trace), free_hits / max(hits, 1), seconds / len(trace) * 1e9


def replay(make: Callable[[int], EvictionPolicy], capacity: int, calls: list[tuple[bool, EntryId]]) -> float:
    """Seconds for the calls of a simulation and nothing else: policies are deterministic."""
    policy = make(capacity)
    admit, touch, shrink = policy.admit, policy.touch, policy.shrink
    start = time.perf_counter()
    for miss, entry in calls:
        if miss:
            admit(entry, 1)
        else:
            touch(entry)
        shrink()
    return time.perf_counter() - start


def loop(calls: list[tuple[bool, EntryId]]) -> float:
    """Seconds of the loop in `replay` without its calls."""
    start = time.perf_counter()
    for miss, _entry in calls:
        if miss:
            pass
    return time.perf_counter() - start
