"""Faults: system calls that fail, files that may not grow, a device that is full and is given room again."""

from __future__ import annotations

import os
import random
import resource
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Final

from tiermem import Memory
from tiermem.testing.strace import CHANGES, Point, Strace
from tiermem.testing.trial import Case, Trial, Verdict, fresh

ERRORS: Final = ("EIO", "ENOSPC")
DEVICE_BYTES: Final = 4 * 2**20
SLACKS: Final = (0, 1, 4096, 10_000, 40_960, 69_632, 200_000)
"""Bytes left when room runs out."""


def sweep(
    folder: Path, case: Case, errors: Iterable[str] = ERRORS, calls: Iterable[str] = CHANGES, *, every: int = 1
) -> Iterator[Verdict]:
    """Let each numbered call of each name fail in turn, until it is never made; of `every` calls one.

    Every third fault lasts for five calls.
    """
    for error in errors:
        for call in calls:
            for number in count(1, every):
                point = Point(call, number, number + 4 if number % 3 == 0 else 0)
                verdict = _failed_at(folder, case, point, error)
                if verdict.hit or not verdict.held:
                    yield verdict
                if not verdict.hit:
                    break


def _failed_at(folder: Path, case: Case, point: Point, error: str) -> Verdict:
    with fresh(folder) as root, Trial(f"{error} at {point}", root, case, faults=True) as trial:
        verdict = trial.run(lambda pid: Strace.failing(pid, folder / "strace.log", point, error))
    return _named(verdict) if error == "ENOSPC" else verdict


def limits(folder: Path, case: Case, rng: random.Random) -> Iterator[Verdict]:
    """Forbid the client to let its files grow, for a few steps (RLIMIT_FSIZE); once for each of `SLACKS`."""
    for slack in SLACKS:
        with fresh(folder) as root:

            def none(root: Path = root, slack: int = slack) -> None:
                largest = max((path.stat().st_size for path in root.glob("gen-*/data.mdb")), default=0)
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest + slack, resource.RLIM_INFINITY))

            def again() -> None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

            yield _without_room(root, case, rng, f"files limited to {slack} bytes more", none, again)


def device(folder: Path, case: Case, rng: random.Random) -> Iterator[Verdict]:
    """Fill the small file system that `folder` is, for a few steps; once for each of `SLACKS`."""
    for slack in SLACKS:
        with fresh(folder) as root:
            ballast = folder / "ballast"

            def none(slack: int = slack, ballast: Path = ballast) -> None:
                with ballast.open("wb") as file:
                    while (size := _room(folder) - slack) > 0:
                        # A commit in the background may take what was free a moment ago.
                        with suppress(OSError):
                            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size + size)

            def again(ballast: Path = ballast) -> None:
                ballast.unlink(missing_ok=True)

            yield _without_room(root, case, rng, f"{slack} bytes left on the device", none, again)
            again()


def _room(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _without_room(
    root: Path, case: Case, rng: random.Random, where: str, none: Callable[[], None], again: Callable[[], None]
) -> Verdict:
    case = replace(case, seed=rng.randrange(2**32), company=False)
    first = rng.randrange(1, case.length // 2)
    last = first + rng.randrange(3, 8)

    def before(number: int, mem: Memory) -> None:
        if number == first:
            none()
        elif number == last:
            again()

    with Trial(f"{where} in steps {first} to {last - 1}", root, case, faults=True) as trial:
        verdict = trial.run(before=before)
    verdict.hit = True
    return _named(verdict)


def _named(verdict: Verdict) -> Verdict:
    """Where there is no room, every error has to say so."""
    wrong = [error for error in verdict.errors if not error.startswith("StoreFullError") and "reopened" not in error]
    if wrong:
        verdict.problems.append(f"no room is called {wrong[0]}")
    return verdict


@contextmanager
def small_device(folder: Path) -> Iterator[str]:
    """A file system of 4 MiB in memory, mounted on `folder`; yields why there is none, or an empty string."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DEVICE_BYTES},mode=0777", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, check=False, capture_output=True, text=True)
        trouble = done.stderr.strip() if done.returncode else ""
    except OSError as exc:
        trouble = str(exc)
    if trouble:
        yield f"a tmpfs cannot be mounted here: {trouble}"
        return
    try:
        yield ""
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # noqa: S607 - whichever the system has
