"""Segments that are damaged, half made, made by several processes, or not made at all: every answer stays right.

What a search must find is worked out with numpy from vectors that follow from a number and a version.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import multiprocessing
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiermem
from tests.workers import NO_BELLS, Loop, eventually, in_child, join
from tiermem.engine import builder, publishing, sealing, workshop
from tiermem.engine.commit import Committer
from tiermem.engine.indexing import Indexing
from tiermem.engine.workshop import Workshop
from tiermem.tiers.vector import rowfile
from tiermem.tiers.vector.faiss_engine import FaissEngine

DIMENSION = 16
GRAPH = 1_100
"""Rows that get a graph, and are walked by a search for few."""
NEVER = 1_000_000
"""More rows than are ever waited for: nothing is sealed unless it is asked for."""

_MATRIX = np.random.default_rng(20).standard_normal((8, 4_096, DIMENSION)).astype(np.float32)
QUERIES = np.random.default_rng(21).standard_normal((6, DIMENSION)).astype(np.float32)

Model = dict[str, np.ndarray]
"""Key to vector."""


def vector_of(number: int, version: int = 0) -> np.ndarray:
    return _MATRIX[version % len(_MATRIX), number]


def settings(seal_rows: int = NEVER, **vector: Any) -> tiermem.Config:
    """No helper, which a slow disk would call for: it would build what is looked at here."""
    return tiermem.Config(
        cold=tiermem.ColdConfig(journal_bytes=2**20, sync_interval=0.02, committer="thread"),
        vector=tiermem.VectorConfig(seal_rows=seal_rows, **vector),
    )


def key_of(number: int) -> str:
    return f"k{number:05d}"


def fill(mem: tiermem.Memory, name: str, numbers: range, version: int = 0) -> Model:
    """Put records and flush; what was put."""
    model = {key_of(number): vector_of(number, version) for number in numbers}
    items = [tiermem.Item(key_of(n), n, vector=model[key_of(n)], metadata={"even": n % 2 == 0}) for n in numbers]
    mem.put_many(name, items)
    mem.flush()
    return model


def nearest(model: Model, query: np.ndarray) -> list[tuple[str, float]]:
    """Every key with its score, best first."""
    keys = list(model)
    if not keys:
        return []
    wide, target = np.stack([model[key] for key in keys]).astype(np.float64), query.astype(np.float64)
    scores = wide @ target / (np.linalg.norm(wide, axis=1) * np.linalg.norm(target))
    return [(keys[at], float(scores[at])) for at in np.argsort(-scores)]


def assert_right(mem: tiermem.Memory, name: str, model: Model, queries: np.ndarray = QUERIES[:2]) -> None:
    """Exact searches find exactly the nearest, all that is there is found once, and no score is wrong."""
    assert mem.count(name) == len(model)
    for query in queries:
        wanted = nearest(model, query)
        scores = dict(wanted)
        for k in (5, len(model) + 3):
            found = mem.search_similar(name, query, k=k, exact=True)
            assert [hit.key for hit in found] == [key for key, _ in wanted[:k]]
            assert [hit.score for hit in found] == pytest.approx([score for _, score in wanted[:k]], abs=1e-6)
        for where in (None, {"even": True}):
            allowed = [key for key in model if where is None or int(key[1:]) % 2 == 0]
            hits = mem.search_similar(name, query, k=4, where=where)
            assert len({hit.key for hit in hits}) == len(hits) == min(4, len(allowed))
            assert [hit.score for hit in hits] == pytest.approx([scores[hit.key] for hit in hits], abs=1e-6)
            assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
            assert {hit.key for hit in hits} <= set(allowed)


def assert_each_finds_itself(mem: tiermem.Memory, name: str, model: Model, keys: list[str]) -> None:
    for key in keys:
        (hit,) = mem.search_similar(name, model[key], k=1, exact=True)
        assert hit.key == key
        assert hit.score == pytest.approx(1.0, abs=1e-6)


def assert_sound(mem: tiermem.Memory) -> None:
    report = mem.check()
    assert report.ok, str(report)


def store_of(mem: tiermem.Memory) -> Any:
    return mem._store


def rouse(mem: tiermem.Memory, name: str) -> None:
    """Have the background look after a namespace, as a search does from time to time."""
    mem.search_similar(name, QUERIES[0], k=1)
    store_of(mem).indexing._look(store_of(mem).space(name))


def healed(mem: tiermem.Memory, *names: str) -> bool:
    """True once nothing is degraded and nothing waits to be sealed; asks for both."""
    for name in names:
        rouse(mem, name)
    least = store_of(mem).config.vector.seal_rows
    # Twice: what is degraded and what waits are not looked at in the same moment.
    looks = [mem.stats(), mem.stats()]
    waiting = [look.vectors[name].vector_backlog for look in looks for name in names]
    return not any(look.degraded for look in looks) and max(waiting) < least


def sealed(mem: tiermem.Memory, name: str) -> None:
    """Seal what is unsealed as one more segment, beside those there are."""
    sealer = store_of(mem).sealer
    mem.flush()
    with sealer._exclusively("seal", 60.0):
        sealer._make(name, [], unsealed=True)


def published_files(mem: tiermem.Memory) -> set[str]:
    store = store_of(mem)
    with store.cold.read() as snapshot:
        return {
            f"{number:016x}.{kind}"
            for _, info in snapshot.infos()
            for number, known in snapshot.segments(info.prefix).items()
            for kind in ("rows", *(["graph"] if known.graph else []))
        }


def files_of(path: Path) -> set[str]:
    return {entry.name for entry in (path / "segments").iterdir() if entry.suffix != ".lock"}


def runs(pid: int) -> bool:
    """Whether a process runs: a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def script(name: str, *args: object, timeout: float = 100.0) -> str:
    """Run one of the functions below in a fresh interpreter; what it printed. A death by signal fails the test."""
    code = f"import sys; from tests import test_segment_faults; test_segment_faults.{name}(*sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", code, *map(str, args)],
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        # Its children too, or they would keep the pipe open.
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"{name} hangs:\n{output}", pytrace=False)
    if process.returncode:
        pytest.fail(f"{name} ended with {process.returncode}:\n{output[-6000:]}", pytrace=False)
    return output


