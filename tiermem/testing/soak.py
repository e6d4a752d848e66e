"""Soak: `python -m tiermem.testing.soak` keeps processes at work on one store for a long time, and kills them.

Each client performs seeded histories in namespaces of its own, with records that expire beside them, compactions and
segments. Every few seconds one of them, or the helper process, is killed; whoever takes its place must find what was
acknowledged. The first client is never killed. Memory and files are measured once a second: both must stay as they
were when the run had warmed up.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import tiermem
from tiermem import ColdConfig, Config, Memory, VectorConfig
from tiermem.engine.assistant import LOCK
from tiermem.testing.children import DEADLINE, Child, Link
from tiermem.testing.growth import Series
from tiermem.testing.history import SOON, WEIGHTS, Legal, contents, perform, steps
from tiermem.tiers.filelock import holder

MIX: Final = {**{verb: 10 * share for verb, share in WEIGHTS.items()}, "append": 0, "compact": 2, "index": 2}
"""A stream that nothing expires from would grow for ever: `BRIEF` is one from which everything does."""
BRIEF: Final = "brief"
LIFE: Final = 2.0
"""Seconds in which what is appended there expires."""
LOOK: Final = 200
"""Steps between two looks at everything one has written."""
PAUSE: Final = 0.002
HELPER: Final = "helper"
WARM: Final = 0.25
"""The part of a run after which memory and files are judged."""
SHORTEST: Final = 60.0
"""Seconds below which a run is too short for that."""
MEMORY_SLACK: Final = 8.0
"""MiB by which the memory of a process may seem to grow."""
FILE_FACTOR: Final = 1.5
FILE_SLACK: Final = 8.0
"""How much larger the files may be in the last quarter of a run than in the second: so many times, and MiB beyond."""
TICK: Final = 0.02
SHOWN: Final = 10

CONFIG: Final = Config(
    vector=VectorConfig(seal_rows=16),
    cold=ColdConfig(committer="helper", sync_interval=0.01, journal_bytes=2**18, log_retention=2_000),
)


def client(link: Link, root: Path, under: str, seed: int) -> None:
    """Look at what a predecessor has left, then work until told to end."""
    with tiermem.open(root, config=CONFIG) as mem:
        brief: deque[tuple[float, str]] = deque()
        link.say(found=contents(mem, beside=under + BRIEF, under=under))
        for number, step in enumerate(steps(seed, under=under, weights=MIX)):
            perform(mem, step)
            link.say(step=number)
            mark = f"{seed}:{number}"
            mem.append(under + BRIEF, mark, ttl=LIFE)
            brief.append((time.time(), mark))
            word = link.hear(PAUSE)
            if word is not None or number % LOOK == LOOK - 1:
                time.sleep(10 * SOON)
                _look_at_brief(mem, under + BRIEF, brief)
                link.say(found=contents(mem, beside=under + BRIEF, under=under))
            if word is not None:
                return


def _look_at_brief(mem: Memory, name: str, appended: deque[tuple[float, str]]) -> None:
    """What is half as old as it may become is there, and nothing that is older."""
    now = time.time()
    while appended and appended[0][0] <= now - LIFE / 2:
        appended.popleft()
    found = list(mem.scan(name))
    ended = time.time()
    if ended < now + LIFE / 2:
        missing = {mark for _, mark in appended} - {record.value for record in found}
        assert not missing, f"{len(missing)} records are gone before their time"
    late = [record.key for record in found if record.expires_at is not None and record.expires_at <= now]
    assert not late, f"{len(late)} records are there after their time"


@dataclass
class Role:
    """One place among the processes, and all who have filled it."""

    name: str
    kills: int = 0
    steps: int = 0
    looks: int = 0
    memory: Series = field(default_factory=Series)
    """Of its own: what it shares with the page cache is not in it."""


@dataclass
class Report:
    """What a run did, and what did not hold."""

    seconds: float
    roles: list[Role]
    files: dict[str, Series] = field(default_factory=dict)
    compactions: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def held(self) -> bool:
        """Whether everything was as promised."""
        return not self.problems

    def judge_sizes(self) -> None:
        """Memory and files have stayed as they were, if the run was long enough to say so."""
        if self.seconds < SHORTEST:
            return
        for role in self.roles:
            growth = role.memory.growth(self.seconds * WARM)
            if growth > MEMORY_SLACK:
                self.problems.append(f"the memory of {role.name} grows: {growth:.1f} MiB since it was warm")
        for name, series in self.files.items():
            early = max(series.between(self.seconds * WARM, self.seconds / 2), default=0.0)
            late = max(series.between(self.seconds * (1 - WARM), self.seconds + 1), default=0.0)
            if late > early * FILE_FACTOR + FILE_SLACK:
                self.problems.append(f"{name} grows: from {early:.1f} to {late:.1f} MiB")

    def __str__(self) -> str:
        warm = self.seconds * WARM
        judged = self.seconds >= SHORTEST
        sizes = f"{'warm MiB':>10}{'end MiB':>9}{'most MiB':>10}"
        lines = [f"{'':14}{'killed':>8}{'steps':>10}{'looks':>8}{sizes}{'growth MiB':>12}"]
        for role in self.roles:
            values = role.memory.between(warm, self.seconds + 1) or [0.0]
            lines.append(
                f"{role.name:14}{role.kills:8,}{role.steps:10,}{role.looks:8,}{values[0]:10.1f}{values[-1]:9.1f}"
                f"{max(values):10.1f}{role.memory.growth(warm):+12.2f}"
            )
        lines.append(f"\n{'files':14}{sizes}")
        for name, series in self.files.items():
            values = series.between(warm, self.seconds + 1) or [0.0]
            lines.append(f"{name:14}{values[0]:10.2f}{values[-1]:9.2f}{max(values):10.2f}")
        kills, made, looks = (sum(getattr(role, name) for role in self.roles) for name in ("kills", "steps", "looks"))
        lines.append(
            f"\n{self.seconds:,.0f} s, {kills:,} kills, {self.compactions:,} compactions; {made:,} acknowledged "
            f"operations, looked for {looks:,} times: "
            + ("nothing lost, check clean" if self.held else f"{len(self.problems)} problems")
            + (", memory flat, files bounded" if self.held and judged else "")
            + ("" if judged else f"; sizes are judged from {SHORTEST:.0f} s on")
        )
        lines.append(
            "killed: how often it was replaced. looks: states compared with what was acknowledged. growth: of a\n"
            "straight line through its own memory since it was warm, behind a quarter of the run."
        )
        return "\n".join(lines)


class Worker:
    """A client's place: who fills it now, what its records may be."""

    def __init__(self, root: Path, number: int, seeds: random.Random) -> None:
        self.role = Role(f"client {number}")
        self._root = root
        self.under = f"soak/{number}/"
        self._seeds = seeds
        self.legal = Legal()
        self.silent = 0.0
        self.begin()

    def begin(self) -> None:
        """Somebody takes the place."""
        root, under, seed = self._root, self.under, self._seeds.randrange(2**32)
        self._steps = steps(seed, under=under, weights=MIX)
        self._next = next(self._steps)
        self._opened = False
        self.child = Child(lambda link: client(link, root, under, seed))
        self.child.start()

    def listen(self) -> list[str]:
        """Take note of what it has said; what is wrong with that."""
        self.child.listen(0.0)
        wrong = []
        said, self.child.messages = self.child.messages, []
        if said:
            self.silent = 0.0
        for message in said:
            if "step" in message:
                self.legal.acknowledged(self._next)
                self._next = next(self._steps)
                self.role.steps += 1
            elif "found" in message:
                self._opened = True
                self.role.looks += 1
                if difference := self.legal.seen(message["found"]):
                    wrong.append(f"{self.role.name} sees another state: {difference}")
            elif "error" in message:
                wrong.append(f"{self.role.name}: {message['error']}")
        return wrong

    def kill(self) -> list[str]:
        """SIGKILL; what it was at may have happened, and somebody else goes on."""
        self.child.kill()
        wrong = self.listen()
        if self._opened:
            self.legal.doubtful(self._next)
        self.role.kills += 1
        self.begin()
        return wrong

    def end(self) -> list[str]:
        """Let it look once more and close the store."""
        self.child.tell("end")
        wrong = self.listen()
        hangs = not self.child.finish()
        wrong += self.listen() if not hangs else [f"{self.role.name} hangs"]
        if self.child.leave():
            wrong.append(f"{self.role.name} ended with {self.child.status}")
        return wrong


