"""Metadata filters: a `where` mapping checked once, kept as a tree, and compiled to closures.

Rules of comparison, the same for every operator
- There are five kinds of value: str, number (int and float, compared exactly), bool, aware datetime, list.
- Values of different kinds are never equal and have no order; bool is no number; NaN equals nothing, not even NaN.
- Datetimes compare as instants, whatever their zones and folds.
- A missing field satisfies only `$exists: False`, `$ne`, `$nin` and `$not`.
- An empty filter matches everything.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from datetime import datetime
from enum import Enum
from functools import partial
from typing import Any, Final, NoReturn, Self

from tiermem.errors import FilterError
from tiermem.policy._operators import (
    COMBINATORS,
    OPERATORS,
    ORDERINGS,
    And,
    Compare,
    Node,
    Not,
    Or,
    Predicate,
    fields_of,
    predicate,
)
from tiermem.types import Where

__all__ = ["MAX_DEPTH", "And", "Compare", "Filter", "Node", "Not", "Or", "Predicate", "compile_filter"]

MAX_DEPTH: Final = 64
"""How many `$and`, `$or` and `$not` may stand inside one another."""


class Filter(partial[bool]):
    """A compiled filter: `filter(metadata)` says whether a record with this metadata matches.

    Frozen; equal to another of the same tree; hashable; pickles. A partial, because calling one stays in C: a Python
    `__call__` would cost more than most comparisons.
    """

    __slots__ = ("fields", "node")

    node: Node
    """The tree, for a planner to read."""
    fields: frozenset[str]
    """The names of the fields it reads."""

    def __new__(cls, node: Node) -> Self:
        self = super().__new__(cls, predicate(node))
        object.__setattr__(self, "node", node)
        object.__setattr__(self, "fields", fields_of(node))
        return self

    @property
    def matches(self) -> Predicate:
        """The bare predicate, for a loop that counts nanoseconds."""
        return self.func

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a Filter is frozen; cannot set {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a Filter is frozen; cannot delete {name!r}")

    def __eq__(self, other: object) -> bool:
        return self.node == other.node if isinstance(other, Filter) else NotImplemented

    def __hash__(self) -> int:
        return hash((Filter, self.node))

    def __repr__(self) -> str:
        return f"Filter({self.node!r})"

    def __reduce__(self) -> tuple[type[Filter], tuple[Node]]:
        # Closures do not pickle; the tree does, and compiles to the same ones.
        return Filter, (self.node,)


def compile_filter(where: Where | None) -> Filter | None:
    """The compiled `where`, or None if it is None or empty, and so matches everything.

    The operands are copied: changing `where` afterwards changes nothing.

    Raises:
        FilterError: it is malformed; the message begins with the place, as in `where['$and'][1]['px']['$gt']: ...`.
    """
    if where is None:
        return None
    node = _parse(where, "where", 0)
    return None if node == And(()) else Filter(node)


# -- from a mapping to the tree ----------------------------------------------------------------------------------------


def _fail(place: str, problem: str) -> NoReturn:
    raise FilterError(f"{place}: {problem}")


def _parse(where: object, place: str, depth: int) -> Node:
    if not isinstance(where, Mapping):
        _fail(place, f"a filter is a mapping of fields, not {_named(where)}")
    if depth > MAX_DEPTH:
        _fail(place, f"more than {MAX_DEPTH} filters inside one another")
    nodes: list[Node] = []
    for name, operand in where.items():
        here = f"{place}[{name!r}]"
        if not isinstance(name, str):
            _fail(here, f"a field name is a str, not {_named(name)}")
        if name in ("$and", "$or"):
            if not isinstance(operand, (list, tuple)) or not operand:
                _fail(here, f"{name} takes a non-empty list of filters, not {_named(operand)}")
            parts = tuple([_parse(part, f"{here}[{i}]", depth + 1) for i, part in enumerate(operand)])
            nodes.append(_all(parts) if name == "$and" else parts[0] if len(parts) == 1 else Or(parts))
        elif name == "$not":
            nodes.append(Not(_parse(operand, here, depth + 1)))
        elif name in OPERATORS:
            _fail(here, f"{name} stands under a field, as in {{'field': {{{name!r}: ...}}}}")
        elif name.startswith("$"):
            _fail(here, f"unknown operator {name!r}; a field name does not start with '$'")
        elif isinstance(operand, Mapping):
            nodes.append(_parse_operators(str.__str__(name), operand, here, depth))
        else:
            nodes.append(Compare(str.__str__(name), "$eq", _operand("$eq", operand, here)))
    return _all(tuple(nodes))


def _parse_operators(name: str, operators: Mapping[Any, Any], place: str, depth: int) -> Node:
    if not operators:
        _fail(place, "an empty mapping; give an operator, as in {'$gt': 3}")
    if depth > MAX_DEPTH:
        _fail(place, f"more than {MAX_DEPTH} filters inside one another")
    nodes: list[Node] = []
    for op, operand in operators.items():
        here = f"{place}[{op!r}]"
        if not isinstance(op, str) or op not in OPERATORS | COMBINATORS:
            _fail(here, f"unknown operator {op!r}; known are {', '.join(sorted(OPERATORS))} and $not")
        if op == "$not":
            if not isinstance(operand, Mapping):
                _fail(here, f"$not under a field takes a mapping of operators, not {_named(operand)}")
            nodes.append(Not(_parse_operators(name, operand, here, depth + 1)))
        elif op in COMBINATORS:
            _fail(here, f"{op} combines filters and does not stand under a field")
        else:
            nodes.append(Compare(name, str.__str__(op), _operand(op, operand, here)))
    return _all(tuple(nodes))


def _all(nodes: tuple[Node, ...]) -> Node:
    flat: list[Node] = []
    for node in nodes:
        flat.extend(node.nodes if isinstance(node, And) else (node,))
    return flat[0] if len(flat) == 1 else And(tuple(flat))


def _operand(op: str, value: Any, place: str) -> Any:
    """`value`, checked against `op` and frozen."""
    if op in ("$in", "$nin"):
        if isinstance(value, (set, frozenset)):
            return tuple([_frozen(item, place) for item in value])
        if not isinstance(value, (list, tuple)):
            _fail(place, f"{op} takes a list, tuple or set, not {_named(value)}")
        return tuple([_frozen(item, f"{place}[{i}]") for i, item in enumerate(value)])
    frozen = _frozen(value, place)
    if op == "$exists" and not isinstance(frozen, bool):
        _fail(place, f"$exists takes a bool, not {_named(value)}")
    if op in ("$starts_with", "$ends_with") and not isinstance(frozen, str):
        _fail(place, f"{op} takes a str, not {_named(value)}")
    if op in ORDERINGS and isinstance(frozen, (bool, tuple)):
        _fail(place, f"{op} takes a number, a str or an aware datetime, not {_named(value)}")
    if op == "$contains" and isinstance(frozen, tuple):
        _fail(place, f"$contains takes one str, number, bool or aware datetime, not {_named(value)}")
    return frozen


def _frozen(value: Any, place: str) -> Any:
    """`value` as a plain str, int, float, bool or aware datetime, or as a tuple of those if it is a list."""
    if isinstance(value, (list, tuple)):
        return tuple([_scalar(item, f"{place}[{i}]") for i, item in enumerate(value)])
    return _scalar(value, place)


def _scalar(value: Any, place: str) -> Any:
    given = value
    if isinstance(value, Enum):
        value = value.value
    if hasattr(value, "dtype") and hasattr(value, "item") and getattr(value, "shape", ()) == ():
        # A datetime64 or timedelta64 in nanoseconds would turn into a bare int.
        if getattr(value.dtype, "kind", "") in ("M", "m"):
            _fail(place, f"{_named(given)} has no time zone; give an aware datetime")
        value = value.item()
    # Subclasses may carry their own `==`; what is kept is of the plain type.
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            _fail(place, f"{value!r} is naive; give a datetime with a time zone")
        return _plain(value)
    if value is None:
        _fail(place, "None is no value; to ask whether a field is there use {'$exists': False}")
    _fail(place, f"a value is a str, number, bool, aware datetime or a list of those, not {_named(given)}")


def _plain(value: datetime) -> datetime:
    if type(value) is datetime:
        return value
    day = (value.year, value.month, value.day)
    time = (value.hour, value.minute, value.second, value.microsecond)
    return datetime(*day, *time, tzinfo=value.tzinfo, fold=value.fold)


def _named(value: object) -> str:
    """The type and a glimpse of `value`, for a message."""
    return f"{type(value).__name__} {reprlib.repr(value)}"
