"""What has to be on the disk before something else is: names, and the files they stand for."""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lmdb
import pytest

import tiermem
from tiermem.engine import generations, opening
from tiermem.engine.commit import Committer
from tiermem.testing import crash
from tiermem.tiers.cold import env
from tiermem.tiers.vector.faiss_engine import FaissEngine

needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="/proc tells what a descriptor is")


@pytest.fixture
def durable(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is synced and what is renamed, in the order in which it happens."""
    done: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def syncing(fd: int) -> None:
        done.append(f"sync {os.readlink(f'/proc/self/fd/{fd}')}")
        fsync(fd)

    def renaming(path: Path, target: Path) -> Path:
        done.append(f"rename {target}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(Path, "rename", renaming)
    return done


@needs_proc
def test_the_directories_of_a_new_store_are_durable(tmp_path: Path, durable: list[str]) -> None:
    """Else a power cut takes the store with what was durable in it."""
    with tiermem.open(tmp_path / "a" / "b" / "store"):
        pass
    for folder in (tmp_path, tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "store"):
        assert f"sync {folder}" in durable


@needs_proc
def test_a_directory_that_was_there_is_durable_with_the_store_in_it(tmp_path: Path, durable: list[str]) -> None:
    (tmp_path / "store").mkdir()
    with tiermem.open(tmp_path / "store"):
        pass
    assert f"sync {tmp_path}" in durable


@needs_proc
def test_the_directory_of_the_first_segment_is_durable(tmp_path: Path, durable: list[str]) -> None:
    """Else a power cut takes what is published."""
    # An engine of one's own is run in this process, where it can be watched; so few rows never reach it.
    engine = FaissEngine()
    with tiermem.open(tmp_path / "store", config=tiermem.Config(vector=tiermem.VectorConfig(engine=engine))) as mem:
        for number in range(20):
            mem.put("n", f"k{number}", number, vector=[1.0, number])
        durable.clear()
        mem.build_index("n")
    assert durable.index(f"sync {tmp_path / 'store' / 'segments'}") < durable.index(f"sync {tmp_path / 'store'}")


@needs_proc
def test_the_directory_of_a_backup_is_durable(tmp_path: Path, durable: list[str]) -> None:
    with tiermem.open(tmp_path / "store") as mem:
        mem.backup(tmp_path / "copies" / "first")
    assert f"sync {tmp_path / 'copies'}" in durable


@needs_proc
def test_a_generation_is_durable_before_it_is_named(tmp_path: Path, durable: list[str]) -> None:
    with tiermem.open(tmp_path / "store") as mem:
        mem.compact()
    named = [number for number, done in enumerate(durable) if done.startswith("rename") and done.endswith("CURRENT")]
    assert len(named) == 2
    for number, generation in zip(named, ("gen-1", "gen-2"), strict=True):
        assert f"sync {tmp_path / 'store' / generation}" in durable[:number]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_store_that_cannot_be_opened_says_whether_there_was_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", refuse)
        with pytest.raises(tiermem.StorageError if code == errno.EIO else tiermem.StoreFullError, match="cannot be"):
            tiermem.open(tmp_path / "store")
    with tiermem.open(tmp_path / "store") as mem:
        mem.put("n", "k", 1)


# ----------------------------------------------------------------------------------------------- moves that half happen


def test_a_move_that_is_said_to_have_failed_and_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk reports an error, the commit may have reached it."""
    with tiermem.open(tmp_path / "store") as mem:
        mem.put("n", "k", 1, durable=True)
        leave = Committer.leave

        def failing(self: Committer, move: Callable[[Any], None]) -> None:
            leave(self, move)
            raise tiermem.StorageError("Input/output error")

        with monkeypatch.context() as broken:
            broken.setattr(Committer, "leave", failing)
            with pytest.raises(tiermem.StorageError, match="Input/output error"):
                mem.compact()
        mem.put("n", "l", 2, durable=True)
        assert (mem.get("n", "k"), mem.get("n", "l")) == (1, 2)
    with tiermem.open(tmp_path / "store") as mem:
        assert (mem.get("n", "k"), mem.get("n", "l")) == (1, 2)
        assert mem.check().ok


@pytest.mark.parametrize("times", [1, 2])
def test_a_move_that_could_not_be_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """The store goes on in the new generation; whoever opens it finds that one, even without a right to mend it."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    mem = tiermem.open(tmp_path / "store")
    mem.put("n", "k", 1, durable=True)
    for number in range(times):
        with monkeypatch.context() as broken:
            broken.setattr(generations, "publish", refuse)
            with pytest.raises(tiermem.StorageError, match="cannot be compacted"):
                mem.compact()
        mem.put("n", f"behind {number}", number, durable=True)
    mem.close()
    assert generations.current(tmp_path / "store") == 1
    for read_only in (True, False):
        with tiermem.open(tmp_path / "store", read_only=read_only) as mem:
            assert mem.get("n", "k") == 1
            assert [record.key for record in mem.scan("n", prefix="behind")] == [f"behind {n}" for n in range(times)]
    assert generations.current(tmp_path / "store") == 1 + times


def test_a_store_that_somebody_else_holds_is_said_to_be_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiermem.open(tmp_path / "store").close()
    code = "import fcntl, sys, time; held = open(sys.argv[1], 'r+'); fcntl.lockf(held, 2); print(flush=True)"
    code += "; time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, tmp_path / "store" / "open.lock"], stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        monkeypatch.setattr(opening, "OPEN_TIMEOUT", 0.05)
        with pytest.raises(tiermem.LockTimeout, match=r"open\.lock"):
            tiermem.open(tmp_path / "store")
        holder.kill()


# ------------------------------------------------------------------------------------- an environment LMDB has given up


class Given:
    """An environment of which LMDB wants to know nothing any more."""

    def __init__(self, env: Any) -> None:
        self.close = env.close
        self.reader_check = env.reader_check

    def begin(self, **_: object) -> None:
        raise lmdb.PanicError("Update of meta page failed or environment had fatal error")


def give_up(mem: tiermem.Memory) -> None:
    """Let LMDB give up the environment of an open store."""
    cold = mem._store.cold
    cold._env = Given(cold._env)
    cold.begin = cold._env.begin


VERBS: dict[str, Callable[[tiermem.Memory], Any]] = {
    "get": lambda mem: mem.get("n", "k"),
    "get_record": lambda mem: mem.get_record("n", "k").value,
    "scan": lambda mem: next(record.value for record in mem.scan("n", prefix="k")),
    "durable put": lambda mem: mem.put("n", "l", 2, durable=True) and 1,
    "conditional put": lambda mem: mem.put("n", "l", 2, if_version=0) and 1,
    "flush": lambda mem: mem.flush() or 1,
    "compact": lambda mem: mem.compact() is not None and 1,
}


@pytest.mark.parametrize("verb", VERBS)
def test_an_environment_that_lmdb_has_given_up_is_opened_again(tmp_path: Path, verb: str) -> None:
    config = tiermem.Config(cold=tiermem.ColdConfig(committer="inline", sync_interval=60.0))
    with tiermem.open(tmp_path / "store", config=config) as mem:
        mem.put("n", "k", 1, durable=True)
        mem.put("n", "journaled", 3)
        give_up(mem)
        assert VERBS[verb](mem) == 1
        assert mem.get("n", "journaled") == 3
        mem.put("n", "more", 4, durable=True)
        assert mem.check().ok
    with tiermem.open(tmp_path / "store") as mem:
        assert {"k", "journaled", "more"} <= {record.key for record in mem.scan("n")}


def test_an_environment_that_cannot_be_opened_again_says_so_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise tiermem.StoreFullError("no room for the lock table")

    config = tiermem.Config(cold=tiermem.ColdConfig(committer="inline", sync_interval=60.0))
    with tiermem.open(tmp_path / "store", config=config) as mem:
        mem.put("n", "k", 1, durable=True)
        give_up(mem)
        with monkeypatch.context() as broken:
            broken.setattr(env, "_allocate", refuse)
            for _ in range(2):
                with pytest.raises(tiermem.StoreFullError, match="no room"):
                    mem.get("n", "k")
        assert mem.get("n", "k") == 1
        mem.put("n", "l", 2, durable=True)


def test_an_environment_that_somebody_reads_is_not_closed_under_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(env, "_PATIENCE", 0.05)
    with tiermem.open(tmp_path / "store") as mem:
        mem.put("n", "k", 1, durable=True)
        with mem._store.cold.read():
            give_up(mem)
            with pytest.raises(tiermem.StorageError, match="must be reopened"):
                mem.get("n", "k")
        assert mem.get("n", "k") == 1


def test_threads_that_meet_a_given_up_environment_together(tmp_path: Path) -> None:
    with tiermem.open(tmp_path / "store") as mem, ThreadPoolExecutor(8) as pool:
        for number in range(200):
            mem.put("n", f"k{number}", number)
        mem.flush()

        def work(number: int) -> None:
            if number % 50 == 10:
                mem.put("n", f"k{number % 200}", number % 200, durable=True)
            elif number % 100 == 0:
                with mem._store.cold._exclusive:
                    give_up(mem)
            assert mem.get_record("n", f"k{number % 200}").value == number % 200

        list(pool.map(work, range(1000)))
        assert mem.check().ok


def test_every_promise_names_a_proof_that_exists() -> None:
    """The tests and sweeps that docs/durability.md names."""
    root = Path(__file__).resolve().parent.parent
    text = (root / "docs" / "durability.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[a-z_]+\.py)::(\w+)`", text)
    assert len(named) > 40
    gone = [
        f"{file}::{name}" for file, name in named if f"\ndef {name}(" not in (root / file).read_text(encoding="utf-8")
    ]
    assert gone == []
    sweeps = set(re.findall(r"`crash: ([^`]+)`", text))
    assert sweeps == set(crash.KINDS)
    for module in re.findall(r"python -m (tiermem\.[a-z.]+)", text):
        assert importlib.util.find_spec(module) is not None, module
