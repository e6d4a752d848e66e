"""Runs the measurements in fresh processes, one after the other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID

HERE = Path(__file__).resolve().parent.parent
PLAN = {
    "values": ("load", "open", "open_evicted", "reads", "hot", "backup", "check", "puts", "compact"),
    "vectors": ("load", "open", "open_evicted", "search", "backup", "check", "compact"),
    "stream": ("load", "latest"),
}
"""What is done to a store of each kind, in this order: only the last two of `values` change what others read."""
ONCE = ("load",)
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
MANY_THREADS = ("load", "compact")
"""Phases in which numerical libraries have the threads they take by themselves; the others have one."""
ENOUGH = 20.0
"""Seconds of one phase after which it is not repeated."""
GLANCE = 0.05
"""Seconds between looks at the private memory of a child."""


class ChildFailed(RuntimeError):
    """A measurement ended without a result; the message is the end of what it printed."""


@contextmanager
def watched(pid: int) -> Iterator[dict[str, int]]:
    """Keeps the largest private memory (RssAnon) seen of a process, in bytes."""
    found = {"private_peak": 0}
    done = Event()

    def watch() -> None:
        while not done.wait(GLANCE):
            try:
                text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
            except OSError:
                return
            _, _, rest = text.partition("RssAnon:")
            if rest:
                found["private_peak"] = max(found["private_peak"], int(rest.split()[0]) * 1024)

    thread = Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def call(spec: dict[str, Any], log: Path, step: Callable[[str], object]) -> dict[str, Any]:
    """The result of one measurement.

    Raises:
        ChildFailed
    """
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    if spec["phase"] not in MANY_THREADS:
        environment |= dict.fromkeys(ONE_THREAD, "1")
    reading, writing = os.pipe()
    result: dict[str, Any] | None = None
    with log.open("wb") as printed:
        process = subprocess.Popen(
            [sys.executable, "-m", "growthbench.phases", str(writing)],
            stdin=subprocess.PIPE,
            stdout=printed,
            stderr=subprocess.STDOUT,
            pass_fds=(writing,),
            env=environment,
            cwd=HERE,
        )
        os.close(writing)
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(spec).encode())
            process.stdin.close()
            with os.fdopen(reading, encoding="utf-8") as messages, watched(process.pid) as seen:
                for line in messages:
                    message = json.loads(line)
                    if "step" in message:
                        step(message["step"])
                    else:
                        result = message["result"]
        except BaseException:
            process.kill()
            raise
        finally:
            code = process.wait()
    if result is None or code:
        tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-12:]
        raise ChildFailed(f"ended with {code}: " + "\n".join(tail))
    # A child may be gone before it was looked at.
    own = [seen["private_peak"], result["before"]["anonymous"], result["after"]["anonymous"]]
    return result | {"private_peak": max(own)}


@dataclass
class Run:
    """All measurements of one call of the script: `found[kind][rows][phase]` lists the results of the turns."""

    sizes: list[int]
    values_only: int
    turns: int
    work: Path
    console: Console
    progress: Progress
    save: Callable[[dict[str, Any]], object]
    found: dict[str, dict[str, dict[str, list[dict[str, Any]]]]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def everything(self) -> None:
        """Measure what was asked for, a size after the other, the small ones first."""
        for rows in self.sizes:
            kinds = [kind for kind in PLAN if kind == "values" or rows <= self.values_only]
            total = sum(1 if phase in ONCE else self.turns for kind in kinds for phase in PLAN[kind])
            task = self.progress.add_task(f"{rows:,}", total=total)
            for kind in kinds:
                self.store(task, kind, rows)
            self.progress.update(task, description=f"{rows:,}", completed=total, refresh=True)

    def store(self, task: TaskID, kind: str, rows: int) -> None:
        """Make one store, measure it, and remove it."""
        store = self.work / "store"
        shutil.rmtree(store, ignore_errors=True)
        found = self.found.setdefault(kind, {}).setdefault(str(rows), {})
        for phase in PLAN[kind]:
            spent = 0.0
            turns = 1 if phase in ONCE else self.turns
            for turn in range(turns):
                if spent < ENOUGH:
                    start = time.perf_counter()
                    spec = {"phase": phase, "kind": kind, "rows": rows, "turn": turn, "store": str(store)}
                    result = self.one(task, spec | {"target": str(self.work / "copy")})
                    spent += time.perf_counter() - start
                    if result is not None:
                        found.setdefault(phase, []).append(result)
                self.progress.update(task, advance=1, refresh=True)
            self.save({"found": self.found, "failures": self.failures})
            if phase == "load" and phase not in found:
                break
        shutil.rmtree(store, ignore_errors=True)

    def one(self, task: TaskID, spec: dict[str, Any]) -> dict[str, Any] | None:
        """One measurement, or None where it failed."""
        title = f"{spec['rows']:,} {spec['kind']}: {spec['phase']}"

        def show(text: str) -> None:
            self.progress.update(task, description=f"{title}{text}", refresh=True)

        show("")
        try:
            return call(spec, self.work / "child.log", lambda text: show(f": {text}"))
        except ChildFailed as exc:
            self.failures.append(f"{title} {exc}")
            self.console.print(f"failed: {title} {exc}", markup=False, highlight=False)
            return None
        finally:
            shutil.rmtree(self.work / "copy", ignore_errors=True)
