"""Makes the fixture of a format: `python -m tests.formats.make NAME` writes `tests/formats/NAME.tar.xz`.

The archive holds a store that a killed client left behind, and `wanted.json`: what whoever opens it must find. Once it
is released it is never made again; a format that changes gets another one, from what this script is by then.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest import mock
from uuid import UUID

import numpy as np

import tiermem
from tiermem import CodecConfig, ColdConfig, Config, Memory, SimulatedClock, VectorConfig
from tiermem.codec.frame import RAW, ZSTD, unpack_frame
from tiermem.tiers.cold import answers
from tiermem.tiers.cold.layout import Answer

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
BEGUN = 1_700_000_000.0
LATER = BEGUN + 1_000.0
"""When the store was made, and when it is read: what lives shorter is gone by then."""
CONFIG = Config(
    vector=VectorConfig(seal_rows=32),
    cold=ColdConfig(committer="inline", sync_interval=60.0, journal_bytes=2**16),
    codec=CodecConfig(dictionary_bytes=1024, dictionary_samples=64),
)
VALUES: dict[str, Any] = {
    "none": None,
    "true": True,
    "int": -(2**63),
    "large int": 2**64 - 1,
    "float": 1.5,
    "infinity": float("inf"),
    "str": "Grüße, 世界",
    "bytes": b"\0\xff",
    "list": [1, [2.5, [None]]],
    "dict": {"a": {"b": []}},
    "datetime": datetime(2026, 2, 3, 4, 5, 6, 7, tzinfo=UTC),
    "date": date(2026, 2, 3),
    "decimal": Decimal("1.50"),
    "uuid": UUID(int=5),
    "array": np.arange(6, dtype="<i2").reshape(2, 3),
    "times": np.array(["2026-02-03T04:05"], "<M8[m]"),
    "compressed": "buy and sell " * 100,
    "incompressible": np.random.default_rng(1).bytes(9_000),
}
METRICS = {"cosine": 1_030, "dot": 40, "euclidean": 40}
STRADDLED = 300
"""Bytes left at the end of the journal's ring when what is only journaled begins."""
UPDATED = slice(100, 140)
"""Rows of the largest index whose vectors are put again: enough for a segment, too few for a merge."""


def plain(value: Any) -> Any:
    """`value` as JSON, with its types."""
    match value:
        case np.ndarray():
            return ["ndarray", value.dtype.str, value.astype(str).tolist()]
        case dict():
            return {name: plain(item) for name, item in value.items()}
        case list():
            return ["list", *map(plain, value)]
        case bool() | None:
            return value
        case _:
            return [type(value).__name__, value.hex() if isinstance(value, bytes) else str(value)]


def found(mem: Memory) -> dict[str, Any]:
    """Everything a reader is shown, as JSON."""
    records = {
        name: {
            record.key: [
                plain(record.value),
                plain(record.metadata),
                None if record.vector is None else record.vector.tolist(),
                [record.version, record.at, record.created_at, record.updated_at, record.expires_at],
            ]
            for record in mem.scan(name)
        }
        for name in mem.namespaces()
    }
    stats = mem.stats()
    vectors = {name: [known.dimension, known.metric] for name, known in stats.vectors.items()}
    cursors = {name: stats.log.last - lag for name, lag in stats.log.cursors.items()}
    return {"records": records, "vectors": vectors, "cursors": cursors}


@contextmanager
def late(mem: Memory) -> Iterator[None]:
    """What is put inside bears versions of long ago, as of a client that another has overtaken, and is committed."""
    with (
        mock.patch("tiermem.engine.store.time_ns", return_value=int(BEGUN) * 10**9),
        mock.patch.object(mem._store, "_last", 0),
    ):
        yield
    mem.flush()


