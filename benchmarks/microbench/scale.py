"""How much is measured, in full and to see that everything runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured.

    Every subject has `turns` turns, taken in rotation with the others. In a turn a loop runs `rounds` times over
    HOT_ROUND or COLD_ROUND keys, and once before that to fill the caches of the processor; a search `queries` times;
    puts flat out last `flat_seconds`. Rounds are short, so that some of them go by undisturbed on a busy machine.
    """

    name: str
    turns: int
    rounds: int
    queries: int
    keys: int
    cold_records: int
    vectors: int
    puts: int
    sets: int
    synced: int
    flat_seconds: float
    stream: int
    latest: int
    starts: int


FULL = Scale(
    name="full",
    turns=9,
    rounds=20,
    queries=25,
    keys=100_000,
    cold_records=50_000,
    vectors=10_000,
    puts=20_000,
    sets=1_000,
    synced=150,
    flat_seconds=1.0,
    stream=1_000_000,
    latest=500,
    starts=15,
)
QUICK = Scale(
    name="quick",
    turns=3,
    rounds=5,
    queries=5,
    keys=100_000,
    cold_records=5_000,
    vectors=10_000,
    puts=5_000,
    sets=200,
    synced=30,
    flat_seconds=0.25,
    stream=20_000,
    latest=50,
    starts=3,
)
