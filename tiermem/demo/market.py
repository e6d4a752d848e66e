"""A day of quotes: reads a zip of ticks and merges the exchanges into the best bid and offer."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import tiermem

PRICE_UNIT = 10_000
"""Prices, and with them all money here, are integers in units of 1/10,000 dollar."""

_CHUNK = 64 * 1024
_NAME = re.compile(r"(?P<date>\d{8})_(?P<symbol>[A-Za-z.]+)_", re.ASCII)


class Row(NamedTuple):
    """One row of the file, by its number from 0: what an exchange said at `ms` after local midnight.

    A price of 0 is absent.
    """

    number: int
    ms: int
    exchange: str
    bid: int
    bid_size: int
    ask: int
    ask_size: int


def new_york_midnight(day: date) -> float:
    """Epoch seconds of midnight in New York, by the daylight-saving rule in force since 2007.

    Summer time runs from the second Sunday of March to the first Sunday of November, so the answer
    does not depend on a time zone database being installed. Before 2007 it may be an hour off.
    """
    march, november = date(day.year, 3, 1), date(day.year, 11, 1)
    starts = march + timedelta(days=(6 - march.weekday()) % 7 + 7)
    ends = november + timedelta(days=(6 - november.weekday()) % 7)
    # The clocks change at 02:00, after the midnight of that day.
    hours = 4 if starts < day <= ends else 5
    return datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() + hours * 3600


class _Numbers(dict[str, int]):
    """Text to number, remembered: prices and sizes repeat, and a lookup costs a quarter of `int`."""

    def __missing__(self, text: str) -> int:
        number = int(text)
        if number < 0:
            raise ValueError(f"{number} is below 0")
        self[text] = number
        return number


class _Exchanges(dict[str, str]):
    """What follows the asking size to the exchange it begins with, remembered."""

    def __missing__(self, rest: str) -> str:
        name = rest.partition(",")[0].strip()
        if not name:
            raise ValueError("no exchange")
        self[rest] = name
        return name


class TickFile:
    """A zip with one CSV of quote ticks, named like `20131009_aig_Quote_Tick.csv`.

    Columns: ms since midnight (exchange-local), bid price × 10,000, bid size, ask price × 10,000,
    ask size, exchange; more are ignored.

    Raises:
        tiermem.InvalidArgument: no such zip, no CSV in it, or a name without date and symbol.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                members = [info for info in archive.infolist() if info.filename.lower().endswith(".csv")]
        except (OSError, zipfile.BadZipFile) as exc:
            raise tiermem.InvalidArgument(f"cannot read ticks from {path}: {exc}") from exc
        if len(members) != 1:
            raise tiermem.InvalidArgument(f"{path} holds {len(members)} CSV files; one is expected")
        self._member = members[0]
        name = _NAME.search(self._member.filename)
        if name is None:
            raise tiermem.InvalidArgument(f"no date and symbol in {self._member.filename!r}, as in 20131009_aig_")
        try:
            self.day = date.fromisoformat(name["date"])
        except ValueError as exc:
            raise tiermem.InvalidArgument(f"no date in {self._member.filename!r}: {exc}") from exc
        self.symbol = name["symbol"].upper()
        self.midnight = new_york_midnight(self.day)
        self.bytes_total = self._member.file_size
        self.bytes_read = 0

    @property
    def identity(self) -> str:
        """What tells this file from another: name, size and CRC-32 of the CSV."""
        return f"{self._member.filename}:{self._member.file_size}:{self._member.CRC:08x}"

    def at(self, ms: int) -> float:
        """Epoch seconds of `ms` after local midnight."""
        return self.midnight + ms / 1000.0

    def _chunks(self) -> Iterator[str]:
        """The CSV in pieces that end at a line end, each ending in a newline."""
        rest = b""
        self.bytes_read = 0
        with zipfile.ZipFile(self.path) as archive, archive.open(self._member) as stream:
            while piece := stream.read(_CHUNK):
                self.bytes_read += len(piece)
                head, newline, tail = piece.rpartition(b"\n")
                if not newline:
                    rest += piece
                    continue
                yield (rest + head + b"\n").decode("ascii")
                rest = tail
        if rest:
            yield (rest + b"\n").decode("ascii")

    def rows(self, start: int = 0) -> Iterator[Row]:
        """The rows from number `start` on, in the order of the file.

        Raises:
            tiermem.InvalidArgument: a row that cannot be read or goes back in time, with its number,
                or a damaged archive.
        """
        index = 0
        now, last = 0, ""
        numbers, names = _Numbers(), _Exchanges()
        # NamedTuple.__new__ is a Python function around this one, and three times as slow.
        new = tuple.__new__
        try:
            for chunk in self._chunks():
                lines = chunk.count("\n")
                if index + lines <= start:
                    index += lines
                    continue
                for line in chunk.splitlines():
                    if index >= start:
                        text, bid, bid_size, ask, ask_size, rest = line.split(",", 5)
                        if text != last:
                            if int(text) < now:
                                raise ValueError(f"{text} ms comes after {now} ms")
                            now, last = int(text), text
                        fields = (
                            index,
                            now,
                            names[rest],
                            numbers[bid],
                            numbers[bid_size],
                            numbers[ask],
                            numbers[ask_size],
                        )
                        yield new(Row, fields)
                    index += 1
        except (ValueError, zipfile.BadZipFile, zlib.error, EOFError) as exc:
            raise tiermem.InvalidArgument(f"row {index} of {self.path}: {exc}") from exc


