"""Columns: an immutable index on the metadata of a segment, which answers a filter with one bit per row.

Every field has a dictionary of its distinct values, in four groups, and one code per row: its value's place in the
dictionary, counted from 1; 0 says that the row misses the field. Groups are sorted, each by the order that filters
know, so an ordering, an equality or a prefix is a run of codes, found by bisection.

| group    | values                          | order         | stored as                                               |
|----------|---------------------------------|---------------|---------------------------------------------------------|
| numbers  | int and float but NaN; 1 is 1.0 | exact value   | float64, and int16 to be added if any of them is needed |
| instants | aware datetime                  | instant       | int64, microseconds since 1970                          |
| texts    | str                             | code points   | UTF-8, each followed by 0xFF                            |
| others   | bool, NaN, list                 | encoded bytes | MessagePack                                             |

Bytes. `columns.fields` is MessagePack: the number of rows, and of each field, sorted by name, what `_Field` lists.
`columns.data` holds the arrays of the fields, little-endian, one after another, each padded to 8 bytes: rows (only of
a sparse field, one in fewer than an eighth of the rows: the rows that have it, ascending), codes (of those rows, or
of all), numbers, their remainders, instants, bounds and bytes of the texts, bounds and bytes of the others. Codes
take the narrowest of 1, 2, 4 and 8 bytes that holds the largest, rows that which holds the number of rows, bounds
that which holds the last. Bounds are one more than the values: 0, and where each value ends.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import msgspec
import numpy as np

from tiermem.codec.serialize import decode, decode_metadata, encode
from tiermem.errors import CorruptionError
from tiermem.policy._operators import ORDERINGS, predicate
from tiermem.policy.filters import And, Compare, Node, Not, Predicate

if TYPE_CHECKING:
    from numpy.typing import NDArray

FIELDS: Final = "columns.fields"
DATA: Final = "columns.data"

_ALIGNMENT: Final = 8
_SPARSE: Final = 8  # a field in fewer than one of so many rows is sparse
_CHUNK: Final = 1 << 16  # codes handled at a time: what is allocated in between stays in the CPU's cache
_CHANGES: Final = 4  # up to so many changes of the verdict, comparing codes is cheaper than looking each of them up
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_FIRST: Final = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
_LAST: Final = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
_KEYED: Final = frozenset({str, int, float, datetime})

_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]


class _Field(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the directory says of a field: counts of values, sizes in bytes."""

    name: str
    sparse: bool
    present: _Count  # rows that have it
    numbers: _Count
    inexact: bool  # remainders follow the numbers
    instants: _Count
    texts: _Count
    texts_size: _Count
    others: _Count
    others_size: _Count


def _unsigned(largest: int) -> str:
    """The dtype of the narrowest unsigned integers that hold `largest`."""
    return "u1" if largest < 1 << 8 else "<u2" if largest < 1 << 16 else "<u4" if largest < 1 << 32 else "<u8"


def encode_columns(metadata: Sequence[bytes]) -> dict[str, bytes]:
    """The sections of the index on the encoded metadata of the rows, in row order; `b""` is no metadata.

    Equal metadata is decoded once. Takes time and memory in proportion to the fields of all rows together.

    Raises:
        CorruptionError: something in `metadata` is not the encoding of metadata.
    """
    places = {data: place for place, data in enumerate(dict.fromkeys(metadata))}
    place_of_row = np.fromiter(map(places.__getitem__, metadata), np.int64, len(metadata))
    # Of each field: the numbers of its values; the places of the metadata that has it, and the value's number in each.
    gathered: dict[str, tuple[dict[Any, int], array[int], array[int]]] = {}
    for data, place in places.items():
        for name, value in decode_metadata(data).items():
            seen, holders, held = gathered.get(name) or gathered.setdefault(name, ({}, array("q"), array("q")))
            # No value of one group equals one of another, for a bool and a NaN are told apart by their encoding.
            key = value if type(value) in _KEYED and value == value else encode(value)
            holders.append(place)
            held.append(seen.setdefault(key, len(seen)))
    rows_by_place = np.argsort(place_of_row, kind="stable")
    counts = np.bincount(place_of_row, minlength=len(places))
    starts = np.cumsum(counts) - counts
    entries: list[_Field] = []
    arrays: list[NDArray[Any]] = []
    for name in sorted(gathered):
        seen, holders, held = gathered.pop(name)
        at = np.frombuffer(holders, np.int64)
        repeats = counts[at]
        present = int(repeats.sum())
        rows = rows_by_place[np.repeat(starts[at] - np.cumsum(repeats) + repeats, repeats) + np.arange(present)]
        counted, codes, dictionary = _dictionary(seen)
        given = np.repeat(codes[np.frombuffer(held, np.int64)], repeats)
        if sparse := present * _SPARSE < len(metadata):
            order = np.argsort(rows)
            arrays += [rows[order].astype(_unsigned(len(metadata))), given[order]]
        else:
            column = np.zeros(len(metadata), codes.dtype)
            column[rows] = given
            arrays.append(column)
        arrays += dictionary
        entries.append(_Field(name, sparse, present, *counted))
    padded = [part for values in arrays for part in (values.tobytes(), bytes(-values.nbytes % _ALIGNMENT))]
    return {FIELDS: msgspec.msgpack.encode((len(metadata), entries)), DATA: b"".join(padded)}


