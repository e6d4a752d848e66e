"""The agent's desk on a tiered memory: every call the demo makes on `tiermem` while it replays."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any, Protocol

import tiermem
from tiermem.demo.agent import (
    DIMENSION,
    HISTORY_MS,
    NEIGHBOURS,
    START_CASH,
    TTL_SECONDS,
    Effects,
    Match,
    Observation,
    Past,
    Position,
)
from tiermem.demo.market import TickFile
from tiermem.demo.meter import Meter

RULES = 1
"""Number of the rules a checkpoint was written under; another number cannot continue it."""

_SAMPLE = 16
"""One position lookup in so many is timed: it takes about as long as reading the timer."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where the replay stands: the next row, the book and the agent's state; `done` after the last row."""

    row: int
    ms: int
    book: dict[str, list[int]]
    agent: dict[str, object]
    done: bool = False


class Desk(Protocol):
    """What the replay asks of whatever keeps the agent's records."""

    def resume(self) -> tuple[Checkpoint, list[Past]] | None:
        """The last checkpoint and the steps of the history before it; None on a new desk."""
        ...

    def set_time(self, ms: int) -> None:
        """It is now `ms` after local midnight."""
        ...

    def quote(self, exchange: str, quote: tuple[int, int, int, int], ms: int) -> None:
        """Write down what an exchange shows."""
        ...

    def position(self) -> Position:
        """Look the position up."""
        ...

    def cash(self) -> int:
        """Look the cash up."""
        ...

    def similar(self, seen: Observation, until_ms: int) -> list[Match]:
        """The `NEIGHBOURS` + 1 states before `until_ms` most like `seen` in its regime, best first."""
        ...

    def commit(self, effects: Effects, checkpoint: Checkpoint) -> None:
        """Make a step and its checkpoint take effect, all or nothing."""
        ...

    def finish(self, checkpoint: Checkpoint) -> None:
        """The last row was played."""
        ...


