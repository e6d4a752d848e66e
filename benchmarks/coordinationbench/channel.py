"""A channel: what carries messages from one process to another, as each of the two sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from _workload import installed

Send = Callable[[dict[str, Any]], None]
Receive = Callable[[float], list[dict[str, Any]]]
"""Whatever has come, after waiting up to so many seconds for the first of it."""


class Channel:
    """One way of passing messages on. Its methods run in three processes: what they share is the address."""

    name: ClassVar[str]
    promise: ClassVar[str]
    distribution: ClassVar[str | None] = None
    gathers: ClassVar[bool] = True
    """False where every message is synced by itself: flat out that measures the disk."""

    @classmethod
    def absent(cls) -> str | None:
        """Why it cannot be measured here; None if it can."""
        if cls.distribution is not None and installed(cls.distribution) is None:
            return f"{cls.distribution} is not installed"
        return None

    @contextmanager
    def served(self, root: Path) -> Iterator[Any]:
        """The address, while whatever serves it runs; `root` is an empty directory."""
        yield root

    @contextmanager
    def sending(self, address: Any) -> Iterator[Send]:
        """In the publisher's process."""
        raise NotImplementedError

    @contextmanager
    def receiving(self, address: Any) -> Iterator[Receive]:
        """In the consumer's process: from when this is entered, what is sent is received."""
        raise NotImplementedError
