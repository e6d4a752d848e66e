"""Hit ratios of eviction policies on public cache traces, beside the optimal bound.

    python benchmarks/hit_ratio.py [--data DIR] [--json] [--out docs/benchmarks/hit_ratio.md]

Every policy runs behind `EvictionPolicy` with unit costs, as the hot tier would call it: a hit on a free entry calls
nothing. SIEVE, S3-FIFO and CAR are here for comparison only; each sets bits or counters on a hit and nothing else, so
each has an exact free state: the one another hit would not change.
"""

from __future__ import annotations

import argparse
import gzip
import heapq
import json
import lzma
import platform
import random
import struct
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

import zstandard
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tiermem.policy.eviction import DEFAULT, LRU
from tiermem.protocols import EntryId, EvictionPolicy

SIZES = (0.01, 0.05, 0.10, 0.20)
SEED = 7
ZIPF_KEYS, ZIPF_REQUESTS, ZIPF_EXPONENT = 50_000, 400_000, 1.0
LOOP_CAPACITY, LOOP_ROUNDS = 1000, 50
LOOPS = (1.05, 1.2, 1.5, 2.0)
MOVED = tuple[list[EntryId], list[EntryId]]


class Comparison:
    """Base of the comparison-only policies: unit costs, no discards, no updates."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0

    def admit(self, entry: EntryId, cost: int) -> bool:
        raise NotImplementedError

    def touch(self, entry: EntryId) -> bool:
        raise NotImplementedError

    def shrink(self) -> MOVED:
        raise NotImplementedError

    def discard(self, entry: EntryId) -> None:
        raise NotImplementedError("a trace discards nothing")

    def clear(self) -> None:
        raise NotImplementedError("a trace clears nothing")


class Sieve(Comparison):
    """SIEVE. Y. Zhang, J. Yang, Y. Yue, Y. Vigfusson, K. V. Rashmi: SIEVE is simpler than LRU. NSDI 2024."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.newer: dict[EntryId, EntryId | None] = {}
        self.older: dict[EntryId, EntryId | None] = {}
        self.visited: dict[EntryId, bool] = {}
        self.newest: EntryId | None = None
        self.oldest: EntryId | None = None
        self.hand: EntryId | None = None

    def admit(self, entry: EntryId, cost: int) -> bool:
        self.older[entry], self.newer[entry], self.visited[entry] = self.newest, None, False
        if self.newest is None:
            self.oldest = entry
        else:
            self.newer[self.newest] = entry
        self.newest = entry
        self.used += 1
        return False

    def touch(self, entry: EntryId) -> bool:
        self.visited[entry] = True
        return True

    def shrink(self) -> MOVED:
        demoted: list[EntryId] = []
        evicted: list[EntryId] = []
        while self.used > self.capacity:
            # The hand never meets the entry just admitted: it was not there when its room was made.
            at = self.hand or self.oldest
            while at is not None and self.visited[at]:
                self.visited[at] = False
                demoted.append(at)
                at = self.newer[at]
                if at == self.newest:
                    at = self.oldest
            assert at is not None
            older, newer = self.older.pop(at), self.newer.pop(at)
            if older is None:
                self.oldest = newer
            else:
                self.newer[older] = newer
            if newer is None:
                self.newest = older
            else:
                self.older[newer] = older
            self.hand = None if newer == self.newest else newer
            del self.visited[at]
            self.used -= 1
            evicted.append(at)
        gone = set(evicted)
        return [entry for entry in demoted if entry not in gone], evicted


