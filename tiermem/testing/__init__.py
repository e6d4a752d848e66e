"""Conformance suites for what may be passed to tiermem, which need pytest, and tools that crash a store.

`crash`, `faults` and `power` try many points of failure; `trial`, `history` and `disk` are what they are made of.
`damage` alters the files of a store, `fuzz` the bytes that a decoder is given.
"""

from __future__ import annotations

import pytest

# Asked for before the import, so that a failing assertion in a suite shows its values.
pytest.register_assert_rewrite("tiermem.testing.points", "tiermem.testing.vector_engine")

from tiermem.testing.vector_engine import VectorEngineSuite  # noqa: E402 - see above

__all__ = ["VectorEngineSuite"]
