"""The trading rules: state in, decision out, in whole numbers, and no storage.

The agent looks at the market every quarter of a second, turns what it sees into a feature vector, asks
for the past states most like it whose outcome is known, and bets on the sign of what followed them. It
is meant to show a memory at work, not to make money: it pays the spread on every trade.

All money is in 1/10,000 dollar and every feature is a whole number, so that two replays of the same rows
are equal to the last digit, and so are the distances between their vectors (whole numbers below 2²⁴
are exact in float32, in whichever order they are summed).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tiermem.demo.market import Book, Row

OPEN_MS = (9 * 60 + 30) * 60_000
CLOSE_MS = 16 * 60 * 60_000
STEP_MS = 250
"""Least time between two observations."""
SEARCH_EVERY = 4
"""One observation in so many asks for similar states."""
HORIZON_MS = 30_000
"""How far ahead a bet looks: the outcome of a state is the move of the mid over this time."""
HISTORY_MS = 90_000
"""How long the agent itself remembers; what lies further back is in the memory's care."""
TTL_SECONDS = 900.0
"""How long an observation is worth remembering."""
NEIGHBOURS = 10
LOT = 100
LIMIT = 500
"""Largest position, in shares, long or short."""
STOP_LOSS = 60 * 10_000
"""Loss on the open position at which it is closed, in 1/10,000 dollar."""
START_CASH = 1_000_000 * 10_000

_LAGS = (1, 2, 4, 8, 16, 32, 64, 128, 240)
_LAG_SCALES = (50, 70, 100, 140, 200, 280, 400, 560, 760)
_FULL = 127
DIMENSION = 24


class Position(NamedTuple):
    """Shares held (negative: short), what they cost, and the profit realised so far, by average cost."""

    shares: int = 0
    cost: int = 0
    realised: int = 0

    def fill(self, shares: int, price: int) -> tuple[Position, int]:
        """The position after buying `shares` (negative: selling) at `price`, and the change in cash.

        Cash received minus `cost` released is the profit realised, so at any time
        `cash - START_CASH == realised - cost`.
        """
        held, cost, realised = self
        paid = shares * price
        if held and (held > 0) != (shares > 0):
            closing = min(abs(shares), abs(held))
            direction = 1 if shares > 0 else -1
            released = cost * closing // abs(held)
            realised += -direction * closing * price - released
            cost -= released
            held += direction * closing
            shares -= direction * closing
        return Position(held + shares, cost + shares * price, realised), -paid

    def value(self, mid2: int) -> int:
        """Twice the unrealised profit where `mid2` is twice the mid price."""
        return self.shares * mid2 - 2 * self.cost


class Match(NamedTuple):
    """A past state like the present one: its score and the move of `mid2` that followed, if it is known."""

    score: float
    move: int | None


class Order(NamedTuple):
    """A marketable order: shares (negative: sell) at the price the other side shows."""

    shares: int
    price: int
    reason: str


class Observation(NamedTuple):
    """What the agent saw at `ms`: the vector, and what it needs to judge it later.

    vector: 24 whole numbers in [-127, 127] as floats.
    regime: "tight" if the spread is the smallest there is (a cent), else "wide".
    """

    step: int
    ms: int
    mid2: int
    vector: tuple[float, ...]
    regime: str


class Past(NamedTuple):
    """One remembered step: its number and time, twice its mid, and the bet made (-1, 0, 1)."""

    step: int
    ms: int
    mid2: int
    signal: int


class Outcome(NamedTuple):
    """What became of a step: the move of `mid2` over the horizon."""

    step: int
    move: int


@dataclass(slots=True)
class Tally:
    """What the agent has counted since the first row."""

    searches: int = 0
    matches: int = 0
    bets: int = 0
    right: int = 0
    wrong: int = 0
    orders: int = 0
    stops: int = 0


@dataclass(slots=True)
class Effects:
    """Everything one step changes; it takes effect as a whole or not at all."""

    observation: Observation
    signal: int
    outcomes: list[Outcome]
    order: Order | None
    position: Position
    cash: int


