"""What a reader of a bank gets: lessons and the hits of a recall, as they were known at one moment."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from msgspec import Struct

from tiermem.reasoning.distill import Kind
from tiermem.reasoning.inference import Effect, Evidence
from tiermem.reasoning.posterior import Beta

if TYPE_CHECKING:
    from tiermem.types import FloatArray

Status: TypeAlias = Literal["live", "merged", "retired"]


class Lesson(Struct, frozen=True, eq=False):
    """What runs have taught about one situation and one way to act in it, as it was known at one moment.

    `kind` is success where things went better than `baseline`, failure where they went worse; `vector` (d,), float32 of
    length 1, is the mean of the steps that went so. `evidence` is what each run that met the situation says of it,
    `uses` what became of each run that used the lesson and has been judged. `p_value` bounds the probability of such a
    difference by chance alone.

    Only a `live` lesson is recalled; `merged_into` is where a merged one went, `reason` why this version was written.
    `version` counts from 1; it has been known since `known_at`, the first one since `created_at`, and `confirmed_at` is
    when the newest evidence or use became known (epoch seconds). `contradicts` are ids of live lessons that say the
    opposite of a similar situation.
    """

    id: str
    version: int
    status: Status
    reason: str
    kind: Kind
    action: str
    title: str
    description: str
    content: str
    vector: FloatArray
    evidence: tuple[Evidence, ...]
    uses: tuple[Evidence, ...]
    baseline: float
    p_value: float
    created_at: float
    known_at: float
    confirmed_at: float
    observation: Any
    agents: tuple[str, ...]
    tasks: tuple[str, ...]
    contradicts: tuple[str, ...]
    merged_into: str | None
    effect: Effect | None
    """What using it changed: the runs that used it against those of the evidence that did not; None before any did."""

    @property
    def support(self) -> int:
        """How many runs the evidence comes from."""
        return len(self.evidence)

    @property
    def success(self) -> Beta:
        """How often it goes well in this situation, acting so: the posterior over the evidence."""
        return _posterior([(one.value, one.weight) for one in self.evidence])

    @property
    def held(self) -> Beta:
        """How often it was as the lesson says: see `held`."""
        return held(self.kind, self.evidence, self.uses)

    @property
    def reliability(self) -> float:
        """The posterior probability that what the lesson says is so: see `reliability`."""
        return reliability(self.kind, self.baseline, self.held)


class LessonHit(NamedTuple):
    """One result of a recall, best first, with the parts of its score.

    `similarity` is the cosine to the query, not below 0; `recency` 2^(-age / half-life); `reliability` that of the
    lesson. `score` is their product, each to the power of its weight. `redundancy` is the highest cosine to a hit
    before this one, not below 0, and `relevance` what hits are ordered by: λ score - (1 - λ) redundancy.
    `contradictions` are the live lessons that say the opposite.
    """

    lesson: Lesson
    score: float
    similarity: float
    recency: float
    reliability: float
    redundancy: float
    relevance: float
    contradictions: tuple[Lesson, ...] = ()

    def explain(self) -> str:
        """The score in words."""
        return (
            f"score {self.score:.3f} of similarity {self.similarity:.3f}, recency {self.recency:.3f}, reliability "
            f"{self.reliability:.3f}; {self.relevance:.3f} beside hits as near as {self.redundancy:.3f}"
            + "".join(f"; contradicted by {other.id}" for other in self.contradictions)
        )


def held(kind: Kind, evidence: tuple[Evidence, ...], uses: tuple[Evidence, ...]) -> Beta:
    """How often it was as a lesson says.

    A run of the evidence agrees with a success as far as it went well, and with a failure as far as it did not. A run
    that used the lesson agrees as far as it went well, whichever the kind: then it is not counted as evidence too.
    """
    used = {one.trajectory for one in uses}
    outcomes = [
        (one.value if kind == "success" else 1.0 - one.value, one.weight)
        for one in evidence
        if one.trajectory not in used
    ]
    return _posterior(outcomes + [(one.value, one.weight) for one in uses])


def reliability(kind: Kind, baseline: float, posterior: Beta) -> float:
    """How likely it is that things go as `kind` says more often than `baseline` has it: P(p > usual) of `posterior`."""
    return posterior.above(baseline if kind == "success" else 1.0 - baseline)


def _posterior(outcomes: list[tuple[float, float]]) -> Beta:
    """From the degree of success and the weight of each outcome; no order of them matters."""
    return Beta.given(
        math.fsum(value * weight for value, weight in outcomes), math.fsum(weight for _, weight in outcomes)
    )
