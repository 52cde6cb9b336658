"""The old image, as the operations of a delta read it. Where it lies is not known here.

Format 2: the booted slot, which nobody writes. Format 1: the very partition that is written, which
holds a full copy of the old image before the first operation (payload.md 4).
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import Final, Protocol, runtime_checkable

from images.errors import OperationOutputError, SourceMismatchError
from images.payload import READS_SOURCE, SPARSE_HOLE, Operation, Part

CHUNK_SIZE: Final = 1024 * 1024  # bytes read at once where nothing else says how many
HELD_MAX: Final = 4 * 1024 * 1024  # bytes of an operation's source that are read once and held


class OldImage(Protocol):
    """The bytes of the image that a delta starts from; safe to read from several threads.

    Reads are as small as a byte and jump about: keep the page cache between them and the disk. In
    format 1 a read must see every byte that was written before it.
    """

    def read_at(self, offset: int, size: int) -> bytes:
        """Return exactly the `size` bytes at byte `offset`, or fewer where the image ends.

        What it raises passes through `decode`.
        """
        ...


@runtime_checkable
class FillingImage(Protocol):
    """An old image that fills memory which is there: nothing is copied once more."""

    def read_into(self, offset: int, room: memoryview) -> int:
        """Fill `room` with what `read_at` returns; return how many bytes that is."""
        ...


def reads_source(operation: Operation) -> bool:
    """Tell whether `decode` needs the old image to carry out this operation."""
    return operation.kind in READS_SOURCE


def check_source(part: Part, image: OldImage, *, size: int, major: int) -> None:
    """Check once, before the first operation, that `image` is what a delta starts from.

    Format 1: the whole device or file, which must be exactly as large as the old image. Format 2:
    its first `part.old_size` bytes (payload.md 6).

    Args:
        part: one with `old_size`; any other needs no source and passes.
        image: what the operations will read.
        size: bytes of the device or file.
        major: the format.

    Raises:
        SourceMismatchError: it is another image.
    """
    if part.old_size is None:
        return
    if size < part.old_size or (major == 1 and size != part.old_size):
        raise SourceMismatchError(
            f"the old image of part {part.name} has {size} bytes, the delta starts from"
            f" {part.old_size}"
        )
    digest = hashlib.sha256()
    for offset in range(0, part.old_size, CHUNK_SIZE):
        digest.update(read_exactly(image, offset, min(CHUNK_SIZE, part.old_size - offset)))
    if digest.digest() != part.old_sha256:
        expected = "nothing" if part.old_sha256 is None else part.old_sha256.hex()
        raise SourceMismatchError(
            f"the old image of part {part.name} has sha256 {digest.hexdigest()},"
            f" the delta starts from {expected}"
        )


def read_exactly(image: OldImage, offset: int, size: int) -> bytes:
    """Return `size` bytes of an image.

    Raises:
        SourceMismatchError: the image ends before them.
    """
    data = image.read_at(offset, size)
    if len(data) != size:
        raise SourceMismatchError(
            f"the old image ends within the {size} bytes at byte {offset} that a delta reads"
        )
    return data


class Gathered:
    """The source bytes of one operation, as if its extents stood back to back.

    Nothing is held: each read goes to the image. A sparse hole reads as zeros.

    Attributes:
        size: bytes in all, `Operation.src_length`.
    """

    def __init__(self, operation: Operation, image: OldImage, *, block_size: int) -> None:
        self.size: Final = operation.src_length
        self._operation = operation
        self._image = image
        self._filling = image if isinstance(image, FillingImage) else None
        self._block_size = block_size
        lengths = (extent.num_blocks * block_size for extent in operation.src_extents)
        self._starts = [0, *accumulate(lengths)]  # one more than there are extents

    def check(self) -> None:
        """Check what is read against `src_sha256`, where the operation has one.

        Raises:
            SourceMismatchError: it is something else.
        """
        if self._operation.src_sha256 is None:
            return
        digest = hashlib.sha256()
        for offset, size in self.pieces():
            digest.update(self.read(offset, size))
        self._compare(digest.digest(), self._operation.src_sha256)

    def read_checked(self) -> bytearray:
        """Return all the bytes, read once; for a source that is small enough to be held.

        Raises:
            SourceMismatchError: they are not those of `src_sha256`, or the image ends too early.
        """
        data = bytearray(self.size)  # filled in place: no second copy in pieces
        with memoryview(data) as room:
            self.fill(room)
        self.compare(data)
        return data

    def fill(self, room: memoryview) -> None:
        """Fill `room`, which has their size, with all the bytes; they are not checked.

        Raises:
            OperationOutputError: the extents have fewer.
            SourceMismatchError: the image ends too early.
        """
        for offset, size in self.pieces():
            if self._filling is None:
                room[offset : offset + size] = self.read(offset, size)
                continue
            for start, length in self._runs(offset, size):
                _fill(self._filling, start, room[offset : offset + length])
                offset += length

    def compare(self, data: bytearray | memoryview) -> None:
        """Check all the bytes, as they were read, against `src_sha256`, where there is one.

        Raises:
            SourceMismatchError: they are others.
        """
        if self._operation.src_sha256 is not None:
            self._compare(hashlib.sha256(data).digest(), self._operation.src_sha256)

    def _compare(self, actual: bytes, expected: bytes) -> None:
        if actual != expected:
            raise SourceMismatchError(
                f"an operation {self._operation.kind.name} reads bytes of sha256"
                f" {actual.hex()}, the manifest says {expected.hex()}"
            )

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Yield (offset, bytes) of pieces that `read` takes, from the first byte to the last."""
        for offset in range(0, self.size, CHUNK_SIZE):
            yield offset, min(CHUNK_SIZE, self.size - offset)

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` of the bytes, from `offset` on; memory grows with `size` alone.

        Raises:
            OperationOutputError: they are not all within the source.
            SourceMismatchError: the image ends too early.
        """
        pieces = [self._read_run(start, length) for start, length in self._runs(offset, size)]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _runs(self, offset: int, size: int) -> Iterator[tuple[int | None, int]]:
        """Yield where runs of some of the bytes are in the image, None for a hole, and their size.

        Raises:
            OperationOutputError: they are not all within the source.
        """
        if offset < 0 or offset + size > min(self.size, self._starts[-1]):
            raise OperationOutputError(
                f"an operation {self._operation.kind.name} reads {size} bytes at byte {offset}"
                f" of a source of {self.size}"
            )
        number = bisect_right(self._starts, offset) - 1
        while size:
            length = min(size, self._starts[number + 1] - offset)
            block = self._operation.src_extents[number].start_block
            within = offset - self._starts[number]
            if length:
                yield (None if block == SPARSE_HOLE else block * self._block_size + within), length
            offset, size, number = offset + length, size - length, number + 1

    def _read_run(self, start: int | None, size: int) -> bytes:
        return bytes(size) if start is None else read_exactly(self._image, start, size)


def _fill(image: FillingImage, start: int | None, room: memoryview) -> None:
    if start is None:
        room[:] = bytes(len(room))
    elif image.read_into(start, room) != len(room):
        raise SourceMismatchError(
            f"the old image ends within the {len(room)} bytes at byte {start} that a delta reads"
        )
