"""A desk of three processes around one store: signal publishes, risk votes, execution trades what was approved.

    python docs/examples/desk.py STORE signal &
    python docs/examples/desk.py STORE risk &
    python docs/examples/desk.py STORE execution &

Each may be killed at any moment and started again; at the end position, cash and orders are the same. That takes three
things: a message is acknowledged after everything it led to was written, whatever it led to may happen twice, and what
must not happen twice is written in one batch, under a lock, with a record that says that it was done.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import tiermem

SIGNALS = 40
LIMIT = 70
ELECTORATE = {"signal": 1.0, "risk": 2.0}


def signal_of(number: int) -> dict[str, object]:
    """The signal of that number: which order it proposes."""
    return {"number": number, "order": f"order-{number:04d}", "size": 10 + number * 37 % 90, "px": 4800 + number}


def signal(mem: tiermem.Memory) -> None:
    """Propose an order for each signal, vote for it, and publish it."""
    topics, votes = tiermem.Topics(mem), tiermem.Votes(mem)
    for number in range(mem.get("desk/done", "signal", 0), SIGNALS):
        found = signal_of(number)
        # Under an id of its own it is proposed once, however often this is reached.
        order = votes.propose("order", electorate=ELECTORATE, threshold=0.66, payload=found, id=str(found["order"]))
        votes.cast(order, "signal", approve=True)
        topics.publish("signals/AIG", found)
        mem.put("desk/done", "signal", number + 1)


def risk(mem: tiermem.Memory) -> None:
    """Vote on each order: for it if it is not too large."""
    votes = tiermem.Votes(mem)
    for found in received(mem, "risk"):
        votes.cast(found["order"], "risk", approve=found["size"] <= LIMIT)


def execution(mem: tiermem.Memory) -> None:
    """Trade each order that was approved: position, cash and order together, once."""
    locks, votes = tiermem.Locks(mem), tiermem.Votes(mem)
    for found in received(mem, "execution"):
        while votes.wait(found["order"]) == "approved" and not mem.contains("desk/orders", found["order"]):
            try:
                with locks.acquire("book", ttl=2.0, owner="execution") as lease:
                    trade(mem, found, lease)
            except (tiermem.LeaseLost, tiermem.GuardFailed):
                # It took too long, and whoever holds the lock now may have traded it: look again.
                continue


def trade(mem: tiermem.Memory, found: dict[str, object], lease: tiermem.Lease) -> None:
    """Write what a trade changes; nothing of it if the lock is another's by now."""
    order, size, px = str(found["order"]), int(str(found["size"])), int(str(found["px"]))
    # Whoever held the lock before may have come so far.
    if not mem.contains("desk/orders", order):
        with mem.batch() as batch:
            batch.put("desk/book", "position", mem.get("desk/book", "position", 0) + size, guard=lease.guard)
            batch.put("desk/book", "cash", mem.get("desk/book", "cash", 0) - size * px)
            batch.put("desk/orders", order, {"size": size, "px": px, "fence": lease.fence})


def received(mem: tiermem.Memory, role: str) -> Iterator[dict[str, object]]:
    """The signals, in order; each is acknowledged when the next one is asked for, and comes again if it never is."""
    agents = tiermem.Agents(mem)
    with tiermem.Topics(mem).subscribe("signals/*", start="earliest", consumer=role) as signals:
        while mem.get("desk/done", role, 0) < SIGNALS:
            agents.beat(role, ttl=5.0)
            message = signals.get(timeout=1.0)
            if message is not None:
                yield message.payload
                mem.put("desk/done", role, message.payload["number"] + 1)
                signals.ack(message)


ROLES = {"signal": signal, "risk": risk, "execution": execution}

if __name__ == "__main__":
    with tiermem.open(sys.argv[1]) as store:
        ROLES[sys.argv[2]](store)
