"""Runs: a trajectory while it is written."""

from __future__ import annotations

import os
from threading import Lock
from typing import TYPE_CHECKING, Any

from tiermem.clock import to_epoch
from tiermem.errors import InvalidArgument
from tiermem.trajectory.layout import MOST_STEPS, Places, check_text, make_id, number

if TYPE_CHECKING:
    from tiermem.engine.memory import Memory
    from tiermem.types import Moment, Vector


class Run:
    """A trajectory that is being written. Made by `Trajectories.start` and `resume`; safe to use from several threads.

    What a call has acknowledged survives the death of the process. A process that was forked resumes it for itself.
    """

    def __init__(
        self, mem: Memory, places: Places, id: str, agent: str, task: str, at: float, number: int = 0, token: str = ""
    ) -> None:
        self.id = id
        self.agent = agent
        self.task = task
        self._mem = mem
        self._places = places
        self._prefix = f"{id}/"
        self._token = token
        self._number = number
        self._latest = at
        self._ended = False
        self._lock = Lock()
        self._process = os.getpid()

    def __repr__(self) -> str:
        return f"<Run {self.id!r} of {self.agent!r}, {self._number} steps>"

    def step(
        self,
        *,
        observation: Any = None,
        action: Any = None,
        predicted: Any = None,
        reward: float | None = None,
        vector: Vector | None = None,
        at: Moment | None = None,
        durable: bool = False,
    ) -> str:
        """Add a step; its id, by which its outcome is told later.

        observation, action, predicted: what a value of a store may be; None: not given. Whoever predicts something
        awaits an outcome. reward: a number. vector: shape (dimension,), the same for all steps of the store's
        trajectories. at: when it was taken, and since when it is known (default: the store's clock, but not before
        the step before it). durable: return after the fsync.

        Returns once the step survives the death of this process.

        Raises:
            InvalidArgument: `at` lies before the last step, `reward` is no number, or the trajectory has ended.
            Otherwise as `Memory.put`. Nothing was changed.
        """
        self._check_process()
        value: dict[str, Any] = {}
        if observation is not None:
            value["observation"] = observation
        if action is not None:
            value["action"] = action
        if predicted is not None:
            value["predicted"] = predicted
        if reward is not None:
            value["reward"] = number("reward", reward)
        with self._lock:
            moment = self._moment(at)
            taken = self._number
            if taken >= MOST_STEPS:
                raise InvalidArgument(f"a trajectory has at most {MOST_STEPS:,} steps")
            key = f"{self._prefix}{taken:08d}{self._token}"
            self._mem.put(self._places.steps, key, value, vector=vector, at=moment, durable=durable)
            self._number = taken + 1
            self._latest = moment
        return key

    def complete(self, *, success: bool | None = None, at: Moment | None = None, durable: bool = False) -> None:
        """The run has come to its end; no step follows. Outcomes and verdicts may.

        success: whether it reached what it was for, where somebody knows. at: as in `step`.

        Raises:
            InvalidArgument: it has ended before, `at` lies before its last step, or `success` is no bool.
        """
        if success is not None and not isinstance(success, bool):
            raise InvalidArgument(f"success is a bool, not {type(success).__name__}")
        end = {"state": "completed"}
        self._end(end if success is None else {**end, "success": success}, at, durable)

    def abandon(self, reason: str, *, at: Moment | None = None, durable: bool = False) -> None:
        """The run was given up, for a reason in words; no step follows. Otherwise as `complete`."""
        self._end({"state": "abandoned", "reason": check_text("reason", reason)}, at, durable)

    def _check_process(self) -> None:
        # Before the lock: another thread may have held it when this process was forked.
        if self._process != os.getpid():
            raise InvalidArgument("this trajectory is written by another process: resume it here")

    def _end(self, value: dict[str, Any], at: Moment | None, durable: bool) -> None:
        self._check_process()
        with self._lock:
            moment = self._moment(at)
            self._mem.put(self._places.facts, f"{self._prefix}{make_id(moment)}", value, at=moment, durable=durable)
            self._ended = True

    def _moment(self, at: Moment | None) -> float:
        """When the next thing happens; the caller holds the lock."""
        if self._ended:
            raise InvalidArgument(f"trajectory {self.id} has ended")
        if at is None:
            return max(self._mem.clock.now(), self._latest)
        moment = to_epoch(at)
        if moment < self._latest:
            raise InvalidArgument(f"{moment} lies before {self._latest}, when the last step of {self.id} was taken")
        return moment