def _dictionary(seen: dict[Any, int]) -> tuple[tuple[Any, ...], NDArray[Any], list[NDArray[Any]]]:
    """The rest of the field's entry in the directory, the codes of the values by their numbers, and its arrays."""
    numbers = sorted([key for key in seen if type(key) is int or type(key) is float])
    instants = sorted([key for key in seen if type(key) is datetime])
    texts = sorted([key for key in seen if type(key) is str])
    others = sorted([key for key in seen if type(key) is bytes])
    codes = np.empty(len(seen), _unsigned(len(seen)))
    order = np.fromiter(map(seen.__getitem__, chain(numbers, instants, texts, others)), np.int64, len(seen))
    codes[order] = np.arange(1, len(seen) + 1)
    # Adding 0.0 makes 0.0 of -0.0: which of the two is written does not depend on which came first.
    floats = np.fromiter(map(float, numbers), "<f8", len(numbers)) + 0.0
    remainders = [x - int(y) if type(x) is int else 0 for x, y in zip(numbers, floats.tolist(), strict=True)]
    inexact = any(remainders)
    arrays = [floats, *([np.array(remainders, "<i2")] if inexact else [])]
    arrays.append(np.array([(instant - _EPOCH) // _MICROSECOND for instant in instants], "<i8"))
    sizes = []
    for values in ([text.encode() + b"\xff" for text in texts], others):
        bounds = np.cumsum(np.fromiter(chain((0,), map(len, values)), np.int64, len(values) + 1))
        sizes.append(int(bounds[-1]))
        arrays += [bounds.astype(_unsigned(sizes[-1])), np.frombuffer(b"".join(values), "u1")]
    return (len(numbers), inexact, len(instants), len(texts), sizes[0], len(others), sizes[1]), codes, arrays


class Columns:
    """The index on the metadata of `rows` rows, over sections that `encode_columns` wrote.

    Immutable, and safe for any number of threads. Its arrays are views of the sections, which must stay as they are
    and are best aligned to 8 bytes. Opening reads everything once, except the texts and the others.

    Raises:
        CorruptionError: the sections do not fit together, or not to `rows`.
    """

    __slots__ = ("_fields", "_rows")

    def __init__(self, sections: Mapping[str, memoryview], rows: int) -> None:
        try:
            written, entries = msgspec.msgpack.decode(sections[FIELDS], type=tuple[int, list[_Field]])
            arrays = _Arrays(sections[DATA])
        except (KeyError, msgspec.MsgspecError, UnicodeDecodeError) as exc:
            raise CorruptionError(f"index on metadata: its directory is damaged: {exc}") from exc
        _check(written == rows, f"of {written} rows, not {rows}")
        self._rows = rows
        self._fields = {entry.name: _Column(entry, arrays, rows) for entry in entries}
        _check(len(self._fields) == len(entries) and arrays.at == len(arrays.data), "more than its directory lists")

    def bits(self, node: Node) -> NDArray[np.uint8]:
        """One bit per row, set if and only if the row matches `node`: exactly what `Filter(node)` says of its metadata.

        A new array of ceil(rows / 64) × 8 bytes, in the order of `np.packbits(..., bitorder="little")`; the bits
        beyond the last row are 0. A leaf takes time in proportion to the rows; `$contains` and `$ends_with` read all
        texts of their field, and only lists, bools and very many candidates are compared with values one by one.

        Raises:
            CorruptionError: a value that had to be read is damaged.
        """
        if isinstance(node, Compare):
            field = self._fields.get(node.field)
            return self._packed(predicate(node)({}) if field is None else field.mask(node, self._rows))
        if isinstance(node, Not):
            return np.bitwise_xor(self.bits(node.node), self._packed(True))
        every = isinstance(node, And)
        bits = self._packed(every)
        combine = np.bitwise_and if every else np.bitwise_or
        for part in node.nodes:
            combine(bits, self.bits(part), out=bits)
        return bits

    def _packed(self, mask: NDArray[np.bool_] | bool) -> NDArray[np.uint8]:
        packed = np.packbits(np.full(self._rows, mask) if isinstance(mask, bool) else mask, bitorder="little")
        bits = np.zeros((self._rows + 63) // 64 * 8, np.uint8)
        bits[: len(packed)] = packed
        return bits


class _Column:
    """A field: its dictionary, and the codes of its rows."""

    __slots__ = ("codes", "firsts", "instants", "name", "numbers", "others", "remainders", "rows", "size", "texts")

    def __init__(self, entry: _Field, arrays: _Arrays, rows: int) -> None:
        self.name = entry.name
        self.size = entry.numbers + entry.instants + entry.texts + entry.others
        self.rows = arrays.take(_unsigned(rows), entry.present) if entry.sparse else None
        self.codes = arrays.take(_unsigned(self.size), entry.present if entry.sparse else rows)
        self.numbers = numbers = arrays.take("<f8", entry.numbers)
        self.remainders = arrays.take("<i2", entry.numbers) if entry.inexact else None
        self.instants = arrays.take("<i8", entry.instants)
        self.texts = _Strings(arrays, entry.texts, entry.texts_size)
        self.others = _Strings(arrays, entry.others, entry.others_size)
        # The first codes of instants, texts and others.
        self.firsts = (1 + entry.numbers, 1 + entry.numbers + entry.instants, 1 + self.size - entry.others)
        holds = _ascending(numbers) and _ascending(self.instants) and int(self.codes.max(initial=0)) <= self.size
        holds = holds and _FIRST <= self.instants.min(initial=0) <= self.instants.max(initial=0) <= _LAST
        if self.rows is not None:
            holds = holds and int(self.rows.max(initial=0)) < rows
        if self.remainders is not None:
            large = np.abs(numbers[self.remainders != 0])
            holds = holds and bool(np.all((large >= 2.0**53) & (large <= 2.0**64)))
        _check(holds, f"the arrays of {self.name!r} are damaged")

    def mask(self, node: Compare, rows: int) -> NDArray[np.bool_]:
        """What `node` says of each row."""
        verdict = self._verdict(node)
        mask = np.full(len(self.codes), verdict[0])
        changes = [int(at) + 1 for at in np.flatnonzero(verdict[1:] != verdict[:-1])[: _CHANGES + 1]]
        # In pairs, the changes bound runs of codes of another verdict than code 0, which is in none of them.
        runs = list(zip(changes[::2], [*changes[1::2], len(verdict)], strict=False))
        for at in range(0, len(mask) if changes else 0, _CHUNK):
            codes, part = self.codes[at : at + _CHUNK], mask[at : at + _CHUNK]
            if len(changes) > _CHANGES:
                # No code is too large, as opening has seen; clipping is the cheapest way not to be asked again.
                np.take(verdict, codes, out=part, mode="clip")
                continue
            for start, stop in runs:
                # Unsigned: a code less than `start` wraps around to beyond the run.
                part ^= codes - start < stop - start
        if self.rows is None:
            return mask
        every = np.full(rows, verdict[0])
        every[self.rows] = mask
        return every

    def _verdict(self, node: Compare) -> NDArray[np.bool_]:
        """What `node` says of each code."""
        op, operand = node.op, node.operand
        matches = predicate(node)
        if op in ("$ne", "$nin"):
            return np.logical_not(self._verdict(Compare(node.field, "$eq" if op == "$ne" else "$in", operand)))
        verdict = np.zeros(self.size + 1, bool)
        verdict[0] = matches({})
        if op == "$exists":
            verdict[1:] = operand is True
        elif op in ("$eq", "$in"):
            self._equal(verdict, (operand,) if op == "$eq" else operand, matches)
        elif op == "$contains" and type(operand) is not str:
            self._ask(verdict, matches, range(self.firsts[2], self.size + 1))
        elif op in ORDERINGS and (place := self._place(operand)) is not None:
            first, left, right, end = place
            start, stop = {"$lt": (first, left), "$lte": (first, right), "$gt": (right, end), "$gte": (left, end)}[op]
            verdict[start:stop] = True
        elif op not in ORDERINGS and type(operand) is str:
            self._search(verdict, op, operand, matches)
        else:
            self._ask(verdict, matches, range(1, self.size + 1))
        return verdict

    def _place(self, value: Any) -> tuple[int, int, int, int] | None:
        """The first code of its group, those where its equal begins and ends, the group's end; None if of no group."""
        key: Any = self._number
        target, first = value, 1
        if type(value) is int or type(value) is float:
            size = len(self.numbers) if value == value else 0
        elif isinstance(value, datetime) and value.utcoffset() is not None:
            target, first = (value - _EPOCH) // _MICROSECOND, self.firsts[0]
            size, key = len(self.instants), self.instants.item
        elif type(value) is str:
            target, first, size, key = _utf8(value), self.firsts[1], len(self.texts), self._utf8
        else:
            return None
        left = bisect_left(range(size), target, key=key)
        right = bisect_right(range(size), target, left, min(left + 1, size), key=key)
        return first, first + left, first + right, first + size

    def _equal(self, verdict: NDArray[np.bool_], candidates: Any, matches: Predicate) -> None:
        known = type(candidates) is tuple or type(candidates) is list
        # Many bisections cost more than asking of every value once.
        known = known and len(candidates) * self.size.bit_length() <= self.size
        others = False
        for candidate in candidates if known else ():
            place = self._place(candidate)
            if place is not None:
                verdict[place[1] : place[2]] = True
            known = known and (place is not None or type(candidate) in (bool, tuple))
            others = others or type(candidate) is not str
        if not known:
            self._ask(verdict, matches, range(1, self.size + 1))
        elif others:
            self._ask(verdict, matches, range(self.firsts[2], self.size + 1))

    def _search(self, verdict: NDArray[np.bool_], op: str, operand: str, matches: Predicate) -> None:
        """`$contains`, `$starts_with` or `$ends_with` of a str."""
        _, first, others = self.firsts
        wanted = _utf8(operand)
        if not wanted:
            verdict[first:others] = True
        elif op == "$starts_with":
            # No byte of UTF-8 is 0xFF: with the last byte raised, it is what follows all that begin with `wanted`.
            bounds = (wanted, wanted[:-1] + bytes((wanted[-1] + 1,)))
            start, stop = (bisect_left(range(len(self.texts)), bound, key=self._utf8) for bound in bounds)
            verdict[first + start : first + stop] = True
        else:
            # On to the end of the str, so that there is at most one match in each.
            end = b"\xff" if op == "$ends_with" else b"[^\xff]*"
            verdict[first + self.texts.found(re.escape(wanted) + end)] = True
        if op == "$contains":
            # An item's bytes are in those of its list; "" is the byte 0xA0. What looks alike may overlap them.
            found = self.others.found(re.escape(wanted[:1] or b"\xa0") + b"(?=" + re.escape(wanted[1:]) + b")")
            self._ask(verdict, matches, (others + found).tolist())

    def _ask(self, verdict: NDArray[np.bool_], matches: Predicate, codes: Iterable[int]) -> None:
        for code in codes:
            verdict[code] = matches({self.name: self._value(code)})

    def _value(self, code: int) -> Any:
        instants, texts, others = self.firsts
        if code < instants:
            return self._number(code - 1)
        if code < texts:
            return _EPOCH + self.instants.item(code - instants) * _MICROSECOND
        if code >= others:
            return decode(self.others[code - others])
        try:
            return self._utf8(code - texts).decode()
        except UnicodeDecodeError as exc:
            raise CorruptionError(f"index on metadata: a text of {self.name!r} is damaged: {exc}") from exc

    def _number(self, number: int) -> int | float:
        value: float = self.numbers.item(number)
        remainder = 0 if self.remainders is None else self.remainders.item(number)
        return int(value) + remainder if remainder else value

    def _utf8(self, number: int) -> bytes:
        return self.texts[number][:-1]


class _Strings:
    """Byte strings, one after another."""

    def __init__(self, arrays: _Arrays, count: int, size: int) -> None:
        self._bounds = arrays.take(_unsigned(size), count + 1)
        self._bytes = arrays.take("u1", size).data
        ends = int(self._bounds[0]), int(self._bounds[-1])
        _check(ends == (0, size) and _ascending(self._bounds), "bounds are damaged")

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, number: int) -> bytes:
        return bytes(self._bytes[self._bounds.item(number) : self._bounds.item(number + 1)])

    def found(self, pattern: bytes) -> NDArray[np.intp]:
        """The numbers of the strings in which a match of `pattern` begins; none may begin at the very end."""
        # Of the type of the bounds, or those would be converted.
        starts = np.fromiter((match.start() for match in re.finditer(pattern, self._bytes)), self._bounds.dtype)
        return np.unique(np.searchsorted(self._bounds, starts, "right")) - 1


class _Arrays:
    """The arrays of a section, taken one after another."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.at = 0

    def take(self, dtype: str, count: int) -> NDArray[Any]:
        """The next one, without copying it."""
        size = count * np.dtype(dtype).itemsize
        _check(size <= len(self.data) - self.at, "the arrays are longer than their section")
        values: NDArray[Any] = np.ndarray((count,), dtype, self.data, self.at)
        self.at += -(-size // _ALIGNMENT) * _ALIGNMENT
        return values


def _utf8(text: str) -> bytes:
    # A lone surrogate, which no stored str has, keeps its place in the order of code points.
    return text.encode("utf-8", "surrogatepass")


def _ascending(values: NDArray[Any]) -> bool:
    return bool(np.all(values[1:] >= values[:-1]))


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise CorruptionError(f"index on metadata: {otherwise}")
