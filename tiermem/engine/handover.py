"""Hand-over: conditional writes and flushes that the helper makes for a client, each exactly once.

A client that committed them itself would hold LMDB's write lock meanwhile, and everybody up if it were stopped. So it
writes its request into a file, rings, and waits. The helper reads requests inside a transaction that has drained every
journal, and keeps in that transaction what it has applied: whoever comes next, a new helper or the client in its
place, finds the answer there. A request is withdrawn by whoever made it before another can be made.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec

from tiermem.codec.frame import seal, unseal
from tiermem.engine import proposals
from tiermem.engine.assistant import LOOK
from tiermem.engine.proposals import Proposal
from tiermem.errors import (
    ClosedError,
    CorruptionError,
    CursorExpired,
    GuardFailed,
    InvalidArgument,
    RecordNotFound,
    TiermemError,
    VersionConflict,
    file_error,
)
from tiermem.tiers.bells import ASLEEP, LISTENING
from tiermem.tiers.cold import answers
from tiermem.tiers.cold.layout import Answer, pack_row, unpack_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tiermem.codec.operation import Operation
    from tiermem.engine.store import Store
    from tiermem.tiers.cold import Writer
    from tiermem.tiers.journal import Journal

LOOKS: Final = 8
"""Looks at which it has not answered, and the client commits itself."""
_DECLINED: Final = "declined"
"""What has failed for another reason than these has the client try, and hear of it, itself."""
_REFUSALS: Final[dict[str, type[TiermemError]]] = {
    kind.__name__: kind for kind in (VersionConflict, GuardFailed, RecordNotFound, CursorExpired, InvalidArgument)
}


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """What a client asks of the helper: a proposal, or None for a commit of everything.

    `number` is drawn at random: counted up, it might be one that an earlier client in this slot has given, where the
    clock was set back since, and its answer be taken for this one's.
    """

    number: int
    proposal: Proposal | None


_encode: Final = msgspec.msgpack.Encoder().encode
_decoder: Final = msgspec.msgpack.Decoder(Request)


def pack_request(request: Request) -> bytes:
    """The bytes of a request's file."""
    return seal(b"request", _encode(request))


