"""How much memory there is to be had."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

_GROUPS: Final = Path("/sys/fs/cgroup")


def room() -> int:
    """Bytes this process may use before somebody has to give way: of the machine, or of its control group if less.

    What a control group's page cache holds counts as free. `sys.maxsize` where neither can be read.
    """
    found = [sys.maxsize]
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, own = line.split(":", 2)
            if not controllers:
                found.append(_limit(_GROUPS, own, "memory.max"))
            elif "memory" in controllers.split(","):
                found.append(_limit(_GROUPS / "memory", own, "memory.limit_in_bytes"))
    return min(found)


def _limit(root: Path, own: str, name: str) -> int:
    """The limit of a group; inside a container its path may be the host's, and its files lie at the root."""
    for folder in (root / own.lstrip("/"), root):
        with suppress(OSError, ValueError):
            return int((folder / name).read_text())
    return sys.maxsize
