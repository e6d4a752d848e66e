"""Votes: proposals, weighted ballots, and outcomes that are decided once."""

from __future__ import annotations

import math
import sys
import uuid
from collections.abc import Iterable, Mapping
from fractions import Fraction
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from tiermem.clock import to_epoch
from tiermem.coordination._waiting import deadline, sleep
from tiermem.errors import InvalidArgument, ReadOnlyError, RecordNotFound, VersionConflict, VoteRefused
from tiermem.types import check_namespace

if TYPE_CHECKING:
    from tiermem.engine.memory import Memory
    from tiermem.types import Duration, Moment, Record

Outcome = Literal["pending", "approved", "rejected", "expired"]

MAX_ID_BYTES: Final = 400
_ID_DIGITS: Final = 12


class Ballot(NamedTuple):
    """One vote as it was cast; a member's last one counts."""

    member: str
    approve: bool
    at: float


class Proposal(NamedTuple):
    """What is voted on, and how it stands. Times are epoch seconds of the store's clock.

    electorate: the weight of each member. votes: what each that has voted last said. ballots: how many were cast.
    """

    id: str
    name: str
    electorate: Mapping[str, float]
    quorum: float
    threshold: float
    deadline: float | None
    payload: Any
    proposed_at: float
    votes: Mapping[str, bool]
    ballots: int
    outcome: Outcome
    decided_at: float | None

    def over(self, now: float) -> bool:
        """True if the deadline has come."""
        return self.deadline is not None and now >= self.deadline

    def weigh(self, *, over: bool) -> Outcome:
        """The outcome that the votes give, which is final `over` the deadline, or if no vote to come can change it.

        Shares are of weight. The proposal is approved if those who approve have at least `threshold` of the votes cast,
        and more than those who reject. At the deadline that counts if at least `quorum` of the electorate has voted;
        else it expires. Before it, once there is that quorum, a share counts that stands however the others vote.
        """
        weights = self.electorate
        approving = _total(weights[member] for member, approve in self.votes.items() if approve)
        rejecting = _total(weights[member] for member, approve in self.votes.items() if not approve)
        silent = _total(weight for member, weight in weights.items() if member not in self.votes)
        cast = approving + rejecting
        over = over or len(self.votes) == len(weights)
        if float(cast / (cast + silent)) < self.quorum:
            return "expired" if over else "pending"
        if over:
            return "approved" if self._carries(approving, rejecting, cast) else "rejected"
        if self._carries(approving, rejecting + silent, cast + silent):
            return "approved"
        return "pending" if self._carries(approving + silent, rejecting, cast + silent) else "rejected"

    def _carries(self, approving: Fraction, rejecting: Fraction, cast: Fraction) -> bool:
        # A quotient of weights is rounded as the threshold was when it was written down: 11 of 20 are 0.55.
        return approving > rejecting and float(approving / cast) >= self.threshold


