"""faiss alone: the graph over 8-bit codes, mapped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vectorbench.data import CHUNK, DIMENSION, SEED, FloatArray, IntArray, K, Step
from vectorbench.subject import EF_CONSTRUCTION, M, Subject

TRAINED = 50_000


class FaissIndex(Subject):
    """An `IndexHNSWSQ` written to one file and mapped from it."""

    name = "faiss"
    package = "faiss"
    setup = f"IndexHNSWSQ, 8 bit, M = {M}, efConstruction = {EF_CONSTRUCTION}, mapped"

    def build(self, base: FloatArray, buckets: IntArray, step: Step) -> None:
        import faiss

        index = faiss.IndexHNSWSQ(DIMENSION, faiss.ScalarQuantizer.QT_8bit, M, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = EF_CONSTRUCTION
        chosen = np.random.default_rng(SEED).permutation(len(base))[:TRAINED]
        index.train(np.ascontiguousarray(base[np.sort(chosen)]))
        for start in range(0, len(base), CHUNK):
            index.add(np.ascontiguousarray(base[start : start + CHUNK]))
            step(f"{start:,} rows")
        faiss.write_index(index, str(self.path / "index"))

    def open(self) -> None:
        import faiss

        faiss.omp_set_num_threads(1)
        self.index = faiss.read_index(str(self.path / "index"), faiss.IO_FLAG_MMAP_IFC)

    def searching(self, effort: int | None, below: int | None = None) -> Callable[[FloatArray], Any]:
        assert effort is not None
        assert below is None
        self.index.hnsw.efSearch = effort
        search = self.index.search
        return lambda query: search(query[None], K)

    def rows(self, answer: Any) -> list[int]:
        return [int(row) for row in answer[1][0] if row >= 0]
