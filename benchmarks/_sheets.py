"""What the pages of all benchmarks are made of: where a run was made, and tables, in Markdown and on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from _workload import Ratio
from rich.console import Console
from rich.table import Table

REQUIREMENTS = ("requirement", "measured", "")


@dataclass(frozen=True)
class Requirement:
    """A bound on what was measured; `holds` is None where the rival was absent."""

    text: str
    measured: str
    holds: bool | None
    verdict: str
    ratio: Ratio | None = None


@dataclass(frozen=True)
class Sheet:
    """A table: its heading, what to know about it, columns, and rows of cells in Markdown."""

    heading: str
    text: str
    columns: list[str]
    rows: list[list[str]]
    words: int = 1
    """How many columns at the left are text."""

    def lines(self) -> list[str]:
        """The table in Markdown."""
        marks = "|" + "---|" * self.words + "--:|" * (len(self.columns) - self.words)
        return [f"| {' | '.join(self.columns)} |", marks, *(f"| {' | '.join(row)} |" for row in self.rows)]


def verdict(holds: bool) -> str:
    return "holds" if holds else "**missed**"


def number(value: float | None) -> str:
    """Three digits or more."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def origin(script: str, document: dict[str, Any], seed: int) -> str:
    """Which script wrote a page, when, and on what."""
    where = document["machine"]
    known = ", ".join(f"{name} {found}" for name, found in document["versions"].items())
    return (
        f"Written by `benchmarks/{script}` on {document['date']}, seed {seed}. {where['cores']} cores of "
        f"{where['cpu']}, {where['memory_gib']} GiB, {where['system']}, {where['file_system']}; load average "
        f"{where['load']} at the start, {document['load_at_end']} at the end. {known}."
    )


def styled(cell: str) -> str:
    """Bold Markdown as bold on the terminal, names without their marks."""
    plain = cell.replace("`", "").replace("[", r"\[")
    while "**" in plain:
        plain = plain.replace("**", "[bold]", 1).replace("**", "[/bold]", 1)
    return plain


def show(console: Console, demands: Iterable[Sequence[str]], sheets: Iterable[Sheet]) -> None:
    """The tables on the terminal, then the requirements, if any: text, what was measured, and the verdict."""
    tables: list[tuple[str, Sequence[str], Sequence[Sequence[str]]]]
    tables = [(sheet.heading, sheet.columns, sheet.rows) for sheet in sheets]
    if bounds := list(demands):
        tables.append(("Requirements", REQUIREMENTS, bounds))
    for title, columns, rows in tables:
        table = Table(*map(styled, columns), title=title)
        for row in rows:
            table.add_row(*map(styled, row))
        console.print(table)
