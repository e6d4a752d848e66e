"""Commands on a whole store: demo, stats, namespaces, check, repair, index, compact, backup, restore."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tiermem
from tiermem.cli.outcome import FINDING, INTERRUPTED, OK, BadUsage, complain
from tiermem.cli.screen import console, put_json, rows_done, show_table
from tiermem.cli.stores import open_store


def demo(options: Namespace) -> int:
    from tiermem.demo import run_demo

    report = run_demo(options.path, options.ticks, console=console(), json=options.json, limit=options.limit)
    return OK if report.complete or options.limit is not None else INTERRUPTED


def stats(options: Namespace) -> int:
    with open_store(options) as mem:
        found = mem.stats()
    if options.json:
        put_json(asdict(found))
        return OK
    show_table(
        f"tiermem {found.path}",
        ("part", "measure", "value#"),
        [(*row[:2], _number(row[2])) for row in _measures(found)],
    )
    for part in found.degraded:
        sys.stdout.write(f"DEGRADED  {part}\n")
    return OK


def _measures(found: tiermem.Stats) -> Iterator[tuple[str, str, Any]]:
    yield "store", "generation", found.generation
    yield "store", "clients", found.clients
    yield "store", "namespaces", len(found.namespaces)
    for title, part in (("L1 hot", found.hot), ("L3 cold", found.cold), ("writes", found.writes)):
        yield from ((title, name.replace("_", " "), value) for name, value in asdict(part).items())
    for name, vectors in found.vectors.items():
        for measure, value in asdict(vectors).items():
            yield f"L2 {name}", measure.replace("_", " "), value
    yield "log", "first", found.log.first
    yield "log", "last", found.log.last
    yield from (("log", f"cursor {name} is behind by", lag) for name, lag in found.log.cursors.items())


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def namespaces(options: Namespace) -> int:
    with open_store(options) as mem:
        vectors = mem.stats().vectors
        counts = {name: mem.count(name) for name in mem.namespaces(options.prefix)}
    rows = []
    for name, records in counts.items():
        part = vectors.get(name)
        size, metric = (None, None) if part is None else (part.dimension, part.metric)
        held = 0 if part is None else part.vectors
        row = {"namespace": name, "records": records, "vectors": held, "dimension": size, "metric": metric}
        rows.append(row)
        if options.json:
            put_json(row)
    if not options.json:
        columns = ("namespace", "records#", "vectors#", "dimension#", "metric")
        cells = (["" if cell is None else _number(cell) for cell in row.values()] for row in rows)
        show_table("namespaces", columns, cells)
    return OK


def check(options: Namespace) -> int:
    try:
        # Damaged pages would keep the store from being opened, and so from being repaired.
        with open_store(options, write=True, verify=not options.repair, repair=options.repair) as mem:
            report = mem.check(repair=options.repair)
    except tiermem.CorruptionError as exc:
        # Damage that keeps the store from being opened is a finding as any other.
        report = tiermem.CheckReport(0, 0, 0, 0, pages_verified=False, problems=(str(exc),))
    if options.json:
        put_json({"ok": report.ok, **asdict(report)})
    else:
        rows = [
            ("records", f"{report.records:,}"),
            ("vectors", f"{report.vectors:,}"),
            ("changes", f"{report.changes:,}"),
            ("journals", f"{report.journals:,}"),
            ("pages", "verified" if report.pages_verified else "not verified"),
            *(("PROBLEM", problem) for problem in report.problems),
            *(("repaired", what) for what in report.repaired),
            ("verdict", "clean" if report.ok else f"{len(report.problems)} problem(s)"),
        ]
        show_table(f"check of {options.path}", ("checked", "found"), rows)
    return OK if report.ok else FINDING


def repair(options: Namespace) -> int:
    with open_store(options, write=True, repair=True) as mem:
        report = mem.check(repair=True)
    if options.json:
        put_json({"ok": report.ok, **asdict(report)})
    else:
        rows = [
            ("records", f"{report.records:,}"),
            ("vectors", f"{report.vectors:,}"),
            *(("repaired", what) for what in report.repaired),
            *(("PROBLEM", problem) for problem in report.problems),
            ("verdict", "sound" if report.ok else f"{len(report.problems)} problem(s) left"),
        ]
        show_table(f"repair of {options.path}", ("what", "found"), rows)
    return OK if report.ok else FINDING


def index(options: Namespace) -> int:
    with open_store(options, write=True) as mem:
        found = mem.stats().vectors
        names = options.namespaces or sorted(found)
        for name in names:
            with rows_done(name, quiet=options.json) as told:
                mem.build_index(name, told)
        after = mem.stats().vectors
    rows = [{"namespace": name, "vectors": after[name].vectors if name in after else 0} for name in names]
    if options.json:
        put_json(rows)
    else:
        for row in rows:
            sys.stdout.write(f"{row['namespace']}: {row['vectors']:,} vectors indexed\n")
    return OK


def compact(options: Namespace) -> int:
    with open_store(options, write=True) as mem:
        gained = mem.compact()
    if options.json:
        put_json({"bytes_returned": gained})
    else:
        sys.stdout.write(f"{gained:,} bytes returned\n")
    return OK


def backup(options: Namespace) -> int:
    with open_store(options, write=True) as mem:
        path = mem.backup(Path(options.target))
    if options.json:
        put_json({"path": str(path)})
    else:
        sys.stdout.write(f"backed up to {path}\n")
    return OK


def restore(options: Namespace) -> int:
    with open_store(options, verify=True) as mem:
        if mem.stats().writes.pending:
            raise BadUsage(
                f"{options.path} is no backup: clients left writes in its journals; open it for writing first"
            )
        report = mem.check()
        if not report.ok:
            complain(options, f"{options.path} is damaged: {'; '.join(report.problems)}"[:2000])
            return FINDING
        path = mem.backup(Path(options.target))
        records = sum(mem.stats().namespaces.values())
    if options.json:
        put_json({"path": str(path), "records": records})
    else:
        sys.stdout.write(f"{records:,} records restored to {path}\n")
    return OK
