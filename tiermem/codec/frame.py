"""Frames: the checksummed bytes that stand for a record, a vector or a small row in L3."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

from tiermem.errors import CorruptionError, IncompatibleFormatError

FRAME_FORMAT: Final = 1
NEVER: Final = float("inf")

HAS_VECTOR: Final = 1
STREAM: Final = 2
DECIDED: Final = 4
"""Written inside a transaction that had drained every journal: a later-drained put stands above it."""

RAW: Final = 0
ZSTD: Final = 1

# checksum, format, codec, flags, dictionary, version, at, created, updated, expires, metadata bytes, value bytes
_HEADER: Final = struct.Struct("<QBBHIQddddII")
_CHECKSUM: Final = struct.Struct("<Q")
_VERSIONED: Final = struct.Struct("<QQ")
HEADER_BYTES: Final = _HEADER.size


class Frame(NamedTuple):
    """A decoded record frame; `body` is the value as stored, still compressed if `codec` says so."""

    codec: int
    flags: int
    dictionary: int
    version: int
    at: float
    created: float
    updated: float
    expires: float
    metadata: bytes
    value_bytes: int
    body: bytes


class Head(NamedTuple):
    """What a writer needs of the record it replaces. Not covered by a checksum check."""

    flags: int
    version: int
    created: float
    expires: float


def pack_frame(
    key: bytes,
    *,
    codec: int,
    flags: int,
    dictionary: int,
    version: int,
    at: float,
    created: float,
    updated: float,
    expires: float,
    metadata: bytes,
    value_bytes: int,
    body: bytes,
) -> bytes:
    """The frame of a record stored under the LMDB key `key`, which its checksum covers too."""
    header = _HEADER.pack(
        0,
        FRAME_FORMAT,
        codec,
        flags,
        dictionary,
        version,
        at,
        created,
        updated,
        expires,
        len(metadata),
        value_bytes,
    )
    rest = b"".join((header[8:], metadata, body))
    return _CHECKSUM.pack(xxh3_64_intdigest(rest, xxh3_64_intdigest(key))) + rest


def unpack_frame(key: bytes, data: memoryview) -> Frame:
    """The record frame in `data`, copied out of it.

    Raises:
        CorruptionError: the checksum or a length does not fit.
        IncompatibleFormatError: a frame of a newer format, intact.
    """
    if len(data) < HEADER_BYTES:
        raise CorruptionError(f"record {key!r}: frame of {len(data)} bytes is shorter than its header")
    (checksum, form, codec, flags, dictionary, version, at, created, updated, expires, metadata, value_bytes) = (
        _HEADER.unpack_from(data)
    )
    if xxh3_64_intdigest(data[8:], xxh3_64_intdigest(key)) != checksum:
        raise CorruptionError(f"record {key!r}: checksum mismatch")
    if form != FRAME_FORMAT:
        raise IncompatibleFormatError(f"record {key!r}: frame format {form}, this version reads {FRAME_FORMAT}")
    split = HEADER_BYTES + metadata
    if split > len(data):
        raise CorruptionError(f"record {key!r}: metadata of {metadata} bytes does not fit its frame")
    return Frame(
        codec,
        flags,
        dictionary,
        version,
        at,
        created,
        updated,
        expires,
        bytes(data[HEADER_BYTES:split]),
        value_bytes,
        bytes(data[split:]),
    )


def unpack_value(key: bytes, data: memoryview) -> tuple[float, int, int, int, memoryview]:
    """(expiry, codec, dictionary, value bytes, body) of a record frame; `body` points into `data`.

    Raises:
        CorruptionError, IncompatibleFormatError: as `unpack_frame`.
    """
    if len(data) < HEADER_BYTES:
        raise CorruptionError(f"record {key!r}: frame of {len(data)} bytes is shorter than its header")
    checksum, form, codec, _, dictionary, _, _, _, _, expires, metadata, size = _HEADER.unpack_from(data)
    if form != FRAME_FORMAT or xxh3_64_intdigest(data[8:], xxh3_64_intdigest(key)) != checksum:
        # Damaged, or of another format: the full check says which.
        unpack_frame(key, data)
    return expires, codec, dictionary, size, data[HEADER_BYTES + metadata :]


def intact(key: bytes, data: memoryview) -> bool:
    """True if the frame's checksum matches."""
    return (
        len(data) >= HEADER_BYTES
        and xxh3_64_intdigest(data[8:], xxh3_64_intdigest(key)) == _CHECKSUM.unpack_from(data)[0]
    )


def peek(data: memoryview) -> Head:
    """Flags, version, creation and expiry of a frame, without verifying it."""
    if len(data) < HEADER_BYTES:
        raise CorruptionError(f"frame of {len(data)} bytes is shorter than its header")
    header = _HEADER.unpack_from(data)
    return Head(header[3], header[5], header[7], header[9])


def seal(key: bytes, payload: bytes) -> bytes:
    """`payload` behind a checksum that also covers its key: the form of every small row."""
    return _CHECKSUM.pack(xxh3_64_intdigest(payload, xxh3_64_intdigest(key))) + payload


def unseal(key: bytes, data: bytes | memoryview) -> bytes:
    """The payload of a sealed row.

    Raises:
        CorruptionError: the checksum does not match.
    """
    if len(data) < 8:
        raise CorruptionError(f"row {key!r} of {len(data)} bytes is shorter than its checksum")
    payload = bytes(data[8:])
    if xxh3_64_intdigest(payload, xxh3_64_intdigest(key)) != _CHECKSUM.unpack_from(data)[0]:
        raise CorruptionError(f"row {key!r}: checksum mismatch")
    return payload


def pack_vector(key: bytes, version: int, vector: bytes) -> bytes:
    """The row of a record's vector: sealed version and little-endian float32 values."""
    return seal(key, struct.pack("<Q", version) + vector)


def unpack_vector(key: bytes, data: bytes | memoryview) -> tuple[int, bytes]:
    """(version, float32 bytes) of a vector row.

    Raises:
        CorruptionError: the checksum or the length does not fit.
    """
    payload = unseal(key, data)
    if len(payload) < 12 or len(payload) % 4:
        raise CorruptionError(f"vector {key!r}: length {len(payload)} does not fit")
    return int(struct.unpack_from("<Q", payload)[0]), payload[8:]
