"""Sleeping until records change or a moment of the store's clock has come, and the arguments that name such moments."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from tiermem.errors import CursorExpired, InvalidArgument

if TYPE_CHECKING:
    from tiermem.engine.memory import Memory
    from tiermem.protocols import Clock
    from tiermem.types import Change, Duration

NAP: Final = 0.01
"""Seconds between looks at a clock that is not the machine's: nothing says when it will be moved."""


def sleep(
    mem: Memory, namespace: str, until: float, concerns: Callable[[Change], bool], stands: Callable[[], bool]
) -> None:
    """Sleep until a change of the namespace `concerns` the caller, or the store's clock shows `until`.

    Returns at once unless what the caller has read `stands`: that is asked once changes are listened for, so
    none falls in between. Between changes nothing runs, except that a simulated clock is looked at 100 times a second.
    """
    clock, after = mem.clock, None
    while (left := until - clock.now()) > 0:
        changes = mem.changes(after, namespace, wait=left if clock.domain == "real" else NAP)
        if after is None and not stands():
            return
        try:
            change = next(changes, None)
        except CursorExpired:
            # The log was trimmed faster than it was read.
            return
        if change is None:
            after = None
        elif change.op == "drop" or concerns(change):
            return
        else:
            after = change.sequence


def seconds(name: str, duration: Duration) -> float:
    """A duration ≥ 0 in seconds.

    Raises:
        InvalidArgument: it is none.
    """
    length = duration.total_seconds() if isinstance(duration, timedelta) else duration
    if isinstance(length, bool) or not isinstance(length, (int, float)) or not 0 <= length <= sys.float_info.max:
        raise InvalidArgument(f"{name} is seconds ≥ 0 or a timedelta, not {duration!r}")
    return float(length)


def deadline(clock: Clock, timeout: Duration | None) -> float:
    """When `timeout` from now is over; never for None.

    Raises:
        InvalidArgument: it is no duration.
    """
    return math.inf if timeout is None else clock.now() + seconds("timeout", timeout)
