"""A stream appended row by row, and its newest rows when it was short and when it is long."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import msgspec
from _workload import Series, directory, disk_bytes, resident, settle, tick

import tiermem
from microbench.scale import Scale
from microbench.subject import Measured, Report

LATEST: Final = 100


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
