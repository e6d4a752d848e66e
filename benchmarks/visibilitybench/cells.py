"""Measurements with several processes: when a put is seen, what a stopped process holds up, what idle ones cost."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import random
import signal
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np
from _workload import SEED, directory

import tiermem
from tiermem import ColdConfig, Config, Memory, VersionConflict

NS: Final = "desk/quotes"
KEY: Final = "probe"
VECTOR: Final = (1.0, 2.0, 3.0, 4.0)
BESIDE: Final = 20
"""Other records of the namespace."""
SECOND: Final = 1_000_000_000
STALL: Final = 0.005
"""Seconds from which a sync counts as stalled."""
WARM: Final = 2.0
"""Seconds of the same load before the first put that counts: who falls behind has hired a helper by then."""
LAST: Final = 0.5
"""Seconds a reader goes on looking when the writer has ended."""
WAYS: Final = ("get", "scan", "search_similar", "changes", "ns[key]")
HOMES: Final = ("auto", "thread", "helper")
ORDINARY: Final = "helper at ordinary priority"
DISK: Final = "on disk"
MEMORY: Final = "in memory"
SHM: Final = Path("/dev/shm")  # noqa: S108 - where Linux has files in memory; a directory of one's own is made there
NEVER: Final = -1


def opened(root: Path, home: str) -> Memory:
    """The store, committed to where and as `home` says; all else by default."""
    if home == ORDINARY:
        return tiermem.open(root, config=Config(cold=ColdConfig(committer="helper", realtime=False)))
    return tiermem.open(root, config=Config(cold=ColdConfig(committer=home)))  # type: ignore[arg-type]  # of HOMES


class Peer:
    """A process that runs one function of this module; it is told when to begin, and sends what it found."""

    def __init__(self, body: Callable[..., None], *arguments: Any) -> None:
        self._pipe, other = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=body, args=(other, *arguments), daemon=True)
        self._process.start()
        other.close()
        self.pid = self._process.pid or NEVER

    def tell(self, word: str) -> None:
        """Send a word."""
        self._pipe.send(word)

    def answer(self) -> Any:
        """What it sends next.

        Raises:
            RuntimeError: it ended instead.
        """
        try:
            return self._pipe.recv()
        except EOFError:
            raise RuntimeError(f"{self._process.name} has ended") from None

    def end(self) -> None:
        """Wait for it to exit; one that was stopped goes on first."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)
        self._process.join(10)
        self._process.kill()


@contextmanager
def peers(*bodies: tuple[Any, ...]) -> Iterator[list[Peer]]:
    """Processes that all have said that they are ready."""
    made = [Peer(*body) for body in bodies]
    try:
        for peer in made:
            peer.answer()
        yield made
    finally:
        for peer in made:
            peer.end()


def percentiles(samples: list[float]) -> dict[str, float | int | None]:
    """Of nanoseconds, in milliseconds; None where fewer than five samples lie above."""
    values = np.asarray(samples) / 1e6
    found: dict[str, float | int | None] = {"count": len(samples)}
    for name, share in (("p50", 50.0), ("p99", 99.0), ("p99.9", 99.9)):
        enough = len(samples) * (1 - share / 100) >= 4.999
        found[name] = float(np.percentile(values, share)) if enough else None
    found["max"] = float(values.max()) if len(samples) else None
    return found


# ---------------------------------------------------------------------------------------------------------- visible


def write(pipe: Connection, root: Path, home: str, rate: int, seconds: float, vectors: bool) -> None:
    """Put one number after the other in a loop that never waits."""
    clock = time.perf_counter_ns
    with opened(root, home) as mem:
        vector = VECTOR if vectors else None

        def put(number: int) -> int:
            return mem.put(NS, KEY, number, vector=vector, metadata={"number": number})

        for number in range(BESIDE):
            mem.put(NS, f"other-{number:02d}", number, vector=VECTOR[::-1] if vectors else None)
        put(0)
        mem.flush()
        pipe.send("ready")
        pipe.recv()
        step, count = SECOND // rate, int(rate * (seconds + WARM))
        begun, versions = [0] * count, [0] * count
        start = clock()
        for number in range(count):
            due = start + number * step
            while (now := clock()) < due:
                pass
            begun[number] = now
            versions[number] = put(number + 1)
        pipe.send((begun, versions, mem.stats().writes.committer))
        pipe.recv()


def look(mem: Memory, way: str) -> Callable[[], int]:
    """What tells the newest number, or for `changes` the newest version, that this process can see."""
    if way == "get":
        return lambda: int(mem.get(NS, KEY))
    if way == "scan":
        return lambda: max(record.value for record in mem.scan(NS) if record.key == KEY)
    if way == "search_similar":
        return lambda: mem.search_similar(NS, VECTOR, k=1)[0].metadata["number"]
    if way == "ns[key]":
        namespace = mem.namespace(NS)
        return lambda: int(namespace[KEY])
    after = mem.cursor("newest").position
    newest = 0

    def changes() -> int:
        nonlocal after, newest
        for change in mem.changes(after=after):
            after, newest = change.sequence, change.version
        return newest

    return changes


