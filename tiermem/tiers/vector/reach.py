"""Reach: every row of a graph lies on a way that walks take.

Where a row is linked, links that seem needless are taken from its neighbours; of rows that lie close together, or whose
codes are the same, that can leave some with no link towards them. No walk finds those, however wide it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_STRETCH: Final = 2**16
"""Rows whose links are looked at in one go."""
_SEARCHES: Final = 2**10
"""Rows searched for in one go: one link may make thousands of others reachable."""
_NEAR: Final = 32
_EFFORT: Final = 128


class Links:
    """The links of the lowest level of a faiss graph, in its own memory."""

    def __init__(self, faiss: Any, graph: Any) -> None:
        hnsw = graph.hnsw
        self._links: NDArray[np.int32] = faiss.rev_swig_ptr(hnsw.neighbors.data(), hnsw.neighbors.size())
        self._starts: NDArray[np.uint64] = faiss.rev_swig_ptr(hnsw.offsets.data(), hnsw.offsets.size())
        self._each: NDArray[np.int64] = np.arange(hnsw.nb_neighbors(0))

    def of(self, row: int) -> NDArray[np.int32]:
        """Where a row leads: shape (links,), to be written to; what is free, at the end, is -1."""
        start = int(self._starts[row])
        return self._links[start : start + len(self._each)]

    def spread(self, rows: NDArray[np.int64], seen: NDArray[np.bool_]) -> None:
        """Mark all rows that those lead to, which are marked; `seen` has one more place, for links that are free."""
        while len(rows):
            found = []
            for part in np.array_split(rows, -(-len(rows) // _STRETCH)):
                starts = self._starts[part].astype(np.int64)
                ends = self._links[starts[:, None] + self._each].ravel()
                found.append(np.unique(ends[~seen[ends]]))
                seen[found[-1]] = True
            rows = np.concatenate(found)

    def incoming(self) -> NDArray[np.int64]:
        """How many lead to each row, and how many are free; links of higher levels count too."""
        return np.bincount(self._links + 1, minlength=len(self._starts))


def connect(faiss: Any, graph: Any) -> None:
    """Link each row that cannot be reached from one close to it that can."""
    if graph.ntotal < 2:
        return
    links = Links(faiss, graph)
    # Not the entry: it has to be found, too, by walks that come down elsewhere.
    start = int(links.of(graph.hnsw.entry_point)[0])
    if start < 0:
        return
    left = graph.ntotal
    while True:
        seen = np.zeros(graph.ntotal + 1, np.bool_)
        # A link that is free is -1, and marks the last place.
        seen[[start, -1]] = True
        links.spread(np.array([start]), seen)
        lost = np.flatnonzero(~seen)
        # A link that took the place of another may have cut off a row: again, as long as that makes them fewer.
        if not 0 < len(lost) < left:
            return
        left = len(lost)
        _link_all(faiss, graph, links, lost, seen)


def _link_all(faiss: Any, graph: Any, links: Links, lost: NDArray[np.int64], seen: NDArray[np.bool_]) -> None:
    """Link each of `lost`, unless it has been reached from one of them by then."""
    effort = faiss.SearchParametersHNSW(efSearch=_EFFORT)
    incoming = links.incoming()
    # Of many rows with the same code walks find the same few: each of the others is linked from the one before, too.
    beside: dict[int, int] = {}
    for some in np.array_split(lost, -(-len(lost) // _SEARCHES)):
        rows = some[~seen[some]]
        if not len(rows):
            continue
        _, found = graph.search(graph.reconstruct_batch(rows), min(_NEAR, graph.ntotal), params=effort)
        for row, near in zip(rows.tolist(), found, strict=True):
            # Nearest first; -1 where there are no more.
            known = near[(near >= 0) & seen[near]].tolist()
            if seen[row] or not known:
                continue
            nearest = known[0]
            if nearest in beside:
                known.append(beside[nearest])
            if _link(links, row, known, incoming):
                seen[row] = True
                beside[nearest] = row
                links.spread(np.array([row]), seen)


def _link(links: Links, row: int, near: list[int], incoming: NDArray[np.int64]) -> bool:
    """Lead to `row` from the first of `near` that has room; else in the place of that one to which most others lead."""
    best, place, most = -1, 0, 1
    for other in near:
        ends = links.of(other)
        free = np.flatnonzero(ends < 0)
        if len(free):
            best, place = other, int(free[0])
            break
        counts = incoming[ends + 1]
        if counts.max() > most:
            best, place, most = other, int(counts.argmax()), int(counts.max())
    if best < 0:
        return False
    ends = links.of(best)
    incoming[[ends[place] + 1, row + 1]] += -1, 1
    ends[place] = row
    return True
