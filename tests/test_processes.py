"""Several processes, forks, threads and handles on one directory."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import tiermem
from tests.workers import INLINE, NO_BELLS, QUIET, Peer, config, eventually, in_child, join
from tiermem import Record, SimulatedClock, VersionConflict
from tiermem.cli import main
from tiermem.engine import proposals
from tiermem.engine.journals import Journals
from tiermem.tiers.cold import ColdEnv
from tiermem.tiers.cold.layout import SLOT_MASK

BRISK = config(sync_interval=0.005)
ALONE = tiermem.Config(cold=INLINE)
V = [1.0, 0.0, 0.0]

THREADS = 16

MakePeer = Callable[..., Peer]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where the store lies."""
    return tmp_path / "store"


# ------------------------------------------------------------------------------------------- seen by others


def test_a_put_reaches_the_other_process_by_itself(root: Path, peer: MakePeer) -> None:
    a, b = peer(root, config=BRISK), peer(root, config=BRISK)
    start = b.changes(after=0)
    assert start == []
    a.put("n", "k", {"x": 1}, vector=V, metadata={"side": "buy"})
    assert eventually(lambda: b.get("n", "k")) == {"x": 1}
    assert [record.key for record in b.scan("n")] == ["k"]
    assert b.count("n") == 1
    assert b.count("n", {"side": "buy"}) == 1
    assert b.contains("n", "k")
    assert b.namespaces() == ["n"]
    assert [hit[0] for hit in b.search_similar("n", V)] == ["k"]
    assert [(change.key, change.op) for change in b.changes(after=0)] == [("k", "put")]
    a.put("n", "l", 2, vector=V)
    assert eventually(lambda: [hit[0] for hit in b.search_similar("n", V)] == ["k", "l"])
    a.delete("n", "k")
    assert eventually(lambda: not b.contains("n", "k"))
    assert b.get("n", "k") is None
    assert [hit[0] for hit in b.search_similar("n", V)] == ["l"]


@pytest.mark.parametrize("committer", ["thread", "helper"])
def test_a_put_is_committed_sooner_while_another_process_waits_to_see_it(
    committer: str, root: Path, peer: MakePeer
) -> None:
    settings = config(committer=committer, sync_interval=60.0, share_interval=0.002)
    with tiermem.open(root, config=settings) as mem:
        assert eventually(lambda: mem.stats().writes.committer == committer)
        mem.put("n", "k", 1, durable=True)
        mem.put("n", "k", 2)
        time.sleep(0.5)
        if committer == "thread":
            # A helper that was asleep commits the first write at once.
            assert mem.stats().writes.pending == 1, "alone, it waits"
        other = peer(root, config=settings)
        # Whoever opens a store replays the journals; and it takes a moment until that is noticed.
        time.sleep(0.5)
        for number in range(3, 6):
            mem.put("n", "k", number)
            assert eventually(lambda number=number: other.get("n", "k") == number)


def test_a_subscript_is_as_fresh_as_the_last_look_of_the_thread(root: Path, peer: MakePeer) -> None:
    with tiermem.open(root, config=config(committer="thread")) as mem:
        mem.put("n", "k", 1, durable=True)
        namespace = mem.namespace("n")
        other = peer(root)
        for number in range(2, 5):
            other.put("n", "k", number, durable=True)
            # No other call on this store.
            assert eventually(lambda number=number: namespace["k"] == number)


def test_a_put_that_another_made_void_leaves_nothing_in_l1(root: Path, peer: MakePeer) -> None:
    a, b = peer(root, config=QUIET), peer(root, config=QUIET)
    b.put("n", "other", 0)
    a.put("n", "k", "first")
    b.flush()
    assert a.get("n", "k") == a.get("n", "k") == "first"
    a.put("n", "k", "lower")
    b.put("n", "k", "higher")
    # The one with the higher version is committed, the other is still pending where it was put.
    b.drain()
    assert a.get("n", "k") in ("lower", "higher")
    b.flush()
    assert a.get_record("n", "k").value == "higher"
    assert a.get("n", "k") == a.subscript("n", "k") == "higher"
    a.flush()
    assert a.get("n", "k") == b.get("n", "k") == "higher"


@pytest.mark.parametrize("who", ["writer", "reader", "third"])
def test_after_flush_every_process_sees_everything_at_once(who: str, root: Path, peer: MakePeer) -> None:
    a, b = peer(root, config=QUIET), peer(root, config=QUIET)
    flusher = {"writer": a, "reader": b, "third": peer(root, config=QUIET)}[who]
    a.put("n", "first", 0, vector=V)
    flusher.flush()
    # Whatever b may keep of the namespace, it keeps from here on.
    assert b.get("n", "first") == b.get("n", "first") == 0
    assert [hit[0] for hit in b.search_similar("n", V)] == ["first"]
    assert b.count("n") == 1
    last = b.changes(after=0)[-1].sequence
    for round_ in range(3):
        # Twice: a key that was looked for in vain is known to be absent.
        assert b.get("n", f"k{round_}") is b.get("n", f"k{round_}") is None
        a.put("n", "first", round_ + 1, vector=V, metadata={"r": round_})
        a.put("n", f"k{round_}", round_, vector=V)
        key = a.append("s", round_, vector=V)
        flusher.flush()
        assert b.get("n", "first") == b.get_record("n", "first").value == round_ + 1
        assert b.subscript("n", "first") == round_ + 1
        assert b.subscript("n", f"k{round_}") == b.get("n", f"k{round_}") == round_
        assert b.get_many("n", ["first", f"k{round_}"]) == {"first": round_ + 1, f"k{round_}": round_}
        assert b.values("n") == {"first": round_ + 1, **{f"k{i}": i for i in range(round_ + 1)}}
        assert b.count("n") == round_ + 2
        assert b.count("n", {"r": round_}) == 1
        assert b.latest("s", 1)[0].key == key
        versions = {hit[0]: hit[2] for hit in b.search_similar("n", V)}
        assert sorted(versions) == ["first", *(f"k{i}" for i in range(round_ + 1))]
        assert versions["first"] == b.get_record("n", "first").version
        news = b.changes(after=last)
        assert sorted((c.namespace, c.key) for c in news) == [("n", "first"), ("n", f"k{round_}"), ("s", key)]
        assert [c.sequence for c in news] == [last + 1, last + 2, last + 3]
        last = news[-1].sequence
    a.delete("n", "first")
    flusher.flush()
    assert b.get("n", "first") is None
    assert b.count("n") == 3
    assert "first" not in [hit[0] for hit in b.search_similar("n", V)]


def test_what_is_hot_here_is_dropped_when_another_overwrites_it(root: Path, peer: MakePeer) -> None:
    a, b = peer(root, config=BRISK), peer(root, config=BRISK)
    for round_ in range(20):
        a.put("n", "k", round_)
        a.flush()
        assert b.get("n", "k") == round_
        assert b.get("n", "k") == round_
        if round_ % 3 == 0:
            b.put("n", "k", "mine")
            b.flush()
            assert a.get("n", "k") == a.get("n", "k") == "mine"
        if round_ % 5 == 0:
            a.delete("n", "k")
            a.flush()
            assert b.get("n", "k") is None
            assert b.get("n", "k", "absent") == "absent"


