"""Values and metadata through MessagePack: what comes back, what is refused and where, what damage does."""

from __future__ import annotations

import dataclasses
import enum
import math
import struct
import subprocess
import threading
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple
from uuid import UUID

import msgpack
import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tiermem.codec.serialize import (
    MAX_DEPTH,
    copy_value,
    decode,
    decode_all,
    decode_metadata,
    decoder,
    encode,
    encode_metadata,
)
from tiermem.errors import CorruptionError, EncodingError

# ---------------------------------------------------------------------------------------------------------- values

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    TEXT,
    st.binary(max_size=12),
)
ZONES = st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone)
MOMENTS = st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29), timezones=ZONES)
DTYPES = ["?", "<i1", "<i4", ">i8", "<u8", "<f2", "<f4", ">f8", "<c8", "<c16", "S3", "<U2", ">U2", "<M8[ns]", "<m8[3s]"]


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    size = math.prod(shape)
    numbers = np.array(draw(st.lists(st.integers(0, 90), min_size=size, max_size=size)), "<i8")
    array = numbers.astype(dtype).reshape(shape)
    return array.T if draw(st.booleans()) else array


EXTENDED = st.one_of(st.dates(), MOMENTS, st.decimals(), st.uuids(), arrays())


def _containers(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(children, max_size=4),
        st.lists(children, max_size=4).map(tuple),
        st.dictionaries(TEXT, children, max_size=4),
    )


VALUES = st.recursive(PLAIN | EXTENDED, _containers, max_leaves=12)


