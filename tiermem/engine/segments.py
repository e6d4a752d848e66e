"""Segment files when a store is compacted, copied or checked."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tiermem.engine import generations
from tiermem.errors import CorruptionError, TiermemError
from tiermem.tiers.cold import sealed

if TYPE_CHECKING:
    from tiermem.engine.store import Store
    from tiermem.tiers.cold import ColdEnv, Snapshot
    from tiermem.tiers.cold.layout import NamespaceInfo, SegmentInfo

TROUBLE: Final = "segments of "
"""How a problem begins that concerns segments alone: they are derived, and can be built anew."""
_TIDY: Final = 0.1
"""Compaction rewrites the segments of a namespace with a larger share of tombstones."""


def file_bytes(folder: Path) -> int:
    """Bytes of all segment files in a folder, 0 where there is none."""
    total = 0
    for entry in os.scandir(folder) if folder.is_dir() else ():
        with suppress(FileNotFoundError):
            # It may be merged away at any moment.
            total += entry.stat().st_size
    return total


def tidy(store: Store) -> None:
    """Rewrite the segments of each namespace that holds many tombstones, and delete what nobody needs."""
    wanted: list[str] = []
    with store.cold.read() as snapshot:
        for name, info in snapshot.infos():
            published = snapshot.segments(info.prefix).values()
            rows = sum(known.rows for known in published)
            # What is unsealed is most likely dead where it was sealed before.
            dead = sum(known.dead_rows for known in published) + info.unsealed
            if published and dead > rows * _TIDY:
                wanted.append(name)
    for name in wanted:
        store.sealer.build(name)
    store.sealer.sweep()


def namespaces(store: Store) -> list[str]:
    """The namespaces that hold vectors."""
    with store.cold.read() as snapshot:
        return [name for name, info in snapshot.infos() if info.dimension]


class _Held:
    """Open files: what is deleted meanwhile can still be copied."""

    def __init__(self) -> None:
        self.files: dict[str, int] = {}

    def take(self, folder: Path) -> None:
        if not folder.is_dir():
            return
        for entry in os.scandir(folder):
            if entry.name.endswith((".rows", ".graph")) and entry.name not in self.files:
                try:
                    self.files[entry.name] = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:
                    continue

    def write(self, folder: Path) -> None:
        """Copy what is held into `folder`, synced."""
        for name, fd in self.files.items():
            with open(fd, "rb", closefd=False) as source, (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target, 2**20)
                target.flush()
                os.fsync(target.fileno())
        generations.sync_folder(folder)

    def close(self) -> None:
        for fd in self.files.values():
            os.close(fd)


@contextmanager
def held(store: Store) -> Iterator[_Held]:
    """The segment files there are now, and those published before the block ends."""
    files = _Held()
    try:
        files.take(store.root / "segments")
        yield files
    finally:
        files.close()


def verify_copies(store: Store, copy: ColdEnv, folder: Path) -> None:
    """Hold the copied files against the copied store; what does not fit is left to be built anew there."""
    from tiermem.tiers.cold import Writer

    needed: set[str] = set()
    withdrawn: list[str] = []
    with copy.read() as snapshot:
        for name, info in snapshot.infos():
            published = snapshot.segments(info.prefix)
            if published and problems(folder, published, store):
                withdrawn.append(name)
            else:
                needed.update(f"{number:016x}.{kind}" for number in published for kind in ("rows", "graph"))
    if withdrawn:
        with copy.write() as txn:
            writer = Writer(copy, txn, store.compressor, store.config.vector.metric, lambda *_: None)
            for name in withdrawn:
                sealed.withdraw(writer, name)
            writer.finish()
    for entry in list(os.scandir(folder)):
        if entry.name not in needed:
            Path(entry.path).unlink()


def damaged(folder: Path, published: dict[int, SegmentInfo]) -> dict[int, str]:
    """Which segments have damaged rows, each read whole, and what is wrong with them."""
    from tiermem.tiers.vector.rowfile import RowFile

    found: dict[int, str] = {}
    for number, known in published.items():
        try:
            rows = RowFile(folder / f"{number:016x}.rows", number, known.seal)
            rows.span(0, rows.rows)
        except TiermemError as exc:
            found[number] = str(exc)
    return found


def problems(folder: Path, published: dict[int, SegmentInfo], store: Store) -> list[str]:
    """What is wrong with the files of segments, each read whole."""
    from tiermem.tiers.vector.shelf import Shelf

    found: list[str] = []
    for number, known in published.items():
        # A shelf of its own: what was verified earlier is read again.
        shelf = Shelf(folder, store.sealer.engine_of)
        try:
            segment = shelf.segment(number, known.seal, graph=known.graph)
            segment.rows.span(0, segment.rows.rows)
        except TiermemError as exc:
            found.append(str(exc))
        found.extend(shelf.problems.values())
    return found


def audit(store: Store, snapshot: Snapshot, name: str, info: NamespaceInfo) -> Iterator[str]:
    """What is wrong with the segments of a namespace, and with what L3 says of them."""
    unsealed = set(snapshot.unsealed(info.prefix))
    what = f"{TROUBLE}{name!r}: "
    if len(unsealed) != info.unsealed:
        yield f"{what}{info.unsealed} unsealed vectors are counted, and {len(unsealed)} there"
    published = snapshot.segments(info.prefix)
    damage = problems(store.root / "segments", published, store)
    if damage:
        with store.cold.read() as now:
            # A segment that has been merged since is gone, and nothing is wrong with it.
            if published.keys() <= now.segments(info.prefix).keys():
                yield from (what + problem for problem in damage)
        return
    live = 0
    seen: set[str] = set()
    for number, known in published.items():
        try:
            rows = store.sealer.shelf.segment(number, known.seal, graph=False).rows
        except CorruptionError:
            # Sound a moment ago, so it has been merged since.
            return
        dead = set(known.dead_numbers())
        for row in range(rows.rows):
            key = rows.key(row)
            if row in dead or key in unsealed:
                continue
            live += 1
            version = snapshot.vector_version(info.prefix + key.encode())
            if version != rows.versions[row]:
                yield f"{what}row {row} of {number:016x} is {key!r} as of {rows.versions[row]}, L3 has {version}"
            if key in seen:
                yield f"{what}{key!r} is alive in two segments"
            seen.add(key)
    waiting = sum(bool(snapshot.vector_version(info.prefix + key.encode())) for key in unsealed)
    if live + waiting != info.vectors:
        yield f"{what}{live} live and {waiting} unsealed vectors, {info.vectors} in L3"
