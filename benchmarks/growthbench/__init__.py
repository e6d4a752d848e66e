"""The parts of `benchmarks/growth.py`: measuring, running, the page and its plots."""
