"""The stores that take the same steps: tiermem, SQLite and raw LMDB, each with records, vectors and expiry."""

from __future__ import annotations

import sqlite3
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Final

import lmdb
import msgspec
import numpy as np
from _workload import disk_bytes
from numpy.typing import NDArray

import tiermem
from tiermem import Item, SimulatedClock

NOW: Final = 1_000_000.0
TTL: Final = 3_600.0
RECORDS: Final = "bench/records"
VECTORS: Final = "bench/vectors"
LOAD: Final = "bench/load"
CHUNK: Final = 10_000
"""Rows in a transaction of a rival, or a call of tiermem."""
PAUSE: Final = 0.001
PATIENCE: Final = 60.0
"""Seconds a call of SQLite waits for a lock."""
Rows = NDArray[np.float32]


class Store(ABC):
    """A store in the directory `root`, at a moment; only the first process to open it makes it."""

    name: ClassVar[str]
    online: ClassVar[bool] = True
    """Whether others may write while it is compacted."""

    def __init__(self, root: Path, now: float = NOW) -> None:
        self.root, self.now = root, now
        self.encode = msgspec.msgpack.Encoder().encode

    @abstractmethod
    def put_records(self, keys: Sequence[str], values: Sequence[Any], expiring: Collection[str] = ()) -> None:
        """Store records, durably by the end; those in `expiring` live for TTL."""

    @abstractmethod
    def put_vectors(self, keys: Sequence[str], rows: Rows) -> None:
        """Store the float32 vectors of shape (n, d), durably by the end."""

    @abstractmethod
    def delete(self, keys: Sequence[str], vectors: Sequence[str]) -> None:
        """Delete records and vectors, durably by the end."""

    @abstractmethod
    def expire(self) -> None:
        """Let TTL pass, and remove what has expired."""

    @abstractmethod
    def compact(self) -> None:
        """Give what is free back to the file system."""

    @abstractmethod
    def put(self, key: str, value: Any) -> None:
        """Store one record beside the others, as a program does that does not wait for the disk."""

    @abstractmethod
    def get(self, key: str) -> Any:
        """One of the records."""

    @abstractmethod
    def close(self) -> None:
        """Leave it."""

    def parts(self) -> dict[str, int]:
        """Bytes on disk by kind of file; `all` is their sum."""
        return {"all": disk_bytes(self.root)}


class Tiermem(Store):
    """The engine with its default configuration, and nothing in L1."""

    name = "tiermem"

    def __init__(self, root: Path, now: float = NOW) -> None:
        super().__init__(root, now)
        self.clock = SimulatedClock(now)
        self.mem = tiermem.open(root, config=tiermem.Config(hot=tiermem.HotConfig(max_bytes=0)), clock=self.clock)

    def put_records(self, keys: Sequence[str], values: Sequence[Any], expiring: Collection[str] = ()) -> None:
        items = (Item(k, v, ttl=TTL if k in expiring else None) for k, v in zip(keys, values, strict=True))
        self.mem.put_many(RECORDS, items)
        self.mem.flush()

    def put_vectors(self, keys: Sequence[str], rows: Rows) -> None:
        self.mem.put_many(VECTORS, keys=keys, values=[None] * len(keys), vectors=rows)
        self.mem.flush()
        self.mem.build_index(VECTORS)

    def delete(self, keys: Sequence[str], vectors: Sequence[str]) -> None:
        self.mem.delete_many(RECORDS, keys)
        self.mem.delete_many(VECTORS, vectors)
        self.mem.flush()

    def expire(self) -> None:
        left = self.mem.stats().namespaces[RECORDS] // 2
        self.now += 2 * TTL
        self.clock.set(self.now)
        while self.mem.stats().namespaces[RECORDS] > left:
            time.sleep(0.01)
        self.mem.flush()

    def compact(self) -> None:
        self.mem.compact()

    def put(self, key: str, value: Any) -> None:
        self.mem.put(LOAD, key, value)

    def get(self, key: str) -> Any:
        return self.mem.get(RECORDS, key)

    def close(self) -> None:
        self.mem.close()

    def parts(self) -> dict[str, int]:
        found = {part: disk_bytes(self.root / part) for part in ("segments", "journals")}
        found["l3"] = sum(disk_bytes(folder) for folder in self.root.glob("gen-*"))
        return super().parts() | found

    def data(self) -> Path:
        """The file of L3."""
        return self.root / f"gen-{self.mem.stats().generation}" / "data.mdb"


