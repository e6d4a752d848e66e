"""What situations that were distilled make of the lessons that are known: new ones, and new evidence for old ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace

from tiermem.errors import InvalidArgument
from tiermem.reasoning._ledger import Admission, Version, Written, lesson_id, union
from tiermem.reasoning._words import Write, worded
from tiermem.reasoning.cluster import reachable, unit_rows
from tiermem.reasoning.distill import Kind, Situation
from tiermem.reasoning.inference import Evidence, surprise

if TYPE_CHECKING:
    from tiermem.types import FloatArray


def revised(
    situations: Sequence[Situation],
    known: Sequence[Written],
    duplicate: float,
    *,
    write: Write,
    entry: int,
    admissions: dict[str, Admission],
) -> list[Written]:
    """The versions to be written by entry number `entry`.

    A live lesson takes on the evidence of the situations of its action within `duplicate`, whatever that says. A
    situation with a kind makes a lesson, unless one of its kind is among these; one that was retired then lives again
    if there is new evidence, unless a live one is there.

    Raises:
        InvalidArgument: there is evidence of a trajectory that was not judged, or out of its range.
    """
    for situation in situations:
        for told in situation.evidence:
            if told.trajectory not in admissions or not (0.0 <= told.value <= 1.0 and 0.0 < told.weight <= 1.0):
                raise InvalidArgument(f"evidence is of a trajectory that was learned, and in [0, 1]: {told!r}")
    texts = [one.version for one in known]
    found: list[Written] = []
    taken: set[int] = set()
    for one, near in _near(situations, [one for one in known if one.version.status != "merged"], duplicate):
        alike = {place for place in near if situations[place].kind == one.version.kind}
        if one.version.status == "retired" and not alike - taken:
            continue
        taken |= alike
        changed = _confirmed(one, [situations[place] for place in near], write, texts, admissions)
        if changed is not None:
            found.append(changed)
    new = [
        (situation, situation.kind)
        for place, situation in enumerate(situations)
        if situation.kind is not None and place not in taken
    ]
    for place, (situation, kind) in enumerate(new):
        found.append(_new(situation, kind, lesson_id(entry, place), write, texts, admissions))
        texts.append(found[-1].version)
    return found


def _near(
    situations: Sequence[Situation], lessons: Sequence[Written], duplicate: float
) -> list[tuple[Written, list[int]]]:
    """Lessons with the numbers of the situations near each, nearest first; the live ones, then the most similar."""
    groups: dict[tuple[str, int], list[int]] = {}
    for place, situation in enumerate(situations):
        groups.setdefault((situation.action, len(situation.vector)), []).append(place)
    found: list[tuple[bool, float, str, Written, list[int]]] = []
    for (action, dimension), places in groups.items():
        held = [one for one in lessons if one.version.action == action and len(one.vector) == dimension]
        if not held:
            continue
        scores = (
            _stacked([one.vector for one in held]) @ unit_rows(_stacked([situations[at].vector for at in places])).T
        )
        for one, row in zip(held, scores, strict=True):
            near = [int(place) for place in np.argsort(-row, kind="stable") if row[place] >= reachable(duplicate)]
            if near:
                rank = (one.version.status != "live", -float(row[near[0]]), one.version.lesson)
                found.append((*rank, one, [places[place] for place in near]))
    return [(one, near) for *_, one, near in sorted(found, key=lambda item: item[:3])]


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
    one: Written,
    situations: Sequence[Situation],
    write: Write,
    texts: Sequence[Version],
    admissions: dict[str, Admission],
) -> Written | None:
    """A lesson with the evidence of situations, nearest first; it replaces that of the same runs. None: nothing new."""
    old = one.version
    newer = {part.trajectory: part for part in union(situation.evidence for situation in situations)}
    evidence = sorted({**{part.trajectory: part for part in old.evidence}, **newer}.values())
    if evidence == old.evidence:
        return None
    agents, tasks = sources(evidence, admissions)
    baseline = situations[0].baseline
    seen = [situation.observation for situation in situations if situation.kind == old.kind]
    version = replace(
        old,
        number=old.number + 1,
        status="live",
        reason="new evidence" if old.status == "live" else "found again",
        evidence=evidence,
        baseline=baseline,
        p_value=surprise(evidence, baseline),
        observation=seen[0] if seen else old.observation,
        agents=agents,
        tasks=tasks,
    )
    return rewritten(Written(version, one.vector), write, texts)


def rewritten(one: Written, write: Write, texts: Sequence[Version]) -> Written:
    """A version with words for the evidence it has now. Those of the lessons it took on are its own."""
    version = one.version
    others = [other for other in texts if other.lesson not in version.absorbed]
    situation = Situation(
        version.kind,
        version.action,
        one.vector,
        tuple(version.evidence),
        version.baseline,
        version.p_value,
        version.observation,
    )
    text, repeated = worded(write, situation, version.lesson, others)
    return Written(replace(version, **text._asdict(), reason=version.reason + _note(repeated)), one.vector)


def _note(repeated: str | None) -> str:
    return "" if repeated is None else f"; the words offered repeat {repeated}"


def sources(evidence: Sequence[Evidence], admissions: dict[str, Admission]) -> tuple[list[str], list[str]]:
    """The agents and the tasks whose runs the evidence comes from."""
    runs = [admissions[one.trajectory] for one in evidence]
    return sorted({run.agent for run in runs}), sorted({run.task for run in runs})