def canonical(value: Any) -> Any:
    """What `value` comes back as, written down independently, in a form that compares NaN, types and dtypes."""
    if isinstance(value, np.ndarray):
        return ("array", value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if isinstance(value, dict):
        return {name: canonical(item) for name, item in value.items()}
    if isinstance(value, float):
        return ("float", "nan" if math.isnan(value) else struct.pack(">d", value))
    if isinstance(value, datetime):
        return ("datetime", value.astimezone(UTC).replace(tzinfo=None))
    if isinstance(value, Decimal):
        return ("Decimal", str(value))
    return (type(value).__name__, value)


@given(VALUES)
def test_every_value_comes_back_with_its_type(value: Any) -> None:
    raw = encode(value)
    back = decode(raw)
    assert canonical(back) == canonical(value)
    assert encode(back) == raw
    assert canonical(decode(memoryview(raw))) == canonical(value)


def _ext(code: int, payload: bytes) -> Any:
    if code == 1:
        return Decimal(payload.decode())
    if code == 2:
        return UUID(payload.hex())
    if code == 3:
        (days,) = struct.unpack(">I", payload)
        return date(1, 1, 1) + timedelta(days - 1)
    assert code == 4
    dtype, shape, elements = msgpack.unpackb(payload)
    return np.ndarray(shape, dtype, elements or None)


@given(VALUES)
def test_another_reader_reads_the_same(value: Any) -> None:
    read = msgpack.unpackb(encode(value), ext_hook=_ext, timestamp=3, strict_map_key=True)
    assert canonical(read) == canonical(value)


@given(PLAIN | st.dictionaries(TEXT, PLAIN) | st.lists(PLAIN) | st.dictionaries(TEXT, VALUES, max_size=3))
def test_skipping_the_lowering_changes_nothing(value: Any) -> None:
    # A subclass of dict or list never takes the short way.
    detour: Any = {dict: OrderedDict, list: SubList}.get(type(value), lambda same: same)(value)
    assert encode(detour) == encode(value)
    assert encode([value])[1:] == encode(value)
    assert encode((SubList([value]),))[2:] == encode(value)


class SubList(list[Any]):
    pass


class SubTuple(tuple[Any, ...]):
    __slots__ = ()


class SubStr(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "something else"


class SubInt(int):
    def __int__(self) -> int:
        return 99


class SubFloat(float):
    pass


class SubBytes(bytes):
    pass


class Moment(datetime):
    pass


class Day(date):
    pass


class Money(Decimal):
    def __str__(self) -> str:
        return "9"


class Side(enum.Enum):
    BUY = "buy"
    SELL = "sell"


class Era(enum.Enum):
    SINCE = date(2024, 5, 6)


class Level(enum.IntEnum):
    HIGH = 3


class Colour(enum.StrEnum):
    RED = "red"


class Mixed(str, enum.Enum):
    ONE = "one"


class Bits(enum.Flag):
    A = 1
    B = 2


Pair = namedtuple("Pair", "left right")  # noqa: PYI024 - the untyped kind is stored too


class Typed(NamedTuple):
    name: str
    when: date


@dataclasses.dataclass
class Fill:
    px: float
    qty: int
    kind: ClassVar[str] = "fill"
    _note: str = "n"
    paid: dataclasses.InitVar[bool] = True
    notional: float = dataclasses.field(init=False, default=0.0)

    def __post_init__(self, paid: bool) -> None:
        self.notional = self.px * self.qty


@dataclasses.dataclass(slots=True, frozen=True)
class Slotted:
    when: date
    tags: tuple[str, ...] = ()


class Position(msgspec.Struct):
    symbol: str
    qty: int
    px: float = 0.0


class Rich(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", tag=True):
    net_value: Decimal
    opened_on: date
    ident: UUID | None = None
    at_time: datetime | None = None
    side: Side = Side.BUY
    legs: list[Position] = []
    note: str | msgspec.UnsetType = msgspec.UNSET

    def __len__(self) -> int:
        return 0


class Unset(msgspec.Struct):
    note: str | msgspec.UnsetType = msgspec.UNSET
    legs: Any = None


class Row(msgspec.Struct, array_like=True):
    px: float
    day: date


class Book(msgspec.Struct):
    weights: np.ndarray[Any, Any]
    name: str = "b"


DAY = date(2024, 5, 6)
NOON = datetime(2024, 5, 6, 12, tzinfo=UTC)
FILL = Fill(2.0, 3)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Pair(1, [2]), [1, [2]]),
        (Typed("x", DAY), ["x", DAY]),
        (SubTuple((1, 2)), [1, 2]),
        (defaultdict(list, a=(1,)), {"a": [1]}),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        ({SubStr("k"): SubStr("v")}, {"k": "v"}),
        ({np.str_("k"): 1}, {"k": 1}),
        ([SubInt(5), SubFloat(1.5), SubBytes(b"x")], [5, 1.5, b"x"]),
        ([Level.HIGH, Colour.RED, Mixed.ONE, Bits.A | Bits.B], [3, "red", "one", 3]),
        ([Side.BUY, Era.SINCE], ["buy", DAY]),
        (Day(2024, 5, 6), DAY),
        (Moment(2024, 5, 6, 12, tzinfo=UTC), NOON),
        (Money("1.50"), Decimal("1.50")),
        ([np.float32(0.5), np.float64(2.5), np.float16(1), np.longdouble(3)], [0.5, 2.5, 1.0, 3.0]),
        ([np.int8(-3), np.uint64(2**64 - 1), np.bool_(True)], [-3, 2**64 - 1, True]),
        ([np.str_("s"), np.bytes_(b"b")], ["s", b"b"]),
        (FILL, {"px": 2.0, "qty": 3, "_note": "n", "notional": 6.0}),
        ([Slotted(DAY, ("a",))], [{"when": DAY, "tags": ["a"]}]),
        (Position("AIG", 2), {"symbol": "AIG", "qty": 2, "px": 0.0}),
        ({"p": [Position("AIG", 2)]}, {"p": [{"symbol": "AIG", "qty": 2, "px": 0.0}]}),
        (Rich(Decimal("1.0"), DAY), {"type": "Rich", "netValue": Decimal("1.0"), "openedOn": DAY, "side": "buy"}),
        (Row(1.0, DAY), [1.0, DAY]),
        (Unset(legs=[DAY]), {"legs": [DAY]}),
        (Position(SubStr("s"), SubInt(4), px=np.float32(2)), {"symbol": "s", "qty": 4, "px": 2.0}),
    ],
)
def test_what_is_lowered_comes_back_as_its_base(value: Any, expected: Any) -> None:
    back = decode(encode(value))
    assert canonical(back) == canonical(expected)


