"""Reads, writes, streams, exact search and start-up, beside plain dicts, caches, raw LMDB and numpy.

    python benchmarks/bench_micro.py [--json FILE] [--out docs/benchmarks/micro.md] [--quick]

A full run writes the page; a quick one only where `--out` says so. Each section runs in a process of its own, its
subjects taking turns; a rival that is not installed is left out, and named.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from io import StringIO
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import lmdb
import msgspec
import pytest
from _sheets import Sheet, number, origin, show
from _workload import (
    COLD_ROUND,
    DIMENSION,
    FULL,
    HOT_ROUND,
    QUICK,
    RECORD_BYTES,
    RIVALS,
    SEED,
    K,
    Ratio,
    Scale,
    Series,
    directory,
    disk_bytes,
    installed,
    key_names,
    machine,
    percentile,
    record,
    resident,
    settle,
    tick,
    versions,
)
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import tiermem

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "benchmarks" / "micro.md"
NS = "desk/orders"
LATEST = 100
Report = Callable[[str | int], None]
"""Called with the number of steps, then with the name of each step that was done."""


@dataclass(frozen=True)
class Measured:
    """What one section found: series of timings, and numbers that are none."""

    series: dict[str, Series] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------------------------- sections


class Progressing:
    """A pytest plugin that reports each test."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.report(len(session.items))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self.report(report.nodeid.partition("-")[2].rstrip("]").replace("`", ""))


def loops(test: str, scale: Scale, report: Report) -> Measured:
    """The loops of `test_micro.py`, timed by pytest-benchmark."""
    printed = StringIO()
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder, "benchmark.json")
        # The project's own settings of pytest are for its tests, and need more than the extra `bench`.
        arguments = ["-c", os.devnull, "--rootdir", str(HERE), "-p", "no:cacheprovider", "-q"]
        arguments += ["--benchmark-disable-gc", f"--benchmark-json={found}", f"{HERE / 'test_micro.py'}::{test}"]
        if scale == QUICK:
            arguments.append("--quick")
        with redirect_stdout(printed), redirect_stderr(printed):
            code = pytest.main(arguments, plugins=[Progressing(report)])
        if code:
            raise RuntimeError(f"{test} ended with {code!r}:\n{printed.getvalue()}")
        rows = json.loads(found.read_text(encoding="utf-8"))["benchmarks"]
    turns: dict[str, list[list[float]]] = {}
    for row in rows:
        info = row["extra_info"]
        of_subject = turns.setdefault(info["name"], [])
        assert len(of_subject) == info["turn"]
        of_subject.append([seconds * 1e9 / info["calls"] for seconds in row["stats"]["data"]])
    return Measured({name: Series(name, found) for name, found in turns.items()})


def timed(write: Callable[[str, Any], object], items: Sequence[tuple[str, Any]]) -> list[float]:
    """Nanoseconds of each write; reading the clock is in them, some 50 ns."""
    clock = time.perf_counter_ns
    spent = array("Q")
    for key, value in items:
        start = clock()
        write(key, value)
        spent.append(clock() - start)
    return [float(one) for one in spent]


def puts(scale: Scale, report: Report) -> Measured:
    """Writes one at a time; between two subjects the threads of this process come to rest."""
    pack = msgspec.msgpack.Encoder().encode
    records = [record(number) for number in range(scale.puts)]
    hot = key_names(scale.puts // 2)
    turns: dict[str, list[list[float]]] = {}
    accepted = committed = 0.0
    with ExitStack() as stack:
        mem = stack.enter_context(tiermem.open(stack.enter_context(directory()) / "store"))
        env = stack.enter_context(lmdb.open(str(stack.enter_context(directory())), map_size=2**34))

        def raw_put(key: str, value: Any) -> None:
            with env.begin(write=True) as txn:
                txn.put(key.encode(), pack(value))

        def put_many(prefix: str, values: Sequence[Any]) -> None:
            mem.put_many("desk/bulk", [(f"{prefix}-{number}", value) for number, value in enumerate(values)])

        mem.put_many("desk/hot", [(key, record(number)) for number, key in enumerate(hot)])
        for _ in range(4):
            for key in hot:
                mem.get("desk/hot", key)
        subjects: dict[str, tuple[Callable[[str, Any], object], int]] = {
            "`mem.put`, new keys": (partial(mem.put, NS), scale.puts),
            "`mem.put`, overwriting hot keys": (partial(mem.put, "desk/hot"), scale.puts),
            "`mem.put_many` of 1000, each": (put_many, 20),
            "`mem.put(durable=True)`": (partial(mem.put, "desk/durable", durable=True), scale.synced),
            "raw py-lmdb put, a transaction each": (raw_put, scale.synced),
        }
        if installed("diskcache"):
            import diskcache

            cache = stack.enter_context(diskcache.Cache(str(stack.enter_context(directory()))))
            subjects["`diskcache.set`"] = (cache.set, scale.sets)
        report((scale.turns + 1) * len(subjects))
        # The turn before the first warms everything up and is not counted.
        for turn in range(-1, scale.turns):
            for name, (write, count) in subjects.items():
                fresh = (f"order-{turn + 1:03d}-{number:08d}" for number in range(count))
                keys: Iterable[str] = fresh
                if "hot" in name:
                    keys = (hot[number * 7919 % len(hot)] for number in range(count))
                many = "many" in name
                items = [(key, records[:1000] if many else records[number]) for number, key in enumerate(keys)]
                settle()
                start = time.perf_counter()
                spent = timed(write, items)
                middle = time.perf_counter()
                mem.flush()
                if turn >= 0:
                    turns.setdefault(name, []).append([one / len(records[:1000]) for one in spent] if many else spent)
                    if name == "`mem.put`, new keys":
                        accepted += middle - start
                        committed += time.perf_counter() - start
                report(name.replace("`", ""))
        stats = mem.stats()
        assert not stats.degraded, stats.degraded
        facts = {
            "accepted_per_second": scale.turns * scale.puts / accepted,
            "committed_per_second": scale.turns * scale.puts / committed,
            "committer": stats.writes.committer,
        }
    return Measured({name: Series(name, found) for name, found in turns.items()}, facts)


