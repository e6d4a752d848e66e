"""Trajectories: what an agent saw, did and expected, step by step, and what came of it later."""