def test_the_later_of_two_puts_stands_everywhere_after_flush(root: Path, peer: MakePeer) -> None:
    """b's put has the higher version and is committed first; a still has its own pending."""
    a, b = peer(root, config=QUIET), peer(root, config=QUIET)
    a.put("n", "k", "from a", vector=V)
    b.put("n", "k", "from b", vector=V, durable=True)
    # Until the flush a may say either; afterwards all say the same.
    a.get("n", "k")
    a.search_similar("n", V)
    b.flush()
    for one in (b, a):
        assert one.get_record("n", "k").value == "from b"
        assert one.values("n") == {"k": "from b"}
        assert one.get("n", "k") == "from b"
        assert one.search_similar("n", V)[0][2] == one.get_record("n", "k").version
    a.kill()
    b.kill()
    with tiermem.open(root) as mem:
        assert mem.get("n", "k") == "from b"


def test_a_pending_write_hides_nothing_that_is_newer(root: Path, peer: MakePeer) -> None:
    """Every verb of a process gives one answer for one record."""
    a, b = peer(root, config=QUIET), peer(root, config=QUIET)
    a.put("n", "k", "from a")
    b.put("n", "k", "from b", durable=True)
    assert a.get("n", "k") == a.get_record("n", "k").value == a.values("n")["k"]


def test_a_namespace_dropped_elsewhere_is_gone_and_can_begin_anew(root: Path, peer: MakePeer) -> None:
    a, b = peer(root, config=BRISK), peer(root, config=BRISK)
    for dimension in (3, 2, 5):
        vector = [1.0] * dimension
        a.put("n", "k", dimension, vector=vector)
        a.put("n", f"only{dimension}", 1)
        a.flush()
        assert b.get("n", "k") == b.get("n", "k") == dimension
        assert [hit[0] for hit in b.search_similar("n", vector)] == ["k"]
        assert b.count("n") == 2
        dropper, other = (a, b) if dimension != 2 else (b, a)
        assert dropper.drop_namespace("n") is True
        assert other.get("n", "k") is None
        assert other.count("n") == 0
        assert other.values("n") == {}
        assert other.namespaces() == []
        assert other.search_similar("n", vector) == []
        assert other.drop_namespace("n") is False
    # The one that did not drop writes first.
    b.put("n", "k", "new", vector=[1.0, 1.0])
    b.flush()
    assert a.get("n", "k") == "new"
    assert a.check().ok


def test_a_change_after_a_compaction_is_seen(root: Path, peer: MakePeer) -> None:
    a, b = peer(root, config=QUIET), peer(root, config=QUIET)
    for round_ in range(4):
        a.put("n", "k", round_)
        a.flush()
        assert b.get("n", "k") == b.get("n", "k") == round_
        a.compact()
        assert b.get("n", "k") == round_
        a.put("n", "k", [round_])
        a.flush()
        assert b.get("n", "k") == [round_]


def test_the_first_vector_fixes_the_dimension_for_every_process(root: Path, peer: MakePeer) -> None:
    a, b = peer(root, config=QUIET), peer(root, config=QUIET)
    a.put("n", "k", 1, vector=V)
    with pytest.raises(tiermem.DimensionMismatch):
        b.put("n", "l", 1, vector=[1.0, 2.0])
    assert b.count("n") in (0, 1)


def test_changes_have_no_gaps_and_no_repetitions_over_processes(root: Path, peer: MakePeer) -> None:
    peers = [peer(root, config=BRISK) for _ in range(3)]
    for number, one in enumerate(peers):
        one.begin("write_and_read", f"n{number}", "t", 1.0, 0.002)
    counts = [one.end() for one in peers]
    peers[0].flush()
    seen = peers[1].changes(after=0)
    assert [change.sequence for change in seen] == list(range(1, sum(counts) + 1))
    for number, count in enumerate(counts):
        mine = [change for change in seen if change.namespace == f"n{number}"]
        assert [change.key for change in mine] == [f"t-{i:06d}" for i in range(count)]
        versions = [change.version for change in mine]
        assert versions == sorted(set(versions))


def test_waiting_for_a_change_ends_when_another_process_makes_one(root: Path, peer: MakePeer) -> None:
    a, b = peer(root, config=BRISK), peer(root, config=BRISK)
    c = peer(root, config=BRISK)
    for number in range(5):
        for waiter in (b, c):
            waiter.begin("first_change", 3600.0)
        time.sleep(0.05)
        a.put("n", f"k{number}", number)
        for waiter in (b, c):
            change = waiter.end()
            assert (change.namespace, change.key, change.op) == ("n", f"k{number}", "put")
    a.begin("first_change", 0.05)
    assert a.end() is None


# ------------------------------------------------------------------------------------------ compare-and-set


def test_four_processes_count_exactly(root: Path, peer: MakePeer) -> None:
    peers = [peer(root, config=BRISK) for _ in range(4)]
    peers[0].put("n", "counter", 0, if_version=0)
    for one in peers:
        one.begin("increment", "n", "counter", 50)
    for one in peers:
        one.end()
    assert peers[0].get("n", "counter") == 200
    assert peers[3].get("n", "counter") == 200
    assert peers[1].check().ok


def test_only_one_of_several_creates_a_record(root: Path, peer: MakePeer) -> None:
    peers = [peer(root, config=QUIET) for _ in range(3)]
    for number in range(10):
        for who, one in enumerate(peers):
            one.begin("put", "n", f"k{number}", who, if_version=0)
        winners = []
        for who, one in enumerate(peers):
            try:
                one.end()
                winners.append(who)
            except tiermem.VersionConflict:
                pass
        assert len(winners) == 1
        assert [one.get("n", f"k{number}") for one in peers] == winners * 3


def test_a_compare_and_set_sees_every_put_acknowledged_before_it(root: Path, peer: MakePeer) -> None:
    a, b = peer(root, config=QUIET), peer(root, config=QUIET)
    b.put("n", "k", 0, if_version=0)
    version = b.get_record("n", "k").version
    a.put("n", "k", 1)
    with pytest.raises(tiermem.VersionConflict):
        b.put("n", "k", 2, if_version=version)
    assert a.get("n", "k") == b.get("n", "k") == 1
    a.put("n", "new", 1)
    with pytest.raises(tiermem.VersionConflict):
        b.put("n", "new", 2, if_version=0)
    with pytest.raises(tiermem.VersionConflict):
        b.delete("n", "k", if_version=version)
    a.delete("n", "new")
    with pytest.raises(tiermem.GuardFailed):
        b.put("n", "other", 1, guard=tiermem.Guard("n", "new", version))
    b.put("n", "other", 1, guard=tiermem.Guard("n", "new", 0))
    with pytest.raises(KeyError):
        b.update("n", "new", value=3)
    a.put("n", "other", 5)
    b.update("n", "other", metadata={"m": 1})
    assert a.get("n", "other") == b.get("n", "other") == 5


