"""The old image, and after its bytes those that its packed streams unpack to. Needs numpy.

Each stream begins at a piece, so that a piece of what is unpacked belongs to one stream. Nothing
is held: a stream is unpacked when it is asked for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from images.coders import Coder, FrameReader, pieces_of, unpack
from images.delta_blocks import BLOCK_SIZE
from images.delta_regions import PIECE_SIZE, Chunk
from images.dictionary import DICTIONARY_MAX
from images.errors import OperationOutputError
from images.packed import Packed, Packing
from images.payload import Extent, Segment
from images.segment_rules import JOB_DICTIONARY_MAX, JOB_SOURCE_MAX, SOURCE_MAX

_CHUNK_SIZE: Final = 4 * 1024 * 1024  # bytes; whole pieces
_GAP_MAX: Final = 1  # pieces left out between two of one stream that are taken along
# What is unpacked as far as it goes: a file system may keep its end elsewhere.
_CUT_OFF: Final = frozenset({Packing.ZSTD_LARGE, Packing.GZIP_SMALL, Packing.GZIP})

ReadAt = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Similar:
    """A dictionary: the blocks it is read from, its segments, and its bytes."""

    extents: tuple[Extent, ...]
    segments: tuple[Segment, ...]
    data: bytes


class UnpackedOld:
    """An old image of `size` bytes with what its packed streams unpack to.

    Attributes:
        size: bytes of both.
    """

    def __init__(
        self,
        read_at: ReadAt,
        size: int,
        packed: Sequence[Packed],
        coders: Mapping[Packing, Coder],
    ) -> None:
        self._read_at = read_at
        self._image_size = size
        self._coders = coders
        self._packed = [stream for stream in packed if stream.packing in coders]
        self._frame = lru_cache(maxsize=1)(self._unpacked)  # large, and asked for piece by piece
        self._starts: list[int] = []  # the first piece of each stream
        piece = -(-size // PIECE_SIZE)
        for stream in self._packed:
            self._starts.append(piece)
            piece += -(-stream.unpacked // PIECE_SIZE)
        self.size: Final = piece * PIECE_SIZE

    def chunks(self) -> Iterator[Chunk]:
        """Yield what each stream unpacks to; one that does not is left out."""
        for start, stream in zip(self._starts, self._packed, strict=True):
            data = self._unpacked(stream)
            if len(data) == stream.unpacked or stream.packing in _CUT_OFF:
                for at in range(0, len(data), _CHUNK_SIZE):
                    yield Chunk(start * PIECE_SIZE + at, data[at : at + _CHUNK_SIZE])

    def similar(
        self, ranked: Iterable[int], size: int, *, segments_max: int, large: bool = False
    ) -> Similar:
        """Return the best pieces as a dictionary of about `size` bytes.

        What a large frame holds mostly stands in the image as well, so it serves large ones alone.

        Args:
            ranked: pieces, the best first.
            size: bytes; what stands between two pieces of one stream may come on top.
            segments_max: segments, at most.
            large: of large frames alone; else of all but them.
        """
        most, source_most = (
            (JOB_DICTIONARY_MAX, JOB_SOURCE_MAX) if large else (DICTIONARY_MAX, SOURCE_MAX)
        )
        taken: list[int] = []
        extents: set[int] = set()
        room = size
        for piece in ranked:
            number = self._stream(piece)
            if (number >= 0 and self._packed[number].packing is Packing.ZSTD_LARGE) != large:
                continue
            if self._piece_size(piece) > room:
                break
            more = extents.union(self._blocks(piece))
            if len(more) * BLOCK_SIZE <= source_most:
                extents = more
                taken.append(piece)
                room -= self._piece_size(piece)
        runs = list(self._runs(sorted(taken)))
        while len(runs) > segments_max or sum(count for _, count in runs) * PIECE_SIZE > most:
            taken = taken[: len(taken) * 15 // 16]  # the best ones; what is between them counts
            runs = list(self._runs(sorted(taken)))
        blocks = _extents(sorted({block for piece in taken for block in self._blocks(piece)}))
        segments: list[Segment] = []
        data: list[bytes] = []
        for first, count in runs:
            segment, piece_data = self._segment(first, count, blocks)
            if piece_data:
                segments.append(segment)
                data.append(piece_data)
        return Similar(extents=blocks, segments=tuple(segments), data=b"".join(data))

    def _stream(self, piece: int) -> int:
        """Return the number of the stream that a piece belongs to, or -1: the image itself."""
        return bisect_right(self._starts, piece) - 1

    def _piece_size(self, piece: int) -> int:
        """Return the bytes of a piece; the last one of a stream may be short."""
        number = self._stream(piece)
        if number < 0:
            return PIECE_SIZE
        left = self._packed[number].unpacked - (piece - self._starts[number]) * PIECE_SIZE
        return min(PIECE_SIZE, left)

    def _blocks(self, piece: int) -> range:
        """Return the blocks that hold a piece, or all of the stream that it belongs to."""
        number = self._stream(piece)
        if number < 0:
            start = piece * PIECE_SIZE
            end = min(start + PIECE_SIZE, self._image_size)
        else:
            start, end = self._packed[number].offset, self._packed[number].end
        return range(start // BLOCK_SIZE, -(-end // BLOCK_SIZE))

    def _runs(self, pieces: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Yield (first, count) of pieces that stand together, each of one stream."""
        first = last = -1
        for piece in pieces:
            together = self._stream(piece) == self._stream(last)
            most = _GAP_MAX if self._stream(piece) >= 0 else 0
            if first >= 0 and together and piece - last - 1 <= most:
                last = piece
                continue
            if first >= 0:
                yield first, last - first + 1
            first = last = piece
        if first >= 0:
            yield first, last - first + 1

    def _segment(self, first: int, count: int, extents: Sequence[Extent]) -> tuple[Segment, bytes]:
        number = self._stream(first)
        if number < 0:
            start = first * PIECE_SIZE
            size = min(count * PIECE_SIZE, self._image_size - start)
            offset = _offset(start, extents)
            data = self._read_at(start, size)
            return Segment(coder=None, offset=offset, packed=size, unpacked=size, used=size), data
        stream = self._packed[number]
        start = (first - self._starts[number]) * PIECE_SIZE
        used = min(count * PIECE_SIZE, stream.unpacked - start)
        large = stream.packing is Packing.ZSTD_LARGE
        made = (self._frame if large else self._unpacked)(stream)
        data = made[start : start + used]
        segment = Segment(
            coder=self._coders[stream.packing],
            offset=_offset(stream.offset, extents),
            packed=stream.end - stream.offset,
            unpacked=stream.unpacked if large else len(made),
            start=start,
            used=len(data),
        )
        return segment, data

    def _unpacked(self, stream: Packed) -> bytes:
        """Return what a stream unpacks to; nothing where it was none after all."""
        data = self._read_at(stream.offset, stream.end - stream.offset)
        if stream.packing is Packing.ZSTD_LARGE:
            return _as_far_as_it_goes(data, stream.unpacked)
        try:
            return bytes(unpack(self._coders[stream.packing].function, data, stream.unpacked))
        except OperationOutputError:
            return b""


def _as_far_as_it_goes(packed: bytes, size: int) -> bytes:
    """Return what a large frame unpacks to; erofs keeps the end of a file elsewhere."""
    read = FrameReader(pieces_of(packed)).read
    made = bytearray()
    with suppress(OperationOutputError):
        while len(made) < size:
            made += read(len(made), min(PIECE_SIZE, size - len(made)))
    return bytes(made)


def _extents(blocks: Sequence[int]) -> tuple[Extent, ...]:
    runs: list[list[int]] = []
    for block in blocks:
        if runs and runs[-1][0] + runs[-1][1] == block:
            runs[-1][1] += 1
        else:
            runs.append([block, 1])
    return tuple(Extent(start, count) for start, count in runs)


def _offset(at: int, extents: Sequence[Extent]) -> int:
    """Return where byte `at` of the image stands in the bytes of `extents`."""
    before = 0
    for extent in extents:
        inside = at - extent.start_block * BLOCK_SIZE
        if 0 <= inside < extent.num_blocks * BLOCK_SIZE:
            return before + inside
        before += extent.num_blocks * BLOCK_SIZE
    raise AssertionError(f"byte {at} is in none of the extents")  # a broken invariant
