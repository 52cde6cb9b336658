"""Carries out a patch in bounded memory. Making patches is not here.

A patch is a BSDIFF40 (payload.md 4), or one of ours: the same, but for its magic and for its three
streams, which are xz instead of bzip2.

A patch is hostile until it is applied: each number in it is checked before it is used. The three
streams are unpacked as they are needed, the source is read where the patch says; only the output
is held whole, by the caller.
"""

from __future__ import annotations

import bz2
import lzma
import operator
import struct
import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import Final, Protocol

from bsdiff4 import core

from images.errors import OperationOutputError, OperationUnsupportedError

MAGIC: Final = b"BSDIFF40"
XZ_MAGIC: Final = b"BSDIFFXZ"  # ours
NEWER_MAGIC: Final = b"BSDF2"  # three bytes follow: how each stream is packed
HEADER_SIZE: Final = 32  # bytes: the magic and three numbers
PIECE_SIZE: Final = 64 * 1024  # bytes taken from a stream at once
# Entries of a piece are carried out by one call as long as they make so many bytes at most, of a
# stretch of the source of so many: most entries make a kilobyte.
BATCH_SIZE: Final = 256 * 1024
_BATCH_SPAN: Final = 512 * 1024
# Bytes that a patch holds besides blob and output: three bzip2 streams at their largest block
# (3.7 MiB each, bzip2's manual 1.4) or three xz streams with dictionaries of these sizes, and
# what a batch reads and makes.
WORK_BYTES: Final = 13 * 1024 * 1024
XZ_DICTIONARIES: Final = (1024 * 1024, 4 * 1024 * 1024, 4 * 1024 * 1024)  # control, diff, extra
_XZ_MORE: Final = 512 * 1024  # bytes that xz holds besides
_IDLE_STEPS_MAX: Final = 1024  # control entries beyond one an output byte: they make nothing
_FAR: Final = 1 << 48  # bytes; no source is so large, and what is counted so far fits in 64 bits
_SIGN: Final = 1 << 63
_ENTRY: Final = struct.Struct("<QQQ")


_Unpacker = bz2.BZ2Decompressor | lzma.LZMADecompressor


def is_patch(blob: bytes | memoryview) -> bool:
    """Tell whether a blob says that it is a patch that we read."""
    return bytes(blob[: len(MAGIC)]) in {MAGIC, XZ_MAGIC}


def patch_bytes(blob: bytes | memoryview, size: int) -> int:
    """Return how many bytes a patch that makes `size` of them holds at most.

    Besides its blob, source and output.

    Its dictionaries are touched as far as its streams go, and these make no more than that.
    """
    if bytes(blob[: len(MAGIC)]) != XZ_MAGIC:
        return WORK_BYTES
    control, *others = XZ_DICTIONARIES
    dictionaries = control + min(sum(others), size + 2 * PIECE_SIZE)
    more = (
        len(XZ_DICTIONARIES) * (_XZ_MORE + PIECE_SIZE + BATCH_SIZE) + _BATCH_SPAN + 2 * BATCH_SIZE
    )
    return min(WORK_BYTES, dictionaries + more)