def test_a_struct_is_never_changed_by_being_encoded() -> None:
    value = Rich(Decimal("1.0"), DAY, legs=[Position("x", np.int64(1))])
    encode(value)
    assert value.net_value == Decimal("1.0")
    assert isinstance(value.net_value, Decimal)
    assert isinstance(value.legs[0].qty, np.int64)


def test_instants_at_the_ends_of_the_calendar() -> None:
    first = datetime(1, 1, 1, 1, tzinfo=timezone(timedelta(hours=1)))
    last = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
    assert decode(encode([first, last])) == [first, last]
    with pytest.raises(EncodingError, match=r"^value\[0\]: datetime outside the years") as info:
        encode([datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1)))])
    assert isinstance(info.value.__cause__, OverflowError)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24.0).reshape(2, 3, 4)[:, ::2, ::-1],
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.array(7, ">i2"),
        np.empty((0, 5), "f4"),
        np.empty((3, 0), "<M8[D]"),
        np.array(["a", "längst"]),
        np.array([b"a", b"bc"]),
        np.array(["2024-01-01", "NaT"], "M8[us]"),
        np.ndarray((3,), "<U0"),
        np.array([1, 2], "longdouble"),
        np.zeros((1,) * 20, "i1"),
    ],
    ids=lambda array: f"{array.dtype}{array.shape[:3]}",
)
def test_arrays_keep_dtype_and_shape_and_own_their_memory(array: np.ndarray[Any, Any]) -> None:
    raw = bytearray(encode({"a": array}))
    back = decode(memoryview(raw))["a"]
    raw[:] = bytes(len(raw))
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert np.array_equal(back, array) or array.dtype.kind == "M"
    assert back.tobytes() == array.tobytes()
    assert back.flags.writeable
    assert back.flags.owndata
    assert back.flags.c_contiguous


def test_a_subclass_of_array_comes_back_as_an_array(tmp_path: Any) -> None:
    mapped = np.memmap(tmp_path / "m", "f4", "w+", shape=(3,))
    back = decode(encode(mapped))
    assert type(back) is np.ndarray
    assert back.tolist() == [0.0, 0.0, 0.0]


@given(VALUES)
def test_a_result_shares_no_memory_with_the_bytes(value: Any) -> None:
    raw = bytearray(encode(value))
    view = memoryview(raw)
    back = decode(view)
    raw[:] = b"\xff" * len(raw)
    view.release()
    # A buffer that something still refers to refuses to be resized.
    raw.clear()
    assert canonical(back) == canonical(value)


# -------------------------------------------------------------------------------------------------------- refusals


class Anything:
    pass


def _cyclic() -> Any:
    value: dict[str, Any] = {"a": []}
    value["a"].append(value)
    return {"top": value}


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


