"""Proposals: writes that are decided inside a commit, as data, so that another process can decide them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from tiermem.codec.frame import HAS_VECTOR, STREAM
from tiermem.codec.operation import Operation
from tiermem.engine import search
from tiermem.errors import CursorExpired, GuardFailed, InvalidArgument, RecordNotFound, VersionConflict
from tiermem.tiers.cold.layout import CursorInfo

if TYPE_CHECKING:
    from tiermem.codec.frame import Frame
    from tiermem.engine.store import Store
    from tiermem.tiers.cold import Writer

Condition = tuple[str, str, int, bool]
"""(namespace, key, version it must have, whether it is a guard)."""
Part = Literal["value", "metadata", "vector", "ttl"]
PARTS: Final[tuple[Part, ...]] = ("value", "metadata", "vector", "ttl")


class Place(msgspec.Struct, forbid_unknown_fields=True):
    """Where a named cursor is to stand, and the namespace that it follows; None: it is to be forgotten."""

    cursor: str
    position: int | None
    namespace: str = ""


class Proposal(msgspec.Struct, forbid_unknown_fields=True):
    """What is to be written, all of it or nothing.

    `now` is the clock of whoever proposes it: it says which records have expired. `metric` is that of a namespace whose
    first vector is among them. `keeps` makes an update of the one operation: these parts of the record stay. `place`
    stands alone.
    """

    now: float
    metric: str
    ops: list[Operation]
    conditions: list[Condition] = []
    keeps: list[Part] | None = None
    place: Place | None = None


def decide(store: Store, writer: Writer, proposal: Proposal) -> Sequence[Operation]:
    """The operations that `proposal` comes to, in a transaction that has drained every journal.

    Raises:
        VersionConflict, GuardFailed, RecordNotFound, DimensionMismatch, EmbedderMismatch, InvalidVector,
            CursorExpired, InvalidArgument: nothing was changed.
    """
    if proposal.place is not None:
        _put(writer, proposal.place)
    for name, key, expected, is_guard in proposal.conditions:
        frame = _standing(writer, name, key, proposal.now)
        found = 0 if frame is None else frame.version
        if found == expected:
            continue
        what = f"record {key!r} in {name!r} is at version {found}, not {expected}"
        if is_guard:
            raise GuardFailed(what)
        raise VersionConflict(what, expected=expected, found=found)
    if proposal.keeps is not None:
        for op in proposal.ops:
            _keep(store, writer, op, proposal.keeps, proposal.now)
    search.fix(writer, proposal.ops, proposal.metric)
    return proposal.ops


def _put(writer: Writer, place: Place) -> None:
    if place.position is None:
        writer.set_cursor(place.cursor, None)
        return
    first, ahead = writer.counters.first_sequence, writer.counters.next_sequence
    if place.position >= ahead:
        raise InvalidArgument(f"position {place.position} lies ahead of the log, which ends at {ahead - 1}")
    if place.position + 1 < first:
        raise CursorExpired(f"the log starts at {first}, and cursor {place.cursor!r} stood at {place.position}")
    writer.set_cursor(place.cursor, CursorInfo(place.position, place.namespace))


def _standing(writer: Writer, name: str, key: str, now: float) -> Frame | None:
    """The unexpired record of `key` as the write transaction sees it."""
    info = writer.live(name)
    frame = None if info is None else writer.record(info.prefix + key.encode())
    return None if frame is None or frame.expires <= now else frame


def _keep(store: Store, writer: Writer, op: Operation, parts: Sequence[Part], now: float) -> None:
    """Let a put keep these parts of the record that it replaces, and its event time."""
    frame = _standing(writer, op.namespace, op.key, now)
    if frame is None:
        raise RecordNotFound(f"no record {op.key!r} in {op.namespace!r}")
    if "value" in parts:
        op.value = store.loader.expand(frame.codec, frame.dictionary, frame.body, frame.value_bytes)
    if "metadata" in parts:
        op.metadata = frame.metadata
    if "vector" in parts:
        info = writer.live(op.namespace)
        found = writer.vector(info.prefix + op.key.encode()) if info and frame.flags & HAS_VECTOR else None
        op.vector = found[1] if found else b""
    if "ttl" in parts:
        op.expires = frame.expires
    op.at = frame.at
    op.flags = (HAS_VECTOR if op.vector else 0) | frame.flags & STREAM
