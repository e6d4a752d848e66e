"""The helper process: it commits for all clients, is replaced when it fails, and leaves when it is alone."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiermem
from tests.workers import Peer, config, eventually, in_child, join
from tiermem.engine import assistant, processes, scheduling
from tiermem.engine.helper import HASTE, Helper
from tiermem.errors import StorageError
from tiermem.tiers.filelock import holder

HELPED = config(committer="helper", sync_interval=0.01)
AUTO = config(committer="auto", sync_interval=0.01)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where the store lies."""
    return tmp_path / "store"


@pytest.fixture(autouse=True)
def _nobody_is_left(root: Path) -> Iterator[None]:
    yield
    assert eventually(lambda: pid(root) == 0), "the helper has not left"


def pid(root: Path) -> int:
    """The process that is the helper of a store, 0 if there is none."""
    return holder(root / assistant.LOCK)


def helped(mem: tiermem.Memory) -> bool:
    """True if a helper commits for this client."""
    return mem.stats().writes.committer == "helper"


def arrived(root: Path, mem: tiermem.Memory) -> int:
    """The helper's process, once it commits for this client."""
    assert eventually(lambda: helped(mem) and pid(root)), str(mem.stats())
    return pid(root)


def may_be_realtime() -> bool:
    """True if a process of this user may run in real time."""
    _, status = os.waitpid(in_child(scheduling.realtime), 0)
    return status == 0


def gone(process: int) -> bool:
    """True once a process has ended, whether or not anybody has taken note."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def applied(mem: tiermem.Memory) -> bool:
    """True if L3 holds everything this client has journaled. It does not commit; asking retires what is pending."""
    mem.get("n", "no such key")
    return mem.stats().writes.pending_bytes == 0 and mem.stats().writes.pending == 0


def test_a_terminal_that_interrupts_the_client_does_not_reach_it(root: Path) -> None:
    with tiermem.open(root, config=HELPED) as mem:
        helper = arrived(root, mem)
        assert os.getpgid(helper) == helper
        assert os.getsid(helper) == os.getsid(0), "a session of its own would get a share of the cores of its own"


def test_a_client_that_writes_beside_others_hires_one(root: Path) -> None:
    peer = Peer(root, config=AUTO)
    with tiermem.open(root, config=AUTO) as mem:
        time.sleep(1.5)
        assert not pid(root), "nobody writes"

        def written() -> bool:
            mem.put("n", "k", 1)
            return helped(mem)

        assert eventually(written), str(mem.stats())
        assert peer.get("n", "k") == 1
        assert peer.leave() == 0


def test_the_thread_commits_until_it_has_come(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that never says that it is ready."""

    def silent(_: str, orders: bytes, log: int) -> processes.Child:
        return processes.Child("tests.sleeper", orders, log)

    monkeypatch.setattr(assistant, "Child", silent)
    with tiermem.open(root, config=HELPED) as mem:
        coming = mem._store.committer.assistant
        assert eventually(lambda: coming._coming is not None)
        child = coming._coming
        for number in range(20):
            mem.put("n", "k", number)
            assert eventually(lambda: applied(mem))
        assert coming._coming is child
        assert child is not None
        assert mem.stats().writes.committer == "thread"
    assert gone(child.pid), "it is ended with the store"


def test_what_is_left_of_a_removed_store_leaves_the_next_one_alone(root: Path) -> None:
    """A helper, or whoever has not heard of it, that seals where another store is by now."""
    with tiermem.open(root, config=config(committer="thread")) as mem:
        for number in range(40):
            mem.put("n", f"k{number}", number, vector=[1.0, float(number)])
        mem.flush()
        root.rename(root.with_name("removed"))
        root.mkdir()
        sweep = mem._store.sealer.sweep
        with pytest.raises(StorageError, match="was removed"):
            sweep()
        assert os.listdir(root) == []
        root.rmdir()
        with pytest.raises(StorageError, match="was removed"):
            sweep()
        root.with_name("removed").rename(root)
        mem.build_index("n")
        assert (root / "segments").is_dir()


def test_a_search_does_without_a_helper_that_cannot_be_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tiermem.open(root, config=HELPED) as mem:
        mem.put("n", "k", 1, vector=[1.0, 2.0])
        arrived(root, mem)

        def full(*_: object) -> Path:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(assistant, "wishes", full)
        assert mem._store.committer.assistant.told("n") is False
        assert [hit.key for hit in mem.search_similar("n", [1.0, 2.0])] == ["k"]


