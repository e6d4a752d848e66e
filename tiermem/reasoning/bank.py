"""The reasoning bank: what was learned from runs that have ended, recalled where a situation is like one of theirs.

The loop is that of Ouyang et al. 2025, "ReasoningBank: Scaling Agent Self-Evolving with Reasoning Memory"
(arXiv 2509.25140): recall, act, judge, distil, consolidate.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from msgspec.structs import replace

from tiermem.clock import to_epoch
from tiermem.engine.memory import Memory
from tiermem.errors import DimensionMismatch, InvalidArgument, InvalidVector, RecordNotFound
from tiermem.policy.filters import compile_filter
from tiermem.reasoning._admission import Recorded, admission, judged_run
from tiermem.reasoning._consolidation import Upkeep, consolidated
from tiermem.reasoning._ledger import Draft, Entry, Ledger, Op, Written
from tiermem.reasoning._ranking import Ranking, rank
from tiermem.reasoning._revision import revised, rewritten
from tiermem.reasoning._view import View, describe
from tiermem.reasoning._words import Write
from tiermem.reasoning.cluster import unit_rows
from tiermem.reasoning.distill import Distiller, Distils, in_words
from tiermem.reasoning.lesson import Lesson, LessonHit, held, reliability
from tiermem.reasoning.verdict import Judge
from tiermem.trajectory.layout import check_id
from tiermem.trajectory.run import Run
from tiermem.trajectory.trajectories import Trajectories
from tiermem.trajectory.types import Trajectory
from tiermem.types import Moment, Vector, Where

if TYPE_CHECKING:
    from tiermem.types import FloatArray

_MANY: Final = 64
"""Trajectories from which on what is pending is committed first: reading them looks through all of it."""


class ReasoningBank:
    """Lessons from judged trajectories, in a store; any number of processes may use it at a time.

    Everything it is told and concludes is kept with the time since when it is known, by the store's clock unless
    `as_of` says otherwise, and never changed again. Read `as_of` a time, it answers as it would have answered then.
    """

    def __init__(
        self,
        mem: Memory,
        *,
        judge: Judge | None = None,
        distiller: Distils | None = None,
        write: Write = in_words,
        ranking: Ranking | None = None,
        upkeep: Upkeep | None = None,
        trajectories: Trajectories | None = None,
        name: str = "lessons",
    ) -> None:
        """A bank in `mem`.

        judge: of what is learned (default: `Recorded`). distiller: what finds situations (default: `Distiller()`).
        write: called with a `Situation`, it returns the words of a lesson: a `Text`, or a str whose first line is the
        title (default: the template `in_words`). ranking, upkeep: how recall orders, and consolidation decides.
        trajectories: where runs are kept (default: `Trajectories(mem)`). name: the first part of the bank's namespaces.
        """
        self._mem = mem
        self._judge: Judge = Recorded() if judge is None else judge
        self._distiller: Distils = Distiller() if distiller is None else distiller
        self._write = write
        self.ranking = ranking or Ranking()
        self.upkeep = upkeep or Upkeep()
        self._trail = trajectories or Trajectories(mem)
        self._ledger = Ledger(mem, name)
        self._now = View(self._ledger.written)
        self._then = View(self._ledger.written)
        self._told = View(self._ledger.written)
        self._lock = threading.Lock()
        self._telling = threading.Lock()

    # ------------------------------------------------------------------------------------------------ what it is told

    def learn(
        self, trajectories: str | Trajectory | Run | Iterable[str | Trajectory | Run], *, as_of: Moment | None = None
    ) -> int:
        """Judge one trajectory, or several at the cost of one commit; how many were judged.

        One that has not ended, or whose outcomes are not all known at `as_of`, waits in the queue until `settle`,
        `distil` or `consolidate` finds them. Learned again, a trajectory is judged anew and still counts once.

        Raises:
            RecordNotFound: there is no such trajectory. InvalidArgument: the bank has changed since `as_of`.
        """
        ids = list(dict.fromkeys(map(check_id, _several(trajectories))))

        def build(view: View, at: float) -> Draft:
            runs = self._runs(ids, at)
            judged = [admission(self._judge, run) for run in runs if run.settled]
            new = [one for one in judged if view.outcomes.get(one.trajectory, (at, None))[1] != one]
            queued = [run.id for run in runs if not run.settled and run.id not in view.queue]
            return Draft(Entry("learn", at, admitted=new, queued=queued), [], len(new))

        return int(self._tell(as_of, build))

    def settle(self, *, as_of: Moment | None = None) -> int:
        """Judge those of the queue whose outcomes are all known by now; how many."""

        def build(view: View, at: float) -> Draft:
            runs = self._runs(view.queue, at)
            admitted = [admission(self._judge, run) for run in runs if run.settled]
            return Draft(Entry("settle", at, admitted=admitted), [], len(admitted))

        return int(self._tell(as_of, build))

    def used(
        self,
        lessons: str | Lesson | LessonHit | Iterable[str | Lesson | LessonHit],
        trajectory: str | Trajectory | Run,
        *,
        as_of: Moment | None = None,
    ) -> None:
        """A trajectory acted on lessons: what becomes of it, once it is judged, speaks for or against them.

        It is put into the queue, as if learned. Said twice it counts once.

        Raises:
            RecordNotFound: no such lesson or trajectory. InvalidArgument: the bank has changed since `as_of`.
        """
        ids = list(dict.fromkeys(map(_lesson_id, _several(lessons))))
        run = check_id(trajectory)

        def build(view: View, at: float) -> Draft:
            for id_ in ids:
                if id_ not in view.current:
                    raise RecordNotFound(f"no lesson {id_!r} was known at {at}")
            self._runs([run], at)
            new = [(id_, run) for id_ in ids if run not in view.used_by(view.current[id_].version)]
            waits = [run] if new and run not in view.queue and run not in view.outcomes else []
            return Draft(Entry("use", at, uses=new, queued=waits), [], None)

        self._tell(as_of, build)

    # --------------------------------------------------------------------------------------------- what it concludes

    def distil(self, since: Moment | None = None, as_of: Moment | None = None) -> list[Lesson]:
        """Find lessons in what was learned; those that are new or have new evidence.

        since: only in trajectories whose verdict became known at or after it. as_of: with what was known then (default:
        now); that is since when the lessons are known, too.

        Raises:
            InvalidArgument: the bank has changed since `as_of`; its past stays as it was.
        """
        start = None if since is None else to_epoch(since)
        self.settle(as_of=as_of)

        def build(view: View, at: float) -> Draft:
            judged = [
                one
                for known, one in view.outcomes.values()
                if one.value is not None and (start is None or known >= start)
            ]
            runs = self._runs([one.trajectory for one in judged], at)
            situations = self._distiller.distil([judged_run(*pair) for pair in zip(runs, judged, strict=True)])
            versions = revised(
                situations,
                [view.current[id_] for id_ in sorted(view.current)],
                self.upkeep.duplicate,
                write=self._write,
                entry=view.count,
                admissions={id_: one for id_, (_, one) in view.outcomes.items()},
            )
            return _draft("distil", at, versions)

        return self._written(self._tell(as_of, build))

    def consolidate(self, as_of: Moment | None = None) -> list[Lesson]:
        """Merge lessons that say the same, link those that contradict each other, retire the weak and the stale.

        What has changed, as it is now; `history` has the reasons and what was before, and `restore` brings that back.

        Raises:
            InvalidArgument: the bank has changed since `as_of`.
        """
        self.settle(as_of=as_of)

        def build(view: View, at: float) -> Draft:
            live = list(view.live())
            texts = [one.version for one in live]
            versions = consolidated(
                live,
                at,
                self.upkeep,
                reliability_of=lambda version: reliability(
                    version.kind,
                    version.baseline,
                    held(version.kind, tuple(version.evidence), view.uses(version)),
                ),
                confirmed_at=lambda version: view.confirmed_at(version, view.uses(version)),
                rewrite=lambda one: rewritten(one, self._write, texts),
            )
            return _draft("consolidate", at, versions)

        return self._written(self._tell(as_of, build))

    def restore(self, lesson: str | Lesson | LessonHit, version: int, *, as_of: Moment | None = None) -> Lesson:
        """Make an earlier version of a lesson the current one again, as a new version; it counts as confirmed now.

        Where two were merged, restore the one that was kept to the version before, too.

        Raises:
            RecordNotFound: there is no such version. InvalidArgument: the bank has changed since `as_of`.
        """
        id_ = _lesson_id(lesson)

        def build(view: View, at: float) -> Draft:
            count = len(view.revisions(id_))
            if not isinstance(version, int) or not 1 <= version <= count:
                raise RecordNotFound(f"lesson {id_!r} has {count} versions at {at}, and no version {version!r}")
            old, vector = self._ledger.written(id_, version)
            new = replace(old, number=count + 1, reason=f"version {version} restored", confirmed_at=at)
            return _draft("restore", at, [Written(new, vector)])

        return self._written(self._tell(as_of, build))[0]

    # ------------------------------------------------------------------------------------------------ what it answers

    def recall(
        self,
        query: Vector | str,
        k: int = 5,
        as_of: Moment | None = None,
        where: Where | None = None,
    ) -> list[LessonHit]:
        """The min(k, matches) lessons that matter most in a situation, best first; see `Ranking` for the order.

        query: a vector (d,), or a text for the store's embedder. where: a filter on the fields id, kind, action, title,
        support, agents, tasks. as_of: with what was known then (default: now).

        Raises:
            InvalidVector, DimensionMismatch: the query is no vector of the lessons' dimension.
            InvalidArgument: a text, and no embedder. FilterError: `where` is none.
        """
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise InvalidArgument(f"k is an int ≥ 1, not {k!r}")
        passes = compile_filter(where)
        vector = self._vector(query)
        with self._lock:
            view, at = self._view(as_of)
            table = view.table()
            if not table.ids:
                return []
            if len(vector) != table.vectors.shape[1]:
                raise DimensionMismatch(
                    f"the lessons have {table.vectors.shape[1]} dimensions, the query {len(vector)}"
                )
            mask = None if passes is None else view.mask(passes)
            found = []
            for one in rank(table, vector, k, at, self.ranking, mask):
                lesson = view.lesson(table.ids[one.place])
                opposed = tuple(view.lesson(other) for other in lesson.contradicts)
                found.append(LessonHit(lesson, *one[1:], opposed))
            return found

    def lesson(self, id: str, as_of: Moment | None = None) -> Lesson | None:
        """A lesson, whatever its status, or None if there was none."""
        with self._lock:
            view, _ = self._view(as_of)
            return view.lesson(id) if id in view.current else None

    def lessons(
        self, *, where: Where | None = None, as_of: Moment | None = None, every: bool = False
    ) -> Iterator[Lesson]:
        """The live lessons, oldest first; with `every`, merged and retired ones too. `where` as in `recall`."""
        passes = compile_filter(where)
        with self._lock:
            view, _ = self._view(as_of)
            chosen = [view.current[id_].version for id_ in sorted(view.current)]
            return iter(
                [
                    view.lesson(version.lesson)
                    for version in chosen
                    if (every or version.status == "live") and (passes is None or passes(describe(version)))
                ]
            )

    def history(self, id: str, as_of: Moment | None = None) -> list[Lesson]:
        """Every version of a lesson, oldest first, as it was when it was written; [] if there is no such lesson.

        Reads the log anew.
        """
        with self._lock:
            counts = self._view(as_of)[0].revisions(id)
        then, found = View(self._ledger.written), list[Lesson]()
        for count in counts:
            then.advance(self._ledger.entries, count)
            found.append(then.lesson(id))
        return found

    def queued(self, as_of: Moment | None = None) -> list[str]:
        """The trajectories that wait for outcomes, in the order they were told of."""
        with self._lock:
            return list(self._view(as_of)[0].queue)

    # --------------------------------------------------------------------------------------------------------- inside

    def _view(self, as_of: Moment | None) -> tuple[View, float]:
        """What is known at `as_of`, and that time in epoch seconds."""
        ledger = self._ledger
        newest = ledger.refresh()
        at, count = ledger.known(as_of)
        if count >= newest:
            self._now.advance(ledger.entries, count)
            return self._now, at
        if self._then.count > count:
            self._then = View(ledger.written)
        self._then.advance(ledger.entries, count)
        return self._then, at

    def _tell(self, as_of: Moment | None, build: Callable[[View, float], Draft]) -> Any:
        """Append what `build` makes of all that is known; the answer of its draft."""

        def drafted(at: float, count: int) -> Draft:
            self._told.advance(self._ledger.entries, count)
            return build(self._told, at)

        # Not the lock of those who ask: they need not wait while lessons are being found.
        with self._telling:
            return self._ledger.append(as_of, drafted)

    def _written(self, ids: list[str]) -> list[Lesson]:
        """Lessons as they are after they were told of."""
        with self._telling:
            self._told.advance(self._ledger.entries, self._ledger.refresh())
            return [self._told.lesson(id_) for id_ in ids]

    def _runs(self, trajectories: Collection[str], at: float) -> list[Trajectory]:
        """Trajectories as they were known at a time."""
        if len(trajectories) > _MANY:
            self._mem.flush()
        found = []
        for id_ in trajectories:
            run = self._trail.get(id_, as_of=at)
            if run is None:
                raise RecordNotFound(f"no trajectory {id_!r} was known at {at}")
            found.append(run)
        return found

    def _vector(self, query: Vector | str) -> FloatArray:
        """A query as a unit vector."""
        if isinstance(query, str):
            if self._mem.embedder is None:
                raise InvalidArgument("a text is recalled by a store that was opened with an embedder")
            query = self._mem.embedder.embed([query])[0]
        try:
            vector: FloatArray = np.asarray(query, np.float32)
        except (TypeError, ValueError) as exc:
            raise InvalidVector(f"a query is a vector or a text: {exc}") from exc
        if vector.ndim != 1 or not np.isfinite(vector).all() or not vector.any():
            raise InvalidVector("a query is a 1-D vector of finite numbers that are not all 0")
        unit: FloatArray = unit_rows(vector[None, :])[0]
        return unit


def _draft(op: Op, at: float, versions: Sequence[Written]) -> Draft:
    names = [(one.version.lesson, one.version.number) for one in versions]
    return Draft(Entry(op, at, versions=names), list(versions), [lesson for lesson, _ in names])


def _several(given: object) -> Iterable[object]:
    """One thing, or many; what is neither is found out by whoever looks at it."""
    return given if isinstance(given, Iterable) and not isinstance(given, str | LessonHit) else [given]


def _lesson_id(lesson: object) -> str:
    if isinstance(lesson, LessonHit):
        return lesson.lesson.id
    found = lesson.id if isinstance(lesson, Lesson) else lesson
    if not isinstance(found, str):
        raise InvalidArgument(f"a lesson is a Lesson, a LessonHit or an id, not {type(lesson).__name__}")
    return found
