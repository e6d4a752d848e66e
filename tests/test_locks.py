"""Locks beside a model, on simulated time; their order; what is refused."""

from __future__ import annotations

import math
import shutil
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

import tiermem
from tests.workers import INLINE, START, config, eventually
from tiermem import Config, GuardFailed, InvalidArgument, Lease, LeaseLost, Locks, LockTimeout, Memory, SimulatedClock
from tiermem.coordination import locks as locks_module


@pytest.fixture
def locks(mem: Memory) -> Locks:
    return Locks(mem)


def in_thread(body: Callable[[], Any]) -> Callable[[], Any]:
    """Run `body` in a thread; what is returned waits for its result, and raises what it raised."""
    done: list[Any] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(body())
        except BaseException as exc:  # noqa: BLE001 - it is raised where the result is asked for
            failed.append(exc)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def result() -> Any:
        thread.join(30.0)
        assert not thread.is_alive(), "the thread still waits"
        if failed:
            raise failed[0]
        return done[0]

    return result


def waiting(locks: Locks, name: str, *owners: str) -> bool:
    """True as soon as those wait for the lock, in this order."""
    return bool(eventually(lambda: locks.state(name).waiting == owners))


# ------------------------------------------------------------------------------------------------------------- leases


def test_a_lease(mem: Memory, locks: Locks, clock: SimulatedClock) -> None:
    with locks.acquire("rebalance", ttl=5.0, timeout=2.0, owner="desk") as lease:
        assert (lease.name, lease.owner, lease.expires_at) == ("rebalance", "desk", START + 5.0)
        assert locks.holder("rebalance") == ("desk", lease.fence, START + 5.0, 1)
        assert lease.guard.version == lease.fence
        mem.put("n", "k", 1, guard=lease.guard)
        clock.advance(4.0)
        assert lease.renew() == lease.expires_at == START + 9.0
        assert lease.renew(timedelta(seconds=2)) == START + 6.0
        mem.put("n", "k", 2, guard=lease.guard)
        with mem.batch() as batch:
            batch.put("n", "k", 3, guard=lease.guard)
            batch.put("m", "k", 3)
        assert str(lease.fence) in repr(lease)
    assert locks.holder("rebalance") is None
    assert (mem.get("n", "k"), mem.get("m", "k")) == (3, 3)
    assert list(mem.scan("locks")) == [], "a lock that nobody has leaves nothing behind"


def test_what_was_released_is_over(mem: Memory, locks: Locks) -> None:
    lease = locks.acquire("a")
    lease.release()
    lease.release()
    with pytest.raises(LeaseLost):
        lease.renew()
    with pytest.raises(GuardFailed):
        mem.put("n", "k", 1, guard=lease.guard)
    with locks.acquire("a") as again:
        again.release()
    assert again.fence > lease.fence


