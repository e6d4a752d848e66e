"""Space: what is deleted, overwritten or expired is used again, and given back by compaction while others work."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

import tiermem
from tiermem import ColdConfig, Config, Memory, SimulatedClock

CONFIG = Config(cold=ColdConfig(committer="inline", sync_interval=0.001, log_retention=100))


def file_bytes(mem: Memory) -> int:
    """Of the data file, once all is committed and looked after."""
    mem.flush()
    mem._store.committer.upkeep.run()
    mem.flush()
    return mem.stats().cold.file_bytes


def fill(mem: Memory, round_: int, way: str) -> None:
    """400 records of 3 kB, in the place of those of the round before."""
    name = f"r{round_}" if way == "drop" else "n"
    for number in range(400):
        key = f"k{number}" if way in ("overwrite", "drop") else f"{round_}-{number}"
        mem.put(name, key, os.urandom(3_000), ttl=50.0 if way == "expire" else None)
    mem.flush()


@pytest.mark.parametrize("way", ["overwrite", "delete", "expire", "drop"])
def test_a_store_that_is_written_over_and_over_stops_growing(way: str, tmp_path: Path) -> None:
    clock = SimulatedClock(1_000.0)
    with tiermem.open(tmp_path / "store", config=CONFIG, clock=clock) as mem:
        sizes = []
        for round_ in range(8):
            fill(mem, round_, way)
            if way == "delete":
                mem.delete_many("n", prefix=f"{round_}-")
            elif way == "drop":
                mem.drop_namespace(f"r{round_}")
            clock.advance(100.0)
            sizes.append(file_bytes(mem))
        written = 400 * 3_000
        assert sizes[-1] < 4 * written, "of eight times as much"
        assert sizes[-1] <= sizes[3] * 1.1
        assert mem.check().ok


@pytest.mark.parametrize("size", [200, 1_200, 3_000])
def test_compaction_gives_back_what_is_deleted_here_and_there(size: int, tmp_path: Path) -> None:
    with tiermem.open(tmp_path / "store", config=CONFIG) as mem:
        values = {f"k{number:05d}": os.urandom(size) for number in range(3_000)}
        vectors = {key: [float(number % 7 + 1), 1.0] for number, key in enumerate(values)}
        for key, value in values.items():
            mem.put("n", key, value, vector=vectors[key], metadata={"odd": int(key[1:]) % 2})
        mem.compact()
        full = file_bytes(mem)
        gone = {key for key in values if int(key[1:]) % 3}
        assert mem.delete_many("n", keys=gone) == len(gone)
        assert mem.compact() > 0
        assert file_bytes(mem) < 0.45 * full
        kept = {key: value for key, value in values.items() if key not in gone}
        assert {record.key: record.value for record in mem.scan("n")} == kept
        assert all(mem.get_record("n", key).vector.tolist() == vectors[key] for key in kept)
        assert mem.check().ok
        # Where nothing is to be gained pages are copied, with the free ones that the move itself has left.
        assert mem.compact() < 0.05 * full
    with tiermem.open(tmp_path / "store", config=CONFIG) as mem:
        assert mem.check().ok
        assert mem.count("n") == len(kept)


@pytest.mark.parametrize("way", ["delete", "expire", "drop"])
def test_compaction_gives_space_back_under_load(way: str, tmp_path: Path) -> None:
    clock = SimulatedClock(1_000.0)
    with tiermem.open(tmp_path / "store", config=CONFIG, clock=clock) as mem:
        for number in range(50):
            mem.put("kept", f"k{number:02d}", os.urandom(1_000))
        fill(mem, 0, way)
        full = file_bytes(mem)
        if way == "delete":
            assert mem.delete_many("n", prefix="0-") == 400
        elif way == "drop":
            mem.drop_namespace("r0")
        clock.advance(100.0)
        file_bytes(mem)
        ended, written = threading.Event(), [0]

        def write() -> None:
            while not ended.is_set():
                mem.put("load", f"{written[0]:06d}", written[0])
                assert mem.get_record("kept", f"k{written[0] % 50:02d}") is not None
                written[0] += 1

        thread = threading.Thread(target=write)
        thread.start()
        try:
            gained = mem.compact()
        finally:
            ended.set()
            thread.join()
        assert gained > 400 * 3_000 * 0.9
        assert mem.stats().cold.file_bytes < full - 400 * 3_000 * 0.8
        assert [record.value for record in mem.scan("load")] == list(range(written[0]))
        assert mem.count("kept") == 50
        assert mem.check().ok
