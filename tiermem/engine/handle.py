"""What every verb of a handle starts from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn
from weakref import WeakMethod

from tiermem.errors import ClosedError, ReadOnlyError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tiermem.engine.store import Store
    from tiermem.tiers.hot import Table


class _Closed:
    """Stands where a closed handle had its flag and its tables."""

    def __getitem__(self, _: object) -> NoReturn:
        raise ClosedError("the store was closed")

    __contains__ = __getitem__


class Handle:
    """One user's view of a store; several may share it.

    `_stale[0]` is true if another process has committed something this one has not read; every call
    looks at it. `_tables` is the plain dict of the untyped tables: what is in it costs no call.
    """

    def __init__(self, store: Store, *, read_only: bool = False) -> None:
        self._store = store
        self._read_only = read_only
        self._stale: Any = ()
        self._tables: Mapping[str, Table] = store.tables.untyped
        store.reopened.append(WeakMethod(self._attach))
        self._attach()

    def _attach(self) -> None:
        """Look at the store's control page, which after a fork is mapped anew."""
        if not self._closed:
            self._stale = self._store.control.stale

    def _current(self) -> Store:
        """The store, caught up with what other processes have committed.

        Raises:
            ClosedError: this handle or the store was closed.
        """
        store = self._store
        store.check_open()
        if self._stale[0]:
            store.follower.catch_up()
        return store

    def _writable(self) -> Store:
        store = self._store
        if self._stale[0]:
            store.follower.catch_up()
        if store.closed or store.read_only or self._read_only:
            store.check_writable()
            raise ReadOnlyError(f"this handle on {store.root} was opened read-only")
        return store

    @property
    def _closed(self) -> bool:
        return isinstance(self._stale, _Closed)

    def _detach(self) -> bool:
        """Let every later call raise; False if it had been done."""
        if self._closed:
            return False
        self._stale = self._tables = _Closed()  # type: ignore[assignment]  # a closed handle only raises
        return True