class Soak:
    """The processes, what is measured of them, and who is killed next."""

    def __init__(self, root: Path, processes: int, seed: int) -> None:
        self._root = root
        self._rng = random.Random(seed)
        self.workers = [Worker(root, number, self._rng) for number in range(processes)]
        self._helper = Role(HELPER)
        self.report = Report(0.0, [*(worker.role for worker in self.workers), self._helper])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.child.kill()

    def run(self, seconds: float, kill_every: float, told: Callable[[float, str], None] = lambda _, __: None) -> None:
        """Let them work for so long."""
        report = self.report
        before = time.monotonic()
        measured, due = -1, kill_every
        while report.held and report.seconds < seconds:
            now = time.monotonic()
            # While this process was itself stopped, so were the others, for all it knows.
            passed, before = min(now - before, 1.0), now
            report.seconds += passed
            for worker in self.workers:
                worker.silent += passed
                report.problems += worker.listen()
                if worker.child.status is not None:
                    report.problems.append(f"{worker.role.name} ended with {worker.child.status}")
                elif worker.silent > DEADLINE:
                    report.problems.append(f"{worker.role.name} hangs")
            if report.seconds >= due and report.held:
                due = report.seconds + kill_every
                self._kill()
            if int(report.seconds) > measured:
                measured = int(report.seconds)
                self._measure(report.seconds)
                kills = sum(role.kills for role in report.roles)
                told(report.seconds, f"{kills} kills, {sum(role.steps for role in report.roles):,} operations")
            time.sleep(TICK)

    def _kill(self) -> None:
        """One of the clients but the first, or the helper, if there is one just now."""
        chosen = self._rng.choice([*self.workers[1:], None])
        if chosen is not None:
            self.report.problems += chosen.kill()
        elif (pid := holder(self._root / LOCK)) > 0:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self._helper.kills += 1

    def _measure(self, moment: float) -> None:
        for worker in self.workers:
            worker.role.memory.add_memory(moment, worker.child.pid)
        self._helper.memory.add_memory(moment, holder(self._root / LOCK))
        sizes: Counter[str] = Counter({"data.mdb": 0, "journals": 0, "segments": 0, "other files": 0})
        # What is removed meanwhile is passed over: a compaction leaves whole directories behind.
        for folder, _, names in os.walk(self._root):
            for path in (Path(folder, name) for name in names):
                kind = path.name if path.name == "data.mdb" else path.relative_to(self._root).parts[0]
                with suppress(OSError):
                    sizes[kind if kind in sizes else "other files"] += path.lstat().st_blocks * 512
        for name, size in sizes.items():
            self.report.files.setdefault(name, Series()).add(moment, size / 2**20)

    def judge(self) -> None:
        """Let all end, and look at what is there with fresh eyes."""
        report = self.report
        for worker in self.workers:
            report.problems += worker.end()
        with tiermem.open(self._root) as mem:
            for worker in self.workers:
                if wrong := worker.legal.seen(contents(mem, beside=worker.under + BRIEF, under=worker.under)):
                    report.problems.append(f"a fresh process sees another state: {wrong}")
                worker.role.looks += 1
            found = mem.check()
            if not found.ok:
                report.problems.append(str(found))
            report.compactions = mem.stats().generation - 1
        report.judge_sizes()


