"""Reads that merge what is pending with what is committed: single records, scans, counts."""

from __future__ import annotations

import heapq
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, compress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tiermem.codec.frame import (
    AT,
    CREATED,
    EXPIRES,
    FLAGS,
    FRAME_FORMAT,
    HAS_VECTOR,
    NEVER,
    RAW,
    UPDATED,
    VERSION,
    Head,
    Row,
    peek,
    unpack_rows,
)
from tiermem.codec.operation import PUT, Operation
from tiermem.codec.serialize import decode as decode_any
from tiermem.codec.serialize import decode_all, decode_metadata
from tiermem.engine.reentry import refuse_reentry
from tiermem.engine.space import Decode, Space
from tiermem.errors import CorruptionError
from tiermem.tiers.cold import Snapshot
from tiermem.tiers.cold.layout import U32, expiry_key, stream_bound, successor
from tiermem.types import Record, Where

if TYPE_CHECKING:
    from tiermem.engine.store import Store
    from tiermem.policy.filters import Filter
    from tiermem.types import FloatArray

FIRST_PAGE: Final = 256
LIMITED_PAGE: Final = 1024
"""Rows of the first page where so many are asked for, or more."""
LAST_PAGE: Final = 8192
"""A scan reads pages of rows, each in a snapshot of its own; they grow fourfold up to this."""
REMEMBERED: Final = 65_536
PREFIX_BYTES: Final = U32.size
AT_ONCE: Final = 64
"""Rows that are expanded and decoded one behind the other, so that what one step leaves is in the processor's caches
for the next."""
NO_PREFIX: Final = bytes(PREFIX_BYTES)


class Page(NamedTuple):
    """Records of one consistent view, and the float32 bytes of the vectors that were read, by key.

    Their keys have the namespace's prefix in front, or where it has none yet as many bytes.
    """

    rows: list[Row]
    vectors: dict[bytes, bytes]

    def keys(self) -> Iterator[str]:
        """The keys of its records, as they were put."""
        return (row[0][PREFIX_BYTES:].decode() for row in self.rows)


def compiled(where: Where | None) -> Filter | None:
    """`compile_filter`, which is loaded where a filter is met.

    Raises:
        FilterError: `where` is malformed.
    """
    if where is None:
        return None
    from tiermem.policy.filters import compile_filter

    return compile_filter(where)


def of_operation(raw: bytes, op: Operation, before: Head | None) -> Row:
    """The record a pending put makes of what is committed under its key."""
    created = op.created
    if created is None:
        first = op.now if op.first is None else op.first
        created = before.created if before is not None and before.expires > first else first
    sizes = len(op.metadata), len(op.value)
    header = 0, FRAME_FORMAT, RAW, op.flags, 0, op.version, op.at, created, op.now, op.expires, *sizes
    return raw, header, op.metadata, op.value


def vector_of(snapshot: Snapshot, key: bytes, version: int) -> bytes:
    """The vector committed with that version of the record stored under `key`."""
    found = snapshot.vector(key)
    if found is None or found[0] != version:
        raise CorruptionError(f"record {key!r}: its vector is missing or of another version")
    return found[1]


def stands(op: Operation, committed: Head) -> bool:
    """True if a pending operation hides what is committed under its key, as it will once it is committed."""
    return op.version > committed.given


def overlay(frames: dict[bytes, bytes], waiting: dict[bytes, Operation]) -> tuple[dict[bytes, Row], dict[bytes, bytes]]:
    """What is committed, with what is pending over it, by key; and the vectors of what is pending."""
    rows = {row[0]: row for row in unpack_rows(frames.items())}
    vectors: dict[bytes, bytes] = {}
    for raw, op in waiting.items():
        frame = frames.get(raw)
        head = None if frame is None else peek(frame)
        if head is not None and not stands(op, head):
            continue
        rows.pop(raw, None)
        if op.kind == PUT:
            rows[raw] = of_operation(raw, op, head)
            vectors[raw] = op.vector
    return rows, vectors


def read_vectors(snapshot: Snapshot, rows: Iterable[Row], vectors: dict[bytes, bytes]) -> None:
    """Add to `vectors` those committed with `rows`."""
    for row in rows:
        if row[1][FLAGS] & HAS_VECTOR and row[0] not in vectors:
            vectors[row[0]] = vector_of(snapshot, row[0], row[1][VERSION])


