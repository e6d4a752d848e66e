"""One table of SQLite, through the module of the standard library."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
from _workload import COLD_ROUND

from microbench.subject import Read, Store

VERSION = sqlite3.sqlite_version


class SqliteTable(Store):
    """Keys and MessagePack in a table without row ids; every put is a transaction, in the write-ahead log."""

    name = "sqlite3"
    setup = "the standard library's, write-ahead log, `synchronous=NORMAL` (`FULL` where a put is fsynced)"
    rows: ClassVar[dict[str, Read]] = {
        "`sqlite3` select + msgspec decode": "one",
        "`sqlite3` select in a list + msgspec decode": "many",
        "`sqlite3` select of a range + msgspec decode": "range",
    }
    kept = "`sqlite3` insert, `synchronous=NORMAL`"
    synced = "`sqlite3` insert, `synchronous=FULL`"

    def __init__(self, path: Path, *, sync: bool = False) -> None:
        self.db = sqlite3.connect(path / "store.db", isolation_level=None)
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute(f"PRAGMA synchronous={'FULL' if sync else 'NORMAL'}")
        self.db.execute("CREATE TABLE records (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")
        self.pack, self.unpack = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode

    def fill(self, items: Iterable[tuple[str, Any]]) -> None:
        self.db.execute("BEGIN")
        self.db.executemany("INSERT INTO records VALUES (?, ?)", ((key, self.pack(value)) for key, value in items))
        self.db.execute("COMMIT")
        self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def reads(self) -> dict[str, Callable[[Any], object]]:
        return dict(zip(self.rows, (self.gets, self.get_many, self.scan), strict=True))

    def gets(self, keys: Sequence[str]) -> None:
        execute, decode = self.db.execute, self.unpack
        for key in keys:
            decode(execute("SELECT value FROM records WHERE key = ?", (key,)).fetchone()[0])

    def get_many(self, keys: Sequence[str]) -> dict[str, Any]:
        decode = self.unpack
        marks = ",".join("?" * len(keys))
        found = self.db.execute(
            f"SELECT key, value FROM records WHERE key IN ({marks})",  # noqa: S608 - nothing but question marks
            keys,
        )
        return {key: decode(row) for key, row in found}

    def scan(self, start: str) -> list[tuple[str, Any]]:
        decode = self.unpack
        found = self.db.execute(
            "SELECT key, value FROM records WHERE key >= ? ORDER BY key LIMIT ?", (start, COLD_ROUND)
        )
        return [(key, decode(row)) for key, row in found]

    def put(self, key: str, value: Any) -> None:
        self.db.execute("INSERT OR REPLACE INTO records VALUES (?, ?)", (key, self.pack(value)))

    def close(self) -> None:
        self.db.close()