class Votes:
    """Proposals and the votes on them, for all threads and processes of one store.

    One member has one vote, which it may change until the outcome is decided. That happens once: at the vote after
    which those missing can change nothing, at the last one, or at the deadline; what is decided stays so. Past its
    deadline a proposal is decided by whoever asks for the outcome, waits for it or votes too late.

    This is a ledger with compare-and-set on one store, not a replication protocol: no member holds a copy, and whoever
    can write to the store can vote in any member's name. Built on conditional writes, batches and the change feed of
    `Memory`, and assumes that those conditions are linearizable. A proposal, a vote and a decision cost a commit each.

    >>> import tiermem
    >>> with tiermem.open("./memory") as mem:
    ...     votes = tiermem.Votes(mem)
    ...     p = votes.propose("halt", electorate={"risk": 2.0, "desk": 1.0}, quorum=0.5, threshold=0.66)
    ...     votes.cast(p, "desk", approve=False), votes.cast(p, "risk", approve=True), votes.outcome(p)
    ('pending', 'approved', 'approved')
    """

    def __init__(self, mem: Memory, *, namespace: str = "votes") -> None:
        self._mem = mem
        self._namespace = check_namespace(namespace)
        self._ballots = check_namespace(f"{namespace}/ballots")

    def propose(
        self,
        name: str,
        *,
        electorate: Mapping[str, float],
        quorum: float = 0.5,
        threshold: float = 0.5,
        deadline: Moment | None = None,
        payload: Any = None,
        id: str | None = None,
    ) -> str:
        """Put something to the vote; the proposal's id.

        name: what it is about, 1 to 400 UTF-8 bytes. electorate: the weight > 0 of each member. quorum in [0, 1]: the
        share of the electorate that has to vote. threshold in (0, 1]: the share of the votes cast that has to approve;
        with 0.5 a majority, since a tie rejects. deadline: epoch seconds or an aware datetime (None: when all have
        voted). id: one of one's own, so that a process that is started again proposes the same thing once: where there
        is that proposal, of the same name, electorate, quorum and threshold, nothing is changed.

        Raises:
            VersionConflict: there is another proposal of that `id`. InvalidArgument: an argument is malformed.
        """
        now = self._mem.clock.now()
        _check_text("name", name)
        chosen = f"{name[: MAX_ID_BYTES // 8]}-{uuid.uuid4().hex[:_ID_DIGITS]}" if id is None else _check_text("id", id)
        weights = _weights(electorate)
        if _number("threshold", threshold) == 0:
            raise InvalidArgument("a threshold is above 0")
        end = None if deadline is None else to_epoch(deadline)
        # Who was started again may find what it has proposed over.
        if end is not None and end <= now and not (id is not None and self._mem.contains(self._namespace, chosen)):
            raise InvalidArgument(f"the deadline {end} is not ahead of {now}")
        terms = {
            "name": name,
            "electorate": weights,
            "quorum": _number("quorum", quorum),
            "threshold": float(threshold),
            "deadline": end,
            "payload": payload,
        }
        state = {"proposed_at": now, "votes": {}, "ballots": 0, "outcome": "pending", "decided_at": None}
        try:
            self._mem.put(self._namespace, chosen, {**terms, **state}, if_version=0)
        except VersionConflict as exc:
            known = self._mem.get(self._namespace, chosen)
            if known is None or any(
                known[term] != terms[term] for term in ("name", "electorate", "quorum", "threshold")
            ):
                raise VersionConflict(f"there is another proposal {chosen!r}", expected=0, found=exc.found) from exc
        return chosen

    def cast(self, proposal: str, member: str, *, approve: bool) -> Outcome:
        """Vote, or change one's vote; the outcome after it. A vote that stands already changes nothing.

        Raises:
            VoteRefused: `member` is not of the electorate, or the proposal is decided or past its deadline.
            RecordNotFound: there is no such proposal.
        """
        if not isinstance(approve, bool):
            raise InvalidArgument(f"approve is True or False, not {approve!r}")
        while True:
            version, found = self._read(proposal)
            if not isinstance(member, str) or member not in found.electorate:
                raise VoteRefused(f"{member!r:.80} is not of the electorate of {proposal!r}")
            if found.votes.get(member) is approve:
                return self.outcome(proposal)
            now = self._mem.clock.now()
            if found.outcome != "pending" or found.over(now):
                raise VoteRefused(f"{proposal!r} is {self.outcome(proposal)}")
            voted = found._replace(votes={**found.votes, member: approve}, ballots=found.ballots + 1)
            outcome = voted.weigh(over=False)
            if self._write(version, voted, outcome, Ballot(member, approve, now)):
                return outcome

    def outcome(self, proposal: str) -> Outcome:
        """How it stands; decided here if the deadline has come, so that no later answer is another.

        A store that is open read-only decides nothing: there it is pending until others have.

        Raises:
            RecordNotFound: there is no such proposal.
        """
        while True:
            version, found = self._read(proposal)
            if found.outcome != "pending" or not found.over(self._mem.clock.now()):
                return found.outcome
            outcome = found.weigh(over=True)
            try:
                if self._write(version, found, outcome, None):
                    return outcome
            except ReadOnlyError:
                return "pending"

    def wait(self, proposal: str, *, timeout: Duration | None = None) -> Outcome:
        """Sleep until the outcome is decided; "pending" if it is not after `timeout` (None: for ever).

        Raises:
            RecordNotFound: there is no such proposal.
        """
        clock = self._mem.clock
        due = deadline(clock, timeout)
        while True:
            version, found = self._read(proposal)
            outcome = self.outcome(proposal)
            if outcome != "pending" or clock.now() >= due:
                return outcome
            sleep(
                self._mem,
                self._namespace,
                due if found.deadline is None or found.over(clock.now()) else min(due, found.deadline),
                lambda change: change.key == proposal,
                partial(self._stands, proposal, version),
            )

    def get(self, proposal: str) -> Proposal:
        """A proposal as it is stored, which decides nothing.

        Raises:
            RecordNotFound: there is no such proposal.
        """
        return self._read(proposal)[1]

    def history(self, proposal: str) -> list[Ballot]:
        """Every vote that was cast, those that were changed since included, in order."""
        rows = self._mem.scan(self._ballots, f"{_check_text('id', proposal)}\0")
        return [Ballot(**record.value) for record in rows]

    def list(self, outcome: Outcome | None = None) -> list[Proposal]:
        """All proposals, or those of one outcome, oldest first, as they are stored."""
        found = [_proposal(record) for record in self._mem.scan(self._namespace)]
        return sorted((one for one in found if outcome in (None, one.outcome)), key=lambda one: one.proposed_at)

    def _stands(self, proposal: str, version: int) -> bool:
        return self._read(proposal)[0] == version

    def _read(self, proposal: str) -> tuple[int, Proposal]:
        record = self._mem.get_record(self._namespace, _check_text("id", proposal))
        if record is None:
            raise RecordNotFound(f"no proposal {proposal!r}")
        return record.version, _proposal(record)

    def _write(self, version: int, proposal: Proposal, outcome: Outcome, ballot: Ballot | None) -> bool:
        """Store a proposal that was read at `version`, with its outcome; False if it has changed since."""
        value = proposal._asdict()
        del value["id"]
        decided_at = None if outcome == "pending" else self._mem.clock.now()
        value.update(electorate=dict(proposal.electorate), votes=dict(proposal.votes))
        value.update(outcome=outcome, decided_at=decided_at)
        try:
            with self._mem.batch() as batch:
                batch.put(self._namespace, proposal.id, value, if_version=version)
                if ballot is not None:
                    batch.put(self._ballots, f"{proposal.id}\0{proposal.ballots:010d}", ballot._asdict())
        except VersionConflict:
            return False
        return True


