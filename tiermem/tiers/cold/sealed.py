"""What a transaction changes in L3 about segments: published, withdrawn, settled."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tiermem.codec.frame import vector_version
from tiermem.tiers.cold.layout import U64, SegmentInfo, pack_row

if TYPE_CHECKING:
    from tiermem.tiers.cold.writer import Writer


def ripe(w: Writer, least: int) -> dict[str, int]:
    """The namespaces this transaction changed that have at least so many unsealed vectors, and how many."""
    infos = ((name, w.info(name)) for name in w.dirty)
    return {name: info.unsealed for name, info in infos if info is not None and info.unsealed >= least}


def settle(w: Writer, name: str, held: Iterable[tuple[str, int]]) -> None:
    """Segments hold the vectors of these keys as of these versions (0: none): sealed is what stands so still."""
    info = w.live(name)
    if info is None:
        return
    prefix, settled = info.prefix, 0
    with w.txn.cursor(db=w.dbs.records) as records:
        for key, version in held:
            raw = prefix + key.encode()
            stands = vector_version(records.value()) if records.set_key(raw) else 0
            if stands == version and w.txn.delete(raw, db=w.dbs.unsealed):
                settled += 1
    if settled:
        w.changed(name).unsealed -= settled


def publish(w: Writer, name: str, number: int, segment: SegmentInfo | None) -> None:
    """Publish a segment, or with None withdraw it."""
    info = w.changed(name)
    key = info.prefix + U64.pack(number)
    if segment is None:
        w.txn.delete(key, db=w.dbs.segments)
    else:
        w.txn.put(key, pack_row(key, segment), db=w.dbs.segments)
    info.epoch += 1


def withdraw(w: Writer, name: str) -> None:
    """Withdraw every segment of a namespace: its vectors are all unsealed."""
    info = w.live(name)
    if info is None:
        return
    for number in list(w.segments(info.prefix)):
        publish(w, name, number, None)
    for key in [key for key, _ in w.rows(w.dbs.vectors, info.prefix)]:
        w.unseal(name, key)
