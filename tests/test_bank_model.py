"""What a bank answers as of a time, against a bank that was told nothing later; and consolidation in any order."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import tiermem
from tests.workers import INLINE, START
from tiermem.reasoning.bank import ReasoningBank
from tiermem.reasoning.distill import Distiller, Judged, Situation
from tiermem.reasoning.inference import Evidence
from tiermem.reasoning.lesson import Lesson, LessonHit
from tiermem.reasoning.verdict import DirectionHit

CENTRES = np.eye(4, dtype=np.float32)
UPKEEP = tiermem.Upkeep(duplicate=0.95, contradiction=0.7, weakest=0.5, stale_after=60.0)
RANKING = tiermem.Ranking(half_life=50.0)
EASY = Distiller(confidence=0.3, support=2, similarity=0.8, discount=0.5)

Op = tuple[Any, ...]
number = st.integers(0, 7)
situations = st.tuples(st.integers(0, 3), st.integers(0, 3), st.sampled_from(["", "buy"]))
ops = st.one_of(
    st.tuples(st.just("run"), situations, st.sampled_from([-1.0, 1.0]), st.booleans()),
    st.tuples(st.just("start"), situations),
    st.tuples(st.just("resolve"), number, st.sampled_from([-1.0, 1.0]), st.sampled_from([0.0, 15.0])),
    st.tuples(st.just("complete"), number),
    st.tuples(st.just("learn"), number),
    st.tuples(st.just("used"), number, number),
    st.tuples(st.just("distil"), st.sampled_from([None, 20.0])),
    st.sampled_from([("settle",), ("consolidate",)]),
    st.tuples(st.just("restore"), number, number),
)
history = st.lists(st.tuples(st.sampled_from([0.0, 1.0, 10.0, 40.0]), ops), min_size=1, max_size=30)


class World:
    """A store that is told of a history, one operation at a time."""

    def __init__(self, mem: tiermem.Memory, clock: tiermem.SimulatedClock) -> None:
        self.mem, self.clock = mem, clock
        self.trail = tiermem.Trajectories(mem)
        self.bank = open_bank(mem)
        self.runs: list[Any] = []
        self.steps: list[str] = []
        self.resolved: set[int] = set()

    def names(self) -> dict[str, int]:
        """Trajectories by the order they began in: their ids differ from store to store."""
        return {run.id: place for place, run in enumerate(self.runs)}

    def tell(self, op: Op) -> None:
        kind, *given = op
        if kind == "run":
            place, second, action = given[0]
            self.start(place, second, action)
            self.resolve(len(self.runs) - 1, given[1], 0.0)
            self.complete(len(self.runs) - 1)
            if given[2]:
                self.bank.learn(self.runs[-1])
        elif kind == "start":
            self.start(*given[0])
        elif kind in ("settle", "consolidate"):
            getattr(self.bank, kind)()
        elif kind == "distil":
            self.bank.distil(since=None if given[0] is None else self.clock.now() - given[0])
        elif kind == "restore":
            if known := list(self.bank.lessons(every=True)):
                lesson = known[given[0] % len(known)]
                self.bank.restore(lesson, 1 + given[1] % lesson.version)
        elif self.runs:
            place = given[0] % len(self.runs)
            if kind == "learn":
                self.bank.learn(self.runs[place])
            elif kind == "resolve":
                self.resolve(place, given[1], given[2])
            elif kind == "complete":
                self.complete(place)
            elif known := list(self.bank.lessons(every=True)):
                self.bank.used(known[given[1] % len(known)], self.runs[place])

    def start(self, place: int, second: int, action: str) -> None:
        run = self.trail.start("agent", f"task {place}")
        self.runs.append(run)
        run.step(observation={"place": place}, action=action, vector=CENTRES[second] + CENTRES[place])
        self.steps.append(run.step(action=action, predicted=1.0, vector=CENTRES[place] + 0.01 * CENTRES[second]))

    def resolve(self, place: int, value: float, ahead: float) -> None:
        if place not in self.resolved:
            self.resolved.add(place)
            self.trail.resolve(self.steps[place], value, resolved_at=self.clock.now() + ahead)

    def complete(self, place: int) -> None:
        if self.trail.get(self.runs[place]).state == "running":
            self.runs[place].complete()

    def picture(self, as_of: float | None = None) -> list[Any]:
        """Everything the bank answers, with trajectories by their names."""
        names = self.names()

        def plain(lesson: Lesson) -> dict[str, Any]:
            fields = {name: getattr(lesson, name) for name in lesson.__struct_fields__}
            fields["vector"] = fields["vector"].tolist()
            for part in ("evidence", "uses"):
                fields[part] = [(names[one.trajectory], one.value, one.weight) for one in fields[part]]
            return {**fields, "success": lesson.success, "held": lesson.held, "reliability": lesson.reliability}

        def shown(hit: LessonHit) -> tuple[Any, ...]:
            return plain(hit.lesson), *hit[1:-1], [plain(other) for other in hit.contradictions]

        queries = [*CENTRES, CENTRES.sum(axis=0)]
        found: list[Any] = [[shown(hit) for hit in self.bank.recall(query, k=3, as_of=as_of)] for query in queries]
        found.append([shown(hit) for hit in self.bank.recall(CENTRES[0], as_of=as_of, where={"kind": "failure"})])
        every = list(self.bank.lessons(every=True, as_of=as_of))
        found.append([plain(lesson) for lesson in every])
        found.append([[plain(one) for one in self.bank.history(lesson.id, as_of=as_of)] for lesson in every])
        found.append([names[id_] for id_ in self.bank.queued(as_of=as_of)])
        return found


def open_bank(mem: tiermem.Memory) -> ReasoningBank:
    return ReasoningBank(mem, judge=DirectionHit(), distiller=EASY, ranking=RANKING, upkeep=UPKEEP)


@contextmanager
def world() -> Iterator[World]:
    clock = tiermem.SimulatedClock(START)
    with (
        tempfile.TemporaryDirectory() as folder,
        tiermem.open(Path(folder) / "store", config=tiermem.Config(cold=INLINE), clock=clock) as mem,
    ):
        yield World(mem, clock)


def check(told: Sequence[tuple[float, Op]], cuts: Sequence[float]) -> int:
    """Compare what is known as of the cuts, shares of the history's length, with what a shorter history leads to."""
    with world() as full:
        times = []
        for wait, op in told:
            times.append(full.clock.advance(wait))
            full.tell(op)
        full.clock.advance(100.0)
        lessons = 0
        for cut in cuts:
            moment = START + cut * (times[-1] + 10.0 - START)
            with world() as short:
                for at, (_, op) in zip(times, told, strict=True):
                    if at > moment:
                        break
                    short.clock.set(at)
                    short.tell(op)
                short.clock.set(max(moment, short.clock.now()))
                now = short.picture()
                assert full.picture(as_of=moment) == now
                # What was asked leaves no trace: going back and forth in time gives the same answers.
                assert short.picture(as_of=moment) == now
                lessons += len(now[0])
        # And so does a bank that reads the store anew.
        full.bank = open_bank(full.mem)
        assert full.picture(as_of=moment) == now
        return lessons