Between = Callable[[int, Callable[[], object]], None]


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Between:
    """`between(slot, do)`: when this process next drains all journals, `do` once that of `slot` is done."""

    def arrange(slot: int, do: Callable[[], object]) -> None:
        drain, waiting = Journals._apply, [do]

        def draining(self: Journals, writer: Any, journal: Any, *arguments: Any) -> int:
            position = drain(self, writer, journal, *arguments)
            if waiting and int(journal.path.stem) == slot:
                waiting.pop()()
            return position

        monkeypatch.setattr(Journals, "_apply", draining)

    return arrange


@pytest.mark.parametrize("older", ["put", "delete"])
def test_what_comes_beside_a_drain_does_not_undo_what_came_after_it(
    root: Path, peer: MakePeer, between: Between, monkeypatch: pytest.MonkeyPatch, older: str
) -> None:
    """An older write, into a journal that was drained already, and a newer one, which the drain comes upon."""
    with tiermem.open(root, config=ALONE) as mem:
        first, second = peer(root, config=ALONE), peer(root, config=ALONE)
        slot = first.put("n", "k", "before") & SLOT_MASK
        assert second.put("n", "other", 0) & SLOT_MASK > slot
        mem.flush()
        newer: list[int] = []

        def write() -> None:
            if older == "put":
                first.put("n", "k", "old")
            else:
                assert first.delete("n", "k")
            newer.append(second.put("n", "k", "new"))

        decide = proposals.decide

        def expecting(store: Any, writer: Any, proposal: proposals.Proposal) -> Any:
            # What it finds, which nobody could know when it began.
            proposal.conditions = [("n", "k", newer[0], False)]
            return decide(store, writer, proposal)

        between(slot, write)
        monkeypatch.setattr(proposals, "decide", expecting)
        mem.put("n", "k", "replaced", if_version=1)
        mem.flush()
        assert mem.get("n", "k") == first.get("n", "k") == second.get("n", "k") == "replaced"
        # What is newer than what was replaced stands above that.
        second.put("n", "k", "newest")
        mem.flush()
        assert mem.get("n", "k") == first.get("n", "k") == "newest"


def test_what_comes_beside_a_drain_is_not_brought_back_where_deletes_are_forgotten(
    root: Path, peer: MakePeer, between: Between
) -> None:
    with tiermem.open(root, config=ALONE) as mem:
        first, second = peer(root, config=ALONE), peer(root, config=ALONE)
        slot = first.put("n", "gone", 0) & SLOT_MASK
        assert second.put("n", "other", 0) & SLOT_MASK > slot
        mem.delete("n", "gone")
        mem.flush()

        def write() -> None:
            first.put("n", "k", "old")
            second.put("n", "k", "new")
            assert second.delete("n", "k")

        between(slot, write)
        mem._store.committer.upkeep.run()
        mem.flush()
        assert mem.get("n", "k") is None
        assert first.get("n", "k") is None


def test_no_acknowledged_put_is_lost_to_a_compare_and_set_that_began_after_it(root: Path, peer: MakePeer) -> None:
    """a puts ["a", 1], ["a", 2], ...; b and c replace what they read by compare-and-set.

    A compare-and-set that won stands directly behind what it replaced. So the newest put of `a` in
    the chain behind it must be at least the newest that had been acknowledged when it began.
    """
    a, b = peer(root, config=BRISK), peer(root, config=BRISK)
    a.put("n", "k", ["a", 0], durable=True)
    a.begin("put_paced", "n", "k", 3.0, 1)
    b.begin("replace_seen", "n", "k", 3.0)
    acknowledged, won = a.end(), b.end()
    assert len(won) > 5
    behind: dict[int, int] = {}
    for number, began, (who, seen) in won:
        behind[number] = seen if who == "a" else behind[seen]
        due = max((i for i, at in acknowledged if at < began), default=0)
        assert behind[number] >= due, f"put {due} was acknowledged, then lost to compare-and-set {number}"
        # No put stands in the chain twice, and none out of order.
        assert number == 1 or behind[number] >= behind[number - 1]
    b.flush()
    who, number = b.get("n", "k")
    assert a.get("n", "k") == [who, number]
    assert (number if who == "a" else behind[number]) == acknowledged[-1][0]


# ----------------------------------------------------------------------------------------------- compaction


def test_compaction_while_others_write_and_read(root: Path, peer: MakePeer) -> None:
    a, b, c = peer(root, config=BRISK), peer(root, config=BRISK), peer(root, config=config(sync_interval=0.05))
    b.begin("write_and_read", "n", "b", 2.5)
    c.begin("write_and_read", "n", "c", 2.5, 0.001)
    generation = a.compact_often(8, 0.1)
    counts = {"b": b.end(), "c": c.end()}
    a.flush()
    wanted = {f"{tag}-{i:06d}": i for tag, count in counts.items() for i in range(count)}
    for one in (a, b, c):
        assert one.count("n") == len(wanted)
        assert one.generation() == generation
    assert c.values("n") == wanted
    assert a.check().ok
    assert [path.name for path in root.glob("gen-*")] == [f"gen-{generation}"]
    for one in (a, b, c):
        one.leave()
    with tiermem.open(root) as mem:
        assert mem.count("n") == len(wanted)


def test_two_processes_compact_at_once(root: Path, peer: MakePeer) -> None:
    a, b, c = (peer(root, config=BRISK) for _ in range(3))
    c.begin("write_and_read", "n", "c", 2.0, 0.001)
    a.begin("compact_often", 8, 0.0)
    b.begin("compact_often", 8, 0.0)
    a.end(20)
    b.end(20)
    count = c.end(20)
    c.flush()
    assert a.count("n") == b.count("n") == c.count("n") == count
    assert a.generation() == b.generation() == c.generation()
    for one in (a, b, c):
        one.leave()
    with tiermem.open(root) as mem:
        assert mem.count("n") == count
        assert mem.check().ok


@pytest.mark.parametrize("body", ["threads_compact_at_once", "threads_use_what_is_compacted"])
def test_compaction_and_threads_of_one_process(body: str, root: Path) -> None:
    script(body, root)


def test_a_process_that_slept_through_two_compactions_goes_on(root: Path, peer: MakePeer) -> None:
    a, b, c = peer(root, config=BRISK), peer(root, config=QUIET), peer(root, config=QUIET)
    b.put("n", "b", 1)
    b.get("n", "b")
    c.get("n", "b")
    a.compact()
    a.compact()
    a.put("n", "a", 2)
    # No call of these two has looked since; one commits its own journal first, the other reads.
    b.drain()
    b.put("n", "b2", 3, durable=True)
    assert c.get("n", "a", "not yet") in (2, "not yet")
    a.compact()
    a.compact()
    a.flush()
    assert c.values("n") == {"a": 2, "b": 1, "b2": 3}
    assert b.values("n") == {"a": 2, "b": 1, "b2": 3}


