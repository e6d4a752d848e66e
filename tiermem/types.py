"""The values that go in and out: records, hits, changes, reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import msgspec

from tiermem.errors import InvalidArgument, InvalidKey, InvalidNamespace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    FloatArray: TypeAlias = NDArray[np.float32]

MAX_KEY_BYTES = 480
MAX_NAMESPACE_BYTES = 255

Scalar: TypeAlias = str | int | float | bool | datetime
Metadata: TypeAlias = Mapping[str, Scalar | Sequence[Scalar]]
Where: TypeAlias = Mapping[str, Any]
Vector: TypeAlias = "Sequence[float] | NDArray[Any]"
Moment: TypeAlias = float | datetime
Duration: TypeAlias = float | timedelta
Progress: TypeAlias = Callable[[int, int], None]
Op = Literal["put", "delete", "expire", "drop"]


class Unset(Enum):
    """The type of `UNSET`: an argument that was left out, where None means something else."""

    UNSET = "UNSET"

    def __repr__(self) -> str:
        return "UNSET"


UNSET = Unset.UNSET


def check_namespace(name: object) -> str:
    """`name`, if it is a namespace: `/`-separated non-empty parts, ≤ 255 UTF-8 bytes.

    Raises:
        InvalidNamespace: it is not; the message says why.
    """
    if not isinstance(name, str):
        raise InvalidNamespace(f"a namespace is a str, not {type(name).__name__}")
    if not name or name[0] == "/" or name[-1] == "/" or "//" in name:
        raise InvalidNamespace(f"namespace {name[:80]!r} has an empty part")
    if "*" in name or "\x00" in name:
        raise InvalidNamespace(f"namespace {name[:80]!r} holds '*' or NUL, which are reserved")
    try:
        size = len(name.encode())
    except UnicodeEncodeError as exc:
        raise InvalidNamespace(f"namespace {name[:80]!r} is not valid Unicode") from exc
    if size > MAX_NAMESPACE_BYTES:
        raise InvalidNamespace(f"namespace of {size} bytes; at most {MAX_NAMESPACE_BYTES}")
    return name


def encode_key(key: object) -> bytes:
    """The UTF-8 bytes of a record key of 1 to 480 bytes.

    Raises:
        InvalidKey: it is no such key; the message says why.
    """
    if not isinstance(key, str):
        raise InvalidKey(f"a key is a str, not {type(key).__name__}")
    try:
        raw = key.encode()
    except UnicodeEncodeError as exc:
        raise InvalidKey(f"key {key[:80]!r} is not valid Unicode") from exc
    if not 0 < len(raw) <= MAX_KEY_BYTES:
        raise InvalidKey(f"key of {len(raw)} bytes; 1 to {MAX_KEY_BYTES} are allowed")
    return raw


def check_prefix(prefix: object) -> str:
    """`prefix`, if it is a str that has UTF-8 bytes; it may be empty.

    Raises:
        InvalidArgument: it is not.
    """
    if not isinstance(prefix, str):
        raise InvalidArgument(f"a prefix is a str, not {type(prefix).__name__}")
    try:
        prefix.encode()
    except UnicodeEncodeError as exc:
        raise InvalidArgument(f"prefix {prefix[:80]!r} is not valid Unicode") from exc
    return prefix


class Record(NamedTuple):
    """One stored record. Times are epoch seconds; `vector` is float32 of shape (dimension,)."""

    namespace: str
    key: str
    value: Any
    metadata: dict[str, Any]
    vector: FloatArray | None
    version: int
    at: float
    created_at: float
    updated_at: float
    expires_at: float | None


class Item(NamedTuple):
    """One record for `put_many`; what is left out is as in `put`."""

    key: str
    value: Any
    vector: Vector | None = None
    metadata: Metadata | None = None
    ttl: Duration | None = None
    at: Moment | None = None


class Guard(NamedTuple):
    """A write with this guard happens only if that record is at that version (0: absent)."""

    namespace: str
    key: str
    version: int


class Change(NamedTuple):
    """One row of the change log. `op` is put, delete, expire or drop (then `key` is empty)."""

    sequence: int
    namespace: str
    key: str
    op: Op
    version: int


class Hit(msgspec.Struct, frozen=True, eq=False):
    """One result of a similarity search; `value` and `record` load when first asked for.

    `score` is higher for more similar: cosine similarity, inner product, or minus the distance.
    `at` is the record's event time.
    """

    namespace: str
    key: str
    score: float
    version: int
    metadata: dict[str, Any]
    at: float
    _load: Callable[[str, str], Record | None]
    _loaded: list[Record | None] = []

    def __repr__(self) -> str:
        shown = ("namespace", "key", "score", "version", "metadata", "at")
        return f"Hit({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    @property
    def record(self) -> Record | None:
        """The record as it is now, or None if it has gone since the search."""
        if not self._loaded:
            self._loaded.append(self._load(self.namespace, self.key))
        return self._loaded[0]

    @property
    def value(self) -> Any:
        """The record's value, or None if it has gone since the search."""
        record = self.record
        return None if record is None else record.value


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
