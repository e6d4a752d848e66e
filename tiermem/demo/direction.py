"""An agent that predicts where the middle of the quotes goes next, and learns from what came of it.

    python -m tiermem.demo.direction [--ticks FILE] [--json]

Again and again on a day of ticks it says "up" or "down" for some seconds ahead. The clock of the store moves with the
ticks. A prediction is resolved when its time has come or, where the middle stands where it stood, once it has moved;
then comes the next one. In the first part of the day a bull and a bear say what they always say, and at its end lessons
are distilled from what came of it. In the rest the agent does what the lessons say, and without any it expects the last
move to go on; beside it that is what an agent without a bank does, asked at the same moments.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import tiermem
from tiermem.demo.market import Book, TickFile
from tiermem.reasoning.distill import Distils
from tiermem.reasoning.verdict import DirectionHit
from tiermem.trajectory.run import Run

EXCERPT: Final = Path(__file__).parent / "data" / "aig_20131009_quote_tick_excerpt.zip"
AHEAD: Final = 2.0
"""Seconds a prediction looks ahead, at least. One ends before the next begins, so that no two of them share a move."""
DISTILLER: Final = tiermem.Distiller(discount=0.0, similarity=0.8)
"""A prediction is answerable for its own outcome only."""
TICK: Final = 100.0
"""A cent, in the unit of prices: what moves are measured in."""
QUIET: Final = 0.25
NEAR: Final = 0.85
"""The cosine from which a lesson is about the situation at hand."""
WORDS: Final = {1: "up", -1: "down"}


class Moment(NamedTuple):
    """What the agent sees when it is asked: `middle` is of the best quotes, `vector` what it makes of them."""

    at: float
    middle: float
    last: float
    """The last move of the middle from one second to the next."""
    vector: tuple[float, ...]


def moments(ticks: TickFile) -> list[Moment]:
    """A moment every second, from the first at which there are a bid and an offer.

    The vector has four parts in [-1, 1]: the imbalance of the sizes on both sides, at the best prices and in all; a
    third of the move of the last five seconds; and a constant, so that quiet moments have a direction, too.
    """
    book, found, middles = Book(), list[Moment](), list[float]()
    due, last = -math.inf, 0.0
    for row in ticks.rows():
        at = ticks.at(row.ms)
        if at >= due and book.two_sided:
            middle = (book.bid + book.ask) / 2
            middles.append(middle)
            before = middles[max(0, len(middles) - 2)]
            last = middle - before or last
            trend = math.tanh((middle - middles[max(0, len(middles) - 6)]) / TICK) / 3
            found.append(Moment(at, middle, last, (*_imbalances(book), trend, QUIET)))
            due = at + 1.0
        book.apply(row)
    return found


def _imbalances(book: Book) -> tuple[float, float]:
    best = (
        sum(size for name, size in book.bid_sizes.items() if book.bids.get(name) == book.bid),
        sum(size for name, size in book.ask_sizes.items() if book.asks.get(name) == book.ask),
    )
    every = (
        sum(size for name, size in book.bid_sizes.items() if name in book.bids),
        sum(size for name, size in book.ask_sizes.items() if name in book.asks),
    )
    return _imbalance(*best), _imbalance(*every)


def _imbalance(bid: int, ask: int) -> float:
    return (bid - ask) / (bid + ask) if bid + ask else 0.0


class Advice(NamedTuple):
    """What was recalled at a moment, as far as it was followed: ids and scores, and how often that goes well."""

    at: float
    vector: tuple[float, ...]
    recalled: tuple[tuple[str, float], ...]
    direction: int
    """1 for up, -1 for down, 0 where no lesson was near."""
    expected: float
    """How often the lesson that was followed says it goes well."""


class Result(NamedTuple):
    """What a day came to: of the later part, the hits of each agent at every moment, in order."""

    lessons: list[tiermem.Lesson]
    advice: list[Advice]
    with_bank: list[bool]
    without: list[bool]

    def report(self) -> dict[str, Any]:
        """The hit rates, and the difference with its 95 % interval over pairs (normal approximation)."""
        pairs = [one - other for one, other in zip(self.with_bank, self.without, strict=True)]
        count = len(pairs)
        mean = sum(pairs) / count
        error = math.sqrt(sum((pair - mean) ** 2 for pair in pairs) / max(1, count - 1) / count)
        advised = [place for place, one in enumerate(self.advice) if one.direction]
        return {
            "predictions": count,
            "lessons": len(self.lessons),
            "advised": len(advised),
            "hit_rate_with": sum(self.with_bank) / count,
            "hit_rate_without": sum(self.without) / count,
            "difference": mean,
            "interval": [mean - 1.96 * error, mean + 1.96 * error],
            "hit_rate_with_where_advised": _share([self.with_bank[place] for place in advised]),
            "hit_rate_without_where_advised": _share([self.without[place] for place in advised]),
        }


def _share(hits: Sequence[bool]) -> float | None:
    return sum(hits) / len(hits) if hits else None


class _Prediction(NamedTuple):
    """One that waits for its outcome."""

    run: Run
    step: str
    seen: Moment
    direction: int


class Agent:
    """One agent's day in a store: predictions that are resolved by the clock, lessons, and what they are worth."""

    def __init__(self, mem: tiermem.Memory, clock: tiermem.SimulatedClock, *, ahead: float, distiller: Distils) -> None:
        """ahead: seconds a prediction looks ahead, at least. distiller: what finds lessons."""
        self.bank = tiermem.ReasoningBank(
            mem,
            judge=DirectionHit(),
            distiller=distiller,
            ranking=tiermem.Ranking(half_life=6 * 3600.0, diversity=1.0),
        )
        self._clock, self._ahead = clock, ahead
        self._trail = tiermem.Trajectories(mem)

    def live(self, day: Iterable[Moment], *, split: float) -> Result:
        """Let bull and bear predict before `split` (epoch seconds), distil, and follow the lessons from then on."""
        advice: list[Advice] = []
        hits: list[tuple[bool, bool]] = []
        pending: list[_Prediction] = []
        lessons: list[tiermem.Lesson] | None = None
        for moment in day:
            self._clock.set(moment.at)
            if pending:
                seen = pending[0].seen
                change = moment.middle - seen.middle
                if moment.at < seen.at + self._ahead or not change:
                    continue
                self._end(pending, change)
                if seen.at >= split:
                    hits.append((pending[0].direction * change > 0, (1 if seen.last >= 0 else -1) * change > 0))
            if moment.at < split:
                pending = [self._predict("bull", moment, 1), self._predict("bear", moment, -1)]
                continue
            if lessons is None:
                lessons = self.bank.distil()
            found, told = self._advice(moment)
            advice.append(told)
            pending = [self._predict("agent", moment, told.direction or (1 if moment.last >= 0 else -1))]
            if told.direction:
                self.bank.used(found, pending[0].run)
        followed = advice[: len(hits)]
        known = [self.bank.lesson(one.id) or one for one in lessons or []]
        return Result(known, followed, [one for one, _ in hits], [other for _, other in hits])

    def recall(self, moment: Moment | Advice, as_of: float | None = None) -> list[tiermem.LessonHit]:
        """The lessons near a moment."""
        return [hit for hit in self.bank.recall(moment.vector, k=4, as_of=as_of) if hit.similarity >= NEAR]

    def _predict(self, agent: str, moment: Moment, direction: int) -> _Prediction:
        run = self._trail.start(agent, "the next move of the middle")
        step = run.step(
            observation={"middle": moment.middle, "last": moment.last},
            action=WORDS[direction],
            predicted=float(direction),
            vector=moment.vector,
        )
        return _Prediction(run, step, moment, direction)

    def _end(self, predictions: Sequence[_Prediction], change: float) -> None:
        for one in predictions:
            self._trail.resolve(one.step, change)
            one.run.complete()
        self.bank.learn([one.run for one in predictions])

    def _advice(self, moment: Moment) -> tuple[list[tiermem.LessonHit], Advice]:
        """The lessons near a moment, and the direction that goes well most often, as they have it."""
        found = self.recall(moment)
        shares = {1: 0.0, -1: 0.0}
        for hit in found:
            direction, share = (1 if hit.lesson.action == WORDS[1] else -1), hit.lesson.success.mean
            if hit.lesson.kind == "failure":
                # The middle moves: what does not go well in one direction does in the other.
                direction, share = -direction, 1.0 - share
            shares[direction] = max(shares[direction], share)
        recalled = tuple((hit.lesson.id, hit.score) for hit in found)
        direction = 0 if shares[1] == shares[-1] else max(shares, key=shares.__getitem__)
        return found, Advice(moment.at, moment.vector, recalled, direction, max(shares.values()))


