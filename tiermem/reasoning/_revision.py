"""What situations that were distilled make of the lessons that are known: new ones, and new evidence for old ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace

from tiermem.errors import InvalidArgument
from tiermem.reasoning._ledger import Admission, Version, Written
from tiermem.reasoning._words import Write, worded
from tiermem.reasoning.cluster import unit_rows
from tiermem.reasoning.distill import Kind, Situation
from tiermem.reasoning.inference import Evidence, surprise

if TYPE_CHECKING:
    from tiermem.types import FloatArray

Sources = Callable[[Sequence[Evidence]], tuple[list[str], list[str]]]
"""The agents and the tasks that evidence comes from."""


def revised(
    situations: Sequence[Situation],
    known: Sequence[Written],
    duplicate: float,
    *,
    write: Write,
    next_id: Callable[[int], str],
    admissions: dict[str, Admission],
) -> list[Written]:
    """The versions to be written.

    A lesson takes on the evidence of the situation nearest to it, of the same action and within `duplicate`, whatever
    that says. A situation with a kind makes a lesson, unless a live one of its kind is there; one that was retired
    lives again if there is new evidence.

    Raises:
        InvalidArgument: there is evidence of a trajectory that was not judged, or out of its range.
    """
    for situation in situations:
        for told in situation.evidence:
            if told.trajectory not in admissions or not (0.0 <= told.value <= 1.0 and 0.0 < told.weight <= 1.0):
                raise InvalidArgument(f"evidence is of a trajectory that was learned, and in [0, 1]: {told!r}")
    heirs: dict[int, list[Written]] = {}
    for one, place in _nearest(situations, [one for one in known if one.version.status != "merged"], duplicate):
        heirs.setdefault(place, []).append(one)
    texts = [one.version for one in known]
    found: list[Written] = []
    made = 0
    for place, situation in enumerate(situations):
        alike = [one for one in heirs.get(place, []) if one.version.kind == situation.kind]
        alive = [one for one in alike if one.version.status == "live"]
        changing = [one for one in heirs.get(place, []) if one.version.status == "live"]
        if situation.kind is not None and not alive:
            if alike:
                changing.append(alike[0])
            else:
                found.append(_new(situation, situation.kind, next_id(made), write, texts, admissions))
                texts.append(found[-1].version)
                made += 1
        changed = [_confirmed(one, situation, write, texts, admissions) for one in changing]
        found += [one for one in changed if one is not None]
    return found


def _nearest(
    situations: Sequence[Situation], lessons: Sequence[Written], duplicate: float
) -> list[tuple[Written, int]]:
    """Lessons with the number of the situation nearest to each, the most similar first."""
    groups: dict[tuple[str, int], list[int]] = {}
    for place, situation in enumerate(situations):
        groups.setdefault((situation.action, len(situation.vector)), []).append(place)
    found: list[tuple[float, str, Written, int]] = []
    for (action, dimension), places in groups.items():
        held = [one for one in lessons if one.version.action == action and len(one.vector) == dimension]
        if not held:
            continue
        scores = (
            _stacked([one.vector for one in held]) @ unit_rows(_stacked([situations[at].vector for at in places])).T
        )
        for one, row in zip(held, scores, strict=True):
            if (score := float(row.max())) >= duplicate:
                found.append((-score, one.version.lesson, one, places[int(row.argmax())]))
    return [(one, place) for _, _, one, place in sorted(found, key=lambda item: item[:2])]


def _stacked(vectors: Sequence[FloatArray]) -> FloatArray:
    return np.array(vectors, np.float32)


def _new(
    situation: Situation, kind: Kind, id_: str, write: Write, texts: Sequence[Version], admissions: dict[str, Admission]
) -> Written:
    text, repeated = worded(write, situation, None, texts)
    agents, tasks = sources(situation.evidence, admissions)
    version = Version(
        lesson=id_,
        number=1,
        status="live",
        reason="distilled" + _note(repeated),
        kind=kind,
        action=situation.action,
        title=text.title,
        description=text.description,
        content=text.content,
        evidence=sorted(situation.evidence),
        baseline=situation.baseline,
        p_value=situation.p_value,
        observation=situation.observation,
        agents=agents,
        tasks=tasks,
        contradicts=[],
        merged_into=None,
        absorbed=[],
        confirmed_at=None,
    )
    return Written(version, unit_rows(_stacked([situation.vector]))[0])


def _confirmed(
    one: Written, situation: Situation, write: Write, texts: Sequence[Version], admissions: dict[str, Admission]
) -> Written | None:
    """A lesson with the evidence of a situation added, which replaces that of the same run; None: all was known."""
    old = one.version
    newer = {evidence.trajectory: evidence for evidence in situation.evidence}
    evidence = sorted({**{known.trajectory: known for known in old.evidence}, **newer}.values())
    if evidence == old.evidence:
        return None
    agents, tasks = sources(evidence, admissions)
    version = replace(
        old,
        number=old.number + 1,
        status="live",
        reason="new evidence" if old.status == "live" else "found again",
        evidence=evidence,
        baseline=situation.baseline,
        p_value=surprise(evidence, situation.baseline),
        observation=situation.observation if situation.kind == old.kind else old.observation,
        agents=agents,
        tasks=tasks,
    )
    return rewritten(Written(version, one.vector), write, texts)


def rewritten(one: Written, write: Write, texts: Sequence[Version]) -> Written:
    """A version with words for the evidence it has now."""
    version = one.version
    situation = Situation(
        version.kind,
        version.action,
        one.vector,
        tuple(version.evidence),
        version.baseline,
        version.p_value,
        version.observation,
    )
    text, repeated = worded(write, situation, version.lesson, texts)
    return Written(replace(version, **text._asdict(), reason=version.reason + _note(repeated)), one.vector)


def _note(repeated: str | None) -> str:
    return "" if repeated is None else f"; the words offered repeat {repeated}"


def sources(evidence: Sequence[Evidence], admissions: dict[str, Admission]) -> tuple[list[str], list[str]]:
    """The agents and the tasks whose runs the evidence comes from."""
    runs = [admissions[one.trajectory] for one in evidence]
    return sorted({run.agent for run in runs}), sorted({run.task for run in runs})
