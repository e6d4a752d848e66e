"""Stores that earlier versions wrote are read for ever.

Each archive is named by what was new or last in it: `rows-1` has segments whose rows are of format 1, `store-1` has the
numbers of 0.1.0. `python -m tests.formats.make NAME` makes the next one, which a new number asks for.
"""

from __future__ import annotations

import json
import struct
import tarfile
from pathlib import Path

import lmdb
import numpy as np
import pytest

import tiermem
from tests.formats import make
from tiermem import SimulatedClock
from tiermem.codec.frame import FRAME_FORMAT
from tiermem.tiers import control, journal
from tiermem.tiers.cold import layout
from tiermem.tiers.cold.pages import Leaf, PageFile
from tiermem.tiers.vector import graphfile, rowfile

FOLDER = Path(__file__).parent / "formats"

LATER = SimulatedClock(make.LATER)


def unpacked(name: str, folder: Path) -> Path:
    """The store in an archive."""
    with tarfile.open(FOLDER / f"{name}.tar.xz") as tar:
        tar.extractall(folder, filter="data")
    return folder / "store"


def formats_of(root: Path) -> dict[str, set[int]]:
    """The numbers that a store bears, read as plain bytes."""

    def numbers(pattern: str, start: int, trailer: int = 0) -> set[int]:
        files = [path.read_bytes() for path in root.glob(pattern)]
        return {struct.unpack_from("<I", data[-trailer:], start)[0] for data in files}

    frames: set[int] = set()
    with PageFile(root / "gen-1" / "data.mdb") as file:
        records = file.databases(file.page(file.metas[-1].main.root))["records"]
        for _, raw, what in file.walk(records.root):
            frames |= {row[8] for _, row, _ in file.rows(raw)} if isinstance(what, Leaf) else set()
    return {
        "store": {int((root / "CURRENT").read_text().split()[2])},
        "record frame": frames,
        "journal": numbers("journals/*", 8),
        "rows": numbers("segments/*.rows", 8, rowfile.TRAILER_BYTES),
        "graph": numbers("segments/*.graph", 8, graphfile.TRAILER_BYTES),
        "control": {(root / "control").read_bytes()[7]},
    }


def test_every_number_has_a_fixture(tmp_path: Path) -> None:
    """One that rises asks for another archive; the one there is stays."""
    held: dict[str, set[int]] = {}
    for path in sorted(FOLDER.glob("*.tar.xz")):
        name = path.name.partition(".")[0]
        assert path.stat().st_size < 200_000
        for what, numbers in formats_of(unpacked(name, tmp_path / name)).items():
            held.setdefault(what, set()).update(numbers)
    newest = {
        "store": layout.STORE_FORMAT,
        "record frame": FRAME_FORMAT,
        "journal": journal.FORMAT,
        "rows": rowfile.FORMAT,
        "graph": graphfile.FORMAT,
        "control": control.MAGIC[7],
    }
    assert held == {what: set(range(1, last + 1)) for what, last in newest.items()}


def test_the_newest_fixture_has_every_kind_of_row(tmp_path: Path) -> None:
    """Every database, every flag of a frame, and each kind of floor, segment, namespace and journal there is."""
    root = unpacked("store-1", tmp_path)
    with lmdb.open(str(root / "gen-1"), readonly=True, lock=False, max_dbs=20) as env, env.begin() as txn:

        def rows(name: str) -> list[tuple[bytes, bytes]]:
            return list(txn.cursor(env.open_db(name.encode(), txn=txn, create=False)))

        assert [name for name in layout.DATABASES if not rows(name)] == []
        frames = [struct.unpack_from("<HI", row, 10) for _, row in rows("records")]
        for flag in (1, 2, 8):
            assert {bool(flags & flag) for flags, _ in frames} == {True, False}, f"flag {flag}"
        assert {bool(dictionary) for _, dictionary in frames} == {True, False}
        floors = [layout.unpack_floor(*row) for row in rows("floors")]
        assert {given != version for version, given in floors} == {True, False}
        segments = [layout.unpack_segment(*row) for row in rows("segments")]
        assert {(bool(segment.dead), segment.graph) for segment in segments} == {(True, True), (False, False)}
        spaces = [layout.unpack_info(*row) for row in rows("namespaces")]
        for name in ("model", "ordered", "dropped", "floor", "dictionary", "unsealed", "epoch", "timed", "made"):
            assert {bool(getattr(space, name)) for space in spaces} == {True, False}, name
        mark, answer = rows("marks")
        _, position, _, _ = layout.unpack_mark(*mark)
        assert layout.unpack_answer(*answer).versions
    (path,) = (root / "journals").iterdir()
    header = path.read_bytes()[: journal.HEADER_BYTES]
    (capacity,), (head,) = struct.unpack_from("<Q", header, 40), struct.unpack_from("=Q", header, 128)
    assert position // capacity + 1 == head // capacity, "what is pending goes over the end of the ring"