def test_a_backup_while_another_process_writes_is_one_moment(root: Path, tmp_path: Path, peer: MakePeer) -> None:
    a, b = peer(root, config=BRISK), peer(root, config=BRISK)
    b.begin("write_and_read", "n", "b", 1.0)
    for number in range(4):
        a.backup(tmp_path / f"copy{number}")
    count = b.end()
    sizes = []
    for number in range(4):
        with tiermem.open(tmp_path / f"copy{number}") as mem:
            keys = [record.value for record in mem.scan("n")]
            assert keys == list(range(len(keys)))
            assert mem.check().ok
            sizes.append(len(keys))
    assert sizes == sorted(sizes)
    assert sizes[-1] <= count
    b.flush()
    assert a.count("n") == count


def test_backups_under_load_are_each_one_moment_and_can_be_restored(root: Path, tmp_path: Path, peer: MakePeer) -> None:
    """Three processes write pairs that belong together, with vectors that are sealed meanwhile."""
    with tiermem.open(root, config=BRISK) as mem:
        mem.create_namespace("right", dimension=3)
    writers = {tag: peer(root, config=BRISK) for tag in ("a", "bb", "ccc")}
    for tag, writer in writers.items():
        writer.begin("write_pairs", tag)
    before: dict[str, int] = dict.fromkeys(writers, -1)
    with tiermem.open(root, config=BRISK) as mem:
        assert eventually(lambda: mem.count("left") == 3)
        for number in range(5):
            mem.backup(tmp_path / f"copy{number}")
        mem.put("left", "enough", 0)
        counts = {tag: writer.end() for tag, writer in writers.items()}
    moments = []
    for number in range(5):
        source = tmp_path / f"copy{number}"
        assert main(["restore", str(source), str(tmp_path / f"back{number}")]) == 0
        for path in (source, tmp_path / f"back{number}"):
            with tiermem.open(path, verify=True) as mem:
                assert mem.check().ok
                left = {record.key: record.value for record in mem.scan("left")}
                assert {record.key: record.value for record in mem.scan("right")} == left, "half a batch"
                for tag in writers:
                    # Between two batches a plain put: in the order they were acknowledged in.
                    trail = [record.value for record in mem.scan("trail", prefix=f"{tag}-")]
                    assert trail == list(range(len(trail)))
                    assert left.get(tag, -1) + 1 - len(trail) in (0, 1)
                    hits = mem.search_similar("right", [1.0, left.get(tag, 0), len(tag)], k=3)
                    assert len(hits) == len(left)
                assert all(left.get(tag, -1) >= before[tag] for tag in writers)
                moments.append(left)
        before = {tag: left.get(tag, -1) for tag in writers}
    assert moments[::2] == moments[1::2], "what was restored is what was backed up"
    assert all(before[tag] < counts[tag] for tag in writers)
    assert moments[0] != moments[-1], "nobody wrote meanwhile"


# ------------------------------------------------------------------------------------------------------ forks


def script(name: str, *args: object, measured: bool = True) -> None:
    """Run one of the functions below in a fresh interpreter, under coverage only if `measured`."""
    code = f"import sys; from tests import test_processes; test_processes.{name}(*sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        cwd=Path(__file__).parent.parent,
        env={name: value for name, value in os.environ.items() if measured or not name.startswith("COVERAGE_")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=40)
    except subprocess.TimeoutExpired:
        # Its children too, or they would keep the pipe open.
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"{name} hangs:\n{output}", pytrace=False)
    if process.returncode:
        pytest.fail(f"{name} ended with {process.returncode}:\n{output}", pytrace=False)


def threads_compact_at_once(root: str) -> None:
    """Several threads compact; nothing is lost to a generation that was left."""
    with tiermem.open(root, config=BRISK) as mem:
        for round_ in range(5):
            mem.put("n", f"k{round_}", round_)
            failures = run_threads(*[mem.compact] * 3)
            assert not failures, failures
            mem.put("n", f"l{round_}", round_)
    with tiermem.open(root) as mem:
        assert mem.count("n") == 10
        assert mem.check().ok


def threads_use_what_is_compacted(root: str) -> None:
    """Threads read and write while another compacts."""
    done = threading.Event()
    with tiermem.open(root, config=BRISK) as mem:
        mem.put_many("n", [(f"k{i:03d}", i) for i in range(300)])
        written = [0, 0]

        def read() -> None:
            while not done.is_set():
                assert mem.count("n") == 300
                assert len(list(mem.scan("n"))) == 300
                assert mem.get_record("n", "k100").value == 100
                # Without a pause these threads would leave the others hardly any time.
                time.sleep(0.01)

        def write(which: int) -> None:
            while not done.is_set():
                mem.put(f"w{which}", f"{written[which]:06d}", written[which], durable=which == 1)
                written[which] += 1
                time.sleep(0.001)

        def compact() -> None:
            try:
                for _ in range(5):
                    mem.compact()
            finally:
                done.set()

        failures = run_threads(read, read, lambda: write(0), lambda: write(1), compact)
        assert not failures, failures
        assert [mem.count("w0"), mem.count("w1")] == written
    with tiermem.open(root) as mem:
        assert [mem.count("w0"), mem.count("w1")] == written


def fork_with_an_open_store(root: str, committer: str) -> None:
    """Parent and children write and read on, through handles made before the fork."""
    settings = config(sync_interval=0.005 if committer == "thread" else 60.0, committer=committer)
    mem = tiermem.open(root, config=settings)
    ns = mem.namespace("n")
    mem.put("n", "hot", 0, vector=V)
    assert mem.get("n", "hot") == mem.get("n", "hot") == 0
    assert len(mem.search_similar("n", V)) == 1
    mem.put("n", "pending", "parent")
    mem.append("s", "parent")

    def child(number: int) -> None:
        assert mem.get("n", "pending") == "parent"
        assert ns["hot"] == 0
        assert mem.count("s") >= 1
        mem.put("n", f"child{number}", number)
        ns[f"by mapping {number}"] = number
        mem.append("s", number)
        assert mem.get("n", f"child{number}") == number
        assert [hit.key for hit in mem.search_similar("n", V)] == ["hot"]
        with mem.batch() as b:
            b.put("n", f"batch{number}", 1)
        if number == 1:
            mem.flush()
        if number == 2:
            mem.close()
        if number == 3:
            mem.put("n", "swapped", number, if_version=0)

    pids = [in_child(lambda number=number: child(number)) for number in range(5)]
    mem.put("n", "after", "parent")
    assert mem.get("n", "after") == "parent"
    join(*pids)
    mem.flush()
    assert mem.count("s") == 6
    assert sorted(str(record.value) for record in mem.scan("s")) == ["0", "1", "2", "3", "4", "parent"]
    for number in range(5):
        assert mem.get("n", f"child{number}") == number
        assert ns[f"by mapping {number}"] == number
        assert mem.contains("n", f"batch{number}")
    assert mem.get("n", "swapped") == 3
    changes = [change.key for change in mem.changes(after=0, namespace="n")]
    assert sorted(changes) == sorted(set(changes)), "something was applied twice"
    assert mem.check().ok, str(mem.check())
    mem.close()


