"""The exact index: float32 rows in blocks, scanned whole.

Blocks are append-only: an updated vector becomes a new row and its old row a tombstone, so a search
that has begun keeps seeing what it began with.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from tiermem.protocols import Found, Row
from tiermem.tiers.vector.scores import exact_scores, shortlist

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK_ROWS: Final = 8192


class _Block:
    __slots__ = (
        "alive",
        "at",
        "dead",
        "expires",
        "first_expiry",
        "keys",
        "metadata",
        "rows",
        "size",
        "squares",
        "versions",
    )

    def __init__(self, rows: int, dimension: int) -> None:
        self.rows: NDArray[np.float32] = np.empty((rows, dimension), np.float32)
        self.squares: NDArray[np.float32] = np.empty(rows, np.float32)
        self.at: NDArray[np.float64] = np.empty(rows)
        self.expires: NDArray[np.float64] = np.empty(rows)
        self.alive: NDArray[np.bool_] = np.zeros(rows, bool)
        self.versions: list[int] = []
        self.keys: list[str] = []
        self.metadata: list[bytes] = []
        self.size = 0
        self.dead = 0
        self.first_expiry = math.inf


def _row(key: str, block: _Block, at: int) -> Row:
    vector, moment, expires = block.rows[at].tobytes(), float(block.at[at]), float(block.expires[at])
    return Row(key, vector, block.versions[at], moment, expires, block.metadata[at])


def _products(
    vectors: NDArray[np.float32], rows: NDArray[np.intp] | None, query: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The inner product of `query` and each of those rows, or of all."""
    with np.errstate(all="ignore"):
        # As fast as a matrix product, which would wait for a thread on every core, busy as they may be.
        if rows is not None and len(rows) * 4 <= len(vectors):
            products: NDArray[np.float32] = np.vecdot(vectors[rows], query)
            return products
        products = np.vecdot(vectors, query)
    return products if rows is None or len(rows) == len(products) else products[rows]


