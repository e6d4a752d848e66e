"""The parts of `benchmarks/latency.py`: loops, measurements in fresh processes, the page and its plots."""