def fetch_many(store: Store, space: Space, keys: Iterable[str], *, vectors: bool = True) -> Page:
    """The unexpired records of those `keys` that have one, in the order asked for."""
    asked = {key: space.pending.get(key) for key in keys}
    now = store.clock.now()
    with store.cold.read(buffers=False) as snapshot:
        prefix = space.prefix or store.loader.resolve(space, snapshot)
        raws = [(prefix or NO_PREFIX) + key.encode() for key in asked]
        found = snapshot.frames(raws) if prefix else [None] * len(raws)
        frames = {raw: frame for raw, frame in zip(raws, found, strict=True) if frame is not None}
        waiting = {raw: op for raw, op in zip(raws, asked.values(), strict=True) if op is not None}
        merged, known = overlay(frames, waiting)
        hidden = sum(raw in frames and (raw in known or raw not in merged) for raw in waiting)
        rows = [row for raw in raws if (row := merged.get(raw)) is not None and row[1][EXPIRES] > now]
        if vectors:
            read_vectors(snapshot, rows, known)
    store.cold_hits += len(frames) - hidden
    store.cold_misses += sum(raw not in frames and raw not in waiting for raw in raws)
    return Page(rows, known)


def fetch_values(
    store: Store, space: Space, decode: Decode, keys: Sequence[str], raws: Sequence[bytes]
) -> dict[str, Any]:
    """The decoded values of the unexpired records of those `keys` (`raws`: encoded) that have one, in their order."""
    if any(map(space.pending.__contains__, keys)):
        page = fetch_many(store, space, keys, vectors=False)
        return dict(zip(page.keys(), values_of(store, decode, page.rows), strict=True))
    now = store.clock.now()
    with store.cold.read(buffers=False) as snapshot:
        prefix = space.prefix or store.loader.resolve(space, snapshot)
        raws = [prefix + raw for raw in raws]
        frames: list[Any] = snapshot.frames(raws) if prefix else [None] * len(raws)
    values: dict[str, Any] = {}
    missing = 0
    for start in range(0, len(keys), AT_ONCE):
        run = slice(start, start + AT_ONCE)
        there = [frame is not None for frame in frames[run]]
        rows = unpack_rows(zip(compress(raws[run], there), compress(frames[run], there), strict=True))
        fresh = [row[1][EXPIRES] > now for row in rows]
        found = compress(compress(keys[run], there), fresh)
        values.update(zip(found, values_of(store, decode, list(compress(rows, fresh))), strict=True))
        missing += len(there) - len(rows)
    store.cold_misses += missing
    store.cold_hits += len(keys) - missing
    return values


def values_of(store: Store, decode: Decode, rows: Sequence[Row]) -> Iterable[Any]:
    """The decoded values of `rows`, expanded at once, and decoded at once where they may be anything.

    Not in a snapshot: a dictionary that is not known yet is read in one of its own.
    """
    bodies = store.loader.expand_rows(rows)
    return decode_all(bodies) if decode is decode_any else map(decode, bodies)


def decoded(store: Store, space: Space, decode: Decode, page: Page) -> Iterator[Record]:
    """What a user sees of the records of a page."""
    name, vectors, make = space.name, page.vectors, tuple.__new__
    vector = None
    for start in range(0, len(page.rows), AT_ONCE):
        rows = page.rows[start : start + AT_ONCE]
        for (raw, header, metadata, _), value in zip(rows, values_of(store, decode, rows), strict=True):
            if vectors:
                vector = as_array(vectors.get(raw, b""))
            # `Record(...)`, without the call: there is one of these for every row that is read.
            yield make(
                Record,
                (
                    name,
                    raw[PREFIX_BYTES:].decode(),
                    value,
                    decode_metadata(metadata) if metadata else {},
                    vector,
                    header[VERSION],
                    header[AT],
                    header[CREATED],
                    header[UPDATED],
                    None if header[EXPIRES] == NEVER else header[EXPIRES],
                ),
            )


def as_array(vector: bytes) -> FloatArray | None:
    """An array of its own of the float32 values in `vector`; None if it is empty."""
    if not vector:
        return None
    import numpy as np

    return np.frombuffer(vector, "<f4").copy()


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


