"""What an operation makes of its blob and the old image, and where that lands.

No file is opened here. All of it is safe in threads; hashing and unpacking release the interpreter
lock. How a pipeline must order the operations of a delta:

* **Format 2** never reads what it writes: the source is the booted slot, the target the passive
  one. Operations may be decoded ahead, in any order, and each may be repeated.
* **Format 1 is in place** (`Manifest.is_in_place`): the target holds a full copy of the old image
  and is the source too. `decode` of an operation that `reads_source` is called only when all
  operations before it are written, and its output is written before the next one is decoded. What
  was interrupted starts again from the copy: no operation may be taken for repeatable.

In both, the old image is compared as a whole before the first operation: by `source.check_source`,
or, where a node read it in this boot, by what it read then.
"""

from __future__ import annotations

import bz2
import hashlib
import lzma
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Protocol

from images.bsdiff import WORK_BYTES, HeldSource, Readable, apply_patch, patch_bytes
from images.dictionary import DICTIONARY_MAX, WINDOW_LOG_MAX
from images.errors import (
    BlobMismatchError,
    OperationOutputError,
    OperationUnsupportedError,
    SourceMissingError,
)
from images.frames import Buffer, unpack_frame
from images.payload import (
    CARRIED_OUT,
    CLEARS,
    COPIES,
    PATCHES,
    READS_SOURCE,
    READS_TARGET,
    SOURCE_DICTIONARIES,
    SPARSE_HOLE,
    Operation,
    OperationKind,
)
from images.recode import recode, recode_bytes
from images.source import CHUNK_SIZE, HELD_MAX, Gathered, OldImage

WINDOW_MAX: Final = 1 << WINDOW_LOG_MAX  # bytes that one unpacking may hold besides in- and output
XZ_MEMORY_MAX: Final = WINDOW_MAX + 1024 * 1024  # bytes; a dictionary of 16 MiB and its tables

Bytes = bytes | memoryview
ZSTD: Final = frozenset({OperationKind.REPLACE_ZSTD})


