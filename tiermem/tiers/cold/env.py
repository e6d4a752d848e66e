"""The LMDB environment: opening it safely, its transactions, and the seam where its errors end."""

from __future__ import annotations

import errno
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from weakref import ref

import lmdb

from tiermem.codec.frame import Value, unpack_value
from tiermem.errors import (
    FULL_ERRNOS,
    ClosedError,
    CorruptionError,
    IncompatibleFormatError,
    ReadOnlyError,
    StorageError,
    StoreFullError,
    TiermemError,
    file_error,
)
from tiermem.tiers.cold.layout import DATABASES
from tiermem.tiers.cold.pages import META_BYTES, Meta, PageFile
from tiermem.tiers.cold.snapshot import Snapshot
from tiermem.tiers.cold.walking import walk

if TYPE_CHECKING:
    from tiermem.config import ColdConfig

_FULL: Final = tuple(os.strerror(code) for code in sorted(FULL_ERRNOS))
_CUT_SHORT: Final = (os.strerror(errno.EIO), os.strerror(errno.EINVAL))
_MARGIN: Final = 2**21
_LOCK_BYTES: Final = 128
_PAUSE: Final = 0.0005
_PATIENCE: Final = 1.0
"""Seconds for readers to leave an environment that has to be opened again."""
_LOOKS: Final = 100
_DAMAGE: Final = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError)


class Databases(NamedTuple):
    """Handles of the sub-databases, in the order of `layout.DATABASES`."""

    records: Any
    vectors: Any
    expiry: Any
    floors: Any
    log: Any
    namespaces: Any
    names: Any
    garbage: Any
    dictionaries: Any
    cursors: Any
    marks: Any
    segments: Any
    unsealed: Any
    meta: Any


def translate(exc: lmdb.Error, path: Path) -> TiermemError:
    """The error of ours that says what `exc` means to a user of the store at `path`."""
    text = str(exc)
    if isinstance(exc, lmdb.MapFullError):
        return StoreFullError(f"the store has reached ColdConfig.map_size: {text}")
    if (
        isinstance(exc, lmdb.DiskError)
        or any(reason in text for reason in _FULL)
        or (any(reason in text for reason in _CUT_SHORT) and _no_room(path))
    ):
        return StoreFullError(f"no room left for {path}: {text}")
    if isinstance(exc, _DAMAGE):
        return CorruptionError(f"{path / 'data.mdb'} is damaged: {text}")
    if isinstance(exc, (lmdb.VersionMismatchError, lmdb.IncompatibleError)):
        return IncompatibleFormatError(f"{path / 'data.mdb'} is of another LMDB format: {text}")
    if isinstance(exc, lmdb.ReadonlyError):
        return ReadOnlyError(f"{path} is read-only: {text}")
    if isinstance(exc, lmdb.PanicError):
        return StorageError(f"a commit failed half-way; the environment at {path} must be reopened: {text}")
    if "closed/deleted" in text:
        return ClosedError("the store was closed")
    return StorageError(f"{path}: {text}")


def check_file(path: Path) -> str:
    """Why `data.mdb` must not be mapped as it is, or an empty string.

    LMDB trusts its meta pages: a file shorter than they say ends in SIGBUS, a wrong root anywhere.
    """
    problem = ""
    before: tuple[Meta, ...] = ()
    for _ in range(_LOOKS):
        try:
            with PageFile(path) as file:
                if file.size < META_BYTES:
                    return f"is {file.size} bytes long, too short for a meta page"
                if metas := file.metas:
                    # Asked last: a writer that commits meanwhile makes the file longer first, its meta page then.
                    size, pages = file.measure(), metas[-1].last_page + 1
                    if len(metas) == 2 and size < (counted := pages * file.page_bytes):
                        return f"is truncated: {size:,} bytes where its meta page counts {counted:,}"
                problem = "" if file.foreign else file.contradiction()
                if not problem:
                    return ""
        except FileNotFoundError:
            return "is missing"
        # What was read while others commit may be of several commits.
        if metas == before:
            return problem
        before = metas
    return problem


