"""What the segments of `SOURCE_RECODE` must keep. Values in, a refusal or nothing out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from images.coders import (
    BEHIND_MAX,
    FRAME_UNPACKED_MAX,
    JOB_UNPACKED_MAX,
    UNPACKED_MAX,
    ZSTD_UNPACKED_MAX,
    Function,
)
from images.dictionary import DICTIONARY_MAX
from images.errors import ManifestInvalidError, PayloadLimitsError
from images.payload import Operation, OperationKind, Part, Segment

# Bytes that one operation unpacks: the largest stream, and what stands around it in its blocks;
# of one with a part of a large zstd frame also what that part sees of the part before it.
STREAM_MAX: Final = UNPACKED_MAX + 256 * 1024
JOB_STREAM_MAX: Final = JOB_UNPACKED_MAX + BEHIND_MAX + 256 * 1024
SOURCE_MAX: Final = 16 * 1024 * 1024  # bytes; of them some are unpacked in part
JOB_DICTIONARY_MAX: Final = 17 * 1024 * 1024  # bytes: as much as is made
JOB_SOURCE_MAX: Final = 24 * 1024 * 1024  # bytes: a whole frame
PACKED_MAX: Final = UNPACKED_MAX + 64 * 1024  # bytes; lz4's own bound is 32 KiB more
WORK_MAX: Final = 512 * 1024 * 1024  # bytes unpacked for a dictionary: under a second
AHEAD_MAX: Final = 64 * 1024  # bytes


def has_job(operation: Operation) -> bool:
    """Tell whether a SOURCE_RECODE packs a part of a large zstd frame."""
    return any(
        segment.coder is not None and segment.coder.function is Function.ZSTD_JOB
        for segment in operation.output_segments
    )


def stream_bytes(operation: Operation) -> int:
    """Return how many bytes the blob of a SOURCE_RECODE unpacks to."""
    return sum(segment.unpacked for segment in operation.output_segments)


def dictionary_bytes(operation: Operation) -> int:
    """Return how many bytes the dictionary of a SOURCE_RECODE has."""
    return sum(segment.used for segment in operation.source_segments)


def goes_on(before: Segment, segment: Segment) -> bool:
    """Tell whether a segment of a source reads on in what the one before it unpacks to."""
    same = (before.offset, before.packed, before.unpacked, before.coder) == (
        segment.offset,
        segment.packed,
        segment.unpacked,
        segment.coder,
    )
    return same and segment.start >= before.start + before.used


def check_segments(part: Part, operation: Operation) -> None:
    """Check that segments stand where they belong, inside what they are taken from.

    Raises:
        ManifestInvalidError: an operation has segments and may not, or has none and must, or one
            reaches outside its source, its bytes or the stream.
    """
    name = f"an operation {operation.kind.name} of part {part.name}"
    sources, outputs = operation.source_segments, operation.output_segments
    if operation.kind is not OperationKind.SOURCE_RECODE:
        if sources or outputs:
            raise ManifestInvalidError(f"{name} has segments")
        return
    for segment in sources:
        if segment.offset + segment.packed > operation.src_length:
            raise ManifestInvalidError(
                f"{name} takes {segment.packed} bytes at byte {segment.offset} of a source of"
                f" {operation.src_length}"
            )
        _check_segment(name, segment, segment.unpacked)
    _check_outputs(name, outputs)
    made = sum(segment.used for segment in outputs)
    if made != operation.dst_length:
        raise ManifestInvalidError(f"{name} makes {made} bytes, not {operation.dst_length}")


def _check_outputs(name: str, outputs: Sequence[Segment]) -> None:
    """Check what coders see of the stream, and that what goes on has something to go on with."""
    before, after = 0, sum(segment.unpacked for segment in outputs)
    last: Segment | None = None
    for segment in outputs:
        _check_segment(name, segment, segment.packed)
        after -= segment.unpacked
        if segment.ahead > after or segment.behind > before:
            raise ManifestInvalidError(
                f"{name} looks {segment.ahead} bytes ahead of {after} and {segment.behind} behind"
                f" of {before}"
            )
        if (
            segment.coder is not None
            and not segment.unpacked
            and (last is None or (last.coder, last.packed) != (segment.coder, segment.packed))
        ):
            raise ManifestInvalidError(f"{name} goes on with a segment that is not there")
        before, last = before + segment.unpacked, segment


def _check_segment(name: str, segment: Segment, size: int) -> None:
    """Check a segment of which `size` bytes may be used."""
    if segment.start + segment.used > size:
        raise ManifestInvalidError(
            f"{name} uses {segment.used} bytes at byte {segment.start} of a segment of {size}"
        )
    if segment.coder is None and segment.packed != segment.unpacked:
        raise ManifestInvalidError(
            f"{name} has a segment of {segment.packed} bytes as they are, and {segment.unpacked}"
        )


def check_segment_sizes(part: Part, operation: Operation) -> None:
    """Refuse segments that `decode` could not hold in memory.

    Raises:
        PayloadLimitsError: a stream, a dictionary or a segment is too large.
    """
    if operation.kind is not OperationKind.SOURCE_RECODE:
        return
    job = has_job(operation)
    limits = (JOB_STREAM_MAX, JOB_DICTIONARY_MAX, JOB_SOURCE_MAX)
    limits = limits if job else (STREAM_MAX, DICTIONARY_MAX, SOURCE_MAX)
    sizes = (stream_bytes(operation), dictionary_bytes(operation), operation.src_length)
    if any(size > most for size, most in zip(sizes, limits, strict=True)):
        raise PayloadLimitsError(
            f"an operation of part {part.name} has a stream, a dictionary and a source of {sizes}"
            f" bytes, at most {limits} are allowed"
        )
    work, before = 0, None
    for segment in operation.source_segments:
        if before is None or not goes_on(before, segment):
            work += segment.unpacked
        before = segment
    if work > WORK_MAX:
        raise PayloadLimitsError(
            f"an operation of part {part.name} unpacks {work} bytes of its source, at most"
            f" {WORK_MAX} are allowed"
        )
    for segment in operation.source_segments:
        _check_size(part, segment, most=FRAME_UNPACKED_MAX, packed=JOB_SOURCE_MAX)
    for segment in operation.output_segments:
        _check_size(part, segment, most=JOB_UNPACKED_MAX, packed=PACKED_MAX)


def _check_size(part: Part, segment: Segment, *, most: int, packed: int) -> None:
    """Refuse a packed segment that is too large; `most` and `packed` are for parts of frames."""
    if segment.coder is None:
        return
    if segment.coder.function is not Function.ZSTD_JOB:
        zstd = segment.coder.function is Function.ZSTD
        most, packed = ZSTD_UNPACKED_MAX if zstd else UNPACKED_MAX, PACKED_MAX
    if (
        segment.unpacked > most
        or segment.packed > packed
        or segment.ahead > AHEAD_MAX
        or segment.behind > BEHIND_MAX
    ):
        raise PayloadLimitsError(
            f"an operation of part {part.name} packs {segment.unpacked} bytes into"
            f" {segment.packed} and looks {segment.ahead} ahead and {segment.behind} behind, at"
            f" most {most}, {packed}, {AHEAD_MAX} and {BEHIND_MAX} are allowed"
        )
