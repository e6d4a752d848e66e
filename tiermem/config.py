"""Configuration: frozen dataclasses whose defaults are documented where they stand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

from tiermem.errors import InvalidArgument
from tiermem.protocols import EvictionPolicy, VectorEngine

Metric = Literal["cosine", "dot", "euclidean"]
METRICS: tuple[str, ...] = ("cosine", "dot", "euclidean")
IndexType = Literal["hnsw_sq8", "hnsw", "flat", "ivf", "ivfpq"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InvalidArgument(message)


def _require_int(owner: object, **least: int) -> None:
    for name, low in least.items():
        value = getattr(owner, name)
        _require(
            isinstance(value, int) and not isinstance(value, bool) and low <= value <= _LARGEST,
            f"{type(owner).__name__}.{name} must be an int ≥ {low}, not {value!r}",
        )


_LARGEST = 2**47
"""Bytes of address space a process has; no count here is larger."""


@dataclass(frozen=True, slots=True)
class HotConfig:
    """L1, the hot tier of this process.

    max_bytes: budget for decoded values over all namespaces (estimated, 256 MiB).
    policy: what makes an `EvictionPolicy` from a budget; None is the measured default.
    """

    max_bytes: int = 256 * 2**20
    policy: Callable[[int], EvictionPolicy] | None = None

    def __post_init__(self) -> None:
        _require_int(self, max_bytes=0)
        _require(
            self.policy is None or callable(self.policy), "HotConfig.policy makes a policy from a budget, or is None"
        )


@dataclass(frozen=True, slots=True)
class VectorConfig:
    """L2, the vector tier.

    engine: what builds the graphs of segments: "faiss", "hnswlib" (extra `tiermem[hnswlib]`) or a
        `VectorEngine`. Graphs built before by a shipped engine stay in use.
    index: the type of index faiss builds: "hnsw_sq8" (a graph over 8-bit codes, mapped), "hnsw" (over
        float32), "flat", "ivf" or "ivfpq".
    m: links of a row in an HNSW graph (16). ef_construction: breadth of the search for them (128; half of it
        for segments of fewer than 32,768 rows, made in the background 131,072, which are soon merged).
    metric: the metric of namespaces whose first vector arrives without `create_namespace`.
    seal_rows: vectors gathered in the tail, which is compared row by row, before they are sealed (2048).
    """

    engine: Literal["faiss", "hnswlib"] | VectorEngine = "faiss"
    index: IndexType = "hnsw_sq8"
    m: int = 16
    ef_construction: int = 128
    metric: Metric = "cosine"
    seal_rows: int = 2048

    def __post_init__(self) -> None:
        _require(self.metric in METRICS, f"VectorConfig.metric must be one of {METRICS}, not {self.metric!r}")
        shipped = self.engine in ("faiss", "hnswlib") if isinstance(self.engine, str) else False
        own = not isinstance(self.engine, (str, type)) and all(
            hasattr(self.engine, name) for name in ("name", "build", "load")
        )
        _require(shipped or own, f'VectorConfig.engine is "faiss", "hnswlib" or a VectorEngine, not {self.engine!r}')
        _require(self.index in get_args(IndexType), f"VectorConfig.index must be one of {get_args(IndexType)}")
        _require_int(self, m=2, ef_construction=8, seal_rows=16)


@dataclass(frozen=True, slots=True)
class ColdConfig:
    """L3, the journal and the change log.

    map_size: largest size of the LMDB file in bytes; address space, not disk (256 GiB).
    sync_interval: seconds a write may wait before the committer makes it durable (0.05).
    share_interval: the same while other clients have the store open, if it is less: they wait to see it (0.002).
    committer: "inline" commits in the writing thread, "thread" in a background thread, "helper" in a process
        that all clients of the store share; "auto" is a thread until that falls behind, or has committed beside
        other clients for a second, then the helper.
    realtime: the helper commits at real-time priority (SCHED_FIFO 1): others see a write within milliseconds
        although loops spin on every core. None: where the user may do that, and while it is not far behind; True:
        always, and `stats()` says so where the user may not; False: never. Whoever starts the helper decides (None).
    journal_bytes: size of this process's journal, which bounds what may be pending (16 MiB).
    log_retention: changes kept in the change log behind the newest (250,000).
    max_readers: most simultaneous read transactions over all processes; an opening may raise it (1022).
    """

    map_size: int = 256 * 2**30
    sync_interval: float = 0.05
    share_interval: float = 0.002
    committer: Literal["auto", "inline", "thread", "helper"] = "auto"
    realtime: bool | None = None
    journal_bytes: int = 16 * 2**20
    log_retention: int = 250_000
    max_readers: int = 1022

    def __post_init__(self) -> None:
        _require_int(self, map_size=2**20, journal_bytes=2**16, log_retention=0, max_readers=1)
        for name in ("sync_interval", "share_interval"):
            interval = getattr(self, name)
            known = isinstance(interval, (int, float)) and not isinstance(interval, bool)
            _require(known and 0 < interval <= 60, f"ColdConfig.{name} must lie in (0, 60] seconds, not {interval!r}")
        _require(self.committer in ("auto", "inline", "thread", "helper"), f"no committer {self.committer!r}")
        _require(
            self.realtime is None or isinstance(self.realtime, bool),
            f"ColdConfig.realtime is a bool or None, not {self.realtime!r}",
        )
        _require(self.journal_bytes % 4096 == 0, "ColdConfig.journal_bytes must be a multiple of 4096")
        _require(self.max_readers <= 100_000, "ColdConfig.max_readers must be at most 100000")


@dataclass(frozen=True, slots=True)
class CodecConfig:
    """How records are compressed on their way to L3.

    level: zstd level (1: higher ones make records hardly smaller, and commits slower); 0 turns compression off.
    min_bytes: shortest payload compressed without a dictionary (512).
    dictionary_bytes: size of a trained dictionary (16 KiB); 0 turns training off.
    dictionary_samples: records of a namespace seen before one is trained (500).
    """

    level: int = 1
    min_bytes: int = 512
    dictionary_bytes: int = 16 * 2**10
    dictionary_samples: int = 500

    def __post_init__(self) -> None:
        _require_int(self, level=0, min_bytes=0, dictionary_bytes=0, dictionary_samples=16)
        _require(self.level <= 19, "CodecConfig.level must lie in [0, 19]")
        _require(
            self.dictionary_bytes == 0 or self.dictionary_bytes >= 256,
            "CodecConfig.dictionary_bytes: a dictionary has at least 256 bytes",
        )


@dataclass(frozen=True, slots=True)
class Config:
    """Everything `tiermem.open` can be told.

    time_domain: None keeps the store's; "real" or "simulated" converts it to the clock's.
    histograms: keep a latency histogram of each verb, for `stats().latency`; every call then reads the
        clock twice (False).
    """

    hot: HotConfig = field(default_factory=HotConfig)
    vector: VectorConfig = field(default_factory=VectorConfig)
    cold: ColdConfig = field(default_factory=ColdConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)
    time_domain: Literal["real", "simulated"] | None = None
    histograms: bool = False

    def __post_init__(self) -> None:
        for name, kind in (("hot", HotConfig), ("vector", VectorConfig), ("cold", ColdConfig), ("codec", CodecConfig)):
            _require(isinstance(getattr(self, name), kind), f"Config.{name} is a {kind.__name__}")
        _require(self.time_domain in (None, "real", "simulated"), f"no time domain {self.time_domain!r}")
        _require(isinstance(self.histograms, bool), f"Config.histograms is a bool, not {self.histograms!r}")
