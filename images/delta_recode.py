"""Turns blocks of a new image into segments that are packed again, where that gives the very bytes.

A stream that stands in the old image as it is needs no unpacking: it is left as bytes. Of the
others each is unpacked and packed again here, by the coder that the node will use; one that comes
out otherwise is left as bytes too.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from images.coders import BEHIND_MAX, Coder, Function, coder_of, pack, unpack, unpack_frame
from images.delta_blocks import BLOCK_SIZE, Run
from images.delta_order import Effort
from images.errors import CoderMissingError, OperationOutputError
from images.packed import Packed, Packing, parts_of
from images.payload import Extent, Segment
from images.segment_rules import JOB_STREAM_MAX, STREAM_MAX

AHEAD: Final = 512  # bytes that lz4 is shown of what follows; as good as any more of them
STREAM_SIZE: Final = 2 * 1024 * 1024  # bytes that a group unpacks; one stream alone may be larger
_FUNCTIONS: Final = {  # and the levels that are tried, those of the known programs first
    Packing.ZSTD: (Function.ZSTD, (15, 19, 22, 3, 9, 12, 6, 1)),
    Packing.LZ4_LEGACY: (Function.LZ4_HC, (9, 12)),
    Packing.LZ4_CLUSTER: (Function.LZ4_HC_FILL, (9, 12)),
    Packing.ZSTD_LARGE: (Function.ZSTD_JOB, (9, 3, 12, 15, 6)),
    Packing.GZIP_SMALL: (Function.DEFLATE, (9,)),
    Packing.GZIP: (Function.GZIP, (9,)),
}
_FILES: Final = frozenset({Packing.GZIP_SMALL, Packing.GZIP})
_TRIED: Final = 8  # streams of each packing that a level is tried on

ReadAt = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recoded:
    """Blocks of the new image as segments, and the stream they are made from."""

    segments: tuple[Segment, ...]
    stream: bytes
    large: bool  # whether it holds a part of a large frame


@dataclass(frozen=True, slots=True)
class _Atom:
    """Blocks of one group, and what they unpack to; None: bytes as they are, which may be cut."""

    start: int
    count: int
    unpacked: int | None
    goes_on: bool = False  # further blocks of the stream before, after some that are copied


@dataclass(slots=True)
class _Piece:
    """Bytes of the new image; with a packed stream those of it that are used."""

    offset: int
    size: int
    packed: Packed | None
    data: bytes = b""  # what it takes of the stream
    ahead: bytes = b""  # and what the coder must see after it
    behind: bytes = b""  # and before it
    again: bool = False  # further bytes of the stream of the piece before


def find_coders(read_at: ReadAt, packed: Sequence[Packed]) -> dict[Packing, Coder]:
    """Return by packing the coder of this system that packs most of a few streams as they are."""
    coders: dict[Packing, Coder] = {}
    for packing, (function, levels) in _FUNCTIONS.items():
        streams = [stream for stream in packed if stream.packing is packing]
        if packing is Packing.ZSTD_LARGE:
            streams = [part for frame in streams for part in parts_of(read_at, frame)][:1]
        some = streams[:: max(1, len(streams) // _TRIED)][:_TRIED]
        for level in levels:
            try:
                proven = sum(_is_exact(read_at, stream, function, level) for stream in some)
                if 2 * proven > len(some):
                    coders[packing] = coder_of(function, level)
                    break
            except CoderMissingError:
                break
    return coders


def _is_exact(read_at: ReadAt, stream: Packed, function: Function, level: int) -> bool:
    """Tell whether a stream packs again into its bytes; lz4's may end with what is not shown."""
    packed = stream.read(read_at)
    try:
        data, behind = _unpacked(read_at, stream, function, packed)
        made = pack(
            function,
            level,
            behind + data,
            taken=len(data),
            size=len(packed),
            behind=len(behind),
        )
    except OperationOutputError:
        return False
    return made == packed


def _unpacked(
    read_at: ReadAt, stream: Packed, function: Function, packed: bytes
) -> tuple[bytes, bytes]:
    """Return what a stream unpacks to, and of a part of a frame what its coder saw before it."""
    if stream.frame is None:
        return bytes(unpack(function, packed, stream.unpacked)), b""
    frame = stream.frame.read(read_at)
    seen = min(BEHIND_MAX, stream.start)
    data = unpack_frame(frame, stream.start - seen, seen + stream.unpacked)
    return data[seen:], data[:seen]


