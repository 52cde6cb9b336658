"""Where an image holds packed streams: squashfs' and erofs' blocks, and kernels. Hints, no more.

What is found here is used only after it was unpacked and packed again into the very same bytes, so
nothing is parsed that cannot be told from the bytes themselves: frames of zstd and of lz4 (legacy)
and files of gzip by their magic, erofs' blocks of lz4, which have none, by trying. At the builder
alone.
"""

from __future__ import annotations

import enum
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

from images.coders import (
    FRAME_UNPACKED_MAX,
    FRAME_WINDOW_LOG,
    UNPACKED_MAX,
    ZSTD_UNPACKED_MAX,
    lz4_unpacked,
)
from images.file_tails import Tail, Tails, find_tails
from images.gzip_members import MAGIC as GZIP_MAGIC
from images.gzip_members import SMALL_MAX as GZIP_SMALL_MAX
from images.zstd_jobs import JOB_SIZE

ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
LZ4_LEGACY_MAGIC: Final = b"\x02\x21\x4c\x18"
LEGACY_BLOCK: Final = 8 * 1024 * 1024  # bytes; each but the last unpacks to so many
CLUSTER_MAX: Final = 64 * 1024  # bytes of a block of erofs, packed: mkfs.erofs -C65536
CLUSTER_UNPACKED_MAX: Final = 1024 * 1024  # bytes; mkfs.erofs gathers no more

_SCAN_SIZE: Final = 4 * 1024 * 1024  # bytes looked at at once
_GZIP_PIECE: Final = 64 * 1024  # bytes of a file of gzip that are looked at at once
_GZIP_WBITS: Final = 31
_ZSTD_BLOCK_MAX: Final = 128 * 1024
_LEGACY_PACKED_MAX: Final = LEGACY_BLOCK + LEGACY_BLOCK // 255 + 16  # lz4's own bound
_BLOCK: Final = 4096  # bytes; erofs' blocks begin at multiples of it
_EROFS_AT, _EROFS_MAGIC = 1024, 0xE0F5E1E2
_EROFS_INCOMPAT_AT: Final = 80  # bytes into erofs' super block
_EROFS_LEFT_PADDED: Final = 1  # of these features: zeros stand before the packed bytes

ReadAt = Callable[[int, int], bytes]


class Packing(enum.Enum):
    """How a stream is packed, as its bytes tell."""

    ZSTD = enum.auto()
    LZ4_LEGACY = enum.auto()
    LZ4_CLUSTER = enum.auto()
    ZSTD_LARGE = enum.auto()  # a frame that is packed again in parts
    GZIP_SMALL = enum.auto()  # a file that zlib packs again
    GZIP = enum.auto()  # a larger one


@dataclass(frozen=True, slots=True)
class Packed:
    """A packed stream: where it lies in the image, in bytes, and how many it unpacks to.

    Where a file system keeps its last bytes elsewhere, `tail` says where; they count in `size`.
    """

    offset: int
    size: int
    unpacked: int
    packing: Packing
    frame: Packed | None = None  # that it is a part of
    start: int = 0  # its first byte among those that the frame unpacks to
    tail: Tail | None = None

    @property
    def end(self) -> int:
        """Return the byte after its last, but for those of its tail."""
        end = self.offset + self.size
        return end if self.tail is None else min(end, self.tail.end)

    def read(self, read_at: ReadAt) -> bytes:
        """Return its bytes, with those of its tail."""
        return self.view(read_at)(self.offset, self.size)

    def view(self, read_at: ReadAt) -> ReadAt:
        """Return what reads the image as if its tail stood behind its blocks."""
        return read_at if self.tail is None else self.tail.behind(read_at)


def find_packed(read_at: ReadAt, size: int) -> list[Packed]:
    """Return the packed streams of an image of `size` bytes, in order; none overlap."""
    tails = find_tails(read_at, size)
    found = [*_with_magic(read_at, size, tails), *_clusters(read_at, size)]
    found.sort(key=lambda packed: (packed.offset, -packed.size))
    apart: list[Packed] = []
    for packed in found:
        if not apart or packed.offset >= apart[-1].end:
            apart.append(packed)
    return apart


def _with_magic(read_at: ReadAt, size: int, tails: Tails) -> Iterator[Packed]:
    for offset in range(0, size, _SCAN_SIZE):
        more = ZSTD_UNPACKED_MAX + 64 * 1024  # what a frame that begins in this part may take
        chunk = read_at(offset, min(_SCAN_SIZE + more, size - offset))
        at = chunk.find(ZSTD_MAGIC)
        while 0 <= at < _SCAN_SIZE:
            frame = zstd_frame(chunk, at)
            if frame is not None:
                yield Packed(offset + at, *frame, Packing.ZSTD)
            else:
                yield from _large(read_at, offset + at, size, tails.of(offset + at))
            at = chunk.find(ZSTD_MAGIC, at + (frame[0] if frame else 1))
        for magic, found in ((LZ4_LEGACY_MAGIC, _legacy_blocks), (GZIP_MAGIC, _gzip_file)):
            at = chunk.find(magic)
            while 0 <= at < _SCAN_SIZE:
                yield from found(read_at, offset + at, size, tails.of(offset + at))
                at = chunk.find(magic, at + 1)


