"""What is measured: a loop with its input, what a section found, and the classes that rivals fill in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType
from typing import Any, ClassVar, Final, Literal, NamedTuple

from _workload import Series, installed

import tiermem

NS: Final = "desk/orders"
DAY: Final = 86_400

Lookup = Literal["floor", "hit", "expiring", "absent"]
"""What is looked up in a cache: keys it holds, such keys with a time to live, or keys it does not hold; what is
measured as a floor does not compete."""
Read = Literal["one", "many", "range"]
"""What a cold read asks for: a key, COLD_ROUND keys in any order, or that many in theirs."""
Report = Callable[[str | int], None]
"""Called with the number of steps, then with the name of each step that was done."""


@dataclass(frozen=True)
class Measured:
    """What one section found: series of timings, and numbers that are none."""

    series: dict[str, Series] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


class Subject(NamedTuple):
    """A function that makes `calls` calls; it gets `arguments`, and last of all the next of `inputs`."""

    run: Callable[..., object]
    arguments: tuple[Any, ...]
    inputs: Iterator[Any]
    calls: int = 1


Subjects = dict[str, Subject]


# ------------------------------------------------------------------------------------------------------------- loops


def nothing(keys: Sequence[str]) -> None:
    for _key in keys:
        pass


def subscript(mapping: Any, keys: Sequence[str]) -> None:
    for key in keys:
        _ = mapping[key]


def get(cache: Any, keys: Sequence[str]) -> None:
    for key in keys:
        cache.get(key)


def call(function: Callable[[str], Any], keys: Sequence[str]) -> None:
    for key in keys:
        function(key)


def get_from(mem: tiermem.Memory, name: str, keys: Sequence[str]) -> None:
    for key in keys:
        mem.get(name, key)


def own(loop: Callable[..., None]) -> Callable[..., None]:
    """A copy of a loop: CPython specialises its bytecode for one subject, and another would undo that."""
    assert isinstance(loop, FunctionType)
    return FunctionType(loop.__code__.replace(), loop.__globals__, loop.__name__)


def pieces(keys: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """What the rounds get: `size` keys each."""
    return [keys[start : start + size] for start in range(0, len(keys), size)]


# ------------------------------------------------------------------------------------------------------------ rivals


class Rival:
    """What tiermem is compared with; its library is imported by its methods alone.

    distribution: what it is installed as, empty for what comes with Python or with tiermem.
    """

    distribution: ClassVar[str] = ""

    @classmethod
    def present(cls) -> bool:
        return not cls.distribution or installed(cls.distribution) is not None


class Cache(Rival):
    """A cache in the process. rows: the lookups it is measured with, by their names on the page."""

    rows: ClassVar[dict[str, Lookup]]

    def lookups(self, values: dict[str, Any]) -> dict[str, tuple[Callable[..., None], Any]]:
        """For each of `rows` a loop and the cache it reads, which holds all of `values` and is full."""
        raise NotImplementedError


class Store(Rival):
    """A store on disk, at home in one directory.

    name, setup: what it is and how it is set up, for the page. rows: the reads it is measured with, by their names
    there. kept: the name of a put of one record that survives the death of the process. synced: that of one that
    survives a power cut. Empty: it is not measured with such puts. slow: it gets fewer of the puts that are timed one
    by one.
    """

    name: ClassVar[str]
    setup: ClassVar[str]
    rows: ClassVar[dict[str, Read]] = {}
    kept: ClassVar[str] = ""
    synced: ClassVar[str] = ""
    slow: ClassVar[bool] = False

    def __init__(self, path: Path, *, sync: bool = False) -> None:
        """Open an empty store; with `sync` a put returns after its fsync."""
        raise NotImplementedError

    def fill(self, items: Iterable[tuple[str, Any]]) -> None:
        """Store a lot, so that it is read from where it will stay."""
        raise NotImplementedError

    def key(self, text: str) -> Any:
        """A key as it is asked for."""
        return text

    def reads(self) -> dict[str, Callable[[Any], object]]:
        """For each of `rows` what reads; for ranges it gets the first key."""
        raise NotImplementedError

    def put(self, key: str, value: Any) -> None:
        """Write one record."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the store."""


def filled(cache: Any, values: dict[str, Any]) -> Any:
    """A cache that takes items as a mapping does, with all of `values`."""
    for key, value in values.items():
        cache[key] = value
    return cache
