"""What the crash and multi-process tests run in child processes: a served store, loops to be killed, forks."""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import os
import pickle
import random
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import tiermem
from tiermem import errors

NO_BELLS = shutil.ignore_patterns("*.bell")
"""What a copy of a store's directory leaves out: FIFOs cannot be copied."""
DEADLINE = 60.0
"""Seconds until a child that does not answer counts as hung."""
START = 1_000_000.0
"""Where a simulated clock begins."""
INLINE = tiermem.ColdConfig(committer="inline", journal_bytes=2**20, sync_interval=60.0)
"""Nothing is committed unless something asks for it, which then commits by itself."""


def config(**cold: Any) -> tiermem.Config:
    """A configuration with these `ColdConfig` fields.

    Unless said so the journal is small, others wait as long, and nobody hires a helper.
    """
    shared = {"share_interval": cold["sync_interval"]} if "sync_interval" in cold else {}
    return tiermem.Config(cold=tiermem.ColdConfig(**{"journal_bytes": 2**20, "committer": "thread", **shared, **cold}))


QUIET = config(sync_interval=60.0)
"""Nothing is committed unless something asks for it."""


def eventually(question: Callable[[], Any], deadline: float = DEADLINE) -> Any:
    """The first true answer of `question`, asked again and again; its last answer if none is true in time."""
    end = time.monotonic() + deadline
    while not (answer := question()) and time.monotonic() < end:
        time.sleep(0.005)
    return answer


# A peer: another process that has the store open and does what it is told.


