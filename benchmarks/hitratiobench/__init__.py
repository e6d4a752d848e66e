"""The parts of `benchmarks/hit_ratio.py`: rivals, traces, simulations and the page."""
