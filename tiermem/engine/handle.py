"""What every verb of a handle starts from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from tiermem.errors import ClosedError
from tiermem.tiers.control import COUNTER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tiermem.engine.store import Store
    from tiermem.tiers.hot import Table


class _Closed:
    """Stands where a closed handle had the counter and the tables."""

    def __getitem__(self, _: object) -> NoReturn:
        raise ClosedError("the store was closed")


class Handle:
    """One user's view of a store; several may share it.

    `_words[COUNTER]` is where every process counts its commits and `_seen[0]` the count this process
    has followed: they are compared on every call, and differ only when there is something to read.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tables: Mapping[str, Table] = store.tables
        self._words: Any = store.control.words
        self._seen = store.seen

    def _current(self) -> Store:
        """The store, caught up with what other processes have committed.

        Raises:
            ClosedError: this handle or the store was closed.
        """
        store = self._store
        if self._words[COUNTER] != self._seen[0]:
            store.catch_up()
        store.check_open()
        return store

    def _writable(self) -> Store:
        store = self._current()
        store.check_writable()
        return store

    @property
    def _closed(self) -> bool:
        return isinstance(self._words, _Closed)

    def _detach(self) -> bool:
        """Let every later call raise; False if it had been done."""
        if self._closed:
            return False
        self._words = self._tables = _Closed()  # type: ignore[assignment]  # a closed handle only raises
        return True
