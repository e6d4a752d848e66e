"""Repacking: L3 written anew row by row, so that every page is full."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tiermem.tiers.cold.layout import DATABASES

if TYPE_CHECKING:
    from tiermem.tiers.cold.env import ColdEnv
    from tiermem.tiers.cold.snapshot import Snapshot

_WORTH: Final = 0.125
"""Share of all pages from which on full pages are worth their making: it takes longer than a copy of pages."""
_NODE_BYTES: Final = 10
"""What a page spends on a row beside its key and value."""
_PAGE_HEAD: Final = 16
_FEW: Final = 64
"""Pages; so little is not looked at."""


def worth_repacking(snapshot: Snapshot) -> bool:
    """True if a good part of the pages would be free if the others were full; looks at the size of every row."""
    pages = wasted = 0
    for name in DATABASES:
        db = getattr(snapshot.dbs, name)
        stat = snapshot.txn.stat(db)
        leaves = stat["leaf_pages"]
        pages += leaves + stat["branch_pages"] + stat["overflow_pages"]
        if leaves < _FEW:
            continue
        room = stat["psize"] - _PAGE_HEAD
        # Of a row that does not fit twice into a page, the value has pages of its own, and the leaf a number.
        longest = (room // 2 & -2) - _NODE_BYTES
        with snapshot.txn.cursor(db=db) as cursor:
            sizes = (len(key) + len(row) for key, row in cursor.iternext())
            needed = sum((size if size <= longest else 0) + _NODE_BYTES for size in sizes)
        wasted += max(0, leaves - needed // room)
    return wasted > _WORTH * pages


def copy_rows(old: Snapshot, new: ColdEnv, txn: Any, name: str) -> None:
    """Append the rows of a database to the empty one of that name, as they are."""
    with old.txn.cursor(db=getattr(old.dbs, name)) as rows, txn.cursor(db=getattr(new.dbs, name)) as cursor:
        cursor.putmulti(rows.iternext(), append=True)


def repack(old: Snapshot, new: ColdEnv) -> None:
    """Write all that `old` sees into the empty environment `new`, fsynced."""
    with new.write() as txn:
        for name in DATABASES:
            copy_rows(old, new, txn, name)