class NoZone(tzinfo):
    def utcoffset(self, when: datetime | None) -> None:
        return None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1, 2}, r"value: set cannot be stored"),
        ({"a": [0, 1, 2, {3}]}, r"value\['a'\]\[3\]: set cannot be stored"),
        ([frozenset()], r"value\[0\]: frozenset cannot"),
        ((time(1),), r"value\[0\]: time cannot"),
        ({"t": timedelta(1)}, r"value\['t'\]: timedelta cannot"),
        ({"b": bytearray(b"x")}, r"value\['b'\]: bytearray cannot"),
        ({"b": memoryview(b"x")}, r"value\['b'\]: memoryview cannot"),
        (1j, r"value: complex cannot"),
        (np.complex128(1), r"value: complex128 cannot"),
        (np.datetime64("2024-01-01"), r"value: datetime64 cannot"),
        (np.timedelta64(1, "s"), r"value: timedelta64 cannot"),
        (Anything(), r"value: Anything cannot"),
        (Anything, r"value: type cannot"),
        (Fill, r"value: type cannot"),
        (len, r"value: builtin_function_or_method cannot"),
        (..., r"value: ellipsis cannot"),
        (MappingProxyType({}), r"value: mappingproxy cannot"),
        (range(3), r"value: range cannot"),
        (msgspec.UNSET, r"value: UnsetType cannot"),
        (msgspec.Raw(b"\xc0"), r"value: Raw cannot"),
        (msgspec.msgpack.Ext(1, b"1"), r"value: Ext cannot"),
        ({1: 2}, r"value: a key of type int cannot be stored; keys are str"),
        ({"a": {b"k": 2}}, r"value\['a'\]: a key of type bytes"),
        ({"a": [{None: 2}]}, r"value\['a'\]\[0\]: a key of type NoneType"),
        ({(1, 2): 3}, r"value: a key of type tuple"),
        ({Colour.RED: 3}, r"value: a key of type Colour"),
        ({Mixed.ONE: 3}, r"value: a key of type Mixed"),
        ({"a": 2**64}, r"value\['a'\]: int outside"),
        ([-(2**63) - 1], r"value\[0\]: int outside"),
        ({"a": (1, {"b": 2**80})}, r"value\['a'\]\[1\]\['b'\]: int outside"),
        ("\ud800", r"value: str that is not valid Unicode"),
        ([["\udfff"]], r"value\[0\]\[0\]: str that is not valid Unicode"),
        ({"x": {"\ud800": 1}}, r"value\['x'\]: str that is not valid Unicode"),
        ({"at": datetime(2024, 1, 1)}, r"value\['at'\]: naive datetime"),
        (datetime(2024, 1, 1, tzinfo=NoZone()), r"value: naive datetime"),
        ({"a": np.array([object()])}, r"value\['a'\]: array of dtype object"),
        (np.zeros(2, "i4,f4"), r"value: array of dtype"),
        (np.zeros(2, "V3"), r"value: array of dtype"),
        (np.ma.masked_array([1, 2], [True, False]), r"value: masked array"),
        (Fill(1.0, 0, {1}), r"value\._note: set cannot"),
        ([Position("a", 2**70)], r"value\[0\]\.qty: int outside"),
        (Slotted(DAY, ({1},)), r"value\.tags\[0\]: set cannot"),
        (enum.Enum("E", {"A": {1}}).A, r"value\.value: set cannot"),
        (Unset(legs={1}), r"value\.legs: set cannot"),
        (_cyclic(), r"value\['top'\]\['a'\]: nested too deeply, at most 200 levels, or holds itself"),
        (_deep(MAX_DEPTH + 1), r"value.*: nested too deeply"),
        (_deep(5000), r"value.*: nested too deeply"),
    ],
)
def test_what_cannot_be_stored_is_named(value: Any, message: str) -> None:
    with pytest.raises(EncodingError, match=f"^{message}"):
        encode(value)


@pytest.mark.parametrize(
    ("value", "cause"),
    [
        (2**64, OverflowError),
        ([{"a": 2**64}], OverflowError),
        (["\ud800"], UnicodeEncodeError),
        (_cyclic(), RecursionError),
        (_deep(9000), RecursionError),
    ],
    ids=["int", "inner int", "surrogate", "cycle", "deep"],
)
def test_the_cause_is_kept(value: Any, cause: type[Exception]) -> None:
    with pytest.raises(EncodingError) as info:
        encode(value)
    assert isinstance(info.value.__cause__, cause)


def test_the_deepest_value_comes_back() -> None:
    assert decode(encode(_deep(MAX_DEPTH))) == _deep(MAX_DEPTH)
    assert copy_value(_deep(MAX_DEPTH)) == _deep(MAX_DEPTH)


