"""What an import costs: nothing is started, opened or loaded before it is needed."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_an_import_and_a_session_without_vectors_load_neither_numpy_nor_faiss(run_python: Run) -> None:
    done = run_python(
        """
        import sys
        before = set(sys.modules)  # a measuring interpreter has loaded this and that
        import tiermem

        def heavy():
            names = {"numpy", "faiss", "asyncio", "rich", "multiprocessing", "ctypes"}
            names |= {"tiermem.reports", "tiermem.policy.filters", "tiermem.trajectory"}
            return sorted(names & sys.modules.keys() - before)

        print("import", heavy())
        with tiermem.open("store", embedder=None) as mem:
            mem.put("a", "k", {"px": 1.5}, metadata={"side": "buy"}, ttl=60.0)
            assert mem.get("a", "k") == {"px": 1.5}
            with mem.batch() as batch:
                batch.put("a", "b", [1, 2])
            mem.append("s", 1)
            assert len(mem.latest("s")) == 1
            assert mem.count("a", where={"side": "buy"}) == 1
            assert len(list(mem.scan("a"))) == 2
            mem.namespace("a")["c"] = 1
            mem.delete("a", "k")
            list(mem.changes(0))
            str(mem.stats())
        print("session", heavy())
        with tiermem.open("store") as mem:
            mem.put("v", "k", 1, vector=[1.0, 2.0])
        print("vector", "numpy" in sys.modules, "faiss" in sys.modules)
        """
    )
    assert done.stdout.splitlines() == [
        "import []",
        "session ['tiermem.policy.filters', 'tiermem.reports']",
        "vector True False",
    ]


def test_an_import_starts_no_thread_and_opens_no_file(run_python: Run) -> None:
    done = run_python(
        """
        import os, sys, threading
        sys.dont_write_bytecode = True
        seen, roots = [], (sys.prefix, sys.base_prefix)
        watching = True

        def watch(event, args):
            if not watching:
                return
            if event == "open" and isinstance(args[0], str) and not args[0].endswith((".py", ".pyc", ".so", ".pth")):
                if not os.path.isdir(args[0]):
                    seen.append(args[0])
            if event in ("os.putenv", "socket.connect", "subprocess.Popen", "os.fork", "os.mkdir"):
                seen.append(event)

        sys.addaudithook(watch)
        environment = dict(os.environ)
        descriptors = len(os.listdir("/proc/self/fd"))
        import tiermem
        watching = False
        assert len(os.listdir("/proc/self/fd")) == descriptors
        assert threading.active_count() == 1
        assert dict(os.environ) == environment
        assert os.listdir(".") == []
        # Metadata of installed packages and time zones of the system are no business of ours.
        print([name for name in seen if "dist-info" not in name and not name.startswith(("/proc", "/etc", "/sys"))])
        """
    )
    assert done.stdout.split() == ["[]"]


def test_the_environment_is_not_read(run_python: Run) -> None:
    done = run_python(
        """
        import os
        asked = []

        class Watched(dict):
            def _look(self, key):
                asked.append(key)

            def get(self, key, default=None):
                self._look(key)
                return dict.get(self, key, default)

            def __getitem__(self, key):
                self._look(key)
                return dict.__getitem__(self, key)

            def __contains__(self, key):
                self._look(key)
                return dict.__contains__(self, key)

        import lmdb, msgspec, zstandard, xxhash, subprocess, tempfile  # they may read what they like
        real = os.environ
        os.environ = Watched(real)
        import tiermem
        with tiermem.open("store") as mem:
            mem.put("a", "k", 1)
        os.environ = real
        print(asked)
        """
    )
    assert done.stdout.strip() == "[]"


def test_a_process_that_forgets_to_close_ends_and_loses_nothing(run_python: Run) -> None:
    run_python(
        """
        import tiermem
        mem = tiermem.open("store", config=tiermem.Config(cold=tiermem.ColdConfig(committer="thread")))
        other = tiermem.open("other", config=tiermem.Config(cold=tiermem.ColdConfig(committer="inline")))
        for number in range(100):
            mem.put("a", f"k{number}", number)
            other.put("a", f"k{number}", number)
        """
    )
    done = run_python(
        """
        import os
        import tiermem
        for name in ("store", "other"):
            with tiermem.open(name) as mem:
                print(mem.count("a"), mem.stats().writes.committed, mem.check().ok)
        """
    )
    assert done.stdout.splitlines() == ["100 0 True", "100 0 True"], "the end of the process commits what is pending"
