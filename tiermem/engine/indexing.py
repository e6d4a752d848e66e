"""Indexes: L2 of each namespace, loaded when first searched and kept in step with every write."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from tiermem.codec.frame import AT, EXPIRES, FLAGS, HAS_VECTOR, VERSION
from tiermem.engine import reading
from tiermem.engine.lanes import unhurried
from tiermem.engine.search import as_vector, describe
from tiermem.engine.space import Space
from tiermem.errors import CorruptionError, DimensionMismatch, InvalidArgument
from tiermem.protocols import Found, Row
from tiermem.tiers.cold.layout import text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tiermem.engine.store import Store
    from tiermem.policy.filters import Filter
    from tiermem.tiers.vector.index import Part, VectorTier

LOAD_ROWS: Final = 8192
"""Rows handed to an index at a time while it is loaded."""
TAKEN_ROWS: Final = 128
"""Rows taken over from one index to the next at a time: searches go on in between."""
LOOK: Final = 1.0
"""Seconds between looks at whether segments were published, or should be made."""
GLANCE: Final = 0.1
"""The same while the tail is long enough to be sealed: every row that is added meanwhile makes searches slower."""


def _problem(space: Space) -> str:
    """Under which key `degraded` holds what is wrong with the segments of a namespace."""
    return f"segments of {space.name!r}"


class Indexing:
    """Loads and updates the indexes of a store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._looked: dict[str, float] = {}
        self._adopting = threading.Lock()

    def index_of(self, space: Space) -> VectorTier | None:
        """The index of a namespace, in step with every write; None if it has no vectors."""
        store = self.store
        known = describe(store, space)
        if known is None:
            return None
        with space.index_lock:
            with store.lock:
                index, touched = space.index, space.touched
                if touched:
                    space.touched = set()
            if index is None:
                index = self._load(space, *known)
            elif touched:
                self._sync(space, index, list(touched))
        now = time.monotonic()
        ripe = index is not None and len(index.tail) >= store.config.vector.seal_rows
        if now >= self._looked.get(space.name, 0.0) + (GLANCE if ripe else LOOK):
            self._looked[space.name] = now
            self._look(space)
        return index

    def _look(self, space: Space) -> None:
        """Take up what another process has published since, and have sealed what there is to seal."""
        with self.store.cold.read() as snapshot:
            info = snapshot.info(space.name)
        index = space.index
        if index is None or info is None or info.dropped:
            return
        if info.epoch != index.epoch:
            self.store.sealer.adopting.wake(space.name)
        if info.unsealed >= self.store.config.vector.seal_rows:
            self.store.sealer.wake(space.name)
        elif _problem(space) in self.store.degraded or space.name in self.store.sealer.merging.failed:
            self.store.sealer.mend(space.name)

    def _load(self, space: Space, dimension: int, metric: str) -> VectorTier:
        from tiermem.tiers.vector.index import VectorTier

        store = self.store
        # From here on every write of this process marks its key; what is pending now is marked by hand.
        # A write marks nothing where there is no index: one that nobody searches stands in meanwhile.
        stand_in = VectorTier(dimension, metric)
        with store.lock:
            space.touched = set(space.pending)
            space.index = stand_in
        try:
            index, keys = self._published(space, dimension, metric)
            with store.lock:
                # Unless the namespace was dropped meanwhile.
                if space.index is stand_in:
                    space.index = index
            for start in range(0, len(keys), LOAD_ROWS):
                self._sync(space, index, keys[start : start + LOAD_ROWS])
        except BaseException:
            # An index that was loaded half-way must never be searched.
            space.index = None
            raise
        with store.lock:
            touched, space.touched = space.touched, set()
        self._sync(space, index, list(touched))
        return index

    def _published(self, space: Space, dimension: int, metric: str) -> tuple[VectorTier, list[str]]:
        """An index of the published segments, and the keys whose rows it lacks or holds too much of."""
        from tiermem.tiers.vector.index import Part, VectorTier

        store = self.store
        problem = _problem(space)
        while True:
            with store.cold.read() as snapshot:
                info = snapshot.info(space.name)
                prefix = info.prefix if info is not None and not info.dropped else b""
                published = snapshot.segments(prefix) if prefix else {}
                keys = list(unhurried(snapshot.unsealed(prefix))) if prefix else []
            epoch = 0 if info is None else info.epoch
            parts: list[Part] = []
            try:
                for number, known in published.items():
                    segment = store.sealer.shelf.segment(number, known.seal, graph=known.graph)
                    parts.append(Part(segment, known.dead))
            except CorruptionError as exc:
                with store.cold.read() as snapshot:
                    info = snapshot.info(space.name)
                    if info is not None and info.epoch != epoch:
                        # Merged and deleted between the look and the opening.
                        continue
                    # Searched exactly, from L3, until they are built anew.
                    parts = []
                    keys = [text(key[4:]) for key, _ in snapshot.rows(snapshot.dbs.vectors, prefix)]
                    keys.extend(snapshot.unsealed(prefix))
                store.degraded[problem] = f"{problem} are searched exactly: {exc}"
                store.sealer.shelf.condemned.setdefault(number, str(exc))
                store.sealer.mend(space.name)
            else:
                troubles = [store.sealer.shelf.problems.get(number) for number in published]
                told = next((trouble for trouble in troubles if trouble), None)
                if told is None:
                    store.degraded.pop(problem, None)
                else:
                    store.degraded[problem] = f"{problem} are searched exactly in part: {told}"
                    store.sealer.mend(space.name)
            return VectorTier(dimension, metric, parts, epoch), keys

    def adopt(self, space: Space) -> None:
        """Take up the published segments in place of the present ones; searches go on meanwhile."""
        # One at a time: each gathers its own replay.
        with self._adopting:
            self._adopt(space)

    def _adopt(self, space: Space) -> None:
        store = self.store
        with space.index_lock, store.lock:
            old = space.index
            if old is not None:
                # What is written or brought in step from here on is brought in step again afterwards.
                space.replay = set(space.touched).union(space.pending)
        if old is None:
            # Whoever loads it takes up what there is then.
            store.degraded.pop(_problem(space), None)
        else:
            self._exchange(space, old)
        with store.cold.read() as snapshot:
            store.sealer.shelf.keep(snapshot.segment_numbers())

    def _exchange(self, space: Space, old: VectorTier) -> None:
        store = self.store
        try:
            fresh, keys = self._published(space, old.dimension, old.metric)
            held = [row for key in unhurried(keys) if (row := old.tail.row(key)) is not None]
            for start in range(0, len(held), TAKEN_ROWS):
                fresh.tail.upsert(unhurried(held[start : start + TAKEN_ROWS]))
            fresh.bury(keys)
            known = {row.key for row in held}
            with space.index_lock, store.lock:
                if space.index is old:
                    space.index = fresh
                    space.touched.update(space.replay or (), (key for key in keys if key not in known))
        finally:
            space.replay = None

    def _sync(self, space: Space, index: VectorTier, keys: Sequence[str]) -> None:
        """Bring the rows of `keys` up to date. The caller holds the space's index lock."""
        width = index.dimension * 4
        if space.replay is not None:
            space.replay.update(keys)
        try:
            page = reading.fetch_many(self.store, space, keys)
        except BaseException:
            space.index = None
            raise
        rows = [
            Row(key, vector, header[VERSION], header[AT], header[EXPIRES], metadata)
            for key, (raw, header, metadata, _) in zip(page.keys(), page.rows, strict=True)
            if header[FLAGS] & HAS_VECTOR and len(vector := page.vectors[raw]) == width
        ]
        kept = {row.key for row in rows}
        index.update(rows, [key for key in keys if key not in kept])

    def search(
        self,
        names: Sequence[str],
        query: Any,
        k: int,
        *,
        since: float,
        until: float,
        where: Filter | None,
        min_score: float,
        effort: int | None,
        exact: bool,
    ) -> list[tuple[str, Found]]:
        """(namespace, result) of the min(k, matches) best rows over all namespaces, best first."""
        store = self.store
        results: list[tuple[str, Found]] = []
        metrics: dict[str, str] = {}
        allows = reading.matcher(None if where is None else where.matches)
        now = store.clock.now()

        def ask(array: NDArray[np.float32], index: VectorTier) -> list[Found]:
            return index.search(
                array,
                k,
                now=now,
                since=since,
                until=until,
                where=where,
                allows=allows,
                min_score=min_score,
                effort=effort,
                exact=exact,
            )

        for name in names:
            space = store.space(name)
            known = describe(store, space)
            if known is None:
                # Nothing is stored there to compare with, but a malformed query is an error all the same.
                as_vector(query, store.config.vector.metric)
                continue
            dimension, metric = known
            metrics[metric] = name
            array = as_vector(query, metric)
            if array.size != dimension:
                raise DimensionMismatch(f"{name!r} has dimension {dimension}, the query {array.size}")
            results.extend((name, found) for found in self._undamaged(space, partial(ask, array)))
        if len(metrics) > 1:
            raise InvalidArgument(f"scores of different metrics cannot be merged: {sorted(metrics)}")
        if len(names) > 1:
            results.sort(key=lambda pair: (-pair[1].score, pair[0], pair[1].key))
        return results[:k]

    def _undamaged(self, space: Space, ask: Callable[[VectorTier], list[Found]]) -> list[Found]:
        """What `ask` answers; a segment that turns out to be damaged is left out, and the rest asked again."""
        while True:
            index = self.index_of(space)
            if index is None:
                return []
            try:
                return ask(index)
            except CorruptionError as exc:
                damaged = [part.segment.rows.number for part in index.parts if part.segment.rows.damaged]
                if not damaged:
                    raise
                self.store.sealer.shelf.condemned.update(dict.fromkeys(damaged, str(exc)))
                with space.index_lock:
                    # Unless another thread has met the same.
                    if space.index is index:
                        space.index = None
