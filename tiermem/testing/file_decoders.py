"""Decoders of whole files: journals, segments, the control page, `CURRENT`, the pages of `data.mdb`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, cast

import msgspec
import numpy as np

import tiermem
from tiermem.codec.frame import NEVER, seal
from tiermem.codec.operation import PUT, Operation, pack_operations, unpack_operations
from tiermem.codec.serialize import encode_metadata
from tiermem.engine import generations
from tiermem.engine.assistant import wish, wished
from tiermem.engine.handover import Request, pack_request, unpack_request
from tiermem.engine.proposals import Proposal
from tiermem.policy.filters import compile_filter
from tiermem.protocols import VectorEngine
from tiermem.testing.decoders import METADATA, WHERE, Answer, Decoder, checksum, patched
from tiermem.tiers.bells import SLOTS
from tiermem.tiers.cold.pages import Leaf, PageFile
from tiermem.tiers.control import Control
from tiermem.tiers.journal import FRAME_BYTES, HEADER_BYTES, Journal
from tiermem.tiers.vector import graphfile, rowfile

_STORE: Final = bytes(range(16))
_NUMBER: Final = 5
_ROWS: Final = 12
_DIMENSION: Final = 3


def journal(folder: Path) -> Decoder:
    """A journal that has gone round its ring: an altered one gives a beginning of what was written, or an error."""
    path = folder / "000.journal"

    def read(data: bytes) -> Answer:
        path.write_bytes(data)
        file = Journal(path, writable=False)
        try:
            return [unpack_operations(frame.payload) for frame in file.frames(mark, beyond=True)]
        finally:
            file.close()

    made = Journal.create(folder / "made.journal", 4096)
    made.reset(_STORE, 77)
    # Where the oldest frame begins: in a store that is known from L3.
    mark = head = 0
    wanted: list[list[Operation]] = []
    for number in range(60):
        ops = [
            Operation(PUT, 0, "desk/obs", f"k{number}", number + 1, 1.5, 2.5, NEVER, b"", b"", bytes(number % 50))
            for _ in range(1 + number % 3)
        ]
        while not (end := made.append(pack_operations(ops), len(ops))):
            mark = made.applied = next(made.frames(made.applied)).end
            del wanted[0]
        wanted.append(ops)
        head = end
    made.flush()
    raw = made.path.read_bytes()
    made.close()

    def reseal(data: bytes) -> bytes:
        if len(data) < HEADER_BYTES + FRAME_BYTES:
            return data
        data = patched(data, 64, checksum(data[:64]))
        identity = int.from_bytes(data[32:40], "little")
        position, capacity = mark, len(data) - HEADER_BYTES
        while position < head:
            offset = position % capacity
            left = capacity - offset
            at = HEADER_BYTES + offset
            size = int.from_bytes(data[at + 8 : at + 12], "little")
            if left < FRAME_BYTES or size == 0xFFFFFFFF:
                if left >= FRAME_BYTES:
                    data = patched(data, at, checksum(data[at + 8 : at + 16], identity ^ position))
                position += left
            elif size > left - FRAME_BYTES:
                break
            else:
                data = patched(data, at, checksum(data[at + 8 : at + 16 + size], identity ^ position))
                position += (size + FRAME_BYTES + 7) & ~7
        return data

    def beginning(found: Answer, meant: Answer) -> bool:
        return bool(found == meant[: len(found)])

    return Decoder("journal", read, ((raw, wanted),), reseal, agree=beginning)


def rows(folder: Path) -> Decoder:
    """The rows of a segment, all of them read in every way."""
    path = folder / "segment.rows"
    where = compile_filter(WHERE)
    assert where is not None

    def read(data: bytes) -> Answer:
        path.write_bytes(data)
        trailer = data[-rowfile.TRAILER_BYTES : -8]
        # L3 holds the checksum of the trailer that was published.
        seal = int.from_bytes(data[-8:], "little") if checksum(trailer) == data[-8:] else 0
        file = rowfile.RowFile(path, _NUMBER, seal)
        every = np.arange(file.rows)
        found = file.found([(0.5, row) for row in range(file.rows)])
        places = file.find([one.key for one in found]).tolist()
        matching = file.columns.bits(where.node).tolist()
        vectors = file.take(every).tolist()
        assert file.span(0, file.rows).tolist() == vectors or np.isnan(vectors).any()
        return found, places, matching, vectors, file.expires.tolist(), file.squares.tolist(), file.about.metric

    samples = []
    for metric, count in (("cosine", _ROWS), ("dot", 1)):
        made = folder / "made.rows"
        vectors = np.arange(count * _DIMENSION, dtype=np.float32).reshape(count, _DIMENSION)
        metadata = [encode_metadata({**METADATA, "n": number}) if number % 3 else b"" for number in range(count)]
        times = np.arange(count, dtype=np.float64)
        place = rowfile.Place(
            [f"k{number}" for number in range(count)], metadata, np.arange(1, count + 1, dtype=np.uint64), times, times
        )
        rowfile.write_rows(made, _NUMBER, _DIMENSION, metric, place, [vectors])
        raw = made.read_bytes()
        samples.append((raw, read(raw)))
        assert samples[-1][1][3] == vectors.tolist()
        assert [one.metadata for one in samples[-1][1][0]] == metadata
    return Decoder("rows of a segment", read, tuple(samples), _resealed_rows)


def _resealed_rows(data: bytes) -> bytes:
    start = len(data) - rowfile.TRAILER_BYTES
    if start < 0:
        return data
    trailer = list(rowfile.TRAILER.unpack_from(data, start))
    where, length = trailer[2], trailer[3]
    try:
        about = msgspec.msgpack.decode(data[where : where + length], type=rowfile.Directory)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        listed = data[where : where + length]
    else:
        for name, (offset, size, _) in about.sections.items():
            if name == "vectors" or not 0 <= offset <= offset + size <= len(data):
                continue
            part = data[offset : offset + size]
            if name == "sums":
                width = about.dimension * 4
                sums = [checksum(data[row * width : row * width + width]) for row in range(min(about.rows, size // 8))]
                part = b"".join(sums).ljust(size, b"\0")[:size]
                data = patched(data, offset, part)
            about.sections[name] = (offset, size, int.from_bytes(checksum(part), "little"))
        listed = msgspec.msgpack.encode(about)
        if len(listed) != length:
            # Checksums are of different lengths as MessagePack: what lies behind moves.
            data = data[:where] + listed + data[start:]
            trailer[3] = len(listed)
            trailer[6] = len(data)
            start = len(data) - rowfile.TRAILER_BYTES
        else:
            data = patched(data, where, listed)
    trailer[4] = int.from_bytes(checksum(listed), "little")
    packed = rowfile.TRAILER.pack(*trailer)
    return data[:start] + packed + checksum(packed)


class _Reader:
    """An engine that opens anything: what a real one is handed has passed the checksum."""

    def __init__(self, name: str) -> None:
        self.name = name

    def load(self, path: Path, dimension: int, rows: int, *, inner_product: bool = False) -> str:
        return self.name


class _RowsOfGraph:
    """What a graph needs to know of its rows."""

    number = _NUMBER
    rows = _ROWS
    dimension = _DIMENSION

    class about:  # noqa: N801 - an attribute
        metric = "cosine"


def graph(folder: Path) -> Decoder:
    """A graph's trailer and checksum; what an engine wrote is handed on."""
    path = folder / "segment.graph"

    def read(data: bytes) -> Answer:
        path.write_bytes(data)
        return graphfile.load_graph(
            path, cast("rowfile.RowFile", _RowsOfGraph()), 99, lambda name: cast("VectorEngine", _Reader(name))
        )

    def reseal(data: bytes) -> bytes:
        start = len(data) - graphfile.TRAILER_BYTES
        if start < 0:
            return data
        trailer = list(graphfile.TRAILER.unpack_from(data, start))
        trailer[4] = int.from_bytes(checksum(data[:start]), "little")
        packed = graphfile.TRAILER.pack(*trailer)
        return data[:start] + packed + checksum(packed)

    made = folder / "made.graph"
    made.write_bytes(bytes(range(200)))
    graphfile.seal_graph(made, "faiss/hnsw_sq8", _NUMBER, 99)
    return Decoder("graph of a segment", read, ((made.read_bytes(), "faiss/hnsw_sq8"),), reseal)