class Sqlite(Store):
    """Two tables without row ids in the write-ahead log; an index on expiry; VACUUM, then a checkpoint."""

    name = "sqlite3"

    def __init__(self, root: Path, now: float = NOW) -> None:
        super().__init__(root, now)
        root.mkdir(exist_ok=True)
        self.db = sqlite3.connect(root / "store.db", isolation_level=None, timeout=PATIENCE)
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("PRAGMA synchronous=NORMAL")
        for table in ("records", "vectors", "load"):
            columns = "(key TEXT PRIMARY KEY, value BLOB NOT NULL, expires REAL)"
            self.db.execute(f"CREATE TABLE IF NOT EXISTS {table} {columns} WITHOUT ROWID")
        self.db.execute("CREATE INDEX IF NOT EXISTS expiry ON records (expires) WHERE expires IS NOT NULL")

    def _many(self, statement: str, rows: Iterator[tuple[Any, ...]], count: int) -> None:
        for _ in range(0, count, CHUNK):
            self.db.execute("BEGIN")
            self.db.executemany(statement, (row for _, row in zip(range(CHUNK), rows, strict=False)))
            self.db.execute("COMMIT")
        self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def put_records(self, keys: Sequence[str], values: Sequence[Any], expiring: Collection[str] = ()) -> None:
        rows = (
            (key, self.encode(value), self.now + TTL if key in expiring else None)
            for key, value in zip(keys, values, strict=True)
        )
        self._many("INSERT OR REPLACE INTO records VALUES (?, ?, ?)", rows, len(keys))

    def put_vectors(self, keys: Sequence[str], rows: Rows) -> None:
        pairs = ((key, row.tobytes()) for key, row in zip(keys, rows, strict=True))
        self._many("INSERT OR REPLACE INTO vectors VALUES (?, ?, NULL)", pairs, len(keys))

    def delete(self, keys: Sequence[str], vectors: Sequence[str]) -> None:
        self._many("DELETE FROM records WHERE key = ?", ((key,) for key in keys), len(keys))
        self._many("DELETE FROM vectors WHERE key = ?", ((key,) for key in vectors), len(vectors))

    def expire(self) -> None:
        self.now += 2 * TTL
        self.db.execute("DELETE FROM records WHERE expires <= ?", (self.now,))
        self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def compact(self) -> None:
        self.db.execute("VACUUM")
        # What was vacuumed lies in the log, which can be emptied while nobody reads.
        while self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            time.sleep(PAUSE)

    def put(self, key: str, value: Any) -> None:
        self.db.execute("INSERT OR REPLACE INTO load VALUES (?, ?, NULL)", (key, self.encode(value)))

    def get(self, key: str) -> Any:
        found = self.db.execute("SELECT value FROM records WHERE key = ?", (key,)).fetchone()
        return msgspec.msgpack.decode(found[0])

    def close(self) -> None:
        self.db.close()


class RawLmdb(Store):
    """py-lmdb as it comes, an index by expiry beside it; a compacting copy takes the place of the file."""

    name = "raw py-lmdb"
    online = False

    def __init__(self, root: Path, now: float = NOW) -> None:
        super().__init__(root, now)
        self._open()

    def _open(self) -> None:
        self.env = lmdb.open(str(self.root), map_size=2**34, max_dbs=4)
        self.records, self.vectors = self.env.open_db(b"records"), self.env.open_db(b"vectors")
        self.expiry, self.load = self.env.open_db(b"expiry"), self.env.open_db(b"load")

    def put_records(self, keys: Sequence[str], values: Sequence[Any], expiring: Collection[str] = ()) -> None:
        moment = struct.pack(">d", self.now + TTL)
        for first in range(0, len(keys), CHUNK):
            with self.env.begin(write=True) as txn:
                for key, value in zip(keys[first : first + CHUNK], values[first : first + CHUNK], strict=True):
                    txn.put(key.encode(), self.encode(value), db=self.records)
                    if key in expiring:
                        txn.put(moment + key.encode(), b"", db=self.expiry)

    def put_vectors(self, keys: Sequence[str], rows: Rows) -> None:
        for first in range(0, len(keys), CHUNK):
            with self.env.begin(write=True) as txn:
                for key, row in zip(keys[first : first + CHUNK], rows[first : first + CHUNK], strict=True):
                    txn.put(key.encode(), row.tobytes(), db=self.vectors)

    def delete(self, keys: Sequence[str], vectors: Sequence[str]) -> None:
        for database, gone in ((self.records, keys), (self.vectors, vectors)):
            for first in range(0, len(gone), CHUNK):
                with self.env.begin(write=True, db=database) as txn:
                    for key in gone[first : first + CHUNK]:
                        txn.delete(key.encode())

    def expire(self) -> None:
        self.now += 2 * TTL
        with self.env.begin(write=True) as txn:
            gone = [bytes(key) for key, _ in txn.cursor(self.expiry) if struct.unpack(">d", key[:8])[0] <= self.now]
            for key in gone:
                txn.delete(key, db=self.expiry)
                txn.delete(key[8:], db=self.records)

    def compact(self) -> None:
        fresh = self.root / "fresh"
        fresh.mkdir()
        self.env.copy(str(fresh), compact=True)
        self.env.close()
        (fresh / "data.mdb").replace(self.root / "data.mdb")
        fresh.rmdir()
        self._open()

    def put(self, key: str, value: Any) -> None:
        with self.env.begin(write=True, db=self.load) as txn:
            txn.put(key.encode(), self.encode(value))

    def get(self, key: str) -> Any:
        with self.env.begin(db=self.records) as txn:
            return msgspec.msgpack.decode(txn.get(key.encode()))

    def close(self) -> None:
        with suppress(lmdb.Error):
            self.env.close()


STORES: Final[dict[str, type[Store]]] = {store.name: store for store in (Tiermem, Sqlite, RawLmdb)}
