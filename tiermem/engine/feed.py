"""The change feed: iterating over the change log, waiting for more, named cursors."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from tiermem.engine.proposals import Place, Proposal
from tiermem.errors import CursorExpired, InvalidArgument
from tiermem.tiers.cold.layout import OPS, CursorInfo
from tiermem.types import Change, check_namespace

if TYPE_CHECKING:
    from tiermem.engine.store import Store
    from tiermem.tiers.cold import Writer

PAGE: Final = 1024
"""Changes read in one snapshot."""
LONGEST_NAP: Final = 3600.0


def last_sequence(store: Store) -> int:
    """The newest sequence in the log, own pending writes committed first."""
    if not store.read_only:
        store.committer.drain()
    with store.cold.read() as snapshot:
        return snapshot.state().next_sequence - 1


def page(store: Store, after: int, namespace: str | None, limit: int = PAGE) -> tuple[list[Change], int]:
    """Up to `limit` changes behind `after`, and the sequence up to which the log was read.

    Raises:
        CursorExpired: the log no longer holds the change behind `after`.
    """
    found: list[Change] = []
    read = after
    with store.cold.read() as snapshot:
        state = snapshot.state()
        if after + 1 < state.first_sequence:
            raise CursorExpired(f"changes up to {state.first_sequence - 1} have been trimmed; the position was {after}")
        if after + 1 >= state.next_sequence:
            # Rows hold many changes: to find the end of the last one costs as much as to read it.
            return [], after
        for sequence, (name, key, op, version) in snapshot.log(after):
            read = sequence
            if namespace is None or name == namespace:
                found.append(Change(sequence, name, key, OPS[op], version))
                if len(found) >= limit:
                    break
    return found, read


def follow(store: Store, after: int, namespace: str | None, wait: float | None) -> Iterator[Change]:
    """The changes behind `after`; at the end, up to `wait` seconds for each next one."""
    position = after
    deadline = time.monotonic() + (wait or 0.0)
    while True:
        store.check_open()
        if not store.read_only:
            store.committer.drain()
        counter = store.control.counter
        found, read = page(store, position, namespace)
        moved, position = read != position, read
        yield from found
        if found:
            deadline = time.monotonic() + (wait or 0.0)
        elif not moved:
            left = deadline - time.monotonic()
            if left <= 0:
                return
            store.control.wait(counter, min(left, LONGEST_NAP))
        elif time.monotonic() >= deadline:
            return


class Cursor:
    """A named position in the change log, kept in the store: iterate, then `commit`.

    Iterating yields what there is and ends; iterate again for more. Changes that were yielded but
    not committed are yielded again after a crash or to another holder of the name: at least once.
    The log is not trimmed past a named cursor; `delete` one that is no longer needed.
    """

    def __init__(self, store: Store, name: str, namespace: str | None, start: int | None) -> None:
        if not isinstance(name, str) or not 1 <= len(name.encode(errors="replace")) <= 255:
            raise InvalidArgument("a cursor's name is a str of 1 to 255 UTF-8 bytes")
        if name.encode(errors="replace").decode() != name:
            raise InvalidArgument("a cursor's name is valid Unicode")
        self.name = name
        self.namespace = None if namespace is None else check_namespace(namespace)
        self._store = store
        wanted = namespace or ""
        newest = last_sequence(store)
        first = newest if start is None else sequence("start", start)
        if first > newest:
            raise InvalidArgument(f"start {first} lies ahead of the log, which ends at {newest}")

        def work(writer: Writer) -> None:
            known = dict(writer.cursors()).get(name)
            if known is None:
                if first + 1 < writer.counters.first_sequence:
                    raise CursorExpired(f"the log starts at {writer.counters.first_sequence}, after {first}")
                writer.set_cursor(name, CursorInfo(first, wanted))
            elif known.namespace != wanted:
                raise InvalidArgument(f"cursor {name!r} follows {known.namespace or 'every namespace'!r}")

        with store.cold.read() as snapshot:
            known = dict(snapshot.cursors()).get(name)
        if known is None or known.namespace != wanted:
            store.committer.commit(everything=True, work=work)
            with store.cold.read() as snapshot:
                known = dict(snapshot.cursors()).get(name)
        self._position = first if known is None else known.position

    @property
    def position(self) -> int:
        """The last sequence this object has yielded, or started from."""
        return self._position

    @property
    def lag(self) -> int:
        """How many changes the log holds behind the position, other namespaces' included."""
        return last_sequence(self._store) - self._position

    def __iter__(self) -> Iterator[Change]:
        store = self._store
        while True:
            store.check_open()
            if not store.read_only:
                store.committer.drain()
            start = self._position
            found, read = page(store, start, self.namespace)
            for change in found:
                self._position = change.sequence
                yield change
            # Changes of other namespaces are done with too, or they would hold the log for ever.
            self._position = max(self._position, read)
            if read == start:
                return

    def wait(self, timeout: float) -> bool:
        """Sleep until the log grows behind the position, at most `timeout` seconds; True if it has."""
        deadline = time.monotonic() + timeout
        while True:
            counter = self._store.control.counter
            if self.lag > 0:
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self._store.control.wait(counter, left)

    def commit(self, position: int | None = None) -> None:
        """Keep a position: what was yielded so far (None), or what lies up to `position`, is done with.

        Raises:
            CursorExpired: the name was deleted, and the log trimmed past the position.
            InvalidArgument: `position` lies ahead of the log.
        """
        kept = self._position if position is None else sequence("position", position)
        self._put(kept)

    def delete(self) -> None:
        """Forget the name; the log is no longer held for it."""
        self._put(None)

    def _put(self, position: int | None) -> None:
        store, place = self._store, Place(self.name, position, self.namespace or "")
        store.handover.decide(Proposal(store.clock.now(), store.config.vector.metric, [], place=place))


def sequence(name: str, value: object) -> int:
    """`value`, if it can be a position in the log."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise InvalidArgument(f"{name} is a sequence ≥ 0 or None, not {value!r}")
    return value


def seconds(wait: float | None) -> float | None:
    """`wait`, if it is None or seconds ≥ 0."""
    if wait is not None and (
        isinstance(wait, bool) or not isinstance(wait, (int, float)) or math.isnan(wait) or wait < 0
    ):
        raise InvalidArgument(f"wait is seconds ≥ 0 or None, not {wait!r}")
    return wait