def current(folder: Path) -> Decoder:
    """`CURRENT`: without a checksum, so that a changed number is another generation, which is then not there."""

    def read(data: bytes) -> Answer:
        (folder / "CURRENT").write_bytes(data)
        return generations.current(folder)

    samples = tuple((f"tiermem store 1\ngen-{number}\n".encode(), number) for number in (1, 12345))
    return Decoder("CURRENT", read, samples, exact=False)


def wishes(folder: Path) -> Decoder:
    """What clients ask of the helper: without a checksum, and never an error, since one would end the helper."""
    data = wish("desk/obs", 4096) + wish("notes", 16)
    return Decoder(
        "wishes", lambda data: list(wished(data)), ((data, [("desk/obs", 4096), ("notes", 16)]),), exact=False
    )


def requests(folder: Path) -> Decoder:
    """What clients ask of the helper: what is not whole is none, and never an error, since one would end the helper."""
    write = Operation(PUT, 0, "desk/obs", "k", 1, 1.5, 2.5, NEVER, b"", b"", b"value")
    proposal = Proposal(2.5, "cosine", [write], [("desk/obs", "k", 7, False), ("locks", "l", 8, True)], ["ttl"])
    whole = [Request(5, proposal), Request(6, None)]

    def reseal(data: bytes) -> bytes:
        return seal(b"request", data[8:])

    samples = tuple((pack_request(one), one) for one in whole)
    return Decoder("requests", unpack_request, samples, reseal, agree=lambda found, meant: found in (None, meant))


