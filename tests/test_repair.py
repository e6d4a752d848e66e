"""What damage leaves: pages are looked at after an unclean close, and what is intact is saved."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import tiermem
from tests.workers import NO_BELLS, Peer
from tiermem.engine import verification
from tiermem.testing import damage, victim
from tiermem.tiers.cold import ColdEnv
from tiermem.tiers.cold.env import check_file
from tiermem.tiers.cold.pages import META_BYTES, Leaf, PageFile
from tiermem.tiers.cold.salvage import Salvage

PAGE = 4096
ROOT = Path(__file__).resolve().parent.parent
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    return damage.bases_in(tmp_path_factory.mktemp("victims"))


@pytest.fixture
def closed(bases: dict[bool, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(bases[False], tmp_path / "closed", ignore=NO_BELLS))


@pytest.fixture
def killed(bases: dict[bool, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(bases[True], tmp_path / "killed", ignore=NO_BELLS))


def data_of(path: Path) -> Path:
    return path / "gen-1" / "data.mdb"


def pages_of(path: Path, database: str) -> tuple[list[int], list[int]]:
    """The pages of pointers and of rows of one database."""
    with PageFile(data_of(path)) as file:
        tree = file.databases(file.page(file.metas[-1].main.root))[database]
        found = [(number, isinstance(what, Leaf)) for number, _, what in file.walk(tree.root)]
    return [number for number, leaf in found if not leaf], [number for number, leaf in found if leaf]


def spoil(path: Path, number: int, content: bytes = bytes(PAGE), offset: int = 0) -> None:
    with data_of(path).open("r+b") as file:
        file.seek(number * PAGE + offset)
        file.write(content)


def everything(mem: tiermem.Memory) -> dict[str, dict[str, object]]:
    return {
        name: {record.key: record.value for record in mem.scan(name)} for name in ("plain", "vectors", "large", "late")
    }


# -------------------------------------------------------------------------------------------------------------- sweeps


def test_a_sweep_of_damages_holds(tmp_path: Path) -> None:
    found, bad = damage.sweep(tmp_path, 60, seed=1)
    assert bad == []
    assert len(found) == 10
    assert all(outcomes.total() == 6 for outcomes in found.values())
    # A sweep in which nothing goes wrong would prove nothing.
    total = sum(found.values(), start=type(found["repair"])())
    assert min(total[outcome] for outcome in damage.HELD) > 5


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_long_sweep_of_damages_holds() -> None:
    assert damage.main(["--points", "1000", "--seed", "2"]) == 0


def test_the_sweep_finds_a_wrong_answer(
    bases: dict[bool, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge itself: an answer that is not the store's is told, and so is one that is missing."""
    point = damage.Point("rows", "CURRENT", "flip", 0)
    store = Path(shutil.copytree(bases[False], tmp_path / "store", ignore=NO_BELLS))
    assert damage.judge(store, point) == "right"
    with tiermem.open(store, config=victim.CONFIG) as mem:
        mem.delete("plain", "k0001")
    assert damage.judge(store, point).startswith("SILENT")
    with tiermem.open(store, config=victim.CONFIG) as mem:
        mem.put("plain", "k0001", "another")
    with pytest.raises(victim.WrongAnswer, match="k0001"):
        damage.judge(store, point)