def read(pipe: Connection, root: Path, home: str, way: str, seconds: float, pause: float) -> None:
    """Look in a loop that never waits, or only so long; when each newer number was first seen."""
    clock = time.perf_counter_ns
    with opened(root, home) as mem:
        newest = look(mem, way)
        last = newest()
        pipe.send("ready")
        pipe.recv()
        seen: list[tuple[int, int]] = []
        looks, end = 0, clock() + int((WARM + seconds + LAST) * SECOND)
        while clock() < end:
            found = newest()
            looks += 1
            if found != last:
                last = found
                seen.append((found, clock()))
            if pause:
                time.sleep(pause)
        pipe.send((seen, looks))
        pipe.recv()


def synced(seconds: float) -> dict[str, Any]:
    """What the disk takes to sync one page of a file that does not grow, every millisecond.

    stalled: the share of the time spent in syncs that took longer than `STALL` seconds.
    """
    clock = time.perf_counter_ns
    spent = []
    with directory() as folder, (folder / "file").open("wb", buffering=0) as file:
        file.write(bytes(2**20))
        os.fsync(file.fileno())
        end = clock() + int(seconds * SECOND)
        while clock() < end:
            os.pwrite(file.fileno(), os.urandom(4096), len(spent) % 256 * 4096)
            start = clock()
            os.fdatasync(file.fileno())
            spent.append(float(clock() - start))
            time.sleep(0.001)
    stalled = sum(ns for ns in spent if ns > STALL * SECOND)
    return {**percentiles(spent), "stalled": stalled / (seconds * SECOND)}


def visible(way: str, home: str, where: str, rate: int, seconds: float, pause: float = 0.0) -> dict[str, Any]:
    """From the beginning of a put to the first look of another process that finds it, or a later one.

    where: the store lies there, `DISK` or `MEMORY`. pause: seconds the reader sleeps between two looks.
    """
    with directory(str(SHM) if where == MEMORY else None) as folder:
        root = folder / "store"
        opened(root, "inline").close()
        writer = (write, root, home, rate, seconds, way == "search_similar")
        with peers(writer) as [first], peers((read, root, home, way, seconds, pause)) as [second]:
            second.tell("go")
            first.tell("go")
            begun, versions, committer = first.answer()
            seen, looks = second.answer()
            first.tell("end")
            second.tell("end")
    numbers = versions if way == "changes" else list(range(1, len(begun) + 1))
    found = [number for number, _ in seen]
    delays, unseen, warm = [], 0, int(rate * WARM)
    for number, start in zip(numbers[warm:], begun[warm:], strict=True):
        place = bisect_left(found, number)
        if place < len(found):
            delays.append(float(seen[place][1] - start))
        else:
            unseen += 1
    spec = {
        "way": way,
        "home": home,
        "where": where,
        "rate": rate,
        "seconds": seconds,
        "pause": pause,
        "committer": committer,
    }
    return {**spec, "looks": looks, "unseen": unseen, **percentiles(delays)}


# ------------------------------------------------------------------------------------------------------------ flush


def put_and_flush(pipe: Connection, root: Path, page: Path, seconds: float) -> None:
    """Put a number, flush, and only then write it on a page that the other process can read."""
    clock = time.perf_counter_ns
    with opened(root, "auto") as mem, page.open("r+b") as file, mmap.mmap(file.fileno(), 8) as shared:
        words = memoryview(shared).cast("Q")
        mem.put(NS, KEY, 0)
        mem.flush()
        pipe.send("ready")
        pipe.recv()
        spent, end, number = [], clock() + int(seconds * SECOND), 0
        while clock() < end:
            number += 1
            mem.put(NS, KEY, number)
            start = clock()
            mem.flush()
            spent.append(clock() - start)
            words[0] = number
        words[0] = 2**63
        words.release()
        pipe.send(spent)
        pipe.recv()


def read_flushed(pipe: Connection, root: Path, page: Path) -> None:
    """How often a `get` that began when a flush had returned missed what was put before it."""
    with opened(root, "auto") as mem, page.open("r+b") as file, mmap.mmap(file.fileno(), 8) as shared:
        words = memoryview(shared).cast("Q")
        pipe.send("ready")
        pipe.recv()
        looks = missed = 0
        while (flushed := words[0]) < 2**63:
            looks += 1
            missed += mem.get(NS, KEY) < flushed
        words.release()
        pipe.send((looks, missed))
        pipe.recv()


def flushed(seconds: float) -> dict[str, Any]:
    """What one process reads as soon as the `flush()` of another has returned; how long the flush took."""
    with directory() as folder:
        root, page = folder / "store", folder / "page"
        page.write_bytes(bytes(8))
        with peers((put_and_flush, root, page, seconds)) as [first], peers((read_flushed, root, page)) as [second]:
            second.tell("go")
            first.tell("go")
            spent, (looks, missed) = first.answer(), second.answer()
            first.tell("end")
            second.tell("end")
    return {"looks": looks, "missed": missed, "seconds": seconds, **percentiles(spent)}


