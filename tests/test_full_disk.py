"""No room: a typed error, everything acknowledged still there, and the same open store goes on once there is room."""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tiermem

Run = Callable[..., subprocess.CompletedProcess[str]]

# Every snippet below starts with this: a store, values that do not compress, and what was acknowledged.
COMMON = """
import os, random, resource, shutil, sys, threading, time, traceback
from pathlib import Path
import tiermem

def config(committer="inline", journal=2**18, **cold):
    return tiermem.Config(
        cold=tiermem.ColdConfig(committer=committer, journal_bytes=journal, **{"sync_interval": 0.02, **cold})
    )

def value(number, size=1500):
    return random.Random(number).randbytes(size)

class opened:
    "A store that an error in its block is not followed by another one from closing it."
    def __init__(self, *arguments, **more):
        self.mem = tiermem.open(*arguments, **more)

    def __enter__(self):
        return self.mem

    def __exit__(self, kind, exc, trace):
        if exc is not None:
            traceback.print_exception(exc, limit=2)
            sys.stderr.flush()
            os._exit(1)
        self.mem.close()

acknowledged = {}

def put(mem, number, **more):
    mem.put("ns", f"k{number:05d}", value(number), **more)
    acknowledged[f"k{number:05d}"] = number

def fill(mem, first, most=20_000):
    "Put until there is no room; the number that was refused."
    for number in range(first, first + most):
        try:
            put(mem, number)
        except tiermem.StoreFullError as exc:
            assert str(exc)
            return number
    raise AssertionError("there was room for everything")

def whole(mem):
    "Everything acknowledged is there, and nothing else."
    for key, number in acknowledged.items():
        assert mem.get("ns", key) == value(number), key
    assert {record.key: record.value for record in mem.scan("ns")} == {k: value(n) for k, n in acknowledged.items()}
    assert mem.count("ns") == len(acknowledged)
    found = mem.get_many("ns", list(acknowledged))
    assert len(found) == len(acknowledged)

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def unlimited():
    limit(resource.RLIM_INFINITY)

def data(path):
    return Path(path) / "gen-1" / "data.mdb"
"""


def play(run_python: Run, code: str, *args: object) -> None:
    """Run a snippet behind `COMMON`; it must end by itself, and without an error."""
    done = run_python(COMMON + code, *args, check=False, timeout=100)
    if done.returncode != 0 or done.stdout.split()[-1:] != ["done"]:
        first = COMMON.count("\n")
        said = f"{done.stdout}\n{done.stderr[-3000:]}"
        pytest.fail(f"ended with {done.returncode}; the snippet begins behind line {first}\n{said}", pytrace=False)


# --------------------------------------------------------------------------------------------------- a file-size limit


@pytest.mark.parametrize("committer", ["inline", "thread"])
def test_no_room_for_the_journal(tmp_path: Path, run_python: Run, committer: str) -> None:
    code = """
path, committer = sys.argv[1:]
with opened(path, config=config(committer)) as mem:
    limit(2**17)
    for attempt in (lambda: mem.put("ns", "a", 1), lambda: mem.append("ns", 1), lambda: mem.put_many("ns", [("a", 1)])):
        try:
            attempt()
        except tiermem.StoreFullError as exc:
            assert "journal" in str(exc), exc
            assert isinstance(exc.__cause__, OSError)
    try:
        mem.put("ns", "a", 1)
    except tiermem.StoreFullError:
        pass
    else:
        raise AssertionError("accepted without a journal")
    assert mem.get("ns", "a") is None and mem.count("ns") == 0
    assert sorted(os.listdir(Path(path) / "journals")) == [], os.listdir(Path(path) / "journals")
    # What needs no journal works: there is room for that.
    mem.put("ns", "decided", 1, if_version=0)
    unlimited()
    mem.put("ns", "a", 2)
    assert mem.get("ns", "a") == 2
with opened(path, config=config(committer)) as mem:
    assert mem.get("ns", "a") == 2 and mem.get("ns", "decided") == 1
    assert mem.check().ok
print("done")
"""
    play(run_python, code, tmp_path / "s", committer)


