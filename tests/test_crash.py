"""Processes that are killed, journals that are damaged: what was acknowledged is there, or an error says so."""

from __future__ import annotations

import math
import os
import random
import shutil
import struct
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from xxhash import xxh3_64_intdigest

import tiermem
from tests.workers import NO_BELLS, QUIET, Loop, Peer, config
from tiermem.engine import generations
from tiermem.testing.history import Legal, contents, perform, steps
from tiermem.tiers import journal as journals

HEADER = 64
"""Bytes of a journal's header that its checksum covers."""
BOOT = slice(48, 64)
HEAD = slice(128, 136)


# ------------------------------------------------------------------------------------------------ kill -9

SETTINGS = {
    "defaults": tiermem.Config(),
    "eager": config(sync_interval=0.001, journal_bytes=2**16),
    "small journal": config(sync_interval=0.02, journal_bytes=2**17, log_retention=10),
    "never in time": config(sync_interval=60.0, journal_bytes=2**16),
    "inline": config(sync_interval=0.002, journal_bytes=2**17, committer="inline"),
    "helper": config(sync_interval=0.002, journal_bytes=2**17, committer="helper"),
}


def loop(root: Path, settings: tiermem.Config, seed: int) -> Loop:
    """A child that performs the steps of a seed until it is killed; it acknowledges 0 once the store is open."""

    def body(say: Callable[[int], None]) -> None:
        mem = tiermem.open(root, config=settings)
        say(0)
        for number, step in enumerate(steps(seed), 1):
            perform(mem, step)
            say(number)

    return Loop(body)


@pytest.mark.parametrize("name", SETTINGS)
def test_what_was_acknowledged_survives_kill(name: str, tmp_path: Path) -> None:
    settings = SETTINGS[name]
    rng = random.Random(f"kill {name}")
    legal = Legal()
    performed = 0
    for round_ in range(10):
        seed = rng.randrange(2**32)
        child = loop(tmp_path / "store", settings, seed)
        while not child.said and child.listen(0.005):
            pass
        # One in five dies while it opens or right after it.
        child.listen(rng.choice((0.0, 0.05, 0.1, 0.3, 0.5)) * rng.random())
        last = max(child.kill(), 0)
        history = steps(seed)
        for step in islice(history, last):
            legal.acknowledged(step)
        legal.doubtful(next(history))
        with tiermem.open(tmp_path / "store", config=settings) as mem:
            assert legal.seen(contents(mem)) == "", f"round {round_}, {last} acknowledged"
            report = mem.check()
            assert report.ok, str(report)
        performed += last
    assert performed


@pytest.mark.parametrize("first", ["eager", "never in time"])
def test_what_two_processes_acknowledged_survives_when_both_are_killed(first: str, tmp_path: Path) -> None:
    """Each writes to namespaces of its own, so each has a model of its own."""
    settings = (SETTINGS[first], SETTINGS["small journal"])
    rng = random.Random(f"two {first}")
    known = [0, 0]
    for _ in range(4):
        children = []
        for which in (0, 1):

            def body(say: Callable[[int], None], which: int = which, start: int = known[which]) -> None:
                mem = tiermem.open(tmp_path / "store", config=settings[which])
                say(start)
                number = start
                while True:
                    number += 1
                    with mem.batch() as b:
                        b.put(f"own/{which}", f"{number:06d}", number)
                        b.put(f"own/{which}", "last", number)
                        b.put("both", f"{which}-{number:06d}", number)
                    mem.put("both", "contended", [which, number])
                    say(number)

            children.append(Loop(body))
        for child in children:
            while not child.said and child.listen(0.005):
                pass
        children[rng.randrange(2)].listen(0.15 * rng.random())
        last = [child.kill() for child in children]
        began = list(known)
        with tiermem.open(tmp_path / "store") as mem:
            for which in (0, 1):
                numbers = [record.value for record in mem.scan(f"own/{which}") if record.key != "last"]
                assert numbers == list(range(1, len(numbers) + 1))
                assert last[which] <= len(numbers) <= last[which] + 1
                if numbers:
                    assert mem.get(f"own/{which}", "last") == len(numbers)
                assert mem.count("both", None) >= len(numbers)
                assert mem.get("both", f"{which}-{last[which]:06d}", last[which]) == last[which]
                known[which] = len(numbers)
            if any(last):
                which, number = mem.get("both", "contended")
                # Who was killed between a batch and this put goes on from the batch, and may come no further.
                assert last[which] - (last[which] == began[which]) <= number <= last[which] + 1
            assert mem.check().ok, str(mem.check())


