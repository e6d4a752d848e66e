"""What tiermem asks of the objects passed to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    FloatArray: TypeAlias = NDArray[np.float32]
    BitArray: TypeAlias = NDArray[np.uint8]
    RowArray: TypeAlias = NDArray[np.int64]

EntryId: TypeAlias = tuple[int, str]
"""(table number, key): what an eviction policy knows an entry by."""


class Row(NamedTuple):
    """What goes into an index: `vector` is float32 bytes, `metadata` is encoded."""

    key: str
    vector: bytes
    version: int
    at: float
    expires: float
    metadata: bytes


class Found(NamedTuple):
    """One search result."""

    key: str
    score: float
    version: int
    metadata: bytes
    at: float


class VectorIndex(Protocol):
    """An opened index over the points of one segment; it finds candidates, which are scored again.

    Immutable. Any number of threads search it at a time.
    """

    @property
    def nbytes(self) -> int:
        """Bytes held in memory by this process alone; 0 where the file is mapped."""
        ...

    @property
    def noise(self) -> float:
        """Standard deviation of a stored coordinate from the point's own; infinity where it is not known."""
        ...

    def search(
        self, point: FloatArray, count: int, effort: int, allowed: BitArray | None
    ) -> tuple[RowArray, FloatArray]:
        """Up to `count` numbers of rows near `point` (1-D), nearest first as far as is known, and how far they are.

        Distances are squared euclidean ones, or minus the inner product. Only rows whose bit is set in
        `allowed` (packed, little bit order; None: all). `effort` ≥ `count` is how many rows to consider. Starts no
        threads.
        """
        ...


class VectorEngine(Protocol):
    """Builds and opens `VectorIndex`es over float32 points.

    Near means a small euclidean distance or, with `inner_product`, a large inner product. Cosine is
    mapped to unit vectors.
    """

    @property
    def name(self) -> str:
        """Kept with every index it builds; an index is opened by the engine of its name."""
        ...

    def build(
        self,
        points: Iterator[FloatArray],
        rows: int,
        dimension: int,
        path: Path,
        threads: int,
        progress: Callable[[int], None],
        *,
        sample: FloatArray,
        inner_product: bool = False,
    ) -> None:
        """Write an index over `rows` points, given in chunks (n, dimension), to the file `path`.

        `sample` (n ≥ 1, dimension) is drawn evenly from the points, for what is learned from them; no coordinate of any
        point lies beyond those of the sample. `progress` is told how many rows are done.
        """
        ...

    def load(self, path: Path, dimension: int, rows: int, *, inner_product: bool = False) -> VectorIndex:
        """Open what `build` wrote; other bytes may follow it in the file.

        Raises:
            CorruptionError: the file cannot be read. MissingExtra: a package is not installed.
        """
        ...


@runtime_checkable
class GrowingEngine(VectorEngine, Protocol):
    """An engine that can build an index by adding to one it has built before."""

    @property
    def grows(self) -> bool:
        """Whether it does that at all, as it is set up: which segments are merged, and when, is chosen by it."""
        ...

    def grow(
        self,
        known: Path,
        rows: int,
        order: RowArray,
        points: Iterator[FloatArray],
        dimension: int,
        path: Path,
        threads: int,
        progress: Callable[[int], None],
        *,
        sample: FloatArray,
        inner_product: bool = False,
    ) -> bool:
        """Write an index over `points` as `build` does, from the one in `known` over `rows` of them.

        First come the points of that one, in the order of its rows, then the others; row i of the new index is the
        point that comes at place `order[i]`. False: that would not do, no point was taken, and nothing was written.
        """
        ...


class Clock(Protocol):
    """A source of time. `domain` is "real" or "simulated" and is kept in the store."""

    @property
    def domain(self) -> str: ...

    def now(self) -> float:
        """Epoch seconds; never goes back within one process."""
        ...


class Embedder(Protocol):
    """Text to vectors. `model` is kept with each namespace it fills."""

    @property
    def model(self) -> str: ...

    @property
    def dimension(self) -> int: ...

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """One float32 row per text: shape (len(texts), dimension)."""
        ...


class EvictionPolicy(Protocol):
    """Decides which entries stay in L1; sees ids and costs, never values, I/O or time.

    Every resident entry is either *free* (a hit on it runs no code at all, so the policy never
    hears of it) or *watched* (a hit on it calls `touch`). The caller moves entries as told:

    - a miss that was filled: `admit`; True puts the entry among the free, False among the watched;
    - a hit on a watched entry: `touch`; True moves it to the free;
    - after either: `shrink`, whose demoted ids go from free to watched and whose evicted ids leave.
    """

    def __init__(self, capacity: int) -> None:
        """`capacity` is the budget, in the unit of `cost` (bytes)."""
        ...

    @property
    def used(self) -> int:
        """Sum of the costs of all resident entries."""
        ...

    def admit(self, entry: EntryId, cost: int) -> bool:
        """`entry` became resident, or is resident and now costs `cost`. True: it is free."""
        ...

    def touch(self, entry: EntryId) -> bool:
        """A hit on the watched `entry`. True: it becomes free.

        Touching a free entry changes nothing and returns True.
        """
        ...

    def discard(self, entry: EntryId) -> None:
        """`entry` was removed by its owner; unknown ids are ignored."""
        ...

    def shrink(self) -> tuple[list[EntryId], list[EntryId]]:
        """(demoted, evicted) such that `used` ≤ capacity afterwards."""
        ...

    def clear(self) -> None:
        """Forget every entry."""
        ...