@pytest.mark.parametrize("size", [0, 1, 4096, 8192, 20_000, 36_863, 36_864, 50_000])
def test_no_room_for_a_new_store(tmp_path: Path, run_python: Run, size: int) -> None:
    code = """
path, size = sys.argv[1], int(sys.argv[2])
limit(size)
try:
    with tiermem.open(path, config=config()) as mem:
        raise AssertionError("opened")
except tiermem.StoreFullError as exc:
    assert str(exc)
unlimited()
with opened(path, config=config()) as mem:
    put(mem, 1)
with opened(path, config=config(), verify=True) as mem:
    whole(mem)
    assert mem.check().ok
print("done")
"""
    play(run_python, code, tmp_path / "s", size)


@pytest.mark.parametrize("committer", ["inline", "thread"])
@pytest.mark.parametrize("slack", [0, 1, 4096, 5000, 8192, 20_000, 100_001])
def test_no_room_for_the_pages_of_a_commit(tmp_path: Path, run_python: Run, committer: str, slack: int) -> None:
    """The file cannot grow, wherever in a commit that shows."""
    code = """
path, committer, slack = sys.argv[1], sys.argv[2], int(sys.argv[3])
with opened(path, config=config(committer)) as mem:
    for number in range(50):
        put(mem, number)
    mem.flush()
    before = mem.stats().log.last
    limit(data(path).stat().st_size + slack)
    refused = fill(mem, 50)
    assert refused > 50, "nothing fitted into the journal"
    assert mem.get("ns", f"k{refused:05d}") is None, "refused, and there"
    whole(mem)
    try:
        mem.flush()
    except tiermem.StoreFullError as exc:
        assert str(exc) and exc.__cause__ is not None
    else:
        raise AssertionError("flushed without room")
    whole(mem)
    if committer == "thread":
        # A slice may have fitted just now: the next one will not.
        deadline = time.monotonic() + 30
        while not mem.stats().degraded:
            assert time.monotonic() < deadline, "a commit that fails again and again is not shown"
            time.sleep(0.01)
    # Each of the other ways to write: refused, or kept.
    for name, attempt in {
        "batch": lambda: batch(mem),
        "put_many": lambda: mem.put_many("ns", [("many", value(1, 200_000))]),
        "decided": lambda: mem.put("ns", "decided", value(2, 500_000), if_version=0),
        "large": lambda: mem.put("ns", "large", value(3, 500_000)),
    }.items():
        try:
            attempt()
        except tiermem.StoreFullError:
            assert mem.get("ns", name) is None, name
        else:
            raise AssertionError(f"{name} was accepted without room")
    whole(mem)
    assert next(iter(mem.scan("ns"))).key == "k00000"
    unlimited()
    mem.flush()
    whole(mem)
    put(mem, refused)
    for number in range(refused, refused + 300):
        put(mem, number)
    mem.flush()
    whole(mem)
    if committer == "inline":
        assert not mem.stats().degraded
    assert mem.stats().writes.pending == 0
    assert mem.check().ok, mem.check()
with opened(path, config=config(committer), verify=True) as mem:
    whole(mem)
    assert mem.check().ok
print("done")
"""
    code = code.replace(
        "path, committer, slack",
        """
def batch(mem):
    with mem.batch() as b:
        b.put("ns", "batch", value(4, 100_000))
        b.put("ns", "batch2", 1)

path, committer, slack""".lstrip(),
        1,
    )
    play(run_python, code, tmp_path / "s", committer, slack)


