"""Damage on disk: a typed error or the right answer, never a wrong one, and never a dead process."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

import tiermem
from tests.workers import NO_BELLS
from tiermem.tiers.cold.layout import unpack_floor

CONFIG = tiermem.Config(
    cold=tiermem.ColdConfig(committer="inline", sync_interval=60.0, journal_bytes=2**16),
)
RECORDS = 240
KEYS = [f"k{number:04d}" for number in range(RECORDS)]
DAMAGED = "k0100"

Run = Callable[..., subprocess.CompletedProcess[str]]


def value_of(key: str) -> dict[str, Any]:
    return {"text": f"<{key}>" + "abcdefgh" * 12, "n": int(key[1:])}


def vector_of(key: str) -> list[float]:
    number = int(key[1:])
    return [1.0, number / 7, number % 13, 0.5]


def build(path: Path) -> None:
    """A store with several levels of pages, none of them free, all of it committed."""
    with tiermem.open(path, config=CONFIG) as mem:
        for key in KEYS:
            mem.put("ns", key, value_of(key), vector=vector_of(key), metadata={"n": int(key[1:])}, at=float(key[1:]))
        mem.put("other", "kept", "kept")
        mem.put("timed", "later", "later", ttl=1e9)
        mem.cursor("reader", start=0)
        mem.flush()
    data = path / "gen-1" / "data.mdb"
    fresh = path / "compacted"
    fresh.mkdir()
    with lmdb.open(str(path / "gen-1"), max_dbs=20) as env:
        env.copy(str(fresh), compact=True)
    (fresh / "data.mdb").replace(data)
    (path / "gen-1" / "lock.mdb").unlink()
    fresh.rmdir()


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("damage") / "store"
    build(path)
    return path


@pytest.fixture
def store(base: Path, tmp_path: Path) -> Path:
    """A copy of its own of the store, closed."""
    return Path(shutil.copytree(base, tmp_path / "store", ignore=NO_BELLS))


def data_of(path: Path) -> Path:
    return path / "gen-1" / "data.mdb"


def flip(path: Path, offset: int, mask: int = 0x10) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes((byte ^ mask,)))


def rows_of(path: Path, database: str) -> list[tuple[bytes, bytes]]:
    """The raw rows of one sub-database of a closed store."""
    with lmdb.open(str(path / "gen-1"), max_dbs=20, readonly=True, lock=False) as env:
        db = env.open_db(database.encode(), create=False)
        with env.begin() as txn, txn.cursor(db=db) as cursor:
            return [(bytes(key), bytes(row)) for key, row in cursor]


def place_of(path: Path, key: bytes, row: bytes) -> int:
    """Where in `data.mdb` the row stored under `key` begins: behind its key."""
    raw = data_of(path).read_bytes()
    if raw.count(key + row) == 1:
        return raw.index(key + row) + len(key)
    # A long row lies on pages of its own.
    assert raw.count(row) == 1
    return raw.index(row)


def record_row(path: Path, key: str, database: str = "records") -> tuple[int, int]:
    """(place, length) of the row of one record of `ns`."""
    found = [(k, row) for k, row in rows_of(path, database) if k[4:] == key.encode()]
    assert len(found) == 1
    return place_of(path, *found[0]), len(found[0][1])


def assert_whole(mem: tiermem.Memory) -> None:
    assert {record.key: record.value for record in mem.scan("ns")} == {key: value_of(key) for key in KEYS}
    assert mem.get("other", "kept") == "kept"
    assert mem.count("ns") == RECORDS


# -------------------------------------------------------------------------------------------------------- truncation

READ_ALL = """
import sys
import tiermem
path, mode = sys.argv[1:]
try:
    with tiermem.open(path, read_only=mode == "read-only", verify=mode == "verify") as mem:
        assert sum(1 for _ in mem.scan("ns")) == mem.count("ns")
        values = [record.value["n"] for record in mem.scan("ns")]
        assert all(mem.get("ns", f"k{n:04d}")["n"] == n for n in values)
        mem.search_similar("ns", [1, 2, 3, 4])
        if mode == "write":
            mem.put("ns", "new", {"n": 1})
            mem.flush()
        print("whole" if len(values) == 240 else f"only {len(values)}")
except tiermem.TiermemError as exc:
    print(type(exc).__name__, exc)