class Readable(Protocol):
    """What a patch is applied to."""

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset` on; raise `OperationOutputError` outside."""
        ...


class HeldSource:
    """Bytes in memory that a patch is applied to: far fewer calls, and no copies."""

    def __init__(self, data: bytes) -> None:
        self.data: Final = data

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset` on.

        Raises:
            OperationOutputError: they are not all there.
        """
        if offset < 0 or offset + size > len(self.data):
            raise OperationOutputError(
                f"a patch reads {size} bytes at byte {offset} of a source of {len(self.data)}"
            )
        return self.data[offset : offset + size]


def apply_patch(patch: bytes | memoryview, source: Readable, output: memoryview) -> None:
    """Fill `output` with what the patch makes of `source`.

    1. the container names three streams that fit in it and exactly the bytes of `output`;
    2. each control entry adds bytes within the source and makes no more than is missing;
    3. the three streams end where the output is full, and with their part of the container.

    Raises:
        OperationUnsupportedError: the patch is of the newer container, BSDF2.
        OperationOutputError: it breaks one of the steps, or a stream cannot be unpacked.
        SourceMismatchError: the old image ends too early.
    """
    control, diff, extra = _streams(memoryview(patch), len(output))
    maker = _Maker(source, diff, extra, output)
    missing = len(output)
    steps_left = len(output) + _IDLE_STEPS_MAX
    while missing:
        entries = control.ready(_ENTRY.size)
        ends = list(accumulate(map(operator.add, *_columns(entries)[:2])))
        count = min(bisect_left(ends, missing) + 1, len(ends))
        if ends[count - 1] > missing:
            add, copy, _ = map(_signed, _ENTRY.unpack_from(entries, (count - 1) * _ENTRY.size))
            left = missing - (ends[count - 2] if count > 1 else 0)
            raise OperationOutputError(
                f"a patch adds {add} and copies {copy} bytes where {left} are missing"
            )
        steps_left -= count
        if steps_left < 0:
            raise OperationOutputError("a patch has more control entries than bytes to make")
        maker.carry_out(entries, ends[:count])
        control.take(count * _ENTRY.size)
        missing -= ends[count - 1]
    for stream in (control, diff, extra):
        stream.finish()


def _columns(entries: bytes | memoryview) -> tuple[array[int], array[int], array[int]]:
    """Return what control entries add, what they copy, where they seek; nothing is signed."""
    values = array("Q", bytes(entries))
    if sys.byteorder == "big":
        values.byteswap()
    if _SIGN in values:  # a zero that is called negative
        values = array("Q", (0 if value == _SIGN else value for value in values))
    return values[::3], values[1::3], values[2::3]


class _Maker:
    """Carries out control entries in a row by one call of the library, as many as make a batch.

    It is called only with what was checked here: it takes entries as they come. A patch has
    thousands of them for a megabyte, so nothing here is done for each alone.
    """

    def __init__(self, source: Readable, diff: _Stream, extra: _Stream, output: memoryview) -> None:
        self._source = source
        self._held = source.data if isinstance(source, HeldSource) else None
        self._diff = diff
        self._extra = extra
        self._left = output  # what is not made yet
        self._position = 0  # in the source, after all entries

    def carry_out(self, entries: memoryview, ends: list[int]) -> None:
        """Make what entries make that stand back to back.

        Args:
            entries: of the control stream; those behind the last one of `ends` are passed over.
            ends: how many bytes each makes, together with all before it.

        Raises:
            OperationOutputError: they read outside the source, or a stream ends too early.
            SourceMismatchError: the old image ends too early.
        """
        at = made = 0
        while at < len(ends):
            end = bisect_right(ends, made + BATCH_SIZE, at)
            if end > at:
                self._carry_out(entries[at * _ENTRY.size : end * _ENTRY.size])
            else:
                end = at + 1
                self._carry_out_large(*_ENTRY.unpack_from(entries, at * _ENTRY.size))
            at, made = end, ends[end - 1]

    def _carry_out_large(self, add: int, copy: int, seek: int) -> None:
        for piece in _pieces(add):
            self._carry_out(_ENTRY.pack(piece, 0, 0))
        for piece in _pieces(copy):
            self._carry_out(_ENTRY.pack(0, piece, 0))
        self._carry_out(_ENTRY.pack(0, 0, seek))

    def _carry_out(self, entries: bytes | memoryview) -> None:
        """Make what entries make that make no more than a batch."""
        adds, copies, seeks = _columns(entries)
        moves = map(operator.add, adds, map(_signed, seeks))
        positions = list(accumulate(moves, initial=self._position))
        if max(positions) > _FAR or min(positions) < -_FAR:
            far = next(position for position in positions if abs(position) > _FAR)
            raise OperationOutputError(f"a patch goes on at byte {far} of its source")
        starts = [start for start, add in zip(positions, adds, strict=False) if add]
        first = min(starts, default=0)
        last = max(map(operator.add, starts, filter(None, adds)), default=0)
        if self._held is None and last - first > _BATCH_SPAN and len(adds) > 1:
            half = len(adds) // 2 * _ENTRY.size
            self._carry_out(entries[:half])
            self._carry_out(entries[half:])
            return
        made = (added := sum(adds)) + (copied := sum(copies))
        if made:
            old, start = self._old(first, last)
            diff, extra = self._diff.read(added), self._extra.read(copied)
            begin = _ENTRY.pack(0, 0, _unsigned(self._position - start))
            self._left[:made] = core.patch(old, made, begin + bytes(entries), diff, extra)
            self._left = self._left[made:]
        self._position = positions[-1]

    def _old(self, first: int, last: int) -> tuple[bytes, int]:
        """Return bytes of the source with all that is read, and where in it they begin."""
        if first == last:
            return b"", self._position
        if self._held is not None and first >= 0 and last <= len(self._held):
            return self._held, 0
        return self._source.read(first, last - first), first


def _pieces(size: int) -> Iterator[int]:
    for at in range(0, size, BATCH_SIZE):
        yield min(BATCH_SIZE, size - at)


class _Stream:
    """One stream of the container, unpacked piece by piece."""

    def __init__(self, name: str, packed: memoryview, decompressor: _Unpacker) -> None:
        self._name = name
        self._packed = packed
        self._decompressor = decompressor
        self._ready = b""
        self._taken = 0  # bytes of `_ready`

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, at most a batch."""
        self._fill(size)
        self._taken += size
        return self._ready[self._taken - size : self._taken]

    def ready(self, unit: int) -> memoryview:
        """Return the next bytes, as many whole units as are unpacked, one at least; `take` them."""
        self._fill(unit)
        size = len(self._ready) - self._taken
        return memoryview(self._ready)[self._taken : self._taken + size - size % unit]

    def take(self, size: int) -> None:
        """Go on behind so many bytes that are ready."""
        self._taken += size

    def _fill(self, size: int) -> None:
        while len(self._ready) - self._taken < size:
            if self._decompressor.eof:
                raise OperationOutputError(f"the {self._name} stream of a patch ends too early")
            self._ready, self._taken = self._ready[self._taken :] + self._unpack(), 0

    def finish(self) -> None:
        """Check that all was read and nothing follows."""
        left = len(self._ready) - self._taken
        while not left and not self._decompressor.eof:
            left = len(self._unpack())
        if left or self._decompressor.unused_data or self._packed:
            raise OperationOutputError(f"the {self._name} stream of a patch goes on after its end")

    def _unpack(self) -> bytes:
        """Return up to a piece more; nothing where only a mark was read."""
        packed = self._packed[:0]
        if self._decompressor.needs_input:
            packed, self._packed = self._packed[:PIECE_SIZE], self._packed[PIECE_SIZE:]
            if not packed:
                raise OperationOutputError(f"the {self._name} stream of a patch is cut off")
        try:
            return self._decompressor.decompress(packed, PIECE_SIZE)
        except (OSError, ValueError, lzma.LZMAError) as error:
            raise OperationOutputError(
                f"the {self._name} stream of a patch cannot be unpacked: {error}"
            ) from error