@pytest.mark.parametrize("how", ["put", "batch", "put_many", "append"])
def test_a_durable_write_that_cannot_be_synced_stands_in_the_journal(tmp_path: Path, run_python: Run, how: str) -> None:
    """StoreFullError of a durable write says that it is not synced yet; it is committed once there is room."""
    code = """
path, how = sys.argv[1:]
def write(mem):
    if how == "put":
        mem.put("ns", "new", value(1, 50_000), durable=True)
    elif how == "batch":
        with mem.batch(durable=True) as batch:
            batch.put("ns", "new", value(1, 50_000))
    elif how == "append":
        mem.append("ns", value(1, 50_000), durable=True)
    else:
        mem.put_many("ns", [("new", value(1, 50_000))], durable=True)
with opened(path, config=config(sync_interval=60.0)) as mem:
    put(mem, 1)
    mem.flush()
    limit(data(path).stat().st_size)
    try:
        write(mem)
    except tiermem.StoreFullError:
        pass
    else:
        raise AssertionError("durable without room")
    assert mem.count("ns") == 2
    unlimited()
    mem.flush()
    assert mem.count("ns") == 2
with opened(path, config=config()) as mem:
    assert mem.count("ns") == 2 and mem.check().ok
print("done")
"""
    play(run_python, code, tmp_path / "s", how)


@pytest.mark.parametrize("how", ["put", "append", "batch", "put_many"])
def test_a_commit_that_fails_behind_a_put_does_not_refuse_it(tmp_path: Path, run_python: Run, how: str) -> None:
    """A journaled put is acknowledged: where the commit behind it fails, it says nothing or is undone."""
    code = """
path, how = sys.argv[1:]
def write(mem, key):
    if how == "put":
        mem.put("ns", key, value(1))
    elif how == "append":
        return mem.append("ns", value(1))
    elif how == "batch":
        with mem.batch() as batch:
            batch.put("ns", key, value(1))
    else:
        mem.put_many("ns", [(key, value(1))])
    return key
with opened(path, config=config(sync_interval=1e-9)) as mem:
    put(mem, 1)
    mem.flush()
    limit(data(path).stat().st_size)
    for number in range(20):
        try:
            acknowledged[write(mem, f"new{number}")] = 1
        except tiermem.StoreFullError:
            pass
        whole(mem)
    unlimited()
    mem.flush()
    whole(mem)
print("done")
"""
    play(run_python, code, tmp_path / "s", how)


def test_closing_without_room_says_so_and_loses_nothing(tmp_path: Path, run_python: Run) -> None:
    code = """
path = sys.argv[1]
mem = tiermem.open(path, config=config(sync_interval=60.0))
put(mem, 0)
mem.flush()
for number in range(1, 60):
    put(mem, number)
limit(data(path).stat().st_size)
try:
    mem.close()
except tiermem.StoreFullError as exc:
    assert str(exc)
else:
    raise AssertionError("closed without room, and said nothing")
mem.close()
try:
    mem.get("ns", "k00000")
except tiermem.ClosedError:
    pass
else:
    raise AssertionError("still open")
# Still no room: opening would have to commit what the journal holds.
try:
    tiermem.open(path, config=config()).close()
except tiermem.StoreFullError as exc:
    assert str(exc)
else:
    raise AssertionError("opened without room")
with opened(path, read_only=True) as mem:
    whole(mem)
unlimited()
with opened(path, config=config()) as mem:
    whole(mem)
    assert mem.check().ok
print("done")
"""
    play(run_python, code, tmp_path / "s")


@pytest.mark.parametrize("slack", [0, 50_000])
def test_no_room_to_compact_or_back_up(tmp_path: Path, run_python: Run, slack: int) -> None:
    code = """
path, slack = sys.argv[1], int(sys.argv[2])
with opened(path, config=config()) as mem:
    for number in range(200):
        put(mem, number)
    mem.flush()
    limit(40_960 + slack)
    for name, attempt in (("compact", mem.compact), ("backup", lambda: mem.backup(path + "-copy"))):
        try:
            attempt()
        except tiermem.StoreFullError as exc:
            assert str(exc)
        else:
            raise AssertionError(f"{name} found room")
        whole(mem)
    unlimited()
    assert [entry for entry in sorted(os.listdir(path)) if entry.startswith("gen-")] == ["gen-1"], os.listdir(path)
    try:
        tiermem.open(path + "-copy", read_only=True)
    except tiermem.IncompatibleFormatError:
        pass
    else:
        raise AssertionError("half a backup looks like a store")
    put(mem, 200)
    mem.flush()
    mem.compact()
    whole(mem)
    shutil.rmtree(path + "-copy", ignore_errors=True)
    mem.backup(path + "-copy")
    assert mem.check().ok
for store in (path, path + "-copy"):
    with opened(store, config=config(), verify=True) as mem:
        whole(mem)
print("done")
"""
    play(run_python, code, tmp_path / "s", slack)


