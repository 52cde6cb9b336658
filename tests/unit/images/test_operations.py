"""Unpacking a blob: exact, bounded, and where the output goes."""

from __future__ import annotations

import bz2
import hashlib
import lzma
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
from backports import zstd

from images.errors import (
    BlobMismatchError,
    OperationOutputError,
    OperationUnsupportedError,
)
from images.manifest import SPARSE_HOLE, Extent, Operation, OperationKind
from images.operations import XZ_MEMORY_MAX, check_output, decode, memory_bytes, writes, zeros
from images.payload import CARRIED_OUT
from tests.sim.payloads import BLOCK, image

MIB = 1024 * 1024
DATA = image(4) + bytes(12 * BLOCK)


def xz(data: bytes) -> bytes:
    return lzma.compress(data, check=lzma.CHECK_CRC32)


def raw(data: bytes) -> bytes:
    return data


KINDS: dict[OperationKind, Callable[[bytes], bytes]] = {
    OperationKind.REPLACE: raw,
    OperationKind.REPLACE_BZ: bz2.compress,
    OperationKind.REPLACE_XZ: xz,
    OperationKind.REPLACE_ZSTD: zstd.compress,
}
PACKED = {kind: pack for kind, pack in KINDS.items() if pack is not raw}

each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
each_packed_kind = pytest.mark.parametrize("kind", PACKED, ids=lambda kind: kind.name)


