"""Drafts: operations built and checked from the arguments of a call, before anything is changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from tiermem.clock import to_epoch
from tiermem.codec.frame import HAS_VECTOR, NEVER, STREAM
from tiermem.codec.operation import DELETE, PUT, Operation
from tiermem.codec.serialize import encode, encode_metadata
from tiermem.engine import search
from tiermem.engine.proposals import PARTS, Condition, Proposal
from tiermem.engine.space import Space
from tiermem.errors import DimensionMismatch, InvalidArgument
from tiermem.tiers.cold.layout import stream_key
from tiermem.types import UNSET, Duration, Guard, Item, Metadata, Moment, check_key, check_namespace

if TYPE_CHECKING:
    from tiermem.engine.store import Draft, Store

LONGEST_TTL: Final = 1e12
"""Seconds; some 30,000 years."""


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
    if not 0 < seconds <= LONGEST_TTL:
        raise InvalidArgument(f"a ttl must lie in (0, {LONGEST_TTL:g}] seconds; leave it out for none")
    return now + float(seconds)


def span(since: Moment | None, until: Moment | None) -> tuple[float, float]:
    """The bounds of `since` ≤ at < `until`, infinite where left out."""
    return -NEVER if since is None else to_epoch(since), NEVER if until is None else to_epoch(until)


def positive(name: str, number: object) -> int:
    """`number`, if it is an int ≥ 1."""
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise InvalidArgument(f"{name} is an int ≥ 1, not {number!r}")
    return number


def finite(name: str, number: object) -> float:
    """`number` as a float, if it is one that is not NaN."""
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not abs(number) <= NEVER:
        raise InvalidArgument(f"{name} is a number, not {number!r}")
    try:
        return float(number)
    except OverflowError as exc:
        raise InvalidArgument(f"{name} is beyond the range of a float") from exc


def vector_of(store: Store, space: Space, vector: Any, text: str | None) -> tuple[bytes, str]:
    """(bytes, model) of the vector given, or of the one embedded from `text`; empty for neither.

    Raises:
        InvalidVector, DimensionMismatch, EmbedderMismatch, InvalidArgument.
    """
    if text is None:
        return (b"" if vector is None else search.prepare(store, space, vector)), ""
    if vector is not None:
        raise InvalidArgument("give a vector or a text, not both")
    embedded = search.embed(store, [text])[0]
    model = store.embedder.model if store.embedder else ""
    return search.prepare(store, space, embedded, model), model


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
    key = check_key(key)
    body = encode(value)
    fields = b"" if metadata is None else encode_metadata(metadata)
    expires = NEVER if ttl is None else expiry(ttl, now)
    moment = now if at is None else to_epoch(at)
    op = Operation(PUT, 0, space.name, key, 0, moment, now, expires, fields, b"", body)
    if vector is not None or text is not None:
        op.vector, op.model = vector_of(store, space, vector, text)
        op.flags = HAS_VECTOR
    return op


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
    key = check_key(key)
    now = store.clock.now()
    return Operation(DELETE, 0, space.name, key, 0, now, now, NEVER, b"", b"", b"")


def update(store: Store, space: Space, key: str, value: Any, metadata: Any, vector: Any, ttl: Any) -> Proposal:
    """A proposal that replaces the given parts of a record and keeps the others; None removes a part."""
    key = check_key(key)
    now = store.clock.now()
    body = b"" if value is UNSET else encode(value)
    fields = b"" if metadata is UNSET else encode_metadata(metadata)
    expires = NEVER if ttl is UNSET else expiry(ttl, now)
    raw = b"" if vector is UNSET or vector is None else search.prepare(store, space, vector)
    given = (value, metadata, vector, ttl)
    keeps = [part for part, new in zip(PARTS, given, strict=True) if new is UNSET]
    op = Operation(PUT, 0, space.name, key, 0, now, now, expires, fields, raw, body)
    return Proposal(now, store.config.vector.metric, [op], keeps=keeps)


def send(
    store: Store, drafts: Sequence[Draft], conditions: Sequence[Condition] = (), *, rouse: bool = True
) -> list[int]:
    """Make the writes of `drafts`, all or nothing; their versions. rouse: as in `Store.submit`.

    They are journaled, unless they depend on `conditions` or hold the first vector of a namespace:
    that one fixes its dimension for every process, so it is decided inside the commit.

    Raises:
        VersionConflict, GuardFailed, DimensionMismatch, EmbedderMismatch: nothing was changed.
    """
    fixes = any(
        op.vector and (len(op.vector) != space.dimension * 4 or (op.model and op.model != space.model))
        for space, op in drafts
    )
    if not conditions and not fixes:
        return [store.submit(*drafts[0], rouse)] if len(drafts) == 1 else store.submit_all(drafts)
    ops = [op for _, op in drafts]
    return store.handover.decide(Proposal(store.clock.now(), store.config.vector.metric, ops, list(conditions)))


def conditions(space: Space, key: str, if_version: int | None, guard: Guard | None) -> list[Condition]:
    """What a write with these arguments depends on, checked."""
    found: list[Condition] = []
    if if_version is not None:
        found.append((space.name, check_key(key), _version(if_version), False))
    if guard is not None:
        if not isinstance(guard, Guard):
            raise InvalidArgument(f"a guard is a tiermem.Guard, not {type(guard).__name__}")
        found.append((check_namespace(guard.namespace), check_key(guard.key), _version(guard.version), True))
    return found


def _version(version: object) -> int:
    if isinstance(version, bool) or not isinstance(version, int) or version < 0:
        raise InvalidArgument(f"a version is an int ≥ 0, not {version!r}")
    return version


def each(name: str, things: Any) -> list[Any]:
    """The things of an iterable that is not one str."""
    if isinstance(things, (str, bytes)):
        raise InvalidArgument(f"{name} is an iterable, not one {type(things).__name__}")
    try:
        return list(things)
    except TypeError as exc:
        raise InvalidArgument(f"{name} is an iterable, not {type(things).__name__}") from exc


def of_items(store: Store, space: Space, items: Iterable[Any]) -> list[Operation]:
    """Puts of `Item`s or (key, value) pairs."""
    ops: list[Operation] = []
    for number, item in enumerate(each("items", items)):
        if isinstance(item, Item):
            ops.append(put(store, space, *item))
        elif isinstance(item, tuple) and len(item) == 2:
            ops.append(put(store, space, item[0], item[1]))
        else:
            raise InvalidArgument(f"items[{number}] is neither a tiermem.Item nor a (key, value) pair")
    _one_dimension(ops)
    return ops


def of_columns(
    store: Store, space: Space, keys: Sequence[str], values: Sequence[Any], vectors: Any, metadatas: Any
) -> list[Operation]:
    """Puts of columns of equal length; `vectors` has shape (n, dimension)."""
    names, bodies = each("keys", keys), each("values", values)
    if isinstance(metadatas, Mapping):
        raise InvalidArgument("metadatas is a column of dicts, not one dict")
    fields = [None] * len(names) if metadatas is None else each("metadatas", metadatas)
    rows = [b""] * len(names) if vectors is None else search.matrix_bytes(store, space, vectors)
    for name, column in (("values", bodies), ("vectors", rows), ("metadatas", fields)):
        if len(column) != len(names):
            raise InvalidArgument(f"{name} has length {len(column)}, keys {len(names)}")
    flags = 0 if vectors is None else HAS_VECTOR
    ops: list[Operation] = []
    for key, value, metadata, raw in zip(names, bodies, fields, rows, strict=True):
        now = store.clock.now()
        label = check_key(key)
        body = encode(value)
        ops.append(Operation(PUT, flags, space.name, label, 0, now, now, NEVER, encode_metadata(metadata), raw, body))
    return ops


def _one_dimension(ops: Sequence[Operation]) -> None:
    sizes = {len(op.vector) // 4 for op in ops if op.vector}
    if len(sizes) > 1:
        raise DimensionMismatch(f"the vectors of one call have different dimensions: {sorted(sizes)}")
