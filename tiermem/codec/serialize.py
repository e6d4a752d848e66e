"""Values and metadata to MessagePack and back: the same types from every tier, nothing silently bent.

msgspec also encodes what may not be stored (sets, naive datetimes, int keys) and writes some types as
another (Decimal and date as str). So a value is *lowered* first: checked, and rebuilt out of what msgspec
writes as it stands. Lowering is skipped where its result is known, because every type in sight is plain.

A Struct is written by its own rules (`rename`, `tag`, `omit_defaults`, though a default that had to be lowered is
written out). Without its type it reads as a dict, or as a list if it is declared `array_like`: only a list reads back
into such a type.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy, deepcopy
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from functools import lru_cache, partial
from types import NoneType
from typing import Any, Final, TypeAlias
from uuid import UUID

import msgspec
from msgspec import UNSET, Struct

from tiermem.codec._extensions import array_ext, date_ext, decimal_ext, from_ext, uuid_ext
from tiermem.errors import CorruptionError, EncodingError

MAX_DEPTH: Final = 200
"""How many containers deep a value may nest, so that reading it back takes a fraction of the default stack."""

_Lower: TypeAlias = Callable[[Any, int], Any]

_PLAIN: Final = frozenset({NoneType, bool, int, float, str, bytes})
_FROZEN: Final = _PLAIN | {datetime, date, Decimal, UUID}
_FIELD: Final = frozenset({bool, int, float, str})
_FIELD_ITEM: Final = _FIELD | {datetime}

_all_plain = _PLAIN.issuperset
_all_frozen = _FROZEN.issuperset

# An Encoder or Decoder keeps the state of a call on that call's stack: one serves all threads.
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(ext_hook=from_ext).decode
_unpack_fields = msgspec.msgpack.Decoder(dict[str, Any], ext_hook=from_ext).decode

# What lowering and msgspec raise for a value that cannot be stored, and decoding for bytes it did not write.
_FAULTS: Final = (TypeError, ValueError, OverflowError, AttributeError, RuntimeError)
_DAMAGE: Final = (msgspec.MsgspecError, TypeError, ValueError, ArithmeticError, RecursionError)


def encode(value: Any) -> bytes:
    """`value` as MessagePack. Flat dicts and scalars of plain types are written as they stand.

    Raises:
        EncodingError: something in it cannot be stored; the message names the place.
    """
    try:
        kind = type(value)
        if kind is dict:
            # Up to some ten fields this loop is faster than the same checks made in C.
            for name, item in value.items():
                if type(item) not in _PLAIN or type(name) is not str:
                    break
            else:
                return _pack(value)
        elif kind in _PLAIN:
            return _pack(value)
        return _pack(_lower(value, MAX_DEPTH))
    except _FAULTS as exc:
        fault = exc
    raise _located(value, "value", fault)


def decode(data: bytes | memoryview) -> Any:
    """The value that `encode` wrote; it shares no memory with `data`.

    Raises:
        CorruptionError: `data` is not the encoding of a value.
    """
    try:
        return _unpack(data)
    except _DAMAGE as exc:
        raise CorruptionError(f"encoded value is damaged: {exc}") from exc


def decode_all(values: Sequence[bytes | memoryview]) -> list[Any]:
    """`decode` of each, without a call of ours for each."""
    try:
        return list(map(_unpack, values))
    except _DAMAGE:
        # The one that is damaged is named by what `decode` raises.
        return list(map(decode, values))


def decoder(type_: Any | None) -> Callable[[bytes | memoryview], Any]:
    """A function that decodes into `type_`, a Struct, a dataclass or any type msgspec knows; None: `decode`.

    That function raises CorruptionError as `decode` does, and EncodingError if the value does not fit the type.

    Raises:
        EncodingError: nothing can be decoded into `type_`.
    """
    if type_ is None:
        return decode
    name = getattr(type_, "__name__", None) or str(type_)
    try:
        unpack = msgspec.msgpack.Decoder(type_, ext_hook=from_ext).decode
    except _FAULTS as exc:
        raise EncodingError(f"values cannot be decoded into {name}: {exc}") from exc
    # msgspec reads Decimal, UUID and date from text and not from an Ext, so a type that has met one of
    # them is filled from the decoded value from then on. Both ways give equal results where both can.
    from_value = False

    def decode_typed(data: bytes | memoryview) -> Any:
        nonlocal from_value
        # A field of type Raw or memoryview keeps the buffer it came from: it must be one that stays.
        data = bytes(data)
        if not from_value:
            try:
                return unpack(data)
            except _DAMAGE:
                # Damage, a misfit or an Ext: decoding without the type tells which.
                pass
        value = decode(data)
        try:
            result = msgspec.convert(value, type_)
        except (msgspec.ValidationError, AttributeError) as exc:
            # An array that stands where a dict is wanted is asked for its keys.
            raise EncodingError(f"stored value does not fit {name}: {exc}") from exc
        from_value = True
        return result

    return decode_typed


def encode_metadata(metadata: Mapping[str, object] | None) -> bytes:
    """Flat metadata as MessagePack; `b""` for None or no fields.

    Raises:
        EncodingError: a field's name or value cannot be stored; the message names it.
    """
    if metadata is None:
        return b""
    try:
        if type(metadata) is dict:
            for name, item in metadata.items():
                # "" and all that begins with "$" sort before "%"; what else does is for the slow path to allow.
                if type(item) not in _FIELD or type(name) is not str or name < "%":
                    break
            else:
                return _pack(metadata) if metadata else b""
        if not isinstance(metadata, Mapping):
            raise EncodingError(f"metadata is a dict, not {type(metadata).__name__}")
        fields = {_field_name(name): _field_value(name, item) for name, item in metadata.items()}
        return _pack(fields) if fields else b""
    except EncodingError:
        raise
    except _FAULTS as exc:
        fault = exc
    raise _located(metadata, "metadata", fault)


def decode_metadata(data: bytes | memoryview) -> dict[str, Any]:
    """The metadata that `encode_metadata` wrote; {} for empty `data`.

    Raises:
        CorruptionError: `data` is not the encoding of metadata.
    """
    if not data:
        return {}
    try:
        return _unpack_fields(data)
    except _DAMAGE as exc:
        raise CorruptionError(f"encoded metadata is damaged: {exc}") from exc


def copy_value(value: Any) -> Any:
    """A copy of a decoded value that shares nothing mutable with it."""
    kind = type(value)
    if kind in _FROZEN:
        return value
    if kind is dict:
        if _all_frozen(map(type, value.values())):
            return value.copy()
        return {name: copy_value(item) for name, item in value.items()}
    if kind is list:
        return value.copy() if _all_frozen(map(type, value)) else [copy_value(item) for item in value]
    return deepcopy(value)


def _field_name(name: object) -> str:
    text = _lower_key(name, "metadata: ")
    if not text or text[0] == "$":
        raise EncodingError(f"metadata: field name {_shown(text)} is empty or begins with '$'")
    return text


def _field_value(name: object, value: object) -> Any:
    place = f"metadata[{_shown(name)}]"
    try:
        field = _lower(value, MAX_DEPTH)
    except _FAULTS as exc:
        raise _located(value, place, exc) from None
    if type(field) in _FIELD_ITEM:
        return field
    if type(field) is not list and type(field) is not tuple:
        raise EncodingError(f"{place}: {type(value).__name__} is no metadata value")
    for index, item in enumerate(field):
        if type(item) not in _FIELD_ITEM:
            raise EncodingError(f"{place}[{index}]: {type(item).__name__} is no metadata value")
    return field


# Lowering. Each function takes a value and how many containers may still nest below it, and returns what
# msgspec writes as it stands: the value itself where nothing in it had to change, and never changed in place.


def _lower(value: Any, room: int) -> Any:
    kind: Any = type(value)
    if kind in _PLAIN:
        return value
    if room <= 0:
        raise RecursionError(f"nested more than {MAX_DEPTH} levels deep")
    return (_BY_TYPE.get(kind) or _by_base(kind))(value, room - 1)


def _lower_key(name: Any, place: str = "") -> str:
    if not isinstance(name, str) or isinstance(name, Enum):
        raise EncodingError(f"{place}a key of type {type(name).__name__} cannot be stored; keys are str")
    return str.__str__(name)


def _lower_dict(value: dict[Any, Any], room: int) -> Any:
    if type(value) is dict:
        for name, item in value.items():
            if type(item) not in _PLAIN or type(name) is not str:
                break
        else:
            return value
    return {
        name if type(name) is str else _lower_key(name): item if type(item) in _PLAIN else _lower(item, room)
        for name, item in value.items()
    }


def _lower_list(value: list[Any] | tuple[Any, ...], room: int) -> Any:
    if _all_plain(map(type, value)):
        return value if type(value) is list or type(value) is tuple else list(value)
    return [item if type(item) in _PLAIN else _lower(item, room) for item in value]


def _lower_datetime(value: datetime, room: int) -> datetime:
    if value.utcoffset() is None:
        raise EncodingError("naive datetime cannot be stored; give it a time zone")
    if type(value) is not datetime:
        value = datetime.combine(value.date(), value.timetz())
    # Only at the ends of the calendar can the instant fall outside it in UTC.
    if not 1 < value.year < 9999:
        try:
            value = value.astimezone(UTC)
        except OverflowError as exc:
            raise EncodingError("datetime outside the years 1 to 9999 in UTC cannot be stored") from exc
    return value


def _lower_enum(value: Enum, room: int) -> Any:
    return _lower(value.value, room)


def _lower_struct(value: Struct, room: int) -> Struct:
    fields = msgspec.structs.astuple(value)
    if _all_plain(map(type, fields)):
        return value
    changed: Struct | None = None
    for name, field in zip(value.__struct_fields__, fields, strict=True):
        if field is UNSET:
            continue
        lowered = _lower(field, room)
        if lowered is not field:
            # A copy, which runs no __post_init__, keeps the Struct's own rules for how it is written.
            changed = copy(value) if changed is None else changed
            msgspec.structs.force_setattr(changed, name, lowered)
    return value if changed is None else changed


def _lower_dataclass(names: tuple[str, ...], value: object, room: int) -> dict[str, Any]:
    fields = ((name, getattr(value, name)) for name in names)
    return {name: _lower(field, room) for name, field in fields if field is not UNSET}


def _lower_numpy(value: Any, room: int) -> Any:
    kind = value.dtype.kind
    if kind == "b":
        return bool(value)
    if kind in "iu":
        return int(value)
    if kind == "f":
        return float(value)
    return _lower_nothing(value, room)


def _lower_nothing(value: object, room: int) -> Any:
    raise EncodingError(f"{type(value).__name__} cannot be stored")


# A datetime is a date, so it stands before it. The unbound base methods see through what a subclass overrides.
_BY_TYPE: Final[dict[type, _Lower]] = {
    dict: _lower_dict,
    list: _lower_list,
    tuple: _lower_list,
    datetime: _lower_datetime,
    date: lambda value, room: date_ext(value),
    Decimal: lambda value, room: decimal_ext(value),
    UUID: lambda value, room: uuid_ext(value),
    str: lambda value, room: str.__str__(value),
    int: lambda value, room: int.__index__(value),
    float: lambda value, room: float.__float__(value),
    bytes: lambda value, room: bytes.__bytes__(value),
}


@lru_cache(maxsize=1024)
def _by_base(kind: type) -> _Lower:
    if issubclass(kind, Enum):
        return _lower_enum
    if issubclass(kind, Struct):
        return _lower_struct
    if hasattr(kind, "__dataclass_fields__"):
        return partial(_lower_dataclass, _dataclass_names(kind))
    for base, lower in _BY_TYPE.items():
        if issubclass(kind, base):
            return lower
    # A value of numpy's exists only where numpy is imported; it is never imported for the question.
    numpy = sys.modules.get("numpy")
    if issubclass(kind, getattr(numpy, "ndarray", ())):
        return lambda value, room: array_ext(value)
    if issubclass(kind, getattr(numpy, "generic", ())):
        return _lower_numpy
    return _lower_nothing


def _dataclass_names(kind: type) -> tuple[str, ...]:
    from dataclasses import fields

    return tuple(field.name for field in fields(kind))


# Naming the place of a fault costs a second walk, which only a refused value pays.


def _shown(name: object) -> str:
    return repr(str.__str__(name)[:80]) if isinstance(name, str) else type(name).__name__


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Enum):
        yield ".value", value.value
    elif isinstance(value, Struct) or hasattr(type(value), "__dataclass_fields__"):
        names = value.__struct_fields__ if isinstance(value, Struct) else _dataclass_names(type(value))
        fields = ((name, getattr(value, name, UNSET)) for name in names)
        yield from ((f".{name}", field) for name, field in fields if field is not UNSET)
    elif isinstance(value, dict):
        yield from ((f"[{_shown(name)}]", item) for name, item in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"[{index}]", item) for index, item in enumerate(value))


def _located(value: Any, path: str, fault: Exception) -> EncodingError:
    """`fault`, with the path to the innermost part of `value` that raises it."""
    seen = {id(value)}
    descending = True
    while descending:
        descending = False
        for step, part in _parts(value):
            try:
                _pack(_lower(part, MAX_DEPTH))
            except _FAULTS as exc:
                # In a value that holds itself, or is far too deep, each part is at fault as much as the whole.
                descending = not isinstance(exc, RecursionError) or (id(part) not in seen and len(seen) < 8)
                if descending:
                    seen.add(id(part))
                    value, path, fault = part, path + step, exc
                    break
    error = EncodingError(f"{path}: {_reason(fault)}")
    error.__cause__ = fault.__cause__ if isinstance(fault, EncodingError) else fault
    return error


def _reason(fault: Exception) -> str:
    if isinstance(fault, OverflowError):
        return "int outside -2**63 to 2**64 - 1 cannot be stored"
    if isinstance(fault, UnicodeEncodeError):
        return f"str that is not valid Unicode cannot be stored ({fault.reason})"
    if isinstance(fault, RecursionError):
        return f"nested too deeply, at most {MAX_DEPTH} levels, or holds itself"
    return str(fault)
