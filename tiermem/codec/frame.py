"""Frames: the checksummed bytes that stand for a record, a vector or a small row in L3."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any, Final, NamedTuple, TypeAlias

from xxhash import xxh3_64_intdigest

from tiermem.errors import CorruptionError, IncompatibleFormatError

FRAME_FORMAT: Final = 1
NEVER: Final = float("inf")

HAS_VECTOR: Final = 1
STREAM: Final = 2
_RANKED: Final = 8
"""It does not rank by its version: what it ranks by ends the frame."""

RAW: Final = 0
ZSTD: Final = 1

# checksum, format, codec, flags, dictionary, version, at, created, updated, expires, metadata bytes, value bytes
_HEADER: Final = struct.Struct("<QBBHIQddddII")
_UNSEALED: Final = struct.Struct("<BBHIQddddII")
# The same, without version and times: what it costs to unpack is what it makes.
_unpack_short: Final = struct.Struct("<QBBHI32xdII").unpack_from
# What an index needs of a record.
_OUTLINE: Final = struct.Struct("<QBxH4xQd16xdI4x")
_VERSION: Final = struct.Struct("<10xH4xQ40x")
_CHECKSUM: Final = struct.Struct("<Q")
_VERSIONED: Final = struct.Struct("<QQ")
VECTOR_HEAD: Final = _VERSIONED.size
"""Bytes of a vector's row before its values."""
_GIVEN: Final = struct.Struct("<Q")
HEADER_BYTES: Final = _HEADER.size
CODEC, FLAGS, DICTIONARY, VERSION, AT, CREATED, UPDATED, EXPIRES, VALUE_BYTES = 2, 3, 4, 5, 6, 7, 8, 9, 11
"""Places in the header of a `Row`."""
_LONG: Final = 8192
"""Bytes of a frame from which on a view of a part costs less than a copy."""


Value: TypeAlias = tuple[float, int, int, int, bytes | memoryview]
Row: TypeAlias = tuple[bytes, tuple[Any, ...], bytes, bytes | memoryview]
Outline: TypeAlias = tuple[int, int, float, float, bytes]


class Frame(NamedTuple):
    """A decoded record frame; `body` is the value as stored, still compressed if `codec` says so.

    `given` is what it ranks by among journaled writes: the version its client gave, where the commit had to give a
    higher one; of a write that was decided inside a commit, what the record it found ranked by.
    """

    codec: int
    flags: int
    dictionary: int
    version: int
    given: int
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
    given: int
    created: float
    expires: float


def pack_frame(
    key: bytes,
    codec: int,
    flags: int,
    dictionary: int,
    version: int,
    given: int,
    at: float,
    created: float,
    updated: float,
    expires: float,
    metadata: bytes,
    value_bytes: int,
    body: bytes,
) -> bytes:
    """The frame of a record stored under the LMDB key `key`, which its checksum covers too."""
    header = _UNSEALED.pack(
        FRAME_FORMAT,
        codec,
        flags & ~_RANKED if given == version else flags | _RANKED,
        dictionary,
        version,
        at,
        created,
        updated,
        expires,
        len(metadata),
        value_bytes,
    )
    rest = header + metadata + body
    if given != version:
        rest += _GIVEN.pack(given)
    return _CHECKSUM.pack(xxh3_64_intdigest(rest, xxh3_64_intdigest(key))) + rest


def unpack_frame(key: bytes, data: bytes | memoryview) -> Frame:
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
    split, end, given = HEADER_BYTES + metadata, len(data), version
    if flags & _RANKED:
        end -= _GIVEN.size
        given = _GIVEN.unpack_from(data, end)[0]
    if split > end:
        raise CorruptionError(f"record {key!r}: metadata of {metadata} bytes does not fit its frame")
    return Frame(
        codec,
        flags & ~_RANKED,
        dictionary,
        version,
        given,
        at,
        created,
        updated,
        expires,
        bytes(data[HEADER_BYTES:split]),
        value_bytes,
        bytes(data[split:end]),
    )


def unpack_value(key: bytes, data: bytes) -> Value:
    """(expiry, codec, dictionary, value bytes, body) of a record frame; a long body is a view of `data`.

    Raises:
        CorruptionError, IncompatibleFormatError: as `unpack_frame`.
    """
    # Copying a little costs less than a view of it.
    view = data if len(data) < _LONG else memoryview(data)
    try:
        checksum, form, codec, flags, dictionary, expires, metadata, size = _unpack_short(data)
    except struct.error:
        checksum = form = -1
    if form != FRAME_FORMAT or xxh3_64_intdigest(view[8:], xxh3_64_intdigest(key)) != checksum:
        # Damaged, or of another format: the full check says which.
        unpack_frame(key, data)
    return expires, codec, dictionary, size, view[HEADER_BYTES + metadata : -_GIVEN.size if flags & _RANKED else None]