"""


@pytest.mark.parametrize("mode", ["write", "read-only", "verify"])
def test_a_truncated_file_is_refused_and_kills_nobody(base: Path, tmp_path: Path, run_python: Run, mode: str) -> None:
    size = data_of(base).stat().st_size
    sizes = [0, 1, 100, 4095, 4096, 4097, 8191, 8192, 8193, 12288, size // 2, size // 2 // 4096 * 4096]
    sizes += [size - 4096 * 3, size - 4096, size - 1] if mode == "write" else [size - 1]
    wrong = []
    for cut in sizes:
        copy = Path(shutil.copytree(base, tmp_path / f"{cut}", ignore=NO_BELLS))
        os.truncate(data_of(copy), cut)
        done = run_python(READ_ALL, copy, mode, check=False)
        if done.returncode != 0 or not done.stdout.startswith("CorruptionError"):
            wrong.append(f"{cut} bytes: {done.returncode} {done.stdout.strip()[:200]} {done.stderr[-300:]}")
        elif "data.mdb" not in done.stdout:
            wrong.append(f"{cut} bytes: does not name the file: {done.stdout}")
        assert data_of(copy).stat().st_size == cut
        shutil.rmtree(copy)
    assert not wrong, "\n".join(wrong)


def test_a_missing_file_is_refused(store: Path) -> None:
    data_of(store).unlink()
    with pytest.raises(tiermem.CorruptionError, match=r"data\.mdb"):
        tiermem.open(store)
    assert not data_of(store).exists(), "an empty store was put in its place"


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 8192, b"garbage " * 1024, b"\xff" * 65536], ids=["empty", "0", "g", "f"]
)
def test_a_damaged_lock_table_is_made_anew(store: Path, run_python: Run, content: bytes) -> None:
    (store / "gen-1" / "lock.mdb").write_bytes(content)
    done = run_python(READ_ALL, store, "write", check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] in ("whole", "CorruptionError", "StorageError", "IncompatibleFormatError"), (
        done.stdout
    )


# ------------------------------------------------------------------------------------------------------ record frames


def spread(length: int, most: int) -> list[int]:
    """At most `most` offsets below `length`, both ends included."""
    return sorted({round(step * (length - 1) / (most - 1)) for step in range(most)})


def test_a_flipped_frame_is_named_and_the_others_are_read(store: Path) -> None:
    place, length = record_row(store, DAMAGED)
    for offset in spread(length, 30):
        flip(data_of(store), place + offset)
        with tiermem.open(store, config=CONFIG) as mem:
            for read in (
                lambda: mem.get("ns", DAMAGED),
                lambda: mem.get_record("ns", DAMAGED),
                lambda: mem.get_many("ns", [DAMAGED]),
                lambda: mem.namespace("ns")[DAMAGED],
                lambda: list(mem.scan("ns")),
                lambda: list(mem.scan("ns", reverse=True)),
                lambda: list(mem.scan("ns", prefix="k01")),
                lambda: mem.count("ns", {"n": {"$gt": 1}}),
                lambda: mem.search_similar("ns", [1, 2, 3, 4]),
                lambda: mem.latest("ns", 3),
            ):
                with pytest.raises(tiermem.CorruptionError, match=DAMAGED):
                    read()
            for key in KEYS:
                if key != DAMAGED:
                    assert mem.get("ns", key) == value_of(key)
            assert [record.key for record in mem.scan("ns", prefix="k02")] == [k for k in KEYS if k.startswith("k02")]
            assert mem.get("other", "kept") == "kept"
            assert not mem.check().ok
        flip(data_of(store), place + offset)
    with tiermem.open(store, config=CONFIG) as mem:
        assert_whole(mem)
        assert mem.check().ok


def test_check_names_the_flipped_frame(store: Path) -> None:
    place, length = record_row(store, DAMAGED)
    flip(data_of(store), place + length // 2)
    with tiermem.open(store, config=CONFIG) as mem:
        report = mem.check()
        assert not report.ok
        assert any(DAMAGED in problem for problem in report.problems), report
        assert report.records == RECORDS + 2
        assert DAMAGED in str(report)


def overwrite(mem: tiermem.Memory, how: str) -> object:
    """Replace or remove the damaged record; what a read must give afterwards."""
    if how == "put":
        mem.put("ns", DAMAGED, "new")
    elif how == "durable":
        mem.put("ns", DAMAGED, "new", durable=True)
    elif how == "batch":
        with mem.batch(durable=True) as batch:
            batch.put("ns", DAMAGED, "new")
    elif how == "delete_many":
        mem.delete_many("ns", prefix=DAMAGED)
        return None
    else:
        mem.delete("ns", DAMAGED)
        return None
    return "new"


@pytest.mark.parametrize("how", ["put", "durable", "batch", "delete", "delete_many"])
def test_what_is_acknowledged_over_a_flipped_frame_stands(store: Path, how: str) -> None:
    """The old frame's version, flags and expiry are garbage: they must decide nothing."""
    place, length = record_row(store, DAMAGED)
    intact = data_of(store).read_bytes()
    control = (store / "control").read_bytes()
    journals = store.parent / "journals kept"
    shutil.copytree(store / "journals", journals)
    wrong = []
    # Checksum and format first, the version from byte 16 on, then times and lengths.
    for offset in (0, 8, 9, 10, 11, 12, *range(16, 24), 31, 39, 47, *range(52, 56), 56, 60, 63, length - 1):
        for mask in (0x80, 0x04):
            flip(data_of(store), place + offset, mask)
            label = f"byte {offset} ^ {mask:#x}"
            try:
                with tiermem.open(store, config=CONFIG) as mem:
                    try:
                        expected = overwrite(mem, how)
                    except tiermem.CorruptionError:
                        pass
                    else:
                        mem.flush()
                        try:
                            if (found := mem.get("ns", DAMAGED)) != expected:
                                wrong.append(f"{label}: {found!r:.60} instead of {expected!r}")
                        except tiermem.CorruptionError as exc:
                            wrong.append(f"{label}: acknowledged, and lost: {exc}")
                    mem.put("ns", "after", label)
                with tiermem.open(store, config=CONFIG) as mem:
                    if mem.get("ns", "after") != label:
                        wrong.append(f"{label}: a later write was lost")
            except Exception as exc:  # noqa: BLE001 - any error here is a finding of its own
                wrong.append(f"{label}: {type(exc).__name__}: {exc}")
            data_of(store).write_bytes(intact)
            (store / "control").write_bytes(control)
            shutil.rmtree(store / "journals")
            shutil.copytree(journals, store / "journals")
    assert not wrong, f"{len(wrong)} of them:\n" + "\n".join(wrong[:40])