class Peer:
    """A store opened in a process of its own; every verb of `Memory` and every job below is a method."""

    def __init__(self, root: Path | None, **opening: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self.pid = self.process.pid
        if root is not None:
            try:
                self.call("reopen", root, opening)
            except BaseException:
                self.kill()
                raise

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        if verb.startswith("_"):
            raise AttributeError(verb)
        return partial(self.call, verb)

    def call(self, verb: str, *args: Any, **named: Any) -> Any:
        """The result of a call over there; an error of tiermem is raised here."""
        self.begin(verb, *args, **named)
        return self.end()

    def begin(self, verb: str, *args: Any, **named: Any) -> None:
        """Start a call over there and do not wait for it."""
        body = pickle.dumps((verb, args, named))
        self.process.stdin.write(struct.pack("<I", len(body)) + body)

    def end(self, timeout: float = DEADLINE) -> Any:
        """The result of the call that was begun."""
        done, result = self._receive(timeout)
        if done:
            return result
        name, text, trace = result
        kind = getattr(errors, name, None)
        raise kind(text) if kind is not None else AssertionError(f"process {self.pid}:\n{trace}")

    def _receive(self, timeout: float) -> Any:
        end = time.monotonic() + timeout
        data, need = b"", 4
        while len(data) < need:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                self.kill()
                raise AssertionError(f"process {self.pid} did not answer in {timeout} s")
            part = os.read(self.process.stdout.fileno(), 1 << 20)
            if not part:
                raise AssertionError(f"process {self.pid} ended with {self.process.wait()} instead of answering")
            data += part
            if len(data) >= 4:
                need = 4 + struct.unpack_from("<I", data)[0]
        return pickle.loads(data[4:])

    def signal(self, number: int) -> None:
        """Send a signal to the process."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is dead."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def leave(self) -> int:
        """Let the process close its store and exit; its return code."""
        if self.process.poll() is None and not self.process.stdin.closed:
            self.process.stdin.close()
            try:
                self.process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                self.kill()
        self.process.stdout.close()
        return self.process.returncode


class Served:
    """What a peer holds over there."""

    def __init__(self) -> None:
        self.mem: Any = None
        self.clock: tiermem.SimulatedClock | None = None
        self.held: Any = None


def answer_calls() -> None:
    """Answer calls from stdin on stdout until stdin ends; then close the store."""
    requests, answers = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    served = Served()
    with open(requests, "rb") as source, open(answers, "wb", buffering=0) as sink:
        while head := source.read(4):
            verb, args, named = pickle.loads(source.read(struct.unpack("<I", head)[0]))
            try:
                job = JOBS.get(verb)
                result = getattr(served.mem, verb)(*args, **named) if job is None else job(served, *args, **named)
                body = pickle.dumps((True, plain(result)))
            except BaseException as exc:  # noqa: BLE001 - it is raised where the call came from
                body = pickle.dumps((False, (type(exc).__name__, str(exc), traceback.format_exc())))
            whole = struct.pack("<I", len(body)) + body
            while whole:
                whole = whole[os.write(answers, whole) :]
        del sink
    if served.mem is not None:
        served.mem.close()


def plain(result: Any) -> Any:
    """`result` without what cannot cross a pipe: hits become (key, score, version)."""
    if isinstance(result, Iterator):
        result = list(result)
    if isinstance(result, list):
        return [plain(item) for item in result]
    if isinstance(result, tiermem.Hit):
        return (result.key, round(result.score, 5), result.version)
    if dataclasses.is_dataclass(result) and type(result).__name__ == "Stats":
        return str(result)
    return result


JOBS: dict[str, Callable[..., Any]] = {}


def job(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function something a peer can be told to do."""
    JOBS[function.__name__] = function
    return function


@job
def reopen(served: Served, root: Path, opening: dict[str, Any]) -> None:
    """Open (again) the store at `root`; `now` makes a simulated clock."""
    if served.mem is not None:
        served.mem.close()
    opening = dict(opening)
    served.clock = tiermem.SimulatedClock(opening.pop("now")) if "now" in opening else None
    served.mem = tiermem.open(root, clock=served.clock, **opening)


@job
def open_at(served: Served, root: Path, moment: float, opening: dict[str, Any]) -> None:
    """Open the store at the given instant of the monotonic clock, as other peers do."""
    while time.monotonic() < moment:
        pass
    reopen(served, root, opening)


@job
def close(served: Served) -> None:
    """Close the store."""
    served.mem.close()


@job
def set_clock(served: Served, moment: float) -> None:
    """Move the simulated clock."""
    served.clock.set(moment)


@job
def hold_snapshot(served: Served) -> None:
    """Begin a read transaction and leave it open."""
    reading = served.mem._store.cold.read()
    reading.__enter__()
    served.held = reading


@job
def let_go(served: Served) -> None:
    """End it."""
    served.held.__exit__(None, None, None)


@job
def slot(served: Served) -> int:
    """The client slot this process holds."""
    return served.mem._store.slot


@job
def home(served: Served) -> str:
    """Where this process's commits are made."""
    return served.mem.stats().writes.committer


@job
def generation(served: Served) -> int:
    """The generation this process works in."""
    return served.mem._store.generation


@job
def upkeep(served: Served) -> None:
    """What the committer does from time to time: sweep, collect, purge floors, trim."""
    served.mem._store.committer.upkeep.run()


@job
def drain(served: Served) -> None:
    """Commit this process's own journal and no other."""
    served.mem._store.committer.drain()


@job
def subscript(served: Served, name: str, key: str) -> Any:
    """`ns[key]`."""
    return served.mem.namespace(name)[key]


@job
def batch(served: Served, writes: list[tuple[Any, ...]], durable: bool = False) -> None:
    """A batch of ("put", ...) and ("delete", ...)."""
    with served.mem.batch(durable=durable) as b:
        for verb, *args in writes:
            getattr(b, verb)(*args)


@job
def first_change(served: Served, wait: float) -> Any:
    """The next change, waited for."""
    return next(served.mem.changes(wait=wait), None)


@job
def values(served: Served, name: str) -> dict[str, Any]:
    """Key and value of every record, by scanning; each is also asked for by `get`."""
    found = {record.key: record.value for record in served.mem.scan(name)}
    asked = {key: served.mem.get(name, key) for key in found}
    assert asked == found
    return found


@job
def increment(served: Served, name: str, key: str, times: int) -> int:
    """Add 1 to a counter `times` times by compare-and-set; how many attempts were refused."""
    refused = done = 0
    while done < times:
        record = served.mem.get_record(name, key)
        try:
            served.mem.put(name, key, record.value + 1, if_version=record.version)
            done += 1
        except tiermem.VersionConflict:
            refused += 1
    return refused


@job
def swap_and_flush(served: Served, name: str, key: str) -> None:
    """Whatever has to be committed when it returns, until this process is killed."""
    cursor = served.mem.cursor("busy", start=0)
    while True:
        increment(served, name, key, 1)
        served.mem.flush()
        served.mem.put(name, f"{key}-durable", 1, durable=True)
        cursor.commit(next(iter(cursor)).sequence)


def hands_over(mem: tiermem.Memory) -> bool:
    """True if a helper would make a conditional write of this client."""
    return mem._store.committer.assistant.present and mem._store.control.shared


@job
def handing_over(served: Served) -> bool:
    """`hands_over`."""
    return hands_over(served.mem)


@job
def serve(served: Served, die: str, after: int = 0, once: bool = False) -> bool:
    """Answer what other clients ask, as the helper does, once anybody does; whether anybody has.

    die: where this process is killed. after: begin when that process has ended. once: do not wait for anybody.
    """
    desk = served.mem._store.handover
    killed = partial(os.kill, os.getpid(), signal.SIGKILL)
    while after and os.path.exists(f"/proc/{after}") and "Z" not in Path(f"/proc/{after}/stat").read_text():
        time.sleep(0.001)
    if die == "before the answer":
        desk._answers.write = lambda *_: killed()
    elif die == "inside the transaction":
        desk._decided = lambda *_: killed()
    while not (done := desk.serve()) and not once:
        time.sleep(0.001)
    return done


@job
def whom_a_commit_rings(served: Served) -> list[int]:
    """Apply what others have journaled, as the helper does; the slots of those who are rung by name."""
    rung: list[int] = []
    control = served.mem._store.control
    ring, control.bells.ring = control.bells.ring, lambda slot, among: rung.append(slot)
    served.mem._store.committer.commit(others=True)
    control.bells.ring = ring
    return rung


@job
def put_paced(served: Served, name: str, key: str, seconds: float, seed: int) -> list[tuple[int, float]]:
    """Plain puts of ["a", i]; (i, when it had been acknowledged) of each."""
    rng = random.Random(seed)
    end = time.monotonic() + seconds
    acknowledged: list[tuple[int, float]] = []
    while time.monotonic() < end:
        number = len(acknowledged) + 1
        served.mem.put(name, key, ["a", number])
        acknowledged.append((number, time.monotonic()))
        time.sleep(rng.choice((0.0, 0.001, 0.01, 0.03)))
    return acknowledged


@job
def replace_seen(served: Served, name: str, key: str, seconds: float) -> list[tuple[int, float, Any]]:
    """Compare-and-sets of ["b", j] in place of what was read; (j, when it began, what it replaced) of each."""
    end = time.monotonic() + seconds
    won: list[tuple[int, float, Any]] = []
    while time.monotonic() < end:
        record = served.mem.get_record(name, key)
        number = len(won) + 1
        began = time.monotonic()
        try:
            served.mem.put(name, key, ["b", number], if_version=record.version)
        except tiermem.VersionConflict:
            continue
        won.append((number, began, record.value))
    return won


@job
def write_and_read(served: Served, name: str, tag: str, seconds: float, pause: float = 0.0) -> int:
    """Put `tag`-i = i for a while, reading back what was put; how many."""
    mem, rng = served.mem, random.Random(tag)
    end = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end:
        mem.put(name, f"{tag}-{count:06d}", count)
        count += 1
        asked = rng.randrange(count)
        assert mem.get(name, f"{tag}-{asked:06d}") == asked, f"{tag}-{asked} of {count}"
        asked = rng.randrange(count)
        found = mem.get_record(name, f"{tag}-{asked:06d}")
        assert found is not None, f"{tag}-{asked} of {count} is not there"
        assert found.value == asked
        if pause:
            time.sleep(pause)
    return count


@job
def write_pairs(served: Served, tag: str) -> int:
    """Batches that put one number in two namespaces, and plain puts between them until it is enough; how many."""
    mem = served.mem
    count = 0
    while not mem.contains("left", "enough"):
        with mem.batch() as b:
            b.put("left", tag, count)
            b.put("right", tag, count, vector=[1.0, count, len(tag)])
        mem.put("trail", f"{tag}-{count:06d}", count)
        count += 1
        time.sleep(0.001)
    return count


@job
def compact_often(served: Served, times: int, pause: float) -> int:
    """Compact again and again; the generation at the end."""
    for _ in range(times):
        served.mem.compact()
        time.sleep(pause)
    return served.mem._store.generation


@job
def read_for(served: Served, name: str, key: str, seconds: float) -> int:
    """Read in every way for a while; how often."""
    mem = served.mem
    end = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end:
        mem.get(name, key)
        list(mem.scan(name, limit=20))
        mem.count(name)
        count += 1
    return count


@job
def check_for(served: Served, seconds: float) -> list[str]:
    """Check again and again; the problems found."""
    end = time.monotonic() + seconds
    problems: list[str] = []
    while time.monotonic() < end and not problems:
        problems.extend(served.mem.check().problems)
    return problems


# Loops to be killed: forked from the test, each operation following from a seed, acknowledged over a pipe.


class Loop:
    """A forked child that runs `body(mem, say)`; `say(n)` acknowledges."""

    _WORD = struct.Struct("<q")

    def __init__(self, body: Callable[[Callable[[int], None]], None]) -> None:
        self._read, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.close(self._read)
                pack = self._WORD.pack
                body(lambda number: os.write(write, pack(number)) and None)
                status = 0
            except BaseException:  # noqa: BLE001 - the child ends here, and its status says how
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(write)
        self.said: list[int] = []
        self._rest = b""

    def listen(self, seconds: float) -> bool:
        """Collect what the child says for so long; False once it has ended."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([self._read], [], [], left)[0] and not self._collect():
                return False
        return True

    def _collect(self) -> bool:
        data = os.read(self._read, 1 << 16)
        self._rest += data
        whole = len(self._rest) // 8 * 8
        self.said.extend(number for (number,) in self._WORD.iter_unpack(self._rest[:whole]))
        self._rest = self._rest[whole:]
        return bool(data)

    def kill(self) -> int:
        """SIGKILL; the last acknowledged number, -1 if there was none. A child that failed fails the test."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        while self._collect():
            pass
        os.close(self._read)
        _, status = os.waitpid(self.pid, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the loop failed before it was killed"
        return self.said[-1] if self.said else -1


if __name__ == "__main__":
    if len(sys.argv) > 1:
        globals()[sys.argv[1]](*sys.argv[2:])
    else:
        answer_calls()


def in_child(body: Callable[[], None]) -> int:
    """Run `body` in a forked child that exits without closing anything; its pid."""
    pid = os.fork()
    if pid == 0:
        # A child that hangs says where, and ends.
        faulthandler.register(signal.SIGALRM, chain=True)
        signal.alarm(30)
        status = 1
        try:
            body()
            status = 0
        finally:
            if status:
                sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
            os._exit(status)
    return pid


def join(*pids: int) -> None:
    """Wait for children, all of which must have gone well."""
    for pid in pids:
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
