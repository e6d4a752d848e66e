"""Batches: several writes, across namespaces, all or nothing."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tiermem.codec.operation import Operation
from tiermem.engine import drafts
from tiermem.engine.proposals import Condition
from tiermem.errors import InvalidArgument
from tiermem.types import Duration, Guard, Metadata, Moment, Vector

if TYPE_CHECKING:
    from tiermem.engine.space import Space
    from tiermem.engine.store import Draft, Store


class Batch:
    """Collects writes and makes them at the end of its `with` block; an exception there discards them.

    Every argument is checked when it is given. Conditions are compared with the store as it was
    before the batch. Of several writes to one key the last stands. `versions` holds the version of
    each write, in order, once the block has ended.
    """

    def __init__(self, store: Store, durable: bool) -> None:
        self.versions: list[int] = []
        self._store = store
        self._durable = durable
        self._drafts: list[Draft] = []
        self._conditions: list[Condition] = []
        self._ended = False

    def put(
        self,
        namespace: str,
        key: str,
        value: Any,
        *,
        vector: Vector | None = None,
        metadata: Metadata | None = None,
        ttl: Duration | None = None,
        at: Moment | None = None,
        text: str | None = None,
        if_version: int | None = None,
        guard: Guard | None = None,
    ) -> None:
        """As `Memory.put`, when the batch ends."""
        space = self._space(namespace)
        conditions = drafts.conditions(space, key, if_version, guard)
        op = drafts.put(self._store, space, key, value, vector, metadata, ttl, at, text)
        self._add(space, op, conditions)

    def append(
        self,
        namespace: str,
        value: Any,
        *,
        at: Moment | None = None,
        vector: Vector | None = None,
        metadata: Metadata | None = None,
        ttl: Duration | None = None,
        text: str | None = None,
        guard: Guard | None = None,
    ) -> str:
        """As `Memory.append`, when the batch ends; the key it will have."""
        space = self._space(namespace)
        conditions = drafts.conditions(space, "-", None, guard)
        op = drafts.append(self._store, space, value, vector, metadata, ttl, at, text)
        self._add(space, op, conditions)
        return op.key

    def delete(self, namespace: str, key: str, *, if_version: int | None = None, guard: Guard | None = None) -> None:
        """As `Memory.delete`, when the batch ends; a record that is not there is no error."""
        space = self._space(namespace)
        conditions = drafts.conditions(space, key, if_version, guard)
        self._add(space, drafts.delete(self._store, space, key), conditions)

    def _space(self, namespace: str) -> Space:
        if self._ended:
            raise InvalidArgument("the batch has ended")
        return self._store.space(namespace)

    def _add(self, space: Space, op: Operation, conditions: list[Condition]) -> None:
        self._drafts.append((space, op))
        self._conditions.extend(conditions)

    def __len__(self) -> int:
        return len(self._drafts)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        if kind is not None or not self._drafts:
            return
        self._store.check_writable()
        self.versions = drafts.send(self._store, self._drafts, self._conditions)
        if self._durable:
            self._store.committer.drain()