def test_a_release_that_failed_can_be_made_again(locks: Locks, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise tiermem.StoreFullError("no room")

    lease = locks.acquire("a")
    with monkeypatch.context() as patch:
        patch.setattr(locks._ledger, "release", full)
        with pytest.raises(tiermem.StoreFullError):
            lease.release()
    assert locks.holder("a") is not None
    lease.release()
    assert locks.holder("a") is None


def test_an_expired_lease_cannot_be_renewed_or_released_though_nobody_took_it(
    mem: Memory, locks: Locks, clock: SimulatedClock
) -> None:
    lease = locks.acquire("a", ttl=5.0)
    clock.advance(5.0)
    assert locks.holder("a") is None
    assert locks.list() == []
    with pytest.raises(LeaseLost):
        lease.renew()
    # It has passed to nobody.
    mem.put("n", "k", 1, guard=lease.guard)
    with pytest.raises(LeaseLost):
        lease.release()


def test_a_stale_holder_is_refused_everywhere(mem: Memory, locks: Locks, clock: SimulatedClock) -> None:
    stale = locks.acquire("a", ttl=5.0)
    clock.advance(5.0)
    with locks.acquire("a", timeout=0.0) as fresh:
        assert fresh.fence > stale.fence
        for refused in (
            lambda: mem.put("n", "k", 1, guard=stale.guard),
            lambda: mem.put("n", "k", 1, guard=stale.guard, if_version=0),
            lambda: mem.delete("n", "k", guard=stale.guard),
        ):
            with pytest.raises(GuardFailed):
                refused()
        batch = mem.batch()
        batch.put("n", "other", 1)
        batch.put("n", "k", 1, guard=stale.guard)
        with pytest.raises(GuardFailed), batch:
            pass
        assert mem.count("n") == 0
        for lost in (stale.renew, stale.release):
            with pytest.raises(LeaseLost):
                lost()
        assert locks.holder("a") == (fresh.owner, fresh.fence, fresh.expires_at, 1)
        mem.put("n", "k", 2, guard=fresh.guard)


def test_a_body_that_outlives_its_lease_is_told(locks: Locks, clock: SimulatedClock) -> None:
    with pytest.raises(LeaseLost), locks.acquire("a", ttl=1.0):
        clock.advance(1.0)

    def outlive() -> None:
        with locks.acquire("a", ttl=1.0):
            clock.advance(1.0)
            raise KeyError("inside")

    with pytest.raises(KeyError) as caught:
        outlive()
    assert any("is over" in note for note in caught.value.__notes__)


def test_a_clock_that_runs_behind_renews_nothing_that_was_taken(tmp_path: Path, run_python: Any) -> None:
    clock = SimulatedClock(START)
    with tiermem.open(tmp_path / "store", clock=clock) as mem:
        lease = Locks(mem).acquire("a", ttl=5.0)
        done = run_python(
            """
            import sys, tiermem
            with tiermem.open(sys.argv[1], clock=tiermem.SimulatedClock(float(sys.argv[2]))) as mem:
                print(tiermem.Locks(mem).acquire("a", timeout=0.0).fence)
            """,
            tmp_path / "store",
            START + 1e6,
        )
        assert int(done.stdout) > lease.fence
        assert clock.now() < lease.expires_at
        with pytest.raises(LeaseLost):
            lease.renew()
        with pytest.raises(GuardFailed):
            mem.put("n", "k", 1, guard=lease.guard)
        with pytest.raises(LeaseLost):
            lease.release()


@pytest.mark.parametrize("harm", ["record by record", "namespace", "compacted", "elsewhere"])
def test_fences_rise_whatever_happens_to_the_records(tmp_path: Path, clock: SimulatedClock, harm: str) -> None:
    mem = tiermem.open(tmp_path / "store-0", clock=clock, config=Config(cold=INLINE))
    fences = []
    for turn in range(3):
        locks = Locks(mem)
        fences.append(locks.acquire("a", timeout=0.0).fence)
        if harm == "namespace":
            mem.drop_namespace("locks")
        else:
            mem.delete_many("locks", prefix="")
        mem.flush()
        if harm == "compacted":
            mem.compact()
        if harm == "elsewhere":
            mem.backup(tmp_path / f"store-{turn + 1}")
            mem.close()
            mem = tiermem.open(tmp_path / f"store-{turn + 1}", clock=clock, config=Config(cold=INLINE))
    mem.close()
    assert fences == sorted(set(fences))


# -------------------------------------------------------------------------------------------------------------- kinds


def test_try_acquire(locks: Locks) -> None:
    with locks.acquire("a"):
        assert locks.try_acquire("a") is None
        with pytest.raises(LockTimeout):
            locks.acquire("a", timeout=0.0)
        other = locks.try_acquire("b", owner="me")
        assert other is not None
        assert [state.name for state in locks.list()] == ["a", "b"]
    assert locks.try_acquire("a") is not None


def test_readers_share_and_a_writer_does_not(locks: Locks) -> None:
    with ExitStack() as stack:
        readers = [stack.enter_context(locks.acquire("book", shared=True, owner=f"r{i}")) for i in range(3)]
        assert [holder.owner for holder in locks.state("book").holders] == ["r0", "r1", "r2"]
        assert [reader.fence for reader in readers] == sorted({reader.fence for reader in readers})
        assert locks.try_acquire("book") is None
    with locks.acquire("book"):
        assert locks.try_acquire("book", shared=True) is None


def test_a_semaphore_has_so_many_permits(mem: Memory, locks: Locks, clock: SimulatedClock) -> None:
    first, second = (locks.acquire("api", permits=2, ttl=ttl) for ttl in (5.0, 10.0))
    assert locks.try_acquire("api", permits=2) is None
    clock.advance(5.0)
    third = locks.acquire("api", permits=2, timeout=0.0)
    assert locks.try_acquire("api", permits=2) is None
    with pytest.raises(GuardFailed):
        mem.put("n", "k", 1, guard=first.guard)
    mem.put("n", "k", 1, guard=second.guard)
    mem.put("n", "k", 1, guard=third.guard)
    second.release()
    mem.put("n", "k", 1, guard=third.guard)
    assert locks.try_acquire("api", permits=1) is None, (
        "the one who holds it shares it with one other, this one would not"
    )


def test_a_reentrant_lock_is_released_with_the_last_lease(locks: Locks, clock: SimulatedClock) -> None:
    with locks.acquire("a", reentrant=True, ttl=5.0) as outer:
        clock.advance(3.0)
        with locks.acquire("a", reentrant=True, ttl=5.0, timeout=0.0) as inner:
            assert inner.fence == outer.fence
            assert inner.expires_at == outer.expires_at == START + 8.0
            again = locks.try_acquire("a", reentrant=True, ttl=1.0)
            assert again is not None
            assert again.expires_at == START + 8.0, "what was granted for longer is not cut short"
            again.release()
        assert locks.holder("a") is not None
        assert locks.try_acquire("a") is None, "only a reentrant one enters"
        assert locks.try_acquire("a", reentrant=True, owner="somebody else") is None
        assert in_thread(lambda: locks.try_acquire("a", reentrant=True))() is None, "each thread is an owner"
    assert locks.holder("a") is None


def test_a_lease_that_is_lost_is_not_entered_again(locks: Locks, clock: SimulatedClock) -> None:
    outer = locks.acquire("a", reentrant=True, ttl=5.0)
    inner = locks.acquire("a", reentrant=True, ttl=5.0)
    clock.advance(5.0)
    with locks.acquire("a", reentrant=True, timeout=0.0) as fresh:
        assert fresh.fence > outer.fence
        for lease in (inner, outer):
            with pytest.raises(LeaseLost):
                lease.release()
        assert locks.holder("a") is not None


def test_a_reader_does_not_become_a_writer(locks: Locks) -> None:
    with locks.acquire("a", reentrant=True, shared=True):
        with pytest.raises(InvalidArgument, match="cannot be entered"):
            locks.acquire("a", reentrant=True)
        with locks.acquire("a", reentrant=True, shared=True):
            pass
    with locks.acquire("a", reentrant=True) as writer, locks.acquire("a", reentrant=True, shared=True) as reader:
        assert reader.fence == writer.fence


def test_names_do_not_run_into_each_other(mem: Memory) -> None:
    locks, others = Locks(mem), Locks(mem, namespace="other/locks")
    names = ["a", "a/b", "ab", "a ", "ä", "a*", "x" * 400]
    for name in names:
        assert locks.try_acquire(name) is not None
        assert others.try_acquire(name) is not None
    assert {state.name for state in locks.list()} == set(names)
    assert all(len(state.holders) == 1 for state in locks.list())


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": "a\0b"},
        {"name": "x" * 401},
        {"name": 7},
        {"ttl": 0.0},
        {"ttl": -1.0},
        {"ttl": math.inf},
        {"ttl": math.nan},
        {"ttl": "5"},
        {"ttl": 10**400},
        {"ttl": True},
        {"ttl": timedelta(0)},
        {"timeout": -1.0},
        {"timeout": "1"},
        {"owner": ""},
        {"owner": 5},
        {"permits": 0},
        {"permits": True},
        {"permits": 1.0},
        {"permits": 2, "shared": True},
    ],
)
def test_what_is_refused(mem: Memory, locks: Locks, wrong: dict[str, Any]) -> None:
    arguments = {"name": "a", **wrong}
    with pytest.raises(InvalidArgument):
        locks.acquire(arguments.pop("name"), **arguments)
    assert list(mem.scan("locks")) == []


