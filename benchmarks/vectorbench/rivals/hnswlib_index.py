"""hnswlib over raw float32: the graph every ratio is taken to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vectorbench.data import CHUNK, DIMENSION, FloatArray, IntArray, K, Step
from vectorbench.subject import EF_CONSTRUCTION, M, Subject


class HnswlibIndex(Subject):
    """An `hnswlib.Index` in memory, saved to and loaded from one file."""

    name = "hnswlib"
    package = "hnswlib"
    setup = f"float32, M = {M}, ef_construction = {EF_CONSTRUCTION}, loaded into memory"

    def build(self, base: FloatArray, buckets: IntArray, step: Step) -> None:
        import hnswlib

        index = hnswlib.Index("ip", DIMENSION)
        index.init_index(len(base), M=M, ef_construction=EF_CONSTRUCTION)
        for start in range(0, len(base), CHUNK):
            index.add_items(base[start : start + CHUNK])
            step(f"{start:,} rows")
        index.save_index(str(self.path / "index"))

    def open(self) -> None:
        import hnswlib

        self.index = hnswlib.Index("ip", DIMENSION)
        self.index.load_index(str(self.path / "index"))
        self.index.set_num_threads(1)

    def searching(self, effort: int | None, below: int | None = None) -> Callable[[FloatArray], Any]:
        assert effort is not None
        assert below is None
        self.index.set_ef(effort)
        search = self.index.knn_query
        return lambda query: search(query, k=K, num_threads=1)

    def rows(self, answer: Any) -> list[int]:
        return [int(row) for row in answer[0][0]]