class S3FIFO(Comparison):
    """S3-FIFO. J. Yang, Y. Zhang, Z. Qiu, Y. Yue, R. Vinayak: FIFO queues are all you need. SOSP 2023."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.small: OrderedDict[EntryId, int] = OrderedDict()
        self.main: OrderedDict[EntryId, int] = OrderedDict()
        self.ghosts: OrderedDict[EntryId, None] = OrderedDict()
        self.small_limit = max(capacity // 10, 1)

    def admit(self, entry: EntryId, cost: int) -> bool:
        if entry in self.ghosts:
            del self.ghosts[entry]
            self.main[entry] = 0
        else:
            self.small[entry] = 0
        self.used += 1
        return False

    def touch(self, entry: EntryId) -> bool:
        queue = self.small if entry in self.small else self.main
        queue[entry] = count = min(queue[entry] + 1, 3)
        return count == 3

    def shrink(self) -> MOVED:
        demoted: dict[EntryId, None] = {}
        evicted: list[EntryId] = []
        while self.used > self.capacity:
            if self.small and (len(self.small) > self.small_limit or not self.main):
                entry, count = self.small.popitem(last=False)
                if count > 1:
                    self.main[entry] = 0
                    if count == 3:
                        demoted[entry] = None
                    continue
                self.ghosts[entry] = None
                if len(self.ghosts) > self.capacity - self.small_limit:
                    self.ghosts.popitem(last=False)
            else:
                entry, count = self.main.popitem(last=False)
                if count:
                    self.main[entry] = count - 1
                    if count == 3:
                        demoted[entry] = None
                    continue
            self.used -= 1
            demoted.pop(entry, None)
            evicted.append(entry)
        return list(demoted), evicted


class CAR(Comparison):
    """CAR. S. Bansal, D. S. Modha: CAR: CLOCK with adaptive replacement. FAST 2004."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.once: OrderedDict[EntryId, bool] = OrderedDict()
        self.often: OrderedDict[EntryId, bool] = OrderedDict()
        self.ghosts_once: OrderedDict[EntryId, None] = OrderedDict()
        self.ghosts_often: OrderedDict[EntryId, None] = OrderedDict()
        self.target = 0.0
        self.moved: MOVED = [], []

    def admit(self, entry: EntryId, cost: int) -> bool:
        self.moved = self.make_room(entry) if self.used >= self.capacity else ([], [])
        once, often = self.ghosts_once, self.ghosts_often
        if entry in once:
            self.target = min(self.target + max(1, len(often) / len(once)), self.capacity)
            del once[entry]
            self.often[entry] = False
        elif entry in often:
            self.target = max(self.target - max(1, len(once) / len(often)), 0)
            del often[entry]
            self.often[entry] = False
        else:
            self.once[entry] = False
        self.used += 1
        return False

    def touch(self, entry: EntryId) -> bool:
        (self.once if entry in self.once else self.often)[entry] = True
        return True

    def make_room(self, entry: EntryId) -> MOVED:
        demoted: dict[EntryId, None] = {}
        while True:
            clock = self.once if self.once and len(self.once) >= max(1, self.target) else self.often or self.once
            victim, referenced = clock.popitem(last=False)
            if not referenced:
                break
            self.often[victim] = False
            demoted[victim] = None
        (self.ghosts_once if clock is self.once else self.ghosts_often)[victim] = None
        self.used -= 1
        demoted.pop(victim, None)
        if entry not in self.ghosts_once and entry not in self.ghosts_often:
            if len(self.once) + len(self.ghosts_once) >= self.capacity and self.ghosts_once:
                self.ghosts_once.popitem(last=False)
            elif self.used + len(self.ghosts_once) + len(self.ghosts_often) >= 2 * self.capacity and self.ghosts_often:
                self.ghosts_often.popitem(last=False)
        return list(demoted), [victim]

    def shrink(self) -> MOVED:
        moved, self.moved = self.moved, ([], [])
        return moved


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


def read_oltp(path: Path) -> list[Hashable]:
    """Lines `start count ignore request`: each asks for `count` blocks from `start`."""
    with path.open("rb") as file:
        text = zstandard.ZstdDecompressor().stream_reader(file).read().decode("ascii")
    lines = (line.split() for line in text.splitlines() if line.strip())
    return [block for start, count, *_ in lines for block in range(int(start), int(start) + int(count))]


