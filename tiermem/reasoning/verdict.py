"""Verdicts: judges, which say how well a trajectory went from what is known of it.

A judge is an object with one method. It reads nothing but the trajectory it is given, so of a trajectory read as of a
moment it cannot see more than was known then. Predictions meet the outcomes of their own steps, which a step carries;
steps that hold nothing a judge looks at, and the order of the steps, change no verdict: sums are exactly rounded
(`math.fsum`).

How sure a verdict is comes from how many steps were judged: with h of n correct, the share of correct ones is
distributed as Beta(1 + h, 1 + n - h), and the confidence of "correct" is the probability that it lies above one half,
that of "incorrect" and "very_wrong" the probability that it lies below.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tiermem.codec import jsonform
from tiermem.errors import InvalidArgument
from tiermem.reasoning.posterior import Beta, wilson
from tiermem.trajectory.layout import number
from tiermem.trajectory.types import LABELS, Label, Step, StepVerdict, Trajectory, Verdict

Measured = tuple[Step, float]
"""A step and its error."""


class Judge(Protocol):
    """Says how well a trajectory went."""

    def judge(self, trajectory: Trajectory) -> Verdict:
        """The verdict on `trajectory` as it was known at the moment it was read of."""
        ...


@dataclass(frozen=True, slots=True)
class Bands:
    """What an error is called.

    correct: the largest error that is correct (5 %). very_wrong: the least that is very wrong (25 %). What lies
    between them is incorrect. least: judged steps below which the verdict is insufficient (1).
    """

    correct: float = 0.05
    very_wrong: float = 0.25
    least: int = 1

    def __post_init__(self) -> None:
        if not 0 <= number("Bands.correct", self.correct) < number("Bands.very_wrong", self.very_wrong):
            raise InvalidArgument(f"bands are 0 ≤ correct < very_wrong, not {self.correct!r}, {self.very_wrong!r}")
        if isinstance(self.least, bool) or not isinstance(self.least, int) or self.least < 1:
            raise InvalidArgument(f"Bands.least is an int ≥ 1, not {self.least!r}")

    def label(self, error: float) -> Label:
        """What a mean error, or that of one step, is called."""
        return "correct" if error <= self.correct else "very_wrong" if error >= self.very_wrong else "incorrect"

    def verdict(self, trajectory: Trajectory, judge: str, measured: Sequence[Measured], known_at: float) -> Verdict:
        """The verdict by the mean error of the steps that were judged, the newest of which was known at `known_at`."""
        count = len(measured)
        error = _mean([error for _, error in measured]) if count else None
        label = "insufficient" if error is None or count < self.least else self.label(error)
        steps = [StepVerdict(step.id, self.label(error), error) for step, error in measured]
        return _verdict(trajectory, judge, label, error, steps, known_at)


@dataclass(frozen=True, slots=True)
class RelativeError:
    """A judge of numbers that were predicted: by the mean of |predicted - outcome| / max(|outcome|, floor).

    The floor keeps an outcome of 0, or close to it, from making any error infinite. It is `scale`, in the unit of the
    outcomes; if that is None, a tenth of the median of the |outcomes| that are not 0; if all are 0, the mean of the
    |predictions|.
    """

    bands: Bands = field(default_factory=Bands)
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.scale is not None and number("scale", self.scale) <= 0:
            raise InvalidArgument(f"scale is a number > 0, not {self.scale!r}")

    def judge(self, trajectory: Trajectory) -> Verdict:
        """The verdict on the steps whose prediction has an outcome.

        Raises:
            InvalidArgument: one of them is no finite number.
        """
        pairs, known_at = _pairs(trajectory)
        floor = self.scale if self.scale is not None else _usual(pairs)
        measured = [
            (step, 0.0 if predicted == outcome else abs(predicted - outcome) / max(abs(outcome), floor))
            for step, predicted, outcome in pairs
        ]
        return self.bands.verdict(trajectory, "relative_error", measured, known_at)


@dataclass(frozen=True, slots=True)
class Threshold:
    """A judge of numbers that were predicted: by the mean of |predicted - outcome|, in their own unit.

    limit: the largest error that is correct. very_wrong: the least that is very wrong (five times the limit, as 25 %
    is of 5 %). least: judged steps below which the verdict is insufficient (1).
    """

    limit: float
    very_wrong: float | None = None
    least: int = 1

    def __post_init__(self) -> None:
        self._bands()

    def _bands(self) -> Bands:
        if number("limit", self.limit) <= 0:
            raise InvalidArgument(f"limit is a number > 0, not {self.limit!r}")
        return Bands(self.limit, 5 * self.limit if self.very_wrong is None else self.very_wrong, self.least)

    def judge(self, trajectory: Trajectory) -> Verdict:
        """As `RelativeError.judge`."""
        pairs, known_at = _pairs(trajectory)
        measured = [(step, abs(predicted - outcome)) for step, predicted, outcome in pairs]
        return self._bands().verdict(trajectory, "threshold", measured, known_at)


@dataclass(frozen=True, slots=True)
class DirectionHit:
    """A judge of directions that were predicted: by the share of steps that went elsewhere.

    A number goes up, down or nowhere from its `reference`, called with the step (None: from 0); nowhere is what comes
    no further than `flat`. bands: of the share of misses (≤ 40 % is correct, ≥ 60 % very wrong).
    """

    reference: Callable[[Step], float] | None = None
    flat: float = 0.0
    bands: Bands = field(default_factory=lambda: Bands(0.4, 0.6))

    def __post_init__(self) -> None:
        if number("flat", self.flat) < 0:
            raise InvalidArgument(f"flat is a number ≥ 0, not {self.flat!r}")

    def judge(self, trajectory: Trajectory) -> Verdict:
        """As `RelativeError.judge`; the error of a step is 0 or 1."""
        pairs, known_at = _pairs(trajectory)
        measured = []
        for step, predicted, outcome in pairs:
            start = 0.0 if self.reference is None else number(f"reference of step {step.id}", self.reference(step))
            hit = self._direction(predicted - start) == self._direction(outcome - start)
            measured.append((step, 0.0 if hit else 1.0))
        return self.bands.verdict(trajectory, "direction_hit", measured, known_at)

    def _direction(self, change: float) -> int:
        return (change > self.flat) - (change < -self.flat)


@dataclass(frozen=True, slots=True)
class Return:
    """A judge of rewards: by their sum.

    target: the least sum that is correct (0). very_wrong: the largest that is very wrong (None: none is). A reward of 0
    says nothing; with no other, the verdict is insufficient. A step is correct if its reward is above 0.
    """

    target: float = 0.0
    very_wrong: float | None = None

    def __post_init__(self) -> None:
        number("target", self.target)
        if self.very_wrong is not None and not number("very_wrong", self.very_wrong) < self.target:
            raise InvalidArgument(f"very_wrong is a number below the target, not {self.very_wrong!r}")

    def judge(self, trajectory: Trajectory) -> Verdict:
        """The verdict on the steps that have a reward; its error is how far the sum stays below the target.

        Raises:
            InvalidArgument: the sum is beyond the range of a float.
        """
        paid = [(step, step.reward) for step in trajectory.steps if step.reward]
        try:
            total = math.fsum([reward for _, reward in paid])
        except OverflowError as exc:
            raise InvalidArgument(f"the rewards of {trajectory.id} add up beyond the range of a float") from exc
        label: Label = "correct" if total >= self.target else "incorrect"
        if not paid:
            label = "insufficient"
        elif self.very_wrong is not None and total <= self.very_wrong:
            label = "very_wrong"
        steps = [
            StepVerdict(step.id, "correct" if reward > 0 else "incorrect", max(0.0, -reward)) for step, reward in paid
        ]
        error = max(0.0, self.target - total) if paid else None
        known_at = max([trajectory.started, *(step.at for step, _ in paid)])
        return _verdict(trajectory, "return", label, error, steps, known_at)


@dataclass(frozen=True, slots=True)
class SuccessLabel:
    """A judge that takes the word of whoever completed the run: `complete(success=...)`. One word is one trial."""

    def judge(self, trajectory: Trajectory) -> Verdict:
        """Correct, incorrect, or insufficient where nothing was said."""
        if trajectory.success is None or trajectory.finished is None:
            return _verdict(trajectory, "success_label", "insufficient", None, [], trajectory.started)
        label: Label = "correct" if trajectory.success else "incorrect"
        return _opinion(trajectory, "success_label", label, trajectory.finished)


@dataclass(frozen=True, slots=True)
class Ask:
    """A judge that asks somebody else: an adapter for a language model, a rule engine or a person.

    ask: called with the question, a text of what is to be answered and the trajectory as JSON, it returns a text that
    begins with one of the labels; what follows is kept as the verdict's note. name: who is asked. One answer is one
    trial, however long the trajectory is.
    """

    ask: Callable[[str], str]
    name: str = "ask"

    def judge(self, trajectory: Trajectory) -> Verdict:
        """The verdict that was answered.

        Raises:
            InvalidArgument: the answer begins with no label. Whatever `ask` raises.
        """
        answer = self.ask(question(trajectory))
        if not isinstance(answer, str):
            raise InvalidArgument(f"{self.name} answers with a str, not {type(answer).__name__}")
        words = answer.split(maxsplit=1)
        found = words[0].strip(".,:;*\"'`").lower() if words else ""
        for label in LABELS:
            if found == label:
                note = words[1].strip() if len(words) > 1 else None
                return _opinion(trajectory, self.name, label, trajectory.known_at, note)
        raise InvalidArgument(f"{self.name} answered none of {', '.join(LABELS)}: {answer[:80]!r}")


def question(trajectory: Trajectory) -> str:
    """What `Ask` asks about a trajectory; the same text for the same trajectory."""
    steps = [
        {
            "at": step.at,
            "observation": step.observation,
            "action": step.action,
            "predicted": step.predicted,
            "reward": step.reward,
            "outcome": "pending" if step.pending else step.outcome,
        }
        for step in trajectory.steps
    ]
    lines = [jsonform.dumps({name: item for name, item in step.items() if item is not None}) for step in steps]
    asked = {"agent": trajectory.agent, "task": trajectory.task, "state": trajectory.state, "reason": trajectory.reason}
    return "\n".join(
        [
            "How well did this run of an agent reach what its task asks for?",
            f"Answer with one of {', '.join(LABELS)} as the first word, and then in one sentence why.",
            jsonform.dumps(asked),
            *lines,
        ]
    )


def _pairs(trajectory: Trajectory) -> tuple[list[tuple[Step, float, float]], float]:
    """Predictions with the outcomes of the same steps, and the time of the newest of these."""
    pairs: list[tuple[Step, float, float]] = []
    known_at = trajectory.started
    for step in trajectory.steps:
        predicted, outcome, resolved_at = step.predicted, step.outcome, step.resolved_at
        if predicted is None or resolved_at is None:
            continue
        # What is a float and finite is a number: the check would say so, slowly.
        if type(predicted) is not float or predicted - predicted != 0.0:
            predicted = number(f"the prediction of step {step.id}", predicted)
        if type(outcome) is not float or outcome - outcome != 0.0:
            outcome = number(f"the outcome of step {step.id}", outcome)
        pairs.append((step, predicted, outcome))
        known_at = max(known_at, resolved_at)
    return pairs, known_at


def _usual(pairs: Sequence[tuple[Step, float, float]]) -> float:
    """What an outcome is measured against at least; not 0."""
    sizes = sorted([abs(outcome) for _, _, outcome in pairs if outcome])
    if sizes:
        middle = len(sizes) // 2
        usual = (sizes[middle] if len(sizes) % 2 else sizes[middle - 1] / 2 + sizes[middle] / 2) / 10
    else:
        usual = _mean([abs(predicted) for _, predicted, _ in pairs]) if pairs else 0.0
    return usual or sys.float_info.min


def _mean(numbers: list[float]) -> float:
    """The exactly rounded mean of numbers ≥ 0; infinity beyond the range of a float."""
    try:
        return math.fsum(numbers) / len(numbers)
    except OverflowError:
        return math.inf


def _opinion(trajectory: Trajectory, judge: str, label: Label, known_at: float, note: str | None = None) -> Verdict:
    """A verdict on the trajectory as a whole: one trial, whose error is 0 or 1."""
    if label == "insufficient":
        return _verdict(trajectory, judge, label, None, [], known_at, note)
    error = 0.0 if label == "correct" else 1.0
    return _verdict(trajectory, judge, label, error, [], known_at, note, counted=(1, int(label == "correct")))


def _verdict(
    trajectory: Trajectory,
    judge: str,
    label: Label,
    error: float | None,
    steps: list[StepVerdict],
    known_at: float,
    note: str | None = None,
    *,
    counted: tuple[int, int] | None = None,
) -> Verdict:
    judged, hits = counted or (len(steps), sum([step.label == "correct" for step in steps]))
    interval = wilson(hits, judged)
    posterior = Beta.given(hits, judged)
    confidence = 0.0
    if label != "insufficient":
        confidence = posterior.above(0.5) if label == "correct" else posterior.below(0.5)
    # In the order of their ids, whatever the order they came in.
    steps.sort()
    return Verdict(
        trajectory.id,
        judge,
        label,
        error,
        judged,
        hits,
        confidence,
        interval.low,
        interval.high,
        known_at,
        tuple(steps),
        note,
    )
