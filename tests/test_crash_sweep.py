"""A client is killed, a call fails, room or power goes, at many points: short sweeps, and what finds them finds errors.

`make test-crash` runs the long ones.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tiermem.engine import generations, opening
from tiermem.engine.store import Draft, Store
from tiermem.testing import children, crash, disk, faults, power
from tiermem.testing.children import Child, Link
from tiermem.testing.history import Legal, Step, after, contents, perform, steps
from tiermem.testing.strace import Point, missing
from tiermem.testing.trial import HOMES, Case, Trial, Verdict
from tiermem.tiers.journal import Journal

_missing = missing()
traced = pytest.mark.skipif(bool(_missing), reason=f"system calls cannot be traced here: {_missing}")


def held(verdicts: Iterable[Verdict], at_least: int) -> None:
    """All of them held, and there were so many."""
    found = list(verdicts)
    assert [f"{verdict.where}: {verdict.problems}" for verdict in found if not verdict.held] == []
    assert len(found) >= at_least


# --------------------------------------------------------------------------------------------------------- short sweeps


@traced
@pytest.mark.parametrize(("home", "company"), list(zip(HOMES, cycle([False, True]), strict=False)))
def test_killed_at_system_calls(tmp_path: Path, home: str, company: bool) -> None:
    case = Case(home, durable=not company, company=company, seed=11, length=16)
    held(crash.sweep(tmp_path, case, ("rename", "fdatasync", "pwrite64"), every=8), 3)


@traced
def test_the_helper_of_two_clients_is_killed_at_system_calls(tmp_path: Path) -> None:
    """The one that is alive goes on, whoever hired it."""
    verdicts: list[Verdict] = []
    # How many calls it makes meanwhile depends on how the processes take turns: on a starved machine none, at times.
    for seed in range(16, 24):
        case = Case("helper", company=True, helper=True, seed=seed, length=48)
        verdicts += islice(crash.sweep(tmp_path, case, ("fdatasync", "pwrite64")), 4)
        if verdicts:
            break
    held(verdicts, 1)
    assert all(verdict.hit for verdict in verdicts)


def test_the_helper_of_two_clients_is_killed_at_random_instants(tmp_path: Path) -> None:
    case = Case("helper", company=True, helper=True, seed=17)
    held(crash.instants(tmp_path, case, random.Random("helped"), rounds=3), 3)


@pytest.mark.parametrize("home", HOMES)
def test_killed_at_lines_of_the_engine(tmp_path: Path, home: str) -> None:
    case = Case(home, company=home != "inline", seed=14, length=20)
    held(islice(crash.lines(tmp_path, case, every=2111, start=900), 4), 4)


@pytest.mark.parametrize("home", HOMES)
def test_killed_at_random_instants(tmp_path: Path, home: str) -> None:
    held(crash.instants(tmp_path, Case(home, company=True), random.Random(f"instants {home}"), rounds=2), 2)


@traced
def test_killed_while_a_segment_is_built(tmp_path: Path) -> None:
    """The process that builds it is killed, or the client."""
    case = Case("thread", index=True, seed=7, length=40)
    verdicts = [crash.killed_at(tmp_path, case, point) for point in (Point("fsync", 1), Point("fdatasync", 12))]
    held(verdicts, 2)
    assert all(verdict.hit for verdict in verdicts)


@traced
@pytest.mark.parametrize("home", HOMES)
def test_the_power_goes(tmp_path: Path, home: str) -> None:
    case = Case(home, seed=12, length=20)
    held(power.sweep(tmp_path, case, ("rename", "fdatasync"), every=9), 8)


@traced
@pytest.mark.parametrize("error", faults.ERRORS)
def test_calls_that_fail(tmp_path: Path, error: str) -> None:
    case = Case("inline" if error == "EIO" else "thread", seed=13, length=12)
    held(faults.sweep(tmp_path, case, [error], ("rename", "msync", "fdatasync", "pwrite64"), every=8), 4)


@traced
@pytest.mark.parametrize("home", HOMES)
def test_a_failed_commit_leaves_the_open_store_usable(tmp_path: Path, home: str) -> None:
    """Behind a meta page that was not written LMDB has to be opened again: nobody is asked to do that."""
    verdicts = list(
        islice(faults.sweep(tmp_path, Case(home, durable=True, seed=15, length=8), ["EIO"], ["pwrite64"]), 9)
    )
    held(verdicts, 4)
    assert [error for verdict in verdicts for error in verdict.errors if "reopened" in error] == []


@pytest.mark.parametrize("home", HOMES)
def test_files_that_may_not_grow(tmp_path: Path, home: str) -> None:
    held(faults.limits(tmp_path, Case(home), random.Random(f"limits {home}")), len(faults.SLACKS))


@pytest.mark.parametrize("home", HOMES)
def test_a_device_that_is_full_for_a_while(tmp_path: Path, home: str) -> None:
    with faults.small_device(tmp_path / "small") as trouble:
        if trouble:
            pytest.skip(trouble)
        held(faults.device(tmp_path / "small", Case(home), random.Random(f"device {home}")), len(faults.SLACKS))


@traced
def test_the_command_counts_what_held(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = ["--kills", "6", "--faults", "10", "--cuts", "4", "--folder", str(tmp_path)]
    kinds = ["--only", "killed at a system call", "--only", "power cut", "--only", "files may not grow"]
    assert crash.main([*numbers, *kinds]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["tried", "held"]
    total = next(line for line in lines if line.startswith("in all")).removeprefix("in all").split()
    assert total[:6] == ["9", "9", "0", "0", "0", "0"]
    assert crash.main([*numbers, "--only", "files may not grow", "--json"]) == 0
    (tally,) = json.loads(capsys.readouterr().out)
    assert (tally["tried"], tally["held"], tally["failures"]) == (1, 1, [])


# ------------------------------------------------------------------------------------- a store broken on purpose


def problems(verdicts: Iterable[Verdict]) -> str:
    """What did not hold; fails if all did."""
    found = "\n".join(problem for verdict in verdicts for problem in verdict.problems)
    assert found, "nothing was noticed"
    return found


def test_a_write_that_is_lost_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append = Journal.append

    def forgetful(self: Journal, payload: bytes, count: int) -> int:
        if b"5:17" in payload:
            return self.head or 8
        return append(self, payload, count)

    monkeypatch.setattr(Journal, "append", forgetful)
    # Step 17 is a plain put, of which the client's own tables still know when it is killed.
    case = Case("thread", seed=5, length=18, lazy=True)
    with Trial("killed", tmp_path / "store", case) as trial:
        verdict = trial.run(before=lambda number, mem: os.kill(os.getpid(), 9) if number == 18 else None)
    assert verdict.acknowledged == 18
    assert "sees another state" in problems([verdict])


def test_half_a_batch_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(self: Store, drafts: Sequence[Draft]) -> NoReturn:
        self.submit(*drafts[0])
        os.kill(os.getpid(), 9)
        raise AssertionError("still there")

    monkeypatch.setattr(Store, "submit_all", half)
    with Trial("killed in a batch", tmp_path / "store", Case(seed=7, lazy=True)) as trial:
        verdict = trial.run(kill_after=30.0)
    assert "sees another state" in problems([verdict])


@traced
def test_a_name_that_is_not_synced_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generations, "sync_folder", lambda folder: None)
    assert "sees another state" in problems(power.cut(tmp_path, Case(durable=True, seed=12), Point("fdatasync", 14)))


@traced
def test_an_error_of_somebody_else_s_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "file_error", lambda exc: OSError)
    assert "OSError" in problems(islice(faults.sweep(tmp_path, Case(), ["EIO"], ["rename"]), 1))


def test_a_client_that_hangs_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "DEADLINE", 0.3)
    with Trial("never", tmp_path / "store", Case()) as trial:
        verdict = trial.run(before=lambda number, mem: time.sleep(60) if number == 3 else None)
    assert verdict.hung
    assert "the client hangs" in problems([verdict])


def test_who_was_stopped_together_with_a_child_does_not_take_it_for_hung(run_python: Callable[..., Any]) -> None:
    code = """
    import os, signal, time
    from tiermem.testing import children

    children.DEADLINE = 1.0

    def body(link):
        for _ in range(6):
            time.sleep(0.1)

    child = children.Child(body)
    watched = [os.getpid(), child.pid]
    if os.fork() == 0:
        time.sleep(0.2)
        for number, pause in ((signal.SIGSTOP, 2.0), (signal.SIGCONT, 0.0)):
            for pid in watched:
                os.kill(pid, number)
            time.sleep(pause)
        os._exit(0)
    child.start()
    begun = time.monotonic()
    assert child.finish(), "it hangs"
    assert time.monotonic() - begun > 2.0, "nobody was stopped"
    assert child.leave() == 0
    """
    run_python(code, measured=False)


def test_a_client_that_dies_of_itself_is_noticed(tmp_path: Path) -> None:
    with Trial("never", tmp_path / "store", Case()) as trial:
        verdict = trial.run(before=lambda number, mem: os.kill(os.getpid(), 7) if number == 3 else None)
    assert "the client ended with -7" in problems([verdict])


def test_a_store_that_reads_differently_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tiermem

    with tiermem.open(tmp_path / "store") as mem:
        for step in islice(steps(3), 40):
            perform(mem, step)
        contents(mem)
        monkeypatch.setattr(type(mem), "count", lambda self, name: 0)
        with pytest.raises(AssertionError, match="count"):
            contents(mem)


# ------------------------------------------------------------------------------------------------------------ the parts


@pytest.mark.parametrize("seed", range(3))
def test_the_model_agrees_with_a_store(tmp_path: Path, seed: int) -> None:
    import tiermem

    state: dict[str, dict[str, Any]] = {}
    with tiermem.open(tmp_path / "store") as mem:
        for step in islice(steps(seed), 150):
            perform(mem, step)
            state = after(state, step)
        time.sleep(0.001)
        assert contents(mem) == state


def test_what_is_in_doubt_may_be_there_or_not() -> None:
    legal = Legal()
    legal.acknowledged(Step("put", ("n", "a", 1)))
    legal.doubtful(Step("put", ("n", "a", 2)))
    legal.acknowledged(Step("put", ("n", "b", 1)))
    assert legal.seen({"n": {"a": 3, "b": 1}}) == "n/a: found 3, not 1"
    assert legal.seen({"n": {"a": 2, "b": 1}}) == ""
    assert legal.seen({"n": {"a": 1, "b": 1}}) == "n/a: found 1, not 2", "it was seen to be there"


def test_a_child_that_is_killed_has_said_what_it_said() -> None:
    def body(link: Link) -> None:
        for number in range(1000):
            link.say(step=number)
        os.kill(os.getpid(), 9)

    child = Child(body)
    child.start()
    assert child.finish()
    assert child.kill() == -9
    assert [message["step"] for message in child.messages] == list(range(1000))


def hexed(text: str) -> str:
    """As strace writes strings."""
    return "".join(f"\\x{byte:02x}" for byte in text.encode())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The directory whose disk is modelled."""
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


