"""What a command shows: tables for people, lines of JSON for machines. rich is imported when a table is shown."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from tiermem.cli.outcome import printable
from tiermem.codec import jsonform
from tiermem.types import Record

if TYPE_CHECKING:
    from rich.console import Console

SHOWN: Final = 50
"""Rows of a table unless a limit is given."""
PIPE_WIDTH: Final = 160
"""Columns of a table that is not shown on a terminal."""
LONGEST_CELL: Final = 2000
"""Characters of a value shown in a table; JSON shows all of it."""


def put_json(value: Any) -> None:
    """One line of JSON on stdout."""
    sys.stdout.write(jsonform.dumps(value) + "\n")


def record_form(record: Record) -> dict[str, Any]:
    """A record as it is exported: every field, the vector as a list of numbers."""
    return {
        "namespace": record.namespace,
        "key": record.key,
        "value": record.value,
        "metadata": record.metadata,
        "vector": None if record.vector is None else record.vector.tolist(),
        "at": record.at,
        "created_at": record.created_at,
        "updated_at": record.updated_at,
        "expires_at": record.expires_at,
        "version": record.version,
    }


def console() -> Console:
    """A console on stdout that leaves a broken pipe to its caller."""
    from rich.console import Console

    class Screen(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    # Not the width of a terminal that is not looked at.
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Screen(file=sys.stdout, width=width, markup=False, highlight=False, emoji=False)


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, note: str = "") -> None:
    """A table; columns whose name ends in "#" are set flush right."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(printable(title)), title_justify="left", caption=Text(printable(note)) if note else None)
    for name in columns:
        right = name.endswith("#")
        table.add_column(name.rstrip("#"), justify="right" if right else "left", overflow="fold", no_wrap=right)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console().print(table)


def brief(value: Any) -> str:
    """A value in a cell: a str as it is, anything else as JSON, cut where it gets long."""
    text = value if isinstance(value, str) else json.dumps(jsonform.to_json(value), ensure_ascii=False)
    return text if len(text) <= LONGEST_CELL else f"{text[:LONGEST_CELL]}… ({len(text):,} characters)"


def fields(metadata: dict[str, Any]) -> str:
    """Metadata in a cell."""
    return "  ".join(f"{name}={brief(item)}" for name, item in metadata.items())


def moment(seconds: float | None) -> str:
    """Epoch seconds as a date and time in UTC; as a number where the calendar ends."""
    if seconds is None:
        return "never"
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(sep=" ", timespec="milliseconds").replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return str(seconds)


@contextmanager
def progress(total: int | None, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """What is to be told of every byte read; a bar on stderr if that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda size: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda size: bar.advance(task, size)


@contextmanager
def rows_done(name: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """What is to be told (rows done, rows in all) of work on a namespace; a bar on stderr if that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
