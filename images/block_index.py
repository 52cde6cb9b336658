"""Short hashes of blocks: what a payload's block index is made of. They propose, never prove."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final

from images.errors import BlobMismatchError
from images.layout_rules import blocks_of
from images.payload import BlockIndex, IndexGroup, Operation, Part

HASH_SIZE: Final = 6  # bytes: 4 GiB looked up in 4 GiB meet a wrong block once in 250 times
Bytes = bytes | memoryview


def short_hashes(data: Bytes, *, block_size: int, hash_size: int) -> bytes:
    """Return the short hashes of the blocks of `data`, one after the other."""
    view = memoryview(data)
    return b"".join(
        hashlib.sha256(view[offset : offset + block_size]).digest()[:hash_size]
        for offset in range(0, len(view), block_size)
    )


def check_index_group(group: IndexGroup, data: bytes) -> None:
    """Compare the bytes of a group with what the signed manifest says.

    Raises:
        BlobMismatchError: they are others.
    """
    actual = hashlib.sha256(data).digest()
    if len(data) != group.length or actual != group.sha256:
        raise BlobMismatchError(
            f"the block index at byte {group.offset} of the data has sha256 {actual.hex()},"
            f" the manifest says {group.sha256.hex()}"
        )


def hashes_by_operation(
    part: Part, index: BlockIndex, group: IndexGroup, data: bytes, *, block_size: int
) -> Iterator[tuple[int, bytes]]:
    """Yield each operation of a group that has blocks: its number in the part, and its hashes."""
    position = 0
    for number in range(group.first, group.first + group.count):
        length = blocks_of(part.operations[number], block_size) * index.hash_size
        if length:
            yield number, data[position : position + length]
        position += length


def blocks(operation: Operation) -> Iterator[int]:
    """Yield the blocks of the image that an operation makes, in the order of its output."""
    for extent in operation.dst_extents:
        yield from range(extent.start_block, extent.start_block + extent.num_blocks)
