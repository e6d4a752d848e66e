"""A reasoning bank: what it takes in, what it recalls and why, and what becomes of lessons."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from msgspec.structs import replace

import tiermem
from tests.workers import INLINE, START
from tiermem.reasoning.bank import ReasoningBank
from tiermem.reasoning.distill import Distiller, Judged, Situation, Text
from tiermem.reasoning.inference import Evidence
from tiermem.reasoning.lesson import Lesson
from tiermem.reasoning.posterior import Beta
from tiermem.reasoning.verdict import DirectionHit, SuccessLabel
from tiermem.trajectory.types import StepVerdict

EAST, NORTH, WEST = np.array([[1, 0, 0], [0, 1, 0], [-1, 0, 0]], np.float32)


@pytest.fixture
def mem(tmp_path: Path, clock: tiermem.SimulatedClock) -> Iterator[tiermem.Memory]:
    config = tiermem.Config(cold=INLINE)
    with tiermem.open(tmp_path / "store", config=config, clock=clock, embedder=tiermem.HashEmbedder(3)) as mem:
        yield mem


@pytest.fixture
def trail(mem: tiermem.Memory) -> tiermem.Trajectories:
    return tiermem.Trajectories(mem)


def ended(trail: tiermem.Trajectories, vector: Any, success: bool | None, action: str = "go", agent: str = "a") -> Any:
    run = trail.start(agent, "task")
    run.step(observation=f"seen by {agent}", action=action, vector=vector)
    run.complete(success=success)
    return run


def taught(bank: ReasoningBank, trail: tiermem.Trajectories, *situations: tuple[Any, int, int]) -> list[Lesson]:
    """Learn (vector, successes, failures) and distil; successes first."""
    for vector, good, bad in situations:
        bank.learn([ended(trail, vector, success) for success in [True] * good + [False] * bad])
    return sorted(bank.distil(), key=lambda lesson: lesson.kind, reverse=True)


class Given:
    """A distiller that says what it was told to say."""

    def __init__(self, *situations: Situation) -> None:
        self.situations = list(situations)

    def distil(self, runs: Sequence[Judged]) -> list[Situation]:
        return self.situations


def situation(kind: Any, vector: Any, runs: Sequence[Any], value: float, action: str = "go") -> Situation:
    return Situation(kind, action, vector, tuple(Evidence(run.id, value, 1.0) for run in runs), 0.5, 0.01)


# ------------------------------------------------------------------------------------------------------- what goes in


def test_lessons_come_of_what_was_learned_and_say_so(mem: tiermem.Memory, trail: tiermem.Trajectories) -> None:
    bank = ReasoningBank(mem)
    assert bank.recall(EAST) == []
    good, bad = taught(bank, trail, (EAST, 18, 2), (NORTH, 1, 19))
    assert (good.kind, bad.kind) == ("success", "failure")
    assert (good.success, bad.success) == (Beta(19.0, 3.0), Beta(2.0, 20.0)), "as counted by hand, from Beta(1, 1)"
    assert (good.held, bad.held) == (Beta(19.0, 3.0), Beta(20.0, 2.0))
    assert good.reliability == pytest.approx(Beta(19.0, 3.0).above(good.baseline))
    assert (good.support, good.agents, good.tasks, good.effect) == (20, ("a",), ("task",), None)
    assert good.observation == "seen by a"
    hits = bank.recall(EAST)
    assert [hit.lesson.id for hit in hits] == [good.id, bad.id]
    assert hits[0].similarity == pytest.approx(1.0)
    assert "score" in hits[0].explain()
    assert bank.distil() == [], "nothing new was learned"


def test_a_trajectory_waits_for_its_outcomes_and_counts_once(
    mem: tiermem.Memory, trail: tiermem.Trajectories, clock: tiermem.SimulatedClock
) -> None:
    bank = ReasoningBank(mem, judge=DirectionHit())
    run = trail.start("a")
    step = run.step(predicted=1.0, action="go", vector=EAST)
    assert bank.learn(run) == 0
    run.complete()
    assert bank.learn(run.id) == 0
    assert bank.queued() == [run.id]
    clock.advance(1.0)
    trail.resolve(step, 2.0)
    assert bank.settle() == 1
    assert (bank.queued(), bank.settle(), bank.learn(run)) == ([], 0, 0)
    assert bank.queued(as_of=START) == [run.id]
    clock.advance(1.0)
    # A correction changes the verdict, and not the count.
    trail.resolve(step, -2.0)
    assert bank.learn(trail.get(run)) == 1
    others = [ended(trail, EAST, None) for _ in range(3)]
    assert bank.learn(others) == 3, "they are done with, if nothing could be judged"
    assert bank.distil() == []


def test_a_recorded_verdict_is_taken_where_no_judge_was_given(mem: tiermem.Memory, trail: tiermem.Trajectories) -> None:
    bank = ReasoningBank(mem, distiller=Distiller(support=1, confidence=0.1))
    for _ in range(4):
        run = trail.start("a")
        step = run.step(predicted=1.0, vector=EAST)
        trail.resolve(step, 1.0)
        run.complete(success=False)
        trail.record_verdict(DirectionHit().judge(trail.get(run)))
        bank.learn(run)
    (lesson,) = bank.distil()
    assert lesson.success == Beta(5.0, 1.0)


def test_what_became_of_the_runs_that_used_a_lesson_counts(
    mem: tiermem.Memory, trail: tiermem.Trajectories, clock: tiermem.SimulatedClock
) -> None:
    bank = ReasoningBank(mem)
    good, bad = taught(bank, trail, (EAST, 16, 4), (NORTH, 2, 18))
    for success in (True, True, False):
        run = trail.start("a")
        bank.used(bank.recall(EAST, k=2), run)
        bank.used(good.id, run)
        assert run.id in bank.queued()
        run.step(action="go", vector=EAST)
        run.complete(success=success)
    before = clock.now()
    clock.advance(60.0)
    assert bank.settle() == 3
    after = bank.lesson(good.id)
    assert after is not None
    assert after.held == Beta(1 + 16 + 2, 1 + 4 + 1)
    assert after.success == good.success
    assert after.effect is not None
    assert (after.effect.used.size, after.effect.unused.size) == (3, 20)
    assert after.effect.difference == pytest.approx(2 / 3 - 16 / 20)
    assert (after.confirmed_at, after.version) == (before + 60.0, 1)
    # A run that went well speaks for a warning, too.
    warned = bank.lesson(bad.id)
    assert warned is not None
    assert warned.held == Beta(1 + 18 + 2, 1 + 2 + 1)
    earlier = bank.lesson(good.id, as_of=before)
    assert earlier is not None
    assert earlier.effect is None
    # Distilled again they are evidence, but are not counted twice.
    (again,) = bank.distil()
    assert (again.id, again.support, again.held) == (good.id, 23, after.held)
    assert [one.reason for one in bank.history(good.id)] == ["distilled", "new evidence"]
    assert bank.history(good.id)[0].effect is None
    assert bank.history("nothing") == []


def test_mistakes_are_told_and_change_nothing(
    mem: tiermem.Memory, trail: tiermem.Trajectories, clock: tiermem.SimulatedClock
) -> None:
    bank = ReasoningBank(mem)
    good, _ = taught(bank, trail, (EAST, 20, 0), (NORTH, 0, 20))
    run = ended(trail, EAST, True)
    changes = mem.count("lessons/log")
    clock.advance(10.0)
    for wrong in (
        lambda: bank.learn("no id"),
        lambda: bank.learn(f"{run.id[:-1]}x"),
        lambda: bank.used("nothing", run),
        lambda: bank.used(good, "no id"),
        lambda: bank.used(3, run),  # type: ignore[arg-type]  # the wrong type is what is tried
        lambda: bank.restore(good, 2),
        lambda: bank.restore("nothing", 1),
        lambda: bank.learn(run, as_of=START - 1.0),
        lambda: bank.distil(as_of=START - 1.0),
        lambda: bank.distil(since="now"),  # type: ignore[arg-type]  # the wrong type is what is tried
        lambda: bank.consolidate(as_of=START - 1.0),
        lambda: bank.recall(EAST, k=0),
        lambda: bank.recall(EAST, k=True),
        lambda: bank.recall(EAST[:2]),
        lambda: bank.recall(np.zeros(3)),
        lambda: bank.recall([[1.0, 0.0, 0.0]]),
        lambda: bank.recall([float("nan"), 0.0, 0.0]),
        lambda: bank.recall({"a": 1}),  # type: ignore[arg-type]  # the wrong type is what is tried
        lambda: bank.recall(EAST, where={"kind": {"$like": "x"}}),
        lambda: bank.recall(EAST, as_of=float("inf")),
        lambda: ReasoningBank(mem, name="a//b"),
        lambda: tiermem.Ranking(half_life=0.0),
        lambda: tiermem.Ranking(similarity=-1.0),
        lambda: tiermem.Ranking(diversity=2.0),
        lambda: tiermem.Ranking(pool=0),
        lambda: tiermem.Upkeep(duplicate=0.0),
        lambda: tiermem.Upkeep(weakest=2.0),
        lambda: tiermem.Upkeep(stale_after=0.0),
    ):
        with pytest.raises(tiermem.TiermemError):
            wrong()
    with pytest.raises(tiermem.InvalidArgument, match="learned"):
        ReasoningBank(mem, distiller=Given(situation("success", EAST, [run], 1.0))).distil()
    assert mem.count("lessons/log") == changes
    with pytest.raises(tiermem.DimensionMismatch):
        ReasoningBank(mem, distiller=Given(situation("success", EAST[:2], [], 1.0))).distil()


# -------------------------------------------------------------------------------------------------------- what comes up


def test_a_score_is_the_product_of_its_parts_to_their_weights(
    mem: tiermem.Memory, trail: tiermem.Trajectories, clock: tiermem.SimulatedClock
) -> None:
    ranking = tiermem.Ranking(similarity=2.0, recency=0.5, reliability=3.0, half_life=100.0)
    bank = ReasoningBank(mem, ranking=ranking)
    (old, _) = taught(bank, trail, (EAST, 15, 5), (NORTH, 0, 20))
    clock.advance(250.0)
    query = np.array([0.8, 0.6, 0.0])
    hit = next(hit for hit in bank.recall(query) if hit.lesson.id == old.id)
    assert hit.similarity == pytest.approx(0.8, abs=1e-6)
    assert hit.recency == pytest.approx(2 ** (-250.0 / 100.0))
    assert hit.reliability == old.reliability
    assert hit.score == pytest.approx(0.8**2 * hit.recency**0.5 * hit.reliability**3, rel=1e-5)
    # Far beyond what a product of floats can tell apart, the order is still that of the logarithms.
    clock.advance(1e7)
    assert [hit.lesson.id for hit in bank.recall(EAST)] == [old.id, *[one.lesson.id for one in bank.recall(NORTH)[:1]]]


def test_a_weight_of_zero_leaves_a_part_out(mem: tiermem.Memory, trail: tiermem.Trajectories) -> None:
    ranking = tiermem.Ranking(similarity=0.0, recency=0.0, reliability=0.0)
    bank = ReasoningBank(mem, ranking=ranking)
    taught(bank, trail, (EAST, 20, 0), (NORTH, 0, 20))
    assert [hit.score for hit in bank.recall(WEST)] == [1.0, 1.0]


def test_relevance_is_marginal(mem: tiermem.Memory, trail: tiermem.Trajectories) -> None:
    runs = [ended(trail, EAST, True) for _ in range(9)]
    near = np.array([0.995, 0.0999, 0.0], np.float32)
    other = np.array([0.7, -0.7141, 0.0], np.float32)
    distiller = Given(*(situation("success", one, runs, 1.0) for one in (EAST, near, other)))
    orders = {}
    for diversity in (1.0, 0.5):
        bank = ReasoningBank(
            mem, distiller=distiller, name=f"b{diversity}", ranking=tiermem.Ranking(diversity=diversity)
        )
        bank.learn(runs)
        first, second, third = bank.distil()
        places = {first.id: "first", second.id: "near", third.id: "other"}
        hits = bank.recall(EAST, k=3)
        orders[diversity] = [places[hit.lesson.id] for hit in hits]
        for place, hit in enumerate(hits):
            before = [float(hit.lesson.vector @ one.lesson.vector) for one in hits[:place]]
            assert hit.redundancy == pytest.approx(max(before, default=0.0), abs=1e-6)
            assert hit.relevance == pytest.approx(diversity * hit.score - (1 - diversity) * hit.redundancy, abs=1e-6)
    assert orders == {1.0: ["first", "near", "other"], 0.5: ["first", "other", "near"]}


def test_recall_filters_and_takes_text(mem: tiermem.Memory, trail: tiermem.Trajectories) -> None:
    bank = ReasoningBank(mem)
    taught(bank, trail, (EAST, 20, 0), (NORTH, 0, 20))
    kinds = [hit.lesson.kind for hit in bank.recall(EAST, where={"kind": "failure"})]
    assert kinds == ["failure"]
    assert bank.recall(EAST, where={"tasks": {"$contains": "another"}}) == []
    assert len(bank.recall(EAST, k=1)) == 1
    assert [one.kind for one in bank.lessons(where={"support": {"$gte": 20}, "kind": "success"})] == ["success"]
    embedder = mem.embedder
    assert embedder is not None
    by_text, by_vector = bank.recall("a word"), bank.recall(embedder.embed(["a word"])[0])
    assert [hit.score for hit in by_text] == [hit.score for hit in by_vector]


def test_a_text_needs_an_embedder(tmp_path: Path) -> None:
    with tiermem.open(tmp_path / "plain") as mem, pytest.raises(tiermem.InvalidArgument, match="embedder"):
        ReasoningBank(mem).recall("a word")


def test_the_best_of_many_are_those_of_a_loop_over_all(mem: tiermem.Memory, trail: tiermem.Trajectories) -> None:
    rng = np.random.default_rng(5)
    runs = [ended(trail, EAST, True) for _ in range(12)]
    vectors = rng.standard_normal((400, 3)).astype(np.float32)
    distiller = Given(
        *(situation("success", one, runs[: 1 + place % 12], 1.0, f"{place}") for place, one in enumerate(vectors))
    )
    bank = ReasoningBank(mem, distiller=distiller, ranking=tiermem.Ranking(diversity=1.0))
    bank.learn(runs)
    bank.distil()
    for query in rng.standard_normal((20, 3)):
        unit = query / np.linalg.norm(query)
        scores = {one.id: max(0.0, float(one.vector @ unit)) * one.reliability for one in bank.lessons()}
        best = sorted(scores.values(), reverse=True)[:5]
        assert [hit.score for hit in bank.recall(query)] == pytest.approx(best, abs=1e-6)
        odd = [score for id_, score in scores.items() if int(id_.split("-")[1]) % 2]
        hits = bank.recall(query, where={"id": {"$in": [id_ for id_ in scores if int(id_.split("-")[1]) % 2]}})
        assert [hit.score for hit in hits] == pytest.approx(sorted(odd, reverse=True)[:5], abs=1e-6)


# --------------------------------------------------------------------------------------------------- what becomes of it


def test_duplicates_are_merged_with_their_evidence_and_uses_and_can_be_parted_again(
    mem: tiermem.Memory, trail: tiermem.Trajectories
) -> None:
    runs = [ended(trail, EAST, True) for _ in range(12)]
    near = np.array([0.99, 0.14, 0.0], np.float32)
    distiller = Given(situation("success", EAST, runs[:8], 1.0), situation("success", near, runs[6:], 1.0))
    bank = ReasoningBank(mem, distiller=distiller)
    bank.learn(runs)
    large, small = bank.distil()
    used = ended(trail, EAST, True)
    bank.used(small, used)
    bank.settle()
    kept, gone = bank.consolidate()
    assert (kept.id, kept.support, gone.id, gone.status, gone.merged_into) == (
        large.id,
        12,
        small.id,
        "merged",
        large.id,
    )
    assert [one.trajectory for one in kept.uses] == [used.id]
    assert kept.held == Beta(14.0, 1.0)
    assert 0.99 < float(kept.vector @ EAST) < 1.0
    assert [hit.lesson.id for hit in bank.recall(EAST)] == [large.id]
    assert bank.consolidate() == []
    assert bank.distil() == [], "what was merged is not found anew"
    bank.used(small, ended(trail, EAST, False))
    bank.settle()
    assert bank.recall(EAST)[0].lesson.held == Beta(14.0, 2.0), "who holds the old id means the new lesson"
    bank.restore(small, 1)
    parted = bank.restore(large, 1)
    assert (parted.support, parted.version, parted.reason) == (8, 3, "version 1 restored")
    assert {hit.lesson.id for hit in bank.recall(EAST)} == {large.id, small.id}
    assert [one.status for one in bank.history(small.id)] == ["live", "merged", "live"]


def test_a_cosine_of_one_is_reached_by_what_is_the_same(mem: tiermem.Memory, trail: tiermem.Trajectories) -> None:
    # Rounded to float32, some of these are shorter than 1.
    for place, vector in enumerate(np.random.default_rng(1).standard_normal((8, 3))):
        bank = ReasoningBank(
            mem,
            distiller=Distiller(similarity=1.0, baseline=0.5),
            upkeep=tiermem.Upkeep(duplicate=1.0),
            name=f"bank {place}",
        )
        (lesson,) = taught(bank, trail, (vector, 20, 0))
        (again,) = taught(bank, trail, (vector, 20, 0))
        assert (again.id, again.support) == (lesson.id, 40)


def test_a_use_counts_for_all_that_took_a_lesson_on(mem: tiermem.Memory, trail: tiermem.Trajectories) -> None:
    runs = [ended(trail, EAST, True) for _ in range(60)]
    angles = ((0.0, 0, 10), (0.01, 10, 22), (0.5, 22, 60))
    shapes = [
        situation("success", np.array([np.cos(angle), np.sin(angle), 0.0], np.float32), runs[start:end], 0.6)
        for angle, start, end in angles
    ]
    bank = ReasoningBank(mem, distiller=Given(*shapes), upkeep=tiermem.Upkeep(duplicate=0.999, weakest=0.0))
    bank.learn(runs)
    first, second, third = bank.distil()
    assert [one.merged_into for one in bank.consolidate()] == [second.id, None]
    coarse = ReasoningBank(mem, upkeep=tiermem.Upkeep(duplicate=0.8, weakest=0.0))
    assert [one.merged_into for one in coarse.consolidate()] == [third.id, None]
    # Parted from the third, which keeps what it took on, the second has the first one's uses, and so has the third.
    bank.restore(second, 2)
    assert len(bank.recall(EAST)) == 2
    bank.used(first, ended(trail, EAST, False))
    bank.settle()
    assert [len(hit.lesson.uses) for hit in bank.recall(EAST)] == [1, 1]
    assert [hit[1:] for hit in bank.recall(EAST)] == [hit[1:] for hit in ReasoningBank(mem).recall(EAST)]


def test_the_words_of_a_lesson_that_was_taken_on_may_be_said_again(
    mem: tiermem.Memory, trail: tiermem.Trajectories
) -> None:
    thin, late = "Buy when the queue is thin and the spread is wide", "Sell into strength late in the day"
    runs = [ended(trail, EAST, True) for _ in range(20)]
    given_ = Given(situation("success", EAST, runs[:12], 1.0), situation("success", [0.98, 0.2, 0.0], runs[12:], 1.0))
    bank = ReasoningBank(mem, distiller=given_, write=lambda found: late if len(found.evidence) == 12 else thin)
    bank.learn(runs)
    assert [one.content for one in bank.distil()] == [late, thin]
    kept, gone = bank.consolidate()
    assert (kept.content, gone.merged_into) == (thin, kept.id)
    assert kept.reason == f"merged with {gone.id}"


def test_contradictions_are_linked_and_both_shown(mem: tiermem.Memory, trail: tiermem.Trajectories) -> None:
    runs = [ended(trail, EAST, True) for _ in range(20)]
    distiller = Given(situation("success", EAST, runs[:10], 1.0), situation("failure", EAST, runs[10:], 0.0))
    bank = ReasoningBank(mem, distiller=distiller)
    bank.learn(runs)
    good, bad = bank.distil()
    one, other = bank.consolidate()
    assert (one.contradicts, other.contradicts) == ((bad.id,), (good.id,))
    (hit,) = bank.recall(EAST, k=1)
    assert [(shown.id, shown.support) for shown in hit.contradictions] == [
        ({good.id: bad.id, bad.id: good.id}[hit.lesson.id], 10)
    ]
    assert "contradicted by" in hit.explain()
    assert bank.consolidate() == []


def test_history_does_not_know_what_was_corrected_later(
    mem: tiermem.Memory, trail: tiermem.Trajectories, clock: tiermem.SimulatedClock
) -> None:
    runs = [ended(trail, EAST, True) for _ in range(2)]
    user = trail.start("a")
    step = user.step(predicted=1.0)
    trail.resolve(step, 1.0)
    user.complete()
    given_ = Given(situation("success", EAST, runs[:1], 1.0))
    bank = ReasoningBank(mem, distiller=given_)
    bank.learn(runs)
    (lesson,) = bank.distil()
    bank.used(lesson, user)
    judging = ReasoningBank(mem, judge=DirectionHit(), distiller=given_)
    judging.learn(user)
    given_.situations = [situation("success", EAST, runs, 1.0)]
    bank.distil()
    before = bank.history(lesson.id)
    assert [[use.value for use in one.uses] for one in before] == [[], [1.0]]
    clock.advance(1.0)
    trail.resolve(step, -1.0)
    judging.learn(user)
    assert [use.value for one in bank.lessons() for use in one.uses] == [0.0]
    after = bank.history(lesson.id)
    assert [(one.uses, one.held, one.effect) for one in after] == [(one.uses, one.held, one.effect) for one in before]


def test_weak_and_stale_lessons_are_retired_and_history_says_why(
    mem: tiermem.Memory, trail: tiermem.Trajectories, clock: tiermem.SimulatedClock
) -> None:
    bank = ReasoningBank(mem, upkeep=tiermem.Upkeep(stale_after=1000.0))
    good, bad = taught(bank, trail, (EAST, 20, 0), (NORTH, 0, 20))
    learned = clock.now()
    clock.advance(500.0)
    # What was good is bad now.
    taught(bank, trail, (EAST, 0, 40), (WEST, 40, 0))
    (weak,) = bank.consolidate()
    assert (weak.id, weak.status) == (good.id, "retired")
    assert weak.reason.startswith("weak")
    clock.advance(501.0)
    (stale,) = bank.consolidate()
    assert (stale.id, stale.reason) == (bad.id, "stale: unconfirmed for 1001 s")
    assert [hit.lesson.id for hit in bank.recall(EAST, as_of=learned)] == [good.id, bad.id]
    assert not {good.id, bad.id} & {hit.lesson.id for hit in bank.recall(EAST)}
    assert {one.id for one in bank.lessons(every=True) if one.status == "retired"} == {good.id, bad.id}
    assert bank.restore(bad, 1).confirmed_at == clock.now()
    assert bank.consolidate() == []
    assert bank.recall(NORTH)[0].lesson.id == bad.id


def test_a_retired_lesson_lives_again_with_new_evidence_only(
    mem: tiermem.Memory, trail: tiermem.Trajectories, clock: tiermem.SimulatedClock
) -> None:
    bank = ReasoningBank(mem, upkeep=tiermem.Upkeep(stale_after=10.0))
    taught(bank, trail, (EAST, 20, 0), (NORTH, 0, 20))
    clock.advance(20.0)
    assert len(bank.consolidate()) == 2
    assert bank.distil() == []
    (again,) = taught(bank, trail, (EAST, 5, 0))
    assert (again.reason, again.status, again.support, again.version) == ("found again", "live", 25, 3)


def test_words_may_come_from_a_callable_but_not_be_those_that_were_recalled(
    mem: tiermem.Memory, trail: tiermem.Trajectories
) -> None:
    said: list[Any] = ["Go east\nwhile the sun is low and nobody looks."]

    def write(found: Situation) -> Any:
        return said[-1]

    bank = ReasoningBank(mem, write=write)
    (good,) = taught(bank, trail, (EAST, 20, 0))
    assert (good.title, good.content) == ("Go east", said[0])
    said.append("While the sun is low and nobody looks: go EAST, while the sun is low and nobody looks!")
    (bad,) = (one for one in taught(bank, trail, (NORTH, 0, 30)) if one.id != good.id)
    assert bad.content.startswith("Here 'go' goes worse than usual")
    assert bad.reason == f"distilled; the words offered repeat {good.id}"
    said.append(Text("North", "a warning", "It is cold up there."))
    (later,) = taught(bank, trail, (NORTH, 0, 3))
    assert (later.id, later.title, later.description, later.content) == (bad.id, *said[-1])
    said.append("  ")
    assert taught(bank, trail, (NORTH, 0, 3))[0].content.startswith("Here 'go'")
    said.append(3)
    with pytest.raises(tiermem.InvalidArgument, match="Text or a str"):
        taught(bank, trail, (NORTH, 0, 3))


def test_a_lesson_that_was_used_is_not_stored_again_as_new(mem: tiermem.Memory, trail: tiermem.Trajectories) -> None:
    bank = ReasoningBank(mem)
    good, _ = taught(bank, trail, (EAST, 20, 0), (NORTH, 0, 20))
    for _ in range(20):
        (hit,) = bank.recall(EAST, k=1)
        run = trail.start("a")
        bank.used(hit, run)
        run.step(observation=hit.lesson.content, action="go", vector=EAST)
        run.complete(success=True)
    assert [one.id for one in bank.distil()] == [good.id]
    assert len(list(bank.lessons())) == 2


def test_a_later_batch_is_distilled_by_itself(
    mem: tiermem.Memory, trail: tiermem.Trajectories, clock: tiermem.SimulatedClock
) -> None:
    bank = ReasoningBank(mem)
    bank.learn([ended(trail, EAST, True) for _ in range(20)])
    clock.advance(10.0)
    bank.learn([ended(trail, NORTH, False) for _ in range(20)])
    (late,) = bank.distil(since=clock.now())
    assert (late.kind, late.support) == ("failure", 20)
    assert bank.distil(since=clock.now() + 1.0) == []


# ------------------------------------------------------------------------------------------------------ time and others


def test_the_future_shuffled_changes_nothing_recalled_before_it(tmp_path: Path) -> None:
    pictures = []
    for seed in range(3):
        clock = tiermem.SimulatedClock(START)
        with tiermem.open(tmp_path / f"{seed}", config=tiermem.Config(cold=INLINE), clock=clock) as mem:
            trail, bank = tiermem.Trajectories(mem), ReasoningBank(mem)
            taught(bank, trail, (EAST, 20, 0), (NORTH, 0, 20))
            then = clock.now()
            clock.advance(100.0)
            future = [(EAST, True)] * 30 + [(NORTH, False)] * 30
            for place in np.random.default_rng(seed).permutation(len(future)):
                vector, success = future[place]
                bank.learn(ended(trail, vector, success))
                clock.advance(1.0)
            bank.distil()
            bank.consolidate()
            hits = bank.recall(EAST, as_of=then)
            pictures.append([(hit[1:], hit.lesson.title, hit.lesson.success, hit.lesson.content) for hit in hits])
            assert bank.recall(EAST)[0].lesson.success != hits[0].lesson.success
    assert pictures[0] == pictures[1] == pictures[2]


def test_as_of_a_time_ahead_what_was_told_is_known_from_then_on(
    mem: tiermem.Memory, trail: tiermem.Trajectories, clock: tiermem.SimulatedClock
) -> None:
    bank = ReasoningBank(mem)
    bank.learn([ended(trail, EAST, True) for _ in range(20)], as_of=START + 10.0)
    assert [one.known_at for one in bank.distil(as_of=START + 20.0)] == [START + 20.0]
    assert bank.recall(EAST) == []
    clock.advance(20.0)
    assert len(bank.recall(EAST)) == 1


def test_two_banks_on_a_store_agree(mem: tiermem.Memory, trail: tiermem.Trajectories, tmp_path: Path) -> None:
    one, other = ReasoningBank(mem), ReasoningBank(mem)
    runs = [ended(trail, EAST, True) for _ in range(20)]
    for place, run in enumerate(runs):
        (one, other)[place % 2].learn(run)
    assert mem.count("lessons/log") == 20
    (lesson,) = other.distil()
    assert [hit.lesson.id for hit in one.recall(EAST)] == [lesson.id]
    assert one.distil() == []
    apart = ReasoningBank(mem, name="elsewhere")
    assert apart.recall(EAST) == []


class Meanwhile(Distiller):
    """A distiller during which something happens."""

    calls = 0
    happens: Callable[[], object] = staticmethod(lambda: None)

    def distil(self, runs: Sequence[Judged]) -> list[Situation]:
        type(self).calls += 1
        type(self).happens()
        return super().distil(runs)


def test_what_takes_long_to_find_is_known_from_when_it_was_found(
    mem: tiermem.Memory, trail: tiermem.Trajectories, clock: tiermem.SimulatedClock
) -> None:
    class Slow(Meanwhile):
        happens = staticmethod(lambda: clock.advance(10.0))

    bank = ReasoningBank(mem, distiller=Slow())
    bank.learn([ended(trail, EAST, True) for _ in range(20)])
    (lesson,) = bank.distil()
    assert (lesson.created_at, lesson.known_at) == (START + 10.0, START + 10.0)
    assert bank.recall(EAST, as_of=START + 9.0) == [], "at that time there was no lesson yet"
    assert len(bank.recall(EAST, as_of=START + 10.0)) == 1


def test_whoever_takes_long_comes_to_an_end_beside_those_who_are_quick(
    mem: tiermem.Memory, trail: tiermem.Trajectories
) -> None:
    quick = ReasoningBank(mem)

    def learn() -> None:
        # An end to the test, if there is none to distilling.
        if Busy.calls < 5:
            quick.learn(ended(trail, EAST, True))

    class Busy(Meanwhile):
        happens = staticmethod(learn)

    bank = ReasoningBank(mem, distiller=Busy())
    quick.learn([ended(trail, EAST, True) for _ in range(20)])
    (lesson,) = bank.distil()
    assert (Busy.calls, lesson.support) == (1, 20)
    assert quick.distil()[0].support == 21


def test_lessons_found_meanwhile_are_not_found_twice(mem: tiermem.Memory, trail: tiermem.Trajectories) -> None:
    other = ReasoningBank(mem)

    class Beaten(Meanwhile):
        happens = staticmethod(other.distil)

    bank = ReasoningBank(mem, distiller=Beaten())
    other.learn([ended(trail, EAST, True) for _ in range(20)])
    assert bank.distil() == []
    assert (Beaten.calls, len(list(bank.lessons()))) == (2, 1)


def test_a_verdict_on_what_was_corrected_meanwhile_is_given_again(
    mem: tiermem.Memory, trail: tiermem.Trajectories, clock: tiermem.SimulatedClock
) -> None:
    other = ReasoningBank(mem, judge=DirectionHit())
    run = trail.start("a")
    step = run.step(predicted=1.0, action="go", vector=EAST)
    trail.resolve(step, 1.0)
    run.complete()
    seen: list[Any] = []

    class Thoughtful(DirectionHit):
        def judge(self, trajectory: tiermem.Trajectory) -> Any:
            seen.append(trajectory.steps[0].outcome)
            if len(seen) == 1:
                clock.advance(1.0)
                trail.resolve(step, -1.0)
                other.learn(run)
            return super().judge(trajectory)

    # The other's verdict, of what was known later, is not replaced by one of what was known before.
    assert ReasoningBank(mem, judge=Thoughtful()).learn(run) == 0
    assert seen == [1.0, -1.0]


def test_threads_that_tell_and_ask_do_not_disturb_each_other(mem: tiermem.Memory, trail: tiermem.Trajectories) -> None:
    bank = ReasoningBank(mem)
    good, _ = taught(bank, trail, (EAST, 20, 0), (NORTH, 0, 20))

    def tell(_: int) -> int:
        run = ended(trail, EAST, True)
        bank.used(good, run)
        told = bank.learn(run)
        bank.distil()
        return told

    def ask(turn: int) -> float:
        (hit,) = bank.recall(EAST, k=1, as_of=None if turn % 2 else START)
        return hit.lesson.held.a - hit.lesson.support

    with ThreadPoolExecutor(4) as pool:
        told, asked = pool.map(tell, range(12)), list(pool.map(ask, range(100)))
        # It is judged by learning, or by the distilling of another thread, which comes first.
        assert sum(told) <= 12
    assert all(-12.0 <= one <= 13.0 for one in asked)
    lesson = bank.lesson(good.id)
    assert lesson is not None
    assert (len(lesson.uses), lesson.support, lesson.held) == (12, 32, Beta(33.0, 1.0))


def test_other_processes_learn_at_the_same_time_and_nothing_is_lost(
    tmp_path: Path, run_python: Callable[..., Any]
) -> None:
    with tiermem.open(tmp_path / "store") as mem:
        trail, bank = tiermem.Trajectories(mem), ReasoningBank(mem)
        mem.put("go", "x", 1)
        code = """
            import subprocess, sys
            child = '''
            import sys, tiermem
            with tiermem.open("store") as mem:
                trail, bank = tiermem.Trajectories(mem), tiermem.ReasoningBank(mem)
                for place in range(10):
                    run = trail.start(sys.argv[1])
                    run.step(action="go", vector=[1.0, 0.0, 0.0])
                    run.complete(success=True)
                    bank.learn(run)
            '''
            import textwrap
            children = [subprocess.Popen([sys.executable, "-c", textwrap.dedent(child), name]) for name in "ab"]
            assert [child.wait() for child in children] == [0, 0]
        """
        run_python(code)
        mem.flush()
        assert mem.count("lessons/log") == 20
        (lesson,) = bank.distil()
        assert (lesson.support, lesson.agents) == (20, ("a", "b"))
        assert trail.get(lesson.evidence[0].trajectory) is not None


def test_a_store_that_is_read_only_answers(tmp_path: Path) -> None:
    clock = tiermem.SimulatedClock(START)
    with tiermem.open(tmp_path / "store", clock=clock) as mem:
        taught(ReasoningBank(mem), tiermem.Trajectories(mem), (EAST, 20, 0), (NORTH, 0, 20))
    with tiermem.open(tmp_path / "store", clock=clock, read_only=True) as mem:
        bank = ReasoningBank(mem)
        assert [hit.lesson.kind for hit in bank.recall(EAST)] == ["success", "failure"]
        with pytest.raises(tiermem.ReadOnlyError):
            bank.restore(bank.recall(EAST)[0], 1)
        assert ReasoningBank(mem, name="nothing").recall(EAST) == []


def test_a_judge_that_says_what_is_no_verdict_on_the_run_is_refused(
    mem: tiermem.Memory, trail: tiermem.Trajectories
) -> None:
    run, other = ended(trail, EAST, True), ended(trail, EAST, True)
    read = trail.get(run)
    assert read is not None
    right = SuccessLabel().judge(read)

    class Says(NamedTuple):
        verdict: Any

        def judge(self, trajectory: tiermem.Trajectory) -> Any:
            return self.verdict

    missing = StepVerdict(f"{run.id}/00000009", "correct", 0.0)
    for wrong in (
        None,
        replace(right, label="good"),
        replace(right, trajectory=other.id),
        replace(right, steps=(missing,)),
    ):
        with pytest.raises(tiermem.InvalidArgument, match="verdict"):
            ReasoningBank(mem, judge=Says(wrong)).learn(run)
    assert mem.count("lessons/log") == 0


def test_a_run_that_has_grown_since_it_was_judged_is_to_be_learned_again(
    mem: tiermem.Memory, trail: tiermem.Trajectories
) -> None:
    bank = ReasoningBank(mem)
    bank.learn([ended(trail, EAST, True) for _ in range(20)])
    run = trail.start("a")
    other = trail.resume(run)
    run.step(vector=EAST, action="go")
    run.complete(success=True)
    bank.learn(run)
    # Against the rules: whoever wrote it before another resumed it must not go on.
    other.step(vector=EAST, action="go")
    with pytest.raises(tiermem.InvalidArgument, match=f"{run.id} has grown"):
        bank.distil()
    bank.learn(run)
    assert [lesson.support for lesson in bank.distil()] == [21]


def test_a_version_that_is_gone_is_told(mem: tiermem.Memory, trail: tiermem.Trajectories) -> None:
    taught(ReasoningBank(mem), trail, (EAST, 20, 0))
    mem.delete_many("lessons/lessons", prefix="")
    with pytest.raises(tiermem.CorruptionError, match="version 1"):
        ReasoningBank(mem).recall(EAST)


@pytest.mark.parametrize("entry", [1, {"op": "learn"}, {"op": "nothing", "known_at": 1.0}])
def test_an_entry_that_is_none_is_told(mem: tiermem.Memory, entry: Any) -> None:
    mem.put("lessons/log", "000000000000", entry)
    with pytest.raises(tiermem.TiermemError, match="Entry"):
        ReasoningBank(mem).recall(EAST)
