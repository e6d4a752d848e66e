"""Scrubbing: L3 written anew row by row, so that no page holds what was deleted, with dictionaries trained anew.

A copy of pages would carry along what deleted rows left in the gaps between rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from tiermem.codec.compress import MAX_DICTIONARY_RECORD, MIN_DICTIONARY_RECORD, Compressor
from tiermem.codec.frame import dictionary_of, pack_frame, seal, unpack_frame
from tiermem.errors import TiermemError
from tiermem.tiers.cold.layout import DATABASES, U32, NamespaceInfo, pack_row, unpack_info
from tiermem.tiers.cold.repack import copy_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tiermem.codec.frame import Frame
    from tiermem.tiers.cold.env import ColdEnv
    from tiermem.tiers.cold.writer import Writer


class Scrub:
    """One rewriting of what `old` sees into the empty environment `new`.

    Of the namespaces `names` every value is encoded anew where a dictionary was used: one that is trained
    on what is there now takes its place, or none. `trained` holds those by their numbers.
    """

    def __init__(self, old: Writer, new: ColdEnv, names: frozenset[str], compressor: Compressor) -> None:
        self.trained: dict[int, bytes] = {}
        self._old = old
        self._new = new
        self._compressor = compressor
        for number, data in old.dictionaries():
            compressor.add(number, data)
        self._infos = {name: info for name in names if (info := old.live(name)) is not None}
        self._numbers: dict[bytes, int] = {}
        self._kept: set[int] = set()

    def run(self) -> None:
        """Write everything."""
        old, new = self._old, self._new
        state = msgspec.structs.replace(old.counters)
        for info in self._infos.values():
            trained = self._compressor.train(list(self._samples(info))) if info.dictionary else None
            self._numbers[info.prefix] = 0
            if trained is not None:
                self._numbers[info.prefix] = state.next_dictionary
                self.trained[state.next_dictionary] = trained
                self._compressor.add(state.next_dictionary, trained)
                state.next_dictionary += 1
        with new.write() as txn:
            for name in DATABASES:
                if name not in ("records", "namespaces", "dictionaries"):
                    copy_rows(old, new, txn, name)
            for key, row in old.rows(old.dbs.records):
                txn.put(key, self._record(key, row), db=new.dbs.records)
            for key, row in old.rows(old.dbs.namespaces):
                txn.put(key, self._namespace(key, row), db=new.dbs.namespaces)
            self._dictionaries(txn)
            txn.put(b"state", state.pack(), db=new.dbs.meta)

    def _frames(self, info: NamespaceInfo) -> Iterator[tuple[Frame, bytes]]:
        for key, row in self._old.rows(self._old.dbs.records, info.prefix):
            try:
                frame = unpack_frame(key, row)
                yield frame, self._expand(frame)
            except TiermemError:
                continue

    def _expand(self, frame: Frame) -> bytes:
        return self._compressor.decompress(frame.codec, frame.dictionary, frame.body, frame.value_bytes)

    def _samples(self, info: NamespaceInfo) -> Iterator[bytes]:
        every = max(1, info.records // self._compressor.config.dictionary_samples)
        for number, (_, value) in enumerate(self._frames(info)):
            if number % every == 0 and MIN_DICTIONARY_RECORD <= len(value) <= MAX_DICTIONARY_RECORD:
                yield value

    def _record(self, key: bytes, row: memoryview) -> bytes | memoryview:
        used = dictionary_of(row)
        if not used:
            return row
        number = self._numbers.get(key[:4])
        if number is None:
            self._kept.add(used)
            return row
        try:
            frame = unpack_frame(key, row)
            codec, dictionary, body = self._compressor.compress(self._expand(frame), number)
        except TiermemError:
            # Damaged as it was: whoever reads it hears of it.
            return row
        return pack_frame(key, **(frame._asdict() | {"codec": codec, "dictionary": dictionary, "body": body}))

    def _namespace(self, key: bytes, row: memoryview) -> bytes | memoryview:
        info = unpack_info(key, row)
        number = self._numbers.get(info.prefix)
        if number is None or info.dropped:
            self._kept.add(info.dictionary)
            return row
        info.dictionary = number
        return pack_row(key, info)

    def _dictionaries(self, txn: Any) -> None:
        for key, row in self._old.rows(self._old.dbs.dictionaries):
            if U32.unpack(key)[0] in self._kept:
                txn.put(key, row, db=self._new.dbs.dictionaries)
        for number, data in self.trained.items():
            key = U32.pack(number)
            txn.put(key, seal(key, data), db=self._new.dbs.dictionaries)
