"""What `stats` and `check` return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What `check` looked at and what it found; `ok` if it found nothing wrong."""

    records: int
    vectors: int
    changes: int
    journals: int
    pages_verified: bool
    problems: tuple[str, ...] = ()
    repaired: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """No problem was found."""
        return not self.problems

    def __str__(self) -> str:
        seen = f"{self.records:,} records, {self.vectors:,} vectors, {self.changes:,} changes, {self.journals} journals"
        verdict = "clean" if self.ok else f"{len(self.problems)} problem(s)"
        return "\n".join([f"{verdict}: {seen}", *(f"  {problem}" for problem in self.problems)])


@dataclass(frozen=True, slots=True)
class HotStats:
    """L1 of this process. Hits on free entries run no code and are therefore not counted."""

    policy: str
    entries: int
    bytes: int
    max_bytes: int
    watched_hits: int
    misses: int
    promotions: int
    evictions: int


@dataclass(frozen=True, slots=True)
class VectorStats:
    """L2 of one namespace in this process; zero rows until its first search loads it."""

    dimension: int
    metric: str
    model: str
    vectors: int
    loaded: bool
    rows: int
    tombstones: int
    bytes: int
    segments: int
    tail: int
    vector_backlog: int


@dataclass(frozen=True, slots=True)
class ColdStats:
    """L3: LMDB, its reads as far as this process made them, and the files."""

    entries: int
    rows_read: int
    hits: int
    misses: int
    bytes_used: int
    file_bytes: int
    oldest_reader: int
    dictionaries: int


@dataclass(frozen=True, slots=True)
class WriteStats:
    """The write path: journal, pending table and commits of this process."""

    pending: int
    pending_bytes: int
    journal_bytes: int
    commits: int
    committed: int
    superseded: int
    last_commit_seconds: float
    committer: str


@dataclass(frozen=True, slots=True)
class LogStats:
    """The change log: sequences [first, last], and how far each named cursor is behind."""

    first: int
    last: int
    cursors: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class LatencyStats:
    """How long the calls of one verb took, in seconds; percentiles are at most an eighth too high."""

    calls: int
    p50: float
    p99: float
    p999: float
    p9999: float
    longest: float


@dataclass(frozen=True, slots=True)
class Stats:
    """A picture of the store at one moment; `print` it."""

    path: str
    generation: int
    clients: int
    namespaces: Mapping[str, int]
    hot: HotStats
    vectors: Mapping[str, VectorStats]
    cold: ColdStats
    writes: WriteStats
    log: LogStats
    degraded: tuple[str, ...] = ()
    latency: Mapping[str, LatencyStats] = field(default_factory=dict)

    def __str__(self) -> str:
        hot, cold, writes, log = self.hot, self.cold, self.writes, self.log
        lines = [
            f"tiermem {self.path} (generation {self.generation}, {self.clients} client(s))",
            f"  L1 hot     {hot.entries:>12,} entries  {hot.bytes:>14,} of {hot.max_bytes:,} bytes  "
            f"misses {hot.misses:,}  promotions {hot.promotions:,}  evictions {hot.evictions:,}  ({hot.policy})",
        ]
        for name, part in self.vectors.items():
            lines.append(
                f"  L2 vector  {part.vectors:>12,} in {name}  {part.dimension} × {part.metric}  "
                f"loaded {part.rows:,} rows, {part.bytes:,} bytes, backlog {part.vector_backlog:,}"
            )
        lines += [
            f"  L3 cold    {cold.entries:>12,} records  {cold.bytes_used:>14,} bytes used, file {cold.file_bytes:,}",
            f"  writes     {writes.pending:>12,} pending  {writes.commits:,} commits of {writes.committed:,} "
            f"({writes.committer})",
            f"  log        {log.first:>12,} to {log.last:,}"
            + "".join(f"  {name} behind {lag:,}" for name, lag in log.cursors.items()),
        ]
        lines += [
            f"  {verb:<10} {part.calls:>12,} calls  p50 {part.p50 * 1e6:,.1f} µs  p99 {part.p99 * 1e6:,.1f}  "
            f"p99.9 {part.p999 * 1e6:,.1f}  longest {part.longest * 1e6:,.1f}"
            for verb, part in self.latency.items()
        ]
        lines += [f"  DEGRADED   {part}" for part in self.degraded]
        return "\n".join(lines)
