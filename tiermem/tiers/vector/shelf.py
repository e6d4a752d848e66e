"""The shelf: the segment files of a store, each opened once in a process."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from tiermem.errors import CorruptionError, StorageError, TiermemError
from tiermem.protocols import VectorEngine
from tiermem.tiers.vector.graphfile import load_graph
from tiermem.tiers.vector.room import room
from tiermem.tiers.vector.rowfile import RowFile
from tiermem.tiers.vector.segment import Segment

_SHARE: Final = 2
"""Where the vectors of a segment take more than this part of the memory there is, no more of them is read than is used;
else what lies around them is read ahead, so that a store that was just opened is soon in memory."""
_NAME: Final = re.compile(r"([0-9a-f]{16})\.(rows|graph)(\.new)?")


class Shelf:
    """Opens segments and remembers them.

    `problems` says which graphs cannot be used, `condemned` whose rows turned out to be damaged.
    """

    def __init__(self, folder: Path, engine_of: Callable[[str], VectorEngine]) -> None:
        self.folder = folder
        self.problems: dict[int, str] = {}
        self.condemned: dict[int, str] = {}
        self._engine_of = engine_of
        self._open: dict[int, Segment] = {}

    def rows_path(self, number: int) -> Path:
        """Where the rows of a segment are."""
        return self.folder / f"{number:016x}.rows"

    def graph_path(self, number: int) -> Path:
        """Where its graph is."""
        return self.folder / f"{number:016x}.graph"

    def segment(self, number: int, seal: int, *, graph: bool) -> Segment:
        """Segment `number`, verified; without its graph where that cannot be used.

        Raises:
            CorruptionError: its rows are missing, damaged or another's.
            StorageError: this process cannot open it now.
        """
        if number in self.condemned:
            raise CorruptionError(self.condemned[number])
        known = self._open.get(number)
        if known is not None and (known.graph is not None or not graph or number in self.problems):
            return known
        rows = RowFile(self.rows_path(number), number, seal) if known is None else known.rows
        if known is None and rows.vectors.nbytes > room() // _SHARE:
            rows.scatter()
        opened = None
        if graph:
            try:
                opened = load_graph(self.graph_path(number), rows, seal, self._engine_of)
            except StorageError:
                raise
            except TiermemError as exc:
                # Searched exactly meanwhile.
                self.problems[number] = str(exc)
        if opened is not None or known is None:
            known = self._open[number] = Segment(rows, opened)
        return known

    def keep(self, numbers: Collection[int]) -> None:
        """Let go of every segment but these."""
        for known in (self._open, self.problems, self.condemned):
            for number in list(known):
                if number not in numbers:
                    known.pop(number, None)

    def sweep(self, numbers: Collection[int]) -> int:
        """Delete the files of every segment but these; the bytes gained. Nobody is building."""
        gained = 0
        for path in self.folder.iterdir():
            match = _NAME.fullmatch(path.name)
            if match is not None and (match[3] or int(match[1], 16) not in numbers):
                gained += path.stat().st_size
                path.unlink(missing_ok=True)
        return gained
