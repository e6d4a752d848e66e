"""Operations: what the journal carries and the committer applies."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

import msgspec

from tiermem.errors import CorruptionError

PUT: Final = 1
DELETE: Final = 2

# kind, flags, namespace bytes, key bytes, metadata bytes, vector bytes, value bytes, version, at, now, expires
_HEADER: Final = struct.Struct("<BBHHIIIQddd")
_HEADER_BYTES: Final = _HEADER.size
_KINDS: Final = (PUT, DELETE)
_unpack: Final = _HEADER.unpack_from


class Operation(msgspec.Struct, gc=False):
    """One put or delete. `value` and `metadata` are encoded but not compressed; `vector` is float32.

    `now` is the client's clock when it was called: it becomes the record's update time and decides
    whether the record it replaces had expired. `version` is given on submission. `model` is set where
    an embedder made the vector. `created` is the record's creation time where pending operations tell
    it, else None; `first` is the time of the first of an unbroken run of pending puts of the key; `end` is
    the position behind its journal frame; `contested`: another client's write of the key was committed at a
    version not below this one, so that L3 decides what stands. These five are not journaled.
    """

    kind: int
    flags: int
    namespace: str
    key: str
    version: int
    at: float
    now: float
    expires: float
    metadata: bytes
    vector: bytes
    value: bytes
    created: float | None = None
    first: float | None = None
    model: str = ""
    end: int = 0
    contested: bool = False


def pack_operation(op: Operation, namespace: bytes, key: bytes) -> bytes:
    """The journal bytes of `op`, whose names are given encoded."""
    return b"".join(
        (
            _HEADER.pack(
                op.kind,
                op.flags,
                len(namespace),
                len(key),
                len(op.metadata),
                len(op.vector),
                len(op.value),
                op.version,
                op.at,
                op.now,
                op.expires,
            ),
            namespace,
            key,
            op.metadata,
            op.vector,
            op.value,
        )
    )


def pack_operations(ops: Iterable[Operation]) -> bytes:
    """The journal bytes of several operations, one behind the other."""
    return b"".join([pack_operation(op, op.namespace.encode(), op.key.encode()) for op in ops])


def unpack_operations(payload: bytes) -> list[Operation]:
    """The operations in one journal frame.

    Raises:
        CorruptionError: the lengths do not add up.
    """
    ops: list[Operation] = []
    start, end = 0, len(payload)
    while start < end:
        try:
            kind, flags, namespace, key, metadata, vector, value, version, at, now, expires = _unpack(payload, start)
            a = start + _HEADER_BYTES
            b = a + namespace
            c = b + key
            d = c + metadata
            e = d + vector
            start = e + value
            name, label = payload[a:b].decode(), payload[b:c].decode()
        except (struct.error, UnicodeDecodeError) as exc:
            raise CorruptionError("a journal frame holds an operation that cannot be read") from exc
        if start > end or kind not in _KINDS:
            raise CorruptionError("a journal frame holds an operation that does not fit it")
        ops.append(
            Operation(kind, flags, name, label, version, at, now, expires, payload[c:d], payload[d:e], payload[e:start])
        )
    return ops
