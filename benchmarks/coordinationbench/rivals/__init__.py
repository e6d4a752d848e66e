"""Rivals, one a file; none of their libraries is imported before it is measured."""

from __future__ import annotations

from coordinationbench.channel import Channel
from coordinationbench.rivals.mp_queue import MpQueue
from coordinationbench.rivals.redis_server import PubSub, Stream
from coordinationbench.rivals.zmq_sockets import ZmqSockets

CHANNELS: tuple[type[Channel], ...] = (PubSub, Stream, MpQueue, ZmqSockets)
DISTRIBUTIONS = ("pyzmq", "redis")