def test_a_journaled_write_that_has_expired_still_replaces_what_was_there(
    tmp_path: Path, peer: Callable[..., Peer]
) -> None:
    a = peer(tmp_path / "s", config=QUIET)
    a.put("n", "k", "old", durable=True)
    a.put("n", "k", "new", ttl=0.01)
    a.kill()
    time.sleep(0.02)
    with tiermem.open(tmp_path / "s") as mem:
        assert mem.get("n", "k") is None
        assert mem.count("n") == 0
        assert mem.check().ok


# ----------------------------------------------------------------------------- deleted records stay deleted


@pytest.mark.parametrize("how", ["nothing", "upkeep", "compact", "drop another", "both killed"])
@pytest.mark.parametrize("order", ["put in the lower slot", "put in the higher slot"])
def test_a_deleted_record_does_not_come_back_from_an_older_journal(
    how: str, order: str, tmp_path: Path, peer: Callable[..., Peer]
) -> None:
    root = tmp_path / "s"
    a, b = peer(root, config=QUIET), peer(root, config=QUIET)
    if order == "put in the higher slot":
        a, b = b, a
    assert (a.slot() < b.slot()) == (order == "put in the lower slot")
    a.put("n", "other", 1)
    b.put("other", "x", 1)
    a.put("n", "k", "first")
    a.flush()
    b.flush()
    a.put("n", "k", "older")
    assert b.delete("n", "k", durable=how != "both killed") is True
    if how == "upkeep":
        b.upkeep()
    elif how == "compact":
        b.compact()
    elif how == "drop another":
        b.drop_namespace("other")
    a.kill()
    if how != "nothing":
        b.kill()
    with tiermem.open(root) as mem:
        assert mem.get("n", "k") is None
        assert mem.get_record("n", "k") is None
        assert [record.key for record in mem.scan("n")] == ["other"]
        assert mem.count("n") == 1
        assert mem.check().ok, str(mem.check())


def test_a_dropped_namespace_does_not_come_back_from_an_older_journal(
    tmp_path: Path, peer: Callable[..., Peer]
) -> None:
    root = tmp_path / "s"
    a, b = peer(root, config=QUIET), peer(root, config=QUIET)
    a.put("n", "k", "first", durable=True)
    a.put("n", "k", "older")
    a.put("n", "other", "older")
    assert b.drop_namespace("n") is True
    a.kill()
    b.kill()
    with tiermem.open(root) as mem:
        assert mem.namespaces() == []
        assert mem.count("n") == 0
        assert mem.get("n", "k") is None


def test_a_put_acknowledged_after_a_drop_stays(tmp_path: Path, peer: Callable[..., Peer]) -> None:
    root = tmp_path / "s"
    a, b = peer(root, config=QUIET), peer(root, config=QUIET)
    a.put("n", "k", "first", durable=True)
    b.drop_namespace("n")
    a.put("n", "k", "second")
    a.kill()
    b.kill()
    with tiermem.open(root) as mem:
        assert mem.get("n", "k") == "second"
        assert mem.count("n") == 1


# ------------------------------------------------------------------------ killed in the middle of other work


def test_killed_while_compacting(tmp_path: Path) -> None:
    rng = random.Random("compact")
    root = tmp_path / "s"
    known = 0
    for _ in range(15):

        def body(say: Callable[[int], None], start: int = known) -> None:
            mem = tiermem.open(root, config=config(sync_interval=0.002))
            say(start)
            number = start
            while True:
                for _ in range(5):
                    number += 1
                    mem.put("n", f"{number:06d}", [number, "x" * 500])
                    say(number)
                mem.compact()

        child = Loop(body)
        while not child.said and child.listen(0.005):
            pass
        child.listen(0.08 * rng.random())
        last = child.kill()
        with tiermem.open(root) as mem:
            numbers = [record.value[0] for record in mem.scan("n")]
            assert numbers == list(range(1, len(numbers) + 1))
            assert last <= len(numbers) <= last + 1
            assert mem.check().ok, str(mem.check())
            known = len(numbers)
    assert known > 20
    assert len(list(root.glob("gen-*"))) == 1