class Recoder:
    """What of a new image is packed, is not in the old one, and packs again as it is."""

    def __init__(
        self, read_at: ReadAt, packed: Sequence[Packed], coders: Mapping[Packing, Coder]
    ) -> None:
        self._read_at = read_at
        self._coders = coders
        self._streams: list[Packed] = []
        for stream in packed:
            if stream.packing is Packing.ZSTD_LARGE and stream.packing in coders:
                self._streams += parts_of(read_at, stream)
            elif stream.packing in coders:
                self._streams.append(stream)
        self._offsets = [stream.offset for stream in self._streams]
        self._kept: set[int] = set()  # offsets of those that the old image holds

    def keep_those_of(self, read_at: ReadAt, packed: Sequence[Packed]) -> list[Packed]:
        """Leave as bytes what stands in an old image with these packed streams.

        Returns:
            Those of the old image that something may be made from: of files of gzip only the ones
            that changed, since no other file is like one that did not.
        """
        sizes = {(stream.size, stream.unpacked) for stream in self._streams}
        alike = [stream for stream in packed if (stream.size, stream.unpacked) in sizes]
        digests = {_digest(read_at, stream): stream for stream in alike}
        same: set[Packed] = set()
        for stream in self._streams:
            digest = _digest(self._read_at, stream)
            if digest in digests:
                self._kept.add(stream.offset)
                same.add(digests[digest])
        return [it for it in packed if it.packing not in _FILES or it not in same]

    def groups(self, runs: Iterable[Run], size: int) -> Iterator[tuple[Extent, ...]]:
        """Yield the blocks of each group: about `size` bytes that unpack to `STREAM_SIZE`.

        A group ends where a stream ends, if there is one.
        """
        extents: list[Extent] = []
        bytes_left, stream_left = size, STREAM_SIZE
        for atom in self._atoms(runs):
            start, left = atom.start, atom.count
            while left:
                room = min(bytes_left, stream_left) // BLOCK_SIZE
                if atom.goes_on:
                    count, weight = left, 0
                elif atom.unpacked is None:  # bytes as they are: as many as have room
                    count = min(left, max(room, 0))
                    weight = count * BLOCK_SIZE
                else:
                    fits = left * BLOCK_SIZE <= bytes_left and atom.unpacked <= stream_left
                    count, weight = left if fits or not extents else 0, atom.unpacked
                if not count:
                    yield tuple(extents)
                    extents, bytes_left, stream_left = [], size, STREAM_SIZE
                    continue
                _append(extents, Extent(start, count))
                start, left = start + count, left - count
                bytes_left, stream_left = bytes_left - count * BLOCK_SIZE, stream_left - weight
        if extents:
            yield tuple(extents)

    def effort_of(self, extents: Sequence[Extent]) -> Effort | None:
        """Return what packing the streams in these blocks again takes; None if there is none."""
        streams = {
            stream.offset: stream
            for extent in extents
            for stream in self._within(
                extent.start_block * BLOCK_SIZE,
                (extent.start_block + extent.num_blocks) * BLOCK_SIZE,
            )
        }
        if not streams:
            return None
        return Effort(
            unpacked=sum(stream.unpacked for stream in streams.values()),
            large=any(stream.frame is not None for stream in streams.values()),
        )

    def recoded(self, extents: Sequence[Extent]) -> Recoded | None:
        """Return blocks of the new image as segments, or None where none is packed again."""
        pieces = [piece for extent in extents for piece in self._pieces(extent)]
        proven: Packed | None = None
        large = any(piece.packed is not None and piece.packed.frame is not None for piece in pieces)
        room = JOB_STREAM_MAX if large else STREAM_MAX
        room -= sum(piece.size for piece in pieces if piece.packed is None)
        for piece in pieces:
            if piece.packed is not None and piece.packed is proven:
                piece.again = True
            elif piece.packed is not None:
                proven = piece.packed
                seen = AHEAD if piece.packed.frame is None else BEHIND_MAX
                takes = piece.packed.unpacked + seen
                if takes <= room and self._prove(piece):
                    room -= takes
                else:
                    room -= piece.size
                    piece.packed = proven = None
        if all(piece.packed is None for piece in pieces):
            return None
        return self._joined(pieces, large=large)

    def _atoms(self, runs: Iterable[Run]) -> Iterator[_Atom]:
        """Yield blocks that a group holds together, in the order of the image."""
        before: Packed | None = None
        for run in runs:
            at, end = run.start, run.start + run.count
            for stream in self._within(at * BLOCK_SIZE, end * BLOCK_SIZE):
                first = max(at, stream.offset // BLOCK_SIZE)
                last = min(end, -(-stream.end // BLOCK_SIZE))
                if first > at:
                    yield _Atom(at, first - at, None)
                if last > first:
                    yield _Atom(first, last - first, stream.unpacked, goes_on=stream is before)
                    before = stream
                at = max(at, last)
            if at < end:
                yield _Atom(at, end - at, None)

    def _within(self, start: int, end: int) -> Iterator[Packed]:
        """Yield the streams of which bytes stand there and that the old image does not hold."""
        number = max(0, bisect_right(self._offsets, start) - 1)
        for stream in self._streams[number : bisect_left(self._offsets, end)]:
            if stream.end > start and stream.offset not in self._kept:
                yield stream

    def _pieces(self, extent: Extent) -> Iterator[_Piece]:
        at = extent.start_block * BLOCK_SIZE
        end = at + extent.num_blocks * BLOCK_SIZE
        for stream in self._within(at, end):
            first, last = max(at, stream.offset), min(end, stream.end)
            if last - first < min(BLOCK_SIZE, stream.size):
                continue  # a few bytes at an edge: not worth all that they would bring along
            if first > at:
                yield _Piece(at, first - at, None)
            yield _Piece(first, last - first, stream)
            at = last
        if at < end:
            yield _Piece(at, end - at, None)

    def _prove(self, piece: _Piece) -> bool:
        """Unpack a piece; tell whether its stream packs again into the very bytes."""
        stream = piece.packed
        if stream is None:
            return False
        coder = self._coders[stream.packing]
        packed = stream.read(self._read_at)
        try:
            piece.data, piece.behind = _unpacked(self._read_at, stream, coder.function, packed)
        except OperationOutputError:
            return False
        for ahead in self._ahead(stream):
            try:
                made = pack(
                    coder.function,
                    coder.level,
                    piece.behind + piece.data + ahead,
                    taken=len(piece.data),
                    size=stream.size,
                    behind=len(piece.behind),
                )
            except OperationOutputError:
                continue
            if made == packed:
                piece.ahead = ahead
                return True
        return False

    def _ahead(self, stream: Packed) -> Iterator[bytes]:
        """Yield what its packer may have seen after a stream: the next one's bytes, or none."""
        number = bisect_right(self._offsets, stream.offset)
        if stream.packing is Packing.LZ4_CLUSTER and number < len(self._streams):
            after = self._streams[number]
            if after.offset == stream.end:
                function = self._coders[after.packing].function
                packed = self._read_at(after.offset, after.size)
                with suppress(OperationOutputError):
                    yield bytes(unpack(function, packed, after.unpacked)[:AHEAD])
        yield b""

    def _joined(self, pieces: Sequence[_Piece], *, large: bool) -> Recoded:
        segments: list[Segment] = []
        stream: list[bytes] = []
        for piece, after in zip(pieces, [*pieces[1:], None], strict=True):
            if piece.packed is None:
                data = self._read_at(piece.offset, piece.size)
                _append_bytes(segments, len(data))
                stream.append(data)
                continue
            if piece.behind:
                _append_shown(segments, len(piece.behind))
                stream.append(piece.behind)
            segments.append(
                Segment(
                    coder=self._coders[piece.packed.packing],
                    packed=piece.packed.size,
                    unpacked=len(piece.data),
                    start=piece.offset - piece.packed.offset,
                    used=piece.size,
                    ahead=0 if piece.again else len(piece.ahead),
                    behind=len(piece.behind),
                )
            )
            stream.append(piece.data)
            if after is not None and after.again:
                after.ahead, piece.ahead = piece.ahead, b""
            follows = after is not None and after.packed is not None
            if piece.ahead and not (
                after is not None and follows and after.data.startswith(piece.ahead)
            ):
                _append_shown(segments, len(piece.ahead))
                stream.append(piece.ahead)
        return Recoded(segments=tuple(segments), stream=b"".join(stream), large=large)


def _digest(read_at: ReadAt, stream: Packed) -> bytes:
    return hashlib.sha256(stream.read(read_at)).digest()


def _append(extents: list[Extent], extent: Extent) -> None:
    """Add an extent, joined to the last one where it goes on from there."""
    if extents and extents[-1].start_block + extents[-1].num_blocks == extent.start_block:
        last = extents.pop()
        extent = Extent(last.start_block, last.num_blocks + extent.num_blocks)
    extents.append(extent)


def _append_shown(segments: list[Segment], size: int) -> None:
    """Add bytes that a coder sees and that leave no trace."""
    segments.append(Segment(coder=None, packed=size, unpacked=size, used=0))


def _append_bytes(segments: list[Segment], size: int) -> None:
    """Add bytes as they are, joined to the last ones where these are such too."""
    if segments and segments[-1].coder is None and segments[-1].used == segments[-1].unpacked:
        size += segments.pop().unpacked
    segments.append(Segment(coder=None, packed=size, unpacked=size, used=size))
