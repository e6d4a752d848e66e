"""Children: forked processes that say what they do over a socket, and are killed, traced or waited for."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, Final

Message = dict[str, Any]

DEADLINE: Final = 60.0
"""Seconds without a word after which a child counts as hung."""
GLANCE: Final = 0.1
"""Seconds between two looks at a child that says nothing."""


class Patience:
    """Seconds to wait, counted in looks: while the whole machine pauses, or whoever waits is stopped, none pass.

    By the clock a child that was stopped together with its parent would count as hung as soon as both go on.
    """

    def __init__(self, seconds: float) -> None:
        self._left = seconds
        self._looked = time.monotonic()

    def left(self) -> float:
        """Seconds left, 0 if none are; since the last look no more than two glances have passed."""
        now = time.monotonic()
        self._left -= min(now - self._looked, 2 * GLANCE)
        self._looked = now
        return max(0.0, self._left)


class Link:
    """The child's end: what it says is known to the parent even if it is killed right afterwards.

    It sends on a socket, so that none of the calls that are counted or made to fail is the harness's own.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._rest = b""

    def say(self, **message: Any) -> None:
        """Tell the parent."""
        self._sock.sendall(json.dumps(message).encode() + b"\n")

    def hear(self, seconds: float | None = None) -> str | None:
        """The next word of the parent, waited for; None if none comes in time. It exits if the parent is gone."""
        while b"\n" not in self._rest:
            if not select.select([self._sock], [], [], seconds)[0]:
                return None
            data = self._sock.recv(1 << 16)
            if not data:
                os._exit(0)
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()


class Child:
    """A forked process that runs `body(link)` once `start` was called, in a session of its own."""

    def __init__(self, body: Callable[[Link], None]) -> None:
        self._sock, other = socket.socketpair()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._sock.close()
            self._run(body, other)
        other.close()
        self.messages: list[Message] = []
        self.status: int | None = None
        self._rest = b""

    @staticmethod
    def _run(body: Callable[[Link], None], sock: socket.socket) -> None:
        link = Link(sock)
        status = 1
        try:
            os.setsid()
            # What the parent is in the middle of is not for this process to clean up.
            gc.freeze()
            faulthandler.enable(2)
            if link.hear() == "start":
                body(link)
                link.say(done=True)
                # Until whoever traces this process has let go of it: leaving is not part of what is tested.
                link.hear()
            status = 0
        except BaseException:  # noqa: BLE001 - the child ends here, and says what it ended of
            link.say(error=traceback.format_exc())
        finally:
            os._exit(status)

    def tell(self, word: str) -> None:
        """Say a word to the child, if it is still there."""
        with contextlib.suppress(OSError):
            self._sock.sendall(word.encode() + b"\n")

    def start(self) -> None:
        """Let it run."""
        self.tell("start")

    def listen(self, seconds: float) -> bool:
        """Collect what the child says for so long; False once it has ended or is done."""
        patience = Patience(seconds)
        while self.status is None and not (self.messages and self.messages[-1].get("done")):
            left = patience.left()
            if select.select([self._sock], [], [], min(left, GLANCE))[0] and self._receive():
                continue
            # Processes of its own may still hold the socket.
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
                while select.select([self._sock], [], [], 0)[0] and self._receive():
                    pass
                return False
            if not left:
                return True
        return False

    def _receive(self) -> bool:
        with contextlib.suppress(ConnectionError):
            data = self._sock.recv(1 << 20)
            *lines, self._rest = (self._rest + data).split(b"\n")
            self.messages.extend(json.loads(line) for line in lines)
            return bool(data)
        return False

    def finish(self) -> bool:
        """Listen until the child is done or has ended; False if it hangs."""
        heard = -1
        while heard < len(self.messages):
            heard = len(self.messages)
            if not self.listen(DEADLINE):
                return True
        return False

    def answer(self, word: str) -> Message | None:
        """What the child answers to a word; None if it ends or hangs instead."""
        before = len(self.messages)
        self.tell(word)
        patience = Patience(DEADLINE)
        while len(self.messages) == before and patience.left() and self.listen(0.02):
            pass
        return self.messages[before] if len(self.messages) > before else None

    def leave(self) -> int:
        """Let a child that is done exit, or kill one that hangs after it showed where; its exit code."""
        self.tell("leave")
        if self.status is None and not self._wait(DEADLINE):
            self.signal(signal.SIGABRT)
            self._wait(1.0)
        return self.kill()

    def _wait(self, seconds: float) -> bool:
        patience = Patience(seconds)
        while patience.left():
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
                return True
            time.sleep(0.001)
        return False

    def signal(self, number: int) -> None:
        """Send a signal to the process, unless it has ended."""
        if self.status is None:
            os.kill(self.pid, number)

    def kill(self) -> int:
        """SIGKILL to it and to what it has started, as far as that is still there; its exit code."""
        if self._sock.fileno() < 0 and self.status is not None:
            return self.status
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        if self.status is None:
            self.signal(signal.SIGKILL)
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        while select.select([self._sock], [], [], 0)[0] and self._receive():
            pass
        self._sock.close()
        return self.status
