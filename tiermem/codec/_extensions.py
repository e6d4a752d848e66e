"""Extension types: values MessagePack has no kind for, each as an Ext code and a payload.

| code | type     | payload                                                                      |
|-----:|----------|------------------------------------------------------------------------------|
|    1 | Decimal  | ASCII, the number's own text (`-1.50`, `1E+3`, `NaN`)                        |
|    2 | UUID     | 16 bytes, big-endian                                                         |
|    3 | date     | 4 bytes, unsigned big-endian: days, 1 = 0001-01-01 (`date.toordinal`)        |
|    4 | ndarray  | MessagePack array: dtype as in `dtype.str`, shape, elements in C order (bin) |

An aware datetime is MessagePack's own timestamp (code -1), which holds the instant and no zone.
Codes are part of the file format: never renumbered, never used again for something else.
"""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from math import prod
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import msgspec
from msgspec.msgpack import Ext

from tiermem.errors import EncodingError

if TYPE_CHECKING:
    from numpy.typing import NDArray

DECIMAL: Final = 1
UUID_: Final = 2
DATE: Final = 3
NDARRAY: Final = 4

ARRAY_KINDS: Final = frozenset("biufcSUMm")

_pack = msgspec.msgpack.Encoder().encode
_unpack_array = msgspec.msgpack.Decoder(tuple[str, list[int], memoryview]).decode


def decimal_ext(value: Decimal) -> Ext:
    """`value` as Ext 1; exact, exponent and trailing zeros kept."""
    return Ext(DECIMAL, Decimal.__str__(value).encode("ascii"))


def uuid_ext(value: UUID) -> Ext:
    """`value` as Ext 2."""
    return Ext(UUID_, value.bytes)


def date_ext(value: date) -> Ext:
    """`value`, which is no datetime, as Ext 3."""
    return Ext(DATE, value.toordinal().to_bytes(4, "big"))


def array_ext(array: NDArray[Any]) -> Ext:
    """`array` as Ext 4, whatever its strides; byte order is kept.

    Raises:
        EncodingError: its elements are no plain numbers, strings or times, or it is masked.
    """
    dtype = array.dtype
    if dtype.kind not in ARRAY_KINDS or dtype.names is not None:
        raise EncodingError(f"array of dtype {dtype} cannot be stored")
    if hasattr(array, "mask"):
        raise EncodingError("masked array cannot be stored: its mask would be lost")
    # Times do not export the buffer protocol, and an itemsize of 0 is exported as 1.
    direct = array.flags.c_contiguous and dtype.kind not in "Mm" and dtype.itemsize
    elements = array.data if direct else array.tobytes()
    return Ext(NDARRAY, _pack((dtype.str, array.shape, elements)))


def _array(payload: memoryview) -> NDArray[Any]:
    import numpy as np

    text, shape, elements = _unpack_array(payload)
    # A comma or a parenthesis would make numpy parse a structured type.
    if len(text) > 40 or text[1:2] not in ARRAY_KINDS or "," in text or "(" in text:
        raise ValueError(f"array of dtype {text[:40]!r}")
    dtype = np.dtype(text)
    if dtype.kind not in ARRAY_KINDS or dtype.names is not None:
        raise ValueError(f"array of dtype {text!r}")
    if any(side < 0 for side in shape) or prod(shape) * dtype.itemsize != len(elements):
        raise ValueError(f"array of shape {shape} and dtype {text} in {len(elements)} bytes")
    if not elements:
        return np.ndarray(shape, dtype)
    return np.frombuffer(elements, dtype).reshape(shape).copy()


def from_ext(code: int, payload: memoryview) -> Any:
    """The value of an Ext; it owns its memory, `payload` may go afterwards.

    Raises:
        ValueError, TypeError, ArithmeticError: the payload is damaged or the code unknown.
    """
    if code == DECIMAL:
        return Decimal(str(payload, "ascii"))
    if code == UUID_:
        return UUID(bytes=bytes(payload))
    if code == DATE:
        if len(payload) != 4:
            raise ValueError(f"date of {len(payload)} bytes")
        return date.fromordinal(int.from_bytes(payload, "big"))
    if code == NDARRAY:
        return _array(payload)
    raise ValueError(f"unknown extension type {code}")
