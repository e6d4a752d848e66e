"""What a replay measured and found, as tables and as plain data."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table

import tiermem
from tiermem.demo.agent import START_CASH, Position
from tiermem.demo.desk import MemoryDesk
from tiermem.demo.market import PRICE_UNIT, TickFile
from tiermem.demo.meter import Meter, Timing, timer_cost
from tiermem.demo.replay import Progress

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Memory of this process in bytes; None where the system does not tell."""

    anonymous: int | None
    mapped: int | None
    peak: int | None


@dataclass(frozen=True, slots=True)
class File:
    """One file of the store: its length and what it takes up on disk, in bytes."""

    name: str
    size: int
    on_disk: int


@dataclass(frozen=True, slots=True)
class Tiers:
    """How often each tier had the answer, and how much it holds.

    L1 does not count its hits, since most of them run no code; the reads this replay made less the
    misses L1 did count are its hits. L3 counts what reached it.
    """

    hot_entries: int
    hot_bytes: int
    hot_reads: int
    hot_misses: int
    vector_rows: int
    vector_bytes: int
    vector_segments: int
    cold_records: int
    cold_bytes: int
    cold_hits: int
    cold_misses: int
    commits: int

    @property
    def hot_rate(self) -> float:
        """Share of the reads that L1 answered."""
        return 1.0 - self.hot_misses / self.hot_reads if self.hot_reads else 0.0

    @property
    def cold_rate(self) -> float:
        """Share of the lookups in L3 that found a record."""
        lookups = self.cold_hits + self.cold_misses
        return self.cold_hits / lookups if lookups else 0.0


@dataclass(frozen=True, slots=True)
class Found:
    """Where the agent ended, counted from the first row; money in 1/10,000 dollar.

    matches_not_before_query is zero unless the memory let the agent see its future.
    """

    observations: int
    remembered: int
    searches: int
    matches: int
    matches_not_before_query: int
    least_seconds_before_query: float | None
    bets: int
    right: int
    wrong: int
    orders: int
    stops: int
    shares: int
    cost: int
    cash: int
    realised: int
    unrealised: int

    @property
    def hit_rate(self) -> float | None:
        """Share of the bets that came out right among those the market decided."""
        decided = self.right + self.wrong
        return self.right / decided if decided else None


