"""A segment: immutable rows and the graph over them, searched under any filter."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from tiermem.policy.planner import Plan, contenders, glance, plan
from tiermem.tiers.vector.bits import are_set, count_bits, cut_bits, full_bits, set_bits
from tiermem.tiers.vector.rowfile import RowFile
from tiermem.tiers.vector.scores import as_distance, as_point, exact_scores, shortlist

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tiermem.policy.filters import Filter, Node
    from tiermem.protocols import VectorIndex

    Scored = list[tuple[float, int]]

_SCAN: Final = 1_024
"""Scattered rows compared at a time: their vectors stay in the processor's cache."""
_SWEEP: Final = 65_536
"""Rows that lie side by side, compared at a time."""
_DENSE: Final = 4
"""Where more than one row in so many is to be compared, all that lie between are read too."""
_FILTERS: Final = 16
"""Filters whose matches are kept."""
_LISTED: Final = 65_536
"""So many matches of a filter are kept as numbers, too."""


class _Matching:
    """The rows that match a filter, tombstones included."""

    __slots__ = ("_rows", "bits", "count")

    def __init__(self, bits: NDArray[np.uint8]) -> None:
        self.bits = bits
        self.count = count_bits(bits)
        self._rows: NDArray[np.uint32] | None = None

    def within(self, bits: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The numbers of those whose bit is set in `bits`, which holds no others, ascending."""
        if self._rows is None:
            if self.count > _LISTED:
                return set_bits(bits)
            self._rows = set_bits(self.bits).astype(np.uint32)
        rows = self._rows.astype(np.int64)
        return rows if bits is self.bits else rows[are_set(bits, rows)]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.bits.nbytes + (0 if self._rows is None else self._rows.nbytes)


class Segment:
    """The rows of one file and the graph over them; without a graph every allowed row is compared."""

    def __init__(self, rows: RowFile, graph: VectorIndex | None) -> None:
        self.rows = rows
        self.graph = graph
        self._all = full_bits(rows.rows)
        self._filters: dict[Node, _Matching] = {}
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes this process holds in memory for itself."""
        graph = 0 if self.graph is None else self.graph.nbytes
        return graph + self.rows.rows + self._all.nbytes + sum(known.nbytes for known in list(self._filters.values()))

    def _matching(self, where: Filter) -> _Matching:
        known = self._filters.get(where.node)
        if known is None:
            known = _Matching(self.rows.columns.bits(where.node))
            with self._lock:
                while len(self._filters) >= _FILTERS:
                    del self._filters[next(iter(self._filters))]
                self._filters[where.node] = known
        return known

    def search(
        self,
        query: NDArray[np.float32],
        k: int,
        alive: NDArray[np.uint8] | None,
        live: int,
        *,
        floor: float,
        brief: bool,
        now: float,
        since: float,
        until: float,
        where: Filter | None,
        effort: int | None,
        exact: bool,
    ) -> tuple[Scored, list[float] | None]:
        """(score, row) of the min(k, matches) best of the `live` rows in `alive` (None: all), best first.

        Whatever ties with the last is there too; what scores less than `floor` may be left out. If `brief`, a glance
        will do where a graph is walked; the second item is what `reaching` wants to know of it, None if it was a look.

        Raises:
            CorruptionError: the file is damaged where it was read.
        """
        rows = self.rows
        low, high = 0, rows.rows
        if since != -np.inf:
            low = int(np.searchsorted(rows.at, since, "left"))
        if until != np.inf:
            high = int(np.searchsorted(rows.at, until, "left"))
        if low >= high:
            return [], None
        bits, allowed = alive, live
        matching = None if where is None else self._matching(where)
        if matching is not None:
            if bits is not None:
                bits = matching.bits & bits
                allowed = count_bits(bits)
            else:
                bits, allowed = matching.bits, matching.count
        if rows.first_expiry <= now:
            unexpired = np.zeros_like(self._all)
            packed = np.packbits(rows.expires > now, bitorder="little")
            unexpired[: len(packed)] = packed
            bits = unexpired if bits is None else bits & unexpired
            allowed = count_bits(bits)
        whole = low == 0 and high == rows.rows
        if not whole:
            if bits is None:
                allowed = high - low
            else:
                bits = cut_bits(bits, low, high)
                allowed = count_bits(bits)
        if not allowed:
            return [], None
        way = plan(rows.rows, allowed, k, effort)
        if way.effort and not exact and self.graph is not None:
            if bits is None and not whole:
                bits = cut_bits(self._all, low, high)
            point = as_point(rows.about.metric, query, rows.about.largest)
            within = self._within(self.graph, query, floor)
            brief = brief and effort is None and self.graph.noise < np.inf
            for glanced in (True, False) if brief else (False,):
                found, distances = self._walk(self.graph, point, glance(way, k) if glanced else way, bits)
                if len(found) >= k:
                    near = found[: self._contenders(self.graph, distances, k, within)]
                    return self._scored(query, near, k), distances if glanced else None
        chosen = None
        if bits is not None:
            chosen = set_bits(bits) if matching is None else matching.within(bits)
        return self._compared(query, chosen, low, high, k), None

    def _within(self, graph: VectorIndex, query: NDArray[np.float32], floor: float) -> float:
        """How far the engine may say that a row of the score `floor` is, give or take what `contenders` allows for."""
        about = self.rows.about
        within = as_distance(about.metric, floor, query, about.largest)
        if about.metric == "dot" or graph.noise == np.inf:
            return within
        # The square of the noise itself comes on top: its mean over all dimensions, and four standard deviations.
        return within + graph.noise * graph.noise * (about.dimension + 4 * math.sqrt(about.dimension))

    def _walk(
        self, graph: VectorIndex, point: NDArray[np.float32], way: Plan, bits: NDArray[np.uint8] | None
    ) -> tuple[NDArray[np.int64], list[float]]:
        found, distances = graph.search(point, way.rows, way.effort, bits)
        return found, distances.tolist()

    def _contenders(self, graph: VectorIndex, distances: Sequence[float], k: int, within: float) -> int:
        squared = self.rows.about.metric != "dot"
        return contenders(distances, k, graph.noise, squared=squared, within=within)

    def reaching(self, query: NDArray[np.float32], distances: Sequence[float], k: int, floor: float) -> int:
        """How many of the rows found at a glance, for all that is known of them, can score `floor` or more."""
        if self.graph is None:
            return 0
        return self._contenders(self.graph, distances, k, self._within(self.graph, query, floor))

    def _scored(self, query: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> Scored:
        """(score, row) of those of `rows` that are among the k best of them or tie with the last, best first."""
        scores: list[float] = []
        for start in range(0, len(rows), _SCAN):
            vectors = self.rows.take(rows[start : start + _SCAN])
            scores += exact_scores(self.rows.about.metric, vectors, query).tolist()
        ranked = sorted(zip(scores, rows.tolist(), strict=True), reverse=True)
        last = k
        while k <= last < len(ranked) and ranked[last][0] == ranked[k - 1][0]:
            last += 1
        return ranked[:last]

    def _compared(
        self, query: NDArray[np.float32], rows: NDArray[np.int64] | None, low: int, high: int, k: int
    ) -> Scored:
        """`_scored` of all the rows given, of those between `low` and `high` (None: of all of these)."""
        if rows is None or len(rows) > (high - low) // _DENSE:
            products = np.empty(high - low, np.float32)
            for start in range(low, high, _SWEEP):
                stop = min(start + _SWEEP, high)
                with np.errstate(all="ignore"):
                    np.vecdot(self.rows.span(start, stop), query, out=products[start - low : stop - low])
            if rows is None:
                rows = np.arange(low, high)
            else:
                products = products[rows - low]
        else:
            products = np.empty(len(rows), np.float32)
            some = np.empty((min(len(rows), _SCAN), len(query)), np.float32)
            for start in range(0, len(rows), _SCAN):
                part = rows[start : start + _SCAN]
                with np.errstate(all="ignore"):
                    np.vecdot(self.rows.take(part, some), query, out=products[start : start + _SCAN])
        near = shortlist(self.rows.about.metric, products, self.rows.squares[rows], query, k)
        return self._scored(query, rows[near], k)
