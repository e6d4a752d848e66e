"""A lock that two processes hand over: how long it takes from one's release to the other's lease."""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any, Final

from _sheets import Requirement, Sheet, number, verdict

import tiermem
from coordinationbench.messages import figures

LOCK: Final = "handed over"
BOUND: Final = 2.0
"""Milliseconds a hand-over takes at most, where a sync takes no more than `QUICK`; elsewhere two commits."""
QUICK: Final = 0.3
WARM: Final = 20
PAUSE: Final = 0.001
"""Seconds for which a lock is held once the other process waits for it, so that it is asleep."""
COMMITS: Final = 200
TEXT: Final = (
    "Two processes take turns. Whoever holds the lock waits until the other waits for it, and a millisecond more; "
    "a hand-over is from before its call of `release` to when the other has its lease. It takes two commits: one that "
    "gives it back, and one that grants it. A commit here is a compare-and-set of one small record by one process."
)


def holder(root: str, count: int, connection: Connection) -> None:
    """Hold the lock `count` times; tell the fence of each lease, when it was there and when it was given back."""
    turns: list[tuple[int, int, int]] = []
    with tiermem.open(root) as mem:
        locks = tiermem.Locks(mem)
        connection.send("ready")
        connection.recv()
        for turn in range(count):
            with locks.acquire(LOCK, ttl=60.0) as lease:
                began = time.monotonic_ns()
                # The last one has nobody to wait for.
                while not locks.state(LOCK).waiting and turn < count - 1:
                    time.sleep(PAUSE / 4)
                time.sleep(PAUSE)
                ended = time.monotonic_ns()
            turns.append((lease.fence, began, ended))
        connection.send(turns)
        connection.recv()


def measured(count: int) -> dict[str, Any]:
    """`count` hand-overs between two fresh processes, and commits of a third; times in ns.

    Raises:
        RuntimeError: one of them failed.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="tiermem-bench-", ignore_cleanup_errors=True) as root:
        commits = []
        with tiermem.open(root) as mem:
            version = 0
            for turn in range(COMMITS):
                began = time.monotonic_ns()
                version = mem.put("commits", "k", turn, if_version=version)
                commits.append(time.monotonic_ns() - began)
        ends = []
        processes = []
        for _ in range(2):
            mine, theirs = context.Pipe()
            process = context.Process(target=holder, args=(root, (count + WARM) // 2 + 1, theirs))
            process.start()
            theirs.close()
            ends.append(mine)
            processes.append(process)
        try:
            for word in ("ready", "go", "turns", "done"):
                found = [end.recv() if word in ("ready", "turns") else end.send(word) for end in ends]
                if word == "turns":
                    turns = sorted((*turn, who) for who, told in enumerate(found) for turn in told)
        except EOFError:
            raise RuntimeError("a process that was to hold the lock failed") from None
        finally:
            for process in processes:
                process.join(20.0)
                if process.is_alive():
                    process.kill()
    # Who gets it twice in a row met no other.
    overs = [after[1] - before[2] for before, after in pairwise(turns) if after[3] != before[3]]
    return {"hand_over": figures(overs[WARM:]), "hand_overs": len(overs[WARM:]), "commit": figures(commits[WARM:])}


def _middle(document: dict[str, Any], kind: str, label: str) -> float | None:
    """The median over the turns, in ms."""
    values = [turn[kind][label] for turn in document.get("locks", []) if turn[kind][label] is not None]
    return statistics.median(values) / 1e6 if values else None


def requirements(document: dict[str, Any]) -> list[Requirement]:
    """What was promised of a hand-over, and whether it holds."""
    middle, commit = _middle(document, "hand_over", "p50"), _middle(document, "commit", "p50")
    quick = document["sync_ms"] <= QUICK
    text = f"lock hand-over p50 < {BOUND:g} ms where a sync takes ≤ {QUICK:g} ms, else within two commits"
    if middle is None or commit is None:
        return [Requirement(text, "–", None, "not measured")]
    holds = middle < (BOUND if quick else 2 * commit)
    told = f"{number(middle)} ms; a sync {document['sync_ms']:.2f} ms, two commits {number(2 * commit)} ms"
    return [Requirement(text, told, holds, verdict(holds))]


def sheets(document: dict[str, Any]) -> list[Sheet]:
    """The table of hand-overs, if they were measured."""
    if not document.get("locks"):
        return []
    rows = [
        [title, *(number(_middle(document, kind, label)) for label in ("p50", "p99", "max"))]
        for title, kind in (("hand-over", "hand_over"), ("commit", "commit"))
    ]
    count = sum(turn["hand_overs"] for turn in document["locks"])
    text = f"{TEXT} Medians of {len(document['locks'])} turn(s), {count:,} hand-overs in all."
    return [Sheet("A lock from hand to hand", text, ["", "p50 ms", "p99 ms", "max ms"], rows)]
