"""The parts of `benchmarks/vectors.py`: data, measuring, subjects, and the page."""
