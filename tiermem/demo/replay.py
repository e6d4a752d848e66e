"""The loop: rows of the market through the agent, onto a desk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tiermem.demo.agent import Agent, Position
from tiermem.demo.desk import Checkpoint, Desk
from tiermem.demo.market import Book, TickFile

_TELL_EVERY = 2048


@dataclass(slots=True)
class Progress:
    """How far the replay is; changed in place, so that whoever shows it may look at any time."""

    first: int = 0
    row: int = 0
    ms: int = 0
    done: bool = False
    position: Position = field(default_factory=Position)
    agent: Agent = field(default_factory=Agent)


def replay(
    ticks: TickFile,
    desk: Desk,
    *,
    limit: int | None = None,
    progress: Progress | None = None,
    tell: Callable[[], bool] = lambda: True,
) -> Progress:
    """Play the rows of `ticks` from the desk's last checkpoint on.

    limit: stop before this row, as if interrupted.
    tell: called every 2,048 rows; the replay stops, as if interrupted, when it returns False.

    The agent is a function of the rows and of what the desk gives back, and the desk stands at a
    checkpoint whenever the replay begins: stopping anywhere, in whatever way, and going on later ends
    where an uninterrupted replay ends.
    """
    progress = progress or Progress()
    resumed = desk.resume()
    agent, book = progress.agent, Book()
    if resumed is not None:
        checkpoint, past = resumed
        agent, book = Agent.restore(checkpoint.agent, past), Book.restore(checkpoint.book)
        progress.agent, progress.done = agent, checkpoint.done
        progress.first, progress.row, progress.ms = checkpoint.row, checkpoint.row, checkpoint.ms
    if progress.done or not tell():
        return progress
    now, following, position = progress.ms, progress.first, desk.position()
    for row in ticks.rows(following):
        if row.number == limit:
            break
        if not row.number % _TELL_EVERY:
            progress.row, progress.ms, progress.position = following, now, position
            if not tell():
                break
        if row.ms != now:
            now = row.ms
            desk.set_time(now)
        book.apply(row)
        desk.quote(row.exchange, book.quote(row.exchange), now)
        position = desk.position()
        following = row.number + 1
        if agent.due(row, book, position):
            seen = agent.observe(row, book)
            matches = desk.similar(seen, agent.known_ms) if agent.searches else None
            effects = agent.act(seen, matches, book, position, desk.cash())
            desk.commit(effects, Checkpoint(following, now, book.state(), agent.state()))
    else:
        desk.finish(Checkpoint(following, now, book.state(), agent.state(), done=True))
        progress.done = True
    progress.row, progress.ms, progress.position = following, now, desk.position()
    return progress
