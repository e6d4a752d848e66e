"""The rows of L3: sub-databases, keys, and the small structures kept in them."""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from tiermem.clock import sortable
from tiermem.codec.frame import seal, unseal
from tiermem.errors import CorruptionError

STORE_FORMAT: Final = 1

_T = TypeVar("_T")

DATABASES: Final = (
    "records",
    "vectors",
    "expiry",
    "floors",
    "log",
    "namespaces",
    "names",
    "garbage",
    "dictionaries",
    "cursors",
    "marks",
    "segments",
    "unsealed",
    "meta",
)

SLOT_MASK: Final = 511
REASSIGNED: Final = 512
"""Set in the low bits of a version that the committer gave instead of the one the client had."""
CLOCK_SHIFT: Final = 10
"""A version is microseconds << 10 | reassigned bit | client slot."""

OPS: Final = ("put", "delete", "expire", "drop")
OP_PUT, OP_DELETE, OP_EXPIRE, OP_DROP = range(4)

U32: Final = struct.Struct(">I")
U64: Final = struct.Struct(">Q")
ANSWER: Final = b"?"
"""Behind a slot in the keys of marks: what is there is no mark, but that client's newest answer."""
_FLOOR: Final = struct.Struct("<QQ")
_MARK: Final = struct.Struct("<4Q")
_STATE: Final = struct.Struct("<8Q")


class State(msgspec.Struct):
    """Counters of the whole store: one row, rewritten by every commit.

    next_sequence: sequence the next change gets; first_sequence: the oldest still in the log.
    highest: highest version in the store. horizon: highest version whose floor may be gone.
    """

    next_sequence: int = 1
    first_sequence: int = 1
    highest: int = 0
    horizon: int = 0
    next_namespace: int = 1
    next_dictionary: int = 1
    floors: int = 0
    commits: int = 0

    def pack(self) -> bytes:
        """The sealed row."""
        return seal(b"state", _STATE.pack(*msgspec.structs.astuple(self)))

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> State:
        """The state in a sealed row; CorruptionError if it is damaged."""
        return cls(*_fixed(_STATE, b"state", data))


class NamespaceInfo(msgspec.Struct):
    """What is kept of one namespace. `floor` is the version of its last drop.

    `made`: something was put there, or it was created. `ordered`: every record came from `append`, so
    key order is event-time order. `unsealed`: keys whose vectors changed since segments were last
    published; `epoch` rises with every publication.
    """

    id: int
    dimension: int = 0
    metric: str = ""
    model: str = ""
    records: int = 0
    timed: int = 0
    vectors: int = 0
    ordered: bool = True
    dropped: bool = False
    floor: int = 0
    dictionary: int = 0
    trained: int = 0
    made: bool = False
    unsealed: int = 0
    epoch: int = 0

    @property
    def prefix(self) -> bytes:
        """The four bytes in front of every key of this namespace."""
        return U32.pack(self.id)


class Identity(msgspec.Struct):
    """What is baked into a store at its creation, and the clock it goes by."""

    format: int
    store_id: bytes
    time_domain: str
    moved_to: int = 0


class CursorInfo(msgspec.Struct):
    """A named cursor: the last sequence it has committed, and the namespace it follows."""

    position: int
    namespace: str = ""


class Answer(msgspec.Struct):
    """What became of a client's request: the versions of what was written, or the error that says why nothing was."""

    number: int
    versions: list[int] = []
    refused: str = ""
    said: str = ""
    expected: int | None = None
    found: int = 0


class SegmentInfo(msgspec.Struct):
    """A published segment: its rows, and those dead, packed (little bit order; empty: none).

    `seal` is the checksum of its trailer, so that no other file can take its place; `graph`: it has one.
    """

    rows: int
    seal: int
    graph: bool
    dead: bytes = b""

    @property
    def dead_rows(self) -> int:
        """How many rows are dead."""
        return int.from_bytes(self.dead, "little").bit_count()

    def dead_numbers(self) -> list[int]:
        """The numbers of the dead rows."""
        places = ((at, byte) for at, byte in enumerate(self.dead) if byte)
        return [at * 8 + bit for at, byte in places for bit in range(8) if byte >> bit & 1]


class Mark(NamedTuple):
    """How far a slot's journal is applied, and the one it replaces until that is done (then the same)."""

    journal: int
    position: int
    before: int
    before_position: int


LogEntry = tuple[str, str, int, int]
"""(namespace, key, op, version)."""
LogRow = tuple[list[str], list[tuple[int, str, int, int]]]
"""(names, [(index of the name, key, op, version)]): the changes of one commit, in order."""

