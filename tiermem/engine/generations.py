"""Generations: which LMDB environment of a store is the live one."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Final

from tiermem.config import ColdConfig
from tiermem.errors import CorruptionError, IncompatibleFormatError, InvalidArgument
from tiermem.tiers.cold import ColdEnv

TRIES: Final = 4
PAUSE: Final = 0.05
"""How often, and after how many seconds, an environment is opened again that seems to be empty."""
_MARKER: Final = "tiermem store 1\n"


def current(root: Path) -> int:
    """The generation that `CURRENT` names.

    Raises:
        CorruptionError: it names none.
    """
    text = (root / "CURRENT").read_text(encoding="utf-8", errors="replace")
    first, _, rest = text.partition("\n")
    if not first.startswith("tiermem store "):
        raise IncompatibleFormatError(f"{root / 'CURRENT'} was not written by tiermem")
    if first + "\n" != _MARKER:
        raise IncompatibleFormatError(f"{root} is a {first!r}; this version reads {_MARKER.strip()!r}")
    name = rest.strip()
    if not (name.startswith("gen-") and name[4:].isascii() and name[4:].isdigit() and len(name) < 24):
        raise CorruptionError(f"{root / 'CURRENT'} names no generation: {name[:40]!r}")
    return int(name[4:])


def connect(root: Path, generation: int, config: ColdConfig, *, read_only: bool) -> ColdEnv:
    """The environment of a generation, opened.

    A process that is killed while it makes LMDB's lock table leaves it half made to one that was waiting for it, and
    whoever opens it beside that one finds an empty environment. Once the other has given up it is made anew.
    """
    for _ in range(TRIES):
        try:
            return ColdEnv(root, generation, config, read_only=read_only)
        except IncompatibleFormatError:
            time.sleep(PAUSE)
    return ColdEnv(root, generation, config, read_only=read_only)


def publish(root: Path, generation: int) -> None:
    """Make `generation` the one that is opened: temporary file, fsync, rename, fsync of the directory."""
    fresh = root / "CURRENT.new"
    with fresh.open("w", encoding="utf-8") as file:
        file.write(f"{_MARKER}gen-{generation}\n")
        file.flush()
        os.fsync(file.fileno())
    # What is named has to be there: the names of two directories may reach the disk in either order.
    sync_folder(root / f"gen-{generation}")
    fresh.rename(root / "CURRENT")
    sync_folder(root)


def sync_folder(folder: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def as_path(path: object) -> Path:
    """`path`, if it is a str or os.PathLike that can name a directory.

    Raises:
        InvalidArgument: it is not.
    """
    if isinstance(path, (str, os.PathLike)) and "\0" not in (text := os.fspath(path)) and isinstance(text, str):
        return Path(text)
    raise InvalidArgument(f"a path is a str or os.PathLike that names a directory, not {path!r}")


def make_folder(root: Path) -> None:
    """Make a directory and those it lies in, durably: nothing in it outlives a power cut that it does not."""
    if root.is_dir():
        return
    if not root.parent.is_dir():
        make_folder(root.parent)
    root.mkdir(exist_ok=True)
    sync_folder(root.parent)


def remove_old(root: Path, generation: int) -> None:
    """Delete the environments of generations that were left; who still maps one keeps its pages."""
    for folder in root.glob("gen-*"):
        if folder.name[4:].isdigit() and int(folder.name[4:]) != generation:
            for name in ("data.mdb", "lock.mdb"):
                (folder / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                folder.rmdir()


def keep_damaged(root: Path, generation: int) -> Path:
    """Rename the directory of a generation that was salvaged, so that nothing deletes it; its new path."""
    folder, number = root / f"gen-{generation}.damaged", 1
    while folder.exists():
        number += 1
        folder = root / f"gen-{generation}.damaged-{number}"
    (root / f"gen-{generation}").rename(folder)
    sync_folder(root)
    return folder
