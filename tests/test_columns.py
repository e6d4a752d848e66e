"""The index on metadata: it answers every tree as the filter does, row by row, and survives damage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tiermem.codec.serialize import decode_metadata, encode_metadata
from tiermem.errors import CorruptionError
from tiermem.policy.filters import And, Compare, Filter, Node, Not, Or, compile_filter
from tiermem.tiers.vector.columns import DATA, FIELDS, Columns, encode_columns

NAN = math.nan
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
BIG = 2**53
ORDERINGS = ("$gt", "$gte", "$lt", "$lte")
EVERYTHING: Node = And(())
NOTHING: Node = Or(())


def views(sections: Mapping[str, bytes]) -> dict[str, memoryview]:
    return {name: memoryview(section) for name, section in sections.items()}


def indexed(metadata: Sequence[Mapping[str, object]]) -> Columns:
    return Columns(views(encode_columns([encode_metadata(fields) for fields in metadata])), len(metadata))


def by_row(metadata: Sequence[Mapping[str, object]], node: Node) -> NDArray[np.uint8]:
    """What the index has to say: the filter's verdicts on what the rows decode to, padded to whole words and packed."""
    matches = Filter(node)
    mask = np.zeros((len(metadata) + 63) // 64 * 64, bool)
    mask[: len(metadata)] = [matches(decode_metadata(encode_metadata(fields))) for fields in metadata]
    return np.packbits(mask, bitorder="little")


def rows_of(bits: NDArray[np.uint8]) -> list[int]:
    return np.flatnonzero(np.unpackbits(bits, bitorder="little")).tolist()


# -- equal to the filter, row by row -----------------------------------------------------------------------------------

# Few names and few values, so that equal, nearly equal and missing all come up often.
names = st.sampled_from(["a", "b", "c"])
strings = st.one_of(
    st.text("ab", max_size=3),
    # One code point beside another in UTF-8, and where one byte takes over from two, two from three, three from four.
    st.text("\x00\n\x7f\x80\xa0\xc3\xe9\xff\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff", max_size=3),
)
numbers = st.one_of(
    st.integers(-2, 2),
    st.sampled_from([0.0, -0.0, 0.5, 1.0, 5e-324, 1e300, NAN, math.inf, -math.inf]),
    st.sampled_from([BIG, BIG + 1, -BIG - 1, float(BIG), 2**63 - 1, 2**63, 2**63 + 1, 2.0**63, 2**64 - 1, -(2**63)]),
)
times = st.one_of(
    st.builds(
        lambda microseconds, hours: (NOON + timedelta(microseconds=microseconds)).astimezone(
            timezone(timedelta(hours=hours))
        ),
        st.integers(-1, 1),
        st.integers(-2, 2),
    ),
    st.sampled_from([datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)]),
)
scalars = st.one_of(strings, numbers, st.booleans(), times)
lists = st.lists(scalars, max_size=3)
values = st.one_of(scalars, lists)
rows = st.one_of(
    st.lists(st.dictionaries(names, values, max_size=3), max_size=80),
    # Mostly empty, and so sparse.
    st.builds(
        lambda count, some: [some.get(row, {}) for row in range(count)],
        st.integers(0, 200),
        st.dictionaries(st.integers(0, 199), st.dictionaries(names, values, max_size=3), max_size=10),
    ),
)

operands = values.map(lambda value: tuple(value) if isinstance(value, list) else value)
# What no metadata holds may still be asked for.
strangers = st.sampled_from([10**400, -(10**400), "\ud800", "a\udfff", "\U0010ffff" * 2])
fields = st.sampled_from(["a", "b", "c", "absent"])
leaves = st.one_of(
    st.builds(Compare, fields, st.sampled_from(["$eq", "$ne"]), st.one_of(operands, strangers)),
    st.builds(
        Compare,
        fields,
        st.sampled_from(["$in", "$nin"]),
        st.lists(st.one_of(operands, strangers), max_size=4).map(tuple),
    ),
    st.builds(Compare, fields, st.sampled_from(ORDERINGS), st.one_of(strings, numbers, times, strangers)),
    st.builds(Compare, fields, st.just("$exists"), st.booleans()),
    st.builds(Compare, fields, st.just("$contains"), st.one_of(scalars, strangers)),
    st.builds(Compare, fields, st.sampled_from(["$starts_with", "$ends_with"]), strings),
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.builds(And, st.lists(inner, max_size=3).map(tuple)),
        st.builds(Or, st.lists(inner, max_size=3).map(tuple)),
    ),
    max_leaves=6,
)


