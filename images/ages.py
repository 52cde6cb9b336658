"""How long each block of an image has been there, by the block indexes of earlier payloads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from images.block_index import HASH_SIZE, hashes_by_operation
from images.errors import IndexMissingError
from images.reader import Accept, Metadata, PayloadFile


class Earlier:
    """An earlier full payload, open.

    Args:
        path: of the payload.
        file: it, open.
        block_size: that its blocks must have.

    Raises:
        IndexMissingError: a part of it has no block index, or other blocks.
        PayloadError: it is not sound.
    """

    def __init__(self, path: Path, file: PayloadFile, *, block_size: int) -> None:
        self._file = file
        self._metadata: Metadata = file.metadata(None, accept=Accept.ANY)
        manifest = self._metadata.manifest
        if manifest.block_size != block_size or any(p.index is None for p in manifest.parts):
            raise IndexMissingError(f"{path} has no index of blocks of {block_size} bytes")

    def hashes(self, name: str) -> set[bytes]:
        """Return the short hashes of a part's blocks; none when it has no such part."""
        return set(self._hashes(name))

    def _hashes(self, name: str) -> Iterator[bytes]:
        manifest = self._metadata.manifest
        for part in manifest.parts:
            if part.name != name or part.index is None:
                continue
            size = part.index.hash_size
            for group in part.index.groups:
                data = self._file.index_group(self._metadata, group)
                for _, hashes in hashes_by_operation(
                    part, part.index, group, data, block_size=manifest.block_size
                ):
                    for at in range(0, len(hashes), size):
                        yield hashes[at : at + HASH_SIZE]


def ages_in(name: str, hashes: bytes, earlier: Sequence[Earlier]) -> bytearray:
    """Return the age of each block of part `name`: see `layout`.

    Args:
        name: of the part.
        hashes: short hashes of its blocks, `HASH_SIZE` bytes each.
        earlier: payloads, newest first.
    """
    ages = bytearray(len(hashes) // HASH_SIZE)
    for number, payload in enumerate(earlier):
        known = payload.hashes(name)
        for block, age in enumerate(ages):
            if age == number and hashes[block * HASH_SIZE : (block + 1) * HASH_SIZE] in known:
                ages[block] = number + 1
    return ages