def rows_read(mem: tiermem.Memory, call: Callable[[], object]) -> int:
    """Rows of L3 that a call reads, less those that `stats` reads itself."""
    first, second = mem.stats().cold.rows_read, mem.stats().cold.rows_read
    call()
    return mem.stats().cold.rows_read - second - (second - first)


def stream(scale: Scale, report: Report) -> Measured:
    """A stream appended row by row, and its newest rows when it was short and when it is long."""
    block = [tick(number) for number in range(10_000)]
    spent = array("Q")
    facts: dict[str, Any] = {"rows": scale.stream, "latest": {}}
    series = {}
    clock = time.perf_counter_ns
    short = scale.stream // 100
    report(-(-(short - 1) // len(block)) - (short - scale.stream) // len(block) + 2)
    with directory() as root, tiermem.open(root / "store") as mem:
        append = partial(mem.append, "desk/ticks")
        append(block[0])
        mem.flush()
        settle()
        facts["resident_before"] = resident()
        loading = flushing = 0.0
        done = 1
        for goal in (short, scale.stream):
            while done < goal:
                part = block[: goal - done]
                start = time.perf_counter()
                for value in part:
                    begun = clock()
                    append(value)
                    spent.append(clock() - begun)
                loading += time.perf_counter() - start
                done += len(part)
                report(f"{done:,} rows")
            if goal == scale.stream:
                facts["resident_loaded"] = resident()
            start = time.perf_counter()
            mem.flush()
            flushing += time.perf_counter() - start
            settle()
            newest = partial(mem.latest, "desk/ticks", LATEST)
            found = newest()
            expected = part[-LATEST:]
            assert [row.value for row in found[: len(expected)]] == expected[::-1], "the newest rows are not the last"
            facts["latest"][goal] = rows_read(mem, newest)
            name = f"`mem.latest({LATEST})` of {goal:,} rows"
            samples = []
            for _ in range(scale.latest):
                begun = clock()
                newest()
                samples.append(float(clock() - begun))
            series[name] = Series(name, [samples])
            report(name.replace("`", ""))
        stats = mem.stats()
        assert stats.cold.entries == scale.stream, stats.cold
        facts |= {
            "resident_after": resident(),
            "seconds_appending": loading,
            "seconds_flushing": flushing,
            "disk_bytes": disk_bytes(root),
            "lmdb_bytes": stats.cold.bytes_used,
            "journal_bytes": stats.writes.journal_bytes,
            "value_bytes": len(msgspec.msgpack.encode(block[0])),
            "dictionaries": stats.cold.dictionaries,
        }
    series["`mem.append`"] = Series("`mem.append`", [[float(one) for one in spent]])
    return Measured(series, facts)


USE = """
import sys
import tiermem
with tiermem.open(sys.argv[1]) as mem:
    mem.put("desk/quotes", "AIG", {"px": 48.21})
    assert mem.get("desk/quotes", "AIG") == {"px": 48.21}
"""


def start(scale: Scale, report: Report) -> Measured:
    """Whole lives of interpreters."""
    subjects = {
        "an interpreter that does nothing": ("pass", False),
        "`import tiermem`": ("import tiermem", False),
        "import, open an existing store, put, get, close": (USE, False),
        "import, open a new store, put, get, close": (USE, True),
    }
    turns: dict[str, list[list[float]]] = {name: [] for name in subjects}
    report((scale.starts + 1) * len(subjects))
    with directory() as root:
        for turn in range(-1, scale.starts):
            for name, (code, new) in subjects.items():
                place = root / ("new" if new else "existing")
                begun = time.perf_counter_ns()
                subprocess.run([sys.executable, "-c", code, str(place)], check=True, cwd=root)
                spent = time.perf_counter_ns() - begun
                # The first turn compiles, makes the store that then exists, and warms the page cache.
                if turn >= 0:
                    turns[name].append([float(spent)])
                shutil.rmtree(root / "new", ignore_errors=True)
                report(name.replace("`", ""))
    return Measured({name: Series(name, found) for name, found in turns.items()})


SECTIONS: dict[str, Callable[[Scale, Report], Measured]] = {
    "hot": partial(loops, "test_hot"),
    "puts": puts,
    "cold": partial(loops, "test_cold"),
    "stream": stream,
    "search": partial(loops, "test_search"),
    "start": start,
}


def in_child(name: str, scale: Scale, connection: Connection) -> None:
    """Run a section and send what it reports, then what it found."""
    connection.send(SECTIONS[name](scale, connection.send))


def run(name: str, scale: Scale, progress: Progress) -> Measured:
    """A section in a process of its own, so that it finds memory, threads and caches as they are at first."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=in_child, args=(name, scale, sender))
    child.start()
    sender.close()
    task = progress.add_task(name, total=None)
    try:
        while True:
            message = receiver.recv()
            if isinstance(message, Measured):
                return message
            if isinstance(message, int):
                progress.update(task, total=message, refresh=True)
            else:
                progress.update(task, advance=1, description=f"{name}: {message}", refresh=True)
    except EOFError:
        raise SystemExit(f"section {name} failed") from None
    finally:
        child.join()
        progress.update(task, description=name, refresh=True)


# ------------------------------------------------------------------------------------------------------------ tables


@dataclass(frozen=True)
class Requirement:
    """A bound on what was measured; `holds` is None where the rival was absent."""

    text: str
    measured: str
    holds: bool | None
    verdict: str
    ratio: Ratio | None = None


Column = tuple[str, Callable[[Series], float | None]]


def timings(unit: str, *shares: float) -> list[Column]:
    """The columns of percentiles in a unit, with the fastest sample where only the median is asked for."""
    scale = {"ns": 1.0, "µs": 1e3, "ms": 1e6}[unit]
    if not shares:
        return [
            (f"median {unit}", lambda series: series.median / scale),
            (f"best {unit}", lambda series: series.best / scale),
        ]

    def of(share: float) -> Column:
        def column(series: Series) -> float | None:
            found = max(series.samples) if share == 1 else percentile(series.samples, share)
            return None if found is None else found / scale

        return (f"{'max' if share == 1 else f'p{100 * share:g}'} {unit}", column)

    return [of(share) for share in shares]


def contest(
    found: Measured,
    names: Sequence[str],
    columns: Sequence[Column],
    base: str,
    *,
    apart: Sequence[str] = (),
    less: str | None = None,
) -> Iterator[list[str]]:
    """The rows of subjects that compete; the lowest of each column is bold, and that of the first named so.

    Those `apart` do not compete. The last cell is the time over that of `base`, `less` taken off both.
    """
    series = [found.series[name] for name in names if name in found.series]
    cost = found.series[less] if less else None
    cells: dict[str, list[str]] = {one.name: [] for one in series}
    for _, column in columns:
        values = {one.name: column(one) for one in series}
        rivals = [value for name, value in values.items() if value is not None and name not in apart]
        for name, value in values.items():
            won = name not in apart and len(rivals) > 1 and value == min(rivals)
            if not cells[name]:
                cells[name].append(f"**{name}**" if won else name)
            cells[name].append(f"**{number(value)}**" if won else number(value))
    for one in series:
        ratio = "–" if base not in found.series or one.name == less else f"{one.over(found.series[base], cost)}"
        cells[one.name].append(ratio)
    yield from cells.values()


def hot_sheets(found: Measured, scale: Scale) -> Iterator[Sheet]:
    loop = "the loop alone"
    columns = timings("ns")
    hits = ["`ns[key]`", "`mem.get`", "`ns.get`", "`functools.lru_cache`"]
    hits += ["`cachetools.LRUCache.get`", "`cachebox.LRUCache.get`"]
    floor = [loop, "`dict[key]`", "`dict.get`"]
    yield Sheet(
        "Hot reads: hits",
        f"{scale.rounds * HOT_ROUND:,} lookups, zipf-distributed (exponent 1.0), over {scale.keys:,} string keys that "
        "all caches hold, with the same objects as values. L1 had been read until no hit ran the policy. Times include "
        "the loop; the ratio does not. The first three rows are the floor and do not compete: a plain dict neither "
        "bounds itself nor stores anything.",
        ["read", *(name for name, _ in columns), "× `dict[key]`, net"],
        list(contest(found, [*floor, *hits], columns, "`dict[key]`", apart=floor, less=loop)),
    )
    expiring = ["`ns[key]`, record with a TTL", "`mem.get`, record with a TTL"]
    yield Sheet(
        "Hot reads: hits on records that expire",
        "The same lookups; every entry has a time to live of a day.",
        ["read", *(name for name, _ in columns), "× `mem.get`, net"],
        list(
            contest(
                found,
                [*expiring, "`cachetools.TTLCache.get`", "`cachebox.TTLCache.get`"],
                columns,
                expiring[1],
                less=loop,
            )
        ),
    )
    missing = ["`dict.get`, absent key", "`mem.get`, absent key"]
    missing += ["`cachetools.LRUCache.get`, absent key", "`cachebox.LRUCache.get`, absent key"]
    yield Sheet(
        "Hot reads: misses",
        f"{scale.rounds * COLD_ROUND:,} keys that nobody holds. `mem.get` asks L3 the first time and remembers; "
        "the others need not ask.",
        ["read", *(name for name, _ in columns), "× `mem.get`, net"],
        list(contest(found, missing, columns, missing[1], apart=missing[:1], less=loop)),
    )


def put_sheets(found: Measured, scale: Scale) -> Iterator[Sheet]:
    shares = timings("µs", 0.5, 0.99, 0.999, 1)
    facts = found.facts
    apart = ["`mem.put`, overwriting hot keys", "`mem.put_many` of 1000, each"]
    yield Sheet(
        "Writes that survive the death of the process",
        f"Records of {RECORD_BYTES} bytes of MessagePack, one call after the other, {scale.puts:,} in a turn "
        f"(`diskcache`: {scale.sets:,}), the clock read around each. The committer is a thread of the same process "
        "(`" + facts["committer"] + "`) and commits meanwhile. "
        f"Flat out, {facts['accepted_per_second']:,.0f} puts/s were accepted; counted until all were fsynced, "
        f"{facts['committed_per_second']:,.0f}/s. Overwriting and `put_many` do other work and do not compete.",
        ["write", *(name for name, _ in shares), "× `mem.put`"],
        list(
            contest(
                found, ["`mem.put`, new keys", "`diskcache.set`", *apart], shares, "`mem.put`, new keys", apart=apart
            )
        ),
    )
    yield Sheet(
        "Writes that survive a power cut",
        "Each returns after its fsync.",
        ["write", *(name for name, _ in shares), "× `mem.put`"],
        list(
            contest(
                found,
                ["`mem.put(durable=True)`", "raw py-lmdb put, a transaction each"],
                shares,
                "`mem.put(durable=True)`",
            )
        ),
    )


def cold_sheets(found: Measured, scale: Scale) -> Iterator[Sheet]:
    columns = timings("µs")
    raw = "raw py-lmdb get + msgspec decode"
    yield Sheet(
        "Cold reads, one at a time",
        f"`HotConfig(max_bytes=0)`: nothing stays in L1. {scale.rounds * COLD_ROUND:,} lookups over "
        f"{scale.cold_records:,} committed records of {RECORD_BYTES} bytes, equally likely, all in the page cache. "
        "By default such records are compressed with a trained dictionary; the second row has compression off, as the "
        "raw reads have, which check no checksum and get their keys as bytes. `diskcache` unpickles.",
        ["read", *(name for name, _ in columns), "× raw"],
        list(contest(found, ["`mem.get`", "`mem.get`, compression off", raw, "`diskcache.get`"], columns, raw)),
    )
    many = ["`mem.get_many`", "`mem.get_many`, compression off", "raw py-lmdb gets in one transaction + msgspec decode"]
    rows = ["`mem.scan`", "`mem.scan`, compression off", "raw py-lmdb cursor + msgspec decode"]
    yield Sheet(
        f"Cold reads, {COLD_ROUND} at a time",
        "Each record of a call. The first three rows ask for keys, the others for a range of them.",
        ["read", *(name for name, _ in columns), "× raw"],
        [*contest(found, many, columns, many[-1]), *contest(found, rows, columns, rows[-1])],
    )


def stream_sheets(found: Measured, scale: Scale) -> Iterator[Sheet]:
    facts = found.facts
    shares = timings("µs", 0.5, 0.99, 0.999, 1)
    seconds, beside = facts["seconds_appending"], facts["disk_bytes"] - facts["journal_bytes"]
    before, loaded, after = (facts[f"resident_{when}"] for when in ("before", "loaded", "after"))
    yield Sheet(
        "A long stream",
        f"{facts['rows']:,} rows of {facts['value_bytes']} bytes of MessagePack, appended one by one in "
        f"{seconds:.1f} s ({facts['rows'] / seconds:,.0f} rows/s), then {facts['seconds_flushing']:.1f} s until the "
        f"last was fsynced. On disk {facts['disk_bytes'] / 2**20:,.0f} MiB; less the journal of "
        f"{facts['journal_bytes'] / 2**20:.0f} MiB, {beside / facts['rows']:.0f} bytes a row with the change log. "
        f"Resident: {before['all']:.0f} MiB before, {loaded['all']:.0f} MiB after the last row, "
        f"{after['all']:.0f} MiB after the flush; without mapped files {before['anonymous']:.0f}, "
        f"{loaded['anonymous']:.0f} and {after['anonymous']:.0f} MiB.",
        ["call", *(name for name, _ in shares), "rows read"],
        [
            [name, *(number(column(series)) for _, column in shares), reads]
            for (name, series), reads in zip(
                found.series.items(), [f"{count:,}" for count in facts["latest"].values()] + ["–"], strict=True
            )
        ],
    )


def search_sheets(found: Measured, scale: Scale) -> Iterator[Sheet]:
    columns = timings("µs", 0.5, 0.95)
    names = list(found.series)
    yield Sheet(
        "Exact search",
        f"The {K} most similar of {scale.vectors:,} vectors of {DIMENSION} float32 numbers, one query a call, cosine. "
        "One thread. The plain scan multiplies the matrix of unit vectors with the query and sorts the best; its "
        "filters compare one integer column.",
        ["search", *(name for name, _ in columns), "× numpy"],
        [row for at in range(0, len(names), 2) for row in contest(found, names[at : at + 2], columns, names[at + 1])],
    )


def start_sheets(found: Measured, scale: Scale) -> Iterator[Sheet]:
    columns = timings("ms")
    bare = "an interpreter that does nothing"
    least = found.series[bare].median
    yield Sheet(
        "Start-up",
        "From the start of an interpreter to its end. Making a store allocates and fsyncs its files.",
        ["program", *(name for name, _ in columns), "ms beyond the bare interpreter", "× bare"],
        [
            [name, *(number(column(one)) for _, column in columns), number((one.median - least) / 1e6), f"{ratio}"]
            for name, one in found.series.items()
            for ratio in [one.over(found.series[bare])]
        ],
    )


SHEETS: dict[str, Callable[[Measured, Scale], Iterator[Sheet]]] = {
    "hot": hot_sheets,
    "puts": put_sheets,
    "cold": cold_sheets,
    "stream": stream_sheets,
    "search": search_sheets,
    "start": start_sheets,
}


def verdict(holds: bool) -> str:
    return "holds" if holds else "**fails**"


def requirements(found: dict[str, Measured]) -> Iterator[Requirement]:
    """The bounds that are promised, and what was measured."""

    def bound(
        text: str, limit: float, section: str, ours: str, theirs: str, less: str | None = None
    ) -> Iterator[Requirement]:
        if section not in found:
            return
        series = found[section].series
        if theirs not in series:
            yield Requirement(text, f"no {theirs} here", None, "not measured")
            return
        ratio = series[ours].over(series[theirs], series[less] if less else None)
        shown = f"{ratio.middle:.3f} ({min(ratio.turns):.3f}–{max(ratio.turns):.3f}; by the best {ratio.best:.3f})"
        holds = ratio.middle <= limit
        agreeing = sum((one <= limit) == holds for one in ratio.turns)
        often = "" if agreeing == len(ratio.turns) else f" in {agreeing} of {len(ratio.turns)} turns"
        yield Requirement(text, shown, holds, verdict(holds) + often, ratio)

    lru = "`cachetools.LRUCache.get`"
    yield from bound(f"`mem.get` hit ≤ 1/2 of {lru}", 0.5, "hot", "`mem.get`", lru)
    text = "`ns[key]` hit ≤ 2.5 × `dict[key]`, net of the loop"
    yield from bound(text, 2.5, "hot", "`ns[key]`", "`dict[key]`", "the loop alone")
    text = "`mem.put` p50 ≤ 1/8 of `diskcache.set` p50"
    yield from bound(text, 0.125, "puts", "`mem.put`, new keys", "`diskcache.set`")
    raw = "raw py-lmdb get + msgspec decode"
    yield from bound(f"cold `mem.get` ≤ 4 × {raw}", 4.0, "cold", "`mem.get`", raw)
    yield from bound("the same, compression off", 4.0, "cold", "`mem.get`, compression off", raw)
    if "stream" in found:
        reads = found["stream"].facts["latest"]
        shown = ", ".join(f"{count:,} of {rows:,}" for rows, count in reads.items())
        text = f"`mem.latest({LATEST})` reads O({LATEST}) rows: ≤ {2 * LATEST}, however long the stream"
        holds = max(reads.values()) <= 2 * LATEST
        yield Requirement(text, shown, holds, verdict(holds))


# -------------------------------------------------------------------------------------------------------------- page


def markdown(document: dict[str, Any], demands: Sequence[Requirement], sheets: Sequence[Sheet]) -> str:
    """The page that a run writes."""
    where = document["machine"]
    lines = [
        "# Micro-benchmarks",
        "",
        origin("bench_micro.py", document, SEED),
        "",
    ]
    if document["scale"]["name"] == "quick":
        lines += ["**A quick run**, to see that everything works: small, noisy, and no base for comparisons.", ""]
    # At the end the run itself counts for one to two.
    if where["load"] > where["cores"] / 2 or document["load_at_end"] > where["cores"]:
        lines += ["**The machine was busy with other work**: the times are worth little, the ratios are rough.", ""]
    lines += [
        f"Subjects of a table took turns ({document['scale']['turns']} each), so what else the machine did met all of "
        "them. A ratio is the median of the ratios of the turns; times are medians too, or the percentile named. Times "
        "of different runs do not compare, ratios do. In bold: the lowest of those that compete.",
        "",
        *(f"Left out: `{name}` is not installed.\n" for name in document["absent"]),
        "## Requirements",
        "",
        "| requirement | measured | |",
        "|---|---|---|",
        *(f"| {one.text} | {one.measured} | {one.verdict} |" for one in demands),
    ]
    for sheet in sheets:
        lines += ["", f"## {sheet.heading}", "", sheet.text, "", *sheet.lines()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured here")
    parser.add_argument("--out", type=Path, help="write a Markdown page here (a full run: docs/benchmarks/micro.md)")
    parser.add_argument("--quick", action="store_true", help="small and short, to see that everything runs")
    parser.add_argument("--only", choices=SECTIONS, nargs="+", metavar="SECTION", help=f"some of {', '.join(SECTIONS)}")
    arguments = parser.parse_args()
    scale = QUICK if arguments.quick else FULL
    console = Console()
    where = machine()
    absent = [name for name in RIVALS if installed(name) is None]
    for name in absent:
        console.print(f"left out: {name} is not installed")
    found: dict[str, Measured] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Drawn where a step was done and not in between: drawing takes time from a core that is being measured.
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        for name in arguments.only or SECTIONS:
            found[name] = run(name, scale, progress)
    demands = list(requirements(found))
    sheets = [sheet for name, measured in found.items() for sheet in SHEETS[name](measured, scale)]
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "seed": SEED,
        "scale": asdict(scale),
        "machine": where,
        "load_at_end": machine()["load"],
        "versions": versions(),
        "absent": absent,
        "requirements": [asdict(one) for one in demands],
        "sections": {
            name: {
                "nanoseconds": {subject: series.summary() for subject, series in measured.series.items()},
                "facts": measured.facts,
            }
            for name, measured in found.items()
        },
    }
    show(console, ((one.text, one.measured, one.verdict) for one in demands), sheets)
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    page = arguments.out or (None if arguments.quick or arguments.only else PAGE)
    if page:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(markdown(document, demands, sheets), encoding="utf-8")


if __name__ == "__main__":
    main()
