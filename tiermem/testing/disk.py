"""A disk as it is when the power goes: what was written but not synced may be there or not, page by page.

The system calls of a process are replayed on a model of the directory. A write counts once its file was synced, a name
once its directory was; what follows that may have reached the disk in part. Of a file that is written through a map any
page may, since no call tells when it was changed.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from tiermem.testing.strace import SYNCS

PAGE: Final = 4096
FORKS: Final = ("clone", "clone3", "fork", "vfork")
CALLS: Final = (
    *("openat", "close", "mkdir", "rmdir", "rename", "unlink", "unlinkat"),
    *("lseek", "write", "pwrite64", "writev", "pwritev", "ftruncate", "fallocate"),
    *("mmap", *SYNCS),
    *FORKS,
    "execve",
)
"""What has to be recorded."""
FLAGS: Final = ("-y", "-xx", "-s", str(2**22))
_LINE: Final = re.compile(r"(\d+) +(.*)")
_CALL: Final = re.compile(r"(\w+)\((.*)\) += (0x[0-9a-f]+|-?\d+|\?)")
_TEXT: Final = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_FD: Final = re.compile(r"(?:^|, )(\d+)<((?:\\x[0-9a-f]{2})*)>")


class Call(NamedTuple):
    """One system call: who made it, with what, as strace writes it, and its result; None if it never returned."""

    task: int
    name: str
    arguments: str
    result: int | None

    @property
    def texts(self) -> list[bytes]:
        """The strings among the arguments."""
        return [_unhex(found) for found in _TEXT.findall(self.arguments)]

    @property
    def numbers(self) -> list[str]:
        """The arguments that hold no string."""
        return [part.strip() for part in _TEXT.sub("", self.arguments).split(",")]


def _unhex(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def calls(log: Path) -> list[Call]:
    """The calls in a log that strace has written with `FLAGS`, in the order in which they took effect.

    Of a call that takes its time, any instant in between may be the one: a write is taken to happen at its end and a
    sync at its beginning, which is the worst for what is lost.
    """
    begun: dict[int, tuple[int, str]] = {}
    found: list[tuple[int, Call]] = []
    with log.open(encoding="ascii", errors="replace") as lines:
        for number, line in enumerate(lines):
            if not (parts := _LINE.match(line)):
                continue
            task, rest, first = int(parts[1]), parts[2], number
            if rest.endswith("<unfinished ...>"):
                begun[task] = number, rest.removesuffix("<unfinished ...>").rstrip()
                continue
            if rest.startswith("<... "):
                first, before = begun.pop(task, (number, ""))
                rest = before + rest.partition("resumed>")[2]
            if call := _CALL.match(rest):
                name, arguments, result = call.groups()
                at = first if name in SYNCS else number
                found.append((at, Call(task, name, arguments, None if result == "?" else int(result, 0))))
    found.sort(key=lambda one: one[0])
    left = [Call(task, rest.partition("(")[0], rest.partition("(")[2], None) for task, (_, rest) in begun.items()]
    return [call for _, call in found] + left


@dataclass
class _File:
    """What of a file is on the disk for certain, and the changes that may be: (offset, bytes) or (length, None).

    synced: where the pages begin that were synced through a map.
    """

    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    mapped: bool = False
    synced: set[int] = field(default_factory=set)
    doubtful: bool = False

    def sync(self) -> None:
        for change in self.pending:
            _apply(self.durable, change)
        self.pending.clear()

    def whole(self) -> bytearray:
        content = bytearray(self.durable)
        for change in self.pending:
            _apply(content, change)
        return content


def _apply(content: bytearray, change: tuple[int, bytes | None]) -> None:
    offset, data = change
    end = offset if data is None else offset + len(data)
    if end > len(content):
        content.extend(bytes(end - len(content)))
    if data is None:
        del content[end:]
    else:
        content[offset:end] = data


def _same(path: Path, file: _File) -> bool:
    return path.is_file() and path.read_bytes() == bytes(file.whole())


@dataclass
class _Folder:
    """The names of a directory: those on the disk for certain, and the changes behind: (name, entry or None)."""

    durable: dict[str, _File | _Folder] = field(default_factory=dict)
    pending: list[tuple[str, _File | _Folder | None]] = field(default_factory=list)

    def names(self, kept: int | None = None) -> dict[str, _File | _Folder]:
        names = dict(self.durable)
        for name, entry in self.pending[:kept]:
            if entry is None:
                names.pop(name, None)
            else:
                names[name] = entry
        return names

    def sync(self) -> None:
        self.durable = self.names()
        self.pending.clear()


class _Open(NamedTuple):
    """An open file, where it is written next, and whether each write is synced."""

    file: _File
    position: list[int]
    at_once: bool


@dataclass
class _Process:
    """What a process has open, by descriptor, and mapped, by address."""

    files: dict[int, _Open] = field(default_factory=dict)
    maps: dict[int, _File] = field(default_factory=dict)


class Disk:
    """The disk under one directory, which is empty and durable to begin with."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._top = _Folder()
        self._processes: dict[int, _Process] = {}

    def replay(self, log: Path) -> None:
        """Do what a log says, which begins with one process that has nothing open here."""
        done = calls(log)
        parents = {call.result: call for call in done if call.name in FORKS and call.result}
        for call in done:
            if call.result is not None and call.result < 0:
                continue
            if call.task not in self._processes:
                self._processes[call.task] = self._born(parents.get(call.task))
            if call.name == "execve":
                # What stays open is not what matters here.
                self._processes[call.task] = _Process()
            elif call.name not in FORKS:
                self._do(call, self._processes[call.task])

    def _born(self, made: Call | None) -> _Process:
        parent = _Process() if made is None else self._processes.get(made.task, _Process())
        if made is not None and "CLONE_FILES" in made.arguments:
            return parent
        return _Process(dict(parent.files), {})

    def _find(self, path: bytes | str) -> tuple[_Folder, str] | None:
        """The directory of a path, and its name in there; None if it lies elsewhere."""
        where = Path(path.decode(errors="surrogateescape") if isinstance(path, bytes) else path)
        if not where.is_relative_to(self._root) or where == self._root:
            return None
        folder = self._top
        for name in where.relative_to(self._root).parts[:-1]:
            entry = folder.names().get(name)
            if not isinstance(entry, _Folder):
                return None
            folder = entry
        return folder, where.name

    def _entry(self, path: bytes) -> _File | _Folder | None:
        if Path(path.decode(errors="surrogateescape")) == self._root:
            return self._top
        place = self._find(path)
        return None if place is None else place[0].names().get(place[1])

    def _do(self, call: Call, process: _Process) -> None:
        name = call.name
        if name == "openat":
            self._do_open(call, process)
        elif name in ("mkdir", "rmdir", "unlink", "unlinkat"):
            place = self._find(call.texts[0])
            if place is not None and call.result is not None:
                place[0].pending.append((place[1], _Folder() if name == "mkdir" else None))
        elif name == "rename":
            source, target = (self._find(text) for text in call.texts)
            if source is not None and target is not None and call.result is not None:
                entry = source[0].names()[source[1]]
                source[0].pending.append((source[1], None))
                target[0].pending.append((target[1], entry))
        elif name == "msync":
            file = process.maps.get(int(call.numbers[0], 0))
            if file is not None and call.result is not None:
                file.sync()
                file.synced.update(range(0, int(call.numbers[1]), PAGE))
        elif (fd := _FD.search(call.arguments)) is not None:
            self._do_on(call, process, int(fd[1]), _unhex(fd[2]))

    def _do_open(self, call: Call, process: _Process) -> None:
        if call.result is None:
            return
        process.files.pop(call.result, None)
        place = self._find(call.texts[0])
        if place is None:
            return
        flags = call.arguments
        file = place[0].names().get(place[1])
        if file is None and "O_CREAT" not in flags:
            # A FIFO: everything else was made by a call that is recorded. It holds nothing.
            return
        if file is None:
            file = _File()
            place[0].pending.append((place[1], file))
        if isinstance(file, _File):
            if "O_TRUNC" in flags:
                file.pending.append((0, None))
            process.files[call.result] = _Open(file, [0], "O_DSYNC" in flags or "O_SYNC" in flags)

    def _do_on(self, call: Call, process: _Process, fd: int, path: bytes) -> None:
        name, done = call.name, call.result is not None
        if name in ("fsync", "fdatasync"):
            entry = process.files[fd].file if fd in process.files else self._entry(path)
            if entry is not None and done:
                entry.sync()
            return
        known = process.files.get(fd)
        if known is None:
            return
        file, position, at_once = known
        if name == "close":
            process.files.pop(fd)
        elif name == "mmap":
            if "MAP_SHARED" in call.arguments and "PROT_WRITE" in call.arguments and call.result is not None:
                file.mapped = True
                process.maps[call.result] = file
        elif name == "lseek":
            position[0] = call.result or 0
        elif not done and name in ("fallocate", "ftruncate"):
            file.doubtful = True
        elif name == "fallocate":
            offset, length = (int(number) for number in call.numbers[-2:])
            if offset + length > len(file.whole()):
                file.pending.append((offset + length, None))
        elif name == "ftruncate":
            file.pending.append((int(call.numbers[-1]), None))
        else:
            self._write(call, file, position, at_once)

    def _write(self, call: Call, file: _File, position: list[int], at_once: bool) -> None:
        data = b"".join(call.texts)
        given = call.name in ("pwrite64", "pwritev")
        offset = int(call.numbers[-1]) if given else position[0]
        if call.result is None:
            file.doubtful = True
        else:
            data = data[: call.result]
        if not given:
            position[0] = offset + len(data)
        # Page by page, as they may reach the disk.
        while data:
            size = PAGE - offset % PAGE
            file.pending.append((offset, data[:size]))
            offset, data = offset + size, data[size:]
        if at_once and call.result is not None:
            file.sync()

    # ---------------------------------------------------------------------------------------------------- outcomes

    def differs(self, folder: _Folder | None = None, path: Path | None = None) -> list[str]:
        """The files that are not what the directory holds now: then the replay has missed something."""
        folder, path = folder or self._top, path or self._root
        wrong: list[str] = []
        for name, entry in folder.names().items():
            if isinstance(entry, _Folder):
                wrong.extend(self.differs(entry, path / name))
            elif not entry.mapped and not entry.doubtful and not _same(path / name, entry):
                wrong.append(str(path / name))
        return wrong

    def write(self, target: Path, rng: random.Random, kept: float) -> None:
        """Make the directory `target` what may be found after the power went.

        kept: the chance of each change that was not synced to be there. Changes of a directory are kept in order.
        """
        self._write_folder(self._top, self._root, target, rng, kept)

    def _write_folder(self, folder: _Folder, live: Path, target: Path, rng: random.Random, kept: float) -> None:
        target.mkdir()
        behind = len(folder.pending)
        order = behind if kept == 1 else sum(1 for _ in range(behind) if rng.random() < kept)
        present = {id(entry): name for name, entry in folder.names().items()}
        for name, entry in folder.names(order).items():
            if isinstance(entry, _Folder):
                self._write_folder(entry, live / name, target / name, rng, kept)
                continue
            content = bytearray(entry.durable)
            for change in entry.pending:
                if rng.random() < kept:
                    _apply(content, change)
            if entry.mapped:
                current = live / present.get(id(entry), name)
                self._mapped(entry, content, current, rng, kept)
            (target / name).write_bytes(content)

    @staticmethod
    def _mapped(file: _File, content: bytearray, current: Path, rng: random.Random, kept: float) -> None:
        if not current.is_file():
            return
        now = current.read_bytes()
        for start in range(0, min(len(now), len(content)), PAGE):
            if start in file.synced or rng.random() < kept:
                content[start : start + PAGE] = now[start : start + PAGE]
