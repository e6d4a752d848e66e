"""System calls of a process, by strace: one of them may be the last, or fail, or all of them are written down."""

from __future__ import annotations

import re
import select
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from tiermem.testing.children import GLANCE, Patience

WRITES: Final = ("write", "pwritev", "writev", "pwrite64")
SYNCS: Final = ("msync", "fsync", "fdatasync")
RENAMES: Final = ("rename", "renameat2")
MAKES: Final = ("fallocate", "ftruncate")
CHANGES: Final = (*RENAMES, *MAKES, *SYNCS, *WRITES)
"""The calls by which a store gets to the disk, roughly from the rarest to the most frequent."""
PATIENCE: Final = 20.0
_HIT: Final = re.compile(r"\(INJECTED\)|= \?$|\+\+\+ killed by SIGKILL", re.MULTILINE)
"""Of a call that was to be a process's last, strace says that it has no result."""


_ATTACHED: Final = re.compile(rb"attached(?: with \d+ threads)?\n")


class Point(NamedTuple):
    """The calls of one name, numbered from 1 in each thread, at which something happens."""

    call: str
    first: int
    last: int = 0

    def __str__(self) -> str:
        return f"{self.call} {self.first}" + (f" to {self.last}" if self.last else "")

    @property
    def when(self) -> str:
        """As strace has it."""
        return f"{self.first}..{self.last}" if self.last else str(self.first)


def missing() -> str:
    """Why system calls cannot be traced here; empty if they can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    probe = subprocess.Popen(["sleep", "30"])  # noqa: S607 - whichever the system has
    try:
        tracer = Strace(probe.pid, Path("/dev/null"))
        tracer.stop()
    except (OSError, RuntimeError) as exc:
        return str(exc)
    finally:
        probe.kill()
        probe.wait()
    return ""


class Strace:
    """strace, attached to a process and to whatever it starts from now on.

    Raises:
        RuntimeError: it cannot be attached.
    """

    def __init__(self, pid: int, log: Path, *, calls: Sequence[str] = CHANGES, more: Sequence[str] = ()) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        command = ["strace", "-f", "-p", str(pid), "-o", str(log), "-e", f"trace={','.join(calls)}"]
        self._process = subprocess.Popen([*command, "-e", "signal=none", *more], stderr=subprocess.PIPE)
        assert self._process.stderr is not None
        patience, said = Patience(PATIENCE), b""
        while not _ATTACHED.search(said):
            left = patience.left()
            ready = select.select([self._process.stderr], [], [], min(left, GLANCE))[0]
            if left and not ready:
                continue
            data = self._process.stderr.read1(4096) if ready else b""  # type: ignore[attr-defined]  # it is buffered
            if not data:
                self.stop()
                raise RuntimeError(f"strace cannot be attached: {said.decode(errors='replace').strip()}")
            said += data

    @classmethod
    def killing(cls, pid: int, log: Path, point: Point) -> Strace:
        """SIGKILL to the thread's process instead of the call."""
        return cls(pid, log, calls=[point.call], more=["-e", f"inject={point.call}:signal=SIGKILL:when={point.when}"])

    @classmethod
    def failing(cls, pid: int, log: Path, point: Point, error: str) -> Strace:
        """The error, by its name as in "EIO", instead of the call."""
        return cls(pid, log, calls=[point.call], more=["-e", f"inject={point.call}:error={error}:when={point.when}"])

    def stop(self) -> None:
        """Let go of the processes that are still there."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()

    def hit(self) -> bool:
        """Whether the point was reached; known once tracing has stopped."""
        return bool(_HIT.search(self.log.read_text(errors="replace")))