def _joined(parts: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


class ExactIndex:
    """Looks at every row. One writer at a time; searches need no lock."""

    def __init__(self, dimension: int, metric: str) -> None:
        self.dimension = dimension
        self.metric = metric
        self._blocks: list[_Block] = []
        self._where: dict[str, tuple[_Block, int]] = {}
        self._dead = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._where)

    @property
    def tombstones(self) -> int:
        """Rows that were replaced or deleted and still take room."""
        return self._dead

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(
            block.rows.nbytes + block.squares.nbytes + block.at.nbytes * 2 + block.alive.nbytes
            for block in self._blocks
        )

    def version(self, key: str) -> int:
        """The version of the live row of `key`, or 0."""
        place = self._where.get(key)
        return 0 if place is None else place[0].versions[place[1]]

    def row(self, key: str) -> Row | None:
        """The live row of `key`."""
        place = self._where.get(key)
        return None if place is None else _row(key, *place)

    def upsert(self, rows: Iterable[Row]) -> None:
        """Add rows, replacing those of the same keys; a search sees all of them or none."""
        batch = list({row.key: row for row in rows}.values())
        if not batch:
            return
        matrix = np.frombuffer(b"".join([row.vector for row in batch]), "<f4").reshape(len(batch), self.dimension)
        with self._lock:
            self._add(batch, matrix)
            self._settle()

    def remove(self, keys: Iterable[str]) -> None:
        """Delete the rows of `keys`; unknown keys are ignored."""
        with self._lock:
            for key in keys:
                self._bury(key)
                self._where.pop(key, None)
            self._settle()

    def _add(self, batch: Sequence[Row], matrix: NDArray[np.float32]) -> None:
        done = 0
        while done < len(batch):
            block = self._room(len(batch) - done)
            part = batch[done : done + len(block.alive) - block.size]
            start, stop = block.size, block.size + len(part)
            block.rows[start:stop] = fresh = matrix[done : done + len(part)]
            with np.errstate(over="ignore", under="ignore"):
                block.squares[start:stop] = np.einsum("ij,ij->i", fresh, fresh)
            block.at[start:stop] = [row.at for row in part]
            block.expires[start:stop] = [row.expires for row in part]
            block.versions.extend([row.version for row in part])
            block.keys.extend([row.key for row in part])
            block.metadata.extend([row.metadata for row in part])
            for number, row in enumerate(part, start):
                self._bury(row.key)
                self._where[row.key] = (block, number)
            block.alive[start:stop] = True
            block.first_expiry = min(block.first_expiry, float(block.expires[start:stop].min()))
            block.size = stop
            done += len(part)

    def search(
        self,
        query: NDArray[np.float32],
        k: int,
        *,
        now: float,
        since: float,
        until: float,
        allows: Callable[[bytes], bool] | None,
        min_score: float,
    ) -> list[Found]:
        """The min(k, matches) best rows with since ≤ at < until, unexpired and allowed, best first.

        `allows` is asked of encoded metadata. Ties are ordered by key.
        """
        with self._lock:
            # All that a writer changes in place; what it appends lies behind `size`.
            view = [
                (block, block.size, block.alive[: block.size].copy() if block.dead else None)
                for block in self._blocks
                if block.size
            ]
        asked: list[tuple[_Block, int, NDArray[np.intp] | None]] = []
        products: list[NDArray[np.float32]] = []
        for block, size, alive in view:
            rows = None
            timed = since != -math.inf or until != math.inf
            if timed or allows is not None or alive is not None or block.first_expiry <= now:
                mask = block.expires[:size] > now
                if alive is not None:
                    mask &= alive
                if timed:
                    mask &= (block.at[:size] >= since) & (block.at[:size] < until)
                rows = mask.nonzero()[0]
                if allows is not None:
                    metadata = block.metadata
                    verdicts = [allows(metadata[row]) for row in rows.tolist()]
                    rows = rows[np.array(verdicts, bool)]
                if not len(rows):
                    continue
            asked.append((block, size, rows))
            products.append(_products(block.rows[:size], rows, query))
        if not asked:
            return []
        # All blocks at once: each step costs more than the rows of a small one.
        squares = [block.squares[:size] if rows is None else block.squares[rows] for block, size, rows in asked]
        chosen = shortlist(self.metric, _joined(products), _joined(squares), query, k, min_score)
        pool: list[tuple[float, str, _Block, int]] = []
        first = 0
        for (block, _, rows), part in zip(asked, products, strict=True):
            start, stop = np.searchsorted(chosen, (first, first + len(part))).tolist()
            places = chosen[start:stop] - first
            if rows is not None:
                places = rows[places]
            first += len(part)
            if len(places):
                scores = exact_scores(self.metric, block.rows[places], query)
                pool.extend(
                    (-score, block.keys[row], block, row)
                    for score, row in zip(scores.tolist(), places.tolist(), strict=True)
                    if score >= min_score
                )
        pool.sort(key=lambda entry: entry[:2])
        return [
            Found(key, -score, block.versions[row], block.metadata[row], float(block.at[row]))
            for score, key, block, row in pool[:k]
        ]

    def _room(self, rows: int) -> _Block:
        if not self._blocks or self._blocks[-1].size == len(self._blocks[-1].alive):
            # Blocks start small, so that many small namespaces stay small; what no row is in takes no memory.
            held = sum(len(block.alive) for block in self._blocks)
            self._blocks.append(_Block(min(BLOCK_ROWS, max(64, 8 * held, rows)), self.dimension))
        return self._blocks[-1]

    def _bury(self, key: str) -> None:
        place = self._where.get(key)
        if place is not None:
            place[0].alive[place[1]] = False
            place[0].dead += 1
            self._dead += 1

    def _settle(self) -> None:
        """Rewrite the rows once more than half of them are tombstones."""
        if self._dead <= max(len(self._where), 64):
            return
        rows = [_row(key, *place) for key, place in self._where.items()]
        self._blocks, self._where, self._dead = [], {}, 0
        if rows:
            self._add(rows, np.frombuffer(b"".join([row.vector for row in rows]), "<f4").reshape(len(rows), -1))
