"""Compression of real records: bytes and time without it, with zstd, and with trained dictionaries.

    python benchmarks/record_compression.py [--json FILE] [--out docs/benchmarks/compression.md] [--quick]

Ticks and conversations are read from the directory that TIERMEM_DATA names, else from `shared/data` beside the
repository; what is absent is left out, and named. A full run on all of them writes the page; another only where `--out`
says so. The settings take turns: in each, every one fills a fresh store, and then all stores are read in rotation.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import lmdb
from _record_compression import (
    DEFAULT,
    OF_A_CLASS,
    SETTINGS,
    Costs,
    DataSet,
    Found,
    Results,
    choice_sheets,
    codec_sheets,
    conclusions,
    demand,
    markdown,
    store_sheet,
    title,
)
from _sheets import show
from _workload import COLD_ROUND, SEED, directory, machine, settle, uniform, versions
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from vectorbench.data import real_folder

import tiermem
from tiermem import CodecConfig, ColdConfig, Config, HotConfig
from tiermem.codec.compress import MAX_DICTIONARY_RECORD, MIN_DICTIONARY_RECORD, Compressor
from tiermem.codec.frame import unpack_frame
from tiermem.demo.market import PRICE_UNIT, Book, Row, TickFile
from tiermem.engine.upkeep import RETRAIN

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "compression.md"
TICKS, TALKS = "aig_20131009_quote_tick.zip", "locomo7.json"
TICK_ROWS = 1_424_012
RECORDS, TURNS, ROUNDS = 50_000, 5, 5
NS = "bench/records"
# One flush does all the committing: neither puts nor gets share the interpreter with it.
COLD = ColdConfig(sync_interval=60.0, journal_bytes=32 * 2**20)
CLASSES = (0, 48, 64, 96, 128, 256, 512, 1024, 2048, 4096, MAX_DICTIONARY_RECORD + 1, 2**31)
LEAST = 20
"""Values a class must have to be shown."""
Step = Callable[[str], object]


# -------------------------------------------------------------------------------------------------------------- data


def tick(row: Row) -> dict[str, Any]:
    """A row as it came: one side of one exchange's quote."""
    side, price, size = ("bid", row.bid, row.bid_size) if row.bid else ("ask", row.ask, row.ask_size)
    return {"symbol": "AIG", "exchange": row.exchange, "side": side, "price": price / PRICE_UNIT, "size": size}


def quote(row: Row, book: Book) -> dict[str, Any]:
    """The best bid and offer of all exchanges after a row."""
    bid_size = sum(book.bid_sizes[name] for name, price in book.bids.items() if price == book.bid)
    ask_size = sum(book.ask_sizes[name] for name, price in book.asks.items() if price == book.ask)
    best = {"bid": book.bid / PRICE_UNIT, "bid_size": bid_size, "ask": book.ask / PRICE_UNIT, "ask_size": ask_size}
    return {"symbol": "AIG", "exchange": row.exchange, **best}


