"""A picture of the store: what `stats()` returns."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from tiermem.reports import ColdStats, HotStats, LogStats, Stats, VectorStats, WriteStats

if TYPE_CHECKING:
    from tiermem.engine.store import Store


BEHIND: Final = 256
"""Commits a reader may be behind before that is said: it keeps what they freed from being used again."""


def _held_pages(store: Store) -> list[str]:
    """What is to be said of a reader that makes the file grow; those of dead processes are cleared first."""
    if store.cold.oldest_reader()[0] < BEHIND:
        return []
    store.cold.clear_stale_readers()
    behind, process = store.cold.oldest_reader()
    if behind < BEHIND:
        return []
    return [
        f"process {process} has been reading a snapshot that is {behind:,} commits old: "
        "pages freed since then cannot be used again, and data.mdb grows until it ends"
    ]


def stats(store: Store) -> Stats:
    """The numbers of this moment; each part is consistent in itself."""
    store.check_place()
    hot, committer = store.hot, store.committer
    with store.lock:
        hot_stats = HotStats(
            policy=type(hot.policy).__name__,
            entries=hot.entries,
            bytes=hot.policy.used,
            max_bytes=hot.max_bytes,
            watched_hits=hot.watched_hits,
            misses=hot.misses,
            promotions=hot.promotions,
            evictions=hot.evictions,
        )
        pending = sum(len(space.pending) for space in store.spaces.values())
        journal = store.journal
        pending_bytes = 0 if journal is None else journal.head - journal.applied
    with store.cold.read() as snapshot:
        state = snapshot.state()
        infos = dict(snapshot.infos())
        cursors = {name: state.next_sequence - 1 - info.position for name, info in snapshot.cursors()}
        numbers = Counter(bytes(key[:4]) for key, _ in snapshot.rows(snapshot.dbs.segments))
        dictionaries = sum(1 for _ in snapshot.rows(snapshot.dbs.dictionaries))
    held = _held_pages(store)
    used, file_bytes, oldest = store.cold.sizes()
    vectors: dict[str, VectorStats] = {}
    for name, info in infos.items():
        if not info.dimension:
            continue
        space = store.spaces.get(name)
        index = None if space is None else space.index
        rows = 0 if index is None else len(index)
        segments = numbers.get(info.prefix, 0)
        vectors[name] = VectorStats(
            dimension=info.dimension,
            metric=info.metric,
            model=info.model,
            vectors=info.vectors,
            loaded=index is not None,
            rows=rows,
            tombstones=0 if index is None else index.tombstones,
            bytes=0 if index is None else index.nbytes,
            segments=segments,
            tail=0 if index is None else len(index.tail),
            vector_backlog=info.unsealed,
        )
    return Stats(
        path=str(store.root),
        generation=store.generation,
        clients=len(set(store.control.live()) - {store.control.helper}),
        namespaces={name: info.records for name, info in infos.items()},
        hot=hot_stats,
        vectors=vectors,
        cold=ColdStats(
            entries=sum(info.records for info in infos.values()),
            rows_read=store.cold.rows_read,
            hits=store.cold_hits,
            misses=store.cold_misses,
            bytes_used=used,
            file_bytes=file_bytes,
            oldest_reader=oldest,
            dictionaries=dictionaries,
        ),
        writes=WriteStats(
            pending=pending,
            pending_bytes=pending_bytes,
            journal_bytes=0 if journal is None else journal.capacity,
            commits=committer.commits,
            committed=committer.committed,
            superseded=committer.superseded,
            last_commit_seconds=committer.last_seconds,
            committer="none" if store.read_only else store.rounds.home,
        ),
        log=LogStats(first=state.first_sequence, last=state.next_sequence - 1, cursors=cursors),
        degraded=(*store.troubles, *held),
        latency={verb: kept.summary() for verb, kept in store.latency.items() if kept.longest},
    )
