"""LanceDB with its graph over 8-bit codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vectorbench.data import CHUNK, DIMENSION, FloatArray, IntArray, K, Step
from vectorbench.subject import FILLER, Subject, key_of, metadata_of, row_of


class Lance(Subject):
    """A table with an IVF_HNSW_SQ index on the vectors and a B-tree on the bucket; efforts re-score 4 × K rows."""

    name = "lancedb"
    package = "lancedb"
    setup = "IVF_HNSW_SQ, cosine, defaults; given an effort: ef, 20 probes, refine_factor 4"
    filters = True

    @classmethod
    def efforts(cls) -> tuple[int | None, ...]:
        return (None, 40, 64, 100, 200, 400)

    def build(self, base: FloatArray, buckets: IntArray, step: Step) -> None:
        import lancedb
        import pyarrow as pa
        from lancedb.index import BTree, HnswSq

        def batches() -> Any:
            for start in range(0, len(base), CHUNK):
                rows = range(start, min(start + CHUNK, len(base)))
                flat = pa.array(base[start : rows.stop].reshape(-1))
                metadata = [metadata_of(row, buckets[row]) for row in rows]
                columns = {
                    "key": pa.array([key_of(row) for row in rows]),
                    "vector": pa.FixedSizeListArray.from_arrays(flat, DIMENSION),
                    "bucket": pa.array([one["bucket"] for one in metadata], pa.int64()),
                    "side": pa.array([one["side"] for one in metadata]),
                    "text": pa.array([FILLER] * len(rows)),
                }
                yield pa.record_batch(columns)
                step(f"{rows.stop:,} rows")

        first = next(batches())
        table = lancedb.connect(str(self.path)).create_table("bench", batches(), schema=first.schema)
        table.create_index("vector", config=HnswSq(distance_type="cosine"))
        step("vectors indexed")
        table.create_index("bucket", config=BTree())

    def open(self) -> None:
        import lancedb

        self.table = lancedb.connect(str(self.path)).open_table("bench")

    def searching(self, effort: int | None, below: int | None = None) -> Callable[[FloatArray], Any]:
        table = self.table

        def search(query: FloatArray) -> Any:
            asked = table.search(query, vector_column_name="vector").distance_type("cosine")
            asked = asked.select(["key", "bucket", "side", "_distance"]).limit(K)
            if below is not None:
                asked = asked.where(f"bucket < {below}", prefilter=True)
            if effort is not None:
                asked = asked.ef(effort).nprobes(20).refine_factor(4)
            return asked.to_list()

        return search

    def rows(self, answer: Any) -> list[int]:
        return [row_of(hit["key"]) for hit in answer]