@pytest.mark.parametrize("name", ["store-1"])
def test_a_store_says_what_it_was_told(name: str, tmp_path: Path) -> None:
    root = unpacked(name, tmp_path)
    wanted = json.loads((tmp_path / "wanted.json").read_text())

    def agrees(mem: tiermem.Memory) -> None:
        shown = json.loads(json.dumps(make.found(mem)))
        assert shown["records"].keys() == wanted["records"].keys()
        for namespace, records in wanted["records"].items():
            assert shown["records"][namespace] == records, namespace
        assert (shown["vectors"], shown["cursors"]) == (wanted["vectors"], wanted["cursors"])
        for metric in make.METRICS:
            records = wanted["records"][f"docs/{metric}"]
            keys = list(records)
            rows = np.array([records[key][2] for key in keys], np.float32).astype(np.float64)
            for query in rows[:: len(rows) // 10]:
                scores = {
                    "cosine": lambda q, x: x @ q / (np.linalg.norm(x, axis=1) * np.linalg.norm(q)),
                    "dot": lambda q, x: x @ q,
                    "euclidean": lambda q, x: -np.linalg.norm(x - q, axis=1),
                }[metric](query, rows)
                hits = mem.search_similar(f"docs/{metric}", query, k=5)
                assert np.allclose([hit.score for hit in hits], np.sort(scores)[::-1][:5], atol=1e-5)
                odd = np.array([records[key][1].get("odd") is True for key in keys])
                hits = mem.search_similar(f"docs/{metric}", query, k=5, where={"odd": True, "tags": {"$contains": "a"}})
                assert np.allclose([hit.score for hit in hits], np.sort(scores[odd])[::-1][:5], atol=1e-5)

    with tiermem.open(root, clock=LATER, read_only=True) as mem:
        agrees(mem)
    with tiermem.open(root, clock=LATER, verify=True) as mem:
        agrees(mem)
        # From the first change on, what was only journaled included; nothing twice.
        changes = list(mem.changes(after=0))
        assert [change.sequence for change in changes] == list(range(1, len(changes) + 1))
        assert {change.op for change in changes} == {"put", "delete", "expire", "drop"}
        kept = {(change.namespace, change.key): change for change in changes}
        for namespace, records in wanted["records"].items():
            for key, (_, _, _, times) in records.items():
                assert kept[namespace, key].version == times[0]
        assert [change.sequence for change in mem.cursor("risk")] == list(range(6, len(changes) + 1))
        assert all(change.namespace == "orders" for change in mem.cursor("desk", "orders"))
        assert mem.check().ok
        mem.put("orders", "new", {"side": "buy"}, durable=True)
        mem.delete("orders", "new")
        mem.compact()
        agrees(mem)
    with tiermem.open(root, clock=LATER) as mem:
        agrees(mem)
        assert mem.check().ok
        assert formats_of_segments(root) <= {rowfile.FORMAT}


def formats_of_segments(root: Path) -> set[int]:
    """Of the rows of all segments."""
    trailers = [path.read_bytes()[-rowfile.TRAILER_BYTES :] for path in (root / "segments").glob("*.rows")]
    return {struct.unpack_from("<8sI", trailer)[1] for trailer in trailers}


def test_segments_of_an_older_format_are_built_anew(tmp_path: Path) -> None:
    root = unpacked("rows-1", tmp_path)
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
        assert formats_of_segments(root) == {rowfile.FORMAT}
    with tiermem.open(root) as mem:
        assert mem.check().ok
        assert mem.count("docs") == 1200