# ------------------------------------------------------------------------------------------------------ damage


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed store: two segments with graphs in one namespace, one in another, a few vectors in the tail."""
    path = tmp_path_factory.mktemp("segments") / "store"
    with tiermem.open(path, config=settings()) as mem:
        fill(mem, "a", range(GRAPH))
        sealed(mem, "a")
        fill(mem, "a", range(GRAPH, 2 * GRAPH))
        # Updated and deleted where the first segment holds them.
        fill(mem, "a", range(40), version=1)
        mem.delete_many("a", [key_of(number) for number in range(40, 60)])
        sealed(mem, "a")
        fill(mem, "a", range(60, 70), version=2)
        fill(mem, "b", range(GRAPH), version=3)
        sealed(mem, "b")
        assert mem.stats().vectors["a"].segments == 2
        assert_sound(mem)
    assert sum(name.endswith(".graph") for name in files_of(path)) == 3
    return path


def base_model(name: str) -> Model:
    if name == "b":
        return {key_of(number): vector_of(number, 3) for number in range(GRAPH)}
    model = {key_of(number): vector_of(number) for number in range(60, 2 * GRAPH)}
    model.update({key_of(number): vector_of(number, 1) for number in range(40)})
    model.update({key_of(number): vector_of(number, 2) for number in range(60, 70)})
    return model


def segments_of(path: Path) -> dict[str, list[Path]]:
    """The files of rows of each namespace."""
    found: dict[str, list[Path]] = {}
    with tiermem.open(path, read_only=True) as mem, store_of(mem).cold.read() as snapshot:
        for name, info in snapshot.infos():
            numbers = snapshot.segments(info.prefix)
            found[name] = [path / "segments" / f"{number:016x}.rows" for number in numbers]
    return found


def covered(path: Path) -> Callable[[int], bool]:
    """Whether a byte of a segment file is under some checksum; what lies between sections is not."""
    if path.suffix == ".graph":
        return lambda offset: True
    raw = path.read_bytes()
    trailer = rowfile.TRAILER.unpack(raw[-rowfile.TRAILER_BYTES : -8])
    _, _, start, length, *_ = trailer
    about = rowfile.msgspec.msgpack.decode(raw[start : start + length], type=rowfile.Directory)
    spans = [(offset, offset + size) for offset, size, _ in about.sections.values()]
    return lambda offset: offset >= start or any(low <= offset < high for low, high in spans)


def damages(rows: Path, seed: int) -> Iterator[tuple[str, Path, bytes, bool]]:
    """(what, file, its bytes then, whether it must be noticed): cuts and flips of both files of a segment."""
    rng = random.Random(seed)
    for path in (rows, rows.with_suffix(".graph")):
        raw = path.read_bytes()
        ends = (0, 1, 63, rowfile.TRAILER_BYTES, len(raw) // 2, len(raw) - rowfile.TRAILER_BYTES, len(raw) - 1)
        for length in (*ends, *(rng.randrange(len(raw)) for _ in range(13))):
            yield f"{path.name} cut to {length}", path, raw[:length], True
        known = covered(path)
        # Half of the flips lie near the ends, where what describes the rest is.
        places = [rng.randrange(len(raw)) for _ in range(13)]
        places += [rng.choice((rng.randrange(400), len(raw) - 1 - rng.randrange(400))) for _ in range(12)]
        for offset in places:
            flipped = bytearray(raw)
            flipped[offset] ^= 1 << rng.randrange(8)
            yield f"{path.name} flipped at {offset}", path, bytes(flipped), known(offset)
        yield f"{path.name} extended", path, raw + rng.randbytes(100), True


def survive_damage(root: str, seed: str, shown: str = "") -> None:
    """Damage each segment in every way, one at a time; print how many damages there were."""
    path = Path(root)
    count = 0
    config = settings()
    models = {name: base_model(name) for name in "ab"}
    for name, rows in segments_of(path).items():
        # Every vector of "b" is alive, so a search meets whatever is wrong.
        for which in rows if name == "b" else []:
            for what, file, content, must in damages(which, int(seed)):
                before = file.read_bytes()
                file.write_bytes(content)
                try:
                    with tiermem.open(path, config=config, read_only=True) as mem:
                        assert_right(mem, name, models[name], QUERIES[count % 6][None])
                        told = mem.stats().degraded
                        if not told or count % 30 == 0:
                            told += mem.check().problems
                        noticed = any(f"segments of {name!r}" in line for line in told)
                        assert noticed == must, told
                        assert not [line for line in told if repr(name) not in line]
                except BaseException:
                    sys.stderr.write(f"damage: {what}\n")
                    raise
                finally:
                    file.write_bytes(before)
                count += 1
    with tiermem.open(path, config=config, read_only=True) as mem:
        assert_right(mem, "a", models["a"])
        assert not mem.stats().degraded
        assert_sound(mem)
    sys.stdout.write(f"{count}\n")


@pytest.mark.parametrize("seed", [1])
def test_no_damage_to_a_segment_changes_an_answer(base: Path, tmp_path: Path, seed: int) -> None:
    work = shutil.copytree(base, tmp_path / "store", ignore=NO_BELLS)
    before = files_of(work)
    assert int(script("survive_damage", work, seed)) >= 92
    assert files_of(work) == before, "a store that was opened read-only has changed"


def spoil(path: Path, how: str) -> None:
    """Damage segments of namespace "a"."""
    segments = segments_of(path)
    first, second = segments["a"]
    (other,) = segments["b"]
    graph = first.with_suffix(".graph")
    if how == "rows missing":
        first.unlink()
    elif how == "graph missing":
        graph.unlink()
    elif how == "rows empty":
        first.write_bytes(b"")
    elif how == "graph empty":
        graph.write_bytes(b"")
    elif how == "rows of the other segment":
        shutil.copyfile(second, first)
    elif how == "graph of the other segment":
        shutil.copyfile(second.with_suffix(".graph"), graph)
    elif how == "rows of another namespace":
        shutil.copyfile(other, first)
    elif how == "graph of another namespace":
        shutil.copyfile(other.with_suffix(".graph"), graph)
    elif how == "everything missing":
        shutil.rmtree(path / "segments")
    else:
        # In rows that are alive.
        place = {"vector flipped": 100 * 64 + 3, "both vectors flipped": 120 * 64, "keys flipped": -4_000}[how]
        for file in (first, second) if how.startswith("both") else (first,):
            raw = bytearray(file.read_bytes())
            raw[place] ^= 4
            file.write_bytes(raw)


DAMAGED = (
    "rows missing",
    "graph missing",
    "rows empty",
    "graph empty",
    "rows of the other segment",
    "graph of the other segment",
    "rows of another namespace",
    "graph of another namespace",
    "everything missing",
    "vector flipped",
    "both vectors flipped",
    "keys flipped",
)


def heal(root: str, hows: str, turn: str) -> None:
    """Damage a copy; a search notices, and the background builds anew, or `build_index` does where nothing searched."""
    # Most are built here, which is sooner done.
    popen, workshop.subprocess.Popen = workshop.subprocess.Popen, refuse
    for number, how in enumerate(json.loads(hows)):
        if number == 2:
            workshop.subprocess.Popen = popen
        told: tuple[str, ...] = ()
        for way in ("searched", ("build_index", "repair")[number % 2])[: 2 if (number + int(turn)) % 3 == 0 else 1]:
            sys.stderr.write(f"damage: {how}, {way}\n")
            path = Path(root).parent / f"{number}-{way}"
            shutil.copytree(root, path, ignore=NO_BELLS)
            spoil(path, how)
            models = {name: base_model(name) for name in "ab"}
            with tiermem.open(path, config=settings(seal_rows=500)) as mem:
                if way == "searched":
                    assert_right(mem, "a", models["a"], QUERIES[2:3])
                    told = mem.stats().degraded
                    assert eventually(lambda mem=mem: healed(mem, "a", "b"), 60), mem.stats()
                elif way == "repair":
                    assert any("segments of 'a'" in problem for problem in mem.check().problems)
                    report = mem.check(repair=True)
                    assert report.ok, str(report)
                    assert report.repaired
                else:
                    for name in models:
                        mem.build_index(name)
                        assert mem.stats().vectors[name].segments == 1
                for name, model in models.items():
                    assert_right(mem, name, model, QUERIES[:1])
                    assert mem.stats().vectors[name].segments, (name, mem.stats(), told)
                assert not mem.stats().degraded
                assert_sound(mem)
            shutil.rmtree(path)


@pytest.mark.parametrize("part", range(4))
def test_damaged_segments_are_built_anew(base: Path, tmp_path: Path, part: int) -> None:
    work = shutil.copytree(base, tmp_path / "store", ignore=NO_BELLS)
    script("heal", work, json.dumps(DAMAGED[part * 3 : part * 3 + 3]), part)


def test_threads_that_meet_damage_together(base: Path, tmp_path: Path) -> None:
    path = shutil.copytree(base, tmp_path / "store", ignore=NO_BELLS)
    spoil(path, "vector flipped")
    model = base_model("a")
    failures: list[BaseException] = []
    with tiermem.open(path, config=settings()) as mem:
        mem.search_similar("a", QUERIES[0], k=1)
        start = threading.Barrier(6)

        def search() -> None:
            try:
                start.wait()
                for _ in range(5):
                    assert_right(mem, "a", model, QUERIES[:1])
            except BaseException as exc:  # noqa: BLE001 - it fails the test below
                failures.append(exc)

        threads = [threading.Thread(target=search) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures, failures[0]
        assert_right(mem, "a", model)


# ----------------------------------------------------------------------------------------------------- kill -9


class History:
    """What a loop to be killed does, following from a seed: puts, updates and deletes of 400 keys."""

    def __init__(self) -> None:
        self.rng = random.Random(5)
        self.number = 0

    def steps(self, count: int) -> list[tuple[str, int, int]]:
        """(verb, number, version) of the next `count` operations."""
        made = []
        for _ in range(count):
            self.number += 1
            verb = "delete" if self.rng.random() < 0.15 else "put"
            made.append((verb, self.rng.randrange(400), self.number))
        return made


def perform(mem: tiermem.Memory, step: tuple[str, int, int]) -> None:
    verb, number, version = step
    if verb == "put":
        mem.put("n", key_of(number), version, vector=vector_of(number, version), metadata={"even": number % 2 == 0})
    else:
        mem.delete("n", key_of(number))


def remember(model: Model, steps: list[tuple[str, int, int]]) -> Model:
    after = dict(model)
    for verb, number, version in steps:
        if verb == "put":
            after[key_of(number)] = vector_of(number, version)
        else:
            after.pop(key_of(number), None)
    return after


def assert_one_of(mem: tiermem.Memory, *models: Model) -> Model:
    """The store holds what one of the models says; which."""
    found = {hit.key: hit.score for hit in mem.search_similar("n", QUERIES[0], k=5000, exact=True)}
    for model in models:
        wanted = dict(nearest(model, QUERIES[0]))
        if found.keys() == wanted.keys() and all(abs(found[key] - wanted[key]) < 1e-6 for key in found):
            assert_right(mem, "n", model)
            return model
    wanted = dict(nearest(models[0], QUERIES[0]))
    wrong = [key for key in {*found, *wanted} if abs(found.get(key, 9) - wanted.get(key, 9)) > 1e-6]
    raise AssertionError(f"{len(found)} found of {len(wanted)}; wrong: {sorted(wrong)[:10]}")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the vectors of a file are written."""
    write = builder.write_rows

    def partly(*args: Any) -> int:
        *most, vectors = args

        def half() -> Iterator[Any]:
            for chunk in vectors:
                yield chunk[: len(chunk) // 2]
                die()

        return write(*most, half())

    monkeypatch.setattr(builder, "write_rows", partly)


def at_end_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows are written under their temporary name."""
    write = builder.write_rows
    monkeypatch.setattr(builder, "write_rows", lambda *args: (write(*args), die()))


def at_renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files have their names, and nobody knows of them."""
    build = builder.build
    monkeypatch.setattr(builder, "build", lambda *args: (build(*args), die()))


def at_before_swap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is published."""
    monkeypatch.setattr(publishing, "_swap", lambda *_: die())


def at_after_swap(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is published, and every key is unsealed still."""
    swap = publishing._swap
    monkeypatch.setattr(publishing, "_swap", lambda *args: (swap(*args), die()))


def at_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some keys are settled, others are not."""
    monkeypatch.setattr(publishing, "SLICE", 40)
    commit, commits = Committer.commit, []

    def some(committer: Committer, **named: Any) -> Any:
        if getattr(named.get("work"), "__name__", "") == "settle":
            commits.append(1)
            if len(commits) == 3:
                die()
        return commit(committer, **named)

    monkeypatch.setattr(Committer, "commit", some)


def at_adopting(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is published and settled, and not in use yet."""
    monkeypatch.setattr(Indexing, "adopt", lambda *_: die())


def at_unlinking(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is published, and the files it replaces are there."""
    publish = sealing.publish
    monkeypatch.setattr(sealing, "publish", lambda *args: (publish(*args), die()))


POINTS = (at_write, at_end_of_rows, at_renamed, at_before_swap, at_after_swap, at_settling, at_adopting, at_unlinking)


def refuse(*_: Any, **__: Any) -> Any:
    raise OSError("no process may be started")


def mend_and_check(path: Path, *models: Model) -> Model:
    """Open after a kill: nothing is lost; the next sealing leaves no file behind that is not in use."""
    with pytest.MonkeyPatch.context() as monkeypatch, tiermem.open(path, config=settings(seal_rows=32)) as mem:
        # Sooner done here.
        monkeypatch.setattr(workshop.subprocess, "Popen", refuse)
        model = assert_one_of(mem, *models)
        assert_each_finds_itself(mem, "n", model, sorted(model)[::40])
        assert_sound(mem)
        fill(mem, "n", range(500, 540))
        model.update({key_of(number): vector_of(number) for number in range(500, 540)})
        assert eventually(lambda: healed(mem, "n"), 60), mem.stats()
        mem.build_index("n")
        assert eventually(lambda: files_of(path) == published_files(mem), 20), files_of(path) - published_files(mem)
        assert_one_of(mem, model)
        assert_sound(mem)
    return model


@pytest.mark.parametrize("work", ["sealing", "building"])
def test_killed_at_a_named_point(tmp_path: Path, work: str) -> None:
    path, history, model = tmp_path / "store", History(), {}
    for point in POINTS:
        if work == "sealing" and point is at_unlinking:
            # There it replaces nothing.
            continue
        steps = history.steps(300)

        def body(
            say: Callable[[int], None], steps: list[tuple[str, int, int]] = steps, point: Callable[..., None] = point
        ) -> None:
            mem = tiermem.open(path, config=settings(seal_rows=100 if work == "sealing" else NEVER))
            for step in steps[:200]:
                perform(mem, step)
            mem.flush()
            if work == "building":
                # Two segments to be merged, and what is not sealed yet.
                sealed(mem, "n")
                for step in steps[200:]:
                    perform(mem, step)
            with pytest.MonkeyPatch.context() as monkeypatch:
                monkeypatch.setattr(workshop.subprocess, "Popen", refuse)
                point(monkeypatch)
                say(1)
                if work == "building":
                    mem.build_index("n")
                else:
                    rouse(mem, "n")
                    time.sleep(60)

        child = Loop(body)
        while child.listen(0.05):
            pass
        assert child.kill() == 1
        model = mend_and_check(path, remember(model, steps[: 300 if work == "building" else 200]))


def test_killed_at_any_time(tmp_path: Path) -> None:
    path, history, model = tmp_path / "store", History(), {}
    rng = random.Random(8)
    builders: set[int] = set()
    for _ in range(15):
        steps = history.steps(1000)

        def body(say: Callable[[int], None], steps: list[tuple[str, int, int]] = steps) -> None:
            popen = subprocess.Popen

            def noted(*args: Any, **named: Any) -> Any:
                child = popen(*args, **named)
                say(-child.pid)
                return child

            workshop.subprocess.Popen = noted
            mem = tiermem.open(path, config=settings(seal_rows=60))
            for number, step in enumerate(steps, 1):
                perform(mem, step)
                say(number)
                if number % 50 == 0:
                    rouse(mem, "n")
                    time.sleep(0.02)
            time.sleep(60)

        child = Loop(body)
        while not any(said < 0 for said in child.said) and child.listen(0.01):
            pass
        child.listen(rng.random() * 0.7)
        child.kill()
        started = [-said for said in child.said if said < 0]
        builders.update(started)
        done = max([0, *child.said])
        assert eventually(lambda started=started: not any(map(runs, started)), 20), "a builder outlives its parent"
        before = remember(model, steps[:done])
        with tiermem.open(path, config=settings()) as mem:
            model = assert_one_of(mem, before, remember(before, steps[done : done + 1]))
            assert_sound(mem)
    assert len(builders) >= 15
    mend_and_check(path, model)


def test_a_builder_that_is_killed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    popen = subprocess.Popen
    rng = random.Random(4)
    doomed = [1]

    def shot(*args: Any, **named: Any) -> Any:
        child = popen(*args, **named)
        if doomed:
            doomed.pop()
            threading.Timer(rng.random() * 0.2, child.kill).start()
        return child

    monkeypatch.setattr(workshop.subprocess, "Popen", shot)
    with tiermem.open(tmp_path / "store", config=settings(seal_rows=100)) as mem:
        model: Model = {}
        seen = []
        for attempt in range(4):
            doomed[:] = [1]
            numbers = range(attempt * 200, attempt * 200 + 200)
            model.update(fill(mem, "n", numbers))
            rouse(mem, "n")
            if eventually(lambda: mem.stats().degraded or healed(mem, "n"), 20) and mem.stats().degraded:
                seen.extend(mem.stats().degraded)
            assert_one_of(mem, model)
            assert eventually(lambda: healed(mem, "n"), 60), mem.stats()
            assert_one_of(mem, model)
        assert any("segments of 'n'" in line for line in seen), "none was killed in time"
        # A file that was begun is swept before the next is.
        model.update(fill(mem, "n", range(800, 1000)))
        assert eventually(lambda: healed(mem, "n"), 60)
        doomed.clear()
        mem.build_index("n")
        assert eventually(lambda: files_of(tmp_path / "store") == published_files(mem), 20)
        assert_sound(mem)


def test_a_builder_ends_though_a_fork_of_its_parent_lives(tmp_path: Path) -> None:
    """Such a fork holds the pipes of the builder open."""
    pids = script("fork_and_die", tmp_path / "store").split()
    try:
        assert eventually(lambda: not runs(int(pids[0])), 20)
    finally:
        os.kill(int(pids[1]), signal.SIGKILL)


def fork_and_die(root: str) -> None:
    """Print the builder's pid and that of a child that lives on, and die; the builder is held up."""
    popen, started = subprocess.Popen, []

    def held(*args: Any, **named: Any) -> Any:
        started.append(popen(*args, **named))
        return started[-1]

    workshop.subprocess.Popen = held
    workshop._follow = lambda *_: time.sleep(60)
    mem = tiermem.open(root, config=settings(seal_rows=100))
    fill(mem, "n", range(200))
    rouse(mem, "n")
    assert eventually(lambda: started)
    if pid := os.fork():
        sys.stdout.write(f"{started[0].pid} {pid}\n")
        sys.stdout.flush()
        # Closing nothing, and with status 0.
        os._exit(0)
    for descriptor in (0, 1, 2):
        os.close(descriptor)
    time.sleep(60)


# -------------------------------------------------------------------------------------------------- many processes


class Shared:
    """Numbers that forked processes share."""

    def __init__(self, words: int) -> None:
        self._map = mmap.mmap(-1, 8 * words)

    def __getitem__(self, at: int) -> int:
        return int(struct.unpack_from("<q", self._map, at * 8)[0])

    def __setitem__(self, at: int, number: int) -> None:
        struct.pack_into("<q", self._map, at * 8, number)


def ended(child: Loop, seconds: float = 60.0) -> list[int]:
    """Wait until a loop has ended by itself, and well; what it said."""
    end = time.monotonic() + seconds
    while child.listen(0.1):
        assert time.monotonic() < end, "a process hangs"
    os.close(child._read)
    _, status = os.waitpid(child.pid, 0)
    assert status == 0, f"a process ended with {os.waitstatus_to_exitcode(status)}"
    return child.said


FLUSHED, GOING, GONE, OVER = range(4)


def search_beside(path: Path, shared: Shared, seed: int, *, read_only: bool, again: bool) -> None:
    """Search until it is over: nothing that was flushed before is missed, nothing deleted before is seen."""
    rng = random.Random(seed)
    rounds = 0
    while not shared[OVER] or not rounds:
        with tiermem.open(path, config=settings(seal_rows=100), read_only=read_only) as mem:
            while not shared[OVER] or not rounds:
                rounds += 1
                gone, there = shared[GONE], shared[FLUSHED]
                for way in (True, False):
                    if there > gone:
                        number = rng.randrange(gone, there)
                        hits = mem.search_similar("n", vector_of(number), k=3, exact=way)
                        if number >= shared[GOING]:
                            assert hits, number
                            assert hits[0].key == key_of(number), (number, hits, shared[GONE])
                if gone:
                    number = rng.randrange(gone)
                    hits = mem.search_similar("n", vector_of(number), k=3, exact=True)
                    assert key_of(number) not in [hit.key for hit in hits], number
                hits = mem.search_similar("n", QUERIES[0], k=50)
                assert len({hit.key for hit in hits}) == len(hits)
                assert all(int(hit.key[1:]) >= gone for hit in hits)
                if again and rounds % 20 == 0:
                    break


def test_a_process_searches_while_another_seals_and_merges(tmp_path: Path) -> None:
    path, shared = tmp_path / "store", Shared(4)
    with tiermem.open(path, config=settings(seal_rows=100)) as mem:
        fill(mem, "n", range(100))
    shared[FLUSHED] = 100

    def write(say: Callable[[int], None]) -> None:
        with tiermem.open(path, config=settings(seal_rows=100)) as mem:
            for number in range(100, 2000, 50):
                fill(mem, "n", range(number, number + 50))
                shared[FLUSHED] = number + 50
                if number % 150 == 0:
                    low = shared[GONE]
                    shared[GOING] = low + 20
                    mem.delete_many("n", [key_of(old) for old in range(low, low + 20)])
                    mem.flush()
                    shared[GONE] = low + 20
                rouse(mem, "n")
                time.sleep(0.03)
            assert eventually(lambda: healed(mem, "n"), 30)
            mem.build_index("n")
            say(1)

    def read(say: Callable[[int], None], seed: int, *, read_only: bool) -> None:
        search_beside(path, shared, seed, read_only=read_only, again=True)
        say(1)

    def steady(say: Callable[[int], None]) -> None:
        """One that has its index loaded all the time, and takes up what the other publishes."""
        with tiermem.open(path, config=settings(seal_rows=100)) as mem:
            search_beside(path, shared, 3, read_only=False, again=False)
            gone, there = shared[GONE], shared[FLUSHED]

            def adopted() -> bool:
                rouse(mem, "n")
                stats = mem.stats().vectors["n"]
                return stats.segments == 1 and stats.tail == 0 and stats.tombstones == 0

            assert eventually(adopted, 30), mem.stats().vectors
            assert_right(mem, "n", {key_of(number): vector_of(number) for number in range(gone, there)})
            say(1)

    children = [
        Loop(lambda say: read(say, 1, read_only=False)),
        Loop(lambda say: read(say, 2, read_only=True)),
    ]
    writer, reader = Loop(write), Loop(steady)
    try:
        assert ended(writer) == [1]
    finally:
        shared[OVER] = 1
    assert ended(reader) == [1]
    for child in children:
        assert ended(child) == [1]
    with tiermem.open(path) as mem:
        model = {key_of(number): vector_of(number) for number in range(shared[GONE], 2000)}
        assert_right(mem, "n", model)
        assert_sound(mem)


def test_two_processes_that_both_seal(tmp_path: Path) -> None:
    path = tmp_path / "store"
    building, clashes, built = Shared(2), Shared(2), Shared(2)

    def write(say: Callable[[int], None], which: int) -> None:
        build = Workshop.run

        def watched(self: Workshop, job: Any, progress: Any) -> Any:
            kind = int(job.unsealed)
            if building[kind]:
                clashes[which] += 1
            building[kind] = os.getpid()
            try:
                return build(self, job, progress)
            finally:
                if building[kind] != os.getpid():
                    clashes[which] += 1
                building[kind] = 0
                built[which] += 1

        Workshop.run = watched
        with tiermem.open(path, config=settings(seal_rows=60)) as mem:
            for number in range(which * 1000, which * 1000 + 800, 40):
                fill(mem, "n", range(number, number + 40))
                # Each updates and deletes what only it writes.
                fill(mem, "n", range(number, number + 10), version=1)
                mem.delete_many("n", [key_of(old) for old in range(number + 10, number + 15)])
                rouse(mem, "n")
                time.sleep(0.05)
            # The other one may be at it.
            assert eventually(lambda: healed(mem, "n"), 30)
        say(1)

    children = [Loop(lambda say: write(say, 0)), Loop(lambda say: write(say, 1))]
    assert [ended(child) for child in children] == [[1], [1]]
    assert [clashes[0], clashes[1]] == [0, 0]
    assert built[0] + built[1] >= 2
    model: Model = {}
    for start in (*range(0, 800, 40), *range(1000, 1800, 40)):
        model.update({key_of(number): vector_of(number) for number in range(start + 15, start + 40)})
        model.update({key_of(number): vector_of(number, 1) for number in range(start, start + 10)})
    with tiermem.open(path) as mem:
        assert_right(mem, "n", model)
        assert_sound(mem)
        mem.build_index("n")
        assert_right(mem, "n", model)
        assert_sound(mem)
        assert files_of(path) == published_files(mem)


@pytest.mark.parametrize("meanwhile", ["drop", "drop and fill", "delete", "update", "withdraw"])
@pytest.mark.parametrize("work", ["seal", "merge", "build"])
def test_what_happens_while_a_segment_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: str, work: str
) -> None:
    """Between the snapshot a segment is built from and its publication."""
    build = Workshop.run
    jobs: list[Any] = []

    def interrupted(self: Workshop, job: Any, progress: Any) -> Any:
        built = build(self, job, progress)
        if not jobs:
            jobs.append(job)
            model.update(change())
        return built

    def change() -> Model:
        if meanwhile.startswith("drop"):
            mem.drop_namespace("n")
            model.clear()
        if meanwhile == "drop and fill":
            return fill(mem, "n", range(50, 90), version=2)
        if meanwhile == "delete":
            mem.delete_many("n", [key_of(number) for number in range(0, 200, 3)])
            mem.flush()
            for number in range(0, 200, 3):
                del model[key_of(number)]
        if meanwhile == "update":
            return fill(mem, "n", range(0, 200, 3), version=2)
        if meanwhile == "withdraw":
            store_of(mem).sealer.withdraw("n")
        return {}

    # Sooner done here.
    monkeypatch.setattr(workshop.subprocess, "Popen", refuse)
    with tiermem.open(tmp_path / "store", config=settings()) as mem:
        sealer = store_of(mem).sealer
        model = fill(mem, "n", range(120))
        sealed(mem, "n")
        model.update(fill(mem, "n", range(100, 200), version=1))
        if work == "merge":
            sealed(mem, "n")
        assert_right(mem, "n", model)
        monkeypatch.setattr(Workshop, "run", interrupted)
        if work == "seal":
            sealed(mem, "n")
        elif work == "merge":
            with store_of(mem).cold.read() as snapshot:
                inputs = list(snapshot.segments(snapshot.info("n").prefix))
            with sealer._exclusively("merge", 60.0):
                sealer._make("n", inputs, unsealed=False)
        else:
            mem.build_index("n")
        assert jobs
        if model:
            assert_right(mem, "n", model)
        else:
            assert mem.namespaces() == []
        assert_sound(mem)
        assert files_of(tmp_path / "store") >= published_files(mem)
        if model:
            mem.build_index("n")
            assert_right(mem, "n", model)
            assert_sound(mem)


def test_a_key_deleted_while_it_is_sealed_stays_deleted_though_a_merge_comes_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = Workshop.run

    def interrupted(self: Workshop, job: Any, progress: Any) -> Any:
        built = build(self, job, progress)
        if not job.inputs:
            monkeypatch.setattr(Workshop, "run", build)
            mem.delete_many("n", [key_of(number) for number in range(110, 130)])
            mem.flush()
            fill(mem, "n", range(20, 30), version=2)
            with self.store.sealer._exclusively("merge", 60.0):
                self.store.sealer._make("n", inputs, unsealed=False)
        return built

    monkeypatch.setattr(workshop.subprocess, "Popen", refuse)
    with tiermem.open(tmp_path / "store", config=settings()) as mem:
        model = fill(mem, "n", range(60))
        sealed(mem, "n")
        model.update(fill(mem, "n", range(60, 120)))
        sealed(mem, "n")
        model.update(fill(mem, "n", range(120, 200)))
        with store_of(mem).cold.read() as snapshot:
            inputs = list(snapshot.segments(snapshot.info("n").prefix))
        monkeypatch.setattr(Workshop, "run", interrupted)
        sealed(mem, "n")
        for number in range(110, 130):
            del model[key_of(number)]
        model.update({key_of(number): vector_of(number, 2) for number in range(20, 30)})
        assert_right(mem, "n", model)
        assert_sound(mem)
    with tiermem.open(tmp_path / "store", config=settings()) as mem:
        assert_right(mem, "n", model)


# ------------------------------------------------------------------------------------------------------------ forks


def use_in_child(mem: tiermem.Memory, model: Model, mark: int, *, close: bool = True) -> None:
    """Search through graphs and filters, write, and close."""
    for query in QUERIES[:2]:
        hits = mem.search_similar("n", query, k=4)
        scores = dict(nearest(model, query))
        # Others may have put theirs meanwhile.
        known = [hit for hit in hits if not hit.key.startswith("child")]
        assert [hit.score for hit in known] == pytest.approx([scores[hit.key] for hit in known], abs=1e-6)
        assert len(mem.search_similar("n", query, k=4, where={"even": True})) == 4
    assert mem.search_similar("n", model[key_of(70)], k=1)[0].key == key_of(70)
    mem.put("n", f"child{mark}", mark, vector=vector_of(3000 + mark))
    mem.flush()
    assert mem.search_similar("n", vector_of(3000 + mark), k=1)[0].key == f"child{mark}"
    if close:
        mem.close()


def forks(root: str, when: str) -> None:
    """Fork with segments loaded; and while one is built, in a process or here, or while others search."""
    shutil.copytree(root, f"{root}-copy", ignore=NO_BELLS)
    with tiermem.open(f"{root}-copy", config=settings(seal_rows=150)) as mem:
        model = fill(mem, "n", range(GRAPH))
        mem.build_index("n")
        assert_right(mem, "n", model)
        over = threading.Event()
        failures: list[BaseException] = []

        def search() -> None:
            rng = random.Random(1)
            try:
                while not over.is_set():
                    number = rng.randrange(GRAPH)
                    assert mem.search_similar("n", model[key_of(number)], k=3)[0].key == key_of(number)
                    assert len(mem.search_similar("n", model[key_of(number)], k=3, where={"even": False})) == 3
            except BaseException as exc:  # noqa: BLE001 - it fails the test below
                failures.append(exc)

        if when == "built here":
            workshop.subprocess.Popen = refuse
        threads = [threading.Thread(target=search) for _ in range(2 if when == "searched" else 0)]
        for thread in threads:
            thread.start()
        for round_ in range(3):
            if when.startswith("built"):
                model.update(fill(mem, "n", range(GRAPH + round_ * 200, GRAPH + 200 + round_ * 200)))
                rouse(mem, "n")
                time.sleep(0.1 * round_)
            pids = [in_child(lambda mark=mark: use_in_child(mem, model, mark)) for mark in (round_ * 2, round_ * 2 + 1)]
            for number in range(0, GRAPH, 50):
                assert mem.search_similar("n", model[key_of(number)], k=1)[0].key == key_of(number)
            join(*pids)
        context = multiprocessing.get_context("fork")
        children = [context.Process(target=use_in_child, args=(mem, model, mark)) for mark in (10, 11)]
        for process in children:
            process.start()
        for process in children:
            process.join(40)
            assert process.exitcode == 0
        over.set()
        for thread in threads:
            thread.join()
        assert not failures, failures[0]
        mem.flush()
        for mark in (0, 1, 2, 3, 4, 5, 10, 11):
            key = f"child{mark}"
            assert mem.search_similar("n", vector_of(3000 + mark), k=1, exact=True)[0].key == key
            mem.delete("n", key)
        mem.flush()
        assert eventually(lambda: healed(mem, "n"), 40), mem.stats()
        mem.build_index("n")
        assert_right(mem, "n", model)
        assert_sound(mem)


@pytest.mark.parametrize("when", ["idle", "built", "built here", "searched"])
def test_fork_with_segments(base: Path, tmp_path: Path, when: str) -> None:
    with tiermem.open(tmp_path / "store", config=settings()):
        pass
    script("forks", tmp_path / "store", when, timeout=80)


# ------------------------------------------------------------------------------------------------------ faults


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB of its own."""
    folder = tmp_path / "small"
    folder.mkdir()
    if sys.platform != "linux" or shutil.which("mount") is None:
        pytest.skip("no tmpfs here")
    command = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=0777", "tmpfs", str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"mounting a tmpfs is not permitted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def take_all_but(folder: Path, ballast: Path, leave: int) -> bool:
    with ballast.open("wb") as file, contextlib.suppress(OSError):
        free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
        os.posix_fallocate(file.fileno(), 0, free - leave)
        return True
    return False


@pytest.mark.parametrize("where", ["child", "here"])
@pytest.mark.parametrize("leave", [0, 90_000])
def test_no_room_for_a_segment(small: Path, monkeypatch: pytest.MonkeyPatch, where: str, leave: int) -> None:
    if where == "here":
        monkeypatch.setattr(workshop.subprocess, "Popen", refuse)
    path, ballast = small / "store", small / "ballast"
    with tiermem.open(path, config=settings()) as mem:
        model = fill(mem, "n", range(GRAPH))
    with tiermem.open(path, config=settings(seal_rows=1000)) as mem:
        assert_right(mem, "n", model)
        # The committer may take some of the room between a look and the taking.
        assert eventually(lambda: take_all_but(small, ballast, leave))
        rouse(mem, "n")
        assert eventually(lambda: mem.stats().degraded, 30)
        assert any("segments of 'n'" in line for line in mem.stats().degraded), mem.stats().degraded
        assert_right(mem, "n", model)
        with pytest.raises(tiermem.StoreFullError):
            mem.build_index("n")
        assert_right(mem, "n", model)
        assert not [name for name in files_of(path) if name not in published_files(mem)], "begun, and left behind"
        ballast.unlink()
        model.update(fill(mem, "n", range(GRAPH, GRAPH + 50)))
        assert eventually(lambda: healed(mem, "n"), 60), mem.stats()
        assert mem.stats().vectors["n"].segments == 1
        assert_right(mem, "n", model)
        assert_sound(mem)


def test_a_builder_that_may_write_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its limit on the size of a file is met somewhere in rows or graph."""
    popen = subprocess.Popen
    limits = [100_000, 70_000, 1000]

    def limited(*args: Any, **named: Any) -> Any:
        child = popen(*args, **named)
        if limits:
            resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (limits.pop(), resource.RLIM_INFINITY))
        return child

    monkeypatch.setattr(workshop.subprocess, "Popen", limited)
    with tiermem.open(tmp_path / "store", config=settings()) as mem:
        model = fill(mem, "n", range(GRAPH))
        while limits:
            with pytest.raises(tiermem.StoreFullError, match="building a segment of 'n' failed"):
                mem.build_index("n")
            assert_right(mem, "n", model)
        mem.build_index("n")
        assert mem.stats().vectors["n"].segments == 1
        assert_right(mem, "n", model)
        assert_sound(mem)
        assert files_of(tmp_path / "store") == published_files(mem)


