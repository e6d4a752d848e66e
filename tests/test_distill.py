"""Distilling: credit, clusters, tests against chance, and patterns that were planted."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiermem
from tiermem.reasoning.cluster import cluster
from tiermem.reasoning.credit import credit
from tiermem.reasoning.distill import Distiller, Judged, Situation, action_label, in_words
from tiermem.reasoning.inference import Effect, Evidence, Sample, holm, surprise, t_quantile
from tiermem.reasoning.posterior import Beta

scores = st.lists(st.none() | st.floats(0.0, 1.0), max_size=12)

# ------------------------------------------------------------------------------------------------------------- credit


@given(scores, st.floats(0.0, 1.0))
def test_credit_is_the_discounted_mean_of_what_follows(given_: list[float | None], discount: float) -> None:
    for place, (value, weight) in enumerate(credit(given_, discount)):
        parts = [(discount**step, score) for step, score in enumerate(given_[place:]) if score is not None]
        mass = sum(share for share, _ in parts)
        assert weight == pytest.approx(min(1.0, mass))
        if mass > 1e-300:
            assert value == pytest.approx(sum(share * score for share, score in parts) / mass)


def test_credit_without_discount_is_spread_evenly_and_with_full_discount_stays_where_it_was() -> None:
    assert credit([None, 1.0, 0.0], 1.0) == [(0.5, 1.0), (0.5, 1.0), (0.0, 1.0)]
    assert credit([None, 1.0, 0.0], 0.0) == [(0.0, 0.0), (1.0, 1.0), (0.0, 1.0)]
    assert credit([1.0, None], 0.5) == [(1.0, 1.0), (0.0, 0.0)]


@pytest.mark.parametrize(("given_", "discount"), [([math.nan], 0.5), ([1.0], 1.5), ([1.0], -0.1), ([math.inf], 0.5)])
def test_credit_refuses(given_: list[float | None], discount: float) -> None:
    with pytest.raises(tiermem.InvalidArgument):
        credit(given_, discount)


# ------------------------------------------------------------------------------------------------------- what is chance


def even(values: list[float]) -> list[Evidence]:
    return [Evidence(str(place), value, 1.0) for place, value in enumerate(values)]


@given(st.integers(1, 12), st.integers(0, 12), st.floats(0.05, 0.95))
def test_the_bound_holds_for_coins_and_is_that_of_kullback_and_leibler(n: int, hits: int, baseline: float) -> None:
    hits = min(hits, n)
    found = surprise(even([1.0] * hits + [0.0] * (n - hits)), baseline)
    share = hits / n
    divergence = sum(p * math.log(p / q) for p, q in ((share, baseline), (1 - share, 1 - baseline)) if p > 0.0)
    # Twenty halvings look for the best bound.
    assert found == pytest.approx(min(1.0, 2.0 * math.exp(-n * divergence)), rel=1e-6)
    chances = [math.comb(n, k) * baseline**k * (1 - baseline) ** (n - k) for k in range(n + 1)]
    tail = sum(chances[hits:]) if share >= baseline else sum(chances[: hits + 1])
    assert tail <= found * (1 + 1e-9)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.2, 0.5, 1.0])), min_size=1, max_size=7))
def test_the_bound_holds_for_weights(parts: list[tuple[float, float]]) -> None:
    evidence = [Evidence(str(place), value, weight) for place, (value, weight) in enumerate(parts)]
    total = sum(value * weight for value, weight in parts)
    mass = sum(weight for _, weight in parts)
    baseline = 0.5
    # The fair coins of these weights that come at least as far from what was to be expected, on the same side.
    sums = [
        sum(value * weight for value, (_, weight) in zip(coins, parts, strict=True))
        for coins in itertools.product([0.0, 1.0], repeat=len(parts))
    ]
    as_far = [one >= total - 1e-12 if total >= baseline * mass else one <= total + 1e-12 for one in sums]
    assert sum(as_far) / len(sums) <= surprise(evidence, baseline) * (1 + 1e-9)


def test_evidence_at_the_ends_of_what_is_possible() -> None:
    assert surprise([], 0.5) == 1.0
    assert surprise(even([1.0] * 10), 0.5) == pytest.approx(2 * 0.5**10)
    assert surprise(even([1.0]), 1.0) == 1.0
    assert surprise(even([0.0]), 1.0) == 0.0
    assert surprise(even([1.0]), 0.0) == 0.0


def test_evidence_of_next_to_no_weight_says_next_to_nothing() -> None:
    # A discount of 0.5 leaves a step that much, a hundred steps before the outcome.
    far = [Evidence(str(place), 0.0, 0.5**100) for place in range(50)]
    assert surprise([Evidence("near", 1.0, 1.0), *far], 0.5) == pytest.approx(1.0)
    assert surprise([Evidence("near", 0.0, 1.0), *(one._replace(value=1.0) for one in far)], 0.5) == pytest.approx(1.0)


def test_holm_rejects_step_by_step() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005], 0.95) == [True, False, False, True]
    assert holm([], 0.95) == []
    with pytest.raises(tiermem.InvalidArgument):
        holm([0.1], 1.0)


@given(st.floats(0.6, 30.0), st.floats(0.6, 30.0), st.floats(0.01, 0.99))
def test_a_quantile_of_beta_is_where_its_distribution_says(a: float, b: float, probability: float) -> None:
    assert Beta(a, b).below(Beta(a, b).quantile(probability)) == pytest.approx(probability, abs=1e-9)


@pytest.mark.parametrize(
    # Tables of Student's t.
    ("freedom", "probability", "value"),
    [(1, 0.975, 12.7062), (2, 0.95, 2.9200), (10, 0.975, 2.2281), (30, 0.995, 2.7500), (10, 0.025, -2.2281)],
)
def test_quantiles_of_student_are_those_of_the_tables(freedom: float, probability: float, value: float) -> None:
    assert t_quantile(freedom, probability) == pytest.approx(value, abs=1e-4)


def test_an_effect_is_that_of_welch_by_hand() -> None:
    effect = Effect(Sample.of([1.0, 1.0, 0.0, 1.0]), Sample.of([0.0, 0.0, 1.0, 0.0, 0.0]))
    assert effect.difference == pytest.approx(0.75 - 0.2)
    one, two = 0.25 / 4, 0.2 / 5
    freedom = (one + two) ** 2 / (one**2 / 3 + two**2 / 4)
    half = t_quantile(freedom, 0.975) * math.sqrt(one + two)
    assert effect.interval(0.95) == pytest.approx((0.55 - half, 0.55 + half))


def test_an_effect_of_too_few_or_of_equal_outcomes_has_no_interval() -> None:
    for used, unused in ([1.0], [0.0, 1.0]), ([1.0, 1.0], [0.0, 0.0]):
        assert Effect(Sample.of(used), Sample.of(unused)).interval() == (-math.inf, math.inf)


# ------------------------------------------------------------------------------------------------------------ clusters


def blobs(rng: np.random.Generator, centres: Any, rows: int, noise: float) -> tuple[Any, Any]:
    which = rng.integers(0, len(centres), rows)
    spread = noise * rng.standard_normal((rows, centres.shape[1])) / math.sqrt(centres.shape[1])
    return (centres[which] + spread).astype(np.float32), which


def directions(rng: np.random.Generator, count: int, dimension: int) -> Any:
    found = rng.standard_normal((count, dimension))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_clusters_are_those_that_were_made_and_the_same_in_any_order() -> None:
    rng = np.random.default_rng(1)
    rows, which = blobs(rng, directions(rng, 40, 32), 2500, 0.4)
    found = cluster(rows, 0.8, seed=3, limit=100)
    assert len(found.centres) == 40
    assert len(set(zip(which.tolist(), found.labels.tolist(), strict=True))) == 40
    order = rng.permutation(len(rows))
    again = cluster(rows[order], 0.8, seed=3, limit=100)
    assert (again.labels == found.labels[order]).all()
    assert (again.centres == found.centres).all()


def test_rows_that_are_alone_zero_or_beyond_the_limit_are_in_no_cluster() -> None:
    rows = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]], np.float32)
    assert cluster(rows, 0.9, seed=0, limit=9).labels.tolist() == [0, 0, -1, -1]
    assert len(cluster(np.eye(8, dtype=np.float32).repeat(2, axis=0), 0.9, seed=0, limit=3).centres) == 3
    assert cluster(np.empty((0, 3), np.float32), 0.9, seed=0, limit=3).labels.tolist() == []


# ------------------------------------------------------------------------------------------------------------ patterns


def runs_of(
    rng: np.random.Generator, centres: Any, chances: list[float], runs: int, steps: int = 4, noise: float = 0.4
) -> list[Judged]:
    """Runs that stay in one situation each, and succeed as often as it lets them."""
    found = []
    for run in range(runs):
        place = int(rng.integers(0, len(centres)))
        rows, _ = blobs(rng, centres[place : place + 1], steps, noise)
        success = float(rng.random() < chances[place])
        found.append(
            Judged(f"{run:05d}", [None] * (steps - 1) + [success], list(rows), [None] * steps, [place] * steps)
        )
    return found


def test_planted_patterns_are_found_with_the_right_sign() -> None:
    planted = found = wrong = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        chances = [0.85] * 8 + [0.15] * 8 + [0.5] * 8
        centres = directions(rng, len(chances), 32)
        situations = [one for one in Distiller().distil(runs_of(rng, centres, chances, 1200)) if one.kind]
        for one in situations:
            place = int(np.argmax(centres @ one.vector))
            right = (one.kind == "success") == (chances[place] > 0.5) and chances[place] != 0.5
            found += right
            wrong += not right
            assert one.observation == place
        planted += 16
    assert wrong == 0
    assert planted * 0.95 <= found <= planted


@pytest.mark.parametrize("usual", [0.5, 0.8])
def test_noise_yields_no_lesson_at_the_stated_confidence(usual: float) -> None:
    invented = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        runs = runs_of(rng, directions(rng, 12, 16), [usual] * 12, 240, steps=2)
        invented += any(one.kind for one in Distiller(confidence=0.9).distil(runs))
    # At most a tenth of the histories, and two standard deviations of that.
    assert invented <= 6 + 2 * math.sqrt(60 * 0.1 * 0.9)


@given(st.randoms(use_true_random=False))
def test_the_order_of_the_runs_changes_nothing(random: Any) -> None:
    rng = np.random.default_rng(random.randrange(100))
    runs = runs_of(rng, directions(rng, 3, 8), [0.9, 0.5, 0.1], 60)
    shuffled = list(runs)
    random.shuffle(shuffled)
    for one, other in zip(Distiller().distil(runs), Distiller().distil(shuffled), strict=True):
        assert (one.kind, one.action, sorted(one.evidence)) == (other.kind, other.action, sorted(other.evidence))
        assert (one.baseline, one.p_value) == pytest.approx((other.baseline, other.p_value))
        np.testing.assert_allclose(one.vector, other.vector, atol=1e-6)


def test_what_was_done_divides_a_situation_and_success_and_failure_have_centres_of_their_own() -> None:
    east, north = np.array([1.0, 0.0], np.float32), np.array([0.9, 0.4], np.float32)
    runs = [
        Judged(f"{place}", [float(good)], [east if good else north], [action], [None])
        for place, (action, good) in enumerate([("buy", True)] * 27 + [("buy", False)] * 3 + [("sell", False)] * 30)
    ]
    buy, sell = sorted(Distiller().distil(runs), key=lambda one: one.action)
    assert (buy.action, buy.kind, len(buy.evidence)) == ("buy", "success", 30)
    assert (sell.action, sell.kind) == ("sell", "failure")
    np.testing.assert_allclose(buy.vector, east, atol=1e-6)
    np.testing.assert_allclose(sell.vector, north / np.linalg.norm(north), atol=1e-6)
    assert buy.rate == pytest.approx(0.9)


def test_a_run_counts_once_in_a_situation_however_many_steps_it_took_there() -> None:
    one = np.ones(2, np.float32)
    runs = [Judged(str(run), [None] * 9 + [1.0], [one] * 10, ["go"] * 10, [None] * 10) for run in range(8)]
    (found,) = Distiller(discount=0.5).distil(runs)
    assert [(part.value, part.weight) for part in found.evidence] == [(1.0, 1.0)] * 8
    # With nothing to compare it with, it is compared with chance.
    assert (found.baseline, found.kind) == (0.5, "success")
    assert found.p_value == pytest.approx(2 * 0.5**8)


def test_steps_without_vectors_or_outcomes_teach_nothing() -> None:
    one = np.ones(2, np.float32)
    assert Distiller().distil([]) == []
    assert Distiller().distil([Judged("a", [1.0, None], [None, one], ["", ""], [None, None])] * 9) == []
    with pytest.raises(tiermem.InvalidArgument, match="dimensions"):
        Distiller().distil([Judged("a", [1.0, 1.0], [one, np.ones(3, np.float32)], ["", ""], [None, None])])


@pytest.mark.parametrize(
    "options",
    [
        {"confidence": 1.0},
        {"confidence": True},
        {"discount": 1.1},
        {"similarity": 0.0},
        {"support": 0},
        {"limit": 0},
        {"baseline": 2.0},
    ],
)
def test_a_distiller_refuses(options: dict[str, Any]) -> None:
    with pytest.raises(tiermem.InvalidArgument):
        Distiller(**options)


def test_actions_and_words() -> None:
    assert [action_label(one) for one in ("buy", True, 3, 0.5, None, {"side": "buy"})] == [
        "buy",
        "True",
        "3",
        "",
        "",
        "",
    ]
    one = Situation("failure", "buy", np.ones(2, np.float32), (Evidence("a", 0.0, 1.0),), 0.5, 0.01, {"px": 1})
    text = in_words(one)
    assert text.title == "Here 'buy' goes worse than usual"
    assert "0.0% against 50.0%, in 1 runs (p ≤ 0.01)" in text.content
    assert "{'px': 1}" in text.content
    assert in_words(one._replace(action="", kind="success")).title == "Here things go better than usual"
