"""What the benchmarks share: seeded data, series of timings, and a description of the machine."""

from __future__ import annotations

import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

import tiermem

SEED = 7
EXPONENT = 1.0
RECORD_BYTES = 256
HOT_ROUND = 10_000
COLD_ROUND = 1_000
K = 10
DIMENSION = 384
OURS = ("faiss-cpu", "lmdb", "msgspec", "numpy", "xxhash", "zstandard")
WORDS = ("fill", "partial", "order", "routed", "venue", "desk", "limit", "market", "hedge", "delta", "price", "size")


def zipf(keys: Sequence[str], count: int) -> list[str]:
    """Independent requests, the i-th key with probability ∝ i^-s; the same objects as in `keys`."""
    weights = list(accumulate(rank**-EXPONENT for rank in range(1, len(keys) + 1)))
    return random.Random(SEED).choices(keys, cum_weights=weights, k=count)


def uniform(keys: Sequence[str], count: int) -> list[str]:
    """Independent requests, every key equally likely."""
    return random.Random(SEED).choices(keys, k=count)


def key_names(count: int) -> list[str]:
    """Distinct keys, in their order."""
    return [f"instrument-{number:08d}" for number in range(count)]


def tick(number: int) -> dict[str, Any]:
    """A row of a stream: 101 bytes of MessagePack."""
    mid = 48 + number % 4001 / 1000
    return {
        "symbol": "AIG",
        "venue": "XNYS",
        "bid": mid - 0.005,
        "ask": mid + 0.005,
        "bid_size": number % 997 + 256,
        "ask_size": number % 1009 + 256,
        "last": mid,
        "sequence": 2**20 + number,
    }


def record(number: int) -> dict[str, Any]:
    """A record of RECORD_BYTES bytes of MessagePack; its last field is text that fills it up."""
    choose = random.Random(SEED + number)
    fields: dict[str, Any] = {
        "order": 10_000_000 + number,
        "symbol": choose.choice(("AIG", "ALL", "CB", "MET", "PGR", "PRU", "TRV")),
        "side": choose.choice(("buy", "sell")),
        "price": round(choose.uniform(20, 200), 2),
        "quantity": choose.randrange(256, 60_000),
        "venue": choose.choice(("XNYS", "XNAS", "ARCX", "BATS")),
        "trader": f"desk-{choose.randrange(40):02d}",
        "sent": 1.75e9 + number / 7,
        "filled": choose.random() < 0.8,
        "tags": choose.sample(WORDS, 2),
        "note": "",
    }
    room = RECORD_BYTES - len(msgspec.msgpack.encode(fields)) - 1
    text = " ".join(choose.choices(WORDS, k=room // 3))
    fields["note"] = text[:room].ljust(room, ".")
    return fields


def unit_vectors(rows: int, seed: int = SEED) -> NDArray[np.float32]:
    """Float32 unit vectors of shape (rows, DIMENSION): 32 latent factors and some noise."""
    rng = np.random.default_rng(seed)
    factors = np.random.default_rng(SEED).standard_normal((32, DIMENSION))
    matrix = rng.standard_normal((rows, 32)) @ factors + 0.15 * 32**0.5 * rng.standard_normal((rows, DIMENSION))
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    return np.ascontiguousarray(matrix, np.float32)


def percentile(samples: Sequence[float], share: float) -> float | None:
    """The nearest-rank percentile, or None where fewer than five samples lie above it."""
    if share > 0.5 and len(samples) * (1 - share) < 4.999:
        return None
    ordered = sorted(samples)
    return float(ordered[min(len(ordered) - 1, int(share * len(ordered)))])


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as long one subject takes as another.

    `turns` has one ratio, of medians, for each turn; `best` compares the fastest samples.
    """

    turns: list[float]
    best: float

    @property
    def middle(self) -> float:
        """The median over the turns."""
        return statistics.median(self.turns)

    def __str__(self) -> str:
        return f"{self.middle:.2f}"


@dataclass(frozen=True, slots=True)
class Series:
    """Nanoseconds per call of one subject, a list for each turn."""

    name: str
    turns: list[list[float]]

    @property
    def samples(self) -> list[float]:
        """Those of all turns."""
        return [sample for turn in self.turns for sample in turn]

    @property
    def medians(self) -> list[float]:
        """One number for each turn."""
        return [statistics.median(turn) for turn in self.turns]

    @property
    def median(self) -> float:
        """Of the medians of the turns."""
        return statistics.median(self.medians)

    @property
    def best(self) -> float:
        """The fastest sample."""
        return min(self.samples)

    def over(self, other: Series, less: Series | None = None) -> Ratio:
        """This subject's time over the other's, turn by turn; `less` is taken off both first."""
        costs = [0.0] * len(self.turns) if less is None else less.medians
        each = [(a - c) / (b - c) for a, b, c in zip(self.medians, other.medians, costs, strict=True)]
        cost = 0.0 if less is None else less.best
        return Ratio(each, (self.best - cost) / (other.best - cost))

    def summary(self) -> dict[str, Any]:
        """What is kept of the series."""
        samples = self.samples
        return {
            "samples": len(samples),
            "turn_medians": self.medians,
            "best": self.best,
            "p50": percentile(samples, 0.5),
            "p99": percentile(samples, 0.99),
            "p99.9": percentile(samples, 0.999),
            "max": max(samples),
        }


def settle(limit: float = 5.0) -> None:
    """Wait until the threads of this process have gone quiet."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        before = time.process_time()
        time.sleep(0.05)
        if time.process_time() - before < 0.002:
            return


@contextmanager
def directory(place: str | None = None) -> Iterator[Path]:
    """A directory for the stores of a benchmark, in `place` if that is given, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="tiermem-bench-", dir=place, ignore_cleanup_errors=True) as name:
        yield Path(name)


def compiling() -> dict[str, str]:
    """The environment of an interpreter that compiles a module once, as where the package was installed."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def installed(name: str) -> str | None:
    """The version of a distribution, None if it is not there."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def versions(*more: str) -> dict[str, str]:
    """Of Python, tiermem, what it stands on, and more distributions: those that are there."""
    known = {name: installed(name) for name in (*OURS, *more)}
    python = f"{platform.python_implementation()} {platform.python_version()}"
    first = {"tiermem": tiermem.__version__, "python": python}
    return first | {name: found for name, found in known.items() if found is not None}


def machine() -> dict[str, Any]:
    """Where the numbers come from: processor, cores, memory, system, file system of the stores, load."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": platform.system(),
        "file_system": file_system(Path(tempfile.gettempdir())),
        "load": round(os.getloadavg()[0], 2),
    }


def file_system(path: Path) -> str:
    """The type of the file system that holds `path`."""
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return "unknown"
    place = path.resolve()
    rows = [line.split() for line in mounts.read_text().splitlines()]
    holding = [(len(row[1]), row[2]) for row in rows if place.is_relative_to(row[1])]
    # Of several mounts on one point the last hides the others.
    return max(reversed(holding), key=lambda found: found[0])[1] if holding else "unknown"


def resident() -> dict[str, float]:
    """Resident MiB of this process: in all, its own (`anonymous`), and mapped files (`file`)."""
    names = {"VmRSS": "all", "RssAnon": "anonymous", "RssFile": "file"}
    rows = (line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {names[name]: int(value.split()[0]) / 1024 for name, value in rows if name in names}


def disk_bytes(root: Path) -> int:
    """Bytes that the files under `root` take on disk."""
    return sum(path.stat().st_blocks * 512 for path in root.rglob("*") if path.is_file())
