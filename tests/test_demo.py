"""The demo: its reading of quotes, its rules, and a replay that equals one on plain dicts wherever it was killed."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import date, datetime, timedelta
from fractions import Fraction
from functools import partial
from io import StringIO
from itertools import islice
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import tiermem
from tiermem.demo import EXCERPT, DemoReport, market, run_demo
from tiermem.demo.agent import (
    DIMENSION,
    HISTORY_MS,
    HORIZON_MS,
    NEIGHBOURS,
    START_CASH,
    TTL_SECONDS,
    Effects,
    Match,
    Observation,
    Past,
    Position,
    squash,
    vote,
)
from tiermem.demo.desk import Checkpoint, MemoryDesk
from tiermem.demo.market import Book, Row, TickFile, new_york_midnight
from tiermem.demo.meter import Meter
from tiermem.demo.replay import replay
from tiermem.demo.report import dollars, size

ROWS = 36_000
"""Rows of the excerpt that the shorter replays play: a quarter of an hour, more than a hundred orders."""

SOURCE = "20131009_aig_Quote_Tick.csv"


# ---------------------------------------------------------------------------------------------- the oracle: plain dicts


class PlainDesk:
    """A `Desk` of lists and dicts, with an exact search in whole numbers."""

    def __init__(self) -> None:
        self.now = 0
        self.board: dict[str, list[int]] = {}
        self.held, self.money = Position(), START_CASH
        self.seen: list[Observation] = []
        self.signals: list[int] = []
        self.moves: dict[int, int] = {}
        self.orders: list[dict[str, Any]] = []
        self.found: list[list[Match]] = []
        self.stored: str | None = None
        self._vectors = np.zeros((100_000, DIMENSION), np.int64)
        self._times = np.zeros(100_000, np.int64)
        self._tight = np.zeros(100_000, bool)

    def resume(self) -> tuple[Checkpoint, list[Past]] | None:
        if self.stored is None:
            return None
        checkpoint = Checkpoint(**json.loads(self.stored))
        self.now = checkpoint.ms
        pairs = zip(self.seen, self.signals, strict=True)
        return checkpoint, [Past(s.step, s.ms, s.mid2, bet) for s, bet in pairs if s.ms >= self.now - HISTORY_MS]

    def set_time(self, ms: int) -> None:
        assert ms > self.now
        self.now = ms

    def quote(self, exchange: str, quote: tuple[int, int, int, int], ms: int) -> None:
        self.board[exchange] = [*quote, ms]

    def position(self) -> Position:
        return self.held

    def cash(self) -> int:
        return self.money

    def similar(self, seen: Observation, until_ms: int) -> list[Match]:
        times = self._times[: len(self.seen)]
        first = int(np.searchsorted(times, self.now - TTL_SECONDS * 1000, side="right"))
        last = int(np.searchsorted(times, until_ms, side="left"))
        steps = first + np.flatnonzero(self._tight[first:last] == (seen.regime == "tight"))
        distances = ((self._vectors[steps] - np.array(seen.vector, np.int64)) ** 2).sum(axis=1)
        best = np.argsort(distances, kind="stable")[: NEIGHBOURS + 1]
        matches = [Match(-float(np.sqrt(np.float32(distances[i]))), self.moves[int(steps[i])]) for i in best]
        self.found.append(matches)
        return matches

    def commit(self, effects: Effects, checkpoint: Checkpoint) -> None:
        seen = effects.observation
        assert seen.step == len(self.seen)
        self._vectors[seen.step] = seen.vector
        self._times[seen.step] = seen.ms
        self._tight[seen.step] = seen.regime == "tight"
        self.seen.append(seen)
        self.signals.append(effects.signal)
        for outcome in effects.outcomes:
            assert self.seen[outcome.step].ms <= self.now - HORIZON_MS
            assert outcome.step not in self.moves
            self.moves[outcome.step] = outcome.move
        if effects.order is not None:
            self.orders.append({"step": seen.step, "ms": seen.ms, **effects.order._asdict()})
            self.held, self.money = effects.position, effects.cash
        self.stored = json.dumps(asdict(checkpoint))

    def finish(self, checkpoint: Checkpoint) -> None:
        self.stored = json.dumps(asdict(checkpoint))

    def live(self) -> list[int]:
        """The steps whose observation has not expired."""
        return [seen.step for seen in self.seen if seen.ms > self.now - TTL_SECONDS * 1000]


@pytest.fixture(scope="module")
def plain() -> PlainDesk:
    """The first `ROWS` rows of the excerpt, played on plain dicts."""
    desk = PlainDesk()
    replay(TickFile(EXCERPT), desk, limit=ROWS)
    return desk


def tick_zip(path: Path, csv: str, name: str = SOURCE) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, csv)
    return path


# ------------------------------------------------------------------------------------------------------------- market


def test_rows_are_read_as_written(tmp_path: Path) -> None:
    """One side a row, both sides, more columns, a longer exchange, no newline at the end."""
    csv = "5,475000,200,0,0,P,1,0\n5,0,0,475100,300,NSDQ,1,0\r\n7,475000,1,475200,2,Z"
    ticks = TickFile(tick_zip(tmp_path / "x.zip", csv))
    assert (ticks.symbol, ticks.day, ticks.bytes_total) == ("AIG", date(2013, 10, 9), len(csv))
    assert list(ticks.rows()) == [
        (0, 5, "P", 475000, 200, 0, 0),
        (1, 5, "NSDQ", 0, 0, 475100, 300),
        (2, 7, "Z", 475000, 1, 475200, 2),
    ]
    assert ticks.bytes_read == len(csv)
    assert datetime.fromtimestamp(ticks.at(34_200_500)).timestamp() == 1381325400.5


def test_rows_do_not_depend_on_the_chunks_and_start_where_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines = [f"{n},{470000 + n},{n},0,0,{'NQZ'[n % 3]},1,0" for n in range(200)]
    ticks = TickFile(tick_zip(tmp_path / "x.zip", "\n".join(lines)))
    whole = list(ticks.rows())
    assert [row.number for row in whole] == list(range(200))
    for chunk in (7, 64, 1000):
        monkeypatch.setattr(market, "_CHUNK", chunk)
        for start in (0, 1, 99, 199, 200, 500):
            assert list(ticks.rows(start)) == whole[start:]


@pytest.mark.parametrize(
    ("csv", "where"),
    [
        ("1,2,3,4,5,P\n1,2,3\n", "row 1"),
        ("1,2,3,4,5,P\n2,2,3,four,5,P\n", "row 1"),
        ("3,2,3,4,5,P\n2,2,3,4,5,P\n", "row 1"),
        ("3,2,3,-4,5,P\n", "row 0"),
        ("3,2,3,4,5,,1\n", "row 0"),
        ("3,2,3,4,5,é\n", "row 0"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, csv: str, where: str) -> None:
    with pytest.raises(tiermem.InvalidArgument, match=where):
        list(TickFile(tick_zip(tmp_path / "x.zip", csv)).rows())


def test_what_is_not_a_tick_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("1,2,3")
    tick_zip(tmp_path / "other.zip", "", "readme.txt")
    tick_zip(tmp_path / "nameless.zip", "", "quotes.csv")
    tick_zip(tmp_path / "dateless.zip", "", "20131399_aig_quote.csv")
    for name in ("absent.zip", "text.zip", "other.zip", "nameless.zip", "dateless.zip"):
        with pytest.raises(tiermem.InvalidArgument):
            TickFile(tmp_path / name)


def test_midnight_in_new_york() -> None:
    zoneinfo = pytest.importorskip("zoneinfo")
    try:
        new_york = zoneinfo.ZoneInfo("America/New_York")
    except zoneinfo.ZoneInfoNotFoundError:
        pytest.skip("no time zone database here")
    day = date(2007, 1, 1)
    while day < date(2037, 1, 1):
        assert new_york_midnight(day) == datetime(day.year, day.month, day.day, tzinfo=new_york).timestamp(), day
        day += timedelta(days=1)


price = st.integers(95, 105)
rows = st.builds(
    lambda exchange, bid, ask, side: Row(0, 0, exchange, bid * (side != 1), 10, ask * (side != 0), 20),
    st.sampled_from("NQZP"),
    price,
    price,
    st.sampled_from((0, 0, 1, 1, 2)),
)


def naive(book: dict[str, dict[str, int]], row: Row) -> None:
    """The merge by its definition: the newer quote removes what it locks or crosses."""
    for side, value in (("bid", row.bid), ("ask", row.ask)):
        if value:
            other = "ask" if side == "bid" else "bid"
            sign = 1 if side == "bid" else -1
            book[side][row.exchange] = value
            book[other] = {name: quote for name, quote in book[other].items() if sign * (quote - value) > 0}


@given(st.lists(rows, max_size=60), st.integers(0, 60))
def test_the_book_is_the_merge_by_its_definition(ticks: list[Row], cut: int) -> None:
    book, model = Book(), {"bid": {}, "ask": {}}  # type: dict[str, Any]
    for number, row in enumerate(ticks):
        if number == cut:
            book = Book.restore(json.loads(json.dumps(book.state())))
        book.apply(row)
        naive(model, row)
        assert (book.bids, book.asks) == (model["bid"], model["ask"])
        assert book.bid == max(model["bid"].values(), default=0)
        assert book.ask == min(model["ask"].values(), default=0)
        assert not book.two_sided or book.bid < book.ask
        assert book.quote(row.exchange)[:2] == ((book.bids[row.exchange], 10) if row.exchange in book.bids else (0, 0))


# -------------------------------------------------------------------------------------------------------------- rules


@given(st.lists(st.tuples(st.integers(-400, 400).filter(bool), st.integers(1, 600_000)), max_size=40))
def test_realised_profit_is_by_average_cost(fills: list[tuple[int, int]]) -> None:
    """Against the average price as a fraction; whole numbers lose less than one unit a fill."""
    position, cash = Position(), START_CASH
    held, average, realised = 0, Fraction(0), Fraction(0)
    for count, (shares, at) in enumerate(fills, 1):
        position, change = position.fill(shares, at)
        cash += change
        closing = min(abs(held), abs(shares)) if held * shares < 0 else 0
        realised += closing * (at - average) * (1 if held > 0 else -1)
        opening = abs(shares) - closing
        if opening:
            left = abs(held) - closing
            average = (left * average + opening * at) / (left + opening)
        held += shares
        assert position.shares == held
        assert cash - START_CASH == position.realised - position.cost
        assert abs(position.realised - realised) <= count
        assert held or position.cost == 0


def test_a_vote_needs_enough_states_and_a_move_worth_the_spread() -> None:
    ten = [Match(-float(n), 100) for n in range(NEIGHBOURS)]
    edge = Match(-99.0, -10_000)
    assert vote(ten, 100) == 0
    assert vote([*ten, edge], 100) == 1
    assert vote([*ten, edge], 101) == 0
    assert vote([match._replace(move=-100) for match in [*ten, edge]], 100) == -1
    assert vote([match._replace(move=None) for match in [*ten, edge]], 0) == 0


def test_a_tie_at_the_edge_is_not_decided_by_the_order_of_the_matches() -> None:
    near = [Match(-float(n), 10) for n in range(NEIGHBOURS - 2)]
    tied = [Match(-50.0, 1000), Match(-50.0, -1000), Match(-50.0, 3000)]
    assert {vote([*near, *tied[n:], *tied[:n]], 5) for n in range(3)} == {1}
    assert vote([*near, *tied], 20) == 0


@given(st.integers(-(10**9), 10**9), st.integers(1, 10**6))
def test_squash_is_odd_and_within_bounds(value: int, scale: int) -> None:
    assert squash(-value, scale) == -squash(value, scale)
    assert 0 <= squash(abs(value), scale) < 127
    assert squash(abs(value), scale) <= squash(abs(value) + 1, scale)


def test_vectors_are_small_whole_numbers_and_never_zero(plain: PlainDesk) -> None:
    vectors = np.array([seen.vector for seen in plain.seen])
    assert vectors.shape == (len(plain.seen), DIMENSION)
    assert (vectors == np.round(vectors)).all()
    assert np.abs(vectors).max() <= 127
    assert np.abs(vectors).sum(axis=1).min() > 0
    assert (vectors.std(axis=0) > 0).all(), "a feature that never changes says nothing"


def test_the_replay_is_not_a_quiet_one(plain: PlainDesk) -> None:
    """What the comparisons below compare is there to be compared."""
    assert len(plain.orders) > 100
    assert {order["shares"] > 0 for order in plain.orders} == {True, False}
    assert len(plain.found[-1]) == NEIGHBOURS + 1
    assert plain.held.realised != 0
    assert 0 < len(plain.live()) < len(plain.seen), "some observations have expired, some not"


def test_the_agent_sees_no_future(plain: PlainDesk) -> None:
    """Every step of a shorter day is a step of the longer one."""
    short = PlainDesk()
    replay(TickFile(EXCERPT), short, limit=ROWS // 2)
    steps = len(short.seen)
    assert steps > 100
    assert (short.seen, short.signals) == (plain.seen[:steps], plain.signals[:steps])
    assert short.orders == plain.orders[: len(short.orders)]


@pytest.mark.parametrize("seed", range(3))
def test_a_replay_cut_anywhere_and_continued_is_the_same(plain: PlainDesk, seed: int) -> None:
    cuts = sorted(random.Random(seed).sample(range(1, ROWS), 4))
    desk = PlainDesk()
    for limit in (*cuts, ROWS):
        standing = replay(TickFile(EXCERPT), desk, limit=limit)
        assert standing.row == limit
        assert not standing.done
    assert (desk.held, desk.money, desk.orders) == (plain.held, plain.money, plain.orders)
    assert (desk.seen, desk.signals, desk.moves) == (plain.seen, plain.signals, plain.moves)
    assert desk.board == plain.board
    assert json.loads(desk.stored or "") == json.loads(plain.stored or "")


def head_of_excerpt(path: Path, count: int) -> Path:
    """A zip of the first rows of the excerpt."""
    with zipfile.ZipFile(EXCERPT) as archive, archive.open(SOURCE) as stream:
        return tick_zip(path, b"".join(islice(stream, count)).decode().rstrip("\n"))


def test_a_finished_replay_plays_nothing_again(tmp_path: Path) -> None:
    ticks, desk = TickFile(head_of_excerpt(tmp_path / "x.zip", 3000)), PlainDesk()
    first = replay(ticks, desk)
    assert (first.first, first.row, first.done) == (0, 3000, True)
    again = replay(ticks, desk)
    assert (again.first, again.row, again.done) == (3000, 3000, True)
    assert again.agent.state() == first.agent.state()


# ------------------------------------------------------------------------------------------------------------ excerpt


def test_the_excerpt_is_small_and_says_where_it_comes_from() -> None:
    assert EXCERPT.stat().st_size <= 300_000
    notice = (EXCERPT.parent / "NOTICE").read_text()
    for words in (EXCERPT.name, "QuantConnect LEAN", "Data/equity/usa/tick/aig", "Apache License"):
        assert words in notice


def test_the_excerpt_is_a_contiguous_part_of_the_file(shared_data: Callable[[str], Path]) -> None:
    def text(path: Path) -> bytes:
        with zipfile.ZipFile(path) as archive:
            return archive.read(SOURCE)

    part = text(EXCERPT)
    assert part.count(b"\n") > ROWS
    whole = text(shared_data("aig_20131009_quote_tick.zip"))
    assert b"\n" + part + b"\n" in whole


# ------------------------------------------------------------------------------------------------------------ reports


def test_quantiles_are_by_nearest_rank() -> None:
    meter = Meter()
    verb = meter.verb("put")
    for microseconds in random.Random(7).sample(range(1, 1001), 1000):
        verb.took(microseconds * 1000)
    verb.calls += 1000
    meter.verb("never")
    (timing,) = meter.timings().values()
    assert (timing.calls, timing.timed) == (2000, 1000)
    assert (timing.p50, timing.p99, timing.p999, timing.worst) == (500, 990, 999, 1000)
    assert timing.per_second == pytest.approx(1e6 / 500.5)


def test_amounts_as_text() -> None:
    assert [dollars(n) for n in (0, 10_000, -12_345_678)] == ["$0.00", "$1.00", "-$1,234.57"]
    assert [size(n) for n in (0, 1023, 2048, 5 * 2**20, 3 * 2**30)] == [
        "0 B",
        "1,023 B",
        "2.0 KiB",
        "5.0 MiB",
        "3.0 GiB",
    ]


# ------------------------------------------------------------------------------------------------------- on the memory


def demo(path: Path, ticks: Path | None = None, *, limit: int | None = ROWS, **kwargs: Any) -> DemoReport:
    console = kwargs.pop("console", None) or Console(file=StringIO(), width=120)
    return run_demo(path, ticks, console=console, limit=limit, **kwargs)


def assert_equals(path: Path, plain: PlainDesk) -> None:
    """The store in `path` holds what the plain desk holds, and is sound."""
    clock = tiermem.SimulatedClock(TickFile(EXCERPT).at(plain.now))
    with tiermem.open(path, clock=clock) as mem:
        assert mem.get("desk/positions", "AIG") == list(plain.held)
        assert mem.get("desk/cash", "USD") == plain.money
        assert [record.value for record in mem.scan("desk/AIG/orders")] == plain.orders
        assert dict(mem.namespace("desk/AIG/quotes").items()) == plain.board
        stored = list(mem.scan("desk/AIG/obs"))
        live = plain.live()
        assert [record.value["step"] for record in stored] == live
        assert [record.value["signal"] for record in stored] == [plain.signals[step] for step in live]
        vectors = np.array([record.vector for record in stored])
        assert (vectors == np.array([plain.seen[step].vector for step in live])).all()
        for record in mem.scan("desk/AIG/outcomes"):
            assert record.value == plain.moves[int(record.key)]
        report = mem.check()
        assert report.ok, report


def test_a_replay_equals_one_on_plain_dicts(tmp_path: Path, plain: PlainDesk) -> None:
    report = demo(tmp_path)
    assert_equals(tmp_path, plain)
    found = report.found
    assert Position(found.shares, found.cost, found.realised) == plain.held
    assert (found.cash, found.orders, found.observations) == (plain.money, len(plain.orders), len(plain.seen))
    assert (found.searches, found.matches) == (len(plain.found), sum(map(len, plain.found)))
    assert found.remembered == len(plain.live())
    assert found.matches_not_before_query == 0
    assert found.least_seconds_before_query is not None
    assert found.least_seconds_before_query > HORIZON_MS / 1000
    assert (report.first_row, report.last_row, report.interrupted) == (0, ROWS, True)
    assert report.verbs["put"].calls == ROWS
    assert report.verbs["batch"].calls == len(plain.seen)
    assert report.verbs["search_similar"].calls == len(plain.found)


CHILD = """
import sys
from pathlib import Path
from rich.console import Console
from tiermem.demo import run_demo
from tiermem.demo.desk import MemoryDesk