def test_a_namespace_that_is_none(mem: Memory) -> None:
    with pytest.raises(tiermem.InvalidNamespace):
        Locks(mem, namespace="a//b")


def test_a_store_that_is_read_only_shows_locks_and_grants_none(tmp_path: Path) -> None:
    with tiermem.open(tmp_path / "s") as mem, Locks(mem).acquire("a", owner="me"):
        mem.flush()
        with tiermem.open(tmp_path / "s", read_only=True) as other:
            assert [holder.owner for holder in Locks(other).state("a").holders] == ["me"]
            with pytest.raises(tiermem.ReadOnlyError):
                Locks(other).acquire("b")


# ------------------------------------------------------------------------------------------------------------ waiting


def test_waiting_ends_when_the_clock_is_moved(locks: Locks, clock: SimulatedClock) -> None:
    locks.acquire("a", ttl=5.0)
    late = in_thread(lambda: locks.acquire("a", timeout=3.0, owner="late"))
    patient = in_thread(lambda: locks.acquire("a", owner="patient"))
    assert eventually(lambda: set(locks.state("a").waiting) == {"late", "patient"})
    clock.advance(3.0)
    with pytest.raises(LockTimeout):
        late()
    assert waiting(locks, "a", "patient")
    clock.advance(2.0)
    assert patient().owner == "patient"


