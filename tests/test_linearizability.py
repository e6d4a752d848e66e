"""The checker of histories accepts what one order explains and refuses the rest; real processes are checked with it."""

from __future__ import annotations

import json
import random
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiermem.engine import drafts
from tiermem.engine.store import Store
from tiermem.testing import contention, linearizability
from tiermem.testing.linearizability import LOST, Call, Impossible, check, outcome
from tiermem.testing.transcript import Report, Transcript


def write(value: str | None, begun: float, ended: float) -> Call:
    return Call("write", value, None, begun, ended, "p")


def swap(expected: str | None, value: str | None, begun: float, ended: float) -> Call:
    return Call("swap", value, expected, begun, ended, "p")


def refused(expected: str | None, begun: float, ended: float) -> Call:
    return Call("refused", None, expected, begun, ended, "p")


def read(value: str | None, begun: float, ended: float) -> Call:
    return Call("read", None, value, begun, ended, "p")


LEGAL = {
    "nothing": [],
    "one after the other": [write("a", 0, 1), swap("a", "b", 2, 3), read("b", 4, 5), refused("a", 6, 7)],
    "two at once, in the order of their calls": [write("a", 0, 9), write("b", 1, 9), read("b", 10, 11)],
    "two at once, the other way round": [write("a", 0, 9), write("b", 1, 9), read("a", 10, 11)],
    "a read of what has not returned": [write("a", 0, 9), read("a", 1, 2), read("a", 3, 4)],
    "a read from before what is under way": [write("a", 0, 9), read(None, 1, 2), read("a", 3, 4)],
    "a deleted record": [write("a", 0, 1), write(None, 2, 3), swap(None, "b", 4, 5), read("b", 6, 7)],
    "a refusal while another swaps": [write("a", 0, 1), swap("a", "b", 2, 5), refused("a", 3, 4)],
    "a lost write that happened": [write("a", 0, 1), write("b", 2, LOST), read("b", 3, 4)],
    "a lost write that happened late": [write("a", 0, 1), write("b", 2, LOST), read("a", 3, 4), read("b", 5, 6)],
    "a lost write that never happened": [write("a", 0, 1), write("b", 2, LOST), read("a", 3, 4)],
    "a lost swap": [write("a", 0, 1), swap("a", "b", 2, LOST), swap("b", "c", 3, 4)],
    "a lost swap that was refused": [write("a", 0, 1), swap("x", "b", 2, LOST), swap("a", "c", 3, 4)],
    "a chain in three overlapping calls": [swap("b", "c", 0, 9), swap("a", "b", 0, 9), write("a", 0, 9)],
    "a return at the moment of a call": [write("a", 0, 5), read(None, 5, 6), read("a", 7, 8)],
}
WRONG = {
    "an acknowledged write is not there": [write("a", 0, 1), read(None, 2, 3)],
    "an overwritten value is": [write("a", 0, 1), write("b", 2, 3), read("a", 4, 5)],
    "a deleted value is": [write("a", 0, 1), write(None, 2, 3), read("a", 4, 5)],
    "a value nobody wrote": [write("a", 0, 1), read("b", 0, 3)],
    "a value before it was written": [read("a", 0, 1), write("a", 2, 3)],
    "one value is replaced twice": [write("a", 0, 1), swap("a", "b", 2, 5), swap("a", "c", 2, 5)],
    "an update is lost": [write("a", 0, 1), swap("a", "b", 2, 3), swap("a", "c", 4, 5)],
    "a put is lost to a later swap": [write("a", 0, 1), write("b", 2, 3), swap("a", "c", 4, 5)],
    "a refusal without a reason": [write("a", 0, 1), refused("a", 2, 3)],
    "a refusal of what is there all along": [write("a", 0, 1), refused("a", 2, 5), refused("b", 2, 5)],
    "two readers see another order": [
        write("a", 0, 9),
        write("b", 0, 9),
        read("a", 1, 2),
        read("b", 3, 4),
        read("a", 5, 6),
    ],
    "a lost write happens twice": [
        write("a", 0, LOST),
        read("a", 1, 2),
        write("b", 3, 4),
        read("b", 5, 6),
        read("a", 7, 8),
    ],
    "a lost write happens before its call": [read("a", 0, 1), write("a", 2, LOST)],
    "a lost write is there and gone again": [write("a", 0, LOST), read("a", 1, 2), read(None, 3, 4)],
}


@pytest.mark.parametrize("name", LEGAL)
def test_legal_histories(name: str) -> None:
    assert check(LEGAL[name]) == ""
    assert check(reversed(LEGAL[name])) == ""


@pytest.mark.parametrize("name", WRONG)
def test_wrong_histories(name: str) -> None:
    assert check(WRONG[name])
    assert check(reversed(WRONG[name]))


def test_what_is_wrong_is_named() -> None:
    assert check([write("a", 0, 1), read("b", 2, 3)]) == "p found b in [2, 3]; the record may have held a"


def test_too_many_possibilities_are_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linearizability, "MOST_POSSIBLE", 2)
    with pytest.raises(OverflowError):
        check([write("a", 0, LOST), write("b", 0, LOST), write("c", 0, 1), write("d", 0, 5), write("e", 0, 5)])


