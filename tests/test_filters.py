"""Metadata filters: every rule as a table, every error's place, and agreement with a direct interpreter."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from types import MappingProxyType
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiermem.errors import FilterError
from tiermem.policy.filters import MAX_DEPTH, And, Compare, Filter, Not, Or, compile_filter

NAN = math.nan
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
NOON_ELSEWHERE = NOON.astimezone(timezone(timedelta(hours=-7)))
LATER = NOON + timedelta(microseconds=1)
NEW_YORK = ZoneInfo("America/New_York")
FIRST_ONE_THIRTY = datetime(2024, 11, 3, 1, 30, tzinfo=NEW_YORK, fold=0)
SECOND_ONE_THIRTY = FIRST_ONE_THIRTY.replace(fold=1)
BIG = 2**53


class Side(Enum):
    BUY = "buy"


class Level(str, Enum):
    HIGH = "high"


def compiled(where: Mapping[Any, Any]) -> Filter:
    result = compile_filter(where)
    assert result is not None
    return result


# -- a direct interpreter: slow, plain, and sharing nothing with the module --------------------------------------------


def kind(value: Any) -> str:
    for name, types in (("bool", bool), ("number", (int, float)), ("str", str), ("time", datetime), ("list", list)):
        if isinstance(value, types):
            return name
    raise AssertionError(value)


def same(a: Any, b: Any) -> bool:
    if kind(a) != kind(b):
        return False
    if kind(a) == "list":
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if kind(a) == "time":
        return bool(a.timestamp() == b.timestamp())
    return bool(a == b)


def interpret_operator(metadata: dict[str, Any], name: str, op: str, operand: Any) -> bool:
    if op == "$not":
        return not all(interpret_operator(metadata, name, o, x) for o, x in operand.items())
    if op == "$exists":
        return (name in metadata) is operand
    if op == "$ne":
        return not interpret_operator(metadata, name, "$eq", operand)
    if op == "$nin":
        return not interpret_operator(metadata, name, "$in", operand)
    if name not in metadata:
        return False
    value = metadata[name]
    if op == "$eq":
        return same(value, operand)
    if op == "$in":
        return any(same(value, candidate) for candidate in operand)
    if op == "$contains":
        if kind(value) == "list":
            return any(same(item, operand) for item in value)
        return kind(value) == "str" and kind(operand) == "str" and operand in value
    if op == "$starts_with":
        return kind(value) == "str" and value[: len(operand)] == operand
    if op == "$ends_with":
        return kind(value) == "str" and value[max(0, len(value) - len(operand)) :] == operand
    if kind(value) != kind(operand) or kind(value) in ("bool", "list"):
        return False
    if kind(value) == "time":
        value, operand = value.timestamp(), operand.timestamp()
    return bool(
        {"$gt": value > operand, "$gte": value >= operand, "$lt": value < operand, "$lte": value <= operand}[op]
    )


def interpret(metadata: dict[str, Any], where: Mapping[str, Any]) -> bool:
    verdicts = []
    for name, operand in where.items():
        if name == "$and":
            verdicts.append(all(interpret(metadata, part) for part in operand))
        elif name == "$or":
            verdicts.append(any(interpret(metadata, part) for part in operand))
        elif name == "$not":
            verdicts.append(not interpret(metadata, operand))
        elif isinstance(operand, dict):
            verdicts.append(all(interpret_operator(metadata, name, o, x) for o, x in operand.items()))
        else:
            verdicts.append(interpret_operator(metadata, name, "$eq", operand))
    return all(verdicts)


# Few names and few values, so that equal, nearly equal and missing all come up often.
names = st.sampled_from(["a", "b", "c"])
strings = st.text("ab", max_size=3)
numbers = st.one_of(
    st.integers(-2, 2),
    st.sampled_from([0.0, -0.0, 0.5, 1.0, 2.0, NAN, math.inf, -math.inf, BIG, BIG + 1, float(BIG), 1e300]),
)
times = st.builds(
    lambda microseconds, hours: (NOON + timedelta(microseconds=microseconds)).astimezone(
        timezone(timedelta(hours=hours))
    ),
    st.integers(-1, 1),
    st.integers(-2, 2),
)
scalars = st.one_of(strings, numbers, st.booleans(), times)
lists = st.lists(scalars, max_size=3)
values = st.one_of(scalars, lists)
metadatas = st.dictionaries(names, values, max_size=3)

operators = st.recursive(
    st.fixed_dictionaries(
        {},
        optional={
            "$eq": values,
            "$ne": values,
            **dict.fromkeys(("$gt", "$gte", "$lt", "$lte"), st.one_of(strings, numbers, times)),
            "$in": st.lists(values, max_size=3),
            "$nin": st.lists(values, max_size=3),
            "$exists": st.booleans(),
            "$contains": scalars,
            "$starts_with": strings,
            "$ends_with": strings,
        },
    )
    .filter(bool)
    .map(lambda every: dict(list(every.items())[:2])),
    lambda inner: st.fixed_dictionaries({"$not": inner}),
    max_leaves=2,
)
conditions = st.dictionaries(names, st.one_of(values, operators), max_size=2)
wheres = st.recursive(
    conditions,
    lambda inner: st.one_of(
        st.fixed_dictionaries(
            {},
            optional={"$and": st.lists(inner, min_size=1, max_size=3), "$or": st.lists(inner, min_size=1, max_size=3)},
        ),
        st.builds(lambda plain, part: {**plain, "$not": part}, conditions, inner),
    ),
    max_leaves=5,
)


def verdict(where: Mapping[str, Any], metadata: dict[str, Any]) -> bool:
    result = compile_filter(where)
    return True if result is None else result(metadata)


@given(where=wheres, metadata=metadatas)
def test_agrees_with_the_direct_interpreter(where: dict[str, Any], metadata: dict[str, Any]) -> None:
    answer = verdict(where, metadata)
    assert answer is interpret(metadata, where)


@given(name=names, given=operators, metadata=metadatas)
def test_one_field_agrees_with_the_direct_interpreter(
    name: str, given: dict[str, Any], metadata: dict[str, Any]
) -> None:
    assert verdict({name: given}, metadata) is interpret(metadata, {name: given})


@given(parts=st.lists(wheres, min_size=1, max_size=4), metadata=metadatas)
def test_de_morgan(parts: list[dict[str, Any]], metadata: dict[str, Any]) -> None:
    negated = [{"$not": part} for part in parts]
    assert verdict({"$not": {"$and": parts}}, metadata) is verdict({"$or": negated}, metadata)
    assert verdict({"$not": {"$or": parts}}, metadata) is verdict({"$and": negated}, metadata)


@given(where=wheres, metadata=metadatas)
def test_double_negation(where: dict[str, Any], metadata: dict[str, Any]) -> None:
    assert verdict({"$not": {"$not": where}}, metadata) is verdict(where, metadata)
    assert verdict({"$not": where}, metadata) is not verdict(where, metadata)


@given(name=names, given=operators, metadata=metadatas)
def test_not_under_a_field_is_not_around_it(name: str, given: dict[str, Any], metadata: dict[str, Any]) -> None:
    assert verdict({name: {"$not": given}}, metadata) is verdict({"$not": {name: given}}, metadata)


@given(where=wheres, metadata=metadatas)
def test_equal_filters_hash_alike_and_survive_pickling(where: dict[str, Any], metadata: dict[str, Any]) -> None:
    first, second = compile_filter(where), compile_filter(copy.deepcopy(where))
    assert first == second
    assert hash(first) == hash(second)
    if first is not None:
        again = pickle.loads(pickle.dumps(first))
        assert again == first
        assert again(metadata) is first(metadata) is first.matches(metadata)


# -- the rules, one row each -------------------------------------------------------------------------------------------

ROWS: list[tuple[dict[str, Any], dict[str, Any], bool]] = [
    # a bare value, several operators, several fields
    ({"a": "x"}, {"a": "x", "b": 1}, True),
    ({"a": "x"}, {"a": "y"}, False),
    ({"a": {"$gt": 3, "$lt": 9}}, {"a": 5}, True),
    ({"a": {"$gt": 3, "$lt": 9}}, {"a": 9}, False),
    ({"a": {"$gt": 3, "$lt": 9}}, {"a": 3}, False),
    ({"a": 1, "b": 2}, {"a": 1, "b": 2}, True),
    ({"a": 1, "b": 2}, {"a": 1, "b": 3}, False),
    ({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 2, "c": 3}, True),
    ({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 2, "c": 4}, False),
    # a missing field
    ({"a": 1}, {}, False),
    ({"a": []}, {}, False),
    ({"a": {"$ne": 1}}, {}, True),
    ({"a": {"$gt": 1}}, {}, False),
    ({"a": {"$gte": "x"}}, {}, False),
    ({"a": {"$lt": NOON}}, {}, False),
    ({"a": {"$lte": 1}}, {}, False),
    ({"a": {"$in": [1, "x"]}}, {}, False),
    ({"a": {"$nin": [1, "x"]}}, {}, True),
    ({"a": {"$exists": True}}, {}, False),
    ({"a": {"$exists": False}}, {}, True),
    ({"a": {"$contains": "x"}}, {}, False),
    ({"a": {"$contains": 1}}, {}, False),
    ({"a": {"$starts_with": ""}}, {}, False),
    ({"a": {"$ends_with": ""}}, {}, False),
    ({"a": {"$not": {"$gt": 1}}}, {}, True),
    ({"$not": {"a": 1}}, {}, True),
    ({"a": {"$not": {"$ne": 1}}}, {}, False),
    # presence
    ({"a": {"$exists": True}}, {"a": False}, True),
    ({"a": {"$exists": False}}, {"a": ""}, False),
    # bool is not a number
    ({"a": True}, {"a": True}, True),
    ({"a": True}, {"a": False}, False),
    ({"a": True}, {"a": 1}, False),
    ({"a": 1}, {"a": True}, False),
    ({"a": 0.0}, {"a": False}, False),
    ({"a": {"$ne": 1}}, {"a": True}, True),
    ({"a": {"$in": [1, 0]}}, {"a": True}, False),
    ({"a": {"$in": [True]}}, {"a": 1}, False),
    ({"a": {"$in": [True]}}, {"a": True}, True),
    ({"a": {"$gt": -1}}, {"a": True}, False),
    ({"a": {"$lte": 1}}, {"a": True}, False),
    ({"a": [1]}, {"a": [True]}, False),
    ({"a": {"$contains": 1}}, {"a": [True]}, False),
    ({"a": {"$contains": True}}, {"a": [1]}, False),
    ({"a": {"$contains": True}}, {"a": [1, True]}, True),
    # numbers compare exactly
    ({"a": 1}, {"a": 1.0}, True),
    ({"a": 1.0}, {"a": 1}, True),
    ({"a": {"$in": [1.0]}}, {"a": 1}, True),
    ({"a": float(BIG)}, {"a": BIG + 1}, False),
    ({"a": {"$gt": float(BIG)}}, {"a": BIG + 1}, True),
    ({"a": {"$in": [float(BIG)]}}, {"a": BIG + 1}, False),
    ({"a": {"$lt": math.inf}}, {"a": 2**63}, True),
    ({"a": -0.0}, {"a": 0}, True),
    ({"a": {"$gte": 3}}, {"a": 3.0}, True),
    ({"a": {"$lte": 3}}, {"a": 3.0}, True),
    # NaN
    ({"a": NAN}, {"a": NAN}, False),
    ({"a": {"$ne": NAN}}, {"a": NAN}, True),
    ({"a": {"$ne": NAN}}, {"a": 1}, True),
    ({"a": {"$ne": 1}}, {"a": NAN}, True),
    ({"a": {"$in": [NAN]}}, {"a": NAN}, False),
    ({"a": {"$nin": [NAN]}}, {"a": NAN}, True),
    ({"a": [NAN]}, {"a": [NAN]}, False),
    ({"a": {"$contains": NAN}}, {"a": [NAN]}, False),
    ({"a": {"$gt": NAN}}, {"a": 1}, False),
    ({"a": {"$lte": NAN}}, {"a": NAN}, False),
    ({"a": {"$gte": 0}}, {"a": NAN}, False),
    ({"a": {"$not": {"$gte": 0}}}, {"a": NAN}, True),
    # different kinds
    ({"a": "1"}, {"a": 1}, False),
    ({"a": 1}, {"a": "1"}, False),
    ({"a": 1}, {"a": [1]}, False),
    ({"a": [1]}, {"a": 1}, False),
    ({"a": NOON}, {"a": NOON.timestamp()}, False),
    ({"a": NOON}, {"a": NOON.isoformat()}, False),
    ({"a": {"$ne": "1"}}, {"a": 1}, True),
    ({"a": {"$ne": [1]}}, {"a": 1}, True),
    ({"a": {"$gt": "0"}}, {"a": 1}, False),
    ({"a": {"$lt": 5}}, {"a": "1"}, False),
    ({"a": {"$lt": 5}}, {"a": [1]}, False),
    ({"a": {"$lt": NOON}}, {"a": 5}, False),
    ({"a": {"$gt": 5}}, {"a": NOON}, False),
    # strings
    ({"a": {"$gt": "b"}}, {"a": "ba"}, True),
    ({"a": {"$lte": "b"}}, {"a": "B"}, True),
    ({"a": {"$starts_with": "ab"}}, {"a": "abc"}, True),
    ({"a": {"$starts_with": "bc"}}, {"a": "abc"}, False),
    ({"a": {"$starts_with": "a"}}, {"a": ["a"]}, False),
    ({"a": {"$ends_with": "bc"}}, {"a": "abc"}, True),
    ({"a": {"$ends_with": "ab"}}, {"a": "abc"}, False),
    ({"a": {"$ends_with": "1"}}, {"a": 1}, False),
    ({"a": {"$contains": "b"}}, {"a": "abc"}, True),
    ({"a": {"$contains": "d"}}, {"a": "abc"}, False),
    ({"a": {"$contains": 1}}, {"a": "1"}, False),
    ({"a": {"$contains": "1"}}, {"a": 1}, False),
    # lists
    ({"a": ["x", 1]}, {"a": ["x", 1.0]}, True),
    ({"a": ["x", 1]}, {"a": [1, "x"]}, False),
    ({"a": ["x"]}, {"a": ["x", "x"]}, False),
    ({"a": []}, {"a": []}, True),
    ({"a": ("x",)}, {"a": ["x"]}, True),
    ({"a": {"$eq": ["x"]}}, {"a": ["x"]}, True),
    ({"a": {"$ne": ["x"]}}, {"a": ["x"]}, False),
    ({"a": [NOON]}, {"a": [NOON_ELSEWHERE]}, True),
    ({"a": {"$contains": "ab"}}, {"a": ["abc"]}, False),
    ({"a": {"$contains": "ab"}}, {"a": ["ab"]}, True),
    ({"a": {"$contains": 2}}, {"a": ["x", 2.0]}, True),
    ({"a": {"$contains": NOON}}, {"a": [NOON_ELSEWHERE]}, True),
    # membership
    ({"a": {"$in": []}}, {"a": 1}, False),
    ({"a": {"$nin": []}}, {"a": 1}, True),
    ({"a": {"$in": ("x", 1)}}, {"a": 1}, True),
    ({"a": {"$in": {"x", "y"}}}, {"a": "y"}, True),
    ({"a": {"$in": frozenset({"x"})}}, {"a": "y"}, False),
    ({"a": {"$nin": ["x"]}}, {"a": "x"}, False),
    ({"a": {"$in": ["x"]}}, {"a": ["x"]}, False),
    ({"a": {"$in": [["x"], "y"]}}, {"a": ["x"]}, True),
    ({"a": {"$in": [NOON]}}, {"a": NOON_ELSEWHERE}, True),
    # datetimes are instants
    ({"a": NOON}, {"a": NOON_ELSEWHERE}, True),
    ({"a": NOON}, {"a": LATER}, False),
    ({"a": {"$gte": NOON}}, {"a": NOON_ELSEWHERE}, True),
    ({"a": {"$gt": NOON}}, {"a": NOON_ELSEWHERE}, False),
    ({"a": {"$lt": LATER}}, {"a": NOON_ELSEWHERE}, True),
    ({"a": FIRST_ONE_THIRTY}, {"a": SECOND_ONE_THIRTY}, False),
    ({"a": {"$lt": SECOND_ONE_THIRTY}}, {"a": FIRST_ONE_THIRTY}, True),
    ({"a": FIRST_ONE_THIRTY}, {"a": FIRST_ONE_THIRTY.astimezone(UTC)}, True),
    ({"a": {"$gt": datetime.min.replace(tzinfo=timezone(timedelta(hours=9)))}}, {"a": NOON}, True),
    ({"a": {"$ne": NOON}}, {"a": NOON.replace(tzinfo=None)}, True),
    ({"a": {"$lt": LATER}}, {"a": NOON.replace(tzinfo=None)}, False),
    # combinators
    ({"$and": [{"a": 1}, {"b": 2}]}, {"a": 1, "b": 2}, True),
    ({"$and": [{"a": 1}, {"b": 2}]}, {"a": 1}, False),
    ({"$and": [{"a": 1}], "b": 2}, {"a": 1, "b": 3}, False),
    ({"$or": [{"a": 1}, {"b": 2}]}, {"b": 2}, True),
    ({"$or": [{"a": 1}, {"b": 2}]}, {"b": 1}, False),
    ({"$or": ({"a": 1},)}, {"a": 1}, True),
    ({"$or": [{"a": 1}, {}]}, {}, True),
    ({"$not": {}}, {"a": 1}, False),
    ({"$not": {"a": 1, "b": 2}}, {"a": 1, "b": 3}, True),
    ({"a": {"$gt": 1, "$not": {"$gt": 5, "$lt": 9}}}, {"a": 7}, False),
    ({"a": {"$gt": 1, "$not": {"$gt": 5, "$lt": 9}}}, {"a": 9}, True),
    ({"$or": [{"$and": [{"a": 1}, {"$not": {"b": 2}}]}, {"c": {"$exists": True}}]}, {"a": 1}, True),
    # operands from elsewhere
    ({"a": np.int64(3)}, {"a": 3}, True),
    ({"a": np.float32(0.5)}, {"a": 0.5}, True),
    ({"a": np.float64(0.5)}, {"a": 0.5}, True),
    ({"a": np.bool_(True)}, {"a": True}, True),
    ({"a": np.bool_(True)}, {"a": 1}, False),
    ({"a": np.str_("x")}, {"a": "x"}, True),
    ({"a": {"$gt": np.int8(2)}}, {"a": 3}, True),
    ({"a": {"$in": [np.int64(3)]}}, {"a": 3}, True),
    ({"a": {"$exists": np.bool_(True)}}, {"a": 3}, True),
    ({"a": np.array(3)}, {"a": 3}, True),
    ({"a": Side.BUY}, {"a": "buy"}, True),
    ({"a": Level.HIGH}, {"a": "high"}, True),
]


@pytest.mark.parametrize(("where", "metadata", "expected"), ROWS)
def test_rule(where: dict[str, Any], metadata: dict[str, Any], expected: bool) -> None:
    match = compiled(where)
    assert match(metadata) is expected
    assert match(MappingProxyType(metadata)) is expected
    assert compiled({"$not": where})(metadata) is not expected


@pytest.mark.parametrize("where", [None, {}, {"$and": [{}]}, {"$and": [{}, {"$and": [{}]}]}])
def test_what_asks_nothing_compiles_to_none(where: dict[str, Any] | None) -> None:
    assert compile_filter(where) is None


# -- errors ------------------------------------------------------------------------------------------------------------

NAIVE = datetime(2024, 5, 1)
BAD: list[tuple[Any, str, str]] = [
    # (filter, place, a word of the reason)
    ("a = 1", "where", "mapping"),
    ([{"a": 1}], "where", "mapping"),
    (0, "where", "mapping"),
    ({3: 1}, "where[3]", "str"),
    ({None: 1}, "where[None]", "str"),
    ({"$and": [{3: 1}]}, "where['$and'][0][3]", "str"),
    ({"$xor": [{}]}, "where['$xor']", "unknown operator"),
    ({"$px": 1}, "where['$px']", "unknown operator"),
    ({"$gt": 1}, "where['$gt']", "under a field"),
    ({"a": {"$regex": "x"}}, "where['a']['$regex']", "unknown operator"),
    ({"a": {"b": 1}}, "where['a']['b']", "unknown operator"),
    ({"a": {"$gt": 1, 3: 1}}, "where['a'][3]", "unknown operator"),
    ({"a": {"$and": [{"$gt": 1}]}}, "where['a']['$and']", "combines filters"),
    ({"a": {"$or": [{"$gt": 1}]}}, "where['a']['$or']", "combines filters"),
    ({"a": {}}, "where['a']", "empty"),
    ({"a": {"$not": {}}}, "where['a']['$not']", "empty"),
    ({"a": {"$not": 1}}, "where['a']['$not']", "mapping"),
    ({"a": {"$not": {"$gt": True}}}, "where['a']['$not']['$gt']", "number"),
    ({"$and": []}, "where['$and']", "non-empty"),
    ({"$or": []}, "where['$or']", "non-empty"),
    ({"$or": {"a": 1}}, "where['$or']", "list"),
    ({"$or": "ab"}, "where['$or']", "list"),
    ({"$or": [{"a": 1}, 3]}, "where['$or'][1]", "mapping"),
    ({"$not": [{"a": 1}]}, "where['$not']", "mapping"),
    ({"$not": None}, "where['$not']", "mapping"),
    ({"$not": {"$or": [{"a": None}]}}, "where['$not']['$or'][0]['a']", "$exists"),
    ({"$and": [{"a": 1}, {"px": {"$gt": True}}]}, "where['$and'][1]['px']['$gt']", "number"),
    ({"a": None}, "where['a']", "$exists"),
    ({"a": {"$ne": None}}, "where['a']['$ne']", "$exists"),
    ({"a": {"$gt": None}}, "where['a']['$gt']", "$exists"),
    ({"a": {"$in": [1, None]}}, "where['a']['$in'][1]", "$exists"),
    ({"a": [1, None]}, "where['a'][1]", "$exists"),
    ({"a": NAIVE}, "where['a']", "naive"),
    ({"a": {"$lt": NAIVE}}, "where['a']['$lt']", "naive"),
    ({"a": {"$in": [NOON, NAIVE]}}, "where['a']['$in'][1]", "naive"),
    ({"a": {"$in": {NAIVE}}}, "where['a']['$in']", "naive"),
    ({"a": {"$in": [[NAIVE]]}}, "where['a']['$in'][0][0]", "naive"),
    ({"a": {"$eq": [NAIVE]}}, "where['a']['$eq'][0]", "naive"),
    ({"a": {"$contains": NAIVE}}, "where['a']['$contains']", "naive"),
    ({"a": {"$exists": NAIVE}}, "where['a']['$exists']", "naive"),
    ({"a": np.datetime64("2024-05-01")}, "where['a']", "time zone"),
    ({"a": np.datetime64("2024-05-01", "ns")}, "where['a']", "time zone"),
    ({"a": {"$gt": np.timedelta64(1, "ns")}}, "where['a']['$gt']", "time zone"),
    *[({"a": {op: True}}, f"where['a']['{op}']", "number") for op in ("$gt", "$gte", "$lt", "$lte")],
    ({"a": {"$gt": np.bool_(True)}}, "where['a']['$gt']", "number"),
    ({"a": {"$lt": [1]}}, "where['a']['$lt']", "number"),
    ({"a": {"$in": "abc"}}, "where['a']['$in']", "list"),
    ({"a": {"$in": {"b": 1}}}, "where['a']['$in']", "list"),
    ({"a": {"$nin": 1}}, "where['a']['$nin']", "list"),
    ({"a": {"$in": np.array([1, 2])}}, "where['a']['$in']", "list"),
    ({"a": {"$in": iter([1])}}, "where['a']['$in']", "list"),
    ({"a": {"$exists": 1}}, "where['a']['$exists']", "bool"),
    ({"a": {"$exists": "yes"}}, "where['a']['$exists']", "bool"),
    ({"a": {"$starts_with": 1}}, "where['a']['$starts_with']", "str"),
    ({"a": {"$ends_with": ["x"]}}, "where['a']['$ends_with']", "str"),
    ({"a": {"$contains": ["x"]}}, "where['a']['$contains']", "one str"),
    ({"a": {"$contains": {"x"}}}, "where['a']['$contains']", "a value is"),
    ({"a": {1, 2}}, "where['a']", "a value is"),
    ({"a": {"$eq": {"b": 1}}}, "where['a']['$eq']", "a value is"),
    ({"a": [[1]]}, "where['a'][0]", "a value is"),
    ({"a": b"x"}, "where['a']", "a value is"),
    ({"a": Decimal(1)}, "where['a']", "a value is"),
    ({"a": date(2024, 5, 1)}, "where['a']", "a value is"),
    ({"a": 1j}, "where['a']", "a value is"),
    ({"a": np.complex128(1j)}, "where['a']", "a value is"),
    ({"a": np.array([3])}, "where['a']", "a value is"),
]


@pytest.mark.parametrize(("where", "place", "reason"), BAD)
def test_error_names_the_place(where: Any, place: str, reason: str) -> None:
    with pytest.raises(FilterError) as caught:
        compile_filter(where)
    message = str(caught.value)
    assert message.startswith(f"{place}: ")
    assert reason in message.removeprefix(place)
    assert isinstance(caught.value, ValueError)


def nested(depth: int) -> dict[str, Any]:
    where: dict[str, Any] = {"a": 1}
    for _ in range(depth):
        where = {"$not": where}
    return where


def test_depth_is_bounded() -> None:
    assert compiled(nested(MAX_DEPTH))({"a": 1}) is (MAX_DEPTH % 2 == 0)
    with pytest.raises(FilterError, match="inside one another"):
        compile_filter(nested(MAX_DEPTH + 1))


def test_a_filter_inside_itself_is_an_error() -> None:
    where: dict[str, Any] = {}
    where["$and"] = [where]
    with pytest.raises(FilterError, match="inside one another"):
        compile_filter(where)
    operators: dict[str, Any] = {}
    operators["$not"] = operators
    with pytest.raises(FilterError, match="inside one another"):
        compile_filter({"a": operators})


def test_a_deep_list_is_an_error_with_a_short_message() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(FilterError) as caught:
        compile_filter({"a": deep})
    assert len(str(caught.value)) < 300


# -- the filter as an object -------------------------------------------------------------------------------------------


def test_operands_are_copied() -> None:
    tags, candidates, parts = ["x"], {"buy"}, [{"c": 1}]
    where: dict[str, Any] = {"a": tags, "b": {"$in": candidates}, "$or": parts}
    match = compiled(where)
    metadata = {"a": ["x"], "b": "buy", "c": 1}
    assert match(metadata)
    tags.append("y")
    candidates.clear()
    parts[0]["c"] = 2
    where["d"] = 1
    assert match(metadata)
    assert not match({"a": ["x", "y"], "b": "buy", "c": 1})


def test_fields_are_those_it_reads() -> None:
    where = {"a": 1, "$or": [{"b": {"$not": {"$gt": 1}}}, {"$not": {"c": 1}}], "$and": [{"d": 1, "a": 2}]}
    assert compiled(where).fields == frozenset("abcd")


def test_the_tree() -> None:
    where = {"a": {"$gt": 1, "$lt": 5}, "$and": [{"b": ["x"]}], "$or": [{"c": 1}, {"$not": {"d": {"$in": [1, 2]}}}]}
    expected = And(
        (
            Compare("a", "$gt", 1),
            Compare("a", "$lt", 5),
            Compare("b", "$eq", ("x",)),
            Or((Compare("c", "$eq", 1), Not(Compare("d", "$in", (1, 2))))),
        )
    )
    match = compiled(where)
    assert match.node == expected
    assert isinstance(match.node, And)
    assert match.node.nodes == expected.nodes
    assert compiled({"$and": [{"a": 1}]}).node == compiled({"$or": [{"a": 1}]}).node == Compare("a", "$eq", 1)


def test_the_tree_is_frozen() -> None:
    match = compiled({"a": 1})
    with pytest.raises(AttributeError):
        match.node = Not(match.node)
    with pytest.raises(AttributeError):
        del match.fields
    with pytest.raises(AttributeError):
        match.other = 1
    with pytest.raises(AttributeError):
        match.node.field = "b"


@pytest.mark.parametrize("operand", [np.int64(3), np.float64(3), np.str_("x"), np.bool_(True), Level.HIGH])
def test_operands_are_of_plain_types(operand: Any) -> None:
    for where in ({"a": operand}, {"a": {"$in": [operand]}}):
        node = compiled(where).node
        assert isinstance(node, Compare)
        kept = node.operand[0] if isinstance(node.operand, tuple) else node.operand
        assert type(kept) in (str, int, float, bool)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1}, {"a": {"$eq": 1.0}}),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"a": 1, "b": 2}, {"$and": [{"a": 1}, {"b": 2}]}),
        ({"$or": [{"a": 1}, {"b": 2}]}, {"$or": [{"b": 2}, {"a": 1}]}),
        ({"a": {"$in": ["x", "y"]}}, {"a": {"$in": {"y", "x"}}}),
        ({"a": NAN}, {"a": float("nan")}),
        ({"a": NOON}, {"a": NOON_ELSEWHERE}),
    ],
)
def test_equal_filters(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert compiled(one) == compiled(other)
    assert hash(compiled(one)) == hash(compiled(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1}, {"a": True}),
        ({"a": 1}, {"b": 1}),
        ({"a": 1}, {"a": {"$ne": 1}}),
        ({"a": "1"}, {"a": 1}),
        ({"a": ["x", "y"]}, {"a": ["y", "x"]}),
        ({"a": {"$in": [1]}}, {"a": {"$in": [True]}}),
        ({"a": FIRST_ONE_THIRTY}, {"a": SECOND_ONE_THIRTY}),
        ({"$or": [{"a": 1}, {"b": 2}]}, {"$and": [{"a": 1}, {"b": 2}]}),
    ],
)
def test_different_filters(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert compiled(one) != compiled(other)


def test_repr_shows_the_tree() -> None:
    match = compiled({"a": {"$gte": 3}, "$not": {"b": "x"}})
    assert repr(match) == (
        "Filter(And(nodes=(Compare(field='a', op='$gte', operand=3), "
        "Not(node=Compare(field='b', op='$eq', operand='x')))))"
    )


def test_a_filter_equals_only_filters() -> None:
    match = compiled({"a": 1})
    assert match != match.node
    assert {match: "found"}[compiled({"a": 1.0})] == "found"
    assert copy.copy(match) == copy.deepcopy(match) == match
