"""Options of the measured loops; `bench_micro.py` gives them, and so may `pytest benchmarks/test_micro.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="small and short, to see that everything runs")
