"""Every error tiermem raises, as one tree.

TiermemError
├── ClosedError               the store was closed
├── CorruptionError           bytes on disk fail their checksum or their structure
├── StoreFullError            no room: disk, quota, file-size limit or map size
├── StorageError              the operating system refused a read or a write
├── IncompatibleFormatError   the directory holds another format, or is no store
├── ReadOnlyError             a write on a store opened read-only
├── ConfigMismatch            what is baked into the store, or already open, says otherwise
│   └── TimeDomainMismatch    a real clock on a simulated store, or the reverse
├── VersionConflict           compare-and-set lost
├── GuardFailed               the guarding record is at another version
├── CursorExpired             the change log was trimmed past the position
├── LagExceeded               a consumer is too far behind, or messages were trimmed before it read them
├── RecordNotFound            (KeyError)   update or touch of a record that is not there
├── InvalidArgument           (ValueError)
│   ├── InvalidNamespace
│   ├── InvalidKey
│   ├── InvalidVector
│   │   └── DimensionMismatch
│   ├── EmbedderMismatch
│   └── FilterError
├── EncodingError             (TypeError)  a value or metadata that cannot be stored
├── LockTimeout               (TimeoutError)
├── LeaseLost
├── VoteRefused               not of the electorate, or the vote is over
└── MissingExtra              (ImportError)
"""

from __future__ import annotations

import errno
from typing import Final

FULL_ERRNOS: Final = frozenset((errno.ENOSPC, errno.EFBIG, errno.EDQUOT))
"""What the operating system says where there is no room."""


class TiermemError(Exception):
    """Base of every error tiermem raises."""


class ClosedError(TiermemError):
    """The store was closed."""


class CorruptionError(TiermemError):
    """Bytes on disk fail their checksum or their structure."""


class StoreFullError(TiermemError):
    """There is no room left: disk, quota, file-size limit or `ColdConfig.map_size`."""


class StorageError(TiermemError):
    """The operating system or LMDB refused a read or a write."""


class IncompatibleFormatError(TiermemError):
    """The directory holds a newer or foreign format, or is not a store at all."""


class ReadOnlyError(TiermemError):
    """A write was asked of a store that was opened read-only."""


class ConfigMismatch(TiermemError):
    """What is baked into the store, or the handle already open on it, says otherwise."""


class TimeDomainMismatch(ConfigMismatch):
    """A real clock on a store of simulated time, or the reverse."""


class VersionConflict(TiermemError):
    """A compare-and-set found another version than the one it asked for."""

    def __init__(self, message: str, *, expected: int | None = None, found: int = 0) -> None:
        super().__init__(message)
        self.expected = expected
        self.found = found


class GuardFailed(TiermemError):
    """The record named by a guard is not at the guard's version."""


class CursorExpired(TiermemError):
    """The change log no longer holds the position asked for."""


class LagExceeded(TiermemError):
    """A consumer is further behind than allowed, or so far that messages were trimmed before it could read them."""


class RecordNotFound(TiermemError, KeyError):
    """`update` or `touch` of a record that is not there."""

    def __str__(self) -> str:
        # KeyError shows the repr of its argument; a message is meant to be read.
        return str(self.args[0]) if self.args else ""


class InvalidArgument(TiermemError, ValueError):
    """An argument is outside what the call accepts; nothing was changed."""


class InvalidNamespace(InvalidArgument):
    """A namespace name is empty, too long, or has an empty part."""


class InvalidKey(InvalidArgument):
    """A key is not a str of 1 to 480 UTF-8 bytes."""


class InvalidVector(InvalidArgument):
    """A vector is not 1-D and finite, or is zero where the metric is cosine."""


class DimensionMismatch(InvalidVector):
    """A vector's length differs from the dimension of its namespace."""


class EmbedderMismatch(InvalidArgument):
    """The namespace was filled by another embedding model."""


class FilterError(InvalidArgument):
    """A `where` filter is malformed; the message names the place."""


class EncodingError(TiermemError, TypeError):
    """A value or metadata holds something that cannot be stored."""


class LockTimeout(TiermemError, TimeoutError):
    """A lock was not granted in time."""


class LeaseLost(TiermemError):
    """A lease has expired or passed to another owner."""


class VoteRefused(TiermemError):
    """A vote of one who is not of the electorate, or on a proposal that is decided or past its deadline."""


class MissingExtra(TiermemError, ImportError):
    """An optional dependency is absent; the message names the extra."""


def file_error(exc: OSError) -> type[TiermemError]:
    """What an error of the file system is to a user of the store."""
    return StoreFullError if exc.errno in FULL_ERRNOS else StorageError
