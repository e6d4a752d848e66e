"""Publishing: a new segment becomes part of its namespace, and what of it and the others is dead by then is said.

What is published and what is unsealed change in one transaction; keys are settled in later ones. Until
then they are in both, and the tail counts: so a crash at any point loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from tiermem.engine.builder import Built, Job
from tiermem.engine.lanes import unhurried
from tiermem.tiers.cold import sealed
from tiermem.tiers.cold.layout import SegmentInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tiermem.engine.store import Store
    from tiermem.tiers.cold import Writer
    from tiermem.tiers.vector.rowfile import RowFile
    from tiermem.tiers.vector.shelf import Shelf

SLICE: Final = 1_000
"""Keys settled in one transaction, so that it stays short."""
AWAITED_SLICE: Final = 10
"""So many times more where somebody waits for it, and nobody searches: no longer than the sync of a commit may take."""


def publish(store: Store, name: str, job: Job, built: Built, before: dict[int, SegmentInfo]) -> bool:
    """Make the new segment part of the namespace in place of its inputs; False if one of them is gone.

    `before`: what was published before it was built.
    """
    shelf = store.sealer.shelf
    pace, some = _pace(store, job.awaited)
    while True:
        with store.cold.read() as snapshot:
            info = snapshot.info(name)
            if info is None or info.dropped or info.id != built.namespace:
                return False
            epoch, prefix = info.epoch, info.prefix
            published = snapshot.segments(prefix)
            if not published.keys() >= set(job.inputs):
                return False
            keys = list(pace(snapshot.unsealed(prefix)))
            versions = list(pace(snapshot.vector_versions(prefix + key.encode() for key in keys)))
        fresh = shelf.segment(job.number, built.seal, graph=built.graph) if built.rows else None
        changed: dict[int, SegmentInfo | None] = dict.fromkeys(job.inputs)
        held: dict[str, int] = {}
        if fresh is not None:
            dead = SegmentInfo(built.rows, built.seal, built.graph)
            places = fresh.rows.find(keys)
            stale = _other_versions(fresh.rows, places, versions)
            for number in job.inputs:
                stale.extend(_died_since(shelf, number, before[number], published[number], fresh))
            dead.dead = _bury(dead, stale)
            changed[job.number] = dead
            buried = set(stale)
            held = {
                key: version
                for key, row, version in zip(keys, places.tolist(), versions, strict=True)
                if row >= 0 and row not in buried
            }
        for number, known in published.items():
            if number not in changed:
                rows = shelf.segment(number, known.seal, graph=known.graph).rows
                # What is in L3 as it is there stays alive: somebody has just sealed it.
                old = [
                    row
                    for key, row, version in zip(keys, rows.find(keys).tolist(), versions, strict=True)
                    if row >= 0 and (key in held or rows.versions[row] != version)
                ]
                changed[number] = msgspec.structs.replace(known, dead=_bury(known, old))
        settled = {key: version for key, version in zip(keys, versions, strict=True) if key in held or not version}
        if _swap(store, name, info.id, epoch, changed):
            break
    # A merge settles nothing: what it saw deleted may be on its way into a segment that is being sealed.
    pairs = list(settled.items()) if job.unsealed else []
    for start in range(0, len(pairs), some):
        part = pairs[start : start + some]

        def settle(writer: Writer, part: Collection[tuple[str, int]] = part) -> None:
            info = writer.live(name)
            # Taken back meanwhile: nobody holds them.
            if info is not None and (fresh is None or job.number in writer.segments(info.prefix)):
                sealed.settle(writer, name, pace(part))

        store.committer.commit(work=settle)
    store.indexing.adopt(store.space(name))
    return True


def _pace(store: Store, awaited: bool) -> tuple[Callable[[Iterable[Any]], Iterator[Any]], int]:
    """With which pauses to go over keys, and how many of them to settle in one transaction."""
    if awaited and all(space.index is None for space in list(store.spaces.values())):
        # Nobody searches here: whoever waits for this comes first.
        return iter, AWAITED_SLICE * SLICE
    return unhurried, SLICE


def _other_versions(rows: RowFile, places: NDArray[np.int64], versions: Sequence[int]) -> list[int]:
    """Those of the rows at `places` (negative: none) that are not of the versions given."""
    here = np.flatnonzero(places >= 0)
    found = places[here]
    stale: list[int] = found[rows.versions[found] != np.array(versions, np.uint64)[here]].tolist()
    return stale


def _died_since(shelf: Shelf, number: int, before: SegmentInfo, known: SegmentInfo, fresh: Any) -> list[int]:
    """Rows of a merged segment that were buried in its input while it was being merged."""
    old = shelf.segment(number, known.seal, graph=False).rows
    # What was dead before may be alive in another input, as of the same version.
    rows = sorted(set(known.dead_numbers()).difference(before.dead_numbers()))
    keys = [old.key(row) for row in rows]
    places = fresh.rows.find(keys).tolist()
    return [
        place
        for row, place in zip(rows, places, strict=True)
        if place >= 0 and fresh.rows.versions[place] == old.versions[row]
    ]


def _swap(store: Store, name: str, namespace: int, epoch: int, changed: dict[int, SegmentInfo | None]) -> bool:
    """Publish, unless somebody else has published since `epoch`."""
    done = False

    def work(writer: Writer) -> None:
        nonlocal done
        info = writer.live(name)
        if info is not None and (info.id, info.epoch) == (namespace, epoch):
            done = True
            for number, segment in changed.items():
                sealed.publish(writer, name, number, segment)

    store.committer.commit(work=work)
    return done


def _bury(known: SegmentInfo, rows: Any) -> bytes:
    """The packed bits of what is dead once `rows` are, negative ones left out."""
    size = (known.rows + 63) // 64 * 8
    bits = np.frombuffer(known.dead, np.uint8).copy() if known.dead else np.zeros(size, np.uint8)
    numbers = np.asarray(rows, np.int64)
    numbers = numbers[numbers >= 0]
    if not known.dead and not len(numbers):
        return b""
    np.bitwise_or.at(bits, numbers >> 3, np.uint8(1) << (numbers & 7).astype(np.uint8))
    return bits.tobytes()
