"""Recorded traces, and made ones."""

from __future__ import annotations

import gzip
import lzma
import random
import struct
from collections.abc import Callable, Hashable, Iterable
from itertools import accumulate
from pathlib import Path

import zstandard
from _workload import SEED

from tiermem.protocols import EntryId

ZIPF_KEYS, ZIPF_EXPONENT = 50_000, 1.0
LOOP_CAPACITY = 1000


def read_oltp(path: Path) -> list[Hashable]:
    """Lines `start count ignore request`: each asks for `count` blocks from `start`."""
    with path.open("rb") as file:
        text = zstandard.ZstdDecompressor().stream_reader(file).read().decode("ascii")
    lines = (line.split() for line in text.splitlines() if line.strip())
    return [block for start, count, *_ in lines for block in range(int(start), int(start) + int(count))]


def read_web(path: Path) -> list[Hashable]:
    """Big-endian 32-bit keys."""
    data = lzma.decompress(path.read_bytes())
    return list(struct.unpack(f">{len(data) // 4}i", data))


def read_keys(path: Path) -> list[Hashable]:
    """One key a line."""
    return list(gzip.decompress(path.read_bytes()).decode("ascii").split())


READERS: dict[str, tuple[str, Callable[[Path], list[Hashable]]]] = {
    "oltp": ("oltp.lis.zst", read_oltp),
    "web12": ("web12.trace.xz", read_web),
    "multi3": ("multi3.trace.gz", read_keys),
    "sprite": ("sprite.trace.gz", read_keys),
}


def zipf(requests: int) -> list[Hashable]:
    """Independent requests, the i-th key with probability ∝ i^-s: a synthetic load, not a recorded one."""
    weights = list(accumulate(rank**-ZIPF_EXPONENT for rank in range(1, ZIPF_KEYS + 1)))
    return list(random.Random(SEED).choices(range(ZIPF_KEYS), cum_weights=weights, k=requests))


def loop_over(length: float, rounds: int) -> list[Hashable]:
    """Distinct keys over and over, `length` times as many as the capacity holds."""
    keys: list[Hashable] = [*range(int(LOOP_CAPACITY * length))]
    return keys * rounds


def entries(keys: Iterable[Hashable]) -> list[EntryId]:
    """The trace as entry ids, one object per distinct key."""
    ids: dict[Hashable, EntryId] = {}
    return [ids.setdefault(key, (0, str(key))) for key in keys]
