"""The registry of agents: who is alive."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import tiermem
from tests.workers import START, Peer, eventually
from tiermem import Agents, EncodingError, InvalidArgument, InvalidKey, Memory, SimulatedClock


def test_heartbeats(mem: Memory, clock: SimulatedClock) -> None:
    agents = Agents(mem)
    assert agents.alive() == []
    agents.beat("risk", ttl=5.0, info={"limits": [1, 2]})
    agents.beat("desk/execution", ttl=timedelta(seconds=20))
    agents.beat("desk/signal")
    assert agents.get("risk") == ("risk", {"limits": [1, 2]}, START, START, START + 5.0)
    assert [agent.name for agent in agents.alive("desk/")] == ["desk/execution", "desk/signal"]
    clock.advance(4.0)
    agents.beat("risk", ttl=5.0)
    assert agents.get("risk") == ("risk", None, START, START + 4.0, START + 9.0)
    clock.advance(5.0)
    assert agents.get("risk") is None
    assert [agent.name for agent in agents.alive()] == ["desk/execution", "desk/signal"]
    agents.beat("risk")
    back = agents.get("risk")
    assert back is not None
    assert back.since == START + 9.0, "it was away in between"
    assert agents.leave("risk") is True
    assert agents.leave("risk") is False
    clock.advance(10.0)
    assert [agent.name for agent in agents.alive()] == ["desk/execution"]
    assert Agents(mem, namespace="others").alive() == []


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"name": ""}, InvalidKey),
        ({"name": 5}, InvalidKey),
        ({"ttl": 0}, InvalidArgument),
        ({"ttl": None}, InvalidArgument),
        ({"ttl": "1"}, InvalidArgument),
        ({"info": object()}, EncodingError),
    ],
)
def test_what_is_refused(mem: Memory, arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        Agents(mem).beat(**{"name": "risk", **arguments})
    assert Agents(mem).alive() == []


def test_another_process_sees_who_is_alive_and_who_was_killed(tmp_path: Path) -> None:
    with tiermem.open(tmp_path / "store") as mem:
        agents, peer = Agents(mem), Peer(tmp_path / "store")
        try:
            peer.put("agents", "risk", {"pid": peer.pid}, ttl=0.5)
            assert eventually(lambda: agents.get("risk"))
        finally:
            peer.kill()
        assert eventually(lambda: agents.alive() == [])
