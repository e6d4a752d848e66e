"""tiermem's topics, as they are by default and otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tiermem
from coordinationbench.channel import Channel, Receive, Send

TOPIC = "bench/fills"


class Prompt(Channel):
    """`publish` as it is by default: it commits in the call, as long as that takes less than half of the time."""

    name = "tiermem topic"
    promise = "kill-safe when `publish` returns; committed, fsynced and logged when received"
    prompt = True
    durable = False
    consumer: str | None = None

    @contextmanager
    def sending(self, address: Any) -> Iterator[Send]:
        with tiermem.open(address / "store") as mem:
            publish = tiermem.Topics(mem, prompt=self.prompt).publish
            durable = self.durable

            def send(message: dict[str, Any]) -> None:
                publish(TOPIC, message, durable=durable)

            yield send

    @contextmanager
    def receiving(self, address: Any) -> Iterator[Receive]:
        with (
            tiermem.open(address / "store") as mem,
            tiermem.Topics(mem).subscribe(TOPIC, consumer=self.consumer) as subscription,
        ):
            get, ack, named = subscription.get, subscription.ack, self.consumer is not None

            def receive(timeout: float) -> list[dict[str, Any]]:
                message = get(timeout)
                if message is None:
                    return []
                if named:
                    ack(message)
                return [message.payload]

            yield receive


class Acknowledged(Prompt):
    """The same, received under a consumer's name and acknowledged one by one."""

    name = "tiermem topic, consumer with acks"
    promise = "the same; each message acknowledged, kill-safe, before the next is asked for"
    consumer = "bench"


class Durable(Prompt):
    """Every message committed by the call that publishes it."""

    name = "tiermem topic, durable"
    promise = "fsynced when `publish` returns"
    durable = True
    gathers = False


class Left(Prompt):
    """Commits are left to the background: `publish` never waits for the disk."""

    name = "tiermem topic, prompt=False"
    promise = "kill-safe when `publish` returns; a thread or the helper commits"
    prompt = False