@pytest.mark.parametrize("part", ["flags", "expires", "body"])
def test_overwriting_a_flipped_frame_heals_it(store: Path, part: str) -> None:
    """What the old frame says of its vector and its expiry is garbage, so no index may go by it."""
    place, length = record_row(store, DAMAGED)
    flip(data_of(store), place + {"flags": 10, "expires": 55, "body": length - 1}[part], 0x01)
    with tiermem.open(store, config=CONFIG) as mem:
        try:
            mem.put("ns", DAMAGED, "new")
            mem.flush()
        except tiermem.CorruptionError:
            return
        assert mem.get("ns", DAMAGED) == "new"
        assert len(list(mem.scan("ns"))) == RECORDS
        assert mem.count("ns") == RECORDS
        assert len(mem.search_similar("ns", [1, 2, 3, 4], k=RECORDS)) == RECORDS - 1
        assert mem.check().ok, mem.check()


@pytest.mark.parametrize("how", ["if_version", "update", "touch", "guard"])
def test_a_decision_about_a_flipped_frame_is_not_made(store: Path, how: str) -> None:
    place, length = record_row(store, DAMAGED)
    flip(data_of(store), place + length - 5)
    with tiermem.open(store, config=CONFIG) as mem:
        calls: dict[str, Callable[[], object]] = {
            "if_version": lambda: mem.put("ns", DAMAGED, "new", if_version=0),
            "update": lambda: mem.update("ns", DAMAGED, value="new"),
            "touch": lambda: mem.touch("ns", DAMAGED, ttl=5.0),
            "guard": lambda: mem.put("ns", "x", 1, guard=tiermem.Guard("ns", DAMAGED, 1)),
        }
        with pytest.raises(tiermem.CorruptionError, match=DAMAGED):
            calls[how]()
        assert not mem.contains("ns", "x")
        mem.put("ns", "after", 1)
        mem.flush()
        assert mem.get("ns", "after") == 1


def test_repair_keeps_every_intact_record(store: Path) -> None:
    place, length = record_row(store, DAMAGED)
    flip(data_of(store), place + length - 5)
    with tiermem.open(store, config=CONFIG) as mem:
        mem.put("ns", "pending", "p")
        report = mem.check(repair=True)
        assert any(DAMAGED in line for line in (*report.problems, *report.repaired)), report
        assert mem.check().ok
        assert mem.get("ns", DAMAGED) is None
        assert {record.key for record in mem.scan("ns")} == {*KEYS, "pending"} - {DAMAGED}
        assert all(mem.get("ns", key) == value_of(key) for key in KEYS if key != DAMAGED)
        assert mem.count("ns") == RECORDS
        mem.put("ns", DAMAGED, value_of(DAMAGED), vector=vector_of(DAMAGED))
    with tiermem.open(store, config=CONFIG, verify=True) as mem:
        assert mem.get("ns", DAMAGED) == value_of(DAMAGED)
        assert mem.get("ns", "pending") == "p"
        assert mem.check().ok


