"""Commands that move records: export and import, as JSON Lines.

A line is one record: namespace, key, value, metadata, vector, at, created_at, updated_at, expires_at,
version. Values JSON has no type for are written as `jsonform` says. Before the records of a namespace
whose metric is not cosine stands a line with its namespace, dimension and metric.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import tiermem
from tiermem.cli.outcome import FINDING, OK, BadUsage, complain
from tiermem.cli.screen import progress, put_json, record_form
from tiermem.cli.stores import open_store
from tiermem.codec import jsonform

BATCH_ROWS: Final = 1000
BATCH_BYTES: Final = 4 * 2**20

_NEEDED: Final = frozenset({"namespace", "key", "value"})
_RECORD: Final = _NEEDED | {"metadata", "vector", "at", "created_at", "updated_at", "expires_at", "version"}
_NAMESPACE: Final = frozenset({"namespace", "dimension", "metric"})


def export(options: Namespace) -> int:
    with open_store(options) as mem:
        known = mem.namespaces()
        for name in options.namespace:
            if name not in known:
                complain(options, f"no namespace {name!r}")
                return FINDING
        names = options.namespace or [name for name in known if name.startswith(options.prefix)]
        if options.output is None:
            _export(mem, names, sys.stdout.write)
            return OK
        # A file that has the name holds the whole export.
        part = options.output.with_name(options.output.name + ".part")
        with part.open("w", encoding="ascii") as file:
            count = _export(mem, names, file.write)
        part.replace(options.output)
    if options.json:
        put_json({"path": str(options.output), "exported": count})
    else:
        sys.stdout.write(f"{count:,} records exported to {options.output}\n")
    return OK


def _export(mem: tiermem.Memory, names: Iterable[str], write: Callable[[str], object]) -> int:
    count = 0
    vectors = mem.stats().vectors
    for name in names:
        part = vectors.get(name)
        if part is not None and part.metric != "cosine":
            form = {"namespace": name, "dimension": part.dimension, "metric": part.metric}
            write(jsonform.dumps(form) + "\n")
        for record in mem.scan(name):
            write(jsonform.dumps(record_form(record)) + "\n")
            count += 1
    return count


def load(options: Namespace) -> int:
    with ExitStack() as stack:
        source, total = sys.stdin.buffer, None
        if options.file != "-":
            source = stack.enter_context(Path(options.file).open("rb"))
            total = os.fstat(source.fileno()).st_size
        mem = stack.enter_context(open_store(options, write=True, create=True))
        advance = stack.enter_context(progress(total, quiet=options.json))
        loader = _Loader(mem)
        for number, line in enumerate(source, 1):
            advance(len(line))
            if line.strip():
                loader.take(number, line)
        loader.write()
        mem.flush()
    if options.json:
        put_json({"imported": loader.imported, "expired": loader.expired})
    else:
        skipped = f"; {loader.expired:,} had expired and were skipped" if loader.expired else ""
        sys.stdout.write(f"{loader.imported:,} records imported{skipped}\n")
    return OK


class _Loader:
    """Lines of an export on their way into a store, in batches of one namespace."""

    def __init__(self, mem: tiermem.Memory) -> None:
        self.imported = 0
        self.expired = 0
        self._mem = mem
        self._namespace = ""
        self._rows: list[tuple[int, tiermem.Item, float | None]] = []
        self._bytes = 0

    def take(self, number: int, line: bytes) -> None:
        """Line `number`; what came before it stays imported whatever is wrong with it."""
        try:
            row = _checked(jsonform.parse(line))
            if "key" not in row:
                self.write()
                self._mem.create_namespace(row["namespace"], dimension=row.get("dimension"), metric=row.get("metric"))
                return
            item = tiermem.Item(
                row["key"],
                jsonform.from_json(row["value"]),
                vector=row.get("vector"),
                metadata=jsonform.from_json(row.get("metadata")),
                at=row.get("at"),
            )
        except (jsonform.NotJson, tiermem.TiermemError) as exc:
            self.write()
            raise BadUsage(f"line {number}: {exc}") from exc
        if row["namespace"] != self._namespace or len(self._rows) >= BATCH_ROWS or self._bytes >= BATCH_BYTES:
            self.write()
            self._namespace = row["namespace"]
        self._rows.append((number, item, row.get("expires_at")))
        self._bytes += len(line)

    def write(self) -> None:
        """Put what has been taken into the store."""
        rows, self._rows, self._bytes = self._rows, [], 0
        # What is left to live is counted from the put: the longer it waits, the less is left.
        now = self._mem.clock.now()
        live = [(number, _timed(item, expires, now)) for number, item, expires in rows if not _past(expires, now)]
        self.expired += len(rows) - len(live)
        if not live:
            return
        try:
            self._mem.put_many(self._namespace, [item for _, item in live])
            self.imported += len(live)
        except (tiermem.InvalidArgument, tiermem.EncodingError):
            # One of them is refused, and so nothing was stored: now as far as it goes.
            for number, item in live:
                try:
                    self._mem.put_many(self._namespace, [item])
                except tiermem.TiermemError as exc:
                    raise BadUsage(f"line {number}: {exc}") from exc
                self.imported += 1


def _checked(row: Any) -> dict[str, Any]:
    """A row whose fields have names and types that can be used; the store checks the rest."""
    if not isinstance(row, dict):
        raise jsonform.NotJson("a line is one JSON object")
    names = row.keys()
    if not all(isinstance(row.get(name, ""), str) for name in ("namespace", "key")):
        raise jsonform.NotJson("namespace and key are strings")
    if names <= _NAMESPACE and names >= {"namespace", "dimension"}:
        return row
    for missing in sorted(_NEEDED - names):
        raise jsonform.NotJson(f"{missing!r} is missing")
    for unknown in sorted(names - _RECORD):
        raise jsonform.NotJson(f"unknown field {unknown[:80]!r}")
    if not isinstance(row.get("metadata"), dict | None):
        raise jsonform.NotJson("metadata is an object or null")
    expires = row.get("expires_at")
    if expires is not None and (isinstance(expires, bool) or not isinstance(expires, int | float)):
        raise jsonform.NotJson("expires_at is a number or null")
    if not isinstance(row.get("vector"), list | None):
        raise jsonform.NotJson("vector is a list of numbers or null")
    return row


def _past(expires: float | None, now: float) -> bool:
    return expires is not None and expires <= now


def _timed(item: tiermem.Item, expires: float | None, now: float) -> tiermem.Item:
    return item if expires is None else item._replace(ttl=expires - now)
