"""Filter trees, and the closures that evaluate them.

The rules they follow are in `tiermem.policy.filters`.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from itertools import repeat
from math import isnan
from typing import Any, Final, TypeAlias

Predicate: TypeAlias = Callable[[Mapping[str, Any]], bool]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
ORDERINGS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}
OPERATORS: Final = frozenset(
    {"$eq", "$ne", *ORDERINGS, "$in", "$nin", "$exists", "$contains", "$starts_with", "$ends_with"}
)
COMBINATORS: Final = frozenset({"$and", "$or", "$not"})


# -- the tree ----------------------------------------------------------------------------------------------------------


class _Mark(Enum):
    """What stands in an identity for a value that Python's `==` would treat otherwise than the rules above."""

    TRUE = "true"
    FALSE = "false"
    NAN_OPERAND = "NaN in a filter"
    NAN_FIELD = "NaN in metadata"
    OTHER = "no value of any kind"


def _identity(value: Any, nan: _Mark) -> Any:
    """A hashable stand-in: two values are equal by the rules above exactly if their stand-ins are equal by `==`.

    The two sides of a comparison give different marks for `nan`, which makes NaN equal to nothing; two operands
    give the same one, which makes a tree equal to itself.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return _Mark.TRUE if value else _Mark.FALSE
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return nan if isnan(value) else value
    if isinstance(value, datetime) and value.utcoffset() is not None:
        return _instant(value)
    if isinstance(value, (list, tuple)):
        return tuple([_identity(item, nan) for item in value])
    return _Mark.OTHER


def _instant(value: datetime) -> Any:
    # Comparing datetimes directly ignores `fold` inside one zone and is never equal across zones in a repeated hour;
    # their difference from UTC has neither exception, is exact, and cannot overflow.
    return value - _EPOCH


@dataclass(frozen=True, slots=True)
class Compare:
    """A leaf: `op` of one field against a frozen operand.

    `operand` is a str, int, float, bool, aware datetime, or a tuple of those: for `$eq` and `$ne` a tuple is a list
    to equal, for `$in` and `$nin` it holds the candidates.
    """

    field: str
    op: str
    operand: Any = dataclasses.field(compare=False)
    identity: Any = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        identity = _identity(self.operand, _Mark.NAN_OPERAND)
        object.__setattr__(self, "identity", frozenset(identity) if self.op in ("$in", "$nin") else identity)


@dataclass(frozen=True, slots=True)
class And:
    """All of `nodes` match; so an empty one matches everything. Equal to another in any order."""

    nodes: tuple[Node, ...] = dataclasses.field(compare=False)
    identity: frozenset[Node] = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "identity", frozenset(self.nodes))


@dataclass(frozen=True, slots=True)
class Or:
    """At least one of `nodes` matches. Equal to another in any order."""

    nodes: tuple[Node, ...] = dataclasses.field(compare=False)
    identity: frozenset[Node] = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "identity", frozenset(self.nodes))


@dataclass(frozen=True, slots=True)
class Not:
    """`node` does not match; so a field that `node` misses satisfies it."""

    node: Node


Node: TypeAlias = Compare | And | Or | Not


# -- from the tree to closures -----------------------------------------------------------------------------------------


def fields_of(node: Node) -> frozenset[str]:
    """The names of the fields a tree reads."""
    if isinstance(node, Compare):
        return frozenset((node.field,))
    if isinstance(node, Not):
        return fields_of(node.node)
    return frozenset().union(*[fields_of(part) for part in node.nodes])


def predicate(node: Node) -> Predicate:
    """The closure that evaluates a tree; what depends on the operand alone is decided here, once."""
    if isinstance(node, Compare):
        return _leaf(node)
    if isinstance(node, Not):
        return _negated(predicate(node.node))
    parts = tuple([predicate(part) for part in node.nodes])
    return _every(parts) if isinstance(node, And) else _some(parts)


def _negated(inner: Predicate) -> Predicate:
    return lambda metadata: not inner(metadata)


def _every(parts: tuple[Predicate, ...]) -> Predicate:
    if len(parts) == 2:
        first, second = parts
        return lambda metadata: first(metadata) and second(metadata)
    return lambda metadata: all(map(operator.call, parts, repeat(metadata)))


def _some(parts: tuple[Predicate, ...]) -> Predicate:
    return lambda metadata: any(map(operator.call, parts, repeat(metadata)))


def _leaf(node: Compare) -> Predicate:
    name, op, operand = node.field, node.op, node.operand
    if op == "$eq":
        return _equal(name, operand, node.identity)
    if op == "$ne":
        return _negated(_equal(name, operand, node.identity))
    if op == "$in":
        return _among(name, node.identity)
    if op == "$nin":
        return _negated(_among(name, node.identity))
    if op == "$exists":
        return lambda metadata: (name in metadata) is operand
    if op == "$contains":
        return _containing(name, operand, node.identity)
    if op == "$starts_with":
        return lambda metadata: isinstance(value := metadata.get(name), str) and value.startswith(operand)
    if op == "$ends_with":
        return lambda metadata: isinstance(value := metadata.get(name), str) and value.endswith(operand)
    return _ordered(name, ORDERINGS[op], operand)


def _equal(name: str, operand: Any, identity: Any) -> Predicate:
    # No operand is None, so `get` need not tell a missing field from a present one.
    if isinstance(operand, str):
        return lambda metadata: metadata.get(name) == operand
    if isinstance(operand, bool):
        return lambda metadata: metadata.get(name) is operand
    if isinstance(operand, (int, float)):
        return lambda metadata: (value := metadata.get(name)) == operand and value.__class__ is not bool
    nan = _Mark.NAN_FIELD
    return lambda metadata: bool(_identity(metadata.get(name), nan) == identity)


def _among(name: str, identities: frozenset[Any]) -> Predicate:
    nan = _Mark.NAN_FIELD

    def among(metadata: Mapping[str, Any]) -> bool:
        value = metadata.get(name)
        return (value if value.__class__ is str else _identity(value, nan)) in identities

    return among


def _containing(name: str, operand: Any, identity: Any) -> Predicate:
    if isinstance(operand, str):
        # In a list only a str equals a str, so plain membership follows the rules.
        return lambda metadata: isinstance(value := metadata.get(name), (str, list, tuple)) and operand in value
    nan = _Mark.NAN_FIELD

    def containing(metadata: Mapping[str, Any]) -> bool:
        value = metadata.get(name)
        return isinstance(value, (list, tuple)) and any(_identity(item, nan) == identity for item in value)

    return containing


def _ordered(name: str, compare: Callable[[Any, Any], bool], operand: Any) -> Predicate:
    if isinstance(operand, str):
        return lambda metadata: isinstance(value := metadata.get(name), str) and compare(value, operand)
    if isinstance(operand, datetime):
        bound = _instant(operand)

        def at(metadata: Mapping[str, Any]) -> bool:
            value = metadata.get(name)
            if not isinstance(value, datetime) or value.utcoffset() is None:
                return False
            return compare(_instant(value), bound)

        return at
    numbers = (int, float)

    def number(metadata: Mapping[str, Any]) -> bool:
        value = metadata.get(name)
        kind = value.__class__
        if kind is float or kind is int:
            return compare(value, operand)
        return isinstance(value, numbers) and kind is not bool and compare(value, operand)

    return number
