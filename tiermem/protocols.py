"""What tiermem asks of the objects passed to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    FloatArray: TypeAlias = NDArray[np.float32]

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
    """An index over the vectors of one namespace. It is derived: L3 holds the truth.

    One writer at a time; `search` runs beside it.
    """

    @property
    def dimension(self) -> int: ...

    @property
    def metric(self) -> str:
        """ "cosine", "dot" or "euclidean"."""
        ...

    @property
    def tombstones(self) -> int:
        """Rows that were replaced or deleted and still take room."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes held in memory."""
        ...

    def __len__(self) -> int:
        """Live rows."""
        ...

    def version(self, key: str) -> int:
        """The version of the live row of `key`, or 0."""
        ...

    def upsert(self, rows: Iterable[Row]) -> None:
        """Add rows, replacing those of the same keys."""
        ...

    def remove(self, keys: Iterable[str]) -> None:
        """Delete the rows of `keys`; unknown keys are ignored."""
        ...

    def search(
        self,
        query: FloatArray,
        k: int,
        *,
        now: float,
        since: float,
        until: float,
        allows: Callable[[bytes], bool] | None,
        min_score: float,
    ) -> list[Found]:
        """The min(k, matches) best rows with since ≤ at < until and expires > now, best first.

        `query` is float32 of shape (dimension,). `allows` is asked of a row's encoded metadata.
        Scores are exact; equal scores are ordered by key.
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

        An entry that expires stays watched whatever the policy says; touching a free entry changes
        nothing and returns True.
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