def fork_under_load(root: str) -> None:
    """A thread writes without pause while others fork."""
    mem = tiermem.open(root, config=config(sync_interval=0.002, journal_bytes=2**17))
    stop = threading.Event()
    count = 0

    def write() -> None:
        nonlocal count
        while not stop.is_set():
            mem.put("n", f"{count:06d}", count)
            count += 1

    thread = threading.Thread(target=write)
    thread.start()
    pids = []
    for number in range(10):

        def child(number: int = number) -> None:
            seen = mem.count("n")
            assert seen > 0 or number == 0
            mem.put("c", f"child{number}", seen)
            assert mem.get("c", f"child{number}") == seen

        pids.append(in_child(child))
        time.sleep(0.02)
    stop.set()
    thread.join()
    join(*pids)
    mem.flush()
    assert [record.value for record in mem.scan("n")] == list(range(count))
    assert mem.count("c") == 10
    assert mem.check().ok
    mem.close()


def fork_and_open(root: str) -> None:
    """The store is opened after the fork, by both; and by a grandchild."""

    def child() -> None:
        mem = tiermem.open(root, config=QUIET)
        mem.put("n", "child", 1)

        def grandchild() -> None:
            assert mem.get("n", "child") == 1
            mem.put("n", "grandchild", 2)

        join(in_child(grandchild))

    pid = in_child(child)
    mem = tiermem.open(root, config=QUIET)
    mem.put("n", "parent", 0)
    join(pid)
    mem.flush()
    assert {record.key: record.value for record in mem.scan("n")} == {"child": 1, "grandchild": 2, "parent": 0}
    mem.close()


def fork_and_kill_the_parent(root: str) -> None:
    """The parent dies; its slot and its journal are free, though a child of it lives."""
    mem = tiermem.open(root, config=QUIET)
    mem.put("n", "parent", 1)
    read, write = os.pipe()
    pid = in_child(lambda: (os.close(write), mem.put("n", "child", 2), os.read(read, 1)))
    eventually(lambda: mem._store.control.live() and len(mem._store.control.live()) == 2)
    os.close(read)
    os.write(1, b"%d\n" % pid)
    os.kill(os.getpid(), signal.SIGKILL)


def multiprocessing_child(root: str, number: int) -> None:
    """Open, or find open, the store in a child of `multiprocessing`."""
    mem = tiermem.open(root, config=QUIET)
    mem.put("n", f"child{number}", number)
    assert mem.get("n", "parent") == "pending"


def multiprocessing_children(root: str, method: str) -> None:
    """Children of `multiprocessing` beside a parent with pending writes."""
    context = multiprocessing.get_context(method)
    mem = tiermem.open(root, config=QUIET)
    mem.put("n", "parent", "pending")
    if method != "fork":
        # A process that is not a copy sees what is committed, or what it has replayed on opening.
        mem.put("n", "other", 1)
    children = [context.Process(target=multiprocessing_child, args=(root, number)) for number in range(3)]
    for child in children:
        child.start()
    mem.put("n", "after", 1)
    for child in children:
        child.join(50)
        assert child.exitcode == 0
    mem.flush()
    assert [mem.get("n", f"child{number}") for number in range(3)] == [0, 1, 2]
    assert mem.get("n", "parent") == "pending"
    changes = [change.key for change in mem.changes(after=0)]
    assert sorted(changes) == sorted(set(changes)), "something was applied twice"
    assert mem.check().ok
    mem.close()


def test_a_child_waits_for_no_thread_of_its_parent(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiermem.tiers.bells._LAST_NAP", 3600.0)
    with tiermem.open(root) as mem:
        start = mem.stats().log.last
        found: list[Any] = []
        sleeper = threading.Thread(target=lambda: found.append(next(mem.changes(start, wait=60.0), None)))
        sleeper.start()
        assert eventually(lambda: mem._store.control.bells._sleepers)
        join(in_child(lambda: (mem.put("n", "child", 1), mem.flush())))
        sleeper.join(30.0)
        assert [change.key for change in found] == ["child"]


@pytest.mark.parametrize("committer", ["thread", "inline"])
def test_fork_with_an_open_store(committer: str, root: Path) -> None:
    script("fork_with_an_open_store", root, committer)
    with tiermem.open(root) as mem:
        assert mem.count("s") == 6


def test_fork_while_another_thread_writes(root: Path) -> None:
    # Coverage has a lock of its own, which stays locked in a child forked while another thread held it.
    script("fork_under_load", root, measured=False)


def test_fork_then_open(root: Path) -> None:
    script("fork_and_open", root)


def test_a_parent_that_was_killed_leaves_its_journal_though_its_child_lives(root: Path) -> None:
    code = "import sys; from tests import test_processes; test_processes.fork_and_kill_the_parent(sys.argv[1])"
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(root)], cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True
    )
    try:
        line = parent.stdout.readline()
        parent.wait(20)
        child = int(line.split()[0])
        with tiermem.open(root, config=QUIET) as mem:
            assert mem.get("n", "parent") == 1
            assert mem._store.slot == 0, "the slot of the dead parent is still held"
            assert eventually(lambda: mem.flush() or mem.get("n", "child")) == 2
        # Its pipe has no writer left, so the child has ended or is about to.
        assert eventually(lambda: not Path(f"/proc/{child}").exists() or state(child) == "Z")
    finally:
        parent.kill()
        parent.stdout.close()


