"""The old image as the operations of a delta read it."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from images.errors import OperationOutputError, SourceMismatchError, SourceMissingError
from images.operations import decode, memory_bytes, zeros
from images.payload import (
    READS_SOURCE,
    SPARSE_HOLE,
    Extent,
    Manifest,
    Operation,
    OperationKind,
    Part,
)
from images.source import Gathered, check_source, reads_source
from tests.sim.payloads import BLOCK, image

MIB = 1024 * 1024
DATA = image(8)


class Held:
    """An image in memory that knows how it was read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.sizes: list[int] = []

    def read_at(self, offset: int, size: int) -> bytes:
        self.sizes.append(size)
        return self.data[offset : offset + size]


class Filling(Held):
    """One that fills memory which is there."""

    def read_into(self, offset: int, room: memoryview) -> int:
        data = self.read_at(offset, len(room))
        room[: len(data)] = data
        return len(data)


def copy(*extents: Extent, kind: OperationKind = OperationKind.SOURCE_COPY) -> Operation:
    size = sum(extent.num_blocks for extent in extents) * BLOCK
    return Operation(
        kind=kind,
        data_offset=None,
        data_length=0,
        dst_extents=(Extent(0, size // BLOCK),),
        dst_length=size,
        output_limit=size,
        data_sha256=None,
        dst_sha256=None,
        src_extents=extents,
        src_length=size,
    )


PART = Part(
    name="usr",
    size=BLOCK,
    sha256=bytes(32),
    operations=(),
    old_size=len(DATA),
    old_sha256=hashlib.sha256(DATA).digest(),
)


@pytest.mark.parametrize("held", [Held, Filling])
@pytest.mark.parametrize("kind", [OperationKind.SOURCE_COPY, OperationKind.MOVE])
def test_a_copy_takes_its_extents_in_order(kind: OperationKind, held: type[Held]) -> None:
    operation = copy(Extent(5, 2), Extent(SPARSE_HOLE, 1), Extent(0, 1), kind=kind)

    output = decode(operation, b"", block_size=BLOCK, source=held(DATA))

    assert output == DATA[5 * BLOCK : 7 * BLOCK] + bytes(BLOCK) + DATA[:BLOCK]


def test_a_filling_image_that_ends_early_is_refused() -> None:
    operation = copy(Extent(0, 2))

    with pytest.raises(SourceMismatchError, match="ends within the 8192 bytes at byte 0"):
        decode(operation, b"", block_size=BLOCK, source=Filling(DATA[: 2 * BLOCK - 1]))


def test_runs_longer_than_a_read_and_cut_by_it_are_filled_in_order() -> None:
    data = image(600)[: 600 * BLOCK]
    operation = copy(Extent(200, 400), Extent(1, 199), Extent(0, 1))

    output = decode(operation, b"", block_size=BLOCK, source=Filling(data))

    assert output == data[200 * BLOCK :] + data[BLOCK : 200 * BLOCK] + data[:BLOCK]


@pytest.mark.parametrize("image_type", [Held, Filling])
def test_reads_are_at_most_a_mebibyte(image_type: type[Held]) -> None:
    held = image_type(bytes(5 * MIB))
    decode(copy(Extent(0, 5 * MIB // BLOCK)), b"", block_size=BLOCK, source=held)

    assert max(held.sizes) == MIB


def test_the_source_hash_is_checked_before_anything_is_made() -> None:
    operation = copy(Extent(1, 2))
    right = replace(operation, src_sha256=hashlib.sha256(DATA[BLOCK : 3 * BLOCK]).digest())
    wrong = replace(operation, src_sha256=bytes(32))

    assert decode(right, b"", block_size=BLOCK, source=Held(DATA)) == DATA[BLOCK : 3 * BLOCK]
    with pytest.raises(SourceMismatchError, match="the manifest says 0000"):
        decode(wrong, b"", block_size=BLOCK, source=Held(DATA))


def test_an_image_that_ends_too_early_is_refused() -> None:
    with pytest.raises(SourceMismatchError, match="ends within the 8192 bytes at byte 28672"):
        decode(copy(Extent(7, 2)), b"", block_size=BLOCK, source=Held(DATA))


def test_without_an_old_image_nothing_that_reads_it_is_decoded() -> None:
    with pytest.raises(SourceMissingError, match="SOURCE_COPY reads the old image"):
        decode(copy(Extent(0, 1)), b"", block_size=BLOCK)


@pytest.mark.parametrize(("offset", "size"), [(-1, 2), (2 * BLOCK, 1), (2 * BLOCK - 1, 2)])
def test_nothing_outside_the_source_is_read(offset: int, size: int) -> None:
    gathered = Gathered(copy(Extent(0, 1), Extent(3, 1)), Held(DATA), block_size=BLOCK)

    with pytest.raises(OperationOutputError, match="of a source of 8192"):
        gathered.read(offset, size)


def test_a_read_crosses_from_extent_to_extent() -> None:
    gathered = Gathered(copy(Extent(0, 1), Extent(3, 1)), Held(DATA), block_size=BLOCK)

    assert gathered.read(BLOCK - 1, 2) == DATA[BLOCK - 1 : BLOCK] + DATA[3 * BLOCK :][:1]


def test_a_discarded_range_is_cleared_like_zeros() -> None:
    operation = replace(copy(), kind=OperationKind.DISCARD, dst_extents=(Extent(2, 3),))

    assert decode(operation, b"", block_size=BLOCK) is None
    assert list(zeros(operation, block_size=BLOCK)) == [(2 * BLOCK, 3 * BLOCK)]


@pytest.mark.parametrize("major", [1, 2])
def test_the_right_old_image_passes(major: int) -> None:
    check_source(PART, Held(DATA), size=len(DATA), major=major)


def test_only_format_2_takes_a_longer_device() -> None:
    longer = Held(DATA + b"more")

    check_source(PART, longer, size=len(DATA) + 4, major=2)
    with pytest.raises(SourceMismatchError, match="has 32772 bytes, the delta starts from 32768"):
        check_source(PART, longer, size=len(DATA) + 4, major=1)


def test_a_part_that_is_no_delta_needs_no_old_image() -> None:
    check_source(replace(PART, old_size=None), Held(b""), size=0, major=2)


def test_format_1_is_in_place_where_it_starts_from_an_image() -> None:
    manifest = Manifest(
        major=1,
        minor=0,
        block_size=BLOCK,
        parts=(PART,),
        skipped=(),
        is_delta=True,
        blob_bytes=0,
        signatures_offset=None,
        signatures_size=0,
    )

    assert manifest.is_in_place(PART)
    assert not manifest.is_in_place(replace(PART, old_size=None))
    assert not replace(manifest, major=2).is_in_place(PART)


def test_what_reads_the_old_image_is_told_apart() -> None:
    kinds = {kind for kind in OperationKind if reads_source(replace(copy(), kind=kind))}

    assert kinds == READS_SOURCE
    assert {OperationKind.MOVE, OperationKind.BSDIFF, OperationKind.SOURCE_COPY} <= kinds
    assert not kinds & {OperationKind.REPLACE, OperationKind.ZERO, OperationKind.DISCARD}


def test_the_budget_of_a_patch_counts_blob_output_and_streams() -> None:
    patch = replace(
        copy(Extent(0, 4)), kind=OperationKind.BSDIFF, data_length=1000, output_limit=5 * BLOCK
    )

    assert memory_bytes(patch) == 1000 + 5 * BLOCK + 13 * MIB + patch.src_length  # it is held
    large = replace(patch, src_length=5 * MIB)
    assert memory_bytes(large) == 1000 + 5 * BLOCK + 13 * MIB
    assert memory_bytes(copy(Extent(0, 4))) == 4 * BLOCK + MIB