def _large(read_at: ReadAt, at: int, size: int, tail: Tail | None) -> Iterator[Packed]:
    """Yield the large zstd frame at byte `at`, if there is one."""
    frame = large_frame(*_seen(read_at, at, size, tail))
    if frame is not None:
        yield replace(frame, tail=tail)


def _seen(read_at: ReadAt, at: int, size: int, tail: Tail | None) -> tuple[ReadAt, int, int]:
    """Return how a file is read whose tail is known, the byte given, and where the file ends."""
    if tail is None:
        return read_at, at, size
    return tail.behind(read_at), at, tail.end + tail.size


def zstd_frame(data: bytes, at: int) -> tuple[int, int] | None:
    """Return the bytes of the zstd frame at `at` and those it unpacks to, or None: RFC 8878, 3.1.

    Taken is a frame that names its size, has no checksum and no dictionary: what one call makes.
    """
    if at + 14 > len(data):
        return None
    descriptor = data[at + 4]
    single, size_flag = descriptor >> 5 & 1, descriptor >> 6
    at_size = at + 5 + (1 - single)
    width = (1, 2, 4, 8)[size_flag]
    unpacked = int.from_bytes(data[at_size : at_size + width], "little") + 256 * (size_flag == 1)
    unsized = not size_flag and not single
    if descriptor & 0x0F or unsized or not 0 < unpacked <= ZSTD_UNPACKED_MAX:
        return None
    return _frame_size(data, at, at_size + width, unpacked)


