"""Sealing: unsealed vectors become segments, segments are merged, and what is dead is left behind."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from tiermem.engine import generations, segments
from tiermem.engine.builder import Job
from tiermem.engine.lanes import Lane
from tiermem.engine.publishing import publish
from tiermem.engine.workshop import Workshop
from tiermem.errors import CorruptionError, LockTimeout, StorageError, TiermemError
from tiermem.policy.merging import due, taken_up
from tiermem.protocols import GrowingEngine, VectorEngine
from tiermem.tiers.cold import sealed
from tiermem.tiers.filelock import exclusive
from tiermem.tiers.vector.choice import EngineOptions, engine_of
from tiermem.tiers.vector.shelf import Shelf
from tiermem.types import Progress

if TYPE_CHECKING:
    from tiermem.engine.store import Store
    from tiermem.tiers.cold.layout import SegmentInfo

PATIENCE: Final = 3_600.0
"""Seconds to wait for another process that is building, where the caller wants the result."""
_SOON: Final = 12
_LATER: Final = 19
"""How nice builders are in the background: beside a large merge, one that seals has five sixths of a processor."""
_UNSEALED: Final = -1
MEND: Final = 60.0
"""Seconds until a graph is built again that could not be opened when it was new."""


class Sealer:
    """Builds and publishes segments, one of each kind at a time among all processes."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.shelf = Shelf(store.root / "segments", self.engine_of)
        self.sealing = Lane("tiermem-sealer", self._tend)
        self.merging = Lane("tiermem-merger", self._merge)
        self.adopting = Lane("tiermem-adopter", lambda name: store.indexing.adopt(store.spaces[name]))
        self._workshop = Workshop(store)
        self._locks = {"seal": threading.Lock(), "merge": threading.Lock()}
        self._closing = False
        self._tidy = False
        self._mended: dict[str, float] = {}
        self._least: dict[str, int] = {}
        self._taken: set[int] = set()

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """The threads' work: sealing, merging, taking up what others published."""
        return self.sealing, self.merging, self.adopting

    def wake(self, name: str, least: int = 0) -> None:
        """Look in the background at whether a namespace wants sealing or merging; or have the helper look.

        `least`: unsealed rows from which a client wants it, if that is not what this one goes by.
        """
        if self._closing or self.store.read_only:
            return
        # An engine that is an object of this process's cannot be had elsewhere.
        if isinstance(self.store.config.vector.engine, str) and self.store.committer.assistant.told(name):
            return
        if least:
            self._least[name] = least
        self.sealing.wake(name)

    def mend(self, name: str) -> None:
        """Build in the background what cannot be used of a namespace's segments."""
        if not (self._closing or self.store.read_only):
            self.merging.wake(name)

    def stop(self) -> None:
        """End what is being built, and the threads; what was not published never was."""
        self._closing = True
        self._workshop.stop()
        for lane in self.lanes:
            lane.stop()

    def abandon(self) -> None:
        """In a forked child: what is being built is the parent's."""
        self._workshop.abandon()

    def engine_of(self, name: str) -> VectorEngine:
        """The engine that opens the graphs kept under a name."""
        own = self.store.config.vector.engine
        return own if not isinstance(own, str) and own.name == name else engine_of(name)

    @property
    def _engine(self) -> VectorEngine:
        """What builds here."""
        own = self.store.config.vector.engine
        return self._options.make() if isinstance(own, str) else own

    @property
    def _growing(self) -> bool:
        engine = self._engine
        return isinstance(engine, GrowingEngine) and engine.grows

    @property
    def _options(self) -> EngineOptions:
        vector = self.store.config.vector
        engine = vector.engine if isinstance(vector.engine, str) else ""
        return EngineOptions(engine, vector.index, vector.m, vector.ef_construction)

    # In the background

    def _tend(self, name: str) -> None:
        if not self._tidy:
            # Whoever was killed while building has left files behind.
            self.sweep()
        if self._soon_done(name):
            with self._exclusively("seal", 0.0):
                if task := self._soon_done(name):
                    inputs, unsealed = task
                    self._make_or_condemn(name, inputs, unsealed=unsealed, nice=_SOON)
            # There may be more, once others had their turn.
            self.sealing.wake(name)
        self.merging.wake(name)

    def _soon_done(self, name: str) -> tuple[list[int], bool] | None:
        """What cannot wait until a large merge is done, sealing and growing: the inputs, and whether to seal."""
        with self.store.cold.read() as snapshot:
            info = snapshot.info(name)
            if info is None or info.dropped:
                return None
            sizes = self._sizes(snapshot.segments(info.prefix)) if self._growing else {}
        rows = self.store.config.vector.seal_rows
        seal = info.unsealed >= min(rows, self._least.get(name, rows))
        if seal and sizes:
            # In one go with what takes it up, so that each row is linked once.
            sizes[_UNSEALED] = info.unsealed, 0
        taken = taken_up(sizes)
        if not seal:
            return (taken, False) if taken else None
        return [number for number in taken if number != _UNSEALED and _UNSEALED in taken], True

    def _merge(self, name: str) -> None:
        with self._exclusively("merge", 0.0):
            done = not self._closing and self._merged(name)
        if done:
            # Not sooner: files that nobody needs are deleted only while nobody is building.
            self.sealing.wake(name)
            # There may be more, once others had their turn.
            self.merging.wake(name)

    def _merged(self, name: str) -> bool:
        """Do the first thing that is due in a namespace; False if nothing is."""
        published = self._published(name)
        if any(number in published for number in list(self.shelf.condemned)):
            self.withdraw(name)
            self.store.indexing.adopt(self.store.space(name))
            return True
        graphless = [number for number in list(self.shelf.problems) if number in published]
        if time.monotonic() < self._mended.get(name, 0.0):
            graphless = []
        chosen = graphless or due(self._sizes(published), growing=self._growing)
        if not chosen:
            return False
        number = self._make_or_condemn(name, chosen, unsealed=False, nice=_LATER)
        if graphless and number in self.shelf.problems:
            # Built anew, and no better: not again and again.
            self._mended[name] = time.monotonic() + MEND
        return True

    def _published(self, name: str) -> dict[int, SegmentInfo]:
        with self.store.cold.read() as snapshot:
            info = snapshot.info(name)
            return {} if info is None or info.dropped else snapshot.segments(info.prefix)

    def _sizes(self, published: Mapping[int, SegmentInfo]) -> dict[int, tuple[int, int]]:
        """(rows, dead rows) of each segment that the other lane is not at."""
        taken = self._taken
        return {at: (known.rows, known.dead_rows) for at, known in published.items() if at not in taken}

    # On demand

    def build(self, name: str, progress: Progress | None = None) -> None:
        """Seal everything that is unsealed, and merge all segments into one without tombstones; waits."""
        store = self.store
        store.handover.flush()
        with self._exclusively("merge", PATIENCE), self._exclusively("seal", PATIENCE):
            while not self._gathered(name, progress):
                # Somebody has withdrawn meanwhile what was to be merged.
                pass
        for lane in self.lanes:
            lane.forgive(name)
        if not self._tidy:
            self.sweep()

    def _gathered(self, name: str, progress: Progress | None) -> bool:
        """A try of `build`; False if it has to be tried once more."""
        with self.store.cold.read() as snapshot:
            info = snapshot.info(name)
            if info is None or info.dropped:
                return True
            published = snapshot.segments(info.prefix)
        for number, known in published.items():
            try:
                self.shelf.segment(number, known.seal, graph=known.graph)
            except CorruptionError as exc:
                self.shelf.condemned[number] = str(exc)
        clean = len(published) <= 1 and not any(known.dead_rows for known in published.values())
        sound = not any(number in published for number in (*self.shelf.problems, *self.shelf.condemned))
        if any(number in published for number in self.shelf.condemned):
            self.withdraw(name)
            published = {}
        if not info.unsealed and clean and sound:
            return True
        try:
            made = self._make_or_condemn(name, list(published), unsealed=True, progress=progress)
        except CorruptionError:
            if not any(number in published for number in self.shelf.condemned):
                raise
            self.withdraw(name)
            return False
        with self.store.cold.read() as snapshot:
            now = snapshot.info(name)
        # What has that name now, if it was dropped, was not there when this was asked for.
        return made >= 0 or now is None or now.id != info.id

    def withdraw(self, name: str) -> None:
        """Take back every segment of a namespace; all its vectors are unsealed again."""
        self._tidy = False
        self.store.committer.commit(work=lambda writer: sealed.withdraw(writer, name))

    def sweep(self) -> int:
        """Delete files that belong to no published segment, unless somebody is building; the bytes gained."""
        try:
            with self._exclusively("merge", 0.0), self._exclusively("seal", 0.0):
                with self.store.cold.read() as snapshot:
                    numbers = snapshot.segment_numbers()
                self._tidy = True
                return self.shelf.sweep(numbers)
        except LockTimeout:
            return 0

    # Building and publishing

    @contextmanager
    def _exclusively(self, kind: str, timeout: float) -> Iterator[None]:
        lock = self._locks[kind]
        if not (lock.acquire(timeout=timeout) if timeout else lock.acquire(blocking=False)):
            raise LockTimeout(f"another thread is busy with segments ({kind})")
        try:
            self.store.check_place()
            self.shelf.folder.mkdir(exist_ok=True)
            with exclusive(self.shelf.folder / f"{kind}.lock", timeout):
                # What lies there would be another store's.
                self.store.check_place()
                yield
        finally:
            lock.release()

    def _make(
        self, name: str, inputs: list[int], *, unsealed: bool, nice: int = 0, progress: Progress | None = None
    ) -> int:
        """Build a segment and publish it; its number, -1 if what it was made of is gone by then."""
        store = self.store
        while True:
            with store.cold.read() as snapshot:
                info = snapshot.info(name)
                before = {} if info is None else snapshot.segments(info.prefix)
            job = Job(
                os.fsencode(store.root),
                store.generation,
                name,
                int.from_bytes(os.urandom(8)) >> 1,
                inputs,
                unsealed,
                1 if nice else os.cpu_count() or 1,
                nice,
                self._options,
            )
            # Whatever ends this early may leave files behind.
            self._tidy = False
            try:
                built = self._workshop.run(job, progress or (lambda done, total: None))
                break
            except TiermemError:
                # Another process may have compacted the store, and removed the generation that was to be read.
                newest = generations.current(store.root)
                if newest <= job.generation:
                    raise
                store.move_to(newest)
        stands = publish(store, name, job, built, before)
        for number in inputs if stands else [job.number]:
            for path in (self.shelf.rows_path(number), self.shelf.graph_path(number)):
                path.unlink(missing_ok=True)
        return job.number if stands else -1

    def _make_or_condemn(
        self, name: str, inputs: list[int], *, unsealed: bool, nice: int = 0, progress: Progress | None = None
    ) -> int:
        """`_make`; where it ends at a damaged segment, that one is found and taken back in the background."""
        self._taken.update(inputs)
        try:
            return self._make(name, inputs, unsealed=unsealed, nice=nice, progress=progress)
        except (CorruptionError, StorageError) as exc:
            published = self._published(name)
            if not published.keys() >= set(inputs):
                # Merged or withdrawn elsewhere before they were read: what there is now is looked at anew.
                return -1
            if isinstance(exc, CorruptionError):
                damaged = segments.damaged(self.shelf.folder, published)
                # To read them all takes long: what was merged elsewhere meanwhile is gone, not damaged.
                published = self._published(name)
                self.shelf.condemned.update({at: told for at, told in damaged.items() if at in published})
                if any(number in published for number in self.shelf.condemned):
                    self.mend(name)
            raise
        finally:
            self._taken.difference_update(inputs)
