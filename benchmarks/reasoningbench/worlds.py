"""Worlds whose truth is known: planted patterns, noise, and one that changes half way."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import tiermem
from reasoningbench.costs import START, store
from tiermem.reasoning.distill import Judged

DIMENSION, STEPS, NOISE = 32, 4, 0.4
GOOD, BAD, NEUTRAL = 10, 10, 10
CHANGING = 8


def directions(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    found = rng.standard_normal((count, DIMENSION))
    unit: NDArray[np.float64] = found / np.linalg.norm(found, axis=1, keepdims=True)
    return unit


def near(rng: np.random.Generator, centre: NDArray[np.float64], rows: int = 1) -> NDArray[np.float32]:
    spread: NDArray[np.float32] = (centre + NOISE * rng.standard_normal((rows, DIMENSION)) / DIMENSION**0.5).astype(
        np.float32
    )
    return spread


def judged(rng: np.random.Generator, centres: NDArray[np.float64], chances: list[float], runs: int) -> list[Judged]:
    """Runs of a few steps that stay in one situation, judged at their end."""
    found = []
    for run in range(runs):
        place = int(rng.integers(len(centres)))
        success = float(rng.random() < chances[place])
        rows = list(near(rng, centres[place], STEPS))
        found.append(Judged(f"{run:06d}", [None] * (STEPS - 1) + [success], rows, [None] * STEPS, [None] * STEPS))
    return found


def planted(histories: int, runs: int, confidence: float) -> dict[str, Any]:
    """How many of the planted situations are found with the right sign, by how strong they are."""
    found: dict[str, Any] = {"histories": histories, "runs": runs, "confidence": confidence, "rows": []}
    for strength in (0.75, 0.8, 0.85, 0.9):
        right = wrong = 0
        for seed in range(histories):
            rng = np.random.default_rng(seed)
            chances = [strength] * GOOD + [1.0 - strength] * BAD + [0.5] * NEUTRAL
            centres = directions(rng, len(chances))
            for one in tiermem.Distiller(confidence=confidence).distil(judged(rng, centres, chances, runs)):
                if one.kind is not None:
                    place = int(np.argmax(centres @ one.vector))
                    good = (one.kind == "success") == (place < GOOD) and place < GOOD + BAD
                    right, wrong = right + good, wrong + (not good)
        found["rows"].append([strength, right, wrong, histories * (GOOD + BAD)])
    return found


def noise(histories: int, runs: int, confidence: float) -> dict[str, Any]:
    """In how many histories without any pattern a lesson is found, by how often things go well."""
    found: dict[str, Any] = {"histories": histories, "runs": runs, "confidence": confidence, "rows": []}
    for usual in (0.3, 0.5, 0.8):
        invented = 0
        for seed in range(histories):
            rng = np.random.default_rng(seed)
            centres = directions(rng, GOOD + BAD + NEUTRAL)
            runs_ = judged(rng, centres, [usual] * len(centres), runs)
            invented += any(one.kind for one in tiermem.Distiller(confidence=confidence).distil(runs_))
        found["rows"].append([usual, invented, histories])
    return found


def changing(runs: int, every: int) -> dict[str, Any]:
    """A world in which half of the situations turn into their opposite half way, as a bank lives through it.

    Gives, of every run, what the best lesson said of it before and how it went; and of the lessons of the first half,
    what their reliability was as of many times.
    """
    rng = np.random.default_rng(7)
    centres = directions(rng, 2 * CHANGING)
    chances = rng.uniform(0.05, 0.95, len(centres))
    pairs: list[tuple[float, bool]] = []
    with store() as (mem, clock):
        trail = tiermem.Trajectories(mem)
        bank = tiermem.ReasoningBank(mem, ranking=tiermem.Ranking(recency=0.0, diversity=1.0))
        waiting: list[str] = []
        for number in range(runs):
            clock.advance(60.0)
            place = int(rng.integers(len(centres)))
            row = near(rng, centres[place])[0]
            turned = number >= runs // 2 and place < CHANGING
            success = bool(rng.random() < (1.0 - chances[place] if turned else chances[place]))
            hits = [hit for hit in bank.recall(row, k=1) if hit.similarity > 0.8]
            if hits and number < runs // 2:
                pairs.append((hits[0].lesson.success.mean, success))
            run = trail.start("agent")
            run.step(action="go", vector=row)
            run.complete(success=success)
            waiting.append(run.id)
            if len(waiting) == every:
                bank.learn(waiting)
                bank.distil()
                waiting.clear()
        half, end = START + 30.0 * runs, START + 60.0 * runs
        known = [(one.id, int(np.argmax(centres @ one.vector))) for one in bank.lessons(as_of=half)]
        times = np.linspace(START, end, 60).tolist()
        curves = []
        for id_, place in known:
            seen = [(at, one.reliability) for at in times if (one := bank.lesson(id_, as_of=at)) is not None]
            curves.append({"turned": place < CHANGING, "points": [((at - START) / 3600.0, held) for at, held in seen]})
    return {"runs": runs, "every": every, "pairs": pairs, "curves": curves, "half": 30.0 * runs / 3600.0}
