"""What a bank takes in of a trajectory: its verdict, and what distilling looks at."""

from __future__ import annotations

from tiermem.errors import InvalidArgument
from tiermem.reasoning._ledger import Admission
from tiermem.reasoning.distill import Judged
from tiermem.reasoning.verdict import Judge, SuccessLabel
from tiermem.trajectory.types import Trajectory, Verdict
from tiermem.trajectory.views import check_verdict


class Recorded:
    """A judge that gives the verdict recorded with a trajectory; without one, it takes the word of who completed it."""

    def judge(self, trajectory: Trajectory) -> Verdict:
        """The last verdict that was known, or that of `SuccessLabel`."""
        return trajectory.verdict or SuccessLabel().judge(trajectory)


def admission(judge: Judge, run: Trajectory) -> Admission:
    """The verdict of `judge` on a run, as a bank keeps it.

    Raises:
        InvalidArgument: it is no verdict on that run. Whatever the judge raises.
    """
    verdict = check_verdict(judge.judge(run))
    if verdict.trajectory != run.id:
        raise InvalidArgument(f"the verdict of {verdict.judge} on trajectory {run.id} is of {verdict.trajectory}")
    success = verdict.success
    places = {step.id: place for place, step in enumerate(run.steps)}
    scores: list[float | None] = [None] * len(run.steps)
    for step in verdict.steps:
        if step.step not in places:
            raise InvalidArgument(f"the verdict of {verdict.judge} is of a step that is not there: {step.step}")
        if step.label != "insufficient":
            scores[places[step.step]] = float(step.label == "correct")
    if scores and success is not None and not verdict.steps:
        # A verdict on the whole is one on where it ended.
        scores[-1] = float(success)
    return Admission(run.id, run.agent, run.task, None if success is None else float(success), scores)


def judged_run(run: Trajectory, verdict: Admission) -> Judged:
    """A run and its verdict, as columns of steps.

    Raises:
        InvalidArgument: it has steps that were not there when it was judged.
    """
    steps = run.steps
    if len(steps) != len(verdict.scores):
        raise InvalidArgument(f"trajectory {run.id} has grown since it was judged: learn it again")
    return Judged(
        run.id,
        verdict.scores,
        [step.vector for step in steps],
        [step.action for step in steps],
        [step.observation for step in steps],
    )
