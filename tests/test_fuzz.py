"""Every decoder of what lies on disk, given bytes that were altered: an error of tiermem's, or the right answer.

`python -m tiermem.testing.fuzz` does the same for as long as one likes, guided by coverage where atheris is installed.
"""

from __future__ import annotations

import dataclasses
import json
import random
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

import tiermem
from tiermem.codec.compress import Compressor
from tiermem.codec.frame import ZSTD, seal
from tiermem.config import CodecConfig
from tiermem.engine.assistant import wish, wished
from tiermem.testing import fuzz
from tiermem.testing.decoders import Decoder
from tiermem.tiers.cold import layout

NAMES = (
    *("record frame", "compressed value", "namespace row", "identity", "cursor row", "segment row", "answer row"),
    *("change log row", "counters", "vector row", "floor", "journal mark", "name", "value", "plain value"),
    *("typed value", "metadata", "operations", "index on metadata", "filter", "journal", "rows of a segment"),
    *("graph of a segment", "CURRENT", "wishes", "requests", "control page", "pages of data.mdb"),
)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Decoder]:
    """Every decoder by its name."""
    return {decoder.name: decoder for decoder in fuzz.decoders(tmp_path_factory.mktemp("decoders"))}


@pytest.fixture
def traced() -> Iterator[None]:
    """What is allocated is counted."""
    tracemalloc.start()
    yield
    tracemalloc.stop()