def soak(
    root: Path,
    *,
    seconds: float,
    processes: int = 4,
    kill_every: float = 3.0,
    seed: int = 0,
    told: Callable[[float, str], None] = lambda _, __: None,
) -> Report:
    """Keep processes at work on a new store, and judge what they say; `told` hears of it about once a second."""
    with Soak(root, processes, seed) as running:
        running.run(seconds, kill_every, told)
        if running.report.held:
            running.judge()
        return running.report


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, and print what became of processes, memory and files; 1 if anything did not hold."""
    parser = argparse.ArgumentParser(prog="python -m tiermem.testing.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long it takes (%(default)s)")
    parser.add_argument("--processes", type=int, default=4, help="clients at work (%(default)s)")
    parser.add_argument("--kill-every", type=float, default=3.0, help="seconds between two kills (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="what the histories and kills follow from (%(default)s)")
    parser.add_argument("--folder", type=Path, help="where the store is made (a temporary directory)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON, with every measurement")
    options = parser.parse_args(arguments)
    seconds = options.minutes * 60
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with (
        tempfile.TemporaryDirectory(prefix="tiermem-soak-", dir=options.folder) as folder,
        # Threads are no good where processes are forked: it is drawn when there is news.
        Progress(*columns, console=Console(stderr=True), auto_refresh=False) as progress,
    ):
        task = progress.add_task("", total=seconds)

        def told(moment: float, text: str) -> None:
            progress.update(task, completed=moment, description=text, refresh=True)

        report = soak(
            Path(folder) / "store",
            seconds=seconds,
            processes=options.processes,
            kill_every=options.kill_every,
            seed=options.seed,
            told=told,
        )
    sys.stdout.write((json.dumps(asdict(report), indent=1) if options.json else str(report)) + "\n")
    for problem in report.problems[:SHOWN]:
        sys.stderr.write(f"\n{problem[:3000]}\n")
    return 0 if report.held else 1


if __name__ == "__main__":
    sys.exit(main())
