"""Eviction policies of the hot tier: one file each, pure decisions over ids and costs.

`DEFAULT` is the policy with the best measured hit ratios (`docs/benchmarks/hit_ratio.md`).
"""

from __future__ import annotations

from tiermem.policy.eviction.lru import LRU
from tiermem.policy.eviction.s3clock import S3Clock

DEFAULT = S3Clock

__all__ = ["DEFAULT", "LRU", "S3Clock"]