# ------------------------------------------------------------------------------------------------------- a full device


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB of its own."""
    folder = tmp_path / "small"
    folder.mkdir()
    if sys.platform != "linux" or shutil.which("mount") is None:
        pytest.skip("no tmpfs here")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m,mode=0777", "tmpfs", str(folder)],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        pytest.skip(f"mounting a tmpfs is not permitted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


TMPFS = """
folder = Path(sys.argv[1])
path = folder / "store"

def ballast(leave):
    "Fill the device but for `leave` bytes."
    with (folder / "ballast").open("wb") as file:
        free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
        os.posix_fallocate(file.fileno(), 0, free - leave)

def lighten():
    (folder / "ballast").unlink()
"""


@pytest.mark.parametrize("committer", ["inline", "thread"])
@pytest.mark.parametrize("leave", [0, 4096, 64 * 1024, 1024 * 1024 + 4096])
def test_a_full_device(small: Path, run_python: Run, committer: str, leave: int) -> None:
    code = """
with opened(path, config=config(sys.argv[2])) as mem:
    for number in range(20):
        put(mem, number)
    mem.flush()
    ballast(int(sys.argv[3]))
    refused = fill(mem, 20)
    assert mem.get("ns", f"k{refused:05d}") is None, "refused, and there"
    whole(mem)
    try:
        mem.flush()
    except tiermem.StoreFullError as exc:
        assert str(exc) and exc.__cause__ is not None
    else:
        raise AssertionError("flushed without room")
    # A smaller commit may have found room meanwhile: what was refused may fit now, or be refused again.
    fill(mem, refused)
    whole(mem)
    lighten()
    mem.flush()
    whole(mem)
    refused = max(int(key[1:]) for key in acknowledged) + 1
    for number in range(refused, refused + 300):
        put(mem, number)
    mem.flush()
    whole(mem)
    report = mem.check()
    assert report.ok, report
with opened(path, config=config(), verify=True) as mem:
    whole(mem)
    assert mem.check().ok
print("done")
"""
    play(run_python, TMPFS + code, small, committer, leave)


def test_many_readers_on_a_full_device(small: Path, run_python: Run) -> None:
    """Reading needs no room: not even the hundredth reader at a time."""
    code = """
with opened(path, config=config(sync_interval=60.0)) as mem:
    for number in range(1500):
        put(mem, number) if number % 50 == 0 else mem.put("other", f"k{number:05d}", number)
    mem.flush()
    ballast(0)
    keys = [f"k{number:05d}" for number in range(600)]
    start = threading.Barrier(120)
    wrong = []
    def read():
        try:
            start.wait()
            mem.get_many("other", keys)
        except BaseException as exc:
            wrong.append(repr(exc))
    sys.setswitchinterval(1e-4)
    threads = [threading.Thread(target=read) for _ in range(120)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:3]
    whole(mem)
    lighten()
print("done")
"""
    play(run_python, TMPFS + code, small)


@pytest.mark.parametrize("leave", [0, 4096, 8192, 40_960, 65_536, 131_072, 200_704])
def test_opening_on_a_full_device(small: Path, run_python: Run, leave: int) -> None:
    code = """
ballast(int(sys.argv[2]))
try:
    with tiermem.open(path, config=config()) as mem:
        put(mem, 1)
        mem.flush()
except tiermem.StoreFullError as exc:
    assert str(exc)
else:
    raise AssertionError("there was room for a journal")
lighten()
acknowledged.clear()
with opened(path, config=config()) as mem:
    put(mem, 1)
    mem.flush()
    whole(mem)
    ballast(0)
with opened(path, read_only=True) as mem:
    whole(mem)
try:
    with tiermem.open(path, config=config()) as mem:
        whole(mem)
        fill(mem, 2)
        whole(mem)
