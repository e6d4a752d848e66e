"""Locks: leases on named resources, with fencing tokens, between threads and processes."""

from __future__ import annotations

import math
import os
import threading
import uuid
from types import TracebackType
from typing import TYPE_CHECKING, Final, NamedTuple, Self
from weakref import WeakValueDictionary

from tiermem.coordination._grants import Claim, Grant, Ledger, State, check_name
from tiermem.coordination._waiting import deadline, seconds, sleep
from tiermem.errors import GuardFailed, InvalidArgument, LeaseLost, LockTimeout, RecordNotFound, VersionConflict
from tiermem.types import check_namespace

if TYPE_CHECKING:
    from tiermem.engine.memory import Memory
    from tiermem.protocols import Clock
    from tiermem.types import Change, Duration, Guard

GRACE: Final = 0.25
"""Seconds that whoever is next in the queue has to take what is free; then the one behind may."""
PRESENCE: Final = 10.0
"""Seconds after which one that waits and has not said so again is out of the queue: a writer that was killed keeps no
readers waiting. It says so twice as often."""
MOST_OWNER_BYTES: Final = 400


class Holder(NamedTuple):
    """Who holds a lock. `permits`: how many may hold it together with this one; None: any number of readers."""

    owner: str
    fence: int
    expires_at: float
    permits: int | None


class LockState(NamedTuple):
    """A lock at one moment: who holds it, oldest first, and the owners that wait, next first."""

    name: str
    holders: tuple[Holder, ...]
    waiting: tuple[str, ...]


class _Hold:
    """A grant that this process has, and how often it was entered."""

    def __init__(self, ledger: Ledger, clock: Clock, name: str, claim: Claim, ttl: float) -> None:
        self.name = name
        self.claim = claim
        self.expires_at = -math.inf
        self.fence = 0
        self._ledger = ledger
        self._clock = clock
        self._ttl = ttl
        self._lock = threading.Lock()
        self._entered = 0

    @property
    def guard(self) -> Guard:
        return self._ledger.guard(self.name, self.claim, self.fence)

    def take(self, state: State, place: int) -> bool:
        """Be granted, and entered for the first time, ahead of the first `place` that wait; False if others were."""
        # Before it is written: nobody else takes the lease for expired sooner than its holder.
        expires = self._clock.now() + self._ttl
        try:
            self.fence = self._ledger.take(self.name, self.claim, self._ttl, state, state.queue[:place])
        except (VersionConflict, GuardFailed):
            return False
        self.expires_at, self._entered = expires, 1
        return True

    def enter(self, limit: int | None, ttl: float) -> bool:
        """Enter once more, for `ttl` at least; False if it is lost or released.

        Raises:
            InvalidArgument: it is shared with more than `limit` allows.
        """
        with self._lock:
            if not self._entered or self._clock.now() >= self.expires_at:
                return False
            mine = self.claim.limit
            if limit is not None and (mine is None or mine > limit):
                raise InvalidArgument(
                    f"{self.name!r} is held by {mine or 'any number'}: it cannot be entered by {limit}"
                )
            if self._clock.now() + ttl > self.expires_at:
                try:
                    self._extend(ttl)
                except LeaseLost:
                    return False
            self._entered += 1
            return True

    def renew(self, ttl: float | None) -> None:
        """Hold it for `ttl` from now on."""
        with self._lock:
            self._check()
            self._extend(self._ttl if ttl is None else ttl)

    def leave(self) -> None:
        """Leave it once, and give it back the last time."""
        with self._lock:
            self._check()
            if self._entered == 1:
                self._give_back()
            self._entered -= 1

    def _give_back(self) -> None:
        while True:
            state = self._ledger.read(self.name)
            if all(grant.fence != self.fence for grant in state.grants):
                raise self._lost()
            try:
                return self._ledger.release(self.name, self.claim, self.fence, state)
            except VersionConflict:
                # Somebody was granted a share of it, or has just taken it away.
                continue

    def _extend(self, ttl: float) -> None:
        expires = self._clock.now() + ttl
        try:
            self._ledger.renew(self.name, self.claim, ttl)
        except RecordNotFound as exc:
            raise self._lost() from exc
        self.expires_at = expires

    def _check(self) -> None:
        if not self._entered or self._clock.now() >= self.expires_at:
            raise self._lost()

    def _lost(self) -> LeaseLost:
        """The error to be raised; from here on it is lost for every lease on it."""
        self._entered = 0
        return LeaseLost(f"the lease of {self.claim.owner!r} on {self.name!r}, until {self.expires_at}, is over")


