"""A space: what this process keeps of one namespace."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from tiermem.codec.frame import STREAM
from tiermem.codec.operation import PUT, Operation
from tiermem.codec.serialize import decoder
from tiermem.engine.reentry import refuse_reentry
from tiermem.errors import EncodingError
from tiermem.tiers.hot import Table
from tiermem.types import check_namespace

if TYPE_CHECKING:
    from tiermem.engine.store import Store
    from tiermem.tiers.vector.index import VectorTier

Decode = Callable[[bytes | memoryview], Any]


class Space:
    """Pending writes, hot tables and the vector index of one namespace.

    `prefix`, `dimension`, `metric` and `model` are copies of what L3 says, empty while unknown.
    `made`: something was put there since. `touched` holds keys whose rows in `index` may be out of
    date; whoever loads or updates the index holds `index_lock`. `replay` gathers what is brought up to
    date while another index is made ready to take its place.
    """

    __slots__ = (
        "decoders",
        "dimension",
        "index",
        "index_lock",
        "keyed",
        "made",
        "metric",
        "model",
        "name",
        "pending",
        "prefix",
        "raw",
        "replay",
        "tables",
        "touched",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.raw = name.encode()
        self.pending: dict[str, Operation] = {}
        self.tables: list[tuple[Table, Decode]] = []
        self.decoders: dict[Any, Table] = {}
        self.index_lock = threading.Lock()
        self.forget()

    def forget(self) -> None:
        """Drop what was copied from L3: the namespace is gone, or was never seen."""
        self.prefix = b""
        self.dimension = 0
        self.metric = ""
        self.model = ""
        self.made = any(op.kind == PUT for op in self.pending.values())
        self.keyed = any(not op.flags & STREAM for op in self.pending.values())
        self.index: VectorTier | None = None
        self.touched: set[str] = set()
        self.replay: set[str] | None = None

    def decode_of(self, table: Table) -> Decode:
        """What turns encoded bytes into the values of `table`."""
        return next(decode for known, decode in self.tables if known is table)


class Spaces(dict[str, Space]):
    """Every namespace this process has met; an unknown name is checked and met."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store

    def __missing__(self, name: str) -> Space:
        name = check_namespace(name)
        if self._store.lock.locked():
            refuse_reentry(self._store.lock)
        with self._store.lock:
            return self.setdefault(name, Space(name))


class Tables:
    """The hot table of every namespace and type; `untyped` is what `Memory.get` subscripts."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.untyped: dict[str, Table] = {}

    def typed(self, name: str, type_: Any) -> Table:
        """The table that holds the values of a namespace as `type_` (None: untyped)."""
        store = self._store
        space = store.space(name)
        try:
            found = space.decoders.get(type_)
        except TypeError as exc:
            raise EncodingError(f"a type to decode as is hashable, not {type(type_).__name__}") from exc
        if found is None:
            decode = decoder(type_)
            with store.lock:
                found = space.decoders.get(type_)
                if found is None:
                    found = store.hot.table(partial(store.loader.miss, space, decode))
                    space.tables.append((found, decode))
                    space.decoders[type_] = found
                    if type_ is None:
                        self.untyped[name] = found
        return found