# ---------------------------------------------------------------------------------------------------------- stopped


def busy(pipe: Connection, root: Path, home: str, work: str) -> None:
    """Write without a pause, until this process is ended."""
    with opened(root, home) as mem:
        version = mem.put(NS, "mine", 0, if_version=0)
        pipe.send("ready")
        number = 0
        while not pipe.poll():
            number += 1
            if work == "puts":
                mem.put(NS, "mine", number)
                time.sleep(0.0005)
            else:
                version = mem.put(NS, "mine", number, if_version=version)


def verbs(mem: Memory) -> dict[str, Callable[[int], Any]]:
    """What the other process does meanwhile."""

    def swap(number: int) -> None:
        record = mem.get_record(NS, KEY)
        with suppress(VersionConflict):
            mem.put(NS, KEY, number, if_version=record.version if record else 0)

    return {
        "put": lambda number: mem.put(NS, f"k{number % 100:02d}", number),
        "get": lambda number: mem.get(NS, f"k{number % 100:02d}"),
        "scan": lambda _: list(mem.scan(NS, limit=20)),
        "compare-and-set": swap,
        "flush": lambda _: mem.flush(),
    }


def beside(pipe: Connection, root: Path, home: str) -> None:
    """The longest call of each verb, by turns; a word ends a round."""
    clock = time.perf_counter_ns
    with opened(root, home) as mem:
        calls = verbs(mem)
        pipe.send("ready")
        while pipe.recv() != "end":
            longest, number = dict.fromkeys(calls, 0), 0
            while not pipe.poll():
                for name, call in calls.items():
                    number += 1
                    start = clock()
                    call(number)
                    longest[name] = max(longest[name], clock() - start)
            pipe.recv()
            pipe.send(longest)


def stopped(home: str, work: str, turns: int, pause: float) -> dict[str, Any]:
    """The longest call of one process while another is stopped for `pause` seconds, again and again."""
    rng = random.Random(SEED)
    rounds = []
    with directory() as folder:
        root = folder / "store"
        opened(root, "inline").close()
        with peers((busy, root, home, work)) as [first], peers((beside, root, home)) as [second]:
            # Who goes on writing beside another has hired a helper by then.
            time.sleep(WARM)
            for _ in range(turns):
                second.tell("go")
                time.sleep(0.1 + 0.1 * rng.random())
                os.kill(first.pid, signal.SIGSTOP)
                time.sleep(pause)
                os.kill(first.pid, signal.SIGCONT)
                second.tell("stop")
                rounds.append({name: spent / 1e6 for name, spent in second.answer().items()})
            second.tell("end")
            first.tell("end")
    longest = {name: max(one[name] for one in rounds) for name in rounds[0]}
    blocked = sum(max(one.values()) > 1000 for one in rounds)
    return {"home": home, "work": work, "turns": turns, "pause": pause, "longest": longest, "blocked": blocked}


# ------------------------------------------------------------------------------------------------------------- idle


def idler(pipe: Connection, root: Path, home: str, waits: bool) -> None:
    """Open the store and do nothing, or wait for a change that does not come."""
    with opened(root, home) as mem:
        mem.put(NS, "k", 1)
        mem.flush()
        pipe.send("ready")
        while not pipe.poll(0 if waits else None):
            next(mem.changes(wait=60.0), None)


def spent_by(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def helper_of(root: Path) -> list[int]:
    """The helper process of a store, if it has one."""
    from tiermem.engine.assistant import LOCK
    from tiermem.tiers.filelock import holder

    found = holder(root / LOCK)
    return [found] if found > 0 else []


def idle(home: str, clients: int, seconds: float) -> dict[str, Any]:
    """Processor time of open clients that do nothing, one of which waits for a change; and of their helper."""
    with directory() as folder:
        root = folder / "store"
        opened(root, "inline").close()
        with peers(*((idler, root, home, number == 0) for number in range(clients))) as made:
            time.sleep(2.0)
            pids = [peer.pid for peer in made] + helper_of(root)
            before = [spent_by(pid) for pid in pids]
            time.sleep(seconds)
            spent = [spent_by(pid) - start for pid, start in zip(pids, before, strict=True)]
            made[0].tell("end")
            with tiermem.open(root) as mem:
                mem.put(NS, "k", 2, durable=True)
            for peer in made[1:]:
                peer.tell("end")
    return {
        "home": home,
        "clients": clients,
        "seconds": seconds,
        "client": sum(spent[:clients]) / clients / seconds,
        "waiting": spent[0] / seconds,
        "helper": spent[clients] / seconds if len(spent) > clients else None,
        "all": sum(spent) / seconds,
    }
