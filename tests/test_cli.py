"""The command line: what it prints, what it returns, and that no mistake ends in a traceback."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiermem
from tiermem.cli import main, records, transfer
from tiermem.codec import jsonform

NS = "desk/obs"
COMMANDS = (
    *(
        "demo",
        "stats",
        "namespaces",
        "check",
        "repair",
        "index",
        "compact",
        "backup",
        "restore",
        "get",
        "put",
        "delete",
    ),
    *("scan", "latest", "search", "changes", "tail", "trajectories", "lessons", "export", "import", "locks", "votes"),
)


class Ended(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Cli = Callable[..., Ended]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    def run(*argv: object) -> Ended:
        capsys.readouterr()
        code = main([str(arg) for arg in argv])
        return Ended(code, *capsys.readouterr())

    return run


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    with tiermem.open(path) as mem:
        mem.put(NS, "AIG", {"px": 48.21}, vector=[1.0, 0.0], metadata={"side": "buy", "n": 1}, at=100.0)
        mem.put(NS, "IBM", "hello", vector=[0.0, 1.0], metadata={"side": "sell", "n": 2}, at=200.0)
        mem.put(NS, "MSFT", [1, None], at=300.0)
        mem.append("desk/ticks", {"px": 1}, at=5.0)
    return path


def feed(monkeypatch: pytest.MonkeyPatch, text: str | bytes) -> None:
    """Make `text` what stdin holds."""
    raw = text if isinstance(text, bytes) else text.encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), "utf-8"))


def spawn(*argv: object, **options: Any) -> subprocess.Popen[bytes]:
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-m", "tiermem", *map(str, argv)], **{**pipes, **options})


def is_one_line(text: str) -> bool:
    return text.endswith("\n") and text.count("\n") == 1 and "Traceback" not in text


# ------------------------------------------------------------------------------------------------------------- usage


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(cli: Cli, command: str) -> None:
    ended = cli(command, "--help")
    assert ended.code == 0
    assert f"usage: tiermem {command}" in ended.out
    assert "--json" in ended.out


def test_help_names_every_command(cli: Cli) -> None:
    out = cli("--help").out
    assert all(f"    {command}" in out for command in COMMANDS)
    assert cli("--version").out == f"tiermem {tiermem.__version__}\n"


def test_importing_is_light(run_python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = run_python(
        """
        import sys, tiermem.cli
        print([name for name in ("rich", "numpy", "tiermem.demo", "asyncio", "faiss") if name in sys.modules])
        """
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("nonsense",),
        ("get", "STORE"),
        ("get", "STORE", NS, "AIG", "--nonsense"),
        ("scan", "STORE", NS, "--limit", "0"),
        ("scan", "STORE", NS, "--where", "{"),
        ("scan", "STORE", NS, "--where", "[]"),
        ("scan", "STORE", NS, "--where", '{"n": {"$nonsense": 1}}'),
        ("scan", "STORE", NS, "--where", '{"n": {"$gt": {"$datetime": "soon"}}}'),
        ("scan", "STORE", NS, "--since", "2024-01-01"),
        ("scan", "STORE", NS, "--since", "soon"),
        ("scan", "STORE", NS, "--since", "nan"),
        ("scan", "STORE", "a//b"),
        ("get", "STORE", NS, "x" * 500),
        ("search", "STORE", NS),
        ("search", "STORE", NS, "--vector", "[1]"),
        ("search", "STORE", NS, "--vector", '["a"]'),
        ("search", "STORE", NS, "--vector", "[1, 0]", "--text", "x"),
        ("put", "STORE", NS, "k", "plain text"),
        ("put", "STORE", NS, "k", "NaN"),
        ("put", "STORE", NS, "k", "1" + "0" * 30),
        ("put", "STORE", NS, "k", '{"$nonsense": 1}'),
        ("put", "STORE", NS, "k", '{"$datetime": "2024-01-01T00:00:00"}'),
        ("put", "STORE", NS, "k", "1", "--ttl", "0"),
        ("put", "STORE", NS, "k", "1", "--metadata", '{"a": {"b": 1}}'),
        ("put", "STORE", NS, "AIG", "1", "--if-version", "0"),
        ("put", "STORE", NS, "k", "1", "--vector", "[1, 2, 3]"),
        ("put", "STORE", NS, "k", "1", "--now", "0"),
        ("changes", "STORE", "--after", "-1"),
        ("trajectories", "STORE", "--show", "AIG"),
        ("trajectories", "STORE", "--verdict", "good"),
        ("trajectories", "STORE", "--as-of", "soon"),
        ("trajectories", "STORE", "--limit", "0"),
        ("trajectories", "STORE", "--namespace", "a//b"),
        ("lessons", "STORE", "--where", '{"kind": {"$like": 1}}'),
        ("lessons", "STORE", "--as-of", "soon"),
        ("lessons", "STORE", "--namespace", "a//b"),
        ("changes", "STORE", "--wait", "-1"),
        ("tail", "STORE", "fills/*", "--wait", "-1"),
        ("tail", "STORE", "fill*", "--wait", "0"),
        ("tail", "STORE", "fills/*", "--start", "noon"),
        ("tail", "STORE", "fills/*", "--start", "99999999"),
        ("backup", "STORE", "STORE"),
        ("import", "STORE", "STORE/nothing"),
        ("import", "STORE", "STORE"),
        ("export", "STORE", "-o", "STORE/nothing/file"),
        ("demo", "--ticks", "STORE/nothing"),
    ],
    ids=lambda argv: " ".join(argv)[:60],
)
def test_a_mistake_is_told_in_one_line(cli: Cli, store: Path, argv: tuple[str, ...]) -> None:
    ended = cli(*(arg.replace("STORE", str(store)) for arg in argv))
    assert ended.code == 2
    assert is_one_line(ended.err)
    assert ended.out == ""


@pytest.mark.parametrize("rest", [(), ("--json",)])
@pytest.mark.parametrize(
    "argv",
    [
        ("stats", "P"),
        ("namespaces", "P"),
        ("check", "P"),
        ("repair", "P"),
        ("index", "P", "desk/obs"),
        ("compact", "P"),
        ("backup", "P", "P-copy"),
        ("restore", "P", "P-copy"),
        ("get", "P", NS, "k"),
        ("delete", "P", NS, "k"),
        ("scan", "P", NS),
        ("latest", "P", NS),
        ("search", "P", NS, "--text", "x"),
        ("changes", "P"),
        ("trajectories", "P"),
        ("lessons", "P"),
        ("export", "P"),
    ],
    ids=lambda argv: argv[0],
)
def test_no_such_store(cli: Cli, tmp_path: Path, argv: tuple[str, ...], rest: tuple[str, ...]) -> None:
    missing = tmp_path / "missing"
    ended = cli(*(arg.replace("P", str(missing)) for arg in argv), *rest)
    assert (ended.code, ended.out) == (2, "")
    assert is_one_line(ended.err)
    assert "holds no store" in ended.err
    assert not missing.exists()


def test_debug_shows_the_traceback(store: Path) -> None:
    with pytest.raises(tiermem.InvalidNamespace):
        main(["get", str(store), "a//b", "k", "--debug"])


def test_reading_changes_no_file(cli: Cli, store: Path) -> None:
    def files() -> dict[str, tuple[int, bytes]]:
        found = sorted(path for path in store.rglob("*") if path.is_file() and path.name != "lock.mdb")
        return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in found}

    before = files()
    for argv in (
        ("get", store, NS, "AIG"),
        ("scan", store, NS),
        ("latest", store, NS),
        ("stats", store),
        ("namespaces", store),
        ("changes", store),
        ("tail", store, "**", "--start", "earliest", "--wait", "0"),
        ("export", store),
        ("search", store, NS, "--vector", "[1, 0]"),
    ):
        assert cli(*argv).code == 0
    assert files() == before


# ----------------------------------------------------------------------------------------------------------- records


def test_put_and_get(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "new"
    options = ("--metadata", '{"side": "buy", "d": {"$datetime": "2024-01-01T00:00:00Z"}}', "--vector", "[3, 4]")
    written = cli("put", path, NS, "k", '{"raw": {"$bytes": "AAE="}, "n": -5}', *options, "--at", "12.5", "--json")
    assert written.code == 0
    record = cli("get", path, NS, "k", "--json").json
    assert record["value"] == {"raw": {"$bytes": "AAE="}, "n": -5}
    assert record["metadata"] == {"side": "buy", "d": {"$datetime": "2024-01-01T00:00:00+00:00"}}
    assert (record["vector"], record["at"], record["expires_at"]) == ([3.0, 4.0], 12.5, None)
    assert record["version"] == written.json["version"]
    with tiermem.open(path) as mem:
        assert mem.get(NS, "k") == {"raw": b"\x00\x01", "n": -5}
    assert cli("put", path, NS, "k", "2", "--if-version", record["version"]).code == 0
    assert cli("put", path, NS, "k", "3", "--if-version", record["version"]).code == 2
    assert cli("get", path, NS, "k", "--value").out == "2\n"


def test_a_plain_string_as_value(cli: Cli, store: Path) -> None:
    assert cli("put", store, NS, "k", "[1", "--text").code == 0
    assert cli("get", store, NS, "k", "--value").out == "[1\n"
    assert cli("get", store, NS, "k", "--value", "--json").json == "[1"


def test_a_value_from_stdin(cli: Cli, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feed(monkeypatch, '{"a":\n 1}\n')
    assert cli("put", store, NS, "k", "-").code == 0
    assert cli("get", store, NS, "k", "--value").json == {"a": 1}
    feed(monkeypatch, "zwölf\n")
    assert cli("put", store, NS, "k", "-", "--text").code == 0
    assert cli("get", store, NS, "k", "--value", "--json").json == "zwölf\n"


def test_a_ttl(cli: Cli, store: Path) -> None:
    assert cli("put", store, NS, "k", "1", "--ttl", "3600").code == 0
    record = cli("get", store, NS, "k", "--json").json
    assert record["expires_at"] == pytest.approx(record["created_at"] + 3600)
    assert cli("put", store, NS, "k", "1", "--ttl", "0.001").code == 0
    while cli("get", store, NS, "k").code == 0:
        pass


def test_what_is_not_there(cli: Cli, store: Path) -> None:
    for command in ("get", "delete"):
        ended = cli(command, store, NS, "nothing")
        assert (ended.code, ended.out) == (1, "")
        assert is_one_line(ended.err)
    assert cli("get", store, NS, "nothing", "--json").json is None
    assert cli("delete", store, NS, "nothing", "--json").json["deleted"] is False
    assert cli("get", store, "no/such/namespace", "k").code == 1
    assert cli("export", store, "no/such/namespace").code == 1


def test_delete(cli: Cli, store: Path) -> None:
    assert cli("delete", store, NS, "AIG", "--if-version", "1").code == 2
    assert cli("delete", store, NS, "AIG").code == 0
    assert cli("get", store, NS, "AIG").code == 1


def test_a_record_as_a_table(cli: Cli, store: Path) -> None:
    out = cli("get", store, NS, "AIG").out
    assert '{"px": 48.21}' in out
    assert "side=buy" in out
    assert "1970-01-01 00:01:40.000Z" in out
    assert "2 × float32" in out


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ((), ["AIG", "IBM", "MSFT"]),
        (("--prefix", "I"), ["IBM"]),
        (("--start", "IBM"), ["IBM", "MSFT"]),
        (("--reverse",), ["MSFT", "IBM", "AIG"]),
        (("--limit", "2"), ["AIG", "IBM"]),
        (("--since", "200"), ["IBM", "MSFT"]),
        (("--until", "1970-01-01T00:03:20Z"), ["AIG"]),
        (("--where", '{"n": {"$gt": 1}}'), ["IBM"]),
        (("--where", '{"$or": [{"side": "buy"}, {"n": {"$exists": false}}]}'), ["AIG", "MSFT"]),
    ],
)
def test_scan(cli: Cli, store: Path, options: tuple[str, ...], keys: list[str]) -> None:
    assert [row["key"] for row in cli("scan", store, NS, *options, "--json").lines] == keys
    table = cli("scan", store, NS, *options)
    assert [key for key in ("AIG", "IBM", "MSFT") if key in table.out] == sorted(keys)


def test_a_filter_on_a_moment(cli: Cli, store: Path) -> None:
    with tiermem.open(store) as mem:
        mem.put(NS, "k", 1, metadata={"seen": datetime(2024, 1, 2, tzinfo=UTC)})
    where = '{"seen": {"$gte": {"$datetime": "2024-01-02T00:00:00Z"}}}'
    assert [row["key"] for row in cli("scan", store, NS, "--where", where, "--json").lines] == ["k"]


def test_a_table_says_that_there_is_more(cli: Cli, store: Path) -> None:
    with tiermem.open(store) as mem:
        mem.put_many("many", [(f"k{n:03}", n) for n in range(records.SHOWN + 1)])
    assert "--limit" in cli("scan", store, "many").out
    assert "--limit" not in cli("scan", store, NS).out
    assert f"k{records.SHOWN:03}" not in cli("scan", store, "many").out
    assert f"k{records.SHOWN:03}" in cli("scan", store, "many", "--limit", 99).out
    assert len(cli("scan", store, "many", "--json").lines) == records.SHOWN + 1


def test_latest(cli: Cli, store: Path) -> None:
    assert [row["key"] for row in cli("latest", store, NS, "-n", 2, "--json").lines] == ["MSFT", "IBM"]
    assert "MSFT" in cli("latest", store, NS, "-n", 1).out


def test_tables_show_values_and_do_not_obey_them(cli: Cli, store: Path) -> None:
    with tiermem.open(store) as mem:
        mem.put("odd", "\x1b[31mkey", "[red]text[/red]\x1b]0;title\x07", metadata={"\x9b": "a\nb"})
    out = cli("scan", store, "odd").out
    assert "[red]text[/red]" in out
    assert not set(out) & set("\x1b\x07\x9b")
    assert "\x1b" not in cli("get", store, "odd", "\x1b[31mkey").out
    assert "\x1b" not in cli("get", store, "odd", "\x1b[31mno").err


def test_search_by_vector(cli: Cli, store: Path) -> None:
    hits = cli("search", store, NS, "--vector", "[1, 0.1]", "--json").lines
    assert [hit["key"] for hit in hits] == ["AIG", "IBM"]
    assert hits[0]["value"] == {"px": 48.21}
    assert hits[0]["score"] > hits[1]["score"]
    assert [hit["key"] for hit in cli("search", store, "desk/*", "--vector", "[1, 0]", "-k", 1, "--json").lines] == [
        "AIG"
    ]
    assert cli("search", store, NS, "--vector", "[1, 0]", "--min-score", "0.5", "--json").out.count("\n") == 1
    assert "AIG" not in cli("search", store, NS, "--vector", "[1, 0]", "--where", '{"side": "sell"}').out
    assert cli("search", store, "nothing", "--vector", "[1, 0]", "--json").out == ""


def test_search_by_text(cli: Cli, store: Path) -> None:
    with tiermem.open(store.parent / "notes", embedder=tiermem.HashEmbedder(64)) as mem:
        mem.put("notes/a", "n1", "first", text="the cat sat on the mat")
        mem.put("notes/a", "n2", "second", text="interest rates rose")
    hits = cli("search", store.parent / "notes", "notes/**", "--text", "a cat on a mat", "--json").lines
    assert [hit["key"] for hit in hits] == ["n1", "n2"]


def test_search_by_text_where_another_model_was(cli: Cli, tmp_path: Path) -> None:
    class Other(tiermem.HashEmbedder):
        def __init__(self) -> None:
            super().__init__(8)
            self.model = "other"

    with tiermem.open(tmp_path, embedder=Other()) as mem:
        mem.put("a/x", "k", 1, text="x")
        mem.put("b", "k", 1, vector=[1.0, 2.0])
    ended = cli("search", tmp_path, "a/*", "--text", "x")
    assert ended.code == 2
    assert "other" in ended.err
    assert cli("search", tmp_path, "a/x", "b", "--text", "x").code == 2


def test_tail(cli: Cli, store: Path) -> None:
    with tiermem.open(store) as mem:
        topics = tiermem.Topics(mem)
        topics.publish("fills/AIG", {"px": Decimal("48.21")})
        topics.publish("orders/AIG", "buy")
        topics.publish("fills/IBM", "x\ny")
    whole = cli("tail", store, "fills/*", "orders/*", "--start", "earliest", "--wait", "0", "--json").lines
    assert [message["topic"] for message in whole] == ["fills/AIG", "orders/AIG", "fills/IBM"]
    assert whole[0]["payload"] == {"px": {"$decimal": "48.21"}}
    assert whole[0].keys() == {"id", "sequence", "topic", "payload", "at"}
    rest = cli("tail", store, "fills/*", "--start", whole[0]["sequence"], "--wait", "0").out
    assert rest.count("\n") == 1
    assert "fills/IBM" in rest
    assert len(cli("tail", store, "**", "--start", "earliest", "--limit", "2", "--json").lines) == 2
    assert cli("tail", store, "**", "--wait", "0") == (0, "", "")


def test_changes(cli: Cli, store: Path) -> None:
    changes = cli("changes", store, "--json").lines
    assert [change["key"] for change in changes][:3] == ["AIG", "IBM", "MSFT"]
    assert [change["sequence"] for change in changes] == list(range(1, len(changes) + 1))
    assert [row["sequence"] for row in cli("changes", store, "--after", 1, "--limit", 1, "--json").lines] == [2]
    assert cli("changes", store, "--namespace", "desk/ticks", "--json").out.count("\n") == 1
    assert "MSFT" in cli("changes", store).out
    assert cli("changes", store, "--wait", "0.01", "--after", 2).out.split()[:4] == ["3", "put", NS, "MSFT"]


# ------------------------------------------------------------------------------------------------------- whole stores


def test_locks_and_votes(cli: Cli, tmp_path: Path) -> None:
    path, clock = tmp_path / "agreed", tiermem.SimulatedClock(1000.0)
    with tiermem.open(path, clock=clock) as mem:
        locks, votes = tiermem.Locks(mem), tiermem.Votes(mem)
        lease = locks.acquire("rebalance", ttl=30.0, owner="desk")
        locks.acquire("book", shared=True, ttl=30.0, owner="reader")
        locks.acquire("api", permits=2, ttl=30.0, owner="caller")
        locks.acquire("gone", ttl=1.0)
        p = votes.propose("halt", electorate={"risk": 2.0, "desk": 1.0}, payload={"why": "px"}, deadline=1060.0)
        votes.cast(p, "desk", approve=False)
        q = votes.propose("resume", electorate={"risk": 2.0})
        votes.cast(q, "risk", approve=True)
    rows = cli("locks", path, "--now", "1005", "--json").lines
    assert [row["name"] for row in rows] == ["api", "book", "rebalance"]
    assert rows[2] == {
        "name": "rebalance",
        "holders": [{"owner": "desk", "fence": lease.fence, "expires_at": 1030.0, "permits": 1}],
        "waiting": [],
    }
    shown = cli("locks", path, "--now", "1005").out
    for text in ("rebalance", "desk", "exclusive", "shared", "1 of 2", str(lease.fence), "25.0 s"):
        assert text in shown
    assert "gone" not in shown
    assert cli("locks", path, "--namespace", "elsewhere", "--json").lines == []
    rows = cli("votes", path, "--json").lines
    assert [(row["id"], row["outcome"]) for row in rows] == [(p, "pending"), (q, "approved")]
    assert rows[0]["history"] == [{"member": "desk", "approve": False, "at": 1000.0}]
    assert cli("votes", path, "--outcome", "approved", "--json").lines == [rows[1]]
    shown = cli("votes", path).out
    for text in ("−desk 1", "?risk 2", "+risk 2", "pending", "approved", "1970-01-01 00:17:40", '{"why": "px"}'):
        assert text in shown


def test_stats_and_namespaces(cli: Cli, store: Path) -> None:
    stats = cli("stats", store, "--json").json
    assert stats["namespaces"] == {NS: 3, "desk/ticks": 1}
    assert stats["vectors"][NS]["dimension"] == 2
    out = cli("stats", store).out
    assert "L1 hot" in out
    assert "L2 desk/obs" in out
    rows = cli("namespaces", store, "--json").lines
    assert [(row["namespace"], row["records"], row["dimension"]) for row in rows] == [
        (NS, 3, 2),
        ("desk/ticks", 1, None),
    ]
    assert len(cli("namespaces", store, "--prefix", "desk/t", "--json").lines) == 1
    assert "cosine" in cli("namespaces", store).out


def test_check_of_a_sound_store(cli: Cli, store: Path) -> None:
    ended = cli("check", store)
    assert (ended.code, ended.err) == (0, "")
    assert "clean" in ended.out
    report = cli("check", store, "--json").json
    assert report["ok"]
    assert report["pages_verified"]
    assert report["records"] == 4


@pytest.mark.parametrize("damage", ["cut", "scribble"])
def test_check_of_a_damaged_store(cli: Cli, store: Path, damage: str) -> None:
    (data,) = store.glob("gen-*/data.mdb")
    raw = data.read_bytes()
    at = raw.index(b"hello")
    data.write_bytes(raw[: len(raw) // 2] if damage == "cut" else raw[:at] + b"jello" + raw[at + 5 :])
    ended = cli("check", store, "--json")
    assert ended.code == 1
    assert not ended.json["ok"]
    assert ended.json["problems"]
    assert ended.err == ""
    table = cli("check", store)
    assert table.code == 1
    assert "PROBLEM" in table.out


def test_repair(cli: Cli, store: Path) -> None:
    (data,) = store.glob("gen-*/data.mdb")
    data.write_bytes(data.read_bytes().replace(b"hello", b"jello"))
    assert cli("check", store).code == 1
    repaired = cli("check", store, "--repair")
    assert repaired.code == 0
    assert "repaired" in repaired.out
    assert cli("check", store).code == 0
    values = {row["key"]: row["value"] for row in cli("scan", store, NS, "--json").lines}
    assert {"AIG", "MSFT"} <= values.keys()
    # Lost, or found again in the journal; never what the damage made of it.
    assert values.get("IBM", "hello") == "hello"


def test_index(cli: Cli, store: Path) -> None:
    with tiermem.open(store) as mem:
        held = {name: part.vectors for name, part in mem.stats().vectors.items()}
    assert held
    assert {row["namespace"]: row["vectors"] for row in cli("index", store, "--json").json} == held
    name = min(held)
    assert f"{name}: {held[name]} vectors indexed" in cli("index", store, name).out
    with tiermem.open(store, read_only=True) as mem:
        assert {name: part.segments for name, part in mem.stats().vectors.items()} == dict.fromkeys(held, 1)
        assert not any(part.vector_backlog for part in mem.stats().vectors.values())


def test_compact_and_backup(cli: Cli, store: Path, tmp_path: Path) -> None:
    assert cli("compact", store, "--json").json["bytes_returned"] >= 0
    assert "returned" in cli("compact", store).out
    copy = tmp_path / "copy"
    assert cli("backup", store, copy, "--json").json == {"path": str(copy)}
    assert cli("backup", store, copy).code == 2
    assert str(tmp_path / "other") in cli("backup", store, tmp_path / "other").out
    with tiermem.open(copy) as mem:
        assert mem.count(NS) == 3


def test_restore(cli: Cli, store: Path, tmp_path: Path) -> None:
    copy, back = tmp_path / "copy", tmp_path / "back"
    assert cli("backup", store, copy).code == 0
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file() and path.name != "lock.mdb"}
    assert cli("restore", copy, back, "--json").json == {"path": str(back), "records": 4}
    assert {path: path.read_bytes() for path in before} == before, "the backup stays as it is"
    assert "4 records restored" in cli("restore", copy, tmp_path / "again").out
    assert cli("restore", copy, back).code == 2, "there is a store already"
    with tiermem.open(back, verify=True) as mem:
        assert mem.check().ok
        assert (mem.count(NS), mem.get(NS, "IBM"), mem.latest("desk/ticks")[0].at) == (3, "hello", 5.0)
        assert [hit.key for hit in mem.search_similar(NS, [1.0, 0.0], k=1)] == ["AIG"]
        mem.put(NS, "new", 1)


def test_a_damaged_backup_is_not_restored(cli: Cli, store: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    assert cli("backup", store, copy).code == 0
    data = copy / "gen-1" / "data.mdb"
    data.write_bytes(data.read_bytes().replace(b"hello", b"jello"))
    ended = cli("restore", copy, tmp_path / "back")
    assert ended.code == 1
    assert "IBM" in ended.err
    assert not (tmp_path / "back").exists()
    os.truncate(data, 20_000)
    assert cli("restore", copy, tmp_path / "back").code == 2
    assert not (tmp_path / "back").exists()


def test_what_has_writes_to_be_applied_is_no_backup(cli: Cli, store: Path, tmp_path: Path) -> None:
    code = """
