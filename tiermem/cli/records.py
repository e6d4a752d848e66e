"""Commands on records: get, put, delete, scan, latest, search, changes."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

import tiermem
from tiermem.cli.outcome import FINDING, OK, BadUsage, complain
from tiermem.cli.screen import SHOWN, brief, fields, moment, put_json, record_form, show_table
from tiermem.cli.stores import open_store
from tiermem.codec import jsonform
from tiermem.namespaces import match

RECENT: Final = 20
"""Changes shown unless told where to start."""


def get(options: Namespace) -> int:
    with open_store(options) as mem:
        record = mem.get_record(options.namespace, options.key)
    if record is None:
        if options.json:
            put_json(None)
        complain(options, f"no record {options.key!r} in {options.namespace!r}")
        return FINDING
    if options.value:
        if isinstance(record.value, str) and not options.json:
            sys.stdout.write(f"{record.value}\n")
        else:
            put_json(record.value)
    elif options.json:
        put_json(record_form(record))
    else:
        vector = "" if record.vector is None else f"{record.vector.size} × float32"
        rows = [
            ("value", brief(record.value)),
            ("metadata", fields(record.metadata)),
            ("vector", vector),
            ("at", moment(record.at)),
            ("created", moment(record.created_at)),
            ("updated", moment(record.updated_at)),
            ("expires", moment(record.expires_at)),
            ("version", str(record.version)),
        ]
        show_table(f"{record.namespace}  {record.key}", ("field", "content"), rows)
    return OK


def put(options: Namespace) -> int:
    raw = sys.stdin.read() if options.value == "-" else options.value
    try:
        value = raw if options.text else jsonform.loads(raw)
    except jsonform.NotJson as exc:
        raise BadUsage(f"VALUE is {exc} (--text stores it as a plain string)") from exc
    with open_store(options, write=True, create=True) as mem:
        version = mem.put(
            options.namespace,
            options.key,
            value,
            vector=options.vector,
            metadata=options.metadata,
            ttl=options.ttl,
            at=options.at,
            if_version=options.if_version,
        )
    if options.json:
        put_json({"namespace": options.namespace, "key": options.key, "version": version})
    else:
        sys.stdout.write(f"version {version}\n")
    return OK


def delete(options: Namespace) -> int:
    with open_store(options, write=True) as mem:
        existed = mem.delete(options.namespace, options.key, if_version=options.if_version, erase=options.erase)
    if options.json:
        put_json({"namespace": options.namespace, "key": options.key, "deleted": existed})
    if not existed:
        complain(options, f"no record {options.key!r} in {options.namespace!r}")
    return OK if existed else FINDING


def scan(options: Namespace) -> int:
    # One row more than a table shows tells whether there are more.
    limit = options.limit if options.limit is not None or options.json else SHOWN + 1
    with open_store(options) as mem:
        records = mem.scan(
            options.namespace,
            options.prefix,
            start=options.start,
            since=options.since,
            until=options.until,
            where=options.where,
            limit=limit,
            reverse=options.reverse,
        )
        _show_records(options, records, SHOWN if options.limit is None else None)
    return OK


def latest(options: Namespace) -> int:
    with open_store(options) as mem:
        _show_records(options, mem.latest(options.namespace, options.n), None)
    return OK


def _show_records(options: Namespace, records: Iterable[tiermem.Record], most: int | None) -> None:
    if options.json:
        for record in records:
            put_json(record_form(record))
        return
    found = list(records)
    note = f"the first {most}; --limit N shows more" if most is not None and len(found) > most else ""
    rows = ((record.key, brief(record.value), fields(record.metadata), moment(record.at)) for record in found[:most])
    show_table(options.namespace, ("key", "value", "metadata", "at"), rows, note=note)


def search(options: Namespace) -> int:
    embedder = None
    if options.text is not None:
        embedder = _embedder(options)
    with open_store(options, embedder=embedder) as mem:
        hits = mem.search_similar(
            options.namespace,
            options.vector if options.text is None else options.text,
            options.k,
            where=options.where,
            since=options.since,
            until=options.until,
            min_score=options.min_score,
        )
        records = [hit.record for hit in hits]
    if options.json:
        for hit, record in zip(hits, records, strict=True):
            form = {"namespace": hit.namespace, "key": hit.key, "score": hit.score, "version": hit.version}
            put_json({**form, "metadata": hit.metadata, "value": None if record is None else record.value})
        return OK
    rows = (
        (
            f"{hit.score:.4f}",
            hit.namespace,
            hit.key,
            "" if record is None else brief(record.value),
            fields(hit.metadata),
        )
        for hit, record in zip(hits, records, strict=True)
    )
    show_table(", ".join(options.namespace), ("score#", "namespace", "key", "value", "metadata"), rows)
    return OK


def _embedder(options: Namespace) -> tiermem.HashEmbedder:
    """The `HashEmbedder` of the dimension that the vectors searched have."""
    with open_store(options) as mem:
        known = mem.stats().vectors
    sizes = {part.dimension for name, part in known.items() if any(match(wanted, name) for wanted in options.namespace)}
    if len(sizes) > 1:
        raise BadUsage(f"one text cannot be compared with vectors of different dimensions: {sorted(sizes)}")
    return tiermem.HashEmbedder(sizes.pop()) if sizes else tiermem.HashEmbedder()


def changes(options: Namespace) -> int:
    with open_store(options) as mem:
        after = options.after
        if after is None:
            log = mem.stats().log
            after = max(log.first - 1, log.last - RECENT)
        rows = _limited(mem.changes(after, options.namespace, options.wait), options.limit)
        if options.json or options.wait is not None:
            for change in rows:
                if options.json:
                    put_json(change._asdict())
                else:
                    sys.stdout.write("  ".join(_cells(change)) + "\n")
                # Whoever follows the log wants each change as it comes.
                sys.stdout.flush()
        else:
            show_table("changes", ("sequence#", "op", "namespace", "key", "version#"), map(_cells, rows))
    return OK


def _limited(rows: Iterator[tiermem.Change], limit: int | None) -> Iterator[tiermem.Change]:
    return rows if limit is None else islice(rows, limit)


def _cells(change: tiermem.Change) -> tuple[Any, ...]:
    return str(change.sequence), change.op, change.namespace, change.key, str(change.version)
