"""Values as JSON and back, without loss: what JSON has no type for is written as a tagged object.

| type            | form                                                                         |
|-----------------|------------------------------------------------------------------------------|
| bytes           | {"$bytes": base64}                                                           |
| datetime        | {"$datetime": ISO 8601, in UTC}                                              |
| date            | {"$date": ISO 8601}                                                          |
| Decimal         | {"$decimal": its text}                                                       |
| UUID            | {"$uuid": its text}                                                          |
| ndarray         | {"$ndarray": {"dtype": as in dtype.str, "shape": [...], "data": base64}}     |
| NaN, infinities | {"$float": "nan"}, {"$float": "inf"}, {"$float": "-inf"}                     |

A dict whose only key begins with "$" is written with one "$" more in front of it.
"""

from __future__ import annotations

import json
import math
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from math import prod
from typing import Any, Final, NoReturn
from uuid import UUID

ARRAY_KINDS: Final = frozenset("biufcSUMm")

# Errors of the constructors that a form is handed to.
_MISFITS: Final = (TypeError, ValueError, KeyError, AttributeError, Base64Error, InvalidOperation)


class NotJson(ValueError):
    """A text that is not JSON, or a tagged object that is not of the form above."""


def dumps(value: Any) -> str:
    """`value`, as it comes out of a store, as one line of ASCII."""
    return json.dumps(to_json(value), separators=(",", ":"), allow_nan=False)


def loads(text: str | bytes) -> Any:
    """What `dumps` wrote.

    Raises:
        NotJson: it did not write this.
    """
    return from_json(parse(text))


def parse(text: str | bytes) -> Any:
    """JSON, tagged objects left as they are.

    Raises:
        NotJson: it is none. NaN and Infinity are none.
    """
    try:
        return json.loads(text, parse_constant=_refuse)
    except NotJson:
        raise
    except (ValueError, RecursionError) as exc:
        raise NotJson(f"not JSON: {exc}") from exc


def _refuse(constant: str) -> NoReturn:
    raise NotJson(f'not JSON: {constant}; write {{"$float": "nan"}}, "inf" or "-inf"')


def to_json(value: Any) -> Any:
    """`value` out of nothing but what JSON has."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, dict):
        if len(value) == 1:
            ((key, item),) = value.items()
            return {f"${key}" if key.startswith("$") else key: to_json(item)}
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, bytes):
        return {"$bytes": b64encode(value).decode()}
    if isinstance(value, datetime):
        return {"$datetime": value.isoformat()}
    if isinstance(value, date):
        return {"$date": value.isoformat()}
    if isinstance(value, Decimal):
        return {"$decimal": str(value)}
    if isinstance(value, UUID):
        return {"$uuid": str(value)}
    return {
        "$ndarray": {
            "dtype": value.dtype.str,
            "shape": list(value.shape),
            "data": b64encode(value.tobytes()).decode(),
        }
    }


def from_json(form: Any) -> Any:
    """The value that `to_json` made `form` of.

    Raises:
        NotJson: a tagged object is malformed or unknown.
    """
    if isinstance(form, list):
        return [from_json(item) for item in form]
    if not isinstance(form, dict):
        return form
    if len(form) == 1:
        ((key, item),) = form.items()
        if key.startswith("$$"):
            return {key[1:]: from_json(item)}
        if key.startswith("$"):
            return _untagged(key, item)
    return {key: from_json(item) for key, item in form.items()}


def filter_from_json(form: Any) -> Any:
    """A `where` filter: tagged objects become values, and every other "$..." stays the operator it is.

    Raises:
        NotJson: a tagged object is malformed.
    """
    if isinstance(form, list):
        return [filter_from_json(item) for item in form]
    if not isinstance(form, dict):
        return form
    if len(form) == 1 and not _READERS.keys().isdisjoint(form):
        return from_json(form)
    return {key: filter_from_json(item) for key, item in form.items()}


def _untagged(tag: str, item: Any) -> Any:
    read = _READERS.get(tag)
    if read is None:
        raise NotJson(f"unknown tag {tag[:40]!r}; a plain dict with that key alone is written with {'$' + tag[:40]!r}")
    try:
        return read(item)
    except _MISFITS as exc:
        raise NotJson(f"malformed {tag}: {exc}") from exc


def _bytes(item: str) -> bytes:
    return b64decode(item, validate=True)


def _array(item: dict[str, Any]) -> Any:
    import numpy as np

    text, shape, data = item["dtype"], item["shape"], _bytes(item["data"])
    # A comma or a parenthesis would make numpy parse a structured type.
    if len(text) > 40 or text[1:2] not in ARRAY_KINDS or "," in text or "(" in text:
        raise ValueError(f"no dtype {text[:40]!r}")
    dtype = np.dtype(text)
    if any(type(side) is not int or side < 0 for side in shape) or prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{len(data)} bytes are no array of shape {shape} and dtype {text}")
    if not data:
        return np.ndarray(shape, dtype)
    return np.frombuffer(data, dtype).reshape(shape).copy()


def _float(item: str) -> float:
    if item not in ("nan", "inf", "-inf"):
        raise ValueError(f"{item!r} is neither nan, inf nor -inf")
    return float(item)


def _decimal(item: str) -> Decimal:
    if not isinstance(item, str):
        raise TypeError("a decimal is written as a text")
    return Decimal(item)


_READERS: Final[dict[str, Callable[[Any], Any]]] = {
    "$bytes": _bytes,
    "$datetime": datetime.fromisoformat,
    "$date": date.fromisoformat,
    "$decimal": _decimal,
    "$uuid": UUID,
    "$ndarray": _array,
    "$float": _float,
}
