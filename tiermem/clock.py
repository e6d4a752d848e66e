"""Clocks: where `at`, expiry and decay take their time from."""

from __future__ import annotations

import struct
import time
from datetime import datetime
from typing import Final

from tiermem.errors import InvalidArgument

_F64: Final = struct.Struct(">d")
_WORD: Final = struct.Struct(">Q")
_SIGN: Final = 1 << 63


def to_epoch(moment: float | datetime) -> float:
    """Epoch seconds of a number or an aware datetime.

    Raises:
        InvalidArgument: a naive datetime, a non-number, NaN or an infinity.
    """
    if isinstance(moment, datetime):
        if moment.utcoffset() is None:
            raise InvalidArgument(f"a time needs a time zone: naive datetime {moment.isoformat()}")
        return moment.timestamp()
    if isinstance(moment, bool) or not isinstance(moment, (int, float)):
        raise InvalidArgument(f"a time is epoch seconds or an aware datetime, not {type(moment).__name__}")
    try:
        seconds = float(moment)
    except OverflowError as exc:
        raise InvalidArgument("a time must be finite, not beyond the range of a float") from exc
    if seconds - seconds != 0.0:
        raise InvalidArgument(f"a time must be finite, not {seconds}")
    return seconds


def sortable(moment: float) -> int:
    """A 64-bit integer that orders as the float does, negatives included; keys that sort by time begin with it."""
    word = int(_WORD.unpack(_F64.pack(moment + 0.0))[0])
    return word ^ 0xFFFFFFFFFFFFFFFF if word & _SIGN else word | _SIGN


class SystemClock:
    """The machine's wall clock."""

    domain = "real"

    def now(self) -> float:
        """Epoch seconds."""
        return time.time()


class SimulatedClock:
    """A clock that moves only when told to: the clock of a backtest.

    >>> clock = SimulatedClock(100.0)
    >>> clock.advance(2.5)
    102.5
    >>> clock.set(200.0)
    200.0
    """

    domain = "simulated"

    def __init__(self, start: float | datetime = 0.0) -> None:
        self._now = to_epoch(start)

    def now(self) -> float:
        """Epoch seconds."""
        return self._now

    def advance(self, seconds: float) -> float:
        """Move forward by `seconds` ≥ 0 and return the new time.

        Raises:
            InvalidArgument: a negative or non-finite step.
        """
        return self.set(self._now + to_epoch(seconds))

    def set(self, moment: float | datetime) -> float:
        """Move forward to `moment` and return it.

        Raises:
            InvalidArgument: `moment` lies before the present.
        """
        seconds = to_epoch(moment)
        if seconds < self._now:
            raise InvalidArgument(f"simulated time cannot go back from {self._now} to {seconds}")
        self._now = seconds
        return seconds
