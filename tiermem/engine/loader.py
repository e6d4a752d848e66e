"""Loading: what a lookup does that is not a hit on a free entry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from tiermem.codec.compress import Body
from tiermem.codec.frame import DICTIONARY, NEVER, Row
from tiermem.codec.operation import DELETE, Operation
from tiermem.engine.reentry import refuse_reentry
from tiermem.engine.space import Decode, Space
from tiermem.errors import CorruptionError
from tiermem.tiers.cold import Snapshot
from tiermem.tiers.hot import Table, cost_of
from tiermem.types import encode_key

if TYPE_CHECKING:
    from tiermem.engine.store import Store

_ABSENT: Final = object()


class Loader:
    """Finds values in the watched part of L1, among what is pending and in L3, and fills L1 with them."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def miss(self, space: Space, decode: Decode, table: Table, key: str) -> Any:
        """What `table[key]` gives where `key` is not among the free entries; KeyError if absent."""
        store = self.store
        if store.lock.locked():
            refuse_reentry(store.lock)
        if key in table.watched:
            with store.lock:
                value = table.watched.get(key, _ABSENT)
                if value is not _ABSENT and table.expires.get(key, NEVER) > store.clock.now():
                    store.hot.touch(table, key)
                    return value
        store.hot.misses += 1
        raw = encode_key(key)
        op = space.pending.get(key)
        if op is not None:
            return self._adopt(space, decode, table, op)
        found = None
        prefix = space.prefix
        if not prefix:
            with store.cold.read() as snapshot:
                prefix, stamp = self.resolve(space, snapshot), snapshot.stamp
        if prefix:
            stamp, found = store.cold.value(prefix + raw)
        if found is None:
            store.cold_misses += 1
            with store.lock:
                # As for a value that was found, below.
                if stamp >= store.seen_stamp and prefix == space.prefix and key not in space.pending:
                    store.hot.lacks(table, key)
            raise KeyError(key)
        expires, codec, dictionary, size, body = found
        if expires != NEVER and expires <= store.clock.now():
            store.cold_misses += 1
            raise KeyError(key)
        value = decode(self.expand(codec, dictionary, body, size) if codec else body)
        store.cold_hits += 1
        if store.hot.max_bytes:
            with store.lock:
                # A commit or a write since the snapshot may have changed the record: then L1 stays as it is.
                # The same goes for a namespace that was dropped since its prefix was looked at.
                if stamp >= store.seen_stamp and prefix == space.prefix and key not in space.pending:
                    store.hot.fill(table, key, value, cost_of(value, size), expires)
        return value

    def _adopt(self, space: Space, decode: Decode, table: Table, op: Operation) -> Any:
        store = self.store
        if op.kind == DELETE or op.expires <= store.clock.now():
            raise KeyError(op.key)
        value = decode(op.value)
        with store.lock:
            if space.pending.get(op.key) is op and not op.contested:
                store.hot.fill(table, op.key, value, cost_of(value, len(op.value)), op.expires)
        return value

    def expand(self, codec: int, dictionary: int, body: Body, size: int) -> bytes | Body:
        """The encoded value of a frame; a dictionary that is not known yet is read from L3."""
        try:
            return self.store.compressor.decompress(codec, dictionary, body, size)
        except CorruptionError:
            if self.store.compressor.knows(dictionary):
                raise
        self._learn()
        return self.store.compressor.decompress(codec, dictionary, body, size)

    def expand_rows(self, rows: Sequence[Row]) -> list[bytes | memoryview]:
        """`expand` for each of `rows`."""
        try:
            return self.store.compressor.decompress_rows(rows)
        except CorruptionError:
            if all(self.store.compressor.knows(row[1][DICTIONARY]) for row in rows):
                raise
        self._learn()
        return self.store.compressor.decompress_rows(rows)

    def _learn(self) -> None:
        with self.store.cold.read() as snapshot:
            for number, data in snapshot.dictionaries():
                self.store.compressor.add(number, data)

    def resolve(self, space: Space, snapshot: Snapshot) -> bytes:
        """Prefix of the namespace's keys at the snapshot, empty if it has none; kept if still current."""
        store = self.store
        info = snapshot.info(space.name)
        if info is None or info.dropped:
            return b""
        with store.lock:
            if snapshot.stamp >= store.seen_stamp:
                space.dimension, space.metric, space.model = info.dimension, info.metric, info.model
                space.prefix = info.prefix
        return info.prefix
