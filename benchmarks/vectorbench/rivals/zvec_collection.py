"""zvec with its graph over 8-bit codes and its refiner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vectorbench.data import DIMENSION, FloatArray, IntArray, K, Step
from vectorbench.subject import EF_CONSTRUCTION, FILLER, M, Subject, key_of, metadata_of, row_of


class ZvecCollection(Subject):
    """A collection with an HNSW index over INT8, refined, and an inverted index on the bucket."""

    name = "zvec"
    package = "zvec"
    setup = f"HNSW over INT8 with refiner, m = {M}, ef_construction = {EF_CONSTRUCTION}, ef = 300 by default"
    filters = True

    @classmethod
    def efforts(cls) -> tuple[int | None, ...]:
        return (None, 16, 32, 64, 128)

    def build(self, base: FloatArray, buckets: IntArray, step: Step) -> None:
        import zvec

        graph = zvec.HnswIndexParam(
            metric_type=zvec.MetricType.COSINE,
            m=M,
            ef_construction=EF_CONSTRUCTION,
            quantize_type=zvec.QuantizeType.INT8,
        )
        by_bucket = zvec.InvertIndexParam(enable_range_optimization=True)
        fields = [
            zvec.FieldSchema("bucket", zvec.DataType.INT64, index_param=by_bucket),
            zvec.FieldSchema("side", zvec.DataType.STRING),
            zvec.FieldSchema("text", zvec.DataType.STRING),
        ]
        vectors = zvec.VectorSchema("vector", zvec.DataType.VECTOR_FP32, DIMENSION, graph)
        zvec.init(log_level=zvec.LogLevel.ERROR)
        collection = zvec.create_and_open(
            str(self.path / "store"), zvec.CollectionSchema("bench", fields=fields, vectors=vectors)
        )
        for start in range(0, len(base), 500):
            docs = [
                zvec.Doc(
                    id=key_of(row),
                    vectors={"vector": base[row]},
                    fields={**metadata_of(row, buckets[row]), "text": FILLER},
                )
                for row in range(start, min(start + 500, len(base)))
            ]
            for status in collection.insert(docs):
                assert status.ok(), status
            if start % 5000 == 0:
                step(f"{start:,} rows")
        collection.optimize()
        collection.flush()
        collection.close()

    def open(self) -> None:
        import zvec

        zvec.init(log_level=zvec.LogLevel.ERROR, query_threads=1)
        self.collection = zvec.open(str(self.path / "store"))

    def searching(self, effort: int | None, below: int | None = None) -> Callable[[FloatArray], Any]:
        import zvec

        effort = effort or 300
        param = zvec.HnswQueryParam(ef=effort, is_using_refiner=True)
        search = self.collection.query
        wanted = None if below is None else f"bucket < {below}"
        fields = ["bucket", "side"]
        return lambda query: search(
            zvec.Query("vector", vector=query, param=param), topk=K, filter=wanted, output_fields=fields
        )

    def rows(self, answer: Any) -> list[int]:
        return [row_of(doc.id) for doc in answer]

    def close(self) -> None:
        self.collection.close()
