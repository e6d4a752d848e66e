"""tiermem: a tiered embedded memory engine. One directory, one import, no server.

>>> import tiermem
>>> with tiermem.open("./memory") as mem:
...     version = mem.put("desk/obs", "AIG", {"px": 48.21}, metadata={"side": "buy"})
...     mem.get("desk/obs", "AIG")
{'px': 48.21}
"""

from importlib import import_module
from typing import TYPE_CHECKING

from tiermem import namespaces as namespaces
from tiermem.clock import SimulatedClock, SystemClock
from tiermem.config import CodecConfig, ColdConfig, Config, HotConfig, VectorConfig
from tiermem.embedder import HashEmbedder
from tiermem.engine.batch import Batch
from tiermem.engine.feed import Cursor
from tiermem.engine.memory import Memory, open
from tiermem.engine.namespace import Namespace
from tiermem.errors import (
    ClosedError,
    ConfigMismatch,
    CorruptionError,
    CursorExpired,
    DimensionMismatch,
    EmbedderMismatch,
    EncodingError,
    FilterError,
    GuardFailed,
    IncompatibleFormatError,
    InvalidArgument,
    InvalidKey,
    InvalidNamespace,
    InvalidVector,
    LagExceeded,
    LeaseLost,
    LockTimeout,
    MissingExtra,
    ReadOnlyError,
    RecordNotFound,
    StorageError,
    StoreFullError,
    TiermemError,
    TimeDomainMismatch,
    VersionConflict,
    VoteRefused,
)
from tiermem.policy.eviction import LRU
from tiermem.types import UNSET, Change, Guard, Hit, Item, Record

if TYPE_CHECKING:
    from tiermem.coordination.agents import Agent, Agents
    from tiermem.coordination.locks import Holder, Lease, Locks, LockState
    from tiermem.coordination.topics import Message, Retention, Subscription, Topics
    from tiermem.coordination.votes import Ballot, Proposal, Votes
    from tiermem.engine.aio import AsyncMemory, open_async
    from tiermem.reports import CheckReport, Stats

__version__ = "0.1.0"

_LATER = {
    "Agent": "tiermem.coordination.agents",
    "Agents": "tiermem.coordination.agents",
    "AsyncMemory": "tiermem.engine.aio",
    "Ballot": "tiermem.coordination.votes",
    "CheckReport": "tiermem.reports",
    "Holder": "tiermem.coordination.locks",
    "Lease": "tiermem.coordination.locks",
    "LockState": "tiermem.coordination.locks",
    "Locks": "tiermem.coordination.locks",
    "Message": "tiermem.coordination.topics",
    "Proposal": "tiermem.coordination.votes",
    "Retention": "tiermem.coordination.topics",
    "Stats": "tiermem.reports",
    "Subscription": "tiermem.coordination.topics",
    "Topics": "tiermem.coordination.topics",
    "Votes": "tiermem.coordination.votes",
    "open_async": "tiermem.engine.aio",
}
"""Names that are imported when they are first asked for: most programs need none of them."""


if not TYPE_CHECKING:

    def __getattr__(name):
        if name in _LATER:
            found = globals()[name] = getattr(import_module(_LATER[name]), name)
            return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = [
    "LRU",
    "UNSET",
    "Agent",
    "Agents",
    "AsyncMemory",
    "Ballot",
    "Batch",
    "Change",
    "CheckReport",
    "ClosedError",
    "CodecConfig",
    "ColdConfig",
    "Config",
    "ConfigMismatch",
    "CorruptionError",
    "Cursor",
    "CursorExpired",
    "DimensionMismatch",
    "EmbedderMismatch",
    "EncodingError",
    "FilterError",
    "Guard",
    "GuardFailed",
    "HashEmbedder",
    "Hit",
    "Holder",
    "HotConfig",
    "IncompatibleFormatError",
    "InvalidArgument",
    "InvalidKey",
    "InvalidNamespace",
    "InvalidVector",
    "Item",
    "LagExceeded",
    "Lease",
    "LeaseLost",
    "LockState",
    "LockTimeout",
    "Locks",
    "Memory",
    "Message",
    "MissingExtra",
    "Namespace",
    "Proposal",
    "ReadOnlyError",
    "Record",
    "RecordNotFound",
    "Retention",
    "SimulatedClock",
    "Stats",
    "StorageError",
    "StoreFullError",
    "Subscription",
    "SystemClock",
    "TiermemError",
    "TimeDomainMismatch",
    "Topics",
    "VectorConfig",
    "VersionConflict",
    "VoteRefused",
    "Votes",
    "__version__",
    "open",
    "open_async",
]
