"""Which operations of a full payload this node has the output of already, and where.

Level 1 compares the bytes at the same place with the signed hash of an operation; level 2 looks
single blocks up by the short hashes of the block index, wherever they are. Nothing is believed:
`LocalOutput.read` compares what it gathers with the full hash. Memory: some 20 bytes for each
block that level 1 did not settle; slots are read in pieces of 1 MiB. Level 1 reads a slot
whole that has a quarter of a sample, level 2 one that has something of it.
"""

from __future__ import annotations

import enum
import hashlib
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from struct import iter_unpack
from typing import TYPE_CHECKING, Final

from images.block_index import blocks, hashes_by_operation
from images.payload import CLEARS, IndexGroup, Operation, Part

if TYPE_CHECKING:
    from images.source import OldImage

READ_BYTES: Final = 1024 * 1024  # of a slot, at once
SAMPLE: Final = 16  # operations that are looked at before a whole slot is
ENOUGH: Final = 4  # one in so many of the sample
SAMPLE_BLOCKS: Final = 512  # a slot of whose blocks one in a hundred would serve is found useful
_BUCKETS: Final = 256
_NOWHERE: Final = 2**64 - 1


class Origin(enum.IntEnum):
    """Where a block is."""

    BOOTED = 0
    PASSIVE = 1
    ZEROS = 2


@dataclass(frozen=True, slots=True)
class LocalOutput:
    """Where the output of an operation is on this node.

    Attributes:
        places: of each block in the order of its output, as `place` makes them; None for the
            operation's own blocks in `origin`.
        origin: of all blocks, where `places` is None.
    """

    places: array[int] | None
    origin: Origin

    @property
    def in_place(self) -> bool:
        """Tell whether the passive slot holds it where it belongs: nothing is to be written."""
        return self.places is None and self.origin is Origin.PASSIVE

    def read(
        self, operation: Operation, images: Mapping[Origin, OldImage], *, block_size: int
    ) -> bytes | None:
        """Return the output, or None when this is not it (any more)."""
        runs = _runs(operation, self)
        data = b"".join(_pieces(runs, images, block_size))
        return data if hashlib.sha256(data).digest() == operation.dst_sha256 else None


