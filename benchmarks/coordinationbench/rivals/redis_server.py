"""Redis on loopback: a server started for the measurement, which keeps nothing on disk and is ended by its id."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from coordinationbench.channel import Channel, Receive, Send

KEY = "bench:fills"
PATIENCE = 10.0
"""Seconds the server has to come up."""


class PubSub(Channel):
    """`PUBLISH` and `SUBSCRIBE`: who is not there hears nothing, and nothing is kept."""

    name = "Redis pub/sub"
    promise = "in the server's memory until sent; lost to who is not connected"
    distribution = "redis"

    @classmethod
    def absent(cls) -> str | None:
        return super().absent() or (None if shutil.which("redis-server") else "redis-server is not on the path")

    @contextmanager
    def served(self, root: Path) -> Iterator[Any]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        told = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no", "--dir", str(root)]
        server = subprocess.Popen(["redis-server", *told], stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + PATIENCE
            while not _answers(port):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("redis-server did not come up")
                time.sleep(0.05)
            yield port
        finally:
            server.terminate()
            server.wait()

    @contextmanager
    def sending(self, address: Any) -> Iterator[Send]:
        import redis

        with redis.Redis("127.0.0.1", address) as client:
            encode = msgspec.msgpack.encode
            yield lambda message: client.publish(KEY, encode(message))

    @contextmanager
    def receiving(self, address: Any) -> Iterator[Receive]:
        import redis

        with redis.Redis("127.0.0.1", address) as client, client.pubsub(ignore_subscribe_messages=True) as pubsub:
            pubsub.subscribe(KEY)
            while pubsub.get_message(timeout=0.1) is None and not pubsub.subscribed:
                pass
            decode = msgspec.msgpack.decode

            def receive(timeout: float) -> list[dict[str, Any]]:
                found = pubsub.get_message(timeout=timeout)
                return [] if found is None else [decode(found["data"])]

            yield receive


class Stream(PubSub):
    """`XADD` and `XREAD`: a log in the server's memory, read from a position of the reader's own."""

    name = "Redis stream"
    promise = "in the server's memory"

    @contextmanager
    def sending(self, address: Any) -> Iterator[Send]:
        import redis

        with redis.Redis("127.0.0.1", address) as client:
            encode = msgspec.msgpack.encode
            yield lambda message: client.xadd(KEY, {"m": encode(message)})

    @contextmanager
    def receiving(self, address: Any) -> Iterator[Receive]:
        import redis

        with redis.Redis("127.0.0.1", address) as client:
            decode = msgspec.msgpack.decode
            position: Any = b"0"

            def receive(timeout: float) -> list[dict[str, Any]]:
                nonlocal position
                found = client.xread({KEY: position}, count=1024, block=int(timeout * 1000) if timeout else None)
                if not found:
                    return []
                rows = next(iter(found.values()))[0] if isinstance(found, dict) else found[0][1]
                position = rows[-1][0]
                return [decode(fields[b"m"]) for _, fields in rows]

            yield receive


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return True
    except OSError:
        return False