def test_the_sweep_prints_a_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert damage.main(["--points", "3", "--seed", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["damaged", "right", "errors", "refused", "tried", "held"]
    assert lines[-1].split()[0] == "all"
    assert lines[-1].split()[-2:] == ["3", "3"]


# ---------------------------------------------------------------------------------------------------------- meta pages


def test_no_bit_of_a_meta_page_can_lie(bases: dict[bool, Path], closed: Path) -> None:
    """LMDB keeps no checksum of them: what is let through must make no difference."""
    intact = data_of(closed).read_bytes()
    let_through = []
    for page in (0, 1):
        for at in range(page * PAGE, page * PAGE + META_BYTES):
            for bit in range(8):
                raw = bytearray(intact[: 2 * PAGE])
                raw[at] ^= 1 << bit
                spoil(closed, 0, bytes(raw))
                if not check_file(data_of(closed)):
                    let_through.append((at, bit))
    assert len(let_through) < 2 * META_BYTES * 8 * 0.55
    expected = victim.model(killed=False)
    for at, bit in let_through[:: len(let_through) // 40]:
        raw = bytearray(intact[: 2 * PAGE])
        raw[at] ^= 1 << bit
        shutil.rmtree(closed)
        shutil.copytree(bases[False], closed, ignore=NO_BELLS)
        spoil(closed, 0, bytes(raw))
        with tiermem.open(closed, config=victim.CONFIG) as mem:
            assert everything(mem) == expected, (at, bit)
            mem.put("plain", "new", 1)
        with tiermem.open(closed, config=victim.CONFIG, verify=True) as mem:
            assert mem.get("plain", "new") == 1


def numbered(tmp_path: Path, least: int) -> tuple[Path, int]:
    """A closed store whose newest transaction has its second bit set, and the place of its number in the file."""
    path = tmp_path / "store"
    with tiermem.open(path, config=victim.CONFIG) as mem:
        for number in range(100):
            mem.put("a", "k", number, durable=True)
            with PageFile(data_of(path)) as file:
                newest = file.metas[-1].txn
            if newest >= least and newest & 2 and mem.get("a", "k") == number:
                break
    with PageFile(data_of(path)) as file:
        assert file.metas[-1].txn == newest
    return path, newest % 2 * PAGE + META_BYTES - 8


def test_a_meta_page_that_passes_for_an_older_one_is_refused(tmp_path: Path) -> None:
    """LMDB would begin with the commit before, as if the last had never been."""
    path, place = numbered(tmp_path, 20)
    with data_of(path).open("r+b") as file:
        file.seek(place)
        number = file.read(1)[0]
        file.seek(place)
        file.write(bytes((number ^ 2,)))
    with pytest.raises(tiermem.CorruptionError, match="last commit"):
        tiermem.open(path, config=victim.CONFIG)


def test_a_commit_whose_meta_page_could_not_be_written_never_was(tmp_path: Path) -> None:
    """What LMDB leaves behind then: the roots of the commit under the number the page had before."""
    path = tmp_path / "store"
    with tiermem.open(path, config=victim.CONFIG) as mem:
        for number in range(30):
            mem.put("a", "k", number, durable=True)
        control = (path / "control").read_bytes()
        with PageFile(data_of(path)) as file:
            older, newer = file.metas
        mem.put("a", "k", "failed", durable=True)
    raw = bytearray(data_of(path).read_bytes())
    at = older.txn % 2 * PAGE + META_BYTES - 16
    raw[at : at + 16] = older.last_page.to_bytes(8, sys.byteorder) + older.txn.to_bytes(8, sys.byteorder)
    data_of(path).write_bytes(raw)
    (path / "control").write_bytes(control)
    with PageFile(data_of(path)) as file:
        assert file.metas[-1].txn == newer.txn
        assert file.leads_further()
    with tiermem.open(path, config=victim.CONFIG) as mem:
        # The journal still has it: only the commit failed.
        assert mem.get("a", "k") == "failed"
        for number in range(30):
            mem.put("a", "k", number, durable=True)
            assert check_file(data_of(path)) == ""
    with tiermem.open(path, config=victim.CONFIG, verify=True) as mem:
        assert mem.get("a", "k") == 29


def test_meta_pages_agree_through_commits_aborts_and_readers(tmp_path: Path) -> None:
    """What one meta page is held against the other by holds whatever is done."""
    path = tmp_path / "store"
    with tiermem.open(path, config=victim.CONFIG) as mem:
        env = mem._store.cold
        for number in range(200):
            mem.put("a", f"k{number % 7}", "x" * (number * 37 % 5000), durable=True)
            if number % 5 == 0:
                mem.delete("a", f"k{number % 7}")
                mem.flush()
            if number % 11 == 0:
                with env.read():
                    mem.put("a", "held", number, durable=True)
            if number % 13 == 0:
                mem.drop_namespace("a")
            if number % 17 == 0:
                with contextlib.suppress(ZeroDivisionError), env.write() as txn:
                    txn.put(b"x", b"y" * 100_000, db=env.dbs.names)
                    raise ZeroDivisionError
            if number % 50 == 0:
                mem.compact()
                env = mem._store.cold
            assert check_file(env.path / "data.mdb") == ""


# ------------------------------------------------------------------------------------------------------ unclean closes


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The environments whose pages were walked."""
    walked: list[Path] = []
    walk = verification.walk_apart

    def watched(path: Path) -> list[str]:
        walked.append(path)
        return walk(path)

    monkeypatch.setattr(verification, "walk_apart", watched)
    return walked


def test_an_ordinary_opening_walks_nothing(tmp_path: Path, walks: list[Path]) -> None:
    path = tmp_path / "store"
    for number in range(3):
        with tiermem.open(path, config=victim.CONFIG) as mem:
            mem.put("a", "k", number)
        with tiermem.open(path, read_only=True) as mem:
            assert mem.get("a", "k") == number
    with tiermem.open(path, config=victim.CONFIG) as mem:
        mem.compact()
        mem.backup(tmp_path / "copy")
    for place in (path, tmp_path / "copy"):
        with tiermem.open(place) as mem:
            assert mem.get("a", "k") == 2
    assert walks == []


@pytest.mark.parametrize("read_only", [False, True])
def test_an_unclean_close_has_the_pages_walked_once(killed: Path, walks: list[Path], read_only: bool) -> None:
    with tiermem.open(killed, config=victim.CONFIG, read_only=read_only) as mem:
        assert everything(mem) == victim.model(killed=True)
    assert walks == [killed / "gen-1"]
    with tiermem.open(killed, config=victim.CONFIG):
        pass
    with tiermem.open(killed, config=victim.CONFIG):
        pass
    assert len(walks) == (2 if read_only else 1), "a reader cannot say that it has looked"


def test_a_large_store_is_not_walked(killed: Path, walks: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "SMALL", data_of(killed).stat().st_size)
    with tiermem.open(killed, config=victim.CONFIG):
        pass
    assert walks == []


def test_a_store_others_have_open_is_not_walked(tmp_path: Path, walks: list[Path]) -> None:
    path = tmp_path / "store"
    peer = Peer(path, config=victim.CONFIG)
    try:
        peer.put("a", "k", 1, durable=True)
        with tiermem.open(path, config=victim.CONFIG) as mem:
            assert mem.get("a", "k") == 1
        assert walks == []
    finally:
        peer.kill()
    with tiermem.open(path, config=victim.CONFIG) as mem:
        mem.put("a", "k", 2, durable=True)
    assert walks == [], "who closed it last closed it cleanly"
    peer = Peer(path, config=victim.CONFIG)
    peer.put("a", "k", 3, durable=True)
    peer.kill()
    with tiermem.open(path, config=victim.CONFIG) as mem:
        assert mem.get("a", "k") == 3
    assert walks == [path / "gen-1"]


def test_a_damaged_page_is_found_after_an_unclean_close(killed: Path) -> None:
    spoil(killed, pages_of(killed, "records")[1][3], b"\xff\xff", offset=12)
    for read_only in (False, True):
        with pytest.raises(tiermem.CorruptionError, match=r"data\.mdb"):
            tiermem.open(killed, config=victim.CONFIG, read_only=read_only)


def test_pages_are_walked_here_where_no_process_may_be_started(killed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(subprocess, "run", refuse)
    spoil(killed, pages_of(killed, "records")[1][3], b"\xff\xff", offset=12)
    with pytest.raises(tiermem.CorruptionError, match=r"data\.mdb"):
        tiermem.open(killed, config=victim.CONFIG)


def test_a_walk_beside_writers_blames_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found while others commit is found again or forgotten."""
    path = tmp_path / "store"
    with tiermem.open(path, config=victim.CONFIG) as mem:
        mem.put("a", "k", 1, durable=True)
        found = [["seen while it changed"], ["and again"], []]

        def walk(_: Path) -> list[str]:
            mem.put("a", "k", 2, durable=True)
            return found.pop(0)

        monkeypatch.setattr(verification, "walk_apart", walk)
        assert verification.damage_of(path / "gen-1") == []
        found += [["always"]] * verification.WALKS
        with pytest.raises(tiermem.StorageError, match="faster"):
            verification.damage_of(path / "gen-1")


# ------------------------------------------------------------------------------------------------------------- salvage


def mended(path: Path, *, live: bool = False) -> tuple[str, dict[str, dict[str, object]]]:
    """Repair a store: what was told, and what is there afterwards."""
    with tiermem.open(path, config=victim.CONFIG, repair=not live) as mem:
        told = "\n".join(mem.check(repair=True).repaired)
        assert mem.check().ok, mem.check()
    with tiermem.open(path, config=victim.CONFIG, verify=True) as mem:
        found = everything(mem)
        mem.put("plain", "new", "new")
        assert mem.check().ok
    with tiermem.open(path, config=victim.CONFIG, verify=True) as mem:
        assert mem.get("plain", "new") == "new"
    return told, found


def test_a_lost_page_of_pointers_costs_no_record(closed: Path) -> None:
    spoil(closed, pages_of(closed, "records")[0][0])
    told, found = mended(closed)
    assert found == victim.model(killed=False)
    assert "records is damaged" in told
    assert (closed / "gen-1.damaged" / "data.mdb").exists()
    assert sorted(path.name for path in closed.glob("gen-*")) == ["gen-1.damaged", "gen-3"]


def test_a_lost_list_of_databases_costs_no_record(closed: Path) -> None:
    with PageFile(data_of(closed)) as file:
        root = file.metas[-1].main.root
    spoil(closed, root, os.urandom(PAGE))
    told, found = mended(closed)
    assert found == victim.model(killed=False)
    assert "list of databases" in told


def test_what_was_on_a_lost_page_is_named(closed: Path) -> None:
    expected = victim.model(killed=False)
    spoil(closed, pages_of(closed, "records")[1][2])
    told, found = mended(closed)
    lost = {(name, key) for name, held in expected.items() for key in held if key not in found[name]}
    assert 0 < len(lost) < 200
    for name, key in lost:
        assert f"{key!r} of {name!r}" in told
    assert all(value == expected[name][key] for name, held in found.items() for key, value in held.items())


@pytest.mark.parametrize("page", [0, 1])
def test_a_lost_meta_page_costs_no_record(closed: Path, page: int) -> None:
    spoil(closed, page)
    told, found = mended(closed)
    assert found == victim.model(killed=False)
    assert "meta page" in told


def test_journals_are_replayed_into_what_was_saved(killed: Path) -> None:
    spoil(killed, pages_of(killed, "records")[0][0])
    assert mended(killed)[1] == victim.model(killed=True)


def test_pages_that_were_freed_bring_nothing_back(closed: Path) -> None:
    """Without the list of free pages, nobody knows which of two pages is the newer: the log has to."""
    with PageFile(data_of(closed)) as file:
        meta = file.metas[-1]
        free = meta.free.root
        assert len(file.free_pages(meta)[0]) > 10
    spoil(closed, free)
    spoil(closed, pages_of(closed, "records")[0][0])
    _, found = mended(closed)
    expected = victim.model(killed=False)
    assert all(value == expected[name][key] for name, held in found.items() for key, value in held.items())
    assert len(found["plain"]) > 200, "the log confirms what it still holds"


def test_a_store_that_lost_its_log_keeps_its_records(closed: Path) -> None:
    for number in pages_of(closed, "log")[1]:
        spoil(closed, number)
    told, found = mended(closed)
    assert found == victim.model(killed=False)
    assert "log" in told


@pytest.mark.parametrize("database", ["namespaces", "names", "meta", "marks", "cursors", "dictionaries", "expiry"])
def test_any_one_database_may_be_lost(closed: Path, database: str) -> None:
    with PageFile(data_of(closed)) as file:
        tree = file.databases(file.page(file.metas[-1].main.root))[database]
        pages = [] if tree.empty else [number for number, _, _ in file.walk(tree.root)]
    for number in pages:
        spoil(closed, number)
    told, found = mended(closed)
    expected = victim.model(killed=False)
    if database == "dictionaries":
        # What was written with one of them cannot be read any more.
        assert all(value == expected[name][key] for name, held in found.items() for key, value in held.items())
        assert found["large"] == expected["large"]
    else:
        assert found == expected
    assert bool(told) == bool(pages)


def test_a_damaged_dictionary_costs_what_was_compressed_with_it(closed: Path) -> None:
    with PageFile(data_of(closed)) as file:
        tree = file.databases(file.page(file.metas[-1].main.root))["dictionaries"]
        places = [
            (start * PAGE + 16 if start else number * PAGE + raw.find(key + row) + len(key), key, row)
            for number, raw, what in file.walk(tree.root)
            if isinstance(what, Leaf)
            for key, row, start in file.rows(raw)
        ]
    place, key, row = places[-1]
    spoil(closed, 0, bytes((row[-1] ^ 1,)), offset=place + len(row) - 1)
    number = int.from_bytes(key)
    with tiermem.open(closed, config=victim.CONFIG) as mem:
        assert mem.get("large", "blob") == victim.model(killed=False)["large"]["blob"]
        with pytest.raises(tiermem.CorruptionError, match=f"dictionary {number}"):
            [list(mem.scan(name)) for name in ("plain", "vectors")]
        mem.put("plain", "k0001", victim.value_of(1), durable=True)
        assert f"dictionary {number} is damaged" in mem.check().problems
    told, found = mended(closed)
    expected = victim.model(killed=False)
    assert f"dictionary {number} is lost" in told
    assert found["plain"]["k0001"] == victim.value_of(1)
    assert all(value == expected[name][key] for name, held in found.items() for key, value in held.items())


def test_records_whose_namespace_lost_its_name_are_kept(closed: Path) -> None:
    for database in ("namespaces", "names"):
        for number in pages_of(closed, database)[1]:
            spoil(closed, number)
    with tiermem.open(closed, config=victim.CONFIG, repair=True) as mem:
        told = "\n".join(mem.check(repair=True).repaired)
        names = mem.namespaces("recovered")
        held = sorted(mem.count(name) for name in names)
    assert held == sorted(len(held) for held in victim.model(killed=False).values() if held)
    assert all(repr(name) in told for name in names)


def test_a_file_that_is_cut_short_gives_what_is_left(closed: Path) -> None:
    # Where in the file records are depends on when they were committed.
    leaves = sorted(pages_of(closed, "records")[1])
    os.truncate(data_of(closed), leaves[len(leaves) // 2] * PAGE)
    told, found = mended(closed)
    expected = victim.model(killed=False)
    assert "cut short" in told
    assert all(value == expected[name][key] for name, held in found.items() for key, value in held.items())
    assert sum(map(len, found.values())) > 50


def test_a_file_that_holds_nothing_any_more(closed: Path) -> None:
    data_of(closed).write_bytes(os.urandom(100_000))
    told, found = mended(closed)
    assert not any(found.values())
    assert "meta page" in told


def test_a_file_that_is_gone_cannot_be_salvaged(closed: Path) -> None:
    data_of(closed).unlink()
    with pytest.raises(tiermem.CorruptionError, match=r"data\.mdb"):
        tiermem.open(closed, config=victim.CONFIG, repair=True)


LIVE = """
import sys
from pathlib import Path
import tiermem
from tests import test_repair as t
from tiermem.testing import victim
path = Path(sys.argv[1])
with tiermem.open(path, config=victim.CONFIG) as mem:
    assert mem.get("plain", "k0001") == victim.value_of(1)
    mem.put("plain", "pending", "p")
    leaf = t.pages_of(path, "records")[1][2]
    t.spoil(path, leaf)
    report = mem.check()
    assert not report.ok and all("data.mdb" in problem for problem in report.problems), report
    report = mem.check(repair=True)
    assert report.ok, report
    assert any("is lost" in line for line in report.repaired)
    assert mem.get("plain", "pending") == "p"
    mem.put("plain", "after", "a")
    mem.flush()
    assert mem.check().ok
with tiermem.open(path, config=victim.CONFIG, verify=True) as mem:
    assert (mem.get("plain", "pending"), mem.get("plain", "after")) == ("p", "a")
    print(mem.stats().generation)
"""


def test_an_open_store_is_salvaged_under_its_handles(closed: Path, run_python: Run) -> None:
    done = run_python(LIVE, closed, env={"PYTHONPATH": str(ROOT)})
    assert int(done.stdout) >= 3


BESIDE = """
import sys
from pathlib import Path
import tiermem
from tests import test_repair as t
from tests.workers import Peer
from tiermem.testing import victim
path = Path(sys.argv[1])
with tiermem.open(path, config=victim.CONFIG) as mem:
    peer = Peer(path, config=victim.CONFIG)
    t.spoil(path, t.pages_of(path, "records")[1][2])
    try:
        mem.check(repair=True)
    except tiermem.CorruptionError as exc:
        print(exc)
    peer.kill()
    assert mem.check(repair=True).ok
"""


def test_a_store_others_use_is_not_salvaged(closed: Path, run_python: Run) -> None:
    assert "elsewhere" in run_python(BESIDE, closed, env={"PYTHONPATH": str(ROOT)}).stdout


def test_repair_on_the_command_line(closed: Path) -> None:
    spoil(closed, pages_of(closed, "records")[1][2])
    command = [sys.executable, "-m", "tiermem"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    seen = subprocess.run([*command, "check", closed], capture_output=True, text=True, check=False, env=env)
    assert seen.returncode == 1, seen
    done = subprocess.run([*command, "repair", closed], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done
    assert "is lost" in done.stdout
    again = subprocess.run([*command, "repair", closed, "--json"], capture_output=True, text=True, check=False, env=env)
    assert (again.returncode, '"repaired":[]' in again.stdout) == (0, True), again


def test_an_intact_store_is_salvaged_whole(closed: Path, tmp_path: Path) -> None:
    """What is read page by page is what LMDB reads, but for indexes and for what is derived."""
    (tmp_path / "raw" / "gen-2").mkdir(parents=True)
    raw = ColdEnv(tmp_path / "raw", 2, victim.CONFIG.cold, create=True)
    with PageFile(data_of(closed)) as file:
        work = Salvage(file)
        work.run(raw)
    assert work.lost == []
    old = ColdEnv(closed, 1, victim.CONFIG.cold)
    try:
        with old.read() as there, raw.read() as here:
            for name in (
                "records",
                "vectors",
                "log",
                "namespaces",
                "names",
                "dictionaries",
                "cursors",
                "marks",
                "meta",
            ):
                kept = [(key, bytes(row)) for key, row in here.rows(getattr(here.dbs, name))]
                assert kept == [(key, bytes(row)) for key, row in there.rows(getattr(there.dbs, name))], name
    finally:
        old.close()
        raw.close()