def read_web(path: Path) -> list[Hashable]:
    """Big-endian 32-bit keys."""
    data = lzma.decompress(path.read_bytes())
    return list(struct.unpack(f">{len(data) // 4}i", data))


def read_keys(path: Path) -> list[Hashable]:
    """One key a line."""
    return list(gzip.decompress(path.read_bytes()).decode("ascii").split())


READERS: dict[str, tuple[str, Callable[[Path], list[Hashable]]]] = {
    "oltp": ("oltp.lis.zst", read_oltp),
    "web12": ("web12.trace.xz", read_web),
    "multi3": ("multi3.trace.gz", read_keys),
    "sprite": ("sprite.trace.gz", read_keys),
}


def zipf() -> list[Hashable]:
    """Independent requests, the i-th key with probability ∝ i^-s: a synthetic load, not a recorded one."""
    weights = list(accumulate(rank**-ZIPF_EXPONENT for rank in range(1, ZIPF_KEYS + 1)))
    return list(random.Random(SEED).choices(range(ZIPF_KEYS), cum_weights=weights, k=ZIPF_REQUESTS))


def loop_over(length: float) -> list[Hashable]:
    """Distinct keys over and over, `length` times as many as the capacity holds."""
    keys: list[Hashable] = [*range(int(LOOP_CAPACITY * length))]
    return keys * LOOP_ROUNDS


def entries(keys: Iterable[Hashable]) -> list[EntryId]:
    """The trace as entry ids, one object per distinct key."""
    ids: dict[Hashable, EntryId] = {}
    return [ids.setdefault(key, (0, str(key))) for key in keys]


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


def machine() -> str:
    """One line about where the numbers come from."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{platform.python_implementation()} {platform.python_version()}, {platform.system()}, {model}"


def rows(results: list[Result], field: str, sizes: tuple[float, ...] = SIZES) -> list[tuple[str, str, list[str]]]:
    """(trace, policy, one cell per size), the best policy of each column in **bold**."""
    out = []
    for trace in dict.fromkeys(result.trace for result in results if (result.trace == "loop") == (sizes is LOOPS)):
        of_trace = [result for result in results if result.trace == trace]
        for policy in dict.fromkeys(result.policy for result in of_trace):
            cells = []
            for share in sizes:
                column = {r.policy: getattr(r, field) for r in of_trace if r.share == share}
                rivals = [value for name, value in column.items() if name in POLICIES]
                best = min(rivals) if field == "ns" else max(rivals)
                value = column[policy]
                text = "" if value is None else f"{value:.0f}" if field == "ns" else f"{100 * value:.1f}"
                cells.append(f"**{text}**" if policy in POLICIES and value == best else text)
            if any(cells):
                out.append((trace, policy, cells))
    return out


HEADINGS = {
    "hits": "Hit ratio (%)",
    "free": "Share of the hits that were free (%)",
    "ns": "Policy time per trace request (ns)",
}

LOOP_HEADING = "Hit ratio (%) of a loop, by its length over the capacity"


def averages(results: list[Result]) -> list[str]:
    """Sentences on the recorded traces: each policy's mean, and its points at or above LRU."""
    lru = {(r.trace, r.share): r.hits for r in results if r.policy == "LRU"}
    lines = []
    for policy in dict.fromkeys(r.policy for r in results):
        own = [r for r in results if r.policy == policy and r.trace in READERS]
        if own:
            mean = 100 * sum(r.hits for r in own) / len(own)
            ahead = sum(r.hits >= lru[r.trace, r.share] for r in own)
            lines.append(f"{policy}: mean {mean:.1f}; at or above LRU at {ahead} of {len(own)} points")
    return lines