class _Decompressor(Protocol):
    """What the decompressors of the standard library have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: Bytes, max_length: int) -> bytes: ...


def _open_xz() -> _Decompressor:
    return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=XZ_MEMORY_MAX)


_DECOMPRESSORS: Final[Mapping[OperationKind, Callable[[], _Decompressor]]] = {
    OperationKind.REPLACE_BZ: bz2.BZ2Decompressor,
    OperationKind.REPLACE_XZ: _open_xz,
}
_DECODE_ERRORS: Final = (OSError, EOFError, ValueError, lzma.LZMAError)


def decode(
    operation: Operation,
    blob: Bytes,
    *,
    block_size: int,
    verify_output: bool | None = None,
    source: OldImage | None = None,
    dictionary: Bytes = b"",
    room: memoryview | None = None,
) -> Bytes | None:
    """Return what the operation writes, or None for ZERO and DISCARD, whose ranges `zeros` names.

    1. the blob has the length and the SHA-256 that the operation names;
    2. what it reads of the old image has the SHA-256 that it names, where it names one;
    3. it unpacks to no more than fits, in one stream, with bounded memory; a copy or a patch
       stays within its source extents;
    4. the output has exactly the length the operation names, where it names one;
    5. with `verify_output`, it has the SHA-256 of field 1000, where there is one; unless told not
       to, what was made with bytes of a dictionary, which may be lost or changed, is compared;
    6. a last block that format 1 leaves short is filled with zeros, also past the end of an
       image of odd size.

    Nothing is written here, and all that is read of `source` is read before this returns.

    Args:
        operation: of a payload that was accepted as one that we carry out.
        blob: its bytes as stored; for REPLACE they are returned without a copy.
        block_size: bytes of a block.
        verify_output: worth its time only where the blob's hash is not enough. False where the
            output is compared later, as the disk holds it.
        source: the old image of the operation's part; a full payload needs none.
        dictionary: what the operations that `Operation.dictionary` names made, in this order.
        room: writable, at least `room_bytes`: what is returned is then the beginning of it.

    Raises:
        BlobMismatchError: step 1 fails.
        SourceMismatchError: step 2 fails, or the old image ends too early.
        SourceMissingError: the operation reads the old image, and there is none.
        OperationOutputError: step 3, 4 or 5 fails.
        OperationUnsupportedError: the operation is one that we do not carry out.
    """
    if operation.kind in CLEARS:
        return None
    check_blob(operation, blob)
    if operation.kind not in CARRIED_OUT:
        raise OperationUnsupportedError(
            f"an operation {operation.kind.name} is not one that we carry out"
        )
    output: Bytes
    if operation.kind in READS_SOURCE:
        output = _derive(operation, blob, source, block_size, room)
    elif operation.kind in READS_TARGET | ZSTD:
        output = _sized(operation, _unpack_frame(operation, blob, dictionary, room))
    else:
        output = _unpack(operation, blob)
    if verify_output is None:
        verify_output = operation.kind in READS_TARGET
    if verify_output and operation.dst_sha256 is not None:
        check_output(operation, memoryview(output)[: operation.dst_length])
    return _filled(output, block_size, room)


def _filled(output: Bytes, block_size: int, room: memoryview | None) -> Bytes:
    """Return whole blocks, in `room` where there is one."""
    size, short = len(output), -len(output) % block_size
    if room is None:
        return b"".join((output, bytes(short))) if short else output
    if not (isinstance(output, memoryview) and output.obj is room.obj):
        room[:size] = output
    room[size : size + short] = bytes(short)
    return room[: size + short]


def check_blob(operation: Operation, blob: Bytes) -> None:
    """Check the bytes of a blob as stored; of any kind, also one that `decode` refuses.

    Raises:
        BlobMismatchError: length or SHA-256 differ from what the manifest names.
    """
    if len(blob) != operation.data_length:
        raise BlobMismatchError(f"a blob has {len(blob)} bytes, not {operation.data_length}")
    if operation.data_length:
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
    """Yield what a ZERO or DISCARD operation clears, as (byte offset in the image, bytes)."""
    for extent in operation.dst_extents:
        yield extent.start_block * block_size, extent.num_blocks * block_size


def room_bytes(operation: Operation, *, block_size: int) -> int:
    """Return how many bytes `decode` fills at most: whole blocks."""
    if operation.kind in CLEARS:
        return 0
    size = operation.output_limit if operation.dst_length is None else operation.dst_length
    return size + -size % block_size


def work_bytes(operation: Operation, blob: Bytes | None = None) -> int:
    """Return an upper bound of what `decode` holds besides its room and its dictionary.

    Where its blob is known it may be a lower one. What is copied is read into the room, from an
    image that can.
    """
    if operation.kind in CLEARS | COPIES:
        return 0
    if operation.kind in READS_TARGET | ZSTD or operation.kind is OperationKind.REPLACE:
        return operation.data_length
    if operation.kind is OperationKind.SOURCE_RECODE:
        return operation.data_length + recode_bytes(operation, blob)
    if operation.kind in PATCHES:
        held = operation.src_length if operation.src_length <= HELD_MAX else 0
        size = operation.output_limit
        patching = WORK_BYTES if blob is None else patch_bytes(blob, size)
        return operation.data_length + held + max(held, patching)  # read, and then patched
    if operation.kind in SOURCE_DICTIONARIES:
        return operation.data_length + operation.src_length
    return memory_bytes(operation) - (
        operation.output_limit if operation.kind in READS_SOURCE else 0
    )


def memory_bytes(operation: Operation, *, dictionary: int = DICTIONARY_MAX) -> int:
    """Return an upper bound of what `decode` holds at once, blob, source and output included.

    `dictionary` is how many bytes its dictionary has, for an operation with one.

    An unpacker's window is claimed by the blob, but never touched beyond the output. The source is
    never held, but for a dictionary, or for a patch where it is small: what is read of it otherwise
    is part of what a patch needs.
    """
    if operation.kind in CLEARS:
        return 0
    if operation.kind is OperationKind.REPLACE:
        return operation.data_length
    if operation.kind in COPIES:
        return operation.output_limit + CHUNK_SIZE
    if operation.kind in PATCHES:
        held = operation.src_length if operation.src_length <= HELD_MAX else 0
        return operation.data_length + operation.output_limit + WORK_BYTES + held
    if operation.kind is OperationKind.SOURCE_RECODE:
        return operation.data_length + recode_bytes(operation) + operation.output_limit
    window = min(operation.output_limit, WINDOW_MAX)
    if operation.kind in SOURCE_DICTIONARIES | READS_TARGET:  # zstd takes a copy of it
        window += 2 * (operation.src_length if operation.kind in READS_SOURCE else dictionary)
    return operation.data_length + 2 * operation.output_limit + window


def _derive(
    operation: Operation,
    blob: Bytes,
    source: OldImage | None,
    block_size: int,
    room: memoryview | None,
) -> memoryview:
    """Return what a copy or a patch makes of the old image, in `room` where there is one."""
    name = operation.kind.name
    if source is None:
        raise SourceMissingError(f"an operation {name} reads the old image, and there is none")
    size = operation.dst_length
    if size is None or size > operation.output_limit:
        raise OperationOutputError(
            f"an operation {name} makes {size} bytes where {operation.output_limit} fit"
        )
    gathered = Gathered(operation, source, block_size=block_size)
    if operation.kind is OperationKind.SOURCE_RECODE:
        return recode(operation, blob, gathered, room)[:size]
    whole = room_bytes(operation, block_size=block_size)
    output = (memoryview(bytearray(whole)) if room is None else room[:whole])[:size]
    if operation.kind in SOURCE_DICTIONARIES:
        _unpack_with_source(operation, blob, gathered, output)
        return output
    if operation.kind in PATCHES:
        apply_patch(blob, _patched_source(gathered), output)
        return output
    if gathered.size != size:
        raise OperationOutputError(f"an operation {name} copies {gathered.size} bytes to {size}")
    gathered.fill(output)
    gathered.compare(output)
    return output


def _patched_source(gathered: Gathered) -> Readable:
    """Return what a patch reads, checked; a small source is read once."""
    if gathered.size <= HELD_MAX:
        return HeldSource(bytes(gathered.read_checked()))
    gathered.check()
    return gathered


def _unpack_with_source(
    operation: Operation, blob: Bytes, gathered: Gathered, output: memoryview
) -> None:
    """Fill `output` with what the blob makes with the source as its dictionary."""
    if gathered.size > DICTIONARY_MAX:
        raise OperationOutputError(
            f"an operation {operation.kind.name} has a dictionary of {gathered.size} bytes"
        )
    made = unpack_frame(blob, output, gathered.read_checked())
    if made != len(output):
        raise OperationOutputError(
            f"an operation {operation.kind.name} makes {made} bytes, not {len(output)}"
        )


def _unpack_frame(
    operation: Operation, blob: Bytes, dictionary: Buffer, room: memoryview | None
) -> memoryview:
    """Return what one zstd frame makes, in `room` where there is one."""
    limit = operation.output_limit
    space = memoryview(bytearray(limit)) if room is None else room[:limit]
    return space[: unpack_frame(blob, space, dictionary)]


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
    return _sized(operation, output)


def _sized(operation: Operation, output: Bytes) -> Bytes:
    expected = operation.dst_length
    if expected is not None and len(output) != expected:
        raise OperationOutputError(
            f"an operation {operation.kind.name} makes {len(output)} bytes, not {expected}"
        )
    return output


def _decompress(operation: Operation, blob: Bytes, max_length: int) -> bytes:
    decompressor = _DECOMPRESSORS[operation.kind]()
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