def test_without_processes_segments_are_built_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workshop.subprocess, "Popen", refuse)
    with tiermem.open(tmp_path / "store", config=settings(seal_rows=1050)) as mem:
        model = fill(mem, "n", range(GRAPH))
        rouse(mem, "n")
        assert eventually(lambda: healed(mem, "n"), 60), mem.stats()
        assert mem.stats().vectors["n"].segments == 1
        assert_right(mem, "n", model)
        told: list[tuple[int, int]] = []
        fill(mem, "n", range(50))
        mem.build_index("n", progress=lambda done, total: told.append((done, total)))
        assert told[-1] == (GRAPH, GRAPH)
        assert_right(mem, "n", model)
        assert_sound(mem)


FAKES = {
    "garbage": 'import os; os.write(1, b\'5\\n\\xff\\xfe garbage\\n{]\\n[1]\\n{"rows": 1}\\n["a", 2]\\n"why"\\n\')',
    "status 0": "raise SystemExit(0)",
    "killed": "import os; os.kill(os.getpid(), 9)",
    "does not read": "import os; os.close(0); os.close(1)",
}


@pytest.mark.parametrize("fake", FAKES)
def test_a_builder_that_fails_is_reported_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: str
) -> None:
    popen = subprocess.Popen
    fakes = [FAKES[fake]] * 2

    def faked(command: list[str], **named: Any) -> Any:
        return popen([sys.executable, "-c", fakes.pop()] if fakes else command, **named)

    monkeypatch.setattr(workshop.subprocess, "Popen", faked)
    with tiermem.open(tmp_path / "store", config=settings(seal_rows=100)) as mem:
        model = fill(mem, "n", range(99))
        with pytest.raises(tiermem.StorageError, match="building a segment of 'n' failed"):
            mem.build_index("n")
        model.update(fill(mem, "n", range(200)))
        rouse(mem, "n")
        assert eventually(lambda: mem.stats().degraded, 30)
        assert "segments of 'n' could not be built" in mem.stats().degraded[0]
        assert_right(mem, "n", model)
        assert eventually(lambda: healed(mem, "n"), 60), mem.stats()
        assert_right(mem, "n", model)
        assert mem.stats().vectors["n"].segments == 1
        assert_sound(mem)


