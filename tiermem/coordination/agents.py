"""The registry of agents: who is alive, as far as their heartbeats tell."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from tiermem.errors import InvalidArgument
from tiermem.types import check_namespace

if TYPE_CHECKING:
    from tiermem.engine.memory import Memory
    from tiermem.types import Duration, Record


class Agent(NamedTuple):
    """An agent that is alive. `since`: its first heartbeat without a gap up to now; `beat_at`: its last one.

    Times are epoch seconds of the store's clock.
    """

    name: str
    info: Any
    since: float
    beat_at: float
    expires_at: float


class Agents:
    """Who works on a store: each agent says from time to time that it is alive, and is gone when it no longer does.

    A heartbeat is a put with a TTL: it costs no commit of its own, and other processes see it as soon as any put. It
    tells who is there, and grants nothing: of two agents of one name each is taken for the other. What
    only one may do needs a lock.

    >>> import tiermem
    >>> clock = tiermem.SimulatedClock(100.0)
    >>> with tiermem.open("./memory", clock=clock) as mem:
    ...     agents = tiermem.Agents(mem)
    ...     agents.beat("risk", ttl=5.0, info={"limits": 3})
    ...     agents.beat("execution", ttl=60.0)
    ...     now = clock.advance(10.0)
    ...     [agent.name for agent in agents.alive()]
    ['execution']
    """

    def __init__(self, mem: Memory, *, namespace: str = "agents") -> None:
        self._mem = mem
        self._namespace = check_namespace(namespace)

    def beat(self, name: str, *, ttl: Duration = 10.0, info: Any = None) -> None:
        """Be alive for `ttl` from now. name: a key. info: what others should know; it replaces what was said before.

        Raises:
            InvalidArgument, InvalidKey, EncodingError: nothing was changed.
        """
        if ttl is None:
            raise InvalidArgument("a heartbeat has a ttl: without one an agent would be alive for ever")
        self._mem.put(self._namespace, name, info, ttl=ttl)

    def leave(self, name: str) -> bool:
        """Be gone at once; True if it was alive."""
        return self._mem.delete(self._namespace, name)

    def get(self, name: str) -> Agent | None:
        """An agent; None if it is not alive."""
        record = self._mem.get_record(self._namespace, name)
        return None if record is None else _agent(record)

    def alive(self, prefix: str = "") -> list[Agent]:
        """The agents that are alive, those whose names start with `prefix`, by name."""
        return [_agent(record) for record in self._mem.scan(self._namespace, prefix)]


def _agent(record: Record) -> Agent:
    # Heartbeats have a TTL; a record that was put here by hand may have none.
    expires = math.inf if record.expires_at is None else record.expires_at
    return Agent(record.key, record.value, record.created_at, record.updated_at, expires)
