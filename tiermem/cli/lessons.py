"""The command that looks at lessons."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from tiermem.cli.outcome import FINDING, OK, complain
from tiermem.cli.screen import brief, moment, put_json, show_table
from tiermem.cli.stores import as_of, open_store

if TYPE_CHECKING:
    from tiermem.reasoning.lesson import Lesson


def lessons(options: Namespace) -> int:
    # Loaded where it is asked for: no other command needs it.
    from tiermem.reasoning.bank import ReasoningBank

    with open_store(options) as mem:
        bank = ReasoningBank(mem, name=options.namespace)
        known = as_of(options, mem)
        if options.show is not None:
            found = bank.history(options.show, as_of=known)
            if not found:
                complain(options, f"no lesson {options.show!r}")
                return FINDING
        else:
            found = list(bank.lessons(where=options.where, as_of=known, every=options.every))
    if options.json:
        for one in found:
            put_json(_form(one))
    elif options.show is not None:
        _show_one(found)
    else:
        columns = (
            "id",
            "status",
            "lesson",
            "runs#",
            "success#",
            "95 %",
            "reliability#",
            "uses#",
            "effect",
            "confirmed",
        )
        show_table(options.namespace, columns, map(_row, found))
    return OK


def _row(one: Lesson) -> tuple[str, ...]:
    return (
        one.id,
        one.status,
        one.title,
        f"{one.support:,}",
        _success(one),
        f"{one.reliability:.3f}",
        f"{len(one.uses):,}",
        _effect(one),
        moment(one.confirmed_at),
    )


def _show_one(versions: list[Lesson]) -> None:
    last = versions[-1]
    columns = ("version#", "known since", "status", "reason", "runs#", "success, 95 %", "reliability#", "uses#")
    rows = (
        (
            str(one.version),
            moment(one.known_at),
            one.status,
            one.reason,
            f"{one.support:,}",
            _success(one),
            f"{one.reliability:.3f}",
            f"{len(one.uses):,}",
        )
        for one in versions
    )
    opposed = f"  contradicted by {', '.join(last.contradicts)}" if last.contradicts else ""
    seen = "" if last.observation is None else f"  {brief(last.observation)}"
    show_table(f"{last.id}  {last.title}", columns, rows, note=f"{last.content}{seen}{opposed}")


def _success(one: Lesson) -> str:
    low, high = one.success.interval()
    return f"{one.success.mean:.1%} ({low:.0%} to {high:.0%})"


def _effect(one: Lesson) -> str:
    if one.effect is None:
        return ""
    low, high = one.effect.interval()
    return f"{one.effect.difference:+.2f} ({low:+.2f} to {high:+.2f})"


def _form(one: Lesson) -> dict[str, Any]:
    """A lesson for machines: its fields, and what follows from them."""
    fields = {name: getattr(one, name) for name in one.__struct_fields__}
    effect = None
    if one.effect is not None:
        effect = {"difference": one.effect.difference, "interval": list(one.effect.interval())}
    return {
        **fields,
        "vector": one.vector.tolist(),
        "evidence": [part._asdict() for part in one.evidence],
        "uses": [part._asdict() for part in one.uses],
        "agents": list(one.agents),
        "tasks": list(one.tasks),
        "contradicts": list(one.contradicts),
        "effect": effect,
        "success": {**one.success._asdict(), "mean": one.success.mean, "interval": list(one.success.interval())},
        "reliability": one.reliability,
    }
