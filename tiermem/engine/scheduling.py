"""How soon the system lets a thread run that sleeps most of the time, beside others that never do."""

from __future__ import annotations

import os
import struct
import sys
from typing import Final

_SLICE: Final = 200_000
"""Nanoseconds."""
_RESET_ON_FORK: Final = 1
"""SCHED_FLAG_RESET_ON_FORK."""
_SCHED_SETATTR: Final = {"x86_64": 314, "aarch64": 274}
"""Numbers of the system call, which the C library has no function for."""
_ATTRIBUTES: Final = struct.Struct("=IIQiIQQQ")
"""`struct sched_attr`: size, policy, flags, nice, priority, runtime, deadline, period."""


def prompt() -> bool:
    """Ask that this thread be woken at once, for short times; False where the system has no such notion.

    Who asks for short slices of time is given them sooner (EEVDF, Linux 6.12), and gets no more time altogether.
    """
    number = _SCHED_SETATTR.get(os.uname().machine) if sys.platform == "linux" else None
    if number is None:
        return False
    # Only who commits for others asks for this; every import of the package would take longer by that of ctypes.
    import ctypes

    nice = os.getpriority(os.PRIO_PROCESS, 0)
    flags = _RESET_ON_FORK if os.sched_getscheduler(0) & os.SCHED_RESET_ON_FORK else 0
    attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, flags, nice, 0, _SLICE, 0, 0)
    return bool(ctypes.CDLL(None).syscall(number, 0, attributes, 0) == 0)


def realtime() -> None:
    """Let this thread, but none it starts, run before all that have no real-time priority.

    Raises:
        OSError: this process may not, or the system knows none.
    """
    if not hasattr(os, "SCHED_FIFO"):
        raise OSError("this system knows no real-time priority")
    os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))


def ordinary() -> None:
    """Let this thread run like any other again."""
    # With the flag that it has: to take it away is not everybody's right.
    os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))


def is_realtime(process: int) -> bool:
    """True if the main thread of a process runs so."""
    return hasattr(os, "SCHED_FIFO") and os.sched_getscheduler(process) & ~os.SCHED_RESET_ON_FORK == os.SCHED_FIFO