def _streams(patch: memoryview, output_size: int) -> tuple[_Stream, _Stream, _Stream]:
    """Return the control, diff and extra stream."""
    magic = bytes(patch[: len(MAGIC)])
    if magic.startswith(NEWER_MAGIC):
        raise OperationUnsupportedError("a patch is of the container BSDF2, we read BSDIFF40")
    if not is_patch(patch) or len(patch) < HEADER_SIZE:
        raise OperationOutputError(f"a patch of {len(patch)} bytes begins with {magic!r}")
    control, diff, new = map(_signed, _ENTRY.unpack(patch[len(MAGIC) : HEADER_SIZE]))
    if control < 0 or diff < 0 or HEADER_SIZE + control + diff > len(patch):
        raise OperationOutputError(
            f"a patch of {len(patch)} bytes names streams of {control} and {diff}"
        )
    if new != output_size:
        raise OperationOutputError(f"a patch makes {new} bytes, not {output_size}")
    diff_start = HEADER_SIZE + control
    extra_start = diff_start + diff
    unpackers: list[_Unpacker] = (
        [bz2.BZ2Decompressor() for _ in XZ_DICTIONARIES]
        if magic == MAGIC
        else [
            lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=size + _XZ_MORE)
            for size in XZ_DICTIONARIES
        ]
    )
    return (
        _Stream("control", patch[HEADER_SIZE:diff_start], unpackers[0]),
        _Stream("diff", patch[diff_start:extra_start], unpackers[1]),
        _Stream("extra", patch[extra_start:], unpackers[2]),
    )


def _signed(value: int) -> int:
    """Return a number whose highest of 64 bits is the sign, the others its size."""
    return _SIGN - value if value & _SIGN else value


def _unsigned(value: int) -> int:
    """Return a number as `_signed` reads it."""
    return value if value >= 0 else _SIGN - value
