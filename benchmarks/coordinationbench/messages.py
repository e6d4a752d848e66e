"""Messages from one process to another: how long one is under way while both are busy, and how many a second."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from _workload import percentile, tick

from coordinationbench.channel import Channel
from coordinationbench.rivals import CHANNELS as RIVALS
from coordinationbench.topics import Acknowledged, Durable, Left, Prompt

CHANNELS: Final[tuple[type[Channel], ...]] = (Prompt, Acknowledged, Durable, Left, *RIVALS)
NAMES: Final = {channel.name: channel for channel in CHANNELS}
WORK: Final = 200
"""Rounds of an empty loop between two looks of the busy consumer: some 5 µs."""
PATIENCE: Final = 20.0
"""Seconds without a message after which the rest counts as lost."""
WARM: Final = 200
"""Messages sent first that are not counted."""


def publisher(name: str, address: Any, count: int, rate: int, connection: Connection) -> None:
    """Send `count` messages, each when it is due, spinning in between; at rate 0 one after the other."""
    with NAMES[name]().sending(address) as send:
        connection.recv()
        clock = time.monotonic_ns
        step = 10**9 // rate if rate else 0
        calls: list[int] = []
        due = began = clock()
        for number in range(count):
            while (now := clock()) < due:
                pass
            send({**tick(number), "sent": now})
            calls.append(clock() - now)
            due += step
        connection.send({"began": began, "ended": clock(), "calls": calls})
        # Who feeds from this process has time to.
        connection.recv()


def consumer(name: str, address: Any, count: int, busy: bool, connection: Connection) -> None:
    """Receive `count` messages; a busy one never waits, and works a little between two looks."""
    with NAMES[name]().receiving(address) as receive:
        connection.send("ready")
        clock = time.monotonic_ns
        under_way: list[int] = []
        timeout = 0.0 if busy else 0.25
        last = clock()
        while len(under_way) < count:
            found = receive(timeout)
            if found:
                last = clock()
                under_way.extend([last - message["sent"] for message in found])
            elif clock() - last > PATIENCE * 1e9:
                break
            if busy:
                for _ in range(WORK):
                    pass
        connection.send({"last": last, "under_way": under_way})


def measured(name: str, count: int, rate: int, *, busy: bool) -> dict[str, Any]:
    """One run of one channel in two fresh processes; times in ns.

    Raises:
        RuntimeError: one of them failed.
    """
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(prefix="tiermem-bench-", ignore_cleanup_errors=True) as root,
        NAMES[name]().served(Path(root)) as address,
    ):
        receiving, theirs = context.Pipe()
        reader = context.Process(target=consumer, args=(name, address, count + WARM, busy, theirs))
        reader.start()
        theirs.close()
        sending, theirs = context.Pipe()
        writer = context.Process(target=publisher, args=(name, address, count + WARM, rate, theirs))
        writer.start()
        theirs.close()
        try:
            receiving.recv()
            time.sleep(0.5)
            sending.send("go")
            sent = sending.recv()
            received = receiving.recv()
            sending.send("done")
        except EOFError:
            raise RuntimeError(f"{name} failed") from None
        finally:
            reader.join(PATIENCE)
            writer.join(PATIENCE)
            for process in (reader, writer):
                if process.is_alive():
                    process.kill()
    seconds = (received["last"] - sent["began"]) / 1e9
    return {
        "channel": name,
        "rate": rate,
        "busy": busy,
        "sent": count,
        "received": max(0, len(received["under_way"]) - WARM),
        "per_second": len(received["under_way"]) / seconds,
        "sent_per_second": (count + WARM) / ((sent["ended"] - sent["began"]) / 1e9),
        "under_way": figures(received["under_way"][WARM:]),
        "call": figures(sent["calls"][WARM:]),
    }


def figures(samples: list[int]) -> dict[str, float | None]:
    """Percentiles in ns."""
    shares = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
    found = {label: percentile(samples, share) if samples else None for label, share in shares.items()}
    return found | {"max": max(samples, default=None)}


def sync_seconds(root: Path) -> float:
    """The median time of syncing one page of a file, as a commit does."""
    fd = os.open(root / "sync", os.O_RDWR | os.O_CREAT)
    try:
        times = []
        for at in range(200):
            os.pwrite(fd, os.urandom(4096), 4096 * (at % 16))
            began = time.perf_counter()
            os.fdatasync(fd)
            times.append(time.perf_counter() - began)
    finally:
        os.close(fd)
    return sorted(times)[len(times) // 2]