import os, signal, sys, tiermem
mem = tiermem.open(sys.argv[1], config=tiermem.Config(cold=tiermem.ColdConfig(committer="inline", sync_interval=60.0)))
mem.put("a", "k", "journaled")
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code, store], check=False)
    ended = cli("restore", store, tmp_path / "back")
    assert ended.code == 2
    assert "no backup" in ended.err
    assert not (tmp_path / "back").exists()


def test_demo(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "demo"
    first = cli("demo", "--path", path, "--limit", 120, "--json")
    assert first.code == 0
    assert first.json["last_row"] == 120
    assert "AIG" in cli("demo", "--path", path, "--limit", 130).out
    assert cli("check", path).code == 0


def test_a_store_of_simulated_time(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "simulated"
    with tiermem.open(path, clock=tiermem.SimulatedClock(1000.0)) as mem:
        mem.put(NS, "short", 1, ttl=5.0)
        mem.put(NS, "long", 2, ttl=5000.0)
    assert len(cli("scan", path, NS, "--json").lines) == 2
    assert len(cli("scan", path, NS, "--json", "--now", 1010).lines) == 1
    assert cli("get", path, NS, "short", "--now", "1970-01-01T00:20:00Z").code == 1
    assert cli("check", path).code == 0
    assert cli("put", path, NS, "k", 3, "--now", 1010).code == 0
    assert cli("get", path, NS, "k", "--json").json["at"] == 1010.0
    assert [row["key"] for row in cli("changes", path, "--json").lines] == ["short", "long", "k"]
    lines = cli("export", path).out
    new = tmp_path / "new"
    (tmp_path / "lines").write_text(lines)
    assert cli("import", new, tmp_path / "lines", "--now", 1001, "--json").json == {"imported": 3, "expired": 0}
    assert [row["expires_at"] for row in cli("scan", new, NS, "--json").lines] == [None, 6000.0, 1005.0]
    assert cli("import", path, tmp_path / "lines", "--now", 1005, "--json").json == {"imported": 2, "expired": 1}


# ------------------------------------------------------------------------------------------------ export and import

VECTORS = st.none() | st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3).filter(any)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
MOMENTS = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))
ARRAYS = st.sampled_from(
    [
        np.arange(6, dtype="<i2").reshape(2, 3),
        np.array([], "<f8"),
        np.zeros((0, 4), ">u4"),
        np.array(7.5, "<f4"),
        np.array([True, False]),
        np.array([1 + 2j]),
        np.array(["2024-01-01", "NaT"], "<M8[D]"),
        np.array(["ab", "ü"]),
        np.array([b"\x00", b"ab"]),
        np.array([math.nan, -0.0, math.inf]),
    ]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | TEXTS
    | st.binary(max_size=12)
    | MOMENTS
    | st.dates()
    | st.decimals()
    | st.uuids()
    | ARRAYS
)
NAMES = TEXTS | TEXTS.map("${}".format) | st.sampled_from(["$bytes", "$$bytes", "$float", "$", "$$"])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=8
)
FIELDS = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | TEXTS | MOMENTS
METADATA = st.dictionaries(KEYS.filter(lambda name: name[0] != "$"), FIELDS | st.lists(FIELDS, max_size=3), max_size=3)


