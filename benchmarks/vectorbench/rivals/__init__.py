"""Rivals of the vector benchmark, one a file; none is imported before it is measured."""
