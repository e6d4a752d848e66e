"""Runs measurements in fresh processes, one after the other, subjects taking turns."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID

from vectorbench.confined import confined
from vectorbench.data import DataSet, prepare
from vectorbench.subject import SUBJECTS, subject

PARTS = ("search", "filters", "churn", "ingest", "cold")
SCRIPT = Path(__file__).resolve().parent.parent / "vectors.py"
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
READING = ("search", "filters", "cold", "confined")
"""Phases in which numerical libraries have one thread; the others have what they take by themselves."""
COLD_STARTS = 3
LARGE = 100_000
"""Rows beyond which some subjects are left out: building takes them an hour, or more memory than there is."""
CONFINED = 2**30
"""Bytes of memory that a store is searched in."""
DISTRIBUTIONS = {"faiss": "faiss-cpu"}


class ChildFailed(RuntimeError):
    """A measurement ended without a result; the message is the end of what it printed."""


@dataclass(frozen=True)
class Options:
    """What the command line asked for; `limit` bounds a series of searches in seconds."""

    sizes: list[int]
    data: list[str]
    subjects: list[str]
    large: list[str]
    parts: list[str]
    turns: int
    seconds: float
    write_limit: int
    limit: float
    work: Path
    keep: bool

    def names(self) -> list[str]:
        """Of the data sets, the small ones first."""
        known = {"synthetic": [f"synthetic-{size}" for size in sorted(set(self.sizes))]}
        return [name for kind in self.data for name in known.get(kind, [kind])]

    def written(self) -> str | None:
        """The data set of the parts that write: the largest synthetic one that is not too large."""
        sizes = [size for size in self.sizes if size <= self.write_limit]
        return f"synthetic-{max(sizes)}" if sizes and "synthetic" in self.data else None


def installed(name: str) -> str | None:
    """The version of a subject, None if it is not there."""
    try:
        return version(DISTRIBUTIONS.get(name, name))
    except PackageNotFoundError:
        return None


def call(spec: dict[str, Any], log: Path, step: Callable[[str], object]) -> Any:
    """The result of one measurement.

    Raises:
        ChildFailed
    """
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "ANONYMIZED_TELEMETRY": "False"}
    if spec["phase"] in READING:
        environment |= dict.fromkeys(ONE_THREAD, "1")
    reading, writing = os.pipe()
    result: Any = None
    done = False
    with log.open("wb") as printed:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), "--child", str(writing)],
            stdin=subprocess.PIPE,
            stdout=printed,
            stderr=subprocess.STDOUT,
            pass_fds=(writing,),
            env=environment,
            cwd=log.parent,
        )
        os.close(writing)
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(spec).encode())
            process.stdin.close()
            with os.fdopen(reading, encoding="utf-8") as messages:
                for line in messages:
                    message = json.loads(line)
                    if "step" in message:
                        step(message["step"])
                    else:
                        result, done = message["result"], True
        except BaseException:
            process.kill()
            raise
        finally:
            code = process.wait()
    if not done or code:
        tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-12:]
        raise ChildFailed(f"ended with {code}: " + "\n".join(tail))
    return result


@dataclass
class Run:
    """All measurements of one call of the script, collected in `found`."""

    options: Options
    console: Console
    progress: Progress
    save: Callable[[dict[str, Any]], object]
    found: dict[str, Any] = field(default_factory=dict)
    task: TaskID | None = None

    def note(self, kind: str, text: str) -> None:
        """Say that something is left out, or failed."""
        self.found[kind].append(text)
        self.console.print(f"{kind}: {text}", markup=False, highlight=False)

    def everything(self) -> dict[str, Any]:
        """Measure what was asked for."""
        options = self.options
        self.found |= {"skipped": [], "failures": [], "datasets": {}}
        self.found |= {part: {} for part in ("builds", "searches", "filters", "churn", "ingest", "cold", "confined")}
        subjects = []
        for name in options.subjects:
            if installed(name) is None:
                self.note("skipped", f"{name} is not installed")
            else:
                subjects.append(name)
        options.work.mkdir(parents=True, exist_ok=True)
        for name in options.names():
            try:
                data = self.prepared(name)
            except FileNotFoundError as exc:
                self.note("skipped", f"{name}: {exc}")
                continue
            self.found["datasets"][name] = {"rows": data.rows}
            large = data.rows > LARGE
            self.reading(data, [name for name in subjects if not large or name in options.large])
            if name == options.written() and "tiermem" in subjects:
                self.writing(data)
            self.save(self.found)
        return self.found

    def prepared(self, name: str) -> DataSet:
        """The data set, made in this process."""
        task = self.progress.add_task(name, total=None)
        data = prepare(name, self.options.work, lambda text: self.show(task, f"{name}: {text}"))
        # Whatever builds from it later finds it in the page cache.
        assert data.base[:: max(1, data.rows // 1000)].any()
        self.progress.update(task, description=name, total=1, completed=1, refresh=True)
        return data

    def show(self, task: TaskID, text: str) -> None:
        """A word beside the bar of a task."""
        self.progress.update(task, description=text, refresh=True)

    def one(self, task: TaskID, spec: dict[str, Any], last: bool = True) -> Any:
        """One measurement, or None where it failed; `last` of its step."""
        title = f"{spec['data']}: {spec['phase']} {spec['subject']}"
        self.show(task, title)
        try:
            return call(spec, self.options.work / "child.log", lambda text: self.show(task, f"{title}: {text}"))
        except ChildFailed as exc:
            self.note("failures", f"{title} {exc}")
            return None
        finally:
            self.progress.update(task, advance=int(last), refresh=True)

    def reading(self, data: DataSet, subjects: list[str]) -> None:
        """Build every subject's store, then search them in turns."""
        options, found = self.options, self.found
        stores = options.work / "stores" / data.name
        common = {"data": data.name, "folder": str(data.folder), "limit": options.limit}

        def spec(phase: str, name: str, **more: Any) -> dict[str, Any]:
            return common | {"phase": phase, "subject": name, "store": str(stores / name)} | more

        filtered = [name for name in subjects if subject_filters(name)] if "filters" in options.parts else []
        searched = subjects if "search" in options.parts else []
        cold = [name for name in ("tiermem",) if name in subjects and "cold" in options.parts]
        wanted = [name for name in subjects if name in {*filtered, *searched, *cold}]
        if not wanted:
            return
        total = len(wanted) + len(searched) * options.turns + len(filtered) + len(cold) * (COLD_STARTS + 2)
        task = self.progress.add_task(data.name, total=total)
        builds = found["builds"].setdefault(data.name, {})
        for name in wanted:
            result = self.built(task, spec("build", name), stores / name)
            if result is not None:
                builds[name] = result
            self.save(found)
        for _ in range(options.turns):
            for name in searched:
                if name in builds and (result := self.turn(task, spec("search", name))):
                    found["searches"].setdefault(data.name, {}).setdefault(name, []).append(result)
                    self.save(found)
        for name in filtered:
            if name in builds and (result := self.one(task, spec("filters", name))):
                found["filters"].setdefault(data.name, {})[name] = result
        for name in cold:
            if name in builds:
                found["cold"][data.name] = list(self.starts(task, spec, name))
                self.confine(task, spec("confined", name))
        self.progress.update(task, description=data.name, completed=total, refresh=True)
        if not options.keep:
            shutil.rmtree(stores, ignore_errors=True)

    def turn(self, task: TaskID, spec: dict[str, Any]) -> Any:
        """One turn of searches: a process, or one for each effort where it cannot be changed."""
        engine = subject(spec["subject"])
        if not engine.fixed_effort:
            return self.one(task, spec)
        efforts = engine.efforts()
        results = [self.one(task, spec | {"efforts": [effort]}, last=effort == efforts[-1]) for effort in efforts]
        known = [result for result in results if result is not None]
        if len(known) < len(efforts):
            return None
        # Memory is that of the default, which comes first.
        return known[0] | {"points": [point for result in known for point in result["points"]]}

    def built(self, task: TaskID, spec: dict[str, Any], store: Path) -> Any:
        """What building took, now or, where stores are kept, then."""
        stamp = store.with_suffix(".json")
        if self.options.keep and stamp.exists():
            self.progress.update(task, advance=1, refresh=True)
            return json.loads(stamp.read_text()) | {"reused": True}
        stamp.unlink(missing_ok=True)
        shutil.rmtree(store, ignore_errors=True)
        result = self.one(task, spec)
        if result is not None and self.options.keep:
            stamp.write_text(json.dumps(result))
        return result

    def starts(self, task: TaskID, spec: Callable[..., dict[str, Any]], name: str) -> Iterator[Any]:
        """Cold starts: the first with the store out of the page cache, the last with many searches."""
        for number in range(COLD_STARTS + 1):
            evict, many = number == 0, number == COLD_STARTS
            result = self.one(task, spec("cold", name, evict=evict, many=many))
            if result is not None:
                yield result | {"evicted": evict}

    def confine(self, task: TaskID, spec: dict[str, Any]) -> None:
        """Search in little memory, where the machine can grant so little."""
        try:
            with confined(CONFINED) as group:
                result = self.one(task, spec | {"group": str(group), "bytes": CONFINED})
        except OSError as exc:
            self.note("skipped", f"searches in {CONFINED >> 20} MiB: {exc}")
            return
        if result is not None:
            self.found["confined"][spec["data"]] = result

    def writing(self, data: DataSet) -> None:
        """The parts that write, each in a directory of its own."""
        options = self.options
        parts = [part for part in ("churn", "ingest") if part in options.parts]
        task = self.progress.add_task("writing", total=len(parts))
        for part in parts:
            store = options.work / "stores" / part
            shutil.rmtree(store, ignore_errors=True)
            store.mkdir(parents=True)
            spec = {"phase": part, "subject": "tiermem", "data": data.name, "folder": str(data.folder)}
            result = self.one(task, spec | {"store": str(store), "seconds": options.seconds, "limit": options.limit})
            if result is not None:
                self.found[part][data.name] = result
            shutil.rmtree(store, ignore_errors=True)
        self.progress.update(task, description="writing", refresh=True)


def subject_filters(name: str) -> bool:
    """Whether a subject is asked filtered questions."""
    return subject(name).filters


def known_subjects() -> list[str]:
    """All of them, ours first."""
    return list(SUBJECTS)
