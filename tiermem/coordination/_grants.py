"""What the store holds of a resource: who was granted it, until when, and who waits; and how that changes.

Every resource has four kinds of records, next to each other in one namespace, so that one scan reads them all:

| key             | value                   | changes                                                              |
|-----------------|-------------------------|----------------------------------------------------------------------|
| `NAME gate`     | none                    | with every grant: what compare-and-set decides grants by             |
| `NAME grant ID` | owner, limit            | never; its version is the fencing token, and what guards look at     |
| `NAME lease ID` | none; expires           | with every renewal; gone or expired, others may take the grant away  |
| `NAME wait ID`  | owner, limit, rank      | now and then, or it expires; its place is the first one's version    |

A grant is made by one batch that depends on the gate's version, moves it, and removes the grants whose leases were
found expired, on condition that they still are. So the grants that stand are compatible with each other whatever the
clocks of the processes say: a clock decides only when a grant may be taken away.

Assumed of the store: conditional writes are linearizable, batches happen whole or not at all, and a conditional write
gets a version above those of all conditional writes before it, also of records that have been deleted since.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Final, NamedTuple

from tiermem.errors import InvalidArgument
from tiermem.types import Guard

if TYPE_CHECKING:
    from tiermem.engine.memory import Memory
    from tiermem.types import Record

MAX_NAME_BYTES: Final = 400


class Claim(NamedTuple):
    """What somebody wants, or has, of a resource: to hold it together with at most `limit` - 1 others."""

    id: str
    owner: str
    limit: int | None


class Grant(NamedTuple):
    """A claim that was granted. `expires_at` is None once its lease is gone."""

    claim: Claim
    fence: int
    expires_at: float | None


class Waiter(NamedTuple):
    """A claim in the queue; lower ranks come first."""

    claim: Claim
    rank: int


class State(NamedTuple):
    """What was read of a resource: the gate's version, the grants, and the queue in its order."""

    gate: int
    grants: tuple[Grant, ...]
    queue: tuple[Waiter, ...]

    @property
    def held(self) -> tuple[Grant, ...]:
        """The grants whose leases have not expired, oldest first."""
        return tuple(grant for grant in self.grants if grant.expires_at is not None)

    def admits(self, *claims: Claim) -> bool:
        """True if each of `claims` is compatible with all grants that hold."""
        held = self.held
        limits = [claim.limit for claim in (*claims, *(grant.claim for grant in held))]
        return all(limit is None or len(held) < limit for limit in limits)

    def rank(self, claim: Claim) -> int | None:
        """The claim's rank in the queue; None if it is not in it."""
        return next((waiter.rank for waiter in self.queue if waiter.claim.id == claim.id), None)

    def place(self, claim: Claim) -> int:
        """How many wait in front of `claim`: all if it is not in the queue."""
        ids = [waiter.claim.id for waiter in self.queue]
        return ids.index(claim.id) if claim.id in ids else len(ids)

    @property
    def next_expiry(self) -> float:
        """When the first of the leases that hold ends; never if there is none."""
        return min((grant.expires_at for grant in self.grants if grant.expires_at is not None), default=math.inf)


def check_name(name: object) -> str:
    """`name`, if it can be a resource's: a str of 1 to 400 UTF-8 bytes without NUL.

    Raises:
        InvalidArgument: it cannot.
    """
    if not isinstance(name, str) or "\0" in name or not 0 < len(name.encode(errors="replace")) <= MAX_NAME_BYTES:
        raise InvalidArgument(
            f"a lock's name is a str of 1 to {MAX_NAME_BYTES} UTF-8 bytes without NUL, not {name!r:.80}"
        )
    return name


