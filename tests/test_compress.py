"""Compression: nothing is lost, nothing grows, and dictionaries stay readable for ever."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiermem.codec.compress import MAX_DICTIONARY_RECORD, MIN_DICTIONARY_RECORD, MIN_GAIN, Compressor
from tiermem.codec.frame import CODEC, DICTIONARY, RAW, VALUE_BYTES, ZSTD, Row
from tiermem.codec.serialize import encode
from tiermem.config import CodecConfig
from tiermem.errors import CorruptionError

CONFIG = CodecConfig(dictionary_bytes=2048, dictionary_samples=64)


def quotes(number: int, seed: int = 1) -> list[bytes]:
    rng = random.Random(seed)
    return [
        encode(
            {
                "symbol": f"SYM{rng.randrange(20)}",
                "price": round(rng.uniform(10, 99), 2),
                "venue": rng.choice(["XNYS", "XNAS", "BATS"]),
                "condition": "regular trade",
                "note": f"filled {rng.randrange(1000)} shares at market",
            }
        )
        for _ in range(number)
    ]


def trained(samples: list[bytes]) -> bytes:
    dictionary = Compressor(CONFIG).train(samples)
    assert dictionary is not None
    return dictionary


@given(value=st.binary(min_size=1, max_size=3000) | st.text(max_size=900).map(str.encode))
def test_what_is_compressed_reads_back(value: bytes) -> None:
    for level in (0, 1, 3, 19):
        side = Compressor(CodecConfig(level=level, min_bytes=0))
        codec, dictionary, body = side.compress(value)
        assert dictionary == 0
        assert codec in (RAW, ZSTD)
        assert len(body) <= len(value)
        assert side.decompress(codec, dictionary, body, len(value)) == value


def test_level_0_compresses_nothing() -> None:
    side = Compressor(CodecConfig(level=0))
    side.add(1, trained(quotes(400)))
    assert side.compress(b"a" * 5000) == (RAW, 0, b"a" * 5000)
    assert side.compress(quotes(1)[0], 1)[0] == RAW
    assert side.train(quotes(400)) is None


def test_short_values_are_left_alone_without_a_dictionary() -> None:
    side = Compressor(CodecConfig(min_bytes=512))
    assert side.compress(b"a" * 511) == (RAW, 0, b"a" * 511)
    codec, dictionary, body = side.compress(b"a" * 512)
    assert (codec, dictionary) == (ZSTD, 0)
    assert len(body) < 60


def test_noise_is_kept_as_it_is() -> None:
    noise = random.Random(1).randbytes(4000)
    assert Compressor(CodecConfig()).compress(noise) == (RAW, 0, noise)


def test_it_must_save_a_tenth() -> None:
    rng = random.Random(2)
    for share in range(0, 40, 2):
        value = rng.randbytes(4000 - share * 25) + bytes(share * 25)
        codec, _, body = Compressor(CodecConfig()).compress(value)
        if codec == ZSTD:
            assert len(body) <= len(value) * MIN_GAIN
        else:
            assert body == value


def test_a_dictionary_helps_records_that_are_alike() -> None:
    dictionary = trained(quotes(400))
    assert len(dictionary) <= CONFIG.dictionary_bytes
    side = Compressor(CONFIG)
    side.add(1, dictionary)
    fresh = quotes(100, seed=2)
    bodies = [side.compress(value, 1) for value in fresh]
    assert {body[:2] for body in bodies} == {(ZSTD, 1)}
    assert sum(len(body) for _, _, body in bodies) < 0.6 * sum(map(len, fresh))
    assert [side.decompress(*body, len(value)) for body, value in zip(bodies, fresh, strict=True)] == fresh


def test_a_dictionary_is_used_for_small_records_only() -> None:
    side = Compressor(CodecConfig(min_bytes=512))
    side.add(1, trained(quotes(400)))
    assert side.compress(b"a" * (MIN_DICTIONARY_RECORD - 1), 1)[0] == RAW
    assert side.compress(b"a" * MIN_DICTIONARY_RECORD, 1)[:2] == (ZSTD, 1)
    assert side.compress(b"a" * MAX_DICTIONARY_RECORD, 1)[:2] == (ZSTD, 1)
    assert side.compress(b"a" * (MAX_DICTIONARY_RECORD + 1), 1)[:2] == (ZSTD, 0)


def test_old_dictionaries_still_decompress() -> None:
    first, second = trained(quotes(400)), trained(quotes(400, seed=9))
    assert first != second
    side = Compressor(CONFIG)
    side.add(1, first)
    value = quotes(1, seed=3)[0]
    old = side.compress(value, 1)
    side.add(2, second)
    new = side.compress(value, 2)
    assert (old[1], new[1]) == (1, 2)
    late = Compressor(CodecConfig(level=0))
    late.add(1, first)
    late.add(2, second)
    assert late.decompress(*old, len(value)) == late.decompress(*new, len(value)) == value
    assert side.decompress(*old, len(value)) == value


def test_which_dictionaries_are_known() -> None:
    side = Compressor(CONFIG)
    assert side.knows(0)
    assert not side.knows(1)
    side.add(1, trained(quotes(400)))
    assert side.knows(1)


def test_an_unknown_dictionary_is_corruption() -> None:
    side = Compressor(CONFIG)
    side.add(1, trained(quotes(400)))
    value = quotes(1)[0]
    codec, dictionary, body = side.compress(value, 1)
    with pytest.raises(CorruptionError, match="dictionary 1"):
        Compressor(CONFIG).decompress(codec, dictionary, body, len(value))
    # The right bytes with the wrong dictionary are no value either.
    other = Compressor(CONFIG)
    other.add(1, trained(quotes(400, seed=5)))
    with pytest.raises(CorruptionError):
        other.decompress(codec, 1, body, len(value))


def test_an_unknown_codec_and_a_wrong_size() -> None:
    side = Compressor(CodecConfig(min_bytes=0))
    value = b"abc" * 100
    codec, dictionary, body = side.compress(value)
    assert codec == ZSTD
    with pytest.raises(CorruptionError, match="codec 7"):
        side.decompress(7, 0, body, len(value))
    for size in (len(value) - 1, len(value) + 1, 1):
        with pytest.raises(CorruptionError):
            side.decompress(codec, dictionary, body, size)
    with pytest.raises(CorruptionError, match="299"):
        side.decompress(RAW, 0, value, 299)
    with pytest.raises(CorruptionError):
        side.decompress(ZSTD, 0, b"no zstd frame", 13)


def compressed(codec: int, dictionary: int, body: bytes, size: int) -> Row:
    """A row with that body, of which nothing else is looked at."""
    header: list[Any] = [None] * 12
    header[CODEC], header[DICTIONARY], header[VALUE_BYTES] = codec, dictionary, size
    return b"key", tuple(header), b"", body


def test_rows_are_decompressed_as_each_of_them_is() -> None:
    side = Compressor(CONFIG)
    side.add(1, trained(quotes(400)))
    values = [*quotes(3, seed=2), b"short", b"plain " * 2000, random.Random(1).randbytes(2000)]
    packed = [side.compress(value, 1) for value in values]
    assert {body[:2] for body in packed} == {(RAW, 0), (ZSTD, 0), (ZSTD, 1)}

    rows = [compressed(*body, len(value)) for body, value in zip(packed, values, strict=True)]
    reader = Compressor(CONFIG)
    with pytest.raises(CorruptionError, match="dictionary 1"):
        reader.decompress_rows(rows)
    reader.add(1, trained(quotes(400)))
    for _ in range(2):
        assert reader.decompress_rows(rows) == values
    codec, dictionary, body = packed[0]
    for wrong in (
        compressed(codec, dictionary, body, 9),
        compressed(codec, dictionary, body[:-1], len(values[0])),
        compressed(7, 0, b"", 0),
        compressed(7, dictionary, body, len(values[0])),
        compressed(RAW, 0, b"short", 4),
    ):
        with pytest.raises(CorruptionError):
            reader.decompress_rows([*rows, wrong])


def test_rows_behind_the_first_that_a_thread_decompresses(monkeypatch: pytest.MonkeyPatch) -> None:
    side = Compressor(CONFIG)
    dictionary = trained(quotes(400))
    side.add(1, dictionary)
    values = quotes(5, seed=2)
    rows = [compressed(*side.compress(value, 1), len(value)) for value in values]
    reader = Compressor(CONFIG)
    reader.add(1, dictionary)
    alone: list[int] = []

    def decompress(codec: int, dictionary: int, body: bytes, size: int) -> Any:
        alone.append(dictionary)
        return Compressor.decompress(reader, codec, dictionary, body, size)

    monkeypatch.setattr(reader, "decompress", decompress)
    assert reader.decompress_rows(rows) == values
    assert alone == [1]
    # A body that expands to another length than its frame says, behind the row for which zstd is loaded.
    body = side.compress(bytes(2**20))[2]
    fresh = Compressor(CONFIG)
    fresh.add(1, dictionary)
    with pytest.raises(CorruptionError, match="is to have"):
        fresh.decompress_rows(
            [compressed(*side.compress(b"plain " * 99), 594), rows[0], compressed(ZSTD, 0, body, len(body))]
        )


def test_training_where_there_is_nothing_to_learn() -> None:
    side = Compressor(CONFIG)
    rng = random.Random(3)
    assert side.train(quotes(7)) is None, "too few"
    assert side.train([b"x" * 60] * 8) is None, "zstd has nothing to go by"
    assert side.train([rng.randbytes(200) for _ in range(300)]) is None, "noise"
    assert Compressor(CodecConfig(dictionary_bytes=0)).train(quotes(400)) is None
    # What zstd compresses well by itself gains nothing from a dictionary.
    assert side.train([bytes(8000) for _ in range(100)]) is None


def test_several_threads_decompress_at_once() -> None:
    side = Compressor(CONFIG)
    side.add(1, trained(quotes(400)))
    values = quotes(200, seed=4)
    bodies = [side.compress(value, 1) for value in values] + [side.compress(value * 20) for value in values]
    wanted = values + [value * 20 for value in values]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda pair: side.decompress(*pair[0], len(pair[1])), zip(bodies, wanted, strict=True)))
    assert found == wanted
