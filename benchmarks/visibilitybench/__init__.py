"""What `visibility.py` measures: processes beside each other on one store."""
