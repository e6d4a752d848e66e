"""The agent that learns where the quotes go next: what it finds where there is something to find, and no future."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tiermem.demo import direction
from tiermem.demo.direction import Moment
from tiermem.demo.market import TickFile

START = 1_000_000.0


def day_of(signal: float, count: int = 300, seed: int = 1) -> list[Moment]:
    """A made day: the first part of the vector has the sign of the next move with this probability."""
    rng = np.random.default_rng(seed)
    middle, last, found = 1000.0, 0.0, []
    for place in range(count):
        side = 1 if rng.random() < 0.5 else -1
        found.append(Moment(START + 3.0 * place, middle, last, (0.9 * side, 0.1 * float(rng.standard_normal()), 0.1)))
        last = float(side if rng.random() < signal else -side)
        middle += last
    return found


def test_where_there_is_a_pattern_the_bank_finds_it_and_it_helps(tmp_path: Path) -> None:
    day = day_of(0.85)
    result, again = direction.replay(day, tmp_path / "one", split=START + 3.0 * 160)
    assert again == result.advice
    assert {(lesson.kind, lesson.action) for lesson in result.lessons} == {
        (kind, action) for kind in ("success", "failure") for action in ("up", "down")
    }
    report = result.report()
    assert report["advised"] == report["predictions"] == 139
    assert report["hit_rate_with"] > 0.7 > report["hit_rate_without"]
    assert report["interval"][0] > 0.0
    told = np.array([one.expected for one in result.advice])
    assert abs(told.mean() - report["hit_rate_with"]) < 0.1, "what it expects is what comes of it"
    # Played again, every decision is the same.
    other, _ = direction.replay(day, tmp_path / "two", split=START + 3.0 * 160)
    assert (other.advice, other.with_bank, other.without) == (result.advice, result.with_bank, result.without)


def test_a_shuffled_future_changes_nothing_before_it(tmp_path: Path) -> None:
    day = day_of(0.85, 240)
    later = START + 3.0 * 200
    advice = []
    for seed in range(2):
        shuffled = direction.shuffled_after(day, later, seed=seed)
        assert [one.at for one in shuffled] == [one.at for one in day]
        result, again = direction.replay(shuffled, tmp_path / f"{seed}", split=START + 3.0 * 150)
        assert again == result.advice
        advice.append(result.advice)
    before = [[one for one in run if one.at <= later] for run in advice]
    assert before[0] == before[1]
    assert len(before[0]) > 40
    assert advice[0] != advice[1]
    assert direction.shuffled_after(day, START + 1e9) == day


def test_moments_are_a_second_apart_and_see_nothing_ahead(tmp_path: Path) -> None:
    ticks = TickFile(direction.EXCERPT)
    day = direction.moments(ticks)
    assert all(later.at - one.at >= 1.0 for one, later in pairwise(day))
    assert np.abs([one.vector for one in day]).max() <= 1.0
    assert any(one.last for one in day)
    # The same file, cut off: the same moments up to there.
    with zipfile.ZipFile(direction.EXCERPT) as archive:
        (name,) = archive.namelist()
        lines = archive.read(name).splitlines(keepends=True)
    with zipfile.ZipFile(tmp_path / "short.zip", "w") as archive:
        archive.writestr(name, b"".join(lines[: len(lines) // 4]))
    short = direction.moments(TickFile(tmp_path / "short.zip"))
    assert len(short) > 100
    assert day[: len(short)] == short


def test_the_command_tells_what_came_of_the_day(capsys: pytest.CaptureFixture[str]) -> None:
    direction.main(["--json", "--ahead", "5"])
    found = json.loads(capsys.readouterr().out)
    assert found["recalled_as_of_then_is_the_same"] is True
    assert found["hit_rate_with_where_advised"] is None
    direction.main(["--split", "0.9"])
    assert "hit rate with" in capsys.readouterr().out


@pytest.mark.slow
def test_a_whole_day_of_quotes(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    day = direction.moments(TickFile(shared_data("aig_20131009_quote_tick.zip")))
    split, later = day[len(day) // 2].at, day[len(day) * 3 // 4].at
    result, again = direction.replay(day, tmp_path / "one", split=split)
    assert result.lessons
    assert again == result.advice
    other, _ = direction.replay(direction.shuffled_after(day, later), tmp_path / "two", split=split)
    assert [one for one in other.advice if one.at <= later] == [one for one in result.advice if one.at <= later]
