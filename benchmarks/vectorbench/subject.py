"""What is measured: the class every subject fills in, and the list of them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from vectorbench.data import FloatArray, IntArray, Step

KEY = "doc-{:08d}"
M = 16
EF_CONSTRUCTION = 128
EFFORTS = (12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384)
FILLER = (
    "A note of some two hundred bytes, as an agent would keep it beside a vector: who said it, where it was seen, "
    "and how it was acted upon afterwards"
)


def key_of(row: int) -> str:
    """The key of a row of the data set."""
    return KEY.format(row)


def row_of(key: str) -> int:
    """The row of the data set that has a key."""
    return int(key[4:])


def value_of(row: int) -> dict[str, Any]:
    """The value of a row: 200 bytes of MessagePack or so."""
    return {"number": row, "price": 48 + row % 4001 / 1000, "text": FILLER, "source": f"feed-{row % 97:02d}"}


def metadata_of(row: int, bucket: int) -> dict[str, Any]:
    """The metadata of a row, which filters ask for."""
    return {"bucket": int(bucket), "side": "sell" if row % 2 else "buy"}


class Subject:
    """An engine under measurement, at home in one directory.

    package: what it is imported as. setup: how it is set up, for the page. efforts: those searched with; None is the
    default of the engine. fixed_effort: the first search of a process fixes it. filters: it is asked filtered questions
    too.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    setup: ClassVar[str]
    filters: ClassVar[bool] = False
    fixed_effort: ClassVar[bool] = False

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def efforts(cls) -> tuple[int | None, ...]:
        return EFFORTS

    def load_library(self) -> None:
        """Import what searching needs, so that it is not counted as memory of the index."""
        import_module(self.package)

    def build(self, base: FloatArray, buckets: IntArray, step: Step) -> None:
        """Store everything and build the index; closed and on disk when it returns."""
        raise NotImplementedError

    def open(self) -> None:
        """Open what was built."""
        raise NotImplementedError

    def searching(self, effort: int | None, below: int | None = None) -> Callable[[FloatArray], Any]:
        """What answers one query; `below` bounds the bucket."""
        raise NotImplementedError

    def rows(self, answer: Any) -> list[int]:
        """The rows of an answer, best first."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the store."""

    def details(self) -> dict[str, Any]:
        """What else is worth keeping of an open store."""
        return {}


SUBJECTS = {
    "tiermem": "vectorbench.ours:Tiermem",
    "hnswlib": "vectorbench.rivals.hnswlib_index:HnswlibIndex",
    "faiss": "vectorbench.rivals.faiss_index:FaissIndex",
    "usearch": "vectorbench.rivals.usearch_index:UsearchIndex",
    "chromadb": "vectorbench.rivals.chroma:Chroma",
    "lancedb": "vectorbench.rivals.lance:Lance",
    "zvec": "vectorbench.rivals.zvec_collection:ZvecCollection",
}


def subject(name: str) -> type[Subject]:
    """The class of a subject; importing it imports no engine."""
    module, _, attribute = SUBJECTS[name].partition(":")
    found = getattr(import_module(module), attribute)
    assert issubclass(found, Subject)
    assert found.name == name
    return found
