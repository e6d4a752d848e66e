"""Votes: every order in which they can come, what decides, what is refused, and other processes."""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from fractions import Fraction
from itertools import permutations, product
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

import tiermem
from tests.workers import START
from tiermem import (
    InvalidArgument,
    Memory,
    Proposal,
    Record,
    RecordNotFound,
    SimulatedClock,
    VersionConflict,
    VoteRefused,
    Votes,
)

HALT = {"risk": 2.0, "desk": 1.0}


@pytest.fixture
def votes(mem: Memory) -> Votes:
    return Votes(mem)


# ------------------------------------------------------------------------------------------------- what is decided


def test_a_vote(votes: Votes, clock: SimulatedClock) -> None:
    p = votes.propose("halt", electorate=HALT, quorum=0.5, threshold=0.66, deadline=START + 9, payload={"why": ["px"]})
    assert votes.outcome(p) == "pending"
    assert votes.cast(p, "desk", approve=False) == "pending"
    clock.advance(1.0)
    assert votes.cast(p, "desk", approve=True) == "pending"
    assert votes.cast(p, "risk", approve=True) == votes.outcome(p) == votes.wait(p) == "approved"
    found = votes.get(p)
    assert found == Proposal(
        p,
        "halt",
        HALT,
        0.5,
        0.66,
        START + 9,
        {"why": ["px"]},
        START,
        {"desk": True, "risk": True},
        3,
        "approved",
        START + 1,
    )
    assert votes.history(p) == [("desk", False, START), ("desk", True, START + 1), ("risk", True, START + 1)]
    assert votes.list() == votes.list("approved") == [found]
    assert votes.list("pending") == []


def test_what_is_decided_stays_so(votes: Votes, clock: SimulatedClock) -> None:
    p = votes.propose("halt", electorate={"a": 1, "b": 1, "c": 1}, deadline=START + 9)
    votes.cast(p, "a", approve=True)
    assert votes.cast(p, "b", approve=True) == "approved"
    before = votes.get(p)
    with pytest.raises(VoteRefused, match="approved"):
        votes.cast(p, "c", approve=False)
    with pytest.raises(VoteRefused, match="approved"):
        votes.cast(p, "b", approve=False)
    # Somebody who is told again to vote as it has voted already.
    assert votes.cast(p, "b", approve=True) == "approved"
    clock.advance(100.0)
    assert votes.outcome(p) == "approved"
    assert votes.get(p) == before


def test_a_tie_rejects(votes: Votes) -> None:
    p = votes.propose("halt", electorate={"a": 1, "b": 2, "c": 3}, threshold=0.5)
    votes.cast(p, "a", approve=True)
    votes.cast(p, "b", approve=True)
    assert votes.cast(p, "c", approve=False) == "rejected"


