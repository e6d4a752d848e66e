"""rocksdict: RocksDB."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import msgspec
from _workload import COLD_ROUND

from microbench.subject import Read, Store


class RocksDict(Store):
    """An `Rdict` with its defaults, its log among them; values are MessagePack, which beats the pickles it makes."""

    distribution = "rocksdict"
    name = "rocksdict"
    setup = "`Rdict` with its defaults (each put in its log before it returns), values MessagePack"
    rows: ClassVar[dict[str, Read]] = {
        "`rocksdict.Rdict.get` + msgspec decode": "one",
        "`rocksdict.Rdict.get` of a list + msgspec decode": "many",
        "`rocksdict.Rdict.items` + msgspec decode": "range",
    }
    kept = "`rocksdict.Rdict.put`"
    synced = "`rocksdict.Rdict.put`, `sync`"

    def __init__(self, path: Path, *, sync: bool = False) -> None:
        import rocksdict

        self.db = rocksdict.Rdict(str(path / "store"))
        if sync:
            options = rocksdict.WriteOptions()
            options.sync = True
            self.db.set_write_options(options)
        self.pack, self.unpack = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode

    def fill(self, items: Iterable[tuple[str, Any]]) -> None:
        for key, value in items:
            self.db.put(key, self.pack(value))
        self.db.flush()

    def reads(self) -> dict[str, Callable[[Any], object]]:
        return dict(zip(self.rows, (self.gets, self.get_many, self.scan), strict=True))

    def gets(self, keys: Sequence[str]) -> None:
        read, decode = self.db.get, self.unpack
        for key in keys:
            decode(read(key))

    def get_many(self, keys: Sequence[str]) -> dict[str, Any]:
        decode = self.unpack
        return {key: decode(row) for key, row in zip(keys, self.db.get(keys), strict=True)}

    def scan(self, start: str) -> list[tuple[str, Any]]:
        decode = self.unpack
        return [(key, decode(row)) for key, row in islice(self.db.items(from_key=start), COLD_ROUND)]

    def put(self, key: str, value: Any) -> None:
        self.db.put(key, self.pack(value))

    def close(self) -> None:
        self.db.close()
