"""What a store says of itself: statistics, reports and results as values."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiermem
from tests.workers import INLINE, START, Peer
from tiermem import CheckReport, Config, Memory, Stats, StorageError
from tiermem.engine.latency import Histogram
from tiermem.types import UNSET, check_namespace, encode_key, encode_keys


def test_an_empty_store(mem: Memory, tmp_path: Path) -> None:
    stats = mem.stats()
    assert isinstance(stats, Stats)
    assert (stats.path, stats.generation, stats.clients) == (str(tmp_path / "store"), 1, 1)
    assert (stats.namespaces, stats.vectors, stats.log.cursors, stats.degraded) == ({}, {}, {}, ())
    assert (stats.cold.entries, stats.hot.entries, stats.writes.pending, stats.writes.pending_bytes) == (0, 0, 0, 0)
    assert (stats.log.first, stats.log.last) == (1, 0)
    assert stats.hot.max_bytes == 256 * 2**20
    assert str(tmp_path) in str(stats)


def test_stats_are_frozen(mem: Memory) -> None:
    stats = mem.stats()
    for part in (stats, stats.hot, stats.cold, stats.writes, stats.log):
        field = dataclasses.fields(part)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, field, 1)


def test_numbers_follow_what_is_done(mem: Memory) -> None:
    mem.create_namespace("a", dimension=2)
    for number in range(10):
        mem.put("a", f"k{number}", "x" * 50, vector=[number, 1])
    mem.put("b", "k", 1)
    stats = mem.stats()
    assert stats.writes.pending == 11
    assert 500 < stats.writes.pending_bytes < stats.writes.journal_bytes == 2**20
    before = stats.writes.committed
    mem.flush()
    stats = mem.stats()
    assert (stats.writes.pending, stats.writes.pending_bytes) == (0, 0)
    assert stats.writes.committed == 11
    assert before <= 11
    assert stats.writes.commits > 0
    assert stats.writes.last_commit_seconds > 0
    assert stats.namespaces == {"a": 10, "b": 1}
    assert stats.cold.entries == 11
    assert stats.cold.file_bytes >= stats.cold.bytes_used > 0
    assert (stats.log.first, stats.log.last) == (1, 11)
    assert stats.writes.committer == "inline"


def test_what_whole_records_and_many_values_count(mem: Memory) -> None:
    mem.put("a", "k", 1, vector=[1.0, 0.0])
    mem.flush()
    mem.put("a", "pending", 2, vector=[0.0, 1.0])

    def counted(call: Callable[[], object]) -> tuple[int, int]:
        before = mem.stats().cold
        call()
        after = mem.stats().cold
        return after.hits - before.hits, after.misses - before.misses

    assert counted(lambda: mem.get_record("a", "k")) == (1, 0)
    assert counted(lambda: mem.get_record("a", "none")) == (0, 1)
    assert counted(lambda: mem.get_record("a", "pending")) == (0, 0)
    assert counted(lambda: mem.get_many("a", ["k", "none"])) == (1, 1)
    assert counted(lambda: mem.get_many("a", ["k", "none", "pending"])) == (1, 1)
    mem.put("a", "k", 3)
    assert counted(lambda: mem.get_record("a", "k")) == (0, 0)
    mem.flush()
    mem.delete("a", "k")
    assert counted(lambda: mem.get_record("a", "k")) == (0, 0)


def test_hits_and_misses(mem: Memory) -> None:
    mem.put("a", "k", 1)
    mem.flush()
    base = mem.stats()
    mem.get("a", "k")
    mem.get("a", "none")
    stats = mem.stats()
    assert stats.hot.misses == base.hot.misses + 2
    assert stats.hot.promotions == base.hot.promotions + 1
    assert (stats.cold.hits, stats.cold.misses) == (base.cold.hits + 1, base.cold.misses + 1)
    assert stats.cold.rows_read >= base.cold.rows_read + 1
    assert stats.hot.entries == 1
    assert stats.hot.bytes > 0
    for _ in range(5):
        mem.get("a", "k")
    again = mem.stats()
    assert again.hot.misses == stats.hot.misses
    assert again.hot.watched_hits <= stats.hot.watched_hits + 5
    assert again.cold.hits == stats.cold.hits


def test_evictions(tmp_path: Path) -> None:
    config = Config(cold=INLINE, hot=tiermem.HotConfig(max_bytes=5000, policy=tiermem.LRU))
    with tiermem.open(tmp_path / "store", config=config) as mem:
        for number in range(30):
            mem.put("a", f"k{number}", number)
            mem.get("a", f"k{number}")
        stats = mem.stats().hot
        assert stats.policy == "LRU"
        assert stats.entries + stats.evictions == 30
        assert stats.bytes <= stats.max_bytes == 5000


def test_vectors(mem: Memory) -> None:
    mem.create_namespace("empty", dimension=5, metric="dot")
    mem.put("plain", "k", 1)
    for number in range(10):
        mem.put("a", f"k{number}", 1, vector=[number, 1, 1])
    mem.flush()
    vectors = mem.stats().vectors
    assert list(vectors) == ["a", "empty"]
    part = vectors["a"]
    assert (part.dimension, part.metric, part.vectors, part.loaded, part.rows, part.bytes) == (
        3,
        "cosine",
        10,
        False,
        0,
        0,
    )
    assert part.vector_backlog == 10
    mem.search_similar("a", [1, 1, 1])
    mem.put("a", "k0", 1, vector=[5, 5, 5])
    mem.delete("a", "k1")
    mem.search_similar("a", [1, 1, 1])
    part = mem.stats().vectors["a"]
    assert (part.loaded, part.rows, part.tombstones, part.segments, part.tail) == (True, 9, 2, 0, 9)
    assert part.bytes > 0


def test_clients_and_readers(mem: Memory, tmp_path: Path) -> None:
    mem.put("a", "k", 1, durable=True)
    other = Peer(tmp_path / "store", config=Config(cold=INLINE), now=START)
    try:
        assert mem.stats().clients == 2
        with mem._store.cold.read():
            other.put("a", "k", 2, durable=True)
            other.put("a", "k", 3, durable=True)
            assert mem.stats().cold.oldest_reader >= 2
        assert mem.stats().cold.oldest_reader == 0
    finally:
        other.leave()
    assert mem.stats().clients == 1


@pytest.mark.parametrize("end", ["let_go", "kill"])
def test_a_reader_left_open_is_told_before_the_file_has_grown_for_long(mem: Memory, tmp_path: Path, end: str) -> None:
    other = Peer(tmp_path / "store", config=Config(cold=INLINE), now=START)

    def commit(times: int) -> int:
        for number in range(times):
            mem.put("a", f"k{number % 5}", os.urandom(3000), durable=True)
        return mem.stats().cold.file_bytes

    commit(30)
    settled = commit(300)
    assert commit(300) <= settled + 2**17, "freed pages are not used again"
    other.hold_snapshot()
    assert mem.stats().degraded == ()
    grown = commit(300)
    assert grown > settled + 300 * 3000
    (warning,) = mem.stats().degraded
    assert str(other.pid) in warning
    assert "grows" in warning
    assert warning in str(mem.stats())
    if end == "kill":
        other.kill()
    else:
        other.let_go()
    assert mem.stats().degraded == ()
    commit(5)
    assert commit(300) <= grown + 2**18, "what was held is not used again"
    assert mem.check().ok
    if end == "let_go":
        other.leave()


def test_a_writer_that_was_overtaken(mem: Memory, tmp_path: Path) -> None:
    mem.put("a", "k", "older")
    other = Peer(tmp_path / "store", config=Config(cold=INLINE), now=START)
    try:
        # Its first write puts a journal into service and applies all others; from here on they are left alone.
        other.put("a", "z", 1)
        mem.put("a", "k", "old")
        other.put("a", "k", "new", durable=True)
        mem.flush()
        assert mem.stats().writes.superseded == 1
        assert mem.get("a", "k") == "new"
    finally:
        other.leave()


def test_stats_of_who_only_reads(tmp_path: Path) -> None:
    with tiermem.open(tmp_path / "store") as mem:
        mem.put("a", "k", 1)
    with tiermem.open(tmp_path / "store", read_only=True) as mem:
        stats = mem.stats()
        assert (stats.writes.committer, stats.writes.journal_bytes, stats.clients) == ("none", 0, 0)
        assert stats.namespaces == {"a": 1}


def test_it_prints_well(mem: Memory) -> None:
    mem.put("desk/obs", "k", 1, vector=[1, 2, 3])
    mem.cursor("risk", start=0)
    mem._store.degraded["part"] = "something is wrong"
    text = str(mem.stats())
    del mem._store.degraded["part"]
    lines = text.splitlines()
    assert all(len(line) <= 200 and line == line.rstrip() for line in lines)
    for word in ("L1 hot", "L2 vector", "L3 cold", "writes", "log", "desk/obs", "risk behind 1", "DEGRADED", "S3Clock"):
        assert word in text
    assert "DEGRADED" not in str(mem.stats())


# -------------------------------------------------------------------------------------------------------------- reports


def test_a_clean_check(mem: Memory) -> None:
    for number in range(5):
        mem.put("a", f"k{number}", number, vector=[number, 1], ttl=50.0)
    report = mem.check()
    assert (report.ok, report.problems, report.repaired, report.pages_verified) == (True, (), (), True)
    assert (report.records, report.vectors, report.changes, report.journals) == (5, 5, 5, 1)
    assert str(report) == "clean: 5 records, 5 vectors, 5 changes, 1 journals"


def test_a_report_with_problems_prints_them() -> None:
    report = CheckReport(1_000, 2, 3, 4, True, ("first", "second"))
    assert not report.ok
    text = str(report)
    assert "2 problem(s)" in text
    assert "1,000 records" in text
    assert "  first\n  second" in text


def test_what_is_left_out_has_a_name() -> None:
    assert repr(UNSET) == "UNSET"


@pytest.mark.parametrize("name", ["a", "a/b", "é", "a b", "x" * 255, "a/../b", "."])
def test_names_of_namespaces(name: str) -> None:
    assert check_namespace(name) == name


@pytest.mark.parametrize(
    "name", ["", "/", "/a", "a/", "a//b", "*", "a/*", "a\x00", "x" * 256, "é" * 128, "\ud800", 5, None]
)
def test_what_is_no_name_of_a_namespace(name: object) -> None:
    with pytest.raises(tiermem.InvalidNamespace):
        check_namespace(name)


@pytest.mark.parametrize("key", ["", "x" * 481, "é" * 241, "\ud800", 5, None, b"k"])
def test_what_is_no_key(key: object) -> None:
    with pytest.raises(tiermem.InvalidKey):
        encode_key(key)
    with pytest.raises(tiermem.InvalidKey):
        encode_keys(["fine", key])


def test_keys_are_their_utf8_bytes() -> None:
    assert encode_key("é") == b"\xc3\xa9"
    assert len(encode_key("x" * 480)) == 480
    assert encode_keys(["é", "x" * 480]) == [encode_key("é"), encode_key("x" * 480)]
    assert encode_keys([]) == []


def test_a_missing_record_reads_as_a_sentence() -> None:
    assert str(tiermem.RecordNotFound("no record 'k'")) == "no record 'k'"
    assert str(tiermem.RecordNotFound()) == ""


def test_latency_is_kept_where_it_is_asked_for(tmp_path: Path) -> None:
    with tiermem.open(tmp_path / "plain") as mem:
        mem.put("n", "k", 1)
        assert mem.stats().latency == {}
    with tiermem.open(tmp_path / "timed", config=tiermem.Config(histograms=True)) as mem:
        for number in range(100):
            mem.put("n", f"k{number}", number)
            assert mem.get("n", f"k{number}") == number
        mem.namespace("n").update("k1", value=5)
        with pytest.raises(tiermem.InvalidKey):
            mem.put("n", "", 1)
        kept = mem.stats().latency
        assert {verb: part.calls for verb, part in kept.items()} == {"put": 101, "get": 100, "update": 1}
        for part in kept.values():
            assert 0 < part.p50 <= part.p99 <= part.p999 <= part.p9999 <= part.longest
        assert "put " in str(mem.stats())
    with pytest.raises(tiermem.InvalidArgument, match="histograms"):
        tiermem.Config(histograms=1)  # type: ignore[arg-type]  # wrong on purpose


def test_awaited_calls_are_timed_too(tmp_path: Path) -> None:
    async def use() -> dict[str, int]:
        async with tiermem.open_async(tmp_path / "store", config=tiermem.Config(histograms=True)) as mem:
            await mem.put("n", "k", 1)
            await mem.namespace("n").update("k", value=2)
            return {verb: part.calls for verb, part in (await mem.stats()).latency.items()}

    assert asyncio.run(use()) == {"put": 1, "update": 1}


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=200))
def test_a_percentile_is_at_most_an_eighth_too_high(durations: list[int]) -> None:
    histogram = Histogram()
    for duration in durations:
        histogram.add(duration)
    found = histogram.summary()
    ranked = sorted(durations)
    for part, answer in ((0.5, found.p50), (0.99, found.p99), (0.9999, found.p9999)):
        exact = ranked[max(0, math.ceil(part * len(ranked)) - 1)]
        assert exact - 1e-3 <= answer * 1e9 <= exact * 1.125 + 1e-3
    assert (found.calls, found.longest) == (len(durations), max(durations) / 1e9)


@pytest.mark.parametrize("committer", ["thread", "inline"])
@pytest.mark.parametrize("another", [False, True], ids=["gone", "replaced"])
def test_a_store_whose_directory_was_removed_says_so(tmp_path: Path, committer: str, another: bool) -> None:
    config = Config(cold=tiermem.ColdConfig(committer=committer, sync_interval=60.0))  # type: ignore[arg-type]  # one of those
    root = tmp_path / "store"
    mem = tiermem.open(root, config=config)
    mem.put("a", "k", 1)
    mem.flush()
    shutil.rmtree(root)
    if another:
        root.mkdir()
    mem.put("a", "k2", 2)
    calls: list[Callable[[], object]] = [
        mem.flush,
        lambda: mem.put("a", "k3", 3, durable=True),
        lambda: mem.put("a", "k3", 3, if_version=1),
        lambda: mem.create_namespace("b"),
        mem.stats,
        mem.check,
        mem.compact,
        lambda: mem.backup(tmp_path / "backup"),
        lambda: mem.cursor("c"),
        mem.close,
    ]
    for call in calls:
        with pytest.raises(StorageError, match="was removed while it was open"):
            call()
    with tiermem.open(root) as fresh:
        assert fresh.get("a", "k") is None
        assert fresh.check().ok


@pytest.mark.parametrize("committer", ["thread", "inline"])
def test_a_store_whose_parent_is_no_directory_any_more_says_so_and_is_closed(tmp_path: Path, committer: str) -> None:
    config = Config(cold=tiermem.ColdConfig(committer=committer, sync_interval=60.0))  # type: ignore[arg-type]  # one of those
    above, moved = tmp_path / "above", tmp_path / "moved"
    mem = tiermem.open(above / "store", config=config)
    mem.put("a", "k", 0)
    mem.flush()
    above.rename(moved)
    above.write_text("")
    mem.put("a", "k", 1)
    for call in (mem.flush, mem.stats, mem.check, mem.close):
        with pytest.raises(StorageError, match="was removed while it was open"):
            call()
    # What was written meanwhile stands in the journal.
    with tiermem.open(moved / "store") as found:
        assert found.get("a", "k") == 1
        assert found.check().ok


WITHOUT_PRIVILEGES = """
import os, sys
from pathlib import Path
import tiermem
above = Path(sys.argv[1])
with tiermem.open(above / "store", config=tiermem.Config(cold=tiermem.ColdConfig(committer="inline"))) as mem:
    mem.put("a", "k", 1, durable=True)
    above.chmod(0)
    if os.geteuid() == 0:
        os.seteuid(65534)
    mem.put("a", "k", 2, durable=True)
print("durable")
"""


def test_who_may_no_longer_look_up_the_directory_goes_on_in_it(
    tmp_path: Path, run_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    above = tmp_path / "above"
    above.mkdir()
    done = run_python(WITHOUT_PRIVILEGES, above)
    above.chmod(0o700)
    assert done.stdout == "durable\n", done.stderr
    with tiermem.open(above / "store") as mem:
        assert mem.get("a", "k") == 2
