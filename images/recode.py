"""Carries out SOURCE_RECODE: bytes are changed where they are unpacked, then packed again.

What packs is a coder of the system's libraries (`coders`); that it makes the very bytes was shown
when the payload was built, and is shown again by the hash of what the operation makes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from mmap import MADV_DONTNEED, MAP_ANONYMOUS, MAP_PRIVATE, PAGESIZE, mmap
from typing import Final

from images.bsdiff import WORK_BYTES, HeldSource, apply_patch, is_patch, patch_bytes
from images.coders import (
    BEHIND_MAX,
    FRAME_BYTES,
    PIECE_SIZE,
    Bytes,
    FrameReader,
    Function,
    pack,
    pack_bytes,
    unpack,
)
from images.errors import OperationOutputError
from images.frames import unpack_frame
from images.payload import Operation, Segment
from images.segment_rules import dictionary_bytes, goes_on, has_job, stream_bytes
from images.source import CHUNK_SIZE, HELD_MAX, Gathered
from images.zstd_jobs import give_back, unpack_once

LARGE_BYTES: Final = 24 * 1024 * 1024  # of work: what the allocator kept is given back around it


def recode(
    operation: Operation,
    blob: bytes | memoryview,
    gathered: Gathered,
    room: memoryview | None = None,
) -> memoryview:
    """Return what a SOURCE_RECODE makes, in `room` where there is one.

    1. the source is read and checked;
    2. its segments, unpacked where they are packed, are the dictionary;
    3. the blob, a frame or a patch, makes with it exactly the stream that the segments name;
    4. each takes its bytes of the stream, in order, and is packed where it has a coder.

    Raises:
        SourceMismatchError: step 1 fails.
        OperationOutputError: another step fails, or a coder makes another number of bytes.
        CoderMissingError: this system lacks the library of a coder.
    """
    size = stream_bytes(operation)
    stream: Bytes | mmap
    large = recode_bytes(operation) > LARGE_BYTES
    if large:
        give_back()
    if has_job(operation):  # its library is here, and saves two copies of so many bytes
        pages = mmap(-1, max(1, dictionary_bytes(operation)), MAP_PRIVATE | MAP_ANONYMOUS)
        _fill_dictionary(pages, operation, gathered)
        give_back()
        stream = unpack_once(blob, pages, size)
        pages.close()
    else:
        stream = make_stream(blob, _dictionary(operation, gathered, patch=is_patch(blob)), size)
    output = memoryview(bytearray(operation.output_limit)) if room is None else room
    made = at = 0
    packed: Bytes = b""
    view = memoryview(stream)
    for segment in operation.output_segments:
        if segment.coder is None or segment.unpacked:
            packed = b""  # gives up the one before
            packed = _packed(segment, view, at, stream)
        used = memoryview(packed)[segment.start : segment.start + segment.used]
        output[made : made + segment.used] = used
        made, at = made + segment.used, at + segment.unpacked
    if large:
        give_back()
    return output


def make_stream(
    blob: bytes | memoryview, dictionary: bytes | bytearray, size: int
) -> bytes | bytearray:
    """Return the `size` bytes that a blob makes: a zstd frame, or a patch, which tells itself.

    Raises:
        OperationOutputError: it cannot be unpacked, or makes another number of bytes.
    """
    if is_patch(blob):
        output = bytearray(size)
        apply_patch(blob, HeldSource(bytes(dictionary)), memoryview(output))
        return output
    output = bytearray(size)
    made = unpack_frame(blob, memoryview(output), dictionary)
    if made != size:
        raise OperationOutputError(f"an operation SOURCE_RECODE unpacks {made} bytes, not {size}")
    return output


def recode_bytes(operation: Operation, blob: bytes | memoryview | None = None) -> int:
    """Return an upper bound of what `recode` holds at once besides its blob and its room.

    Where the blob is known it may be a lower one.
    """
    dictionary, stream = dictionary_bytes(operation), stream_bytes(operation)
    unpacking = max((_unpack_bytes(segment) for segment in operation.source_segments), default=0)
    packing = max((_pack_bytes(segment) for segment in operation.output_segments), default=0)
    patching = copy = 0
    if not has_job(operation) and (blob is None or is_patch(blob)):
        patching = WORK_BYTES if blob is None else patch_bytes(blob, stream)
        copy = dictionary  # into bytes: what patches takes nothing else
    held = operation.src_length if operation.src_length <= HELD_MAX else CHUNK_SIZE
    return max(
        held + dictionary + unpacking,
        dictionary + copy,
        dictionary + stream + patching,
        stream + packing,
    )


def _unpack_bytes(segment: Segment) -> int:
    if segment.coder is None:
        return 0
    if segment.coder.function is Function.ZSTD_JOB:
        return FRAME_BYTES
    if segment.coder.function in {Function.DEFLATE, Function.GZIP}:
        return segment.packed + 2 * segment.unpacked  # zlib's pieces, and then all of them
    return segment.packed + segment.unpacked


def _pack_bytes(segment: Segment) -> int:
    if segment.coder is None:
        return 0
    return pack_bytes(segment.coder.function, segment.unpacked, segment.packed)


def _dictionary(operation: Operation, gathered: Gathered, *, patch: bool) -> bytes | bytearray:
    """Return the dictionary, of the type that is not copied once more."""
    made = bytearray(dictionary_bytes(operation))
    _fill_dictionary(made, operation, gathered)
    return bytes(made) if patch else made


def _fill_dictionary(
    dictionary: bytearray | mmap, operation: Operation, gathered: Gathered
) -> None:
    read = _reader_of(gathered)
    end = 0
    before: Segment | None = None
    fill: Callable[[memoryview, int], None] | None = None
    with memoryview(dictionary) as view:
        for segment in operation.source_segments:
            if fill is None or before is None or not goes_on(before, segment):
                fill = None  # gives up what the one before unpacked to
                fill = _filler_of(segment, read)
            before = segment
            with view[end : end + segment.used] as room:
                fill(room, segment.start)
            end += segment.used


def _reader_of(gathered: Gathered) -> Callable[[int, int], Bytes]:
    """Return what reads bytes of a source, as (offset, size); it is checked."""
    if gathered.size > HELD_MAX:
        gathered.check()
        return gathered.read
    held = memoryview(gathered.read_checked())
    return lambda offset, size: held[offset : offset + size]


def _filler_of(
    segment: Segment, read: Callable[[int, int], Bytes]
) -> Callable[[memoryview, int], None]:
    """Return what fills room, from a byte on, with what a segment of a source unpacks to."""
    if segment.coder is None:
        return lambda room, start: _copy(room, _pieces(segment, read, start, len(room)))
    if segment.coder.function is Function.ZSTD_JOB:
        return FrameReader(_pieces(segment, read, 0, segment.packed)).read_into
    packed = read(segment.offset, segment.packed)
    data = memoryview(unpack(segment.coder.function, packed, segment.unpacked))
    if len(data) != segment.unpacked:
        raise OperationOutputError(
            f"a segment of the old image unpacks to {len(data)} bytes, not {segment.unpacked}"
        )

    return lambda room, start: _copy(room, [data[start : start + len(room)]])


def _pieces(
    segment: Segment, read: Callable[[int, int], Bytes], start: int, size: int
) -> Iterator[Bytes]:
    """Yield bytes of a segment as they stand in the source."""
    for at in range(start, start + size, PIECE_SIZE):
        yield read(segment.offset + at, min(PIECE_SIZE, start + size - at))


def _copy(room: memoryview, pieces: Iterable[Bytes]) -> None:
    made = 0
    for piece in pieces:
        room[made : made + len(piece)] = piece
        made += len(piece)
    if made != len(room):
        raise OperationOutputError(f"a segment of the old image has {made} bytes, not {len(room)}")


def _packed(segment: Segment, view: memoryview, at: int, stream: Bytes | mmap) -> Bytes:
    """Return the bytes in the image of a segment whose bytes in the stream begin at `at`.

    Of a stream in pages of its own, those are given back that nothing looks at again.
    """

    def spent(count: int) -> None:
        if isinstance(stream, mmap):
            pages = (at - segment.behind + count - BEHIND_MAX) // PAGESIZE
            if pages > 0:
                stream.madvise(MADV_DONTNEED, 0, pages * PAGESIZE)

    if segment.coder is None:
        return view[at : at + segment.packed]
    return pack(
        segment.coder.function,
        segment.coder.level,
        view[at - segment.behind : at + segment.unpacked + segment.ahead],
        taken=segment.unpacked,
        size=segment.packed,
        behind=segment.behind,
        spent=spent,
    )
