"""Damage: a store whose files are flipped, cut and overwritten at many seeded places, one at a time.

`python -m tiermem.testing.damage --points 1000` prints how many points were tried and held, by what was
damaged, and ends with 1 if any did not hold. A point holds if every call gives the right answer or an
error of tiermem, nothing hangs and no process dies; after a repair, if what is there is right and what is
missing was told. Pages are damaged beneath `open(verify=True)`, or beneath an ordinary opening after the
last client was killed; everything else beneath an ordinary opening.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import tiermem
from tiermem.testing.victim import CONFIG, Judge, WrongAnswer, build
from tiermem.tiers.cold.pages import META_BYTES, Leaf, PageFile

PAGE: Final = 4096
HANG: Final = 120.0
"""Seconds fifty points may take before the one under way counts as hung."""
HELD: Final = ("right", "errors", "refused")


@dataclass(frozen=True)
class Point:
    """One damage: the file, what is done to it, and how the store is then used."""

    group: str
    file: str
    kind: str
    offset: int
    value: int = 0
    killed: bool = False
    mode: str = "open"

    def inflict(self, root: Path) -> None:
        """Damage the file."""
        path = root / self.file
        raw = bytearray(path.read_bytes())
        if self.kind == "cut":
            del raw[self.offset :]
        elif self.kind == "flip":
            raw[self.offset] ^= self.value
        elif self.kind == "zeros":
            raw[self.offset : self.offset + self.value] = bytes(min(self.value, len(raw) - self.offset))
        elif self.kind == "noise":
            noise = random.Random(self.offset).randbytes(min(512, len(raw) - self.offset))
            raw[self.offset : self.offset + len(noise)] = noise
        else:
            # Another page lies where this one should: a write that went astray.
            raw[self.offset : self.offset + PAGE] = raw[self.value : self.value + PAGE]
        path.write_bytes(raw)


def rows_of(data: Path) -> list[tuple[int, int]]:
    """(offset, length) of every row of the live trees of a data file."""
    places: list[tuple[int, int]] = []
    with PageFile(data) as file:
        trees = file.databases(file.page(file.metas[-1].main.root))
        for tree in trees.values():
            for number, raw, what in file.walk(tree.root) if not tree.empty else ():
                for key, row, start in file.rows(raw) if isinstance(what, Leaf) else ():
                    at = start * file.page_bytes + 16 if start else number * file.page_bytes + raw.find(key + row)
                    places += [(at if start else at + len(key), len(row))] if row else []
    return places


def points(bases: dict[bool, Path], count: int, seed: int) -> Iterator[Point]:
    """`count` seeded points, the groups in turn."""
    chosen = random.Random(seed)
    data = "gen-1/data.mdb"
    sizes = {killed: (path / data).stat().st_size for killed, path in bases.items()}
    rows = rows_of(bases[False] / data)
    segments = [f"segments/{path.name}" for path in sorted((bases[False] / "segments").glob("*.[rg]*"))]

    def bit() -> int:
        return 1 << chosen.randrange(8)

    def page(killed: bool = False) -> int:
        return chosen.randrange(2, sizes[killed] // PAGE) * PAGE

    def anywhere(group: str, mode: str, killed: bool = False) -> Point:
        kind = chosen.choice(("flip", "flip", "flip", "zeros", "noise", "page"))
        at = page(killed)
        if kind in ("flip", "noise"):
            # The first bytes of a page say what it is and where its rows are.
            at += chosen.randrange(64 if chosen.random() < 0.3 else PAGE)
        value = {"flip": bit(), "zeros": PAGE, "page": page(killed)}.get(kind, 0)
        return Point(group, data, kind, at, value, killed, mode)

    def row() -> Point:
        start, length = chosen.choice(rows)
        return Point("rows", data, "flip", start + chosen.randrange(length), bit())

    def meta(group: str = "meta pages", mode: str = "open") -> Point:
        at = chosen.randrange(2) * PAGE
        if chosen.random() < 0.1:
            return Point(group, data, "zeros", at, PAGE, mode=mode)
        return Point(group, data, "flip", at + chosen.randrange(META_BYTES), bit(), mode=mode)

    def cut(group: str = "cut short", mode: str = "open") -> Point:
        return Point(group, data, "cut", chosen.choice((page(), chosen.randrange(sizes[False]))), mode=mode)

    def small(group: str, file: str, killed: bool, most: int = 2**62) -> Point:
        size = (bases[killed] / file).stat().st_size
        if chosen.random() < 0.2:
            return Point(group, file, "cut", chosen.randrange(size), killed=killed)
        if chosen.random() < 0.1:
            return Point(group, file, "noise", chosen.randrange(size), killed=killed)
        return Point(group, file, "flip", chosen.randrange(min(size, most)), bit(), killed)

    def repair() -> Point:
        turn = chosen.randrange(4)
        if turn < 2:
            return anywhere("repair", "repair", killed=turn == 1)
        return meta("repair", "repair") if turn == 2 else cut("repair", "repair")

    makers: tuple[Callable[[], Point], ...] = (
        row,
        meta,
        cut,
        lambda: small("lock table", "gen-1/lock.mdb", chosen.random() < 0.5),
        lambda: small("journals", "journals/000.journal", True, chosen.choice((160, 12_000))),
        lambda: small("segments", chosen.choice(segments), False),
        lambda: small("CURRENT, control", chosen.choice(("CURRENT", "control")), chosen.random() < 0.5, 4096),
        lambda: anywhere("pages, verified", "verify"),
        lambda: anywhere("pages, after a kill", "open", killed=True),
        repair,
    )
    for number in range(count):
        yield makers[number % len(makers)]()


def judge(root: Path, point: Point) -> str:
    """How the damaged store at `root` behaves."""
    state = Judge(point.killed)
    if point.mode == "repair":
        return _judge_repair(root, state)
    try:
        mem = tiermem.open(root, config=CONFIG, verify=point.mode == "verify")
    except tiermem.TiermemError:
        return "refused"
    state.read(mem)
    state.attempt(lambda: state.write(mem))
    state.attempt(mem.close)
    if state.missing and not state.said:
        return f"SILENT {state.missing[:3]}"
    return "errors" if state.said else "right"


def _judge_repair(root: Path, state: Judge) -> str:
    try:
        with tiermem.open(root, config=CONFIG, repair=True) as mem:
            told = "\n".join(mem.check(repair=True).repaired)
            if not mem.check().ok:
                return f"UNMENDED {mem.check().problems[:3]}"
    except tiermem.TiermemError as exc:
        return f"UNMENDED {exc}"
    for _ in range(2):
        try:
            with tiermem.open(root, config=CONFIG, verify=True) as mem:
                state.read(mem)
                state.write(mem)
        except tiermem.TiermemError as exc:
            return f"UNMENDED {exc}"
    if state.said:
        return f"UNMENDED {state.said[:3]}"
    named = [what for what in state.missing if " k" in what or " blob" in what]
    untold = [
        what for what in named if repr(what.split()[-1]) not in told and f"{what.split()[0]!r} counted" not in told
    ]
    # Where the names of what was lost are lost too, there is no more to tell than that.
    if (untold and not ("cut short" in told or "list of databases is damaged" in told)) or (named and not told):
        return f"UNTOLD {untold[:3]}: {told[:300]}"
    return f"errors: {len(set(named))} lost" if named else "right"


# ---------------------------------------------------------------------------------------------------------- running


def bases_in(work: Path) -> dict[bool, Path]:
    """The intact stores, made if they are not there: closed, and left by a client that was killed."""
    bases = {False: work / "closed", True: work / "killed"}
    for killed, path in bases.items():
        if not path.exists():
            subprocess.run(
                [sys.executable, "-m", "tiermem.testing.damage", "--build", str(path), *(["--killed"] * killed)],
                check=not killed,
            )
    return bases


def run_points(work: Path, first: int, last: int, seed: int) -> None:
    """In the child: judge points [first, last), a line each, begun before the point is tried."""
    bases = bases_in(work)
    for number, point in enumerate(points(bases, last, seed)):
        if number < first:
            continue
        sys.stdout.write(json.dumps([number, point.group, point.file, point.kind, point.offset, point.value]) + " ")
        sys.stdout.flush()
        root = Path(shutil.copytree(bases[point.killed], work / f"point-{os.getpid()}-{number}"))
        try:
            point.inflict(root)
            result = judge(root, point)
        except WrongAnswer as exc:
            result = f"WRONG {exc}"
        except Exception as exc:  # noqa: BLE001 - an error that is not tiermem's is what is looked for
            result = f"UNDRESSED {type(exc).__name__}: {exc}"
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()
        shutil.rmtree(root, ignore_errors=True)


def sweep(work: Path, count: int, seed: int) -> tuple[dict[str, Counter[str]], list[str]]:
    """Outcomes by group, and what did not hold, of `count` points; a child that dies or hangs is an outcome."""
    bases_in(work)
    found: dict[str, Counter[str]] = {}
    bad: list[str] = []
    number = 0
    while number < count:
        last = min(count, number + 50)
        command = [sys.executable, "-m", "tiermem.testing.damage", "--work", str(work)]
        command += ["--first", str(number), "--points", str(last), "--seed", str(seed)]
        end = "DIED"
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANG)
            out, err = done.stdout, f"with {done.returncode}: {done.stderr[-300:]}"
        except subprocess.TimeoutExpired as exc:
            out, err, end = (exc.stdout or b"").decode(), f"after {HANG} s", "HUNG"
        if not out:
            raise RuntimeError(f"the sweep cannot be run: {err}")
        for line in out.splitlines():
            place, at = json.JSONDecoder().raw_decode(line)
            result = json.loads(line[at:]) if line[at:].strip() else f"{end} {err}"
            outcome = result.split()[0].rstrip(":")
            found.setdefault(place[1], Counter())[outcome] += 1
            if outcome not in HELD:
                bad.append(f"{place}: {result}")
            number = place[0] + 1
    return found, bad


def main(argv: Sequence[str] | None = None) -> int:
    """The door; 1 if a point did not hold."""
    parser = argparse.ArgumentParser(prog="python -m tiermem.testing.damage", description=__doc__)
    parser.add_argument("--points", type=int, default=1000, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    for hidden in ("--build", "--work"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--killed", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.build is not None:
        build(options.build, options.killed)
        return 0
    if options.work is not None:
        run_points(options.work, options.first, options.points, options.seed)
        return 0
    with tempfile.TemporaryDirectory(prefix="tiermem-damage-") as work:
        found, bad = sweep(Path(work), options.points, options.seed)
    if options.json:
        json.dump({"seed": options.seed, "points": options.points, "groups": found, "bad": bad}, sys.stdout)
        sys.stdout.write("\n")
        return 1 if bad else 0
    columns = (*HELD, "tried", "held")
    sys.stdout.write(f"{'damaged':<22}" + "".join(f"{name:>9}" for name in columns) + "\n")
    total: Counter[str] = Counter()
    for group, outcomes in [*found.items(), ("all", total)]:
        held = sum(outcomes[name] for name in HELD)
        numbers = (*(outcomes[name] for name in HELD), outcomes.total(), held)
        sys.stdout.write(f"{group:<22}" + "".join(f"{number:>9,}" for number in numbers) + "\n")
        if group != "all":
            total.update(outcomes)
    sys.stdout.writelines(f"NOT HELD {line}\n" for line in bad)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
