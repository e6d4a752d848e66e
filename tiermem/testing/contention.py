"""Contention: `python -m tiermem.testing.contention` lets processes write the same few keys, and checks what they say.

Plain puts, deletes, batches and compare-and-sets race on a few records, and increments by compare-and-set on two
counters. Afterwards the history of each record must be linearizable, the counters must be exact, every process must
see the same, and `check` must be clean. Processes may be killed on the way: what they had begun may have happened.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Self

import tiermem
from tiermem import ColdConfig, Config, Memory, Record, VersionConflict
from tiermem.engine.assistant import LOCK
from tiermem.testing.children import DEADLINE, Child, Link
from tiermem.testing.history import contents
from tiermem.testing.linearizability import LOST, Call, Value, check
from tiermem.testing.transcript import Effect, Report, Transcript
from tiermem.testing.trial import HOMES
from tiermem.tiers.filelock import holder

REGISTERS: Final = "registers"
COUNTERS: Final = "counters"
KEYS: Final = tuple(f"r{number}" for number in range(6))
COUNTS: Final = ("c0", "c1")
WEIGHTS: Final = {
    "put": 30,
    "durable": 3,
    "delete": 8,
    "batch": 12,
    "swap": 20,
    "swap_batch": 6,
    "claim": 5,
    "increment": 15,
    "read": 6,
}
"""How often each kind of operation comes up."""
INTERVALS: Final = (0.001, 0.01, 0.05)
"""How long writes of one client after the other wait: the longer, the more is journaled when another decides."""
NAP: Final = 0.01
SHOWN: Final = 10


class Client:
    """One process at work: it says each operation before it begins and after it has ended."""

    def __init__(self, link: Link, mem: Memory, name: str) -> None:
        self._link = link
        self._mem = mem
        self._rng = random.Random(name)
        self._name = name
        self._number = 0

    def run(self) -> None:
        """Operate until told to stop, then look when told to."""
        verbs, shares = list(WEIGHTS), list(WEIGHTS.values())
        while self._link.hear(0) is None:
            getattr(self, f"_{self._rng.choices(verbs, shares)[0]}")()
        self._link.say(stopped=True)
        while (word := self._link.hear()) != "end":
            if word == "flush":
                self._mem.flush()
            self._link.say(found=contents(self._mem))

    def _value(self) -> str:
        self._number += 1
        return f"{self._name}.{self._number}"

    def _make(self, verb: str, effects: Sequence[Effect], action: Callable[[], Any]) -> None:
        """Do something, and say what it should do first, and how it went afterwards."""
        self._link.say(call=verb, effects=effects, begun=time.monotonic_ns())
        try:
            result = action()
        except VersionConflict as exc:
            self._link.say(ended=time.monotonic_ns(), refused=exc.found)
        else:
            self._link.say(ended=time.monotonic_ns(), result=result)

    def _key(self) -> str:
        return self._rng.choice(KEYS)

    def _put(self, *, durable: bool = False) -> None:
        key, value = self._key(), self._value()
        self._make("put", [(key, "write", value, None)], lambda: self._mem.put(REGISTERS, key, value, durable=durable))

    def _durable(self) -> None:
        self._put(durable=True)

    def _delete(self) -> None:
        """True says that the record is gone; False that this process has not heard of one, and did nothing."""
        key = self._key()
        self._make("delete", [(key, "write", None, None)], lambda: self._mem.delete(REGISTERS, key))

    def _batch(self) -> None:
        """Two puts and a delete, all or nothing."""
        one, two, gone = self._rng.sample(KEYS, 3)
        first, second = self._value(), self._value()

        def write() -> list[int]:
            with self._mem.batch() as batch:
                batch.put(REGISTERS, one, first)
                batch.put(REGISTERS, two, second)
                batch.delete(REGISTERS, gone)
            return batch.versions

        effects: list[Effect] = [(one, "write", first, None), (two, "write", second, None), (gone, "write", None, None)]
        self._make("batch", effects, write)

    def _seen(self, namespace: str, key: str) -> tuple[int, Value]:
        """The version and the value of a record, of which this process may not have heard the newest."""
        record = self._mem.get_record(namespace, key)
        if record is None:
            return 0, None
        self._link.say(key=key, version=record.version, value=str(record.value))
        return record.version, str(record.value)

    def _swap(self) -> None:
        key, value = self._key(), self._value()
        version, seen = self._seen(REGISTERS, key)
        effects: list[Effect] = [(key, "swap", value, seen)]
        self._make("swap", effects, lambda: self._mem.put(REGISTERS, key, value, if_version=version))

    def _swap_batch(self) -> None:
        """A compare-and-set that takes a plain put along."""
        key, other = self._rng.sample(KEYS, 2)
        first, second = self._value(), self._value()
        version, seen = self._seen(REGISTERS, key)

        def write() -> list[int]:
            with self._mem.batch() as batch:
                batch.put(REGISTERS, key, first, if_version=version)
                batch.put(REGISTERS, other, second)
            return batch.versions

        self._make("swap in a batch", [(key, "swap", first, seen), (other, "write", second, None)], write)

    def _claim(self) -> None:
        """A delete of what was seen, and of nothing else."""
        key = self._key()
        version, seen = self._seen(REGISTERS, key)
        if version:
            effects: list[Effect] = [(key, "swap", None, seen)]
            self._make("claim", effects, lambda: self._mem.delete(REGISTERS, key, if_version=version))

    def _increment(self) -> None:
        """One more than what was seen. What a counter holds is written once: nobody swaps the same value in twice."""
        key = self._rng.choice(COUNTS)
        version, seen = self._seen(COUNTERS, key)
        value = int(seen or 0) + 1
        effects: list[Effect] = [(key, "swap", str(value), seen)]
        self._make("increment", effects, lambda: self._mem.put(COUNTERS, key, value, if_version=version))

    def _read(self) -> None:
        """Behind a flush, which brings everything that was put before it."""
        key = self._key()

        def read() -> Value:
            self._mem.flush()
            record: Record | None = self._mem.get_record(REGISTERS, key)
            return None if record is None else str(record.value)

        self._make("read", [(key, "read", None, None)], read)


def client(link: Link, root: Path, name: str, home: str, interval: float) -> None:
    """The body of one process."""
    cold = ColdConfig(
        committer=home,  # type: ignore[arg-type]  # one of HOMES
        sync_interval=interval,
        share_interval=interval,
        journal_bytes=2**16,
    )
    with tiermem.open(root, config=Config(cold=cold)) as mem:
        link.say(opened=True)
        Client(link, mem, name).run()


class Contest:
    """Processes at work on one store, listened to until they are told to stop."""

    def __init__(self, root: Path, processes: int, *, home: str | None = None) -> None:
        self._root = root
        self._home = home
        self._made = 0
        self.report = Report(processes, 0.0)
        self.transcript = Transcript(self.report)
        self.children: dict[str, Child] = {}
        for _ in range(processes):
            self._add()

    def _add(self) -> None:
        number = self._made
        self._made += 1
        name = f"p{number}"
        home = self._home or HOMES[number % len(HOMES)]
        interval = INTERVALS[number % len(INTERVALS)]
        child = Child(lambda link: client(link, self._root, name, home, interval))
        self.children[name] = child
        child.start()

    def _listen(self) -> None:
        for name, child in self.children.items():
            child.listen(0.0)
            for message in child.messages:
                self.transcript.hear(name, message)
                if "error" in message:
                    self.report.problems.append(f"{name}: {message['error']}")
            child.messages.clear()

    def work(self, seconds: float, *, kill_every: float = 0.0, kill_helper_every: float = 0.0, seed: int = 0) -> None:
        """Let them work for so long; one of them, or their helper, is killed and replaced every so many seconds."""
        rng = random.Random(seed)
        report = self.report
        before, due, helper_due = time.monotonic(), kill_every, kill_helper_every
        while report.seconds < seconds and report.held:
            self._listen()
            now = time.monotonic()
            # While this process was itself stopped, so were the others, for all it knows.
            report.seconds += min(now - before, 1.0)
            before = now
            if kill_every and report.seconds >= due:
                due += kill_every
                victim = rng.choice(list(self.children))
                self.children[victim].kill()
                self._listen()
                del self.children[victim]
                report.killed += 1
                self._add()
            if kill_helper_every and report.seconds >= helper_due:
                helper_due += kill_helper_every * (0.5 + rng.random())
                helper = holder(self._root / LOCK)
                if helper > 0:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(helper, signal.SIGKILL)
                    report.helpers_killed += 1
            time.sleep(NAP)

    def stop(self) -> None:
        """Let them end what they are at."""
        for child in self.children.values():
            child.tell("stop")
        end = time.monotonic() + DEADLINE
        waiting = set(self.children)
        while waiting and time.monotonic() < end:
            for name in list(waiting):
                child = self.children[name]
                child.listen(0.0)
                if any("stopped" in message or "error" in message for message in child.messages):
                    waiting.discard(name)
            time.sleep(NAP)
        self._listen()
        for name in waiting:
            self.report.problems.append(f"{name} hangs, or has ended with {self.children[name].status}")

    def judge(self) -> Report:
        """Ask everybody what is there, and whether that can be."""
        report = self.report
        seen: dict[str, Any] = {}
        for number, (name, child) in enumerate(self.children.items()):
            # The first one's flush brings what all have put to all.
            answer = child.answer("look" if number else "flush") or {}
            seen[name] = answer.get("found", answer.get("error", "nothing"))
        for child in self.children.values():
            child.tell("end")
        for name, child in self.children.items():
            if not child.finish() or child.leave():
                report.problems.append(f"{name} ended with {child.status}: {child.messages[-1:]}")
        final = now = time.monotonic_ns()
        with tiermem.open(self._root) as mem:
            seen["a fresh process"] = state = contents(mem)
            faults = mem.check()
        if not faults.ok:
            report.problems.append(str(faults))
        report.problems += [f"{name} sees {found}, not {state}" for name, found in seen.items() if found != state]
        histories = self.transcript.histories()
        report.records = len(histories)
        for key, calls in sorted(histories.items()):
            value = state.get(COUNTERS if key in COUNTS else REGISTERS, {}).get(key)
            calls.append(Call("read", None, None if value is None else str(value), now, final, "a fresh process"))
            if wrong := check(calls):
                report.problems.append(f"{key}: {wrong}")
        for key in COUNTS:
            self._count(key, histories.get(key, []), int(state.get(COUNTERS, {}).get(key, 0)))
        report.check_seconds = (time.monotonic_ns() - now) / 1e9
        return report

    def _count(self, key: str, calls: Sequence[Call], found: int) -> None:
        acknowledged = sum(call.kind == "swap" and call.ended != LOST for call in calls)
        lost = sum(call.kind == "swap" and call.ended == LOST for call in calls)
        self.report.counters[key] = f"{acknowledged:,} increments, {found:,} counted"
        if not acknowledged <= found <= acknowledged + lost:
            self.report.problems.append(f"counter {key} is {found} after {acknowledged} increments and {lost} lost")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.children.values():
            child.kill()


def contest(
    root: Path,
    *,
    processes: int,
    seconds: float,
    kill_every: float = 0.0,
    kill_helper_every: float = 0.0,
    seed: int = 0,
    home: str | None = None,
) -> Report:
    """Let processes contend for one new store, and judge what they say."""
    with Contest(root, processes, home=home) as running:
        running.work(seconds, kill_every=kill_every, kill_helper_every=kill_helper_every, seed=seed)
        running.stop()
        return running.judge()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print what was checked; 1 if anything did not hold."""
    parser = argparse.ArgumentParser(prog="python -m tiermem.testing.contention", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long they work (%(default)s)")
    parser.add_argument("--processes", type=int, default=8, help="how many there are (%(default)s)")
    parser.add_argument("--kill-every", type=float, default=0.0, help="seconds between kills; 0: none (%(default)s)")
    parser.add_argument(
        "--kill-helper-every", type=float, default=0.0, help="the same for the helper, roughly (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="what is killed follows from it (%(default)s)")
    parser.add_argument("--home", choices=HOMES, help="where all of them commit (each kind in turn)")
    parser.add_argument("--folder", type=Path, help="where the store is made (a temporary directory)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="tiermem-contention-", dir=options.folder) as folder:
        report = contest(
            Path(folder) / "store",
            processes=options.processes,
            seconds=options.seconds,
            kill_every=options.kill_every,
            kill_helper_every=options.kill_helper_every,
            seed=options.seed,
            home=options.home,
        )
    sys.stdout.write((json.dumps(vars(report), indent=1) if options.json else str(report)) + "\n")
    for problem in report.problems[:SHOWN]:
        sys.stderr.write(f"\n{problem[:3000]}\n")
    return 0 if report.held else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main())
