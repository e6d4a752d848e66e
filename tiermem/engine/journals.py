"""The journals of other clients: read, applied, and shown where nothing may be committed."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tiermem.codec.operation import Operation, unpack_operations
from tiermem.errors import CorruptionError, IncompatibleFormatError, StorageError
from tiermem.tiers.cold.snapshot import marked
from tiermem.tiers.journal import Journal

if TYPE_CHECKING:
    from tiermem.engine.store import Store
    from tiermem.tiers.cold import Writer

WRAPS: Final = 20
"""Tries at reading a journal that its owner keeps going round."""
STRETCH: Final = 64
"""Operations applied between two looks at the clock."""

Mark = tuple[int, int]
"""(journal id, position): how far it is applied."""


class Journals:
    """Maps the journals of other clients, each once."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._mapped: dict[Path, tuple[int, Journal]] = {}
        self._first = 0

    def path(self, slot: int) -> Path:
        """Where the journal of a slot lies."""
        return self.store.root / "journals" / f"{slot:03d}.journal"

    def paths(self) -> list[Path]:
        """Every journal file there is."""
        folder = self.store.root / "journals"
        return [folder / name for name in sorted(os.listdir(folder)) if name.endswith(".journal")]

    def drain(self, writer: Writer, dead: frozenset[int] = frozenset(), deadline: float = math.inf) -> dict[int, Mark]:
        """Apply what other clients have journaled, until the deadline; the marks that moved, by slot.

        Of `dead` slots intact frames behind the head are applied too.

        Raises:
            CorruptionError: a journal is damaged, or one that was in service is missing.
        """
        store = self.store
        missing = marked(writer)
        paths = self.paths()
        moved: dict[int, Mark] = {}
        # Whoever was left out at a deadline comes first the next time.
        self._first += 1
        start = self._first % len(paths) if paths and deadline < math.inf else 0
        for path in paths[start:] + paths[:start]:
            slot = int(path.stem)
            missing.discard(slot)
            if store.journal is not None and slot == store.slot:
                continue
            journal = self.of(path)
            if journal is None:
                continue
            mark = writer.applied(slot, journal.id, journal.head)
            position = self._apply(writer, journal, mark, slot in dead, deadline)
            if position != mark:
                writer.set_mark(slot, journal.id, position)
                moved[slot] = journal.id, position
        if missing:
            raise CorruptionError(f"journal {min(missing):03d} is missing: writes it held may be lost")
        return moved

    def _apply(self, writer: Writer, journal: Journal, position: int, beyond: bool, deadline: float) -> int:
        waiting: list[Operation] = []
        for frame in journal.frames(position, beyond=beyond):
            waiting.extend(unpack_operations(frame.payload))
            position = frame.end
            if len(waiting) >= STRETCH:
                writer.apply_all(waiting)
                waiting = []
                if time.perf_counter() > deadline:
                    break
        writer.apply_all(waiting)
        return position

    def behind(self) -> int:
        """Bytes that others have journaled and nobody has applied."""
        for _ in range(WRAPS):
            try:
                return self._behind()
            except CorruptionError:
                # A client may have opened its journal since the snapshot, in a newer generation even.
                if self.store.control.generation > self.store.generation:
                    self.store.move_to(self.store.control.generation)
        return self._behind()

    def _behind(self) -> int:
        store = self.store
        total = 0
        with store.cold.read() as snapshot:
            for path in self.paths():
                journal = self.of(path)
                if journal is not None:
                    total += journal.head - snapshot.applied(int(path.stem), journal.id, journal.head)
        return total

    def of(self, path: Path) -> Journal | None:
        """The journal of another client, mapped; None if it is not in service or has gone.

        Raises:
            IncompatibleFormatError: it belongs to another store.
        """
        try:
            inode = os.stat(path).st_ino
        except FileNotFoundError:
            return None
        known = self._mapped.get(path)
        if known is not None and known[0] == inode:
            journal = known[1]
            journal.refresh()
        else:
            # One that is replaced is not closed: another thread may be reading it.
            journal = Journal(path, writable=False)
            self._mapped[path] = (inode, journal)
        if journal.id and journal.store_id != self.store.store_id:
            raise IncompatibleFormatError(f"journal {path.name} belongs to another store")
        return journal

    def unapplied(self, path: Path) -> list[Operation]:
        """What another client has journaled and nobody has applied.

        Raises:
            CorruptionError: it cannot be read.
        """
        for _ in range(WRAPS):
            journal = self.of(path)
            if journal is None:
                return []
            with self.store.cold.read() as snapshot:
                mark = snapshot.applied(int(path.stem), journal.id, journal.head)
            try:
                return list(operations(journal, mark, journal.head))
            except CorruptionError:
                # The owner may have gone round the ring meanwhile: then the mark has moved on too.
                with self.store.cold.read() as snapshot:
                    if snapshot.applied(int(path.stem), journal.id, journal.head) == mark:
                        raise
        raise StorageError(f"journal {path.name} is written faster than it can be read")

    def forget(self, path: Path) -> None:
        """Unmap a journal that another has taken the place of."""
        known = self._mapped.pop(path, None)
        if known is not None:
            known[1].close()

    def close(self) -> None:
        """Unmap them all."""
        for _, journal in self._mapped.values():
            journal.close()
        self._mapped.clear()


def operations(journal: Journal, start: int, end: int) -> Iterator[Operation]:
    """The operations in the frames of `journal` between two positions."""
    for frame in journal.frames(start, end):
        yield from unpack_operations(frame.payload)


def stretch(line: Iterable[Operation]) -> list[Operation]:
    """The first operations in line: some, and the rest of the last one's frame, which is all or nothing."""
    found: list[Operation] = []
    for op in line:
        if len(found) >= STRETCH and op.end != found[-1].end:
            break
        found.append(op)
    return found
