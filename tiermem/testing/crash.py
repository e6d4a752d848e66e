"""Crashes and faults in bulk: `python -m tiermem.testing.crash` tries many points and counts how many held.

A client performs a seeded history and acknowledges each operation. It is killed at a random instant or at a numbered
system call, or a call of its fails, or there is no room, or the power goes. Then the store is opened by a fresh
process: what was acknowledged must be there, what was in flight may be, and `get`, `scan`, `count`, `search_similar`
and `check` must agree. A second client may live on beside it, and must see the same.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from itertools import count, product
from pathlib import Path
from types import FrameType
from typing import Any, Final, TypeAlias

import tiermem
from tiermem.testing import faults, power
from tiermem.testing.history import State
from tiermem.testing.strace import CHANGES, Point, Strace, missing
from tiermem.testing.trial import HOMES, Case, Trial, Verdict, fresh

LONGEST: Final = 0.15
"""Seconds in which a client has usually done all it is to do; ten times as many where it builds segments."""
ROUNDS: Final = 5
"""How often a store is crashed at random instants before the next one is made."""
BOTH: Final = (False, True)
SHOWN: Final = 20

Run: TypeAlias = Callable[[Path, int], Iterator[Verdict]]
Tracer: TypeAlias = Callable[[FrameType, str, Any], Any]


def sweep(folder: Path, case: Case, calls: Iterable[str] = CHANGES, *, every: int = 1) -> Iterator[Verdict]:
    """Kill the client, or the helper, at each numbered call of each name, until it survives; of `every` calls one."""
    for call in calls:
        for number in count(1, every):
            verdict = killed_at(folder, case, Point(call, number))
            if verdict.hit or not verdict.held:
                yield verdict
            if not verdict.hit:
                break


def killed_at(folder: Path, case: Case, point: Point) -> Verdict:
    """Kill whoever makes a call: the client or what it has started, or the helper; `hit` is false if nobody did."""
    with fresh(folder) as root, Trial(f"killed at {point}", root, case) as trial:
        return trial.run(lambda pid: Strace.killing(pid, folder / "strace.log", point))


def lines(folder: Path, case: Case, *, every: int, start: int = 1) -> Iterator[Verdict]:
    """Kill the client at every so manieth line of Python it runs in the engine, until it survives.

    Between two system calls lie writes to mapped files: only so do they happen one without the other.
    """
    for number in count(start, every):
        with fresh(folder) as root, Trial(f"killed at line {number}", root, case) as trial:
            verdict = trial.run(first=lambda number=number: _die_at(number))  # type: ignore[misc]  # bound now, run now
        if verdict.hit or not verdict.held:
            yield verdict
        if not verdict.hit:
            break


def _die_at(number: int) -> None:
    package, own = str(Path(tiermem.__file__).parent), str(Path(__file__).parent)
    left = number

    def trace(frame: FrameType, event: str, _: object) -> Tracer | None:
        nonlocal left
        name = frame.f_code.co_filename
        if not name.startswith(package) or name.startswith(own):
            return None
        if event == "line":
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    threading.settrace(trace)
    sys.settrace(trace)


def instants(folder: Path, case: Case, rng: random.Random, *, rounds: int = ROUNDS) -> Iterator[Verdict]:
    """Kill the client, what it has started, or the helper, at random instants, again and again on one store."""
    known: State = {}
    with fresh(folder) as root:
        for _ in range(rounds):
            again = replace(case, seed=rng.randrange(2**32))
            seconds = LONGEST * rng.random() * (10 if case.index else 1)
            with Trial(f"killed after {seconds * 1000:.1f} ms", root, again, known=known) as trial:
                verdict = trial.run(kill_after=seconds, choose=rng.choice)
            yield verdict
            if not verdict.held:
                return
            known = verdict.state


# ---------------------------------------------------------------------------------------------------------- in bulk


@dataclass
class Tally:
    """What came of one kind of trial."""

    kind: str
    tried: int = 0
    held: int = 0
    states: int = 0
    hung: int = 0
    died: int = 0
    other: int = 0
    acknowledged: int = 0
    seconds: float = 0.0
    skipped: str = ""
    failures: list[str] = field(default_factory=list)

    def add(self, verdict: Verdict) -> None:
        """Count one trial."""
        self.tried += 1
        self.acknowledged += verdict.acknowledged
        self.held += verdict.held
        if not verdict.held:
            text = "; ".join(verdict.problems)
            self.failures.append(f"{verdict.where}: {text}")
            self.states += "sees another state" in text
            self.hung += "hang" in text
            self.died += "ended with -" in text
            self.other += not any(word in text for word in ("sees another state", "hang", "ended with -"))


def _cases(seed: int, *, company: Sequence[bool] = BOTH, index: bool = False, length: int = 30) -> list[Case]:
    return [
        Case(home, durable, beside, index, seed * 8 + number, length)
        for number, (home, durable, beside) in enumerate(product(HOMES, BOTH, company))
    ]


def _helped(seed: int) -> list[Case]:
    """Two clients, of which the second has hired the helper that is killed."""
    return [Case(HOMES[-1], durable, company=True, seed=seed * 2 + durable, helper=True) for durable in BOTH]


def _in_turn(streams: list[Iterator[Verdict]]) -> Iterator[Verdict]:
    while streams:
        for stream in list(streams):
            verdict = next(stream, None)
            if verdict is None:
                streams.remove(stream)
            else:
                yield verdict


def _killed(folder: Path, seed: int) -> Iterator[Verdict]:
    cases = _cases(seed) + _helped(seed)
    return _in_turn([sweep(folder / str(number), case) for number, case in enumerate(cases)])


def _killed_at_random(folder: Path, seed: int) -> Iterator[Verdict]:
    cases = _cases(seed) + _helped(seed)
    return _in_turn([instants(folder / str(n), case, random.Random(case.seed)) for n, case in enumerate(cases)])


def _killed_at_lines(folder: Path, seed: int) -> Iterator[Verdict]:
    rng = random.Random(seed)
    cases = _cases(seed)
    return _in_turn(
        [lines(folder / str(n), case, every=997, start=rng.randrange(1, 997)) for n, case in enumerate(cases)]
    )


def _killed_building(folder: Path, seed: int) -> Iterator[Verdict]:
    cases = _cases(seed, index=True, length=50)
    streams = [sweep(folder / str(number), case, every=2) for number, case in enumerate(cases)]
    streams += [instants(folder / f"r{n}", case, random.Random(case.seed)) for n, case in enumerate(cases)]
    return _in_turn(streams)


def _without_power(folder: Path, seed: int) -> Iterator[Verdict]:
    cases = _cases(seed, company=[False])
    streams = [power.sweep(folder / str(number), case) for number, case in enumerate(cases)]
    segments = Case(HOMES[-1], index=True, seed=seed, length=50)
    return _in_turn([*streams, power.sweep(folder / "segments", segments, every=4)])


def _failing(folder: Path, seed: int) -> Iterator[Verdict]:
    streams = [faults.sweep(folder / str(number), case) for number, case in enumerate(_cases(seed))]
    segments = Case(HOMES[-1], index=True, seed=seed, length=50)
    return _in_turn([*streams, faults.sweep(folder / "segments", segments, every=4)])


def _limited(folder: Path, seed: int) -> Iterator[Verdict]:
    rng = random.Random(seed)
    for number, case in enumerate(_cases(seed, company=[False])):
        yield from faults.limits(folder / str(number), case, rng)


def _full(folder: Path, seed: int) -> Iterator[Verdict]:
    rng = random.Random(seed)
    for case in _cases(seed, company=[False]):
        yield from faults.device(folder, case, rng)


KINDS: Final[dict[str, Run]] = {
    "killed at a system call": _killed,
    "killed at a line": _killed_at_lines,
    "killed at an instant": _killed_at_random,
    "killed building segments": _killed_building,
    "power cut": _without_power,
    "a call fails": _failing,
    "files may not grow": _limited,
    "the device is full": _full,
}
TRACED: Final = ("killed at a system call", "killed building segments", "power cut", "a call fails")


def tally(kind: str, folder: Path, points: int, seed: int = 0) -> Tally:
    """Try `points` points of one of `KINDS`, with histories that follow from the seed."""
    done, started = Tally(kind), time.monotonic()
    if kind in TRACED and (trouble := missing()):
        done.skipped = trouble
        return done
    with faults.small_device(folder) if kind == "the device is full" else nullcontext("") as trouble:
        done.skipped = trouble
        for number in count(seed) if not trouble else ():
            for verdict in KINDS[kind](folder, number):
                done.add(verdict)
                if done.tried >= points:
                    break
            if done.tried >= points or not done.tried:
                break
    done.seconds = time.monotonic() - started
    return done


def table(tallies: Iterable[Tally]) -> str:
    """The tallies as lines of text, with a total."""
    rows = list(tallies)
    total = Tally("in all")
    for row in rows:
        for name in ("tried", "held", "states", "hung", "died", "other", "acknowledged", "seconds"):
            setattr(total, name, getattr(total, name) + getattr(row, name))
    head = f"{'':26}{'tried':>8}{'held':>8}{'state':>8}{'hang':>8}{'signal':>8}{'other':>8}{'writes':>9}{'seconds':>9}"
    lines = [head] + [
        f"{row.kind:26}{row.tried:8}{row.held:8}{row.states:8}{row.hung:8}{row.died:8}{row.other:8}"
        f"{row.acknowledged:9}{row.seconds:9.1f}{'  ' + row.skipped if row.skipped else ''}"
        for row in [*rows, total]
    ]
    return "\n".join(lines) + (
        "\n\ntried: points that were reached. held: everything was as promised; of the others: a wrong state, a hang,\n"
        "an end by an unexpected signal, anything else. writes: operations acknowledged before.\n"
    )


SHARES: Final = {
    "killed at a system call": ("kills", 0.6),
    "killed at a line": ("kills", 0.2),
    "killed at an instant": ("kills", 0.1),
    "killed building segments": ("kills", 0.1),
    "power cut": ("cuts", 1.0),
    "a call fails": ("faults", 0.8),
    "files may not grow": ("faults", 0.1),
    "the device is full": ("faults", 0.1),
}
"""Which number of points a kind takes its share of."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the long sweeps and print what held; 1 if anything did not."""
    parser = argparse.ArgumentParser(prog="python -m tiermem.testing.crash", description=main.__doc__)
    parser.add_argument("--kills", type=int, default=1500, help="points at which a process is killed (%(default)s)")
    parser.add_argument("--faults", type=int, default=700, help="points at which something fails (%(default)s)")
    parser.add_argument("--cuts", type=int, default=600, help="states of the disk after a power cut (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="what the histories follow from (%(default)s)")
    parser.add_argument("--folder", type=Path, help="where the stores are made (a temporary directory)")
    parser.add_argument("--only", choices=KINDS, action="append", help="one kind of point; may be repeated")
    parser.add_argument("--json", action="store_true", help="print the tallies as JSON")
    options = parser.parse_args(arguments)
    done: list[Tally] = []
    with tempfile.TemporaryDirectory(prefix="tiermem-crash-", dir=options.folder) as folder:
        for kind in options.only or KINDS:
            number, share = SHARES[kind]
            points = round(getattr(options, number) * share)
            if points:
                done.append(tally(kind, Path(folder) / str(len(done)), points, options.seed))
                sys.stderr.write(f"{kind}: {done[-1].held} of {done[-1].tried} held {done[-1].skipped}\n")
    sys.stdout.write(json.dumps([asdict(one) for one in done], indent=1) + "\n" if options.json else table(done))
    failures = [failure for one in done for failure in one.failures]
    for failure in failures[:SHOWN]:
        sys.stderr.write(f"\n{failure}\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
