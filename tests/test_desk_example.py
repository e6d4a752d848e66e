"""The example of three processes around one store: whoever of them is killed, the end is the same."""

from __future__ import annotations

import random
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tiermem

SCRIPT = Path(__file__).resolve().parent.parent / "docs" / "examples" / "desk.py"
ROLES = ("signal", "risk", "execution")


def start(root: Path, role: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(SCRIPT), str(root), role])


@pytest.mark.parametrize("kills", [0, 6])
def test_the_desk(tmp_path: Path, kills: int) -> None:
    rng = random.Random(kills)
    root = tmp_path / "store"
    desk = {role: start(root, role) for role in ROLES}
    try:
        for number in range(kills):
            # Each at least once, at moments that nobody chose.
            time.sleep(rng.uniform(0.1, 0.8))
            role = ROLES[number % 3]
            desk[role].kill()
            desk[role].wait()
            desk[role] = start(root, role)
        assert {role: process.wait(120.0) for role, process in desk.items()} == dict.fromkeys(ROLES, 0)
    finally:
        for process in desk.values():
            process.kill()
            process.wait()
    example = runpy.run_path(str(SCRIPT))
    signals = [example["signal_of"](number) for number in range(example["SIGNALS"])]
    traded = [found for found in signals if found["size"] <= example["LIMIT"]]
    assert 0 < len(traded) < len(signals)
    with tiermem.open(root) as mem:
        votes = tiermem.Votes(mem)
        outcomes = {found["order"]: "approved" if found in traded else "rejected" for found in signals}
        assert {p.id: p.outcome for p in votes.list()} == outcomes
        assert all(len(votes.history(p)) == 2 for p in outcomes)
        orders = {record.key: record.value for record in mem.scan("desk/orders")}
        assert list(orders) == [found["order"] for found in traded]
        assert mem.get("desk/book", "position") == sum(found["size"] for found in traded)
        assert mem.get("desk/book", "cash") == -sum(found["size"] * found["px"] for found in traded)
        fences = [order["fence"] for order in orders.values()]
        assert fences == sorted(fences)
        assert mem.check().ok
