"""How a command ends: exit codes, mistakes, the one line on stderr."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import Final

OK: Final = 0
FINDING: Final = 1
MISTAKE: Final = 2
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141


class BadUsage(Exception):
    """What the user asked for cannot be done; the message says why, in one line."""


def complain(options: Namespace, message: str) -> None:
    """One line on stderr, whatever `message` holds."""
    sys.stderr.write(f"tiermem {options.command}: {printable(' '.join(message.split()))}\n")


def printable(text: str) -> str:
    """`text` with everything escaped that a terminal would act on or cannot show."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode() for char in text
    )
