"""Power cuts: a client is killed, and the disk loses what was not synced; what was durable must be there."""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Final

from tiermem.engine.assistant import LOCK
from tiermem.testing.children import DEADLINE, Child, Patience
from tiermem.testing.disk import CALLS, FLAGS, Disk
from tiermem.testing.history import State, after
from tiermem.testing.strace import CHANGES, Point, Strace
from tiermem.testing.trial import PAUSE, Case, Trial, Verdict, client, fresh
from tiermem.tiers.filelock import holder
from tiermem.tiers.journal import HEADER_BYTES

KEPT: Final = (0.0, 0.5, 0.9, 1.0)
"""The chances of what was not synced to be on the disk, each of which is tried."""
HEAD: Final = slice(128, 136)


def sweep(folder: Path, case: Case, calls: Iterable[str] = CHANGES, *, every: int = 1) -> Iterator[Verdict]:
    """Let the power go at each numbered call of each name in turn, until all is done; of `every` calls one."""
    for call in calls:
        for number in count(1, every):
            verdicts = list(cut(folder, case, Point(call, number)))
            yield from verdicts
            if not verdicts:
                break


def cut(folder: Path, case: Case, point: Point) -> Iterator[Verdict]:
    """Let the power go at one call: a verdict for each of `KEPT`, or none if the call is never made."""
    log = folder / "strace.log"
    with fresh(folder) as root:
        place = root.parent / "disk"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        child = Child(lambda link: client(link, place / "store", case))
        inject = ["-e", f"inject={point.call}:signal=SIGKILL:when={point.when}"]
        tracer = Strace(child.pid, log, calls=CALLS, more=[*FLAGS, *inject])
        child.start()
        trouble = "" if child.finish() else "the client hangs"
        # The power goes for the helper too, while whatever it does is still recorded; who hangs hires another.
        patience = Patience(DEADLINE)
        while (helper := holder(place / "store" / LOCK)) and patience.left():
            if helper > 0:
                with suppress(ProcessLookupError):
                    os.kill(helper, signal.SIGKILL)
            time.sleep(PAUSE)
        if helper:
            trouble = trouble or "a helper hangs: it outlives SIGKILL"
        tracer.stop()
        if child.messages and child.messages[-1].get("done") and not trouble:
            child.leave()
            return
        child.kill()
        disk = Disk(place)
        disk.replay(log)
        for kept in KEPT:
            rng = random.Random(f"{point} {kept}")
            # A place of its own: the helper of the last one may still be about to leave.
            image = Path(tempfile.mkdtemp(prefix="image-", dir=folder)) / "disk"
            disk.write(image, rng, kept)
            trial = Trial(f"power cut at {point}, {kept:.0%} of the rest kept", image / "store", case)
            verdict = trial.verdict
            verdict.hit = True
            if trouble:
                verdict.problems.append(trouble)
            if differing := disk.differs():
                verdict.problems.append(f"the replay does not agree with {differing}")
            trial.legal.states = _prefixes(case, child, verdict)
            for path in (image / "store" / "journals").glob("*.*"):
                _forget_the_head(path, rng.random() < kept)
            if verdict.held:
                trial.read(rebooted=True)
            yield verdict
            shutil.rmtree(image.parent, ignore_errors=True)
        shutil.rmtree(place, ignore_errors=True)


def _prefixes(case: Case, child: Child, verdict: Verdict) -> list[State]:
    """The states after each step from the last one that was durable to the one in flight."""
    verdict.acknowledged = sum("step" in message for message in child.messages)
    history = case.steps()[: verdict.acknowledged + 1]
    state: State = {}
    states = [state]
    for number, step in enumerate(history):
        state = after(state, step)
        states.append(state)
        if step.lasts and number < verdict.acknowledged:
            states = [state]
    return states


def _forget_the_head(path: Path, kept: bool) -> None:
    """A journal's first page is synced before there is a frame; whether it is later, no call tells."""
    with path.open("r+b") as file:
        header = file.read(HEADER_BYTES)
        if not kept and len(header) == HEADER_BYTES:
            file.seek(HEAD.start)
            file.write(bytes(8))
