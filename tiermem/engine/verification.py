"""Verification: whether a store was closed cleanly, and what a walk over its pages finds if not.

Whoever closes the store leaves in the control page which commit was the newest then. If the newest is
another when the store is opened and nobody else has it open, its last client ended without closing it,
or the page did not survive a power cut. So an ordinary opening compares two numbers.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tiermem.errors import CorruptionError, StorageError, TiermemError
from tiermem.tiers.cold.env import check_file
from tiermem.tiers.cold.pages import PageFile
from tiermem.tiers.cold.walking import newest_commit, walk_apart
from tiermem.tiers.control import Control

if TYPE_CHECKING:
    from tiermem.engine.store import Store
    from tiermem.tiers.cold import ColdEnv, Snapshot

SMALL: Final = 64 * 2**20
"""Bytes of a data file below which its pages are walked after an unclean close."""
CLOSED: Final = 511
"""The word of the control page that holds the stamp of the newest commit when the store was last closed."""
WALKS: Final = 8
LINGER: Final = 10.0
"""Seconds a repair waits for the helper that clients have left behind."""
_LOOK: Final = 0.05
_GENERATION_SHIFT: Final = 48


def note_close(store: Store) -> None:
    """Leave behind which commit is the newest, as the last thing a client does that may write."""
    try:
        with store.cold.read() as snapshot:
            stamp = snapshot.stamp
    except TiermemError:
        # The next opening looks for itself.
        stamp = 0
    store.control.words[CLOSED] = stamp


def note_copy(control: Control, folder: Path, generation: int) -> None:
    """`note_close` for a store that was made, and never opened."""
    control.words[CLOSED] = generation << _GENERATION_SHIFT | newest_commit(folder / "data.mdb")[0]


def doubted(control: Control, cold: ColdEnv) -> bool:
    """True if a small store that was just opened had not been closed cleanly, and nobody else has it open."""
    if control.words[CLOSED] == cold.newest_stamp():
        return False
    return (cold.path / "data.mdb").stat().st_size < SMALL and not control.live()


def outlast_helper(root: Path) -> None:
    """Wait for a helper that nobody is left to need: until it has gone, nothing can be repaired."""
    if not (root / "control").exists():
        return
    control = Control(root)
    deadline = time.monotonic() + LINGER
    try:
        while control.live() == [control.helper] and time.monotonic() < deadline:
            time.sleep(_LOOK)
    finally:
        control.close()


def check_announced(control: Control, snapshot: Snapshot) -> None:
    """Hold the newest commit against the one that was announced last.

    Raises:
        CorruptionError: that one is missing, and the meta pages tell why.
    """
    env = snapshot.env
    if control.generation != env.generation or control.announced <= snapshot.state().next_sequence:
        return
    with PageFile(env.path / "data.mdb") as file:
        if len(file.metas) == 2 and file.leads_further():
            raise CorruptionError(f"{env.path / 'data.mdb'} has a damaged meta page: the last commit is missing")


def damage_of(folder: Path) -> list[str]:
    """What is wrong with the pages of an environment, walked in a child process.

    What was found while others commit proves nothing: then it is walked again.

    Raises:
        StorageError: they committed during every walk.
    """
    for _ in range(WALKS):
        before = newest_commit(folder / "data.mdb")
        problem = check_file(folder / "data.mdb")
        found = [problem] if problem and "truncated" not in problem else walk_apart(folder)
        if not found or newest_commit(folder / "data.mdb") == before:
            return found
    raise StorageError(f"{folder / 'data.mdb'} is written faster than its pages can be walked")


def verify_pages(folder: Path) -> None:
    """`damage_of` as an error.

    Raises:
        CorruptionError: the walk found damage.
        StorageError: as `damage_of`.
    """
    found = damage_of(folder)
    if found:
        raise CorruptionError(f"{folder / 'data.mdb'} is damaged: " + "; ".join(found)[:2000])