def test_a_missing_field_is_an_encoding_error() -> None:
    fill, position = Fill(1.0, 1), Position("x", 1)
    del fill.qty
    del position.qty
    for value in (fill, position):
        with pytest.raises(EncodingError, match=r"^value\[0\]: .*qty"):
            encode([value])


# Anything at all, storable or not: the only way out is an EncodingError.
WILD = st.recursive(
    PLAIN | EXTENDED | st.integers() | st.text() | st.complex_numbers() | st.times() | st.datetimes() | st.timedeltas(),
    lambda children: (
        _containers(children)
        | st.dictionaries(PLAIN | st.text(), children, max_size=3)
        | st.builds(Position, children, children)
        | st.builds(Slotted, children, children)
        | st.frozensets(PLAIN, max_size=2)
    ),
    max_leaves=8,
)


@given(WILD)
@example({"a": {1: 2}})
def test_a_value_is_stored_whole_or_refused(value: Any) -> None:
    try:
        raw = encode(value)
    except EncodingError as error:
        assert str(error).startswith("value")  # noqa: PT017 - only some of the values raise
    else:
        assert encode(decode(raw)) == raw


# ---------------------------------------------------------------------------------------------------------- damage


@given(st.dictionaries(TEXT, VALUES, min_size=1, max_size=4), st.data())
def test_damage_is_corruption_or_some_value(value: Any, data: st.DataObject) -> None:
    raw = bytearray(encode(value))
    for position, byte in data.draw(st.lists(st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)), max_size=4)):
        raw[position] = byte
    cut = raw[: data.draw(st.integers(0, len(raw)))]
    for damaged in (raw, cut):
        for read in (decode, decode_metadata, decoder(dict[str, Any])):
            try:
                read(bytes(damaged))
            except (CorruptionError, EncodingError) as error:
                assert isinstance(error, CorruptionError) or read not in (decode, decode_metadata)  # noqa: PT017 - damage may go unseen


