"""Whole lives of interpreters: what an import, an open, a put and a get add to one."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from typing import Final

from _workload import Series, compiling, directory

from microbench.scale import Scale
from microbench.subject import Measured, Report

BARE: Final = "an interpreter that does nothing"
USE: Final = """
import sys
import tiermem
with tiermem.open(sys.argv[1]) as mem:
    mem.put("desk/quotes", "AIG", {"px": 48.21})
    assert mem.get("desk/quotes", "AIG") == {"px": 48.21}
"""


def start(scale: Scale, report: Report) -> Measured:
    """Whole lives of interpreters."""
    subjects = {
        BARE: ("pass", False),
        "`import tiermem`": ("import tiermem", False),
        "import, open an existing store, put, get, close": (USE, False),
        "import, open a new store, put, get, close": (USE, True),
    }
    turns: dict[str, list[list[float]]] = {name: [] for name in subjects}
    report((scale.starts + 1) * len(subjects))
    with directory() as root:
        for turn in range(-1, scale.starts):
            for name, (code, new) in subjects.items():
                place = root / ("new" if new else "existing")
                begun = time.perf_counter_ns()
                subprocess.run([sys.executable, "-c", code, str(place)], check=True, cwd=root, env=compiling())
                spent = time.perf_counter_ns() - begun
                # The first turn compiles, makes the store that then exists, and warms the page cache.
                if turn >= 0:
                    turns[name].append([float(spent)])
                shutil.rmtree(root / "new", ignore_errors=True)
                report(name.replace("`", ""))
    return Measured({name: Series(name, found) for name, found in turns.items()})