def test_a_flipped_vector_is_reported_and_never_scored(store: Path) -> None:
    place, length = record_row(store, DAMAGED, "vectors")
    for offset in range(0, length, 3):
        flip(data_of(store), place + offset)
        with tiermem.open(store, config=CONFIG) as mem:
            assert mem.get("ns", DAMAGED) == value_of(DAMAGED), "the value does not depend on the vector"
            assert mem.get_many("ns", [DAMAGED]) == {DAMAGED: value_of(DAMAGED)}
            assert mem.count("ns", {"n": 100}) == 1
            with pytest.raises(tiermem.CorruptionError, match=DAMAGED):
                mem.get_record("ns", DAMAGED)
            for _ in range(2):
                with pytest.raises(tiermem.CorruptionError, match=DAMAGED):
                    mem.search_similar("ns", vector_of("k0003"))
            report = mem.check()
            assert any(DAMAGED in problem for problem in report.problems), report
        flip(data_of(store), place + offset)


def test_a_flipped_vector_can_be_replaced(store: Path) -> None:
    place, length = record_row(store, DAMAGED, "vectors")
    flip(data_of(store), place + length - 1)
    with tiermem.open(store, config=CONFIG) as mem:
        mem.put("ns", DAMAGED, value_of(DAMAGED), vector=vector_of(DAMAGED))
        mem.flush()
        assert mem.search_similar("ns", vector_of(DAMAGED), k=1)[0].key == DAMAGED
        assert mem.check().ok


# -------------------------------------------------------------------------------------------------------- sealed rows


def use(path: Path) -> None:
    """Open, read everything in every way, write, close, and read again; AssertionError for a wrong answer."""
    with tiermem.open(path, config=CONFIG) as mem:
        for key in KEYS:
            assert mem.get("ns", key) == value_of(key)
        assert_whole(mem)
        best = mem.search_similar("ns", vector_of("k0007"), k=RECORDS)
        assert len(best) == RECORDS
        assert best[0].score == pytest.approx(1.0)
        assert mem.namespaces() == ["ns", "other", "timed"]
        changes = [change for change in mem.changes(0) if change.namespace == "ns" and change.key in KEYS]
        assert [change.key for change in changes] == KEYS
        assert mem.get("timed", "later") == "later"
        mem.put("ns", KEYS[0], value_of(KEYS[0]), vector=vector_of(KEYS[0]))
        mem.flush()
    with tiermem.open(path, config=CONFIG) as mem:
        assert_whole(mem)


def used(copy: Path, label: str, refusal: type[tiermem.TiermemError] = tiermem.TiermemError) -> list[str]:
    """Use a damaged copy once, then remove it; what is wrong unless it answered rightly or was refused in words."""
    try:
        use(copy)
    except refusal as exc:
        return [] if str(exc) else [f"{label}: no message"]
    except AssertionError as exc:
        return [f"{label}: a wrong answer: {str(exc)[:300]}"]
    except Exception as exc:  # noqa: BLE001 - any other error is what is looked for
        return [f"{label}: {type(exc).__name__}: {exc}"]
    finally:
        shutil.rmtree(copy)
    return []


SEALED = ["state", "identity", "namespaces", "names", "log", "cursors", "marks"]


@pytest.mark.parametrize("row", SEALED)
def test_a_flipped_row_is_found(store: Path, row: str) -> None:
    database = "meta" if row in ("state", "identity") else row
    rows = [(key, data) for key, data in rows_of(store, database) if database != "meta" or key == row.encode()]
    assert rows
    wrong = []
    for key, data in rows[:2]:
        place = place_of(store, key, data)
        for offset in spread(len(data), 9):
            copy = Path(shutil.copytree(store, store.with_name("copy"), ignore=NO_BELLS))
            flip(data_of(copy), place + offset)
            wrong += used(copy, f"{key!r} byte {offset}", tiermem.CorruptionError)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("row", ["namespaces", "names", "log", "cursors", "marks", "records", "vectors", "expiry"])
def test_check_reports_a_flipped_row_or_key(store: Path, row: str) -> None:
    """Of a store that opens, `check` finds the damage, or says why it cannot look."""
    key, data = rows_of(store, row)[0]
    place = place_of(store, key, data)
    wrong = []
    # The bytes of the key lie in front of the row's, unless that is too long for the page.
    front = range(-len(key), 0) if len(data) < 1000 else ()
    for offset in (*front, *(spread(len(data), 4) if data else ())):
        copy = Path(shutil.copytree(store, store.with_name("copy"), ignore=NO_BELLS))
        flip(data_of(copy), place + offset, 0x01)
        try:
            with tiermem.open(copy, config=CONFIG) as mem:
                report = mem.check()
                if report.ok:
                    wrong.append(f"byte {offset}: not found")
        except tiermem.TiermemError:
            pass
        except Exception as exc:  # noqa: BLE001 - any other error is what is looked for
            wrong.append(f"byte {offset}: {type(exc).__name__}: {exc}")
        finally:
            shutil.rmtree(copy)
    assert not wrong, "\n".join(wrong)