def test_who_waits_gets_it_as_soon_as_it_is_released(locks: Locks) -> None:
    first = locks.acquire("a", owner="first")
    second = in_thread(lambda: locks.acquire("a", owner="second"))
    assert waiting(locks, "a", "second")
    # Neither a renewal nor what happens elsewhere is taken for a release.
    first.renew()
    locks.acquire("b").release()
    assert locks.state("a").waiting == ("second",)
    first.release()
    assert second().fence > first.fence
    assert locks.state("a").waiting == ()


def test_they_are_served_in_the_order_they_came(locks: Locks) -> None:
    served: list[tuple[str, int]] = []

    def wait(owner: str) -> None:
        with locks.acquire("a", owner=owner) as lease:
            served.append((owner, lease.fence))

    owners = [f"w{number}" for number in range(6)]
    with locks.acquire("a"):
        waits = []
        for number, owner in enumerate(owners):
            waits.append(in_thread(lambda owner=owner: wait(owner)))
            assert waiting(locks, "a", *owners[: number + 1])
    for done in waits:
        done()
    assert [owner for owner, _ in served] == owners
    assert [fence for _, fence in served] == sorted(fence for _, fence in served)


def test_a_writer_that_waits_holds_up_the_readers_behind_it(locks: Locks) -> None:
    reader = locks.acquire("a", shared=True)
    writer = in_thread(lambda: locks.acquire("a", owner="writer"))
    assert waiting(locks, "a", "writer")
    readers = [in_thread(lambda: locks.acquire("a", owner="behind", shared=True)) for _ in range(3)]
    assert waiting(locks, "a", "writer", "behind", "behind", "behind")
    reader.release()
    wrote = writer()
    assert locks.state("a").waiting == ("behind",) * 3
    wrote.release()
    leases = [done() for done in readers]
    assert len(locks.state("a").holders) == 3
    assert min(lease.fence for lease in leases) > wrote.fence


def test_one_that_does_not_take_what_is_free_is_passed_over_and_keeps_its_place(
    locks: Locks, clock: SimulatedClock
) -> None:
    # Two that never come back, as killed processes do not.
    with locks.acquire("a"):
        for owner in ("dead", "dead too"):
            locks._ledger.enter("a", locks_module.Claim(owner, owner, 1), None, 60.0)
        behind = in_thread(lambda: locks.acquire("a", owner="behind"))
        assert waiting(locks, "a", "dead", "dead too", "behind")
        clock.advance(20.0)
    released = clock.now()
    assert eventually(lambda: clock.advance(0.01) and locks.holder("a"))
    taken = behind()
    assert taken.expires_at - 30.0 >= released + 2 * locks_module.GRACE, "each in front is waited for"
    assert locks.state("a").waiting == ()
    # One that was passed over and lives puts itself back where it was.
    slow = in_thread(lambda: locks.acquire("a", owner="slow"))
    assert waiting(locks, "a", "slow")
    next_ = in_thread(lambda: locks.acquire("a", owner="next"))
    assert waiting(locks, "a", "slow", "next")
    (waiter,) = (waiter for waiter in locks._ledger.read("a").queue if waiter.claim.owner == "slow")
    locks._ledger.leave("a", waiter.claim)
    assert waiting(locks, "a", "slow", "next")
    taken.release()
    slow().release()
    next_().release()