def _proposal(record: Record) -> Proposal:
    value = dict(record.value)
    value["electorate"] = MappingProxyType(value["electorate"])
    value["votes"] = MappingProxyType(value["votes"])
    return Proposal(id=record.key, **value)


def _total(weights: Iterable[float]) -> Fraction:
    """Weights as they are written, added up without rounding: 0.1 and 0.2 are a tie with 0.3."""
    return sum((Fraction(repr(weight)) for weight in weights), Fraction())


def _check_text(what: str, text: object) -> str:
    if not isinstance(text, str) or "\0" in text or not 0 < len(text.encode(errors="replace")) <= MAX_ID_BYTES:
        raise InvalidArgument(f"{what} is a str of 1 to {MAX_ID_BYTES} UTF-8 bytes without NUL, not {text!r:.80}")
    return text


def _weights(electorate: Mapping[str, float]) -> dict[str, float]:
    if not isinstance(electorate, Mapping) or not electorate:
        raise InvalidArgument("an electorate is a mapping of at least one member to its weight")
    weights = {}
    for member, weight in electorate.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight <= sys.float_info.max:
            raise InvalidArgument(f"the weight of {member!r:.80} is a number > 0, not {weight!r}")
        weights[_check_text("member", member)] = float(weight)
    if not math.isfinite(sum(weights.values())):
        raise InvalidArgument("the weights add up to more than a float holds")
    return weights


def _number(name: str, share: object) -> float:
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise InvalidArgument(f"{name} is a share in [0, 1], not {share!r}")
    return float(share)
