"""The journal: a ring that keeps every frame below its head, and says so when it cannot."""

from __future__ import annotations

import errno
import os
import random
import struct
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from xxhash import xxh3_64_intdigest

from tiermem.errors import CorruptionError, IncompatibleFormatError, StorageError, StoreFullError
from tiermem.tiers import journal as module
from tiermem.tiers.journal import FRAME_BYTES, HEADER_BYTES, Journal, boot_id

CAPACITY = 4096
STORE = bytes(range(16))


def serving(path: Path, capacity: int = CAPACITY, journal_id: int = 7) -> Journal:
    journal = Journal.create(path, capacity)
    journal.reset(STORE, journal_id)
    return journal


def flip(path: Path, offset: int, mask: int = 1) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes((byte ^ mask,)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "000.journal"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    journal = serving(path)
    yield journal
    journal.close()


class RingMachine(RuleBasedStateMachine):
    """Appends, reads and applies against a list of what must still be there."""

    @initialize(steps=st.integers(0, 3))
    def begin(self, steps: int) -> None:
        import tempfile

        self.folder = tempfile.TemporaryDirectory(prefix="tiermem-journal-")
        self.path = Path(self.folder.name) / "000.journal"
        self.id = 1
        self.journal = serving(self.path, CAPACITY, self.id)
        self.reader = Journal(self.path, writable=False)
        self.kept: deque[tuple[int, int, bytes]] = deque()
        self.fill = 0
        # Somewhere in the ring, so that its end is near.
        for _ in range(steps * 37):
            end = self.journal.append(b"x" * 40, 1)
            self.journal.applied = end

    @rule(size=st.one_of(st.integers(0, 64), st.integers(0, CAPACITY // 2 - FRAME_BYTES)), count=st.integers(1, 9))
    def append(self, size: int, count: int) -> None:
        self.fill = (self.fill + 1) % 251
        payload = bytes((self.fill,)) * size
        before, applied = self.journal.head, self.journal.applied
        end = self.journal.append(payload, count)
        if end:
            assert end == self.journal.head > before
            assert end - applied <= CAPACITY
            self.kept.append((end, count, payload))
        else:
            assert self.journal.head == before
            # It is refused only where it could indeed not be placed.
            need = (size + FRAME_BYTES + 7) & ~7
            assert before - applied + 2 * need > CAPACITY

    @precondition(lambda self: self.kept)
    @rule(share=st.floats(0, 1))
    def apply(self, share: float) -> None:
        for _ in range(max(1, int(len(self.kept) * share))):
            self.journal.applied = self.kept.popleft()[0]

    @rule()
    def reset(self) -> None:
        self.id += 1
        self.journal.reset(STORE, self.id)
        assert self.reader.refresh()
        assert not self.reader.refresh()
        self.kept.clear()

    @rule()
    def reopen(self) -> None:
        applied = self.journal.applied
        self.journal.close()
        self.journal = Journal(self.path, writable=True)
        assert (self.journal.id, self.journal.store_id) == (self.id, STORE)
        self.journal.applied = applied

    @invariant()
    def everything_is_there(self) -> None:
        if hasattr(self, "journal"):
            for side in (self.journal, self.reader):
                assert [tuple(frame) for frame in side.frames(self.journal.applied)] == list(self.kept)

    @precondition(lambda self: len(self.kept) > 1)
    @rule(data=st.data())
    def read_a_part(self, data: st.DataObject) -> None:
        ends = [self.journal.applied, *(end for end, _, _ in self.kept)]
        first = data.draw(st.integers(0, len(self.kept)))
        last = data.draw(st.integers(first, len(self.kept)))
        found = list(self.reader.frames(ends[first], ends[last]))
        assert [tuple(frame) for frame in found] == list(self.kept)[first:last]

    def teardown(self) -> None:
        if hasattr(self, "journal"):
            self.reader.close()
            self.journal.close()
            self.folder.cleanup()


TestRing = RingMachine.TestCase


@pytest.mark.parametrize("left", range(0, 96, 8))
@pytest.mark.parametrize("size", [0, 8, 16, 24, 40, 72])
def test_a_frame_at_the_end_of_the_ring_at_every_alignment(tmp_path: Path, left: int, size: int) -> None:
    journal = serving(tmp_path / "j")
    # Two frames that end exactly `left` bytes before the end of the ring.
    half = CAPACITY // 2
    journal.append(b"a" * (half - FRAME_BYTES), 1)
    if half - left - FRAME_BYTES >= 0:
        journal.append(b"b" * (half - left - FRAME_BYTES), 1)
    assert journal.head == CAPACITY - left
    journal.applied = journal.head
    ends = [journal.append(bytes((number,)) * size, number) for number in range(1, 6)]
    assert all(ends)
    frames = list(journal.frames(journal.applied))
    assert [frame.payload for frame in frames] == [bytes((number,)) * size for number in range(1, 6)]
    assert [frame.end for frame in frames] == ends
    assert [frame.operations for frame in frames] == [1, 2, 3, 4, 5]
    for frame in frames:
        start = frame.end - ((size + FRAME_BYTES + 7) & ~7)
        assert start // CAPACITY == (frame.end - 1) // CAPACITY, "a frame straddles the end of the ring"
    journal.close()


def test_a_full_ring_takes_nothing_until_something_was_applied(journal: Journal) -> None:
    ends = []
    while end := journal.append(b"x" * 100, 1):
        ends.append(end)
    assert len(ends) == CAPACITY // 120
    head = journal.head
    assert journal.append(b"x" * 100, 1) == 0
    assert journal.head == head
    # The space behind the last frame is too short for another: two have to go before one fits in front.
    journal.applied = ends[0]
    assert journal.append(b"y" * 100, 1) > head
    assert [frame.payload[:1] for frame in journal.frames(ends[0])] == [b"x"] * (len(ends) - 1) + [b"y"]


def test_an_exactly_full_ring_is_readable(journal: Journal) -> None:
    for number in range(CAPACITY // 64):
        assert journal.append(bytes((number,)) * 48, 1)
    assert journal.head == CAPACITY
    assert journal.append(b"", 1) == 0
    assert [frame.payload[0] for frame in journal.frames(0)] == list(range(CAPACITY // 64))


def test_the_largest_frame_always_fits_an_applied_ring(journal: Journal) -> None:
    rng = random.Random(4)
    for _ in range(300):
        payload = rng.randbytes(rng.choice([journal.largest, journal.largest - 7, rng.randrange(60)]))
        end = journal.append(payload, 3)
        assert end
        assert [tuple(frame) for frame in journal.frames(journal.applied)][-1] == (end, 3, payload)
        journal.applied = end


def test_an_empty_payload_and_a_large_count(journal: Journal) -> None:
    end = journal.append(b"", 2**32 - 1)
    assert [tuple(frame) for frame in journal.frames(0)] == [(end, 2**32 - 1, b"")]


def test_a_new_journal_is_not_in_service(path: Path) -> None:
    journal = Journal.create(path, CAPACITY)
    assert (journal.id, journal.head, journal.capacity) == (0, 0, CAPACITY)
    assert path.stat().st_size == HEADER_BYTES + CAPACITY
    # Every block is there: a write through the map can never find the disk full.
    assert path.stat().st_blocks * 512 >= HEADER_BYTES + CAPACITY
    journal.close()
    assert os.listdir(path.parent) == [path.name]


def test_reset_empties_and_frames_of_the_past_do_not_come_back(journal: Journal, path: Path) -> None:
    journal.append(b"old" * 20, 1)
    journal.append(b"old" * 20, 1)
    old_head = journal.head
    journal.reset(STORE, 8)
    assert list(journal.frames(0)) == []
    # Were the head to come back, the frames would not: their checksums cover the journal's id.
    reader = Journal(path, writable=False)
    with pytest.raises(CorruptionError):
        list(reader.frames(0, old_head))
    reader.close()
    assert journal.append(b"new", 1)
    assert [frame.payload for frame in journal.frames(0)] == [b"new"]


def test_a_frame_of_another_lap_is_not_taken_for_one_of_this(journal: Journal, path: Path) -> None:
    while journal.append(b"lap one!", 1):
        pass
    assert journal.head == CAPACITY // 24 * 24
    reader = Journal(path, writable=False)
    # The same bytes at the same offset, one lap later: their checksum covers the position.
    with pytest.raises(CorruptionError):
        list(reader.frames(CAPACITY, CAPACITY + 24))
    reader.close()


def test_damage_in_a_journal_just_put_into_service_is_not_taken_for_a_reboot(journal: Journal, path: Path) -> None:
    journal.append(b"acknowledged", 1)
    journal.append(b"acknowledged too", 1)
    flip(path, HEADER_BYTES + 20)
    assert journal.boot == boot_id()
    with pytest.raises(CorruptionError):
        list(journal.frames(0))


def test_a_journal_takes_the_place_of_another(journal: Journal, path: Path) -> None:
    journal.append(b"old", 1)
    fresh = Journal.create(path.with_suffix(".fresh"), CAPACITY * 2)
    fresh.reset(STORE, 8)
    fresh.publish(path)
    assert os.listdir(path.parent) == [path.name]
    assert (fresh.path, fresh.id, fresh.capacity) == (path, 8, CAPACITY * 2)
    fresh.append(b"new", 1)
    # Who has the former one mapped keeps it.
    assert [frame.payload for frame in journal.frames(0)] == [b"old"]
    reader = Journal(path, writable=False)
    assert [frame.payload for frame in reader.frames(0)] == [b"new"]
    reader.close()
    fresh.close()


def test_behind_the_head_of_a_dead_owner_s_journal(journal: Journal, path: Path) -> None:
    """A frame that was complete when its writer died, and whose head was not yet moved."""
    ends = [journal.append(bytes((65 + number,)) * 500, number) for number in range(3)]
    reader = Journal(path, writable=False)

    def found(head: int, start: int = 0) -> list[bytes]:
        with path.open("r+b") as file:
            file.seek(128)
            file.write(struct.pack("=Q", head))
        assert [frame.end for frame in reader.frames(start)] == [end for end in ends if start < end <= head]
        return [frame.payload[:1] for frame in reader.frames(start, beyond=True)]

    for head in (0, *ends):
        assert found(head) == [b"A", b"B", b"C"]
    assert found(ends[0], ends[0]) == [b"B", b"C"]
    flip(path, HEADER_BYTES + ends[1] + 30)
    assert found(ends[1]) == [b"A", b"B"], "half a frame behind the head is none"
    with pytest.raises(CorruptionError):
        found(ends[2])
    reader.close()


def test_all_of_a_full_ring_behind_the_head(journal: Journal) -> None:
    journal.applied = journal.append(b"x" * 1000, 1)
    start = journal.applied
    while journal.append(b"y" * 1000, 1):
        pass
    frames = list(journal.frames(start))
    assert len(frames) >= 3
    assert list(journal.frames(start, beyond=True)) == frames


def test_a_reader_sees_what_is_appended(journal: Journal, path: Path) -> None:
    reader = Journal(path, writable=False)
    assert not reader.refresh()
    end = journal.append(b"one", 1)
    assert (reader.head, [frame.payload for frame in reader.frames(0)]) == (end, [b"one"])
    with pytest.raises(TypeError):
        reader.append(b"two", 1)
    journal.reset(bytes(16), 9)
    assert reader.refresh()
    assert (reader.id, reader.store_id, reader.head) == (9, bytes(16), 0)
    reader.close()


# ------------------------------------------------------------------------------------------------------------- damage


def three_frames(path: Path) -> list[int]:
    journal = serving(path)
    ends = [journal.append(bytes((65 + number,)) * 37, number + 1) for number in range(3)]
    journal.close()
    return ends


@pytest.mark.parametrize("part", ["checksum", "size", "count", "payload first", "payload last"])
@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_bit_in_a_frame(path: Path, part: str, bit: int) -> None:
    ends = three_frames(path)
    inside = {"checksum": 3, "size": 8, "count": 12, "payload first": 16, "payload last": 16 + 36}[part]
    flip(path, HEADER_BYTES + ends[0] + inside, 1 << bit)
    journal = Journal(path, writable=True)
    frames = journal.frames(0)
    assert next(frames).payload == b"A" * 37
    with pytest.raises(CorruptionError, match=f"damaged at position {ends[0]}"):
        next(frames)
    # What lies behind is not given out either, unless one starts there.
    assert [frame.payload for frame in journal.frames(ends[1])] == [b"C" * 37]
    journal.close()


@pytest.mark.parametrize("byte", range(8, 12))
def test_a_size_beyond_the_ring_is_damage_and_not_an_overrun(path: Path, byte: int) -> None:
    three_frames(path)
    flip(path, HEADER_BYTES + byte, 0x80)
    journal = Journal(path, writable=False)
    with pytest.raises(CorruptionError, match="damaged at position 0"):
        list(journal.frames(0))
    journal.close()


def test_the_padding_behind_a_frame_means_nothing(path: Path) -> None:
    ends = three_frames(path)
    flip(path, HEADER_BYTES + ends[0] - 1)
    journal = Journal(path, writable=True)
    assert len(list(journal.frames(0))) == 3
    journal.close()


def test_damage_to_the_mark_that_skips_the_end_of_the_ring(path: Path) -> None:
    journal = serving(path)
    for _ in range(2):
        journal.applied = journal.append(b"x" * 1500, 1)
    end = journal.append(b"y" * 1500, 1)
    assert end > CAPACITY
    assert [frame.payload[:1] for frame in journal.frames(journal.applied)] == [b"y"]
    offset = journal.applied
    journal.close()
    flip(path, HEADER_BYTES + offset)
    journal = Journal(path, writable=True)
    with pytest.raises(CorruptionError):
        list(journal.frames(offset))
    journal.close()


def test_after_a_reboot_a_damaged_frame_ends_the_iteration_quietly(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = three_frames(path)
    flip(path, HEADER_BYTES + ends[1] + 20)
    journal = Journal(path, writable=True)
    with pytest.raises(CorruptionError):
        list(journal.frames(0))
    monkeypatch.setattr(module, "boot_id", lambda: b"another boot....")
    assert [frame.payload[:1] for frame in journal.frames(0)] == [b"A", b"B"]
    journal.close()


def test_a_head_far_beyond_the_ring(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three_frames(path)
    with path.open("r+b") as file:
        file.seek(128)
        file.write(struct.pack("=Q", CAPACITY + 8))
    journal = Journal(path, writable=True)
    assert journal.head == CAPACITY + 8
    with pytest.raises(CorruptionError, match="beyond the ring"):
        list(journal.frames(0))
    monkeypatch.setattr(module, "boot_id", lambda: b"another boot....")
    assert list(journal.frames(0)) == []
    journal.close()


def test_a_mark_beyond_the_head_has_nothing_behind_it(journal: Journal) -> None:
    end = journal.append(b"x", 1)
    assert list(journal.frames(end + 800)) == []


@pytest.mark.parametrize("offset", [0, 3, 8, 16, 20, 32, 40, 48, 60, 63, 64, 71])
def test_a_damaged_header_is_refused(path: Path, offset: int) -> None:
    three_frames(path)
    flip(path, offset)
    with pytest.raises(CorruptionError, match="header fails its checksum"):
        Journal(path, writable=True)


def test_a_header_damaged_under_a_reader(path: Path) -> None:
    three_frames(path)
    journal = Journal(path, writable=False)
    flip(path, 33)
    with pytest.raises(CorruptionError):
        journal.refresh()
    journal.close()


def rewrite_header(path: Path, **changes: int) -> None:
    layout = struct.Struct("<8sII16sQQ16s")
    raw = bytearray(path.read_bytes())
    names = ["magic", "form", "reserved", "store", "id", "capacity", "boot"]
    fields: dict[str, Any] = dict(zip(names, layout.unpack_from(raw), strict=True))
    header = layout.pack(*{**fields, **changes}.values())
    raw[: layout.size + 8] = header + struct.pack("<Q", xxh3_64_intdigest(header))
    path.write_bytes(raw)


def test_a_newer_format_is_refused_as_such(path: Path) -> None:
    three_frames(path)
    rewrite_header(path, form=2)
    with pytest.raises(IncompatibleFormatError, match="format 2"):
        Journal(path, writable=True)


@pytest.mark.parametrize("capacity", [CAPACITY * 2, CAPACITY - 8, 0])
def test_a_capacity_that_is_not_the_file_s(path: Path, capacity: int) -> None:
    three_frames(path)
    rewrite_header(path, capacity=capacity)
    with pytest.raises(CorruptionError, match="header says"):
        Journal(path, writable=True)


def test_a_file_cut_or_grown_is_refused(path: Path) -> None:
    three_frames(path)
    os.truncate(path, HEADER_BYTES + CAPACITY * 2)
    with pytest.raises(CorruptionError, match="header says"):
        Journal(path, writable=True)
    for size in (HEADER_BYTES + 4095, 100, 0):
        os.truncate(path, size)
        with pytest.raises(CorruptionError, match="shorter than its header"):
            Journal(path, writable=True)


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        Journal(tmp_path / "absent", writable=False)
    assert isinstance(caught.value.__cause__, FileNotFoundError)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, StoreFullError),
        (errno.EFBIG, StoreFullError),
        (errno.EDQUOT, StoreFullError),
        (errno.EIO, StorageError),
    ],
)
def test_a_file_system_that_refuses(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(kind) as caught:
        Journal.create(path, CAPACITY)
    assert type(caught.value) is kind
    assert os.listdir(path.parent) == [], "something was left behind"


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("call", ["fsync", "rename", "open"])
def test_a_journal_that_cannot_be_put_into_service(
    journal: Journal, path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as broken:
        broken.setattr(module.os, call, refuse)
        kind = StoreFullError if code == errno.ENOSPC else StorageError
        with pytest.raises(kind, match="put into service") as caught:
            journal.publish(path)
    assert isinstance(caught.value.__cause__, OSError)
    journal.publish(path)
    assert path.exists()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        Journal.create(tmp_path / "absent" / "000.journal", CAPACITY)


# ------------------------------------------------------------------------------------------------------------ boot id


def test_the_boot_id_is_16_bytes_and_stays() -> None:
    assert len(boot_id()) == 16
    assert boot_id() == boot_id()


@pytest.mark.parametrize("text", [None, "no hexadecimal at all", "ä"])
def test_an_unknown_boot_id_is_zeros(monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    def read(self: Path, **_: object) -> str:
        if text is None:
            raise FileNotFoundError(str(self))
        return text

    monkeypatch.setattr(Path, "read_text", read)
    assert boot_id() == bytes(16)
