"""Verdicts: what each judge says, what changes no verdict, and how sure one is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiermem
from tiermem import InvalidArgument, SimulatedClock, Step, Trajectories, Trajectory
from tiermem.reasoning.posterior import Beta, wilson
from tiermem.reasoning.verdict import (
    Ask,
    Bands,
    DirectionHit,
    Judge,
    RelativeError,
    Return,
    SuccessLabel,
    Threshold,
    question,
)
from tiermem.trajectory.types import LABELS

ID = "c059000000000000-660ce28229d6e0549912c36"
PREDICTION_JUDGES: tuple[Judge, ...] = (RelativeError(), RelativeError(scale=0.5), Threshold(0.5), DirectionHit())
JUDGES: tuple[Judge, ...] = (*PREDICTION_JUDGES, Return(), Return(target=1.0, very_wrong=-1.0), SuccessLabel())


def step(number: int, predicted: Any = None, outcome: Any = None, reward: float | None = None) -> Step:
    """A step at its number, resolved half a second later if it has an outcome."""
    resolved_at = None if outcome is None else number + 0.5
    return Step(
        f"{ID}/{number:08d}", ID, number, float(number), None, None, predicted, reward, None, outcome, resolved_at
    )


def of(*pairs: tuple[Any, Any], **fields: Any) -> Trajectory:
    """A trajectory of steps with these predictions and outcomes."""
    steps = tuple(step(number, *pair) for number, pair in enumerate(pairs))
    return Trajectory(ID, "a", "t", {}, 0.0, steps=steps, **fields)


def paid(*rewards: float | None) -> Trajectory:
    steps = tuple(step(number, reward=reward) for number, reward in enumerate(rewards))
    return Trajectory(ID, "a", "t", {}, 0.0, steps=steps)


# ------------------------------------------------------------------------------------------------------------- judges


@pytest.mark.parametrize(
    ("pairs", "label", "error"),
    [
        ([(100.0, 100.0)], "correct", 0.0),
        ([(104.0, 100.0)], "correct", 0.04),
        ([(106.0, 100.0), (94.0, 100.0)], "incorrect", 0.06),
        ([(125.0, 100.0)], "very_wrong", 0.25),
        ([(-100.0, 100.0)], "very_wrong", 2.0),
        ([(0.0, 0.0)], "correct", 0.0),
        # With nothing else to go by, an outcome of 0 is measured against what was predicted.
        ([(0.1, 0.0)], "very_wrong", 1.0),
        # Beside outcomes of about 10, one of 0 counts as a tenth of that.
        ([(10.0, 10.0), (10.0, 10.0), (0.1, 0.0)], "correct", 0.1 / 3),
        ([(10.0, 8.0), (10.0, 12.0), (0.5, 0.0)], "very_wrong", (2 / 8 + 2 / 12 + 0.5) / 3),
        ([(10, 10), (np.float64(11.0), 10.0)], "correct", 0.05),
        ([(None, 1.0), (1.0, None), (None, None)], "insufficient", None),
        ([], "insufficient", None),
    ],
)
def test_relative_error(pairs: list[tuple[Any, Any]], label: str, error: float | None) -> None:
    verdict = RelativeError().judge(of(*pairs))
    assert verdict.label == label
    assert verdict.error == (None if error is None else pytest.approx(error, rel=1e-12))
    assert verdict.judge == "relative_error"
    assert verdict.success == {"correct": True, "insufficient": None}.get(label, False)


def test_a_scale_of_one_s_own() -> None:
    pairs = [(0.1, 0.0), (2.0, 1.0)]
    assert RelativeError(scale=10.0).judge(of(*pairs)).error == pytest.approx((0.1 / 10 + 1 / 10) / 2)
    assert RelativeError(scale=0.1).judge(of(*pairs)).error == pytest.approx((0.1 / 0.1 + 1 / 1) / 2)


def test_bands() -> None:
    assert [Bands().label(error) for error in (0.0, 0.05, 0.0500001, 0.2499, 0.25, 9.0)] == [
        *["correct"] * 2,
        *["incorrect"] * 2,
        *["very_wrong"] * 2,
    ]
    wide = RelativeError(Bands(0.5, 0.9, least=2))
    assert wide.judge(of((1.4, 1.0), (1.0, 1.0))).label == "correct"
    few = wide.judge(of((1.4, 1.0), (1.0, None)))
    assert (few.label, few.judged, few.confidence, few.success) == ("insufficient", 1, 0.0, None)
    assert few.error == pytest.approx(0.4), "what little was measured is told"


def test_each_step_is_told_of() -> None:
    verdict = RelativeError().judge(of((1.0, 1.0), (None, 1.0), (1.1, 1.0), (2.0, 1.0), (5.0, None)))
    assert [(one.step[-1], one.label) for one in verdict.steps] == [
        ("0", "correct"),
        ("2", "incorrect"),
        ("3", "very_wrong"),
    ]
    assert (verdict.judged, verdict.hits, verdict.trajectory) == (3, 1, ID)
    assert verdict.known_at == 3.5, "when the newest outcome it looked at was known"


def test_threshold() -> None:
    assert Threshold(0.5).judge(of((1.0, 1.5))).label == "correct"
    assert Threshold(0.5).judge(of((1.0, 1.6))).label == "incorrect"
    assert Threshold(0.5).judge(of((1.0, 3.5))).label == "very_wrong"
    assert Threshold(0.5, very_wrong=0.6).judge(of((1.0, 1.6))).label == "very_wrong"
    assert Threshold(0.5, least=2).judge(of((1.0, 1.0))).label == "insufficient"


def test_direction_hit() -> None:
    judge = DirectionHit()
    assert judge.judge(of((0.1, 5.0), (-3.0, -0.1), (0.0, 0.0))).error == 0.0
    assert judge.judge(of((0.1, -5.0), (0.0, 0.1), (1.0, 1.0))).error == pytest.approx(2 / 3)
    assert [judge.judge(of(*[(1.0, 1.0)] * hits, *[(1.0, -1.0)] * (10 - hits))).label for hits in (6, 5, 4)] == [
        "correct",
        "incorrect",
        "very_wrong",
    ]
    assert DirectionHit(flat=0.5).judge(of((0.4, -0.4))).error == 0.0
    # From a price, both went down: 101 was predicted from 102, and 100 came.
    assert DirectionHit(reference=lambda one: 102.0 - one.number).judge(of((101.0, 100.0))).error == 0.0
    assert DirectionHit().judge(of((101.0, 100.0))).error == 0.0
    assert DirectionHit(reference=lambda one: 100.5).judge(of((101.0, 100.0))).error == 1.0


def test_return() -> None:
    assert Return().judge(paid(1.0, -0.5, None, 0.0)).label == "correct"
    verdict = Return(target=1.0).judge(paid(1.0, -0.5))
    assert (verdict.label, verdict.error, verdict.judged, verdict.hits) == ("incorrect", 0.5, 2, 1)
    assert Return(very_wrong=-2.0).judge(paid(-1.0, -1.0)).label == "very_wrong"
    assert Return().judge(paid(None, 0.0)).label == "insufficient"
    assert Return().judge(paid(1e16, 1.0, -1e16, -1.0)).error == 0.0, "sums are exactly rounded"


def test_success_label() -> None:
    def said(**fields: Any) -> tuple[str, float]:
        verdict = SuccessLabel().judge(of(**fields))
        return verdict.label, verdict.known_at

    assert said(finished=9.0, state="completed", success=True) == ("correct", 9.0)
    assert said(finished=9.0, state="completed", success=False) == ("incorrect", 9.0)
    assert said(finished=9.0, state="completed") == ("insufficient", 0.0)
    assert said() == ("insufficient", 0.0)


def test_somebody_is_asked() -> None:
    asked: list[str] = []

    def model(text: str) -> str:
        asked.append(text)
        return " **Incorrect**: it bought\ntoo late. "

    run = of((0.5, 1.0), (0.7, None), finished=9.0, state="completed")
    verdict = Ask(model, name="a model").judge(run)
    assert (verdict.label, verdict.judge, verdict.note) == ("incorrect", "a model", "it bought\ntoo late.")
    assert (verdict.judged, verdict.hits, verdict.confidence, verdict.known_at) == (1, 0, 0.75, 9.0)
    assert asked == [question(run)]
    assert '"predicted":0.7,"outcome":"pending"' in asked[0]
    assert all(label in asked[0] for label in LABELS)
    assert Ask(lambda text: "correct").judge(run).note is None
    assert Ask(lambda text: "insufficient, who knows").judge(run).label == "insufficient"
    for answer in ("", "It went well", "correctly", None, 7):
        with pytest.raises(InvalidArgument):
            Ask(lambda text, answer=answer: answer).judge(run)


@pytest.mark.parametrize("judge", PREDICTION_JUDGES)
@pytest.mark.parametrize("pair", [("up", 1.0), (1.0, "up"), (math.nan, 1.0), (1.0, math.inf), (True, 1.0), ([1], 1.0)])
def test_what_is_no_number_is_refused(judge: Judge, pair: tuple[Any, Any]) -> None:
    with pytest.raises(InvalidArgument, match=f"of step {ID}/00000001"):
        judge.judge(of((1.0, 1.0), pair))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Bands(0.25, 0.05),
        lambda: Bands(0.25, 0.25),
        lambda: Bands(-0.1, 0.25),
        lambda: Bands(math.nan, 0.25),
        lambda: Bands(least=0),
        lambda: Bands(least=1.5),
        lambda: RelativeError(scale=0.0),
        lambda: Threshold(0.0),
        lambda: Threshold(1.0, very_wrong=0.5),
        lambda: DirectionHit(flat=-1.0),
        lambda: Return(very_wrong=0.0),
        lambda: Return(target=math.nan),
    ],
)
def test_judges_that_make_no_sense(make: Any) -> None:
    with pytest.raises(InvalidArgument):
        make()


def test_numbers_at_the_ends_of_their_range() -> None:
    huge, tiny = 1.7e308, 5e-324
    assert RelativeError().judge(of((huge, -huge), (huge, -huge))).label == "very_wrong"
    assert RelativeError().judge(of((1.0, 0.0), (tiny, tiny))).label == "very_wrong"
    assert Threshold(1.0).judge(of(*[(huge, 0.0)] * 3)).error == math.inf
    with pytest.raises(InvalidArgument, match="beyond the range"):
        Return().judge(paid(huge, huge))


# ------------------------------------------------------------------------------------------------ what changes nothing

numbers = st.floats(-1e6, 1e6) | st.integers(-5, 5).map(float)
pairs = st.lists(st.tuples(st.none() | numbers, st.none() | numbers, st.none() | numbers), max_size=12)


@given(rows=pairs, judge=st.sampled_from(JUDGES), rng=st.randoms(use_true_random=False), success=st.booleans())
def test_the_order_of_the_steps_changes_no_verdict(rows: Any, judge: Judge, rng: Any, success: bool) -> None:
    steps = [step(number, *row) for number, row in enumerate(rows)]
    run = Trajectory(ID, "a", "t", {}, 0.0, 99.0, "completed", None, success, tuple(steps))
    rng.shuffle(steps)
    assert judge.judge(msgspec.structs.replace(run, steps=tuple(steps))) == judge.judge(run)


@given(rows=pairs, judge=st.sampled_from(PREDICTION_JUDGES), more=st.lists(st.tuples(st.none() | numbers, numbers)))
def test_steps_that_predict_nothing_change_no_verdict(rows: Any, judge: Judge, more: Any) -> None:
    steps = [step(number, *row) for number, row in enumerate(rows)]
    others = [step(100 + number, None, *row) for number, row in enumerate(more)]
    waiting = [step(1000 + number, 1.0, None) for number in range(len(more))]
    verdict = judge.judge(Trajectory(ID, "a", "t", {}, 0.0, steps=tuple(steps)))
    assert judge.judge(Trajectory(ID, "a", "t", {}, 0.0, steps=(*others, *steps, *waiting))) == verdict


@given(rows=pairs)
def test_rewards_alone_are_judged_by_their_sum(rows: Any) -> None:
    steps = [step(number, *row) for number, row in enumerate(rows)]
    silent = [step(number, reward=reward) for number, (_, _, reward) in enumerate(rows)]
    first, second = (
        Return().judge(Trajectory(ID, "a", "t", {}, 0.0, steps=tuple(chosen))) for chosen in (steps, silent)
    )
    assert first == second
    if first.label != "insufficient":
        total = sum(Fraction(reward) for _, _, reward in rows if reward is not None)
        assert (first.label == "correct") == (total >= 0)


@pytest.fixture(scope="module")
def trail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trajectories]:
    with tiermem.open(tmp_path_factory.mktemp("verdicts") / "store", clock=SimulatedClock(0.0)) as mem:
        yield Trajectories(mem)


@given(order=st.permutations(range(6)), wrong=st.sets(st.integers(0, 5)))
def test_a_prediction_meets_the_outcome_of_its_own_step(trail: Trajectories, order: list[int], wrong: set[int]) -> None:
    run = trail.start("a")
    ids = []
    for number in range(6):
        run.step(observation="predicts nothing")
        ids.append(run.step(predicted=float(10**number)))
    for number in order:
        trail.resolve(ids[number], float(10**number) * (-1 if number in wrong else 1))
    found = trail.get(run)
    assert found is not None
    verdict = RelativeError(scale=1.0).judge(found)
    assert {one.step for one in verdict.steps if one.label != "correct"} == {ids[number] for number in wrong}
    assert (verdict.judged, verdict.hits) == (6, 6 - len(wrong))
    trail.record_verdict(verdict)
    kept = trail.get(run)
    assert kept is not None
    assert kept.verdict == verdict, "it comes back from the store as it was"


# --------------------------------------------------------------------------------------------------------- posteriors


def test_the_wilson_interval_by_hand() -> None:
    # n = 10, p = 0.8, z = 1.959964: centre (0.8 + 0.192073) / 1.384146, half width 1.959964 √0.025604 / 1.384146.
    low, high = wilson(8, 10)
    assert low == pytest.approx(0.490162, abs=1e-6)
    assert high == pytest.approx(0.943318, abs=1e-6)
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 10).low == 0.0
    assert wilson(10, 10).high == 1.0
    assert wilson(0, 10).high == pytest.approx(1.959964**2 / (10 + 1.959964**2), abs=1e-6)


@given(hits=st.integers(0, 200), misses=st.integers(0, 200))
def test_the_wilson_interval_solves_its_equation(hits: int, misses: int) -> None:
    trials = hits + misses
    low, high = wilson(hits, trials)
    assert 0.0 <= low <= (hits / trials if trials else 0.5) <= high <= 1.0
    for bound in (low, high) if 0 < hits < trials else ():
        # Its ends are the shares from which what was seen lies z standard errors away.
        error = math.sqrt(bound * (1 - bound) / trials)
        assert abs(hits / trials - bound) == pytest.approx(1.959963984540054 * error, rel=1e-9)


def tail(hits: int, trials: int, share: Fraction) -> Fraction:
    """P(θ > share) under Beta(1 + hits, 1 + misses), by hand: the binomial sum it equals."""
    n = trials + 1
    return sum((math.comb(n, j) * share**j * (1 - share) ** (n - j) for j in range(hits + 1)), Fraction(0))


@given(hits=st.integers(0, 60), misses=st.integers(0, 60), share=st.fractions(0, 1, max_denominator=64))
def test_the_posterior_equals_a_hand_computation(hits: int, misses: int, share: Fraction) -> None:
    posterior = Beta.given(hits, hits + misses)
    assert posterior == (1 + hits, 1 + misses)
    assert posterior.mean == pytest.approx((1 + hits) / (2 + hits + misses))
    exact = float(tail(hits, hits + misses, share))
    assert posterior.above(float(share)) == pytest.approx(exact, rel=1e-9, abs=1e-13)
    assert posterior.below(float(share)) == pytest.approx(1 - exact, rel=1e-9, abs=1e-13)


@pytest.mark.parametrize(("a", "b"), [(1.5, 2.5), (0.5, 0.5), (30.25, 4.0), (900.0, 1100.0)])
def test_a_posterior_of_weighted_counts(a: float, b: float) -> None:
    # With θ = sin² φ the density has no poles: an even grid integrates it.
    phi = (np.arange(200_000) + 0.5) * (math.pi / 2 / 200_000)
    log_density = (2 * a - 1) * np.log(np.sin(phi)) + (2 * b - 1) * np.log(np.cos(phi))
    density = np.exp(log_density - log_density.max())
    theta = np.sin(phi) ** 2
    belief = Beta(a, b)
    for share in (0.1, 0.45, 0.5, 0.9):
        assert belief.below(share) == pytest.approx(density[theta <= share].sum() / density.sum(), abs=1e-4)
    assert belief.mean == pytest.approx((theta * density).sum() / density.sum(), abs=1e-6)
    spread = math.sqrt(((theta - belief.mean) ** 2 * density).sum() / density.sum())
    assert belief.deviation == pytest.approx(spread, rel=1e-4)


def test_confidence_comes_from_the_count() -> None:
    def confidence(hits: int, misses: int) -> float:
        return DirectionHit().judge(of(*[(1.0, 1.0)] * hits, *[(1.0, -1.0)] * misses)).confidence

    assert confidence(1, 0) == pytest.approx(0.75)
    assert confidence(3, 0) == pytest.approx(1 - 0.5**4)
    assert confidence(0, 3) == pytest.approx(1 - 0.5**4)
    assert confidence(2, 1) == pytest.approx(float(tail(2, 3, Fraction(1, 2))))
    assert confidence(60, 40) > confidence(6, 4) > 0.5
    assert Beta.given(500_000, 1_000_000).above(0.5) == pytest.approx(0.5, abs=1e-6), "of many, too"
    verdict = DirectionHit().judge(of(*[(1.0, 1.0)] * 8, *[(1.0, -1.0)] * 2))
    assert (verdict.low, verdict.high) == wilson(8, 10)


@pytest.mark.parametrize(
    "call",
    [
        lambda: wilson(3, 2),
        lambda: wilson(-1, 2),
        lambda: wilson(1, math.inf),
        lambda: wilson(1, 2, z=0.0),
        lambda: wilson(1, 2, z=math.nan),
        lambda: Beta.given(math.nan, 2),
        lambda: Beta.given(3, 2),
        lambda: Beta().below(1.5),
        lambda: Beta().above(math.nan),
        lambda: Beta(0.0, 1.0).below(0.5),
        lambda: Beta(1.0, math.nan).above(0.5),
        lambda: Beta(1e12, 1e12).above(0.5),
    ],
)
def test_counts_and_shares_that_are_none(call: Any) -> None:
    with pytest.raises(InvalidArgument):
        call()


def test_judging_reads_nothing_but_what_it_is_given(trail: Trajectories) -> None:
    """Of a trajectory read as of a moment, the verdict is the one that could be given then."""
    run = trail.start("a")
    step_id = run.step(predicted=1.0)
    trail.resolve(step_id, 1.0, resolved_at=10.0)
    trail.resolve(step_id, 2.0, resolved_at=20.0)
    labels = []
    for moment in (5.0, 10.0, 20.0):
        found = trail.get(run, as_of=moment)
        assert found is not None
        labels.append(RelativeError().judge(found).label)
    assert labels == ["insufficient", "correct", "very_wrong"]