@given(history, st.lists(st.floats(0.0, 1.0), min_size=1, max_size=2))
@settings(max_examples=20)
def test_what_is_known_as_of_a_time_is_what_was_told_by_then(told: Any, cuts: list[float]) -> None:
    check(told, cuts)


@pytest.mark.slow
@given(history, st.lists(st.floats(0.0, 1.0), min_size=1, max_size=3))
@settings(max_examples=1500)
def test_what_is_known_as_of_a_time_is_what_was_told_by_then_at_length(told: Any, cuts: list[float]) -> None:
    check(told, cuts)


def test_histories_that_have_everything_in_them() -> None:
    """The property is not empty: these histories have lessons, uses, contradictions, merges and retired ones."""
    rng = np.random.default_rng(7)
    seen: set[str] = set()
    lessons = 0
    for _ in range(2):
        told: list[tuple[float, Op]] = []
        for place in range(90):
            where = (int(rng.integers(0, 2)), int(rng.integers(0, 2)), "buy")
            # The world changes half way.
            good = (where[0] == 0) == (place < 45)
            told.append((1.0, ("run", where, 1.0 if good else -1.0, True)))
            if place % 15 == 14:
                told.append((0.0, ("distil", 14.0)))
                told += [(1.0, ("used", int(rng.integers(0, 8)), int(rng.integers(0, 8)))) for _ in range(3)]
                told.append((1.0, ("consolidate",)))
            if place % 40 == 39:
                told.append((0.0, ("restore", int(rng.integers(0, 8)), 0)))
        lessons += check(told, [0.4, 0.9])
        with world() as full:
            for wait, op in told:
                full.clock.advance(wait)
                full.tell(op)
            for lesson in full.bank.lessons(every=True):
                for one in full.bank.history(lesson.id):
                    seen.update(word for word in one.reason.split()[:1] if word)
                    seen.update(["uses"] * bool(one.uses) + ["contradicted"] * bool(one.contradicts))
    assert lessons > 8
    assert {"distilled", "new", "contradicts", "weak:", "uses", "contradicted", "version"} <= seen