def replayed(root: Path, *lines: str) -> disk.Disk:
    """The disk behind these calls; `{name}` stands for a path, `[text]` for a string."""
    log = root.parent / "log"
    log.write_text("\n".join(lines) + "\n")
    model = disk.Disk(root)
    model.replay(log)
    return model


def left(model: disk.Disk, target: Path, kept: float) -> dict[str, bytes]:
    """The files that are there once the power is back."""
    model.write(target, random.Random(1), kept)
    return {path.name: path.read_bytes() for path in target.iterdir()}


def test_what_was_not_synced_goes_with_the_power(root: Path, tmp_path: Path) -> None:
    a, b = hexed(f"{root}/a"), hexed(f"{root}/b")
    model = replayed(
        root,
        f'7 openat(AT_FDCWD, "{a}", O_RDWR|O_CREAT|O_CLOEXEC, 0644) = 3<{a}>',
        f'7 write(3<{a}>, "{hexed("first")}", 5) = 5',
        f"7 fsync(3<{a}>) = 0",
        f"8 fsync(4<{hexed(str(root))}> <unfinished ...>",
        f'7 pwrite64(3<{a}>, "{hexed("F")}", 1, 0) = 1',
        "8 <... fsync resumed>) = 0",
        f'7 rename("{a}", "{b}") = 0',
        f'7 pwrite64(3<{b}>, "{hexed("never")}", 5, 0 <unfinished ...>',
    )
    assert left(model, tmp_path / "none", 0) == {"a": b"first"}
    assert left(model, tmp_path / "all", 1) == {"b": b"never"}


