"""Transactions: the write transaction on the generation that is live when it begins."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from tiermem.engine import generations
from tiermem.errors import CorruptionError
from tiermem.tiers.cold import Writer
from tiermem.tiers.cold.writer import Sampler

if TYPE_CHECKING:
    from tiermem.engine.store import Store


class Transaction:
    """A write transaction on the current generation, as a `Writer`."""

    def __init__(self, store: Store, sampler: Sampler) -> None:
        self._store = store
        self._sampler = sampler
        self._write: AbstractContextManager[Any] = nullcontext()

    def __enter__(self) -> Writer:
        try:
            return self._begin()
        except BaseException:
            # An interrupt, too, must not leave a transaction open: it would hold up every writer.
            self._write.__exit__(*sys.exc_info())
            raise

    def _begin(self) -> Writer:
        store = self._store
        config = store.config
        # LMDB would go on in files that have no name any more.
        store.check_place()
        while True:
            cold = store.cold
            self._write = cold.write()
            txn = self._write.__enter__()
            writer = Writer(cold, txn, store.compressor, config.vector.metric, self._sampler)
            moved = writer.identity().moved_to
            if not moved:
                self._wipe(writer)
                return writer
            # Another process has compacted: this environment is a relic, and takes no more writes.
            self._write.__exit__(None, None, None)
            self._write = nullcontext()
            store.move_to(max(moved, generations.current(store.root)))

    def _wipe(self, writer: Writer) -> None:
        """The last generation may have been left to get rid of what was deleted: the journal holds it no longer.

        What another process has applied of it, this one still has to read once: then the next transaction wipes.
        """
        store = self._store
        journal, generation = store.journal, writer.env.generation
        if journal is None or journal.wiped == generation:
            return
        try:
            mark = writer.applied(store.slot, journal.id, journal.head)
        except CorruptionError:
            # Whoever drains it hears of that.
            return
        with store.lock:
            if journal.applied >= mark:
                journal.wipe(generation)

    def __exit__(self, *args: object) -> bool | None:
        return self._write.__exit__(*args)  # type: ignore[arg-type]  # the arguments are handed through