def place(origin: Origin, block: int) -> int:
    """Return origin and block as one number."""
    return block << 2 | origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What is known before a part is scanned.

    Attributes:
        part: of a full payload.
        first: the number of its first operation that is not written yet.
        images: the slots that may be read.
        block_size: bytes of a block.
        avoided: operations that shall be fetched: what was thought to be theirs was not.
        look: called now and then; raises when the install shall stop.
    """

    part: Part
    first: int
    images: Mapping[Origin, OldImage]
    block_size: int
    avoided: frozenset[int]
    look: Callable[[], None]

    def open(self) -> list[int]:
        """Return the operations whose output is asked for."""
        return [
            number
            for number, operation in enumerate(self.part.operations)
            if number >= self.first and number not in self.avoided and operation.kind not in CLEARS
        ]


def at_the_same_place(scan: Scan) -> dict[int, LocalOutput]:
    """Return the operations whose output a slot holds where it belongs: level 1."""
    found: dict[int, LocalOutput] = {}
    for origin in (Origin.PASSIVE, Origin.BOOTED):
        if origin in scan.images:
            left = [number for number in scan.open() if number not in found]
            if _enough_in_sample(scan, left, origin):
                found |= {n: LocalOutput(None, origin) for n in left if _holds(scan, n, origin)}
    return found


def groups_for(part: Part, numbers: Iterable[int]) -> list[IndexGroup]:
    """Return the groups of the block index that tell of these operations."""
    if part.index is None:
        return []
    wanted = set(numbers)
    return [
        group
        for group in part.index.groups
        if group.length and wanted.intersection(range(group.first, group.first + group.count))
    ]


def anywhere(
    scan: Scan, numbers: Iterable[int], fetched: Sequence[tuple[IndexGroup, bytes]]
) -> dict[int, LocalOutput]:
    """Return the operations all of whose blocks are somewhere in the slots: level 2.

    A block of the passive slot that an earlier operation overwrites is none, unless that one is
    written already.

    Args:
        scan: as for level 1.
        numbers: operations that level 1 did not settle.
        fetched: what `groups_for` returned, with its bytes, compared with its hash.
    """
    index = scan.part.index
    if index is None:
        return {}
    unsettled = set(numbers)
    hashes = {
        number: data
        for group, whole in fetched
        for number, data in hashes_by_operation(
            scan.part, index, group, whole, block_size=scan.block_size
        )
        if number in unsettled
    }
    size = index.hash_size
    zeros = hashlib.sha256(bytes(scan.block_size)).digest()
    serving = [
        origin
        for origin in (Origin.BOOTED, Origin.PASSIVE)
        if origin in scan.images and _serves(scan, hashes.values(), origin, hash_size=size)
    ]
    if not serving:  # then nothing is there but zeros: no need to sort what is looked for
        hashes = {n: data for n, data in hashes.items() if not data.replace(zeros[:size], b"")}
    wanted = _Wanted(size)
    for data in hashes.values():
        wanted.add(data)
    wanted.sort()
    wanted.note(zeros, place(Origin.ZEROS, 0))
    for origin in serving:
        for block, digest in _digests(scan, origin):
            wanted.note(digest, place(origin, block))
    owners = _owners(scan) if Origin.PASSIVE in serving else array("I")
    result: dict[int, LocalOutput] = {}
    for number, data in hashes.items():
        places = wanted.places(data)
        if _NOWHERE not in places and all(_lasts(scan, owners, number, p) for p in places):
            result[number] = LocalOutput(places, Origin.BOOTED)
    return result


class _Wanted:
    """Short hashes that are looked for, and where each was seen first.

    Sorted arrays in buckets: 16 bytes a hash, where a dictionary takes a hundred.
    """

    def __init__(self, hash_size: int) -> None:
        self._size = hash_size
        self._hashes = [array("Q") for _ in range(_BUCKETS)]
        self._seen: list[array[int]] = []

    def add(self, hashes: bytes) -> None:
        for at in range(0, len(hashes), self._size):
            self._hashes[hashes[at]].append(int.from_bytes(hashes[at : at + self._size], "big"))

    def sort(self) -> None:
        for number, bucket in enumerate(self._hashes):
            self._hashes[number] = array("Q", sorted(set(bucket)))
            self._seen.append(array("Q", [_NOWHERE]) * len(self._hashes[number]))

    def note(self, digest: bytes, where: int) -> None:
        """Note where a block of this SHA-256 is, if it is looked for and nowhere yet."""
        at = self._find(digest[: self._size])
        if at is not None and self._seen[digest[0]][at] == _NOWHERE:
            self._seen[digest[0]][at] = where

    def places(self, hashes: bytes) -> array[int]:
        """Return the place of each hash, `_NOWHERE` where it was not seen."""
        result = array("Q")
        for at in range(0, len(hashes), self._size):
            found = self._find(hashes[at : at + self._size])
            result.append(_NOWHERE if found is None else self._seen[hashes[at]][found])
        return result

    def _find(self, short: bytes) -> int | None:
        bucket = self._hashes[short[0]]
        value = int.from_bytes(short, "big")
        at = bisect_left(bucket, value)
        return at if at < len(bucket) and bucket[at] == value else None


def _enough_in_sample(scan: Scan, numbers: Sequence[int], origin: Origin) -> bool:
    """Tell whether a slot holds enough of some operations, spread over the part, to try all.

    Where few lie where they belong, level 2 has to read the slot anyway, and finds these, too.
    """
    step = max(1, len(numbers) // SAMPLE)
    sample = numbers[::step][:SAMPLE]
    held = sum(_holds(scan, number, origin) for number in sample)
    return held * ENOUGH >= len(sample) > 0


def _holds(scan: Scan, number: int, origin: Origin) -> bool:
    scan.look()
    operation = scan.part.operations[number]
    local = LocalOutput(None, origin)
    return local.read(operation, scan.images, block_size=scan.block_size) is not None


def _serves(scan: Scan, hashes: Iterable[bytes], origin: Origin, *, hash_size: int) -> bool:
    """Tell whether blocks of a slot, spread over it, are looked for: hashing all costs seconds."""
    image, size = scan.images[origin], scan.block_size
    total = -(-scan.part.size // size)
    sample = {
        hashlib.sha256(image.read_at(block * size, size)).digest()[:hash_size]
        for block in range(0, 2 * total, -(-total // SAMPLE_BLOCKS))  # a slot has room to spare
    }
    sample.discard(hashlib.sha256(bytes(size)).digest()[:hash_size])
    return any(
        not sample.isdisjoint(chain.from_iterable(iter_unpack(f"{hash_size}s", data)))
        for data in hashes
    )


def _digests(scan: Scan, origin: Origin) -> Iterator[tuple[int, bytes]]:
    """Yield the blocks of a slot that are not zeros, and their SHA-256; as far as it goes."""
    image, size = scan.images[origin], scan.block_size
    zeros = bytes(size)
    offset = 0
    # One thread reads ahead. More that hash would wait for each other: a block is soon hashed.
    with ThreadPoolExecutor(1, thread_name_prefix="look") as pool:
        coming = pool.submit(image.read_at, 0, READ_BYTES)
        while data := coming.result():
            coming = pool.submit(image.read_at, offset + len(data), READ_BYTES)
            scan.look()
            for at in range(0, len(data) - size + 1, size):
                block = data[at : at + size]
                if block != zeros:
                    yield (offset + at) // size, hashlib.sha256(block).digest()
            if len(data) < READ_BYTES:
                return
            offset += len(data)


def _owners(scan: Scan) -> array[int]:
    """Return for each block of the image the operation that writes it."""
    owners = array("I", bytes(4 * -(-scan.part.size // scan.block_size)))
    for number, operation in enumerate(scan.part.operations):
        for block in blocks(operation):
            owners[block] = number
    return owners


def _lasts(scan: Scan, owners: array[int], number: int, where: int) -> bool:
    """Tell whether a block is as it is until operation `number` has read it."""
    block = where >> 2
    if where & 3 != Origin.PASSIVE or block >= len(owners):
        return True
    return owners[block] >= number or owners[block] < scan.first


def _runs(operation: Operation, local: LocalOutput) -> Iterator[tuple[Origin, int, int]]:
    """Yield (origin, first block, number of blocks), neighbours joined."""
    if local.places is None:
        for extent in operation.dst_extents:
            yield local.origin, extent.start_block, extent.num_blocks
        return
    start = count = 0
    origin = Origin.ZEROS
    for where in local.places:
        block, kind = where >> 2, Origin(where & 3)
        if count and kind is origin and (kind is Origin.ZEROS or block == start + count):
            count += 1
            continue
        if count:
            yield origin, start, count
        origin, start, count = kind, block, 1
    if count:
        yield origin, start, count


def _pieces(
    runs: Iterable[tuple[Origin, int, int]], images: Mapping[Origin, OldImage], block_size: int
) -> Iterator[bytes]:
    for origin, start, count in runs:
        if origin is Origin.ZEROS:
            yield bytes(count * block_size)
        else:
            yield images[origin].read_at(start * block_size, count * block_size)