def unpack_request(data: bytes) -> Request | None:
    """The request in a file; None where it is being written, or was withdrawn."""
    try:
        return _decoder.decode(unseal(b"request", data))
    except (CorruptionError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


class _Notes:
    """Files of a few bytes, one a client, each written over in place by one process and read by another.

    None is ever replaced, so that both can keep them open.
    """

    def __init__(self, folder: Path, what: str) -> None:
        self._folder = folder
        self._what = what
        self._open: dict[int, tuple[int, bool]] = {}

    def _path(self, slot: int) -> Path:
        return self._folder / f"{slot:03d}.{self._what}"

    def _file(self, slot: int, *, writing: bool) -> int:
        fd, writable = self._open.get(slot, (-1, False))
        if fd < 0 or (writing and not writable):
            # Whoever only reads may have no right to write: the file may be another user's.
            flags = os.O_RDWR | os.O_CREAT if writing else os.O_RDONLY
            fresh = os.open(self._path(slot), flags | os.O_CLOEXEC, 0o644)
            self._open[slot] = fresh, writing
            if fd >= 0:
                os.close(fd)
            fd = fresh
        return fd

    def write(self, slot: int, data: bytes) -> None:
        """Put `data` in the place of what is there. Whoever reads meanwhile reads some of it."""
        fd = self._file(slot, writing=True)
        os.ftruncate(fd, 0)
        if os.pwrite(fd, data, 0) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def empty(self, slot: int) -> None:
        """Leave nothing there; nothing is done, nor made, where there is no file."""
        if slot in self._open:
            os.ftruncate(self._file(slot, writing=True), 0)
            return
        with suppress(FileNotFoundError):
            os.truncate(self._path(slot), 0)

    def read(self, slot: int) -> bytes:
        """What is there; nothing where it cannot be read."""
        try:
            fd = self._file(slot, writing=False)
            return os.pread(fd, os.fstat(fd).st_size, 0)
        except OSError as exc:
            if exc.errno is None:
                # No file's: a signal handler's.
                raise
            return b""

    def close(self) -> None:
        """Close them all."""
        while self._open:
            os.close(self._open.popitem()[1][0])


class Handover:
    """The requests of this client, and, in the helper, those of all."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._requests = _Notes(store.root / "clients", "request")
        self._answers = _Notes(store.root / "clients", "answer")

    def decide(self, proposal: Proposal) -> list[int]:
        """Make the writes of `proposal` once every journal was drained; their versions.

        An error that a condition raises leaves the store as it was and is raised here.
        """
        return self._made(proposal)

    def flush(self) -> None:
        """Commit what every process had journaled when called, and announce it."""
        self._made(None)

    def _made(self, proposal: Proposal | None) -> list[int]:
        store = self._store
        store.check_writable()
        if not self._handed_over:
            return self._commit(proposal)
        with store.committer.turn():
            store.check_writable()
            number = int.from_bytes(os.urandom(8)) | 1
            try:
                answer = self._asked(Request(number, proposal))
            finally:
                self.withdraw()
            if answer is None:
                return self._commit(proposal, number)
        if answer.refused == VersionConflict.__name__:
            raise VersionConflict(answer.said, expected=answer.expected, found=answer.found)
        if answer.refused:
            raise _REFUSALS[answer.refused](answer.said)
        return answer.versions

    def drained(self, journal: Journal, head: int) -> bool:
        """True once the helper has applied `journal`, this client's, up to `head`; False if this client has to.

        Who commits that itself holds others up, should it be stopped meanwhile.
        """
        store, control = self._store, self._store.control
        if not self._handed_over:
            return False

        def applied() -> bool:
            while journal.applied < head and control.stale[0]:
                store.follower.catch_up()
            return journal.applied >= head

        try:
            control.bells.hang()
        except OSError:
            return False
        return self._waited(applied, ASLEEP)

    def withdraw(self) -> None:
        """Ask nothing any more, nor let what an earlier client in this slot has asked be done.

        Raises:
            StorageError: what was asked may still be done.
        """
        try:
            self._requests.empty(self._store.slot)
        except OSError as exc:
            raise file_error(exc)(f"a request to the helper cannot be withdrawn: {exc}") from exc

    def _asked(self, request: Request) -> Answer | None:
        """The helper's answer; None if it gave none, or left the matter to the client."""
        store = self._store
        try:
            store.control.bells.hang()
            self._requests.write(store.slot, pack_request(request))
        except (OSError, OverflowError, TypeError):
            # No file or FIFO can be made, or this fits into no request: a commit needs none, and says what is wrong.
            return None
        answer = self._awaited(request.number)
        if answer is None or answer.refused == _DECLINED:
            return None
        # Now as after any commit of another's. Where the store is being closed, what was made is made all the same.
        with suppress(ClosedError):
            store.follower.catch_up()
        return answer

    def _awaited(self, number: int) -> Answer | None:
        store = self._store
        control = store.control
        answer: Answer | None = None

        def answered() -> bool:
            nonlocal answer
            answer = self._answer(store.slot, number)
            return answer is not None

        def ask() -> None:
            control.asking[store.slot] = 1

        self._waited(answered, LISTENING, ask)
        return answer

    def _waited(self, done: Callable[[], bool], how: int, ask: Callable[[], None] = lambda: None) -> bool:
        """Ask the helper, and sleep until `done()`; False if it is gone, or has not come to it at any of some looks."""
        control = self._store.control
        for _ in range(LOOKS):
            ask()
            control.call_helper(haste=True)
            if control.bells.listen(done, LOOK, how):
                return True
            if not self._attended():
                break
        return False

    @property
    def _handed_over(self) -> bool:
        """Whether the helper commits what has to be committed now.

        Alone nobody is held up, and a commit of one's own takes a fraction of the time.
        """
        return self._store.committer.assistant.present and self._store.control.shared

    def _attended(self) -> bool:
        """True if a helper is there that may still answer."""
        assistant = self._store.committer.assistant
        try:
            return assistant.look()
        except OSError as exc:
            if exc.errno is None:
                # No file's: a signal handler's.
                raise
            return False

    def _commit(self, proposal: Proposal | None, number: int = 0) -> list[int]:
        """The same here, unless the request of that number has been applied; with a number this thread has the turn."""
        store = self._store
        versions: list[int] = []
        refusal: TiermemError | None = None

        def work(writer: Writer) -> None:
            nonlocal versions, refusal
            try:
                known = answers.known(writer, store.slot) if number else None
            except CorruptionError as exc:
                # Nobody can say whether it was applied, and this says so once.
                answers.forget(writer, store.slot)
                refusal = exc
                return
            if known is not None and known.number == number:
                versions = known.versions
            elif proposal is not None:
                try:
                    ops = proposals.decide(store, writer, proposal)
                except TiermemError as exc:
                    # It changed nothing; what was drained is still worth committing.
                    refusal = exc
                else:
                    versions = _apply(store, writer, ops)

        # Where a cursor stands has nothing to do with what is pending.
        store.committer.commit(everything=proposal is None or proposal.place is None, work=work, turn=not number)
        if refusal is not None:
            raise refusal
        return versions

    def _answer(self, slot: int, number: int) -> Answer | None:
        """The answer to the request of that number, if it is there and whole."""
        try:
            answer = unpack_answer(b"answer", self._answers.read(slot))
        except CorruptionError:
            return None
        return answer if answer.number == number else None

    def close(self) -> None:
        """Close its files; nobody is asking."""
        self._requests.close()
        self._answers.close()

    # In the helper

    def serve(self) -> bool:
        """Answer what clients have asked; True if any has."""
        store, asking = self._store, self._store.control.asking
        wanted: dict[int, int] = {}
        slot = -1
        while (slot := bytes(asking).find(1, slot + 1)) >= 0:
            # Before it is looked: whoever asks again from here on is seen the next time.
            asking[slot] = 0
            request = unpack_request(self._requests.read(slot))
            # An answer that was given is not given again: what it says may not hold any more.
            if request is not None and self._answer(slot, request.number) is None:
                wanted[slot] = request.number
        living = store.control.live() if wanted else []
        # Nobody waits for what a client that has died had asked, and nobody would expect it to be done this late.
        wanted = {slot: number for slot, number in wanted.items() if slot in living}
        if not wanted:
            return False
        found: dict[int, Answer] = {}

        def work(writer: Writer) -> None:
            for slot, number in wanted.items():
                # What was put before it was asked is drained. It may have been withdrawn meanwhile, and made anew.
                request = unpack_request(self._requests.read(slot))
                if request is not None and request.number == number:
                    found[slot] = self._decided(writer, slot, request)

        store.committer.commit(everything=True, work=work)
        for slot, answer in found.items():
            # Who gets none looks for it in L3.
            with suppress(OSError):
                self._answers.write(slot, pack_row(b"answer", answer))
            store.control.bells.ring(slot, (ASLEEP, LISTENING))
        return True

    def _decided(self, writer: Writer, slot: int, request: Request) -> Answer:
        """Apply a request, unless that was done; the answer."""
        number, proposal = request.number, request.proposal
        if proposal is None:
            return Answer(number)
        try:
            known = answers.known(writer, slot)
            if known is not None and known.number == number:
                return known
            ops = proposals.decide(self._store, writer, proposal)
        except VersionConflict as exc:
            return Answer(number, [], VersionConflict.__name__, str(exc), exc.expected, exc.found)
        except TiermemError as exc:
            name = type(exc).__name__
            return Answer(number, [], name if name in _REFUSALS else _DECLINED, str(exc))
        answer = Answer(number, _apply(self._store, writer, ops))
        answers.keep(writer, slot, answer)
        return answer


def _apply(store: Store, writer: Writer, ops: Sequence[Operation]) -> list[int]:
    """Make decided writes; their versions."""
    with store.lock:
        store.observe(writer.counters.highest)
        for op in ops:
            op.version = store.next_version()
    return [writer.apply(op, decided=True) for op in ops]
