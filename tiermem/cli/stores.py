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
    """The store at `options.path`, read-only unless `write`, made only with `create`.

    Its clock is the machine's, or a simulated one that stands at `options.now`. A store of simulated time is opened at
    time 0 unless told otherwise, where nothing has expired yet.

    Raises:
        BadUsage: there is no store. Otherwise as `tiermem.open`.
    """
    path = Path(options.path)
    if not create and not (path / "CURRENT").is_file():
        raise BadUsage(f"{path} holds no store")
    clock: Clock = tiermem.SystemClock() if options.now is None else tiermem.SimulatedClock(options.now)
    opened = partial(tiermem.open, path, embedder=embedder, read_only=not write, verify=verify, repair=repair)
    try:
        return opened(clock=clock)
    except tiermem.TimeDomainMismatch:
        if options.now is not None:
            raise
        return opened(clock=tiermem.SimulatedClock(0.0))


def as_of(options: Namespace, mem: tiermem.Memory) -> float | None:
    """The moment that `options.as_of` names; None for the present, and the end of time where no clock was set.

    A clock that nobody has set knows no present.
    """
    # Loaded where it is asked for: few commands need it.
    from tiermem.trajectory.views import EVER

    if options.as_of is None and options.now is None and mem.clock.domain == "simulated":
        return EVER
    moment: float | None = options.as_of
    return moment
