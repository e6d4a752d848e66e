"""Drafts: operations built and checked from the arguments of a call, before anything is changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tiermem.clock import to_epoch
from tiermem.codec.frame import HAS_VECTOR, NEVER, STREAM
from tiermem.codec.operation import DELETE, PUT, Operation
from tiermem.codec.serialize import encode, encode_metadata
from tiermem.engine import search
from tiermem.engine.space import Space
from tiermem.errors import (
    DimensionMismatch,
    GuardFailed,
    InvalidArgument,
    InvalidVector,
    RecordNotFound,
    VersionConflict,
)
from tiermem.tiers.cold.layout import stream_key
from tiermem.types import UNSET, Duration, Guard, Item, Metadata, Moment, check_namespace, encode_key

if TYPE_CHECKING:
    from tiermem.codec.frame import Frame
    from tiermem.engine.store import Draft, Store
    from tiermem.tiers.cold import Writer

Condition = tuple[str, str, int, bool]
"""(namespace, key, version it must have, whether it is a guard)."""


def expiry(ttl: Duration | None, now: float) -> float:
    """When a record with this ttl expires.

    Raises:
        InvalidArgument: not seconds > 0 nor a timedelta > 0.
    """
    if ttl is None:
        return NEVER
    seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise InvalidArgument(f"a ttl is seconds or a timedelta, not {type(ttl).__name__}")
    if not (seconds > 0 and math.isfinite(seconds)):
        raise InvalidArgument(f"a ttl must be > 0 and finite, not {seconds}; leave it out for none")
    return now + float(seconds)


def span(since: Moment | None, until: Moment | None) -> tuple[float, float]:
    """The bounds of `since` ≤ at < `until`, infinite where left out."""
    return -NEVER if since is None else to_epoch(since), NEVER if until is None else to_epoch(until)


def positive(name: str, number: object) -> int:
    """`number`, if it is an int ≥ 1."""
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise InvalidArgument(f"{name} is an int ≥ 1, not {number!r}")
    return number


def vector_bytes(store: Store, space: Space, vector: Any, text: str | None) -> bytes:
    """The bytes of the vector given, or of the one embedded from `text`; empty for neither."""
    if text is not None:
        if vector is not None:
            raise InvalidArgument("give a vector or a text, not both")
        embedded = search.embed(store, [text])[0]
        return search.prepare(store, space, embedded, store.embedder.model if store.embedder else "")
    return b"" if vector is None else search.prepare(store, space, vector)


def put(
    store: Store,
    space: Space,
    key: str,
    value: Any,
    vector: Any = None,
    metadata: Metadata | None = None,
    ttl: Duration | None = None,
    at: Moment | None = None,
    text: str | None = None,
) -> Operation:
    """A put of `value`, checked whole."""
    now = store.clock.now()
    encode_key(key)
    body = encode(value)
    fields = encode_metadata(metadata) if metadata else b""
    expires = NEVER if ttl is None else expiry(ttl, now)
    moment = now if at is None else to_epoch(at)
    raw = b"" if vector is None and text is None else vector_bytes(store, space, vector, text)
    return Operation(PUT, HAS_VECTOR if raw else 0, space.name, key, 0, moment, now, expires, fields, raw, body)


def append(
    store: Store,
    space: Space,
    value: Any,
    vector: Any,
    metadata: Metadata | None,
    ttl: Duration | None,
    at: Moment | None,
    text: str | None,
) -> Operation:
    """A put into a stream: its key sorts by event time, then by arrival."""
    op = put(store, space, "-", value, vector, metadata, ttl, at, text)
    with store.lock:
        arrival = store.next_version()
    op.key = stream_key(op.at, arrival)
    op.flags |= STREAM
    return op


def delete(store: Store, space: Space, key: str) -> Operation:
    """A delete."""
    encode_key(key)
    now = store.clock.now()
    return Operation(DELETE, 0, space.name, key, 0, now, now, NEVER, b"", b"", b"")


def update(
    store: Store, space: Space, key: str, value: Any, metadata: Any, vector: Any, ttl: Any
) -> Callable[[Writer], Sequence[Draft]]:
    """A decision that replaces the given parts of a record and keeps the others; None removes a part."""
    encode_key(key)
    now = store.clock.now()
    body = None if value is UNSET else encode(value)
    fields = None if metadata is UNSET else encode_metadata(metadata)
    expires = None if ttl is UNSET else expiry(ttl, now)
    raw: bytes | None = None
    if vector is not UNSET:
        raw = b"" if vector is None else search.prepare(store, space, vector)

    def decide(writer: Writer) -> Sequence[Draft]:
        frame = standing(writer, space.name, key, now)
        if frame is None:
            raise RecordNotFound(f"no record {key!r} in {space.name!r}")
        kept = body
        if kept is None:
            kept = store.expand(frame.codec, frame.dictionary, frame.body, frame.value_bytes)
        whole = raw
        if whole is None:
            info = writer.live(space.name)
            found = writer.vector(info.prefix + key.encode()) if info and frame.flags & HAS_VECTOR else None
            whole = found[1] if found else b""
        op = Operation(
            PUT,
            (HAS_VECTOR if whole else 0) | frame.flags & STREAM,
            space.name,
            key,
            0,
            frame.at,
            now,
            frame.expires if expires is None else expires,
            frame.metadata if fields is None else fields,
            whole,
            kept,
        )
        return [(space, op)]

    return decide


def standing(writer: Writer, name: str, key: str, now: float) -> Frame | None:
    """The unexpired record of `key` as the write transaction sees it."""
    info = writer.live(name)
    frame = None if info is None else writer.record(info.prefix + key.encode())
    return None if frame is None or frame.expires <= now else frame


def conditional(store: Store, drafts: Sequence[Draft], conditions: Sequence[Condition]) -> list[int]:
    """Commit `drafts` if all `conditions` hold at that moment; their versions.

    Raises:
        VersionConflict, GuardFailed: one does not hold; nothing was changed.
    """
    now = store.clock.now()

    def decide(writer: Writer) -> Sequence[Draft]:
        for name, key, expected, is_guard in conditions:
            frame = standing(writer, name, key, now)
            found = 0 if frame is None else frame.version
            if found == expected:
                continue
            what = f"record {key!r} in {name!r} is at version {found}, not {expected}"
            if is_guard:
                raise GuardFailed(what)
            raise VersionConflict(what, expected=expected, found=found)
        return drafts

    versions = store.decide(decide)
    for (_, op), version in zip(drafts, versions, strict=True):
        op.version = version
    return versions


def conditions(space: Space, key: str, if_version: int | None, guard: Guard | None) -> list[Condition]:
    """What a write with these arguments depends on, checked."""
    found: list[Condition] = []
    if if_version is not None:
        found.append((space.name, key, _version(if_version), False))
    if guard is not None:
        if not isinstance(guard, Guard):
            raise InvalidArgument(f"a guard is a tiermem.Guard, not {type(guard).__name__}")
        encode_key(guard.key)
        found.append((check_namespace(guard.namespace), guard.key, _version(guard.version), True))
    return found


def _version(version: object) -> int:
    if isinstance(version, bool) or not isinstance(version, int) or version < 0:
        raise InvalidArgument(f"a version is an int ≥ 0, not {version!r}")
    return version


def of_items(store: Store, space: Space, items: Iterable[Any]) -> list[Operation]:
    """Puts of `Item`s or (key, value) pairs."""
    ops: list[Operation] = []
    for number, item in enumerate(items):
        if isinstance(item, Item):
            ops.append(put(store, space, *item))
        elif isinstance(item, tuple) and len(item) == 2:
            ops.append(put(store, space, item[0], item[1]))
        else:
            raise InvalidArgument(f"items[{number}] is neither a tiermem.Item nor a (key, value) pair")
    return ops


def of_columns(
    store: Store, space: Space, keys: Sequence[str], values: Sequence[Any], vectors: Any, metadatas: Any
) -> list[Operation]:
    """Puts of columns of equal length; `vectors` has shape (n, dimension)."""
    size = len(keys)
    for name, column in (("values", values), ("vectors", vectors), ("metadatas", metadatas)):
        if column is not None and len(column) != size:
            raise InvalidArgument(f"{name} has length {len(column)}, keys {size}")
    ops = [
        put(store, space, key, value, metadata=None if metadatas is None else metadatas[number])
        for number, (key, value) in enumerate(zip(keys, values, strict=True))
    ]
    if vectors is None or not size:
        return ops
    for op, raw in zip(ops, matrix_bytes(store, space, vectors), strict=True):
        op.vector = raw
        op.flags |= HAS_VECTOR
    return ops


def matrix_bytes(store: Store, space: Space, vectors: Any) -> list[bytes]:
    """The bytes of each row of an (n, dimension) array, checked as a whole."""
    import numpy as np

    from tiermem.tiers.vector.exact import as_float32

    try:
        matrix = as_float32(vectors)
    except (TypeError, ValueError) as exc:
        raise InvalidVector(f"not a matrix of numbers: {exc}") from exc
    if matrix.ndim != 2:
        raise InvalidVector(f"vectors is 2-D, a row each; got shape {matrix.shape}")
    bad = ~np.isfinite(matrix).all(axis=1)
    metric = space.metric if search.describe(store, space) else store.config.vector.metric
    if metric == "cosine":
        bad |= ~matrix.any(axis=1)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        search.as_vector(matrix[row], metric)
    search.prepare(store, space, matrix[0])
    if matrix.shape[1] != space.dimension:
        raise DimensionMismatch(f"{space.name!r} has dimension {space.dimension}, the vectors {matrix.shape[1]}")
    data, width = matrix.astype("<f4", copy=False).tobytes(), space.dimension * 4
    return [data[start : start + width] for start in range(0, len(data), width)]
