"""What has to be on the disk before something else is: names, and the files they stand for."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

import tiermem

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
