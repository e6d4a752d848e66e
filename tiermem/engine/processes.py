"""Interpreters of our own: the builder of segments and the helper that commits."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from contextlib import ExitStack, suppress
from typing import Final

from tiermem.engine.forking import unforked

_DEFAULT: Final = [number for number in (getattr(signal, name, None) for name in ("SIGPIPE", "SIGXFSZ")) if number]
"""Signals that an interpreter ignores, and whoever it starts would too."""


def interpreter(module: str, *arguments: str) -> tuple[list[str], dict[str, str]] | None:
    """Command and environment that run a module in an interpreter of its own; None where none may be started."""
    if not sys.executable:
        return None
    # Modules are found where they are found here, and never in the working directory by chance.
    places = os.pathsep.join(os.path.abspath(place) for place in sys.path)
    return [sys.executable, "-P", "-m", module, *arguments], {**os.environ, "PYTHONPATH": places}


class Child:
    """A process started here: what it is told, then what it says.

    `subprocess` gives the interpreter away dozens of times until a process has been started. A thread beside one that
    never waits gets it back 5 ms later each time; here it does a few times.
    """

    def __init__(self, module: str, orders: bytes, log: int) -> None:
        """Run `module`, with `orders` on its standard input and `log` as its standard error.

        Raises:
            OSError: no process may be started here.
        """
        known = interpreter(module)
        if known is None:
            raise OSError("no process may be started here")
        command, environment = known
        # Until it is started: a child forked by another thread would hold the pipes open.
        with unforked, ExitStack() as theirs, ExitStack() as ours:
            told, tell = os.pipe()
            theirs.callback(os.close, told)
            ours.callback(os.close, tell)
            said, say = os.pipe()
            theirs.callback(os.close, say)
            ours.callback(os.close, said)
            streams = []
            for fd in (told, say, log):
                # Above the three, or one would take another's place.
                streams.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3))
                theirs.callback(os.close, streams[-1])
            moves = [(os.POSIX_SPAWN_DUP2, fd, to) for to, fd in enumerate(streams)]
            self.pid = os.posix_spawn(command[0], command, environment, file_actions=moves, setsigdef=_DEFAULT)
            ours.pop_all()
        os.set_blocking(said, False)
        self._said = said
        # It may have ended before it has read them: what it left behind says why.
        with suppress(BrokenPipeError):
            os.write(tell, orders)
        os.close(tell)

    def heard(self) -> bytes | None:
        """What it has said since; nothing if it never will again, None if it may."""
        try:
            return os.read(self._said, 4096)
        except BlockingIOError:
            return None

    def end(self) -> None:
        """End it, unless it has ended, and leave nothing of it behind."""
        os.close(self._said)
        # Where SIGCHLD is ignored, nothing is left to wait for.
        with suppress(ProcessLookupError, ChildProcessError):
            if not os.waitpid(self.pid, os.WNOHANG)[0]:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)


def drop_inherited() -> None:
    """Close what whoever started this interpreter left open for it, but for the three streams."""
    # What was opened here is closed in whatever is run from here. Some systems do not tell what is open.
    with suppress(FileNotFoundError):
        for name in os.listdir("/dev/fd"):
            with suppress(OSError):
                if (fd := int(name)) > 2 and os.get_inheritable(fd):
                    os.close(fd)