def test_who_is_not_elected_commits_until_the_other_has_come(root: Path) -> None:
    """The other holds the lock, and never gets the store open."""
    tiermem.open(root).close()
    code = "import sys; from tiermem.tiers.filelock import hold; print(hold(sys.argv[1]), flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, root / assistant.LOCK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as elected:
        assert elected.stdout is not None
        assert int(elected.stdout.readline()) >= 0
        with tiermem.open(root, config=HELPED) as mem:
            assert eventually(lambda: mem._store.committer.assistant._hirable > 0)
            assert eventually(lambda: mem._store.committer.assistant._coming is None)
            mem.put("n", "k", 1)
            assert eventually(lambda: applied(mem))
            assert mem.stats().writes.committer == "thread"
            assert mem.stats().degraded == ()
        elected.kill()


def test_a_child_keeps_nothing_of_one_that_is_on_its_way(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assistant, "Child", lambda _, orders, log: processes.Child("tests.sleeper", orders, log))
    with tiermem.open(root, config=config(committer="helper")) as mem:
        assert eventually(lambda: mem._store.committer.assistant._coming is not None)
        coming = mem._store.committer.assistant._coming
        assert coming is not None
        pipe = os.readlink(f"/proc/self/fd/{coming._said}")

        def child() -> None:
            links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
            assert pipe not in [os.readlink(link) for link in links if os.path.lexists(link)]

        join(in_child(child))
        assert not gone(coming.pid), "it is the parent's"


def test_real_time_is_given_up_without_the_right_to_take_it_again(root: Path) -> None:
    if not may_be_realtime():
        pytest.skip("real-time priority is not permitted here")

    def child() -> None:
        prompt = scheduling.prompt()
        scheduling.realtime()
        os.setuid(65534)
        scheduling.ordinary()
        assert os.sched_getscheduler(0) == os.SCHED_OTHER | os.SCHED_RESET_ON_FORK
        assert scheduling.prompt() == prompt

    join(in_child(child))


def test_it_keeps_no_file_of_the_client_open(root: Path, tmp_path: Path) -> None:
    with (tmp_path / "the client's own").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        with tiermem.open(root, config=HELPED) as mem:
            helper = arrived(root, mem)
            names = [os.readlink(link) for link in Path(f"/proc/{helper}/fd").iterdir()]
            assert not [name for name in names if "the client's own" in name]


