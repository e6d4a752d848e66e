"""The workshop: has segments built, in a child process where one may be started."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Final

import msgspec

from tiermem.engine import builder
from tiermem.engine.builder import Built, Job
from tiermem.engine.forking import unforked
from tiermem.engine.processes import interpreter
from tiermem.errors import CorruptionError, StorageError, StoreFullError, TiermemError, file_error
from tiermem.types import Progress

if TYPE_CHECKING:
    from tiermem.engine.store import Store
    from tiermem.protocols import VectorEngine

_message: Final = msgspec.json.Decoder(Built | tuple[int, int] | str)


class Workshop:
    """Runs builders, keeps those that may be needed again, and ends them when the store is closed."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._lock = threading.Lock()
        self._children: set[subprocess.Popen[bytes]] = set()
        # Since when, and as which kind of job has left them: nobody becomes less nice again.
        self._idle: dict[int, list[tuple[float, subprocess.Popen[bytes]]]] = {}
        self._closing = False

    def stop(self) -> None:
        """End what is being built."""
        with self._lock:
            self._closing = True
            idle, self._idle = self._idle, {}
            for child in self._children:
                child.terminate()
        for _, child in chain(*idle.values()):
            _end(child)

    def abandon(self) -> None:
        """In a forked child: the builders are the parent's, and nobody here waits for them."""
        for child in self._children:
            # Its pipes are as a thread of the parent left them: locked, maybe, for ever.
            child.returncode = 0
        for _, child in chain(*self._idle.values()):
            child.returncode = 0
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()

    def run(self, job: Job, progress: Progress) -> Built:
        """Have a segment built.

        Raises:
            CorruptionError: an input is damaged. StoreFullError, StorageError: it failed.
        """
        store = self.store
        own = store.config.vector.engine
        # Where no process may be started, the work is done in this one.
        child = self._child(job) if isinstance(own, str) else None
        if child is None:
            # One thread: after a parallel region in this process, a forked child could hang in one.
            alone = msgspec.structs.replace(job, threads=1)
            return _here(store, alone, job.make if isinstance(own, str) else lambda rows: own, progress)
        built = None
        with self._lock:
            self._children.add(child)
        try:
            if self._closing:
                raise StorageError("the store is being closed")
            built = _follow(child, job, progress)
            return built
        finally:
            with self._lock:
                self._children.discard(child)
                kept = built is not None and not job.awaited and not self._closing
                if kept:
                    self._idle.setdefault(job.nice, []).append((time.monotonic(), child))
            if not kept:
                _end(child)

    def _child(self, job: Job) -> subprocess.Popen[bytes] | None:
        """A builder, a new one unless one in the background has just finished; None where none may be started."""
        fresh = time.monotonic() - builder.IDLE / 2
        while not job.awaited:
            with self._lock:
                idle = self._idle.get(job.nice)
                since, child = idle.pop() if idle else (0.0, None)
            if child is None:
                break
            if since > fresh and child.poll() is None:
                return child
            _end(child)
        return _started()


def _started() -> subprocess.Popen[bytes] | None:
    known = interpreter("tiermem.engine.builder", str(os.getpid()))
    if known is None:
        return None
    command, environment = known
    try:
        with unforked:
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)  # noqa: S603 - this interpreter, a module of ours
    except OSError:
        return None


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    for pipe in (child.stdin, child.stdout):
        # Not read to its end: a process forked meanwhile may hold the other end open.
        with suppress(OSError):
            if pipe is not None:
                pipe.close()
    child.wait()


def _here(store: Store, job: Job, engine_for: Callable[[int], VectorEngine], progress: Progress) -> Built:
    """Build in this process. What an engine of anybody's raises is a StorageError; what `progress` raises is not."""
    callers: list[BaseException] = []

    def tell(done: int, total: int) -> None:
        try:
            progress(done, total)
        except BaseException as exc:
            callers.append(exc)
            raise

    try:
        return builder.build(store.cold, store.sealer.shelf, job, engine_for, tell)
    except TiermemError:
        raise
    except Exception as exc:
        if exc in callers:
            raise
        kind = file_error(exc) if isinstance(exc, OSError) else StorageError
        raise kind(f"building a segment of {job.namespace!r} failed: {exc}") from exc


def _follow(child: subprocess.Popen[bytes], job: Job, progress: Progress) -> Built:
    """Hand the job to the child and report its progress until it is done."""
    said = ""
    if child.stdin is None or child.stdout is None:
        raise StorageError("the builder has no pipes")
    try:
        child.stdin.write(msgspec.json.encode(job) + b"\n")
        child.stdin.flush()
    except OSError:
        said = "it ended before it began"
    for line in child.stdout:
        try:
            message = _message.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            said = line.decode(errors="replace").strip()
            continue
        if isinstance(message, Built):
            return message
        if isinstance(message, str):
            said = message
        else:
            progress(*message)
    code = child.wait()
    if said.startswith("CorruptionError"):
        raise CorruptionError(said.partition(": ")[2])
    kind = StoreFullError if said.startswith("StoreFullError") else StorageError
    raise kind(f"building a segment of {job.namespace!r} failed ({code}): {said or 'the builder said nothing'}")
