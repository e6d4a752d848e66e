"""Following: what this process drops or retires because of commits, its own and others'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from tiermem.codec.operation import Operation
from tiermem.engine.reentry import refuse_reentry
from tiermem.tiers.cold.layout import OP_DELETE, OP_DROP, OP_PUT, SLOT_MASK, LogEntry

if TYPE_CHECKING:
    from tiermem.engine.store import Store

FAR_BEHIND: Final = 20_000
"""More changes than this are not walked one by one: L1 and the indexes start anew."""
A_FEW: Final = 16
"""Pending entries retired in one call: a few microseconds."""


class Follower:
    """Keeps L1, the pending tables and the indexes in step with the change log."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def catch_up(self) -> None:
        """Read what was committed since the last look, and drop what it made stale."""
        store = self.store
        store.check_open()
        if store.lock.locked():
            refuse_reentry(store.lock)
        control = store.control
        control.moved[0] = 0
        if not control.missed[0] and self._advance():
            return
        counter = control.counter
        self._follow()
        control.even(counter)

    def _advance(self) -> bool:
        """Take note of what the helper has committed of this process's own journal; False if that is not all.

        No call retires much of it: what is left over is left to the next.
        """
        store = self.store
        journal = store.journal
        told = None if journal is None else store.control.progress
        if told is None or journal is None or told.journal != journal.id:
            return True
        with store.lock:
            if told.first > store.seen_sequence:
                return False
            if told.sequence > store.seen_sequence:
                store.seen_sequence = told.sequence
                # Before anything is retired: what was read earlier lacks it.
                store.seen_stamp = max(store.seen_stamp, told.stamp)
            if not self.retire(told.applied, A_FEW):
                store.control.moved[0] = 1
            store.rounds.roused = False
        return True

    def _follow(self) -> None:
        store = self.store
        if store.control.generation > store.generation:
            store.move_to(store.control.generation)
        if store.read_only:
            self.overlay()
        with store.cold.read() as snapshot:
            state = snapshot.state()
            own = store.journal
            mark = snapshot.applied(store.slot, own.id, own.head) if own is not None else 0
            first = store.seen_sequence
            far = state.next_sequence - first > FAR_BEHIND or state.first_sequence > first
            rows = [] if far else [entry for _, entry in snapshot.log(first - 1)]
            stamp = snapshot.stamp
        with store.lock:
            self.retire(mark)
            if own is not None and own.wiped != store.generation and own.applied >= mark:
                # The last generation may have been left to get rid of what was deleted.
                own.wipe(store.generation)
            if far:
                store.hot.clear()
                for space in store.spaces.values():
                    space.forget()
                    for op in space.pending.values():
                        op.contested = True
            self.absorb(rows)
            if state.next_sequence >= store.seen_sequence:
                store.seen_sequence = state.next_sequence
                store.seen_stamp = max(store.seen_stamp, stamp)
            store.observe(state.highest)
            store.rounds.roused = False

    def retire(self, mark: int, most: int | None = None) -> bool:
        """Drop pending entries whose journal frames lie below `mark`; False if only the first `most` were.

        The caller holds `lock`.
        """
        store = self.store
        line = store.line
        if store.journal is not None and mark > store.journal.applied:
            store.journal.applied = mark
        while line and line[0].end <= mark:
            if most is not None:
                if not most:
                    return False
                most -= 1
            op = line.popleft()
            space = store.spaces.get(op.namespace)
            if space is None:
                continue
            if space.pending.get(op.key) is op:
                del space.pending[op.key]
            if op.contested:
                for table, _ in space.tables:
                    store.hot.drop(table, op.key)
        return True

    def absorb(self, rows: Sequence[LogEntry], *, own: bool = False) -> None:
        """Drop from L1 and mark in the indexes what other writers changed. The caller holds `lock`.

        What this process journaled itself is in L1 as it should be; `own` says that even entries of
        its slot were written past the journal.
        """
        store = self.store
        if not store.spaces:
            return
        for name, key, op, version in rows:
            space = store.spaces.get(name)
            if space is None or (version & SLOT_MASK == store.slot and not own and op in (OP_PUT, OP_DELETE)):
                continue
            if op == OP_DROP:
                for table, _ in space.tables:
                    store.hot.drop_table(table)
                # What is still pending here was journaled after the drop had drained this journal.
                space.forget()
                continue
            waiting = space.pending.get(key)
            if waiting is not None:
                if waiting.version > version:
                    continue
                # It may turn out void: L1 must not hold what nobody would take out.
                waiting.contested = True
            for table, _ in space.tables:
                store.hot.drop(table, key)
            if space.index is not None:
                space.touched.add(key)

    def overlay(self) -> None:
        """Where nothing may be committed: show what other clients have journaled as pending."""
        store = self.store
        found: list[Operation] = []
        for path in store.journals.paths():
            found.extend(store.journals.unapplied(path))
        found.sort(key=lambda op: op.version)
        for name in {op.namespace for op in found}:
            store.spaces[name]
        with store.lock:
            for space in store.spaces.values():
                if space.pending:
                    for table, _ in space.tables:
                        for key in space.pending:
                            store.hot.drop(table, key)
                    space.touched.update(space.pending)
                    space.pending = {}
            for op in found:
                store.pend(store.spaces[op.namespace], op)
