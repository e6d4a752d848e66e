"""The tables of each section."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from _sheets import Sheet, number
from _workload import COLD_ROUND, DIMENSION, HOT_ROUND, RECORD_BYTES, K

from microbench import cold, hot, puts
from microbench.exact import PAIRS
from microbench.lives import BARE
from microbench.rivals import PlainDict
from microbench.scale import Scale
from microbench.subject import Measured
from microbench.tables import contest, timings

RAW: Final = "raw py-lmdb get + msgspec decode"
RAW_MANY: Final = "raw py-lmdb getmulti + msgspec decode"
RAW_RANGE: Final = "raw py-lmdb cursor + msgspec decode"
SAME: Final = "raw py-lmdb get + zstd + msgspec decode"
SAME_MANY: Final = "raw py-lmdb getmulti + zstd + msgspec decode"
SAME_RANGE: Final = "raw py-lmdb cursor + zstd + msgspec decode"


def hot_sheets(found: Measured, scale: Scale) -> Iterator[Sheet]:
    columns = timings("ns")
    heads = ["read", *(name for name, _ in columns)]
    floor = [hot.LOOP, *hot.rows("floor")]
    yield Sheet(
        "Hot reads: hits",
        f"{scale.rounds * HOT_ROUND:,} lookups, zipf-distributed (exponent 1.0), over {scale.keys:,} string keys that "
        "all caches hold, with the same objects as values. L1 had been read until no hit ran the policy; its budget of "
        "bytes and the coherence between processes are on, as by default: `mem.get` and `ns.get` look at each call "
        "whether another process has written, `ns[key]` is as fresh as the last other call. Times include the loop; "
        "the ratio does not. The first three rows are the floor and do not compete: a plain dict neither bounds itself "
        "nor stores anything. `theine` gives a pair, the value and whether it was there.",
        [*heads, "× `dict[key]`, net"],
        list(contest(found, [*floor, *hot.rows("hit")], columns, "`dict[key]`", apart=floor, less=hot.LOOP)),
    )
    yield Sheet(
        "Hot reads: hits on records that expire",
        "The same lookups; every entry has a time to live of a day.",
        [*heads, "× `mem.get`, net"],
        list(contest(found, hot.rows("expiring"), columns, "`mem.get`, record with a TTL", less=hot.LOOP)),
    )
    missing = hot.rows("absent")
    first = "`mem.get`, absent key, for the first time"
    apart = [first, *(name for name in missing if name in PlainDict.rows)]
    yield Sheet(
        "Hot reads: misses",
        f"{scale.rounds * COLD_ROUND:,} keys that nobody holds. `mem.get` asks L3 the first time, which is a row of "
        "its own that does not compete, and remembers; the others need not ask.",
        [*heads, "× `mem.get`, net"],
        list(contest(found, missing, columns, "`mem.get`, absent key", apart=apart, less=hot.LOOP)),
    )


def put_sheets(found: Measured, scale: Scale) -> Iterator[Sheet]:
    shares = timings("µs", 0.5, 0.99, 0.999, 1)
    heads = ["write", *(name for name, _ in shares), "× `mem.put`"]
    facts = found.facts
    apart = [puts.HOT, puts.MANY]
    yield Sheet(
        "Writes that survive the death of the process",
        f"Records of {RECORD_BYTES} bytes of MessagePack, one call after the other, {scale.puts:,} in a turn "
        f"(`diskcache`: {scale.sets:,}), the clock read around each. The committer is a thread of the same process "
        "(`" + facts["committer"] + "`) and commits meanwhile. "
        f"{facts['accepted_per_second']:,.0f} puts/s were accepted; counted until all were fsynced, "
        f"{facts['committed_per_second']:,.0f}/s. Overwriting and `put_many` do other work and do not compete.",
        heads,
        list(contest(found, [puts.NEW, *puts.KEPT, *apart], shares, puts.NEW, apart=apart)),
    )
    yield Sheet(
        "Writes that survive a power cut",
        "Each returns after its fsync.",
        heads,
        list(contest(found, [puts.DURABLE, *puts.SYNCED], shares, puts.DURABLE)),
    )


def flat_sheets(found: Measured, scale: Scale) -> Iterator[Sheet]:
    facts = found.facts
    columns = timings("µs")
    names = [puts.FLAT, *puts.KEPT, puts.FLUSHED]
    rows = []
    for row in contest(found, names, columns, puts.FLAT, apart=[puts.FLUSHED]):
        series = found.series[row[0].strip("*")]
        rate = f"{1e9 / series.median:,.0f}"
        rows.append([row[0], f"**{rate}**" if row[1].startswith("**") else rate, *row[1:]])
    yield Sheet(
        "Puts flat out",
        f"New keys and records of {RECORD_BYTES} bytes of MessagePack for {facts['seconds']:g} s a turn, no "
        "clock read around a put. What has returned survives the death of the process, and of nothing is it known to "
        "be fsynced; the last row counts until it was, and does not compete.",
        ["write", "puts/s", *(f"{name} a put" for name, _ in columns), "× `mem.put`"],
        rows,
    )


def cold_sheets(found: Measured, scale: Scale) -> Iterator[Sheet]:
    columns = timings("µs")
    heads = ["read", *(name for name, _ in columns), "× raw"]
    yield Sheet(
        "Cold reads, one at a time",
        f"`HotConfig(max_bytes=0)`: nothing stays in L1. {scale.rounds * COLD_ROUND:,} lookups over "
        f"{scale.cold_records:,} committed records of {RECORD_BYTES} bytes, equally likely, all in the page cache. "
        "By default such records are compressed with a trained dictionary, as they are in the raw rows with zstd; the "
        "rows with compression off read the bytes that the other raw rows read. Raw reads check no checksum and get "
        f"their keys as bytes. Where each read fills L1, that has {cold.SMALL // 2**10} KiB. `diskcache` unpickles.",
        heads,
        list(contest(found, cold.rows("one"), columns, RAW)),
    )
    yield Sheet(
        f"Cold reads, {COLD_ROUND} at a time",
        "Each record of a call. The first rows ask for keys in any order, the others for a range of them; each kind "
        "competes among itself. `mem.scan` gives whole records, with versions, times and metadata.",
        heads,
        [
            *contest(found, cold.rows("many"), columns, RAW_MANY),
            *contest(found, cold.rows("range"), columns, RAW_RANGE),
        ],
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
    yield Sheet(
        "Exact search",
        f"The {K} most similar of {scale.vectors:,} vectors of {DIMENSION} float32 numbers, one query a call, cosine. "
        "One thread. The plain scan multiplies the matrix of unit vectors with the query and sorts the best; its "
        "filters compare one integer column.",
        ["search", *(name for name, _ in columns), "× numpy"],
        [row for pair in PAIRS.items() for row in contest(found, pair, columns, pair[1])],
    )


def start_sheets(found: Measured, scale: Scale) -> Iterator[Sheet]:
    columns = timings("ms")
    least = found.series[BARE].median
    yield Sheet(
        "Start-up",
        "From the start of an interpreter to its end. Making a store allocates and fsyncs its files.",
        ["program", *(name for name, _ in columns), "ms beyond the bare interpreter", "× bare"],
        [
            [name, *(number(column(one)) for _, column in columns), number((one.median - least) / 1e6), f"{ratio}"]
            for name, one in found.series.items()
            for ratio in [one.over(found.series[BARE])]
        ],
    )


SHEETS: dict[str, Callable[[Measured, Scale], Iterator[Sheet]]] = {
    "hot": hot_sheets,
    "puts": put_sheets,
    "flat": flat_sheets,
    "cold": cold_sheets,
    "stream": stream_sheets,
    "search": search_sheets,
    "start": start_sheets,
}
