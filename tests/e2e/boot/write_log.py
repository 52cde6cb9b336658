"""What a disk was told, as QEMU's `blklogwrites` recorded it, and what a power cut can leave of it.

The format is that of dm-log-writes: a superblock, then for each request a sector that says where
and what, and its data. Between two flushes a disk may do writes in any order, lose any of them,
and tear one that has several sectors; a sector lands whole or not at all. A write that was asked
for with FUA is durable by itself.

The log has requests in the order in which the guest gave them. Of one that was under way when a
flush was given it cannot be told whether the flush covers it; Linux waits for those that matter.
"""

from __future__ import annotations

import hashlib
import itertools
import mmap
import random
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

MAGIC: Final = 0x6A736677736872
SECTOR: Final = 512
CHUNK: Final = 64 * 1024  # digests are kept for pieces of this size
GROUP: Final = 64  # and for as many of them together
_SUPER: Final = struct.Struct("<QQQI")
_ENTRY: Final = struct.Struct("<QQQQ")
_FLUSH, _FUA, _DISCARD = 1, 2, 4

EXHAUSTIVE_SECTORS: Final = 8  # up to so many changed sectors, every subset is examined
SAMPLED: Final = 40  # of larger ones, random subsets beside the regular ones
REGULAR: Final = 60  # of each regular kind, at most; of more they are spread evenly


class WriteLogError(ValueError):
    """The file is no log of writes."""


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes at an offset of the disk; `durable` when the guest asked for that by FUA."""

    offset: int
    data: bytes
    durable: bool = False


@dataclass(frozen=True, slots=True)
class Flush:
    """All before it is durable."""


Step: TypeAlias = Write | Flush


def read_log(path: Path) -> list[Step]:
    """Return what was asked of the disk, in order.

    Raises:
        WriteLogError: the file is no log of writes.
    """
    with path.open("rb") as file:
        magic, version, count, sector = _SUPER.unpack(file.read(_SUPER.size))
        if (magic, version) != (MAGIC, 1):
            raise WriteLogError(f"{path} is no log of writes")
        steps: list[Step] = []
        at = sector
        for _ in range(count):
            file.seek(at)
            begin, sectors, flags, _length = _ENTRY.unpack(file.read(_ENTRY.size))
            at += sector
            size = sectors * sector
            if flags & _FLUSH:
                steps.append(Flush())
            if size:
                file.seek(at)
                data = bytes(size) if flags & _DISCARD else file.read(size)
                steps.append(Write(begin * sector, data, durable=bool(flags & _FUA)))
            at += 0 if flags & _DISCARD else size
    return steps


def entries_in(path: Path) -> int:
    """Return how many requests a log has now; QEMU counts them as they come."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        found = file.read(_SUPER.size)
    return int(_SUPER.unpack(found)[2]) if len(found) == _SUPER.size else 0