def same(one: Any, other: Any) -> bool:
    """Equal and of the same types, NaN included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, float):
        return repr(one) == repr(other)
    if isinstance(one, Decimal):
        return str(one) == str(other)
    return bool(one == other)


@given(VALUES)
def test_any_value_survives_as_json(value: Any) -> None:
    text = jsonform.dumps(value)
    assert "\n" not in text
    assert text.isascii()
    assert same(jsonform.loads(text), value)


ITEMS = st.lists(
    st.tuples(KEYS, VALUES, METADATA, VECTORS, st.floats(-1e9, 1e12), st.none() | st.floats(1.0, 1e6)),
    max_size=6,
    unique_by=lambda row: row[0],
)


@given(st.dictionaries(st.sampled_from(["a", "a/b", "ü"]), ITEMS, max_size=3), st.sampled_from([1, 2, 1000]))
def test_an_export_imported_equals_the_store(content: dict[str, list[Any]], batch: int) -> None:
    def rows(mem: tiermem.Memory) -> list[tiermem.Record]:
        return [record for name in mem.namespaces() for record in mem.scan(name)]

    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "BATCH_ROWS", batch)
        root = Path(folder)
        with tiermem.open(root / "old", clock=tiermem.SimulatedClock(0.0)) as mem:
            for name, items in content.items():
                for key, value, metadata, vector, at, ttl in items:
                    mem.put(name, key, value, metadata=metadata, vector=vector, at=at, ttl=ttl)
            before = rows(mem)
        patch.setattr(sys, "stdout", io.StringIO())
        assert main(["export", str(root / "old"), "-o", str(root / "lines")]) == 0
        assert main(["import", str(root / "new"), str(root / "lines"), "--now", "0"]) == 0
        with tiermem.open(root / "new", clock=tiermem.SimulatedClock(0.0)) as mem:
            after = rows(mem)
    assert len(after) == len(before)
    for one, other in zip(before, after, strict=True):
        assert (one.namespace, one.key, one.at, one.expires_at) == (
            other.namespace,
            other.key,
            other.at,
            other.expires_at,
        )
        assert same(one.value, other.value)
        assert same(one.metadata, other.metadata)
        assert same(one.vector, other.vector)


def test_the_form_of_a_line(cli: Cli, store: Path) -> None:
    line = cli("export", store, NS).lines[0]
    assert list(line) == [
        *("namespace", "key", "value", "metadata", "vector"),
        *("at", "created_at", "updated_at", "expires_at", "version"),
    ]
    assert (line["namespace"], line["key"], line["vector"], line["at"]) == (NS, "AIG", [1.0, 0.0], 100.0)


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (b"\x00\xff", {"$bytes": "AP8="}),
        (datetime(2024, 1, 2, 3, tzinfo=UTC), {"$datetime": "2024-01-02T03:00:00+00:00"}),
        (date(2024, 1, 2), {"$date": "2024-01-02"}),
        (Decimal("1.50"), {"$decimal": "1.50"}),
        (UUID(int=1), {"$uuid": "00000000-0000-0000-0000-000000000001"}),
        (math.inf, {"$float": "inf"}),
        (np.array([1], "<u2"), {"$ndarray": {"dtype": "<u2", "shape": [1], "data": "AQA="}}),
        ({"$bytes": 1}, {"$$bytes": 1}),
        ({"$bytes": 1, "b": 2}, {"$bytes": 1, "b": 2}),
        ({"a": {"$x": [b""]}}, {"a": {"$$x": [{"$bytes": ""}]}}),
    ],
)
def test_tagged_forms(value: Any, form: Any) -> None:
    assert json.loads(jsonform.dumps(value)) == form
    assert same(jsonform.from_json(form), value)


@pytest.mark.parametrize(
    "form",
    [
        {"$bytes": 1},
        {"$bytes": "?"},
        {"$bytes": "AP8"},
        {"$datetime": 1},
        {"$date": "soon"},
        {"$decimal": 1.5},
        {"$decimal": "x"},
        {"$uuid": "x"},
        {"$uuid": None},
        {"$float": "1"},
        {"$float": []},
        {"$nonsense": 1},
        {"$ndarray": []},
        {"$ndarray": {"dtype": "O", "shape": [1], "data": ""}},
        {"$ndarray": {"dtype": "<u2", "shape": [2], "data": "AQA="}},
        {"$ndarray": {"dtype": "<u2", "shape": [-1], "data": "AQA="}},
        {"$ndarray": {"dtype": "<u2", "shape": "1", "data": "AQA="}},
        {"$ndarray": {"dtype": "<u2,<u2", "shape": [1], "data": "AQABAA=="}},
        {"$ndarray": {"dtype": "<u", "shape": [1], "data": "AQ=="}},
    ],
    ids=json.dumps,
)
def test_malformed_tags_are_refused(form: Any) -> None:
    with pytest.raises(jsonform.NotJson):
        jsonform.loads(json.dumps([form]))


GOOD = '{"namespace": "a", "key": "k%d", "value": %d}\n'


@pytest.mark.parametrize(
    "bad",
    [
        b"{",
        b"[]",
        b"1",
        b"\xff",
        b'{"namespace": "a", "key": "k"}',
        b'{"key": "k", "value": 1}',
        b'{"namespace": "a", "value": 1}',
        b'{"namespace": "a", "key": "", "value": 1}',
        b'{"namespace": "a", "key": 5, "value": 1}',
        b'{"namespace": "a//b", "key": "k", "value": 1}',
        b'{"namespace": 5, "key": "k", "value": 1}',
        b'{"namespace": [], "key": "k", "value": 1}',
        b'{"namespace": "a", "key": "k", "value": NaN}',
        b'{"namespace": "a", "key": "k", "value": {"$nonsense": 1}}',
        b'{"namespace": "a", "key": "k", "value": 1, "metdata": {}}',
        b'{"namespace": "a", "key": "k", "value": 1, "metadata": []}',
        b'{"namespace": "a", "key": "k", "value": 1, "metadata": {"a": {}}}',
        b'{"namespace": "a", "key": "k", "value": 1, "vector": "x"}',
        b'{"namespace": "a", "key": "k", "value": 1, "vector": ["x"]}',
        b'{"namespace": "a", "key": "k", "value": 1, "vector": []}',
        b'{"namespace": "a", "key": "k", "value": 1, "at": "soon"}',
        b'{"namespace": "a", "key": "k", "value": 1, "expires_at": true}',
        b'{"namespace": "a", "dimension": 0, "metric": "dot"}',
        b'{"namespace": [], "dimension": 3}',
        b'{"dimension": 3}',
        b'{"namespace": "b", "dimension": 3, "metric": "nonsense"}',
        b"[" * 100_000,
    ],
    ids=lambda bad: bad[:60].decode(errors="replace"),
)
def test_a_malformed_line_is_named(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: bytes) -> None:
    feed(monkeypatch, (GOOD % (1, 1) + "\n" + GOOD % (2, 2)).encode() + bad + b"\n" + (GOOD % (3, 3)).encode())
    ended = cli("import", tmp_path / "store")
    assert (ended.code, ended.out) == (2, "")
    assert is_one_line(ended.err)
    assert "line 4:" in ended.err
    with tiermem.open(tmp_path / "store") as mem:
        assert dict(mem.namespace("a")) == {"k1": 1, "k2": 2}


def test_a_row_the_store_refuses_is_named(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"namespace": "a", "key": f"k{n}", "value": n, "vector": [1] * (3 if n == 5 else 2)} for n in range(8)]
    feed(monkeypatch, "\n".join(map(json.dumps, rows)))
    ended = cli("import", tmp_path / "store", "-")
    assert ended.code == 2
    assert "line 6:" in ended.err
    with tiermem.open(tmp_path / "store") as mem:
        assert mem.count("a") == 5


def test_what_has_expired_is_not_imported(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"namespace": "a", "key": "k", "value": 1}
    feed(monkeypatch, "\n".join(json.dumps({**row, "key": str(when), "expires_at": when}) for when in (1, 4e9, None)))
    ended = cli("import", tmp_path / "store")
    assert ended.code == 0
    assert "2 records imported; 1 had expired" in ended.out
    rows = {row["key"]: row["expires_at"] for row in cli("scan", tmp_path / "store", "a", "--json").lines}
    assert rows == {"4000000000.0": pytest.approx(4e9, abs=5.0), "None": None}


def test_a_metric_is_exported(cli: Cli, tmp_path: Path) -> None:
    with tiermem.open(tmp_path / "old") as mem:
        mem.create_namespace("far", dimension=2, metric="euclidean")
        mem.put("far", "k", 1, vector=[0.0, 0.0])
    ended = cli("export", tmp_path / "old", "--output", tmp_path / "lines", "--json")
    assert ended.json == {"path": str(tmp_path / "lines"), "exported": 1}
    assert cli("import", tmp_path / "new", tmp_path / "lines").code == 0
    with tiermem.open(tmp_path / "new") as mem:
        assert mem.stats().vectors["far"].metric == "euclidean"
        assert mem.search_similar("far", [3.0, 4.0])[0].score == -5.0


def test_a_part_of_a_store(cli: Cli, store: Path) -> None:
    assert {row["namespace"] for row in cli("export", store).lines} == {NS, "desk/ticks"}
    assert {row["namespace"] for row in cli("export", store, "desk/ticks").lines} == {"desk/ticks"}
    assert {row["namespace"] for row in cli("export", store, "--prefix", "desk/o").lines} == {NS}
    assert "4 records exported" in cli("export", store, "-o", store.parent / "lines").out


def test_a_failed_export_leaves_no_file_that_looks_whole(
    cli: Cli, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(self: tiermem.Memory, name: str) -> Iterator[tiermem.Record]:
        raise tiermem.CorruptionError("a page is damaged")

    monkeypatch.setattr(tiermem.Memory, "scan", torn)
    assert cli("export", store, "-o", store.parent / "lines").code == 2
    assert not (store.parent / "lines").exists()


def test_a_bar_on_a_terminal(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    (tmp_path / "lines").write_text("".join(GOOD % (n, n) for n in range(10)))
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert cli("import", tmp_path / "store", tmp_path / "lines").code == 0
    assert "bytes" in terminal.getvalue()
    written = len(terminal.getvalue())
    assert cli("import", tmp_path / "store", tmp_path / "lines", "--json").json["imported"] == 10
    assert len(terminal.getvalue()) == written


# --------------------------------------------------------------------------------------------------------- processes


def test_exit_codes_of_a_process(store: Path) -> None:
    for argv, code in (
        (("get", store, NS, "AIG", "--json"), 0),
        (("get", store, NS, "nothing"), 1),
        (("get", store.parent / "missing", NS, "k"), 2),
        (("nonsense",), 2),
    ):
        process = spawn(*argv)
        out, err = process.communicate(timeout=60)
        assert process.returncode == code
        assert (out != b"") is (code == 0)
        assert b"Traceback" not in err
        assert err.count(b"\n") == (code != 0)


def test_export_piped_into_import(cli: Cli, store: Path, tmp_path: Path) -> None:
    source = spawn("export", store)
    target = spawn("import", tmp_path / "new", "--json", stdin=source.stdout)
    assert source.stdout is not None
    source.stdout.close()
    out, err = target.communicate(timeout=60)
    assert (source.wait(timeout=60), target.returncode, err) == (0, 0, b"")
    assert json.loads(out) == {"imported": 4, "expired": 0}
    fields = ("namespace", "key", "value", "metadata", "vector", "at")
    exported, imported = (
        [[row[name] for name in fields] for row in cli("export", path).lines] for path in (store, tmp_path / "new")
    )
    assert exported == imported
    assert source.stderr is not None
    source.stderr.close()


@pytest.mark.parametrize("argv", [("export",), ("scan", "many", "--limit", "1000"), ("scan", "many", "--json")])
def test_a_reader_that_goes_away(store: Path, argv: tuple[str, ...]) -> None:
    with tiermem.open(store) as mem:
        mem.put_many("many", [(f"k{n}", "x" * 200) for n in range(4000)])
    # Unbuffered, the rest of a large write is dropped by the interpreter before anyone hears of it.
    process = spawn(argv[0], store, *argv[1:], env={**os.environ, "PYTHONUNBUFFERED": ""})
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 141


def test_an_interrupt(store: Path) -> None:
    # Not under coverage: it has a lock of its own, which an interrupt can leave held.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    process = spawn("changes", store, "--wait", "60", "--json", env=env)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["sequence"] == 1
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"")


def test_following_the_changes_of_another_process(store: Path) -> None:
    process = spawn("changes", store, "--wait", "60", "--after", "4", "--limit", "1", "--json")
    with tiermem.open(store) as mem:
        mem.put(NS, "new", 1)
        mem.flush()
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert json.loads(out)["key"] == "new"


def test_lessons_are_listed_with_their_history(cli: Cli, tmp_path: Path) -> None:
    clock = tiermem.SimulatedClock(1_700_000_000.0)
    with tiermem.open(tmp_path / "store", clock=clock) as mem:
        trail, bank = tiermem.Trajectories(mem), tiermem.ReasoningBank(mem)
        for place in range(40):
            run = trail.start("agent", "task")
            run.step(observation={"place": place}, action="go", vector=[1.0, 0.0] if place % 2 else [0.0, 1.0])
            run.complete(success=place % 2 == 1)
            bank.learn(run)
        good = next(lesson for lesson in bank.distil() if lesson.kind == "success")
        clock.advance(100.0)
        for success in (True, False):
            run = trail.start("agent")
            bank.used(good, run)
            run.complete(success=success)
        bank.settle()
        bad = next(lesson for lesson in bank.lessons() if lesson.kind == "failure")
        clock.advance(100.0)
        bank.upkeep = tiermem.Upkeep(stale_after=150.0)
        bank.consolidate()
    path = str(tmp_path / "store")
    listed = cli("lessons", path, "--json").lines
    assert [(one["id"], one["kind"], one["success"]["a"]) for one in listed] == [(good.id, "success", 21.0)]
    assert listed[0]["reliability"] > 0.9
    assert listed[0]["effect"]["difference"] == -0.5
    shown = cli("lessons", path)
    assert shown.code == 0
    assert "better" in shown.out
    assert "-0.50" in shown.out
    assert {one["id"] for one in cli("lessons", path, "--every", "--json").lines} == {good.id, bad.id}
    assert cli("lessons", path, "--where", '{"kind": "failure"}', "--json").lines == []
    before = cli("lessons", path, "--as-of", "1700000000", "--json").lines
    assert [one["effect"] for one in before] == [None, None]
    history = cli("lessons", path, "--show", bad.id, "--json").lines
    assert [(one["version"], one["status"]) for one in history] == [(1, "live"), (2, "retired")]
    told = cli("lessons", path, "--show", bad.id)
    assert "stale: unconfirmed" in told.out
    assert cli("lessons", path, "--show", "nothing").code == 1
