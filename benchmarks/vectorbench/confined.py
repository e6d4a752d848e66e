"""A process with little memory: a control group that counts the page cache it causes, too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


@contextmanager
def confined(limit: int) -> Iterator[Path]:
    """A memory control group of `limit` bytes that this process may join, removed afterwards.

    Raises:
        OSError: none can be made here.
    """
    unified = (ROOT / "cgroup.controllers").exists()
    group = (ROOT if unified else ROOT / "memory") / f"tiermem-{os.getpid()}"
    group.mkdir()
    try:
        (group / ("memory.max" if unified else "memory.limit_in_bytes")).write_text(str(limit))
        yield group
    finally:
        group.rmdir()


def join(group: Path) -> None:
    """Have this process, and what it starts, confined to a group."""
    (group / "cgroup.procs").write_text(str(os.getpid()))


def used(group: Path) -> int:
    """Bytes the group holds now: what its processes own, and the page cache they caused."""
    for name in ("memory.current", "memory.usage_in_bytes"):
        if (group / name).exists():
            return int((group / name).read_text())
    raise FileNotFoundError(group)
