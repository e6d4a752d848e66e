"""The graph of a segment: what an engine wrote, with a trailer that says whose it is.

A native loader trusts what it reads: nothing is handed to one that does not match its checksum.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

from xxhash import xxh3_64

from tiermem.errors import CorruptionError, IncompatibleFormatError, TiermemError
from tiermem.protocols import VectorEngine, VectorIndex
from tiermem.tiers.vector.rowfile import RowFile, unreadable

MAGIC: Final = b"TMGRAPH\x01"
FORMAT: Final = 1
_CHUNK: Final = 2**20
# magic, format, bytes of the engine's name, bytes of its graph, checksum of both, segment, seal of its rows
TRAILER: Final = struct.Struct("<8sIIQQQQ")
_CHECKSUM: Final = struct.Struct("<Q")
TRAILER_BYTES: Final = TRAILER.size + _CHECKSUM.size


def seal_graph(path: Path, engine: str, number: int, rows_seal: int) -> None:
    """Append engine name and trailer to the graph an engine wrote to `path`, and sync it."""
    name = engine.encode()
    with path.open("r+b") as file:
        digest = xxh3_64()
        size = 0
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
        digest.update(name)
        trailer = TRAILER.pack(MAGIC, FORMAT, len(name), size, digest.intdigest(), number, rows_seal)
        file.write(name + trailer + _CHECKSUM.pack(xxh3_64(trailer).intdigest()))
        file.flush()
        os.fsync(file.fileno())


def verify_graph(path: Path, rows: RowFile, rows_seal: int) -> str:
    """The name of the engine that wrote the graph in `path`, every byte of which was looked at.

    Raises:
        CorruptionError: it is missing, torn, damaged, or another one.
        IncompatibleFormatError: it is of a newer format.
        StorageError: it cannot be opened or read by this process now.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < TRAILER_BYTES:
                raise CorruptionError(f"segment file {path.name} is {size} bytes long")
            file.seek(size - TRAILER_BYTES)
            raw = file.read(TRAILER.size)
            if _CHECKSUM.unpack(file.read(_CHECKSUM.size))[0] != xxh3_64(raw).intdigest() or raw[:8] != MAGIC:
                raise CorruptionError(f"segment file {path.name} has no valid trailer")
            _, form, named, length, checksum, segment, belongs = TRAILER.unpack(raw)
            if form != FORMAT:
                raise IncompatibleFormatError(f"{path.name}: graph format {form}, this version reads {FORMAT}")
            if segment != rows.number or belongs != rows_seal or length + named + TRAILER_BYTES != size:
                raise CorruptionError(f"segment file {path.name} belongs to other rows, or is of another length")
            file.seek(0)
            digest = xxh3_64()
            left = length
            while left:
                chunk = file.read(min(_CHUNK, left))
                digest.update(chunk)
                left -= len(chunk)
                if not chunk:
                    raise CorruptionError(f"segment file {path.name} ends early")
            name = file.read(named)
            digest.update(name)
            if digest.intdigest() != checksum:
                raise CorruptionError(f"segment file {path.name} fails its checksum")
        return name.decode()
    except OSError as exc:
        raise unreadable(path, exc) from exc
    except UnicodeDecodeError as exc:
        raise CorruptionError(f"segment file {path.name} names no engine") from exc


def load_graph(path: Path, rows: RowFile, rows_seal: int, engine_of: Callable[[str], VectorEngine]) -> VectorIndex:
    """The graph in `path`, verified whole before its engine opens it.

    Raises:
        CorruptionError, IncompatibleFormatError, StorageError: as `verify_graph`, or the engine cannot read it.
        MissingExtra: its engine is not installed.
    """
    engine = engine_of(verify_graph(path, rows, rows_seal))
    try:
        return engine.load(path, rows.dimension, rows.rows, inner_product=rows.about.metric == "dot")
    except TiermemError:
        raise
    except Exception as exc:
        raise CorruptionError(f"segment file {path.name} cannot be opened by {engine.name!r}: {exc}") from exc