def markdown(results: list[Result]) -> str:
    """The page that `--out` writes."""
    lines = [
        "# Hit ratios of the eviction policies",
        "",
        f"Written by `benchmarks/hit_ratio.py`. {machine()}.",
        "",
        "Columns are the capacity as a share of the distinct keys of a trace; every entry costs 1. The best policy of",
        "each column is in bold; *optimal* is Belady's bound, which knows the future. A hit is *free* if it ran no",
        "policy code: the hot tier serves it with a plain dict lookup. Policy time counts `admit`, `touch` and",
        "`shrink`, spread over all requests, free ones included; times of separate runs do not compare.",
        "",
        "`oltp` is from the ARC paper (FAST 2003), `web12` from the cache2k benchmarks, `multi3` and `sprite` from",
        f"the LIRS paper (SIGMETRICS 2002). `zipf` is synthetic: {ZIPF_REQUESTS:,} independent requests over",
        f"{ZIPF_KEYS:,} keys, exponent {ZIPF_EXPONENT}, seed {SEED}. The loops read {LOOP_CAPACITY:,} keys and",
        f"more in order, {LOOP_ROUNDS} times, through a capacity of {LOOP_CAPACITY:,}.",
        "",
        "Over the recorded traces:",
        "",
        *(f"- {line}" for line in averages(results)),
    ]
    for field, heading in HEADINGS.items():
        lines += ["", f"## {heading}", "", "| trace | policy | " + " | ".join(f"{share:.0%}" for share in SIZES) + " |"]
        lines.append("|---|---|" + "--:|" * len(SIZES))
        lines += [f"| {trace} | {policy} | {' | '.join(cells)} |" for trace, policy, cells in rows(results, field)]
    lines += ["", f"## {LOOP_HEADING}", "", "| policy | " + " | ".join(f"{length:.0%}" for length in LOOPS) + " |"]
    lines.append("|---|" + "--:|" * len(LOOPS))
    lines += [f"| {policy} | {' | '.join(cells)} |" for _, policy, cells in rows(results, "hits", LOOPS)]
    return "\n".join(lines) + "\n"


def show(console: Console, results: list[Result]) -> None:
    """The same as tables on the terminal."""
    pages = [(field, heading, SIZES) for field, heading in HEADINGS.items()]
    for field, heading, sizes in [*pages, ("hits", LOOP_HEADING, LOOPS)]:
        table = Table("trace", "policy", *(f"{size:.0%}" for size in sizes), title=heading)
        for trace, policy, cells in rows(results, field, sizes):
            styled = (f"[bold]{cell[2:-2]}[/bold]" if cell.startswith("**") else cell for cell in cells)
            table.add_row(trace, policy, *styled)
        console.print(table)
    for line in averages(results):
        console.print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=default, help="directory of the traces (../shared/data)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--out", type=Path, help="write a Markdown page here")
    arguments = parser.parse_args()
    console = Console(stderr=arguments.json)
    traces: dict[str, list[EntryId]] = {}
    for name, (file, read) in READERS.items():
        if (arguments.data / file).exists():
            traces[name] = entries(read(arguments.data / file))
        else:
            console.print(f"skipped {name}: no {file} in the data directory")
    traces["zipf"] = entries(zipf())
    runs = [(name, share, trace, int(len(set(trace)) * share)) for name, trace in traces.items() for share in SIZES]
    runs += [("loop", length, entries(loop_over(length)), LOOP_CAPACITY) for length in LOOPS]
    results: list[Result] = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("simulating", total=len(runs) * (len(POLICIES) + 1))
        for name, share, trace, capacity in runs:
            for policy, make in POLICIES.items():
                progress.update(task, description=f"{name} {share:.0%} {policy}")
                results.append(Result(name, share, capacity, policy, *simulate(make, trace, capacity)))
                progress.advance(task)
            results.append(Result(name, share, capacity, "optimal", optimal(trace, capacity)))
            progress.advance(task)
    if arguments.json:
        print(json.dumps({"machine": machine(), "results": [asdict(result) for result in results]}, indent=1))
    else:
        show(console, results)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(markdown(results), encoding="utf-8")


if __name__ == "__main__":
    main()