def test_a_flipped_floor_does_not_swallow_a_put(store: Path) -> None:
    with tiermem.open(store, config=CONFIG) as mem:
        mem.put("ns", "gone", 1)
        mem.flush()
        mem.delete("ns", "gone")
    floors = [(key, row) for key, row in rows_of(store, "floors") if key[4:] == b"gone"]
    if not floors:
        pytest.skip("the floor was purged before the store was closed")
    key, row = floors[0]
    assert unpack_floor(key, row)[0] > 0
    wrong = []
    for offset in range(len(row)):
        copy = Path(shutil.copytree(store, store.with_name("copy"), ignore=NO_BELLS))
        raw = bytearray(data_of(copy).read_bytes())
        at = raw.find(key + row)
        while at >= 0:
            raw[at + len(key) + offset] ^= 0x40
            at = raw.find(key + row, at + 1)
        data_of(copy).write_bytes(raw)
        try:
            with tiermem.open(copy, config=CONFIG) as mem:
                mem.put("ns", "gone", "back")
                mem.flush()
                if mem.get("ns", "gone") != "back":
                    wrong.append(f"byte {offset}: acknowledged, and lost")
        except tiermem.TiermemError as exc:
            if not isinstance(exc, tiermem.CorruptionError):
                wrong.append(f"byte {offset}: {type(exc).__name__}: {exc}")
        except Exception as exc:  # noqa: BLE001 - any other error is what is looked for
            wrong.append(f"byte {offset}: {type(exc).__name__}: {exc}")
        finally:
            shutil.rmtree(copy)
    assert not wrong, "\n".join(wrong)


def test_a_lost_mark_does_not_replay_what_was_overwritten(store: Path) -> None:
    """Without its mark an applied journal would be applied again, over what came after it."""
    with tiermem.open(store, config=CONFIG) as mem:
        version = mem.put("other", "decided", "old")
        mem.put("other", "deleted", "old")
        mem.put("other", "dropped", "old")
        mem.flush()
        mem.put("other", "decided", "new", if_version=version)
        mem.delete("other", "deleted")
        mem.flush()
        mem.delete_many("other", ["dropped"])
    raw = bytearray(data_of(store).read_bytes())
    marks = rows_of(store, "marks")
    assert marks
    for key, row in marks:
        at = raw.find(key + row)
        while at >= 0:
            raw[at] ^= 0x01
            at = raw.find(key + row, at + 1)
    data_of(store).write_bytes(raw)
    try:
        with tiermem.open(store, config=CONFIG) as mem:
            found = {key: mem.get("other", key) for key in ("decided", "deleted", "dropped")}
    except tiermem.CorruptionError:
        return
    assert found == {"decided": "new", "deleted": None, "dropped": None}


# ---------------------------------------------------------------------------------------------- CURRENT, control page


def outcomes(path: Path, name: str, contents: Iterator[tuple[str, bytes | None]]) -> list[str]:
    """Use the store once with each content of one of its files; what ended otherwise than it should."""
    wrong = []
    for label, content in contents:
        copy = Path(shutil.copytree(path, path.with_name("copy"), ignore=NO_BELLS))
        if content is None:
            (copy / name).unlink()
        else:
            (copy / name).write_bytes(content)
        wrong += used(copy, label)
    return wrong


def test_a_flipped_current_file(store: Path) -> None:
    intact = (store / "CURRENT").read_bytes()

    def flipped() -> Iterator[tuple[str, bytes]]:
        for offset in range(len(intact)):
            for mask in (0x01, 0x10, 0x80):
                raw = bytearray(intact)
                raw[offset] ^= mask
                yield f"byte {offset} ^ {mask:#x}", bytes(raw)
        for cut in range(len(intact)):
            yield f"cut to {cut}", intact[:cut]
        yield "twice", intact * 2

    wrong = outcomes(store, "CURRENT", flipped())
    assert not wrong, "\n".join(wrong)


def test_a_missing_current_file_does_not_become_an_empty_store(store: Path) -> None:
    """Everything else is there: making a new store in its place would delete it all."""
    (store / "CURRENT").unlink()
    before = data_of(store).read_bytes()
    try:
        with tiermem.open(store, config=CONFIG) as mem:
            assert mem.get("other", "kept") == "kept"
    except tiermem.TiermemError:
        assert data_of(store).read_bytes() == before


