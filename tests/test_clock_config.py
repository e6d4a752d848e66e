"""Clocks, times and configuration: what is taken, what is refused, and what a store remembers of it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiermem
from tiermem import (
    LRU,
    CodecConfig,
    ColdConfig,
    Config,
    ConfigMismatch,
    HotConfig,
    InvalidArgument,
    SimulatedClock,
    SystemClock,
    TimeDomainMismatch,
    VectorConfig,
)
from tiermem.clock import to_epoch


class Nowhere(tzinfo):
    """A zone without an offset: a datetime in it is naive."""

    def utcoffset(self, _: datetime | None) -> timedelta | None:
        return None

    def dst(self, _: datetime | None) -> timedelta | None:
        return None

    def tzname(self, _: datetime | None) -> str | None:
        return None


# --------------------------------------------------------------------------------------------------------------- clocks


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53))
def test_a_number_is_a_time(moment: float) -> None:
    assert to_epoch(moment) == moment
    assert type(to_epoch(moment)) is float


@given(st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=-5)), timezone(timedelta(minutes=330))])))
def test_an_aware_datetime_is_a_time(moment: datetime) -> None:
    assert to_epoch(moment) == moment.timestamp()


@pytest.mark.parametrize(
    "moment",
    [
        datetime(2024, 5, 1),
        datetime(2024, 5, 1, tzinfo=Nowhere()),
        float("nan"),
        float("inf"),
        -float("inf"),
        10**400,
        True,
        "2024-05-01",
        None,
        1j,
        timedelta(1),
    ],
)
def test_what_is_no_time(moment: Any) -> None:
    with pytest.raises(InvalidArgument):
        to_epoch(moment)


def test_the_system_clock_is_the_machine_s() -> None:
    before = time.time()
    now = SystemClock().now()
    assert before <= now <= time.time()
    assert SystemClock().domain == "real"


def test_a_store_shows_its_clock(tmp_path: Path) -> None:
    clock = SimulatedClock(5.0)
    with tiermem.open(tmp_path / "simulated", clock=clock) as mem:
        assert mem.clock is clock
    with tiermem.open(tmp_path / "real") as mem:
        assert mem.clock.domain == "real"


def test_a_simulated_clock_moves_when_told() -> None:
    clock = SimulatedClock(datetime(2024, 5, 1, tzinfo=UTC))
    start = datetime(2024, 5, 1, tzinfo=UTC).timestamp()
    assert (clock.now(), clock.domain) == (start, "simulated")
    assert clock.now() == start
    assert clock.advance(2.5) == clock.now() == start + 2.5
    assert clock.advance(0) == start + 2.5
    assert clock.set(start + 10) == clock.now() == start + 10
    assert clock.set(datetime(2024, 5, 2, tzinfo=UTC)) == start + 86400
    assert SimulatedClock().now() == 0.0


@pytest.mark.parametrize(
    "move",
    [
        lambda clock: clock.advance(-1),
        lambda clock: clock.advance(float("nan")),
        lambda clock: clock.advance(float("inf")),
        lambda clock: clock.advance("1"),
        lambda clock: clock.set(99.9),
        lambda clock: clock.set(float("inf")),
        lambda clock: clock.set(datetime(2024, 5, 1)),
    ],
)
def test_a_simulated_clock_is_not_moved_back_or_nowhere(move: Callable[[SimulatedClock], float]) -> None:
    clock = SimulatedClock(100.0)
    with pytest.raises(InvalidArgument):
        move(clock)
    assert clock.now() == 100.0


def test_times_before_the_epoch_and_from_zero(tmp_path: Path) -> None:
    clock = SimulatedClock(-1000.0)
    with tiermem.open(tmp_path / "store", clock=clock) as mem:
        mem.put("n", "k", 1, ttl=999.0)
        record = mem.get_record("n", "k")
        assert record is not None
        assert (record.at, record.expires_at) == (-1000.0, -1.0)
        clock.set(-1.5)
        assert mem.get("n", "k") == 1
        clock.set(0.0)
        assert mem.get("n", "k") is None
        mem.put("n", "zero", 1, ttl=1.0)
        mem.flush()
        clock.advance(1)
        mem.compact()
        assert mem.stats().cold.entries == 0


def test_a_backtest_gives_the_same_twice(tmp_path: Path) -> None:
    def run(name: str) -> list[Any]:
        clock = SimulatedClock(1000.0)
        with tiermem.open(tmp_path / name, clock=clock) as mem:
            for step in range(50):
                mem.put("n", f"k{step % 7}", step, ttl=5.0 if step % 3 else None, metadata={"step": step})
                mem.append("s", step)
                clock.advance(1.5)
            found: list[Any] = [record._replace(version=0, key="") for record in mem.scan("s")]
            found += [record._replace(version=0) for record in mem.scan("n")]
            return found

    assert run("one") == run("two")


def test_a_clock_of_one_s_own(tmp_path: Path) -> None:
    class Fixed:
        domain = "simulated"

        def now(self) -> float:
            return 7.0

    with tiermem.open(tmp_path / "store", clock=Fixed()) as mem:
        mem.put("n", "k", 1)
        record = mem.get_record("n", "k")
        assert record is not None
        assert (record.at, record.created_at) == (7.0, 7.0)


# -------------------------------------------------------------------------------------------------------- time domains


def test_a_store_remembers_its_time_domain(tmp_path: Path) -> None:
    tiermem.open(tmp_path / "real").close()
    tiermem.open(tmp_path / "simulated", clock=SimulatedClock()).close()
    with pytest.raises(TimeDomainMismatch, match="goes by real time"):
        tiermem.open(tmp_path / "real", clock=SimulatedClock())
    with pytest.raises(TimeDomainMismatch, match="time_domain='real'"):
        tiermem.open(tmp_path / "simulated")
    with pytest.raises(TimeDomainMismatch):
        tiermem.open(tmp_path / "real", clock=SimulatedClock(), config=Config(time_domain="real"))
    # Refused, it can be opened as before.
    tiermem.open(tmp_path / "real", config=Config(time_domain="real")).close()
    tiermem.open(tmp_path / "simulated", clock=SimulatedClock()).close()


def test_a_time_domain_is_converted_when_asked_for(tmp_path: Path) -> None:
    with tiermem.open(tmp_path / "store") as mem:
        mem.put("n", "k", 1)
    simulated = Config(time_domain="simulated")
    with pytest.raises(TimeDomainMismatch):
        tiermem.open(tmp_path / "store", clock=SimulatedClock(5.0), config=simulated, read_only=True)
    with tiermem.open(tmp_path / "store", clock=SimulatedClock(5.0), config=simulated) as mem:
        assert mem.get("n", "k") == 1
    tiermem.open(tmp_path / "store", clock=SimulatedClock(5.0)).close()
    with pytest.raises(TimeDomainMismatch):
        tiermem.open(tmp_path / "store")
    tiermem.open(tmp_path / "store", config=Config(time_domain="real")).close()
    tiermem.open(tmp_path / "store").close()


def test_a_second_handle_shares_the_clock(tmp_path: Path) -> None:
    clock = SimulatedClock(5.0)
    with tiermem.open(tmp_path / "store", clock=clock) as first:
        with tiermem.open(tmp_path / "store", clock=clock) as second, tiermem.open(tmp_path / "store") as third:
            assert first.clock is second.clock is third.clock is clock
            second.put("n", "k", 1, ttl=1.0)
            clock.advance(1)
            assert first.get("n", "k") is third.get("n", "k") is None
        for other in (SimulatedClock(5.0), SystemClock()):
            with pytest.raises(ConfigMismatch):
                tiermem.open(tmp_path / "store", clock=other)
    with tiermem.open(tmp_path / "real"), tiermem.open(tmp_path / "real", clock=SystemClock()) as mem:
        mem.put("n", "k", 1)


# -------------------------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize("kind", [HotConfig, VectorConfig, ColdConfig, CodecConfig, Config])
def test_a_configuration_is_frozen_and_has_defaults(kind: type[Any]) -> None:
    config = kind()
    assert config == kind()
    assert hash(config) == hash(kind())
    field = dataclasses.fields(config)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, field, 1)
    documented = kind.__doc__ or ""
    for field in dataclasses.fields(config):
        if kind is not Config:
            assert f"{field.name}:" in documented, f"{kind.__name__}.{field.name} is not documented"


def test_the_documented_defaults() -> None:
    config = Config()
    assert config.hot.max_bytes == 256 * 2**20
    assert config.vector.metric == "cosine"
    assert config.cold.sync_interval == 0.05
    assert config.cold.share_interval == 0.002
    assert config.cold.committer == "auto"
    assert config.time_domain is None


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (HotConfig, {"max_bytes": -1}),
        (VectorConfig, {"metric": "manhattan"}),
        (ColdConfig, {"map_size": 2**20 - 1}),
        (ColdConfig, {"sync_interval": 0}),
        (ColdConfig, {"sync_interval": -1.0}),
        (ColdConfig, {"sync_interval": 61}),
        (ColdConfig, {"sync_interval": float("nan")}),
        (ColdConfig, {"share_interval": 0}),
        (ColdConfig, {"share_interval": 61}),
        (ColdConfig, {"committer": "fiber"}),
        (ColdConfig, {"journal_bytes": 4096}),
        (ColdConfig, {"journal_bytes": 2**16 + 8}),
        (ColdConfig, {"log_retention": -1}),
        (ColdConfig, {"max_readers": 0}),
        (ColdConfig, {"max_readers": 100_001}),
        (CodecConfig, {"level": -1}),
        (CodecConfig, {"level": 20}),
        (CodecConfig, {"min_bytes": -1}),
        (CodecConfig, {"dictionary_bytes": 255}),
        (CodecConfig, {"dictionary_bytes": -1}),
        (CodecConfig, {"dictionary_samples": 15}),
        (Config, {"time_domain": "imaginary"}),
    ],
)
def test_values_outside_their_range(kind: type[Any], fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        kind(**fields)


@pytest.mark.parametrize(
    "config",
    [
        Config(hot=HotConfig(max_bytes=0)),
        Config(hot=HotConfig(max_bytes=10_000, policy=LRU)),
        Config(cold=ColdConfig(map_size=2**24, journal_bytes=2**16, log_retention=0, max_readers=4)),
        Config(cold=ColdConfig(committer="inline", sync_interval=60)),
        Config(cold=ColdConfig(committer="thread", sync_interval=0.001)),
        Config(codec=CodecConfig(level=0, min_bytes=0, dictionary_bytes=0)),
        Config(codec=CodecConfig(level=19, min_bytes=0, dictionary_bytes=256, dictionary_samples=16)),
    ],
)
def test_a_store_works_at_the_ends_of_every_range(tmp_path: Path, config: Config) -> None:
    for round_ in range(2):
        with tiermem.open(tmp_path / "store", config=config) as mem:
            for number in range(200):
                mem.put("n", f"k{number}", {"text": "alike " * 20, "n": number, "round": round_}, vector=[number, 1])
            assert mem.get("n", "k7") == {"text": "alike " * 20, "n": 7, "round": round_}
            assert mem.count("n") == 200
            assert len(mem.search_similar("n", [1, 1], k=3)) == 3
            mem.flush()
            assert mem.check().ok
    with tiermem.open(tmp_path / "store") as mem:
        assert mem.get("n", "k7")["round"] == 1


def test_a_second_handle_cannot_ask_for_another_configuration(tmp_path: Path) -> None:
    config = Config(hot=HotConfig(max_bytes=5000))
    embedder = tiermem.HashEmbedder(8)
    with tiermem.open(tmp_path / "store", config=config, embedder=embedder):
        tiermem.open(tmp_path / "store", config=Config(hot=HotConfig(max_bytes=5000)), embedder=embedder).close()
        with pytest.raises(ConfigMismatch, match="config"):
            tiermem.open(tmp_path / "store", config=Config())
        with pytest.raises(ConfigMismatch, match="embedder"):
            tiermem.open(tmp_path / "store", embedder=tiermem.HashEmbedder(16))


def test_a_store_that_is_full(tmp_path: Path) -> None:
    config = Config(cold=ColdConfig(map_size=2**20, journal_bytes=2**16, committer="inline", sync_interval=60.0))
    mem = tiermem.open(tmp_path / "store", config=config)

    def fill() -> None:
        for number in range(10_000):
            mem.put("n", f"k{number}", bytes(1000) + number.to_bytes(4, "big") * 200)

    with pytest.raises(tiermem.StoreFullError, match="map_size"):
        fill()
    put = mem.count("n")
    assert 0 < put < 10_000
    with pytest.raises(tiermem.StoreFullError):
        mem.close()
    with pytest.raises(tiermem.ClosedError):
        mem.get("n", "k0")
    # Nothing that was acknowledged is lost: with more room it is all there.
    with tiermem.open(tmp_path / "store", config=Config(cold=ColdConfig(map_size=2**26))) as again:
        assert again.count("n") == put
        assert again.check().ok


def test_a_committer_thread_that_finds_the_store_full_says_so(tmp_path: Path) -> None:
    from tests.workers import eventually

    cold = ColdConfig(map_size=2**20, journal_bytes=2**20, committer="thread", sync_interval=0.005)
    mem = tiermem.open(tmp_path / "store", config=Config(cold=cold, codec=CodecConfig(level=0)))
    try:
        for number in range(300):
            mem.put("n", f"k{number}", bytes(2500))
        assert eventually(lambda: mem.stats().degraded)
        assert "committer" in str(mem.stats()) or "commit failed" in str(mem.stats())
        assert any("commit failed" in part for part in mem.stats().degraded)
        assert not mem.check().ok if _can_commit(mem) else True
    except tiermem.StoreFullError:
        pass
    finally:
        with pytest.raises(tiermem.StoreFullError):
            mem.close()
    with tiermem.open(tmp_path / "store", config=Config(cold=ColdConfig(map_size=2**26))) as again:
        assert again.count("n") == 300


def _can_commit(mem: tiermem.Memory) -> bool:
    try:
        mem.flush()
    except tiermem.StoreFullError:
        return False
    return True