_encode = msgspec.msgpack.Encoder().encode
_info = msgspec.msgpack.Decoder(NamespaceInfo)
_identity = msgspec.msgpack.Decoder(Identity)
_cursor = msgspec.msgpack.Decoder(CursorInfo)
_answer = msgspec.msgpack.Decoder(Answer)
_segment = msgspec.msgpack.Decoder(SegmentInfo)
_log_row = msgspec.msgpack.Decoder(LogRow)


def pack_row(key: bytes, row: NamespaceInfo | Identity | CursorInfo | Answer | SegmentInfo | LogRow) -> bytes:
    """`row` as MessagePack, sealed with its key."""
    return seal(key, _encode(row))


def unpack_info(key: bytes, data: bytes | memoryview) -> NamespaceInfo:
    """A namespace row; CorruptionError if it is damaged."""
    return _open(_info, key, data)


def unpack_identity(data: bytes | memoryview) -> Identity:
    """The identity row; CorruptionError if it is damaged."""
    return _open(_identity, b"identity", data)


def unpack_cursor(key: bytes, data: bytes | memoryview) -> CursorInfo:
    """A cursor row; CorruptionError if it is damaged."""
    return _open(_cursor, key, data)


def unpack_answer(key: bytes, data: bytes | memoryview) -> Answer:
    """An answer; CorruptionError if it is damaged."""
    return _open(_answer, key, data)


def answer_key(slot: int) -> bytes:
    """Where the marks hold the newest answer that went with something written."""
    return U32.pack(slot) + ANSWER


def unpack_segment(key: bytes, data: bytes | memoryview) -> SegmentInfo:
    """The row of a segment; CorruptionError if it is damaged."""
    return _open(_segment, key, data)


def unpack_log_row(key: bytes, data: bytes | memoryview) -> LogRow:
    """A row of the change log; CorruptionError if it is damaged."""
    row: LogRow = _open(_log_row, key, data)
    return row


def pack_floor(key: bytes, version: int, given: int) -> bytes:
    """The sealed row of a floor: its version, and the one it ranks by."""
    return seal(key, _FLOOR.pack(version, given))


def unpack_floor(key: bytes, data: bytes | memoryview) -> tuple[int, int]:
    """What `pack_floor` was given; CorruptionError if it is damaged."""
    version, given = _fixed(_FLOOR, key, data)
    return version, given


def pack_mark(key: bytes, mark: Mark) -> bytes:
    """The sealed row of a slot's journals."""
    return seal(key, _MARK.pack(*mark))


def unpack_mark(key: bytes, data: bytes | memoryview) -> Mark:
    """What `pack_mark` was given; CorruptionError if it is damaged."""
    return Mark(*_fixed(_MARK, key, data))


def segment_number(key: bytes) -> int:
    """The number in the key of a segment's row; CorruptionError if it is none."""
    if len(key) != U32.size + U64.size:
        raise CorruptionError(f"key {key!r} is no segment's")
    return int(U64.unpack_from(key, U32.size)[0])


def text(raw: bytes) -> str:
    """A name or a key as LMDB holds it; CorruptionError if it is no text.

    Where the row behind it is empty there is no checksum to tell.
    """
    try:
        return raw.decode()
    except UnicodeDecodeError as exc:
        raise CorruptionError(f"key {raw!r} is no UTF-8") from exc


def _fixed(shape: struct.Struct, key: bytes, data: bytes | memoryview) -> tuple[Any, ...]:
    payload = unseal(key, data)
    if len(payload) != shape.size:
        raise CorruptionError(f"row {key!r} is intact but of {len(payload)} bytes, not {shape.size}")
    return shape.unpack(payload)


def _open(decoder: msgspec.msgpack.Decoder[_T], key: bytes, data: bytes | memoryview) -> _T:
    payload = unseal(key, data)
    try:
        return decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise CorruptionError(f"row {key!r} is intact but cannot be read: {exc}") from exc


def expiry_key(expires: float, key: bytes) -> bytes:
    """Where the expiry index holds the record stored under `key`."""
    return U64.pack(sortable(expires)) + key


def stream_key(at: float, version: int) -> str:
    """The key of a stream's record: sorts by event time, then by arrival."""
    return f"{sortable(at):016x}-{version:016x}"


def stream_bound(at: float) -> str:
    """The lowest key a stream's record of event time `at` or later can have."""
    return f"{sortable(at):016x}"


def successor(prefix: bytes) -> bytes:
    """The lowest bytes above every string that starts with `prefix`; empty if there are none."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes((stripped[-1] + 1,)) if stripped else b""