except tiermem.StoreFullError:
    pass
lighten()
with opened(path, config=config(), verify=True) as mem:
    whole(mem)
    assert mem.check().ok
print("done")
"""
    play(run_python, TMPFS + code, small, leave)


def test_compacting_on_a_full_device(small: Path, run_python: Run) -> None:
    code = """
with opened(path, config=config()) as mem:
    for number in range(900):
        put(mem, number)
    mem.flush()
    ballast(1024 * 1024)
    for _ in range(2):
        try:
            mem.compact()
        except tiermem.StoreFullError as exc:
            assert str(exc)
        else:
            raise AssertionError("compacted without room")
        whole(mem)
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    assert free > 512 * 1024, f"what was begun is still there: {free} bytes free, {os.listdir(path)}"
    put(mem, 900)
    mem.flush()
    whole(mem)
    lighten()
    mem.compact()
    whole(mem)
    assert mem.check().ok
with opened(path, config=config(), verify=True) as mem:
    whole(mem)
print("done")
"""
    play(run_python, TMPFS + code, small)


# ---------------------------------------------------------------------------------------------------------- map_size


@pytest.mark.parametrize("committer", ["inline", "thread"])
def test_the_map_is_full(tmp_path: Path, run_python: Run, committer: str) -> None:
    code = """
path, committer = sys.argv[1:]
small = config(committer, map_size=2**20)
mem = tiermem.open(path, config=small)
refused = fill(mem, 0)
assert refused > 100
assert mem.get("ns", f"k{refused:05d}") is None
whole(mem)
try:
    mem.flush()
except tiermem.StoreFullError as exc:
    assert "map_size" in str(exc), exc
else:
    raise AssertionError("flushed into a full map")
whole(mem)
try:
    mem.close()
except tiermem.StoreFullError as exc:
    assert "map_size" in str(exc), exc
try:
    tiermem.open(path, config=small).close()
except tiermem.StoreFullError as exc:
    assert "map_size" in str(exc), exc
with opened(path, config=config(committer, map_size=2**26)) as mem:
    whole(mem)
    for number in range(refused, refused + 200):
        put(mem, number)
    mem.flush()
    whole(mem)
    assert mem.check().ok
with opened(path, config=config(), verify=True) as mem:
    whole(mem)
print("done")
"""
    play(run_python, code, tmp_path / "s", committer)


def test_a_value_larger_than_the_map(tmp_path: Path) -> None:
    small = tiermem.Config(cold=tiermem.ColdConfig(committer="inline", map_size=2**20, journal_bytes=2**18))
    with tiermem.open(tmp_path / "s", config=small) as mem:
        mem.put("ns", "kept", 1)
        mem.flush()
        with pytest.raises(tiermem.StoreFullError, match="map_size"):
            mem.put("ns", "huge", random.Random(1).randbytes(2**22), vector=list(range(1, 300)))
        assert mem.get("ns", "huge") is None
        assert mem.count("ns") == 1
        mem.put("ns", "small", 2)
        mem.flush()
        assert mem.get("ns", "small") == 2
        assert mem.check().ok


def test_a_map_smaller_than_the_store(tmp_path: Path) -> None:
    """LMDB takes the larger of the two: opening must neither fail in the middle nor lose anything."""
    large = tiermem.Config(cold=tiermem.ColdConfig(committer="inline", journal_bytes=2**20))
    with tiermem.open(tmp_path / "s", config=large) as mem:
        mem.put_many("ns", [(f"k{n}", random.Random(n).randbytes(400)) for n in range(4000)])
    assert (tmp_path / "s" / "gen-1" / "data.mdb").stat().st_size > 2**20
    small = tiermem.Config(cold=tiermem.ColdConfig(committer="inline", map_size=2**20, journal_bytes=2**20))
    with contextlib.suppress(tiermem.StoreFullError), tiermem.open(tmp_path / "s", config=small) as mem:
        assert mem.count("ns") == 4000
    with tiermem.open(tmp_path / "s", config=large) as mem:
        assert mem.count("ns") == 4000
        assert mem.check().ok
