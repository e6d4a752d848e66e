"""Secure erase: the bytes of what was deleted are searched for in every file of the store."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiermem
from tests.workers import Peer
from tiermem.cli import main
from tiermem.codec.compress import Compressor
from tiermem.codec.frame import unpack_frame
from tiermem.tiers.journal import HEADER_BYTES, Journal

LITERAL = "Xq7-secret-literal-9ZkW"
VECTOR = [0.123456789, -7.654321, 3.1415926, 2.7182818]


def config(**changes: Any) -> tiermem.Config:
    cold = tiermem.ColdConfig(committer="inline", sync_interval=60.0, journal_bytes=2**18)
    return tiermem.Config(cold=cold, vector=tiermem.VectorConfig(seal_rows=32), **changes)


PLAIN = config(codec=tiermem.CodecConfig(level=0))
TRAINED = config(codec=tiermem.CodecConfig(dictionary_samples=200, dictionary_bytes=4096))


SEARCH = """
import pathlib, sys
root, *forms = sys.argv[1:]
forms = [bytes.fromhex(form) for form in forms]
for path in sorted(pathlib.Path(root).rglob("*")):
    if path.is_file() and any(form in path.read_bytes() for form in forms):
        print(path.relative_to(root))
"""


def traces(root: Path) -> list[str]:
    """The files that hold the secret, in any of its forms.

    Searched by another process: to close a lock file that was only read would give up this one's locks.
    """
    vector = struct.pack("<4f", *VECTOR)
    length = sum(x * x for x in VECTOR) ** 0.5
    forms = (LITERAL.encode(), vector, struct.pack("<4f", *(x / length for x in VECTOR)))
    command = [sys.executable, "-I", "-S", "-c", SEARCH, str(root), *(form.hex() for form in forms)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def decoded(mem: tiermem.Memory) -> list[bytes]:
    """Every value of L3 as it was before compression."""
    compressor = Compressor(tiermem.CodecConfig())
    found = []
    with mem._store.cold.read() as snapshot:
        for number, data in snapshot.dictionaries():
            compressor.add(number, data)
        for key, row in snapshot.rows(snapshot.dbs.records):
            frame = unpack_frame(key, row)
            found.append(compressor.decompress(frame.codec, frame.dictionary, frame.body, frame.value_bytes))
    return found


def put_secret(mem: tiermem.Memory, key: str = "doomed", **more: Any) -> None:
    mem.put("notes", key, {"text": LITERAL}, vector=VECTOR, metadata={"who": LITERAL}, **more)


def fill(mem: tiermem.Memory, name: str, count: int = 120) -> None:
    for number in range(count):
        mem.put(name, f"k{number:03d}", {"n": number, "pad": "p" * (number % 90)}, vector=[number + 1.0, 2, 3, 4])


def assert_whole(mem: tiermem.Memory, name: str, count: int = 120) -> None:
    assert mem.count(name) == count
    for number in range(count):
        assert mem.get(name, f"k{number:03d}") == {"n": number, "pad": "p" * (number % 90)}
    hits = mem.search_similar(name, [1, 2, 3, 4], k=count)
    assert len(hits) == count
    assert hits[0].score == pytest.approx(max(hit.score for hit in hits))


def plainly(mem: tiermem.Memory) -> None:
    assert mem.delete("notes", "doomed", erase=True)


def by_many(mem: tiermem.Memory) -> None:
    assert mem.delete_many("notes", where={"who": LITERAL}, erase=True) == 1


def by_name(mem: tiermem.Memory) -> None:
    assert mem.namespace("notes").delete("doomed", erase=True)


def afterwards(mem: tiermem.Memory) -> None:
    """It had been deleted before; its bytes go now."""
    assert mem.delete("notes", "doomed")
    mem.flush()
    assert traces(Path(mem.stats().path)) != []
    assert not mem.delete("notes", "doomed", erase=True)


@pytest.mark.parametrize("how", [plainly, by_many, by_name, afterwards])
@pytest.mark.parametrize("sealed", [False, True])
def test_nothing_is_left_in_any_file(tmp_path: Path, how: Callable[[tiermem.Memory], None], sealed: bool) -> None:
    root = tmp_path / "store"
    with tiermem.open(root, config=PLAIN) as mem:
        fill(mem, "notes", 60)
        put_secret(mem)
        fill(mem, "notes")
        fill(mem, "other")
        if sealed:
            mem.build_index("notes")
            mem.build_index("other")
        mem.flush()
        before = traces(root)
        assert "gen-1/data.mdb" in before
        assert any(name.startswith("journals/") for name in before)
        assert any(name.startswith("segments/") for name in before) == sealed
        others = {path.name for path in root.glob("segments/*.rows")}
        how(mem)
        assert traces(root) == []
        assert mem.get("notes", "doomed") is None
        for name in ("notes", "other"):
            assert_whole(mem, name)
        if sealed:
            assert others & {path.name for path in root.glob("segments/*.rows")}, "other namespaces keep their segments"
        assert mem.check().ok, mem.check()
        mem.put("notes", "after", 1)
    assert traces(root) == []
    with tiermem.open(root, config=PLAIN, verify=True) as mem:
        assert_whole(mem, "other")
        assert mem.get("notes", "after") == 1
        assert mem.check().ok
    assert traces(root) == []


def test_what_was_overwritten_goes_too(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with tiermem.open(root, config=PLAIN) as mem:
        for number in range(40):
            put_secret(mem, "doomed")
            mem.put("notes", "doomed", number, durable=True)
        mem.delete("notes", "doomed", erase=True)
        assert traces(root) == []
        assert mem.check().ok


def test_a_namespace_that_held_nothing_else(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with tiermem.open(root, config=PLAIN) as mem:
        put_secret(mem)
        mem.build_index("notes")
        mem.delete("notes", "doomed", erase=True)
        assert traces(root) == []
        assert mem.count("notes") == 0
        assert mem.check().ok, mem.check()
        assert not mem.delete("never", "was", erase=True)


def test_on_the_command_line(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with tiermem.open(root, config=PLAIN) as mem:
        put_secret(mem)
        mem.put("notes", "kept", 1)
    assert main(["delete", str(root), "notes", "doomed"]) == 0
    assert traces(root) != []
    assert main(["delete", str(root), "notes", "doomed", "--erase"]) == 1
    assert traces(root) == []
    with tiermem.open(root) as mem:
        assert mem.get("notes", "kept") == 1


def test_dictionaries_are_trained_anew(tmp_path: Path) -> None:
    root = tmp_path / "store"
    rng = random.Random(5)

    def text(number: int) -> str:
        what = f"{rng.randrange(10**6)} of {number} at {rng.random():.6f}"
        return f"the desk of {LITERAL} bought {what} for the {LITERAL} book"

    with tiermem.open(root, config=TRAINED) as mem:
        for _ in range(2):
            for number in range(400):
                mem.put("notes", f"s{number}", {"text": text(number)})
                mem.put("kept", f"k{number}", {"text": text(number).replace(LITERAL, "a public name")})
            mem.flush()
            mem._store.committer.upkeep.run()
        clean = {f"c{number}": {"text": text(number).replace(LITERAL, "nobody")} for number in range(300)}
        mem.put_many("notes", list(clean.items()))
        mem.flush()
        with mem._store.cold.read() as snapshot:
            held = dict(snapshot.dictionaries())
            before = snapshot.info("kept")
        assert any(LITERAL.encode() in data for data in held.values()), "nothing to be erased"
        assert mem.delete_many("notes", prefix="s", erase=True) == 400
        assert traces(root) == []
        with mem._store.cold.read() as snapshot:
            now = dict(snapshot.dictionaries())
            info, after = snapshot.info("notes"), snapshot.info("kept")
        assert info is not None
        assert before is not None
        assert after is not None
        assert info.dictionary not in held
        assert after.dictionary == before.dictionary, "another namespace keeps its own"
        assert info.dictionary == 0 or info.dictionary in now
        assert not any(LITERAL.encode() in value for value in decoded(mem))
        assert mem.get_many("notes", clean) == clean
        assert mem.count("kept") == 400
        assert mem.check().ok, mem.check()
        # What is written from now on must not teach a dictionary what was erased.
        for number in range(600):
            mem.put("notes", f"n{number}", {"text": text(number).replace(LITERAL, "nobody")})
        mem.flush()
        mem._store.committer.upkeep.run()
        assert traces(root) == []
    with tiermem.open(root, config=TRAINED, verify=True) as mem:
        assert mem.get_many("notes", clean) == clean
        assert mem.check().ok


def test_journals_of_clients_that_were_killed_are_wiped(tmp_path: Path) -> None:
    root = tmp_path / "store"
    peer = Peer(root, config=PLAIN)
    other = Peer(root, config=PLAIN)
    peer.put("notes", "doomed", LITERAL)
    other.put("notes", "left", "intact")
    peer.kill()
    other.kill()
    with tiermem.open(root, config=PLAIN) as mem:
        assert mem.get("notes", "doomed") == LITERAL
        assert sum(name.startswith("journals/") for name in traces(root)) == 1
        mem.delete("notes", "doomed", erase=True)
        assert traces(root) == []
        assert mem.get("notes", "left") == "intact"
    with tiermem.open(root, config=PLAIN) as mem:
        assert mem.get("notes", "left") == "intact"
        assert mem.check().ok


def test_the_journal_of_a_living_client_is_wiped_when_it_next_commits(tmp_path: Path) -> None:
    root = tmp_path / "store"
    peer = Peer(root, config=PLAIN)
    try:
        peer.put("notes", "doomed", LITERAL)
        with tiermem.open(root, config=PLAIN) as mem:
            assert mem.get("notes", "doomed", None) in (None, LITERAL)
            mem.delete("notes", "doomed", erase=True)
            assert all(name.startswith("journals/") for name in traces(root))
            peer.put("notes", "mine", "still here", durable=True)
            assert traces(root) == []
            assert peer.get("notes", "doomed") is None
            assert mem.get("notes", "mine") == "still here"
            peer.put("notes", "pending", "p")
            mem.flush()
            assert mem.get("notes", "pending") == "p"
    finally:
        peer.leave()
    with tiermem.open(root, config=PLAIN) as mem:
        assert mem.get("notes", "mine") == "still here"
        assert mem.check().ok


def test_the_journal_of_a_client_that_only_closes_is_wiped_then(tmp_path: Path) -> None:
    root = tmp_path / "store"
    peer = Peer(root, config=PLAIN)
    peer.put("notes", "doomed", LITERAL)
    with tiermem.open(root, config=PLAIN) as mem:
        mem.delete("notes", "doomed", erase=True)
        peer.leave()
        assert traces(root) == []
        assert mem.check().ok


@pytest.mark.parametrize(("applied", "head"), [(0, 0), (0, 3), (2, 3), (10, 12), (11, 12), (12, 12)])
def test_wiping_a_journal_spares_what_is_not_applied(tmp_path: Path, applied: int, head: int) -> None:
    journal = Journal.create(tmp_path / "000.journal", 2**16)
    journal.reset(bytes(16), 7)
    ends = [0]
    for number in range(head):
        journal.applied = ends[max(0, number - 2)]
        ends.append(journal.append(LITERAL.encode() * 500 + bytes((number,)), 1))
    assert all(ends[1:])
    journal.applied = ends[applied]
    kept = list(journal.frames(journal.applied))
    journal.wipe(1)
    assert list(journal.frames(journal.applied)) == kept
    assert len(kept) == head - applied
    raw = (tmp_path / "000.journal").read_bytes()
    # A frame that does not fit the end of the ring leaves a gap there, which belongs to what is not applied.
    assert raw.count(LITERAL.encode()) >= 500 * len(kept)
    assert journal.wiped == 1
    if not kept:
        assert raw[HEADER_BYTES:] == bytes(2**16)
    assert journal.append(b"next", 1)
    assert [frame.payload for frame in journal.frames(journal.applied)] == [*(f.payload for f in kept), b"next"]
    journal.close()


def test_what_a_client_that_was_killed_had_asked_is_wiped(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with tiermem.open(root, config=PLAIN) as mem:
        mem.put("notes", "doomed", LITERAL)
        left = root / "clients" / "007.request"
        left.write_bytes(LITERAL.encode())
        assert any(name.startswith("clients/") for name in traces(root))
        mem.delete("notes", "doomed", erase=True)
        assert traces(root) == []
