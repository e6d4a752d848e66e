"""Opening the store a command works on."""

from __future__ import annotations

from argparse import Namespace
from functools import partial
from pathlib import Path

import tiermem
from tiermem.cli.outcome import BadUsage
from tiermem.protocols import Clock, Embedder


def open_store(
    options: Namespace,
    *,
    write: bool = False,
    create: bool = False,
    verify: bool = False,
    repair: bool = False,
    embedder: Embedder | None = None,
) -> tiermem.Memory:
    """The store at `options.path`, read-only unless `write`, made only with `create`; as `open_with_clock`."""
    return open_with_clock(options, write=write, create=create, verify=verify, repair=repair, embedder=embedder)[0]


def open_with_clock(
    options: Namespace,
    *,
    write: bool = False,
    create: bool = False,
    verify: bool = False,
    repair: bool = False,
    embedder: Embedder | None = None,
) -> tuple[tiermem.Memory, Clock]:
    """The store and its clock: the machine's, or a simulated one that stands at `options.now`.

    A store of simulated time is opened at time 0 unless told otherwise, where nothing has expired yet.

    Raises:
        BadUsage: there is no store. Otherwise as `tiermem.open`.
    """
    path = Path(options.path)
    if not create and not (path / "CURRENT").is_file():
        raise BadUsage(f"{path} holds no store")
    clock: Clock = tiermem.SystemClock() if options.now is None else tiermem.SimulatedClock(options.now)
    opened = partial(tiermem.open, path, embedder=embedder, read_only=not write, verify=verify, repair=repair)
    try:
        return opened(clock=clock), clock
    except tiermem.TimeDomainMismatch:
        if options.now is not None:
            raise
        clock = tiermem.SimulatedClock(0.0)
        return opened(clock=clock), clock
