"""The pages of a data file, read as bytes: nothing is mapped, so whatever is wrong with them nothing crashes."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from tiermem.errors import CorruptionError
from tiermem.tiers.cold.layout import DATABASES, State

# A page starts with its number, padding, flags and bounds; of a meta page follow magic, version,
# address, map size, the rows of the free and of the main database, last page number and transaction id.
_HEADER: Final = struct.Struct("=QHHHH")
_META: Final = struct.Struct("=QHHI II QQ")
_TREE: Final = struct.Struct("=IHHQQQQQ")
_TAIL: Final = struct.Struct("=QQ")
_NODE: Final = struct.Struct("=HHHH")
_WORD: Final = struct.Struct("=Q")
META_BYTES: Final = _META.size + 2 * _TREE.size + _TAIL.size
_MAGIC: Final = 0xBEEFC0DE
_VERSION: Final = 1
_BRANCH, _LEAF, _META_PAGE = 0x01, 0x02, 0x08
_BIG, _SUB = 0x01, 0x02
_NONE: Final = 2**64 - 1
_INTEGER_KEY: Final = 0x08
_DEEPEST: Final = 32
_LONGEST_KEY: Final = 511


class Tree(NamedTuple):
    """The row of a database: what LMDB keeps of one tree."""

    pad: int
    flags: int
    depth: int
    branches: int
    leaves: int
    overflow: int
    entries: int
    root: int

    @property
    def empty(self) -> bool:
        """It holds nothing, and has no pages."""
        return self.root == _NONE


class Meta(NamedTuple):
    """A meta page: one commit."""

    page_bytes: int
    map_size: int
    free: Tree
    main: Tree
    last_page: int
    txn: int


class Leaf(NamedTuple):
    """A page of rows, and the bounds its keys lie in; `sound` if nothing is wrong with its header."""

    number: int
    low: bytes
    high: bytes
    sound: bool


class Hole(NamedTuple):
    """A page that could not be read, and the bounds of the keys that were to be found below it."""

    number: int
    low: bytes
    high: bytes


def unpack_meta(raw: bytes, number: int) -> Meta | None:
    """Meta page `number` in the first bytes of its page; None if it cannot be one."""
    if len(raw) < META_BYTES:
        return None
    own, _, flags, _, magic, version, _, map_size = _META.unpack_from(raw)
    if (own, flags, magic, version) != (number, _META_PAGE, _MAGIC, _VERSION):
        return None
    free = Tree(*_TREE.unpack_from(raw, _META.size))
    main = Tree(*_TREE.unpack_from(raw, _META.size + _TREE.size))
    last_page, txn = _TAIL.unpack_from(raw, _META.size + 2 * _TREE.size)
    # The page size stands where other rows have padding.
    page = free.pad
    if not 512 <= page <= 32768 or page & (page - 1) or (txn and txn % 2 != number):
        return None
    return Meta(page, map_size, free, main, last_page, txn)


class PageFile:
    """A data file, opened to be read page by page; a context manager."""

    def __init__(self, path: Path) -> None:
        """Open the file and read its meta pages; OSError if it cannot be opened."""
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._fd).st_size
        first = unpack_meta(self.read(0, META_BYTES), 0)
        sizes = [first.page_bytes] if first else [2**power for power in range(12, 16)]
        found = ((page, unpack_meta(self.read(page, META_BYTES), 1)) for page in sizes)
        second = next((meta for page, meta in found if meta and meta.page_bytes == page), None)
        self.metas = tuple(sorted((meta for meta in (first, second) if meta), key=lambda meta: meta.txn))
        self.page_bytes = self.metas[0].page_bytes if self.metas else 4096

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def read(self, offset: int, length: int) -> bytes:
        """What is there of `length` bytes at `offset`; nothing where the medium cannot be read."""
        try:
            return os.pread(self._fd, length, offset) if offset < 2**62 else b""
        except OSError:
            return b""

    @property
    def foreign(self) -> bool:
        """Both meta pages are of one other version of LMDB's format."""
        page = int.from_bytes(self.read(40, 4), sys.byteorder)
        versions = {self.read(start + 16, 8) for start in (0, page)}
        ours = _MAGIC.to_bytes(4, sys.byteorder)
        return (
            all(raw[:4] == ours and raw[4:] != _VERSION.to_bytes(4, sys.byteorder) for raw in versions)
            and len(versions) == 1
        )

    def measure(self) -> int:
        """How many bytes the file has by now."""
        self.size = os.fstat(self._fd).st_size
        return self.size

    @property
    def pages(self) -> int:
        """How many whole pages the file has."""
        return self.size // self.page_bytes

    def page(self, number: int) -> bytes:
        """A page, or nothing if the file has none of that number."""
        raw = self.read(number * self.page_bytes, self.page_bytes) if 0 < number < self.pages else b""
        return raw if len(raw) == self.page_bytes else b""

    def kind(self, raw: bytes, number: int) -> int:
        """2 for a page of rows, 1 for one of pointers, 0 if the header is damaged or of another kind."""
        if len(raw) < self.page_bytes:
            return 0
        own, _, flags, lower, upper = _HEADER.unpack_from(raw)
        fits = own == number and _HEADER.size <= lower <= upper <= self.page_bytes and not lower & 1
        return flags if fits and flags in (_BRANCH, _LEAF) else 0

    def _nodes(self, raw: bytes) -> Iterator[tuple[int, int, int, int, int]]:
        """(low half, high half, flags, key bytes, offset behind the header) of each node that lies in the page."""
        lower = _HEADER.unpack_from(raw)[3] if len(raw) == self.page_bytes else 0
        for at in range(_HEADER.size, min(lower, self.page_bytes - 1), 2):
            offset = raw[at] | raw[at + 1] << 8
            if _HEADER.size <= offset <= self.page_bytes - _NODE.size:
                low, high, flags, size = _NODE.unpack_from(raw, offset)
                if size <= _LONGEST_KEY and offset + _NODE.size + size <= self.page_bytes:
                    yield low, high, flags, size, offset + _NODE.size

    def _children(self, raw: bytes) -> list[tuple[bytes, int]]:
        """(lowest key, page) of each pointer on a page of pointers."""
        return [
            (raw[at : at + size], low | high << 16 | flags << 32) for low, high, flags, size, at in self._nodes(raw)
        ]

    def rows(self, raw: bytes) -> Iterator[tuple[bytes, bytes, int]]:
        """(key, data, first page of its own if the data lies there) of each row; nothing of it is verified."""
        for low, high, flags, size, at in self._nodes(raw):
            length, behind = low | high << 16, at + size
            key = raw[at:behind]
            if not flags & _BIG:
                yield key, raw[behind : behind + length], 0
            elif behind + _WORD.size <= len(raw) and length <= self.size:
                start = _WORD.unpack_from(raw, behind)[0]
                yield key, self.read(start * self.page_bytes + _HEADER.size, length), start

    def extent(self, length: int) -> int:
        """How many pages of their own so many bytes of data take."""
        return (_HEADER.size + length + self.page_bytes - 1) // self.page_bytes

    def databases(self, raw: bytes) -> dict[str, Tree]:
        """The rows of the named databases on a page of the main tree."""
        found: dict[str, Tree] = {}
        for low, high, flags, size, at in self._nodes(raw):
            name = raw[at : at + size].decode("latin-1")
            data = raw[at + size : at + size + (low | high << 16)]
            if flags & _SUB and len(data) == _TREE.size and name in DATABASES:
                found[name] = Tree(*_TREE.unpack(data))
        return found

    def walk(
        self, root: int, avoid: frozenset[int] | set[int] = frozenset()
    ) -> Iterator[tuple[int, bytes, Leaf | Hole | None]]:
        """(number, bytes, what it is) of every page of a tree, each once; None stands for a page of pointers.

        A page that is in `avoid` is a hole: it cannot belong to a tree. One whose header is damaged is both a hole
        and a leaf that is not sound, since rows tell by themselves whether they are intact.
        """
        seen: set[int] = set()
        waiting = [(root, b"", b"", 1)]
        while waiting:
            number, low, high, level = waiting.pop()
            if number in seen:
                continue
            seen.add(number)
            raw = b"" if number in avoid or level > _DEEPEST else self.page(number)
            kind = self.kind(raw, number)
            if kind == _LEAF:
                yield number, raw, Leaf(number, low, high, sound=True)
            elif kind == _BRANCH:
                yield number, raw, None
                below = self._children(raw)
                # The first pointer's key is empty: it stands for all that is lower.
                keys = [low, *(key for key, _ in below[1:]), high]
                waiting.extend((below[at][1], keys[at], keys[at + 1], level + 1) for at in reversed(range(len(below))))
            else:
                yield number, raw, Hole(number, low, high)
                if raw:
                    yield number, raw, Leaf(number, low, high, sound=False)

    def free_pages(self, meta: Meta) -> tuple[set[int], set[int], int, bool]:
        """(free pages, pages of their list, newest transaction in it, whether all of it is sound)."""
        free: set[int] = set()
        own: set[int] = set()
        newest, sound, count = 0, True, 0
        if meta.free.empty:
            return free, own, 0, meta.free.entries == 0
        for number, raw, what in self.walk(meta.free.root):
            own.add(number)
            if what is None:
                continue
            if isinstance(what, Hole) or not what.sound:
                sound = False
                continue
            for key, data, start in self.rows(raw):
                count += 1
                words = struct.unpack(f"={len(data) // 8}Q", data[: len(data) // 8 * 8])
                whole = len(key) == 8 and len(data) >= 8 and len(data) == 8 + 8 * words[0]
                listed = words[1:] if whole else ()
                falling = all(high > low for high, low in pairwise(listed))
                fits = falling and (not listed or (listed[-1] > 1 and listed[0] <= meta.last_page))
                sound = sound and whole and fits and free.isdisjoint(listed)
                newest = max(newest, _WORD.unpack(key)[0] if whole else 0)
                free.update(listed if fits else ())
                if start:
                    own.update(range(start, start + self.extent(len(data))))
        return free, own, newest, sound and count == meta.free.entries and own.isdisjoint(free)

    def _state(self, meta: Meta) -> State | None:
        """The counters of the store as of a commit, None if there are none; CorruptionError if nothing leads there."""
        number, entries, row = meta.main.root, meta.main.entries, b""
        for key in (b"meta", b"state"):
            raw = self.page(number)
            if self.kind(raw, number) != _LEAF or (_HEADER.unpack_from(raw)[3] - _HEADER.size) // 2 != entries:
                raise CorruptionError("its counters cannot be read")
            found = (
                (low, high, at + size) for low, high, _, size, at in self._nodes(raw) if raw[at : at + size] == key
            )
            low, high, behind = next(found, (0, 0, 0))
            row = raw[behind : behind + (low | high << 16)] if behind else b""
            if key == b"meta" and len(row) == _TREE.size:
                tree = Tree(*_TREE.unpack(row))
                number, entries = tree.root, tree.entries
            elif not row or key == b"meta":
                return None
        return State.unpack(row)

    def _state_if_any(self, meta: Meta) -> State | None:
        try:
            return None if meta.main.empty else self._state(meta)
        except CorruptionError:
            # After a commit that failed, its pages are used again while its meta page still stands there.
            return None

    def leads_further(self) -> bool:
        """True if the older meta page leads to a commit behind the newer one.

        LMDB leaves that behind where it could write everything but the meta page itself: such a commit never was.
        Damage may look the same; then the commit had been announced.
        """
        older, newer = self.metas
        further, state = self._state_if_any(older), self._state_if_any(newer)
        if further is None or state is None or further.commits != state.commits + 1 or older.free.empty:
            return False
        try:
            return self._newest_freed(older.free) == newer.txn + 1
        except CorruptionError:
            return False

    def _newest_freed(self, tree: Tree) -> int:
        """The newest transaction in the list of free pages; CorruptionError if it is no such list."""
        number, depth = tree.root, 1
        while depth <= tree.depth:
            raw = self.page(number)
            kind = self.kind(raw, number)
            if kind == _BRANCH and (below := self._children(raw)):
                number, depth = below[-1][1], depth + 1
                continue
            nodes = list(self._nodes(raw)) if kind == _LEAF else []
            keys = [raw[at : at + size] for _, _, _, size, at in nodes]
            overflow = sum(self.extent(low | high << 16) for low, high, flags, _, _ in nodes if flags & _BIG)
            alone = tree.depth > 1 or tree[3:7] == (0, 1, overflow, len(keys))
            if keys and alone and depth == tree.depth and all(len(key) == _WORD.size for key in keys):
                return int(_WORD.unpack(keys[-1])[0])
            break
        raise CorruptionError("its list of free pages cannot be read")

    def contradiction(self) -> str:
        """What is wrong with the meta pages, or an empty string.

        They carry no checksum. But two commits that follow each other differ in known ways, and LMDB keeps what
        the older one leads to until the next is done: so one page is held against the other, and both against
        the counters and the list of free pages behind them.
        """
        if len(self.metas) < 2:
            return f"has no valid meta page{' 0 or 1' if not self.metas else f' {1 - self.metas[0].txn % 2}'}"
        older, newer = self.metas
        main = newer.main
        try:
            if newer.page_bytes != older.page_bytes or newer.txn != older.txn + 1 or newer.last_page < older.last_page:
                raise CorruptionError("they do not follow each other")
            if (main.pad, main.flags, main.depth, main.branches, main.leaves, main.overflow) != (0, 0, 1, 0, 1, 0):
                raise CorruptionError("the list of databases is of another kind")
            if main.root == older.main.root:
                raise CorruptionError("one list of databases stands for two commits")
            state, before = self._state(newer), self._state_if_any(older)
            follows = before is None or (state is not None and state.commits - before.commits in (0, 1))
            if not follows and not self.leads_further():
                raise CorruptionError("the counters of the store do not follow each other")
            counted = (
                newer.free.depth,
                newer.free.branches,
                newer.free.leaves,
                newer.free.overflow,
                newer.free.entries,
            )
            if newer.free.flags != _INTEGER_KEY or (newer.free.empty and any(counted)):
                raise CorruptionError("the list of free pages is of another kind")
            if not newer.free.empty and self._newest_freed(newer.free) != newer.txn:
                raise CorruptionError("the list of free pages is of another commit")
        except CorruptionError as exc:
            return f"has meta pages that contradict each other: {exc}"
        return ""
