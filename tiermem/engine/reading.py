"""Reads that merge what is pending with what is committed: single records, scans, counts."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tiermem.codec.frame import DECIDED, HAS_VECTOR, NEVER, Frame, Head, Value, peek, unpack_frame
from tiermem.codec.operation import DELETE, PUT, Operation
from tiermem.codec.serialize import decode_metadata
from tiermem.engine.reentry import refuse_reentry
from tiermem.engine.space import Decode, Space
from tiermem.errors import CorruptionError
from tiermem.tiers.cold import Snapshot
from tiermem.tiers.cold.layout import expiry_key, stream_bound, successor
from tiermem.types import Record, Where

if TYPE_CHECKING:
    from tiermem.engine.store import Store
    from tiermem.policy.filters import Filter

FIRST_PAGE: Final = 256
REMEMBERED: Final = 65_536
LAST_PAGE: Final = 8192
"""A scan reads pages of rows, each in a snapshot of its own; they grow fourfold up to this."""


class Stored(msgspec.Struct):
    """One record as it is kept: the value encoded and maybe compressed, the vector float32 bytes."""

    key: str
    version: int
    flags: int
    at: float
    created: float
    updated: float
    expires: float
    metadata: bytes
    vector: bytes
    codec: int
    dictionary: int
    value_bytes: int
    body: bytes


def compiled(where: Where | None) -> Filter | None:
    """`compile_filter`, which is loaded where a filter is met.

    Raises:
        FilterError: `where` is malformed.
    """
    if where is None:
        return None
    from tiermem.policy.filters import compile_filter

    return compile_filter(where)


def of_frame(key: str, frame: Frame, vector: bytes) -> Stored:
    """The record in a committed frame."""
    return Stored(
        key,
        frame.version,
        frame.flags,
        frame.at,
        frame.created,
        frame.updated,
        frame.expires,
        frame.metadata,
        vector,
        frame.codec,
        frame.dictionary,
        frame.value_bytes,
        frame.body,
    )


def of_operation(op: Operation, before: Frame | None) -> Stored:
    """The record a pending put makes of what is committed under its key."""
    created = op.created
    if created is None:
        first = op.now if op.first is None else op.first
        created = before.created if before is not None and before.expires > first else first
    return Stored(
        op.key,
        op.version,
        op.flags,
        op.at,
        created,
        op.now,
        op.expires,
        op.metadata,
        op.vector,
        0,
        0,
        len(op.value),
        op.value,
    )


def vector_of(snapshot: Snapshot, key: bytes, frame: Frame) -> bytes:
    """The vector committed with the record `frame`; empty if it has none."""
    if not frame.flags & HAS_VECTOR:
        return b""
    found = snapshot.vector(key)
    if found is None or found[0] != frame.version:
        raise CorruptionError(f"record {key!r}: its vector is missing or of another version")
    return found[1]


def stands(op: Operation, committed: Frame | Head) -> bool:
    """True if a pending operation hides what is committed under its key.

    A record decided inside a commit had this journal drained: what is still pending came after it, and
    will be given a version above it.
    """
    return op.version > committed.given or bool(committed.flags & DECIDED)


def fetch(store: Store, space: Space, key: str) -> Stored | None:
    """The unexpired record of `key`, pending or committed."""
    return next(iter(fetch_many(store, space, [key]).values()), None)


def fetch_many(store: Store, space: Space, keys: Sequence[str], *, vectors: bool = True) -> dict[str, Stored]:
    """The unexpired records of those `keys` that have one, in the order asked for."""
    waiting = {key: op for key in keys if (op := space.pending.get(key)) is not None}
    found: dict[str, Stored] = {}
    now = store.clock.now()
    with store.cold.read() as snapshot:
        prefix = space.prefix or store.loader.resolve(space, snapshot)
        for key in keys:
            op = waiting.get(key)
            raw = prefix + key.encode()
            frame = snapshot.record(raw) if prefix else None
            if op is None or (frame is not None and not stands(op, frame)):
                store.cold_hits += frame is not None
                store.cold_misses += frame is None
                if frame is not None and frame.expires > now:
                    found[key] = of_frame(key, frame, vector_of(snapshot, raw, frame) if vectors else b"")
            elif op.kind == PUT and op.expires > now:
                found[key] = of_operation(op, frame)
    return found


def fetch_values(store: Store, space: Space, decode: Decode, keys: Sequence[str]) -> dict[str, Any]:
    """The decoded values of the unexpired records of those `keys` that have one, in the order asked for."""
    waiting = {key: op for key in keys if (op := space.pending.get(key)) is not None}
    now = store.clock.now()
    rows: dict[str, Value] = {}
    misses = 0
    with store.cold.read() as snapshot:
        prefix = space.prefix or store.loader.resolve(space, snapshot)
        for key in keys:
            raw = prefix + key.encode()
            op = waiting.get(key)
            if op is not None:
                frame = snapshot.record(raw) if prefix else None
                if frame is None or stands(op, frame):
                    if op.kind == PUT and op.expires > now:
                        rows[key] = op.expires, 0, 0, len(op.value), op.value
                    continue
            held = snapshot.value(raw) if prefix else None
            misses += held is None
            if held is not None and held[0] > now:
                rows[key] = held
    store.cold_misses += misses
    store.cold_hits += len(keys) - len(waiting) - misses
    # Not in the snapshot: a dictionary that is not known yet is read in one of its own.
    expand = store.loader.expand
    return {
        key: decode(expand(codec, dictionary, body, size) if codec else body)
        for key, (_, codec, dictionary, size, body) in rows.items()
    }


def to_record(store: Store, space: Space, decode: Decode, stored: Stored) -> Record:
    """What a user sees of a stored record."""
    value = decode(store.loader.expand(stored.codec, stored.dictionary, stored.body, stored.value_bytes))
    vector = None
    if stored.vector:
        import numpy as np

        vector = np.frombuffer(stored.vector, "<f4").copy()
    return Record(
        space.name,
        stored.key,
        value,
        decode_metadata(stored.metadata),
        vector,
        stored.version,
        stored.at,
        stored.created,
        stored.updated,
        None if stored.expires == NEVER else stored.expires,
    )


def matcher(matches: Callable[[Any], bool] | None) -> Callable[[bytes], bool] | None:
    """A predicate on encoded metadata, from one on decoded metadata."""
    if matches is None:
        return None
    chosen = matches
    verdicts: dict[bytes, bool] = {}

    def allows(metadata: bytes) -> bool:
        # Metadata repeat: the verdict on the same bytes is the same, and far cheaper to look up.
        verdict = verdicts.get(metadata)
        if verdict is None:
            verdict = chosen(decode_metadata(metadata))
            if len(verdicts) < REMEMBERED:
                verdicts[metadata] = verdict
        return verdict

    return allows


def ordered(store: Store, space: Space) -> bool:
    """True if every record of the namespace came from `append`: key order is event-time order."""
    if space.keyed:
        return False
    with store.cold.read() as snapshot:
        info = snapshot.info(space.name)
    return info is None or info.dropped or info.ordered


def scan(
    store: Store,
    space: Space,
    *,
    low: bytes = b"",
    high: bytes = b"",
    since: float = -NEVER,
    until: float = NEVER,
    allows: Callable[[bytes], bool] | None = None,
    limit: int | None = None,
    reverse: bool = False,
    vectors: bool = True,
) -> Iterator[Stored]:
    """The unexpired records with low ≤ key < high (empty: unbounded) that match, in key order.

    No transaction stays open between pages: each page is one consistent view. Without `vectors`
    those of committed records are not read.
    """
    if (since != -NEVER or until != NEVER) and ordered(store, space):
        if since != -NEVER:
            low = max(low, stream_bound(since).encode())
        if until != NEVER:
            bound = stream_bound(until).encode()
            high = min(high, bound) if high else bound
    page = FIRST_PAGE if limit is None else max(1, min(limit, FIRST_PAGE))
    left = limit
    now = store.clock.now()
    while left is None or left > 0:
        rows, edge = _page(store, space, low, high, page, reverse, vectors)
        for stored in rows:
            if stored.expires <= now or not since <= stored.at < until:
                continue
            if allows is not None and not allows(stored.metadata):
                continue
            yield stored
            if left is not None:
                left -= 1
                if left == 0:
                    return
        if edge is None:
            return
        low, high = (low, edge) if reverse else (edge + b"\0", high)
        page = min(page * 4, LAST_PAGE)


def _page(
    store: Store, space: Space, low: bytes, high: bytes, size: int, reverse: bool, vectors: bool
) -> tuple[list[Stored], bytes | None]:
    """Up to `size` committed rows merged with what is pending among them, and the last key read.

    The last key is None where the range is exhausted.
    """
    if store.lock.locked():
        refuse_reentry(store.lock)
    # Pending first, then the snapshot: what is committed in between is seen twice, never missed.
    with store.lock:
        known = list(space.pending.values())
    waiting = {raw: op for op in known if (raw := op.key.encode()) >= low and (not high or raw < high)}
    frames: dict[bytes, tuple[Frame, bytes]] = {}
    edge: bytes | None = None
    with store.cold.read() as snapshot:
        prefix = space.prefix or store.loader.resolve(space, snapshot)
        if prefix:
            stop = prefix + high if high else successor(prefix)
            for stored_key, row in snapshot.rows(snapshot.dbs.records, prefix, prefix + low, stop, reverse):
                frame = unpack_frame(stored_key, row)
                raw = stored_key[len(prefix) :]
                frames[raw] = (frame, vector_of(snapshot, stored_key, frame) if vectors else b"")
                if len(frames) == size:
                    edge = raw
                    break
    if edge is not None:
        waiting = {raw: op for raw, op in waiting.items() if (raw >= edge if reverse else raw <= edge)}
    rows: list[Stored] = []
    for raw in sorted({*frames, *waiting}, reverse=reverse) if waiting else frames:
        committed = frames.get(raw)
        op = waiting.get(raw)
        if op is not None and (committed is None or stands(op, committed[0])):
            if op.kind != DELETE:
                rows.append(of_operation(op, committed[0] if committed else None))
        elif committed is not None:
            rows.append(of_frame(raw.decode(), *committed))
    return rows, edge


def latest(store: Store, space: Space, n: int) -> list[Stored]:
    """The `n` records with the highest event times, newest first."""
    if ordered(store, space):
        return list(scan(store, space, limit=n, reverse=True))
    return heapq.nlargest(n, scan(store, space), key=lambda stored: (stored.at, stored.version))


def count(store: Store, space: Space) -> int:
    """How many unexpired records there are; reads what is pending and what has expired, not the rest."""
    now = store.clock.now()
    with store.lock:
        waiting = list(space.pending.values())
    with store.cold.read() as snapshot:
        info = snapshot.info(space.name)
        if info is None or info.dropped:
            return sum(op.kind == PUT and op.expires > now for op in waiting)
        prefix = info.prefix
        total = info.records
        if info.timed:
            for key, _ in snapshot.rows(snapshot.dbs.expiry, stop=expiry_key(now, b"\xff")):
                total -= key[8:12] == prefix
        for op in waiting:
            row = snapshot.txn.get(prefix + op.key.encode(), db=snapshot.dbs.records)
            head = None if row is None else peek(row)
            if head is not None and not stands(op, head):
                continue
            total += (op.kind == PUT and op.expires > now) - (head is not None and head.expires > now)
    return total
