"""Documents are tests: README.md, docs/ and the docstrings of tiermem/ run as they stand."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE
from pathlib import Path
from typing import Any

from sybil import Document, Sybil
from sybil.document import PythonDocStringDocument
from sybil.parsers.doctest import DocTestParser
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

_FLAGS = ELLIPSIS | NORMALIZE_WHITESPACE
_STACK = "_document_stack"


def _enter(namespace: dict[str, Any]) -> None:
    """Give a document an empty working directory, so that `tiermem.open("./memory")` means its own store."""
    stack = ExitStack()
    directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="tiermem-document-"))
    stack.callback(os.chdir, Path.cwd())
    os.chdir(directory)
    namespace[_STACK] = stack


def _leave(namespace: dict[str, Any]) -> None:
    """Close what the document left open, as the end of a session at the prompt would, and remove its directory."""
    with namespace.pop(_STACK):
        for value in reversed(list(namespace.values())):
            close: Callable[[], object] | None = getattr(value, "close", None)
            if type(value).__module__.partition(".")[0] == "tiermem" and callable(close):
                close()
        namespace.clear()


# Blocks of ```python run; one that begins with >>> is checked against the output it shows.
_markdown = Sybil(
    parsers=[PythonCodeBlockParser(doctest_optionflags=_FLAGS), SkipParser()],
    patterns=["README.md", "docs/*.md", "docs/*/*.md", "docs/*/*/*.md"],
    # Decisions and measurements are records of their day, not instructions.
    excludes=["docs/decisions/*", "docs/decisions/*/*", "docs/benchmarks/*", "docs/benchmarks/*/*"],
    document_types={".md": Document},
    setup=_enter,
    teardown=_leave,
)

_docstrings = Sybil(
    parsers=[DocTestParser(_FLAGS)],
    patterns=["tiermem/*.py", "tiermem/*/*.py", "tiermem/*/*/*.py"],
    document_types={".py": PythonDocStringDocument},
    setup=_enter,
    teardown=_leave,
)

pytest_collect_file = (_markdown + _docstrings).pytest()
