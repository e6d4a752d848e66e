"""Lanes: what could not be done is done later, whether or not anybody asks again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tiermem.engine import lanes
from tiermem.engine.lanes import Lane
from tiermem.errors import LockTimeout, StorageError

DEADLINE = 30.0


@pytest.fixture
def lane(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[str], None]], Lane]]:
    """`lane(work)`: one that rests for milliseconds."""
    monkeypatch.setattr(lanes, "FIRST_REST", 0.01)
    monkeypatch.setattr(lanes, "BUSY", 0.01)
    made: list[Lane] = []

    def make(work: Callable[[str], None]) -> Lane:
        made.append(Lane("tiermem-test", work))
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.mark.parametrize("error", [LockTimeout, StorageError, OSError])
def test_what_could_not_be_done_is_tried_again(
    lane: Callable[[Callable[[str], None]], Lane], error: type[Exception]
) -> None:
    tried: list[str] = []
    done = threading.Event()

    def work(name: str) -> None:
        tried.append(name)
        if tried.count(name) < 3:
            raise error("not now")
        if name == "a":
            done.set()

    one = lane(work)
    one.wake("a")
    one.wake("b")
    assert done.wait(DEADLINE)
    one.stop()
    assert tried[:2] == ["a", "b"]
    assert tried.count("a") == 3
    assert "a" not in one.failed


def test_what_has_failed_is_left_alone_for_a_while_though_it_is_asked_for(
    lane: Callable[[Callable[[str], None]], Lane], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "FIRST_REST", 3_600.0)
    tried: list[str] = []
    reached = threading.Event()

    def work(name: str) -> None:
        tried.append(name)
        if name == "bad":
            raise StorageError("no room")
        reached.set()

    one = lane(work)
    one.wake("bad")
    one.wake("good")
    assert reached.wait(DEADLINE)
    assert one.failed == {"bad": "segments of 'bad' could not be built: no room"}
    reached.clear()
    one.wake("bad")
    one.wake("good")
    assert reached.wait(DEADLINE)
    assert tried == ["bad", "good", "good"]
    one.forgive("bad")
    one.wake("bad")
    limit = time.monotonic() + DEADLINE
    while len(tried) < 4:
        assert time.monotonic() < limit
        time.sleep(0.01)
    one.stop()
    assert tried[3:] == ["bad"]


@pytest.mark.parametrize("error", [LockTimeout, StorageError])
def test_a_lane_that_rests_can_be_stopped(
    lane: Callable[[Callable[[str], None]], Lane], monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    for name in ("FIRST_REST", "BUSY"):
        monkeypatch.setattr(lanes, name, 3_600.0)
    reached = threading.Event()

    def work(name: str) -> None:
        reached.set()
        raise error("not now")

    one = lane(work)
    one.wake("a")
    assert reached.wait(DEADLINE)
    # Ends, or the whole run does not.
    one.stop()