def test_a_damaged_control_page_is_made_anew_or_refused(store: Path) -> None:
    intact = (store / "control").read_bytes()

    def damaged() -> Iterator[tuple[str, bytes | None]]:
        yield "missing", None
        yield "empty", b""
        yield "short", intact[:-1]
        yield "long", intact + b"\0"
        yield "zeros", bytes(len(intact))
        yield "ones", b"\xff" * len(intact)
        # The magic, the counter, the generation, who sleeps, and the first slots.
        for offset in (0, 5, 7, 64, 67, 71, 128, 129, 131, 135, 1024, 1030, 4096, 4100, 4103, 4160, 4167):
            for mask in (0x01, 0x40, 0x80):
                raw = bytearray(intact)
                raw[offset] ^= mask
                yield f"byte {offset} ^ {mask:#x}", bytes(raw)

    wrong = outcomes(store, "control", damaged())
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("offset", [64, 71, 128, 135])
def test_a_damaged_control_page_does_not_shut_the_store_for_ever(store: Path, offset: int) -> None:
    """It holds nothing that cannot be rebuilt, so the second opening at the latest works."""
    flip(store / "control", offset, 0x40)
    try:
        use(store)
    except tiermem.TiermemError:
        use(store)


# ------------------------------------------------------------------------------------------------------------ journals

PENDING = [f"p{number:03d}" for number in range(30)]

LEAVE_PENDING = """
import os, signal, sys
import tiermem
cold = tiermem.ColdConfig(committer="inline", sync_interval=60.0, journal_bytes=2**16)
mem = tiermem.open(sys.argv[1], config=tiermem.Config(cold=cold))
for number in range(30):
    mem.put("other", f"p{number:03d}", f"<pending {number}>" * 3)
assert mem.stats().writes.pending == 30
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="session")
def killed_base(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose last client was killed with 30 acknowledged puts in its journal alone."""
    path = Path(shutil.copytree(base, tmp_path_factory.mktemp("killed") / "store", ignore=NO_BELLS))
    subprocess.run([sys.executable, "-c", LEAVE_PENDING, str(path)], check=False, capture_output=True, timeout=60)
    return path


@pytest.fixture
def killed(killed_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(killed_base, tmp_path / "killed", ignore=NO_BELLS))


def replayed(path: Path, *, read_only: bool = False) -> str:
    """ "right", "error" or what is wrong, for a store with pending puts."""
    try:
        with tiermem.open(path, config=CONFIG, read_only=read_only) as mem:
            found = mem.get_many("other", PENDING)
            if found != {key: f"<pending {int(key[1:])}>" * 3 for key in PENDING}:
                return f"{len(found)} of {len(PENDING)} acknowledged puts, and no error"
            assert_whole(mem)
            return "right"
    except tiermem.TiermemError as exc:
        return "error" if str(exc) else "no message"
    except Exception as exc:  # noqa: BLE001 - any other error is what is looked for
        return f"{type(exc).__name__}: {exc}"


def test_a_killed_clients_puts_are_there(killed: Path) -> None:
    assert replayed(killed) == "right"
    assert replayed(killed) == "right"


def test_a_killed_clients_puts_are_shown_read_only(killed: Path) -> None:
    assert replayed(killed, read_only=True) == "right"


def journal_of(path: Path) -> Path:
    (journal,) = (path / "journals").glob("*.journal")
    return journal


def damaged_journals(path: Path, damage: Iterator[tuple[str, bytes]], *, read_only: bool = False) -> list[str]:
    wrong = []
    intact = journal_of(path).read_bytes()
    data, control = data_of(path).read_bytes(), (path / "control").read_bytes()
    for label, content in damage:
        journal_of(path).write_bytes(content)
        result = replayed(path, read_only=read_only)
        if result not in ("right", "error"):
            wrong.append(f"{label}: {result}")
        data_of(path).write_bytes(data)
        (path / "control").write_bytes(control)
        for stray in (path / "journals").iterdir():
            stray.unlink()
        (path / "journals" / "000.journal").write_bytes(intact)
    return wrong


def flips(raw: bytes, offsets: list[int], mask: int = 0x10) -> Iterator[tuple[str, bytes]]:
    for offset in offsets:
        copy = bytearray(raw)
        copy[offset] ^= mask
        yield f"byte {offset}", bytes(copy)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_flipped_journal_header(killed: Path, read_only: bool) -> None:
    raw = journal_of(killed).read_bytes()
    wrong = damaged_journals(killed, flips(raw, list(range(80))), read_only=read_only)
    assert not wrong, "\n".join(wrong)


