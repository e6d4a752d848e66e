"""Policies that the shipped ones are compared with, one a file; each has an exact free state."""
