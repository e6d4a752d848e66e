"""Upkeep between commits: expired records, dropped namespaces, floors, the log, dictionaries."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from tiermem.tiers.cold import Writer, upkeep
from tiermem.tiers.cold.layout import NamespaceInfo, expiry_key
from tiermem.tiers.cold.writer import Take

if TYPE_CHECKING:
    from tiermem.engine.store import Store

INTERVAL: Final = 1.0
"""Seconds between two looks at whether there is anything to do."""
BATCH: Final = 2_000
"""Rows removed in one transaction, so that it stays short."""
CALM: Final = 2**18
"""Journaled bytes that one transaction may have to apply at once."""
RETRAIN: Final = 8
"""A dictionary is trained anew when its namespace has this many times the records."""
SLACK: Final = 1_024
"""The log is trimmed when it is this much longer than it should be."""


class Upkeep:
    """What the committer does besides committing."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._next = 0.0
        self._samples: dict[str, deque[bytes]] = {}
        self._ripe: dict[str, int] = {}
        self._grew: dict[str, int] = {}

    def sampler(self, name: str, info: NamespaceInfo) -> Take | None:
        """What remembers values of a namespace, if a dictionary should be trained on them."""
        config = self.store.config.codec
        if not (config.dictionary_bytes and config.level) or info.records < info.trained * RETRAIN:
            return None
        kept = self._samples.get(name)
        if kept is None:
            kept = self._samples[name] = deque(maxlen=config.dictionary_samples)
        return kept.append

    def forget_samples(self) -> None:
        """They may hold what was erased meanwhile: no dictionary is to be trained on them."""
        self._samples.clear()

    def ripen(self, unsealed: Mapping[str, int]) -> None:
        """These namespaces have so many vectors that some could be sealed."""
        if unsealed:
            self._ripe.update(unsealed)

    def _seal(self) -> None:
        """Have sealed what is searched here, and what has stopped growing: a load in progress ends in one segment."""
        for name, unsealed in list(self._ripe.items()):
            space = self.store.spaces.get(name)
            if (space is not None and space.index is not None) or self._grew.get(name) == unsealed:
                self.store.sealer.wake(name)
                self._ripe.pop(name, None)
                self._grew.pop(name, None)
            else:
                self._grew[name] = unsealed

    def run_if_due(self) -> None:
        """`run`, unless it ran a moment ago."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + INTERVAL
            self.store.control.publish_time(self.store.clock.now())
            self.store.cold.clear_stale_readers()
            if self.orphaned():
                self.store.committer.replay()
            self.announce()
            self.run()
            self._seal()

    def orphaned(self) -> bool:
        """True if a client that has died left writes that nobody has applied."""
        store = self.store
        live = store.control.live()
        with store.cold.read() as snapshot:
            for path in store.journals.paths():
                slot = int(path.stem)
                if slot in live:
                    continue
                journal = store.journals.of(path)
                if journal is not None and snapshot.applied(slot, journal.id, journal.head) < journal.head:
                    return True
        return False

    def announce(self) -> None:
        """Announce the newest commit, if whoever made it was killed before doing so."""
        store = self.store
        if store.control.generation > store.generation:
            # A generation that was left has nothing to announce: the page must not fall back to it.
            store.control.missed[0] = 1
            store.follower.catch_up()
            return
        with store.cold.read() as snapshot:
            sequence = snapshot.state().next_sequence
        if store.control.announced < sequence:
            store.control.publish(sequence, store.generation)
            store.control.missed[0] = 1
            store.follower.catch_up()

    def run(self) -> None:
        """Do what there is to do, in short transactions."""
        store = self.store
        while self._pending():
            done = 0

            def work(writer: Writer) -> None:
                nonlocal done
                done = self._work(writer)

            store.committer.commit(work=work)
            if done < BATCH:
                break
        with store.cold.read() as snapshot:
            floors = snapshot.state().floors
        if floors and store.journals.behind() <= CALM:
            # With every journal drained, nothing older than a floor that was there before can come any more.
            store.committer.commit(everything=True, work=self._forget)
        self.train()

    def _pending(self) -> bool:
        store = self.store
        with store.cold.read() as snapshot:
            state = snapshot.state()
            if next(snapshot.rows(snapshot.dbs.garbage), None):
                return True
            if state.next_sequence - state.first_sequence > store.config.cold.log_retention + SLACK:
                return True
            return next(snapshot.rows(snapshot.dbs.expiry, stop=expiry_key(self.horizon(), b"\xff")), None) is not None

    def horizon(self) -> float:
        """Sweeps go no further than the slowest clock among live clients."""
        now = self.store.clock.now()
        self.store.control.publish_time(now)
        return min(now, self.store.control.lowest_time())

    def _work(self, writer: Writer) -> int:
        done = upkeep.collect(writer, BATCH)
        done += upkeep.sweep(writer, self.horizon(), BATCH)
        upkeep.trim_log(writer, self.store.config.cold.log_retention)
        return done

    def _forget(self, writer: Writer) -> None:
        upkeep.purge_floors(writer)
        upkeep.trim_log(writer, self.store.config.cold.log_retention)

    def train(self) -> list[str]:
        """Train dictionaries where enough samples were seen; the namespaces that got one."""
        store = self.store
        done: list[str] = []
        for name, samples in list(self._samples.items()):
            with store.cold.read() as snapshot:
                info = snapshot.info(name)
            if info is None or info.dropped or info.records < info.trained * RETRAIN:
                # Another process has trained one meanwhile.
                self._samples.pop(name, None)
                continue
            if len(samples) < store.config.codec.dictionary_samples:
                continue
            trained = store.compressor.train(list(samples))
            self._samples.pop(name, None)
            number = 0

            def keep(
                writer: Writer, name: str = name, trained: bytes | None = trained, records: int = info.records
            ) -> None:
                nonlocal number
                if writer.live(name) is not None:
                    writer.changed(name).trained = max(1, records)
                    if trained is not None:
                        number = upkeep.add_dictionary(writer, name, trained)

            store.committer.commit(work=keep)
            if trained is not None and number:
                store.compressor.add(number, trained)
                done.append(name)
        return done
