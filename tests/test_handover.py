"""Conditional writes and flushes that the helper makes for its clients: nobody is held up, nothing happens twice."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import pytest

import tiermem
from tests.workers import DEADLINE, Peer, config, eventually, hands_over, in_child, join
from tiermem import DimensionMismatch, Guard, GuardFailed, RecordNotFound, VersionConflict
from tiermem.codec.operation import PUT, Operation
from tiermem.codec.serialize import encode
from tiermem.engine import assistant, handover
from tiermem.engine.handover import Request, pack_request, unpack_request
from tiermem.engine.proposals import Proposal
from tiermem.tiers.cold.layout import CLOCK_SHIFT, answer_key
from tiermem.tiers.filelock import holder

HELPED = config(committer="helper", sync_interval=0.01)
INLINE = config(committer="inline", sync_interval=60.0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where the store lies."""
    return tmp_path / "store"


def while_stopped(pid: int, action: Callable[[], object]) -> None:
    """Do something that has to end while a process is stopped."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as exc:  # noqa: BLE001 - it is raised below
            failures.append(exc)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(DEADLINE)
    state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    assert not thread.is_alive(), "it waits for a process that is stopped"
    assert state == "T"
    if failures:
        raise failures[0]


def test_a_stopped_client_holds_nobody_up(root: Path) -> None:
    """Wherever it was stopped: others write on conditions, flush and read, and are seen to have done so."""
    rng = random.Random(11)
    busy = Peer(root, config=HELPED)
    try:
        with tiermem.open(root, config=HELPED) as mem:
            # Before it knows of a helper that is ready it commits itself.
            assert eventually(lambda: hands_over(mem) and busy.handing_over())
            mem.put("n", "theirs", 0, if_version=0)
            mem.put("n", "ours", 0, if_version=0)
            busy.begin("swap_and_flush", "n", "theirs")
            # A client makes its cursor, and opens its journal for its first put, by itself: not what this is about.
            assert eventually(lambda: mem.get("n", "theirs") >= 2)
            count = 0
            cursor = mem.cursor("ours", start=0)
            committed = mem.stats().writes.committed

            def work() -> None:
                nonlocal count
                for _ in range(3):
                    record = mem.get_record("n", "ours")
                    assert record is not None
                    assert record.value == count
                    count += 1
                    version = mem.put("n", "ours", count, if_version=record.version)
                    with pytest.raises(VersionConflict) as refused:
                        mem.put("n", "ours", -1, if_version=record.version)
                    assert (refused.value.expected, refused.value.found) == (record.version, version)
                    mem.put("n", f"plain-{count}", count)
                    mem.flush()
                    assert mem.get("n", f"plain-{count}") == count
                    assert len(list(mem.scan("n", prefix="plain"))) == count
                    mem.put("n", "durable", count, durable=True)
                    assert mem.stats().writes.pending == 0
                    cursor.commit(next(iter(cursor)).sequence)

            for _ in range(25):
                time.sleep(0.02 * rng.random())
                busy.signal(signal.SIGSTOP)
                try:
                    while_stopped(busy.pid, work)
                finally:
                    # What is held up could not be closed.
                    busy.signal(signal.SIGCONT)
            busy.kill()
            assert mem.get("n", "ours") == count == 75
            assert mem.stats().writes.committed == committed, "this process has committed nothing itself"
            mem.flush()
            assert mem.get("n", "theirs") > 0
            assert mem.check().ok
    finally:
        busy.kill()


@pytest.mark.parametrize("kill_every", [0.0, 0.7])
def test_contention_with_helpers_that_are_killed(run_python: Callable[..., Any], kill_every: float) -> None:
    options = ["--processes", 3, "--seconds", 4, "--home", "helper", "--kill-every", kill_every]
    # In an interpreter of its own: threads of other tests may hold locks that its forks inherit, coverage's among them.
    code = "import sys; from tiermem.testing.contention import main; sys.exit(main(sys.argv[1:]))"
    done = run_python(code, *options, "--kill-helper-every", 0.3, "--seed", 3, "--json", measured=False)
    report = json.loads(done.stdout)
    assert report["problems"] == []
    assert report["helpers_killed"] > 0


def test_one_client_beside_a_dict(root: Path) -> None:
    """What the helper decides is what this process would have decided: versions, errors and values."""
    rng = random.Random(7)
    known: dict[str, tuple[int, Any, dict[str, Any]]] = {}
    beside = Peer(root, config=HELPED)
    try:
        with tiermem.open(root, config=HELPED) as mem:
            mem.put("v", "k", 1, vector=[1.0, 2.0])
            assert eventually(lambda: hands_over(mem))
            last = 0
            for number in range(600):
                key = f"k{rng.randrange(12):02d}"
                version, value, _ = known.get(key, (0, None, {}))
                what = rng.randrange(8)
                if what == 0:
                    last = mem.put("n", key, number, metadata={"n": number})
                    known[key] = last, number, {"n": number}
                elif what == 1:
                    if version:
                        assert mem.delete("n", key, if_version=version)
                        known.pop(key)
                    else:
                        with pytest.raises(GuardFailed):
                            mem.delete("n", key, guard=Guard("n", key, 5))
                elif what == 2:
                    if version:
                        last = mem.update("n", key, metadata={"m": number})
                        known[key] = last, value, {"m": number}
                    else:
                        with pytest.raises(RecordNotFound, match=key):
                            mem.update("n", key, value=number)
                elif what == 3:
                    with pytest.raises(VersionConflict) as refused:
                        mem.put("n", key, number, if_version=version + 1)
                    assert (refused.value.expected, refused.value.found) == (version + 1, version)
                elif what == 4:
                    # Of this process's own write just before it, it comes behind.
                    plain = mem.put("n", key, "plain")
                    with mem.batch() as batch:
                        batch.put("n", key, number, if_version=plain)
                        batch.put("n", "other", number)
                    assert plain < batch.versions[0] < batch.versions[1]
                    known[key] = batch.versions[0], number, {}
                    known["other"] = batch.versions[1], number, {}
                elif what == 5:
                    with pytest.raises(DimensionMismatch):
                        mem.put("v", "k", 1, vector=[1.0, 2.0, 3.0], if_version=0, guard=None)
                else:
                    new = mem.put("n", key, number, if_version=version)
                    assert new > version
                    known[key] = new, number, {}
                record = mem.get_record("n", key)
                found = None if record is None else (record.version, record.value, dict(record.metadata))
                assert found == known.get(key)
                assert mem.get("n", key) == known.get(key, (0, None))[1]
            assert {record.key: record.value for record in mem.scan("n")} == {key: one[1] for key, one in known.items()}
            assert beside.values("n") == {key: one[1] for key, one in known.items()}
    finally:
        beside.leave()


def test_a_store_that_is_compacted_meanwhile(root: Path) -> None:
    peers = [Peer(root, config=HELPED) for _ in range(2)]
    try:
        with tiermem.open(root, config=HELPED) as mem:
            mem.put("n", "k", 0)
            assert eventually(lambda: hands_over(mem) and all(peer.home() == "helper" for peer in peers))
            mem.flush()
            for peer in peers:
                peer.begin("increment", "n", "k", 150)
            for _ in range(4):
                mem.compact()
            for peer in peers:
                peer.end()
            mem.flush()
            assert mem.get("n", "k") == 300
            assert mem.check().ok
    finally:
        for peer in peers:
            peer.leave()


def test_forks_and_threads_that_ask(root: Path) -> None:
    beside = Peer(root, config=HELPED)
    try:
        with tiermem.open(root, config=HELPED) as mem:
            mem.put("n", "k", 0)
            mem.flush()
            assert eventually(lambda: hands_over(mem))

            def count(times: int) -> None:
                done = 0
                while done < times:
                    record = mem.get_record("n", "k")
                    assert record is not None
                    try:
                        mem.put("n", "k", record.value + 1, if_version=record.version)
                        done += 1
                    except VersionConflict:
                        pass

            threads = [threading.Thread(target=count, args=(60,)) for _ in range(3)]
            for thread in threads:
                thread.start()
            children = [in_child(lambda: count(20)) for _ in range(2)]
            for thread in threads:
                thread.join()
            for child in children:
                join(child)
            mem.flush()
            assert mem.get("n", "k") == 220
    finally:
        beside.leave()


# With a process that does what a helper does, and is killed where it is told to be.


class Desk:
    """A client whose helper is a peer."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mem = tiermem.open(root, config=INLINE)
        self.peer = Peer(root, config=INLINE)
        store = self.mem._store
        store.committer.assistant.present = True
        monkeypatch.setattr(store.committer.assistant, "look", lambda: self.peer.process.poll() is None)
        monkeypatch.setattr(store.control, "_counted", float("inf"))
        store.control._shared = True

    def times(self, key: str) -> int:
        """How often a key was written."""
        return [change.key for change in self.mem.changes(after=0)].count(key)

    @property
    def request(self) -> bytes:
        """What this client asks at the moment."""
        return self.mem._store.handover._requests.read(self.mem._store.slot)


