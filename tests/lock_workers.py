"""A process that increments a shared counter under a lock, again and again; made to be killed and stopped.

`python tests/lock_workers.py STORE NAME TARGET TTL`: until the counter has come to TARGET. Every increment is read and
written back without a condition of its own: the lease's guard is all that keeps two of them apart.
"""

from __future__ import annotations

import random
import sys
import time

import tiermem

COUNTER, WORK, LOCK = "counter", "work", "the counter"


def increment(mem: tiermem.Memory, lease: tiermem.Lease, name: str, dawdle: float) -> None:
    """One increment, noted under the worker's name and in the trail, all in one guarded batch."""
    before = mem.get(COUNTER, "n", 0)
    mine = mem.get(WORK, name, 0)
    time.sleep(dawdle)
    with mem.batch() as batch:
        batch.put(COUNTER, "n", before + 1, guard=lease.guard)
        batch.put(WORK, name, mine + 1)
        batch.put("trail", f"{before + 1:08d}", [lease.fence, name])


def main(root: str, name: str, target: int, ttl: float) -> None:
    rng = random.Random(name)
    with tiermem.open(root) as mem:
        locks = tiermem.Locks(mem)
        while mem.get(COUNTER, "n", 0) < target:
            try:
                with locks.acquire(LOCK, ttl=ttl, owner=name) as lease:
                    for _ in range(rng.randrange(1, 4)):
                        # Now and then a holder oversleeps without being stopped.
                        increment(mem, lease, name, ttl * 1.5 if rng.random() < 0.04 else 0.0)
            except (tiermem.LeaseLost, tiermem.GuardFailed):
                mem.put("refused", f"{name}-{time.time_ns()}", None)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
