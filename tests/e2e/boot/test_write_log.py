"""The states that a power cut can leave, made of logs that are written here: no machine boots."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from tests.e2e.boot.write_log import (
    CHUNK,
    GROUP,
    MAGIC,
    SECTOR,
    CutState,
    Flush,
    Medium,
    Step,
    Write,
    WriteLogError,
    cut_states,
    read_log,
)

DISK_BYTES = 4 * CHUNK


def sector(letter: str, count: int = 1) -> bytes:
    return letter.encode() * SECTOR * count


@pytest.fixture
def medium(tmp_path: Path) -> Medium:
    image = tmp_path / "disk"
    image.write_bytes(sector("."))
    with image.open("r+b") as file:
        file.truncate(DISK_BYTES)
    return Medium(image)


def reached(medium: Medium, steps: list[Step], size: int) -> dict[bytes, list[CutState]]:
    """Return what the first bytes of the medium held, and in which states."""
    found: dict[bytes, list[CutState]] = {}
    for state in cut_states(medium, steps, random.Random(1)):
        held = medium.read(0, size)
        found.setdefault(bytes(held[::SECTOR]), []).append(state)
    return found


def test_of_two_writes_before_a_flush_either_may_be_lost(medium: Medium) -> None:
    steps: list[Step] = [Write(0, sector("A")), Write(SECTOR, sector("B")), Flush()]

    assert set(reached(medium, steps, 2 * SECTOR)) == {b".\0", b"A\0", b".B", b"AB"}


def test_what_a_flush_made_durable_is_never_lost(medium: Medium) -> None:
    steps: list[Step] = [Write(0, sector("A")), Flush(), Write(SECTOR, sector("B"))]

    assert set(reached(medium, steps, 2 * SECTOR)) == {b".\0", b"A\0", b"AB"}


def test_a_write_of_several_sectors_is_torn_between_any_two(medium: Medium) -> None:
    found = reached(medium, [Write(0, b"".join(map(sector, "ABC")))], 3 * SECTOR)

    assert set(found) == {b".\0\0", b"A\0\0", b".B\0", b".\0C", b"AB\0", b".BC", b"A\0C", b"ABC"}


def test_a_write_with_fua_is_there_whatever_else_is_lost(medium: Medium) -> None:
    steps: list[Step] = [
        Write(0, sector("A")),
        Write(SECTOR, sector("B"), durable=True),
        Write(2 * SECTOR, sector("C")),
    ]

    found = reached(medium, steps, 3 * SECTOR)

    reordered = [held for held, states in found.items() if any(s.kind == "subset" for s in states)]
    assert reordered
    assert all(held[1:2] == b"B" for held in reordered)


def test_sectors_that_are_written_twice_may_hold_what_came_first(medium: Medium) -> None:
    assert set(reached(medium, [Write(0, sector("A")), Write(0, sector("B"))], SECTOR)) == {
        b".",
        b"A",
        b"B",
    }


def test_afterwards_the_medium_holds_what_the_log_ends_with(medium: Medium) -> None:
    chance = random.Random(2)
    steps: list[Step] = []
    held = bytearray(medium.read(0, DISK_BYTES))
    for _ in range(60):
        at, count = chance.randrange(DISK_BYTES // SECTOR - 8), chance.randint(1, 8)
        data = chance.randbytes(count * SECTOR)
        steps += [Write(at * SECTOR, data)] + [Flush()] * (chance.random() < 0.2)
        held[at * SECTOR : at * SECTOR + len(data)] = data

    states = list(cut_states(medium, steps, random.Random(1)))

    assert len(states) > 60
    assert medium.read(0, DISK_BYTES) == held


def test_a_digest_is_of_what_is_held_and_not_of_how_it_came_there(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate((GROUP + 2) * CHUNK)
    medium, other = Medium(image), Medium(image)
    before = medium.digest()
    medium.write(3 * CHUNK - 5, b"0123456789")

    assert medium.digest() != before
    assert medium.digest(0, 2 * CHUNK) == other.digest(0, 2 * CHUNK)
    assert medium.digest(SECTOR, 3 * CHUNK) != other.digest(SECTOR, 3 * CHUNK)
    other.write(3 * CHUNK, b"56789")
    other.write(3 * CHUNK - 5, b"01234")
    assert medium.digest() == other.digest()


def test_a_log_is_read_as_qemu_writes_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    entries = [
        (8, 1, 0, sector("A")),
        (0, 0, 1, b""),  # a flush
        (9, 2, 2, sector("B", 2)),  # with FUA
        (0, 4, 4, b""),  # a discard has no data
    ]
    head = struct.pack("<QQQI", MAGIC, 1, len(entries), SECTOR).ljust(SECTOR, b"\0")
    body = b"".join(
        struct.pack("<QQQQ", at, count, flags, 0).ljust(SECTOR, b"\0") + data
        for at, count, flags, data in entries
    )
    log.write_bytes(head + body + sector("?"))

    assert read_log(log) == [
        Write(8 * SECTOR, sector("A")),
        Flush(),
        Write(9 * SECTOR, sector("B", 2), durable=True),
        Write(0, bytes(4 * SECTOR)),
    ]


def test_another_file_is_no_log(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(bytes(4096))

    with pytest.raises(WriteLogError):
        read_log(tmp_path / "log")