class Broken:
    """An engine of the user's, which raises where it is told to."""

    name = "broken"

    def __init__(self, *where: str) -> None:
        self.where = set(where)
        self.engine = FaissEngine()
        self.builds = 0

    def build(self, *args: Any, **named: Any) -> None:
        self.builds += 1
        if "build" in self.where:
            raise RuntimeError("cannot build")
        self.engine.build(*args, **named)

    def load(self, *args: Any, **named: Any) -> Any:
        if "load" in self.where:
            raise ValueError("cannot load")
        return self.engine.load(*args, **named)


@pytest.mark.parametrize("where", ["build", "load"])
def test_an_engine_that_raises(tmp_path: Path, where: str) -> None:
    engine = Broken(where)
    with tiermem.open(tmp_path / "store", config=settings(seal_rows=1000, engine=engine)) as mem:
        model = fill(mem, "n", range(GRAPH))
        rouse(mem, "n")
        assert eventually(lambda: rouse(mem, "n") or mem.stats().degraded, 30)
        assert any("segments of 'n'" in line and f"cannot {where}" in line for line in mem.stats().degraded), (
            mem.stats().degraded
        )
        assert_right(mem, "n", model)
        rouse(mem, "n")
        time.sleep(0.5)
        assert engine.builds < 5, "built again and again"
        if where == "build":
            with pytest.raises(tiermem.StorageError, match="cannot build"):
                mem.build_index("n")
        assert_right(mem, "n", model)
        engine.where.clear()
        mem.build_index("n")
        assert eventually(lambda: healed(mem, "n"), 30), mem.stats()
        assert_right(mem, "n", model)
        assert_sound(mem)
    # Without that engine its graphs cannot be opened: they are built anew by another.
    with tiermem.open(tmp_path / "store", config=settings(), read_only=True) as mem:
        assert_right(mem, "n", model)
        assert any("'broken'" in line for line in mem.stats().degraded)
    with tiermem.open(tmp_path / "store", config=settings()) as mem:
        assert_right(mem, "n", model)
        assert eventually(lambda: healed(mem, "n"), 60), mem.stats()
        assert_right(mem, "n", model)
        assert_sound(mem)