def test_a_writer_lets_a_thread_go_on_that_has_been_at_work_for_long(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tiermem.open(root, config=config(committer="thread")) as mem:
        mem.put("n", "k", 0)
        rounds = mem._store.rounds
        entered, leave = threading.Event(), threading.Event()
        committer = mem._store.committer
        commit = committer.commit

        def slow(**named: Any) -> None:
            entered.set()
            assert leave.wait(60)
            commit(**named)

        monkeypatch.setattr(committer, "commit", slow)
        mem.put("n", "k", 1)
        assert entered.wait(60)
        before = rounds._overdue
        mem.put("n", "k", 2)
        assert rounds._overdue == before, "it has been at work for a moment only"
        rounds._overdue = 0.0
        mem.put("n", "k", 3)
        assert rounds._overdue > before, "it was let go on, and has time again"
        leave.set()
        assert eventually(lambda: applied(mem))
        assert eventually(lambda: not rounds._working)


def test_it_commits_at_real_time_priority_where_it_may(root: Path) -> None:
    with tiermem.open(root, config=config(committer="helper", sync_interval=0.01, realtime=True)) as mem:
        helper = arrived(root, mem)
        if may_be_realtime():
            assert eventually(lambda: scheduling.is_realtime(helper)), str(mem.stats())
            assert mem.stats().degraded == ()
            os.sched_setscheduler(helper, os.SCHED_OTHER, os.sched_param(0))
        assert eventually(lambda: "real-time" in str(mem.stats().degraded)), str(mem.stats())
        mem.put("n", "k", 1)
        assert eventually(lambda: applied(mem))


def test_by_default_it_does_so_unless_it_is_far_behind(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tiermem.open(root, config=HELPED) as mem:
        process = arrived(root, mem)
        assert eventually(lambda: scheduling.is_realtime(process) == may_be_realtime())
        assert mem.stats().degraded == ()
        ranks: list[str] = []
        monkeypatch.setattr("tiermem.engine.helper.realtime", lambda: ranks.append("real time"))
        monkeypatch.setattr("tiermem.engine.helper.ordinary", lambda: ranks.append("ordinary"))
        monkeypatch.setattr("tiermem.engine.helper.prompt", lambda: ranks.append("prompt"))
        one = Helper(mem._store, -1)
        for behind in (0, 10, HASTE, HASTE + 1, HASTE + 2, 0, 1):
            one._rank(behind)
        assert ranks == ["real time", "ordinary", "prompt", "real time"]


def test_never_where_that_is_not_wanted(root: Path) -> None:
    with tiermem.open(root, config=config(committer="helper", sync_interval=0.01, realtime=False)) as mem:
        process = arrived(root, mem)
        mem.put("n", "k", 1)
        assert eventually(lambda: applied(mem))
        assert not scheduling.is_realtime(process)
        assert mem.stats().degraded == ()


def test_only_the_thread_that_commits_runs_in_real_time(root: Path) -> None:
    with tiermem.open(root, config=config(committer="helper", sync_interval=0.01, realtime=True)) as mem:
        helper = arrived(root, mem)
        if not may_be_realtime():
            pytest.skip("real-time priority is not permitted here")
        assert eventually(lambda: scheduling.is_realtime(helper))
        threads = [int(one.name) for one in Path(f"/proc/{helper}/task").iterdir()]
        assert [thread for thread in threads if scheduling.is_realtime(thread)] == [helper]
        assert len(threads) > 1


def test_it_commits_what_a_client_has_put(root: Path) -> None:
    with tiermem.open(root, config=HELPED) as mem:
        arrived(root, mem)
        assert mem.stats().clients == 1, "the helper is no client of the user's"
        mem.put("n", "first", 0)
        assert eventually(lambda: applied(mem))
        commits = mem.stats().writes.commits
        for number in range(500):
            mem.put("n", f"k{number:03d}", number)
            mem.put("n", "same", number)
        assert mem.get("n", "k499") == mem.get("n", "same") == 499
        assert eventually(lambda: applied(mem))
        assert mem.stats().writes.commits == commits, "this process has committed nothing itself"
        assert mem.get_record("n", "same").value == 499
        assert [record.value for record in mem.scan("n", prefix="k")] == list(range(500))
        assert len(list(mem.changes(after=0))) == 1001
        assert mem.check().ok


def test_it_ends_with_the_last_client(root: Path) -> None:
    one, two = Peer(root, config=HELPED), Peer(root, config=HELPED)
    try:
        first = eventually(lambda: pid(root))
        assert one.leave() == 0
        two.put("n", "k", 1)
        time.sleep(1.5)
        assert pid(root) == first, "somebody is left"
    finally:
        one.kill()
        two.leave()
    assert eventually(lambda: pid(root) == 0)
    assert eventually(lambda: not (root / assistant.LOG).exists())


def test_all_clients_share_one(root: Path) -> None:
    peers = [Peer(root, config=HELPED) for _ in range(3)]
    try:
        assert eventually(lambda: all(peer.home() == "helper" for peer in peers))
        first = pid(root)
        rng = random.Random(1)
        known: dict[str, int] = {}
        for number in range(600):
            key = f"k{rng.randrange(50)}"
            rng.choice(peers).put(f"own/{key}", key, number)
            known[key] = number
            if number % 40 == 0:
                peers[0].flush()
        # What one put after another had, without a barrier between them, stands as the clocks of the two say.
        peers[0].flush()
        for key, number in known.items():
            assert peers[1].get(f"own/{key}", key) == peers[2].get(f"own/{key}", key) == number
        peers[0].put("n", "counter", 0, if_version=0)
        for peer in peers:
            peer.begin("increment", "n", "counter", 30)
        for peer in peers:
            peer.end()
        assert peers[0].get_record("n", "counter").value == 30 * len(peers)
        assert pid(root) == first
        assert peers[0].check().ok
    finally:
        for peer in peers:
            peer.leave()


def test_what_one_client_puts_reaches_another_and_the_feed(root: Path) -> None:
    one, two = Peer(root, config=HELPED), Peer(root, config=HELPED)
    try:
        assert eventually(lambda: one.home() == "helper")
        for number in range(50):
            one.put("n", "k", number, vector=[1.0, float(number)])
            assert eventually(lambda number=number: two.get("n", "k") == number)
            assert two.get_record("n", "k").value == number
            two.put("n", "back", number)
            assert eventually(lambda number=number: one.get("n", "back") == number)
        assert [hit[0] for hit in two.search_similar("n", [1.0, 49.0], k=1)] == ["k"]
        news = [change.key for change in one.changes(after=0)]
        assert news.count("k") == news.count("back") == 50
    finally:
        one.leave()
        two.leave()


def test_a_killed_helper_loses_nothing_and_is_replaced(root: Path) -> None:
    with tiermem.open(root, config=HELPED) as mem:
        told: set[str] = set()
        for round_ in range(3):
            mem._store.committer.assistant._hirable = 0.0
            process = arrived(root, mem)
            for number in range(200):
                mem.put("n", f"{round_}-{number}", number)
                if number == 100:
                    os.kill(process, signal.SIGKILL)
                told.update(mem.stats().degraded)
            assert eventually(lambda: told.update(mem.stats().degraded) or applied(mem))
            assert eventually(lambda: told.update(mem.stats().degraded) or told)
        assert any("the helper process has ended" in trouble for trouble in told), told
        mem._store.committer.assistant._hirable = 0.0
        arrived(root, mem)
        assert eventually(lambda: not mem.stats().degraded)
        assert mem.count("n") == 600
        assert mem.check().ok


def test_a_stopped_helper_holds_nobody_up(root: Path) -> None:
    with tiermem.open(root, config=HELPED) as mem:
        for round_ in range(3):
            mem._store.committer.assistant._hirable = 0.0
            process = arrived(root, mem)
            for number in range(300):
                mem.put("n", f"{round_}-{number}", number)
                if number == 150:
                    os.kill(process, signal.SIGSTOP)
            # It may have been stopped inside a transaction: this waits for the write lock until it is ended.
            mem.flush()
            assert mem.count("n") == 300 * (round_ + 1)
            assert eventually(lambda process=process: gone(process))
        assert mem.check().ok


def test_one_slow_round_is_no_reason_to_hire_one(root: Path) -> None:
    """It may have met a slow disk; three in a row are."""
    with tiermem.open(root, config=config(committer="auto", sync_interval=1.0)) as mem:
        coming = mem._store.committer.assistant
        for seconds in (2.1, 2.1, 0.0, 9.9, 2.1):
            coming.hire_if(seconds)
            assert coming._hirable == 0.0
        coming.hire_if(2.1)
        assert coming._hirable > 0.0


def test_a_thread_that_falls_behind_hires_one(root: Path) -> None:
    with tiermem.open(root, config=AUTO) as mem:
        mem.put("n", "k", 1)
        assert eventually(lambda: applied(mem))
        assert mem.stats().writes.committer == "thread"
        mem._store.committer.assistant.hire_if(0.0)
        assert pid(root) == 0
        mem._store.committer.assistant.hire_if(1.0)
        arrived(root, mem)
        mem.put("n", "k", 2)
        assert eventually(lambda: applied(mem))
        with tiermem.open(root) as other:
            assert other.get("n", "k") == 2


@pytest.mark.parametrize("committer", ["thread", "inline"])
def test_who_wants_none_has_none(root: Path, committer: str) -> None:
    helping = Peer(root, config=HELPED)
    try:
        assert eventually(lambda: pid(root))
        with tiermem.open(root, config=config(committer=committer, sync_interval=0.005)) as mem:
            for number in range(100):
                mem.put("n", f"k{number}", number)
            assert mem.stats().writes.committer == committer
            assert eventually(lambda: applied(mem)), "it commits what is journaled, whoever did"
            mem._store.committer.assistant.hire_if(1.0)
            assert helping.count("n") == 100
    finally:
        helping.leave()


def test_where_no_process_may_be_started_the_thread_goes_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")
    with tiermem.open(root, config=HELPED) as mem:
        assert eventually(lambda: mem.stats().degraded)
        assert mem.stats().degraded == ("no helper process came up: no process may be started here",)
        mem.put("n", "k", 1)
        assert eventually(lambda: applied(mem))
        assert mem.stats().writes.committer == "thread"


def test_a_helper_that_fails_at_once_says_why(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(_: str, orders: bytes, log: int) -> processes.Child:
        return processes.Child("tiermem.no_such_module", orders, log)

    monkeypatch.setattr(assistant, "Child", elsewhere)
    with tiermem.open(root, config=HELPED) as mem:
        assert eventually(lambda: mem.stats().degraded)
        assert "no helper process came up: " in mem.stats().degraded[0]
        assert "no_such_module" in mem.stats().degraded[0]
        mem.put("n", "k", 1)
        assert eventually(lambda: applied(mem))
        monkeypatch.undo()
        mem._store.committer.assistant._hirable = 0.0
        arrived(root, mem)
        assert not mem.stats().degraded


def test_a_full_journal_waits_for_it(root: Path) -> None:
    with tiermem.open(root, config=config(committer="helper", journal_bytes=2**16)) as mem:
        arrived(root, mem)
        for number in range(2_000):
            mem.put("n", f"k{number:04d}", "v" * 200)
        mem.flush()
        assert mem.count("n") == 2_000
        os.kill(arrived(root, mem), signal.SIGKILL)
        for number in range(2_000):
            mem.put("n", f"l{number:04d}", "v" * 200)
        assert mem.count("n") == 4_000


def test_fork_with_a_helper(root: Path) -> None:
    with tiermem.open(root, config=HELPED) as mem:
        process = arrived(root, mem)
        mem.put("n", "before", 0)

        def child() -> None:
            assert mem.get("n", "before") == 0
            for number in range(100):
                mem.put("n", f"child-{number}", number)
            arrived(root, mem)
            assert eventually(lambda: applied(mem))
            assert pid(root) == process

        forked = in_child(child)
        for number in range(100):
            mem.put("n", f"parent-{number}", number)
        join(forked)
        mem.flush()
        assert mem.count("n") == 201
        assert mem.check().ok


def test_it_sweeps_by_the_clients_clock(root: Path) -> None:
    clock = tiermem.SimulatedClock(1_000.0)
    with tiermem.open(root, config=HELPED, clock=clock) as mem:
        arrived(root, mem)
        mem.put("n", "k", 1, ttl=10)
        mem.put("n", "stays", 1, ttl=1000)
        assert eventually(lambda: applied(mem))
        time.sleep(1.2)
        assert mem.stats().cold.entries == 2, "by this clock it is not over"
        clock.advance(11)
        mem.put("n", "other", 1)
        assert eventually(lambda: ("expire", "k") in [(change.op, change.key) for change in mem.changes(after=0)])
        assert eventually(lambda: applied(mem))
        assert mem.stats().cold.entries == 2
        assert mem.get("n", "stays") == 1


def test_it_leaves_a_directory_that_is_gone(root: Path) -> None:
    peer = Peer(root, config=HELPED)
    assert eventually(lambda: pid(root))
    process = pid(root)
    peer.kill()
    assert eventually(lambda: shutil.rmtree(root, ignore_errors=True) or not root.exists())
    assert eventually(lambda: gone(process))


def test_compaction_moves_it_along(root: Path) -> None:
    with tiermem.open(root, config=HELPED) as mem:
        arrived(root, mem)
        for round_ in range(3):
            for number in range(100):
                mem.put("n", f"{round_}-{number}", number)
            mem.compact()
            mem.put("n", "last", round_)
            assert eventually(lambda: applied(mem))
        assert mem.count("n") == 301
        assert mem.check().ok


def test_it_seals_what_clients_search(root: Path) -> None:
    settings = tiermem.Config(cold=HELPED.cold, vector=tiermem.VectorConfig(seal_rows=64))
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((600, 8), np.float32)
    with tiermem.open(root, config=settings) as mem:
        arrived(root, mem)
        for number, row in enumerate(rows):
            mem.put("odd name\n", f"k{number}", number, vector=row)
            if not number % 100:
                assert mem.search_similar("odd name\n", row, k=1)[0].key == f"k{number}"

        def sealed() -> bool:
            assert mem.search_similar("odd name\n", rows[7], k=1)[0].key == "k7"
            vectors = mem.stats().vectors["odd name\n"]
            return vectors.segments > 0 and vectors.tail < 64

        assert eventually(sealed), str(mem.stats())
        lanes = mem._store.sealer.lanes
        assert not any(lane._thread for lane in lanes[:2]), "neither sealed nor merged in this process"
        for number, row in enumerate(rows):
            assert mem.search_similar("odd name\n", row, k=1)[0].key == f"k{number}"
        assert mem.check().ok


def run(action: Callable[[], object]) -> object:
    """What an action gives, or the kind of tiermem's error it raises."""
    try:
        return action()
    except tiermem.TiermemError as exc:
        return type(exc)


def test_one_client_beside_a_dict(root: Path) -> None:
    """Everything a client can do to a record, while a helper commits behind its back."""
    rng = random.Random(5)
    known: dict[str, int] = {}
    with tiermem.open(root, config=HELPED) as mem:
        arrived(root, mem)
        for number in range(3_000):
            key = f"k{rng.randrange(40):02d}"
            what = rng.randrange(12)
            if what < 5:
                mem.put("n", key, number)
                known[key] = number
            elif what == 5:
                assert mem.delete("n", key) == (known.pop(key, None) is not None)
            elif what == 6:
                with mem.batch() as batch:
                    for other in (key, "k00", "k39"):
                        batch.put("n", other, number)
                        known[other] = number
            elif what == 7:
                record = mem.get_record("n", key)
                version = 0 if record is None else record.version
                mem.put("n", key, number, if_version=version)
                known[key] = number
                assert run(lambda key=key, version=version: mem.put("n", key, 0, if_version=version)) is (
                    tiermem.VersionConflict
                )
            elif what == 8:
                assert {record.key: record.value for record in mem.scan("n")} == known
            elif what == 9:
                assert mem.count("n") == len(known)
            else:
                assert mem.get("n", key) == known.get(key)
                record = mem.get_record("n", key)
                assert (None if record is None else record.value) == known.get(key)
            if not number % 50:
                time.sleep(rng.random() * 0.02)
        assert eventually(lambda: applied(mem))
        assert mem.get_many("n", sorted(known)) == {key: known[key] for key in sorted(known)}
    with tiermem.open(root) as mem:
        assert {record.key: record.value for record in mem.scan("n")} == known


def test_what_a_helper_commits_in_a_generation_that_was_not_announced_is_seen(root: Path) -> None:
    code = """
        import os, signal, sys, tiermem
        from tiermem.tiers.control import Control
        mem = tiermem.open(sys.argv[1], config=tiermem.Config(cold=tiermem.ColdConfig(committer="thread")))
        whole = Control.publish
        def publish(self, sequence, *args, **named):
            if not sequence:
                os.kill(os.getpid(), signal.SIGKILL)
            whole(self, sequence, *args, **named)
        Control.publish = publish
        mem.compact()
    """
    with tiermem.open(root, config=HELPED) as mem:
        arrived(root, mem)
        mem.put("n", "before", 0)
        mem.flush()
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(root)], check=False)
        assert done.returncode == -signal.SIGKILL
        for number in range(100):
            mem.put("n", f"k{number}", number)
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            assert mem.count("n") == 101
            assert mem.contains("n", "k50")
        assert eventually(lambda: applied(mem))
        assert mem.count("n") == 101
    with tiermem.open(root) as mem:
        assert mem.count("n") == 101


def test_an_idle_helper_leaves_the_generation_that_was_left(root: Path) -> None:
    with tiermem.open(root, config=HELPED) as mem:
        process = arrived(root, mem)
        mem.put("n", "k", 1)
        mem.compact()

        def let_go() -> bool:
            folder = Path(f"/proc/{process}/fd")
            return not any("gen-1" in os.readlink(link) for link in folder.iterdir() if link.is_symlink())

        assert eventually(let_go)
        with tiermem.open(root, config=HELPED) as other:
            other.put("n", "l", 2)
        peer = Peer(root, config=HELPED)
        peer.put("n", "m", 3)
        assert eventually(lambda: mem.get("n", "m") == 3)
        peer.leave()
        assert pid(root) == process, "it has lived through all of it"


def test_a_commit_of_two_clients_leaves_neither_unheard(root: Path) -> None:
    with tiermem.open(root, config=HELPED) as mem:
        arrived(root, mem)
        peer = Peer(root, config=HELPED)
        try:
            for number in range(40):
                mem.put("n", "mine", number)
                assert mem._store.rounds.roused
                peer.put("n", "theirs", number)
                peer.flush()
                assert mem.get("n", "theirs") == number
                assert not mem._store.rounds.roused, "the next put rings"
        finally:
            peer.leave()
