"""Locks between processes: a counter that stays exact while those who count are killed and stopped; hand-over."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import tiermem
from tests import lock_workers
from tests.workers import eventually

TTL = 0.25
WORKERS = 8


class Crew:
    """Processes that count; each is started again under a new name when it is killed."""

    def __init__(self, root: Path, target: int) -> None:
        self.root = root
        self.target = target
        self.started = 0
        self.crew = [self._start() for _ in range(WORKERS)]

    def _start(self) -> subprocess.Popen[bytes]:
        self.started += 1
        script = [sys.executable, lock_workers.__file__, self.root, f"w{self.started}", self.target, TTL]
        return subprocess.Popen([str(part) for part in script])

    def harm(self, rng: random.Random) -> None:
        """Kill one of them, or stop it for longer than a lease lasts."""
        place = rng.randrange(WORKERS)
        victim = self.crew[place]
        if rng.random() < 0.5:
            victim.kill()
            victim.wait()
            self.crew[place] = self._start()
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim.pid, signal.SIGSTOP)
            time.sleep(TTL * rng.uniform(1.5, 3.0))
            os.kill(victim.pid, signal.SIGCONT)

    def end(self) -> list[int]:
        """Wait for all; their return codes."""
        return [one.wait(120.0) for one in self.crew]

    def kill(self) -> None:
        """End whoever is left."""
        for one in self.crew:
            if one.poll() is None:
                one.kill()
            one.wait()


def count_together(root: Path, target: int, harms: int, seconds: float) -> None:
    """Let a crew count to `target`, `harms` times harmed, and audit what it left."""
    rng = random.Random(target)
    with tiermem.open(root) as mem:
        crew = Crew(root, target)
        try:
            due = time.monotonic() + seconds
            for _ in range(harms):
                time.sleep(rng.uniform(0.05, 0.3))
                if mem.get(lock_workers.COUNTER, "n", 0) < target:
                    crew.harm(rng)
            assert eventually(
                lambda: mem.get(lock_workers.COUNTER, "n", 0) >= target, max(1.0, due - time.monotonic())
            ), f"{mem.get(lock_workers.COUNTER, 'n', 0)} of {target}: {tiermem.Locks(mem).list()}"
            assert crew.end() == [0] * WORKERS
        finally:
            crew.kill()
        total = mem.get(lock_workers.COUNTER, "n")
        work = {record.key: record.value for record in mem.scan(lock_workers.WORK)}
        assert sum(work.values()) == total
        trail = [(int(record.key), *record.value) for record in mem.scan("trail")]
        assert [number for number, _, _ in trail] == list(range(1, total + 1))
        assert Counter(name for _, _, name in trail) == work
        fences = [fence for _, fence, _ in trail]
        assert fences == sorted(fences), "whoever held the lock later has the higher token"
        assert mem.count("refused") > 0, "those who overslept were refused"
        assert mem.check().ok


def test_a_counter_stays_exact_while_those_who_count_are_killed_and_stopped(tmp_path: Path) -> None:
    count_together(tmp_path / "store", target=150, harms=8, seconds=300.0)


@pytest.mark.slow
def test_ten_thousand_increments(tmp_path: Path) -> None:
    count_together(tmp_path / "store", target=10_000, harms=300, seconds=3000.0)
