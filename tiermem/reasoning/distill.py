"""Distilling: from judged runs to the situations in which things went better, or worse, than they usually do."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np

from tiermem.errors import InvalidArgument
from tiermem.reasoning.cluster import Clusters, cluster, unit_rows
from tiermem.reasoning.credit import credit
from tiermem.reasoning.inference import Evidence, check_confidence, holm, surprise

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tiermem.types import FloatArray

Kind: TypeAlias = Literal["success", "failure"]


class Judged(NamedTuple):
    """A judged trajectory. Of its steps: `scores` in [0, 1] or None, `actions`, `observations`, `vectors` or None."""

    trajectory: str
    scores: Sequence[float | None]
    vectors: Sequence[FloatArray | None]
    actions: Sequence[Any]
    observations: Sequence[Any]


class Text(NamedTuple):
    """The words of a lesson."""

    title: str
    description: str
    content: str


class Situation(NamedTuple):
    """What the runs have in common that met similar vectors and acted alike.

    `kind` is success where they went better than `baseline` (what was to be expected), failure where they went worse,
    and None where the difference may be chance. `vector` (d,) is the unit mean of the steps that went as `kind` says,
    weighted by how far they did: of all, where `kind` is None. `p_value` bounds the probability of a difference as
    large without any cause. `observation` is that of the step nearest to `vector`.
    """

    kind: Kind | None
    action: str
    vector: FloatArray
    evidence: tuple[Evidence, ...]
    baseline: float
    p_value: float
    observation: Any = None

    @property
    def rate(self) -> float:
        """The weighted mean of the evidence: how often it went well here."""
        mass = sum(one.weight for one in self.evidence)
        return sum(one.value * one.weight for one in self.evidence) / mass if mass else self.baseline


class Distils(Protocol):
    """Finds situations in judged runs."""

    def distil(self, runs: Sequence[Judged]) -> Sequence[Situation]:
        """The situations of `runs`, whatever their order; those without a kind are known lessons' new evidence."""
        ...


def action_label(action: Any) -> str:
    """What tells actions apart: a str, bool or int as text; others do not tell situations apart, and are ""."""
    return str(action) if isinstance(action, str | bool | int) else ""


def in_words(situation: Situation) -> Text:
    """The text of a lesson from a template."""
    how = "better" if situation.kind == "success" else "worse"
    what = f"{situation.action!r} goes" if situation.action else "things go"
    seen = "was not kept" if situation.observation is None else reprlib.repr(situation.observation)
    runs = len(situation.evidence)
    return Text(
        f"Here {what} {how} than usual",
        f"In {runs} runs {situation.rate:.0%} of what followed went well; {situation.baseline:.0%} is usual.",
        f"Here {what} {how} than usual: {situation.rate:.1%} against {situation.baseline:.1%}, in {runs} runs "
        f"(p ≤ {situation.p_value:.1g}). An observation of this kind: {seen}.",
    )


@dataclass(frozen=True)
class Distiller:
    """The default `Distils`: threshold clusters of steps, credit by discounting, a test against chance.

    Steps with a vector are clustered by cosine, and each cluster divided by what was done. Every step is given the
    discounted mean of the scores that follow it in its run, and every run counts once in a situation. A situation has a
    kind if its mean differs from that of all runs; with probability `confidence` no situation at all is given one by
    chance (Hoeffding's bound, Holm's procedure: see `surprise` and `holm`). That holds for runs that are independent of
    each other.

    discount: γ in [0, 1]; 0 gives a step its own score only. similarity: cosine, > 0, between a step and the centre
    of its cluster. support: runs a situation must have been met in to be tested. limit: of the number of clusters.
    baseline: what is usual; None: the mean over all runs, or 1/2 where all met one situation and acted alike, so that
    there is nothing to compare it with. label: what tells actions apart.
    """

    discount: float = 0.9
    similarity: float = 0.8
    confidence: float = 0.95
    support: int = 5
    seed: int = 0
    limit: int = 4096
    baseline: float | None = None
    label: Callable[[Any], str] = field(default=action_label, repr=False)

    def __post_init__(self) -> None:
        check_confidence(self.confidence)
        if not 0.0 <= self.discount <= 1.0:
            raise InvalidArgument(f"a discount lies in [0, 1], not {self.discount!r}")
        if not 0.0 < self.similarity <= 1.0:
            raise InvalidArgument(f"a cosine to cluster by lies in (0, 1], not {self.similarity!r}")
        if self.baseline is not None and not 0.0 <= self.baseline <= 1.0:
            raise InvalidArgument(f"a baseline is a share of success in [0, 1], not {self.baseline!r}")
        if self.support < 1 or self.limit < 1:
            raise InvalidArgument("support and limit are numbers ≥ 1")

    def distil(self, runs: Sequence[Judged]) -> list[Situation]:
        """The situations of `runs` met by at least `support` of them, the surest first; in any order of `runs`."""
        steps = _Steps.of(runs, self)
        if not steps.places:
            return []
        clusters = cluster(steps.vectors, self.similarity, seed=self.seed, limit=self.limit)
        cells = steps.cells(clusters)
        baseline = self.baseline
        if baseline is None:
            baseline = steps.baseline if len(cells) > 1 else 0.5
        tested = [(rows, evidence) for rows, evidence in cells if len(evidence) >= self.support]
        p_values = [surprise(evidence, baseline) for _, evidence in tested]
        found = [
            steps.situation(rows, evidence, baseline, p, real=real)
            for (rows, evidence), p, real in zip(tested, p_values, holm(p_values, self.confidence), strict=True)
        ]
        return sorted(found, key=lambda one: (one.p_value, -len(one.evidence), one.action, one.vector.tobytes()))