def test_at_its_end_a_wait_takes_what_is_free(locks: Locks, clock: SimulatedClock) -> None:
    locks._ledger.enter("a", locks_module.Claim("dead", "dead", 1), None, 60.0)
    waits = in_thread(lambda: locks.acquire("a", timeout=locks_module.GRACE / 2, owner="me"))
    assert waiting(locks, "a", "dead", "me")
    clock.advance(locks_module.GRACE / 2)
    assert waits().owner == "me"
    assert locks.state("a").waiting == ("dead",), "the time to pass it over had not come"


def test_who_only_tries_leaves_the_queue_as_it_is(locks: Locks) -> None:
    locks._ledger.enter("a", locks_module.Claim("slow", "slow", 1), None, 60.0)
    with locks.acquire("a", timeout=0.0):
        assert locks.state("a").waiting == ("slow",)
    tried = locks.try_acquire("a")
    assert tried is not None
    assert locks.state("a").waiting == ("slow",)


def test_a_waiter_with_a_timeout_that_was_killed_leaves_by_itself(locks: Locks, clock: SimulatedClock) -> None:
    locks._ledger.enter("a", locks_module.Claim("dead", "dead", 1), None, 2.0)
    assert locks.state("a").waiting == ("dead",)
    clock.advance(2.0)
    assert locks.state("a").waiting == ()


