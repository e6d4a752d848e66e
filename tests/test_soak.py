"""The soak finds nothing wrong with a store in a few seconds, and finds what is wrong with one that was broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiermem
from tiermem.engine.store import Store
from tiermem.testing import soak
from tiermem.testing.growth import Series
from tiermem.testing.history import Step, contents, perform, steps


def test_ten_seconds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert soak.main(["--minutes", "0.17", "--kill-every", "0.8", "--folder", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["problems"] == []
    names = ["client 0", "client 1", "client 2", "client 3", "helper"]
    assert [role["name"] for role in report["roles"]] == names
    assert report["roles"][0]["kills"] == 0
    assert sum(role["kills"] for role in report["roles"]) >= 5
    assert all(role["steps"] and role["looks"] for role in report["roles"][:-1])
    assert all(role["memory"]["points"] for role in report["roles"])
    assert report["files"]["data.mdb"]["points"][-1][1] > 0


def test_a_write_that_is_lost_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Store.submit
    taken = [0]

    def forgetful(self: Store, *draft: Any) -> int:
        taken[0] += 1
        return whole(self, *draft) if taken[0] % 20 else 1

    monkeypatch.setattr(Store, "submit", forgetful)
    report = soak.soak(tmp_path / "store", seconds=5.0, processes=2, kill_every=0.5)
    assert not report.held
    assert "problems" in str(report)


def test_a_client_that_ends_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(mem: tiermem.Memory, step: Step) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(soak, "perform", leave)
    report = soak.soak(tmp_path / "store", seconds=5.0, processes=2, kill_every=9.0)
    assert any("KeyboardInterrupt" in problem for problem in report.problems)


def report_of(memory: list[float], files: list[float]) -> soak.Report:
    """A run whose one client and whose data.mdb took so many MiB at even intervals."""
    step = soak.SHORTEST / len(memory)
    role = soak.Role("client 0", memory=Series([(number * step, mib) for number, mib in enumerate(memory)]))
    sizes = Series([(number * step, mib) for number, mib in enumerate(files)])
    report = soak.Report(soak.SHORTEST, [role], {"data.mdb": sizes})
    report.judge_sizes()
    return report


def test_memory_that_grows_is_noticed() -> None:
    flat, growing = [30.0] * 60, [30.0 + 4 * number for number in range(60)]
    warming = [float(number) for number in range(15)] + [30.0] * 45
    assert report_of(flat, flat).held
    assert report_of(warming, flat).held
    assert "the memory of client 0 grows: 176.0 MiB" in report_of(growing, flat).problems[0]
    assert "data.mdb grows: from" in report_of(flat, growing).problems[0]


def test_a_saw_is_flat() -> None:
    saw = Series([(float(number), 30.0 + number % 10) for number in range(200)])
    assert abs(saw.growth(0.0)) < 1.0
    assert Series([(0.0, 1.0)]).growth(0.0) == 0.0


def test_histories_beside_each_other(tmp_path: Path) -> None:
    """Two that go by names of their own do not touch each other, and one sees its own alone."""
    with tiermem.open(tmp_path / "store") as mem:
        first, second = steps(1, under="a/"), steps(1, under="b/")
        for _ in range(60):
            perform(mem, next(first))
            perform(mem, next(second))
        assert contents(mem, under="a/").keys() == {name for name in mem.namespaces("a/") if mem.count(name)}
        assert contents(mem).keys() == contents(mem, under="a/").keys() | contents(mem, under="b/").keys()