def _frame_size(data: bytes, at: int, end: int, unpacked: int) -> tuple[int, int] | None:
    """Return the bytes of the frame at `at`, whose blocks begin at `end`, and what it makes."""
    for _ in range(ZSTD_UNPACKED_MAX // _ZSTD_BLOCK_MAX * 8):
        header = int.from_bytes(data[end : end + 3], "little")
        if header >> 1 & 3 == 3 or header >> 3 > _ZSTD_BLOCK_MAX:
            return None
        end += 3 + (1 if header >> 1 & 3 == 1 else header >> 3)
        if end > len(data):
            return None
        if header & 1:
            return end - at, unpacked
    return None


def large_frame(read_at: ReadAt, at: int, size: int) -> Packed | None:
    """Return the zstd frame at byte `at` that unpacks to more than a MiB, or None.

    Taken is one of a window of 4 MiB that names its size: what `zstd -9` makes of a file.
    """
    blocks, unpacked, end = _large_blocks(read_at, at, size)
    if not ZSTD_UNPACKED_MAX < unpacked <= FRAME_UNPACKED_MAX or not blocks:
        return None
    return Packed(at, end - at, unpacked, Packing.ZSTD_LARGE)


def parts_of(read_at: ReadAt, frame: Packed) -> list[Packed]:
    """Return the parts that zstd's threads packed a large frame in: each a stream of its own."""
    blocks, _, end = _large_blocks(frame.view(read_at), frame.offset, frame.offset + frame.size)
    edges = [*blocks[:: JOB_SIZE // _ZSTD_BLOCK_MAX], end]
    return [
        Packed(
            first,
            after - first,
            min(JOB_SIZE, frame.unpacked - number * JOB_SIZE),
            Packing.ZSTD_LARGE,
            frame,
            number * JOB_SIZE,
            frame.tail,
        )
        for number, (first, after) in enumerate(pairwise(edges))
        if number * JOB_SIZE < frame.unpacked
    ]


def _large_blocks(read_at: ReadAt, at: int, size: int) -> tuple[list[int], int, int]:
    """Return where each block begins, what the frame unpacks to, and where its blocks end."""
    header = read_at(at, min(18, size - at))
    descriptor = header[4] if len(header) == 18 else 0x08
    if descriptor & 0x2B or not descriptor >> 6 or header[5] != FRAME_WINDOW_LOG - 10 << 3:
        return [], 0, 0
    width = (1, 2, 4, 8)[descriptor >> 6]
    unpacked = int.from_bytes(header[6 : 6 + width], "little")
    at += 6 + width
    blocks: list[int] = []
    while at + 3 <= size and len(blocks) <= FRAME_UNPACKED_MAX // _ZSTD_BLOCK_MAX:
        block = int.from_bytes(read_at(at, 3), "little")
        if block >> 1 & 3 == 3 or block >> 3 > _ZSTD_BLOCK_MAX:
            break
        blocks.append(at)
        at += 3 + (1 if block >> 1 & 3 == 1 else block >> 3)
        if block & 1 and at <= size and -(-unpacked // _ZSTD_BLOCK_MAX) == len(blocks):
            return blocks, unpacked, at
    return [], 0, 0


def _legacy_blocks(read_at: ReadAt, at: int, size: int, tail: Tail | None) -> Iterator[Packed]:
    """Yield the blocks of the lz4 legacy frame at byte `at`; the first that is none ends it."""
    read_at, at, size = _seen(read_at, at, size, tail)
    at += len(LZ4_LEGACY_MAGIC)
    while at + 4 < size and (tail is None or at + 4 < tail.end):  # a block begins in the image
        (packed,) = struct.unpack("<I", read_at(at, 4))
        if not 0 < packed <= min(_LEGACY_PACKED_MAX, size - at - 4):
            return
        made = lz4_unpacked(read_at(at + 4, packed), LEGACY_BLOCK)
        if isinstance(made, int):
            return
        yield Packed(at + 4, packed, len(made), Packing.LZ4_LEGACY, tail=tail)
        at += 4 + packed
        if len(made) < LEGACY_BLOCK:
            return


def _gzip_file(read_at: ReadAt, at: int, size: int, tail: Tail | None) -> Iterator[Packed]:
    """Yield the file of gzip at byte `at`, if it is whole and not too large."""
    read_at, start, size = _seen(read_at, at, size, tail)
    unpacker = zlib.decompressobj(_GZIP_WBITS)
    unpacked = 0
    while not unpacker.eof and unpacked <= UNPACKED_MAX and at < size:
        try:
            piece = read_at(at, min(_GZIP_PIECE, size - at))
            unpacked += len(unpacker.decompress(piece, UNPACKED_MAX + 1 - unpacked))
        except zlib.error:
            return
        at += len(piece)
    packed = at - start - len(unpacker.unused_data)
    if unpacker.eof and 0 < unpacked <= UNPACKED_MAX and packed <= UNPACKED_MAX:
        packing = Packing.GZIP_SMALL if packed <= GZIP_SMALL_MAX else Packing.GZIP
        yield Packed(start, packed, unpacked, packing, tail=tail)


def _clusters(read_at: ReadAt, size: int) -> Iterator[Packed]:
    """Yield erofs' blocks of lz4: from each block on the longest that unpacks is tried."""
    if not _is_left_padded_erofs(read_at, size):
        return
    at = 0
    while at < size:
        chunk = read_at(at, min(_SCAN_SIZE + CLUSTER_MAX, size - at))
        inside = 0
        while inside < min(_SCAN_SIZE, len(chunk)):
            cluster = _cluster(chunk[inside : inside + CLUSTER_MAX])
            if cluster is not None:
                yield Packed(at + inside, *cluster, Packing.LZ4_CLUSTER)
            inside += cluster[0] if cluster else _BLOCK
        at += inside


def _is_left_padded_erofs(read_at: ReadAt, size: int) -> bool:
    if size < _EROFS_AT + _EROFS_INCOMPAT_AT + 4:
        return False
    block = read_at(_EROFS_AT, _EROFS_INCOMPAT_AT + 4)
    magic, incompatible = (struct.unpack_from("<I", block, at)[0] for at in (0, _EROFS_INCOMPAT_AT))
    return magic == _EROFS_MAGIC and bool(incompatible & _EROFS_LEFT_PADDED)


def _cluster(data: bytes) -> tuple[int, int] | None:
    """Return the bytes of the lz4 block at the start of `data` and those it unpacks to, or None.

    The next one most likely begins with a zero of its padding: such ends are tried first, then the
    longest. One too long fails soon after its real end, so the ends tried after it are few.
    """
    padding = len(data) - len(data.lstrip(b"\0"))
    if padding >= _BLOCK:
        return None
    for end in range(_BLOCK, len(data), _BLOCK):
        if not data[end] and (size := _unpacked_size(data[padding:end])) > end:
            return end, size
    end = len(data) // _BLOCK * _BLOCK
    while end:
        made = lz4_unpacked(data[padding:end], CLUSTER_UNPACKED_MAX)
        if not isinstance(made, int):
            return (end, len(made)) if _unpacked_size(data[padding:end]) > end else None
        end = min(end - _BLOCK, (padding + made) // _BLOCK * _BLOCK)
    return None


def _unpacked_size(block: bytes) -> int:
    """Return how many bytes an lz4 block makes; 0 where it does not end as lz4 ends its blocks.

    That shows only in a room of just its size.
    """
    made = lz4_unpacked(block, CLUSTER_UNPACKED_MAX)
    if isinstance(made, int) or isinstance(lz4_unpacked(block, len(made)), int):
        return 0
    return len(made)


assert LEGACY_BLOCK <= UNPACKED_MAX  # noqa: S101  # what is found can be carried out
