"""The command that looks at trajectories."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from tiermem.cli.outcome import FINDING, OK, complain
from tiermem.cli.screen import SHOWN, brief, fields, moment, put_json, show_table
from tiermem.cli.stores import as_of, open_store

if TYPE_CHECKING:
    from tiermem.trajectory.types import Step, Trajectory


def trajectories(options: Namespace) -> int:
    # Loaded where it is asked for: no other command needs it.
    from tiermem.trajectory.jsonl import form
    from tiermem.trajectory.trajectories import Trajectories

    with open_store(options) as mem:
        trail = Trajectories(mem, options.namespace)
        known = as_of(options, mem)
        if options.show is not None:
            found = trail.get(options.show, as_of=known)
            if found is None:
                complain(options, f"no trajectory {options.show!r}")
                return FINDING
            if options.json:
                put_json(form(found))
            else:
                _show_one(found)
            return OK
        limit = options.limit if options.limit is not None or options.json else SHOWN + 1
        listed = trail.list(
            options.agent,
            options.task,
            options.since,
            options.until,
            verdict=options.verdict,
            pending=True if options.pending else None,
            where=options.where,
            as_of=known,
            limit=limit,
            reverse=not options.oldest,
        )
    if options.json:
        for one in listed:
            put_json(form(one))
        return OK
    more = options.limit is None and len(listed) > SHOWN
    shown = listed[:SHOWN] if more else listed
    columns = ("id#", "agent", "task", "started", "state", "steps#", "pending#", "reward#", "verdict", "metadata")
    note = f"{SHOWN} of more; --limit N shows more" if more else ""
    show_table(options.namespace, columns, _rows(shown), note=note)
    return OK


def _rows(listed: Iterable[Trajectory]) -> Iterator[tuple[str, ...]]:
    for one in listed:
        rewards = [step.reward for step in one.steps if step.reward is not None]
        yield (
            one.id,
            one.agent,
            one.task,
            moment(one.started),
            one.state if one.success is None else f"{one.state}, {'success' if one.success else 'failure'}",
            f"{len(one.steps):,}",
            f"{len(one.pending):,}",
            f"{sum(rewards):g}" if rewards else "",
            _verdict(one),
            fields(one.metadata),
        )


def _verdict(one: Trajectory) -> str:
    verdict = one.verdict
    if verdict is None:
        return ""
    return f"{verdict.label} {verdict.hits}/{verdict.judged}, {verdict.confidence:.0%} sure"


def _show_one(one: Trajectory) -> None:
    verdict = one.verdict
    labels = {} if verdict is None else {step.step: step.label for step in verdict.steps}
    columns = ("step#", "at", "observation", "action", "predicted", "reward#", "outcome", "resolved", "verdict")
    rows = (
        (
            str(step.number),
            moment(step.at),
            _cell(step.observation),
            _cell(step.action),
            _cell(step.predicted),
            "" if step.reward is None else f"{step.reward:g}",
            _outcome(step),
            "" if step.resolved_at is None else moment(step.resolved_at),
            labels.get(step.id, ""),
        )
        for step in one.steps
    )
    end = "" if one.finished is None else f" at {moment(one.finished)}"
    why = "" if one.reason is None else f": {one.reason}"
    judged = "" if verdict is None else f"; {verdict.judge}: {_verdict(one)}"
    show_table(
        f"{one.agent}  {one.task}  {one.id}",
        columns,
        rows,
        note=f"{one.state}{end}{why}{judged}  {fields(one.metadata)}",
    )


def _outcome(step: Step) -> str:
    if step.pending:
        return "pending"
    corrected = f" (corrected {len(step.earlier)} times)" if step.earlier else ""
    return _cell(step.outcome) + corrected


def _cell(value: object) -> str:
    return "" if value is None else brief(value)