def test_a_page_that_was_synced_through_a_map_stays(root: Path, tmp_path: Path) -> None:
    a = hexed(f"{root}/a")
    model = replayed(
        root,
        f'7 openat(AT_FDCWD, "{a}", O_RDWR|O_CREAT, 0644) = 3<{a}>',
        f"7 fallocate(3<{a}>, 0, 0, 8192) = 0",
        f"7 fsync(3<{a}>) = 0",
        f"7 mmap(NULL, 8192, PROT_READ|PROT_WRITE, MAP_SHARED, 3<{a}>, 0) = 0x7f0000001000",
        f"7 close(3<{a}>) = 0",
        "7 msync(0x7f0000001000, 4096, MS_SYNC) = 0",
        f"7 fsync(4<{hexed(str(root))}>) = 0",
    )
    (root / "a").write_bytes(b"x" * 8192)
    assert left(model, tmp_path / "none", 0) == {"a": b"x" * 4096 + bytes(4096)}
    assert model.differs() == []


def test_a_replay_that_missed_something_says_so(root: Path) -> None:
    a = hexed(f"{root}/a")
    model = replayed(
        root, f'7 openat(AT_FDCWD, "{a}", O_RDWR|O_CREAT, 0644) = 3<{a}>', f'7 write(3<{a}>, "{hexed("x")}", 1) = 1'
    )
    (root / "a").write_bytes(b"y")
    assert model.differs() == [str(root / "a")]


def test_a_fifo_is_no_file_of_the_disk(root: Path, tmp_path: Path) -> None:
    bell = hexed(f"{root}/bell")
    os.mkfifo(root / "bell")
    model = replayed(root, f'7 openat(AT_FDCWD, "{bell}", O_RDWR|O_NONBLOCK|O_CLOEXEC) = 3<{bell}>')
    assert model.differs() == []
    assert left(model, tmp_path / "all", 1) == {}
