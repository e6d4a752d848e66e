"""Stores that earlier versions wrote are read for ever.

Each archive is named by what was new or last in it: `rows-1` has segments whose rows are of format 1.
"""

from __future__ import annotations

import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

import tiermem
from tiermem.tiers.vector import rowfile

ARCHIVES = sorted((Path(__file__).parent / "formats").glob("*.tar.xz"))


def formats_of(root: Path) -> set[int]:
    """Of the rows of all segments."""
    trailers = [path.read_bytes()[-rowfile.TRAILER_BYTES :] for path in (root / "segments").glob("*.rows")]
    return {struct.unpack_from("<8sI", trailer)[1] for trailer in trailers}


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.name.partition(".")[0])
def test_a_store_of_an_earlier_version_is_whole(archive: Path, tmp_path: Path) -> None:
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    root = tmp_path / "store"
    # As whoever made the archive drew them.
    vectors = np.random.default_rng(1).integers(-50, 50, (1200, 4)).astype(np.float32) + np.float32(0.5)
    with tiermem.open(root) as mem:
        for number in range(1200):
            record = mem.get_record("docs", f"d-{number:04d}")
            if number == 7:
                assert record is None
                continue
            assert record is not None
            assert record.value == {"n": number, "text": "x" * (number % 7)}
            assert record.metadata == {"n": number, "kind": "odd" if number % 2 else "even"}
        assert mem.get("plain", "a") == [1, 2.5, None, "s", b"b"]
        assert [record.value for record in mem.latest("ticks", 2)] == [{"px": 1.75}, {"px": 1.5}]
        alive = [number for number in range(1200) if number != 7]
        for query in vectors[:20]:
            scores = vectors[alive] @ query / (np.linalg.norm(vectors[alive], axis=1) * np.linalg.norm(query))
            hits = mem.search_similar("docs", query, k=5, where={"kind": {"$ne": "late"}})
            assert np.allclose([hit.score for hit in hits], np.sort(scores)[::-1][:5], atol=1e-6)
        assert "late" in [hit.key for hit in mem.search_similar("docs", vectors[0] * 2, k=3)]
        # What is derived and of an older format is searched exactly, until it is built anew.
        mem.build_index("docs")
        assert formats_of(root) == {rowfile.FORMAT}
    with tiermem.open(root) as mem:
        assert mem.check().ok
        assert mem.count("docs") == 1200