def fill(root: Path) -> None:
    """What is committed."""
    rng = np.random.default_rng(7)
    embedder = tiermem.HashEmbedder(8)
    with tiermem.open(root, config=CONFIG, clock=(clock := SimulatedClock(BEGUN)), embedder=embedder) as mem:
        for key, value in VALUES.items():
            mem.put("values", key, value, at=BEGUN - len(key))
        for number in range(400):
            order = {
                "side": "buy" if number % 3 else "sell",
                "venue": "NYSE",
                "strategy": "mean reversion",
                "n": number,
            }
            mem.put("orders", f"o-{number:04d}", order, metadata={"n": number})
            if number == 200:
                # What comes behind is compressed with the dictionary that is trained now.
                mem.flush()
                mem._store.committer.upkeep.run()
        for metric, count in METRICS.items():
            mem.create_namespace(f"docs/{metric}", dimension=4, metric=metric)
            vectors = rng.integers(-50, 50, (count, 4)) + 0.5
            metadatas: list[dict[str, Any]] = [
                {
                    "n": n,
                    "odd": bool(n % 2),
                    "tags": ["a", str(n % 5)],
                    "when": datetime(2026, 1, 1 + n % 28, tzinfo=UTC),
                }
                for n in range(count)
            ]
            keys = [f"d-{n:03d}" for n in range(count)]
            mem.put_many(f"docs/{metric}", keys=keys, values=range(count), vectors=vectors, metadatas=metadatas)
            mem.build_index(f"docs/{metric}")
            # Tombstones, and vectors that no segment holds yet.
            mem.delete_many(f"docs/{metric}", keys=keys[3:6])
            mem.update(f"docs/{metric}", keys[7], vector=[9.5, 9.5, 9.5, 9.5])
            mem.put(f"docs/{metric}", "late", "late", vector=[1.5, 2.5, 3.5, 4.5], ttl=10_000.0)
        for key in [f"d-{n:03d}" for n in range(METRICS["cosine"])][UPDATED]:
            mem.update("docs/cosine", key, vector=rng.integers(-50, 50, 4) + 0.5)
        mem.flush()
        mem._store.sealer.wake("docs/cosine")
        end = time.monotonic() + 60.0
        while mem.stats().vectors["docs/cosine"].vector_backlog:
            assert time.monotonic() < end, "no segment of what was put again"
            time.sleep(0.01)
        mem.append("seen", "east", at=BEGUN, vector=[1.5, 0.5])
        mem.put("notes", "a", "told in words", text="told in words")
        for number in range(20):
            mem.append("ticks", {"px": 100 + number / 4}, at=BEGUN - 60.0 + number, ttl=5_000.0 if number % 2 else None)
        mem.put("timed", "swept", 1, ttl=10.0)
        mem.put("timed", "gone by then", 1, ttl=500.0)
        mem.put("timed", "there", 1, ttl=5_000.0)
        mem.cursor("risk", start=5).commit()
        mem.cursor("desk", "orders", start=100).commit()
        version = mem.put("decided", "k", 1, if_version=0)
        mem.put("decided", "k", 2, if_version=version)
        mem.put("decided", "overtaken", {"n": 1}, vector=[0.5, 1.5], metadata={"n": 1}, if_version=0)
        mem.put("decided", "overtaken too", "decided" * 100, if_version=0)
        with late(mem):
            mem.put("decided", "overtaken", {"n": 2}, vector=[1.5, 0.5], metadata={"n": 2})
            mem.put("decided", "overtaken too", "late" * 200)
        with mem.batch() as batch:
            batch.put("orders", "o-0000", "in a batch")
            batch.delete("orders", "o-0001")
        mem.put("dropped", "k", 1)
        mem.drop_namespace("dropped")
        mem.put("again", "k", 1)
        mem.drop_namespace("again")
        mem.put("again", "l", 2)
        # As a helper would have kept it, for a client that has left.
        answer = Answer(number=7, versions=[version])
        mem._store.committer.commit(work=lambda writer: answers.keep(writer, 9, answer))
        mem.flush()
        clock.advance(20.0)
        mem._store.committer.upkeep.run()
        with mem._store.cold.read() as snapshot:
            frames = [unpack_frame(key, row) for key, row in snapshot.rows(snapshot.dbs.records)]
            assert {(frame.codec, frame.dictionary > 0) for frame in frames} == {
                (RAW, False),
                (ZSTD, False),
                (ZSTD, True),
            }
            assert {change[2] for _, change in snapshot.log(0)} == {0, 1, 2, 3}
            assert len(snapshot.segment_numbers()) == len(METRICS) + 1
        assert list((root / "segments").glob("*.graph"))


