"""The parts of `benchmarks/bench_micro.py`: sections and their subjects, tables, requirements and the page."""