@given(metadata=rows, nodes=st.lists(trees, min_size=1, max_size=8))
def test_every_tree_is_answered_as_by_the_filter(metadata: list[dict[str, Any]], nodes: list[Node]) -> None:
    columns = indexed(metadata)
    for node in nodes:
        bits = columns.bits(node)
        assert bits.dtype == np.uint8
        assert bits.tolist() == by_row(metadata, node).tolist(), node


@given(metadata=rows, candidates=st.lists(operands, min_size=1, max_size=200).map(tuple))
def test_many_candidates_are_answered_as_by_the_filter(
    metadata: list[dict[str, Any]], candidates: tuple[Any, ...]
) -> None:
    columns = indexed(metadata)
    for op in ("$in", "$nin"):
        node = Compare("a", op, candidates)
        assert columns.bits(node).tolist() == by_row(metadata, node).tolist()


# Trees that no `where` compiles to, but that can be built.
UNPARSED: list[Node] = [
    Compare("a", "$eq", None),
    Compare("a", "$ne", None),
    Compare("a", "$eq", [1, "x"]),
    Compare("a", "$eq", datetime(2024, 5, 1, 12)),
    Compare("a", "$in", "xy"),
    Compare("a", "$in", (None, 1)),
    Compare("a", "$gte", True),
    Compare("a", "$starts_with", ("x", "y")),
    Compare("a", "$exists", 1),
]


@pytest.mark.parametrize("node", UNPARSED, ids=repr)
def test_a_tree_that_no_where_gives_is_answered_as_by_the_filter(node: Node) -> None:
    values = [1, 0.5, True, "x", "xy", "", NAN, NOON, [], [1, "x"], ["x", 1.0], BIG + 1, -(2**63)]
    metadata: list[dict[str, Any]] = [{}, *({"a": value} for value in values)]
    assert indexed(metadata).bits(node).tolist() == by_row(metadata, node).tolist()


@pytest.mark.parametrize("distinct", [3, 255, 256, 65_535, 65_536])
def test_every_width_of_codes(distinct: int) -> None:
    metadata = [{"a": number, "b": f"{number:x}", "rare": number} for number in range(distinct)]
    for row in range(distinct):
        if row % 16:
            del metadata[row]["rare"]
    metadata.append({})
    columns = indexed(metadata)
    middle = distinct // 2
    assert rows_of(columns.bits(Compare("a", "$gte", middle))) == [*range(middle, distinct)]
    assert rows_of(columns.bits(Compare("a", "$ne", middle))) == [row for row in range(distinct + 1) if row != middle]
    assert rows_of(columns.bits(Compare("a", "$exists", True))) == [*range(distinct)]
    assert rows_of(columns.bits(Compare("a", "$in", tuple(range(0, distinct, 7))))) == [*range(0, distinct, 7)]
    assert rows_of(columns.bits(Compare("b", "$eq", f"{middle:x}"))) == [middle]
    wanted = [row for row in range(distinct) if f"{row:x}".endswith("1")]
    assert rows_of(columns.bits(Compare("b", "$ends_with", "1"))) == wanted
    assert rows_of(columns.bits(Compare("rare", "$lt", middle))) == [*range(0, middle, 16)]
    assert rows_of(columns.bits(Not(Compare("rare", "$lt", 1)))) == [*range(1, distinct + 1)]


# -- the form of an answer, and of the sections ------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 63, 64, 65, 128])
def test_bits_are_whole_words_and_none_is_set_beyond_the_last_row(count: int) -> None:
    columns = indexed([{"a": 1}] * count)
    trees = (EVERYTHING, Not(NOTHING), Compare("a", "$eq", 1), Not(Compare("b", "$eq", 1)), Compare("b", "$ne", 1))
    for node in trees:
        bits = columns.bits(node)
        assert bits.size == (count + 63) // 64 * 8
        assert rows_of(bits) == [*range(count)]
    for node in (NOTHING, Not(EVERYTHING), Compare("a", "$gt", 1), Compare("b", "$exists", True)):
        assert rows_of(columns.bits(node)) == []


def test_an_answer_belongs_to_who_asked() -> None:
    columns = indexed([{"a": row} for row in range(10)])
    node = Compare("a", "$lt", 5)
    first = columns.bits(node)
    first[:] = 255
    assert rows_of(columns.bits(node)) == [*range(5)]


def test_equal_rows_give_equal_sections_whatever_their_values_are_called() -> None:
    one = encode_columns([encode_metadata(fields) for fields in ({"a": 0, "b": 1}, {"b": 2}, {"a": -0.0})])
    other = encode_columns([encode_metadata(fields) for fields in ({"b": 1.0, "a": -0.0}, {"b": 2.0}, {"a": 0})])
    assert one == other