class MemoryDesk:
    """A `Desk` on a `tiermem.Memory` whose clock is the market's.

    - `desk/<symbol>/quotes`: what each exchange shows, one record an exchange, rewritten by every row
    - `desk/<symbol>/obs`: the stream of observations, with their vectors, which expire
    - `desk/<symbol>/outcomes`: what followed an observation, by step number, once it is known
    - `desk/<symbol>/orders`: the stream of orders
    - `desk/positions`, `desk/cash`: one record each
    - `desk/replay`: the checkpoint

    An observation, the outcomes that came to be known with it, an order, the new position, the cash
    and the checkpoint are one batch. A replay that was killed therefore stands exactly at its last
    checkpoint, and only the board of quotes is ahead of it, which the rows played again rewrite.
    """

    def __init__(self, mem: tiermem.Memory, clock: tiermem.SimulatedClock, ticks: TickFile, meter: Meter) -> None:
        symbol = ticks.symbol
        self._mem, self._clock, self._ticks, self._meter, self._symbol = mem, clock, ticks, meter, symbol
        self.obs, self.outcomes = f"desk/{symbol}/obs", f"desk/{symbol}/outcomes"
        self.orders, self.board = f"desk/{symbol}/orders", f"desk/{symbol}/quotes"
        mem.create_namespace(self.obs, dimension=DIMENSION, metric="euclidean")
        self._quotes = mem.namespace(self.board)
        self._positions = mem.namespace("desk/positions")
        self.early_hits = 0
        """Matches that did not precede their query; there are none."""
        self.least_lag = float("inf")
        """Shortest time, in seconds, from a match to its query."""
        self._put, self._looked_up = meter.verb("put"), meter.verb("ns[key]")
        self._got, self._read = meter.verb("get"), meter.verb("hit.record")

    @property
    def reads(self) -> int:
        """Reads of this run that ask L1 first."""
        return self._looked_up.calls + self._got.calls

    def resume(self) -> tuple[Checkpoint, list[Past]] | None:
        """The last checkpoint and the steps of the history before it; None in a new directory.

        Raises:
            tiermem.InvalidArgument: the directory holds the replay of another file, or of other rules.
        """
        mem, ticks = self._mem, self._ticks
        stored = mem.get("desk/replay", "checkpoint", copy=True)
        if stored is None:
            with mem.batch() as batch:
                batch.put("desk/cash", "USD", START_CASH)
                batch.put("desk/positions", self._symbol, list(Position()))
            return None
        if (stored["source"], stored["rules"]) != (ticks.identity, RULES):
            raise tiermem.InvalidArgument(
                f"the directory holds a replay of {stored['source']} under rules {stored['rules']}, "
                f"not of {ticks.identity} under rules {RULES}; take another directory"
            )
        checkpoint = Checkpoint(stored["row"], stored["ms"], stored["book"], stored["agent"], stored["done"])
        self.early_hits, self.least_lag = stored["early_hits"], stored["least_lag"]
        self.set_time(checkpoint.ms)
        recent = mem.scan(self.obs, since=ticks.at(checkpoint.ms - HISTORY_MS))
        past = [Past(r.value["step"], r.value["ms"], r.value["mid2"], r.value["signal"]) for r in recent]
        return checkpoint, past

    def set_time(self, ms: int) -> None:
        """Move the store's clock to `ms` after local midnight."""
        self._clock.set(self._ticks.at(ms))

    def quote(self, exchange: str, quote: tuple[int, int, int, int], ms: int) -> None:
        """Write down what an exchange shows: one `put`."""
        started = perf_counter_ns()
        self._quotes.put(exchange, (*quote, ms))
        self._put.took(perf_counter_ns() - started)

    def position(self) -> Position:
        """Look the position up: one subscript of a namespace, the fastest read there is."""
        verb = self._looked_up
        verb.calls += 1
        if verb.calls % _SAMPLE:
            return Position(*self._positions[self._symbol])
        started = perf_counter_ns()
        stored = self._positions[self._symbol]
        verb.sample(perf_counter_ns() - started)
        return Position(*stored)

    def cash(self) -> int:
        """Look the cash up: one `get`."""
        started = perf_counter_ns()
        amount: int = self._mem.get("desk/cash", "USD")
        self._got.took(perf_counter_ns() - started)
        return amount

    def similar(self, seen: Observation, until_ms: int) -> list[Match]:
        """The states before `until_ms` most like `seen`, searched exactly, and their outcomes.

        Exactly, because which approximate neighbours an index finds may depend on when it was built,
        and a replay must find the same ones every time.
        """
        with self._meter.time("search_similar"):
            hits = self._mem.search_similar(
                self.obs,
                seen.vector,
                k=NEIGHBOURS + 1,
                where={"regime": seen.regime},
                until=self._ticks.at(until_ms),
                exact=True,
            )
        steps = [f"{hit.metadata['step']:07d}" for hit in hits]
        with self._meter.time("get_many"):
            moves = self._mem.get_many(self.outcomes, steps)
        now = self._clock.now()
        for hit in hits:
            started = perf_counter_ns()
            record = hit.record
            self._read.took(perf_counter_ns() - started)
            lag = now - record.at if record is not None else 0.0
            self.early_hits += lag <= 0
            self.least_lag = min(self.least_lag, lag)
        return [Match(hit.score, moves.get(step)) for hit, step in zip(hits, steps, strict=True)]

    def commit(self, effects: Effects, checkpoint: Checkpoint) -> None:
        """One batch: observation, outcomes, order, position, cash, checkpoint."""
        seen, order = effects.observation, effects.order
        with self._meter.time("batch"), self._mem.batch() as batch:
            batch.append(
                self.obs,
                {"step": seen.step, "ms": seen.ms, "mid2": seen.mid2, "signal": effects.signal},
                vector=seen.vector,
                metadata={"step": seen.step, "regime": seen.regime},
                ttl=TTL_SECONDS,
            )
            for outcome in effects.outcomes:
                batch.put(self.outcomes, f"{outcome.step:07d}", outcome.move, ttl=TTL_SECONDS)
            if order is not None:
                batch.append(self.orders, {"step": seen.step, "ms": seen.ms, **order._asdict()})
                batch.put("desk/positions", self._symbol, list(effects.position))
                batch.put("desk/cash", "USD", effects.cash)
            batch.put("desk/replay", "checkpoint", self._stored(checkpoint))

    def finish(self, checkpoint: Checkpoint) -> None:
        """Write the last checkpoint down for good."""
        self._mem.put("desk/replay", "checkpoint", self._stored(checkpoint), durable=True)

    def _stored(self, checkpoint: Checkpoint) -> dict[str, Any]:
        return {
            "source": self._ticks.identity,
            "rules": RULES,
            "row": checkpoint.row,
            "ms": checkpoint.ms,
            "book": checkpoint.book,
            "agent": checkpoint.agent,
            "done": checkpoint.done,
            "early_hits": self.early_hits,
            "least_lag": self.least_lag,
        }
