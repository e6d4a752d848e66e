"""What the tests share: Hypothesis profiles, a store on a simulated clock, peers, measured data, fresh interpreters."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

import tiermem
from tests.workers import INLINE, START, Peer

ROOT = Path(__file__).resolve().parent.parent

# A store on disk under branch coverage is slow by Hypothesis's measure; that says nothing about the strategies.
_SLOW_IS_FINE = [HealthCheck.too_slow]

settings.register_profile("default", max_examples=50, deadline=None, suppress_health_check=_SLOW_IS_FINE)
settings.register_profile(
    "ci", max_examples=50, deadline=None, suppress_health_check=_SLOW_IS_FINE, derandomize=True, print_blob=True
)
settings.register_profile(
    "thorough", max_examples=1000, deadline=None, suppress_health_check=_SLOW_IS_FINE, print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "default"))


def pytest_unconfigure() -> None:
    """Wait for the helper of `multiprocessing`, which is measured too and writes its data after the last test."""
    stop: Callable[[], None] | None = getattr(resource_tracker._resource_tracker, "_stop", None)
    if stop is not None:
        stop()


@pytest.fixture
def clock() -> tiermem.SimulatedClock:
    """A clock that stands at START until it is moved."""
    return tiermem.SimulatedClock(START)


@pytest.fixture
def mem(tmp_path: Path, clock: tiermem.SimulatedClock) -> Iterator[tiermem.Memory]:
    """A store on that clock, in `tmp_path / "store"`, that commits nothing unless it is asked to."""
    with tiermem.open(tmp_path / "store", config=tiermem.Config(cold=INLINE), clock=clock) as mem:
        yield mem


@pytest.fixture
def peer() -> Iterator[Callable[..., Peer]]:
    """`peer(root, **opening)`: a process with the store open; all are ended with the test."""
    made: list[Peer] = []

    def make(root: Path | None, **opening: Any) -> Peer:
        made.append(Peer(root, **opening))
        return made[-1]

    yield make
    for one in made:
        one.kill()


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """`shared_data(name)`: path of a real data set, which is never part of this repository.

    The directory is TIERMEM_DATA, or shared/data beside the repository; the test is skipped where the file is absent.
    """
    directory = Path(os.environ.get("TIERMEM_DATA") or ROOT.parent / "shared" / "data")

    def locate(name: str) -> Path:
        path = directory / name
        if not path.is_file():
            pytest.skip(f"data set {name} is absent (set TIERMEM_DATA to the directory that holds it)")
        return path

    return locate


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_python(code, *args)`: run a snippet in a fresh interpreter, in `tmp_path` unless `cwd` says otherwise.

    The snippet is dedented and finds its arguments in `sys.argv[1:]`. `env` adds to the environment. It runs under
    coverage only if `measured`. With `check=True` (the default) a return code other than 0 fails the test and shows
    what the snippet wrote to stderr.
    """

    def run(
        code: str,
        *args: object,
        timeout: float = 60.0,
        check: bool = True,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        measured: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        known = {**os.environ, **(env or {})}
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            cwd=cwd or tmp_path,
            env={name: value for name, value in known.items() if measured or not name.startswith("COVERAGE_")},
        )
        if check and done.returncode != 0:
            pytest.fail(f"the snippet ended with {done.returncode}:\n{done.stderr}", pytrace=False)
        return done

    return run