def test_all_of_them_are_tried(known: dict[str, Decoder]) -> None:
    assert tuple(known) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_intact_bytes_are_understood(known: dict[str, Decoder], name: str) -> None:
    decoder = known[name]
    for sample, _ in decoder.samples:
        assert fuzz.judge(decoder, sample)
        assert fuzz.judge(decoder, sample, resealed=True)
        if decoder.reseal is not None:
            assert decoder.reseal(sample) == sample


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("resealed", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_altered_bytes_are_refused_or_understood(known: dict[str, Decoder], name: str, resealed: bool) -> None:
    decoder = known[name]
    samples = st.sampled_from([sample for sample, _ in decoder.samples])

    @given(data=samples | st.binary(max_size=200), other=samples, seed=st.integers(0, 2**32))
    def law(data: bytes, other: bytes, seed: int) -> None:
        fuzz.judge(decoder, fuzz.mutate(random.Random(seed), data, other), resealed=resealed)

    law()


@pytest.mark.parametrize("name", NAMES)
def test_every_truncation(known: dict[str, Decoder], name: str) -> None:
    decoder = known[name]
    for sample, _ in decoder.samples:
        for end in range(0, len(sample), max(1, len(sample) // 40)):
            fuzz.judge(decoder, sample[:end])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_many_altered_bytes(known: dict[str, Decoder], name: str) -> None:
    rng = random.Random(name)
    for _ in range(20_000 if name != "pages of data.mdb" else 2_000):
        fuzz.attempt(known[name], rng)


# ------------------------------------------------------------------------------------------- what it finds is noticed


@pytest.mark.parametrize(
    ("read", "problem"),
    [
        (lambda data: struct.unpack("<Q", data), "struct.error|error: unpack"),
        (lambda data: data.decode(), "UnicodeDecodeError"),
        (lambda data: "another answer", "read as 'another answer'"),
        (lambda data: bytes(fuzz.MEMORY + 2**20), "took"),
    ],
)
@pytest.mark.usefixtures("traced")
def test_a_broken_law_is_noticed(read: object, problem: str) -> None:
    decoder = Decoder("broken", read, ((b"\xff\0\0", "the answer"),))
    with pytest.raises(fuzz.LawBroken, match=problem):
        fuzz.judge(decoder, b"\xff\0\0\0")


def test_an_answer_without_a_checksum_may_be_another() -> None:
    decoder = Decoder("lenient", bytes, ((b"a", b"a"),), exact=False)
    assert fuzz.judge(decoder, b"b")
    with pytest.raises(fuzz.LawBroken):
        fuzz.judge(dataclasses.replace(decoder, samples=((b"b", b"c"),)), b"b")


@pytest.mark.parametrize("engine", ["seeded", pytest.param("atheris", marks=pytest.mark.slow)])
def test_the_command(engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    if engine == "atheris":
        pytest.importorskip("atheris", reason="atheris, which guides by coverage, is not installed")
    arguments = ["--seconds", "0.5", "--only", "cursor row", "--only", "filter", "--engine", engine, "--json"]
    assert fuzz.main(arguments) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["decoder"] for row in rows] == ["cursor row", "filter"]
    assert all(row["tried"] > 10 and row["problem"] == "" for row in rows)


def test_the_command_knows_its_decoders(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fuzz.main(["--only", "nothing"])
    assert "no decoder 'nothing'" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ what it has found


@pytest.mark.parametrize("claimed", [2**40, 2**31])
def test_a_body_that_says_it_is_huge_is_given_no_room(claimed: int) -> None:
    compressor = Compressor(CodecConfig())
    body = bytearray(zstandard.ZstdCompressor().compress(bytes(1000)))
    # Frame header descriptor: a content size of eight bytes, single segment.
    forged = bytes(body[:4]) + b"\xe0" + struct.pack("<Q", claimed) + bytes(body[7:])
    tracemalloc.start()
    try:
        for size in (1000, min(claimed, 2**32 - 1)):
            with pytest.raises(tiermem.CorruptionError):
                compressor.decompress(ZSTD, 0, forged, size)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [100, 10**6, 30 * 10**6])
def test_what_compresses_best_is_no_forgery(size: int) -> None:
    compressor = Compressor(CodecConfig())
    codec, number, body = compressor.compress(bytes(size))
    assert compressor.decompress(codec, number, body, size) == bytes(size)


def test_an_intact_row_that_holds_no_text() -> None:
    row = msgspec.msgpack.encode({"position": 1, "namespace": "desk"}).replace(b"desk", b"de\xffk")
    with pytest.raises(tiermem.CorruptionError):
        layout.unpack_cursor(b"k", seal(b"k", row))
    with pytest.raises(tiermem.CorruptionError):
        layout.text(b"\xff")


def test_an_intact_row_of_another_length() -> None:
    for unpack in (layout.unpack_floor, layout.unpack_mark):
        with pytest.raises(tiermem.CorruptionError, match="bytes"):
            unpack(b"k", seal(b"k", bytes(5)))
    with pytest.raises(tiermem.CorruptionError):
        layout.segment_number(b"\0\0\0\1")


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (wish("a/b", 16) + wish("n", 4096), [("a/b", 16), ("n", 4096)]),
        (wish("a", 16) + b"4096 half of a na", [("a", 16)]),
        (b"9" * 5000 + b" n\0" + wish("a", 1), [("a", 1)]),
        (b"\xb2 n\0-1 n\0 n\x005 \0\xff\0", []),
    ],
)
def test_a_wish_that_cannot_be_read_is_left_out(data: bytes, found: list[tuple[str, int]]) -> None:
    assert list(wished(data)) == found


def test_a_key_without_a_checksum_that_is_no_text(tmp_path: Path) -> None:
    """The rows of `unsealed` are empty: nothing but the key itself says that it was damaged."""
    root = tmp_path / "store"
    with tiermem.open(root) as mem:
        mem.put_many("n", keys=[f"key-{n}" for n in range(20)], values=range(20), vectors=[[n, 1.0] for n in range(20)])
        mem.flush()
        with mem._store.cold.read() as snapshot:
            wanted = snapshot.info("n").prefix + b"key-7"
    path = root / "gen-1" / "data.mdb"
    raw = bytearray(path.read_bytes())
    # A node of an empty row: its header says that no bytes follow the key.
    places = [at for at in range(len(raw)) if raw.startswith(wanted, at) and raw[at - 8 : at - 4] == bytes(4)]
    assert places
    for at in places:
        raw[at + 8] = 0xFF
    path.write_bytes(raw)
    with tiermem.open(root) as mem, pytest.raises(tiermem.CorruptionError, match="UTF-8"):
        mem.search_similar("n", [1.0, 1.0])
