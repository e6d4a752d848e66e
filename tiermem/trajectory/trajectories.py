"""Trajectories: what an agent saw, did and expected, step by step, and what came of it later.

Every fact told here carries the time since when it is known: a start, a step and an end the time they happened
(`at`), an outcome the time it was resolved (`resolved_at`), a verdict the time it was given (`at`). There is no other
time: whoever tells a fact vouches for that it was known then. A reader asks as of a moment t, and gets what a store
would hold that had only been told the facts of times up to t, t included; facts that others tell of the same moment t
later on still belong to it. Left out, t is the present by the store's clock, so that in a backtest what was told ahead
shows when its time has come, and not before.
"""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tiermem.clock import to_epoch
from tiermem.errors import EncodingError, InvalidArgument, RecordNotFound
from tiermem.trajectory.layout import RESERVED, Places, check_id, check_text, make_id, step_of
from tiermem.trajectory.run import Run
from tiermem.trajectory.types import LABELS, Label, Step, Trajectory, Verdict
from tiermem.trajectory.views import check_verdict, verdict_value, view, views

if TYPE_CHECKING:
    from tiermem.engine.memory import Memory
    from tiermem.types import Metadata, Moment, Progress, Record, Where

Found: TypeAlias = list[Trajectory]


class Trajectories:
    """The trajectories kept in one store under one name.

    Any number of processes may write and read them. A trajectory has one writer at a time; outcomes and verdicts may
    come from anywhere.
    """

    def __init__(self, mem: Memory, namespace: str = "trajectories") -> None:
        """mem: an open store. namespace: where they are kept; those of another name are strangers to these.

        Raises:
            InvalidNamespace: `namespace` is none.
        """
        self.mem = mem
        self.places = Places.under(namespace)

    def __repr__(self) -> str:
        return f"<tiermem.Trajectories {self.places.heads!r}>"

    def start(self, agent: str, task: str = "", *, metadata: Metadata | None = None, at: Moment | None = None) -> Run:
        """Begin a trajectory of `agent` at `task`.

        metadata: flat, what `where` filters on; "agent" and "task" are taken. at: when it began (default: the store's
        clock).

        Raises:
            InvalidArgument, EncodingError, ReadOnlyError: nothing was changed. Otherwise as `Memory.put`.
        """
        if metadata is not None and not isinstance(metadata, dict):
            raise EncodingError(f"metadata is a dict, not {type(metadata).__name__}")
        fields = dict(metadata or {})
        for name in RESERVED:
            if name in fields:
                raise InvalidArgument(f"metadata: {name!r} is an argument of its own")
        fields["agent"], fields["task"] = check_text("agent", agent), check_text("task", task)
        moment = self.mem.clock.now() if at is None else to_epoch(at)
        made = make_id(moment)
        self.mem.put(self.places.heads, made, None, metadata=fields, at=moment)
        return Run(self.mem, self.places, made, agent, task, moment)

    def resume(self, trajectory: str | Trajectory | Run) -> Run:
        """Go on with a trajectory that has not ended, as after a crash; whoever wrote it before must not go on.

        Raises:
            RecordNotFound: there is none. InvalidArgument: it has ended.
        """
        head = self._head(check_id(trajectory))
        for fact in self.mem.scan(self.places.facts, f"{head.key}/"):
            if "state" in fact.value:
                raise InvalidArgument(f"trajectory {head.key} has ended")
        last = next(self.mem.scan(self.places.steps, f"{head.key}/", limit=1, reverse=True), None)
        taken, latest = (0, head.at) if last is None else (step_of(last.key)[1] + 1, last.at)
        agent, task = head.metadata["agent"], head.metadata["task"]
        return Run(self.mem, self.places, head.key, agent, task, latest, taken, f"-{os.urandom(4).hex()}")

    def resolve(
        self, step: str | Step, outcome: Any, *, resolved_at: Moment | None = None, durable: bool = False
    ) -> None:
        """Tell the outcome of a step, by its id.

        outcome: what a value of a store may be, but None. resolved_at: since when it is known (default: the store's
        clock). To resolve a step again is to correct it: the resolution of the latest `resolved_at` counts, of equal
        ones the last that was told; the others stay, in `Step.earlier`.

        Raises:
            RecordNotFound: there is no such step. InvalidArgument: `outcome` is None, or `resolved_at` lies before the
            step. Otherwise as `Memory.put`. Nothing was changed.
        """
        if outcome is None:
            raise InvalidArgument("an outcome is not None: until it is told, the step is pending")
        key = step.id if isinstance(step, Step) else check_text("step", step)
        trajectory, _ = step_of(key)
        record = self.mem.get_record(self.places.steps, key)
        if record is None:
            raise RecordNotFound(f"no step {key}")
        moment = self.mem.clock.now() if resolved_at is None else to_epoch(resolved_at)
        if moment < record.at:
            raise InvalidArgument(f"step {key} was taken at {record.at}: its outcome was not known at {moment}")
        value = {"step": key[len(trajectory) + 1 :], "outcome": outcome}
        self.mem.put(self.places.facts, f"{trajectory}/{make_id(moment)}", value, at=moment, durable=durable)

    def record_verdict(self, verdict: Verdict, *, at: Moment | None = None, durable: bool = False) -> None:
        """Keep a judge's verdict with its trajectory. Earlier ones stay; the latest counts.

        at: since when it is known (default: the store's clock).

        Raises:
            RecordNotFound: there is no such trajectory. InvalidArgument: it is no verdict, or `at` lies before
            something the judge looked at. Otherwise as `Memory.put`. Nothing was changed.
        """
        head = self._head(check_id(check_verdict(verdict).trajectory))
        moment = self.mem.clock.now() if at is None else to_epoch(at)
        if moment < max(verdict.known_at, head.at):
            raise InvalidArgument(f"the verdict is of what was known at {verdict.known_at}, not yet at {moment}")
        value = {"verdict": verdict_value(verdict)}
        self.mem.put(self.places.facts, f"{head.key}/{make_id(moment)}", value, at=moment, durable=durable)

    def get(self, trajectory: str | Trajectory | Run, *, as_of: Moment | None = None) -> Trajectory | None:
        """One trajectory with its steps as it was known at `as_of` (default: now); None if there was none.

        Raises:
            InvalidArgument: `trajectory` is no id of one, or `as_of` no time.
        """
        moment = self.present(as_of)
        head = self.mem.get_record(self.places.heads, check_id(trajectory))
        return None if head is None else view(self.mem, self.places, head, moment)

    def list(
        self,
        agent: str | None = None,
        task: str | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        *,
        verdict: Label | None = None,
        pending: bool | None = None,
        where: Where | None = None,
        as_of: Moment | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Found:
        """Trajectories with their steps, by the time of their start, as they were known at `as_of` (default: now).

        since, until: begun in [since, until); costs what lies in between. verdict: only those whose latest verdict has
        this label. pending: only those with (True) or without (False) a step whose outcome is still to come. where: a
        filter on the metadata given at the start. limit: at most as many. reverse: the last to begin come first.

        Raises:
            FilterError, InvalidArgument.
        """
        moment = self.present(as_of)
        if verdict is not None and verdict not in LABELS:
            raise InvalidArgument(f"a verdict is one of {', '.join(LABELS)}, not {verdict!r}")
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
            raise InvalidArgument(f"limit is an int ≥ 0, not {limit!r}")
        conditions: list[Where] = [
            {name: item} for name, item in (("agent", agent), ("task", task)) if item is not None
        ]
        conditions += [] if where is None else [where]
        found = views(
            self.mem,
            self.places,
            moment,
            {"$and": conditions} if conditions else None,
            None if since is None else to_epoch(since),
            None if until is None else to_epoch(until),
            reverse=reverse,
        )
        chosen = (
            trajectory
            for trajectory in found
            if (verdict is None or (trajectory.verdict is not None and trajectory.verdict.label == verdict))
            and (pending is None or any(step.pending for step in trajectory.steps) == pending)
        )
        return [*islice(chosen, limit)]

    def export_jsonl(
        self, path: str | os.PathLike[str], *, as_of: Moment | None = None, progress: Progress | None = None
    ) -> int:
        """Write all trajectories, as they were known at `as_of` (default: now), one a line; how many.

        A line holds every resolution and verdict known then, so that a store that imports it answers for every moment
        up to `as_of` as this one does. `progress` is told (written, in all). The file appears when it is whole.
        """
        from tiermem.trajectory import jsonl

        return jsonl.write(self, Path(path), self.present(as_of), progress)

    def import_jsonl(self, path: str | os.PathLike[str], *, progress: Progress | None = None) -> int:
        """Add what the lines of an export tell that is not there yet; how many trajectories were new or grew.

        Ids stay, so that importing a file twice changes nothing. A line is added whole or not at all. `progress` is
        told (bytes read, in all).

        Raises:
            InvalidArgument: a line is malformed, or contradicts what is there; its number is told. Lines before stand.
        """
        from tiermem.trajectory import jsonl

        return jsonl.read(self, Path(path), progress)

    def present(self, as_of: Moment | None) -> float:
        """The moment a reader asks about: `as_of`, or now by the store's clock (epoch seconds)."""
        return self.mem.clock.now() if as_of is None else to_epoch(as_of)

    def _head(self, trajectory: str) -> Record:
        head = self.mem.get_record(self.places.heads, trajectory)
        if head is None:
            raise RecordNotFound(f"no trajectory {trajectory}")
        return head