class _Steps(NamedTuple):
    """The steps that have a vector and a value, as columns; `places` are (run, step) of `runs`."""

    runs: Sequence[Judged]
    places: list[tuple[int, int]]
    vectors: FloatArray
    values: NDArray[np.float64]
    weights: NDArray[np.float64]
    actions: list[str]
    baseline: float
    """The mean over the runs of the mean value of their steps."""

    @classmethod
    def of(cls, runs: Sequence[Judged], distiller: Distiller) -> _Steps:
        places: list[tuple[int, int]] = []
        credits: list[tuple[float, float]] = []
        vectors: list[FloatArray] = []
        actions: list[str] = []
        means: list[float] = []
        for number, run in enumerate(runs):
            begin = len(credits)
            for place, (found, vector) in enumerate(
                zip(credit(run.scores, distiller.discount), run.vectors, strict=True)
            ):
                if vector is not None and found[1] > 0.0:
                    places.append((number, place))
                    credits.append(found)
                    vectors.append(vector)
                    actions.append(distiller.label(run.actions[place]))
            if mass := sum(weight for _, weight in credits[begin:]):
                means.append(sum(value * weight for value, weight in credits[begin:]) / mass)
        lengths = {len(vector) for vector in vectors}
        if len(lengths) > 1:
            raise InvalidArgument(f"the steps have vectors of {sorted(lengths)} dimensions, which do not compare")
        columns = np.array(credits, np.float64).reshape(-1, 2)
        rows = np.array(vectors, np.float32) if vectors else np.empty((0, 1), np.float32)
        mean = float(np.mean(np.sort(means))) if means else 0.5
        return cls(runs, places, rows, columns[:, 0], columns[:, 1], actions, mean)

    def cells(self, clusters: Clusters) -> list[tuple[NDArray[np.int64], tuple[Evidence, ...]]]:
        """The rows and the evidence of every cluster and action."""
        names = {name: code for code, name in enumerate(sorted(set(self.actions)))}
        codes = np.fromiter((names[name] for name in self.actions), np.int64, len(self.actions))
        keys = clusters.labels * len(names) + codes
        order = np.argsort(keys, kind="stable")
        order = order[clusters.labels[order] >= 0]
        return [
            (rows, self._evidence(rows))
            for rows in np.split(order, np.flatnonzero(np.diff(keys[order])) + 1)
            if len(rows)
        ]

    def _evidence(self, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
        """A run counts once: with the weighted mean of its steps here, and the weight of the best of them."""
        sums: dict[int, list[float]] = {}
        for row in rows.tolist():
            value, weight = float(self.values[row]), float(self.weights[row])
            held = sums.setdefault(self.places[row][0], [0.0, 0.0, 0.0])
            held[0] += value * weight
            held[1] += weight
            held[2] = max(held[2], weight)
        return tuple(
            Evidence(self.runs[run].trajectory, total / mass, best) for run, (total, mass, best) in sums.items()
        )

    def situation(
        self, rows: NDArray[np.int64], evidence: tuple[Evidence, ...], baseline: float, p_value: float, *, real: bool
    ) -> Situation:
        mass = sum(one.weight for one in evidence)
        rate = sum(one.value * one.weight for one in evidence) / mass
        kind: Kind | None = None if not real else "success" if rate > baseline else "failure"
        values, weights = self.values[rows], self.weights[rows]
        shares = weights if kind is None else weights * (values if kind == "success" else 1.0 - values)
        points = unit_rows(self.vectors[rows])
        # In double precision, so that the order of the runs leaves next to no trace.
        vector = unit_rows((points * shares[:, None]).sum(axis=0)[None, :])[0]
        nearest = int(rows[int(np.argmax(points @ vector))])
        run, step = self.places[nearest]
        return Situation(
            kind, self.actions[nearest], vector, evidence, baseline, p_value, self.runs[run].observations[step]
        )