@given(VALUES)
def test_every_truncation_is_corruption(value: Any) -> None:
    raw = encode(value)
    for end in range(0, len(raw), max(1, len(raw) // 40)):
        with pytest.raises(CorruptionError):
            decode(raw[:end])
    with pytest.raises(CorruptionError):
        decode(raw + b"\xc0")


@given(st.binary(max_size=60))
def test_any_bytes_are_corruption_or_some_value(raw: bytes) -> None:
    try:
        decode(raw)
    except CorruptionError as error:
        assert error.__cause__ is not None  # noqa: PT017 - some bytes are a value


def _array_payload(dtype: Any, shape: Any, elements: Any) -> Any:
    return (4, msgpack.packb([dtype, shape, elements]))


@pytest.mark.parametrize(
    ("code", "payload"),
    [
        (1, b"no number"),
        (1, b"\xff"),
        (1, b"1E+99999999999999999999999"),
        (2, b"short"),
        (3, b""),
        (3, b"\x00\x00\x00\x00"),
        (3, b"\xff\xff\xff\xff"),
        (3, b"\x00\x00\x00\x00\x01"),
        (4, b""),
        (5, b"x"),
        (-2, b"x"),
        (-1, b"x"),
        _array_payload("<f8", [2], b"\x00" * 15),
        _array_payload("<f8", [-2, -1], b"\x00" * 16),
        _array_payload("<f8", [0, 2**62], b""),
        _array_payload("|O", [1], b"\x00" * 8),
        _array_payload("object", [1], b"\x00" * 8),
        _array_payload("i4,f4", [1], b"\x00" * 8),
        _array_payload("(2,)i4", [1], b"\x00" * 8),
        _array_payload("|V8", [1], b"\x00" * 8),
        _array_payload("<f9", [1], b"\x00" * 9),
        _array_payload("", [1], b"\x00" * 9),
        _array_payload("<U" + "9" * 50, [0], b""),
        _array_payload("<f8", [1] * 100, b"\x00" * 8),
        _array_payload(8, [1], b"\x00" * 8),
        _array_payload("<f8", [True], b"\x00" * 8),
        _array_payload("<f8", 1, b"\x00" * 8),
        _array_payload("<f8", [1], "text"),
    ],
)
def test_a_bad_extension_is_corruption(code: int, payload: bytes) -> None:
    raw = msgspec.msgpack.encode({"a": msgspec.msgpack.Ext(code, payload)})
    for read in (decode, decode_metadata, decoder(dict[str, Any]), decoder(Book)):
        with pytest.raises(CorruptionError) as info:
            read(raw)
        assert info.value.__cause__ is not None


@pytest.mark.parametrize(
    "raw",
    [b"", b"\xc1", b"\x91" * 5000, b"\xdd\xff\xff\xff\xff", b"\xa2\xff\xfe", b"\x81\x80\x01", b"\x81" * 3000],
    ids=["empty", "unused", "deep", "huge", "utf-8", "key", "deep key"],
)
def test_malformed_bytes_are_corruption(raw: bytes) -> None:
    for read in (decode, decoder(Position), decoder(Any)):
        with pytest.raises(CorruptionError):
            read(raw)


def test_metadata_that_is_no_dict_is_corruption() -> None:
    for value in ([1], 1, "x", None):
        with pytest.raises(CorruptionError):
            decode_metadata(encode(value))
    with pytest.raises(CorruptionError):
        decode_metadata(msgspec.msgpack.encode({1: 2}))


# ----------------------------------------------------------------------------------------------------------- typed


@pytest.mark.parametrize(
    ("value", "type_"),
    [
        (Position("AIG", 2, 1.5), Position),
        (Rich(Decimal("1.50"), DAY, UUID(int=7), NOON, Side.SELL, [Position("x", 1)], "n"), Rich),
        (Rich(Decimal("-0"), DAY), Rich),
        (Row(1.0, DAY), Row),
        (Slotted(DAY, ("a", "b")), Slotted),
        ([Slotted(DAY)], list[Slotted]),
        (Typed("x", DAY), Typed),
        ({"a": Decimal("1.5")}, dict[str, Decimal]),
        (Level.HIGH, Level),
        (NOON, datetime),
        (DAY, date),
        ((1, "a"), tuple[int, str]),
    ],
)
def test_a_typed_value_comes_back_as_itself(value: Any, type_: Any) -> None:
    read = decoder(type_)
    raw = encode(value)
    for data in (raw, memoryview(raw), raw):
        back = read(data)
        assert back == value
        assert type(back) is type(value)


def test_a_typed_array_comes_back() -> None:
    read = decoder(Book)
    weights = np.arange(3, dtype="f4")
    for _ in range(2):
        back = read(encode(Book(weights)))
        assert back.weights.dtype == weights.dtype
        assert back.weights.tolist() == [0.0, 1.0, 2.0]


def test_several_values_are_decoded_as_each_of_them_is() -> None:
    values = [None, {"px": Decimal("1.5")}, [1, 2], "text"]
    encoded = [encode(value) for value in values]
    assert decode_all(encoded) == values
    assert decode_all([]) == []
    with pytest.raises(CorruptionError, match="damaged"):
        decode_all([*encoded, b"\xc1"])


def test_no_type_is_the_plain_decoder() -> None:
    assert decoder(None) is decode
    assert decoder(Any)(encode([DAY, (1,)])) == [DAY, [1]]


@pytest.mark.parametrize(
    ("value", "type_", "message"),
    [
        ({"symbol": "x"}, Position, r"stored value does not fit Position: .*qty"),
        ({"symbol": 1, "qty": 1}, Position, r"does not fit Position: Expected `str`, got `int`"),
        ([1, "x"], list[int], r"does not fit list"),
        (DAY, Decimal, r"does not fit Decimal"),
        ({"weights": [1.0]}, Book, r"does not fit Book"),
        (np.zeros(2), Position, r"does not fit Position"),
        ([np.zeros(2)], list[Slotted], r"does not fit list"),
        (np.zeros(2), dict[str, int], r"does not fit dict"),
        (np.zeros(2), list[int], r"does not fit list"),
    ],
)
def test_a_value_that_does_not_fit_its_type(value: Any, type_: Any, message: str) -> None:
    read = decoder(type_)
    for _ in range(2):
        with pytest.raises(EncodingError, match=message):
            read(encode(value))


def test_a_misfit_does_not_change_how_a_type_is_read() -> None:
    read = decoder(Slotted)
    with pytest.raises(EncodingError):
        read(encode(1))
    assert read(encode(Slotted(DAY))) == Slotted(DAY)
    with pytest.raises(EncodingError):
        read(encode(1))
    assert read(encode({"when": "2024-05-06"})) == Slotted(DAY)


def test_a_type_nothing_can_be_decoded_into() -> None:
    with pytest.raises(EncodingError, match="cannot be decoded into") as info:
        decoder(list[int] | tuple[str])
    assert isinstance(info.value.__cause__, TypeError)


def test_a_typed_result_shares_no_memory_with_the_bytes() -> None:
    class Holder(msgspec.Struct):
        raw: msgspec.Raw
        view: memoryview
        data: bytes

    raw = bytearray(encode({"raw": "text", "view": b"view", "data": b"data"}))
    back = decoder(Holder)(memoryview(raw))
    raw.clear()
    assert bytes(back.raw) == b"\xa4text"
    assert (bytes(back.view), back.data) == (b"view", b"data")


@given(st.builds(Position, TEXT, st.integers(-(2**63), 2**63), st.floats(allow_nan=False)))
def test_a_struct_reads_the_same_with_and_without_its_type(value: Position) -> None:
    raw = encode(value)
    assert decoder(Position)(raw) == value
    assert decode(raw) == msgspec.structs.asdict(value)
    assert encode(decode(raw)) == raw


# -------------------------------------------------------------------------------------------------------- metadata

FIELDS = st.one_of(TEXT, st.integers(-(2**63), 2**64 - 1), st.floats(), st.booleans(), MOMENTS)
NAMES = TEXT.filter(lambda name: name and name[0] != "$")


@given(st.dictionaries(NAMES, FIELDS | st.lists(FIELDS, max_size=3) | st.lists(FIELDS, max_size=3).map(tuple)))
def test_metadata_comes_back(metadata: dict[str, Any]) -> None:
    raw = encode_metadata(metadata)
    assert canonical(decode_metadata(raw)) == canonical(metadata)
    assert encode_metadata(MappingProxyType(metadata)) == raw
    assert raw == (encode(metadata) if metadata else b"")


def test_no_metadata_is_no_bytes() -> None:
    assert encode_metadata(None) == encode_metadata({}) == encode_metadata(MappingProxyType({})) == b""
    assert decode_metadata(b"") == decode_metadata(memoryview(b"")) == {}


def test_metadata_is_lowered_like_a_value() -> None:
    raw = encode_metadata(
        {"a": np.float32(0.5), "b": [np.int64(3)], "c": Colour.RED, "d": Level.HIGH, "e": SubStr("s"), "!": 1, "x$": 2}
    )
    assert decode_metadata(raw) == {"a": 0.5, "b": [3], "c": "red", "d": 3, "e": "s", "!": 1, "x$": 2}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"f": None}, r"metadata\['f'\]: NoneType is no metadata value"),
        ({"ok": 1, "f": b"x"}, r"metadata\['f'\]: bytes is no metadata value"),
        ({"f": {}}, r"metadata\['f'\]: dict is no metadata value"),
        ({"f": [1, [2]]}, r"metadata\['f'\]\[1\]: list is no metadata value"),
        ({"f": [1, None]}, r"metadata\['f'\]\[1\]: NoneType is no metadata value"),
        ({"f": {1}}, r"metadata\['f'\]: set cannot be stored"),
        ({"f": [1, {1}]}, r"metadata\['f'\]\[1\]: set cannot be stored"),
        ({"f": DAY}, r"metadata\['f'\]: date is no metadata value"),
        ({"f": Decimal(1)}, r"metadata\['f'\]: Decimal is no"),
        ({"f": np.zeros(2)}, r"metadata\['f'\]: ndarray is no"),
        ({"f": Position("a", 1)}, r"metadata\['f'\]: Position is no"),
        ({"f": FILL}, r"metadata\['f'\]: Fill is no"),
        ({"f": datetime(2024, 1, 1)}, r"metadata\['f'\]: naive datetime"),
        ({"f": [datetime(2024, 1, 1)]}, r"metadata\['f'\]\[0\]: naive datetime"),
        ({"f": 2**64}, r"metadata\['f'\]: int outside"),
        ({"f": [0, 2**64]}, r"metadata\['f'\]\[1\]: int outside"),
        ({"f": "\ud800"}, r"metadata\['f'\]: str that is not valid Unicode"),
        ({"\ud800": 1}, r"metadata: str that is not valid Unicode"),
        ({1: 1}, r"metadata: a key of type int"),
        ({Colour.RED: 1}, r"metadata: a key of type Colour"),
        ({"": 1}, r"metadata: field name '' is empty or begins with '\$'"),
        ({"$and": 1}, r"metadata: field name '\$and' is empty or begins with '\$'"),
        ([("a", 1)], r"metadata is a dict, not list"),
        (0, r"metadata is a dict, not int"),
    ],
)
def test_metadata_that_cannot_be_stored_is_named(metadata: Any, message: str) -> None:
    with pytest.raises(EncodingError, match=f"^{message}"):
        encode_metadata(metadata)


