"""What a manifest must keep: blobs, operations, blocks. Values in, a refusal or nothing out.

The rules are those of `reference/trust.md` 5.3 for format 2; for format 1, whose operations claim
blocks past the end of the image, `reference/payload.md` 5: bytes written are bounded instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from images.coders import check_coder
from images.dictionary import DICTIONARY_MAX
from images.errors import (
    DeltaUnsupportedError,
    ManifestInvalidError,
    OperationUnsupportedError,
    PayloadLimitsError,
    TrailingBytesError,
    TruncatedPayloadError,
)
from images.layout_rules import check_dictionaries
from images.payload import (
    CARRIED_OUT,
    CLEARS,
    COPIES,
    PATCHES,
    READS_SOURCE,
    READS_TARGET,
    SOURCE_DICTIONARIES,
    SPARSE_HOLE,
    UNPACKS,
    Extent,
    Manifest,
    Operation,
    OperationKind,
    Part,
)
from images.segment_rules import check_segment_sizes, check_segments

BLOB_MAX: Final = 16 * 1024 * 1024 + 128 * 1024  # bytes; an output that bzip2 made larger
OUTPUT_MAX: Final = 16 * 1024 * 1024  # bytes an operation unpacks to, held in memory at once
SOURCE_OUTPUT_MAX: Final = 32 * 1024 * 1024  # bytes a copy or patch makes: held once, no window
DICTIONARY_OUTPUT_MAX: Final = 8 * 1024 * 1024  # bytes made with a dictionary, which is held too
SHA256_SIZE: Final = 32  # bytes
FULL_MINOR: Final = 0  # the minor version of every full payload: payload.md 8

FULL_KINDS: Final = {  # what a full payload may hold, by format
    1: frozenset({OperationKind.REPLACE, OperationKind.REPLACE_BZ}),
    2: UNPACKS | READS_TARGET | {OperationKind.ZERO},
}
IN_PLACE_KINDS: Final = FULL_KINDS[1] | {OperationKind.MOVE, OperationKind.BSDIFF}
DELTA_KINDS: Final = {  # what a minor version adds to the ones before it: payload.md 8
    2: frozenset(
        {
            OperationKind.REPLACE,
            OperationKind.REPLACE_BZ,
            OperationKind.SOURCE_COPY,
            OperationKind.SOURCE_BSDIFF,
        }
    ),
    3: frozenset({OperationKind.REPLACE_XZ}),
    4: frozenset({OperationKind.ZERO, OperationKind.DISCARD, OperationKind.BROTLI_BSDIFF}),
    5: frozenset({OperationKind.PUFFDIFF}),
    6: frozenset[OperationKind](),
    7: frozenset[OperationKind](),
    8: frozenset({OperationKind.ZUCCHINI}),
    9: frozenset({OperationKind.LZ4DIFF_BSDIFF, OperationKind.LZ4DIFF_PUFFDIFF}),
    10: frozenset({OperationKind.REPLACE_ZSTD}) | SOURCE_DICTIONARIES,
}
_WITHOUT_BLOB: Final = CLEARS | COPIES


def blob_bytes(operations: Iterable[Operation]) -> int:
    """Return the bytes of all blobs, which must lie back to back in operation order.

    Raises:
        ManifestInvalidError: a blob is missing, has no hash, or lies elsewhere.
    """
    end = 0
    for operation in operations:
        _check_blob(operation)
        if operation.data_length:
            if operation.data_offset != end:
                raise ManifestInvalidError(
                    f"a blob begins at byte {operation.data_offset}, the one before ends at {end}"
                )
            end += operation.data_length
    return end


def check_end(
    *, data_offset: int, data_bytes: int, signatures: tuple[int, int] | None, payload_size: int
) -> None:
    """Check that blobs, indexes and signatures fill the file to its last byte.

    Args:
        data_offset: where in the file the blobs begin.
        data_bytes: what `blob_bytes` returned, and the bytes of the indexes.
        signatures: offset in the data area and size, or None when unsigned.
        payload_size: bytes of the file.

    Raises:
        ManifestInvalidError: the signatures do not follow the last blob.
        TruncatedPayloadError: the file is too short.
        TrailingBytesError: the file is too long.
    """
    end = data_offset + data_bytes
    if signatures is not None:
        if signatures[0] != data_bytes:
            raise ManifestInvalidError(
                f"the signatures begin at byte {signatures[0]}, the data ends at {data_bytes}"
            )
        end += signatures[1]
    if end > payload_size:
        raise TruncatedPayloadError(f"the payload has {payload_size} bytes, it names {end}")
    if end < payload_size:
        raise TrailingBytesError(f"the payload has {payload_size} bytes, it names only {end}")


def check_full(manifest: Manifest) -> None:
    """Check a full payload: kinds, sizes, and in format 2 that each block is written once.

    Raises:
        OperationUnsupportedError: an operation that a full payload cannot hold.
        PayloadLimitsError: an operation too large to hold in memory.
        ManifestInvalidError: anything else.
    """
    if manifest.minor != FULL_MINOR:
        raise ManifestInvalidError(
            f"a full payload has minor version {FULL_MINOR}, this one {manifest.minor}"
        )
    check_operation = _check_operation_1 if manifest.major == 1 else _check_operation_2
    for part in manifest.parts:
        for operation in part.operations:
            if operation.kind not in FULL_KINDS[manifest.major]:
                raise OperationUnsupportedError(
                    f"part {part.name} of a full format {manifest.major} payload"
                    f" has an operation {operation.kind.name}"
                )
            _check_sizes(part, operation)
            check_operation(part, operation)
            check_segments(part, operation)
        check_dictionaries(part)
        if manifest.major == 2:
            _check_blocks(part, manifest.block_size)


def check_delta(manifest: Manifest) -> None:
    """Check a delta: kinds, what is read and written, and in format 2 each block written once.

    A minor version that we do not know says nothing about its operations: they are only
    described, and `check_applicable` refuses the payload.

    Raises:
        OperationUnsupportedError: an operation that the format, or its minor version, has not.
        ManifestInvalidError: anything else.
    """
    if manifest.major == 2 and manifest.minor not in DELTA_KINDS:
        return
    kinds = IN_PLACE_KINDS if manifest.major == 1 else _kinds_up_to(manifest.minor)
    check_operation = _check_operation_1 if manifest.major == 1 else _check_operation_2
    for part in manifest.parts:
        for operation in part.operations:
            if operation.kind not in kinds:
                raise OperationUnsupportedError(
                    f"part {part.name} of a format {manifest.major} delta, minor version"
                    f" {manifest.minor}, has an operation {operation.kind.name}"
                )
            _check_reading(manifest, part, operation)
            check_operation(part, operation)
            check_segments(part, operation)
        check_dictionaries(part)
        if manifest.major == 2:
            _check_blocks(part, manifest.block_size)


def check_applicable(manifest: Manifest) -> None:
    """Check that a payload is one that we carry out, before anything of it is written.

    Raises:
        DeltaUnsupportedError: a delta of a minor version that we do not know.
        OperationUnsupportedError: an operation that we do not carry out.
        CoderMissingError: an operation packs bytes again with a coder that this system lacks.
        PayloadLimitsError: an operation too large to hold in memory.
    """
    for coder in manifest.coders:
        check_coder(coder)
    if manifest.is_delta and manifest.major == 2 and manifest.minor not in DELTA_KINDS:
        raise DeltaUnsupportedError(
            f"the payload is a delta of minor version {manifest.minor},"
            f" we apply {min(DELTA_KINDS)} to {max(DELTA_KINDS)}"
        )
    for part in manifest.parts:
        for operation in part.operations:
            if operation.kind not in CARRIED_OUT:
                raise OperationUnsupportedError(
                    f"part {part.name} has an operation {operation.kind.name},"
                    " which we do not carry out"
                )
            _check_sizes(part, operation)


def _kinds_up_to(minor: int) -> frozenset[OperationKind]:
    return frozenset(kind for at, kinds in DELTA_KINDS.items() if at <= minor for kind in kinds)


def output_limit(
    extents: Iterable[tuple[int, int]], *, blocks: int, block_size: int, most: int
) -> int:
    """Return how many bytes fill `extents` in order before one leaves an image of `blocks`.

    A sparse hole takes its bytes wherever it stands. The result is at most `most`.
    """
    total = 0
    for start, count in extents:
        inside = count if start == SPARSE_HOLE else max(0, min(count, blocks - start))
        total += inside * block_size
        if inside < count:
            break
    return min(total, most)


def _check_blob(operation: Operation) -> None:
    name = operation.kind.name
    if (operation.data_length == 0) != (operation.kind in _WITHOUT_BLOB):
        raise ManifestInvalidError(f"an operation {name} has {operation.data_length} bytes of data")
    if operation.data_length and operation.data_sha256 is None:
        raise ManifestInvalidError(f"an operation {name} has data without a hash")
    for digest in (operation.data_sha256, operation.dst_sha256):
        if digest is not None and len(digest) != SHA256_SIZE:
            raise ManifestInvalidError(f"an operation {name} has a hash of {len(digest)} bytes")


def _check_sizes(part: Part, operation: Operation) -> None:
    """Refuse what `decode` could not hold in memory."""
    if operation.kind in CLEARS:
        return
    most = _output_max(operation.kind)
    if operation.data_length > BLOB_MAX or operation.output_limit > most:
        raise PayloadLimitsError(
            f"an operation of part {part.name} makes {operation.output_limit} bytes of"
            f" {operation.data_length}, at most {most} of {BLOB_MAX} are allowed"
        )
    if operation.kind is OperationKind.SOURCE_ZSTD and operation.src_length > DICTIONARY_MAX:
        raise PayloadLimitsError(
            f"an operation of part {part.name} has a dictionary of {operation.src_length} bytes,"
            f" at most {DICTIONARY_MAX} are allowed"
        )
    check_segment_sizes(part, operation)


def _output_max(kind: OperationKind) -> int:
    if kind in SOURCE_DICTIONARIES | READS_TARGET:
        return DICTIONARY_OUTPUT_MAX
    return SOURCE_OUTPUT_MAX if kind in READS_SOURCE else OUTPUT_MAX


def _check_reading(manifest: Manifest, part: Part, operation: Operation) -> None:
    """Check what an operation of a delta reads: blocks of the old image, in place also of the new.

    In place, the end of the larger image is there as well while the delta is applied.
    """
    name, block_size = operation.kind.name, manifest.block_size
    if operation.kind not in READS_SOURCE:
        if operation.src_extents:
            raise ManifestInvalidError(f"an operation {name} of part {part.name} reads blocks")
        return
    if part.old_size is None:
        raise ManifestInvalidError(f"an operation {name} reads part {part.name}, which is new")
    blocks = part.old_size // block_size
    if manifest.major == 1:
        blocks = -(-max(part.old_size, part.size) // block_size)
    for extent in operation.src_extents:
        _check_source_extent(manifest, part, extent, blocks)
    _check_src_length(manifest, part, operation)


def _check_source_extent(manifest: Manifest, part: Part, extent: Extent, blocks: int) -> None:
    start, end = extent.start_block, extent.start_block + extent.num_blocks
    hole = manifest.major == 1 and start == SPARSE_HOLE
    if extent.num_blocks == 0 or (end > blocks and not hole):
        raise ManifestInvalidError(
            f"blocks {start} to {end} are read of part {part.name}, which has {blocks} blocks"
        )


def _check_src_length(manifest: Manifest, part: Part, operation: Operation) -> None:
    length, name = operation.src_length, operation.kind.name
    held = sum(extent.num_blocks for extent in operation.src_extents) * manifest.block_size
    fits = 0 < length <= held if manifest.major == 1 else 0 < length == held
    if not fits:
        raise ManifestInvalidError(
            f"an operation {name} of part {part.name} takes {length} bytes of blocks of {held}"
        )
    if operation.kind in COPIES and operation.dst_length != length:
        raise ManifestInvalidError(
            f"an operation {name} of part {part.name} copies {length} bytes"
            f" to blocks of {operation.dst_length}"
        )
    digest = operation.src_sha256
    if digest is not None and len(digest) != SHA256_SIZE:
        raise ManifestInvalidError(f"an operation {name} has a hash of {len(digest)} bytes")
    if operation.kind in SOURCE_DICTIONARIES and (digest is None or operation.dst_sha256 is None):
        raise ManifestInvalidError(
            f"an operation {name} of part {part.name} lacks the hash of what it reads or makes"
        )


def _check_operation_1(part: Part, operation: Operation) -> None:
    """Bound the bytes written, not the blocks claimed: payload.md 5."""
    length = operation.dst_length
    if operation.kind is OperationKind.REPLACE:
        length = operation.data_length
    if operation.kind in PATCHES and not length:
        raise ManifestInvalidError(f"a patch of part {part.name} does not say what it makes")
    if operation.output_limit == 0 or (length or 0) > operation.output_limit:
        raise ManifestInvalidError(
            f"an operation of part {part.name} writes {length or 'some'} bytes"
            f" where {operation.output_limit} have room"
        )


def _check_operation_2(part: Part, operation: Operation) -> None:
    if operation.dst_length != operation.output_limit:
        raise ManifestInvalidError(
            f"an operation of part {part.name} makes {operation.dst_length} bytes"
            f" for blocks of {operation.output_limit}"
        )
    if operation.kind is OperationKind.REPLACE and operation.data_length != operation.dst_length:
        raise ManifestInvalidError(
            f"a raw blob of part {part.name} has {operation.data_length} bytes"
            f" for blocks of {operation.dst_length}"
        )


def _check_blocks(part: Part, block_size: int) -> None:
    """Check that the extents tile the image: no block outside, twice or never written."""
    blocks = -(-part.size // block_size)
    position = 0
    for start, end in sorted(_runs(part, blocks)):
        if start != position:
            what = "twice" if start < position else "never"
            raise ManifestInvalidError(
                f"block {min(start, position)} of part {part.name} is written {what}"
            )
        position = end
    if position != blocks:
        raise ManifestInvalidError(f"block {position} of part {part.name} is never written")


def _runs(part: Part, blocks: int) -> list[tuple[int, int]]:
    """Return the extents of a part as (start, end), neighbours joined: mostly a single one."""
    runs: list[tuple[int, int]] = []
    for operation in part.operations:
        for extent in operation.dst_extents:
            start, end = extent.start_block, extent.start_block + extent.num_blocks
            if extent.num_blocks == 0 or end > blocks:
                raise ManifestInvalidError(
                    f"blocks {start} to {end} are written in part {part.name} of {blocks} blocks"
                )
            if runs and runs[-1][1] == start:
                runs[-1] = (runs[-1][0], end)
            else:
                runs.append((start, end))
    return runs
