"""Chroma's persistent client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vectorbench.data import FloatArray, IntArray, K, Step
from vectorbench.subject import FILLER, Subject, key_of, metadata_of, row_of


class Chroma(Subject):
    """A collection with its defaults but for the metric; values are its documents."""

    name = "chromadb"
    package = "chromadb"
    setup = "PersistentClient, defaults (M = 16, ef_construction = 100, ef_search = 100), cosine"
    filters = True
    fixed_effort = True

    @classmethod
    def efforts(cls) -> tuple[int | None, ...]:
        return (None, 16, 32, 64, 200, 400)

    def client(self) -> Any:
        import chromadb
        from chromadb.config import Settings

        return chromadb.PersistentClient(str(self.path / "store"), Settings(anonymized_telemetry=False))

    def build(self, base: FloatArray, buckets: IntArray, step: Step) -> None:
        client = self.client()
        space = {"hnsw": {"space": "cosine"}}
        collection = client.create_collection("bench", configuration=space, embedding_function=None)
        size = min(5000, client.get_max_batch_size())
        for start in range(0, len(base), size):
            rows = range(start, min(start + size, len(base)))
            collection.add(
                ids=[key_of(row) for row in rows],
                embeddings=base[start : rows.stop],
                metadatas=[metadata_of(row, buckets[row]) for row in rows],
                documents=[FILLER] * len(rows),
            )
            step(f"{rows.stop:,} rows")

    def open(self) -> None:
        self.collection = self.client().get_collection("bench", embedding_function=None)

    def searching(self, effort: int | None, below: int | None = None) -> Callable[[FloatArray], Any]:
        self.collection.modify(configuration={"hnsw": {"ef_search": effort or 100}})
        search = self.collection.query
        where = None if below is None else {"bucket": {"$lt": below}}
        include = ["metadatas", "distances"]
        return lambda query: search(query_embeddings=query[None], n_results=K, where=where, include=include)

    def rows(self, answer: Any) -> list[int]:
        return [row_of(key) for key in answer["ids"][0]]
