"""Trajectories: what is kept, what is refused, what was known when, and what survives a process that is killed."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

import tiermem
from tiermem import InvalidArgument, RecordNotFound, SimulatedClock, Trajectories, Trajectory, Verdict
from tiermem.cli import main
from tiermem.codec import jsonform
from tiermem.reasoning.verdict import RelativeError
from tiermem.trajectory import run as run_module
from tiermem.trajectory.jsonl import form
from tiermem.trajectory.replay import Decision, replay
from tiermem.trajectory.run import Run
from tiermem.trajectory.types import Outcome, Step, StepVerdict

ALWAYS = 1e9


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock(100.0)


@pytest.fixture
def mem(tmp_path: Path, clock: SimulatedClock) -> Iterator[tiermem.Memory]:
    with tiermem.open(tmp_path / "store", clock=clock) as opened:
        yield opened


@pytest.fixture
def trail(mem: tiermem.Memory) -> Trajectories:
    return Trajectories(mem)


def read(trail: Trajectories, run: Run | str, as_of: float | None = None) -> Trajectory:
    found = trail.get(run, as_of=as_of)
    assert found is not None
    return found


def texts(trajectories: list[Trajectory]) -> list[str]:
    """All that trajectories say, byte by byte."""
    return [jsonform.dumps(form(one)) for one in trajectories]


def verdict(trajectory: str, label: Any = "correct", known_at: float = 0.0) -> Verdict:
    return Verdict(trajectory, "test", label, 0.0, 1, 1, 0.75, 0.2, 1.0, known_at)


def _of_another_step(run: Run) -> Verdict:
    other = "0" * 16 + "-" + "0" * 23
    return replace(verdict(run.id), steps=(StepVerdict(f"{other}/00000000", "correct", 0.0),))


# ------------------------------------------------------------------------------------------------------ what is kept


def test_a_run_from_its_start_to_its_end(trail: Trajectories, clock: SimulatedClock) -> None:
    run = trail.start("agent-7", "AIG intraday", metadata={"desk": "ny", "limit": 3})
    clock.advance(1)
    first = run.step(observation={"px": 48.21}, action="buy", predicted=0.4, vector=[1.0, 0.0])
    clock.advance(1)
    second = run.step(observation=[1, 2], reward=-0.5, at=datetime.fromtimestamp(102.5, UTC))
    clock.advance(1)
    trail.resolve(first, 0.3)
    run.complete(success=True)
    found = read(trail, run)
    assert (found.agent, found.task, found.metadata) == ("agent-7", "AIG intraday", {"desk": "ny", "limit": 3})
    assert (found.started, found.finished, found.state, found.success) == (100.0, 103.0, "completed", True)
    assert found.settled
    assert found.known_at == 103.0
    one, two = found.steps
    assert (one.id, one.trajectory, one.number, one.at) == (first, run.id, 0, 101.0)
    assert (one.observation, one.action, one.predicted, one.reward) == ({"px": 48.21}, "buy", 0.4, None)
    assert (one.outcome, one.resolved_at, one.outcomes, one.pending) == (0.3, 103.0, (Outcome(0.3, 103.0),), False)
    assert one.vector is not None
    assert one.vector.dtype == np.float32
    assert one.vector.tolist() == [1.0, 0.0]
    assert (two.id, two.number, two.at, two.observation, two.reward) == (second, 1, 102.5, [1, 2], -0.5)
    assert (two.vector, two.outcome, two.outcomes, two.pending) == (None, None, (), False)


def test_a_step_that_predicts_awaits_an_outcome_and_no_other_does(trail: Trajectories) -> None:
    run = trail.start("a")
    awaited = run.step(predicted=0)
    run.step(observation=1, action=2, reward=3)
    found = read(trail, run)
    assert [step.id for step in found.pending] == [awaited]
    run.complete()
    assert not read(trail, run).settled, "an outcome is still to come"
    trail.resolve(awaited, False)
    assert read(trail, run).pending == ()
    assert read(trail, run).settled


def test_an_abandoned_run_says_why(trail: Trajectories) -> None:
    run = trail.start("a")
    run.abandon("the feed went away")
    found = read(trail, run)
    assert (found.state, found.reason, found.success, found.settled) == ("abandoned", "the feed went away", None, True)


def test_trajectories_of_two_names_are_strangers(mem: tiermem.Memory) -> None:
    one, other = Trajectories(mem, "desk/one"), Trajectories(mem, "desk/other")
    run = one.start("a")
    run.step(vector=[1.0, 2.0])
    other.start("a").step(vector=[1.0, 2.0, 3.0])
    assert other.get(run) is None
    assert [len(found.list()) for found in (one, other)] == [1, 1]


def test_what_is_asked_for_is_what_is_listed(trail: Trajectories, clock: SimulatedClock) -> None:
    for number in range(100):
        clock.set(100.0 + number)
        run = trail.start(f"agent-{number % 3}", "buy" if number % 2 else "sell", metadata={"n": number})
        step = run.step(predicted=1.0)
        if number % 4:
            trail.resolve(step, 1.0)
        if number % 5:
            trail.record_verdict(verdict(run.id, "correct" if number % 10 < 5 else "incorrect"))
    everything = trail.list()
    assert [one.metadata["n"] for one in everything] == list(range(100)), "in the order of their starts"

    def numbers(**asked: Any) -> list[int]:
        return [one.metadata["n"] for one in trail.list(**asked)]

    def those(*which: Callable[[int], bool]) -> list[int]:
        return [n for n in range(100) if all(chosen(n) for chosen in which)]

    assert numbers(agent="agent-1") == those(lambda n: n % 3 == 1)
    assert numbers(agent="agent-1", task="buy") == those(lambda n: n % 3 == 1, lambda n: n % 2 == 1)
    assert numbers(since=120.0, until=130.0) == list(range(20, 30))
    assert numbers(since=datetime.fromtimestamp(190.0, UTC)) == list(range(90, 100))
    assert numbers(pending=True) == those(lambda n: n % 4 == 0)
    assert numbers(pending=False, task="sell") == those(lambda n: n % 4 > 0, lambda n: n % 2 == 0)
    assert numbers(verdict="correct") == those(lambda n: n % 5 > 0, lambda n: n % 10 < 5)
    assert numbers(verdict="very_wrong") == []
    assert numbers(where={"n": {"$gte": 97}}) == [97, 98, 99]
    assert numbers(where={"n": {"$gte": 97}}, agent="agent-1") == [97]
    assert numbers(as_of=109.5) == list(range(10))
    assert numbers(limit=3) == [0, 1, 2]
    assert numbers(limit=0) == []
    assert numbers(limit=3, reverse=True) == [99, 98, 97]
    assert numbers(reverse=True, since=150.0, until=160.0, as_of=155.0, pending=True) == [52]
    assert numbers(limit=2, reverse=True, verdict="incorrect", as_of=196.0) == [96, 89]


# ----------------------------------------------------------------------------------------------------- what is refused


def test_times_that_fall_are_refused_and_change_nothing(trail: Trajectories, clock: SimulatedClock) -> None:
    run = trail.start("a", at=50.0)
    step = run.step(predicted=1.0, at=60.0)
    before = texts(trail.list())
    for wrong in (
        lambda: run.step(at=59.0),
        lambda: run.complete(at=59.9),
        lambda: run.abandon("", at=0.0),
        lambda: trail.resolve(step, 1.0, resolved_at=59.0),
        lambda: run.step(at=math.nan),
        lambda: run.step(at=datetime(2026, 1, 1)),
        lambda: trail.record_verdict(verdict(run.id, known_at=70.0), at=69.0),
        lambda: trail.record_verdict(verdict(run.id), at=49.0),
    ):
        with pytest.raises(InvalidArgument):
            wrong()
    assert texts(trail.list()) == before
    assert run.step(at=60.0).endswith("/00000001"), "no number was used up"
    late = trail.start("a", at=200.0)
    assert read(trail, late.id, ALWAYS).started == 200.0
    late.step()
    assert read(trail, late.id, ALWAYS).steps[0].at == 200.0, "not before what was before it"


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda trail, run, step: run.step(reward="much"), InvalidArgument),
        (lambda trail, run, step: run.step(reward=True), InvalidArgument),
        (lambda trail, run, step: run.step(reward=math.inf), InvalidArgument),
        (lambda trail, run, step: run.step(observation={1, 2}), tiermem.EncodingError),
        (lambda trail, run, step: run.step(vector=[1.0, 2.0, 3.0]), tiermem.DimensionMismatch),
        (lambda trail, run, step: run.complete(success=1), InvalidArgument),
        (lambda trail, run, step: run.abandon(None), InvalidArgument),
        (lambda trail, run, step: trail.resolve(step, None), InvalidArgument),
        (lambda trail, run, step: trail.resolve(step, {1}), tiermem.EncodingError),
        (lambda trail, run, step: trail.resolve(run.id, 1.0), InvalidArgument),
        (lambda trail, run, step: trail.resolve(7, 1.0), InvalidArgument),
        (lambda trail, run, step: trail.resolve(f"{run.id}/00000009", 1.0), RecordNotFound),
        (lambda trail, run, step: trail.record_verdict(verdict("0" * 16 + "-" + "0" * 23)), RecordNotFound),
        (lambda trail, run, step: trail.record_verdict("correct"), InvalidArgument),
        (lambda trail, run, step: trail.record_verdict(verdict(run.id, "good")), InvalidArgument),
        (lambda trail, run, step: trail.record_verdict(verdict(run.id, known_at=math.nan)), InvalidArgument),
        (lambda trail, run, step: trail.record_verdict(replace(verdict(run.id), hits=np.int64(1))), InvalidArgument),
        (lambda trail, run, step: trail.record_verdict(replace(verdict(run.id), steps=("x",))), InvalidArgument),
        (lambda trail, run, step: trail.record_verdict(_of_another_step(run)), InvalidArgument),
        (lambda trail, run, step: trail.list(verdict="corect"), InvalidArgument),
        (lambda trail, run, step: trail.start("a", metadata=[1]), tiermem.EncodingError),
        (lambda trail, run, step: trail.start(7), InvalidArgument),
        (lambda trail, run, step: trail.start("a", None), InvalidArgument),
        (lambda trail, run, step: trail.start("a", metadata={"agent": "b"}), InvalidArgument),
        (lambda trail, run, step: trail.start("a", metadata={"x": {}}), tiermem.EncodingError),
        (lambda trail, run, step: trail.get("AIG"), InvalidArgument),
        (lambda trail, run, step: trail.get(None), InvalidArgument),
        (lambda trail, run, step: trail.get(run, as_of="now"), InvalidArgument),
        (lambda trail, run, step: trail.resume("0" * 16 + "-" + "0" * 23), RecordNotFound),
        (lambda trail, run, step: trail.list(where={"x": {"$no": 1}}), tiermem.FilterError),
        (lambda trail, run, step: trail.list(limit=-1), InvalidArgument),
        (lambda trail, run, step: Trajectories(trail.mem, "a//b"), tiermem.InvalidNamespace),
        (lambda trail, run, step: Trajectories(trail.mem, "a" * 252), tiermem.InvalidNamespace),
    ],
)
def test_what_is_no_argument_changes_nothing(
    trail: Trajectories, wrong: Callable[..., object], error: type[Exception]
) -> None:
    run = trail.start("a")
    step = run.step(predicted=1.0, vector=[1.0, 2.0])
    before = texts(trail.list())
    with pytest.raises(error):
        wrong(trail, run, step)
    assert texts(trail.list()) == before
    assert trail.get("0" * 16 + "-" + "0" * 23) is None


def test_what_has_ended_takes_no_steps(trail: Trajectories) -> None:
    run = trail.start("a")
    run.complete()
    for late in (run.step, run.complete, lambda: run.abandon("late"), lambda: trail.resume(run)):
        with pytest.raises(InvalidArgument, match="has ended"):
            late()
    assert read(trail, run).state == "completed"


def test_a_trajectory_has_a_last_number(trail: Trajectories, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "MOST_STEPS", 2)
    run = trail.start("a")
    run.step()
    run.step()
    with pytest.raises(InvalidArgument, match="at most 2 steps"):
        run.step()


# ------------------------------------------------------------------------------------------------- what was known when


def test_a_correction_keeps_what_was_known_before(trail: Trajectories, clock: SimulatedClock) -> None:
    run = trail.start("a")
    step = run.step(predicted=1.0)
    trail.resolve(step, "first", resolved_at=110.0)
    trail.resolve(step, "third", resolved_at=130.0)
    trail.resolve(step, "second", resolved_at=120.0)
    trail.resolve(step, "second, corrected", resolved_at=120.0)
    clock.set(140.0)

    def known(moment: float | None) -> tuple[Any, int]:
        (found,) = read(trail, run, moment).steps
        return found.outcome, len(found.earlier)

    assert [known(t) for t in (109.9, 110.0, 119.9, 120.0, 130.0, None)] == [
        (None, 0),
        ("first", 0),
        ("first", 0),
        ("second, corrected", 2),
        ("third", 3),
        ("third", 3),
    ]
    assert read(trail, run).steps[0].earlier == (
        Outcome("first", 110.0),
        Outcome("second", 120.0),
        Outcome("second, corrected", 120.0),
    )


def test_what_is_told_ahead_shows_when_its_time_has_come(trail: Trajectories, clock: SimulatedClock) -> None:
    run = trail.start("a", at=101.0)
    step = run.step(predicted=1.0, at=102.0)
    trail.resolve(step, 1.0, resolved_at=103.0)
    run.complete(at=104.0)
    trail.record_verdict(verdict(run.id), at=105.0)
    seen = []
    for moment in (100.0, 101.0, 102.0, 103.0, 104.0, 105.0):
        clock.set(moment)
        found = trail.get(run)
        seen.append(found and (len(found.steps), len(found.pending), found.state, found.verdict is not None))
        assert texts(trail.list()) == ([] if found is None else texts([found]))
    assert seen == [
        None,
        (0, 0, "running", False),
        (1, 1, "running", False),
        (1, 0, "running", False),
        (1, 0, "completed", False),
        (1, 0, "completed", True),
    ]


@dataclass
class Told:
    """A history: facts in the order they are told, each with the moment since when it is known."""

    facts: list[tuple[float, str, int, Any]] = field(default_factory=list)


@st.composite
def histories(draw: st.DrawFn) -> Told:
    """Random trajectories, and their facts told in a random order that keeps each behind what it is about."""
    moments = st.integers(0, 12).map(float)
    told = Told()
    steps: list[tuple[int, float]] = []
    heads: list[list[Any]] = []
    for _ in range(draw(st.integers(1, 25))):
        kind = draw(st.sampled_from(["start", "step", "step", "resolve", "resolve", "resolve", "end", "verdict"]))
        running = [place for place, head in enumerate(heads) if not head[1]]
        if kind == "start" or not heads:
            heads.append([draw(moments), False])
            told.facts.append((heads[-1][0], "start", len(heads) - 1, None))
        elif kind == "step" and running:
            place = draw(st.sampled_from(running))
            heads[place][0] += draw(st.integers(0, 3))
            steps.append((place, heads[place][0]))
            told.facts.append((heads[place][0], "step", place, draw(st.none() | st.floats(-2, 2))))
        elif kind == "resolve" and steps:
            number = draw(st.integers(0, len(steps) - 1))
            moment = steps[number][1] + draw(st.integers(0, 6))
            told.facts.append((moment, "resolve", number, draw(st.floats(-2, 2))))
        elif kind == "end" and running:
            place = draw(st.sampled_from(running))
            heads[place] = [heads[place][0] + draw(st.integers(0, 3)), True]
            told.facts.append((heads[place][0], "end", place, draw(st.sampled_from([None, True, False, "lost"]))))
        elif kind == "verdict":
            place = draw(st.integers(0, len(heads) - 1))
            label = draw(st.sampled_from(["correct", "incorrect", "very_wrong", "insufficient"]))
            told.facts.append((heads[place][0] + draw(st.integers(0, 4)), "verdict", place, label))
    return told


def tell(trail: Trajectories, told: Told, until: float) -> None:
    """Tell a store those facts that were known by `until`."""
    runs: dict[int, Run] = {}
    ids: list[str | None] = []
    for moment, kind, place, value in told.facts:
        if moment > until:
            if kind == "step":
                ids.append(None)
        elif kind == "start":
            runs[place] = trail.start(f"agent-{place % 2}", f"task-{place}", at=moment)
        elif kind == "step":
            ids.append(runs[place].step(observation=place, predicted=value, at=moment, vector=[moment, 1.0]))
        elif kind == "resolve":
            step = ids[place]
            assert step is not None, "an outcome is known no earlier than its step"
            trail.resolve(step, value, resolved_at=moment)
        elif kind == "verdict":
            trail.record_verdict(verdict(runs[place].id, value, moment), at=moment)
        elif value == "lost":
            runs[place].abandon("lost", at=moment)
        else:
            runs[place].complete(success=value, at=moment)


def nameless(trajectories: list[Trajectory]) -> list[str]:
    """As `texts`, with the ids, which no two stores share, replaced by places."""
    return [text.replace(one.id, "id") for one, text in zip(trajectories, texts(trajectories), strict=True)]


def answers(trail: Trajectories, as_of: float | None) -> list[list[str]]:
    """What every reader says."""
    asked: list[dict[str, Any]] = [{}, {"agent": "agent-1"}, {"pending": True}, {"verdict": "correct"}]
    asked += [{"since": 3.0, "until": 9.0}, {"task": "task-0", "pending": False}, {"limit": 2, "reverse": True}]
    found = [nameless(trail.list(**arguments, as_of=as_of)) for arguments in asked]
    ids = [one.id for one in trail.list(as_of=as_of)]
    return [*found, nameless([one for id_ in ids if (one := trail.get(id_, as_of=as_of)) is not None])]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tiermem.Memory]:
    """One store whose clock stands behind all that is told in it; every example has names of its own."""
    with tiermem.open(tmp_path_factory.mktemp("shared") / "store", clock=SimulatedClock(1000.0)) as opened:
        yield opened


_examples = iter(range(10**9))


@given(told=histories(), moment=st.integers(0, 20).map(float))
def test_as_of_never_leaks(shared: tiermem.Memory, told: Told, moment: float) -> None:
    number = next(_examples)
    full, partial = Trajectories(shared, f"full/{number}"), Trajectories(shared, f"part/{number}")
    tell(full, told, ALWAYS)
    tell(partial, told, moment)
    assert answers(full, moment) == answers(partial, None) == answers(partial, ALWAYS)


@given(told=histories(), moment=st.integers(0, 20).map(float), share=st.floats(0, 1))
@settings(max_examples=25)
def test_an_export_as_of_a_moment_holds_all_that_was_known_by_then(
    shared: tiermem.Memory, tmp_path_factory: pytest.TempPathFactory, told: Told, moment: float, share: float
) -> None:
    number = next(_examples)
    full, copy = Trajectories(shared, f"export/{number}"), Trajectories(shared, f"import/{number}")
    tell(full, told, ALWAYS)
    file = tmp_path_factory.getbasetemp() / f"{number}.jsonl"
    earlier = moment * share
    assert full.export_jsonl(file, as_of=earlier) == copy.import_jsonl(file)
    grown = full.export_jsonl(file, as_of=moment)
    assert 0 <= copy.import_jsonl(file) <= grown
    assert copy.import_jsonl(file) == 0, "the second time, nothing is new"
    for t in (0.0, earlier, moment):
        assert texts(copy.list(as_of=t)) == texts(full.list(as_of=t))
    assert texts(copy.list(as_of=ALWAYS)) == texts(full.list(as_of=moment))


# --------------------------------------------------------------------------------------------------------------- JSONL


def full_example(trail: Trajectories) -> Run:
    run = trail.start("agent-7", "AIG", metadata={"on": datetime(2026, 1, 2, tzinfo=UTC), "tags": ["a", "b"]})
    observation = {"$price": Decimal("48.21")}
    step = run.step(observation=observation, action=b"\x00", predicted=0.1, reward=2, vector=[0.1, 0.2])
    run.step(observation=np.arange(3))
    trail.resolve(step, 0.2)
    trail.record_verdict(RelativeError().judge(read(trail, run)))
    trail.resolve(step, math.inf)
    run.complete(success=False)
    return run


def test_lines_bring_everything_back(trail: Trajectories, tmp_path: Path) -> None:
    run = full_example(trail)
    told: list[tuple[int, int]] = []
    assert trail.export_jsonl(tmp_path / "x.jsonl", progress=lambda *seen: told.append(seen)) == 1
    assert told == [(1, 1)]
    assert [path.name for path in tmp_path.glob("x.jsonl*")] == ["x.jsonl"]
    with tiermem.open(tmp_path / "other", clock=SimulatedClock(100.0)) as mem:
        other = Trajectories(mem)
        size = (tmp_path / "x.jsonl").stat().st_size
        assert other.import_jsonl(tmp_path / "x.jsonl", progress=lambda *seen: told.append(seen)) == 1
        assert told[1:] == [(size, size)]
        assert texts(other.list()) == texts(trail.list())
        step = read(other, run.id).steps[0]
        assert step.observation == {"$price": Decimal("48.21")}
        assert step.vector is not None
        assert step.vector.tolist() == np.array([0.1, 0.2], np.float32).tolist()
        assert mem.check().ok


def spoil(line: dict[str, Any], place: tuple[Any, ...], value: Any) -> None:
    target: Any = line
    value = line["steps"][0]["id"] if value == "AS STEP 0" else value
    for name in place[:-1]:
        target = target[name]
    if value is KeyError:
        del target[place[-1]]
    else:
        target[place[-1]] = value


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("id",), "AIG"),
        (("id",), KeyError),
        (("agent",), 7),
        (("unknown",), 1),
        (("started",), 99.0),
        (("started",), "now"),
        (("state",), "lost"),
        (("state",), "running"),
        (("finished",), 99.0),
        (("finished",), None),
        (("finished",), "\ud800"),
        (("metadata",), {"agent": "b"}),
        (("metadata",), {"x": {}}),
        (("steps", 0, "id"), "00000000"),
        (("steps", 1, "id"), "AS STEP 0"),
        (("steps", 0, "at"), 101.0),
        (("steps", 1, "at"), 99.0),
        (("steps", 0, "reward"), {"$float": "nan"}),
        (("steps", 0, "vector"), [1.0]),
        (("steps", 0, "vector"), "[1.0]"),
        (("steps", 0, "vector"), [1e308, 1.0]),
        (("steps", 0, "observation"), {"$decimal": "many"}),
        (("steps", 0, "outcomes", 0, "value"), None),
        (("steps", 0, "outcomes", 0, "resolved_at"), 99.0),
        (("steps", 0, "outcomes", 1, "resolved_at"), KeyError),
        (("judgements", 0, "at"), 99.0),
        (("judgements", 0, "verdict", "label"), "good"),
        (("judgements", 0, "verdict", "known_at"), 101.0),
        (("judgements", 0, "verdict", "trajectory"), "0" * 16 + "-" + "0" * 23),
    ],
)
def test_a_damaged_line_is_refused_whole(
    trail: Trajectories, tmp_path: Path, place: tuple[Any, ...], value: Any
) -> None:
    full_example(trail)
    file = tmp_path / "x.jsonl"
    trail.export_jsonl(file)
    line = json.loads(file.read_text())
    good = json.dumps(line)
    spoil(line, place, value)
    fresh = Trajectories(trail.mem, "fresh")
    trail.mem.create_namespace("fresh/steps", dimension=2)
    file.write_text(f"\n{json.dumps(line)}\n{good}\n")
    with pytest.raises(InvalidArgument, match="line 2: "):
        fresh.import_jsonl(file)
    assert fresh.list(as_of=ALWAYS) == []
    file.write_text(f"{good}\n{json.dumps(line)}\n")
    with pytest.raises(InvalidArgument, match="line 2: "):
        fresh.import_jsonl(file)
    assert texts(fresh.list(as_of=ALWAYS)) == texts(trail.list()), "lines before it stand"


@pytest.mark.parametrize("text", ["{", "[]", "7", '{"id": 1}', "NaN", "\xff"])
def test_what_is_no_line(trail: Trajectories, tmp_path: Path, text: str) -> None:
    (tmp_path / "x.jsonl").write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidArgument, match="line 1: "):
        trail.import_jsonl(tmp_path / "x.jsonl")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("agent",), "b"),
        (("metadata",), {}),
        (("success",), True),
        (("steps", 0, "action"), "sell"),
        (("steps", 0, "vector"), [0.1, 0.3]),
    ],
)
def test_a_line_that_contradicts_what_is_there_is_refused(
    trail: Trajectories, tmp_path: Path, place: tuple[Any, ...], value: Any
) -> None:
    full_example(trail)
    file = tmp_path / "x.jsonl"
    trail.export_jsonl(file)
    before = texts(trail.list())
    line = json.loads(file.read_text())
    spoil(line, place, value)
    file.write_text(json.dumps(line))
    with pytest.raises(InvalidArgument, match=r"line 1: .* says something else"):
        trail.import_jsonl(file)
    assert texts(trail.list()) == before


def test_a_line_adds_no_step_to_what_has_ended(trail: Trajectories, tmp_path: Path) -> None:
    run = trail.start("a", at=1.0)
    run.step(at=1.0)
    run.complete(at=1.0)
    file = tmp_path / "x.jsonl"
    trail.export_jsonl(file)
    before = texts(trail.list())
    line = json.loads(file.read_text())
    line["steps"].append({**line["steps"][0], "id": f"{run.id}/00000001"})
    file.write_text(json.dumps(line))
    with pytest.raises(InvalidArgument, match=r"line 1: .* has ended"):
        trail.import_jsonl(file)
    assert texts(trail.list()) == before


# -------------------------------------------------------------------------------------------------------------- replay


def remembering(trail: Trajectories) -> Callable[[Run, Step], Decision]:
    """An agent that expects what the last outcomes it can know of were, on the whole."""

    def decide(run: Run, step: Step) -> Decision:
        outcomes = [taken.outcome for one in trail.list(agent=run.agent) for taken in one.steps if taken.outcomes]
        expected = sum(outcomes[-5:]) / len(outcomes[-5:]) if outcomes else 0.0
        return Decision("buy" if step.observation * expected > 0 else "sell", expected)

    return decide


def record(trail: Trajectories, clock: SimulatedClock, seed: int) -> None:
    """Two agents, interleaved, each of whose predictions is resolved some steps later."""
    rng = np.random.default_rng(seed)
    decide = remembering(trail)
    waiting: list[tuple[float, str, float]] = []
    runs = [trail.start(agent, "t", metadata={"seed": seed}) for agent in ("a", "b")]
    for number in range(12):
        clock.advance(float(rng.integers(1, 3)))
        for due in [one for one in waiting if one[0] <= clock.now()]:
            waiting.remove(due)
            trail.resolve(due[1], due[2])
        run = runs[number % 2]
        observation = float(rng.normal())
        seen = Step("", run.id, number // 2, clock.now(), observation=observation)
        action, predicted = decide(run, seen)
        step = run.step(observation=observation, action=action, predicted=predicted, vector=rng.normal(size=3))
        waiting.append((clock.now() + 2.5, step, float(rng.normal())))
    runs[0].complete(success=True)
    clock.advance(1)
    runs[1].abandon("enough")


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=5)
def test_a_replay_decides_the_same_byte_by_byte(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    folder = tmp_path_factory.mktemp("replay")
    clock = SimulatedClock(100.0)
    with tiermem.open(folder / "first", clock=clock) as mem:
        trail = Trajectories(mem)
        record(trail, clock, seed)
        recorded = trail.list()
    clock = SimulatedClock(50.0)
    with tiermem.open(folder / "second", clock=clock) as mem:
        again = Trajectories(mem)
        done = replay(again, recorded, remembering(again))
        assert [one.differing for one in done] == [(), ()]
        assert nameless(again.list()) == nameless(recorded)
        assert [one.trajectory for one in done] == [one.id for one in again.list()]


def test_a_replay_tells_what_was_decided_otherwise(trail: Trajectories, clock: SimulatedClock, tmp_path: Path) -> None:
    run = trail.start("a")
    for number in range(3):
        run.step(observation=number, action=number, predicted=1.0)
    run.step(observation=3, action=3, predicted=math.nan)
    recorded = [read(trail, run)]
    shown: list[Step] = []

    def decide(run: Run, step: Step) -> Decision:
        shown.append(step)
        return Decision(step.observation, {1: 1, 3: math.nan}.get(step.number, 1.0))

    with tiermem.open(tmp_path / "again", clock=SimulatedClock(0.0)) as mem:
        (done,) = replay(Trajectories(mem), recorded, decide)
        assert done.differing == (1,), "the int 1 is not the float 1.0, and NaN is the NaN that was recorded"
        assert done.recorded == run.id
    assert all((step.action, step.predicted, step.outcome, step.reward) == (None,) * 4 for step in shown)


def test_a_replay_needs_a_clock_that_can_be_set(trail: Trajectories, clock: SimulatedClock, tmp_path: Path) -> None:
    run = trail.start("a")
    run.step(observation=1)
    recorded = [read(trail, run)]
    clock.advance(1)
    with pytest.raises(InvalidArgument, match="behind the first start"):
        replay(trail, recorded, lambda run, step: Decision())
    assert len(trail.list()) == 1
    with tiermem.open(tmp_path / "real") as mem, pytest.raises(InvalidArgument, match="SimulatedClock"):
        replay(Trajectories(mem), recorded, lambda run, step: Decision())
    assert replay(trail, [], lambda run, step: Decision()) == []


# -------------------------------------------------------------------------------------------------------- command line


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def call(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        code = main(["trajectories", str(tmp_path / "store"), *map(str, arguments)])
        return code, capsys.readouterr().out

    return call


def test_the_command_lists_runs_and_shows_one(
    trail: Trajectories, clock: SimulatedClock, command: Callable[..., tuple[int, str]]
) -> None:
    run = full_example(trail)
    clock.advance(10)
    other = trail.start("agent-8", "IBM")
    other.step(predicted=1.0, reward=-2.5)
    other.abandon("too late\x1b[2J")
    trail.mem.close()
    code, out = command()
    assert code == 0
    assert out.index(other.id) < out.index(run.id), "the last first"
    assert "very_wrong 0/1" in out
    assert "failure" in out
    assert "-2.5" in out
    code, out = command("--show", run.id)
    assert code == 0
    assert "Infinity" in out or "inf" in out
    assert "(corrected 1 times)" in out
    assert "very_wrong" in out
    code, out = command("--show", other.id)
    assert code == 0
    assert "pending" in out
    assert "too late" in out
    assert "\x1b" not in out
    assert command("--show", "0" * 16 + "-" + "0" * 23) == (1, "")


def test_the_command_speaks_json(
    trail: Trajectories, clock: SimulatedClock, command: Callable[..., tuple[int, str]]
) -> None:
    run = full_example(trail)
    clock.advance(10)
    other = trail.start("agent-8", "IBM")
    other.step(predicted=1.0)
    whole = texts([read(trail, run)])[0]
    trail.mem.close()

    def ids(*arguments: object) -> list[str]:
        code, out = command("--json", *arguments)
        assert code == 0
        return [json.loads(line)["id"] for line in out.splitlines()]

    assert ids() == [other.id, run.id]
    assert ids("--oldest", "--limit", 1) == [run.id]
    assert ids("--agent", "agent-8") == ids("--task", "IBM") == ids("--pending") == ids("--since", 110) == [other.id]
    assert ids("--verdict", "very_wrong") == ids("--until", 110) == ids("--as-of", 109) == [run.id]
    assert ids("--where", '{"tags": {"$contains": "b"}}') == [run.id]
    assert ids("--namespace", "elsewhere") == []
    code, out = command("--json", "--show", run.id)
    assert (code, out.strip()) == (0, whole)


def test_a_table_of_many_runs_says_that_there_are_more(
    trail: Trajectories, command: Callable[..., tuple[int, str]]
) -> None:
    for _ in range(51):
        trail.start("a")
    trail.mem.close()
    assert "--limit N shows more" in command()[1]
    assert "--limit N shows more" not in command("--limit", 51)[1]


# ---------------------------------------------------------------------------------------------- threads and processes


def test_a_run_is_written_by_several_threads(trail: Trajectories) -> None:
    run = trail.start("a")
    ids: list[list[str]] = [[] for _ in range(4)]

    def work(into: list[str]) -> None:
        into.extend(run.step(observation=1) for _ in range(200))

    threads = [threading.Thread(target=work, args=(into,)) for into in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [step.id for step in read(trail, run).steps]
    assert found == sorted(step for part in ids for step in part)
    assert len(set(found)) == 800


def test_whoever_reads_while_a_run_ends_misses_no_step_of_it(
    trail: Trajectories, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trail.start("a")
    scan, calls = trail.mem.scan, 0

    def meanwhile(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            trail.resolve(run.step(predicted=1.0), 1.0)
            run.complete()
        return scan(*args, **kwargs)

    monkeypatch.setattr(trail.mem, "scan", meanwhile)
    found = read(trail, run)
    assert calls == 2
    assert (found.state, len(found.steps)) in (("running", 0), ("running", 1), ("completed", 1))
    assert read(trail, run).settled


def test_two_that_resume_a_run_overwrite_nothing(trail: Trajectories, tmp_path: Path) -> None:
    run = trail.start("a", "t")
    run.step(observation=0)
    one, other = trail.resume(run.id), trail.resume(read(trail, run))
    assert (one.agent, one.task) == ("a", "t")
    ids = [writer.step(observation=number) for number in (1, 2) for writer in (one, other)]
    found = read(trail, run).steps
    assert sorted(ids) == sorted(step.id for step in found[1:])
    assert [step.number for step in found] == [0, 1, 1, 2, 2]
    with pytest.raises(InvalidArgument, match="before"):
        one.step(at=0.0)
    trail.resolve(ids[0], 1.0)
    assert {step.id: step.outcome for step in read(trail, run).steps}[ids[0]] == 1.0
    one.complete(at=150.0)
    other.step(at=200.0)
    trail.export_jsonl(tmp_path / "x.jsonl", as_of=ALWAYS)
    copy = Trajectories(trail.mem, "copy")
    assert copy.import_jsonl(tmp_path / "x.jsonl") == 1
    assert texts(copy.list(as_of=ALWAYS)) == texts(trail.list(as_of=ALWAYS)), "what was taken can be moved"


def test_a_forked_process_resumes_a_run_for_itself(trail: Trajectories) -> None:
    run = trail.start("a")
    run.step(observation="parent")
    child = os.fork()
    if child == 0:  # pragma: no cover - measured where it ends
        code = 1
        try:
            try:
                run.step(observation="child")
            except InvalidArgument:
                trail.resume(run).step(observation="child")
                trail.mem.flush()
                code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    run.step(observation="parent again")
    assert sorted(step.observation for step in read(trail, run).steps) == ["child", "parent", "parent again"]


WRITER = """
    import sys
    import tiermem

    mem = tiermem.open("store", clock=tiermem.SimulatedClock(0.0))
    trail = tiermem.Trajectories(mem)
    while True:
        run = trail.start("a")
        print("start", run.id, flush=True)
        for number in range(50):
            step = run.step(observation=number, predicted=1.0)
            print("step", step, flush=True)
            if number % 3 == 0:
                trail.resolve(step, float(number))
                print("resolve", step, flush=True)
        run.complete()
        print("end", run.id, flush=True)
