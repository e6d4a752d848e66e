"""Compression of values: zstd, with trained dictionaries where records are small and alike."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

from tiermem.codec.frame import CODEC, DICTIONARY, RAW, VALUE_BYTES, ZSTD, Row
from tiermem.config import CodecConfig
from tiermem.errors import CorruptionError

if TYPE_CHECKING:
    from zstandard import ZstdCompressor

Body = TypeVar("Body", bound=bytes | memoryview)

MAX_DICTIONARY_RECORD: Final = 8192
"""Longer values gain little from a dictionary of 16 KiB."""
MIN_DICTIONARY_RECORD: Final = 48
_DENSEST: Final = 15
"""No zstd frame expands to more than 2 ** 15 times its size: a block of four bytes stands for at most 128 KiB."""
MIN_GAIN: Final = 0.9
"""A dictionary is kept if it brings held-out samples to this share of their size, or below."""


class _Own(threading.local):
    """The decompressors of a thread, by dictionary: one is not thread-safe, and costs 10 µs to make."""

    def __init__(self) -> None:
        self.decompressors: dict[int, Callable[[bytes | memoryview], bytes]] = {}


class Compressor:
    """Compresses and decompresses values; knows every dictionary it was given, by number.

    Not safe for concurrent compression: the committer is its only writer. Decompression may run in
    several threads.
    """

    def __init__(self, config: CodecConfig) -> None:
        self.config = config
        self._compressors: dict[int, ZstdCompressor] = {}
        self._dictionaries: dict[int, bytes] = {}
        self._own = _Own()
        # Joined by zstd's own error once that is imported; an unknown dictionary is a KeyError.
        self._faults: tuple[type[Exception], ...] = (KeyError,)
        self._size_of: Callable[[bytes | memoryview], int] = len

    def add(self, number: int, dictionary: bytes) -> None:
        """Make dictionary `number` known; numbers start at 1 and are never given twice."""
        self._dictionaries[number] = dictionary

    def knows(self, number: int) -> bool:
        """True for 0 (no dictionary) and for every number added."""
        return number == 0 or number in self._dictionaries

    def compress(self, value: bytes, dictionary: int = 0) -> tuple[int, int, bytes]:
        """(codec, dictionary, body): compressed where that saves at least a tenth, else as it was.

        Where the dictionary is not known, as when its row is damaged, it does without.
        """
        size = len(value)
        if self.config.level == 0:
            return RAW, 0, value
        if dictionary in self._dictionaries and MIN_DICTIONARY_RECORD <= size <= MAX_DICTIONARY_RECORD:
            body = self._compressor(dictionary).compress(value)
        elif size >= self.config.min_bytes:
            dictionary = 0
            body = self._compressor(0).compress(value)
        else:
            return RAW, 0, value
        return (ZSTD, dictionary, body) if len(body) <= size * MIN_GAIN else (RAW, 0, value)

    def decompress(self, codec: int, dictionary: int, body: Body, size: int) -> bytes | Body:
        """The value behind `body`, which must come to `size` bytes.

        Raises:
            CorruptionError: unknown codec or dictionary, or bytes that do not decompress to `size`.
        """
        if codec == ZSTD:
            own = self._own.decompressors
            try:
                expand = own[dictionary] if dictionary in own else self._decompressor(dictionary)
                # zstd makes room for as much as the body says, before it looks at the rest of it.
                if self._size_of(body) == size <= len(body) << _DENSEST:
                    return expand(body)
            except self._faults as exc:
                raise CorruptionError(f"value cannot be decompressed (dictionary {dictionary}): {exc}") from exc
            raise CorruptionError(f"value is to have {size} bytes, and {len(body)} say otherwise")
        if codec != RAW:
            raise CorruptionError(f"unknown codec {codec}")
        if len(body) != size:
            raise CorruptionError(f"value has {len(body)} bytes where its frame says {size}")
        return body

    def decompress_rows(self, rows: Iterable[Row]) -> list[bytes | memoryview]:
        """`decompress` for each of `rows`.

        One after the other they find in the processor's caches what zstd reads.
        """
        found: list[bytes | memoryview] = []
        append, own, size_of = found.append, self._own.decompressors, self._size_of
        last, expand = 0, own.get(0)
        for _, header, _, body in rows:
            codec, size = header[CODEC], header[VALUE_BYTES]
            if codec == RAW and len(body) == size:
                append(body)
                continue
            dictionary = header[DICTIONARY]
            if dictionary != last:
                last, expand = dictionary, own.get(dictionary)
            try:
                if codec == ZSTD and expand is not None and size_of(body) == size <= len(body) << _DENSEST:
                    append(expand(body))
                    continue
            except self._faults:
                # `decompress` says what they are.
                pass
            append(self.decompress(codec, dictionary, body, size))
            # The first call for a dictionary in a thread makes its decompressor, and the very first one imports zstd.
            expand, size_of = own.get(dictionary), self._size_of
        return found

    def train(self, samples: Sequence[bytes]) -> bytes | None:
        """A dictionary for values like `samples`, or None where it would not help.

        Trained on three quarters of the samples and judged on the rest.
        """
        from zstandard import ZstdCompressionDict, ZstdCompressor, ZstdError, train_dictionary

        if self.config.dictionary_bytes == 0 or self.config.level == 0 or len(samples) < 8:
            return None
        held = list(samples[::4])
        seen: list[bytes | bytearray | memoryview[int]] = [
            sample for number, sample in enumerate(samples) if number % 4
        ]
        try:
            # zstd refuses samples that are too few or too uniform: then there is nothing to learn.
            trained = train_dictionary(self.config.dictionary_bytes, seen, level=self.config.level).as_bytes()
        except ZstdError:
            return None
        with_it = ZstdCompressor(level=self.config.level, dict_data=ZstdCompressionDict(trained))
        plain = ZstdCompressor(level=self.config.level)
        after = sum(len(with_it.compress(sample)) for sample in held)
        before = sum(min(len(sample), len(plain.compress(sample))) for sample in held)
        return trained if after <= before * MIN_GAIN else None

    def _compressor(self, dictionary: int) -> ZstdCompressor:
        found = self._compressors.get(dictionary)
        if found is None:
            from zstandard import ZstdCompressionDict, ZstdCompressor

            data = ZstdCompressionDict(self._dictionaries[dictionary]) if dictionary else None
            # The record's frame carries a checksum and the dictionary's number; zstd's own would be bytes twice.
            found = ZstdCompressor(
                level=self.config.level,
                dict_data=data,
                write_checksum=False,
                write_content_size=True,
                write_dict_id=False,
            )
            self._compressors[dictionary] = found
        return found

    def _decompressor(self, dictionary: int) -> Callable[[bytes | memoryview], bytes]:
        from zstandard import ZstdCompressionDict, ZstdDecompressor, ZstdError, frame_content_size

        self._faults = (KeyError, ZstdError)
        self._size_of = frame_content_size
        data = ZstdCompressionDict(self._dictionaries[dictionary]) if dictionary else None
        made = self._own.decompressors[dictionary] = ZstdDecompressor(dict_data=data).decompress
        return made
