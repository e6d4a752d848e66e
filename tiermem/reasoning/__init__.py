"""Reasoning: judging what was done, and learning from it."""
