"""Frames, sealed rows and journal operations: what is written is read back, and nothing else is."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any, Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from tiermem.codec import frame as module
from tiermem.codec.frame import (
    HEADER_BYTES,
    NEVER,
    Frame,
    Head,
    check_vector,
    intact,
    pack_frame,
    pack_vector,
    peek,
    seal,
    unpack_frame,
    unpack_outline,
    unpack_rows,
    unpack_value,
    unpack_vector,
    unseal,
    vector_version,
)
from tiermem.codec.operation import DELETE, PUT, Operation, pack_operation, pack_operations, unpack_operations
from tiermem.errors import CorruptionError, IncompatibleFormatError

KEYS = st.binary(min_size=1, max_size=40)
MOMENTS = st.floats(allow_nan=False)
U64 = st.integers(0, 2**64 - 1)

frames = st.fixed_dictionaries(
    {
        "codec": st.integers(0, 255),
        "flags": st.integers(0, 2**16 - 1).map(lambda flags: flags & ~8),
        "dictionary": st.integers(0, 2**32 - 1),
        "version": U64,
        "given": U64,
        "at": MOMENTS,
        "created": MOMENTS,
        "updated": MOMENTS,
        "expires": MOMENTS,
        "metadata": st.binary(max_size=30),
        "value_bytes": st.integers(0, 2**32 - 1),
        "body": st.binary(max_size=60),
    }
)
SAMPLE: dict[str, Any] = {
    "codec": 1,
    "flags": 3,
    "dictionary": 9,
    "version": 77,
    "given": 77,
    "at": 1.5,
    "created": 2.5,
    "updated": 3.5,
    "expires": NEVER,
    "metadata": b"meta",
    "value_bytes": 11,
    "body": b"the body of it",
}


def unpack_row(key: bytes, data: bytes | memoryview) -> Any:
    (row,) = unpack_rows([(key, bytes(data))])
    return row


UNPACKED: Final[list[Callable[[bytes, Any], Any]]] = [unpack_frame, unpack_value, unpack_outline, unpack_row]


@given(key=KEYS, fields=frames)
@example(key=b"k", fields={**SAMPLE, "body": b"long" * 3000})
@example(key=b"k", fields={**SAMPLE, "given": 76, "metadata": b"m" * 9000})
@example(key=b"k", fields={**SAMPLE, "metadata": b"", "body": b""})
@example(key=b"k", fields={**SAMPLE, "given": 76, "metadata": b"", "body": b""})
def test_a_frame_reads_back(key: bytes, fields: dict[str, Any]) -> None:
    data = pack_frame(key, **fields)
    ranked = fields["given"] != fields["version"]
    assert len(data) == HEADER_BYTES + len(fields["metadata"]) + len(fields["body"]) + 8 * ranked
    assert unpack_frame(key, memoryview(data)) == Frame(**fields)
    head = Head(*(fields[name] for name in ("flags", "version", "given", "created", "expires")))
    assert peek(memoryview(data)) == head
    expires, codec, dictionary, size, body = unpack_value(key, data)
    assert (expires, codec, dictionary, size) == tuple(
        fields[name] for name in ("expires", "codec", "dictionary", "value_bytes")
    )
    assert body == fields["body"]
    raw, header, metadata, body = unpack_row(key, data)
    assert (raw, metadata, body) == (key, fields["metadata"], fields["body"])
    kept = ("codec", "flags", "dictionary", "version", "at", "created", "updated", "expires")
    assert header[2:10] == tuple(fields[name] | 8 * ranked if name == "flags" else fields[name] for name in kept)
    assert header[10:] == (len(fields["metadata"]), fields["value_bytes"])
    outline = tuple(fields[name] for name in ("flags", "version", "at", "expires", "metadata"))
    assert unpack_outline(key, memoryview(data)) == outline
    assert vector_version(memoryview(data)) == (fields["version"] if fields["flags"] & module.HAS_VECTOR else 0)


@given(key=KEYS, other=KEYS, fields=frames)
def test_a_frame_belongs_to_its_key(key: bytes, other: bytes, fields: dict[str, Any]) -> None:
    data = memoryview(pack_frame(key, **fields))
    if key != other:
        for unpack in UNPACKED:
            with pytest.raises(CorruptionError, match="checksum"):
                unpack(other, data)


@pytest.mark.parametrize("given", [77, 76])
@pytest.mark.parametrize("unpack", UNPACKED)
def test_every_flipped_bit_of_a_frame_is_found(unpack: Any, given: int) -> None:
    data = pack_frame(b"key", **{**SAMPLE, "given": given})
    assert intact(b"key", memoryview(data))
    assert not intact(b"kez", memoryview(data))
    assert not intact(b"key", memoryview(data)[: HEADER_BYTES - 1])
    for position in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(CorruptionError):
            unpack(b"key", memoryview(damaged))
        assert not intact(b"key", memoryview(damaged))


@pytest.mark.parametrize("unpack", UNPACKED)
def test_a_frame_cut_short(unpack: Any) -> None:
    data = pack_frame(b"key", **SAMPLE)
    for size in range(len(data)):
        with pytest.raises(CorruptionError, match="shorter" if size < HEADER_BYTES else "checksum"):
            unpack(b"key", memoryview(data)[:size])
    with pytest.raises(CorruptionError, match="shorter"):
        peek(memoryview(data)[: HEADER_BYTES - 1])
    with pytest.raises(CorruptionError, match="bytes"):
        vector_version(memoryview(data)[: HEADER_BYTES - 1])


def resealed(key: bytes, data: bytearray) -> memoryview:
    data[:8] = struct.pack("<Q", xxh3_64_intdigest(bytes(data[8:]), xxh3_64_intdigest(key)))
    return memoryview(data)


@pytest.mark.parametrize("unpack", UNPACKED)
def test_an_intact_frame_of_a_newer_format(unpack: Any) -> None:
    data = bytearray(pack_frame(b"key", **SAMPLE))
    data[8] = 2
    with pytest.raises(IncompatibleFormatError, match="format 2"):
        unpack(b"key", resealed(b"key", data))


def test_metadata_longer_than_the_frame() -> None:
    data = bytearray(pack_frame(b"key", **SAMPLE))
    struct.pack_into("<I", data, HEADER_BYTES - 8, 19)
    for unpack in (unpack_frame, unpack_outline, unpack_row):
        with pytest.raises(CorruptionError, match="does not fit"):
            unpack(b"key", resealed(b"key", data))


def test_one_damaged_frame_among_others_is_named() -> None:
    rows = [(key, pack_frame(key, **SAMPLE)) for key in (b"a", b"b", b"c")]
    assert [row[0] for row in unpack_rows(rows)] == [b"a", b"b", b"c"]
    rows[1] = b"b", rows[0][1]
    with pytest.raises(CorruptionError, match=r"b'b'.*checksum"):
        unpack_rows(rows)


# --------------------------------------------------------------------------------------------------------- sealed rows


@given(key=KEYS, payload=st.binary(max_size=50), data=st.data())
def test_a_sealed_row(key: bytes, payload: bytes, data: st.DataObject) -> None:
    row = seal(key, payload)
    assert unseal(key, row) == unseal(key, memoryview(row)) == payload
    with pytest.raises(CorruptionError):
        unseal(key + b"x", row)
    damaged = bytearray(row)
    damaged[data.draw(st.integers(0, len(row) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(CorruptionError):
        unseal(key, bytes(damaged))
    with pytest.raises(CorruptionError):
        unseal(key, row[: data.draw(st.integers(0, len(row) - 1))])


@given(key=KEYS, version=U64, values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_a_vector_row(key: bytes, version: int, values: list[float]) -> None:
    raw = struct.pack(f"<{len(values)}f", *values)
    row = bytearray(pack_vector(key, version, raw))
    assert unpack_vector(key, row) == (version, raw)
    assert (check_vector(key, memoryview(row)), bytes(row[module.VECTOR_HEAD :])) == (version, raw)
    with pytest.raises(CorruptionError):
        check_vector(key + b"x", memoryview(row))
    for position in range(len(row) * 8):
        row[position // 8] ^= 1 << position % 8
        with pytest.raises(CorruptionError):
            check_vector(key, memoryview(row))
        row[position // 8] ^= 1 << position % 8


@pytest.mark.parametrize("size", [0, 4, 7, 8, 9, 11, 13])
def test_a_vector_row_of_a_length_no_vector_has(size: int) -> None:
    with pytest.raises(CorruptionError, match="length" if size else "."):
        unpack_vector(b"k", seal(b"k", bytes(size)))


def test_flags_are_bits_of_their_own() -> None:
    flags = [module.HAS_VECTOR, module.STREAM]
    assert len({flag.bit_length() for flag in flags}) == len(flags)
    assert all(flag.bit_count() == 1 for flag in flags)
    assert math.isinf(NEVER)


# ---------------------------------------------------------------------------------------------------------- operations

operations = st.builds(
    Operation,
    kind=st.sampled_from([PUT, DELETE]),
    flags=st.integers(0, 255),
    namespace=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
    key=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
    version=U64,
    at=MOMENTS,
    now=MOMENTS,
    expires=MOMENTS,
    metadata=st.binary(max_size=20),
    vector=st.binary(max_size=20),
    value=st.binary(max_size=40),
)


@given(ops=st.lists(operations, max_size=6))
def test_operations_read_back(ops: list[Operation]) -> None:
    assert unpack_operations(pack_operations(ops)) == ops


def test_what_is_known_only_in_the_process_is_not_journaled() -> None:
    op = Operation(PUT, 0, "n", "k", 1, 2.0, 3.0, NEVER, b"", b"", b"v", created=1.0)
    (found,) = unpack_operations(pack_operation(op, b"n", b"k"))
    assert found == Operation(PUT, 0, "n", "k", 1, 2.0, 3.0, NEVER, b"", b"", b"v")


@given(ops=st.lists(operations, min_size=1, max_size=3), data=st.data())
def test_operations_cut_short(ops: list[Operation], data: st.DataObject) -> None:
    whole = pack_operations(ops)
    ends = {len(pack_operations(ops[:number])) for number in range(len(ops) + 1)}
    size = data.draw(st.integers(0, len(whole)).filter(lambda size: size not in ends))
    with pytest.raises(CorruptionError):
        unpack_operations(whole[:size])


@pytest.mark.parametrize("kind", [0, 3, 255])
def test_an_operation_of_no_known_kind(kind: int) -> None:
    op = Operation(kind, 0, "n", "k", 1, 2.0, 3.0, NEVER, b"", b"", b"v")
    with pytest.raises(CorruptionError, match="does not fit"):
        unpack_operations(pack_operation(op, b"n", b"k"))


@pytest.mark.parametrize(("namespace", "key"), [(b"\xff", b"k"), (b"n", b"\xc3")])
def test_names_that_are_no_text(namespace: bytes, key: bytes) -> None:
    op = Operation(PUT, 0, "n", "k", 1, 2.0, 3.0, NEVER, b"", b"", b"v")
    with pytest.raises(CorruptionError, match="cannot be read"):
        unpack_operations(pack_operation(op, namespace, key))
