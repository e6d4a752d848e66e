"""A namespace as a mapping, and the fastest read there is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

from tiermem.codec.serialize import copy_value
from tiermem.engine import reads
from tiermem.types import (
    UNSET,
    Change,
    Duration,
    Guard,
    Hit,
    Item,
    Metadata,
    Moment,
    Progress,
    Record,
    Unset,
    Vector,
    Where,
    encode_key,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from tiermem.engine.memory import Memory
    from tiermem.engine.space import Decode
    from tiermem.engine.store import Store


class Namespace(MutableMapping[str, Any]):
    """One namespace of a store: a mutable mapping from keys to values.

    `ns[key]` is one dict lookup when the record is hot, and is as fresh as the last other call on the store; a
    committer thread makes such a call every quarter of a second, a process that commits inline has none.
    Every verb of `Memory` that names a namespace is here without that argument.
    """

    _memory: Memory
    _current: Callable[[], Store]
    _type: Any
    _decode: Decode
    name: str

    @staticmethod
    def of(memory: Memory, current: Callable[[], Store], name: str, type_: Any) -> Namespace:
        """The mapping of `name`, whose values are decoded as `type_`."""
        store = current()
        table = store.tables.typed(name, type_)
        # A class of its own: subscripting looks `__getitem__` up in the class, and there it finds the
        # table's bound C method, so that a hit runs no Python frame.
        made: Any = type("Namespace", (Namespace,), {"__getitem__": table.__getitem__, "__module__": __name__})
        namespace: Namespace = made()
        namespace._memory = memory
        namespace._current = current
        namespace._type = type_
        namespace._decode = store.space(name).decode_of(table)
        namespace.name = name
        return namespace

    def __getitem__(self, key: str) -> Any:
        raise NotImplementedError("a Namespace is made by Memory.namespace")

    def __setitem__(self, key: str, value: Any) -> None:
        self._memory.put(self.name, key, value)

    def __delitem__(self, key: str) -> None:
        if not self._memory.delete(self.name, key):
            raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._memory.contains(self.name, key)

    def __iter__(self) -> Iterator[str]:
        return reads.read_keys(self._current(), self.name)

    def __len__(self) -> int:
        return self._memory.count(self.name)

    def __repr__(self) -> str:
        return f"<tiermem.Namespace {self.name!r}>"

    def get(self, key: str, default: Any = None, copy: bool = False) -> Any:
        """As `Memory.get`."""
        self._current()
        try:
            value = self[key]
        except KeyError:
            return default
        except TypeError:
            # An unhashable key never reaches the checks of a miss.
            encode_key(key)
            raise
        return copy_value(value) if copy else value

    def peek(self, key: str, default: Any = None) -> Any:
        """As `Memory.peek`."""
        return reads.read_hot(self._current(), self.name, key, self._type, default)

    def get_record(self, key: str) -> Record | None:
        """As `Memory.get_record`."""
        return reads.read_record(self._current(), self.name, key, self._decode)

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """As `Memory.get_many`."""
        return reads.read_values(self._current(), self.name, keys, self._type)

    def scan(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        where: Where | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Iterator[Record]:
        """As `Memory.scan`."""
        return reads.read_scan(
            self._current(), self.name, self._decode, prefix, start, since, until, where, limit, reverse
        )

    def latest(self, n: int = 1) -> list[Record]:
        """As `Memory.latest`."""
        return reads.read_latest(self._current(), self.name, n, self._decode)

    def contains(self, key: str) -> bool:
        """As `Memory.contains`."""
        return self._memory.contains(self.name, key)

    def count(self, where: Where | None = None) -> int:
        """As `Memory.count`."""
        return self._memory.count(self.name, where)

    def put(
        self,
        key: str,
        value: Any,
        *,
        vector: Vector | None = None,
        metadata: Metadata | None = None,
        ttl: Duration | None = None,
        at: Moment | None = None,
        text: str | None = None,
        durable: bool = False,
        if_version: int | None = None,
        guard: Guard | None = None,
    ) -> int:
        """As `Memory.put`."""
        return self._memory.put(
            self.name,
            key,
            value,
            vector=vector,
            metadata=metadata,
            ttl=ttl,
            at=at,
            text=text,
            durable=durable,
            if_version=if_version,
            guard=guard,
        )

    def update(  # type: ignore[override]  # the contract's verb stands where a mapping merges another
        self,
        key: str,
        *,
        value: Any | Unset = UNSET,
        metadata: Metadata | Unset | None = UNSET,
        vector: Vector | Unset | None = UNSET,
        ttl: Duration | Unset | None = UNSET,
    ) -> int:
        """As `Memory.update`, not as `dict.update`: replaces parts of one record."""
        return self._memory.update(self.name, key, value=value, metadata=metadata, vector=vector, ttl=ttl)

    def touch(self, key: str, *, ttl: Duration | None) -> int:
        """As `Memory.touch`."""
        return self._memory.touch(self.name, key, ttl=ttl)

    def delete(
        self,
        key: str,
        *,
        if_version: int | None = None,
        guard: Guard | None = None,
        durable: bool = False,
        erase: bool = False,
    ) -> bool:
        """As `Memory.delete`."""
        return self._memory.delete(self.name, key, if_version=if_version, guard=guard, durable=durable, erase=erase)

    def delete_many(
        self,
        keys: Iterable[str] | None = None,
        *,
        prefix: str | None = None,
        where: Where | None = None,
        erase: bool = False,
    ) -> int:
        """As `Memory.delete_many`."""
        return self._memory.delete_many(self.name, keys, prefix=prefix, where=where, erase=erase)

    def clear(self) -> None:
        """Remove every record; the namespace itself stays."""
        self._memory.delete_many(self.name, prefix="")

    def put_many(
        self,
        items: Iterable[Item | tuple[str, Any]] | None = None,
        *,
        keys: Sequence[str] | None = None,
        values: Sequence[Any] | None = None,
        vectors: ArrayLike | None = None,
        metadatas: Sequence[Metadata | None] | None = None,
        durable: bool = False,
        progress: Progress | None = None,
    ) -> list[int]:
        """As `Memory.put_many`."""
        return self._memory.put_many(
            self.name,
            items,
            keys=keys,
            values=values,
            vectors=vectors,
            metadatas=metadatas,
            durable=durable,
            progress=progress,
        )

    def append(
        self,
        value: Any,
        *,
        at: Moment | None = None,
        vector: Vector | None = None,
        metadata: Metadata | None = None,
        ttl: Duration | None = None,
        text: str | None = None,
        durable: bool = False,
    ) -> str:
        """As `Memory.append`."""
        return self._memory.append(
            self.name, value, at=at, vector=vector, metadata=metadata, ttl=ttl, text=text, durable=durable
        )

    def search_similar(
        self,
        query: Vector | str,
        k: int = 10,
        *,
        where: Where | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        min_score: float | None = None,
        exact: bool = False,
        effort: int | None = None,
    ) -> list[Hit]:
        """As `Memory.search_similar`."""
        return self._memory.search_similar(
            self.name, query, k, where=where, since=since, until=until, min_score=min_score, exact=exact, effort=effort
        )

    def search_many(
        self,
        queries: ArrayLike | Sequence[str],
        k: int = 10,
        *,
        where: Where | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        min_score: float | None = None,
        exact: bool = False,
        effort: int | None = None,
    ) -> list[list[Hit]]:
        """As `Memory.search_many`."""
        return self._memory.search_many(
            self.name,
            queries,
            k,
            where=where,
            since=since,
            until=until,
            min_score=min_score,
            exact=exact,
            effort=effort,
        )

    def build_index(self, progress: Progress | None = None) -> None:
        """As `Memory.build_index`."""
        self._memory.build_index(self.name, progress)

    def changes(self, after: int | None = None, wait: float | None = None) -> Iterator[Change]:
        """As `Memory.changes`, of this namespace."""
        return self._memory.changes(after, self.name, wait)
