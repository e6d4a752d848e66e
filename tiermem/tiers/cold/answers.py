"""Answers: what the newest request of each client has come to, kept in the transaction that wrote it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tiermem.tiers.cold.layout import Answer, answer_key, pack_row, unpack_answer

if TYPE_CHECKING:
    from tiermem.tiers.cold.snapshot import Snapshot
    from tiermem.tiers.cold.writer import Writer


def known(snapshot: Snapshot, slot: int) -> Answer | None:
    """The answer to the newest request of a client of which anything was written.

    Raises:
        CorruptionError: it is damaged.
    """
    key = answer_key(slot)
    row = snapshot.txn.get(key, db=snapshot.dbs.marks)
    return None if row is None else unpack_answer(key, row)


def forget(writer: Writer, slot: int) -> None:
    """Drop it."""
    writer.wrote = True
    writer.txn.delete(answer_key(slot), db=writer.dbs.marks)


def keep(writer: Writer, slot: int, answer: Answer) -> None:
    """Keep an answer, in the transaction that writes what was asked."""
    writer.wrote = True
    key = answer_key(slot)
    writer.txn.put(key, pack_row(key, answer), db=writer.dbs.marks)