def _allocate(path: Path, size: int) -> None:
    """Give LMDB's reader table its blocks: it is mapped, and a hole on a full disk would end in SIGBUS.

    Nobody in this process has the file open: closing a second descriptor would drop LMDB's locks on it.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.posix_fallocate(fd, 0, max(size, os.fstat(fd).st_size))
        finally:
            os.close(fd)
    except OSError as exc:
        raise file_error(exc)(f"{path} cannot be allocated: {exc}") from exc


def _no_room(path: Path) -> bool:
    """True if the file system is full, or the data file at this process's file-size limit.

    LMDB reports a write that was cut short as an input/output error.
    """
    room = os.statvfs(path)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    size = (path / "data.mdb").stat().st_size
    return room.f_bavail * room.f_frsize < _MARGIN or (limit != resource.RLIM_INFINITY and size > limit - _MARGIN)


class _Reading(Snapshot):
    """A snapshot and its transaction, counted so that the environment is never closed under it."""

    __slots__ = ("__weakref__", "_buffers", "_mark")

    def __init__(self, env: ColdEnv, buffers: bool) -> None:
        self.env = env
        self._buffers = buffers

    def __enter__(self) -> Snapshot:
        env = self.env
        # It goes with this object, wherever an interrupt may come: in here, or before `__exit__`.
        self._mark = ref(self, env.readers.discard)
        env.readers.add(self._mark)
        while env.closing:
            env.readers.discard(self._mark)
            if env.successor is not None:
                self.env = env.successor
                return self.__enter__()
            if not env.paused:
                raise ClosedError("the store was closed")
            time.sleep(_PAUSE)
            env.readers.add(self._mark)
        # Not before: after a fork the environment was opened anew, with other handles.
        self.dbs = env.dbs
        try:
            self.txn = env.begin(buffers=self._buffers)
        except lmdb.Error as exc:
            env.readers.discard(self._mark)
            if env.mend(exc):
                return self.__enter__()
            raise translate(exc, env.path) from exc
        return self

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        self.txn.abort()
        self.env.readers.discard(self._mark)
        if isinstance(exc, lmdb.Error):
            raise translate(exc, self.env.path) from exc


class ColdEnv:
    """An open LMDB environment, one per process and generation."""

    def __init__(
        self, root: Path, generation: int, config: ColdConfig, *, read_only: bool = False, create: bool = False
    ) -> None:
        """Open the environment of one generation of the store at `root`.

        Raises:
            CorruptionError: its file is truncated or has no valid meta page.
            IncompatibleFormatError, ReadOnlyError, StoreFullError, StorageError: LMDB says so.
        """
        self.path = path = root / f"gen-{generation}"
        self.generation = generation
        self.first_stamp = generation << 48
        self.read_only = read_only
        self.closing = False
        self.successor: ColdEnv | None = None
        self.readers: set[object] = set()
        # Held by a write transaction, and while the environment is closed and opened again.
        self._exclusive = threading.RLock()
        self._lost = self.paused = False
        self.rows_read = 0
        if not create:
            problem = check_file(path / "data.mdb")
            # A commit may leave freed pages at the end unwritten: only a walk can tell that from a cut.
            if problem and ("truncated" not in problem or walk(path)):
                raise CorruptionError(f"{path / 'data.mdb'} {problem}")
        self._config = config
        self._connect(create=create)

    def _connect(self, *, create: bool) -> None:
        path, config, read_only = self.path, self._config, self.read_only
        # A store on a read-only file system has no lock table to write to.
        lock = not read_only or os.access(path / "lock.mdb", os.W_OK)
        if not read_only:
            _allocate(path / "lock.mdb", _LOCK_BYTES + config.max_readers * 64)
        try:
            self._env = lmdb.open(
                str(path),
                map_size=config.map_size,
                subdir=True,
                readonly=read_only,
                create=create,
                readahead=False,
                max_readers=config.max_readers,
                max_dbs=len(DATABASES),
                max_spare_txns=1,
                lock=lock,
                # Named, so that an environment variable of LMDB's cannot choose the format.
                lib_version=0,
            )
            self.begin: Callable[..., Any] = self._env.begin
            if read_only:
                # Each in a transaction of its own: a handle opened in one that only reads goes with it.
                handles = [self._env.open_db(name.encode(), create=False) for name in DATABASES]
            else:
                with self._env.begin(write=True) as txn:
                    handles = [self._env.open_db(name.encode(), txn=txn, create=create) for name in DATABASES]
        except lmdb.Error as exc:
            if isinstance(exc, lmdb.NotFoundError):
                raise IncompatibleFormatError(f"{path} holds an LMDB environment that is no tiermem store") from exc
            raise translate(exc, path) from exc
        self.dbs = Databases(*handles)

    def read(self, *, buffers: bool = True) -> _Reading:
        """A context manager around a read transaction: a `Snapshot`, valid inside it, as its rows are; else copied."""
        return _Reading(self, buffers)

    def newest_stamp(self) -> int:
        """The stamp of the newest commit; reads no page."""
        try:
            with self.begin() as txn:
                return self.first_stamp | int(txn.id())
        except lmdb.Error as exc:
            raise translate(exc, self.path) from exc

    def value(self, key: bytes) -> tuple[int, Value | None]:
        """The stamp of a snapshot, and what `unpack_value` says of one record in it; costs half of `read`."""
        reader = object()
        try:
            self.readers.add(reader)
            if self.closing:
                self.readers.discard(reader)
                return self._value(key)
            txn = self.begin()
            try:
                row = txn.get(key, None, self.dbs.records)
                self.rows_read += 1
                return self.first_stamp | txn.id(), None if row is None else unpack_value(key, row)
            finally:
                txn.abort()
        except lmdb.Error as exc:
            self.readers.discard(reader)
            if self.mend(exc):
                return self._value(key)
            raise translate(exc, self.path) from exc
        finally:
            self.readers.discard(reader)

    def _value(self, key: bytes) -> tuple[int, Value | None]:
        with self.read(buffers=False) as snapshot:
            (row,) = snapshot.frames([key])
            return snapshot.stamp, None if row is None else unpack_value(key, row)

    @contextmanager
    def write(self) -> Iterator[Any]:
        """A context manager around the write transaction: commits (with fsync), or aborts on an error."""
        with self._exclusive:
            if self.closing:
                raise ClosedError("the store was closed")
            try:
                with self._begin_write() as txn:
                    yield txn
            except lmdb.Error as exc:
                raise translate(exc, self.path) from exc

    def _begin_write(self) -> Any:
        try:
            return self._env.begin(write=True, buffers=True)
        except lmdb.Error as exc:
            if self.mend(exc):
                return self._env.begin(write=True, buffers=True)
            raise

    def mend(self, exc: lmdb.Error) -> bool:
        """Open the environment again if LMDB has given it up; False if that is not what `exc` says, or is not possible.

        LMDB answers everything with MDB_PANIC once the meta page of a commit could not be written, and goes on from
        the last commit that stands when it is opened anew. The caller has no transaction open.
        """
        if not isinstance(exc, lmdb.PanicError) and not (self._lost and "closed/deleted" in str(exc)):
            return False
        broken = self._env
        with self._exclusive:
            if self._env is not broken or self.closing:
                return not self.closing
            self.paused = self.closing = True
            try:
                deadline = time.monotonic() + _PATIENCE
                while self.readers:
                    if time.monotonic() > deadline:
                        return False
                    time.sleep(_PAUSE)
                self._lost = True
                self._env.close()
                self._connect(create=False)
                self._lost = False
            finally:
                self.closing = self.paused = False
        return True

    def copy(self, target: Path) -> None:
        """A compacted copy of the newest commit in the existing directory `target`, fsynced."""
        try:
            self._env.copy(str(target), compact=True)
        except lmdb.Error as exc:
            raise translate(exc, self.path) from exc
        fd = os.open(target / "data.mdb", os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def clear_stale_readers(self) -> int:
        """Free the reader slots of dead processes; how many there were."""
        # A fork or a move closes the environment, and holds this lock while it does.
        with self._exclusive:
            return 0 if self.closing else int(self._env.reader_check())

    def sizes(self) -> tuple[int, int, int]:
        """(bytes in use, bytes of the file, transactions the oldest reader is behind)."""
        info, page = self._env.info(), self._env.stat()["psize"]
        used = (int(info["last_pgno"]) + 1) * int(page)
        return used, (self.path / "data.mdb").stat().st_size, self.oldest_reader()[0]

    def oldest_reader(self) -> tuple[int, int]:
        """(transactions the oldest reader is behind, its process); (0, 0) if nobody reads or nobody is behind."""
        newest = int(self._env.info()["last_txnid"])
        oldest, process = newest, 0
        for line in self._env.readers().splitlines()[1:]:
            # Process, thread, transaction: the last one is a dash where nothing is being read.
            fields = line.split()
            if fields[-1].isdigit() and int(fields[-1]) < oldest:
                oldest, process = int(fields[-1]), int(fields[0])
        return newest - oldest, process

    def close(self) -> None:
        """Close once every reader has left; idempotent."""
        with self._exclusive:
            self.closing, self.paused = True, False
        while self.readers:
            time.sleep(_PAUSE)
        self._env.close()

    def pause(self) -> None:
        """Before a fork: let readers end, hold new ones, and close, so that a child inherits nothing of LMDB.

        The caller holds off every writer.
        """
        self._exclusive.acquire()
        self.paused = self.closing = True
        while self.readers:
            time.sleep(_PAUSE)
        self._env.close()

    def resume(self) -> None:
        """After a fork, in the parent: open again and let readers in; if that fails, they wait until this is closed."""
        try:
            self._connect(create=False)
            self.closing = self.paused = False
        finally:
            self._exclusive.release()
