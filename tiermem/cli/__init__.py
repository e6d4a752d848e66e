"""The command line: look into a store, change it, move it.

Importing this room imports nothing that only a command needs: rich, numpy and the demo come with the
command that asks for them.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Sequence

from tiermem.cli.outcome import BROKEN_PIPE, INTERRUPTED, MISTAKE, BadUsage, complain
from tiermem.cli.parser import make_parser
from tiermem.errors import TiermemError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run `tiermem` with `argv` (None: those of the process); the exit code.

    0: done. 1: a finding, or nothing found. 2: a mistake, told in one line on stderr.
    130: interrupted. 141: whoever read the output went away.
    """
    try:
        options = make_parser().parse_args(argv)
    except SystemExit as exc:
        # argparse has said what there was to say: help, the version, or what it did not understand.
        return exc.code if isinstance(exc.code, int) else MISTAKE
    try:
        code = _run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        _silence_stdout()
        return BROKEN_PIPE
    return code


def _run(options: Namespace) -> int:
    try:
        code = options.run(options)
    except KeyboardInterrupt:
        if options.debug:
            raise
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except (TiermemError, BadUsage, OSError) as exc:
        if options.debug:
            raise
        complain(options, str(exc) or type(exc).__name__)
        return MISTAKE
    return int(code)


def _silence_stdout() -> None:
    """What is still buffered has no reader: let the flush at exit go nowhere instead of failing."""
    try:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)
    except (OSError, ValueError):
        # A stdout that is no file has nothing that could be flushed into a pipe.
        return