def test_the_arrays_lie_in_the_section_and_are_not_copied() -> None:
    sections = encode_columns([encode_metadata({"a": float(row), "b": f"{row}"}) for row in range(1000)])
    data = bytearray(sections[DATA])
    columns = Columns({FIELDS: memoryview(sections[FIELDS]), DATA: memoryview(data)}, 1000)
    assert rows_of(columns.bits(Compare("a", "$gte", 999.0))) == [999]
    place = data.index(np.float64(999.0).tobytes())
    data[place : place + 8] = np.float64(5000.0).tobytes()
    assert rows_of(columns.bits(Compare("a", "$gte", 4000.0))) == [999]
    assert len(data) % 8 == 0


def test_many_rare_fields_take_room_for_what_is_there_only() -> None:
    metadata = [encode_metadata({f"field{row}": row}) for row in range(2000)]
    sections = encode_columns(metadata)
    assert len(sections[DATA]) < 2000 * 100
    columns = Columns(views(sections), 2000)
    assert rows_of(columns.bits(Compare("field7", "$eq", 7))) == [7]
    assert rows_of(columns.bits(Compare("field7", "$exists", False))) == [row for row in range(2000) if row != 7]


def test_rows_of_equal_metadata_are_all_found() -> None:
    metadata = [{"a": row % 3, **({"rare": row % 2} if row % 50 < 2 else {})} for row in range(500)]
    columns = indexed(metadata)
    for where in ({"a": 2}, {"rare": 1}, {"rare": {"$exists": False}}, {"a": {"$ne": 0}, "rare": 0}):
        compiled = compile_filter(where)
        assert compiled is not None
        assert rows_of(columns.bits(compiled.node)) == [row for row in range(500) if compiled(metadata[row])]


def test_no_rows_and_no_fields() -> None:
    for metadata in ([], [{}], [{}] * 70):
        columns = indexed(metadata)
        assert rows_of(columns.bits(Compare("a", "$ne", 1))) == [*range(len(metadata))]
        assert rows_of(columns.bits(Compare("a", "$eq", 1))) == []


@pytest.mark.parametrize("damaged", [b"\xc1", b"\x01", b"\x81\x01\x01", b"\x81\xa1a"], ids=bytes.hex)
def test_metadata_that_is_none_is_not_indexed(damaged: bytes) -> None:
    with pytest.raises(CorruptionError):
        encode_columns([b"", damaged])


# -- damage ------------------------------------------------------------------------------------------------------------

SAMPLE = [
    {},
    *({"n": value} for value in (1, 2.5, BIG + 1, 2**64 - 1, -1e300, NAN, True)),
    *({"s": value} for value in ("", "a", "ab", "b", "\u00e9t\u00e9")),
    *({"t": NOON + timedelta(days=day), "l": ["a", day], "n": day} for day in range(40)),
    *({} for _ in range(30)),
]
QUESTIONS: list[Node] = [
    Compare(name, op, operand)
    for name in ("n", "s", "t", "l")
    for op, operand in [
        *((op, operand) for op in ORDERINGS for operand in (2, float(BIG), "a", NOON)),
        *(("$eq", operand) for operand in (1, BIG + 1, "ab", NOON, True, ("a", 3))),
        ("$in", tuple(range(200))),
        ("$contains", "a"),
        ("$contains", 3),
        ("$contains", ""),
        ("$starts_with", "a"),
        ("$ends_with", "b"),
        ("$exists", True),
        ("$gte", True),
    ]
]


def outcome(sections: Mapping[str, bytes], rows: int = len(SAMPLE)) -> None:
    """Answers or a CorruptionError are both well; anything else fails the test."""
    try:
        columns = Columns(views(sections), rows)
    except CorruptionError:
        return
    for node in QUESTIONS:
        try:
            assert columns.bits(node).size == (rows + 63) // 64 * 8
        except CorruptionError:
            continue


def sample() -> dict[str, bytes]:
    return encode_columns([encode_metadata(fields) for fields in SAMPLE])


def test_the_undamaged_sample_is_answered() -> None:
    columns = Columns(views(sample()), len(SAMPLE))
    for node in QUESTIONS:
        assert columns.bits(node).tolist() == by_row(SAMPLE, node).tolist(), node


@pytest.mark.parametrize("section", [FIELDS, DATA])
def test_a_section_cut_short_or_lengthened_is_refused(section: str) -> None:
    sections = sample()
    whole = sections[section]
    for size in range(len(whole)):
        with pytest.raises(CorruptionError):
            Columns(views({**sections, section: whole[:size]}), len(SAMPLE))
    for more in (b"\x00", bytes(8)):
        with pytest.raises(CorruptionError):
            Columns(views({**sections, section: whole + more}), len(SAMPLE))


