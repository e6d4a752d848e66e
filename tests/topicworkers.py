"""Processes that publish and consume: each notes what it has processed in a file before it acknowledges it.

    python tests/topicworkers.py publish STORE NAME MESSAGES
    python tests/topicworkers.py consume STORE NAME GROUP LOG

A publisher ends by itself; a consumer goes on until it is killed. GROUP is "-" for a consumer of its own.
"""

from __future__ import annotations

import os
import sys

import tiermem

LEASE = 1.0
TOPICS = 2
"""Topics a publisher publishes to, in turns."""


def opened(store: str) -> tiermem.Memory:
    """The store, however long others who open it at the same time are held up."""
    while True:
        try:
            return tiermem.open(store)
        except tiermem.LockTimeout:
            continue


def publish(store: str, name: str, messages: str) -> None:
    """Publish numbered messages, in turns to `work/<name>/<number>` and to a topic that all share."""
    with opened(store) as mem:
        topics = tiermem.Topics(mem)
        for number in range(int(messages)):
            topics.publish(f"work/{name}" if number % TOPICS else "work/shared", [name, number])


def consume(store: str, name: str, group: str, log: str) -> None:
    """Note each message in the file `log`, one line each, then acknowledge it."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, b"life\n")
    with opened(store) as mem:
        topics = tiermem.Topics(mem)
        with topics.subscribe(
            "work/**",
            start="earliest",
            consumer=name,
            group=None if group == "-" else group,
            lease=LEASE,
            prefetch=16,
        ) as subscription:
            for message in subscription:
                publisher, number = message.payload
                os.write(file, f"{message.topic} {message.sequence} {publisher} {number}\n".encode())
                try:
                    subscription.ack(message)
                except tiermem.LeaseLost:
                    if group == "-":
                        raise


if __name__ == "__main__":
    {"publish": publish, "consume": consume}[sys.argv[1]](*sys.argv[2:])