def operation(
    kind: OperationKind,
    blob: bytes,
    size: int,
    *,
    exact: bool = True,
    dst_sha256: bytes | None = None,
    extents: tuple[Extent, ...] | None = None,
) -> Operation:
    """Return an operation whose output is `size` bytes; exactly, or at most."""
    return Operation(
        kind=kind,
        data_offset=0,
        data_length=len(blob),
        dst_extents=extents or (Extent(0, -(-size // BLOCK)),),
        dst_length=size if exact else None,
        output_limit=size,
        data_sha256=hashlib.sha256(blob).digest(),
        dst_sha256=dst_sha256,
    )


@each_kind
def test_a_blob_unpacks_to_its_output(kind: OperationKind) -> None:
    blob = KINDS[kind](DATA)

    assert decode(operation(kind, blob, len(DATA)), blob, block_size=BLOCK) == DATA


@each_kind
def test_a_blob_may_be_a_view(kind: OperationKind) -> None:
    blob = KINDS[kind](DATA)

    assert decode(operation(kind, blob, len(DATA)), memoryview(blob), block_size=BLOCK) == DATA


def test_a_raw_blob_is_not_copied() -> None:
    assert decode(operation(OperationKind.REPLACE, DATA, len(DATA)), DATA, block_size=BLOCK) is DATA


def test_zero_has_no_output_only_ranges() -> None:
    extents = (Extent(3, 2), Extent(9, 1))
    zero = operation(OperationKind.ZERO, b"", 3 * BLOCK, extents=extents)

    assert decode(zero, b"", block_size=BLOCK) is None
    assert list(zeros(zero, block_size=BLOCK)) == [(3 * BLOCK, 2 * BLOCK), (9 * BLOCK, BLOCK)]


@each_kind
def test_a_flipped_bit_in_a_blob_is_a_mismatch_with_both_hashes(kind: OperationKind) -> None:
    blob = KINDS[kind](DATA)
    flipped = bytes([blob[0] ^ 1]) + blob[1:]

    with pytest.raises(BlobMismatchError) as caught:
        decode(operation(kind, blob, len(DATA)), flipped, block_size=BLOCK)

    assert hashlib.sha256(flipped).hexdigest() in str(caught.value)
    assert hashlib.sha256(blob).hexdigest() in str(caught.value)


@each_kind
def test_a_blob_of_another_length_is_a_mismatch(kind: OperationKind) -> None:
    blob = KINDS[kind](DATA)

    with pytest.raises(BlobMismatchError, match=f"has {len(blob) - 1} bytes, not {len(blob)}"):
        decode(operation(kind, blob, len(DATA)), blob[:-1], block_size=BLOCK)


def test_a_blob_without_a_hash_is_a_mismatch() -> None:
    import dataclasses

    hashless = dataclasses.replace(
        operation(OperationKind.REPLACE, DATA, len(DATA)), data_sha256=None
    )
    with pytest.raises(BlobMismatchError, match="the manifest says nothing"):
        decode(hashless, DATA, block_size=BLOCK)


@each_kind
@pytest.mark.parametrize("difference", [-1, 1])
def test_an_output_of_another_length_is_refused(kind: OperationKind, difference: int) -> None:
    blob = KINDS[kind](DATA)

    with pytest.raises(OperationOutputError):
        decode(operation(kind, blob, len(DATA) + difference), blob, block_size=BLOCK)


@each_packed_kind
def test_a_blob_that_is_cut_is_refused(kind: OperationKind) -> None:
    blob = KINDS[kind](DATA)[:-1]

    with pytest.raises(OperationOutputError):
        decode(operation(kind, blob, len(DATA)), blob, block_size=BLOCK)


@each_packed_kind
@pytest.mark.parametrize("exact", [True, False])
def test_bytes_after_the_stream_are_refused(kind: OperationKind, exact: bool) -> None:
    blob = KINDS[kind](DATA) + b"\0"

    with pytest.raises(OperationOutputError, match="ends after its stream"):
        decode(operation(kind, blob, len(DATA), exact=exact), blob, block_size=BLOCK)


@each_packed_kind
def test_a_second_stream_is_refused(kind: OperationKind) -> None:
    blob = KINDS[kind](DATA[:BLOCK]) + KINDS[kind](DATA[BLOCK:])

    with pytest.raises(OperationOutputError):
        decode(operation(kind, blob, len(DATA)), blob, block_size=BLOCK)


@each_packed_kind
@pytest.mark.parametrize(
    "blob", [b"\0", b"garbage" * 100, b"BZh9", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"]
)
def test_a_blob_that_is_no_stream_is_refused(kind: OperationKind, blob: bytes) -> None:
    with pytest.raises(OperationOutputError):
        decode(operation(kind, blob, BLOCK, exact=False), blob, block_size=BLOCK)


@each_packed_kind
def test_a_stream_of_nothing_is_refused_where_a_length_is_named(kind: OperationKind) -> None:
    blob = KINDS[kind](b"")

    with pytest.raises(OperationOutputError, match="makes 0 bytes, not 4096"):
        decode(operation(kind, blob, BLOCK), blob, block_size=BLOCK)


BOMBS = """
import hashlib, lzma, bz2, resource, sys
from backports import zstd
from images.errors import OperationOutputError
from images.manifest import Extent, Operation, OperationKind
from images.operations import decode

kind = OperationKind[sys.argv[1]]
blob = sys.stdin.buffer.read()
operation = Operation(kind=kind, data_offset=0, data_length=len(blob),
    dst_extents=(Extent(0, 256),), dst_length=1 << 20, output_limit=1 << 20,
    data_sha256=hashlib.sha256(blob).digest(), dst_sha256=None)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode(operation, blob, block_size=4096)
except OperationOutputError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@each_packed_kind
def test_a_bomb_costs_no_more_memory_than_an_honest_blob(kind: OperationKind) -> None:
    bomb = KINDS[kind](bytes(96 * MIB))

    result = subprocess.run(
        [sys.executable, "-c", BOMBS, kind.name], input=bomb, capture_output=True, check=True
    )

    assert len(bomb) < MIB
    assert int(result.stdout) * 1024 < 24 * MIB


def test_an_xz_dictionary_above_the_limit_is_refused() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 64 * MIB}]
    blob = lzma.compress(DATA, check=lzma.CHECK_CRC32, filters=filters)

    with pytest.raises(OperationOutputError, match=r"[Mm]emory"):
        decode(operation(OperationKind.REPLACE_XZ, blob, len(DATA)), blob, block_size=BLOCK)


def test_an_xz_dictionary_of_16_mib_is_taken() -> None:
    assert XZ_MEMORY_MAX < 18 * MIB
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 16 * MIB}]
    blob = lzma.compress(DATA, check=lzma.CHECK_CRC32, filters=filters)

    assert decode(operation(OperationKind.REPLACE_XZ, blob, len(DATA)), blob, block_size=BLOCK)


def zstd_window(log: int) -> bytes:
    """Return a frame that claims a window of 2^log bytes."""
    compressor = zstd.ZstdCompressor(
        options={
            zstd.CompressionParameter.window_log: log,
            zstd.CompressionParameter.content_size_flag: 0,
        }
    )
    return (
        compressor.compress(DATA[:BLOCK]) + compressor.compress(DATA[BLOCK:]) + compressor.flush()
    )


def test_a_zstd_window_of_16_mib_is_taken() -> None:
    blob = zstd_window(24)

    assert decode(operation(OperationKind.REPLACE_ZSTD, blob, len(DATA)), blob, block_size=BLOCK)


@pytest.mark.parametrize("log", [25, 27, 31])
def test_a_zstd_window_above_16_mib_is_refused(log: int) -> None:
    blob = zstd_window(log)

    with pytest.raises(OperationOutputError, match="cannot be unpacked"):
        decode(operation(OperationKind.REPLACE_ZSTD, blob, len(DATA)), blob, block_size=BLOCK)


def test_a_zstd_frame_that_needs_a_dictionary_is_refused() -> None:
    samples = [DATA[i : i + 512] for i in range(0, len(DATA), 512)] * 20
    blob = zstd.compress(DATA, zstd_dict=zstd.train_dict(samples, 4096))

    with pytest.raises(OperationOutputError):
        decode(operation(OperationKind.REPLACE_ZSTD, blob, len(DATA)), blob, block_size=BLOCK)


@pytest.mark.parametrize("kind", sorted(set(OperationKind) - CARRIED_OUT))
def test_any_other_operation_is_refused_by_name(kind: OperationKind) -> None:
    with pytest.raises(OperationUnsupportedError, match=kind.name):
        decode(operation(kind, DATA, len(DATA)), DATA, block_size=BLOCK)


def test_the_output_hash_is_checked_when_asked() -> None:
    right = operation(
        OperationKind.REPLACE, DATA, len(DATA), dst_sha256=hashlib.sha256(DATA).digest()
    )
    wrong = operation(OperationKind.REPLACE, DATA, len(DATA), dst_sha256=bytes(32))

    assert decode(right, DATA, block_size=BLOCK, verify_output=True) == DATA
    assert decode(wrong, DATA, block_size=BLOCK) == DATA
    with pytest.raises(OperationOutputError, match="the manifest says 0000"):
        decode(wrong, DATA, block_size=BLOCK, verify_output=True)


def test_an_output_without_a_hash_cannot_be_checked() -> None:
    with pytest.raises(OperationOutputError, match="the manifest says nothing"):
        check_output(operation(OperationKind.REPLACE, DATA, len(DATA)), DATA)


def test_a_short_output_of_format_1_is_filled_to_a_block() -> None:
    short = operation(OperationKind.REPLACE, b"abc", 2 * BLOCK, exact=False)

    assert decode(short, b"abc", block_size=BLOCK) == b"abc".ljust(BLOCK, b"\0")


def test_the_output_goes_to_the_extents_in_their_order() -> None:
    extents = (Extent(7, 1), Extent(SPARSE_HOLE, 1), Extent(2, 2))
    data = image(4)
    pieces = writes(
        operation(OperationKind.REPLACE, data, len(data), extents=extents), data, block_size=BLOCK
    )

    assert [(offset, bytes(piece)) for offset, piece in pieces] == [
        (7 * BLOCK, data[:BLOCK]),
        (2 * BLOCK, data[2 * BLOCK :]),
    ]


def test_a_short_output_leaves_the_last_extents_alone() -> None:
    extents = (Extent(0, 2), Extent(5, 2))
    data = image(1)
    pieces = writes(
        operation(OperationKind.REPLACE, data, 4 * BLOCK, extents=extents), data, block_size=BLOCK
    )

    assert [(offset, len(piece)) for offset, piece in pieces] == [(0, BLOCK)]


def test_offsets_beyond_4_gib_are_exact() -> None:
    extents = (Extent(2**40, 1),)
    data = image(1)
    pieces = writes(
        operation(OperationKind.REPLACE, data, BLOCK, extents=extents), data, block_size=BLOCK
    )

    assert next(pieces)[0] == 2**52


@each_kind
def test_the_memory_that_an_operation_takes_is_known_before(kind: OperationKind) -> None:
    blob = KINDS[kind](DATA)
    known = memory_bytes(operation(kind, blob, len(DATA)))

    assert known >= (len(blob) if kind is OperationKind.REPLACE else len(blob) + len(DATA))
    assert memory_bytes(operation(OperationKind.ZERO, b"", MIB)) == 0


def test_threads_unpack_the_same_as_one() -> None:
    blob = zstd.compress(DATA)
    step = operation(OperationKind.REPLACE_ZSTD, blob, len(DATA))
    outputs: list[bytes | memoryview | None] = []
    threads = [
        threading.Thread(target=lambda: outputs.append(decode(step, blob, block_size=BLOCK)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert outputs == [DATA] * 8
