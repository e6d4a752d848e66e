"""Consumer groups: each message goes to one member, and to another if that one dies.

Assumptions. The record of a group is changed by compare-and-set alone, so a message is in one member's claim at a
time. A claim stands as long as the record of its member's life has not expired, which the store's clock decides and
the member renews whenever it receives or acknowledges. A member that was away for longer may have been taken for dead:
its messages then went to another, and acknowledging one of them raises `LeaseLost`.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from tiermem.coordination._feed import Interest, Layout, Message, Position, Ref, waiting
from tiermem.coordination._subscription import STRIDE, Subscription, group_key, register
from tiermem.errors import ClosedError, CursorExpired, LagExceeded, LeaseLost, VersionConflict

if TYPE_CHECKING:
    from tiermem.engine.memory import Memory

Claims = dict[str, list[list[Any]]]
NOBODY: Final = "nobody"
"""Under what the messages of dead members stand that no member had room for; no member's token, which has a colon."""


class Member(Subscription):
    """One member of a consumer group, with the messages it has claimed and not acknowledged."""

    def __init__(
        self,
        mem: Memory,
        layout: Layout,
        interest: Interest,
        group: str,
        name: str,
        start: str | int,
        lease: float,
        prefetch: int,
    ) -> None:
        self._key = group_key(group)
        marks = register(mem, layout, interest, self._key, start)
        super().__init__(mem, layout, interest, Position(0), marks)
        self._open: dict[str, Ref] = {}
        self._acked: list[str] = []
        self._lost: set[str] = set()
        self._cursor = mem.cursor(f"{layout.root}:{self._key}", start=0)
        self._held = self._cursor.position
        self._lease = lease
        self._prefetch = prefetch
        self._name = name
        self._rejoin()

    @property
    def lag(self) -> int:
        """How many messages were published and not yet handed to the group, and how many wait here."""
        with self._lock:
            self._check()
            state, _ = self._state()
            position = Position(state["sequence"], state["older"])
            return len(self._ready) + waiting(self._mem, self._layout, self._interest, position)

    def _rejoin(self) -> None:
        """Begin as a new member: what was claimed before is another's."""
        self._token = f"{self._name}:{os.urandom(8).hex()}"
        self._beaten = -float("inf")
        self._claiming = False
        self._idle = -1
        self._lost.update(self._open)
        self._ready.clear()
        self._open.clear()
        self._acked.clear()

    def _state(self) -> tuple[dict[str, Any], int]:
        record = self._mem.get_record(self._layout.consumers, self._key)
        if record is None:
            raise LeaseLost(f"{self._key!r} was forgotten")
        return record.value, record.version

    def _stands(self) -> bool:
        """True unless the claim was taken by another member."""
        state = self._mem.get(self._layout.consumers, self._key)
        return state is not None and (not self._claiming or self._token in state["claims"])

    def _beat(self) -> None:
        now = self._mem.clock.now()
        if now - self._beaten >= self._lease / 3:
            self._mem.put(self._layout.members, self._token, self._name, ttl=self._lease)
            self._beaten = now

    def _fill(self) -> bool:
        if not self._closed and not self._stands():
            self._rejoin()
        return super()._fill()

    def _check(self) -> None:
        super()._check()
        self._beat()

    def _refill(self) -> bool:
        if len(self._open) >= self._prefetch:
            raise LagExceeded(f"{len(self._open)} messages were received and not acknowledged: acknowledge some first")
        try:
            refs = self._claim()
            messages = self._load(refs)
        except BaseException:
            # Claimed, perhaps, and never received: who does not live does not hold them.
            self._rejoin()
            raise
        self._ready.extend(messages)
        stored = {message.id for message in messages}
        for ref in refs:
            if ref.id not in stored:
                # It has expired, or was trimmed: nobody can receive it.
                self._done(ref.id)
        return bool(refs)

    def _claim(self) -> list[Ref]:
        """Take messages of dead members first, then the next ones."""
        mem, layout = self._mem, self._layout
        room = self._prefetch - len(self._open)
        while True:
            state, version = self._state()
            claims: Claims = dict(state["claims"])
            taken, emptied = self._inherit(claims, room)
            if version != self._idle:
                self._reader = self._reader.at(Position(state["sequence"], state["older"]))
            reader = self._reader
            if len(taken) < room:
                taken += [ref for ref, _ in reader.read(room - len(taken))]
            position = reader.position
            if not taken and not emptied and position.sequence - state["sequence"] < STRIDE:
                # As long as nobody changes the record, the reader goes on where it has found nothing.
                self._idle = version
                return []
            self._idle = -1
            claims[self._token] = [list(ref) for ref in (*self._open.values(), *taken)]
            changed = {**state, "sequence": position.sequence, "older": position.older, "claims": claims}
            try:
                with mem.batch() as batch:
                    batch.put(layout.consumers, self._key, changed, if_version=version)
                    for token in (*emptied, self._token):
                        batch.delete(layout.acks, token)
            except VersionConflict:
                continue
            self._claiming = True
            self._acked.clear()
            self._open.update((ref.id, ref) for ref in taken)
            if position.sequence - self._held >= STRIDE:
                # Another member may have let go of more meanwhile, and the log have been trimmed.
                with suppress(CursorExpired):
                    self._cursor.commit(position.sequence)
                self._held = position.sequence
            return taken

    def _inherit(self, claims: Claims, room: int) -> tuple[list[Ref], list[str]]:
        """Up to `room` messages of dead members, taken out of `claims`, and which members have none left there."""
        mem, layout = self._mem, self._layout

        def dead() -> list[str]:
            return [token for token in list(claims) if token != self._token and not mem.contains(layout.members, token)]

        if not dead():
            return [], []
        # What others have journaled and nobody has seen yet: that they live, and what they have acknowledged.
        mem.flush()
        taken: list[Ref] = []
        emptied: list[str] = []
        for token in dead():
            acked = set(mem.get(layout.acks, token, ()))
            left = [Ref(*ref) for ref in claims[token] if ref[2] not in acked]
            some = left[: room - len(taken)]
            taken += some
            # What there is no room for is nobody's: a member that comes back finds that it has lost everything.
            del claims[token]
            if rest := [list(ref) for ref in left[len(some) :]]:
                claims[NOBODY] = [*claims.get(NOBODY, ()), *rest]
            emptied.append(token)
        return taken, emptied

    def _acknowledge(self, message: Message) -> None:
        if not self._stands():
            self._rejoin()
        if message.id in self._open:
            self._done(message.id)
        elif message.id in self._lost:
            raise LeaseLost(f"message {message.id} went to another member: the lease of {self._lease:g} s had run out")

    def _done(self, key: str) -> None:
        del self._open[key]
        self._acked.append(key)
        self._mem.put(self._layout.acks, self._token, self._acked)

    def _leave(self) -> None:
        super()._leave()
        try:
            while self._claiming and self._stands():
                state, version = self._state()
                claims: Claims = dict(state["claims"])
                claims[self._token] = [list(ref) for ref in self._open.values()]
                if not self._open:
                    del claims[self._token]
                try:
                    with self._mem.batch() as batch:
                        batch.put(self._layout.consumers, self._key, {**state, "claims": claims}, if_version=version)
                        batch.delete(self._layout.acks, self._token)
                        batch.delete(self._layout.members, self._token)
                except VersionConflict:
                    continue
                return
        except (ClosedError, LeaseLost):
            # The lease runs out by itself.
            return
