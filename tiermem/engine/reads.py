"""The verbs that read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from tiermem.codec.frame import NEVER
from tiermem.codec.serialize import copy_value, decode, decode_metadata
from tiermem.engine import drafts, feed, reading, search
from tiermem.engine.handle import Handle
from tiermem.errors import EmbedderMismatch, InvalidArgument, InvalidVector
from tiermem.protocols import Clock, Embedder
from tiermem.tiers.cold.layout import successor
from tiermem.types import (
    Change,
    Hit,
    Moment,
    Record,
    Vector,
    Where,
    check_namespace,
    check_prefix,
    encode_key,
    encode_keys,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from tiermem.engine.space import Decode
    from tiermem.engine.store import Store
    from tiermem.protocols import Found
    from tiermem.tiers.hot import Table


ABSENT: Final = object()


class Reads(Handle):
    """Everything that can be asked of a store."""

    @property
    def clock(self) -> Clock:
        """Where the store takes event times and expiry from: `clock.now()` is its present, in epoch seconds."""
        return self._store.clock

    @property
    def embedder(self) -> Embedder | None:
        """What turns text into vectors here, or None."""
        return self._store.embedder

    def get(self, namespace: str, key: str, default: Any = None, copy: bool = False) -> Any:
        """The value of a record, or `default` if there is none.

        The object may be shared with other callers and is to be treated as read-only; `copy=True`
        gives one's own.

        Raises:
            InvalidNamespace, InvalidKey, CorruptionError, ClosedError.
        """
        # No keyword-only parameter here: CPython inlines calls of functions without them, and only those.
        try:
            if self._stale[0]:
                self._store.follower.catch_up()
            value = self._tables[namespace][key]
        except KeyError:
            if namespace in self._tables:
                return default
            self._store.tables.typed(namespace, None)
            return Reads.get(self, namespace, key, default, copy)
        except TypeError:
            # An unhashable name or key never reaches the checks of a miss.
            check_namespace(namespace)
            encode_key(key)
            raise
        return copy_value(value) if copy else value

    def peek(self, namespace: str, key: str, default: Any = None) -> Any:
        """The value of a record if L1 holds it, else `default`; reads nothing else and moves nothing."""
        return read_hot(self._current(), namespace, key, None, default)

    def get_record(self, namespace: str, key: str) -> Record | None:
        """The whole record, or None if there is none; its value is the caller's own."""
        return read_record(self._current(), namespace, key, decode)

    def contains(self, namespace: str, key: str) -> bool:
        """True if there is an unexpired record of `key`."""
        store = self._current()
        encode_key(key)
        table = store.tables.typed(namespace, None)
        if key in table.absent:
            return False
        return key in table or bool(reading.fetch_many(store, store.space(namespace), [key], vectors=False).rows)

    def get_many(self, namespace: str, keys: Iterable[str]) -> dict[str, Any]:
        """The values of those `keys` that have a record, in the order asked for.

        What L1 holds is taken from it; the rest is read in one snapshot and does not enter L1.
        """
        return read_values(self._current(), namespace, keys, None)

    def scan(
        self,
        namespace: str,
        prefix: str = "",
        *,
        start: str | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        where: Where | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Iterator[Record]:
        """Records in the order of their keys (by UTF-8 bytes), or against it.

        Yields those whose key starts with `prefix` and lies at or behind `start`, whose event time
        lies in [since, until), and whose metadata match `where`. Rows are read in pages, each one
        consistent view; nothing stays open between them. On a stream, `since` and `until` cost what
        they let through; elsewhere the whole prefix is read.
        """
        return read_scan(self._current(), namespace, decode, prefix, start, since, until, where, limit, reverse)

    def count(self, namespace: str, where: Where | None = None) -> int:
        """How many unexpired records there are; with `where`, how many match (reads them all)."""
        store = self._current()
        space = store.space(namespace)
        chosen = reading.compiled(where)
        if chosen is None:
            return reading.count(store, space)
        pages = reading.pages(store, space, allows=reading.matcher(chosen.matches), vectors=False)
        return sum(len(page.rows) for page in pages)

    def latest(self, namespace: str, n: int = 1) -> list[Record]:
        """The `n` records with the highest event times, newest first; on a stream reads O(n) rows."""
        return read_latest(self._current(), namespace, n, decode)

    def search_similar(
        self,
        namespace: str | Sequence[str],
        query: Vector | str,
        k: int = 10,
        *,
        where: Where | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        min_score: float | None = None,
        exact: bool = False,
        effort: int | None = None,
    ) -> list[Hit]:
        """The min(k, matches) records most similar to `query`, best first.

        namespace: one name, several, or a pattern: `*` is any one part of a name, `**` one or more.
        query: a vector of shape (dimension,), or a text if the store was opened with an embedder.
        where, since, until: only records whose metadata match and whose event time is in [since, until).
        min_score: leave out hits that score less. exact: look at every row, whatever the index.
        effort: rows a graph considers; more find more of what is nearest, slower (128, more under a filter).

        Scores are cosine similarity, inner product or minus the Euclidean distance, computed from the
        stored float32 values; higher is more similar.

        Raises:
            DimensionMismatch, InvalidVector, FilterError, EmbedderMismatch, InvalidArgument.
        """
        return self._search(self._current(), namespace, [query], k, where, since, until, min_score, exact, effort)[0]

    def search_many(
        self,
        namespace: str | Sequence[str],
        queries: ArrayLike | Sequence[str],
        k: int = 10,
        *,
        where: Where | None = None,
        since: Moment | None = None,
        until: Moment | None = None,
        min_score: float | None = None,
        exact: bool = False,
        effort: int | None = None,
    ) -> list[list[Hit]]:
        """`search_similar` for each row of `queries` of shape (n, dimension), or each text of a list."""
        rows = drafts.each("queries", queries)
        for row in rows:
            if isinstance(row, (bool, int, float)):
                raise InvalidVector("queries is a row each, shape (n, dimension); search_similar takes one vector")
        return self._search(self._current(), namespace, rows, k, where, since, until, min_score, exact, effort)

    def _search(
        self,
        store: Store,
        namespace: str | Sequence[str],
        queries: list[Any],
        k: int,
        where: Where | None,
        since: Moment | None,
        until: Moment | None,
        min_score: float | None,
        exact: bool,
        effort: int | None,
    ) -> list[list[Hit]]:
        drafts.positive("k", k)
        if effort is not None:
            drafts.positive("effort", effort)
        floor = -NEVER if min_score is None else drafts.finite("min_score", min_score)
        earliest, latest = drafts.span(since, until)
        chosen = reading.compiled(where)
        names = search.expand_names(store, namespace)
        texts = [query for query in queries if isinstance(query, str)]
        if texts:
            if len(texts) != len(queries):
                raise InvalidArgument("queries are texts or vectors, not both")
            queries = list(search.embed(store, texts))
            model = store.embedder.model if store.embedder else ""
            for name in names:
                space = store.space(name)
                if search.describe(store, space) and space.model not in ("", model):
                    raise EmbedderMismatch(f"{name!r} was filled by model {space.model!r}, not {model!r}")
        return [
            [
                self._hit(name, found)
                for name, found in store.indexing.search(
                    names,
                    query,
                    k,
                    since=earliest,
                    until=latest,
                    where=chosen,
                    min_score=floor,
                    effort=effort,
                    exact=bool(exact),
                )
            ]
            for query in queries
        ]

    def _hit(self, name: str, found: Found) -> Hit:
        return Hit(
            name, found.key, found.score, found.version, decode_metadata(found.metadata), found.at, self.get_record
        )

    def namespaces(self, prefix: str = "") -> list[str]:
        """Names of the namespaces that start with `prefix`, sorted."""
        return search.all_names(self._current(), check_prefix(prefix))

    def changes(
        self, after: int | None = None, namespace: str | None = None, wait: float | None = None
    ) -> Iterator[Change]:
        """The change log behind sequence `after` (None: from now), of one namespace or of all.

        At its end the iteration stops, or with `wait` sleeps up to that many seconds for each next
        change. Sequences have no gaps; a change appears once it is committed.

        Raises:
            CursorExpired: changes behind `after` have been trimmed (`ColdConfig.log_retention`).
        """
        store = self._current()
        limit = feed.seconds(wait)
        name = None if namespace is None else check_namespace(namespace)
        position = feed.last_sequence(store) if after is None else feed.sequence("after", after)
        return feed.follow(store, position, name, limit)

    def cursor(self, name: str, namespace: str | None = None, *, start: int | None = None) -> feed.Cursor:
        """A named, durable position in the change log, made if it is not there.

        start: the sequence a new cursor starts behind (None: from now, 0: from the first change).
        """
        return feed.Cursor(self._writable(), name, namespace, start)


def read_record(store: Store, namespace: str, key: str, decoded: Decode) -> Record | None:
    """`Memory.get_record`, with the value decoded by `decoded`."""
    encode_key(key)
    space = store.space(namespace)
    return next(reading.decoded(store, space, decoded, reading.fetch_many(store, space, [key])), None)


def read_values(store: Store, namespace: str, keys: Iterable[str], type_: Any) -> dict[str, Any]:
    """`Memory.get_many`, with the values as `type_`."""
    wanted = drafts.each("keys", keys)
    raws = encode_keys(wanted)
    table = store.tables.typed(namespace, type_)
    space = store.space(namespace)
    decoded = space.decode_of(table)
    if not (table or table.timed or table.watched):
        return reading.fetch_values(store, space, decoded, wanted, raws)
    hot = {key: value for key in wanted if (value := warm(store, table, key, ABSENT)) is not ABSENT}
    missing = [(key, raw) for key, raw in zip(wanted, raws, strict=True) if key not in hot]
    if not missing:
        return hot
    cold = reading.fetch_values(store, space, decoded, *zip(*missing, strict=True))
    return {key: hot[key] if key in hot else cold[key] for key in wanted if key in hot or key in cold}


def read_keys(store: Store, namespace: str) -> Iterator[str]:
    """The keys of the unexpired records of a namespace, in order; values are not looked at."""
    return reading.keys(store, store.space(namespace))


def read_hot(store: Store, namespace: str, key: str, type_: Any, default: Any) -> Any:
    """`Memory.peek`, with the value as `type_`."""
    encode_key(key)
    return warm(store, store.tables.typed(namespace, type_), key, default)


def warm(store: Store, table: Table, key: str, default: Any) -> Any:
    """The value L1 holds under `key`, else `default`; moves nothing."""
    value = dict.get(table, key, ABSENT)
    if value is ABSENT:
        value, expires = table.timed.get(key) or (table.watched.get(key, default), table.expires.get(key, NEVER))
        if expires <= store.clock.now():
            return default
    return value


def read_scan(
    store: Store,
    namespace: str,
    decoded: Decode,
    prefix: str,
    start: str | None,
    since: Moment | None,
    until: Moment | None,
    where: Where | None,
    limit: int | None,
    reverse: bool,
) -> Iterator[Record]:
    """`Memory.scan`, with the values decoded by `decoded`; every argument is checked at once."""
    space = store.space(namespace)
    low, high = bounds(prefix, start, reverse)
    earliest, latest = drafts.span(since, until)
    chosen = reading.compiled(where)
    if limit is not None and (limit is False or limit != 0):
        drafts.positive("limit", limit)
    return reading.records(
        store,
        space,
        decoded,
        low=low,
        high=high,
        since=earliest,
        until=latest,
        allows=reading.matcher(None if chosen is None else chosen.matches),
        limit=limit,
        reverse=reverse,
    )


def read_latest(store: Store, namespace: str, n: int, decoded: Decode) -> list[Record]:
    """`Memory.latest`, with the values decoded by `decoded`."""
    space = store.space(namespace)
    return reading.latest(store, space, decoded, drafts.positive("n", n))


def bounds(prefix: str, start: str | None, reverse: bool) -> tuple[bytes, bytes]:
    """The range [low, high) of raw keys with `prefix` at or behind `start`; an empty high is open."""
    low = check_prefix(prefix).encode()
    if low:
        encode_key(prefix)
    high = successor(low)
    if start is not None:
        edge = encode_key(start)
        if not reverse:
            return max(low, edge), high
        past = edge + b"\0"
        high = min(high, past) if high else past
    return low, high
