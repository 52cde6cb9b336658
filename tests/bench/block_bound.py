"""The least that a block hash index as RAUC's fetches: `block_bound OLD NEW OUTPUT.json`.

It has 32 bytes for each block of 4 KiB, and fetches those that are nowhere in the old image. How
they lie in a compressed bundle is left out: each is taken to be a zstd frame of its own.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from backports import zstd

BLOCK: Final = 4096
HASH_BYTES: Final = 32
LEVEL: Final = 19


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What it comes to.

    Attributes:
        blocks: of the new image.
        missing: that the old one has not.
        packed: bytes of these, each packed alone.
        level: of zstd.
    """

    blocks: int
    missing: int
    packed: int
    level: int = LEVEL

    @property
    def fetched(self) -> int:
        """Bytes of index and missing blocks."""
        return self.blocks * HASH_BYTES + self.packed


def blocks_of(image: Path) -> Iterator[bytes]:
    with image.open("rb") as file:
        while block := file.read(BLOCK):
            yield block


def block_bound(old: Path, new: Path) -> Bound:
    """Work it out; a block that is missing several times is fetched once."""
    held = {hashlib.sha256(block).digest() for block in blocks_of(old)}
    held.add(hashlib.sha256(bytes(BLOCK)).digest())
    blocks = missing = packed = 0
    for block in blocks_of(new):
        blocks += 1
        name = hashlib.sha256(block).digest()
        if name not in held:
            held.add(name)
            missing += 1
            packed += min(BLOCK, len(zstd.compress(block, LEVEL)))
    return Bound(blocks=blocks, missing=missing, packed=packed)


if __name__ == "__main__":
    bound = block_bound(Path(sys.argv[1]), Path(sys.argv[2]))
    Path(sys.argv[3]).write_text(json.dumps(asdict(bound)))