def control(folder: Path) -> Decoder:
    """The control page: whatever is in it, it does no more harm than to send somebody to look."""
    root = folder / "controlled"
    (root / "clients").mkdir(parents=True)
    path = root / "control"

    def read(data: bytes) -> Answer:
        path.write_bytes(data)
        page = Control(root)
        try:
            slot = page.claim()
            page.tell(slot, 1, 2, 3, 4, 5)
            page.call_helper()
            page.publish_time(1.5)
            page.even(page.counter)
            page.publish(page.announced, page.generation & 0xFFFF)
            page.wait(page.counter, 0.0)
            assert page.live() == [slot]
            assert page.lowest_time() == 1.5
            assert 0 <= slot < SLOTS
            return page.progress
        finally:
            page.close()

    made = Control(root)
    made.publish(7, 1)
    made.close()
    raw = path.read_bytes()
    return Decoder("control page", read, ((raw, read(raw)),), exact=False)


def pages(folder: Path) -> Decoder:
    """The pages of `data.mdb` as salvage reads them: by itself, with nothing mapped."""
    path = folder / "data.mdb"

    def read(data: bytes) -> Answer:
        path.write_bytes(data)
        with PageFile(path) as file:
            wrong = file.contradiction()
            found: list[tuple[str, bytes, bytes]] = []
            for meta in file.metas:
                file.free_pages(meta)
                for name, tree in file.databases(file.page(meta.main.root)).items():
                    found += [
                        (name, key, row)
                        for _, raw, what in (() if tree.empty else file.walk(tree.root))
                        if isinstance(what, Leaf)
                        for key, row, _ in file.rows(raw)
                    ]
            return file.foreign, wrong, len(file.metas) == 2 and file.leads_further(), found

    store = folder / "paged"
    with tiermem.open(store) as mem:
        for number in range(40):
            mem.put("desk/obs", f"k{number:02d}", {"n": number, "text": "x" * 100}, metadata={"n": number})
        mem.put("desk/obs", "large", bytes(range(256)) * 40)
        mem.flush()
        mem.delete("desk/obs", "k03")
    raw = (store / "gen-1" / "data.mdb").read_bytes()
    answer = read(raw)
    assert answer[:3] == (False, "", False)
    assert sum(name == "records" for name, _, _ in answer[3]) >= 40
    return Decoder("pages of data.mdb", read, ((raw, answer),), exact=False)


def file_decoders(folder: Path) -> Iterator[Decoder]:
    """All of them; `folder` is where they keep the bytes they read."""
    makers: tuple[Callable[[Path], Decoder], ...] = (journal, rows, graph, current, wishes, requests, control, pages)
    for maker in makers:
        place = folder / maker.__name__
        place.mkdir()
        yield maker(place)