def leave(root: Path) -> None:
    """What upkeep would tidy away, and what is only journaled: the client is killed before any of it is committed."""
    mem = tiermem.open(root, config=CONFIG, clock=SimulatedClock(BEGUN + 30.0))
    mem.put("journaled", "first", 1, durable=True)
    mem._store.committer.upkeep.run = lambda: None
    for key in ("plain", "decided", "overtaken"):
        mem.put("deleted", key, 1)
    mem.put("deleted", "overtaken", 2, if_version=mem.put("deleted", "overtaken", 1, durable=True))
    mem.put("garbage", "k", 1, durable=True)
    mem.drop_namespace("garbage")
    decided = mem.get_record("deleted", "decided")
    assert decided is not None
    mem.delete("deleted", "decided", if_version=decided.version)
    mem.delete("deleted", "plain")
    with late(mem):
        mem.delete("deleted", "overtaken")
    journal = mem._store.journal
    assert journal is not None
    while (left := journal.capacity - journal.head % journal.capacity) > STRADDLED:
        mem.put("journaled", "long", "x" * min(4_000, left - STRADDLED))
    mem.flush()
    lap = journal.head // journal.capacity
    mem.put("journaled", "k", {"px": 48.25}, metadata={"side": "buy"}, ttl=5_000.0)
    mem.put("journaled", "gone", 1)
    mem.delete("journaled", "gone")
    mem.delete("values", "none")
    mem.append("ticks", {"px": 1.0}, at=BEGUN)
    mem.put("docs/cosine", "journaled", "journaled", vector=[-1.5, 0.5, 0.5, 0.5], metadata={"n": -1})
    with mem.batch() as batch:
        batch.put("journaled", "both", 1)
        batch.put("orders", "both", 1)
    assert mem.stats().writes.pending == 7
    assert journal.head // journal.capacity == lap + 1
    print(json.dumps(found(mem)), flush=True)  # noqa: T201 - what the parent reads
    os.kill(os.getpid(), signal.SIGKILL)


def make(name: str) -> Path:
    """Write the archive; its path."""
    target = FOLDER / f"{name}.tar.xz"
    if target.exists():
        raise FileExistsError(f"{target} is released: it is never made again")
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "store"
        fill(root)
        command = [sys.executable, "-m", "tests.formats.make", "--leave", str(root)]
        left = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        assert left.returncode == -signal.SIGKILL
        # As of then, and without what will have expired by the time it is read.
        wanted = json.loads(left.stdout)
        del wanted["records"]["timed"]["gone by then"]
        (Path(place) / "wanted.json").write_text(json.dumps(wanted, indent=1, ensure_ascii=False, sort_keys=True))
        with tarfile.open(target, "w:xz", preset=9) as tar:
            tar.add(root, "store", filter=lambda info: None if info.isfifo() else _anonymous(info))
            tar.add(Path(place) / "wanted.json", "wanted.json", filter=_anonymous)
    return target


def _anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mtime = int(BEGUN)
    return info


if __name__ == "__main__":
    if sys.argv[1] == "--leave":
        leave(Path(sys.argv[2]))
    made = make(sys.argv[1])
    print(f"{made}: {made.stat().st_size:,} bytes")  # noqa: T201 - printing is what a script does
