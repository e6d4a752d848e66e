"""The sections of a run, each in a process of its own."""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from _workload import Series
from rich.progress import Progress

from microbench.lives import start
from microbench.puts import flat, puts
from microbench.scale import QUICK, Scale
from microbench.stream import stream
from microbench.subject import Measured, Report

HERE = Path(__file__).resolve().parent.parent


class Progressing:
    """A pytest plugin that reports each test."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.report(len(session.items))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self.report(report.nodeid.partition("-")[2].rstrip("]").replace("`", ""))


def loops(test: str, scale: Scale, report: Report) -> Measured:
    """The loops of `test_micro.py`, timed by pytest-benchmark."""
    printed = StringIO()
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder, "benchmark.json")
        # The project's own settings of pytest are for its tests, and need more than the extra `bench`.
        arguments = ["-c", os.devnull, "--rootdir", str(HERE), "-p", "no:cacheprovider", "-q"]
        arguments += ["--benchmark-disable-gc", f"--benchmark-json={found}", f"{HERE / 'test_micro.py'}::{test}"]
        if scale == QUICK:
            arguments.append("--quick")
        with redirect_stdout(printed), redirect_stderr(printed):
            code = pytest.main(arguments, plugins=[Progressing(report)])
        if code:
            raise RuntimeError(f"{test} ended with {code!r}:\n{printed.getvalue()}")
        rows = json.loads(found.read_text(encoding="utf-8"))["benchmarks"]
    turns: dict[str, list[list[float]]] = {}
    for row in rows:
        info = row["extra_info"]
        of_subject = turns.setdefault(info["name"], [])
        assert len(of_subject) == info["turn"]
        of_subject.append([seconds * 1e9 / info["calls"] for seconds in row["stats"]["data"]])
    return Measured({name: Series(name, found) for name, found in turns.items()})


SECTIONS: dict[str, Callable[[Scale, Report], Measured]] = {
    "hot": partial(loops, "test_hot"),
    "puts": puts,
    "flat": flat,
    "cold": partial(loops, "test_cold"),
    "stream": stream,
    "search": partial(loops, "test_search"),
    "start": start,
}


def in_child(name: str, scale: Scale, connection: Connection) -> None:
    """Run a section and send what it reports, then what it found."""
    connection.send(SECTIONS[name](scale, connection.send))


def run(name: str, scale: Scale, progress: Progress) -> Measured:
    """A section in a process of its own, so that it finds memory, threads and caches as they are at first."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=in_child, args=(name, scale, sender))
    child.start()
    sender.close()
    task = progress.add_task(name, total=None)
    try:
        while True:
            message = receiver.recv()
            if isinstance(message, Measured):
                return message
            if isinstance(message, int):
                progress.update(task, total=message, refresh=True)
            else:
                progress.update(task, advance=1, description=f"{name}: {message}", refresh=True)
    except EOFError:
        raise SystemExit(f"section {name} failed") from None
    finally:
        child.join()
        progress.update(task, description=name, refresh=True)
