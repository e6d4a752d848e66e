"""Processes of our own: the builder of segments and the helper that commits."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import IO

from tiermem.engine.forking import unforked


def start(module: str, *arguments: str, errors: IO[bytes] | None = None) -> subprocess.Popen[bytes] | None:
    """Run a module in an interpreter of its own, pipes at its input and output; None where none may be started."""
    if not sys.executable:
        return None
    # Modules are found where they are found here, and never in the working directory by chance.
    command = [sys.executable, "-P", "-m", module, *arguments]
    known = {**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(place) for place in sys.path)}
    try:
        with unforked:
            return subprocess.Popen(  # noqa: S603 - this interpreter, a module of ours
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=known
            )
    except OSError:
        return None
