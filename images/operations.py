"""What an operation makes of its blob, and where that lands. No file is opened here.

All of it is safe in threads; hashing and unpacking release the interpreter lock.
"""

from __future__ import annotations

import bz2
import hashlib
import lzma
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Protocol

from images.errors import BlobMismatchError, OperationOutputError, OperationUnsupportedError
from images.payload import SPARSE_HOLE, Operation, OperationKind

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

WINDOW_LOG_MAX: Final = 24  # zstd window of at most 16 MiB: design.md 8.9
WINDOW_MAX: Final = 1 << WINDOW_LOG_MAX  # bytes that one unpacking may hold besides in- and output
XZ_MEMORY_MAX: Final = WINDOW_MAX + 1024 * 1024  # bytes; a dictionary of 16 MiB and its tables

Bytes = bytes | memoryview


class _Decompressor(Protocol):
    """What the decompressors of the standard library have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: Bytes, max_length: int) -> bytes: ...


def _open_xz() -> _Decompressor:
    return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=XZ_MEMORY_MAX)


def _open_zstd() -> _Decompressor:
    return zstd.ZstdDecompressor(
        options={zstd.DecompressionParameter.window_log_max: WINDOW_LOG_MAX}
    )


_DECOMPRESSORS: Final[Mapping[OperationKind, Callable[[], _Decompressor]]] = {
    OperationKind.REPLACE_BZ: bz2.BZ2Decompressor,
    OperationKind.REPLACE_XZ: _open_xz,
    OperationKind.REPLACE_ZSTD: _open_zstd,
}
_DECODE_ERRORS: Final = (OSError, EOFError, ValueError, lzma.LZMAError, zstd.ZstdError)


def decode(
    operation: Operation, blob: Bytes, *, block_size: int, verify_output: bool = False
) -> Bytes | None:
    """Return what the operation writes, or None for ZERO, whose ranges `zeros` names.

    1. the blob has the length and the SHA-256 that the operation names;
    2. it unpacks to no more than fits, in one stream, with bounded memory;
    3. the output has exactly the length the operation names, where it names one;
    4. with `verify_output`, it has the SHA-256 of field 1000, where there is one;
    5. a last block that format 1 leaves short is filled with zeros, also past the end of an
       image of odd size.

    Args:
        operation: of a full payload.
        blob: its bytes as stored; for REPLACE they are returned without a copy.
        block_size: bytes of a block.
        verify_output: worth its time only where the blob's hash is not enough.

    Raises:
        BlobMismatchError: step 1 fails.
        OperationOutputError: step 2, 3 or 4 fails.
        OperationUnsupportedError: the operation needs the old image, or is none of ours.
    """
    if operation.kind is OperationKind.ZERO:
        return None
    check_blob(operation, blob)
    output = _unpack(operation, blob)
    expected = operation.dst_length
    if expected is not None and len(output) != expected:
        raise OperationOutputError(
            f"an operation {operation.kind.name} makes {len(output)} bytes, not {expected}"
        )
    if verify_output and operation.dst_sha256 is not None:
        check_output(operation, output)
    short = len(output) % block_size
    return output if short == 0 else bytes(output) + bytes(block_size - short)


def check_blob(operation: Operation, blob: Bytes) -> None:
    """Check the bytes of a blob as stored; of any kind, also one that `decode` refuses.

    Raises:
        BlobMismatchError: length or SHA-256 differ from what the manifest names.
    """
    if len(blob) != operation.data_length:
        raise BlobMismatchError(f"a blob has {len(blob)} bytes, not {operation.data_length}")
    check_blob_digest(operation, hashlib.sha256(blob).digest())


def check_blob_digest(operation: Operation, actual: bytes) -> None:
    """Check the SHA-256 of a blob that was hashed elsewhere.

    Raises:
        BlobMismatchError: it is not the one that the manifest names, or that names none.
    """
    if actual != operation.data_sha256:
        expected = "nothing" if operation.data_sha256 is None else operation.data_sha256.hex()
        raise BlobMismatchError(
            f"the blob at byte {operation.data_offset} of the data has sha256 {actual.hex()},"
            f" the manifest says {expected}"
        )


def check_output(operation: Operation, output: Bytes) -> None:
    """Check what an operation made, also as read back from where it was written.

    Raises:
        OperationOutputError: its SHA-256 is not the one in field 1000, or there is none.
    """
    actual = hashlib.sha256(output).digest()
    if actual != operation.dst_sha256:
        expected = "nothing" if operation.dst_sha256 is None else operation.dst_sha256.hex()
        raise OperationOutputError(
            f"an operation {operation.kind.name} made bytes of sha256 {actual.hex()},"
            f" the manifest says {expected}"
        )


def writes(
    operation: Operation, output: Bytes, *, block_size: int
) -> Iterator[tuple[int, memoryview]]:
    """Yield where each piece of what `decode` returned goes, as (byte offset in the image, bytes).

    Bytes for a sparse hole are left out. A piece may end past an image of odd size (format 1):
    a file is cut to its size afterwards.
    """
    view = memoryview(output)
    for extent in operation.dst_extents:
        length = extent.num_blocks * block_size
        piece, view = view[:length], view[length:]
        if piece and extent.start_block != SPARSE_HOLE:
            yield extent.start_block * block_size, piece


def zeros(operation: Operation, *, block_size: int) -> Iterator[tuple[int, int]]:
    """Yield what a ZERO operation clears, as (byte offset in the image, bytes)."""
    for extent in operation.dst_extents:
        yield extent.start_block * block_size, extent.num_blocks * block_size


def memory_bytes(operation: Operation) -> int:
    """Return an upper bound of what `decode` holds at once, blob and output included.

    An unpacker's window is claimed by the blob, but never touched beyond the output.
    """
    if operation.kind is OperationKind.ZERO:
        return 0
    if operation.kind is OperationKind.REPLACE:
        return operation.data_length
    window = min(operation.output_limit, WINDOW_MAX)
    return operation.data_length + 2 * operation.output_limit + window


def _unpack(operation: Operation, blob: Bytes) -> Bytes:
    """Return the output; at most one byte more than fits is ever unpacked."""
    limit = operation.output_limit
    if operation.kind is OperationKind.REPLACE:
        output = blob
    else:
        output = _decompress(operation, blob, limit + 1)
    if len(output) > limit:
        raise OperationOutputError(
            f"an operation {operation.kind.name} makes more than the {limit} bytes that fit"
        )
    return output


def _decompress(operation: Operation, blob: Bytes, max_length: int) -> bytes:
    open_decompressor = _DECOMPRESSORS.get(operation.kind)
    if open_decompressor is None:
        raise OperationUnsupportedError(
            f"an operation {operation.kind.name} is not one of a full payload"
        )
    decompressor = open_decompressor()
    try:
        output = decompressor.decompress(blob, max_length)
    except _DECODE_ERRORS as error:
        raise OperationOutputError(
            f"an operation {operation.kind.name} cannot be unpacked: {error}"
        ) from error
    if len(output) < max_length and (not decompressor.eof or decompressor.unused_data):
        what = "after" if decompressor.eof else "before"
        raise OperationOutputError(
            f"the blob of an operation {operation.kind.name} ends {what} its stream"
        )
    return output