def by_trying(calls: list[Call]) -> bool:
    """Whether any order of any choice of the lost ones, and all others, explains the history: by its definition."""
    sure = [call for call in calls if call.ended != LOST]
    lost = [call for call in calls if call.ended == LOST]
    for choice in range(2 ** len(lost)):
        made = sure + [call for number, call in enumerate(lost) if choice >> number & 1]
        for order in permutations(made):
            if any(order[late].ended < order[early].begun for late in range(len(order)) for early in range(late)):
                continue
            state = None
            try:
                for call in order:
                    state = outcome(state, call)
            except Impossible:
                continue
            return True
    return False


values = st.sampled_from([None, "a", "b", "c"])
spans = st.tuples(st.integers(0, 8), st.integers(0, 6) | st.just(LOST))
any_calls = st.lists(
    st.builds(
        lambda kind, value, expected, span: Call(kind, value, expected, span[0], span[0] + span[1]),
        st.sampled_from(["write", "swap", "refused", "read"]),
        values,
        values,
        spans,
    ),
    max_size=5,
)


@given(any_calls)
def test_it_agrees_with_trying_every_order(calls: list[Call]) -> None:
    assert (check(calls) == "") == by_trying(calls)


@given(st.integers(0, 2**32))
def test_whatever_a_register_does_is_legal(seed: int) -> None:
    rng = random.Random(seed)
    state: str | None = None
    calls = []
    for number in range(40):
        moment = float(number)
        begun, ended = moment - 5 * rng.random(), moment + 5 * rng.random()
        kind = rng.choice(("write", "swap", "read", "lost"))
        expected = rng.choice((state, "other"))
        if kind == "read":
            calls.append(read(state, begun, ended))
        elif kind == "lost":
            happens = rng.random() < 0.5
            calls.append(write(f"v{number}", begun, LOST))
            state = f"v{number}" if happens else state
        elif kind == "write":
            state = f"v{number}"
            calls.append(write(state, begun, ended))
        elif expected == state:
            calls.append(swap(state, f"v{number}", begun, ended))
            state = f"v{number}"
        else:
            calls.append(refused(expected, begun, ended))
    assert check(calls) == ""


# ------------------------------------------------------------------------------------------------------- transcripts


def transcript(*messages: dict[str, Any]) -> tuple[Report, dict[str, list[Call]]]:
    report = Report(1, 0.0)
    taken = Transcript(report)
    for message in messages:
        taken.hear("p0", message)
    return report, taken.histories()


def test_a_refusal_is_a_read_of_the_version_it_names() -> None:
    put = [{"call": "put", "effects": [["k", "write", "p1.1", None]], "begun": 1}, {"ended": 2, "result": 77}]
    attempt = {"call": "swap", "effects": [["k", "swap", "p0.9", "p1.0"]], "begun": 3}
    assert transcript(*put, attempt, {"ended": 4, "refused": 77})[1]["k"][1] == read("p1.1", 3, 4)._replace(who="p0")
    assert transcript(*put, attempt, {"ended": 4, "refused": 0})[1]["k"][1] == read(None, 3, 4)._replace(who="p0")
    assert transcript(*put, attempt, {"ended": 4, "refused": 5})[1]["k"][1] == refused("p1.0", 3, 4)._replace(who="p0")


def test_a_version_of_two_values_is_a_problem() -> None:
    report, _ = transcript({"key": "k", "version": 7, "value": "a"}, {"key": "k", "version": 7, "value": "b"})
    assert not report.held


def test_what_was_cut_short_may_have_happened() -> None:
    report, found = transcript({"call": "batch", "effects": [["k", "write", "a", None]], "begun": 1})
    assert found["k"] == [write("a", 1, LOST)._replace(who="p0")]
    assert report.lost == 1


# ------------------------------------------------------------------------------------------------------ real processes


def test_processes_that_contend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--seconds", "2.5", "--processes", "4", "--folder", str(tmp_path), "--json"]
    assert contention.main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["problems"] == []
    assert report["records"] == len(contention.KEYS) + len(contention.COUNTS)
    assert set(report["made"]) >= {"put", "batch", "swap", "increment", "read"}


def test_processes_that_contend_and_are_killed(tmp_path: Path) -> None:
    report = contention.contest(tmp_path / "store", processes=3, seconds=2.0, kill_every=0.4)
    assert report.held, report.problems
    assert report.killed >= 2
    assert "check clean" in str(report)


def test_compare_and_sets_that_do_not_compare_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafts, "conditions", lambda *_: [])
    report = contention.contest(tmp_path / "store", processes=3, seconds=1.5, home="thread")
    assert any("in place of" in problem for problem in report.problems), report.problems


def test_puts_that_are_lost_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Store.submit
    taken = [0]

    def forgetful(self: Store, *draft: Any) -> int:
        taken[0] += 1
        return whole(self, *draft) if taken[0] % 10 else 1

    monkeypatch.setattr(Store, "submit", forgetful)
    report = contention.contest(tmp_path / "store", processes=2, seconds=1.5, home="thread")
    assert not report.held
    assert f"{len(report.problems)} problems" in str(report)
