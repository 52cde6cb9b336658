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
import struct
from collections.abc import Iterator
from typing import Final, Protocol

from bsdiff4 import core

from images.errors import OperationOutputError, OperationUnsupportedError

MAGIC: Final = b"BSDIFF40"
XZ_MAGIC: Final = b"BSDIFFXZ"  # ours
NEWER_MAGIC: Final = b"BSDF2"  # three bytes follow: how each stream is packed
HEADER_SIZE: Final = 32  # bytes: the magic and three numbers
PIECE_SIZE: Final = 64 * 1024  # bytes taken from a stream at once
# Entries in a row are carried out by one call as long as they make so many bytes at most, of a
# stretch of the source of so many: most entries make a kilobyte.
BATCH_SIZE: Final = 256 * 1024
_BATCH_SPAN: Final = 512 * 1024
BATCH_ENTRIES: Final = 4096  # also where they make nothing
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
    batch = _Batch(source, diff, extra, output)
    missing = len(output)
    steps_left = len(output) + _IDLE_STEPS_MAX
    while missing:
        add, copy, seek = map(_signed, _ENTRY.unpack(control.read(_ENTRY.size)))
        if add < 0 or copy < 0 or add + copy > missing:
            raise OperationOutputError(
                f"a patch adds {add} and copies {copy} bytes where {missing} are missing"
            )
        if not steps_left:
            raise OperationOutputError("a patch has more control entries than bytes to make")
        if add + copy <= BATCH_SIZE:
            batch.take(add, copy, seek)
        else:
            for piece in _pieces(add):
                batch.take(piece, 0, 0)
            for piece in _pieces(copy):
                batch.take(0, piece, 0)
            batch.take(0, 0, seek)
        missing -= add + copy
        steps_left -= 1
    batch.carry_out()
    for stream in (control, diff, extra):
        stream.finish()


class _Batch:
    """Control entries in a row, carried out by one call of the library.

    It is called only with what was checked here: it takes entries as they come.
    """

    def __init__(self, source: Readable, diff: _Stream, extra: _Stream, output: memoryview) -> None:
        self._source = source
        self._held = source.data if isinstance(source, HeldSource) else None
        self._span = _BATCH_SPAN if self._held is None else len(self._held)
        self._diff = diff
        self._extra = extra
        self._left = output  # what is not made yet
        self._position = 0  # in the source, after all entries
        self._begin(0)

    def _begin(self, position: int) -> None:
        self._start = position
        self._entries: list[bytes] = []
        self._added = self._copied = 0
        self._first = self._last = 0  # the stretch of the source that is read

    def take(self, add: int, copy: int, seek: int) -> None:
        """Take one entry more, of at most `BATCH_SIZE` bytes; carry out the others if need be.

        Raises:
            OperationOutputError: it seeks where no source is, or as `carry_out`.
            SourceMismatchError: as `carry_out`.
        """
        first, last = self._position, self._position + add
        if self._added:
            first, last = min(first, self._first), max(last, self._last)
        made = self._added + self._copied + add + copy
        full = made > BATCH_SIZE or len(self._entries) == BATCH_ENTRIES
        if full or (add and last - first > self._span):
            self.carry_out()
            first, last = self._position, self._position + add
        self._entries.append(_ENTRY.pack(add, copy, _unsigned(seek)))
        if add:
            self._first, self._last = first, last
        self._added += add
        self._copied += copy
        self._position += add + seek
        if abs(self._position) > _FAR:
            raise OperationOutputError(f"a patch goes on at byte {self._position} of its source")

    def carry_out(self) -> None:
        """Make what the entries make that were taken.

        Raises:
            OperationOutputError: they read outside the source, or a stream ends too early.
            SourceMismatchError: the old image ends too early.
        """
        made = self._added + self._copied
        if made:
            old, start = self._old()
            diff, extra = self._diff.read(self._added), self._extra.read(self._copied)
            begin = _ENTRY.pack(0, 0, _unsigned(self._start - start))
            control = b"".join((begin, *self._entries))
            self._left[:made] = core.patch(old, made, control, diff, extra)
            self._left = self._left[made:]
        self._begin(self._position)

    def _old(self) -> tuple[bytes, int]:
        """Return bytes of the source with all that is read, and where in it they begin."""
        if not self._added:
            return b"", self._start
        if self._held is not None and self._first >= 0 and self._last <= len(self._held):
            return self._held, 0
        return self._source.read(self._first, self._last - self._first), self._first


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
        while len(self._ready) - self._taken < size:
            if self._decompressor.eof:
                raise OperationOutputError(f"the {self._name} stream of a patch ends too early")
            self._ready, self._taken = self._ready[self._taken :] + self._unpack(), 0
        self._taken += size
        return self._ready[self._taken - size : self._taken]

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