def shuffled_after(day: Sequence[Moment], moment: float, *, seed: int = 0) -> list[Moment]:
    """The same times; what is seen after `moment` comes in another order."""
    start = next((place for place, one in enumerate(day) if one.at > moment), len(day))
    order = list(range(start, len(day)))
    random.Random(seed).shuffle(order)
    return [*day[:start], *(day[other]._replace(at=one.at) for one, other in zip(day[start:], order, strict=True))]


def replay(
    day: Sequence[Moment], path: Path, *, split: float, ahead: float = AHEAD, distiller: Distils = DISTILLER
) -> tuple[Result, list[Advice]]:
    """A day in a new store at `path`; and the advice anew, recalled from the full store as of each of its moments."""
    clock = tiermem.SimulatedClock(day[0].at)
    with tiermem.open(path, clock=clock) as mem:
        agent = Agent(mem, clock, ahead=ahead, distiller=distiller)
        result = agent.live(day, split=split)
        again = [
            one._replace(recalled=tuple((hit.lesson.id, hit.score) for hit in agent.recall(one, as_of=one.at)))
            for one in result.advice
        ]
    return result, again


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ticks", type=Path, default=EXCERPT, metavar="FILE", help="a zip of quotes (an excerpt)")
    parser.add_argument("--split", type=float, default=0.5, help="how much of the day comes before the lessons (0.5)")
    parser.add_argument("--ahead", type=float, default=AHEAD, help=f"seconds to look ahead ({AHEAD:g})")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    day = moments(TickFile(options.ticks))
    split = day[int(options.split * (len(day) - 1))].at
    with tempfile.TemporaryDirectory() as folder:
        result, again = replay(day, Path(folder) / "day", split=split, ahead=options.ahead)
    found = {**result.report(), "recalled_as_of_then_is_the_same": again == result.advice}
    if options.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name.replace('_', ' '):34} {value}")
    for lesson in result.lessons:
        print(f"{lesson.id}  {lesson.title}: {lesson.success.mean:.3f} of {lesson.support}, {lesson.reliability:.3f}")


if __name__ == "__main__":
    main()
