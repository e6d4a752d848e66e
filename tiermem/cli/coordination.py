"""Commands on what processes agree upon: locks, votes."""

from __future__ import annotations

from argparse import Namespace

import tiermem
from tiermem.cli.outcome import OK
from tiermem.cli.screen import brief, moment, put_json, show_table
from tiermem.cli.stores import open_store


def locks(options: Namespace) -> int:
    with open_store(options) as mem:
        found = tiermem.Locks(mem, namespace=options.namespace).list()
        now = mem.clock.now()
    if options.json:
        for state in found:
            holders = [holder._asdict() for holder in state.holders]
            put_json({"name": state.name, "holders": holders, "waiting": list(state.waiting)})
        return OK
    rows = []
    for state in found:
        waiting = f"{len(state.waiting)}: {', '.join(state.waiting)}" if state.waiting else ""
        for holder in state.holders:
            kind = (
                "shared" if holder.permits is None else "exclusive" if holder.permits == 1 else f"1 of {holder.permits}"
            )
            rows.append(
                (state.name, holder.owner, kind, str(holder.fence), f"{holder.expires_at - now:,.1f} s", waiting)
            )
            waiting = ""
        if not state.holders:
            rows.append((state.name, "", "free", "", "", waiting))
    show_table("locks", ("lock", "owner", "kind", "fence#", "ends in#", "waiting"), rows)
    return OK


def votes(options: Namespace) -> int:
    with open_store(options) as mem:
        ledger = tiermem.Votes(mem, namespace=options.namespace)
        found = [(one, ledger.history(one.id)) for one in ledger.list(options.outcome)]
    if options.json:
        for one, ballots in found:
            form = {**one._asdict(), "electorate": dict(one.electorate), "votes": dict(one.votes)}
            put_json({**form, "history": [ballot._asdict() for ballot in ballots]})
        return OK
    rows = [
        (one.id, brief(one.payload), one.outcome, _tally(one), f"{one.threshold:g} of {one.quorum:g}", _end(one))
        for one, _ in found
    ]
    show_table(
        "votes", ("proposal", "payload", "outcome", "votes", "threshold of quorum", "decided, or deadline"), rows
    )
    return OK


def _tally(proposal: tiermem.Proposal) -> str:
    """What each member said, and its weight."""
    marks = {True: "+", False: "−", None: "?"}
    said = [f"{marks[proposal.votes.get(member)]}{member} {weight:g}" for member, weight in proposal.electorate.items()]
    return "  ".join(said)


def _end(proposal: tiermem.Proposal) -> str:
    return moment(proposal.deadline if proposal.decided_at is None else proposal.decided_at)
