"""The values that go in and out: records, hits, changes, reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    return str.__str__(name)


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


def encode_keys(keys: Sequence[Any]) -> list[bytes]:
    """`encode_key` of each, in a few calls for all of them.

    Raises:
        InvalidKey: one is no such key.
    """
    try:
        raws = list(map(str.encode, keys))
        if not raws or (all(raws) and max(map(len, raws)) <= MAX_KEY_BYTES):
            return raws
    except (TypeError, UnicodeEncodeError):
        pass
    return [encode_key(key) for key in keys]


def check_key(key: Any) -> str:
    """`key` as a str and nothing more, if it is a record key; raises as `encode_key`.

    What is written must not be of a class of its own, as numpy's strings are: it is encoded long after the call.
    """
    if key.__class__ is str and key.isascii() and 0 < len(key) <= MAX_KEY_BYTES:
        return key
    encode_key(key)
    return str.__str__(key)


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