def test_killed_while_backing_up(tmp_path: Path) -> None:
    rng = random.Random("backup")
    root = tmp_path / "s"
    with tiermem.open(root) as mem:
        mem.put_many("n", [(f"{number:04d}", [number, "x" * 300]) for number in range(500)])
    finished = torn = 0
    for round_ in range(10):
        targets = tmp_path / f"copies-{round_}"

        def body(say: Callable[[int], None], targets: Path = targets) -> None:
            mem = tiermem.open(root)
            number = 0
            while True:
                mem.backup(targets / str(number))
                say(number)
                number += 1

        child = Loop(body)
        while not child.said and child.listen(0.002):
            pass
        child.listen(0.05 * rng.random())
        last = child.kill()
        for copy in sorted(targets.iterdir(), key=lambda path: int(path.name)):
            if int(copy.name) <= last:
                with tiermem.open(copy) as mem:
                    assert mem.count("n") == 500
                finished += 1
            else:
                torn += 1
                if not any(copy.iterdir()):
                    # Not yet begun: an empty directory is any new store's place.
                    continue
                try:
                    mem = tiermem.open(copy)
                except tiermem.TiermemError:
                    continue
                with mem:
                    assert mem.count("n") == 500, "half a backup was opened as if it were a whole store"
        shutil.rmtree(targets)
        with tiermem.open(root) as mem:
            assert mem.count("n") == 500
            assert mem.check().ok
    assert finished


def test_half_a_backup_is_not_taken_for_a_new_store(tmp_path: Path) -> None:
    """As it lies there when the process dies between the copy and the publication."""
    with tiermem.open(tmp_path / "s") as mem:
        mem.put("n", "k", 1)
        mem.backup(tmp_path / "copy")
    (tmp_path / "copy" / "CURRENT").unlink()
    try:
        mem = tiermem.open(tmp_path / "copy")
    except tiermem.TiermemError:
        return
    with mem:
        assert mem.get("n", "k") == 1


def test_killed_while_a_store_is_made(tmp_path: Path) -> None:
    rng = random.Random("creation")
    early = 0
    for round_ in range(25):
        root = tmp_path / f"s{round_}"

        def body(say: Callable[[int], None], root: Path = root) -> None:
            mem = tiermem.open(root)
            say(0)
            mem.put("n", "k", 1)
            say(1)
            time.sleep(60)

        child = Loop(body)
        child.listen(0.04 * rng.random())
        last = child.kill()
        early += last < 0
        with tiermem.open(root) as mem:
            assert mem.get("n", "k") == 1 or last < 1
            mem.put("n", "k", 2)
        with tiermem.open(root, verify=True) as mem:
            assert mem.get("n", "k") == 2
            assert mem.check().ok
    assert early


def test_killed_while_a_journal_is_put_into_service(tmp_path: Path) -> None:
    """The first put of a process makes its journal."""
    rng = random.Random("service")
    root = tmp_path / "s"
    tiermem.open(root).close()
    for round_ in range(40):

        def body(say: Callable[[int], None], round_: int = round_) -> None:
            mem = tiermem.open(root, config=config(journal_bytes=2**16 << round_ % 2))
            say(0)
            mem.put("n", f"{round_:02d}", round_)
            say(1)
            time.sleep(60)

        child = Loop(body)
        while not child.said and child.listen(0.0005):
            pass
        child.listen(0.012 * rng.random())
        last = child.kill()
        if round_ % 4 == 3:
            with tiermem.open(root) as mem:
                assert mem.get("n", f"{round_:02d}") == round_ or last < 1
                assert mem.check().ok


def test_killed_while_replaying(tmp_path: Path, peer: Callable[..., Peer]) -> None:
    """A replay that is cut short is begun again, and nothing is applied twice."""
    rng = random.Random("replay")
    root = tmp_path / "s"
    a = peer(root, config=QUIET)
    a.put_many("n", [(f"{number:05d}", number) for number in range(5000)])
    a.kill()
    for _ in range(10):

        def body(say: Callable[[int], None]) -> None:
            tiermem.open(root)
            say(0)
            time.sleep(60)

        child = Loop(body)
        child.listen(0.06 * rng.random())
        child.kill()
    with tiermem.open(root) as mem:
        assert [record.value for record in mem.scan("n")] == list(range(5000))
        # Sequences: one change for each put, whoever applied it.
        assert mem.count("n") == 5000
        assert [change.key for change in mem.changes(after=0)] == [f"{number:05d}" for number in range(5000)]
        assert mem.check().ok


# --------------------------------------------------------------------------------------- damaged journals


