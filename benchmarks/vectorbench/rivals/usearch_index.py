"""usearch over bfloat16, mapped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vectorbench.data import CHUNK, DIMENSION, FloatArray, IntArray, K, Step
from vectorbench.subject import EF_CONSTRUCTION, M, Subject


class UsearchIndex(Subject):
    """A `usearch.index.Index` saved to one file and viewed there."""

    name = "usearch"
    package = "usearch"
    setup = f"bfloat16, connectivity = {M}, expansion_add = {EF_CONSTRUCTION}, viewed in its file"

    def load_library(self) -> None:
        import usearch.index  # noqa: F401 - for its side effect, which is to be loaded

    def build(self, base: FloatArray, buckets: IntArray, step: Step) -> None:
        from usearch.index import Index

        index = Index(ndim=DIMENSION, metric="cos", dtype="bf16", connectivity=M, expansion_add=EF_CONSTRUCTION)
        for start in range(0, len(base), CHUNK):
            part = np.ascontiguousarray(base[start : start + CHUNK])
            index.add(np.arange(start, start + len(part), dtype=np.uint64), part)
            step(f"{start:,} rows")
        index.save(str(self.path / "index"))

    def open(self) -> None:
        from usearch.index import Index

        self.index = Index(ndim=DIMENSION, metric="cos", dtype="bf16", connectivity=M, expansion_add=EF_CONSTRUCTION)
        self.index.view(str(self.path / "index"))

    def searching(self, effort: int | None, below: int | None = None) -> Callable[[FloatArray], Any]:
        assert effort is not None
        assert below is None
        self.index.expansion_search = effort
        search = self.index.search
        return lambda query: search(query, K, threads=1)

    def rows(self, answer: Any) -> list[int]:
        return [int(row) for row in answer.keys]
