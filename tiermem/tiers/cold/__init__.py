"""L3, the cold tier: LMDB, its layout, snapshots of it and the writer of its transactions."""

from tiermem.tiers.cold import sealed, upkeep
from tiermem.tiers.cold.env import ColdEnv
from tiermem.tiers.cold.snapshot import Snapshot
from tiermem.tiers.cold.writer import Writer

__all__ = ["ColdEnv", "Snapshot", "Writer", "sealed", "upkeep"]
