"""Where trajectories lie in a store: three namespaces, and keys that sort by time.

| namespace       | key                    | record                                                                  |
|-----------------|------------------------|-------------------------------------------------------------------------|
| `<root>`        | trajectory id          | at: the start; metadata: agent, task and the caller's own                 |
| `<root>/steps`  | trajectory id / number | at: when it was taken; what was given of it; its vector                   |
| `<root>/facts`  | trajectory id / time   | at: since when it is known; an outcome, an end or a verdict               |

A record is written once and never changed: what comes later is one more fact. So a step costs one `put`, a resolution
one small record, and what was known at a moment is what has an event time up to it.

An id is the sortable time of the start and an arrival. Whoever resumes a trajectory adds a token of its own to the
numbers of its steps: two that do so at once overwrite nothing of each other.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from itertools import count
from typing import Any, Final, NamedTuple

from tiermem.clock import sortable
from tiermem.errors import InvalidArgument
from tiermem.types import check_namespace

MOST_STEPS: Final = 10**8
RESERVED: Final = ("agent", "task")
"""Fields of a trajectory's metadata that are not the caller's."""

_ID: Final = re.compile(r"[0-9a-f]{16}-[0-9a-f]{23}")
_STEP: Final = re.compile(r"([0-9a-f]{16}-[0-9a-f]{23})/([0-9]{8})(?:-[0-9a-f]{8})?")

_arrivals: Iterator[int] = count()


class Places(NamedTuple):
    """The namespaces of one set of trajectories."""

    heads: str
    steps: str
    facts: str

    @staticmethod
    def under(root: str) -> Places:
        """Those below `root`.

        Raises:
            InvalidNamespace: it is none, or leaves them no room.
        """
        check_namespace(root)
        return Places(root, check_namespace(f"{root}/steps"), check_namespace(f"{root}/facts"))


def arrival() -> str:
    """Sorts behind those made before it in this process, and differs from those of any other.

    By the machine's clock, as versions are, and by a count where that stands still. It orders what has the same event
    time and shows in nothing else, so a backtest is as deterministic as the order of its calls.
    """
    return f"{time.time_ns() // 1000:013x}{next(_arrivals) & 0xFFFF:04x}{os.urandom(3).hex()}"


def make_id(moment: float) -> str:
    """A new id, or the key of a new fact behind its trajectory's id."""
    return f"{bound(moment)}-{arrival()}"


def bound(moment: float) -> str:
    """The lowest id of what has an event time of `moment` or later."""
    return f"{sortable(moment):016x}"


def step_of(step_id: str) -> tuple[str, int]:
    """(trajectory id, number) of a step's id.

    Raises:
        InvalidArgument: it is none.
    """
    match = _STEP.fullmatch(step_id)
    if match is None:
        raise InvalidArgument(f"{step_id[:80]!r} is no id of a step")
    return match[1], int(match[2])


def check_id(trajectory: Any) -> str:
    """The id of a trajectory, given itself or as something that has it.

    Raises:
        InvalidArgument: it is none.
    """
    found = trajectory if isinstance(trajectory, str) else getattr(trajectory, "id", None)
    if not isinstance(found, str) or not _ID.fullmatch(found):
        raise InvalidArgument(f"{str(found)[:80]!r} is no id of a trajectory")
    return found


def check_text(name: str, text: object) -> str:
    """`text`, if it is a str."""
    if not isinstance(text, str):
        raise InvalidArgument(f"{name} is a str, not {type(text).__name__}")
    return text


def number(name: str, given: Any) -> float:
    """`given` as a finite float.

    Raises:
        InvalidArgument: it is no number, or not finite.
    """
    try:
        found = float(given)
    except (TypeError, ValueError, OverflowError) as exc:
        raise InvalidArgument(f"{name} is a number, not {given!r}") from exc
    if isinstance(given, (bool, str, bytes)) or found - found != 0.0:
        raise InvalidArgument(f"{name} is a finite number, not {given!r}")
    return found