class Book:
    """The quotes of every exchange, merged: `bid` and `ask` are the best prices, 0 if a side is empty.

    The file never says that a quote was withdrawn. A market that works shows no bid at or above an
    offer for long, so the newer quote is believed: it removes the older quotes of the other side that
    it locks or crosses.
    """

    __slots__ = ("ask", "ask_sizes", "asks", "bid", "bid_sizes", "bids")

    def __init__(self) -> None:
        self.bids: dict[str, int] = {}
        self.asks: dict[str, int] = {}
        self.bid_sizes: dict[str, int] = {}
        self.ask_sizes: dict[str, int] = {}
        self.bid = 0
        self.ask = 0

    @property
    def two_sided(self) -> bool:
        """There is a bid and an offer; then `bid` < `ask`."""
        return self.bid > 0 and self.ask > 0

    def apply(self, row: Row) -> None:
        """Take in what one exchange said. O(1), or O(exchanges) when a best quote gives way."""
        exchange = row.exchange
        if price := row.bid:
            bids = self.bids
            before = bids.get(exchange, 0)
            bids[exchange] = price
            self.bid_sizes[exchange] = row.bid_size
            if price >= self.bid:
                self.bid = price
                if 0 < self.ask <= price:
                    self.asks = {other: ask for other, ask in self.asks.items() if ask > price}
                    self.ask = min(self.asks.values(), default=0)
            elif before == self.bid:
                self.bid = max(bids.values())
        if price := row.ask:
            asks = self.asks
            before = asks.get(exchange, 0)
            asks[exchange] = price
            self.ask_sizes[exchange] = row.ask_size
            if price <= self.ask or not self.ask:
                self.ask = price
                if price <= self.bid:
                    self.bids = {other: bid for other, bid in self.bids.items() if bid < price}
                    self.bid = max(self.bids.values(), default=0)
            elif before == self.ask:
                self.ask = min(asks.values())

    def quote(self, exchange: str) -> tuple[int, int, int, int]:
        """(bid, bid size, ask, ask size) of one exchange; zeros where it has none standing."""
        bid, ask = self.bids.get(exchange, 0), self.asks.get(exchange, 0)
        return bid, self.bid_sizes[exchange] if bid else 0, ask, self.ask_sizes[exchange] if ask else 0

    def state(self) -> dict[str, list[int]]:
        """Everything standing, by exchange, as `restore` takes it."""
        return {exchange: list(self.quote(exchange)) for exchange in sorted(self.bids.keys() | self.asks.keys())}

    @classmethod
    def restore(cls, state: dict[str, list[int]]) -> Book:
        """The book whose `state` this was."""
        book = cls()
        for exchange, (bid, bid_size, ask, ask_size) in state.items():
            if bid:
                book.bids[exchange], book.bid_sizes[exchange] = bid, bid_size
            if ask:
                book.asks[exchange], book.ask_sizes[exchange] = ask, ask_size
        book.bid = max(book.bids.values(), default=0)
        book.ask = min(book.asks.values(), default=0)
        return book
