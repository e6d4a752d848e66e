"""Transcripts: what processes say of their operations, as the histories of the records these were on."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tiermem.testing.linearizability import LOST, Call, Kind, Value

Effect: TypeAlias = tuple[str, Kind, Value, Value]
"""(key, kind of call, value it leaves, value it expects), as `Call` has them."""


@dataclass
class Report:
    """What a run did, and what did not hold."""

    processes: int
    seconds: float
    killed: int = 0
    helpers_killed: int = 0
    made: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    records: int = 0
    counters: dict[str, str] = field(default_factory=dict)
    check_seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def held(self) -> bool:
        """Whether everything was as promised."""
        return not self.problems

    def __str__(self) -> str:
        lines = [f"{'operation':20}{'made':>10}{'refused':>10}"]
        lines += [f"{verb:20}{made:10,}{self.refused[verb]:10,}" for verb, made in sorted(self.made.items())]
        lines.append(f"{'in all':20}{self.made.total():10,}{self.refused.total():10,}")
        lines += [f"counter {key}: {text}" for key, text in self.counters.items()]
        lines.append(
            f"{self.processes} processes, {self.killed} killed and {self.helpers_killed} helpers, "
            f"{self.lost} operations cut short by that; "
            f"histories of {self.records} records checked in {self.check_seconds:.1f} s: "
            + ("linearizable, all processes agree, check clean" if self.held else f"{len(self.problems)} problems")
        )
        return "\n".join(lines)


class Transcript:
    """What the processes have said, as histories of records."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._open: dict[str, dict[str, Any]] = {}
        self._ended: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
        self._values: dict[tuple[str, int], str] = {}

    def hear(self, who: str, message: dict[str, Any]) -> None:
        """Take down one message of a process."""
        if "call" in message:
            self._open[who] = message
        elif "ended" in message:
            self._ended.append((who, self._open.pop(who), message))
        elif "version" in message:
            self._learn(message["key"], message["version"], message["value"])

    def _learn(self, key: str, version: int, value: str) -> None:
        known = self._values.setdefault((key, version), value)
        if known != value:
            self._report.problems.append(f"{key} at version {version} was seen as {known} and as {value}")

    def histories(self) -> dict[str, list[Call]]:
        """The calls on each record."""
        found: defaultdict[str, list[Call]] = defaultdict(list)
        for _, call, end in self._ended:
            if call["call"] in ("put", "swap", "increment") and "result" in end:
                ((key, _, value, _),) = call["effects"]
                self._learn(key, end["result"], value)
        for who, call, end in self._ended:
            self._report.made[call["call"]] += 1
            self._report.refused[call["call"]] += "refused" in end
            for key, made in self._calls(who, call, end):
                found[key].append(made)
        for who, call in self._open.items():
            self._report.lost += 1
            for key, kind, value, expected in call["effects"]:
                if kind != "read":
                    found[key].append(Call(kind, value, expected, call["begun"], LOST, who))
        return found

    def _calls(self, who: str, call: dict[str, Any], end: dict[str, Any]) -> list[tuple[str, Call]]:
        effects, span = call["effects"], (call["begun"], end["ended"], who)
        if "refused" in end:
            # Of a batch only the first write has a condition, and the others did not happen.
            key, _, _, expected = effects[0]
            return [(key, refusal) for refusal in self._refused(key, expected, end["refused"], span)]
        if call["call"] == "delete" and not end["result"]:
            return []
        if call["call"] == "read":
            return [(effects[0][0], Call("read", None, end["result"], *span))]
        return [(key, Call(kind, value, expected, *span)) for key, kind, value, expected in effects]

    def _refused(self, key: str, expected: Value, found: int, span: tuple[float, float, str]) -> list[Call]:
        """A refusal says at which version the record was: mostly somebody has seen which value that is."""
        value = self._values.get((key, found))
        if not found or value is not None:
            return [Call("read", None, value, *span)]
        if expected is not None and expected.startswith(f"{span[2]}."):
            # A plain put of one's own may have been given another version since: that says nothing of the value.
            return []
        return [Call("refused", None, expected, *span)]