@dataclass(frozen=True, slots=True)
class DemoReport:
    """The report of `run_demo`; print it with rich, or take `as_dict()`.

    first_row and last_row are those of this run: it played `last_row - first_row` rows.
    """

    path: str
    ticks: str
    symbol: str
    day: str
    market_time: str
    first_row: int
    last_row: int
    complete: bool
    seconds: float
    rows_per_second: float
    operations_per_second: float
    timer_microseconds: float
    verbs: dict[str, Timing]
    tiers: Tiers
    memory: ProcessMemory
    files: tuple[File, ...]
    found: Found
    degraded: tuple[str, ...]

    @property
    def interrupted(self) -> bool:
        """There are rows left; the same call on the same directory goes on."""
        return not self.complete

    def as_dict(self) -> dict[str, Any]:
        """The report as what JSON carries."""
        plain = asdict(self)
        plain["files"], plain["degraded"] = list(plain["files"]), list(plain["degraded"])
        plain["interrupted"] = self.interrupted
        plain["tiers"] |= {"hot_rate": self.tiers.hot_rate, "cold_rate": self.tiers.cold_rate}
        plain["found"]["hit_rate"] = self.found.hit_rate
        return plain

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The tables: found, verbs, tiers, memory and files."""
        played = self.last_row - self.first_row
        origin = (
            f"rows {self.first_row:,} to {self.last_row:,}" if played else f"nothing left after row {self.last_row:,}"
        )
        yield f"[bold]{self.symbol} {self.day}[/bold], {origin}, market time {self.market_time}"
        if played:
            yield (
                f"{played:,} rows in {self.seconds:.1f} s: {self.rows_per_second:,.0f} rows/s, "
                f"{self.operations_per_second:,.0f} operations/s on the memory"
            )
        yield from (self._found_table(), self._verb_table(), self._tier_table(), self._file_table())
        for part in self.degraded:
            yield f"[bold red]degraded:[/bold red] {escape(part)}"
        if self.interrupted:
            yield "[yellow]Stopped before the last row; run it again on the same directory to go on.[/yellow]"

    def _found_table(self) -> Table:
        found = self.found
        table = _table("what was found", "", "")
        rate = "none decided" if found.hit_rate is None else f"{found.hit_rate:.1%} right"
        lag = found.least_seconds_before_query
        early = found.matches_not_before_query
        for name, value in (
            ("observations", f"{found.observations:,}, of which {found.remembered:,} not expired"),
            ("searches", f"{found.searches:,}, {found.matches:,} past states found"),
            ("closest to its query", "none" if lag is None else f"{lag:.3f} s before"),
            ("not before their query", f"[bold red]{early:,}[/bold red]" if early else "0"),
            ("bets", f"{found.bets:,}: {found.right:,} right, {found.wrong:,} wrong ({rate})"),
            ("orders", f"{found.orders:,}, of which {found.stops:,} stopped a loss"),
            ("position", f"{found.shares:,} shares for {dollars(found.cost)}"),
            ("cash", f"{dollars(found.cash)} of {dollars(START_CASH)}"),
            ("profit realised", dollars(found.realised)),
            ("profit open", dollars(found.unrealised)),
        ):
            table.add_row(name, value)
        return table

    def _verb_table(self) -> Table:
        table = _table(
            "verbs, µs",
            "verb",
            "calls",
            "a second",
            "p50",
            "p99",
            "p99.9",
            "worst",
            caption=f"a second: while inside the verb; timing adds {self.timer_microseconds:.2f} µs to every time",
        )
        for name, timing in self.verbs.items():
            quantiles = (f"{value:,.2f}" for value in (timing.p50, timing.p99, timing.p999, timing.worst))
            table.add_row(escape(name), f"{timing.calls:,}", f"{timing.per_second:,.0f}", *quantiles)
        return table

    def _tier_table(self) -> Table:
        tiers = self.tiers
        table = _table("tiers", "tier", "holds", "size", "answered")
        hot = f"{tiers.hot_rate:.4%} of {tiers.hot_reads:,} reads"
        cold = f"{tiers.cold_rate:.2%} of {tiers.cold_hits + tiers.cold_misses:,} lookups"
        table.add_row("L1 hot", f"{tiers.hot_entries:,} entries", size(tiers.hot_bytes), hot)
        segments = f"{tiers.vector_rows:,} vectors, {tiers.vector_segments:,} segments"
        table.add_row("L2 vector", segments, size(tiers.vector_bytes), f"{self.found.searches:,} searches")
        table.add_row("L3 cold", f"{tiers.cold_records:,} records", size(tiers.cold_bytes), cold)
        return table

    def _file_table(self) -> Table:
        table = _table("memory and files", "", "size", "on disk")
        memory = self.memory
        for name, amount in (
            ("process, anonymous", memory.anonymous),
            ("process, mapped files", memory.mapped),
            ("process, peak", memory.peak),
        ):
            if amount is not None:
                table.add_row(name, size(amount), "")
        for file in self.files:
            table.add_row(escape(file.name), size(file.size), size(file.on_disk))
        table.add_row("files together", size(sum(f.size for f in self.files)), size(sum(f.on_disk for f in self.files)))
        return table


def make_report(
    mem: tiermem.Memory,
    path: Path,
    ticks: TickFile,
    *,
    desk: MemoryDesk,
    meter: Meter,
    progress: Progress,
    seconds: float,
) -> DemoReport:
    """The report on a replay that has just stopped; `mem` is still open."""
    tally, mid2 = progress.agent.tally, progress.agent.mid2
    position = Position(*mem.get("desk/positions", ticks.symbol))
    found = Found(
        observations=progress.agent.steps,
        remembered=mem.count(desk.obs),
        searches=tally.searches,
        matches=tally.matches,
        matches_not_before_query=desk.early_hits,
        least_seconds_before_query=round(desk.least_lag, 3) if tally.matches else None,
        bets=tally.bets,
        right=tally.right,
        wrong=tally.wrong,
        orders=tally.orders,
        stops=tally.stops,
        shares=position.shares,
        cost=position.cost,
        cash=mem.get("desk/cash", "USD"),
        realised=position.realised,
        unrealised=position.value(mid2) // 2,
    )
    verbs = meter.timings()
    calls = sum(timing.calls for timing in verbs.values())
    rows = progress.row - progress.first
    stats = mem.stats()
    minutes = progress.ms // 60_000
    return DemoReport(
        path=str(path),
        ticks=ticks.path.name,
        symbol=ticks.symbol,
        day=ticks.day.isoformat(),
        market_time=f"{minutes // 60:02d}:{minutes % 60:02d}",
        first_row=progress.first,
        last_row=progress.row,
        complete=progress.done,
        seconds=seconds,
        rows_per_second=rows / seconds if seconds else 0.0,
        operations_per_second=calls / seconds if seconds else 0.0,
        timer_microseconds=timer_cost(),
        verbs=verbs,
        tiers=_tiers(stats, desk.reads),
        memory=process_memory(),
        files=files_under(path),
        found=found,
        degraded=stats.degraded,
    )


def _tiers(stats: tiermem.Stats, reads: int) -> Tiers:
    vectors = stats.vectors.values()
    return Tiers(
        hot_entries=stats.hot.entries,
        hot_bytes=stats.hot.bytes,
        hot_reads=reads,
        hot_misses=min(stats.hot.misses, reads),
        vector_rows=sum(part.rows for part in vectors),
        vector_bytes=sum(part.bytes for part in vectors),
        vector_segments=sum(part.segments for part in vectors),
        cold_records=stats.cold.entries,
        cold_bytes=stats.cold.bytes_used,
        cold_hits=stats.cold.hits,
        cold_misses=stats.cold.misses,
        commits=stats.writes.commits,
    )


def process_memory() -> ProcessMemory:
    """Resident memory of this process, from /proc where there is one."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return ProcessMemory(None, None, None)
    fields = dict(line.split(":", 1) for line in lines if line.endswith(" kB"))
    anonymous, mapped, peak = (
        int(fields[name].split()[0]) * 1024 if name in fields else None for name in ("RssAnon", "RssFile", "VmHWM")
    )
    return ProcessMemory(anonymous, mapped, peak)


def files_under(path: Path) -> tuple[File, ...]:
    """Every file in the store's directory, by name; those that vanish meanwhile are left out."""
    found = []
    for folder, _, names in os.walk(path):
        for name in names:
            full = Path(folder, name)
            try:
                status = full.lstat()
            except FileNotFoundError:
                continue
            found.append(File(full.relative_to(path).as_posix(), status.st_size, status.st_blocks * 512))
    return tuple(sorted(found, key=lambda file: file.name))


def dollars(amount: int) -> str:
    """Money in 1/10,000 dollar as text.

    >>> dollars(-12_345_600)
    '-$1,234.56'
    """
    return f"{'-' if amount < 0 else ''}${abs(amount) / PRICE_UNIT:,.2f}"


def size(amount: float) -> str:
    """Bytes as text.

    >>> size(300_000)
    '293.0 KiB'
    """
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:,.0f} {unit}" if unit == "B" else f"{amount:,.1f} {unit}"
        amount /= 1024
    return f"{amount:,.1f} GiB"


def _table(title: str, *columns: str, caption: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left", show_header=any(columns))
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place == 0 or not any(columns) else "right")
    return table
