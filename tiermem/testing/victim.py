"""A store to be damaged, what it holds, and who asks it for everything."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import tiermem

CONFIG: Final = tiermem.Config(
    cold=tiermem.ColdConfig(committer="inline", sync_interval=60.0, journal_bytes=2**16, map_size=2**28),
    codec=tiermem.CodecConfig(dictionary_samples=64, dictionary_bytes=1024),
    vector=tiermem.VectorConfig(seal_rows=64),
)
RECORDS: Final = 300
PENDING: Final = 20


def value_of(number: int) -> dict[str, Any]:
    """The value kept under a number."""
    return {"text": f"<{number}>" + "abcdefgh" * (number % 14), "n": number, "side": ("buy", "sell")[number % 2]}


def vector_of(number: int) -> list[float]:
    """The vector kept under a number; its values are exact in float32."""
    return [1.0, number / 8, float(number % 13), 0.5]


def key_of(number: int) -> str:
    """The key of a number."""
    return f"k{number:04d}"


def model(killed: bool) -> dict[str, dict[str, Any]]:
    """What the store holds, by namespace and key."""
    numbers = [number for number in range(RECORDS) if number % 10]
    found: dict[str, dict[str, Any]] = {
        "plain": {key_of(number): value_of(number) for number in numbers},
        "vectors": {key_of(number): value_of(number) for number in range(RECORDS)},
        "large": {"blob": "0123456789" * 2_000},
        "late": {key_of(number): value_of(number) for number in range(PENDING)} if killed else {},
    }
    return found


def build(path: Path, killed: bool) -> None:
    """Make the store; with `killed` this process ends without closing it, its last writes in its journal alone."""
    mem = tiermem.open(path, config=CONFIG)
    for turn in range(3):
        # Overwritten, deleted and committed again and again: freed pages hold what must not come back.
        for number in range(RECORDS):
            mem.put("plain", key_of(number), value_of(number) | ({"old": turn} if turn < 2 else {}))
            if number % 50 == 0:
                mem.flush()
        mem.put("gone", key_of(turn), turn)
        # Upkeep follows, which trains dictionaries: what is written from now on is compressed with them.
        mem.drop_namespace("gone")
    for number in range(RECORDS):
        mem.put("vectors", key_of(number), value_of(number), vector=vector_of(number), metadata={"n": number})
    mem.put("large", "blob", "0123456789" * 2_000)
    mem.delete_many("plain", [key_of(number) for number in range(0, RECORDS, 10)])
    mem.cursor("reader", start=0)
    mem.build_index("vectors")
    mem.flush()
    if killed:
        for number in range(PENDING):
            mem.put("late", key_of(number), value_of(number))
        os.kill(os.getpid(), signal.SIGKILL)
    mem.close()


class WrongAnswer(Exception):
    """An answer that is not the right one."""


@dataclass
class Judge:
    """One damaged store in use: what calls said, and what was missing without a word."""

    killed: bool
    said: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def attempt(self, step: Callable[[], None]) -> None:
        """Run one step; an error of tiermem is an answer."""
        try:
            step()
        except tiermem.TiermemError as exc:
            self.said.append(str(exc) or "an error without a message")

    def read(self, mem: tiermem.Memory) -> None:
        """Ask for everything in every way."""
        for name, held in model(self.killed).items():
            for key, value in held.items():
                self.attempt(lambda name=name, key=key, value=value: self._get(mem, name, key, value))  # type: ignore[misc]  # bound now, run now
            for reverse in (False, True):
                self.attempt(lambda name=name, held=held, reverse=reverse: self._scan(mem, name, held, reverse))  # type: ignore[misc]  # bound now, run now
            self.attempt(lambda name=name, held=held: self._count(mem, name, held))  # type: ignore[misc]  # bound now, run now
        self.attempt(lambda: self._search(mem))
        self.attempt(lambda: self._absent(mem))

    def _get(self, mem: tiermem.Memory, name: str, key: str, value: object) -> None:
        found = mem.get(name, key)
        if found is None:
            self.missing.append(f"{name} {key}")
        elif found != value:
            raise WrongAnswer(f"get {name} {key}: {found!r:.80}")

    def _scan(self, mem: tiermem.Memory, name: str, held: dict[str, Any], reverse: bool) -> None:
        found = {record.key: record for record in mem.scan(name, reverse=reverse)}
        for key, record in found.items():
            if record.value != held.get(key):
                raise WrongAnswer(f"scan {name} {key}: {record.value!r:.80}")
            if record.vector is not None and list(record.vector) != vector_of(int(key[1:])):
                raise WrongAnswer(f"vector of {key}: {record.vector}")
            if name == "vectors" and record.vector is None:
                self.missing.append(f"vector {key}")
        self.missing += [f"{name} {key}" for key in held.keys() - found.keys()]

    def _count(self, mem: tiermem.Memory, name: str, held: dict[str, Any]) -> None:
        if mem.count(name) != len(held):
            self.missing.append(f"count {name}")

    def _search(self, mem: tiermem.Memory) -> None:
        query = [1.0, 2.0, 3.0, 0.5]
        hits = mem.search_similar("vectors", query, k=RECORDS)
        for hit in hits:
            vector = vector_of(int(hit.key[1:]))
            score = sum(a * b for a, b in zip(query, vector, strict=True)) / math.hypot(*query) / math.hypot(*vector)
            if abs(hit.score - score) > 1e-5:
                raise WrongAnswer(f"score of {hit.key}: {hit.score}, not {score}")
        if len({hit.key for hit in hits}) != RECORDS:
            self.missing.append(f"search: {len(hits)} hits")

    def _absent(self, mem: tiermem.Memory) -> None:
        for name, key in (("plain", key_of(0)), ("plain", key_of(10)), ("gone", key_of(0)), ("late", "never")):
            if mem.get(name, key) is not None:
                raise WrongAnswer(f"{name} {key} came back")

    def write(self, mem: tiermem.Memory) -> None:
        """Write, and read it back."""
        mem.put("plain", key_of(5), value_of(5))
        mem.put("late", "new", "new")
        mem.flush()
        if mem.get("late", "new") != "new":
            raise WrongAnswer("what was put is not there")
        mem.delete("late", "new")