class Lease:
    """A lock held until a moment of the store's clock. Made by `Locks.acquire`; a context manager that releases it.

    Whether it still is held is decided in the store: give `guard` to each write that needs the lock, or send
    `fence` along to whatever else is written to, which then refuses lower ones.
    """

    def __init__(self, hold: _Hold) -> None:
        self.name = hold.name
        self.owner = hold.claim.owner
        self.guard: Guard = hold.guard
        self._hold = hold
        self._released = False

    @property
    def fence(self) -> int:
        """The fencing token: it rises with every grant of this lock, whatever became of those before."""
        return self.guard.version

    @property
    def expires_at(self) -> float:
        """When the lease ends, in epoch seconds of the store's clock, unless it is renewed or released."""
        return self._hold.expires_at

    def renew(self, ttl: Duration | None = None) -> float:
        """Hold the lock for `ttl` from now on (None: as long as it was acquired for); the new `expires_at`.

        Fence and guard stay as they are. Costs a commit.

        Raises:
            LeaseLost: the lease has expired or was released, or the lock has passed to another.
        """
        if self._released:
            raise LeaseLost(f"the lease of {self.owner!r} on {self.name!r} was released")
        self._hold.renew(None if ttl is None else _ttl(ttl))
        return self.expires_at

    def release(self) -> None:
        """Give the lock back; nothing if that was done before. Costs a commit.

        Raises:
            LeaseLost: the lease has expired, or the lock has passed to another.
        """
        if not self._released:
            try:
                self._hold.leave()
            except LeaseLost:
                self._released = True
                raise
            self._released = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.release()
        except LeaseLost as lost:
            if exc is None:
                raise
            # What went wrong inside may be a consequence of it, and comes first.
            exc.add_note(str(lost))

    def __repr__(self) -> str:
        return f"<tiermem.Lease {self.name!r} owner={self.owner!r} fence={self.fence} expires_at={self.expires_at}>"