def test_a_flipped_journal_head(killed: Path) -> None:
    """Where the frames end is a bare word: what stands behind it tells whether it is true."""
    raw = journal_of(killed).read_bytes()

    def heads() -> Iterator[tuple[str, bytes]]:
        for bit in range(64):
            copy = bytearray(raw)
            copy[128 + bit // 8] ^= 1 << bit % 8
            yield f"head ^ bit {bit}", bytes(copy)

    wrong = damaged_journals(killed, heads())
    assert not wrong, "\n".join(wrong)


def test_a_journal_that_lost_its_first_page(killed: Path) -> None:
    raw = journal_of(killed).read_bytes()

    def lost() -> Iterator[tuple[str, bytes]]:
        yield "header zeroed, head kept", bytes(128) + raw[128:]
        yield "first page zeroed", bytes(4096) + raw[4096:]
        yield "all zeros", bytes(len(raw))

    wrong = damaged_journals(killed, lost())
    assert not wrong, "\n".join(wrong)


def test_a_journal_cut_short(killed: Path) -> None:
    raw = journal_of(killed).read_bytes()
    sizes = [0, 1, 100, 4096, 8191, 8192, 12288, len(raw) // 2, len(raw) - 4096, len(raw) - 1]
    wrong = damaged_journals(killed, ((f"cut to {size}", raw[:size]) for size in sizes))
    wrong += damaged_journals(killed, iter([("longer", raw + bytes(4096))]))
    assert not wrong, "\n".join(wrong)


def test_flipped_journal_frames(killed: Path) -> None:
    raw = journal_of(killed).read_bytes()
    head = struct.unpack_from("<Q", raw, 128)[0]
    assert 1000 < head < 2**16
    chosen = sorted(random.Random(7).sample(range(4096, 4096 + head), 120))
    wrong = damaged_journals(killed, flips(raw, [*range(4096, 4096 + 90), *chosen]))
    assert not wrong, "\n".join(wrong)


def test_a_flip_in_an_applied_journal_costs_nothing_that_was_committed(store: Path) -> None:
    """All of it was applied: the frames are dead weight."""
    raw = journal_of(store).read_bytes()
    for _, content in flips(raw, [4096, 4100, 4200, len(raw) - 10]):
        copy = Path(shutil.copytree(store, store.with_name("copy"), ignore=NO_BELLS))
        journal_of(copy).write_bytes(content)
        use(copy)
        shutil.rmtree(copy)


def test_a_journal_of_another_store_is_refused(killed: Path, tmp_path: Path) -> None:
    with tiermem.open(tmp_path / "foreign", config=CONFIG) as mem:
        mem.put("other", "kept", "foreign")
    shutil.copy(journal_of(killed), tmp_path / "foreign" / "journals" / "007.journal")
    with pytest.raises(tiermem.IncompatibleFormatError, match="another store"):
        tiermem.open(tmp_path / "foreign", config=CONFIG)


# ----------------------------------------------------------------------------------------------------- anywhere at all


def test_verify_finds_a_damaged_inner_page(base: Path, tmp_path: Path) -> None:
    raw = data_of(base).read_bytes()
    # A page begins with its number and, behind two bytes, its kind: 1 is an inner page.
    pages = [(at, *struct.unpack_from("<QHH", raw, at)) for at in range(8192, len(raw), 4096)]
    branches = [at for at, number, _, kind in pages if number == at // 4096 and kind == 1]
    assert branches, "the store is too small to have inner pages"
    found = 0
    for at in branches:
        lower = struct.unpack_from("<H", raw, at + 12)[0]
        slots = [struct.unpack_from("<H", raw, at + 16 + 2 * slot)[0] for slot in range((lower - 16) // 2)]
        for node in (slots[0], slots[len(slots) // 2], slots[-1]):
            # The first four bytes of a node on an inner page are the number of the page below it.
            for offset, mask in ((node, 0x01), (node, 0x80), (node + 2, 0x01)):
                copy = Path(shutil.copytree(base, tmp_path / f"{found}", ignore=NO_BELLS))
                flip(data_of(copy), at + offset, mask)
                with pytest.raises(tiermem.CorruptionError, match=r"data\.mdb"):
                    tiermem.open(copy, config=CONFIG, verify=True)
                shutil.rmtree(copy)
                found += 1
                if found >= 24:
                    return
    assert found


def test_verify_passes_an_intact_store(store: Path) -> None:
    with tiermem.open(store, config=CONFIG, verify=True) as mem:
        assert_whole(mem)
        assert mem.check().ok


FLIP_ANYWHERE = """
import json, os, shutil, sys
import tiermem
from tests import test_damage as t

base, work, first, last, seed = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
import pathlib, random
base, work = pathlib.Path(base), pathlib.Path(work)
size = t.data_of(base).stat().st_size

def judge(path):
    try:
        mem = tiermem.open(path, config=t.CONFIG, verify=True)
    except tiermem.TiermemError as exc:
        return "refused"
    said, missing = [], []
    try:
        for key in t.KEYS:
            try:
                value = mem.get("ns", key)
                if value is None:
                    missing.append(key)
                elif value != t.value_of(key):
                    return f"WRONG get {key}: {value!r}"
            except tiermem.TiermemError as exc:
                said.append(str(exc))
        for reverse in (False, True):
            try:
                records = {record.key: record for record in mem.scan("ns", reverse=reverse)}
            except tiermem.TiermemError as exc:
                said.append(str(exc))
                continue
            if any(record.value != t.value_of(key) for key, record in records.items()):
                return "WRONG value in scan"
            if any(list(record.vector) != [t.near(x) for x in t.vector_of(key)] for key, record in records.items()):
                return "WRONG vector in scan"
            if set(records) != set(t.KEYS):
                missing.append("in scan")
        try:
            hits = mem.search_similar("ns", t.vector_of("k0009"), k=300)
            if len(hits) != len(t.KEYS):
                missing.append(f"search found {len(hits)}")
        except tiermem.TiermemError as exc:
            said.append(str(exc))
        try:
            if mem.count("ns") != len(t.KEYS):
                missing.append("count")
        except tiermem.TiermemError as exc:
            said.append(str(exc))
        try:
            clean = mem.check().ok
        except tiermem.TiermemError as exc:
            clean = False
        if (missing or said) and clean:
            return f"UNSEEN by check: {missing} {said}"
        try:
            mem.put("ns", "k0005", t.value_of("k0005"), vector=t.vector_of("k0005"))
            mem.put("ns", "new", "new")
            mem.flush()
            if mem.get("ns", "new") != "new":
                return "WRONG: a new record was lost"
        except tiermem.TiermemError as exc:
            said.append(str(exc))
    finally:
        try:
            mem.close()
        except tiermem.TiermemError as exc:
            said.append(str(exc))
    if missing and not said:
        return f"SILENT: {missing[:5]}, though check says so"
    return "errors" if said else "right"

for number in range(first, last):
    chosen = random.Random(seed * 1_000_003 + number)
    # Meta pages are flipped less often than their share: LMDB keeps two of them.
    offset, mask = chosen.randrange(8192 if number % 8 else 0, size), 1 << chosen.randrange(8)
    path = work / f"s{number}"
    shutil.copytree(base, path, ignore=shutil.ignore_patterns("*.bell"))
    t.flip(t.data_of(path), offset, mask)
    print(json.dumps([number, offset, mask]), end=" ", flush=True)
    try:
        result = judge(path)
    except BaseException as exc:
        result = f"UNDRESSED {type(exc).__name__}: {exc}"
    print(json.dumps(result), flush=True)
    shutil.rmtree(path)
"""


def near(number: float) -> float:
    """`number` as float32 keeps it."""
    return float(struct.unpack("f", struct.pack("f", number))[0])


def flip_anywhere(base: Path, work: Path, count: int, seed: int) -> dict[str, list[str]]:
    """Outcome → where, for `count` flips; a child that dies is an outcome, and the next one goes on behind it."""
    found: dict[str, list[str]] = {}
    number = 0
    root = Path(__file__).resolve().parent.parent
    while number < count:
        done = subprocess.run(
            [sys.executable, "-c", FLIP_ANYWHERE, *map(str, (base, work, number, count, seed))],
            capture_output=True,
            text=True,
            check=False,
            timeout=1800,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        lines = done.stdout.splitlines()
        for line in lines:
            decoder = json.JSONDecoder()
            place, end = decoder.raw_decode(line)
            rest = line[end:].strip()
            result = json.loads(rest) if rest else f"DIED with {done.returncode}: {done.stderr[-200:]}"
            found.setdefault(result.split(":")[0], []).append(f"byte {place[1]} ^ {place[2]:#x}: {result}")
            number = place[0] + 1
        assert lines, done.stderr
    return found


def check_flips(found: dict[str, list[str]]) -> None:
    bad = {outcome: places for outcome, places in found.items() if outcome not in ("right", "refused", "errors")}
    counts = {outcome: len(places) for outcome, places in found.items()}
    assert not bad, f"{counts}\n" + "\n".join(place for places in bad.values() for place in places[:12])


def test_a_flip_anywhere(base: Path, tmp_path: Path) -> None:
    found = flip_anywhere(base, tmp_path, 24, seed=1)
    assert "refused" in found
    assert {"right", "errors"} & set(found)
    check_flips(found)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [2, 3])
def test_many_flips_anywhere(base: Path, tmp_path: Path, seed: int) -> None:
    check_flips(flip_anywhere(base, tmp_path, 300, seed))
