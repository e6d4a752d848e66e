"""Which engine builds and opens the graphs of segments."""

from __future__ import annotations

from typing import get_args

import msgspec

from tiermem.config import IndexType
from tiermem.errors import InvalidArgument
from tiermem.policy.merging import GROWN, YOUNG
from tiermem.protocols import VectorEngine


class EngineOptions(msgspec.Struct, frozen=True):
    """The part of a `VectorConfig` that says how a shipped engine builds."""

    engine: str
    index: IndexType
    m: int
    ef_construction: int

    def make(self, rows: int = YOUNG, *, awaited: bool = True) -> VectorEngine:
        """The engine they ask for; its package is imported when it first builds or opens something.

        A graph of few rows is soon merged away, and found in with ease: its links are chosen with half the effort. One
        that nobody asked for may have grown out of such a one.
        """
        few = YOUNG if awaited else 2 * GROWN
        breadth = self.ef_construction if rows >= few else max(8, self.ef_construction // 2)
        if self.engine == "hnswlib":
            from tiermem.tiers.vector.hnswlib_engine import HnswlibEngine

            return HnswlibEngine(m=self.m, ef_construction=breadth)
        from tiermem.tiers.vector.faiss_engine import FaissEngine

        return FaissEngine(index=self.index, m=self.m, ef_construction=breadth)


def engine_of(name: str) -> VectorEngine:
    """The shipped engine that wrote a graph.

    Raises:
        InvalidArgument: none of that name is shipped.
    """
    shipped = [("faiss", index) for index in get_args(IndexType)] + [("hnswlib", "hnsw")]
    for engine, index in shipped:
        made = EngineOptions(engine, index, 16, 128).make()
        if made.name == name:
            return made
    raise InvalidArgument(f"a graph was built by engine {name!r}, which is not the one configured")
