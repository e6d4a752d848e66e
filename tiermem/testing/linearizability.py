"""Linearizability: whether what several processes did to one record fits one order of events.

An operation takes effect at one moment between its call and its return. A history is linearizable if moments can be
chosen so that a single register, which does the operations one after another, gives the same answers (Herlihy and
Wing, "Linearizability: a correctness condition for concurrent objects", ACM TOPLAS 12(3), 1990). That holds for a
store if it holds for each of its records, so each is checked alone.

The search is the just-in-time linearization of Lowe ("Testing for linearizability", Concurrency and Computation 29(4),
2017), which goes back to Wing and Gong ("Testing and verifying concurrent objects", J. Parallel and Distributed
Computing 17, 1993): it walks the calls and returns by time, keeps every state the register may be in together with
what has taken effect early, and lets operations take effect only when one of them returns. The time is linear in the
length of the history for a bounded number of operations at a time.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from typing import Final, Literal, NamedTuple, TypeAlias

Value: TypeAlias = str | None
"""What a record holds; None if there is none. No value is written twice."""
Possible: TypeAlias = tuple[Value, frozenset[int]]
"""A state of the register, and the operations that have taken effect and not yet returned."""

Kind: TypeAlias = Literal["write", "swap", "refused", "read"]

LOST: Final = math.inf
"""When an operation ends whose process was killed: it took effect at any moment after its call, or never will."""
MOST_POSSIBLE: Final = 100_000


class Call(NamedTuple):
    """One operation on one record, as the process saw it that made it.

    kind: "write" leaves `value`; "swap" leaves it where it found `expected`; "refused" found something other than
    `expected`; "read" found `expected`. begun, ended: by one clock of all processes, in any unit.
    """

    kind: Kind
    value: Value
    expected: Value
    begun: float
    ended: float
    who: str = ""

    def __str__(self) -> str:
        what = {
            "write": f"wrote {self.value}",
            "swap": f"put {self.value} in place of {self.expected}",
            "refused": f"did not find {self.expected}",
            "read": f"found {self.expected}",
        }[self.kind]
        return f"{self.who} {what} in [{self.begun}, {self.ended}]"


class Impossible(Exception):
    """The operation cannot take effect in this state."""


def outcome(state: Value, call: Call) -> Value:
    """The state that an operation leaves.

    Raises:
        Impossible: it does not answer so in this state.
    """
    if call.kind in ("swap", "read") and state != call.expected:
        raise Impossible
    if call.kind == "refused" and state == call.expected:
        raise Impossible
    return call.value if call.kind in ("write", "swap") else state


def check(calls: Iterable[Call], initial: Value = None) -> str:
    """Empty if the operations on one record are linearizable; else the first return that no order explains.

    Raises:
        OverflowError: there are too many possibilities; nothing is known.
    """
    history = sorted(calls, key=lambda call: call.begun)
    lost = frozenset(number for number, call in enumerate(history) if call.ended == LOST)
    # Of a call and a return at one moment the call comes first: they may have overlapped.
    events = [(call.begun, 0, number) for number, call in enumerate(history)]
    events += [(call.ended, 1, number) for number, call in enumerate(history) if number not in lost]
    possible: set[Possible] = {(initial, frozenset())}
    begun: set[int] = set()
    for _, returns, number in sorted(events):
        if not returns:
            begun.add(number)
            continue
        after = set(_returned(history, possible, begun, number, lost))
        if not after:
            states = sorted({str(state) for state, _ in possible})
            return f"{history[number]}; the record may have held {', '.join(states)}"
        begun.discard(number)
        possible = after
        if len(possible) > MOST_POSSIBLE:
            raise OverflowError(f"more than {MOST_POSSIBLE} possibilities at {history[number]}")
    return ""


def _returned(
    history: list[Call], possible: Iterable[Possible], begun: set[int], number: int, lost: frozenset[int]
) -> Iterator[Possible]:
    """What is possible once operation `number` has returned, by whatever took effect before it.

    Left out is what another possibility can still become, since fewer lost operations have taken effect in it: or
    every lost one would double what is possible. So those with the fewest come first.
    """
    waiting = deque(sorted(possible, key=lambda one: len(one[1] & lost)))
    met: defaultdict[tuple[Value, frozenset[int]], list[frozenset[int]]] = defaultdict(list)
    while waiting:
        state, early = waiting.popleft()
        spent, alike = early & lost, met[state, early - lost]
        if any(fewer <= spent for fewer in alike):
            continue
        alike.append(spent)
        if number in early:
            yield state, early - {number}
            continue
        for other in begun - early:
            try:
                after = outcome(state, history[other]), early | {other}
            except Impossible:
                continue
            if other in lost:
                waiting.append(after)
            else:
                waiting.appendleft(after)
