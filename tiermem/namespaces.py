"""Names of namespaces and topics: built from a template, taken apart by one, matched by a pattern.

A *template* is a name in which a part may be a field in angle brackets; a *pattern* is one in which `*` stands
for any one part and `**` for one or more.

>>> build("swarm/<agent>/<key>", agent="risk", key="plan")
'swarm/risk/plan'
>>> parse("swarm/<agent>/<key>", "swarm/risk/plan")
{'agent': 'risk', 'key': 'plan'}
>>> pattern("swarm/<agent>/<key>", agent="risk")
'swarm/risk/*'
>>> match("swarm/*/plan", "swarm/risk/plan"), match("swarm/**", "swarm/risk/plan"), match("swarm/*", "swarm/risk/plan")
(True, True, False)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from tiermem.errors import InvalidArgument, InvalidNamespace
from tiermem.types import check_namespace

__all__ = ["build", "is_pattern", "match", "matcher", "parse", "pattern"]

REMEMBERED: Final = 1024
"""Patterns and templates kept compiled."""
_FIELD: Final = re.compile(r"<([^\W\d]\w*)>")
_WILD: Final = ("*", "**")
_PART: Final = "[^/]+/"


def build(template: str, /, **fields: str) -> str:
    """The name that `template` gives with its fields filled in, each by one part.

    Raises:
        InvalidNamespace: the outcome is no namespace, or a value is not exactly one part.
        InvalidArgument: a field is missing, unknown, or malformed.
    """
    return check_namespace(_fill(template, fields, None))


def pattern(template: str, /, **fields: str) -> str:
    """As `build`, with `*` for every field that is left out: the pattern of all such names."""
    made = _fill(template, fields, "*")
    matcher(made)
    return made


def parse(template: str, name: str) -> dict[str, str] | None:
    """The fields of `name`, one part each, if it is built as `template` says; None if it is not.

    Raises:
        InvalidArgument: the template is malformed.
        InvalidNamespace: `name` is no namespace.
    """
    found = _taken_apart(_text("template", template)).fullmatch(check_namespace(name))
    return None if found is None else found.groupdict()


def match(pattern: str, name: str) -> bool:
    """True if `name` is one that `pattern` means. A pattern without `*` means itself.

    Raises:
        InvalidArgument: the pattern is malformed.
        InvalidNamespace: `name` is no namespace.
    """
    return matcher(pattern)(check_namespace(name))


def is_pattern(name: object) -> bool:
    """True if `name` is a str with a `*` in it, which no namespace has."""
    return isinstance(name, str) and "*" in name


def matcher(pattern: str) -> Callable[[str], bool]:
    """`match` with its pattern given; the names it is asked about are taken to be valid.

    Raises:
        InvalidArgument: the pattern is malformed; InvalidNamespace where it has no `*` and is no name.
    """
    return _matcher(_text("pattern", pattern))


@lru_cache(REMEMBERED)
def _matcher(pattern: str) -> Callable[[str], bool]:
    if "*" not in pattern:
        return check_namespace(pattern).__eq__
    parts = pattern.split("/")
    if any("*" in part and part not in _WILD for part in parts):
        raise InvalidArgument(f"pattern {pattern[:80]!r}: '*' and '**' stand for whole parts")
    check_namespace("/".join("x" if part in _WILD else part for part in parts))
    *heads, last = _runs(parts)
    # Between two `**` the first place that fits is as good as any, and is not left again: else the time would be
    # exponential in their number.
    middle = "".join(f"(?>(?:{_PART})+?{run})" for run in heads[1:])
    whole = re.compile(f"{heads[0]}{middle}(?:{_PART})+{last}" if heads else last, re.DOTALL)
    return lambda name: whole.fullmatch(f"{name}/") is not None


def _runs(parts: list[str]) -> list[str]:
    """What stands before, between and behind each `**`, as expressions in which a slash follows every part."""
    runs = [""]
    for part in parts:
        if part == "**":
            runs.append("")
        else:
            runs[-1] += _PART if part == "*" else f"{re.escape(part)}/"
    return runs


def fixed(pattern: str) -> str:
    """What every name that matches begins with."""
    return pattern.partition("*")[0]


@lru_cache(REMEMBERED)
def _taken_apart(template: str) -> re.Pattern[str]:
    parts = [
        f"(?P<{name}>[^/]+)" if (name := _field(template, part)) else re.escape(part) for part in template.split("/")
    ]
    try:
        return re.compile("/".join(parts), re.DOTALL)
    except re.error as exc:
        raise InvalidArgument(f"template {template[:80]!r}: a field stands twice") from exc


def _field(template: str, part: str) -> str | None:
    """The name of the field that a part of a template is; None if it is a plain one."""
    found = _FIELD.fullmatch(part)
    if found is None and ("<" in part or ">" in part):
        raise InvalidArgument(f"template {template[:80]!r}: a field is a whole part, as <agent>, not {part[:80]!r}")
    return None if found is None else found[1]


def _fill(template: str, fields: dict[str, str], otherwise: str | None) -> str:
    left = dict(fields)
    parts = []
    for part in _text("template", template).split("/"):
        name = _field(template, part)
        if name is None:
            parts.append(part)
            continue
        value = left.pop(name, fields.get(name, otherwise))
        if value is None:
            raise InvalidArgument(f"template {template[:80]!r}: no value for <{name}>")
        if name in fields and "/" in check_namespace(value):
            raise InvalidNamespace(f"<{name}> is one part of a name, not {value[:80]!r}")
        parts.append(value)
    if left:
        raise InvalidArgument(f"template {template[:80]!r} has no field {', '.join(f'<{name}>' for name in left)}")
    return "/".join(parts)


def _text(what: str, given: object) -> str:
    if not isinstance(given, str):
        raise InvalidArgument(f"a {what} is a str, not {type(given).__name__}")
    return given
