"""Coordination between processes, written with the store's public operations alone."""
