"""Where erofs keeps the last bytes of a file: by its inode, when they fill no block. Needs numpy.

What is found is a hint: inodes are looked for by what they must say, wherever they could stand.
At the builder alone.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from images.erofs import MAGIC, MAGIC_AT

_BLOCK: Final = 4096  # bytes
_SLOT: Final = 32  # bytes; inodes begin at multiples of it
_SCAN_SIZE: Final = 4 * 1024 * 1024  # bytes looked at at once
_FIELDS: Final = struct.Struct("<HH4xQI")  # format, attributes, size, first block
_REGULAR: Final = 0x8000  # of the mode's highest four bits
_EXTENDED: Final = 1  # the inode has 64 bytes
_INLINE: Final = 2 << 1  # the last bytes stand behind the inode

ReadAt = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class Tail:
    """The blocks of a file, in bytes of the image, and the bytes that go on after them."""

    start: int
    end: int
    at: int
    size: int

    def behind(self, read_at: ReadAt) -> ReadAt:
        """Return what reads the image as if the last bytes stood where the blocks end."""

        def read(offset: int, size: int) -> bytes:
            inside = max(0, min(size, self.end - offset))
            after = max(0, offset - self.end)
            more = max(0, min(size - inside, self.size - after))
            data = read_at(offset, inside) if inside else b""
            return data + read_at(self.at + after, more) if more else data

        return read


class Tails:
    """The tails of all files of an image."""

    def __init__(self, tails: list[Tail]) -> None:
        self._tails = sorted(tails, key=lambda tail: tail.end)
        self._ends = [tail.end for tail in self._tails]

    def of(self, offset: int) -> Tail | None:
        """Return that of the file that holds a byte of the image."""
        number = bisect_right(self._ends, offset)
        if number < len(self._tails) and self._tails[number].start <= offset:
            return self._tails[number]
        return None


def find_tails(read_at: ReadAt, size: int) -> Tails:
    """Return the tails of an image of `size` bytes; of another file system than erofs none."""
    if size < 2 * _BLOCK or read_at(MAGIC_AT, len(MAGIC)) != MAGIC:
        return Tails([])
    found: list[Tail] = []
    for at in range(0, size, _SCAN_SIZE):
        chunk = read_at(at, min(_SCAN_SIZE, size - at))
        found += _tails(chunk, at, size)
    return Tails(found)


def _tails(chunk: bytes, at: int, size: int) -> Iterator[Tail]:
    for slot in _candidates(chunk):
        form, attributes, length, first = _FIELDS.unpack_from(chunk, slot)
        if not form & _EXTENDED:
            length &= 0xFFFFFFFF
        after = slot + (64 if form & _EXTENDED else 32)
        after += 12 + 4 * (attributes - 1) if attributes else 0
        blocks, rest = divmod(length, _BLOCK)
        end = (first + blocks) * _BLOCK
        if blocks and rest and end <= size and after % _BLOCK + rest <= _BLOCK:
            yield Tail(first * _BLOCK, end, at + after, rest)


def _candidates(chunk: bytes) -> list[int]:
    """Return where inodes of regular files with such a tail may begin."""
    words: npt.NDArray[np.uint16] = np.frombuffer(chunk, "<u2", len(chunk) // _SLOT * _SLOT // 2)
    slots = words.reshape(-1, _SLOT // 2)
    fits = ((slots[:, 0] & 0xFFFE) == _INLINE) & (slots[:, 2] >> 12 == _REGULAR >> 12)
    places: list[int] = (np.flatnonzero(fits) * _SLOT).tolist()
    return places
