"""A day of quotes through an agent whose memory is a `tiermem` directory."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

import tiermem
from tiermem.demo.desk import MemoryDesk
from tiermem.demo.market import TickFile
from tiermem.demo.meter import Meter
from tiermem.demo.replay import Progress as Standing
from tiermem.demo.replay import replay
from tiermem.demo.report import DemoReport, dollars, make_report

__all__ = ["EXCERPT", "DemoReport", "run_demo"]

EXCERPT = Path(__file__).parent / "data" / "aig_20131009_quote_tick_excerpt.zip"
"""The ticks played by default; their origin and licence stand in the NOTICE beside them."""


def run_demo(
    path: Path, ticks: Path | None, *, console: Console, json: bool = False, limit: int | None = None
) -> DemoReport:
    """Replay quotes through the agent, on a store in `path`, and print a report.

    path: directory of the store, created if missing. One that holds an interrupted replay of the same
        ticks is continued; one that holds a finished replay is reported on.
    ticks: a zip as `TickFile` reads it; None takes the excerpt in the package.
    console: where the live progress (if it is a terminal) and the report go.
    json: print the report as one JSON document, and no progress.
    limit: stop before this row, as if interrupted.

    An interrupt (Ctrl-C) stops between two rows and still gives a report; a second one is the usual
    `KeyboardInterrupt`.

    Raises:
        tiermem.InvalidArgument: the ticks cannot be read, or `path` holds the replay of others.
    """
    source = TickFile(ticks or EXCERPT)
    clock = tiermem.SimulatedClock(source.midnight)
    meter, standing = Meter(), Standing()
    with tiermem.open(path, clock=clock) as mem:
        desk = MemoryDesk(mem, clock, source, meter)
        with _interrupts() as interrupted, _display(console, source, standing, live=not json) as show:

            def tell() -> bool:
                show()
                return not interrupted()

            started = perf_counter()
            replay(source, desk, limit=limit, progress=standing, tell=tell)
            mem.flush()
            seconds = perf_counter() - started
        report = make_report(mem, Path(path), source, desk=desk, meter=meter, progress=standing, seconds=seconds)
    if json:
        console.print_json(data=report.as_dict())
    else:
        console.print(report)
    return report


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Whether an interrupt has come; only the main thread may ask for signals, others are never told."""
    seen = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield seen.is_set
        return

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        seen.set()
        signal.signal(signal.SIGINT, previous)

    # None: a handler that was not installed from Python, and cannot be put back from it.
    previous = signal.signal(signal.SIGINT, on_interrupt) or signal.SIG_DFL
    try:
        yield seen.is_set
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def _display(console: Console, source: TickFile, standing: Standing, *, live: bool) -> Iterator[Callable[[], None]]:
    """A progress bar on a terminal, and what redraws it; on anything else, nothing."""
    if not (live and console.is_terminal):
        yield lambda: None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.fields[time]}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]:,.0f} rows/s"),
        TextColumn("{task.fields[orders]:,} orders"),
        TextColumn("realised {task.fields[realised]}"),
        TimeElapsedColumn(),
    )
    started = perf_counter()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=source.bytes_total, time="", rate=0.0, orders=0, realised="")

        def show() -> None:
            played = standing.row - standing.first
            seconds = standing.ms // 1000
            bar.update(
                task,
                completed=source.bytes_read,
                time=f"{source.symbol} {seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}",
                rate=played / max(perf_counter() - started, 1e-9),
                orders=standing.agent.tally.orders,
                realised=dollars(standing.position.realised),
            )

        yield show
