"""Walking every page of a data file, in this process or in a child of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from lmdb import verify as lmdb_verify

from tiermem.tiers.cold.pages import PageFile

_CODE: Final = """
import sys
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("verify", sys.argv[1])
verify = module_from_spec(spec)
spec.loader.exec_module(verify)
try:
    found = [str(problem) for problem in verify.verify(sys.argv[2])]
except (verify.VerifyError, OSError) as exc:
    found = [str(exc)]
print("\\n".join(found), end="")
sys.exit(1 if found else 0)
"""


def walk(path: Path) -> list[str]:
    """What is wrong with the pages of the environment in `path`; reads the file, never maps it.

    Nobody may be writing to it meanwhile.
    """
    try:
        return [str(problem) for problem in lmdb_verify.verify(str(path))]  # type: ignore[no-untyped-call]  # py-lmdb has no types there
    except (lmdb_verify.VerifyError, OSError) as exc:
        return [str(exc)]


def walk_apart(path: Path) -> list[str]:
    """`walk` in a child process that loads nothing else; in this one where no process may be started."""
    import subprocess

    command = [sys.executable, "-I", "-S", "-c", _CODE, str(lmdb_verify.__file__), str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)  # noqa: S603 - this interpreter, fixed code, the path as an argument
    except OSError:
        return walk(path)
    if done.returncode in (0, 1) and not done.stderr:
        return done.stdout.splitlines()
    return [f"the walk ended with {done.returncode}: {done.stderr.strip()[-2000:]}"]


def newest_commit(path: Path) -> tuple[int, int]:
    """(transaction of the newest commit as the meta pages tell it, bytes of the file); (0, 0) if there is no file."""
    try:
        with PageFile(path) as file:
            return max((meta.txn for meta in file.metas), default=0), file.size
    except FileNotFoundError:
        return 0, 0