"""


@pytest.mark.parametrize("lines", [1, 40, 400])
def test_what_was_acknowledged_survives_kill_9(tmp_path: Path, lines: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER)], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        told = [child.stdout.readline().split() for _ in range(lines)]
        child.send_signal(signal.SIGKILL)
        # What was printed until the kill was acknowledged too; a torn last line was not.
        told += [line.split() for line in child.stdout if line.endswith("\n")]
    with tiermem.open(tmp_path / "store", clock=SimulatedClock(0.0)) as mem:
        trail = Trajectories(mem)
        found = {one.id: one for one in trail.list()}
        steps = {step.id: step for one in found.values() for step in one.steps}
        for kind, name in told:
            if kind == "start":
                assert name in found
            elif kind == "step":
                assert steps[name].observation == steps[name].number
            elif kind == "resolve":
                assert steps[name].outcome == float(steps[name].number)
            else:
                assert found[name].state == "completed"
        for one in found.values():
            assert [step.number for step in one.steps] == list(range(len(one.steps))), "no step is missing in between"
        last = trail.resume(max(found)) if found[max(found)].state == "running" else trail.start("a")
        assert last.step(observation="again") not in steps
        assert mem.check().ok


def test_another_process_reads_and_resolves(trail: Trajectories, run_python: Any, tmp_path: Path) -> None:
    run = trail.start("a")
    step = run.step(predicted=1.0)
    trail.mem.flush()
    run_python(
        """
        import sys, tiermem
        with tiermem.open("store", clock=tiermem.SimulatedClock(100.0)) as mem:
            trail = tiermem.Trajectories(mem)
            (found,) = trail.list(pending=True)
            trail.resolve(found.steps[0], 2.0)
        """,
        cwd=tmp_path,
    )
    trail.mem.flush()
    assert read(trail, run).steps[0].outcome == 2.0
    assert read(trail, run).steps[0].id == step


def test_a_read_only_store_is_read(trail: Trajectories, tmp_path: Path, clock: SimulatedClock) -> None:
    for _ in range(70):
        trail.start("a").step(predicted=1.0)
    trail.mem.flush()
    with tiermem.open(tmp_path / "store", clock=clock, read_only=True) as mem:
        other = Trajectories(mem)
        assert texts(other.list()) == texts(trail.list())
        with pytest.raises(tiermem.ReadOnlyError):
            other.start("a")