def test_readers_do_not_wait_for_a_writer_that_was_killed(
    locks: Locks, clock: SimulatedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    reading = locks.acquire("a", shared=True, ttl=1000.0)
    with monkeypatch.context() as patch:
        patch.setattr(locks_module, "sleep", killed)
        patch.setattr(locks._ledger, "leave", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            locks.acquire("a", owner="writer")
    assert locks.state("a").waiting == ("writer",)
    behind = in_thread(lambda: locks.acquire("a", owner="behind", shared=True, ttl=1000.0))
    assert waiting(locks, "a", "writer", "behind")
    clock.advance(locks_module.PRESENCE)
    assert behind().owner == "behind"
    assert len(locks.state("a").holders) == 2
    reading.release()


def test_who_waits_for_long_says_so_again_and_keeps_its_place(locks: Locks, clock: SimulatedClock) -> None:
    with locks.acquire("a", ttl=1000.0):
        first = in_thread(lambda: locks.acquire("a", owner="first"))
        assert waiting(locks, "a", "first")
        second = in_thread(lambda: locks.acquire("a", owner="second"))
        assert waiting(locks, "a", "first", "second")
        for _ in range(6):
            clock.advance(locks_module.PRESENCE * 2 / 3)
            assert waiting(locks, "a", "first", "second")
    first().release()
    second().release()


def test_an_interrupted_wait_leaves_the_queue(locks: Locks, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        assert locks.state("a").waiting == ("me",)
        raise KeyboardInterrupt

    with locks.acquire("a"):
        monkeypatch.setattr(locks_module, "sleep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            locks.acquire("a", owner="me")
        assert locks.state("a").waiting == ()


def test_a_wait_outlives_a_log_that_is_trimmed_at_once(tmp_path: Path, clock: SimulatedClock) -> None:
    with tiermem.open(tmp_path / "s", clock=clock, config=config(log_retention=0, sync_interval=0.002)) as mem:
        locks = Locks(mem)
        first = locks.acquire("a")
        second = in_thread(lambda: locks.acquire("a", owner="second"))
        assert waiting(locks, "a", "second")
        for number in range(2000):
            mem.put("n", str(number), number)
        mem.flush()
        first.release()
        assert second().owner == "second"


# -------------------------------------------------------------------------------------------------------------- model


class Model:
    """A lease as it should be."""

    def __init__(self, lease: Lease, limit: float, expires_at: float) -> None:
        self.lease = lease
        self.limit = limit
        self.expires_at = expires_at
        self.ttl = 0.0
        self.stands = True
        self.released = False


class LockMachine(RuleBasedStateMachine):
    """Owners that come, go and oversleep, and hands that delete records, beside a list of who should hold what."""

    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix="tiermem-locks-")
        self.clock = SimulatedClock(START)
        self.mem = tiermem.open(Path(self.folder) / "store", clock=self.clock, config=Config(cold=INLINE))
        self.locks = Locks(self.mem)
        self.granted: dict[str, list[Model]] = {"a": [], "b": []}
        self.fences: dict[str, list[int]] = {"a": [], "b": []}
        self.written: dict[str, int] = {}

    def teardown(self) -> None:
        self.mem.close()
        shutil.rmtree(self.folder)

    def holding(self, name: str) -> list[Model]:
        return [one for one in self.granted[name] if one.stands and one.expires_at > self.clock.now()]

    @rule(
        target=leases,
        name=st.sampled_from("ab"),
        kind=st.sampled_from([{}, {}, {"shared": True}, {"permits": 2}, {"permits": 3}]),
        ttl=st.sampled_from([0.5, 1.0, 4.0]),
        patient=st.booleans(),
    )
    def acquire(self, name: str, kind: dict[str, Any], ttl: float, patient: bool) -> Any:
        limit = math.inf if "shared" in kind else kind.get("permits", 1)
        holding = self.holding(name)
        free = len(holding) < min([limit, *(one.limit for one in holding)])
        if patient:
            try:
                lease = self.locks.acquire(name, ttl=ttl, timeout=0.0, **kind)
            except LockTimeout:
                lease = None
        else:
            lease = self.locks.try_acquire(name, ttl=ttl, **kind)
        assert (lease is not None) == free
        if lease is None:
            return multiple()
        assert lease.fence > max(self.fences[name], default=0)
        self.fences[name].append(lease.fence)
        for one in self.granted[name]:
            one.stands = one in holding
        model = Model(lease, limit, self.clock.now() + ttl)
        model.ttl = ttl
        self.granted[name].append(model)
        return model

    @rule(one=leases, ttl=st.none() | st.sampled_from([0.5, 2.0]))
    def renew(self, one: Model, ttl: float | None) -> None:
        if one.stands and not one.released and self.clock.now() < one.expires_at:
            one.expires_at = self.clock.now() + (one.ttl if ttl is None else ttl)
            assert one.lease.renew(ttl) == one.expires_at
        else:
            with pytest.raises(LeaseLost):
                one.lease.renew(ttl)

    @rule(one=consumes(leases))
    def release(self, one: Model) -> None:
        if one.stands and self.clock.now() < one.expires_at:
            one.lease.release()
            one.stands, one.released = False, True
        else:
            with pytest.raises(LeaseLost):
                one.lease.release()
        one.lease.release()

    @rule(one=leases, batched=st.booleans())
    def write(self, one: Model, batched: bool) -> None:
        name, fence = one.lease.name, one.lease.fence
        try:
            if batched:
                with self.mem.batch() as batch:
                    batch.put("n", name, fence, guard=one.lease.guard)
            else:
                self.mem.put("n", name, fence, guard=one.lease.guard)
            accepted = True
        except GuardFailed:
            accepted = False
        assert accepted == one.stands
        if accepted:
            self.written[name] = fence

    @rule(seconds=st.sampled_from([0.25, 0.5, 1.0, 3.0]))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(name=st.sampled_from("ab"))
    def delete_the_gate(self, name: str) -> None:
        self.mem.delete("locks", f"{name}\0gate\0")

    @rule()
    def drop_everything(self) -> None:
        self.mem.drop_namespace("locks")
        for granted in self.granted.values():
            for one in granted:
                one.stands = False

    @rule()
    def commit(self) -> None:
        self.mem.flush()

    @invariant()
    def what_is_shown_is_so(self) -> None:
        for name in "ab":
            holding = self.holding(name)
            shown = self.locks.state(name).holders
            assert [(h.fence, h.expires_at) for h in shown] == [(m.lease.fence, m.expires_at) for m in holding]
            assert self.mem.get("n", name) == self.written.get(name)


LockMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=40)
TestLocksBesideAModel = LockMachine.TestCase
