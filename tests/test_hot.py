"""The hot tier: what it holds is what was put in, within its budget, whatever the policy says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tiermem.codec.frame import NEVER
from tiermem.errors import ClosedError
from tiermem.policy.eviction import DEFAULT, LRU
from tiermem.protocols import EvictionPolicy
from tiermem.tiers.hot import ABSENT_BYTES, ABSENT_SHARE, ENTRY_BYTES, EXPANSION, HotTier, Table, cost_of

POLICIES: list[type[EvictionPolicy]] = [LRU, DEFAULT]
each_policy = pytest.mark.parametrize("policy", POLICIES)


def absent(table: Table, key: str) -> Any:
    raise KeyError(key)


def held(table: Table) -> dict[str, Any]:
    assert not table.keys() & table.watched.keys(), "an entry is both free and watched"
    assert not table.timed.keys() & (table.keys() | table.watched.keys()), "an entry is timed and something else"
    assert table.expires.keys() <= table.watched.keys(), "an entry that expires is free, or gone"
    return {**table, **table.watched, **{key: value for key, (value, _) in table.timed.items()}}


def expiry(table: Table, key: str) -> float:
    return table.timed[key][1] if key in table.timed else table.expires.get(key, NEVER)


class HotMachine(RuleBasedStateMachine):
    """Fills, hits and drops against a dict; eviction may forget, and nothing else may."""

    policy: Callable[[int], EvictionPolicy]
    budget = 10_000

    @initialize()
    def begin(self) -> None:
        self.hot = HotTier(self.policy(self.budget), self.budget)
        self.tables = [self.hot.table(absent) for _ in range(2)]
        self.model: list[dict[str, tuple[int, float]]] = [{}, {}]
        self.fills = 0

    @rule(
        number=st.integers(0, 1),
        key=st.sampled_from("abcdefghijkl"),
        cost=st.sampled_from([400, 900, 2500, 10_000, 10_001]),
        expires=st.sampled_from([NEVER, NEVER, 100.0, 200.0]),
    )
    def fill(self, number: int, key: str, cost: int, expires: float) -> None:
        self.fills += 1
        self.model[number][key] = (self.fills, expires)
        self.hot.fill(self.tables[number], key, self.fills, cost, expires)

    @rule(number=st.integers(0, 1), key=st.sampled_from("abcdefghijkl"))
    def hit(self, number: int, key: str) -> None:
        table = self.tables[number]
        if key in table.watched:
            self.hot.touch(table, key)

    @rule(number=st.integers(0, 1), key=st.sampled_from("abcdefghijkl"))
    def drop(self, number: int, key: str) -> None:
        self.hot.drop(self.tables[number], key)
        self.model[number].pop(key, None)
        assert key not in held(self.tables[number])

    @rule(number=st.integers(0, 1), key=st.sampled_from("xyz"))
    def learn_that_it_lacks(self, number: int, key: str) -> None:
        self.hot.lacks(self.tables[number], key)
        assert key in self.tables[number].absent
        assert sum(len(table.absent) for table in self.tables) <= self.budget / ABSENT_BYTES / ABSENT_SHARE + 1

    @rule(number=st.integers(0, 1))
    def drop_table(self, number: int) -> None:
        self.hot.drop_table(self.tables[number])
        self.model[number].clear()
        assert held(self.tables[number]) == {}
        assert not self.tables[number].absent

    @rule()
    def clear(self) -> None:
        self.hot.clear()
        self.model = [{}, {}]
        assert (self.hot.entries, self.hot.policy.used) == (0, 0)

    @invariant()
    def nothing_is_stale_and_the_budget_holds(self) -> None:
        if not hasattr(self, "hot"):
            return
        entries = 0
        for table, model in zip(self.tables, self.model, strict=True):
            for key, value in held(table).items():
                known, expires = model[key]
                assert value == known, "an older value than the one last put in"
                assert expiry(table, key) == expires
                entries += 1
        assert self.hot.entries == entries
        assert self.hot.policy.used <= self.budget
        assert (self.hot.policy.used == 0) == (entries == 0)


def machine(policy: type[EvictionPolicy]) -> Any:
    return type(f"Hot{policy.__name__}", (HotMachine,), {"policy": staticmethod(policy)}).TestCase


TestHotLRU = machine(LRU)
TestHotDefault = machine(DEFAULT)


@each_policy
def test_the_budget_bounds_all_tables_together(policy: type[EvictionPolicy]) -> None:
    hot = HotTier(policy(10_000), 10_000)
    tables = [hot.table(absent) for _ in range(3)]
    for number in range(300):
        hot.fill(tables[number % 3], f"k{number}", number, 1000)
        assert hot.policy.used <= 10_000
    assert 5 <= hot.entries <= 10
    assert hot.evictions + hot.entries == 300
    assert hot.promotions == 300


@each_policy
def test_what_fits_into_the_budget_stays(policy: type[EvictionPolicy]) -> None:
    hot = HotTier(policy(10_000), 10_000)
    table = hot.table(absent)
    for number in range(10):
        hot.fill(table, f"k{number}", number, 1000)
    assert held(table) == {f"k{number}": number for number in range(10)}
    assert hot.evictions == 0


def test_repeated_hits_make_an_entry_free() -> None:
    hot = HotTier(DEFAULT(10_000), 10_000)
    table = hot.table(absent)
    hot.fill(table, "k", 1, 1000)
    for _ in range(5):
        if "k" in table.watched:
            hot.touch(table, "k")
    assert dict(table) == {"k": 1}
    assert table["k"] == 1
    assert 0 < hot.watched_hits <= 5


@each_policy
def test_an_entry_that_expires_is_found_until_it_does(policy: type[EvictionPolicy]) -> None:
    now = 49.0
    hot = HotTier(policy(10_000), 10_000, lambda: now)
    table = hot.table(absent)
    hot.fill(table, "k", 1, 1000, 50.0)
    for _ in range(9):
        if "k" in table.watched:
            hot.touch(table, "k")
        assert "k" not in table
        assert (held(table), expiry(table, "k")) == ({"k": 1}, 50.0)
    assert ("k" in table.timed) == (policy is not LRU)
    if "k" in table.timed:
        assert table["k"] == 1
    now = 50.0
    with pytest.raises(KeyError):
        table["k"]
    # Filled again without an expiry it may become free like any other.
    for value in range(2, 9):
        hot.fill(table, "k", value, 1000)
    assert table.expires == {}
    assert held(table) == {"k": 8}


@each_policy
def test_an_expiry_given_to_a_free_entry(policy: type[EvictionPolicy]) -> None:
    hot = HotTier(policy(10_000), 10_000)
    table = hot.table(absent)
    for value in range(9):
        hot.fill(table, "k", value, 1000)
    hot.fill(table, "k", "timed", 1000, 50.0)
    assert dict(table) == {}
    assert (held(table), expiry(table, "k")) == ({"k": "timed"}, 50.0)


@each_policy
def test_a_value_larger_than_the_budget_replaces_what_was_there(policy: type[EvictionPolicy]) -> None:
    hot = HotTier(policy(1000), 1000)
    table = hot.table(absent)
    hot.fill(table, "k", "old", 400)
    hot.fill(table, "k", "new", 1001)
    assert held(table) in ({}, {"k": "new"}), "the old value is still served"
    assert hot.policy.used <= 1000


def test_a_budget_of_nothing_holds_nothing() -> None:
    hot = HotTier(DEFAULT(0), 0)
    table = hot.table(absent)
    hot.fill(table, "k", 1, 1)
    assert hot.entries == 0


@each_policy
def test_demoted_entries_are_watched_and_still_there(policy: type[EvictionPolicy]) -> None:
    hot = HotTier(policy(5_000), 5_000)
    table = hot.table(absent)
    for _ in range(4):
        for number in range(5):
            hot.fill(table, f"k{number}", number, 1000)
    for number in range(200):
        hot.fill(table, f"n{number}", number, 1000)
        found = held(table)
        assert len(found) <= 5
        assert all(found[key] == int(key[1:]) for key in found)


def test_a_miss_is_asked_for_with_its_table() -> None:
    asked: list[tuple[Table, str]] = []

    def miss(table: Table, key: str) -> str:
        asked.append((table, key))
        return key.upper()

    hot = HotTier(LRU(1000), 1000)
    first, second = hot.table(miss), hot.table(miss)
    assert (first["a"], second["b"], first.get("c")) == ("A", "B", None)
    assert [(table.number, key) for table, key in asked] == [(0, "a"), (1, "b")]


def test_after_close_every_lookup_says_so() -> None:
    def closed(table: Table, key: str) -> Any:
        raise ClosedError("closed")

    hot = HotTier(DEFAULT(10_000), 10_000)
    table = hot.table(absent)
    for value in range(9):
        hot.fill(table, "free", value, 1000)
    hot.fill(table, "timed", 1, 1000, 50.0)
    hot.close(closed)
    assert hot.entries == 0
    for key in ("free", "timed", "never"):
        with pytest.raises(ClosedError):
            table[key]


def test_what_entries_are_thought_to_cost() -> None:
    import numpy as np

    for flat in ("text", b"bytes", np.zeros(4), 1, 1.5, True, None):
        assert cost_of(flat, 100) == ENTRY_BYTES + 100
    for nested in ({}, [], object()):
        assert cost_of(nested, 100) == ENTRY_BYTES + 100 * EXPANSION