@pytest.fixture
def crashed(tmp_path: Path, peer: Callable[..., Peer]) -> Path:
    """A store whose only client died with ten committed and ten journaled records."""
    root = tmp_path / "crashed"
    a = peer(root, config=config(sync_interval=60.0, journal_bytes=2**16))
    for number in range(10):
        a.put("n", f"{number:02d}", [number, "committed"])
    a.flush()
    for number in range(10, 20):
        a.put("n", f"{number:02d}", [number, "journaled" * number])
    a.put("n", "00", ["overwritten"])
    a.delete("n", "01")
    a.kill()
    return root


def wanted() -> dict[str, Any]:
    """What the crashed store holds."""
    found: dict[str, Any] = {f"{number:02d}": [number, "committed"] for number in range(2, 10)}
    found.update({f"{number:02d}": [number, "journaled" * number] for number in range(10, 20)})
    return {"00": ["overwritten"], **found}


def the_journal(root: Path) -> Path:
    """Its one journal."""
    (found,) = (root / "journals").iterdir()
    return found


def alter(path: Path, change: Callable[[bytearray], None]) -> None:
    """Change the bytes of a file."""
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def seal_header(data: bytearray) -> None:
    """Make the checksum of a journal's header right."""
    struct.pack_into("<Q", data, HEADER, xxh3_64_intdigest(bytes(data[:HEADER])))


def reboot(data: bytearray) -> None:
    """As if the machine had been booted since the journal was written."""
    data[BOOT] = bytes(b ^ 0x5A for b in data[BOOT])
    seal_header(data)


def frame_starts(data: bytes, start: int = 0) -> list[int]:
    """Positions of the frames of a journal that has not wrapped."""
    head = int.from_bytes(data[HEAD], "little")
    found = []
    while start < head:
        found.append(start)
        _, size, _ = struct.unpack_from("<QII", data, journals.HEADER_BYTES + start)
        start += (size + journals.FRAME_BYTES + 7) & ~7
    return found


def held(root: Path) -> dict[str, Any]:
    """All values of a store, asked for in two ways."""
    with tiermem.open(root) as mem:
        found = {record.key: record.value for record in mem.scan("n")}
        assert {key: mem.get("n", key) for key in found} == found
        return found


def test_the_crashed_store_is_whole(crashed: Path) -> None:
    assert held(crashed) == wanted()
    assert held(crashed) == wanted()


def test_the_journal_of_another_store_is_refused(tmp_path: Path, crashed: Path) -> None:
    with tiermem.open(tmp_path / "other") as mem:
        mem.put("n", "mine", 1)
    shutil.copy(the_journal(crashed), tmp_path / "other" / "journals" / "007.journal")
    with pytest.raises(tiermem.IncompatibleFormatError):
        tiermem.open(tmp_path / "other")
    with pytest.raises(tiermem.IncompatibleFormatError):
        tiermem.open(tmp_path / "other", read_only=True)
    (tmp_path / "other" / "journals" / "007.journal").unlink()
    assert held(tmp_path / "other") == {"mine": 1}


def test_the_journal_of_another_store_in_place_of_its_own_is_refused(tmp_path: Path, crashed: Path) -> None:
    with tiermem.open(tmp_path / "other") as mem:
        mem.put("n", "mine", 1)
    shutil.copy(the_journal(crashed), the_journal(tmp_path / "other"))
    with pytest.raises(tiermem.IncompatibleFormatError):
        tiermem.open(tmp_path / "other")


def test_a_store_does_not_replay_the_journal_of_its_backup_or_the_reverse(tmp_path: Path, crashed: Path) -> None:
    lost = the_journal(crashed)
    shutil.copytree(crashed, tmp_path / "again", ignore=NO_BELLS)
    with tiermem.open(crashed) as mem:
        mem.backup(tmp_path / "copy")
    assert held(tmp_path / "copy") == wanted()
    shutil.copy(the_journal(tmp_path / "again"), tmp_path / "copy" / "journals" / lost.name)
    with pytest.raises(tiermem.IncompatibleFormatError):
        tiermem.open(tmp_path / "copy")


@pytest.mark.parametrize("size", [0, 1, 63, 72, 135, 4095, 4096, 8191, 8192, 12288, 2**16, 2**16 + 4095])
def test_a_truncated_journal_is_an_error(size: int, crashed: Path) -> None:
    path = the_journal(crashed)
    assert path.stat().st_size == 2**16 + 4096
    os.truncate(path, size)
    with pytest.raises(tiermem.CorruptionError):
        tiermem.open(crashed)
    with pytest.raises(tiermem.CorruptionError):
        tiermem.open(crashed, read_only=True)