class Given:
    """A distiller that says what it was told to say."""

    def __init__(self) -> None:
        self.situations: list[Situation] = []

    def distil(self, runs: Sequence[Judged]) -> list[Situation]:
        return self.situations


lesson_shapes = st.lists(
    st.tuples(
        st.sampled_from(["success", "failure"]),
        st.sampled_from(["", "buy"]),
        st.floats(0.0, np.pi / 2),
        st.lists(st.tuples(st.integers(0, 30), st.booleans()), min_size=1, max_size=12, unique_by=lambda one: one[0]),
    ),
    min_size=1,
    max_size=9,
)


def consolidated(shapes: Sequence[Any]) -> list[Any]:
    """The lessons that come of consolidating lessons of these shapes, told of in their order."""
    clock = tiermem.SimulatedClock(START)
    given_ = Given()
    with (
        tempfile.TemporaryDirectory() as folder,
        tiermem.open(Path(folder) / "s", config=tiermem.Config(cold=INLINE), clock=clock) as mem,
    ):
        bank = ReasoningBank(mem, distiller=given_, upkeep=UPKEEP)
        trail = tiermem.Trajectories(mem)
        runs = [trail.start("agent") for _ in range(31)]
        for run in runs:
            run.complete(success=True)
        bank.learn(runs)
        names = {run.id: place for place, run in enumerate(runs)}
        for kind, action, angle, evidence in shapes:
            vector = np.array([np.cos(angle), np.sin(angle)], np.float32)
            found = tuple(Evidence(runs[run].id, float(value), 1.0) for run, value in evidence)
            given_.situations.append(Situation(kind, action, vector, found, 0.5, 0.01))
        bank.distil()
        bank.consolidate()
        assert bank.consolidate() == [], "a second time changes nothing"
        live = []
        for one in bank.lessons():
            evidence = [(names[part.trajectory], part.value, part.weight) for part in one.evidence]
            live.append((one.kind, one.action, evidence, one.content, one.held, len(one.contradicts), one.vector))
        # Two that are alike but for their vectors are far apart, or they would be one.
        return sorted(live, key=lambda one: (one[:-1], one[-1].tolist()))


TWO_ALIKE = [("failure", "", angle, [(0, False), (1, False)]) for angle in (0.0, 1.0)]


@given(lesson_shapes, st.randoms(use_true_random=False))
@example([("success", "", 0.0, [(0, False)]), *TWO_ALIKE], Random(3))
@example([("success", "", 0.3 * place, [(place, True), (7, True)]) for place in range(6)], Random(5))
@settings(max_examples=25)
def test_consolidation_is_idempotent_and_independent_of_the_order_of_lessons(shapes: Any, random: Any) -> None:
    one = consolidated(shapes)
    shuffled = list(shapes)
    random.shuffle(shuffled)
    other = consolidated(shuffled)
    assert [lesson[:-1] for lesson in one] == [lesson[:-1] for lesson in other]
    for left, right in zip(one, other, strict=True):
        np.testing.assert_allclose(left[-1], right[-1], atol=1e-6)
