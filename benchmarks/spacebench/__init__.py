"""What `benchmarks/space.py` runs: stores that are filled, thinned out and compacted."""