class Ledger:
    """The records of all resources in one namespace."""

    def __init__(self, mem: Memory, namespace: str) -> None:
        self._mem = mem
        self._namespace = namespace

    def read(self, name: str) -> State:
        """What one consistent view holds of a resource."""
        return _state(self._mem.scan(self._namespace, f"{name}\0"))

    def read_all(self) -> Iterator[tuple[str, State]]:
        """Every resource of which there are records, by name."""
        records = self._mem.scan(self._namespace)
        for name, found in groupby(records, lambda record: record.key.partition("\0")[0]):
            yield name, _state(found)

    def guard(self, name: str, claim: Claim, fence: int) -> Guard:
        """Holds as long as the grant has not been released or taken away."""
        return Guard(self._namespace, f"{name}\0grant\0{claim.id}", fence)

    def take(self, name: str, claim: Claim, ttl: float, state: State, passed: Iterable[Waiter]) -> int:
        """Grant `claim`, which `state` admits, for `ttl` seconds, and remove those `passed` from the queue; the fence.

        Raises:
            VersionConflict, GuardFailed: it is no longer as `state` says; nothing was changed.
        """
        space = self._namespace
        with self._mem.batch() as batch:
            batch.put(space, f"{name}\0grant\0{claim.id}", {"owner": claim.owner, "limit": claim.limit})
            batch.put(space, f"{name}\0lease\0{claim.id}", None, ttl=ttl)
            batch.put(space, f"{name}\0gate\0", None, if_version=state.gate)
            for grant in state.grants:
                if grant.expires_at is None:
                    lease = f"{name}\0lease\0{grant.claim.id}"
                    batch.delete(space, f"{name}\0grant\0{grant.claim.id}", guard=Guard(space, lease, 0))
                    # By another clock it may not have expired: nor can it be renewed from here on.
                    batch.delete(space, lease)
            for waiter in (*passed, *(waiter for waiter in state.queue if waiter.claim.id == claim.id)):
                batch.delete(space, f"{name}\0wait\0{waiter.claim.id}")
        return batch.versions[0]

    def renew(self, name: str, claim: Claim, ttl: float) -> None:
        """Let the lease of a grant expire `ttl` seconds from now.

        Raises:
            RecordNotFound: it has expired, or the grant was taken away.
        """
        self._mem.touch(self._namespace, f"{name}\0lease\0{claim.id}", ttl=ttl)

    def release(self, name: str, claim: Claim, fence: int, state: State) -> None:
        """Remove a grant.

        Raises:
            VersionConflict: it is no longer as `state` says; nothing was changed.
        """
        space = self._namespace
        with self._mem.batch() as batch:
            batch.delete(space, f"{name}\0grant\0{claim.id}", if_version=fence)
            batch.delete(space, f"{name}\0lease\0{claim.id}")
            if len(state.grants) == 1:
                # Nothing is left behind of a name that is used once.
                batch.delete(space, f"{name}\0gate\0", if_version=state.gate)

    def enter(self, name: str, claim: Claim, rank: int | None, ttl: float) -> None:
        """Put `claim` into the queue: at `rank`, or behind those that are there. It leaves by itself after `ttl`."""
        value = {"owner": claim.owner, "limit": claim.limit, "rank": rank}
        self._mem.put(self._namespace, f"{name}\0wait\0{claim.id}", value, ttl=ttl)

    def leave(self, name: str, claim: Claim) -> None:
        """Take `claim` out of the queue."""
        self._mem.delete(self._namespace, f"{name}\0wait\0{claim.id}")


def _state(records: Iterable[Record]) -> State:
    gate = 0
    granted: list[Record] = []
    leases: dict[str, float | None] = {}
    queue: list[Waiter] = []
    for record in records:
        _, kind, id_ = record.key.split("\0")
        if kind == "gate":
            gate = record.version
        elif kind == "grant":
            granted.append(record)
        elif kind == "lease":
            leases[id_] = record.expires_at
        else:
            queue.append(Waiter(_claim(record), record.value["rank"] or record.version))
    grants = [Grant(claim, record.version, leases.get(claim.id)) for record in granted for claim in (_claim(record),)]
    return State(
        gate,
        tuple(sorted(grants, key=lambda grant: grant.fence)),
        tuple(sorted(queue, key=lambda waiter: waiter.rank)),
    )


def _claim(record: Record) -> Claim:
    return Claim(record.key.rpartition("\0")[2], record.value["owner"], record.value["limit"])