class Medium:
    """A disk in memory that knows the digest of each of its regions, however often it changes."""

    def __init__(self, image: Path) -> None:
        """Read a disk file; its holes cost nothing."""
        self.size = image.stat().st_size
        self._bytes = mmap.mmap(-1, self.size)
        with image.open("rb") as file:
            for at in range(0, self.size, CHUNK):
                piece = file.read(CHUNK)
                if piece.count(0) != len(piece):
                    self._bytes[at : at + len(piece)] = piece
        self._chunks: dict[int, bytes] = {}
        self._groups: dict[int, bytes] = {}  # by the number of the first chunk

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes."""
        return self._bytes[offset : offset + size]

    def write(self, offset: int, data: bytes) -> None:
        """Replace bytes."""
        self._bytes[offset : offset + len(data)] = data
        for chunk in range(offset // CHUNK, -(-(offset + len(data)) // CHUNK)):
            self._chunks.pop(chunk, None)
            self._groups.pop(chunk - chunk % GROUP, None)

    @contextmanager
    def changed(self, writes: Iterable[Write]) -> Iterator[None]:
        """Have these writes done for a while."""
        old: list[Write] = []
        for write in writes:
            old.append(Write(write.offset, self.read(write.offset, len(write.data))))
            self.write(write.offset, write.data)
        try:
            yield
        finally:
            for write in reversed(old):
                self.write(write.offset, write.data)

    def digest(self, offset: int = 0, size: int | None = None) -> bytes:
        """Return what tells a region's content from any other."""
        end = self.size if size is None else offset + size
        whole = hashlib.blake2b(digest_size=16)
        first, last = -(-offset // CHUNK), end // CHUNK
        if first >= last:
            whole.update(self.read(offset, end - offset))
            return whole.digest()
        whole.update(self.read(offset, first * CHUNK - offset))
        while first < last:
            # A group that is inside is one step, so that a whole disk takes few.
            in_group = first % GROUP == 0 and first + GROUP <= last
            whole.update(self._digest_of_group(first) if in_group else self._digest_of_chunk(first))
            first += GROUP if in_group else 1
        whole.update(self.read(last * CHUNK, end - last * CHUNK))
        return whole.digest()

    def _digest_of_group(self, first: int) -> bytes:
        known = self._groups.get(first)
        if known is None:
            chunks = b"".join(self._digest_of_chunk(first + number) for number in range(GROUP))
            known = self._groups[first] = hashlib.blake2b(chunks, digest_size=16).digest()
        return known

    def _digest_of_chunk(self, chunk: int) -> bytes:
        known = self._chunks.get(chunk)
        if known is None:
            piece = self.read(chunk * CHUNK, CHUNK)
            known = self._chunks[chunk] = hashlib.blake2b(piece, digest_size=16).digest()
        return known


@dataclass(frozen=True, slots=True)
class CutState:
    """One state that a power cut can leave; the medium holds it until the next one is asked for.

    Attributes:
        flushes: how many flushes were complete.
        kind: how it came to be: `prefix`, `torn`, `lost`, `alone`, `subset`, `random`.
        landed: how many of the sectors that were under way.
    """

    flushes: int
    kind: str
    landed: int


def cut_states(
    medium: Medium, steps: Sequence[Step], chance: random.Random, *, sampled: int | None = None
) -> Iterator[CutState]:
    """Bring a medium through all states that a cut can leave, or a fair sample of them.

    Every prefix is among them. Afterwards the medium holds what it holds at the end.

    Args:
        medium: holds what the disk held before the first step.
        steps: what it was told.
        chance: picks the sample.
        sampled: random states between two flushes with many changed sectors.
    """
    count = SAMPLED if sampled is None else sampled
    flushes = 0
    pending: list[Write] = []
    for step in [*steps, Flush()]:
        if isinstance(step, Write):
            pending.append(step)
            continue
        yield from _between_flushes(medium, pending, flushes, chance, count)
        for write in pending:
            medium.write(write.offset, write.data)
        pending = []
        flushes += 1


def _between_flushes(
    medium: Medium, pending: Sequence[Write], flushes: int, chance: random.Random, sampled: int
) -> Iterator[CutState]:
    volatile = [write for write in pending if not write.durable]
    sure = [write for write in pending if write.durable]
    sectors = _sectors(medium, volatile)
    yield CutState(flushes, "prefix", 0)
    yield from _prefixes(medium, pending, flushes)
    if len(sectors) <= EXHAUSTIVE_SECTORS:
        for count in range(1, len(sectors)):
            for chosen in itertools.combinations(sectors, count):
                with medium.changed([*chosen, *sure]):
                    yield CutState(flushes, "subset", count)
        return
    yield from _one_by_one(medium, volatile, sure, flushes)
    for _ in range(sampled):
        share = chance.choice((0.1, 0.5, 0.9))
        chosen = tuple(write for write in _pieces(sectors, chance) if chance.random() < share)
        with medium.changed([*chosen, *sure]):
            yield CutState(flushes, "random", len(chosen))


def _prefixes(medium: Medium, changes: Sequence[Write], flushes: int) -> Iterator[CutState]:
    """Yield the states of a disk that keeps the order, with the last write whole or torn."""
    done: list[Write] = []
    torn = set(_spread(range(len(changes)), REGULAR))
    before: list[Write] = []
    for number, write in enumerate(changes):
        old = Write(write.offset, medium.read(write.offset, len(write.data)))
        if number in torn:
            for landed in _tears(write):
                with medium.changed([landed]):
                    yield CutState(flushes, "torn", len(landed.data) // SECTOR)
        medium.write(write.offset, write.data)
        before.append(old)
        done.append(write)
        yield CutState(flushes, "prefix", number + 1)
    for old in reversed(before):
        medium.write(old.offset, old.data)


def _tears(write: Write) -> Iterator[Write]:
    """Yield a write of several sectors as it lands in part: its begin, or its end."""
    sectors = len(write.data) // SECTOR
    for count in sorted({1, sectors // 2, sectors - 1} - {0, sectors}):
        yield Write(write.offset, write.data[: count * SECTOR])
        cut = (sectors - count) * SECTOR
        yield Write(write.offset + cut, write.data[cut:])


def _one_by_one(
    medium: Medium, writes: Sequence[Write], sure: Sequence[Write], flushes: int
) -> Iterator[CutState]:
    """Yield the states in which one write alone landed, and in which one alone was lost."""
    chosen = list(_spread(range(len(writes)), REGULAR))
    for number in chosen:
        with medium.changed([writes[number], *sure]):
            yield CutState(flushes, "alone", 1)
    old = [Write(write.offset, medium.read(write.offset, len(write.data))) for write in writes]
    with medium.changed([*writes, *sure]):
        for number in chosen:
            overlaps = [other for other in writes[number + 1 :] if _overlap(other, writes[number])]
            with medium.changed([old[number], *overlaps]):
                yield CutState(flushes, "lost", len(writes) - 1)


def _overlap(one: Write, other: Write) -> bool:
    return one.offset < other.offset + len(other.data) and other.offset < one.offset + len(one.data)


def _sectors(medium: Medium, writes: Sequence[Write]) -> list[Write]:
    """Return the sectors that these writes change, each as it is in the end."""
    last: dict[int, bytes] = {}
    for write in writes:
        for at in range(0, len(write.data), SECTOR):
            last[write.offset + at] = write.data[at : at + SECTOR]
    return [Write(at, data) for at, data in last.items() if medium.read(at, SECTOR) != data]


def _pieces(sectors: Sequence[Write], chance: random.Random) -> Iterator[Write]:
    """Yield the sectors in neighbourhoods of random length: thousands one by one take too long."""
    longest = max(1, len(sectors) // 64)
    at = 0
    while at < len(sectors):
        count = chance.randint(1, longest)
        run = sectors[at : at + count]
        at += count
        begin = 0
        for number in range(1, len(run) + 1):
            if number == len(run) or run[number].offset != run[number - 1].offset + SECTOR:
                data = b"".join(one.data for one in run[begin:number])
                yield Write(run[begin].offset, data)
                begin = number


def _spread(numbers: range, most: int) -> Iterator[int]:
    """Yield all of few numbers, or as many of many, evenly from the first to the last."""
    if len(numbers) <= most:
        yield from numbers
        return
    for at in range(most):
        yield numbers[at * (len(numbers) - 1) // (most - 1)]