def test_a_flipped_bit_is_an_error_or_changes_nothing(tmp_path: Path, crashed: Path) -> None:
    rng = random.Random("flips")
    name = the_journal(crashed).relative_to(crashed)
    pristine = (crashed / name).read_bytes()
    head = int.from_bytes(pristine[HEAD], "little")
    used = journals.HEADER_BYTES + head
    places = [rng.randrange(HEADER + 8) for _ in range(20)]
    places += [rng.randrange(HEAD.start, HEAD.stop) for _ in range(12)]
    places += [rng.randrange(journals.HEADER_BYTES, used) for _ in range(60)]
    places += [rng.randrange(HEADER + 8, len(pristine)) for _ in range(10)]
    wrong = []
    detected = 0
    for number, place in enumerate(places):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(crashed, copy, ignore=NO_BELLS)
        bit = 1 << rng.randrange(8)
        alter(copy / name, lambda data, place=place, bit=bit: data.__setitem__(place, data[place] ^ bit))
        try:
            if held(copy) != wanted():
                wrong.append((place, bit))
        except tiermem.CorruptionError:
            detected += 1
        shutil.rmtree(copy)
    assert detected > 20
    assert not wrong, f"(byte, bit) of flips that lost something without a word: {wrong}"


def test_random_bytes_in_place_of_a_journal_are_an_error(tmp_path: Path, crashed: Path) -> None:
    rng = random.Random("noise")
    path = the_journal(crashed)
    for size in (4096, 8192, 2**16 + 4096):
        path.write_bytes(rng.randbytes(size))
        with pytest.raises(tiermem.CorruptionError):
            tiermem.open(crashed)


def test_after_a_power_cut_a_torn_tail_is_tolerated(crashed: Path) -> None:
    """The put and the delete behind it are lost, as a power cut may; nothing before them is."""
    data = the_journal(crashed).read_bytes()
    torn = frame_starts(data)[-2]

    def tear(data: bytearray) -> None:
        reboot(data)
        data[journals.HEADER_BYTES + torn + 20] ^= 0xFF

    alter(the_journal(crashed), tear)
    rest = {**wanted(), "00": [0, "committed"], "01": [1, "committed"]}
    with tiermem.open(crashed, read_only=True) as mem:
        assert {record.key: record.value for record in mem.scan("n")} == rest
    assert held(crashed) == rest
    with tiermem.open(crashed) as mem:
        mem.put("n", "01", "new")
        assert mem.check().ok, str(mem.check())
    assert held(crashed) == {**rest, "01": "new"}


def test_without_a_power_cut_the_same_tear_is_an_error(crashed: Path) -> None:
    torn = frame_starts(the_journal(crashed).read_bytes())[-2]
    alter(
        the_journal(crashed),
        lambda data: data.__setitem__(journals.HEADER_BYTES + torn + 20, data[journals.HEADER_BYTES + torn + 20] ^ 255),
    )
    with pytest.raises(tiermem.CorruptionError):
        tiermem.open(crashed)


@pytest.mark.parametrize("head", [0, 8, 2**15, 2**40])
def test_after_a_power_cut_a_head_that_never_reached_the_disk_is_tolerated(head: int, crashed: Path) -> None:
    def forget(data: bytearray) -> None:
        reboot(data)
        data[HEAD] = head.to_bytes(8, "little")

    alter(the_journal(crashed), forget)
    found = held(crashed)
    committed = {f"{number:02d}": [number, "committed"] for number in range(10)}
    assert all(found[key] in (value, wanted().get(key)) for key, value in committed.items() if key in found)
    assert set(committed) - {"01"} <= set(found) <= set(committed) | set(wanted())
    with tiermem.open(crashed) as mem:
        mem.put("n", "again", 1)
        assert mem.check().ok
    assert held(crashed)["again"] == 1


# ---------------------------------------------------------------------------------------------- durability


def power_cut(root: Path, copy: Path) -> None:
    """Copy a store as a power cut may leave it: no frame of a journal has reached the disk."""
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns("*.bell", "lock.mdb"))

    def lose(data: bytearray) -> None:
        reboot(data)
        data[journals.HEADER_BYTES :] = bytes(len(data) - journals.HEADER_BYTES)

    for path in (copy / "journals").glob("*.journal"):
        alter(path, lose)


