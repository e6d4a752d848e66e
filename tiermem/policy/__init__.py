"""Decisions with no I/O and no clock of their own: eviction and filters."""
