"""py-lmdb as it comes, with MessagePack around it: what tiermem's own L3 stands on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import lmdb
import msgspec
from _workload import COLD_ROUND
from zstandard import ZstdCompressionDict, ZstdCompressor, ZstdDecompressor, train_dictionary

from microbench.subject import Read, Store
from tiermem import CodecConfig


class RawLmdb(Store):
    """One environment, a transaction for each call; no checksum, and keys are bytes before they are asked for."""

    name = "raw py-lmdb"
    setup = "a transaction for each call; where a put is not fsynced, `sync=False`"
    rows: ClassVar[dict[str, Read]] = {
        "raw py-lmdb get + msgspec decode": "one",
        "raw py-lmdb gets in one transaction + msgspec decode": "many",
        "raw py-lmdb getmulti + msgspec decode": "many",
        "raw py-lmdb cursor + msgspec decode": "range",
    }
    kept = "raw py-lmdb put, a transaction each, `sync=False`"
    synced = "raw py-lmdb put, a transaction each"

    def __init__(self, path: Path, *, sync: bool = False) -> None:
        self.env = lmdb.open(str(path), map_size=2**34, sync=sync)
        self.pack: Callable[[Any], bytes] = msgspec.msgpack.Encoder().encode
        self.unpack = msgspec.msgpack.Decoder().decode

    def fill(self, items: Iterable[tuple[str, Any]]) -> None:
        with self.env.begin(write=True) as txn:
            for key, value in items:
                txn.put(key.encode(), self.pack(value))

    def key(self, text: str) -> bytes:
        return text.encode()

    def reads(self) -> dict[str, Callable[[Any], object]]:
        return dict(zip(self.rows, (self.gets, self.gets_at_once, self.getmulti, self.scan), strict=True))

    def gets(self, keys: Sequence[bytes]) -> None:
        env, decode = self.env, self.unpack
        for key in keys:
            with env.begin(buffers=True) as txn:
                decode(txn.get(key))

    def gets_at_once(self, keys: Sequence[bytes]) -> dict[bytes, Any]:
        decode = self.unpack
        with self.env.begin(buffers=True) as txn:
            return {key: decode(txn.get(key)) for key in keys}

    def getmulti(self, keys: Sequence[bytes]) -> dict[bytes, Any]:
        decode = self.unpack
        with self.env.begin(buffers=True) as txn, txn.cursor() as cursor:
            return {bytes(key): decode(row) for key, row in cursor.getmulti(keys)}

    def scan(self, start: bytes) -> list[tuple[bytes, Any]]:
        decode = self.unpack
        with self.env.begin(buffers=True) as txn, txn.cursor() as cursor:
            cursor.set_range(start)
            return [(bytes(key), decode(row)) for key, row in islice(cursor.iternext(), COLD_ROUND)]

    def put(self, key: str, value: Any) -> None:
        with self.env.begin(write=True) as txn:
            txn.put(key.encode(), self.pack(value))

    def close(self) -> None:
        self.env.close()


class RawCompressed(RawLmdb):
    """The same, with values as tiermem stores them by default: zstd with a dictionary, trained on the first of them."""

    name = "raw py-lmdb + zstd"
    setup = "a transaction for each call"
    rows: ClassVar[dict[str, Read]] = {
        "raw py-lmdb get + zstd + msgspec decode": "one",
        "raw py-lmdb getmulti + zstd + msgspec decode": "many",
        "raw py-lmdb cursor + zstd + msgspec decode": "range",
    }
    kept = ""
    synced = ""

    def fill(self, items: Iterable[tuple[str, Any]]) -> None:
        codec, known = CodecConfig(), list(items)
        samples = [self.pack(value) for _, value in known[: codec.dictionary_samples]]
        trained = train_dictionary(codec.dictionary_bytes, samples, level=codec.level).as_bytes()
        dictionary = ZstdCompressionDict(trained)
        pack = self.pack
        squeeze = ZstdCompressor(level=codec.level, dict_data=dictionary, write_dict_id=False).compress
        self.pack = lambda value: squeeze(pack(value))
        self.expand = ZstdDecompressor(dictionary).decompress
        super().fill(known)

    def reads(self) -> dict[str, Callable[[Any], object]]:
        return dict(zip(self.rows, (self.gets, self.getmulti, self.scan), strict=True))

    def gets(self, keys: Sequence[bytes]) -> None:
        env, decode, expand = self.env, self.unpack, self.expand
        for key in keys:
            with env.begin(buffers=True) as txn:
                decode(expand(txn.get(key)))

    def getmulti(self, keys: Sequence[bytes]) -> dict[bytes, Any]:
        decode, expand = self.unpack, self.expand
        with self.env.begin(buffers=True) as txn, txn.cursor() as cursor:
            return {bytes(key): decode(expand(row)) for key, row in cursor.getmulti(keys)}

    def scan(self, start: bytes) -> list[tuple[bytes, Any]]:
        decode, expand = self.unpack, self.expand
        with self.env.begin(buffers=True) as txn, txn.cursor() as cursor:
            cursor.set_range(start)
            return [(bytes(key), decode(expand(row))) for key, row in islice(cursor.iternext(), COLD_ROUND)]
