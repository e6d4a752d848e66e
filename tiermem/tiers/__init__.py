"""The tiers, strangers to each other: the engine hands each one callables, never another tier."""
