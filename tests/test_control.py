"""The control page: slots, the counter, bells, clocks; seen from threads and from other processes."""

from __future__ import annotations

import errno
import math
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.workers import eventually
from tiermem.errors import CorruptionError, LockTimeout, StorageError, StoreFullError
from tiermem.tiers import bells, filelock
from tiermem.tiers import control as module
from tiermem.tiers.control import Control
from tiermem.tiers.filelock import exclusive

LONG = 60.0
"""Seconds no test ever waits for: whoever sleeps that long is woken before."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("clients", "journals"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.fixture
def control(root: Path) -> Iterator[Control]:
    control = Control(root)
    control.claim()
    yield control
    control.close()


@pytest.fixture
def other(root: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """`other(code)`: a process that has claimed the next slot, run `code` and said "ready"; it ends with its stdin."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str = "") -> subprocess.Popen[str]:
        snippet = textwrap.dedent(
            """
            import sys
            from pathlib import Path
            from tiermem.tiers.control import Control
            control = Control(Path(sys.argv[1]))
            slot = control.claim()
            """
        ) + textwrap.dedent(code)
        snippet += "\nprint('ready', slot, flush=True)\nsys.stdin.read()\ncontrol.close()\n"
        process = subprocess.Popen(
            [sys.executable, "-c", snippet, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready")
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=LONG)
    assert process.returncode == 0


# --------------------------------------------------------------------------------------------------------------- slots


def test_slots_are_claimed_in_order_and_released(
    control: Control, root: Path, other: Callable[..., subprocess.Popen[str]]
) -> None:
    assert (control.slot, control.live()) == (0, [0])
    first, second = other(), other()
    assert control.live() == [0, 1, 2]
    finish(first)
    assert control.live() == [0, 2]
    third = other()
    assert control.live() == [0, 1, 2], "the lowest free slot is taken"
    second.kill()
    second.wait()
    assert control.live() == [0, 1], "a killed client holds nothing"
    finish(third)


def test_the_owner_s_own_look_does_not_lose_its_slot(
    control: Control, other: Callable[..., subprocess.Popen[str]]
) -> None:
    for _ in range(3):
        assert control.live() == [0]
    other("assert slot == 1, slot\nassert control.live() == [0, 1]")


def test_a_closed_control_gives_its_slot_up(root: Path, other: Callable[..., subprocess.Popen[str]]) -> None:
    control = Control(root)
    control.claim()
    control.close()
    assert control.slot == -1
    other("assert slot == 0, slot")


def test_all_slots_taken(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    control = Control(root)
    monkeypatch.setattr(module, "SLOTS", 3)
    monkeypatch.setattr(module, "try_lock", lambda fd: False)
    with pytest.raises(StorageError, match="all 3 client slots"):
        control.claim()
    control.close()


def test_what_is_no_lock_file_is_no_client(control: Control, root: Path) -> None:
    (root / "clients" / "000.bell").touch()
    (root / "clients" / "notes.txt").touch()
    assert control.live() == [0]


def test_a_lock_that_fails_for_another_reason(control: Control, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    (root / "clients" / "005.lock").touch()
    monkeypatch.setattr(filelock.fcntl, "lockf", refuse)
    with pytest.raises(OSError, match="no locks"):
        control.live()


# ---------------------------------------------------------------------------------------------------------- open lock


def test_the_open_lock_is_held_by_one_process(root: Path) -> None:
    path = root / "open.lock"
    code = """
        import sys
        from pathlib import Path
        from tiermem.tiers.filelock import exclusive
        with exclusive(Path(sys.argv[1]), 5.0):
            print("held", flush=True)
            sys.stdin.read()
        """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(LockTimeout, match=r"open\.lock"), exclusive(path, 0.01):
            pass
        taken = threading.Event()

        def wait() -> None:
            with exclusive(path, LONG):
                taken.set()

        thread = threading.Thread(target=wait)
        thread.start()
        assert not taken.is_set()
        process.communicate()
        thread.join(LONG)
        assert taken.is_set()


# ------------------------------------------------------------------------------------------------------------ the page


def test_counter_and_generation(control: Control, root: Path) -> None:
    assert (control.counter, control.generation) == (0, 0)
    control.publish(41, 3)
    counter = control.counter
    assert (counter != 0, control.generation) == (True, 3)
    reader = Control(root, read_only=True)
    assert (reader.counter, reader.generation) == (counter, 3)
    reader.close()
    again = Control(root)
    assert again.counter == counter, "an intact page is kept"
    again.close()
    assert control.announced == 41
    control.publish(41, 3)
    assert control.counter != counter, "what is announced again is heard again"


@pytest.mark.parametrize("damage", ["missing", "short", "foreign", "empty"])
def test_a_page_that_cannot_be_used_is_made_anew(root: Path, damage: str) -> None:
    control = Control(root)
    control.claim()
    control.publish(41, 3)
    control.close()
    path = root / "control"
    if damage == "missing":
        path.unlink()
    elif damage == "short":
        os.truncate(path, 5000)
    elif damage == "empty":
        os.truncate(path, 0)
    else:
        data = path.read_bytes()
        path.write_bytes(b"X" + data[1:])
    with pytest.raises(CorruptionError, match="mends it"):
        Control(root, read_only=True)
    control = Control(root)
    assert (control.counter, control.generation) == (0, 0)
    assert not (root / "control.new").exists()
    control.close()


@pytest.mark.parametrize(("code", "kind"), [(errno.ENOSPC, StoreFullError), (errno.EIO, StorageError)])
def test_a_page_for_which_there_is_no_room(
    root: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(kind) as caught:
        Control(root)
    assert type(caught.value) is kind


def test_a_commit_makes_all_others_stale(
    control: Control, root: Path, other: Callable[..., subprocess.Popen[str]]
) -> None:
    reader = Control(root, read_only=True)
    assert control.stale[0], "who has just come has everything to read"
    control.stale[0] = 0
    reader.stale[0] = 0
    assert not reader.stale[0]
    control.publish(5, 1)
    assert not control.stale[0], "one's own commit is known"
    assert reader.stale[0]
    reader.stale[0] = 0
    assert not reader.stale[0]
    reader.stale[0] = 1
    assert reader.stale[0]
    reader.stale[0] = 0
    other("control.stale[0] = 0\ncontrol.publish(6, 1)\nassert not control.stale[0]")
    assert control.stale[0]
    assert reader.stale[0]
    reader.close()


def test_whose_commit_it_was_need_not_read_it(control: Control, other: Callable[..., subprocess.Popen[str]]) -> None:
    control.missed[0] = 0
    assert not control.stale[0]
    other("control.publish(6, 1, but=0)")
    assert not control.stale[0], "this client was left out"
    other("control.publish(7, 1, but=1)")
    assert control.missed[0]


def test_a_client_is_told_how_far_its_journal_was_applied(
    control: Control, other: Callable[..., subprocess.Popen[str]]
) -> None:
    assert control.progress is None, "nobody has told anything"
    control.missed[0] = 0
    other("control.tell(0, 77, 4096, 10, 15, 900)")
    assert control.stale[0]
    assert (control.missed[0], control.moved[0]) == (0, 1)
    assert control.progress == (77, 4096, 10, 15, 900)
    # A commit that follows at once is told of as one with it; one behind a gap, or of another journal, is not.
    other("control.tell(0, 77, 5000, 15, 18, 901)")
    assert control.progress == (77, 5000, 10, 18, 901)
    other("control.tell(0, 77, 6000, 20, 21, 903)")
    assert control.progress == (77, 6000, 20, 21, 903)
    other("control.tell(0, 78, 100, 21, 22, 904)")
    assert control.progress == (78, 100, 21, 22, 904)


def test_what_is_being_told_is_not_read(control: Control, other: Callable[..., subprocess.Popen[str]]) -> None:
    other("control.tell(0, 77, 4096, 10, 15, 900)")
    word = module._FIRST_ROW + module._LOCK
    control.words[word] += 1
    assert control.progress is None, "whoever was telling it was killed half-way"
    other("control.tell(0, 77, 5000, 15, 18, 901)")
    assert control.progress == (77, 5000, 10, 18, 901)


def test_a_slot_begins_without_what_its_predecessor_was_told(root: Path) -> None:
    for _ in range(2):
        control = Control(root)
        assert control.claim() == 0
        assert control.progress is None
        control.tell(0, 77, 4096, 10, 15, 900)
        control.close()


def test_the_helper_is_called_only_where_it_sleeps(
    control: Control, other: Callable[..., subprocess.Popen[str]]
) -> None:
    assert control.helper == -1
    control.call_helper()
    helper = other("control.helper = slot\ncontrol.doze(lambda: True, 60.0)")
    assert control.helper == 1
    control.call_helper()
    finish(helper)
    helper = other("control.helper = slot\nprint('ready', flush=True)\ncontrol.doze(lambda: False, 60.0)")
    waiting = bells._WAITING + 1
    while not control._map[waiting]:
        time.sleep(0.001)
    control.call_helper()
    finish(helper)


def test_a_helper_that_lets_writes_gather_is_called_in_haste_only(
    control: Control, other: Callable[..., subprocess.Popen[str]]
) -> None:
    helper = other(
        """
        from tiermem.tiers.control import HASTE
        control.helper = slot
        print('ready', flush=True)
        control.doze(lambda: control.words[HASTE] != 0, 60.0, pausing=True)
        """
    )
    while control._map[bells._WAITING + 1] != bells.PAUSING:
        time.sleep(0.001)
    control.call_helper()
    control.publish(5, 1)
    time.sleep(0.05)
    assert helper.poll() is None
    assert control._map[bells._WAITING + 1] == bells.PAUSING
    control.call_helper(haste=True)
    finish(helper)
    # Whoever was in haste before it dozed is seen by it.
    finish(other(f"control.doze(lambda: control.words[{module.HASTE}] != 0, 60.0, pausing=True)"))


# --------------------------------------------------------------------------------------------------------------- clocks


def test_the_lowest_time_is_that_of_the_slowest_live_client(
    control: Control, other: Callable[..., subprocess.Popen[str]]
) -> None:
    assert control.lowest_time() == -math.inf, "nobody has said what time it is"
    control.publish_time(50.0)
    assert control.lowest_time() == 50.0
    slow = other("control.publish_time(20.5)")
    assert control.lowest_time() == 20.5
    silent = other()
    assert control.lowest_time() == -math.inf
    finish(silent)
    assert control.lowest_time() == 20.5
    slow.kill()
    slow.wait()
    assert control.lowest_time() == 50.0
    control.publish_time(-3.25)
    assert control.lowest_time() == -3.25


def test_a_time_left_by_the_former_holder_of_a_slot_is_forgotten(
    control: Control, other: Callable[..., subprocess.Popen[str]]
) -> None:
    control.publish_time(50.0)
    finish(other("control.publish_time(99.0)"))
    other()
    assert control.lowest_time() == -math.inf


def test_a_store_is_shared_while_another_client_lives(
    control: Control, other: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOMENT", 0.0)
    assert not control.shared
    process = other()
    assert control.shared
    control.helper = 1
    assert not control.shared, "the helper waits to see nothing"
    control.helper = -1
    assert control.shared
    monkeypatch.setattr(module, "_MOMENT", LONG)
    process.communicate("")
    assert control.shared, "as of a moment ago"
    monkeypatch.setattr(module, "_MOMENT", 0.0)
    assert not control.shared


def test_nobody_is_alive(root: Path) -> None:
    control = Control(root, read_only=True) if (root / "control").exists() else Control(root)
    assert control.live() == []
    assert control.lowest_time() == -math.inf
    control.close()


# ---------------------------------------------------------------------------------------------------------------- bells


def test_waiting_for_nothing_times_out(control: Control) -> None:
    assert not control.wait(control.counter, 0.02)
    assert not control.wait(control.counter, 0.0)
    assert not control.wait(control.counter, -1.0)


def test_a_counter_that_has_moved_on_is_no_wait(control: Control) -> None:
    control.publish(1, 1)
    assert control.wait(0, LONG)


@pytest.mark.parametrize("waiters", [1, 3])
def test_a_commit_wakes_the_threads_that_wait(control: Control, waiters: int) -> None:
    seen, results = control.counter, list[bool]()
    threads = [threading.Thread(target=lambda: results.append(control.wait(seen, LONG))) for _ in range(waiters)]
    for thread in threads:
        thread.start()
    control.publish(seen + 1, 1)
    for thread in threads:
        thread.join(LONG / 2)
    assert results == [True] * waiters


def test_who_sleeps_no_more_is_forgotten(control: Control) -> None:
    for timeout in (0.0, 0.001):
        control.wait(control.counter, timeout)
        control.doze(lambda: True, timeout)
    assert not control.bells._ear._others


def test_no_thread_hears_what_was_meant_for_all(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bells, "_NAP", LONG)
    rounds, heard = 100, [0] * 4

    def listen(number: int) -> None:
        seen = 0
        while heard[number] < rounds:
            control.wait(seen, LONG)
            seen = control.counter
            heard[number] = control.announced

    threads = [threading.Thread(target=listen, args=(number,), daemon=True) for number in range(len(heard))]
    for thread in threads:
        thread.start()
    for round_ in range(1, rounds + 1):
        control.publish(round_, 0)
        assert eventually(lambda round_=round_: heard == [round_] * len(heard)), f"round {round_}: {heard}"
    for thread in threads:
        thread.join(LONG / 2)


def test_a_reader_without_a_slot_waits_too(control: Control, root: Path) -> None:
    reader = Control(root, read_only=True)
    assert not reader.wait(reader.counter, 0.03)
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.append(reader.wait(0, LONG)))
    thread.start()
    control.publish(1, 1)
    thread.join(LONG / 2)
    assert results == [True]
    reader.close()


def test_nobody_sleeps_or_rings_behind_the_end(root: Path) -> None:
    control = Control(root)
    control.claim()
    control.bells.hang()
    control.close()
    with pytest.raises(OSError, match="nobody sleeps"):
        control.bells.hang()
    assert control.bells.listen(lambda: True, LONG, bells.ASLEEP)
    assert not control.bells.listen(lambda: False, LONG, bells.ASLEEP)
    control.bells.ring_all()
    assert not (root / "clients" / "-01.bell").exists()


def test_a_bell_that_is_broken_is_closed_once(control: Control, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though a signal handler rings it while it breaks."""
    os.mkfifo(root / "clients" / "005.bell")
    reader = os.open(root / "clients" / "005.bell", os.O_RDONLY | os.O_NONBLOCK)
    waiting = bells._WAITING + 5
    control._map[waiting] = bells.ASLEEP
    control.bells.ring(5, (bells.ASLEEP,))
    os.close(reader)
    write, depth = os.write, 0

    def interrupted(fd: int, data: bytes) -> int:
        nonlocal depth
        depth += 1
        if depth == 1:
            control.bells.ring(5, (bells.ASLEEP,))
        return write(fd, data)

    monkeypatch.setattr(os, "write", interrupted)
    control.bells.ring(5, (bells.ASLEEP,))
    assert depth == 2
    assert control._map[waiting] == 0
    assert 5 not in control.bells._others


def test_a_commit_wakes_another_process(control: Control, other: Callable[..., subprocess.Popen[str]]) -> None:
    process = other(
        """
        import threading
        def wait():
            print("woken" if control.wait(0, 60) else "slept on", flush=True)
        thread = threading.Thread(target=wait)
        thread.start()
        """
    )
    assert eventually((control.root / "clients" / "001.bell").exists)
    control.publish(1, 1)
    assert process.stdout is not None
    assert process.stdout.readline() == "woken\n"
    finish(process)


def test_a_waiter_that_died_is_forgotten(control: Control, other: Callable[..., subprocess.Popen[str]]) -> None:
    process = other(
        """
        import threading
        threading.Thread(target=lambda: control.wait(0, 600), daemon=True).start()
        while not any(control._map[1024:1536]):
            pass
        """
    )
    assert control._map[1024 + 1] == 1
    process.kill()
    process.wait()
    control.publish(1, 1)
    assert control._map[1024 + 1] == 0, "its mark would cost every later commit a system call"
    control.publish(2, 1)


def test_a_waiter_that_dies_after_it_was_rung(control: Control, other: Callable[..., subprocess.Popen[str]]) -> None:
    process = other(
        """
        import threading, time
        def wait():
            while True:
                control.wait(control.counter, 600)
        threading.Thread(target=wait, daemon=True).start()
        while not any(control._map[1024:1536]):
            pass
        """
    )
    control.publish(1, 1)
    assert eventually(lambda: control._map[1024 + 1])
    process.kill()
    process.wait()
    control._map[1024 + 1] = 1
    # The writer still holds the FIFO open; its other end is gone.
    control.publish(2, 1)
    assert control._map[1024 + 1] == 0


def test_a_bell_nobody_listens_to_does_not_block(control: Control, root: Path) -> None:
    path = root / "clients" / "007.bell"
    os.mkfifo(path)
    listener = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    control._map[1024 + 7] = 1
    for number in range(70_000):
        control.bells._ring(7)
        if number == 65_536:
            control.publish(number, 1)
    assert control._map[1024 + 7] == 1, "a full bell is no dead one"
    os.close(listener)


def test_a_bell_that_cannot_be_rung(control: Control, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    path = root / "clients" / "007.bell"
    path.mkdir()
    control._map[1024 + 7] = 1
    # The commit it announces stands: who sleeps there looks again after a nap.
    control.publish(1, 1)
    assert (control.announced, control._map[1024 + 7]) == (1, 1)


def test_the_mark_goes_with_the_last_sleeper(control: Control) -> None:
    control.wait(control.counter, 0.01)
    assert control._map[1024] == 0
    first = threading.Thread(target=lambda: control.wait(0, LONG))
    first.start()
    assert eventually(lambda: control._map[1024])
    control.wait(0, 0.01)
    assert control._map[1024] == 1, "another thread still sleeps"
    control.publish(1, 1)
    first.join(LONG / 2)
    assert control._map[1024] == 0


def test_the_bell_of_a_former_holder_of_the_slot_is_used_again(root: Path) -> None:
    for number in range(2):
        control = Control(root)
        assert control.claim() == 0
        results: list[bool] = []
        seen = control.counter
        thread = threading.Thread(target=lambda c=control, s=seen, r=results: r.append(c.wait(s, LONG)))
        thread.start()
        assert eventually(lambda c=control: c._map[1024])
        control.publish(number + 1, 1)
        thread.join(LONG / 2)
        assert results == [True]
        control.close()


def test_closing_under_a_sleeper(root: Path) -> None:
    control = Control(root)
    control.claim()
    results: list[object] = []

    def wait() -> None:
        try:
            results.append(control.wait(0, 1.0))
        except OSError as exc:
            results.append(exc)

    thread = threading.Thread(target=wait)
    thread.start()
    assert eventually(lambda: control._map[1024])
    control.close()
    thread.join(LONG / 2)
    assert results == [False], "a sleeper must not read from a descriptor that was closed, or reused"
