"""Which bytes the passive slot holds already: they are not written again, which flash wears by.

What an operation made is compared, block by block, with what the device has in its place, before it
is written. That costs a read. So it is done as long as it pays: where a slot holds something else
altogether, one operation in `EVERY` is still looked at. What is cleared is always looked at, up to
the first bytes that are no zeros: that costs next to nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from images.payload import Manifest
from partitions.readback import RegionReader

if TYPE_CHECKING:
    from partitions.slots import Region

FIRST_BYTES: Final = 8 * 1024 * 1024  # compared in any case
WINDOW_BYTES: Final = 64 * 1024 * 1024  # the bytes compared last, by which it is judged
WORTH: Final = 32  # it pays where one byte in so many is spared
EVERY: Final = 16
LANES_MAX: Final = 4
SHARE_PIECES: Final = 4
CLEARED_BYTES: Final = 1024 * 1024  # of what is cleared: looked at, and spared, at once


@dataclass(frozen=True, slots=True)
class Work:
    """What is left to do of an operation.

    Attributes:
        pieces: bytes to write, as (byte offset in the image, bytes).
        clears: what to zero, as (byte offset in the image, bytes).
        kept: bytes that are there already.
    """

    pieces: list[tuple[int, memoryview]]
    clears: list[tuple[int, int]]
    kept: int = 0

    @property
    def bytes_written(self) -> int:
        """What it costs the medium."""
        return sum(len(data) for _, data in self.pieces) + sum(size for _, size in self.clears)

    def shares(self) -> Iterator[Work]:
        """Yield it in shares to do side by side: small writes in a row leave a device idle."""
        if self.clears:
            yield Work([], self.clears)
        for at in range(0, len(self.pieces), SHARE_PIECES):
            yield Work(self.pieces[at : at + SHARE_PIECES], [])


class Sparing:
    """Compares outputs with what is there; safe in threads, as many at once as `readers` allow."""

    def __init__(self, readers: Mapping[str, RegionReader], block_size: int) -> None:
        self._readers = readers
        self._block_size = block_size
        self._guard = threading.Lock()
        self._pays = True
        self._compared = 0
        self._kept = 0

    def left_of(self, number: int, name: str, work: Work) -> Work:
        """Return what of an operation's work the slot does not hold yet.

        Args:
            number: of the operation.
            name: of its part.
            work: all of it; its bytes are writable memory.

        Raises:
            DeviceReadError: the slot cannot be read.
        """
        reader = self._readers.get(name)
        looked = self._pays or number % EVERY == 0
        if reader is None or not (looked or work.clears):
            return work
        if not looked:
            clears = [left for whole in work.clears for left in _after_zeros(reader, *whole)]
            kept = sum(size for _, size in work.clears) - sum(size for _, size in clears)
            return Work(work.pieces, clears, kept)
        pieces = [piece for whole in work.pieces for piece in self._differing(reader, *whole)]
        clears = [
            piece
            for offset, size in work.clears
            for piece in _cut(offset, size)
            if not reader.is_zero([piece])
        ]
        left = Work(pieces, clears)
        kept = work.bytes_written - left.bytes_written
        self._note(work.bytes_written, kept)
        return Work(pieces, clears, kept)

    def _differing(
        self, reader: RegionReader, offset: int, data: memoryview
    ) -> Iterator[tuple[int, memoryview]]:
        for begin, end in reader.differing(offset, data, grain=self._block_size):
            yield offset + begin, data[begin:end]

    def _note(self, compared: int, kept: int) -> None:
        """Judge whether to go on; what was compared long ago counts less."""
        with self._guard:
            self._compared += compared
            self._kept += kept
            if self._compared > FIRST_BYTES:
                self._pays = self._kept * WORTH >= self._compared
            if self._compared > WINDOW_BYTES:
                self._compared //= 2
                self._kept //= 2


def _after_zeros(reader: RegionReader, offset: int, size: int) -> Iterable[tuple[int, int]]:
    """Yield what follows the zeros that a range begins with; nothing where it is all zeros."""
    for at, length in _cut(offset, size):
        if not reader.is_zero([(at, length)]):
            yield at, offset + size - at
            return


def _cut(offset: int, size: int) -> Iterable[tuple[int, int]]:
    for at in range(offset, offset + size, CLEARED_BYTES):
        yield at, min(CLEARED_BYTES, offset + size - at)


@contextmanager
def sparing_of(
    manifest: Manifest, regions: Mapping[str, Region], *, lanes: int
) -> Iterator[Sparing]:
    """Open the partitions of a passive slot for comparing.

    A file is made anew, and what works in place is a copy: neither holds anything of its image.

    Args:
        manifest: of the payload.
        regions: of its parts.
        lanes: workers that compare at once, as far as `LANES_MAX` goes: each takes 1 MiB.

    Raises:
        DeviceOpenError: one cannot be opened.
    """
    with ExitStack() as stack:
        readers = {
            part.name: stack.enter_context(
                RegionReader(regions[part.name], buffers=min(lanes, LANES_MAX))
            )
            for part in manifest.parts
            if regions[part.name].room is None and not manifest.is_in_place(part)
        }
        yield Sparing(readers, manifest.block_size)
