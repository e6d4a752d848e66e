"""Names built from templates, taken apart by them, and matched by patterns; against a matcher without regexes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiermem
from tiermem import InvalidArgument, InvalidNamespace, namespaces

part = st.text(st.characters(exclude_characters="/*<>\0", exclude_categories=["Cs"]), min_size=1, max_size=6)
short = st.sampled_from(["a", "b", "ab", "a.c", "é", "\n"])


def oracle(pattern: list[str], name: list[str]) -> bool:
    """`*` is one part, `**` one or more."""
    if not pattern:
        return not name
    if not name:
        return False
    first, rest = pattern[0], pattern[1:]
    if first == "**":
        return oracle(rest, name[1:]) or oracle(pattern, name[1:])
    return first in ("*", name[0]) and oracle(rest, name[1:])


@given(st.lists(short | st.sampled_from(["*", "**"]), min_size=1, max_size=5), st.lists(short, min_size=1, max_size=6))
def test_match_is_what_the_oracle_says(pattern: list[str], name: list[str]) -> None:
    assert namespaces.match("/".join(pattern), "/".join(name)) == oracle(pattern, name)


@given(st.lists(part, min_size=1, max_size=4), st.lists(part, min_size=1, max_size=4))
def test_what_was_built_is_parsed_and_matched(fixed: list[str], filled: list[str]) -> None:
    fields = {f"f{number}": value for number, value in enumerate(filled)}
    template = "/".join([*fixed, *(f"<{name}>" for name in fields)])
    name = tiermem.namespaces.build(template, **fields)
    assert name == "/".join([*fixed, *filled])
    assert namespaces.parse(template, name) == fields
    assert namespaces.match(namespaces.pattern(template), name)
    assert namespaces.parse(template, name + "/more") is None
    assert namespaces.parse(template, "x" + name) is None


def test_fields_left_out_become_wild() -> None:
    assert namespaces.pattern("swarm/<agent>/<key>") == "swarm/*/*"
    assert namespaces.pattern("swarm/<agent>/<key>", key="plan") == "swarm/*/plan"
    assert namespaces.pattern("swarm/<agent>/**", agent="risk") == "swarm/risk/**"
    assert namespaces.build("swarm/plain") == "swarm/plain"


def test_a_field_may_have_any_name() -> None:
    assert namespaces.build("a/<template>", template="x") == "a/x"
    assert namespaces.pattern("a/<template>/<name>", template="x") == "a/x/*"


def test_many_wild_parts_take_no_time() -> None:
    # Each of them tried at each part would take longer than anyone lives.
    assert not namespaces.match("/".join(["**", "a"] * 40 + ["b"]), "/".join("a" * 120))
    assert namespaces.match("/".join(["**", "a"] * 40 + ["b"]), "/".join("a" * 119 + "b"))


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: namespaces.build("a/<x>"), InvalidArgument),
        (lambda: namespaces.build("a/<x>", x="1", y="2"), InvalidArgument),
        (lambda: namespaces.build("a/<x>", x="1/2"), InvalidNamespace),
        (lambda: namespaces.build("a/<x>", x=""), InvalidNamespace),
        (lambda: namespaces.build("a/<x>", x="*"), InvalidNamespace),
        (lambda: namespaces.build("a/<x>", x=5), InvalidNamespace),
        (lambda: namespaces.build("a/x<y>", y="1"), InvalidArgument),
        (lambda: namespaces.build("a/*"), InvalidNamespace),
        (lambda: namespaces.build(5), InvalidArgument),
        (lambda: namespaces.build("<x>", x="n" * 300), InvalidNamespace),
        (lambda: namespaces.pattern("a/<x>*"), InvalidArgument),
        (lambda: namespaces.pattern("a/b*"), InvalidArgument),
        (lambda: namespaces.parse("<x>/<x>", "a/a"), InvalidArgument),
        (lambda: namespaces.parse("<1>", "a"), InvalidArgument),
        (lambda: namespaces.parse("a", "a//b"), InvalidNamespace),
        (lambda: namespaces.match("a*", "a"), InvalidArgument),
        (lambda: namespaces.match("***", "a"), InvalidArgument),
        (lambda: namespaces.match("a//**", "a"), InvalidNamespace),
        (lambda: namespaces.match("", "a"), InvalidNamespace),
        (lambda: namespaces.match(b"a", "a"), InvalidArgument),
        (lambda: namespaces.match("a", None), InvalidNamespace),
    ],
)
def test_what_is_malformed_is_refused(call: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        call()
