"""The grammar of the command line."""

from __future__ import annotations

import math
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import tiermem
from tiermem.cli import coordination, lessons, messages, records, trajectories, transfer, upkeep
from tiermem.cli.outcome import MISTAKE
from tiermem.cli.screen import SHOWN
from tiermem.codec import jsonform
from tiermem.trajectory.types import LABELS

DESCRIPTION = """\
Look into a tiermem store, change it, move it.

Exit codes: 0 done; 1 a finding, or nothing found; 2 a mistake, told in one line on stderr.
--json writes one JSON object, and commands that list things one object a line.
Commands that only read, but for check and backup, open the store read-only; all may run beside whoever writes it.
"""
VALUES = """\
JSON here may hold what JSON has no type for: {"$bytes": base64}, {"$datetime": ISO 8601}, {"$date": ...},
{"$decimal": "1.50"}, {"$uuid": ...}, {"$ndarray": {"dtype", "shape", "data": base64}}, {"$float": "nan"}.
A dict whose only key begins with "$" has one "$" more in front of it.
"""


class Parser(ArgumentParser):
    """Tells a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(MISTAKE, f"{self.prog}: {' '.join(message.split())} (see {self.prog} --help)\n")


def make_parser() -> ArgumentParser:
    """The parser of `tiermem`; what it makes has `run`, the command's function."""
    parser = Parser(
        prog="tiermem", description=DESCRIPTION, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"tiermem {tiermem.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(
        name: str, run: Callable[[Any], int], about: str, *, store: bool = True, epilog: str | None = None
    ) -> ArgumentParser:
        added = commands.add_parser(
            name,
            help=about,
            description=about[0].upper() + about[1:] + ".",
            epilog=epilog,
            formatter_class=RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        added.set_defaults(run=run)
        if store:
            added.add_argument("path", metavar="PATH", help="directory of the store")
            added.add_argument(
                "--now",
                type=moment,
                metavar="TIME",
                help="the present of a store of simulated time; 0 if left out, where nothing has expired yet",
            )
        added.add_argument("--json", action="store_true", help="JSON for machines")
        added.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return added

    _add_whole_store(command)
    _add_records(command)
    _add_trajectories(command)
    _add_lessons(command)
    _add_coordination(command)
    _add_transfer(command)
    return parser


def _add_whole_store(command: Callable[..., ArgumentParser]) -> None:
    demo = command("demo", upkeep.demo, "replay a day of quotes through an agent that remembers", store=False)
    demo.add_argument("--path", type=Path, default=Path("demo-store"), metavar="DIR", help="its store (demo-store)")
    demo.add_argument("--ticks", type=Path, metavar="FILE", help="a zip of quotes instead of the ones that come along")
    demo.add_argument("--limit", type=count, metavar="N", help="stop before row N; the next run goes on from there")

    command("stats", upkeep.stats, "show the tiers, the write path, the log and what is degraded")

    namespaces = command("namespaces", upkeep.namespaces, "list the namespaces and what they hold")
    namespaces.add_argument("--prefix", default="", metavar="P", help="only names that start with P")

    check = command("check", upkeep.check, "audit pages, frames, checksums, indexes and counters; 1 if not clean")
    check.add_argument("--repair", action="store_true", help="rebuild what can be derived from intact records")

    command("repair", upkeep.repair, "save what is intact of a damaged store, and list what was lost")

    index = command("index", upkeep.index, "gather the vectors of namespaces in one segment each, now")
    index.add_argument("namespaces", nargs="*", metavar="NAMESPACE", help="all that hold vectors if left out")

    command("compact", upkeep.compact, "rewrite the store without free pages, dead rows and old segments")

    backup = command("backup", upkeep.backup, "copy the store, as it is at one moment, into a new directory")
    backup.add_argument("target", metavar="TARGET", help="the directory to be made")

    restore = command("restore", upkeep.restore, "verify a backup and make a store of it in a new directory")
    restore.add_argument("target", metavar="TARGET", help="the directory to be made; PATH, the backup, stays as it is")


def _add_records(command: Callable[..., ArgumentParser]) -> None:
    get = command("get", records.get, "show a record; 1 if there is none")
    _record(get)
    get.add_argument("--value", action="store_true", help="only the value: a string as it is, anything else as JSON")

    put = command("put", records.put, "store a record, replacing what was there", epilog=VALUES)
    _record(put)
    put.add_argument("value", metavar="VALUE", help="JSON, or - for stdin")
    put.add_argument("--text", action="store_true", help="VALUE is a plain string")
    put.add_argument("--metadata", type=json_object, metavar="JSON", help="what filters look at")
    put.add_argument("--vector", type=json_vector, metavar="JSON", help="a list of numbers")
    put.add_argument("--ttl", type=float, metavar="SECONDS", help="expire after this long")
    put.add_argument("--at", type=moment, metavar="TIME", help="event time; now if left out")
    _if_version(put)

    delete = command("delete", records.delete, "remove a record; 1 if there is none")
    _record(delete)
    _if_version(delete)
    delete.add_argument(
        "--erase", action="store_true", help="leave no byte of what was deleted there in any file; costs a compaction"
    )

    scan = command("scan", records.scan, "list records in the order of their keys")
    scan.add_argument("namespace", metavar="NAMESPACE")
    scan.add_argument("--prefix", default="", metavar="P", help="only keys that start with P")
    scan.add_argument("--start", metavar="KEY", help="only keys at or behind KEY")
    _filters(scan)
    scan.add_argument("--limit", type=count, metavar="N", help=f"at most N records (a table: {SHOWN})")
    scan.add_argument("--reverse", action="store_true", help="against the order")

    latest = command("latest", records.latest, "list the records with the highest event times, newest first")
    latest.add_argument("namespace", metavar="NAMESPACE")
    latest.add_argument("-n", type=count, default=10, metavar="N", help="how many (10)")

    search = command(
        "search",
        records.search,
        "list the records most similar to a vector or a text",
        epilog="--text takes namespaces filled by tiermem.HashEmbedder.",
    )
    search.add_argument("namespace", metavar="NAMESPACE", nargs="+", help="a name, or a pattern as desk/* or desk/**")
    query = search.add_mutually_exclusive_group(required=True)
    query.add_argument("--vector", type=json_vector, metavar="JSON", help="a list of numbers")
    query.add_argument("--text", metavar="TEXT")
    search.add_argument("-k", type=count, default=10, metavar="K", help="how many (10)")
    _filters(search)
    search.add_argument("--min-score", type=float, metavar="S", help="leave out what scores less")

    changes = command("changes", records.changes, "list the newest changes, or follow them")
    changes.add_argument("--namespace", metavar="NAMESPACE", help="only of this one")
    changes.add_argument("--after", type=int, metavar="SEQUENCE", help=f"start behind it (the last {records.RECENT})")
    changes.add_argument("--wait", type=float, metavar="SECONDS", help="at the end, wait so long for each next one")
    changes.add_argument("--limit", type=count, metavar="N", help="at most N changes")


def _add_trajectories(command: Callable[..., ArgumentParser]) -> None:
    runs = command("trajectories", trajectories.trajectories, "list the runs of agents, the last first, or show one")
    runs.add_argument("--show", metavar="ID", help="this one, step by step; 1 if there is none")
    runs.add_argument("--namespace", default="trajectories", metavar="NAMESPACE", help="where they are (trajectories)")
    runs.add_argument("--agent", metavar="AGENT", help="only of this agent")
    runs.add_argument("--task", metavar="TASK", help="only at this task")
    _filters(runs)
    runs.add_argument("--verdict", choices=LABELS, metavar="LABEL", help=f"only those judged {', '.join(LABELS)}")
    runs.add_argument("--pending", action="store_true", help="only those with an outcome still to come")
    runs.add_argument("--as-of", type=moment, metavar="TIME", help="as they were known then")
    runs.add_argument("--limit", type=count, metavar="N", help=f"at most N (a table: {SHOWN})")
    runs.add_argument("--oldest", action="store_true", help="the first to begin come first")


def _add_lessons(command: Callable[..., ArgumentParser]) -> None:
    taught = command("lessons", lessons.lessons, "list what a reasoning bank has learned, or the history of a lesson")
    taught.add_argument("--show", metavar="ID", help="every version of this one; 1 if there is none")
    taught.add_argument("--namespace", default="lessons", metavar="NAMESPACE", help="where the bank is (lessons)")
    taught.add_argument("--every", action="store_true", help="those that were merged or retired, too")
    taught.add_argument("--where", type=json_filter, metavar="JSON", help='filter: \'{"kind": "failure"}\'')
    taught.add_argument("--as-of", type=moment, metavar="TIME", help="as they were known then")


def _add_coordination(command: Callable[..., ArgumentParser]) -> None:
    tail = command("tail", messages.tail, "show the messages of topics as they come")
    tail.add_argument("pattern", metavar="PATTERN", nargs="+", help="a topic, or a pattern as fills/* or fills/**")
    tail.add_argument(
        "--start", type=start, default="latest", metavar="WHERE", help="latest (default), earliest, or a sequence"
    )
    tail.add_argument("--wait", type=float, metavar="SECONDS", help="end after so long without a message (never)")
    tail.add_argument("--limit", type=count, metavar="N", help="end after N messages")
    tail.add_argument("--root", default="topics", metavar="NAME", help="where the topics lie (topics)")

    locks = command("locks", coordination.locks, "list the locks that are held or waited for")
    locks.add_argument("--namespace", default="locks", metavar="NAMESPACE", help="where they are kept (locks)")

    votes = command("votes", coordination.votes, "list the proposals, how they stand and who voted how")
    votes.add_argument("--namespace", default="votes", metavar="NAMESPACE", help="where they are kept (votes)")
    votes.add_argument("--outcome", choices=("pending", "approved", "rejected", "expired"), help="only these")


def _add_transfer(command: Callable[..., ArgumentParser]) -> None:
    export = command("export", transfer.export, "write records as JSON, one a line", epilog=VALUES)
    export.add_argument("namespace", metavar="NAMESPACE", nargs="*", help="which ones; all if left out")
    export.add_argument("--prefix", default="", metavar="P", help="namespaces that start with P")
    export.add_argument("--output", "-o", type=Path, metavar="FILE", help="a file instead of stdout")

    load = command(
        "import",
        transfer.load,
        "store the records of an export; 2 at a malformed line, whose number is told",
        epilog="Event times, metadata, vectors and what is left of a record's time to live are kept;\n"
        "versions and the times of creation and update are given anew.",
    )
    load.add_argument("file", metavar="FILE", nargs="?", default="-", help="- or left out: stdin")


def _record(parser: ArgumentParser) -> None:
    parser.add_argument("namespace", metavar="NAMESPACE")
    parser.add_argument("key", metavar="KEY")


def _if_version(parser: ArgumentParser) -> None:
    parser.add_argument("--if-version", type=int, metavar="N", help="only if it is at version N (0: not there)")


def _filters(parser: ArgumentParser) -> None:
    parser.add_argument("--since", type=moment, metavar="TIME", help="event time at or after: epoch seconds, ISO 8601")
    parser.add_argument("--until", type=moment, metavar="TIME", help="event time before")
    parser.add_argument("--where", type=json_filter, metavar="JSON", help='filter on metadata: \'{"px": {"$gt": 3}}\'')


def moment(text: str) -> float:
    """Epoch seconds, or ISO 8601 with a time zone."""
    try:
        seconds = float(text)
    except ValueError:
        try:
            when = datetime.fromisoformat(text)
        except ValueError:
            raise ArgumentTypeError(f"{text!r} is neither epoch seconds nor ISO 8601") from None
        if when.tzinfo is None:
            raise ArgumentTypeError(f"{text!r} has no time zone: append Z for UTC") from None
        seconds = when.timestamp()
    if not math.isfinite(seconds):
        raise ArgumentTypeError(f"{text!r} is no moment")
    return seconds


def count(text: str) -> int:
    """An int ≥ 1."""
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is no number ≥ 1")
    return int(text)


def start(text: str) -> str | int:
    """Where a subscription starts: a word, or a sequence ≥ 0."""
    if text in ("latest", "earliest"):
        return text
    if not text.isascii() or not text.isdecimal():
        raise ArgumentTypeError(f"{text!r} is neither latest, earliest nor a sequence")
    return int(text)


def json_vector(text: str) -> list[float]:
    """A JSON list of numbers."""
    vector = _json(text)
    if not isinstance(vector, list) or not all(isinstance(item, int | float) for item in vector):
        raise ArgumentTypeError("a vector is a JSON list of numbers")
    return vector


def json_object(text: str) -> dict[str, Any]:
    """A JSON object, tagged objects in it turned into values."""
    return _object({name: _convert(jsonform.from_json, item) for name, item in _object(_json(text)).items()})


def json_filter(text: str) -> dict[str, Any]:
    """A filter as a JSON object."""
    return _object(_convert(jsonform.filter_from_json, _json(text)))


def _json(text: str) -> Any:
    return _convert(jsonform.parse, text)


def _convert(convert: Callable[[Any], Any], item: Any) -> Any:
    try:
        return convert(item)
    except jsonform.NotJson as exc:
        raise ArgumentTypeError(str(exc)) from exc


def _object(form: Any) -> dict[str, Any]:
    if not isinstance(form, dict):
        raise ArgumentTypeError("this is no JSON object")
    return form