class Locks:
    """Leases on named resources of a store, for all its threads and processes.

    A lease ends with its `ttl`, by the store's clock, so that a holder that died or hangs keeps nobody waiting; the
    holder that comes back too late is refused by the store wherever it gives `lease.guard`. That holds however far
    apart clocks are: a clock decides only when a lease may be taken over. Who waits is served in the order
    of arrival; one that does not take what is free within a quarter of a second is passed over, and one that was killed
    is forgotten after ten.

    Built on conditional writes, batches, TTL and the change feed of `Memory`, and assumes that those conditions are
    linearizable. A grant, a renewal and a release cost a commit each, waiting one more. Without a timeout, and
    with a `SimulatedClock` that nobody moves, waiting for a lock that is not released never ends.

    >>> import tiermem
    >>> with tiermem.open("./memory") as mem:
    ...     locks = tiermem.Locks(mem)
    ...     with locks.acquire("rebalance", ttl=5.0, timeout=2.0) as lease:
    ...         version = mem.put("desk/state", "position", 100, guard=lease.guard)
    ...     locks.holder("rebalance") is None
    True
    """

    def __init__(self, mem: Memory, *, namespace: str = "locks") -> None:
        self._mem = mem
        self._namespace = check_namespace(namespace)
        self._ledger = Ledger(mem, namespace)
        # What was entered with `reentrant`, by process, name and owner; a forked child has none of its parent's.
        self._holds: WeakValueDictionary[tuple[int, str, str], _Hold] = WeakValueDictionary()

    def acquire(
        self,
        name: str,
        *,
        ttl: Duration = 30.0,
        timeout: Duration | None = None,
        owner: str | None = None,
        shared: bool = False,
        permits: int = 1,
        reentrant: bool = False,
    ) -> Lease:
        """Wait until the lock is granted, and hold it for `ttl`.

        name: 1 to 400 UTF-8 bytes. timeout: how long to wait at most, by the store's clock (None: for ever); at its end
        the lock is taken if it is free, whoever waits in front. owner: a name to be shown to others (None: process and
        thread). shared: a read lock, held together with other shared ones. permits: a semaphore, held by so many
        together; all users of a name give the same number. reentrant: if this object has a reentrant lease of the
        same owner, enter that, which is released once every lease on it is.

        A waiting writer holds up the readers behind it.

        Raises:
            LockTimeout: it was not granted in time.
            InvalidArgument: an argument is malformed, or a shared lock would be entered again as an exclusive one.
        """
        hold = self._held(name, ttl, owner, shared, permits)
        due = deadline(self._mem.clock, timeout)
        if reentrant and (again := self._enter(hold, _ttl(ttl))) is not None:
            return again
        if not self._wait(hold, due):
            raise LockTimeout(f"{name!r} was not granted to {hold.claim.owner!r} in time")
        return self._lease(hold, reentrant)

    def try_acquire(
        self,
        name: str,
        *,
        ttl: Duration = 30.0,
        owner: str | None = None,
        shared: bool = False,
        permits: int = 1,
        reentrant: bool = False,
    ) -> Lease | None:
        """The lock if it is free at this moment, whoever waits for it; else None. Arguments as in `acquire`."""
        hold = self._held(name, ttl, owner, shared, permits)
        if reentrant and (again := self._enter(hold, _ttl(ttl))) is not None:
            return again
        return self._lease(hold, reentrant) if self._wait(hold, -math.inf) else None

    def holder(self, name: str) -> Holder | None:
        """Who holds the lock, the oldest if several do; None if nobody does."""
        return next(iter(self.state(name).holders), None)

    def state(self, name: str) -> LockState:
        """Who holds a lock and who waits for it."""
        return _shown(check_name(name), self._ledger.read(name))

    def list(self) -> list[LockState]:
        """Every lock that is held or waited for, by name."""
        states = [_shown(name, state) for name, state in self._ledger.read_all()]
        return [state for state in states if state.holders or state.waiting]

    def _held(self, name: str, ttl: Duration, owner: str | None, shared: bool, permits: int) -> _Hold:
        if isinstance(permits, bool) or not isinstance(permits, int) or permits < 1:
            raise InvalidArgument(f"permits is an int ≥ 1, not {permits!r}")
        if shared and permits != 1:
            raise InvalidArgument("a shared lock is held by any number: it has no permits")
        if owner is None:
            owner = f"{os.getpid()}:{threading.get_native_id()}"
        elif not isinstance(owner, str) or not 0 < len(owner.encode(errors="replace")) <= MOST_OWNER_BYTES:
            raise InvalidArgument(f"an owner is a str of 1 to {MOST_OWNER_BYTES} UTF-8 bytes, not {owner!r:.80}")
        claim = Claim(uuid.uuid4().hex, owner, None if shared else permits)
        return _Hold(self._ledger, self._mem.clock, check_name(name), claim, _ttl(ttl))

    def _enter(self, wanted: _Hold, ttl: float) -> Lease | None:
        held = self._holds.get((os.getpid(), wanted.name, wanted.claim.owner))
        return Lease(held) if held is not None and held.enter(wanted.claim.limit, ttl) else None

    def _lease(self, hold: _Hold, reentrant: bool) -> Lease:
        if reentrant:
            self._holds[os.getpid(), hold.name, hold.claim.owner] = hold
        return Lease(hold)

    def _wait(self, hold: _Hold, due: float) -> bool:
        """Take the lock as soon as it is this one's turn; False if it was not by the time `due`."""
        name, claim, ledger, clock = hold.name, hold.claim, self._ledger, self._mem.clock
        rank: int | None = None
        said = -math.inf
        free: float | None = None
        try:
            while True:
                state = ledger.read(name)
                now = clock.now()
                place = state.place(claim)
                # Those in front are waited for while they cannot take it, and a moment where they can and do not.
                open_to_all = state.admits(claim, *(waiter.claim for waiter in state.queue[:place]))
                free = (now if free is None else free) if open_to_all else None
                turn = math.inf if free is None else free + place * GRACE
                if now >= turn or (now >= due and state.admits(claim)):
                    # Only those whom it has waited for are passed over; else the queue stays as it is.
                    if hold.take(state, place if now >= turn else 0):
                        return True
                elif now >= due:
                    break
                elif (found := state.rank(claim)) is None or now >= said + PRESENCE / 2:
                    # Passed over while it could not run, it takes its old place.
                    ledger.enter(name, claim, found or rank, min(due - now, PRESENCE))
                    said = now
                else:
                    rank = found
                    self._sleep(name, state, min(due, turn, state.next_expiry, said + PRESENCE / 2))
        except BaseException:
            if said > -math.inf:
                ledger.leave(name, claim)
            raise
        if said > -math.inf:
            ledger.leave(name, claim)
        return False

    def _sleep(self, name: str, state: State, until: float) -> None:
        prefix = f"{name}\0"

        def concerns(change: Change) -> bool:
            return change.key.startswith(prefix)

        sleep(self._mem, self._namespace, until, concerns, lambda: self._ledger.read(name) == state)


def _shown(name: str, state: State) -> LockState:
    holders = tuple(_holder(grant, grant.expires_at) for grant in state.held if grant.expires_at is not None)
    return LockState(name, holders, tuple(waiter.claim.owner for waiter in state.queue))


def _holder(grant: Grant, expires_at: float) -> Holder:
    return Holder(grant.claim.owner, grant.fence, expires_at, grant.claim.limit)


def _ttl(ttl: Duration) -> float:
    length = seconds("ttl", ttl)
    if not length:
        raise InvalidArgument("a ttl is longer than 0 s")
    return length