def test_the_deadline_decides_by_the_votes_cast(votes: Votes, clock: SimulatedClock) -> None:
    electorate = {"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0}
    enough, few, none = (votes.propose("x", electorate=electorate, deadline=START + 9) for _ in range(3))
    for_nobody = votes.propose("x", electorate=electorate, quorum=0.0, deadline=START + 9)
    votes.cast(enough, "a", approve=True)
    votes.cast(enough, "b", approve=True)
    votes.cast(few, "a", approve=True)
    clock.advance(9.0)
    with pytest.raises(VoteRefused, match="approved"):
        votes.cast(enough, "c", approve=False)
    found = [votes.outcome(p) for p in (enough, few, none, for_nobody)]
    assert found == ["approved", "expired", "expired", "rejected"]
    assert [votes.get(p).decided_at for p in (enough, few, none, for_nobody)] == [START + 9] * 4


def test_weights_count_as_they_are_written(votes: Votes, clock: SimulatedClock) -> None:
    tied = votes.propose("sums", electorate={"a": 0.1, "b": 0.2, "c": 0.3})
    assert votes.cast(tied, "a", approve=True) == votes.cast(tied, "b", approve=True) == "pending"
    assert votes.cast(tied, "c", approve=False) == "rejected"
    quorate = votes.propose("quorum", electorate={"a": 0.7, "b": 0.1, "c": 0.2}, quorum=0.8, deadline=clock.now() + 5.0)
    votes.cast(quorate, "a", approve=True)
    votes.cast(quorate, "b", approve=True)
    clock.advance(5.0)
    assert votes.outcome(quorate) == "approved"


def test_a_share_is_rounded_as_a_threshold_is() -> None:
    weights = {f"m{number:02d}": 1.0 for number in range(20)}
    for threshold in (0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95):
        needed = round(threshold * 20)
        for approving, outcome in ((needed, "approved"), (needed - 1, "rejected")):
            ballots = {member: number < approving for number, member in enumerate(weights)}
            assert proposal(weights, ballots, 0.5, threshold).weigh(over=True) == outcome


def proposal(weights: Mapping[str, float], ballots: Mapping[str, bool], quorum: float, threshold: float) -> Proposal:
    return Proposal("p", "p", weights, quorum, threshold, None, None, START, ballots, len(ballots), "pending", None)


def counted(weights: Mapping[str, int], ballots: Mapping[str, bool], quorum: Fraction, threshold: Fraction) -> str:
    """The outcome at the end, counted without rounding."""
    approving = sum(weights[member] for member, approve in ballots.items() if approve)
    cast = sum(weights[member] for member in ballots)
    if Fraction(cast, sum(weights.values())) < quorum:
        return "expired"
    return "approved" if 2 * approving > cast and approving >= threshold * cast else "rejected"


@pytest.mark.parametrize("heavy", [(1, 1, 1, 1, 1), (2, 1, 1, 1, 1), (3, 2, 2, 1, 1), (1, 1, 1), (5, 3), (1,)])
@pytest.mark.parametrize("quorum", [Fraction(0), Fraction(1, 2), Fraction(1)])
@pytest.mark.parametrize("threshold", [Fraction(1, 4), Fraction(1, 2), Fraction(3, 4), Fraction(1)])
def test_it_is_decided_early_if_and_only_if_nothing_can_change_it(
    heavy: tuple[int, ...], quorum: Fraction, threshold: Fraction
) -> None:
    weights = {f"m{number}": weight for number, weight in enumerate(heavy)}
    for said in product([None, True, False], repeat=len(heavy)):
        ballots = {member: vote for member, vote in zip(weights, said, strict=True) if vote is not None}
        missing = [member for member in weights if member not in ballots]
        ends = {
            counted(
                weights,
                ballots | {m: v for m, v in zip(missing, more, strict=True) if v is not None},
                quorum,
                threshold,
            )
            for more in product([None, True, False], repeat=len(missing))
        }
        voted = proposal(weights, ballots, float(quorum), float(threshold))
        assert voted.weigh(over=True) == counted(weights, ballots, quorum, threshold)
        there = Fraction(sum(weights[member] for member in ballots), sum(heavy)) >= quorum
        assert voted.weigh(over=False) == (ends.pop() if there and len(ends) == 1 else "pending")


# ------------------------------------------------------------------------------------------------ every interleaving


class Shelf:
    """What `Votes` needs of a `Memory`, in a dict; `meddle` is called between what a vote reads and what it writes."""

    def __init__(self, clock: SimulatedClock) -> None:
        self.clock = clock
        self.records: dict[tuple[str, str], tuple[Any, int]] = {}
        self.version = 0
        self.meddle: Callable[[], None] = lambda: None

    def get_record(self, namespace: str, key: str) -> Record | None:
        value, version = self.records.get((namespace, key), (None, 0))
        return Record(namespace, key, value, {}, None, version, 0.0, 0.0, 0.0, None) if version else None

    def put(self, namespace: str, key: str, value: Any, *, if_version: int | None = None) -> int:
        _, found = self.records.get((namespace, key), (None, 0))
        if if_version not in (None, found):
            raise VersionConflict("another version", expected=if_version, found=found)
        self.version += 1
        self.records[namespace, key] = value, self.version
        return self.version

    def batch(self) -> ShelfBatch:
        return ShelfBatch(self)


class ShelfBatch:
    """Puts that happen together; only the first has a condition."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self.puts: list[tuple[Any, ...]] = []

    def put(self, namespace: str, key: str, value: Any, *, if_version: int | None = None) -> None:
        self.puts.append((namespace, key, value, if_version))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shelf.meddle()
        for namespace, key, value, if_version in self.puts:
            self.shelf.put(namespace, key, value, if_version=if_version)


class Walk:
    """Every order in which members vote, one way or the other, and the deadline comes, each followed to its end."""

    def __init__(self, members: int, threshold: float) -> None:
        self.weights = {f"m{number}": 1.0 + (number == 0) for number in range(members)}
        self.threshold = threshold
        self.shelf = Shelf(SimulatedClock(START))
        self.votes = Votes(self.shelf)
        self.nodes = 0
        self.ends: dict[tuple[tuple[str, bool], ...], set[str]] = {}

    def start(self, ballots: int) -> None:
        """Walk all ways in which every member votes up to `ballots` times."""
        terms = {"electorate": self.weights, "threshold": self.threshold, "deadline": START + 1}
        p = self.votes.propose("x", **terms, id="p")
        self.follow(p, tuple(self.weights) * ballots, {})

    def follow(self, p: str, left: tuple[str, ...], cast: dict[str, bool]) -> None:
        """Everything that can happen next to the proposal `p`, each to a copy of it; `left` have ballots left."""
        self.nodes += 1
        before = self.votes.get(p).outcome
        for member, approve in product(sorted(set(left)), (True, False)):
            copy, counted = self.copied(p), dict(cast)
            if self.voted(copy, member, approve, before, cast):
                counted[member] = approve
            rest = list(left)
            rest.remove(member)
            self.follow(copy, tuple(rest), counted)
        self.after_the_deadline(self.copied(p), before, cast)

    def voted(self, p: str, member: str, approve: bool, before: str, cast: dict[str, bool]) -> bool:
        """Vote; False if that was refused, as it is once and for all when the outcome is decided."""
        try:
            said = self.votes.cast(p, member, approve=approve)
        except VoteRefused:
            assert before != "pending"
            assert self.votes.get(p).outcome == before
            return False
        assert before == "pending" or (cast.get(member) is approve and said == before)
        assert said == self.votes.get(p).outcome
        return True

    def after_the_deadline(self, p: str, before: str, cast: dict[str, bool]) -> None:
        """The end: it is decided, once, by the votes that counted, and nobody can vote any more."""
        self.shelf.clock = SimulatedClock(START + 1)
        final = self.votes.outcome(p)
        assert final != "pending"
        assert before in ("pending", final)
        _, version = self.shelf.records["votes", p]
        for member, approve in product(self.weights, (True, False)):
            if cast.get(member) is not approve:
                with pytest.raises(VoteRefused):
                    self.votes.cast(p, member, approve=approve)
        assert self.votes.outcome(p) == final
        assert self.shelf.records["votes", p][1] == version, "it was decided once"
        self.ends.setdefault(tuple(sorted(cast.items())), set()).add(final)
        self.shelf.clock = SimulatedClock(START)

    def copied(self, p: str) -> str:
        """The same proposal under another id: what happens to the one does not happen to the other."""
        copy = f"p{self.shelf.version}"
        self.shelf.put("votes", copy, self.shelf.records["votes", p][0])
        return copy


@pytest.mark.parametrize("threshold", [0.5, 0.66, 1.0])
@pytest.mark.parametrize(("members", "ballots"), [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (1, 3), (2, 2)])
def test_every_interleaving_of_voters_and_a_deadline_has_one_final_outcome(
    members: int, ballots: int, threshold: float
) -> None:
    walk = Walk(members, threshold)
    walk.start(ballots)
    # The votes that counted decide, in whatever order they came.
    assert all(len(found) == 1 for found in walk.ends.values())
    assert {"approved", "rejected"} <= {outcome for found in walk.ends.values() for outcome in found}
    orders = sum(math.perm(members, voted) * 2**voted for voted in range(members + 1))
    assert walk.nodes >= orders, "every order, and what each can say"


class Meeting:
    """Voters and a deadline that come one by one; some of them between what the one before reads and what it writes."""

    def __init__(self, order: Sequence[str], inside: Sequence[bool], said: Mapping[str, bool]) -> None:
        self.shelf = Shelf(SimulatedClock(START))
        self.votes = Votes(self.shelf)
        self.votes.propose("x", electorate={"a": 2, "b": 1, "c": 1}, deadline=START + 1, id="p")
        self.coming = list(zip(order, inside, strict=True))
        self.said = said
        self.counted: dict[str, bool] = {}
        self.seen: list[str] = []

    def come(self) -> None:
        """The next one acts, and inside of it whoever comes then."""
        who, _ = self.coming.pop(0)
        self.shelf.meddle = lambda: self.come() if self.coming and self.coming[0][1] else None
        if who == "deadline":
            self.shelf.clock.set(START + 1)
            self.votes.outcome("p")
        else:
            try:
                self.votes.cast("p", who, approve=self.said[who])
                self.counted[who] = self.said[who]
            except VoteRefused:
                assert self.votes.get("p").outcome != "pending"
        self.seen.append(self.votes.get("p").outcome)


@pytest.mark.parametrize("approvals", list(product([True, False], repeat=3)))
def test_every_way_in_which_voters_come_between_what_others_read_and_write(approvals: tuple[bool, ...]) -> None:
    for order, nested in product(permutations(["a", "b", "c", "deadline"]), product([True, False], repeat=3)):
        meeting = Meeting(order, (False, *nested), dict(zip("abc", approvals, strict=True)))
        while meeting.coming:
            meeting.come()
        final = meeting.votes.outcome("p")
        assert final != "pending"
        decided = [outcome for outcome in meeting.seen if outcome != "pending"]
        assert meeting.seen[len(meeting.seen) - len(decided) :] == decided == [final] * len(decided)
        found = meeting.votes.get("p")
        assert found.votes == meeting.counted
        assert found.ballots == len(meeting.counted)
        assert found.weigh(over=True) == final


# --------------------------------------------------------------------------------------------------- waiting, others


def in_thread(body: Callable[[], Any]) -> Callable[[], Any]:
    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(body()), daemon=True)
    thread.start()

    def result() -> Any:
        thread.join(30.0)
        return done[0]

    return result


def test_waiting(votes: Votes, clock: SimulatedClock) -> None:
    p = votes.propose("halt", electorate=HALT)
    assert votes.wait(p, timeout=0.0) == "pending"
    first, second = in_thread(lambda: votes.wait(p)), in_thread(lambda: votes.wait(p, timeout=5.0))
    clock.advance(5.0)
    assert second() == "pending"
    votes.cast(p, "desk", approve=True)
    votes.cast(p, "risk", approve=False)
    assert first() == "rejected"


def test_waiting_ends_with_the_deadline(votes: Votes, clock: SimulatedClock) -> None:
    p = votes.propose("halt", electorate=HALT, deadline=datetime.fromtimestamp(START + 5, UTC))
    waits = [in_thread(lambda: votes.wait(p)) for _ in range(3)]
    clock.advance(5.0)
    assert [done() for done in waits] == ["expired"] * 3
    assert votes.get(p).decided_at == START + 5


def test_whoever_reads_only_decides_nothing(tmp_path: Path) -> None:
    clock = SimulatedClock(START)
    with tiermem.open(tmp_path / "s", clock=clock) as mem:
        p = Votes(mem).propose("halt", electorate=HALT, deadline=START + 5)
        clock.advance(5.0)
        with tiermem.open(tmp_path / "s", clock=clock, read_only=True) as other:
            assert Votes(other).outcome(p) == "pending"
            assert Votes(mem).outcome(p) == "expired"
            assert Votes(other).outcome(p) == "expired"


VOTER = textwrap.dedent("""
    import sys, tiermem
    root, member, proposals = sys.argv[1], sys.argv[2], sys.argv[3:]
    with tiermem.open(root) as mem:
        votes = tiermem.Votes(mem)
        for number, p in enumerate(proposals):
            try:
                votes.cast(p, member, approve=(number + ord(member)) % 2 > 0)
            except tiermem.VoteRefused:
                pass
            print(votes.wait(p))
""")


def test_processes_agree(tmp_path: Path) -> None:
    members = "abcde"
    with tiermem.open(tmp_path / "s") as mem:
        votes = Votes(mem)
        proposals = [votes.propose("x", electorate=dict.fromkeys(members, 1.0)) for _ in range(20)]
        mem.flush()
        command = [sys.executable, "-c", VOTER, str(tmp_path / "s")]
        voters = [
            subprocess.Popen([*command, member, *proposals], stdout=subprocess.PIPE, text=True) for member in members
        ]
        said = [voter.communicate(timeout=120.0)[0].split() for voter in voters]
        assert all(one == said[0] for one in said)
        assert said[0] == [votes.outcome(p) for p in proposals]
        assert {"approved", "rejected"} == set(said[0])
        for p in proposals:
            found = votes.get(p)
            assert found.ballots == len(votes.history(p)) == len(found.votes) >= 3
            assert {ballot.member: ballot.approve for ballot in votes.history(p)} == found.votes


# -------------------------------------------------------------------------------------------------------- proposals


def test_an_id_of_ones_own_is_proposed_once(mem: Memory, votes: Votes) -> None:
    p = votes.propose("order", electorate=HALT, id="order-17", payload={"px": 1})
    votes.cast(p, "desk", approve=True)
    assert votes.propose("order", electorate=HALT, id="order-17", payload={"px": 1}) == p == "order-17"
    assert votes.get(p).votes == {"desk": True}
    with pytest.raises(VersionConflict, match="another proposal"):
        votes.propose("order", electorate={"desk": 1.0}, id="order-17")
    assert votes.propose("order", electorate=HALT) != votes.propose("order", electorate=HALT)
    assert len(votes.list()) == 3
    assert Votes(mem, namespace="elsewhere").list() == []


def test_who_is_started_again_after_the_deadline_finds_its_proposal(votes: Votes, clock: SimulatedClock) -> None:
    p = votes.propose("halt", electorate=HALT, deadline=START + 5, id="mine")
    clock.advance(6)
    assert votes.propose("halt", electorate=HALT, deadline=START + 5, id="mine") == p
    assert votes.outcome(p) == "expired"
    with pytest.raises(InvalidArgument, match="deadline"):
        votes.propose("halt", electorate=HALT, deadline=START + 5, id="another")
    assert [one.id for one in votes.list()] == [p]


def test_who_may_vote(votes: Votes) -> None:
    p = votes.propose("halt", electorate=HALT)
    for stranger in ("signal", "", "Risk", None, 7, ["risk"]):
        with pytest.raises(VoteRefused, match="electorate"):
            votes.cast(p, stranger, approve=True)
    with pytest.raises(InvalidArgument):
        votes.cast(p, "risk", approve=1)
    assert votes.get(p).votes == {}
    for ask in (votes.outcome, votes.wait, votes.get, lambda p: votes.cast(p, "risk", approve=True)):
        with pytest.raises(RecordNotFound):
            ask("nothing")
    assert votes.history("nothing") == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": 5},
        {"name": "x" * 401},
        {"electorate": {}},
        {"electorate": ["risk"]},
        {"electorate": {"": 1}},
        {"electorate": {5: 1}},
        {"electorate": {"a\0b": 1}},
        {"electorate": {"risk": 0}},
        {"electorate": {"risk": -1}},
        {"electorate": {"risk": math.inf}},
        {"electorate": {"risk": math.nan}},
        {"electorate": {"risk": 10**400}},
        {"electorate": {"risk": True}},
        {"electorate": {"risk": "2"}},
        {"electorate": {"risk": 1e308, "desk": 1e308}},
        {"quorum": -0.1},
        {"quorum": 1.1},
        {"quorum": math.nan},
        {"quorum": True},
        {"threshold": 0},
        {"threshold": 2},
        {"threshold": "all"},
        {"deadline": START},
        {"deadline": START - 1},
        {"deadline": math.nan},
        {"deadline": datetime(2030, 1, 1)},
        {"id": ""},
        {"id": 5},
    ],
)
def test_what_is_refused(mem: Memory, votes: Votes, wrong: dict[str, Any]) -> None:
    arguments = {"name": "halt", "electorate": HALT, **wrong}
    with pytest.raises(InvalidArgument):
        votes.propose(arguments.pop("name"), **arguments)
    with pytest.raises(tiermem.EncodingError):
        votes.propose("halt", electorate=HALT, payload=object())
    assert list(mem.scan("votes")) == []