path, ticks, limit, fatal = sys.argv[1:]
plain_quote, seen = MemoryDesk.quote, 0

def quote(self, *args):
    global seen
    seen += 1
    if seen == int(fatal):
        print("row", flush=True)
    plain_quote(self, *args)

MemoryDesk.quote = quote
run_demo(Path(path), Path(ticks), console=Console(stderr=True), limit=int(limit) or None)
"""


def kill_after(path: Path, ticks: Path, *, limit: int, rows: int, delay: float) -> None:
    """Start a replay in `path` and kill it `delay` seconds after it has played so many rows more."""
    command = [sys.executable, "-c", CHILD, *map(str, (path, ticks, limit, rows))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "row\n"
        sleep(delay)
        child.kill()
    assert child.returncode == -signal.SIGKILL


def test_a_replay_killed_at_five_points_equals_an_uninterrupted_one(tmp_path: Path, plain: PlainDesk) -> None:
    chance = random.Random(20131009)
    for _ in range(5):
        rows, delay = chance.randrange(1, ROWS // 6), chance.uniform(0, 0.02)
        kill_after(tmp_path, EXCERPT, limit=ROWS, rows=rows, delay=delay)
    report = demo(tmp_path)
    assert report.first_row > 0
    assert report.found.matches_not_before_query == 0
    assert_equals(tmp_path, plain)


def test_a_step_takes_effect_as_a_whole_or_not_at_all(
    tmp_path: Path, plain: PlainDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that fails last thing leaves neither its order nor cash, position or observation behind."""
    commit, play = MemoryDesk.commit, partial(demo, tmp_path, limit=6000)

    def failing(self: MemoryDesk, effects: Effects, checkpoint: Checkpoint) -> None:
        if effects.order is not None and effects.observation.step > 200:
            # The checkpoint is written last, and this one cannot be stored.
            checkpoint = replace(checkpoint, agent={"unknown": object()})
        commit(self, effects, checkpoint)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryDesk, "commit", failing)
        with pytest.raises(tiermem.EncodingError):
            play()
    with tiermem.open(tmp_path, clock=tiermem.SimulatedClock(TickFile(EXCERPT).at(0))) as mem:
        steps = mem.count("desk/AIG/obs")
        orders = [order for order in plain.orders if order["step"] < steps]
        assert 200 < steps == next(order["step"] for order in plain.orders if order["step"] > 200)
        assert [record.value for record in mem.scan("desk/AIG/orders")] == orders
        position, cash = Position(*mem.get("desk/positions", "AIG")), mem.get("desk/cash", "USD")
    filled, paid = Position(), 0
    for order in orders:
        filled, change = filled.fill(order["shares"], order["price"])
        paid += change
    assert (filled, START_CASH + paid) == (position, cash)
    assert play().found.orders > len(orders)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_whole_day_killed_at_five_points(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    ticks = shared_data("aig_20131009_quote_tick.zip")
    plain = PlainDesk()
    replay(TickFile(ticks), plain)
    chance = random.Random(1)
    for _ in range(5):
        kill_after(
            tmp_path / "killed", ticks, limit=0, rows=chance.randrange(1, 280_000), delay=chance.uniform(0, 0.05)
        )
    for path in (tmp_path / "killed", tmp_path / "whole"):
        report = demo(path, ticks, limit=None)
        assert report.complete
        assert report.last_row == 1_424_012
        assert report.found.matches_not_before_query == 0
        assert_equals(path, plain)


def test_hits_are_the_exact_nearest(tmp_path: Path) -> None:
    demo(tmp_path, limit=6000)
    clock = tiermem.SimulatedClock(TickFile(EXCERPT).at(34_200_000))
    with tiermem.open(tmp_path, clock=clock) as mem:
        stored = list(mem.scan("desk/AIG/obs"))
        vectors = np.array([record.vector for record in stored], dtype=np.int64)
        for query in stored[100::20]:
            assert query.vector is not None
            hits = mem.search_similar("desk/AIG/obs", query.vector, k=5, until=query.at, exact=True)
            assert all(hit.record.at < query.at for hit in hits)
            before = [n for n, record in enumerate(stored) if record.at < query.at]
            squares = ((vectors[before] - query.vector.astype(np.int64)) ** 2).sum(axis=1)
            nearest = np.argsort(squares, kind="stable")[:5]
            assert [hit.key for hit in hits] == [stored[before[n]].key for n in nearest]
            assert [hit.score for hit in hits] == pytest.approx(-np.sqrt(squares[nearest]), rel=1e-6)


def test_a_finished_replay_is_reported_again(tmp_path: Path) -> None:
    ticks, text = head_of_excerpt(tmp_path / "x.zip", 5000), StringIO()
    first = demo(tmp_path / "store", ticks, limit=None)
    assert (first.first_row, first.last_row, first.complete) == (0, 5000, True)
    assert first.found.orders > 0
    again = demo(tmp_path / "store", ticks, limit=None, console=Console(file=text, width=120))
    assert (again.first_row, again.last_row, again.complete) == (5000, 5000, True)
    assert again.found == first.found
    assert "nothing left after row 5,000" in text.getvalue()
    assert "run it again" not in text.getvalue()


def test_another_file_cannot_continue_a_replay(tmp_path: Path) -> None:
    demo(tmp_path / "store", limit=2000)
    other = tick_zip(tmp_path / "x.zip", "34200000,475000,200,0,0,P,1,0")
    with pytest.raises(tiermem.InvalidArgument, match="another directory"):
        demo(tmp_path / "store", other)


def test_an_interrupt_stops_between_rows_and_is_continued(
    tmp_path: Path, plain: PlainDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGINT)
    quote, played = MemoryDesk.quote, []

    def interrupted(self: MemoryDesk, *args: Any) -> None:
        played.append(args)
        if len(played) == 5000:
            signal.raise_signal(signal.SIGINT)
        quote(self, *args)

    monkeypatch.setattr(MemoryDesk, "quote", interrupted)
    report = demo(tmp_path)
    assert report.interrupted
    assert 5000 <= report.last_row == len(played) < ROWS
    assert signal.getsignal(signal.SIGINT) is before
    report = demo(tmp_path)
    assert 4000 < report.first_row <= len(played)
    assert_equals(tmp_path, plain)


def test_a_replay_runs_in_any_thread(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(demo, tmp_path, limit=3000).result().last_row == 3000


def test_the_report_prints_and_is_json(tmp_path: Path) -> None:
    ticks = TickFile(EXCERPT)
    assert ticks.symbol == "AIG"
    text = StringIO()
    report = demo(tmp_path, limit=3000, console=Console(file=text, width=120))
    shown = text.getvalue()
    for words in ("AIG 2013-10-09", "rows 0 to 3,000", "search_similar", "ns[key]", "p99.9", "L1 hot", "L3 cold"):
        assert words in shown
    assert "again on the same directory" in shown
    text = StringIO()
    again = demo(tmp_path, limit=3000, json=True, console=Console(file=text, width=40))
    document = json.loads(text.getvalue())
    assert document == again.as_dict()
    assert document["found"] == report.as_dict()["found"]
    assert sum(file["size"] for file in document["files"]) > 0
    assert document["tiers"]["hot_rate"] > 0.9
    assert not re.search(r"\d+ rows/s", text.getvalue())


def test_the_progress_is_shown_on_a_terminal_only(tmp_path: Path) -> None:
    text = StringIO()
    demo(tmp_path / "a", limit=5000, console=Console(file=text, width=160, force_terminal=True))
    assert "rows/s" in text.getvalue()
    assert "orders realised" in text.getvalue()
