"""A measurement in a process of its own, whose memory is watched from outside."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic
from typing import Any, Final

from latencybench import cells, extras

SECTIONS: Final[dict[str, Callable[[cells.Spec, cells.Tell], cells.Found]]] = {
    "cell": cells.cell,
    "overwrites": cells.overwrites,
    "durable": extras.durable,
    "start": extras.starts,
    "position": extras.positions,
}
NAMES: Final = {"VmRSS": 0, "RssAnon": 1, "RssFile": 2}


def entry(name: str, spec: cells.Spec, connection: Connection) -> None:
    """Measure, and send what is told on the way and then what was found."""
    connection.send(SECTIONS[name](spec, connection.send))


def resident(pid: int) -> list[float]:
    """Resident MiB of a process: in all, its own, and mapped files."""
    found = [0.0] * len(NAMES)
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return found
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name in NAMES:
            found[NAMES[name]] = int(value.split()[0]) / 1024
    return found


def run(name: str, spec: dict[str, Any], told: Callable[[str], None]) -> dict[str, Any]:
    """What a section found in a fresh process; `resident` has a row a second between its "go" and its "done".

    Raises:
        RuntimeError: the process ended without an answer.
    """
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=partial(entry, name, spec, sender))
    child.start()
    sender.close()
    assert child.pid is not None
    rows: list[list[float]] = []
    start = 0.0
    try:
        while True:
            # Twice a second until it begins, then at every full second.
            pause = 0.5 if not start else max(0.0, start + len(rows) - monotonic())
            if receiver.poll(pause):
                message = receiver.recv()
                if isinstance(message, dict):
                    return message | {"resident": rows}
                if message == "go":
                    start = monotonic()
                elif message == "done":
                    rows.append([monotonic() - start, *resident(child.pid)])
                    start = 0.0
                told(message)
            elif start:
                rows.append([monotonic() - start, *resident(child.pid)])
    except EOFError:
        raise RuntimeError(f"{name} {spec} failed") from None
    finally:
        child.join()
