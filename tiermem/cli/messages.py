"""Commands on topics: tail."""

from __future__ import annotations

import sys
from argparse import Namespace

import tiermem
from tiermem.cli.outcome import OK, printable
from tiermem.cli.screen import brief, moment, put_json
from tiermem.cli.stores import open_store


def tail(options: Namespace) -> int:
    with open_store(options) as mem:
        topics = tiermem.Topics(mem, root=options.root)
        with topics.subscribe(options.pattern, start=options.start) as subscription:
            left = options.limit
            while left != 0 and (message := subscription.get(options.wait)) is not None:
                if options.json:
                    put_json(message._asdict())
                else:
                    cells = (str(message.sequence), moment(message.at), message.topic, brief(message.payload))
                    sys.stdout.write(printable("  ".join(cells)) + "\n")
                # Whoever follows a topic wants each message as it comes.
                sys.stdout.flush()
                left = None if left is None else left - 1
    return OK
