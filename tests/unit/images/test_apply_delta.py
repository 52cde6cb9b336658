"""Deltas of format 2, and small ones of format 1, applied to files."""

from __future__ import annotations

import bz2
import hashlib
import struct
from pathlib import Path

import bsdiff4
import pytest

from images.apply import apply_file
from images.errors import (
    DeltaUnsupportedError,
    ManifestInvalidError,
    OperationOutputError,
    OperationUnsupportedError,
    PartitionMismatchError,
    PartUnknownError,
    PayloadLimitsError,
    SourceMismatchError,
    SourceMissingError,
)
from images.manifest import SPARSE_HOLE
from images.proto import payload_pb2 as pb
from tests.sim import deltas
from tests.sim.deltas import BLOCK, Delta
from tests.sim.payloads import format_1, image

OLD = image(16, seed=1)
TEXT = b"".join(b"line %d\n" % number for number in range(4 * BLOCK))[: 4 * BLOCK]
NEW = b"".join(
    (
        OLD[8 * BLOCK : 12 * BLOCK],  # 0..3: copied
        OLD[: 2 * BLOCK - 7] + b"changed",  # 4, 5: patched
        bytes(4 * BLOCK),  # 6..9: zeros
        TEXT,  # 10..13: replaced
        image(1, seed=2),  # 14: replaced raw
    )
)


def every_operation(minor: int = 10) -> Delta:
    """Return a delta with each operation that we carry out."""
    delta = Delta(OLD, NEW, minor)
    delta.copy([(10, 2), (8, 2)], [(2, 2), (0, 2)])
    delta.patch([(0, 1), (1, 1)], [(4, 2)])
    delta.clear(deltas.ZERO, [(6, 1), (9, 1)])
    delta.clear(deltas.DISCARD, [(7, 2)])
    delta.replace(deltas.REPLACE_BZ, [(10, 1)])
    delta.replace(deltas.REPLACE_XZ, [(11, 2)])
    delta.replace(deltas.REPLACE_ZSTD, [(13, 1)])
    delta.replace(deltas.REPLACE, [(14, 1)])
    return delta


def applied(payload: bytes, folder: Path, old: bytes = OLD) -> bytes:
    """Return the image that a delta makes; whatever goes wrong leaves nothing behind."""
    (folder / "payload").write_bytes(payload)
    (folder / "old").write_bytes(old)
    try:
        sources = {"usr": folder / "old"}
        apply_file(folder / "payload", {"usr": folder / "new"}, sources=sources)
    except Exception:
        assert sorted(path.name for path in folder.iterdir()) == ["old", "payload"]
        raise
    return (folder / "new").read_bytes()


def test_every_operation_of_a_delta_makes_the_very_image(tmp_path: Path) -> None:
    assert applied(every_operation().payload(), tmp_path) == NEW


def test_the_old_image_may_be_longer_than_the_delta_says(tmp_path: Path) -> None:
    assert applied(every_operation().payload(), tmp_path, OLD + b"the rest of the slot") == NEW


def test_a_shorter_old_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceMismatchError, match="has 65535 bytes, the delta starts from 65536"):
        applied(every_operation().payload(), tmp_path, OLD[:-1])


def test_one_changed_byte_of_the_old_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceMismatchError, match="the delta starts from"):
        applied(every_operation().payload(), tmp_path, OLD[:-1] + b"!")


def test_an_operation_that_reads_other_bytes_than_it_names_is_refused(tmp_path: Path) -> None:
    delta = Delta(OLD, OLD)
    delta.add(deltas.SOURCE_COPY, [(0, 16)], source=[(0, 16)], source_sha256=bytes(31) + b"1")

    with pytest.raises(SourceMismatchError, match="SOURCE_COPY reads bytes of sha256"):
        applied(delta.payload(), tmp_path)


def test_a_delta_that_makes_another_image_is_refused(tmp_path: Path) -> None:
    delta = Delta(OLD, image(16, seed=9))
    delta.copy([(0, 16)], [(0, 16)])

    with pytest.raises(PartitionMismatchError):
        applied(delta.payload(), tmp_path)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (deltas.PUFFDIFF, "PUFFDIFF"),
        (deltas.BROTLI_BSDIFF, "BROTLI_BSDIFF"),
        (deltas.ZUCCHINI, "ZUCCHINI"),
        (deltas.LZ4DIFF_BSDIFF, "LZ4DIFF_BSDIFF"),
        (deltas.LZ4DIFF_PUFFDIFF, "LZ4DIFF_PUFFDIFF"),
    ],
)
def test_what_we_do_not_carry_out_is_refused_by_name_before_a_byte_is_written(
    kind: int, name: str, tmp_path: Path
) -> None:
    delta = Delta(OLD, OLD)
    delta.add(kind, [(0, 16)], source=[(0, 16)], blob=b"patch")

    with pytest.raises(OperationUnsupportedError, match=f"an operation {name}, which we do not"):
        applied(delta.payload(), tmp_path)


