"""A first look at an image, before it is known how its operations are laid out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from images.block_index import HASH_SIZE, short_hashes
from images.inputs import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What one pass over an image tells; 7 bytes a block.

    Attributes:
        sha256: of the image.
        hashes: short hashes of its blocks, `HASH_SIZE` bytes each.
        zeros: for each block 1 when it is all zeros, else 0.
    """

    sha256: bytes
    hashes: bytes
    zeros: bytes


def survey_of(image: Image, *, block_size: int) -> Survey:
    """Read an image once.

    Raises:
        FileUnreadableError: it cannot be read, or shrinks meanwhile.
    """
    digest = hashlib.sha256()
    hashes = bytearray()
    zero_hash = hashlib.sha256(bytes(block_size)).digest()[:HASH_SIZE]
    zeros = bytearray()
    for chunk in image.chunks():
        digest.update(chunk)
        found = short_hashes(chunk, block_size=block_size, hash_size=HASH_SIZE)
        hashes += found
        for at in range(0, len(found), HASH_SIZE):
            start = at // HASH_SIZE * block_size
            zeros.append(
                found[at : at + HASH_SIZE] == zero_hash
                and not chunk[start : start + block_size].strip(b"\0")
            )
    return Survey(sha256=digest.digest(), hashes=bytes(hashes), zeros=bytes(zeros))