# ---------------------------------------------------------------------------------------------- what a copy shares


def _mutables(value: Any) -> list[int]:
    if isinstance(value, dict):
        return [id(value), *(one for item in value.values() for one in _mutables(item))]
    if isinstance(value, list):
        return [id(value), *(one for item in value for one in _mutables(item))]
    return [id(value)] if isinstance(value, np.ndarray | msgspec.Struct) else []


@given(VALUES)
def test_a_copy_is_equal_and_shares_nothing_mutable(value: Any) -> None:
    value = decode(encode(value))
    copied = copy_value(value)
    assert canonical(copied) == canonical(value)
    assert not set(_mutables(copied)) & set(_mutables(value))


def test_a_typed_value_is_copied_in_depth() -> None:
    value = Rich(Decimal(1), DAY, legs=[Position("x", 1)])
    copied = copy_value({"v": value})["v"]
    assert copied == value
    assert not set(_mutables(copied.legs)) & set(_mutables(value.legs))


def test_numpy_is_not_imported_for_plain_values(run_python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = run_python(
        """
        import sys
        from tiermem.codec.serialize import decode, encode, encode_metadata
        assert decode(encode({"a": 1, "b": [{"c": (1.5, None)}]})) == {"a": 1, "b": [{"c": [1.5, None]}]}
        encode_metadata({"a": [1]})
        try:
            encode({"a": object()})
        except TypeError as error:
            print(error)
        assert "numpy" not in sys.modules
        """
    )
    assert done.stdout == "value['a']: object cannot be stored\n"


def test_threads_share_the_encoder_and_the_decoders() -> None:
    values = [{"n": n, "rows": [{"d": Decimal(n), "s": "x" * n}] * 20} for n in range(4)]
    wrong: list[Any] = []

    def work(value: Any) -> None:
        wrong.extend(None for _ in range(200) if decode(encode(value)) != value)

    threads = [threading.Thread(target=work, args=(value,)) for value in values]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