@pytest.mark.parametrize("minor", [0, 1, 11])
def test_a_delta_of_a_minor_version_that_we_do_not_know_is_refused(
    minor: int, tmp_path: Path
) -> None:
    with pytest.raises(DeltaUnsupportedError, match=f"minor version {minor}, we apply 2 to 10"):
        applied(every_operation(minor).payload(), tmp_path)


@pytest.mark.parametrize(
    ("kind", "minor"),
    [
        (deltas.REPLACE_XZ, 3),
        (deltas.ZERO, 4),
        (deltas.DISCARD, 4),
        (deltas.BROTLI_BSDIFF, 4),
        (deltas.PUFFDIFF, 5),
        (deltas.ZUCCHINI, 8),
        (deltas.LZ4DIFF_BSDIFF, 9),
        (deltas.LZ4DIFF_PUFFDIFF, 9),
        (deltas.REPLACE_ZSTD, 10),
        (deltas.SOURCE_ZSTD, 10),
    ],
)
def test_an_operation_belongs_to_a_minor_version(kind: int, minor: int, tmp_path: Path) -> None:
    new = bytes(16 * BLOCK)
    reads = kind in range(9, 14)
    delta = Delta(OLD, new, minor - 1)
    if kind == deltas.SOURCE_ZSTD:
        delta.resemble([(0, 16)], [(0, 16)])
    elif kind in {deltas.ZERO, deltas.DISCARD} or reads:
        source = [(0, 16)] if reads else []
        delta.add(kind, [(0, 16)], source=source, blob=b"patch" if reads else b"")
    else:
        delta.replace(kind, [(0, 16)])

    with pytest.raises(OperationUnsupportedError, match=f"delta, minor version {minor - 1}"):
        applied(delta.payload(), tmp_path)

    delta.minor = minor
    if reads:
        with pytest.raises(OperationUnsupportedError, match="which we do not carry out"):
            applied(delta.payload(), tmp_path)
    else:
        assert applied(delta.payload(), tmp_path) == new


@pytest.mark.parametrize("kind", [2, 3])
def test_in_place_operations_are_refused_in_format_2(kind: int, tmp_path: Path) -> None:
    delta = Delta(OLD, OLD)
    delta.add(kind, [(0, 16)], source=[(0, 16)], blob=b"patch" if kind == 3 else b"")

    with pytest.raises(OperationUnsupportedError, match=r"MOVE|BSDIFF"):
        applied(delta.payload(), tmp_path)


@pytest.mark.parametrize("source", [[(15, 2)], [(16, 1)], [(2**64 - 1, 1)], [(0, 0)], [(2**63, 1)]])
def test_blocks_outside_the_old_image_are_refused(
    source: list[tuple[int, int]], tmp_path: Path
) -> None:
    delta = Delta(OLD, OLD[: 2 * BLOCK])
    delta.add(deltas.SOURCE_COPY, [(0, 2)], source=source)

    with pytest.raises(ManifestInvalidError, match="are read of part usr, which has 16 blocks"):
        applied(delta.payload(), tmp_path)


@pytest.mark.parametrize(
    ("target", "what"),
    [
        ([(0, 1)], "block 1 of part usr is never written"),
        ([(0, 2), (1, 1)], "block 1 of part usr is written twice"),
        ([(0, 3)], "blocks 0 to 3 are written in part usr of 2 blocks"),
    ],
)
def test_each_new_block_is_written_exactly_once(
    target: list[tuple[int, int]], what: str, tmp_path: Path
) -> None:
    delta = Delta(OLD, OLD[: 2 * BLOCK])
    count = sum(blocks for _, blocks in target)
    delta.add(deltas.SOURCE_COPY, target, source=[(4, count)])

    with pytest.raises(ManifestInvalidError, match=what):
        applied(delta.payload(), tmp_path)


