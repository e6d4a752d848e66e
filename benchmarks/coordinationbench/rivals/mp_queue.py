"""`multiprocessing.Queue`: a pipe, and a thread of the sender that feeds it."""

from __future__ import annotations

import multiprocessing
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from coordinationbench.channel import Channel, Receive, Send


class MpQueue(Channel):
    """A queue between two processes of one program."""

    name = "multiprocessing.Queue"
    promise = "in memory"

    @contextmanager
    def served(self, root: Path) -> Iterator[Any]:
        yield multiprocessing.get_context("spawn").Queue()

    @contextmanager
    def sending(self, address: Any) -> Iterator[Send]:
        yield address.put

    @contextmanager
    def receiving(self, address: Any) -> Iterator[Receive]:
        def receive(timeout: float) -> list[dict[str, Any]]:
            try:
                return [address.get(timeout=timeout) if timeout else address.get_nowait()]
            except queue.Empty:
                return []

        yield receive
