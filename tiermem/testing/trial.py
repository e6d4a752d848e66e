"""Trials: a client does what a history says until something happens to it; then it is asked what is left."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final, Self
from unittest import mock

import tiermem
from tiermem import ColdConfig, Config, Memory, TiermemError, VectorConfig
from tiermem.engine.assistant import LOCK
from tiermem.testing.children import DEADLINE, Child, Link, Patience
from tiermem.testing.history import SOON, Legal, State, Step, contents, perform, steps
from tiermem.testing.strace import Strace
from tiermem.tiers import journal
from tiermem.tiers.filelock import holder

HOMES: Final = ("inline", "thread", "helper")
"""Where commits may be made, by `ColdConfig.committer`."""
COMPANY: Final = "company"
"""The namespace of everybody but the client."""
TRIES: Final = 100
PAUSE: Final = 0.01
NEVER_BY_ITSELF: Final = 60.0


@dataclass(frozen=True)
class Case:
    """What a client is, and what it does.

    home: one of `HOMES`. durable: its puts ask for it. company: a second client lives on beside it. index: it builds
    segments. seed, length: which history, and how many steps of it. lazy: nothing is committed unless it is asked for.
    helper: what is killed is not the client but the helper process, which the second client has hired.
    """

    home: str = "inline"
    durable: bool = False
    company: bool = False
    index: bool = False
    seed: int = 0
    length: int = 30
    lazy: bool = False
    helper: bool = False

    def __str__(self) -> str:
        words = [self.home, "durable" if self.durable else "plain", "with company" if self.company else "alone"]
        words += ["with segments"] * self.index + ["lazy"] * self.lazy + ["the helper is hit"] * self.helper
        return f"{', '.join(words)}, seed {self.seed}"

    @property
    def config(self) -> Config:
        """A small journal, and commits as soon as there is something to commit."""
        return Config(
            vector=VectorConfig(seal_rows=16 if self.index else 4096),
            cold=ColdConfig(
                committer=self.home,  # type: ignore[arg-type]  # one of HOMES
                sync_interval=NEVER_BY_ITSELF if self.lazy else 0.001,
                journal_bytes=2**16,
                log_retention=50,
            ),
        )

    def steps(self) -> list[Step]:
        """The history."""
        return list(islice(steps(self.seed, durable=self.durable, index=self.index), self.length))


@dataclass
class Verdict:
    """How a trial went: `hit` if what was to happen did, `problems` if not everything held."""

    where: str
    hit: bool = False
    hung: bool = False
    acknowledged: int = 0
    errors: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    state: State = field(default_factory=dict)

    @property
    def held(self) -> bool:
        """Whether all is as promised."""
        return not self.problems


def told(exc: TiermemError) -> str:
    """An error in words, which it must have."""
    assert str(exc), f"{type(exc).__name__} says nothing"
    return f"{type(exc).__name__}: {exc}"


def client(link: Link, root: Path, case: Case, before: Callable[[int, Memory], None] | None = None) -> None:
    """Do the steps, say how each went, and come to rest; `before(number, mem)` is called before each."""
    mem = _opened(link, root, case)
    for number, step in enumerate(case.steps()):
        if before is not None:
            before(number, mem)
        try:
            perform(mem, step)
        except TiermemError as exc:
            link.say(step=number, error=told(exc))
            mem = _mended(link, mem, exc, root, case)
            _look(link, mem)
        else:
            link.say(step=number)
    if before is not None:
        before(case.length, mem)
    for attempt in range(TRIES):
        try:
            mem.flush()
            time.sleep(10 * SOON)
            link.say(found=contents(mem, beside=COMPANY))
            break
        except TiermemError as exc:
            link.say(error=told(exc))
            mem = _mended(link, mem, exc, root, case)
            if attempt == TRIES - 1:
                raise
            time.sleep(PAUSE)
    for _ in range(TRIES):
        # A commit in the background may have met the fault last; the next one makes up for it.
        failing = [trouble for trouble in mem.stats().degraded if "commit failed" in trouble]
        if not failing:
            break
        time.sleep(PAUSE)
        with suppress(TiermemError):
            mem.flush()
    assert not failing, f"still degraded behind a flush: {failing}"
    try:
        mem.close()
    except TiermemError as exc:
        link.say(error=told(exc))


def _opened(link: Link, root: Path, case: Case) -> Memory:
    for attempt in range(TRIES):
        try:
            mem = tiermem.open(root, config=case.config)
        except TiermemError as exc:
            link.say(error=told(exc))
            if attempt == TRIES - 1:
                raise
            time.sleep(PAUSE)
        else:
            break
    link.say(opened=True)
    return mem


def _mended(link: Link, mem: Memory, exc: TiermemError, root: Path, case: Case) -> Memory:
    """The store, opened again if the error asks for it."""
    if "must be reopened" not in str(exc) and not isinstance(exc, tiermem.ClosedError):
        return mem
    try:
        mem.close()
    except TiermemError as closing:
        link.say(error=told(closing))
    return _opened(link, root, case)


def _look(link: Link, mem: Memory) -> None:
    time.sleep(10 * SOON)
    try:
        link.say(found=contents(mem, beside=COMPANY))
    except TiermemError as exc:
        link.say(error=told(exc))


def companion(link: Link, root: Path, case: Case) -> None:
    """A second client, which waits for changes and writes by turns, and looks when asked to."""
    mem = tiermem.open(root, config=case.config)
    link.say(opened=True)
    number = 0
    while (word := link.hear(0)) != "leave":
        if word is None:
            # Asleep, so that whoever commits has somebody to wake.
            next(mem.changes(wait=0.01), None)
            number += 1
            mem.put(COMPANY, f"{case.seed}-{number:06d}", number)
            continue
        mem.flush()
        own = [record.value for record in mem.scan(COMPANY, prefix=f"{case.seed}-")]
        assert own == list(range(1, number + 1)), f"of {number} records of the second client {len(own)} are there"
        mem.put(COMPANY, "durable", number, durable=True)
        link.say(found=contents(mem, beside=COMPANY))
    mem.close()


def reader(link: Link, root: Path, case: Case, *, rebooted: bool = False) -> None:
    """Open the store, look, check everything, and write; `rebooted`: as if the machine had been booted since."""
    with mock.patch.object(journal, "boot_id", (lambda: b"another boot id!") if rebooted else journal.boot_id):
        mem = tiermem.open(root, config=case.config)
        link.say(found=contents(mem, beside=COMPANY))
        report = mem.check()
        assert report.ok, str(report)
        mem.put(COMPANY, "reader", 1)
        mem.put(COMPANY, "reader", 2, durable=True)
        assert mem.get(COMPANY, "reader") == 2
        mem.close()


class Trial:
    """One client, perhaps with company, and what becomes of it; use as a context manager."""

    def __init__(self, where: str, root: Path, case: Case, *, known: State | None = None, faults: bool = False) -> None:
        self.root, self.case, self.faults = root, case, faults
        self.legal = Legal(known)
        self.verdict = Verdict(f"{where} ({case})")
        self._second: Child | None = None
        self.client: Child | None = None

    def __enter__(self) -> Self:
        if self.case.company:
            self._second = Child(lambda link: companion(link, self.root, self.case))
            if not self._second.answer("start"):
                self._blame(self._second, "the second client")
        patience = Patience(DEADLINE)
        while self.case.helper and not self.helpers():
            assert patience.left(), "the second client has no helper"
            time.sleep(PAUSE)
        return self

    def __exit__(self, *_: object) -> None:
        for child in (self._second, self.client):
            if child is not None:
                child.kill()

    def helpers(self) -> list[int]:
        """The helper process, if there is one; it is nobody's child."""
        return [pid for pid in [holder(self.root / LOCK)] if pid > 0]

    def run(
        self,
        attach: Callable[[int], Strace] | None = None,
        *,
        kill_after: float | None = None,
        before: Callable[[int, Memory], None] | None = None,
        first: Callable[[], None] | None = None,
        choose: Callable[[list[int]], int] = lambda pids: pids[0],
    ) -> Verdict:
        """Let the client run, traced or killed, and judge what is left.

        attach: makes the tracer of a process: the client, or the helper if the case says so.
        first, before: called in the client once it may begin, and before each step.
        kill_after: seconds until SIGKILL goes to the one `choose` picks of the client, what it has started, the helper.
        """
        verdict = self.verdict

        def body(link: Link) -> None:
            if first is not None:
                first()
            client(link, self.root, self.case, before)

        self.client = child = Child(body)
        tracer = None if attach is None else attach(self.helpers()[0] if self.case.helper else child.pid)
        child.start()
        try:
            if kill_after is None:
                verdict.hung = not child.finish()
            else:
                verdict.hit = child.listen(kill_after)
                if verdict.hit:
                    helpers = self.helpers()
                    pids = helpers if self.case.helper else [child.pid, *started_by(child.pid), *helpers]
                    # A helper may have gone, until the next one is hired; then nobody is killed.
                    verdict.hit = bool(pids)
                    with suppress(ProcessLookupError):
                        if pids:
                            os.kill(choose(pids), signal.SIGKILL)
                verdict.hung = not child.finish()
        finally:
            if tracer is not None:
                tracer.stop()
        if tracer is not None:
            verdict.hit = tracer.hit()
        self._judge(child)
        if self._second is not None and verdict.held:
            self._ask(self._second)
        if verdict.held:
            self.read()
        return verdict

    def _judge(self, child: Child) -> None:
        verdict = self.verdict
        done = child.messages[-1].get("done", False) if child.messages else False
        status = child.leave() if done or verdict.hung else child.kill()
        verdict.hit = verdict.hit or (status == -signal.SIGKILL and not verdict.hung)
        if verdict.hung:
            verdict.problems.append(f"the client hangs; it said last {str(child.messages[-1:])[:300]}")
        killed = status == -signal.SIGKILL and verdict.hit and not self.faults
        if not killed and (status != 0 or not done) and not verdict.hung:
            self._blame(child, "the client")
        history, next_step, opened = self.case.steps(), 0, False
        for message in child.messages:
            opened = opened or "opened" in message
            if "error" in message and "Traceback" not in message["error"]:
                verdict.errors.append(message["error"])
            if "step" in message:
                next_step = message["step"] + 1
                if "error" in message:
                    self.legal.doubtful(history[next_step - 1])
                else:
                    self.legal.acknowledged(history[next_step - 1])
                    verdict.acknowledged += 1
            elif "found" in message:
                self._see(message["found"], "the client")
        if not done and opened and next_step < len(history):
            self.legal.doubtful(history[next_step])
        # What is killed may be the process that builds a segment: then that says so, and is done again.
        strange = [error for error in verdict.errors if not (self.case.index and "building a segment" in error)]
        if strange and not self.faults:
            verdict.problems.append(f"the client met {strange[0]}")

    def _see(self, found: State, who: str) -> None:
        if wrong := self.legal.seen(found):
            self.verdict.problems.append(f"{who} sees another state: {wrong}")

    def _blame(self, child: Child, who: str) -> None:
        said = child.messages[-1] if child.messages else {}
        self.verdict.problems.append(f"{who} ended with {child.status}: {said.get('error', said)}"[:3000])

    def _ask(self, second: Child) -> None:
        answer = second.answer("look")
        if answer is None or "found" not in answer:
            self._blame(second, "the second client" if second.status is not None else "the second client hangs:")
        else:
            self._see(answer["found"], "the second client")

    def read(self, root: Path | None = None, *, rebooted: bool = False) -> None:
        """Let a fresh process open the store and look at everything."""
        child = Child(lambda link: reader(link, root or self.root, self.case, rebooted=rebooted))
        child.start()
        if not child.finish():
            self.verdict.problems.append("a client that opens the store hangs")
        child.leave()
        for message in child.messages:
            if "found" in message:
                self._see(message["found"], "a fresh client")
                self.verdict.state = message["found"]
        if child.status != 0:
            self._blame(child, "a fresh client")


@contextmanager
def fresh(folder: Path) -> Iterator[Path]:
    """The path of a store yet to be made in `folder`, which is gone afterwards."""
    root = folder / "store"
    shutil.rmtree(root, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def started_by(pid: int) -> Iterator[int]:
    """The processes that a process has started and that are still there."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        for task in tasks:
            for child in (task / "children").read_text(encoding="ascii").split():
                yield int(child)
                yield from started_by(int(child))
    except OSError:
        return
