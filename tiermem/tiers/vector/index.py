"""The index of a namespace: published segments, tombstones, and a tail that is searched exactly.

Truth is in L3. A key has one live row: in the tail, or in one segment. Writers take turns; searches
run beside them. A search asks the segments first and the tail last, and a writer adds to the tail
before it buries in a segment, so that an updated key is never missed; one that is met twice counts
by its higher version.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tiermem.protocols import Found, Row
from tiermem.tiers.vector.exact import ExactIndex
from tiermem.tiers.vector.segment import Segment, count_bits, full_bits

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tiermem.policy.filters import Filter


class Part:
    """A segment and which of its rows are alive, as this process knows."""

    def __init__(self, segment: Segment, dead: bytes = b"") -> None:
        self.segment = segment
        self.alive = full_bits(segment.rows.rows)
        if dead:
            self.alive &= ~np.frombuffer(dead, np.uint8)
        self.live = count_bits(self.alive)

    @property
    def dead(self) -> int:
        """Tombstones."""
        return self.segment.rows.rows - self.live

    def places(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """The live row of each key, -1 where there is none."""
        rows = self.segment.rows.find(keys)
        at = np.flatnonzero(rows >= 0)
        if len(at):
            held = rows[at]
            rows[at[(self.alive[held >> 3] >> (held & 7).astype(np.uint8)) & 1 == 0]] = -1
        return rows

    def bury(self, rows: NDArray[np.int64]) -> None:
        """Make `rows`, which are alive and each named once, tombstones."""
        if len(rows):
            np.bitwise_and.at(self.alive, rows >> 3, ~(np.uint8(1) << (rows & 7).astype(np.uint8)))
            self.live -= len(rows)


class VectorTier:
    """The vectors of one namespace, in step with L3 as far as it was told."""

    def __init__(self, dimension: int, metric: str, parts: Sequence[Part] = (), epoch: int = 0) -> None:
        self.dimension = dimension
        self.metric = metric
        self.epoch = epoch
        self.parts = tuple(parts)
        self.tail = ExactIndex(dimension, metric)

    def __len__(self) -> int:
        return sum(part.live for part in self.parts) + len(self.tail)

    @property
    def tombstones(self) -> int:
        """Rows that were replaced or deleted and still take room."""
        return sum(part.dead for part in self.parts) + self.tail.tombstones

    @property
    def nbytes(self) -> int:
        """Bytes this process holds in memory for itself."""
        graphs = sum(part.segment.graph.nbytes for part in self.parts if part.segment.graph is not None)
        return graphs + sum(part.alive.nbytes for part in self.parts) + self.tail.nbytes

    def versions(self, keys: Sequence[str]) -> list[int]:
        """The version of the live row of each key, 0 where there is none."""
        found = [self.tail.version(key) for key in keys]
        for part in self.parts:
            places = part.places(keys)
            for at in np.flatnonzero(places >= 0).tolist():
                found[at] = found[at] or int(part.segment.rows.versions[places[at]])
        return found

    def upsert(self, rows: Sequence[Row]) -> None:
        """Add rows, replacing those of the same keys."""
        self.tail.upsert(rows)
        self.bury([row.key for row in rows])

    def remove(self, keys: Sequence[str]) -> None:
        """Delete the rows of `keys`; unknown keys are ignored."""
        self.tail.remove(keys)
        self.bury(keys)

    def bury(self, keys: Sequence[str]) -> None:
        """Make what the segments hold of `keys` tombstones."""
        if keys:
            for part in self.parts:
                places = part.places(keys)
                part.bury(np.unique(places[places >= 0]))

    def search(
        self,
        query: NDArray[np.float32],
        k: int,
        *,
        now: float,
        since: float,
        until: float,
        where: Filter | None,
        allows: Callable[[bytes], bool] | None,
        min_score: float,
        effort: int | None,
        exact: bool,
    ) -> list[Found]:
        """The min(k, matches) best rows with since ≤ at < until and expires > now, best first.

        `where` is asked of the segments' columns, `allows` (the same filter) of encoded metadata in the
        tail. Scores are exact; equal scores are ordered by key.

        Raises:
            CorruptionError: a segment is damaged; nothing was answered.
        """
        best: list[Found] = []
        for part in self.parts:
            rows = part.segment.rows
            alive = part.alive if part.live < rows.rows else None
            found = part.segment.search(
                query,
                k,
                alive,
                part.live,
                now=now,
                since=since,
                until=until,
                where=where,
                effort=effort,
                exact=exact,
            )
            best += rows.found([(score, row) for score, row in found if score >= min_score])
        if len(self.tail):
            best += self.tail.search(query, k, now=now, since=since, until=until, allows=allows, min_score=min_score)
        best.sort(key=_rank)
        return _newest(best)[:k]


def _rank(hit: Found) -> tuple[float, str]:
    return -hit.score, hit.key


def _newest(found: list[Found]) -> list[Found]:
    """`found`, best first, each key once: the row of the highest version."""
    newest = {hit.key: hit for hit in found}
    if len(newest) == len(found):
        return found
    for hit in found:
        if hit.version > newest[hit.key].version:
            newest[hit.key] = hit
    return sorted(newest.values(), key=_rank)
