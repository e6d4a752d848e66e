"""What a bank knew at one moment: its log up to then, added up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from tiermem.reasoning._ledger import Admission, Entry, Version, Written
from tiermem.reasoning.inference import Effect, Evidence, Sample
from tiermem.reasoning.lesson import Lesson, held, reliability

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tiermem.types import FloatArray

ReadVersion = Callable[[str, int], Written]
_NOTHING: Final[dict[str, float]] = {}


class Table(NamedTuple):
    """The live lessons as columns, in the order of their ids."""

    ids: list[str]
    vectors: FloatArray
    reliability: NDArray[np.float64]
    log_reliability: NDArray[np.float64]
    """To the base 2."""
    confirmed_at: NDArray[np.float64]
    metadata: list[dict[str, Any]]
    places: dict[str, int]


class View:
    """Everything a bank knows after the first `count` entries of its log; a function of these and of nothing else."""

    def __init__(self, read: ReadVersion) -> None:
        self._read = read
        self.count = 0
        self.outcomes: dict[str, tuple[float, Admission]] = {}
        """Of every judged trajectory: since when that is known, and the newest verdict."""
        self.queue: dict[str, float] = {}
        """The trajectories to be judged once they are settled, and since when they wait."""
        self.current: dict[str, Written] = {}
        """The newest version of every lesson."""
        self._revisions: dict[str, list[tuple[int, float, int]]] = {}
        self._uses: dict[str, dict[str, float]] = {}
        self._users: dict[str, list[str]] = {}
        self._absorbers: dict[str, set[str]] = {}
        self._table: Table | None = None
        self._changed: set[str] = set()
        self._masks: dict[Any, NDArray[np.bool_]] = {}

    def advance(self, entries: list[Entry], count: int) -> None:
        """Add the entries up to number `count`."""
        for entry in entries[self.count : count]:
            self.count += 1
            self._add(entry)

    def _add(self, entry: Entry) -> None:
        for trajectory in entry.queued:
            self.queue.setdefault(trajectory, entry.known_at)
        for lesson, trajectory in entry.uses:
            self._uses.setdefault(lesson, {}).setdefault(trajectory, entry.known_at)
            self._users.setdefault(trajectory, []).append(lesson)
            self._touch(lesson)
        for one in entry.admitted:
            since = self.outcomes[one.trajectory][0] if one.trajectory in self.outcomes else entry.known_at
            self.outcomes[one.trajectory] = (since, one)
            self.queue.pop(one.trajectory, None)
            for lesson in self._users.get(one.trajectory, ()):
                self._touch(lesson)
        for lesson, number in entry.versions:
            self._revisions.setdefault(lesson, []).append((number, entry.known_at, self.count))
            self.current[lesson] = self._read(lesson, number)
            if (version := self.current[lesson].version).status == "live":
                for absorbed in version.absorbed:
                    self._absorbers.setdefault(absorbed, set()).add(lesson)
            self._table = None

    def _touch(self, lesson: str) -> None:
        """The uses of a lesson have changed, and so have those of the ones it was merged into."""
        self._changed.add(lesson)
        self._changed |= self._absorbers.get(lesson, set())

    def live(self) -> Iterator[Written]:
        """The lessons that are recalled, in the order of their ids."""
        return (self.current[id_] for id_ in sorted(self.current) if self.current[id_].version.status == "live")

    def used_by(self, version: Version) -> dict[str, float]:
        """The trajectories that used a lesson, or one that was merged into it, and since when that is known."""
        used = self._uses.get(version.lesson, _NOTHING)
        for absorbed in version.absorbed:
            for trajectory, since in self._uses.get(absorbed, _NOTHING).items():
                used = {**used, trajectory: min(since, used.get(trajectory, since))}
        return used

    def uses(self, version: Version) -> tuple[Evidence, ...]:
        """What became of the runs that used a lesson, as far as they are judged."""
        judged = [self.outcomes[trajectory][1] for trajectory in self.used_by(version) if trajectory in self.outcomes]
        return tuple(sorted(Evidence(one.trajectory, one.value, 1.0) for one in judged if one.value is not None))

    def confirmed_at(self, version: Version, uses: tuple[Evidence, ...]) -> float:
        """When the newest evidence of a version became known, or the newest use, or its restoration."""
        times = [self.outcomes[one.trajectory][0] for one in version.evidence]
        since = self.used_by(version)
        times += [max(since[one.trajectory], self.outcomes[one.trajectory][0]) for one in uses]
        if version.confirmed_at is not None:
            times.append(version.confirmed_at)
        return max(times, default=self._revisions[version.lesson][0][1])

    def lesson(self, id_: str) -> Lesson:
        """A lesson in its newest version."""
        number, known_at, _ = self._revisions[id_][-1]
        version, vector = self.current[id_]
        uses = self.uses(version)
        evidence = tuple(version.evidence)
        return Lesson(
            id=id_,
            version=number,
            status=version.status,
            reason=version.reason,
            kind=version.kind,
            action=version.action,
            title=version.title,
            description=version.description,
            content=version.content,
            vector=vector,
            evidence=evidence,
            uses=uses,
            baseline=version.baseline,
            p_value=version.p_value,
            created_at=self._revisions[id_][0][1],
            known_at=known_at,
            confirmed_at=self.confirmed_at(version, uses),
            observation=version.observation,
            agents=tuple(version.agents),
            tasks=tuple(version.tasks),
            contradicts=tuple(other for other in version.contradicts if self._is_live(other)),
            merged_into=version.merged_into,
            effect=self._effect(evidence, uses),
        )

    def revisions(self, id_: str) -> list[int]:
        """How many entries there were when each version of a lesson was written."""
        return [count for _, _, count in self._revisions.get(id_, ())]

    def _is_live(self, id_: str) -> bool:
        return id_ in self.current and self.current[id_].version.status == "live"

    def _effect(self, evidence: tuple[Evidence, ...], uses: tuple[Evidence, ...]) -> Effect | None:
        if not uses:
            return None
        used = {one.trajectory for one in uses}
        outcomes = [self.outcomes[one.trajectory][1].value for one in evidence if one.trajectory not in used]
        unused = [value for value in outcomes if value is not None]
        if not unused:
            return None
        return Effect(Sample.of([one.value for one in uses]), Sample.of(unused))

    def table(self) -> Table:
        """The live lessons as columns; made again only where a lesson changed."""
        table = self._table
        if table is None:
            table = self._table = self._columns()
            self._masks.clear()
        else:
            for id_ in self._changed & table.places.keys():
                self._judge(table, table.places[id_], self.current[id_].version)
        self._changed.clear()
        return table

    def mask(self, where: Callable[[dict[str, Any]], bool]) -> NDArray[np.bool_]:
        """Which rows of the table a filter lets through; kept until a lesson changes."""
        table = self.table()
        found = self._masks.get(where)
        if found is None:
            if len(self._masks) >= 64:
                self._masks.clear()
            found = self._masks[where] = np.fromiter(map(where, table.metadata), np.bool_, len(table.ids))
        return found

    def _columns(self) -> Table:
        live = list(self.live())
        certain, logs, confirmed = np.empty((3, len(live)), np.float64)
        ids = [version.lesson for version, _ in live]
        table = Table(
            ids,
            np.array([vector for _, vector in live], np.float32) if live else np.empty((0, 0), np.float32),
            certain,
            logs,
            confirmed,
            [describe(version) for version, _ in live],
            {id_: place for place, id_ in enumerate(ids)},
        )
        for place, (version, _) in enumerate(live):
            self._judge(table, place, version)
        return table

    def _judge(self, table: Table, place: int, version: Version) -> None:
        uses = self.uses(version)
        posterior = held(version.kind, tuple(version.evidence), uses)
        holds = reliability(version.kind, version.baseline, posterior)
        table.reliability[place] = holds
        table.log_reliability[place] = math.log2(holds) if holds > 0.0 else -math.inf
        table.confirmed_at[place] = self.confirmed_at(version, uses)


def describe(version: Version) -> dict[str, Any]:
    """What `where` of a recall looks at."""
    return {
        "id": version.lesson,
        "kind": version.kind,
        "action": version.action,
        "status": version.status,
        "title": version.title,
        "support": len(version.evidence),
        "agents": list(version.agents),
        "tasks": list(version.tasks),
    }