def state(pid: int) -> str:
    """The state of a process, as its letter in /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_multiprocessing(method: str, root: Path) -> None:
    script("multiprocessing_children", root, method)


# ---------------------------------------------------------------------------------------------- dead and still


def test_the_writes_of_a_killed_process_reach_those_that_live(root: Path, peer: MakePeer) -> None:
    """Nobody opens the store, flushes or compares-and-sets: whoever lives sees to it."""
    a, b = peer(root, config=QUIET), peer(root, config=BRISK)
    b.put("n", "b", 1)
    a.put("n", "a", 2)
    a.kill()
    assert eventually(lambda: b.get("n", "a"), 10.0) == 2


def test_a_slot_and_a_journal_are_taken_over(root: Path, peer: MakePeer) -> None:
    a, b = peer(root, config=QUIET), peer(root, config=QUIET)
    assert (a.slot(), b.slot()) == (0, 1)
    a.put("n", "a", 1)
    a.kill()
    c = peer(root, config=QUIET)
    assert c.slot() == 0
    assert c.get("n", "a") == 1
    c.put("n", "c", 2)
    c.put("n", "a", 3)
    assert b.values("n").get("a") in (1, 3)
    b.flush()
    assert b.values("n") == c.values("n") == {"a": 3, "c": 2}
    c.kill()
    with tiermem.open(root) as mem:
        assert mem.get("n", "c") == 2
        assert len(list((root / "journals").glob("*.journal"))) == 1
        assert mem.check().ok


def test_hundreds_of_dead_clients_leave_nothing_behind(root: Path, peer: MakePeer) -> None:
    with tiermem.open(root, config=BRISK) as mem:
        for number in range(8):
            one = peer(root, config=BRISK)
            one.put("n", f"k{number}", number)
            one.kill()
        mem.flush()
        assert mem.count("n") == 8
        assert len(list((root / "journals").glob("*.journal"))) <= 2


def test_a_stopped_reader_stops_no_writer(root: Path, peer: MakePeer) -> None:
    a, b = peer(root, config=BRISK), peer(root, config=BRISK)
    a.put_many("n", [(f"k{i:04d}", i) for i in range(2000)])
    a.flush()
    b.begin("read_for", "n", "k0001", 6.0)
    time.sleep(0.3)
    for round_ in range(10):
        # At any instant, even inside a read transaction.
        b.signal(signal.SIGSTOP)
        a.put("n", f"during{round_}", round_)
        a.flush()
        assert a.get("n", f"during{round_}") == round_
        if round_ == 5:
            a.compact()
        b.signal(signal.SIGCONT)
        time.sleep(0.01)
    b.end()
    assert b.count("n") == 2010
    assert b.get("n", "during9") == 9


def test_a_waiting_process_that_is_stopped_or_killed_stops_no_writer(root: Path, peer: MakePeer) -> None:
    a, b, c = (peer(root, config=BRISK) for _ in range(3))
    for waiter in (b, c):
        waiter.begin("first_change", 3600.0)
    time.sleep(0.3)
    b.signal(signal.SIGSTOP)
    c.signal(signal.SIGKILL)
    a.put_many("n", [(f"k{i}", i) for i in range(100)])
    for number in range(50):
        a.put("n", f"l{number}", number, durable=True)
    b.signal(signal.SIGCONT)
    assert b.end().key == "k0"


# ------------------------------------------------------------------------------------------ read-only, handles


def test_a_reader_beside_a_writer_sees_what_is_only_journaled(root: Path, peer: MakePeer) -> None:
    a = peer(root, config=QUIET)
    a.put("n", "committed", 1, vector=V)
    a.flush()
    a.put("n", "journaled", 2, vector=V)
    a.delete("n", "committed")
    with tiermem.open(root, read_only=True) as mem:
        assert mem.get("n", "journaled") == 2
        assert mem.get("n", "committed") is None
        assert [record.key for record in mem.scan("n")] == ["journaled"]
        assert mem.count("n") == 1
        assert [hit.key for hit in mem.search_similar("n", V)] == ["journaled"]
        for write in (
            lambda: mem.put("n", "k", 1),
            lambda: mem.put("n", "k", 1, if_version=0),
            lambda: mem.put_many("n", [("k", 1)]),
            lambda: mem.append("n", 1),
            lambda: mem.delete("n", "journaled"),
            lambda: mem.delete_many("n", prefix=""),
            lambda: mem.update("n", "journaled", value=1),
            lambda: mem.touch("n", "journaled", ttl=1),
            mem.batch,
            lambda: mem.drop_namespace("n"),
            lambda: mem.create_namespace("m"),
            mem.compact,
            lambda: mem.cursor("c"),
            lambda: mem.check(repair=True),
        ):
            with pytest.raises(tiermem.ReadOnlyError):
                write()
        mem.flush()
        assert mem.check().ok
        assert mem.stats()
        list(mem.changes(after=0))
    a.flush()
    assert a.get("n", "journaled") == 2
    assert a.count("n") == 1


def test_a_reader_follows_a_writer(root: Path, peer: MakePeer) -> None:
    a = peer(root, config=BRISK)
    a.put("n", "k", 0, vector=V)
    a.flush()
    with tiermem.open(root, read_only=True) as mem:
        for round_ in range(10):
            assert mem.get("n", "k") == mem.get("n", "k") == round_
            assert mem.search_similar("n", V)[0].version == mem.get_record("n", "k").version
            a.put("n", "k", round_ + 1, vector=V)
            a.flush()
        a.delete("n", "k")
        a.flush()
        assert mem.get("n", "k") is None
        assert mem.count("n") == 0
        assert mem.search_similar("n", V) == []
        a.compact()
        a.put("n", "k", "moved")
        a.flush()
        assert mem.get("n", "k") == "moved"


def test_a_reader_beside_a_writer_whose_journal_wraps(root: Path, peer: MakePeer) -> None:
    a = peer(root, config=config(sync_interval=0.002, journal_bytes=2**16))
    a.put("n", "w-000000", 0, durable=True)
    b = peer(root, read_only=True)
    a.begin("write_and_read", "n", "w", 2.0)
    b.read_for("n", "w-000000", 2.0)
    count = a.end()
    a.flush()
    assert b.count("n") == count


def test_checking_while_another_process_writes_finds_nothing_wrong(root: Path, peer: MakePeer) -> None:
    a = peer(root, config=config(sync_interval=0.002, journal_bytes=2**16))
    b = peer(root, config=BRISK)
    a.begin("write_and_read", "n", "w", 2.0)
    assert b.check_for(2.0) == []
    a.end()


def test_a_store_that_another_process_makes_meanwhile_is_no_foreign_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tiermem.open(tmp_path / "made") as mem:
        mem.put("n", "k", 1)
    listdir = os.listdir

    def meanwhile(place: Path) -> list[str]:
        monkeypatch.undo()
        shutil.copytree(tmp_path / "made", place, dirs_exist_ok=True, ignore=NO_BELLS)
        return listdir(place)

    monkeypatch.setattr(os, "listdir", meanwhile)
    with tiermem.open(tmp_path / "store") as mem:
        assert mem.get("n", "k") == 1


def test_several_processes_make_one_store(root: Path, tmp_path: Path, peer: MakePeer) -> None:
    peers = [peer(None) for _ in range(4)]
    for round_ in range(8):
        place = tmp_path / f"new{round_}"
        moment = time.monotonic() + 0.05
        for number, one in enumerate(peers):
            one.begin("open_at", place, moment, {"config": BRISK})
            moment += 0.002 * round_ * (number == 0)
        for one in peers:
            one.end()
        for number, one in enumerate(peers):
            one.put("n", f"k{number}", number)
        peers[0].flush()
        for one in peers:
            assert one.values("n") == {f"k{number}": number for number in range(4)}


def test_two_handles_in_one_process_share_a_store(root: Path) -> None:
    first = tiermem.open(root, config=QUIET)
    second = tiermem.open(root)
    third = tiermem.open(str(root) + "/.", config=QUIET)
    first.put("n", "k", 1)
    assert second.get("n", "k") == third.get("n", "k") == 1
    first.close()
    first.close()
    with pytest.raises(tiermem.ClosedError):
        first.get("n", "k")
    assert second.get("n", "k") == 1
    second.put("n", "l", 2)
    third.close()
    assert second.count("n") == 2
    with pytest.raises(tiermem.ConfigMismatch):
        tiermem.open(root, config=config(sync_interval=1.0))
    second.close()
    with pytest.raises(tiermem.ClosedError):
        second.put("n", "k", 1)
    with tiermem.open(root, config=BRISK) as mem:
        assert mem.count("n") == 2


# ---------------------------------------------------------------------------------------------------- threads


def run_threads(*bodies: Callable[[], Any]) -> list[BaseException]:
    """Run each body in a thread of its own; the errors they ended in."""
    failures: list[BaseException] = []

    def guarded(body: Callable[[], Any]) -> None:
        try:
            body()
        except BaseException as exc:  # noqa: BLE001 - whatever it is, the caller looks at it
            failures.append(exc)

    threads = [threading.Thread(target=guarded, args=(body,), daemon=True) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread hangs"
    return failures


@pytest.mark.parametrize("committer", ["thread", "inline"])
def test_sixteen_threads_with_keys_of_their_own(committer: str, root: Path) -> None:
    """Each thread owns some keys and knows what they hold; all read everything."""
    settings = config(sync_interval=0.005, journal_bytes=2**17, committer=committer)
    finals: list[dict[str, int]] = [{} for _ in range(THREADS)]
    appended = [0] * THREADS
    end = time.monotonic() + 2.0
    with tiermem.open(root, config=settings) as mem:
        mem.put("n", "vector", 0, vector=V)

        def work(which: int) -> None:
            rng = random.Random(which)
            mine = finals[which]
            number = 0
            while time.monotonic() < end:
                number += 1
                key = f"{which}-{rng.randrange(30):02d}"
                kind = rng.randrange(12)
                if kind < 4:
                    mem.put("n", key, number, vector=[1.0, rng.random(), 0.0], metadata={"t": which})
                    mine[key] = number
                elif kind == 4:
                    assert mem.delete("n", key) == (key in mine)
                    mine.pop(key, None)
                elif kind == 5:
                    with mem.batch() as b:
                        b.put("n", key, number)
                        b.put("m", str(which), number)
                    mine[key] = number
                elif kind == 6:
                    hits = mem.search_similar("n", V, k=5)
                    assert 1 <= len(hits) <= 5
                elif kind == 7:
                    found = {r.key: r.value for r in mem.scan("n", f"{which}-")}
                    assert found == mine
                elif kind == 8:
                    mem.append("s", [which, appended[which]])
                    appended[which] += 1
                elif kind == 9:
                    record = mem.get_record("n", key)
                    assert (None if record is None else record.value) == mine.get(key)
                elif kind == 10 and number % 10 == 0:
                    record = mem.get_record("n", key)
                    mem.put("n", key, number, if_version=record.version if record else 0)
                    mine[key] = number
                assert mem.get("n", key) == mine.get(key)

        failures = run_threads(*[lambda which=which: work(which) for which in range(THREADS)])
        assert not failures, failures
        wanted = {key: value for mine in finals for key, value in mine.items()}
        wanted["vector"] = 0
        for _ in range(2):
            assert {r.key: r.value for r in mem.scan("n")} == wanted
            assert mem.count("n") == len(wanted)
            assert mem.count("s") == sum(appended)
            hits = mem.search_similar("n", V, k=1000)
            assert sorted(hit.key for hit in hits) == sorted(r.key for r in mem.scan("n") if r.vector is not None)
            mem.flush()
        assert mem.check().ok, str(mem.check())
    with tiermem.open(root) as mem:
        assert {r.key: r.value for r in mem.scan("n")} == wanted
        for which in range(THREADS):
            mine = [r.value[1] for r in mem.scan("s") if r.value[0] == which]
            assert mine == list(range(appended[which]))


@pytest.mark.parametrize("committer", ["thread", "inline"])
def test_sixteen_threads_on_the_same_keys(committer: str, root: Path) -> None:
    """No reader goes back in time, a batch is seen whole, and what stands is the last that some thread has written."""
    keys = ["k0", "k1", "k2", "loose"]
    last: list[dict[str, list[int]]] = [{} for _ in range(THREADS)]
    batches, deleted, refused = [0] * THREADS, [0] * THREADS, [0] * THREADS
    end = time.monotonic() + 2.0
    with tiermem.open(root, config=config(sync_interval=0.005, journal_bytes=2**17, committer=committer)) as mem:
        for key in keys:
            mem.put("n", key, [-1, 0], vector=V)
        mem.put_many("pairs", [("left", [-1, 0]), ("right", [-1, 0])])

        def work(which: int) -> None:
            rng, number = random.Random(which), 0
            versions: dict[str, int] = {}
            seen: dict[tuple[str, int], int] = {}

            def look(record: Record) -> None:
                writer, count = record.value
                assert versions.get(record.key, 0) <= record.version
                assert seen.get((record.key, writer), 0) <= count
                versions[record.key], seen[record.key, writer] = record.version, count

            while time.monotonic() < end:
                number += 1
                key, value = rng.choice(keys), [which, number]
                kind = rng.randrange(8)
                if kind == 0:
                    mem.put("n", key, value, vector=[1.0, rng.random(), 0.0])
                    last[which][key] = value
                elif kind == 1:
                    deleted[which] += mem.delete("n", "loose")
                    last[which].pop("loose", None)
                elif kind == 2:
                    with mem.batch() as b:
                        b.put("pairs", "left", value)
                        b.put("pairs", "right", value)
                    batches[which] = number
                elif kind == 3 and number % 4 == 0:
                    record = mem.get_record("n", key)
                    try:
                        mem.put("n", key, value, vector=V, if_version=record.version if record else 0)
                        last[which][key] = value
                    except VersionConflict:
                        refused[which] += 1
                elif kind == 4:
                    hits = mem.search_similar("n", V, k=4)
                    assert {"k0", "k1", "k2"} <= {hit.key for hit in hits} <= set(keys)
                elif kind == 5:
                    for record in mem.scan("n"):
                        look(record)
                elif kind == 6:
                    pair = [record.value for record in mem.scan("pairs")]
                    assert pair == pair[:1] * 2, "half a batch"
                elif (record := mem.get_record("n", key)) is not None:
                    look(record)

        failures = run_threads(*[lambda which=which: work(which) for which in range(THREADS)])
        assert not failures, "".join(traceback.format_exception(failures[0]))
        assert min(batches) > 0 < sum(deleted)
        assert mem.check().ok, str(mem.check())
        stood = {record.key: record.value for name in ("n", "pairs") for record in mem.scan(name)}
        assert stood.keys() - {"loose"} == {"k0", "k1", "k2", "left", "right"}
        for key, (writer, number) in stood.items():
            known = batches[writer] if key in ("left", "right") else last[writer][key][1]
            assert number == known, f"{key} is not the last of thread {writer}"
    with tiermem.open(root) as mem:
        assert {record.key: record.value for name in ("n", "pairs") for record in mem.scan(name)} == stood


@pytest.mark.parametrize("round_", range(3))
def test_closing_while_threads_use_the_store(round_: int, root: Path) -> None:
    """Everybody ends with ClosedError, whatever they were doing, and what was acknowledged is there."""
    mem = tiermem.open(root, config=config(sync_interval=0.002, journal_bytes=2**17))
    mem.put_many("n", [(f"k{i:04d}", i) for i in range(500)])
    mem.put("n", "vector", 1, vector=V)
    ns = mem.namespace("n")
    acknowledged = [0, 0]

    def forever(body: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            while True:
                body()

        return run

    def put(which: int) -> None:
        mem.put("w", f"{which}-{acknowledged[which] + 1:06d}", 1, durable=which == 1)
        acknowledged[which] += 1

    def close() -> None:
        time.sleep(0.05 + round_ * 0.02)
        mem.close()

    readers: list[Callable[[], Any]] = [
        lambda: mem.get("n", "k0001"),
        lambda: ns["k0002"],
        lambda: list(mem.scan("n")),
        lambda: mem.search_similar("n", V),
        lambda: mem.count("n"),
        lambda: list(mem.changes(after=0, wait=0.01)),
    ]
    others = map(forever, [*readers, *readers, lambda: put(0), lambda: put(1), mem.stats])
    failures = run_threads(*others, close)
    odd = [failure for failure in failures if not isinstance(failure, tiermem.ClosedError)]
    assert not odd, "".join(traceback.format_exception(odd[0]))
    assert len(failures) == THREADS - 1
    with tiermem.open(root) as mem:
        for which in (0, 1):
            found = sum(1 for _ in mem.scan("w", f"{which}-"))
            assert acknowledged[which] <= found <= acknowledged[which] + 1


# ------------------------------------------------------------------------------------------------------- time


def test_a_store_keeps_its_time_domain(root: Path, peer: MakePeer) -> None:
    a = peer(root, now=100.0)
    a.put("n", "k", 1)
    with pytest.raises(tiermem.TimeDomainMismatch):
        tiermem.open(root)
    with pytest.raises(tiermem.TimeDomainMismatch):
        tiermem.open(root, read_only=True)
    a.leave()
    with pytest.raises(tiermem.TimeDomainMismatch):
        tiermem.open(root)
    with tiermem.open(root, clock=SimulatedClock(5.0)) as mem:
        assert mem.get_record("n", "k").at == 100.0
    with tiermem.open(root, config=tiermem.Config(time_domain="real")) as mem:
        assert mem.get("n", "k") == 1
    with pytest.raises(tiermem.TimeDomainMismatch):
        tiermem.open(root, clock=SimulatedClock(5.0))


def test_sweeps_go_no_further_than_the_slowest_live_client(root: Path, peer: MakePeer) -> None:
    slow, fast = peer(root, now=0.0, config=QUIET), peer(root, now=0.0, config=QUIET)
    slow.put("n", "k", 1, ttl=10.0)
    slow.put("n", "l", 2, ttl=100.0)
    slow.flush()
    fast.set_clock(50.0)
    fast.put("n", "other", 1, durable=True)
    assert fast.get("n", "k") is None
    assert fast.count("n") == 2
    fast.upkeep()
    fast.compact()
    # For the slow one it is still there.
    assert slow.get("n", "k") == 1
    assert slow.get_record("n", "k").value == 1
    assert slow.count("n") == 3
    slow.set_clock(20.0)
    slow.put("n", "tick", 1, durable=True)
    fast.upkeep()
    expired = [change.key for change in fast.changes(after=0) if change.op == "expire"]
    assert expired == ["k"]
    assert slow.get("n", "k") is None
    assert slow.get("n", "l") == 2
    # Once the slow one is dead, it holds nothing back.
    slow.kill()
    fast.set_clock(200.0)
    fast.put("n", "tick", 2, durable=True)
    fast.upkeep()
    expired = [change.key for change in fast.changes(after=0) if change.op == "expire"]
    assert expired == ["k", "l"]


def test_an_idle_process_does_not_keep_what_has_expired(root: Path, peer: MakePeer) -> None:
    """Its clock goes on though it calls nothing."""
    a, b = peer(root, config=BRISK), peer(root, config=BRISK)
    assert b.get("n", "k") is None
    a.put("n", "k", 1, ttl=0.05)
    a.flush()

    def swept() -> bool:
        a.put("n", "tick", 1)
        return any(change.op == "expire" for change in a.changes(after=0))

    assert eventually(swept, 10.0)


def test_a_hot_record_expires_by_the_clock_of_each_process(root: Path, peer: MakePeer) -> None:
    a, b = peer(root, now=0.0), peer(root, now=0.0)
    a.put("n", "k", 1, ttl=10.0)
    a.flush()
    assert [b.get("n", "k") for _ in range(3)] == [1, 1, 1]
    a.set_clock(10.0)
    assert a.get("n", "k") is None
    assert a.contains("n", "k") is False
    assert b.get("n", "k") == 1
    b.set_clock(9.999)
    assert b.get("n", "k") == 1
    b.set_clock(10.0)
    assert b.get("n", "k") is None


def test_a_commit_whose_maker_was_killed_before_telling_is_announced(root: Path) -> None:
    with tiermem.open(root) as mem:
        mem.put("n", "first", 1, durable=True)
        assert mem.get("n", "k") is mem.get("n", "k") is None
        code = """
            import os, signal, sys, tiermem
            mem = tiermem.open(sys.argv[1])
            mem._store.control.publish = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
            mem.put("n", "k", "acknowledged")
            mem.flush()
        """
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(root)], check=False)
        assert done.returncode == -signal.SIGKILL
        assert eventually(lambda: mem.get("n", "k") == "acknowledged")


def test_those_who_wait_for_the_write_lock_are_committed_together(root: Path) -> None:
    stop = threading.Event()
    with tiermem.open(root) as mem:
        mem.put("n", "first", 1, durable=True)
        cold = mem._store.cold

        def hold() -> None:
            while not stop.is_set():
                with cold._env.begin(write=True):
                    time.sleep(0.01)
                time.sleep(0.001)

        before = mem.stats().writes.commits
        holder = threading.Thread(target=hold)
        holder.start()
        try:
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda n: [mem.put("n", f"{n}-{i}", i, durable=True) for i in range(20)], range(8)))
        finally:
            stop.set()
            holder.join()
        # Whoever waits long has all the more to commit: not one put after the other.
        assert mem.stats().writes.commits - before < 100
        assert mem.count("n") == 161


def test_a_fork_while_another_process_compacts(root: Path, peer: MakePeer, monkeypatch: pytest.MonkeyPatch) -> None:
    other = peer(root, config=QUIET)
    other.put("n", "k", 1)
    other.flush()
    resumed = ColdEnv.resume
    with tiermem.open(root, config=QUIET) as mem:
        env = mem._store.cold

        def resume(self: ColdEnv) -> None:
            # Nobody here has the environment open now: what is left is removed.
            other.compact()
            assert not self.path.exists()
            resumed(self)

        monkeypatch.setattr(ColdEnv, "resume", resume)
        reading = threading.Thread(target=lambda: [mem.get_record("n", "k") for _ in range(2_000)])
        reading.start()
        join(in_child(lambda: None))
        reading.join()
        assert mem.get("n", "k") == 1
        mem.put("n", "l", 2, durable=True)
        with env.read() as snapshot:
            assert snapshot.env is mem._store.cold, "who had hold of the old one reads in the new one"
        assert other.get("n", "l") == 2
        # The next fork finds nothing in its way.
        monkeypatch.undo()
        join(in_child(lambda: mem.get("n", "k")))
