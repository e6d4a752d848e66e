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

from tiermem.policy.planner import promising
from tiermem.protocols import Found, Row
from tiermem.tiers.vector.bits import are_set, count_bits, full_bits
from tiermem.tiers.vector.exact import ExactIndex
from tiermem.tiers.vector.rowfile import RowFile, hash_keys
from tiermem.tiers.vector.segment import Segment

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

    def places(self, keys: Sequence[str], hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The live row of each key, -1 where there is none; `hashes` are those of `keys`."""
        rows = self.segment.rows.find(keys, hashes)
        at = np.flatnonzero(rows >= 0)
        if len(at):
            held = rows[at]
            rows[at[~are_set(self.alive, held)]] = -1
        return rows

    def bury(self, rows: NDArray[np.int64]) -> None:
        """Make those of `rows` that are alive tombstones; negative ones are none."""
        rows = np.unique(rows[rows >= 0])
        rows = rows[are_set(self.alive, rows)]
        if len(rows):
            np.bitwise_and.at(self.alive, rows >> 3, ~(np.uint8(1) << (rows & 7).astype(np.uint8)))
            self.live -= len(rows)


class VectorTier:
    """The vectors of one namespace, in step with L3 as far as it was told."""

    def __init__(self, dimension: int, metric: str, parts: Sequence[Part] = (), epoch: int = 0) -> None:
        self.dimension = dimension
        self.metric = metric
        self.epoch = epoch
        # The largest first: what they hold is most likely the best, and spares the others work.
        self.parts = tuple(sorted(parts, key=lambda part: -part.live))
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
        return sum(part.segment.nbytes + part.alive.nbytes for part in self.parts) + self.tail.nbytes

    def update(self, rows: Sequence[Row], gone: Sequence[str] = ()) -> None:
        """Take up the rows of some keys, as L3 has them now, and drop those of the keys that are `gone`."""
        if gone:
            self.tail.remove(gone)
            self.bury(gone)
        keys = [row.key for row in rows]
        hashes = hash_keys(keys)
        # Most keys are new, and most segments hold none of them.
        found = [(part, part.places(keys, hashes)) for part in self.parts if part.segment.rows.likely(hashes)]
        versions = [self.tail.version(key) for key in keys]
        for part, places in found:
            for at in np.flatnonzero(places >= 0).tolist():
                versions[at] = versions[at] or int(part.segment.rows.versions[places[at]])
        fresh = [at for at, row in enumerate(rows) if row.version != versions[at]]
        self.tail.upsert([rows[at] for at in fresh])
        for part, places in found:
            part.bury(places[fresh])

    def bury(self, keys: Sequence[str]) -> None:
        """Make what the segments hold of `keys` tombstones."""
        if keys:
            hashes = hash_keys(keys)
            for part in self.parts:
                part.bury(part.places(keys, hashes))

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

        def ask(*, pruned: bool) -> tuple[list[Found], bool]:
            """The best found, and whether none of them has met a newer row of its key."""
            pool: list[tuple[float, int, RowFile]] = []
            floor = min_score

            def look(part: Part, *, brief: bool) -> list[float] | None:
                """Add the best of a part to the pool; what a glance has told, None if it was a look."""
                nonlocal pool, floor
                rows = part.segment.rows
                found, glanced = part.segment.search(
                    query,
                    k,
                    part.alive if part.live < rows.rows else None,
                    part.live,
                    floor=floor,
                    brief=brief,
                    now=now,
                    since=since,
                    until=until,
                    where=where,
                    effort=effort,
                    exact=exact,
                )
                again = {row for _, row in found}
                pool = [entry for entry in pool if entry[2] is not rows or entry[1] not in again]
                pool += [(score, row, rows) for score, row in found if score >= floor]
                if pruned and len(pool) >= k:
                    # Nothing below the k-th best so far can get in: of most parts little has to be looked at closely.
                    pool.sort(key=_score, reverse=True)
                    floor = pool[k - 1][0]
                return glanced

            # The largest is looked at closely at once if it most likely holds most of the best.
            brief = pruned and bool(self.parts) and 2 * self.parts[0].live < sum(part.live for part in self.parts)
            glances: list[tuple[Part, list[float]]] = []
            for part in self.parts:
                if (distances := look(part, brief=brief)) is not None:
                    glances.append((part, distances))
                brief = pruned and len(pool) >= k
            for part, distances in glances:
                if promising(part.segment.reaching(query, distances, k, floor), k):
                    look(part, brief=False)
            met = _described([entry for entry in pool if entry[0] >= floor])
            tail = self.tail
            if len(tail):
                least = floor if pruned else min_score
                met += tail.search(query, k, now=now, since=since, until=until, allows=allows, min_score=least)
            best = _newest(sorted(met, key=_rank))
            return best[:k], len(best) == len(met) and not any(tail.version(hit.key) > hit.version for hit in best)

        best, whole = ask(pruned=True)
        # An update in between: what its old row has ruled out may belong to the best after all.
        return best if whole else ask(pruned=False)[0]


def _score(entry: tuple[float, int, RowFile]) -> float:
    return entry[0]


def _described(entries: Sequence[tuple[float, int, RowFile]]) -> list[Found]:
    by_file: dict[int, tuple[RowFile, list[tuple[float, int]]]] = {}
    for score, row, rows in entries:
        by_file.setdefault(rows.number, (rows, []))[1].append((score, row))
    return [found for rows, scored in by_file.values() for found in rows.found(scored)]


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