@pytest.fixture
def desk(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """It, on a new store."""
    made = Desk(root, monkeypatch)
    yield made
    made.peer.kill()
    made.mem._store.committer.assistant.present = False
    made.mem.close()


def test_what_was_applied_and_not_answered_is_not_applied_again(desk: Desk) -> None:
    mem = desk.mem
    mem.put("n", "plain", 1)
    desk.peer.begin("serve", "before the answer")
    version = mem.put("n", "k", "once", if_version=0)
    assert desk.peer.process.wait(DEADLINE) == -signal.SIGKILL
    record = mem.get_record("n", "k")
    assert record is not None
    assert (record.value, record.version) == ("once", version)
    assert (desk.times("k"), desk.times("plain")) == (1, 1)
    # No condition would have kept this from happening again.
    guard = Guard("n", "k", version)
    assert mem.put("n", "log", 1, guard=guard) < mem.put("n", "log", 2, guard=guard)
    assert desk.times("log") == 2


def test_what_was_not_applied_is_applied_by_the_client(desk: Desk) -> None:
    desk.peer.begin("serve", "inside the transaction")
    version = desk.mem.put("n", "k", "once", if_version=0)
    assert desk.peer.process.wait(DEADLINE) == -signal.SIGKILL
    assert desk.times("k") == 1
    with pytest.raises(VersionConflict):
        desk.mem.put("n", "k", "twice", if_version=0)
    assert desk.mem.get_record("n", "k").version == version


def test_a_new_helper_gives_the_answer_of_the_last(desk: Desk, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is killed between the commit and the answer; the second finds what it has kept."""
    next_one = Peer(root, config=INLINE)
    try:
        monkeypatch.setattr(desk.mem._store.committer.assistant, "look", lambda: True)
        desk.peer.begin("serve", "before the answer")
        next_one.begin("serve", "never", after=desk.peer.pid)
        commits = desk.mem.stats().writes.commits
        version = desk.mem.put("n", "k", "once", if_version=0)
        next_one.end()
        assert desk.mem.stats().writes.commits == commits
        assert desk.mem.get_record("n", "k").version == version
        assert desk.times("k") == 1
    finally:
        next_one.kill()


def test_where_a_cursor_stands_is_decided_there_too(desk: Desk) -> None:
    mem = desk.mem
    for number in range(5):
        mem.put("n", f"k{number}", number)
    cursor = mem.cursor("c", start=0)
    newest = mem._store.control.announced - 1

    def served(place: int | None, error: str = "") -> None:
        desk.peer.begin("serve", "never")
        commits = mem.stats().writes.commits
        with pytest.raises(tiermem.InvalidArgument, match=error) if error else nullcontext():
            (cursor.delete() if place is None else cursor.commit(place))
        desk.peer.end()
        assert mem.stats().writes.commits == commits

    served(3)
    served(newest + 1, "lies ahead of the log")
    assert mem.cursor("c").position == 3
    served(None)
    assert mem.cursor("c", start=1).position == 1


def test_a_durable_put_is_committed_by_the_client_where_nobody_else_does(desk: Desk) -> None:
    """The helper is there and does not move: after some looks the client does it."""
    mem = desk.mem
    mem.put("n", "k", 1, durable=True)
    mem.put("n", "k", 2, durable=True)
    assert mem._store.journal is not None
    assert mem._store.journal.applied == mem._store.journal.head


def test_who_waits_for_what_changes_nothing_is_rung(desk: Desk) -> None:
    desk.mem.put("n", "k", 1)
    desk.mem._store.committer.drain()
    with desk.mem.batch() as batch:
        batch.delete("n", "no such key")
    assert desk.peer.whom_a_commit_rings() == [desk.mem._store.slot]
    assert desk.peer.whom_a_commit_rings() == []


def test_a_durable_put_ends_where_its_journal_is_not_this_process_s_any_more(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a child that a signal handler has forked while the put waited."""
    store = desk.mem._store
    desk.mem.put("n", "k", 0)
    kept = store.journal

    def forked(*_: object) -> bool:
        store.journal = None
        return False

    monkeypatch.setattr(store.handover, "drained", forked)
    desk.mem.put("n", "k", 1, durable=True)
    store.journal = kept
    monkeypatch.undo()


def test_a_signal_handler_puts_durably_while_a_durable_put_waits(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    mem, control = desk.mem, desk.mem._store.control
    mem.put("n", "k", 0)
    mem._store.committer.drain()
    say, calls = control.bells._say, 0

    def interrupted() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            # Inside the lock that whoever sleeps takes.
            signal.raise_signal(signal.SIGUSR1)
        say()

    handler = signal.signal(signal.SIGUSR1, lambda *_: mem.put("n", "from the handler", 1, durable=True))
    monkeypatch.setattr(control.bells, "_say", interrupted)
    try:
        mem.put("n", "k", 1, durable=True)
    finally:
        signal.signal(signal.SIGUSR1, handler)
    assert calls > 1
    assert (mem.get("n", "k"), mem.get("n", "from the handler")) == (1, 1)
    assert mem.stats().writes.pending == 0


def test_a_request_of_a_later_version_is_none() -> None:
    class Later(Request):
        more: int = 1

    later = handover.seal(b"request", msgspec.msgpack.encode(Later(7, None)))
    assert unpack_request(later) is None


def test_an_answer_that_was_given_is_not_given_again(desk: Desk) -> None:
    """A refusal that has been told must not turn into a write because the client had asked twice."""
    mem, control = desk.mem, desk.mem._store.control
    first = mem.put("n", "k", 1)
    mem._store.committer.drain()
    desk.peer.begin("serve", "never")
    with pytest.raises(VersionConflict):
        mem.put("n", "k", 2, if_version=first + 1)
    desk.peer.end()
    assert desk.request == b""
    refused = Request(mem._store.next_version(), Proposal(0.0, "cosine", []))
    mem._store.handover._requests.write(mem._store.slot, pack_request(refused))
    control.asking[mem._store.slot] = 1
    assert desk.peer.serve("never", once=True)
    control.asking[mem._store.slot] = 1
    assert not desk.peer.serve("never", once=True)


def test_an_answer_that_is_damaged_is_told_once(desk: Desk) -> None:
    """Whether the write happened cannot be known any more; the next one is none the worse for it."""
    mem = desk.mem
    mem.put("n", "before", 1, durable=True)

    def damage(writer: Any) -> None:
        writer.wrote = True
        writer.txn.put(answer_key(mem._store.slot), b"damaged!" * 3, db=writer.dbs.marks)

    mem._store.committer.commit(work=damage)
    desk.peer.begin("serve", "never")
    with pytest.raises(tiermem.CorruptionError):
        mem.put("n", "k", 1, if_version=0)
    assert desk.peer.end()
    assert mem.get("n", "k") is None
    desk.peer.begin("serve", "never")
    mem.put("n", "k", 2, if_version=0)
    assert desk.peer.end()
    assert (mem.get("n", "k"), desk.times("k")) == (2, 1)


class Interrupted(TimeoutError):
    """What the handler raises: an OSError, and none that a file has met."""


def test_an_interrupt_withdraws_what_was_asked(desk: Desk) -> None:
    mem = desk.mem

    def interrupt(*_: object) -> None:
        with pytest.raises(tiermem.LockTimeout, match="signal handler"):
            mem.put("n", "k", "from a handler", if_version=0)
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(5):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(Interrupted):
                mem.put("n", "k", "withdrawn", if_version=0)
            assert desk.request == b""
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(Interrupted):
                mem.flush()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not desk.peer.serve("never", once=True), "nobody asks any more"
    desk.peer.begin("serve", "never")
    mem.put("n", "k", "stays", if_version=0)
    desk.peer.end()
    assert (mem.get("n", "k"), desk.times("k")) == ("stays", 1)


def test_who_is_not_answered_commits(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A helper that is there and does nothing."""
    monkeypatch.setattr(handover, "LOOK", 0.01)
    mem = desk.mem
    version = mem.put("n", "k", 1, if_version=0)
    mem.put("n", "plain", 1)
    mem.flush()
    assert desk.peer.get("n", "plain") == 1
    assert mem.get_record("n", "k").version == version


def test_a_request_that_cannot_be_written_is_made_without(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(slot: int, data: bytes) -> None:
        if data:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(desk.mem._store.handover._requests, "write", full)
    desk.mem.put("n", "k", 1, if_version=0)
    assert desk.peer.get("n", "k") == 1


@pytest.mark.parametrize(
    "proposal", [None, Proposal(1.5, "dot", [Operation(PUT, 0, "n", "k", 1, 1, 2, 3, b"", b"", b"v")])]
)
def test_a_request_is_whole_or_none(proposal: Proposal | None) -> None:
    data = pack_request(Request(7, proposal))
    assert unpack_request(data) == Request(7, proposal)
    assert all(unpack_request(data[:size]) is None for size in range(len(data)))
    assert all(unpack_request(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]) is None for at in range(len(data)))


def test_the_answer_to_an_earlier_client_in_the_slot_is_nobody_elses(desk: Desk, root: Path) -> None:
    """Where the clock was set back, versions are counted up, by every client from where the store stands."""
    mem, slot = desk.mem, desk.mem._store.slot
    ahead = mem._store.next_version() + (10**12 << CLOCK_SHIFT)
    mem._store.observe(ahead)
    mem.put("n", "first", 0)
    mem._store.committer.drain()
    for key in ("theirs", "ours"):
        desk.peer.begin("serve", "never")
        mem._store._last = ahead >> CLOCK_SHIFT
        mem.put("n", key, 1, if_version=0)
        desk.peer.end()
        assert desk.mem._store.slot == slot
    assert (mem.get("n", "theirs"), mem.get("n", "ours")) == (1, 1)


def test_what_a_dead_client_had_asked_is_not_done_later(desk: Desk, root: Path) -> None:
    """Neither by a helper that comes up long after, nor for whoever takes its slot."""
    mem = desk.mem
    other = Peer(root, config=INLINE)
    slot = other.slot()
    late = Proposal(1.0, "cosine", [Operation(PUT, 0, "n", "k", 0, 1.0, 1.0, float("inf"), b"", b"", encode("late"))])
    other.kill()
    (root / "clients" / f"{slot:03d}.request").write_bytes(pack_request(Request(5, late)))
    mem._store.control.asking[slot] = 1
    assert not desk.peer.serve("never", once=True)
    mem._store.control.asking[slot] = 1
    with_slot = Peer(root, config=INLINE)
    try:
        assert with_slot.slot() == slot
        mem._store.control.asking[slot] = 1
        assert not desk.peer.serve("never", once=True)
        assert mem.get("n", "k") is None
    finally:
        with_slot.kill()


@pytest.mark.parametrize("version", [2**63, 2**64])
def test_a_version_that_fits_no_request_is_refused_all_the_same(desk: Desk, version: int) -> None:
    mem = desk.mem
    desk.peer.begin("serve", "never")
    with pytest.raises(VersionConflict) as refused:
        mem.put("n", "k", 1, if_version=version)
    assert (refused.value.expected, refused.value.found) == (version, 0)
    mem.flush()
    desk.peer.end()


@pytest.mark.parametrize("what", ["open", "mkfifo"])
def test_a_client_that_can_open_no_more_files_commits_itself(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    mem = desk.mem
    real = getattr(os, what)

    def full(path: Any, *args: Any, **named: Any) -> int:
        if str(path).endswith((".request", ".answer", ".bell")):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path, *args, **named)

    monkeypatch.setattr(os, what, full)
    mem.put("n", "k", 1, if_version=0)
    with pytest.raises(VersionConflict):
        mem.put("n", "k", 2, if_version=0)
    mem.flush()
    assert desk.peer.get("n", "k") == 1
    assert desk.request == b""


def test_what_a_helper_cannot_read_or_say_does_not_end_it(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of another user's, or a disk that is full."""
    mem, desk_of_helper = desk.mem, desk.mem._store.handover
    slot = mem._store.slot
    request = Request(5, Proposal(1.0, "cosine", [Operation(PUT, 0, "n", "k", 0, 1, 1, 9e9, b"", b"", encode(1))]))
    desk_of_helper._requests.write(slot, pack_request(request))
    real = os.open

    def other_users(path: Any, flags: int, *args: Any, **named: Any) -> int:
        if str(path).endswith((".request", ".answer")) and flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, flags, *args, **named)

    desk_of_helper.close()
    monkeypatch.setattr(os, "open", other_users)
    mem._store.control.asking[slot] = 1
    assert desk_of_helper.serve()
    assert desk.times("k") == 1
    monkeypatch.setattr(os, "open", real)
    mem._store.control.asking[slot] = 1
    assert desk_of_helper.serve(), "it was not said yet"
    assert desk.times("k") == 1
    desk_of_helper.withdraw()


def test_what_was_made_while_the_store_is_closed_was_made(root: Path, desk: Desk) -> None:
    """Closing waits for it; it is not told that the store was closed as if nothing had happened."""
    mem, store = desk.mem, desk.mem._store
    versions: list[int] = []
    thread = threading.Thread(target=lambda: versions.append(mem.put("n", "k", 1, if_version=0)))
    thread.start()
    assert eventually(lambda: desk.request)
    closing = threading.Thread(target=mem.close)
    closing.start()
    assert eventually(lambda: store.closed)
    desk.peer.serve("never")
    thread.join()
    closing.join()
    assert versions
    assert desk.peer.get("n", "k") == 1


def test_it_leaves_nothing_open(root: Path) -> None:
    def files() -> list[str]:
        folder = Path("/proc/self/fd")
        links = [os.readlink(folder / name) for name in os.listdir(folder) if (folder / name).exists()]
        return sorted(Path(link).suffix for link in links if link.startswith(str(root / "clients")))

    beside = Peer(root, config=HELPED)
    try:
        for _ in range(2):
            with tiermem.open(root, config=HELPED) as mem:
                assert eventually(lambda mem=mem: hands_over(mem))
                mem.flush()
                assert {".answer", ".request"} < {*files()}
            assert files() == []
    finally:
        beside.leave()
    assert eventually(lambda: holder(root / assistant.LOCK) == 0)