def market(path: Path, count: int) -> Iterator[DataSet]:
    """About `count` ticks, evenly out of the day's rows, and the quotes that were best at these moments."""
    every, file, book = max(1, TICK_ROWS // count), TickFile(path), Book()
    keys: list[str] = []
    moments: list[float | None] = []
    ticks, quotes = [], []
    for row in file.rows():
        book.apply(row)
        if row.number % every == 0 and book.two_sided and (row.bid or row.ask) and len(keys) < count:
            keys.append(f"{row.number:07d}")
            moments.append(file.at(row.ms))
            ticks.append(tick(row))
            quotes.append(quote(row, book))
    yield DataSet("ticks", "one side of one exchange's quote, out of a whole day evenly", keys, ticks, moments)
    yield DataSet("quotes", "the best bid and offer of all exchanges at these moments", keys, quotes, moments)


def talks(path: Path, count: int) -> Iterator[DataSet]:
    """At most `count` turns of the conversations, one a record, and their sessions, one a record."""
    turns, sessions = {}, {}
    for talk in json.loads(path.read_text(encoding="utf-8")):
        for name, said in talk["conversation"].items():
            if isinstance(said, list):
                when = talk["conversation"].get(f"{name}_date_time")
                sessions[f"{talk['sample_id']}/{name}"] = {"date": when, "turns": said}
                turns |= {f"{talk['sample_id']}/{turn['dia_id']}": turn for turn in said}
    for name, text, found in (
        ("turns", "one turn of a conversation, with its speaker and what is known of a picture", turns),
        ("sessions", "one session of a conversation, all its turns in one value", sessions),
    ):
        keys = list(found)[:count]
        yield DataSet(name, text, keys, [found[key] for key in keys], [None] * len(keys))


# ------------------------------------------------------------------------------------------------------------ stores


def sampled(data: DataSet) -> list[int]:
    """The places of the values that a dictionary may be trained on."""
    return [at for at, value in enumerate(data.encoded) if MIN_DICTIONARY_RECORD <= len(value) <= MAX_DICTIONARY_RECORD]


def trainings(data: DataSet, codec: CodecConfig) -> Iterator[int]:
    """After how many records a dictionary is due."""
    places = sampled(data)
    if codec.level and codec.dictionary_bytes and len(places) > codec.dictionary_samples:
        due = places[codec.dictionary_samples - 1] + 1
        while due < len(data.keys):
            yield due
            due *= RETRAIN


def load(mem: tiermem.Memory, data: DataSet, codec: CodecConfig) -> tuple[array[int], float]:
    """Store all records: nanoseconds of each put, and of the flushes by record.

    `compact` trains where that is due. It is called as soon as it is, so that the same records have the same
    dictionaries in every turn, however fast they were put.
    """
    clock, spent, flushed = time.perf_counter_ns, array("Q"), 0
    rows = list(zip(data.keys, data.values, data.moments, strict=True))
    for first, last in pairwise([0, *trainings(data, codec), len(rows)]):
        for key, value, moment in rows[first:last]:
            start = clock()
            mem.put(NS, key, value, at=moment)
            spent.append(clock() - start)
        start = clock()
        mem.flush()
        flushed += clock() - start
        mem.compact()
    return spent, flushed / len(rows)


def read(mem: tiermem.Memory, keys: Sequence[str]) -> array[int]:
    """Nanoseconds of each lookup."""
    clock, spent = time.perf_counter_ns, array("Q")
    for key in keys:
        start = clock()
        mem.get(NS, key)
        spent.append(clock() - start)
    return spent


def bodies(folder: Path) -> tuple[float, float]:
    """Bytes of the stored values of a closed store by record, and which share of them is compressed."""
    with lmdb.open(str(folder), readonly=True, lock=False, max_dbs=20) as env:
        records = env.open_db(b"records", create=False)
        with env.begin(db=records, buffers=True) as txn:
            frames = (unpack_frame(bytes(key), row) for key, row in txn.cursor())
            found = [(len(frame.body), frame.codec != 0) for frame in frames]
    return statistics.mean(size for size, _ in found), statistics.mean(done for _, done in found)


def measure(
    data: DataSet, order: Sequence[CodecConfig], into: dict[CodecConfig, Found], rounds: int, step: Step
) -> None:
    """One turn: every setting fills a store, then all are read in rotation."""
    keys = uniform(data.keys, rounds * COLD_ROUND)
    checked = random.Random(SEED).choices(list(zip(data.keys, data.values, strict=True)), k=50)
    folders: dict[CodecConfig, Path] = {}
    with directory() as root:
        with ExitStack() as stack:
            stores = {}
            for place, codec in enumerate(order):
                config = Config(hot=HotConfig(max_bytes=0), cold=COLD, codec=codec)
                stores[codec] = mem = stack.enter_context(tiermem.open(root / str(place), config=config))
                puts, flush = load(mem, data, codec)
                found, stats = into[codec], mem.stats()
                folders[codec] = root / str(place) / f"gen-{stats.generation}"
                found.puts.append(puts)
                found.flushes.append(flush)
                found.file_bytes.append((folders[codec] / "data.mdb").stat().st_size)
                found.dictionaries.append(stats.cold.dictionaries)
                found.gets.append(array("Q"))
                step(f"{data.name}: {title(codec)}")
            for mem in stores.values():
                assert all(mem.get(NS, key) == value for key, value in checked)
                read(mem, keys[:COLD_ROUND])
            settle()
            for start in range(0, len(keys), COLD_ROUND):
                for codec, mem in stores.items():
                    into[codec].gets[-1] += read(mem, keys[start : start + COLD_ROUND])
        for codec, folder in folders.items():
            size, done = bodies(folder)
            into[codec].value_bytes.append(size)
            into[codec].compressed.append(done)


# ------------------------------------------------------------------------------------------------------------- codec


def microseconds(work: Callable[[Any], object], items: Sequence[Any]) -> float:
    """Of one call: the median of five loops, after one that warms up."""
    loops = []
    for _ in range(6):
        start = time.perf_counter_ns()
        for item in items:
            work(item)
        loops.append((time.perf_counter_ns() - start) / 1e3 / len(items))
    return statistics.median(loops[1:])


def train(data: DataSet, training: dict[str, dict[str, Any]]) -> tuple[bytes | None, int]:
    """One turn of training with every setting; the dictionary of the default, and the first place it has not seen."""
    found, unseen, places = None, 0, sampled(data)
    for codec in SETTINGS:
        seen = places[: codec.dictionary_samples]
        if not codec.level or not codec.dictionary_bytes or len(seen) < codec.dictionary_samples:
            continue
        start = time.perf_counter()
        trained = Compressor(codec).train([data.encoded[at] for at in seen])
        spent = 1e3 * (time.perf_counter() - start)
        row = training.setdefault(f"{data.name}: {title(codec)}", {"ms": [], "bytes": len(trained or b"")})
        row["ms"].append(spent)
        if codec == DEFAULT:
            found, unseen = trained, seen[-1] + 1
    return found, unseen


def codec_turn(data: DataSet, rows: dict[str, dict[str, Any]], training: dict[str, dict[str, Any]]) -> None:
    """One turn of the codec by itself: training, and values by size that were not trained on."""
    dictionary, unseen = train(data, training)
    side = Compressor(replace(DEFAULT, min_bytes=0))
    ways = {"plain": 0}
    if dictionary:
        side.add(1, dictionary)
        ways["dictionary"] = 1
    for low, high in pairwise(CLASSES):
        chosen = [value for value in data.encoded[unseen:] if low <= len(value) < high]
        chosen = random.Random(SEED).sample(chosen, min(len(chosen), OF_A_CLASS))
        if len(chosen) < LEAST:
            continue
        span = f"{low:,} and more" if high == CLASSES[-1] else f"{low:,}–{high - 1:,}"
        size = sum(map(len, chosen))
        row = rows.setdefault(f"{data.name}, {span}", {"values": len(chosen), "bytes": size / len(chosen)})
        for way, use in ways.items():
            done = [(*side.compress(value, use), len(value)) for value in chosen]
            assert [side.decompress(*one) for one in done] == chosen
            into = row.setdefault(way, {"compress": [], "decompress": []})
            into["share"] = sum(len(one[2]) for one in done) / size
            into["compress"].append(microseconds(lambda value, use=use: side.compress(value, use), chosen))
            into["decompress"].append(microseconds(lambda one: side.decompress(*one), done))


# --------------------------------------------------------------------------------------------------------------- run


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured here")
    parser.add_argument("--out", type=Path, help="write the page here (a full run: docs/benchmarks/compression.md)")
    parser.add_argument("--records", type=int, default=RECORDS, help=f"most records of a data set ({RECORDS})")
    parser.add_argument("--turns", type=int, default=TURNS, help=f"stores of each setting and data set ({TURNS})")
    parser.add_argument("--quick", action="store_true", help="small and short, to see that everything runs")
    return parser.parse_args()


def real(count: int, console: Console) -> tuple[list[DataSet], list[str]]:
    """The data sets that are there, and what is missing."""
    data: list[DataSet] = []
    absent = []
    for file, parts in ((TICKS, market), (TALKS, talks)):
        if (real_folder() / file).exists():
            data += parts(real_folder() / file, count)
        else:
            absent.append(f"no {file} in the data directory")
            console.print(f"skipped: {absent[-1]}")
    return data, absent


def main() -> None:
    arguments = parsed()
    quick = arguments.quick
    count, turns, rounds = (2_500, 1, 1) if quick else (arguments.records, arguments.turns, ROUNDS)
    console, where = Console(), machine()
    data, absent = real(count, console)
    if not data:
        console.print("there is nothing to measure with")
        sys.exit(os.EX_NOINPUT)
    results: Results = {one.name: {codec: Found() for codec in SETTINGS} for one in data}
    rows: dict[str, Any] = {}
    training: dict[str, Any] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Drawn where a step was done and not in between: drawing takes time from a core that is being measured.
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        task = progress.add_task("loading", total=turns * len(data) * (len(SETTINGS) + 1))

        def step(text: str) -> None:
            progress.update(task, advance=1, description=text, refresh=True)

        for turn in range(turns):
            first = turn * len(SETTINGS) // turns
            for one in data:
                measure(one, SETTINGS[first:] + SETTINGS[:first], results[one.name], rounds, step)
                codec_turn(one, rows, training)
                step(f"{one.name}: the codec")
    costs = {codec: Costs.of(results, codec) for codec in SETTINGS}
    demands = [demand(costs)]
    sheets = [*choice_sheets(costs), *(store_sheet(one, results[one.name]) for one in data)]
    sheets += codec_sheets(rows, training)
    stores = {name: {title(codec): one.summary() for codec, one in found.items()} for name, found in results.items()}
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "seed": SEED,
        "quick": quick,
        "records": count,
        "turns": turns,
        "machine": where,
        "load_at_end": machine()["load"],
        "versions": versions(),
        "absent": absent,
        "requirements": [asdict(one) for one in demands],
        "conclusions": list(conclusions(results, costs)),
        "stores": stores,
        "codec": rows,
        "training": training,
    }
    show(console, ((one.text, one.measured, one.verdict) for one in demands), sheets)
    for line in document["conclusions"]:
        console.print(f"- {line}", highlight=False)
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    full = not quick and not absent and (count, turns) == (RECORDS, TURNS)
    page = arguments.out or (PAGE if full else None)
    if page:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(markdown(document, demands, sheets), encoding="utf-8")


if __name__ == "__main__":
    main()
