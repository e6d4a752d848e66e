"""Conformance suites for what may be passed to tiermem; they need pytest."""

from __future__ import annotations

import pytest

# Asked for before the import, so that a failing assertion in a suite shows its values.
pytest.register_assert_rewrite("tiermem.testing.points", "tiermem.testing.vector_engine")

from tiermem.testing.vector_engine import VectorEngineSuite  # noqa: E402 - see above

__all__ = ["VectorEngineSuite"]
