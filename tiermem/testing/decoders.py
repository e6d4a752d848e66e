"""Decoders: every reader of bytes that lie on disk, with bytes it must understand and what they mean.

Bytes that nobody wrote end in a TiermemError; where a checksum covers them, bytes that were changed do too, unless
they mean the same as before. `reseal` makes the checksums of changed bytes right again, so that what lies behind
them is reached: then any answer is allowed, and still no other error.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import partial
from typing import Any, Final
from uuid import UUID

import msgspec
import numpy as np
from xxhash import xxh3_64_intdigest

import tiermem
from tiermem.codec import frame
from tiermem.codec.compress import Compressor
from tiermem.codec.frame import NEVER, RAW, ZSTD, pack_frame, pack_vector, seal, unseal
from tiermem.codec.operation import DELETE, PUT, Operation, pack_operations, unpack_operations
from tiermem.codec.serialize import decode, decode_metadata, decoder, encode, encode_metadata
from tiermem.config import CodecConfig
from tiermem.policy.filters import compile_filter
from tiermem.tiers.cold import layout
from tiermem.tiers.vector.columns import DATA, FIELDS, Columns, encode_columns

Answer = Any
KEY: Final = b"\0\0\0\1key"
METADATA: Final[dict[str, Any]] = {"side": "buy", "n": 7, "px": 48.25, "ok": True, "tags": ["a", "b"]}
WHERE: Final[dict[str, Any]] = {
    "$or": [
        {"side": {"$in": ["buy", "hold"]}, "n": {"$gte": 3, "$lt": 2**60}},
        {"$not": {"tags": {"$contains": "b"}}},
        {"when": {"$exists": True}, "side": {"$starts_with": "s", "$ends_with": "l", "$ne": "sell"}},
    ]
}
VALUE: Final[dict[str, Any]] = {
    "text": "Grüße",
    "bytes": b"\0\xff",
    "numbers": [0, -1, 2**63, 1.5, None, True],
    "when": datetime(2026, 2, 3, 4, 5, 6, 7, tzinfo=UTC),
    "day": date(2026, 2, 3),
    "sum": Decimal("1.50"),
    "id": UUID(int=5),
    "array": np.arange(6, dtype="<i2").reshape(2, 3),
    "deep": {"a": {"b": [[], {}]}},
}


class _Row(msgspec.Struct):
    text: str
    numbers: list[Any]


@dataclass(frozen=True)
class Decoder:
    """A reader of bytes: `samples` are (bytes, what they mean).

    `exact`: changed bytes are refused or mean what one of the samples means, in the eyes of `agree`.
    """

    name: str
    read: Callable[[bytes], Answer]
    samples: tuple[tuple[bytes, Answer], ...]
    reseal: Callable[[bytes], bytes] | None = None
    exact: bool = True
    agree: Callable[[Answer, Answer], bool] = lambda found, meant: bool(found == meant)


def checksum(data: bytes, seed: int = 0) -> bytes:
    """xxh3 of `data` as it is stored."""
    return struct.pack("<Q", xxh3_64_intdigest(data, seed))


def patched(data: bytes, offset: int, part: bytes) -> bytes:
    """`data` with `part` in place of what is at `offset`."""
    return data[:offset] + part + data[offset + len(part) :]


# --------------------------------------------------------------------------------------------------- rows of L3


def _sealed_again(key: bytes) -> Callable[[bytes], bytes]:
    return lambda data: checksum(data[8:], xxh3_64_intdigest(key)) + data[8:]


def _compressor() -> Compressor:
    known = Compressor(CodecConfig(min_bytes=64))
    known.add(1, b"{side: buy, px: 48.25, venue: NYSE, text: the quick brown fox}" * 8)
    return known


def _record(compressor: Compressor) -> Decoder:
    def read(data: bytes) -> Answer:
        view = memoryview(data)
        frame.intact(KEY, view)
        frame.dictionary_of(view)
        frame.peek(view)
        frame.vector_version(view)
        short = frame.unpack_value(KEY, data)
        ((_, header, metadata, body),) = frame.unpack_rows([(KEY, data)])
        outline = frame.unpack_outline(KEY, view)
        whole = frame.unpack_frame(KEY, view)
        # By their text: a time that is no number equals nothing.
        assert repr(short) == repr((whole.expires, whole.codec, whole.dictionary, whole.value_bytes, whole.body))
        assert repr(header[2:10]) == repr((whole.codec, header[3], *whole[2:4], *whole[5:9]))
        assert (metadata, body) == (whole.metadata, whole.body)
        assert repr(outline) == repr((whole.flags, whole.version, whole.at, whole.expires, whole.metadata))
        value = compressor.decompress(whole.codec, whole.dictionary, whole.body, whole.value_bytes)
        return whole[1:9], decode(value), decode_metadata(whole.metadata)

    samples = []
    for flags, dictionary, given, value in (
        (0, 0, 5, "small"),
        (frame.HAS_VECTOR, 0, 4, {"text": "abc" * 100}),
        (frame.HAS_VECTOR | frame.STREAM, 1, 5, "the quick brown fox, venue: NYSE, text: side: buy"),
    ):
        raw = encode(value)
        codec, number, body = compressor.compress(raw, dictionary)
        metadata = encode_metadata(METADATA if given == 5 else None)
        packed = pack_frame(KEY, codec, flags, number, 5, given, 1.5, 1.0, 2.0, NEVER, metadata, len(raw), body)
        head = (flags, number, 5, given, 1.5, 1.0, 2.0, NEVER)
        samples.append((packed, (head, value, METADATA if given == 5 else {})))
    assert {data[9] for data, _ in samples} == {RAW, ZSTD}
    return Decoder("record frame", read, tuple(samples), _sealed_again(KEY))


def _compressed(compressor: Compressor) -> Decoder:
    def read(data: bytes) -> Answer:
        if len(data) < 6:
            raise tiermem.CorruptionError("too short to say what it is")
        codec, dictionary, size = struct.unpack_from("<BBI", data)
        return compressor.decompress(codec, dictionary, data[6:], size)

    texts = [b"buy and sell " * 40, bytes(50_000), b"the quick brown fox, venue: NYSE, px: 48.25 and side: buy"]
    packed = [(text, compressor.compress(text, 1)) for text in texts]
    samples = tuple(
        (struct.pack("<BBI", codec, number, len(text)) + body, text) for text, (codec, number, body) in packed
    )
    return Decoder("compressed value", read, samples, exact=False)


def _small_rows() -> list[Decoder]:
    info = layout.NamespaceInfo(7, 3, "cosine", "model", records=5, dictionary=2, made=True)
    identity = layout.Identity(1, bytes(range(16)), "real")
    cursor = layout.CursorInfo(5, "desk/obs")
    segment = layout.SegmentInfo(20, 2**63, True, b"\x05\0\0\0\0\0\0\0")
    log: layout.LogRow = (["a", "b"], [(0, "k", 0, 5), (1, "", 3, 6)])
    state = layout.State(5, 1, 77, commits=3)

    def published(key: bytes, data: bytes) -> Answer:
        row = layout.unpack_segment(key, data)
        assert len(row.dead_numbers()) == row.dead_rows
        return row

    rows: list[tuple[str, bytes, Callable[[bytes, bytes], Answer], Any]] = [
        ("namespace row", b"desk/obs", layout.unpack_info, info),
        ("identity", b"identity", lambda _, data: layout.unpack_identity(data), identity),
        ("cursor row", b"risk", layout.unpack_cursor, cursor),
        ("segment row", KEY, published, segment),
        ("answer row", KEY, layout.unpack_answer, layout.Answer(9, [10, 11], "VersionConflict", "said", 7, 8)),
        ("change log row", layout.U64.pack(4), layout.unpack_log_row, log),
    ]
    made = [
        Decoder(name, partial(read, key), ((layout.pack_row(key, row), row),), _sealed_again(key))
        for name, key, read, row in rows
    ]
    vector, mark = struct.pack("<3f", 1, 2, 3), layout.Mark(5, 64, 7, 8)
    structs: list[tuple[str, bytes, Callable[[bytes, bytes], Answer], bytes, Answer]] = [
        ("counters", b"state", lambda _, data: layout.State.unpack(data), state.pack(), state),
        ("vector row", KEY, frame.unpack_vector, pack_vector(KEY, 9, vector), (9, vector)),
        ("floor", KEY, layout.unpack_floor, layout.pack_floor(KEY, 9, 8), (9, 8)),
        ("journal mark", KEY, layout.unpack_mark, layout.pack_mark(KEY, mark), mark),
        ("name", KEY, lambda key, data: layout.text(unseal(key, data)), seal(KEY, b"desk/obs"), "desk/obs"),
    ]
    made += [
        Decoder(name, partial(read, key), ((packed, row),), _sealed_again(key))
        for name, key, read, packed, row in structs
    ]
    return made


# ----------------------------------------------------------------------------------------------- values and others


def _values() -> list[Decoder]:
    into = decoder(_Row)
    row = {"text": "a", "numbers": [1, None]}
    plain = {name: item for name, item in VALUE.items() if name != "array"}

    def agree(found: Answer, meant: Answer) -> bool:
        return bool({**found, "array": found["array"].tolist()} == {**meant, "array": meant["array"].tolist()})

    return [
        Decoder("value", decode, ((encode(VALUE), VALUE),), exact=False, agree=agree),
        Decoder("plain value", decode, ((encode(plain), plain),), exact=False),
        Decoder("typed value", into, ((encode(row), _Row("a", [1, None])),), exact=False),
        Decoder("metadata", decode_metadata, ((encode_metadata(METADATA), METADATA),), exact=False),
    ]


def _operations() -> Decoder:
    ops = [
        Operation(PUT, 1, "desk/obs", "AIG", 5, 1.5, 2.5, NEVER, encode_metadata(METADATA), bytes(12), encode(plain))
        for plain in (1, "text", {"px": 48.25})
    ]
    ops.append(Operation(DELETE, 0, "desk/news", "n1", 6, 1.5, 2.5, NEVER, b"", b"", b""))
    return Decoder("operations", unpack_operations, ((pack_operations(ops), ops),), exact=False)


def _columns() -> Decoder:
    """The index on metadata, without the file it lies in: its two sections, one behind the other."""
    where = compile_filter(WHERE)
    assert where is not None
    fields = [{**METADATA, "n": number} if number % 3 else {} for number in range(40)]
    fields[5] = {"when": datetime(2026, 1, 1, tzinfo=UTC), "side": "sell", "n": 2**60 + 1, "tags": [1.5, "b"]}
    sections = encode_columns([encode_metadata(one) for one in fields])

    def read(data: bytes) -> Answer:
        if len(data) < 4:
            raise tiermem.CorruptionError("too short to say what it is")
        (size,) = struct.unpack_from("<I", data)
        view = memoryview(data)
        columns = Columns({FIELDS: view[4 : 4 + size], DATA: view[4 + size :]}, len(fields))
        bits = np.unpackbits(columns.bits(where.node), count=len(fields), bitorder="little")
        return [bool(bit) for bit in bits]

    raw = struct.pack("<I", len(sections[FIELDS])) + sections[FIELDS] + sections[DATA]
    return Decoder("index on metadata", read, ((raw, [where(one) for one in fields]),), exact=False)


def _filters() -> Decoder:
    """Filters as the command line takes them; one that is accepted says yes or no to any metadata."""

    def read(data: bytes) -> Answer:
        try:
            where = json.loads(data)
        except (ValueError, RecursionError):
            raise tiermem.FilterError("no JSON") from None
        accepted = compile_filter(where)
        verdicts = [True if accepted is None else accepted(one) for one in ({}, METADATA, {"tags": [], "n": "7"})]
        assert all(type(verdict) is bool for verdict in verdicts)
        return verdicts

    samples = ((WHERE, [True, True, True]), ({"n": {"$in": [7]}, "$not": {"ok": False}}, [False, True, False]))
    return Decoder("filter", read, tuple((json.dumps(where).encode(), said) for where, said in samples), exact=False)


def row_decoders() -> list[Decoder]:
    """Those that need no file."""
    compressor = _compressor()
    return [
        *(_record(compressor), _compressed(compressor)),
        *_small_rows(),
        *(*_values(), _operations(), _columns(), _filters()),
    ]
