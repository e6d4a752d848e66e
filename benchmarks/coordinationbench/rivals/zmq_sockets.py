"""pyzmq: PUSH and PULL over a Unix socket, each with an I/O thread outside the interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from coordinationbench.channel import Channel, Receive, Send


class ZmqSockets(Channel):
    """Two sockets, nothing between them."""

    name = "pyzmq PUSH/PULL"
    promise = "in memory"
    distribution = "pyzmq"

    @contextmanager
    def served(self, root: Path) -> Iterator[Any]:
        yield f"ipc://{root}/zmq"

    @contextmanager
    def sending(self, address: Any) -> Iterator[Send]:
        import zmq

        with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
            socket.connect(address)
            encode = msgspec.msgpack.encode
            yield lambda message: socket.send(encode(message))

    @contextmanager
    def receiving(self, address: Any) -> Iterator[Receive]:
        import zmq

        with zmq.Context() as context, context.socket(zmq.PULL) as socket:
            socket.bind(address)
            decode = msgspec.msgpack.decode

            def receive(timeout: float) -> list[dict[str, Any]]:
                try:
                    return [decode(socket.recv(zmq.NOBLOCK))]
                except zmq.Again:
                    return [decode(socket.recv())] if timeout and socket.poll(timeout * 1000) else []

            yield receive
