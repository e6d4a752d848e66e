"""py-lmdb as it comes, with MessagePack around it: what tiermem's own L3 stands on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import lmdb
import msgspec
from _workload import COLD_ROUND

from microbench.subject import Read, Store


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
        self.pack, self.unpack = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode

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
