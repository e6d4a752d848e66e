"""The engine: one store behind `put`, `get` and `search_similar`, and what moves between its tiers."""