def test_a_copy_of_another_length_than_its_target_is_refused(tmp_path: Path) -> None:
    delta = Delta(OLD, OLD[: 2 * BLOCK])
    delta.add(deltas.SOURCE_COPY, [(0, 2)], source=[(0, 1)])

    with pytest.raises(ManifestInvalidError, match="copies 4096 bytes to blocks of 8192"):
        applied(delta.payload(), tmp_path)


def test_an_operation_that_replaces_reads_nothing(tmp_path: Path) -> None:
    delta = Delta(OLD, OLD[:BLOCK])
    delta.add(deltas.REPLACE, [(0, 1)], source=[(0, 1)], blob=OLD[:BLOCK])

    with pytest.raises(ManifestInvalidError, match="REPLACE of part usr reads blocks"):
        applied(delta.payload(), tmp_path)


def test_a_copy_larger_than_we_hold_is_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    blocks = 33 * 1024 * 1024 // BLOCK
    delta = Delta(bytes(blocks * BLOCK), bytes(blocks * BLOCK))
    delta.copy([(0, blocks)], [(0, blocks)])

    with pytest.raises(PayloadLimitsError, match="makes 34603008 bytes"):
        applied(delta.payload(), tmp_path, delta.old)


def test_a_patch_that_breaks_leaves_nothing_behind(tmp_path: Path) -> None:
    delta = Delta(OLD, OLD)
    blob = bsdiff4.diff(OLD, OLD)[:-1]
    delta.add(deltas.SOURCE_BSDIFF, [(0, 16)], source=[(0, 16)], blob=blob)

    with pytest.raises(OperationOutputError, match="the extra stream of a patch is cut off"):
        applied(delta.payload(), tmp_path)


def test_a_source_of_an_unknown_part_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(every_operation().payload())
    (tmp_path / "old").write_bytes(OLD)

    with pytest.raises(PartUnknownError, match="no part 'root' to give a source"):
        apply_file(
            tmp_path / "p",
            {"usr": tmp_path / "new"},
            sources={"usr": tmp_path / "old", "root": tmp_path / "old"},
        )


def test_a_delta_without_its_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(every_operation().payload())

    with pytest.raises(SourceMissingError):
        apply_file(tmp_path / "p", {"usr": tmp_path / "new"})


# Format 1: in place, so what an operation reads may be what the one before it wrote.


def extents(*runs: tuple[int, int]) -> list[pb.Extent]:
    return [pb.Extent(start_block=start, num_blocks=count) for start, count in runs]


def in_place(new: bytes, *operations: pb.InstallOperation, blobs: bytes = b"") -> bytes:
    manifest = pb.DeltaArchiveManifest(block_size=BLOCK, partition_operations=operations)
    for info, data in ((manifest.old_partition_info, OLD), (manifest.new_partition_info, new)):
        info.size, info.hash = len(data), hashlib.sha256(data).digest()
    return format_1(manifest, blobs)


def move(source: list[pb.Extent], target: list[pb.Extent]) -> pb.InstallOperation:
    return pb.InstallOperation(
        type=pb.InstallOperation.MOVE, src_extents=source, dst_extents=target
    )


def bsdiff(blob: bytes, source: list[pb.Extent], lengths: tuple[int, int]) -> pb.InstallOperation:
    return pb.InstallOperation(
        type=pb.InstallOperation.BSDIFF,
        data_offset=0,
        data_length=len(blob),
        src_extents=source,
        src_length=lengths[0],
        dst_extents=source,
        dst_length=lengths[1],
        data_sha256_hash=hashlib.sha256(blob).digest(),
    )


def test_a_move_onto_itself_reads_all_before_it_writes(tmp_path: Path) -> None:
    new = OLD[:BLOCK] + OLD[: 15 * BLOCK]

    payload = in_place(new, move(extents((0, 15)), extents((1, 15))))

    assert applied(payload, tmp_path) == new


def test_an_operation_sees_what_the_one_before_it_wrote(tmp_path: Path) -> None:
    swapped = OLD[BLOCK : 2 * BLOCK] + OLD[:BLOCK] + OLD[2 * BLOCK : 15 * BLOCK] + OLD[:BLOCK]
    payload = in_place(
        swapped,
        move(extents((0, 1)), extents((15, 1))),
        move(extents((1, 1)), extents((0, 1))),
        move(extents((15, 1)), extents((1, 1))),
    )

    assert applied(payload, tmp_path) == swapped