def test_a_missing_section_and_another_number_of_rows_are_refused() -> None:
    sections = sample()
    for name in sections:
        with pytest.raises(CorruptionError):
            Columns(views({other: data for other, data in sections.items() if other != name}), len(SAMPLE))
    for rows in (0, len(SAMPLE) - 1, len(SAMPLE) + 1):
        with pytest.raises(CorruptionError):
            Columns(views(sections), rows)


@pytest.mark.parametrize("section", [FIELDS, DATA])
@given(data=st.data())
def test_changed_bytes_give_answers_or_a_corruption_error(section: str, data: st.DataObject) -> None:
    sections = sample()
    changed = bytearray(sections[section])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(changed) - 1))
        changed[place] = data.draw(st.one_of(st.integers(0, 255), st.sampled_from([0, 0x7F, 0x80, 0xFF])))
    outcome({**sections, section: bytes(changed)})


@pytest.mark.parametrize("position", range(10))
@given(value=st.one_of(st.integers(-2, 300), st.integers(-(2**63), 2**64 - 1), st.booleans(), st.text(max_size=2)))
def test_a_directory_that_says_otherwise_gives_answers_or_a_corruption_error(position: int, value: object) -> None:
    sections = sample()
    count, entries = msgspec.msgpack.decode(sections[FIELDS])
    for entry in entries:
        entry[position], before = value, entry[position]
        outcome({**sections, FIELDS: msgspec.msgpack.encode((count, entries))})
        entry[position] = before


def damaged_at(sections: Mapping[str, bytes], before: bytes, after: bytes) -> dict[str, bytes]:
    assert len(before) == len(after)
    assert sections[DATA].count(before) == 1
    return {**sections, DATA: sections[DATA].replace(before, after)}


@pytest.mark.parametrize(
    ("values", "before", "after"),
    [
        pytest.param([5, 6, 7], bytes([1, 2, 3]), bytes([1, 2, 4]), id="a code without a value"),
        pytest.param([5, 6, 7], np.float64(6).tobytes(), np.float64(9).tobytes(), id="numbers out of order"),
        pytest.param([5, 6, 7], np.float64(6).tobytes(), np.float64(NAN).tobytes(), id="NaN among the numbers"),
        pytest.param(
            [BIG, BIG + 1], np.float64(BIG).tobytes(), np.float64(1).tobytes(), id="a remainder of a small one"
        ),
        pytest.param(["k", "lm", "n"], bytes([0, 2, 5, 7]), bytes([0, 5, 2, 7]), id="bounds out of order"),
        pytest.param(["k", "lm", "n"], bytes([0, 2, 5, 7]), bytes([0, 2, 5, 8]), id="bounds beyond the end"),
        pytest.param(["k", "lm", "n"], bytes([0, 2, 5, 7]), bytes([1, 2, 5, 7]), id="bounds after the beginning"),
        pytest.param(
            [NOON], np.int64(NOON.timestamp() * 1e6).tobytes(), b"\xff" * 7 + b"\x7f", id="beyond the calendar"
        ),
    ],
)
def test_arrays_that_contradict_themselves_are_refused(values: list[Any], before: bytes, after: bytes) -> None:
    sections = encode_columns([encode_metadata({"a": value}) for value in values])
    if before == np.float64(BIG).tobytes():
        # The larger of the two is the same float64 and a remainder of 1.
        sections = {**sections, DATA: sections[DATA].replace(before * 2, np.float64(0).tobytes() + before)}
    with pytest.raises(CorruptionError):
        Columns(views(damaged_at(sections, before, after)), len(values))


def test_a_row_beyond_the_last_is_refused() -> None:
    sections = encode_columns([encode_metadata({"a": 1} if row == 77 else {}) for row in range(100)])
    assert rows_of(Columns(views(sections), 100).bits(Compare("a", "$eq", 1))) == [77]
    with pytest.raises(CorruptionError):
        Columns(views(damaged_at(sections, bytes([77]), bytes([100]))), 100)


def test_a_damaged_value_is_found_when_it_is_read() -> None:
    sections = encode_columns([encode_metadata({"a": value}) for value in ("text", ["item"], NOON)])
    for before, after in ((b"text", b"te\xc3t"), (b"\x91\xa4item", b"\x92\xa4item")):
        columns = Columns(views(damaged_at(sections, before, after)), 3)
        assert rows_of(columns.bits(Compare("a", "$exists", True))) == [0, 1, 2]
        with pytest.raises(CorruptionError):
            columns.bits(Compare("a", "$gte", True))