DURABLE = {
    "put": lambda a: a.put("n", "k", 1, durable=True),
    "put_many": lambda a: a.put_many("n", [("k", 1)], durable=True),
    "batch": lambda a: a.batch([("put", "n", "k", 1), ("put", "m", "k", 1)], True),
    "compare-and-set": lambda a: a.put("n", "k", 1, if_version=0),
    "guard": lambda a: a.put("n", "k", 1, guard=tiermem.Guard("n", "other", 0)),
    "flush": lambda a: (a.put("n", "k", 1), a.flush()),
    "larger than the journal": lambda a: a.put("n", "k", 1, metadata={"x": "y" * 700_000}),
    "another's flush": None,
}


@pytest.mark.parametrize("how", DURABLE)
def test_a_durable_write_is_committed_when_it_returns(how: str, tmp_path: Path, peer: Callable[..., Peer]) -> None:
    """A copy is made while the writer lives, and loses what had only been journaled."""
    root, copy = tmp_path / "s", tmp_path / "copy"
    a = peer(root, config=QUIET)
    a.put("n", "before", 0)
    write = DURABLE[how]
    if write is None:
        a.put("n", "k", 1)
        peer(root, config=QUIET).flush()
    else:
        write(a)
    a.put("n", "after", 2)
    power_cut(root, copy)
    with tiermem.open(copy) as mem:
        assert mem.get("n", "k") == 1
        # Commits keep the order of one client's writes.
        assert mem.get("n", "before") == 0
        assert mem.get("n", "after") is None
        assert mem.check().ok


def test_a_durable_delete_is_committed_when_it_returns(tmp_path: Path, peer: Callable[..., Peer]) -> None:
    root, copy = tmp_path / "s", tmp_path / "copy"
    a = peer(root, config=QUIET)
    a.put("n", "k", 1, durable=True)
    key = a.append("stream", 2, durable=True)
    assert a.delete("n", "k", durable=True) is True
    power_cut(root, copy)
    with tiermem.open(copy) as mem:
        assert mem.get("n", "k") is None
        assert mem.get("stream", key) == 2


def test_put_many_killed_inside_leaves_a_beginning(tmp_path: Path) -> None:
    seen = set()
    took = math.inf
    for round_ in range(8):
        root = tmp_path / f"s{round_}"

        def body(say: Callable[[int], None], root: Path = root) -> None:
            mem = tiermem.open(root, config=config(sync_interval=0.002, journal_bytes=2**16))
            say(0)
            mem.put_many("n", [(f"{number:06d}", number) for number in range(60_000)])
            say(1)

        child = Loop(body)
        while not child.said and child.listen(0.002):
            pass
        # The first says how long it takes, the others come less and less far.
        begun = time.monotonic()
        end = begun + took * (1 - round_ / 10)
        while 1 not in child.said and time.monotonic() < end and child.listen(0.002):
            pass
        if not round_:
            took = time.monotonic() - begun
        child.kill()
        with tiermem.open(root) as mem:
            found = [record.value for record in mem.scan("n")]
            assert found == list(range(len(found)))
            seen.add(len(found))
            assert mem.check().ok
    assert any(0 < count < 60_000 for count in seen)


def test_a_plain_put_is_in_the_journal_alone(tmp_path: Path, peer: Callable[..., Peer]) -> None:
    """What the tests above would find if they found nothing."""
    a = peer(tmp_path / "s", config=QUIET)
    a.put("n", "k", 1)
    power_cut(tmp_path / "s", tmp_path / "copy")
    a.kill()
    with tiermem.open(tmp_path / "copy") as mem:
        assert mem.get("n", "k") is None
    with tiermem.open(tmp_path / "s") as mem:
        assert mem.get("n", "k") == 1


def test_a_lock_table_that_was_left_half_made_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tiermem.open(tmp_path / "s") as mem:
        mem.put("n", "k", 1)
    whole, left = generations.ColdEnv, [2]

    def half_made(*args: Any, **named: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise tiermem.IncompatibleFormatError("holds an LMDB environment that is no tiermem store")
        return whole(*args, **named)

    monkeypatch.setattr(generations, "ColdEnv", half_made)
    monkeypatch.setattr(generations, "PAUSE", 0.0)
    with tiermem.open(tmp_path / "s") as mem:
        assert mem.get("n", "k") == 1
    left[0] = 100
    with pytest.raises(tiermem.IncompatibleFormatError):
        tiermem.open(tmp_path / "s")
