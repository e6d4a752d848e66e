"""What a bank keeps: a log of what it was told and what it concluded, and since when that is known.

Two namespaces. `<name>/log` holds the entries under consecutive numbers; an entry is written only if its number is
free, so that all processes agree on one order. `<name>/lessons` holds every version of every lesson under
"<lesson>/<version>", with its vector, written in the batch of the entry that names it. Nothing is ever replaced.

`known_at` never falls from one entry to the next: what was known at a time is a beginning of the log, and everything
a bank answers is a function of such a beginning. That is why `as_of` cannot see the future.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from tiermem.clock import to_epoch
from tiermem.engine.memory import Memory
from tiermem.errors import CorruptionError, InvalidArgument, VersionConflict
from tiermem.reasoning.distill import Kind
from tiermem.reasoning.inference import Evidence
from tiermem.reasoning.lesson import Status
from tiermem.types import Moment

if TYPE_CHECKING:
    from tiermem.types import FloatArray

Op: TypeAlias = Literal["learn", "settle", "use", "distil", "consolidate", "restore"]
LogKey: Final = "{:012d}".format


class Admission(Struct, frozen=True, array_like=True):
    """A judged trajectory: `value` is 1 for success, 0 for failure, None where nothing could be judged."""

    trajectory: str
    agent: str
    task: str
    value: float | None
    scores: list[float | None]
    """What the judge made of each step, in [0, 1]."""


class Version(Struct, frozen=True):
    """One version of a lesson, as it is stored; its vector is that of the record."""

    lesson: str
    number: int
    status: Status
    reason: str
    kind: Kind
    action: str
    title: str
    description: str
    content: str
    evidence: list[Evidence]
    baseline: float
    p_value: float
    observation: Any
    agents: list[str]
    tasks: list[str]
    contradicts: list[str]
    merged_into: str | None
    absorbed: list[str]
    """The lessons that were merged into it, whose uses are its own."""
    confirmed_at: float | None
    """A confirmation other than by evidence: when it was restored."""


class Entry(Struct, frozen=True):
    """One entry of the log."""

    op: Op
    known_at: float
    admitted: list[Admission] = []
    queued: list[str] = []
    uses: list[tuple[str, str]] = []
    """(lesson, trajectory)."""
    versions: list[tuple[str, int]] = []
    """(lesson, number)."""


class Written(NamedTuple):
    """A version and its vector."""

    version: Version
    vector: FloatArray


class Draft(NamedTuple):
    """An entry to be written with its versions; what the caller is told."""

    entry: Entry
    versions: list[Written]
    answer: Any


class Ledger:
    """The log and the lessons of a bank, read as far as they go."""

    def __init__(self, mem: Memory, name: str) -> None:
        self._mem = mem
        self._lessons = f"{name}/lessons"
        self._log = mem.namespace(f"{name}/log", type=Entry)
        self._versions = mem.namespace(self._lessons, type=Version)
        self._written: dict[tuple[str, int], Written] = {}
        self._next = LogKey(0)
        self.entries: list[Entry] = []
        self._times: list[float] = []
        self._lock = threading.Lock()

    def refresh(self) -> int:
        """Read what was written since, by any process; how many entries there are."""
        with self._lock:
            while (entry := self._log.get(self._next)) is not None:
                self.entries.append(entry)
                self._times.append(entry.known_at)
                self._next = LogKey(len(self.entries))
            return len(self.entries)

    def known(self, moment: Moment | None) -> tuple[float, int]:
        """`moment` (None: the store's present) in epoch seconds, and how many entries were known then."""
        at = self._mem.clock.now() if moment is None else to_epoch(moment)
        return at, bisect_right(self._times, at)

    def written(self, lesson: str, number: int) -> Written:
        """A version, read once."""
        found = self._written.get((lesson, number))
        if found is None:
            record = self._versions.get_record(version_key(lesson, number))
            if record is None or record.vector is None:
                raise CorruptionError(f"version {number} of lesson {lesson!r} is in the log of a bank, and not in it")
            found = self._written[lesson, number] = Written(record.value, record.vector)
        return found

    def append(self, moment: Moment | None, build: Callable[[float, int], Draft]) -> Any:
        """Write the entry that `build` makes of the first so many entries, as of a time; what the draft answers.

        It is known from when it is written, which may be long after its building began. Where others wrote meanwhile,
        it is built again only if that bears on it: otherwise who takes long would never come to an end beside those
        who are quick. An entry that says nothing is not written.

        Raises:
            InvalidArgument: `moment` lies before the last entry, where nothing may be changed any more.
        """
        draft, seen = None, 0
        while True:
            count = self.refresh()
            at = self._present(moment, count)
            if draft is None or any(_bears_on(entry, draft.entry) for entry in self.entries[seen:count]):
                draft, seen = build(at, count), count
                at = max(at, self._present(moment, count))
            entry = replace(draft.entry, known_at=at)
            if not (entry.admitted or entry.queued or entry.uses or entry.versions):
                return draft.answer
            try:
                with self._mem.batch() as batch:
                    batch.put(self._log.name, LogKey(count), entry, at=at, if_version=0)
                    for version, vector in draft.versions:
                        batch.put(
                            self._lessons,
                            version_key(version.lesson, version.number),
                            version,
                            vector=vector,
                            metadata={"lesson": version.lesson, "status": version.status, "kind": version.kind},
                            at=at,
                        )
            except VersionConflict:
                continue
            return draft.answer

    def _present(self, moment: Moment | None, count: int) -> float:
        """Since when what is written behind the first `count` entries is known (epoch seconds)."""
        last = self._times[count - 1] if count else None
        if moment is None:
            now = self._mem.clock.now()
            return now if last is None else max(now, last)
        at = to_epoch(moment)
        if last is not None and at < last:
            raise InvalidArgument(f"the bank has changed at {last}; what it knew at {at} stays as it was")
        return at


def _bears_on(entry: Entry, drafted: Entry) -> bool:
    """True if an entry would have been drafted otherwise after `entry`: both change lessons, or judge the same run."""
    if entry.versions and drafted.versions:
        return True
    judged = {one.trajectory for one in drafted.admitted}
    return any(one.trajectory in judged for one in entry.admitted)


def lesson_id(entry: int, place: int) -> str:
    """The id of the `place`-th lesson that entry number `entry` makes; ids sort by age."""
    return f"{entry:08d}-{place:04d}"


def version_key(lesson: str, number: int) -> str:
    """Where a version of a lesson is kept."""
    return f"{lesson}/{number:06d}"


def union(groups: Iterable[Iterable[Evidence]]) -> list[Evidence]:
    """The evidence of several lessons: a run counts once, as where it weighs most. No order of the groups matters."""
    best: dict[str, Evidence] = {}
    for group in groups:
        for one in group:
            held = best.get(one.trajectory)
            if held is None or (one.weight, one.value) > (held.weight, held.value):
                best[one.trajectory] = one
    return sorted(best.values())