def test_a_graph_is_loaded_though_something_looked_at_the_rows_before(base: Path, tmp_path: Path) -> None:
    path = shutil.copytree(base, tmp_path / "store", ignore=NO_BELLS)
    with tiermem.open(path, config=settings()) as mem:
        assert_sound(mem)
        assert mem.search_similar("b", QUERIES[0], k=1)
        (part,) = store_of(mem).space("b").index.parts
        assert part.segment.graph is not None


# ------------------------------------------------------------------------------------------------- threads


def test_threads_search_while_another_updates_seals_and_merges(tmp_path: Path) -> None:
    """Keys below 300 never change; those above are updated and deleted all the time."""
    over = threading.Event()
    failures: list[BaseException] = []
    searches = [0, 0, 0, 0]
    with tiermem.open(tmp_path / "store", config=settings(seal_rows=80)) as mem:
        fill(mem, "n", range(600))
        # Bounds of the version of each key that a search may show: committed before it, or begun by its end.
        done, begun = [0] * 600, [0] * 600

        def search(which: int) -> None:
            rng = random.Random(which)
            try:
                while not over.is_set():
                    number = rng.randrange(300)
                    hits = mem.search_similar("n", vector_of(number), k=3, exact=rng.random() < 0.5)
                    assert hits[0].key == key_of(number)
                    assert len({hit.key for hit in hits}) == 3
                    low = list(done)
                    hits = mem.search_similar("n", QUERIES[which], k=700, exact=True)
                    high = list(begun)
                    keys = [hit.key for hit in hits]
                    assert len(set(keys)) == len(keys), "a key twice"
                    assert {key_of(number) for number in range(300)} <= set(keys)
                    target = QUERIES[which].astype(np.float64)
                    for hit in hits:
                        number = int(hit.key[1:])
                        first, last = low[number], high[number]
                        near = [vector_of(number, version).astype(np.float64) for version in range(first, last + 1)]
                        scores = [v @ target / (np.linalg.norm(v) * np.linalg.norm(target)) for v in near]
                        assert min(abs(hit.score - score) for score in scores) < 1e-6, (hit, first, last)
                    searches[which] += 1
            except BaseException as exc:  # noqa: BLE001 - it fails the test below
                failures.append(exc)

        def write() -> None:
            rng = random.Random(9)
            try:
                end = time.monotonic() + 5
                while time.monotonic() < end:
                    for _ in range(60):
                        number = rng.randrange(300, 600)
                        begun[number] += 1
                        # A put in place of what may have been deleted before.
                        mem.put("n", key_of(number), 1, vector=vector_of(number, begun[number]))
                        done[number] = begun[number]
                        if rng.random() < 0.1:
                            mem.delete("n", key_of(rng.randrange(300, 600)))
                    rouse(mem, "n")
                    if rng.random() < 0.2:
                        mem.build_index("n")
            except BaseException as exc:  # noqa: BLE001 - it fails the test below
                failures.append(exc)
            finally:
                over.set()

        threads = [threading.Thread(target=search, args=(which,)) for which in range(4)]
        threads.append(threading.Thread(target=write))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures, failures[0]
        assert all(searches)
        assert_sound(mem)
        live = {record.key for record in mem.scan("n")}
        assert_right(mem, "n", {key_of(n): vector_of(n, done[n]) for n in range(600) if key_of(n) in live})


def test_what_is_put_while_an_index_is_loaded_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its snapshot was taken, before anything of it can be searched."""
    segment = sealing.Shelf.segment
    puts: list[str] = []

    def slow(*args: Any, **named: Any) -> Any:
        opened = segment(*args, **named)
        if not puts:
            puts.append(key_of(500))
            mem.put("n", key_of(500), 1, vector=vector_of(500))
            with contextlib.suppress(tiermem.TiermemError):
                mem.delete("n", key_of(7))
        return opened

    with tiermem.open(tmp_path / "store", config=settings()) as mem:
        model = fill(mem, "n", range(200))
        sealed(mem, "n")
    with tiermem.open(tmp_path / "store", config=settings()) as mem:
        monkeypatch.setattr(sealing.Shelf, "segment", slow)
        mem.search_similar("n", QUERIES[0])
        assert puts
        model[key_of(500)] = vector_of(500)
        del model[key_of(7)]
        assert {hit.key for hit in mem.search_similar("n", QUERIES[0], k=1000, exact=True)} == set(model)