def pages(
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
) -> Iterator[Page]:
    """The unexpired records with low ≤ key < high (empty: unbounded) that match, in key order, by pages.

    No transaction stays open between pages: each page is one consistent view. Without `vectors`
    those of committed records are not read.
    """
    timed = since != -NEVER or until != NEVER
    if timed and ordered(store, space):
        if since != -NEVER:
            low = max(low, stream_bound(since).encode())
        if until != NEVER:
            bound = stream_bound(until).encode()
            high = min(high, bound) if high else bound
    size = FIRST_PAGE if limit is None else min(limit, LIMITED_PAGE)
    left = sys.maxsize if limit is None else limit
    now = store.clock.now()

    def chosen(rows: Iterable[Row]) -> list[Row]:
        found = [row for row in rows if row[1][EXPIRES] > now]
        if timed:
            found = [row for row in found if since <= row[1][AT] < until]
        if allows is not None:
            found = [row for row in found if allows(row[2])]
        return found if len(found) <= left else found[:left]

    full = True
    while left > 0:
        # As long as all that is read is wanted, no more is read than is asked for.
        most = min(size, left) if full else size
        page, edge = _page(store, space, low, high, most, reverse, chosen, vectors)
        left -= len(page.rows)
        full = full and len(page.rows) >= most
        yield page
        if edge is None:
            return
        low, high = (low, edge) if reverse else (edge + b"\0", high)
        size = min(size * 4, LAST_PAGE)


def _page(
    store: Store,
    space: Space,
    low: bytes,
    high: bytes,
    size: int,
    reverse: bool,
    chosen: Callable[[Iterable[Row]], list[Row]],
    vectors: bool,
) -> tuple[Page, bytes | None]:
    """What is chosen of up to `size` committed rows merged with what is pending among them, and the last key read.

    The last key is None where the range is exhausted.
    """
    if store.lock.locked():
        refuse_reentry(store.lock)
    # Pending first, then the snapshot: what is committed in between is seen twice, never missed.
    with store.lock:
        known = list(space.pending.values())
    ops = {raw: op for op in known if (raw := op.key.encode()) >= low and (not high or raw < high)}
    edge: bytes | None = None
    with store.cold.read(buffers=False) as snapshot:
        prefix = space.prefix or store.loader.resolve(space, snapshot)
        frames: list[tuple[bytes, bytes]] = []
        if prefix:
            stop = prefix + high if high else successor(prefix)
            frames = snapshot.block(prefix + low, stop, size, reverse)
            if len(frames) == size:
                edge = frames[-1][0][len(prefix) :]
                ops = {raw: op for raw, op in ops.items() if (raw >= edge if reverse else raw <= edge)}
        found: dict[bytes, bytes] = {}
        if ops:
            waiting = {(prefix or NO_PREFIX) + raw: op for raw, op in ops.items()}
            merged, found = overlay(dict(frames), waiting)
            rows = chosen(merged[raw] for raw in sorted(merged, reverse=reverse))
        else:
            rows = chosen(unpack_rows(frames))
        if vectors:
            read_vectors(snapshot, rows, found)
    return Page(rows, found), edge


def records(store: Store, space: Space, decode: Decode, **wanted: Any) -> Iterator[Record]:
    """The records of `pages`, as a user sees them."""
    return chain.from_iterable(decoded(store, space, decode, page) for page in pages(store, space, **wanted))


def keys(store: Store, space: Space, **wanted: Any) -> Iterator[str]:
    """The keys of the records of `pages`; values and vectors are not looked at."""
    return chain.from_iterable(page.keys() for page in pages(store, space, vectors=False, **wanted))


def latest(store: Store, space: Space, decode: Decode, n: int) -> list[Record]:
    """The `n` records with the highest event times, newest first."""
    if ordered(store, space):
        return list(records(store, space, decode, limit=n, reverse=True))
    found = ((row, page.vectors.get(row[0], b"")) for page in pages(store, space) for row in page.rows)
    newest = heapq.nlargest(n, found, key=lambda pair: (pair[0][1][AT], pair[0][1][VERSION]))
    return list(decoded(store, space, decode, Page([row for row, _ in newest], {row[0]: vec for row, vec in newest})))


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
