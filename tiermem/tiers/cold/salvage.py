"""Salvage: what is intact and current in a data file that LMDB cannot walk, read page by page.

Every row but those of indexes carries a checksum that covers its key, so a row is believed wherever it
is found. What a checksum cannot tell is whether a row is the newest of its key: pages that were freed
still hold older ones. So a page counts if a tree leads to it, or if nothing does and the list of free
pages, itself sound, does not name it. Where that list cannot be trusted, the change log has to confirm
a row. A row the change log contradicts is never kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tiermem.codec.frame import HAS_VECTOR, RAW, Frame, peek, seal, unpack_frame, unpack_vector, unseal
from tiermem.errors import CorruptionError, IncompatibleFormatError, InvalidNamespace
from tiermem.tiers.cold.layout import (
    ANSWER,
    DATABASES,
    OP_DROP,
    OP_PUT,
    U32,
    U64,
    NamespaceInfo,
    State,
    unpack_answer,
    unpack_cursor,
    unpack_identity,
    unpack_info,
    unpack_log_row,
    unpack_mark,
)
from tiermem.tiers.cold.pages import Hole, Leaf, Meta, PageFile, Tree
from tiermem.types import check_namespace

if TYPE_CHECKING:
    from tiermem.tiers.cold.env import ColdEnv

_ZSTD: Final = bytes.fromhex("28b52ffd")
_ZSTD_DICTIONARY: Final = bytes.fromhex("37a430ec")
_MOST: Final = 1_000
"""Losses named one by one; the rest are counted."""


class _Found(NamedTuple):
    """A page of rows; `doubtful` if it may have been freed."""

    leaf: Leaf
    doubtful: bool


def _record(key: bytes, row: bytes) -> Frame | None:
    """The frame of a record, if the row is one and intact."""
    try:
        frame = unpack_frame(key, memoryview(row))
    except (CorruptionError, IncompatibleFormatError):
        return None
    stored = len(frame.body) == frame.value_bytes if frame.codec == RAW else frame.body[:4] == _ZSTD
    return frame if len(key) > 4 and stored else None


def _valid(name: bytes) -> bool:
    try:
        return bool(check_namespace(name.decode()).isprintable())
    except (InvalidNamespace, UnicodeDecodeError):
        return False


def _is_log(key: bytes, row: bytes) -> None:
    if len(key) != U64.size:
        raise CorruptionError("not a row of the log")
    unpack_log_row(key, row)


def _is_meta(key: bytes, row: bytes) -> None:
    if key not in (b"state", b"identity"):
        raise CorruptionError("not a row of the store")
    if key == b"state":
        State.unpack(row)
    else:
        unpack_identity(row)


def _is_number(key: bytes, row: bytes, fits: Callable[[bytes], bool]) -> None:
    if len(key) != U32.size or not fits(unseal(key, row)):
        raise CorruptionError("not a row under a number")


def _is_mark(key: bytes, row: bytes) -> None:
    if key[U32.size :] == ANSWER:
        unpack_answer(key, row)
        return
    unpack_mark(key, row)
    if len(key) != U32.size:
        raise CorruptionError("not a row under a number")


def _is_vector(key: bytes, row: bytes) -> None:
    unpack_vector(key, row)
    if len(key) < 5 or len(row) < 20:
        raise CorruptionError("not a vector")


_SHAPES: Final[tuple[tuple[str, Callable[[bytes, bytes], object]], ...]] = (
    ("meta", _is_meta),
    ("log", _is_log),
    ("dictionaries", lambda key, row: _is_number(key, row, lambda data: data[:4] == _ZSTD_DICTIONARY)),
    ("names", lambda key, row: _is_number(key, row, _valid)),
    ("marks", _is_mark),
    ("namespaces", unpack_info),
    ("cursors", unpack_cursor),
    ("vectors", _is_vector),
)


def belongs(database: str, key: bytes, row: bytes) -> bool:
    """True if the row is intact and what that database holds."""
    if database == "records":
        return _record(key, row) is not None
    try:
        dict(_SHAPES)[database](key, row)
    except (CorruptionError, UnicodeDecodeError):
        return False
    return True


class Salvage:
    """One reading of a data file; `lost` lists what is damaged and what was not kept."""

    def __init__(self, file: PageFile) -> None:
        self.lost: list[str] = []
        self._file = file
        self._found: dict[str, list[_Found]] = {name: [] for name in DATABASES}
        self._doubt = False
        self._infos: dict[str, NamespaceInfo] = {}
        self._names: dict[bytes, str] = {}
        self._state: State | None = None
        self._log: dict[tuple[str, str], tuple[int, int]] = {}
        self._drops: dict[str, int] = {}
        self._whole_log = False

    def run(self, env: ColdEnv) -> None:
        """Put every row that is kept into the empty environment `env`; indexes are left out, to be derived anew."""
        self._survey()
        with env.write() as txn:
            self._small(txn, env)
            self._changes(txn, env)
            self._naming(txn, env)
            self._records(txn, env)
            self._vectors(txn, env)
            self._missing(txn, env)
        if len(self.lost) > _MOST:
            self.lost[_MOST:] = [f"and {len(self.lost) - _MOST} more"]

    # Which pages count

    def _survey(self) -> None:
        file = self._file
        if len(file.metas) < 2:
            self.lost.append("a meta page is damaged: what the last commit did may be missing")
        free: set[int] = set()
        reached: set[int] = set()
        trees: dict[str, Tree] = {}
        chosen: Meta | None = None
        best = -1
        for meta in file.metas:
            freed, own, newest, sound = file.free_pages(meta)
            # The list of free pages names the commit it is of, so a damaged meta page does not pass for an older one.
            if max(newest, meta.txn) > best and not meta.main.empty:
                best, chosen, free, reached = max(newest, meta.txn), meta, freed, set(own)
                self._doubt = not sound
        if chosen is not None and len(file.metas) == 2:
            trees = self._main(chosen.main.root, reached, free)
        if not trees and (chosen is None or len(file.metas) < 2 or self._doubt):
            # The pages of the newest commit are there, whatever became of the one that leads to them.
            trees, free, self._doubt = self._newest_main(), set(), True
        for name, tree in trees.items():
            self._walk(name, tree, reached, free)
        last = file.pages - 1 if chosen is None else chosen.last_page
        if last >= file.pages:
            self.lost.append(f"the file is cut short: {last + 1 - file.pages} of {last + 1} pages are missing")
        for number in range(2, min(last + 1, file.pages)):
            if number not in reached and number not in free:
                self._orphan(number)

    def _main(self, root: int, reached: set[int], free: set[int]) -> dict[str, Tree]:
        trees: dict[str, Tree] = {}
        for number, raw, what in self._file.walk(root, free):
            reached.add(number)
            if isinstance(what, Hole):
                self.lost.append(f"page {number} of the list of databases is damaged")
            elif what is not None:
                trees.update(self._file.databases(raw))
        return trees

    def _newest_main(self) -> dict[str, Tree]:
        """The databases of the newest commit of which they can be found, where no meta page leads to them."""
        best, trees = -1, {}
        for number in range(2, self._file.pages):
            raw = self._file.page(number)
            found = self._file.databases(raw) if self._file.kind(raw, number) else {}
            if len(found) == len(DATABASES):
                rows = (row for _, raw, what in self._file.walk(found["meta"].root) if what for row in self._rows(raw))
                commits = [
                    State.unpack(row).commits for key, row in rows if key == b"state" and belongs("meta", key, row)
                ]
                if commits and commits[0] > best:
                    best, trees = commits[0], found
        return trees

    def _rows(self, raw: bytes) -> Iterator[tuple[bytes, bytes]]:
        return ((key, row) for key, row, _ in self._file.rows(raw))

    def _walk(self, name: str, tree: Tree, reached: set[int], free: set[int]) -> None:
        if tree.empty:
            return
        for number, raw, what in self._file.walk(tree.root, free):
            reached.add(number)
            if isinstance(what, Hole):
                self.lost.append(f"page {number} of {name} is damaged")
                if number in free:
                    # Either the pointer is wrong or the list of free pages is.
                    self._doubt = True
                    self._found[name].append(_Found(Leaf(number, what.low, what.high, sound=True), doubtful=True))
            elif what is not None:
                self._found[name].append(_Found(what, doubtful=False))
                for _, data, start in self._file.rows(raw):
                    if start:
                        reached.update(range(start, start + self._file.extent(len(data))))

    def _orphan(self, number: int) -> None:
        raw = self._file.page(number)
        if self._file.kind(raw, number) != 2 or self._file.databases(raw):
            return
        for key, row in self._rows(raw):
            for name in ("records", *(name for name, _ in _SHAPES)):
                if belongs(name, key, row):
                    self._found[name].append(_Found(Leaf(number, b"", b"", sound=True), doubtful=self._doubt))
                    return

    # Which rows count

    def _intact(self, name: str) -> Iterator[tuple[bytes, bytes, bool]]:
        """(key, row, doubtful) of what is intact in a database, first what is beyond doubt; the rest is lost."""
        for leaf, doubtful in sorted(self._found[name], key=lambda found: found.doubtful):
            raw = self._file.page(leaf.number)
            for key, row in self._rows(raw):
                if key < leaf.low or (leaf.high and key >= leaf.high):
                    continue
                if belongs(name, key, row):
                    yield key, row, doubtful
                elif not doubtful:
                    self.lost.append(f"row {key[4:] if name in ('records', 'vectors') else key!r} of {name} is damaged")

    def _small(self, txn: Any, env: ColdEnv) -> None:
        for key, row, _ in self._intact("meta"):
            if key == b"identity":
                txn.put(key, row, db=env.dbs.meta, overwrite=False)
                continue
            state = State.unpack(row)
            if self._state is None or state.commits > self._state.commits:
                self._state = state
        for name in ("dictionaries", "names", "cursors", "marks"):
            for key, row, doubtful in self._intact(name):
                # An older position would be as wrong as none, and harder to notice.
                if not doubtful or name in ("dictionaries", "names"):
                    txn.put(key, row, db=getattr(env.dbs, name), overwrite=False)
                if name == "names":
                    self._names.setdefault(key, unseal(key, row).decode())
        for key, row, _ in self._intact("namespaces"):
            info, known = unpack_info(key, row), self._infos.get(key.decode())
            if known is None or (info.id, info.floor, info.epoch) > (known.id, known.floor, known.epoch):
                self._infos[key.decode()] = info
                txn.put(key, row, db=env.dbs.namespaces)

    def _changes(self, txn: Any, env: ColdEnv) -> None:
        state = self._state
        rows: dict[bytes, bytes] = {}
        for key, row, doubtful in self._intact("log"):
            current = state is not None and state.first_sequence <= U64.unpack(key)[0] < state.next_sequence
            if current or (state is None and not doubtful):
                rows.setdefault(key, row)
        highest, expected, broken = 0, 0, False
        for key in sorted(rows):
            txn.put(key, rows[key], db=env.dbs.log)
            first = U64.unpack(key)[0]
            broken = broken or expected not in (0, first)
            names, changes = unpack_log_row(key, rows[key])
            expected = first + len(changes)
            for index, record, op, version in changes:
                highest = max(highest, version)
                if index < len(names) and op == OP_DROP:
                    self._drops[names[index]] = version
                elif index < len(names):
                    self._log[names[index], record] = (op, version)
        self._whole_log = not broken and state is not None and expected == state.next_sequence
        if state is None:
            self.lost.append("the counters of the store are lost: derived anew")
            self._state = state = State(next_sequence=max(1, expected), highest=highest)
        txn.put(b"state", state.pack(), db=env.dbs.meta)

    def _naming(self, txn: Any, env: ColdEnv) -> None:
        """Which prefix stands for which namespace, and which are garbage."""
        for prefix, name in list(self._names.items()):
            info = self._infos.get(name)
            if info is not None and (info.dropped or info.prefix != prefix):
                txn.put(prefix, b"", db=env.dbs.garbage)
                self._names[prefix] = ""
        for name, info in self._infos.items():
            if not info.dropped:
                self._names[info.prefix] = name

    def _named(self, txn: Any, env: ColdEnv, prefix: bytes) -> str:
        """The namespace of a prefix, empty if it was dropped; one whose name is lost is given another."""
        name = self._names.get(prefix)
        if name is None:
            self._names[prefix] = name = f"recovered/{prefix.hex()}"
            self.lost.append(f"the name of a namespace is lost: it is called {name!r} now")
            txn.put(prefix, seal(prefix, name.encode()), db=env.dbs.names)
        return name

    def _refuted(self, name: str, key: str, version: int) -> bool:
        op, last = self._log.get((name, key), (OP_PUT, 0))
        return version < last or (op != OP_PUT and version == last) or version < self._drops.get(name, 0)

    def _records(self, txn: Any, env: ColdEnv) -> None:
        left = 0
        for key, row, doubtful in self._intact("records"):
            name = self._named(txn, env, key[:4])
            if not name:
                continue
            version = peek(memoryview(row)).version
            text = key[4:].decode(errors="replace")
            if self._refuted(name, text, version):
                if not doubtful:
                    self.lost.append(f"record {text!r} of {name!r} is out of date where it was found")
                continue
            if doubtful and not (self._whole_log and self._log.get((name, text)) == (OP_PUT, version)):
                left += 1
                continue
            known = txn.get(key, db=env.dbs.records)
            if known is None or peek(known).version < version:
                txn.put(key, row, db=env.dbs.records)
        if left:
            self.lost.append(f"{left} rows of records were not taken: they may be out of date")

    def _vectors(self, txn: Any, env: ColdEnv) -> None:
        for key, row, _ in self._intact("vectors"):
            record = txn.get(key, db=env.dbs.records)
            if record is not None:
                head = peek(record)
                if head.flags & HAS_VECTOR and head.version == unpack_vector(key, row)[0]:
                    txn.put(key, row, db=env.dbs.vectors)
            elif self._names.get(key[:4], ""):
                self._log.setdefault((self._names[key[:4]], key[4:].decode(errors="replace")), (OP_PUT, 0))

    def _missing(self, txn: Any, env: ColdEnv) -> None:
        """Name the records that are known to have been there and were not kept."""
        prefixes = {name: prefix for prefix, name in self._names.items() if name}
        for (name, key), (op, version) in sorted(self._log.items()):
            if op != OP_PUT or name not in prefixes or 0 < version < self._drops.get(name, 0):
                continue
            found = txn.get(prefixes[name] + key.encode(), db=env.dbs.records)
            if found is None or peek(found).version < version:
                self.lost.append(f"record {key!r} of {name!r} is lost")
        counts: dict[str, int] = dict.fromkeys(prefixes, 0)
        with txn.cursor(db=env.dbs.records) as cursor:
            for key in cursor.iternext(keys=True, values=False):
                counts[self._names[bytes(key[:4])]] += 1
        for name, info in self._infos.items():
            if not info.dropped and info.records > counts.get(name, 0):
                self.lost.append(f"namespace {name!r} counted {info.records} records, {counts.get(name, 0)} are left")
