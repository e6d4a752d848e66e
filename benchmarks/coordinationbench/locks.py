"""A lock that two processes hand over: how long it takes from one's release to the other's lease."""

from __future__ import annotations

import multiprocessing
import os
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
REST: Final = 0.01
"""Seconds until the one that gave the lock back asks for it again, except where it does so at once."""
KINDS: Final = {"hand_over": REST, "at_once": 0.0}
TEXT: Final = (
    "Two processes take turns. Whoever holds the lock waits until the other waits for it, and a millisecond more; "
    "a hand-over is from before its call of `release` to when the other has its lease. It takes two commits: one that "
    "gives the lock back, and one that grants it. Where the one that gave it back asks for it again at once, its place "
    "in the queue is a third, which may come in between. Two commits are what it takes one process "
    "to acquire and release a lock that nobody else wants, measured in between."
)


def holder(root: str, count: int, rest: float, connection: Connection) -> None:
    """Hold the lock `count` times; tell of each its fence, when it came and went, and how long two commits took."""
    turns: list[tuple[int, int, int, int]] = []
    alone = f"{os.getpid()}'s own"
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
                called = time.monotonic_ns()
                locks.acquire(alone).release()
                commits = time.monotonic_ns() - called
                # They have woken the other, which is asleep again by then.
                time.sleep(PAUSE)
                ended = time.monotonic_ns()
            turns.append((lease.fence, began, ended, commits))
            time.sleep(rest)
        connection.send(turns)
        connection.recv()


def measured(count: int) -> dict[str, Any]:
    """`count` hand-overs of each kind between two fresh processes, and commits made in between; times in ns."""
    found: dict[str, Any] = {}
    commits: list[int] = []
    for kind, rest in KINDS.items():
        overs, between = handed_over(count + WARM, rest)
        commits += between[WARM:]
        found |= {kind: figures(overs[WARM:]), f"{kind}_count": len(overs[WARM:])}
    return found | {"commits": figures(commits)}


def handed_over(count: int, rest: float) -> tuple[list[int], list[int]]:
    """How long each of about `count` hand-overs took, and two commits, in ns; who gave it back waits `rest` seconds.

    Raises:
        RuntimeError: one of the processes failed.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="tiermem-bench-", ignore_cleanup_errors=True) as root:
        ends, processes = [], []
        for _ in range(2):
            mine, theirs = context.Pipe()
            process = context.Process(target=holder, args=(root, count // 2 + 1, rest, theirs))
            process.start()
            theirs.close()
            ends.append(mine)
            processes.append(process)
        try:
            for end in ends:
                end.recv()
            for end in ends:
                end.send("go")
            turns = sorted((*turn, who) for who, end in enumerate(ends) for turn in end.recv())
            for end in ends:
                end.send("done")
        except EOFError:
            raise RuntimeError("a process that was to hold the lock failed") from None
        finally:
            for process in processes:
                process.join(20.0)
                if process.is_alive():
                    process.kill()
    # Who gets it twice in a row met no other.
    overs = [after[1] - before[2] for before, after in pairwise(turns) if after[4] != before[4]]
    return overs, [commits for _, _, _, commits, _ in turns]


def _middle(document: dict[str, Any], kind: str, label: str) -> float | None:
    """The median over the turns, in ms."""
    values = [turn[kind][label] for turn in document.get("locks", []) if turn[kind][label] is not None]
    return statistics.median(values) / 1e6 if values else None


def requirements(document: dict[str, Any]) -> list[Requirement]:
    """What was promised of a hand-over, and whether it holds."""
    middle, commits = _middle(document, "hand_over", "p50"), _middle(document, "commits", "p50")
    quick = document["sync_ms"] <= QUICK
    text = f"lock hand-over p50 < {BOUND:g} ms where a sync takes ≤ {QUICK:g} ms, else within two commits"
    if middle is None or commits is None:
        return [Requirement(text, "–", None, "not measured")]
    holds = middle < (BOUND if quick else commits)
    told = f"{number(middle)} ms; a sync {document['sync_ms']:.2f} ms, two commits {number(commits)} ms"
    return [Requirement(text, told, holds, verdict(holds))]


def sheets(document: dict[str, Any]) -> list[Sheet]:
    """The table of hand-overs, if they were measured."""
    if not document.get("locks"):
        return []
    titles = {"hand_over": "hand-over", "at_once": "hand-over, asked for again at once", "commits": "two commits"}
    rows = [
        [title, *(number(_middle(document, kind, label)) for label in ("p50", "p99", "max"))]
        for kind, title in titles.items()
    ]
    count = sum(turn[f"{kind}_count"] for turn in document["locks"] for kind in KINDS)
    text = f"{TEXT} Medians of {len(document['locks'])} turn(s), {count:,} hand-overs in all."
    return [Sheet("A lock from hand to hand", text, ["", "p50 ms", "p99 ms", "max ms"], rows)]