def unpack_rows(rows: Iterable[tuple[bytes, bytes]]) -> list[Row]:
    """(key, header, metadata, body) of each record frame, given behind its key; a long body is a view of its frame.

    The header is a tuple: checksum, format, codec, flags, dictionary, version, event time, times of creation, update
    and expiry, bytes of metadata and of the value.

    Raises:
        CorruptionError, IncompatibleFormatError: as `unpack_frame`.
    """
    found: list[Row] = []
    # One loop, without a call for each frame: a scan spends a good part of its time here.
    append, unpack, digest = found.append, _HEADER.unpack_from, xxh3_64_intdigest
    for key, data in rows:
        view = data if len(data) < _LONG else memoryview(data)
        try:
            header = unpack(data)
        except struct.error:
            header = (-1, -1)
        if header[0] != digest(view[8:], digest(key)) or header[1] != FRAME_FORMAT:
            # Damaged, or of another format: the full check says which.
            unpack_frame(key, data)
        if header[10] or header[FLAGS] & _RANKED:
            split = HEADER_BYTES + header[10]
            end = len(data) - _GIVEN.size if header[FLAGS] & _RANKED else len(data)
            if split > end:
                unpack_frame(key, data)
            append((key, header, data[HEADER_BYTES:split], view[split:end]))
        else:
            append((key, header, b"", view[HEADER_BYTES:]))
    return found


def unpack_outline(key: bytes, data: memoryview) -> Outline:
    """(flags, version, event time, expiry, metadata) of a record frame, copied out of it.

    Raises:
        CorruptionError, IncompatibleFormatError: as `unpack_frame`.
    """
    if len(data) < HEADER_BYTES:
        raise CorruptionError(f"record {key!r}: frame of {len(data)} bytes is shorter than its header")
    checksum, form, flags, version, at, expires, size = _OUTLINE.unpack_from(data)
    metadata = bytes(data[HEADER_BYTES : HEADER_BYTES + size])
    if form != FRAME_FORMAT or xxh3_64_intdigest(data[8:], xxh3_64_intdigest(key)) != checksum or len(metadata) < size:
        # Damaged, or of another format: the full check says which.
        unpack_frame(key, data)
    return flags & ~_RANKED, version, at, expires, metadata


def vector_version(data: memoryview) -> int:
    """The version in a record frame if it has a vector, else 0. Verifies nothing."""
    if len(data) < HEADER_BYTES:
        raise CorruptionError(f"frame of {len(data)} bytes is shorter than its header")
    flags, version = _VERSION.unpack_from(data)
    return int(version) if flags & HAS_VECTOR else 0


def intact(key: bytes, data: memoryview) -> bool:
    """True if the frame's checksum matches."""
    return (
        len(data) >= HEADER_BYTES
        and xxh3_64_intdigest(data[8:], xxh3_64_intdigest(key)) == _CHECKSUM.unpack_from(data)[0]
    )


def peek(data: bytes | memoryview) -> Head:
    """Flags, versions, creation and expiry of a frame, without verifying it."""
    if len(data) < HEADER_BYTES:
        raise CorruptionError(f"frame of {len(data)} bytes is shorter than its header")
    header = _HEADER.unpack_from(data)
    given = _GIVEN.unpack_from(data, len(data) - _GIVEN.size)[0] if header[3] & _RANKED else header[5]
    return Head(header[3] & ~_RANKED, header[5], given, header[7], header[9])


def dictionary_of(data: memoryview) -> int:
    """The number of the dictionary a frame was compressed with, 0 for none, without verifying it."""
    return int.from_bytes(data[12:16], "little") if len(data) >= HEADER_BYTES else 0


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


def check_vector(key: bytes, data: memoryview) -> int:
    """The version of the vector in a row of at least `VECTOR_HEAD` bytes, verified.

    Raises:
        CorruptionError: the checksum does not match.
    """
    checksum, version = _VERSIONED.unpack_from(data)
    if xxh3_64_intdigest(data[8:], xxh3_64_intdigest(key)) != checksum:
        raise CorruptionError(f"vector {key!r}: checksum mismatch")
    return int(version)
