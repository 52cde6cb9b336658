"""Operation type 1000: a frame whose dictionary is bytes of the old image (docs/payload.md)."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from backports import zstd

from images.apply import apply_file
from images.errors import (
    ManifestInvalidError,
    OperationOutputError,
    OperationUnsupportedError,
    PayloadLimitsError,
    SourceMismatchError,
    SourceMissingError,
)
from images.operations import decode, memory_bytes
from images.payload import Extent, Operation, OperationKind
from images.reader import verify_file
from images.rules import BLOB_MAX
from tests.sim import deltas
from tests.sim.deltas import BLOCK, DST_SHA256, SRC_SHA256, Delta, Extents
from tests.sim.payloads import image

MIB = 1024 * 1024
OLD = image(16, seed=1)
NEW = OLD[100 : 8 * BLOCK + 100] + OLD[9 * BLOCK : 11 * BLOCK - 5] + b"12345"


class Held:
    """An old image in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_at(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]


def operation(source: bytes, target: bytes, **changes: object) -> tuple[Operation, bytes]:
    """Return an operation that makes `target` out of an old image `source`, and its blob."""
    prefix = zstd.ZstdDict(source, is_raw=True).as_prefix
    blob = zstd.compress(target, zstd_dict=prefix)
    step = Operation(
        kind=OperationKind.SOURCE_ZSTD,
        data_offset=0,
        data_length=len(blob),
        dst_extents=(Extent(0, len(target) // BLOCK),),
        dst_length=len(target),
        output_limit=len(target),
        data_sha256=hashlib.sha256(blob).digest(),
        dst_sha256=hashlib.sha256(target).digest(),
        src_extents=(Extent(0, len(source) // BLOCK),),
        src_length=len(source),
        src_sha256=hashlib.sha256(source).digest(),
    )
    return replace(step, **changes), blob  # type: ignore[arg-type]  # of the fields above


def applied(delta: Delta, folder: Path, old: bytes = OLD) -> bytes:
    (folder / "payload").write_bytes(delta.payload())
    (folder / "old").write_bytes(old)
    apply_file(folder / "payload", {"usr": folder / "new"}, sources={"usr": folder / "old"})
    return (folder / "new").read_bytes()


def test_it_makes_the_new_image_out_of_pieces_of_the_old_one(tmp_path: Path) -> None:
    delta = Delta(OLD, NEW)
    delta.resemble([(9, 2), (0, 4), (3, 6)], [(8, 2), (0, 8)])  # a block may stand in several

    assert len(delta.blobs) < 200  # noise: all of it came from the dictionary
    assert applied(delta, tmp_path) == NEW
    verify_file(tmp_path / "payload", None)


def test_an_older_minor_version_has_no_such_operation(tmp_path: Path) -> None:
    delta = Delta(OLD, NEW, 9)
    delta.resemble([(0, 12)], [(0, 10)])

    with pytest.raises(OperationUnsupportedError, match="version 9, has an operation SOURCE_ZSTD"):
        applied(delta, tmp_path)


@pytest.mark.parametrize("lacks", [SRC_SHA256, DST_SHA256])
def test_both_hashes_are_required(lacks: int, tmp_path: Path) -> None:
    delta = Delta(OLD, NEW)
    delta.resemble([(0, 12)], [(0, 10)], lacks=[lacks])

    with pytest.raises(ManifestInvalidError, match="lacks the hash of what it reads or makes"):
        applied(delta, tmp_path)


@pytest.mark.parametrize("source", [[(15, 2)], [(16, 1)], [(2**64 - 1, 1)], [(0, 0)], [(2**63, 1)]])
def test_a_dictionary_outside_the_old_image_is_refused(source: Extents, tmp_path: Path) -> None:
    delta = Delta(OLD, NEW)
    blob = zstd.compress(NEW)
    delta.add(deltas.SOURCE_ZSTD, [(0, 10)], source=source, blob=blob, source_sha256=bytes(32))

    with pytest.raises(ManifestInvalidError, match="are read of part usr, which has 16 blocks"):
        applied(delta, tmp_path)


def test_it_must_have_a_dictionary(tmp_path: Path) -> None:
    delta = Delta(OLD, NEW)
    delta.add(deltas.SOURCE_ZSTD, [(0, 10)], blob=zstd.compress(NEW))

    with pytest.raises(ManifestInvalidError, match="takes 0 bytes"):
        applied(delta, tmp_path)


@pytest.mark.parametrize(
    ("source", "blocks", "what"),
    [
        ([(0, 2048)], 2048, None),
        ([(0, 2048), (7, 1)], 2048, "a dictionary of 8392704 bytes, at most 8388608"),
        ([(0, 1)], 2049, "makes 8392704 bytes"),
    ],
)
def test_dictionary_and_output_have_at_most_8_mib(
    source: Extents, blocks: int, what: str | None, tmp_path: Path
) -> None:
    old, new = bytes(2048 * BLOCK), bytes(2049 * BLOCK)
    delta = Delta(old, new[: blocks * BLOCK])
    delta.resemble(source, [(0, blocks)])

    if what is None:
        assert applied(delta, tmp_path, old) == delta.new
        return
    with pytest.raises(PayloadLimitsError, match=what):
        applied(delta, tmp_path, old)


def test_another_source_is_told_from_a_damaged_blob() -> None:
    step, blob = operation(OLD, NEW)

    assert decode(step, blob, block_size=BLOCK, source=Held(OLD)) == NEW
    with pytest.raises(SourceMismatchError, match="SOURCE_ZSTD reads bytes of sha256"):
        decode(step, blob, block_size=BLOCK, source=Held(b"!" + OLD[1:]))
    with pytest.raises(SourceMismatchError, match="ends within"):
        decode(step, blob, block_size=BLOCK, source=Held(OLD[:-1]))
    with pytest.raises(SourceMissingError):
        decode(step, blob, block_size=BLOCK)


def test_a_frame_that_makes_less_or_more_is_refused() -> None:
    short, blob = operation(OLD, NEW[:-BLOCK], dst_length=len(NEW), output_limit=len(NEW))
    with pytest.raises(OperationOutputError, match=f"makes {len(NEW) - BLOCK} bytes, not"):
        decode(short, blob, block_size=BLOCK, source=Held(OLD))

    step, _ = operation(OLD, NEW)
    _, bomb = operation(OLD, bytes(MIB))
    digest = hashlib.sha256(bomb).digest()
    more = replace(step, data_length=len(bomb), data_sha256=digest)
    with pytest.raises(OperationOutputError, match="more than the 40960 bytes that fit"):
        decode(more, bomb, block_size=BLOCK, source=Held(OLD))


def test_its_output_is_checked_where_that_is_asked_for() -> None:
    step, blob = operation(OLD, NEW, dst_sha256=bytes(32))

    with pytest.raises(OperationOutputError, match="made bytes of sha256"):
        decode(step, blob, block_size=BLOCK, source=Held(OLD), verify_output=True)


def test_its_memory_is_known_and_within_64_mib() -> None:
    step, blob = operation(OLD, NEW)
    assert memory_bytes(step) == len(blob) + 2 * len(OLD) + 3 * len(NEW)

    largest = replace(step, data_length=BLOB_MAX, src_length=8 * MIB, output_limit=8 * MIB)
    assert memory_bytes(largest) <= 61 * MIB
