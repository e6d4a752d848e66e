"""Upkeep of L3 inside a write transaction: expiry, dropped namespaces, floors, log and dictionaries."""

from __future__ import annotations

from tiermem.codec.frame import NEVER, intact, peek, seal, unseal
from tiermem.tiers.cold.layout import OP_EXPIRE, U32, U64, expiry_key, text
from tiermem.tiers.cold.writer import Writer


def sweep(w: Writer, now: float, limit: int) -> int:
    """Remove up to `limit` records that had expired by `now`; how many."""
    due = []
    for index_key, _ in w.rows(w.dbs.expiry, stop=expiry_key(now, b"\xff")):
        due.append(index_key)
        if len(due) == limit:
            break
    names: dict[bytes, str] = {}
    done = 0
    for index_key in due:
        key = index_key[8:]
        row = w.txn.get(key, db=w.dbs.records)
        if row is not None and not intact(key, row):
            # Whoever reads it must hear of it; a put over it mends it.
            continue
        if row is None or expiry_key(peek(row).expires, key) != index_key:
            # A row that points nowhere: nothing may hang on it.
            w.txn.delete(index_key, db=w.dbs.expiry)
            w.wrote = True
            done += 1
            continue
        prefix = key[:4]
        if prefix not in names:
            names[prefix] = text(unseal(prefix, w.txn.get(prefix, db=w.dbs.names)))
        info = w.live(names[prefix])
        if info is None or info.prefix != prefix:
            # Of a dropped namespace: `collect` takes it.
            continue
        _, version, given, _, _ = peek(row)
        w.remove(names[prefix], key, row)
        w.set_floor(key, version, given)
        w.changes.append((names[prefix], key[4:].decode(), OP_EXPIRE, version))
        done += 1
    return done


def collect(w: Writer, limit: int) -> int:
    """Delete up to `limit` rows of dropped namespaces; how many."""
    done = 0
    for prefix in [key for key, _ in w.rows(w.dbs.garbage)]:
        for db in (w.dbs.segments, w.dbs.unsealed, w.dbs.vectors, w.dbs.floors, w.dbs.records):
            keys, index_keys = [], []
            for key, row in w.rows(db, prefix):
                keys.append(key)
                if db is w.dbs.records and (expires := peek(row).expires) != NEVER:
                    index_keys.append(expiry_key(expires, key))
                if len(keys) + done >= limit:
                    break
            for key in keys:
                w.txn.delete(key, db=db)
            for key in index_keys:
                w.txn.delete(key, db=w.dbs.expiry)
            if db is w.dbs.floors:
                w.counters.floors -= len(keys)
                for key in keys:
                    w.floored.pop(key, None)
            w.wrote = w.wrote or bool(keys)
            done += len(keys)
            if done >= limit:
                return done
        w.txn.delete(prefix, db=w.dbs.garbage)
        w.txn.delete(prefix, db=w.dbs.names)
        w.wrote = True
    return done


def purge_floors(w: Writer) -> None:
    """Forget all floors but those of this transaction, in which the caller has drained every journal.

    What has come into one since it was drained may be older than a delete that stood in the next.
    """
    if w.counters.floors > len(w.floored):
        w.txn.drop(w.dbs.floors, delete=False)
        for key, floor in w.floored.items():
            w.txn.put(key, floor, db=w.dbs.floors)
        w.wrote = True
        w.counters.floors = len(w.floored)
        w.counters.horizon = w.before


def trim_log(w: Writer, keep: int) -> None:
    """Drop log rows more than `keep` changes behind the newest, but none a named cursor needs."""
    bound = w.counters.next_sequence + len(w.changes) - keep
    for _, cursor in w.cursors():
        bound = min(bound, cursor.position + 1)
    if bound <= w.counters.first_sequence:
        return
    keys = [key for key, _ in w.rows(w.dbs.log, stop=U64.pack(bound + 1))]
    # The row that holds `bound` starts at or before it and must stay.
    for key in keys[:-1]:
        w.txn.delete(key, db=w.dbs.log)
    if len(keys) > 1:
        w.wrote = True
        w.counters.first_sequence = U64.unpack(keys[-1])[0]


def add_dictionary(w: Writer, name: str, data: bytes) -> int:
    """Keep a compression dictionary and use it for the namespace from now on; its number."""
    number = w.counters.next_dictionary
    w.counters.next_dictionary += 1
    key = U32.pack(number)
    w.txn.put(key, seal(key, data), db=w.dbs.dictionaries)
    w.changed(name).dictionary = number
    return number