def squash(value: int, scale: int) -> int:
    """`value` on (-127, 127), with ±63 at ±`scale`: x / (|x| + scale), rounded toward zero."""
    size = abs(value)
    shrunk = _FULL * size // (size + scale)
    return shrunk if value >= 0 else -shrunk


def vote(matches: Sequence[Match], spread: int) -> int:
    """The bet (-1, 0, 1) on what followed the nearest states.

    `matches` are the `NEIGHBOURS + 1` best, best first; with fewer there is not enough to go by. The
    last one only marks the edge: states as far away as it are left out, so that a tie at the edge
    is never decided by the order the matches came in. The mean move must pay for half the spread.
    """
    if len(matches) <= NEIGHBOURS:
        return 0
    edge = matches[NEIGHBOURS].score
    moves = [match.move for match in matches[:NEIGHBOURS] if match.score > edge and match.move is not None]
    total = sum(moves)
    if not moves or abs(total) < spread * len(moves):
        return 0
    return 1 if total > 0 else -1


class Agent:
    """The rules and the little state between two rows that they need.

    steps: how many steps were taken. past: those of the last `HISTORY_MS`, oldest first. mid2: twice
    the last mid price seen in trading hours.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.last_ms = OPEN_MS - STEP_MS
        self.tally = Tally()
        self.past: list[Past] = []
        self.mid2 = 0
        # Averages in 1/1024: volatility fast and slow, imbalance, flow.
        self._averages = [0, 0, 0, 0]
        self._clear()

    def _clear(self) -> None:
        self._rows = self._flow = self._quoted = self._ups = self._downs = 0

    def state(self) -> dict[str, object]:
        """What `restore` needs right after a step, less `past`, which the memory itself holds."""
        tally = self.tally
        return {
            "steps": self.steps,
            "last_ms": self.last_ms,
            "mid2": self.mid2,
            "averages": list(self._averages),
            "tally": {name: getattr(tally, name) for name in Tally.__slots__},
        }

    @classmethod
    def restore(cls, state: dict[str, object], past: Sequence[Past]) -> Agent:
        """The agent as it was right after the step at which `state` was taken.

        past: the steps of the last `HISTORY_MS`, oldest first.
        """
        agent = cls()
        agent.steps = _whole(state["steps"])
        agent.last_ms = _whole(state["last_ms"])
        agent.mid2 = _whole(state["mid2"])
        averages, tally = state["averages"], state["tally"]
        if not isinstance(averages, list) or not isinstance(tally, dict):
            raise TypeError("not the state of an agent")
        agent._averages = list(averages)
        agent.tally = Tally(**tally)
        agent.past = list(past)
        return agent

    def due(self, row: Row, book: Book, position: Position) -> bool:
        """Take in one row; True if the agent acts on it.

        It acts in regular trading hours on a two-sided book, when `STEP_MS` have passed or the open
        position has lost too much.
        """
        if not OPEN_MS <= row.ms < CLOSE_MS:
            return False
        self._rows += 1
        self._flow += row.bid_size - row.ask_size
        self._quoted += row.bid_size + row.ask_size
        if not (book.bid and book.ask):
            return False
        mid2 = book.bid + book.ask
        if mid2 != self.mid2:
            if mid2 > self.mid2:
                self._ups += 1
            else:
                self._downs += 1
            self.mid2 = mid2
        return row.ms - self.last_ms >= STEP_MS or self._stopped(position, mid2)

    @staticmethod
    def _stopped(position: Position, mid2: int) -> bool:
        return position.shares != 0 and position.value(mid2) <= -2 * STOP_LOSS

    @property
    def searches(self) -> bool:
        """The step under way asks for similar states."""
        return self.steps % SEARCH_EVERY == 0

    @property
    def known_ms(self) -> int:
        """States before this had their outcome recorded by the last step at the latest."""
        return self.last_ms - HORIZON_MS

    def observe(self, row: Row, book: Book) -> Observation:
        """The present as a feature vector; O(lags + exchanges)."""
        past, mid2, spread = self.past, book.bid + book.ask, book.ask - book.bid
        best_bid = [size for name, size in book.bid_sizes.items() if book.bids.get(name) == book.bid]
        best_ask = [size for name, size in book.ask_sizes.items() if book.asks.get(name) == book.ask]
        bid_size, ask_size = sum(best_bid), sum(best_ask)
        all_bids = sum(book.bid_sizes[name] for name in book.bids)
        all_asks = sum(book.ask_sizes[name] for name in book.asks)
        touch = _FULL * (bid_size - ask_size) // (bid_size + ask_size + 1)
        flow = _FULL * self._flow // (self._quoted + 1)
        previous = past[-1].mid2 if past else mid2
        averages = self._averages
        move = abs(mid2 - previous)
        for place, (value, shift) in enumerate(((move, 3), (move, 7), (touch, 4), (flow, 4))):
            averages[place] += (value * 1024 - averages[place]) >> shift
        steps = len(past)
        mids = [past[-min(lag, steps)].mid2 if steps else mid2 for lag in _LAGS]
        features = [squash(mid2 - mid, scale) for mid, scale in zip(mids, _LAG_SCALES, strict=True)]
        low, high = min(mid2, *mids), max(mid2, *mids)
        features += (
            squash(spread, 200),
            touch,
            _FULL * (all_bids - all_asks) // (all_bids + all_asks + 1),
            _FULL * (len(best_bid) - len(best_ask)) // (len(best_bid) + len(best_ask)),
            squash(bid_size + ask_size, 4000),
            squash(self._rows, 20),
            flow,
            _FULL * (self._ups - self._downs) // (self._ups + self._downs + 1),
            squash(self._ups + self._downs, 4),
            squash(averages[0], 20 * 1024),
            squash(averages[1], 20 * 1024),
            averages[2] // 1024,
            averages[3] // 1024,
            _FULL * (2 * mid2 - low - high) // (high - low + 1),
            _FULL * (row.ms - OPEN_MS) // (CLOSE_MS - OPEN_MS),
        )
        vector = tuple(map(float, features))
        return Observation(self.steps, row.ms, mid2, vector, "tight" if spread <= 100 else "wide")

    def act(
        self, seen: Observation, matches: Sequence[Match] | None, book: Book, position: Position, cash: int
    ) -> Effects:
        """One step: judge the past, bet, trade, remember. `matches` is None if the step did not search."""
        tally = self.tally
        outcomes = self._resolve(seen)
        signal = 0
        if matches is not None:
            signal = vote(matches, book.ask - book.bid)
            tally.searches += 1
            tally.matches += len(matches)
            tally.bets += signal != 0
        order = self._order(signal, seen.mid2, book, position)
        if order is not None:
            position, change = position.fill(order.shares, order.price)
            cash += change
            tally.orders += 1
            tally.stops += order.reason == "stop"
        self.past.append(Past(seen.step, seen.ms, seen.mid2, signal))
        self.steps += 1
        self.last_ms = seen.ms
        self._clear()
        return Effects(seen, signal, outcomes, order, position, cash)

    def _resolve(self, seen: Observation) -> list[Outcome]:
        """The outcomes that came to be known since the last step; forgets what is older than the history.

        A step that found no successor within the history has no outcome.
        """
        past, tally = self.past, self.tally
        oldest = seen.ms - HISTORY_MS
        keep = 0
        while keep < len(past) and past[keep].ms < oldest:
            keep += 1
        del past[:keep]
        outcomes = []
        known, due = self.known_ms, seen.ms - HORIZON_MS
        for state in past:
            if state.ms > due:
                break
            if state.ms > known:
                move = seen.mid2 - state.mid2
                outcomes.append(Outcome(state.step, move))
                tally.right += move * state.signal > 0
                tally.wrong += move * state.signal < 0
        return outcomes

    def _order(self, signal: int, mid2: int, book: Book, position: Position) -> Order | None:
        if self._stopped(position, mid2):
            price = book.bid if position.shares > 0 else book.ask
            return Order(-position.shares, price, "stop")
        if signal > 0 and position.shares < LIMIT:
            return Order(LOT, book.ask, "signal")
        if signal < 0 and position.shares > -LIMIT:
            return Order(-LOT, book.bid, "signal")
        return None


def _whole(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is not a whole number")
    return value
