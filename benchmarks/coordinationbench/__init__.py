"""What `benchmarks/coordination.py` measures, one subject a file."""