def test_a_patch_of_odd_length_fills_its_last_block_with_zeros(tmp_path: Path) -> None:
    made = OLD[:5000] + b"new"
    new = made + bytes(2 * BLOCK - len(made)) + OLD[2 * BLOCK :]
    blob = bsdiff4.diff(OLD[:4999], made)

    payload = in_place(new, bsdiff(blob, extents((0, 2)), (4999, len(made))), blobs=blob)

    assert applied(payload, tmp_path) == new


def test_a_patch_may_not_read_past_its_source_length(tmp_path: Path) -> None:
    control = struct.pack("<qqq", BLOCK, 0, 0)
    streams = [bz2.compress(data) for data in (control, bytes(BLOCK), b"")]
    sizes = struct.pack("<qqq", len(streams[0]), len(streams[1]), BLOCK)
    blob = b"BSDIFF40" + sizes + b"".join(streams)

    payload = in_place(OLD, bsdiff(blob, extents((0, 1)), (BLOCK - 1, BLOCK)), blobs=blob)

    with pytest.raises(
        OperationOutputError, match="reads 4096 bytes at byte 0 of a source of 4095"
    ):
        applied(payload, tmp_path)


def test_a_sparse_hole_reads_as_zeros_and_takes_bytes_without_a_write(tmp_path: Path) -> None:
    new = bytes(BLOCK) + OLD[BLOCK:]
    payload = in_place(
        new, move(extents((SPARSE_HOLE, 1), (5, 1)), extents((0, 1), (SPARSE_HOLE, 1)))
    )

    assert applied(payload, tmp_path) == new


@pytest.mark.parametrize("target", [(16, 1), (15, 2)])
def test_an_in_place_operation_stays_inside_the_image(
    target: tuple[int, int], tmp_path: Path
) -> None:
    payload = in_place(OLD, move(extents((0, target[1])), extents(target)))

    with pytest.raises(ManifestInvalidError, match="have room"):
        applied(payload, tmp_path)


@pytest.mark.parametrize(
    "lengths", [(0, BLOCK), (BLOCK + 1, BLOCK), (BLOCK, 0), (BLOCK, BLOCK + 1)]
)
def test_an_in_place_patch_names_lengths_that_fit(lengths: tuple[int, int], tmp_path: Path) -> None:
    payload = in_place(OLD, bsdiff(b"patch", extents((0, 1)), lengths), blobs=b"patch")

    with pytest.raises(ManifestInvalidError):
        applied(payload, tmp_path)


def test_an_image_that_grows_reads_zeros_past_its_old_end(tmp_path: Path) -> None:
    new = OLD + OLD[:BLOCK]
    assert applied(in_place(new, move(extents((0, 1)), extents((16, 1)))), tmp_path) == new


def test_an_image_that_shrinks_is_cut(tmp_path: Path) -> None:
    new = OLD[15 * BLOCK :] + OLD[BLOCK : 2 * BLOCK]
    assert applied(in_place(new, move(extents((15, 1)), extents((0, 1)))), tmp_path) == new


def test_a_kernel_of_odd_size_is_patched_beside_the_image(tmp_path: Path) -> None:
    old, new = OLD[:5000], OLD[:4990] + TEXT[:4011]
    blob = bsdiff4.diff(old, new)
    manifest = pb.DeltaArchiveManifest(block_size=BLOCK)
    manifest.partition_operations.append(move(extents((0, 1)), extents((1, 1))))
    image_after = OLD[:BLOCK] * 2 + OLD[2 * BLOCK :]
    kernel = manifest.procedures.add(type=pb.InstallProcedure.KERNEL)
    operation = bsdiff(blob, extents((0, 2)), (len(old), len(new)))
    operation.ClearField("dst_extents")
    operation.dst_extents.add(start_block=0, num_blocks=3)
    kernel.operations.append(operation)
    for info, data in (
        (manifest.old_partition_info, OLD),
        (manifest.new_partition_info, image_after),
        (kernel.old_info, old),
        (kernel.new_info, new),
    ):
        info.size, info.hash = len(data), hashlib.sha256(data).digest()
    names = ("usr", "kernel")
    for name, data in zip(names, (OLD, old), strict=True):
        (tmp_path / f"{name}.old").write_bytes(data)
    (tmp_path / "payload").write_bytes(format_1(manifest, blob))

    apply_file(
        tmp_path / "payload",
        {name: tmp_path / f"{name}.new" for name in names},
        sources={name: tmp_path / f"{name}.old" for name in names},
    )

    assert (tmp_path / "usr.new").read_bytes() == image_after
    assert (tmp_path / "kernel.new").read_bytes() == new
