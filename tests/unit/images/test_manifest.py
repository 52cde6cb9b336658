"""Format 2 manifests: what is sound, and each way in which they are not."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest

from images.container import Header
from images.errors import (
    ImagesError,
    ManifestInvalidError,
    OperationUnsupportedError,
    PayloadLimitsError,
    TrailingBytesError,
    TruncatedPayloadError,
)
from images.manifest import (
    BLOB_MAX,
    OUTPUT_MAX,
    SPARSE_HOLE,
    Manifest,
    OperationKind,
    parse_manifest,
)
from images.proto import payload_pb2 as pb
from tests.sim.payloads import BLOCK, add_part, forge, image, replace

Bend = Callable[[pb.DeltaArchiveManifest], object]

A, B = image(2, 1), image(3, 2)


def parsed(
    message: pb.DeltaArchiveManifest, *, data_bytes: int, major: int = 2, extra: int = 0
) -> Manifest:
    """Parse a message as the manifest of a file with that many bytes of data."""
    data = message.SerializePartialToString()
    header = Header(major=major, manifest_size=len(data), metadata_signature_size=0)
    size = header.data_offset + data_bytes + message.signatures_size + extra
    return parse_manifest(header, data, payload_size=size)


def bent(bend: Bend) -> Manifest:
    """Parse a sound manifest of two operations after `bend` changed it."""
    message = forge(A, B).manifest
    bend(message)
    return parsed(message, data_bytes=len(A + B))


def first(message: pb.DeltaArchiveManifest) -> pb.InstallOperation:
    return message.partitions[0].operations[0]


def second(message: pb.DeltaArchiveManifest) -> pb.InstallOperation:
    return message.partitions[0].operations[1]


def test_a_sound_manifest_is_parsed_to_values() -> None:
    manifest = bent(lambda _: None)

    part = manifest.parts[0]
    assert (manifest.major, manifest.minor, manifest.block_size) == (2, 0, 4096)
    assert (part.name, part.size, part.sha256) == ("usr", 5 * BLOCK, hashlib.sha256(A + B).digest())
    assert [operation.kind for operation in part.operations] == [OperationKind.REPLACE] * 2
    assert part.operations[1].data_offset == len(A)
    assert part.operations[1].dst_length == len(B)
    assert manifest.blob_bytes == len(A + B)
    assert not manifest.is_delta


def test_the_steps_are_all_operations_in_file_order() -> None:
    message = forge(A).manifest
    add_part(message, "boot", (B,), offset=len(A))

    steps = list(parsed(message, data_bytes=len(A + B)).steps())

    assert [step.part.name for step in steps if step.part] == ["usr", "boot"]


@pytest.mark.parametrize("size", [512, 1024, 4096, 65536])
def test_every_power_of_two_from_512_to_65536_is_a_block_size(size: int) -> None:
    message = pb.DeltaArchiveManifest(block_size=size)
    update = message.partitions.add(partition_name="usr")
    update.new_partition_info.size = size
    update.new_partition_info.hash = bytes(32)
    update.operations.append(replace(bytes(size), start=0, offset=0, blocks=1))

    assert parsed(message, data_bytes=size).block_size == size


@pytest.mark.parametrize("size", [0, 1, 256, 4095, 4097, 131072, 2**32 - 1])
def test_any_other_block_size_is_refused(size: int) -> None:
    with pytest.raises(ManifestInvalidError, match=f"blocks of {size} bytes"):
        bent(lambda message: setattr(message, "block_size", size))


def test_a_left_out_block_size_is_4096() -> None:
    assert bent(lambda message: message.ClearField("block_size")).block_size == 4096


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", "_a", "a b", "a\n", "ü", "a" * 65])
def test_a_part_with_an_odd_name_is_refused(name: str) -> None:
    with pytest.raises(ManifestInvalidError, match="not the name of a part"):
        bent(lambda message: setattr(message.partitions[0], "partition_name", name))


def test_a_part_whose_name_is_not_text_is_refused() -> None:
    data = forge(A, B).manifest.SerializeToString().replace(b"usr", b"\xff\xfe\xfd")
    header = Header(major=2, manifest_size=len(data), metadata_signature_size=0)

    with pytest.raises(ManifestInvalidError):
        parse_manifest(header, data, payload_size=header.data_offset + len(A + B))


def test_a_part_that_is_there_twice_is_refused() -> None:
    message = forge(A).manifest
    add_part(message, "usr", (B,), offset=len(A))

    with pytest.raises(ManifestInvalidError, match="part usr twice"):
        parsed(message, data_bytes=len(A + B))


def test_a_manifest_without_parts_is_refused() -> None:
    with pytest.raises(ManifestInvalidError, match="no part"):
        parsed(pb.DeltaArchiveManifest(block_size=4096), data_bytes=0)


MISSING: dict[str, Bend] = {
    "image": lambda m: m.partitions[0].ClearField("new_partition_info"),
    "size 0": lambda m: setattr(m.partitions[0].new_partition_info, "size", 0),
    "size 2^63": lambda m: setattr(m.partitions[0].new_partition_info, "size", 2**63),
    "hash": lambda m: m.partitions[0].new_partition_info.ClearField("hash"),
    "short hash": lambda m: setattr(m.partitions[0].new_partition_info, "hash", bytes(31)),
    "long hash": lambda m: setattr(m.partitions[0].new_partition_info, "hash", bytes(33)),
}


@pytest.mark.parametrize("bend", MISSING.values(), ids=MISSING.keys())
def test_a_part_without_a_proper_image_is_refused(bend: Bend) -> None:
    with pytest.raises(ManifestInvalidError, match="part usr is"):
        bent(bend)


BLOBS: dict[str, tuple[Bend, str]] = {
    "a gap": (lambda m: setattr(second(m), "data_offset", len(A) + 1), "begins at byte 8193"),
    "an overlap": (lambda m: setattr(second(m), "data_offset", len(A) - 1), "begins at byte 8191"),
    "a start after 0": (lambda m: setattr(first(m), "data_offset", 1), "begins at byte 1"),
    "an offset of 2^64-1": (
        lambda m: setattr(second(m), "data_offset", 2**64 - 1),
        "begins at byte 18446744073709551615",
    ),
    "no data": (lambda m: m.partitions[0].operations[1].ClearField("data_length"), "0 bytes"),
    "no hash": (lambda m: second(m).ClearField("data_sha256_hash"), "data without a hash"),
    "an empty hash": (lambda m: setattr(second(m), "data_sha256_hash", b""), "hash of 0 bytes"),
    "a short hash": (lambda m: setattr(second(m), "data_sha256_hash", b"a" * 31), "of 31 bytes"),
    "a short output hash": (lambda m: setattr(second(m), "dst_sha256", b"a"), "of 1 bytes"),
}


@pytest.mark.parametrize(("bend", "message"), BLOBS.values(), ids=BLOBS.keys())
def test_blobs_must_lie_back_to_back_each_with_its_hash(bend: Bend, message: str) -> None:
    with pytest.raises(ManifestInvalidError, match=message):
        bent(bend)


def test_a_blob_whose_end_overflows_64_bits_is_only_a_large_number() -> None:
    with pytest.raises(ImagesError):
        bent(lambda message: setattr(second(message), "data_length", 2**64 - 1))


@pytest.mark.parametrize(("extra", "error"), [(-1, TruncatedPayloadError), (1, TrailingBytesError)])
def test_the_file_ends_where_the_last_blob_does(extra: int, error: type[ImagesError]) -> None:
    with pytest.raises(error, match="it names"):
        parsed(forge(A).manifest, data_bytes=len(A), extra=extra)


def test_the_signatures_follow_the_last_blob() -> None:
    message = forge(A).manifest
    message.signatures_offset, message.signatures_size = len(A), 267

    manifest = parsed(message, data_bytes=len(A))

    assert (manifest.signatures_offset, manifest.signatures_size) == (len(A), 267)


@pytest.mark.parametrize("offset", [0, len(A) - 1, len(A) + 1, 2**64 - 1])
def test_signatures_elsewhere_are_refused(offset: int) -> None:
    message = forge(A).manifest
    message.signatures_offset, message.signatures_size = offset, 267

    with pytest.raises(ManifestInvalidError, match=f"signatures begin at byte {offset}"):
        parsed(message, data_bytes=len(A))


@pytest.mark.parametrize("size", [65537, 2**64 - 1])
def test_signatures_above_the_limit_are_refused(size: int) -> None:
    message = forge(A).manifest
    message.signatures_offset, message.signatures_size = len(A), size

    with pytest.raises(PayloadLimitsError, match=f"signatures claim {size} bytes"):
        parsed(message, data_bytes=len(A))


@pytest.mark.parametrize("field", ["signatures_offset", "signatures_size"])
def test_half_a_place_of_signatures_is_refused(field: str) -> None:
    with pytest.raises(ManifestInvalidError, match="alone"):
        bent(lambda message: setattr(message, field, 5))


def set_extent(message: pb.DeltaArchiveManifest, start: int, count: int) -> None:
    second(message).dst_extents[0].start_block = start
    second(message).dst_extents[0].num_blocks = count


EXTENTS: dict[str, tuple[Bend, str]] = {
    "one block further": (lambda m: set_extent(m, 3, 3), "blocks 3 to 6 .* of 5 blocks"),
    "an overlap": (lambda m: set_extent(m, 1, 3), "block 1 of part usr is written twice"),
    "the same blocks": (lambda m: set_extent(m, 0, 3), "is written twice"),
    "a sparse hole": (lambda m: set_extent(m, SPARSE_HOLE, 3), "blocks 18446744073709551615"),
    "a huge start": (lambda m: set_extent(m, 2**63, 3), "blocks 9223372036854775808"),
}


@pytest.mark.parametrize(("bend", "message"), EXTENTS.values(), ids=EXTENTS.keys())
def test_blocks_outside_the_image_or_written_twice_are_refused(bend: Bend, message: str) -> None:
    with pytest.raises(ManifestInvalidError, match=message):
        bent(bend)


def test_a_block_that_is_never_written_is_refused() -> None:
    with pytest.raises(ManifestInvalidError, match="block 5 of part usr is never written"):
        bent(lambda m: setattr(m.partitions[0].new_partition_info, "size", 6 * BLOCK))


def test_a_hole_in_the_middle_is_refused() -> None:
    message = forge(A, B).manifest
    second(message).dst_extents[0].start_block = 3
    message.partitions[0].new_partition_info.size = 6 * BLOCK

    with pytest.raises(ManifestInvalidError, match="block 2 of part usr is written never"):
        parsed(message, data_bytes=len(A + B))


def test_operations_may_write_in_any_order_and_in_pieces() -> None:
    message = forge(A, B).manifest
    first(message).dst_extents[0].start_block = 2
    del second(message).dst_extents[:]
    second(message).dst_extents.extend(
        [pb.Extent(start_block=4, num_blocks=1), pb.Extent(start_block=0, num_blocks=2)]
    )

    assert len(parsed(message, data_bytes=len(A + B)).parts[0].operations) == 2


def test_an_extent_of_no_blocks_is_refused() -> None:
    def bend(message: pb.DeltaArchiveManifest) -> None:
        first(message).dst_extents.add(start_block=2, num_blocks=0)

    with pytest.raises(ManifestInvalidError, match="blocks 2 to 2"):
        bent(bend)


def test_a_raw_blob_fills_its_blocks_exactly() -> None:
    with pytest.raises(ManifestInvalidError, match="raw blob of part usr has 8192 bytes for"):
        bent(lambda m: setattr(first(m).dst_extents[0], "num_blocks", 3))


def test_a_length_that_contradicts_the_blocks_is_refused() -> None:
    with pytest.raises(ManifestInvalidError, match="makes 8191 bytes for blocks of 8192"):
        bent(lambda m: setattr(first(m), "dst_length", 8191))


NOT_IN_FULL = [
    OperationKind.BSDIFF,
    OperationKind.SOURCE_BSDIFF,
    OperationKind.PUFFDIFF,
    OperationKind.BROTLI_BSDIFF,
    OperationKind.ZUCCHINI,
    OperationKind.LZ4DIFF_BSDIFF,
    OperationKind.LZ4DIFF_PUFFDIFF,
]


@pytest.mark.parametrize("kind", NOT_IN_FULL, ids=lambda kind: kind.name)
def test_an_operation_of_deltas_is_refused_by_name_in_a_full_payload(kind: OperationKind) -> None:
    with pytest.raises(OperationUnsupportedError, match=f"an operation {kind.name}$"):
        bent(lambda message: setattr(first(message), "type", int(kind)))


@pytest.mark.parametrize("kind", ["MOVE", "SOURCE_COPY", "DISCARD"])
def test_an_operation_without_data_other_than_zero_is_refused_by_name(kind: str) -> None:
    message = forge(A).manifest
    operation = message.partitions[0].operations.add(type=OperationKind[kind].value)
    operation.dst_extents.add(start_block=2, num_blocks=1)
    message.partitions[0].new_partition_info.size += BLOCK

    with pytest.raises(OperationUnsupportedError, match=f"an operation {kind}$"):
        parsed(message, data_bytes=len(A))


def test_zero_has_no_data_and_may_be_larger_than_what_is_held_in_memory() -> None:
    message = forge(A).manifest
    blocks = 4 * OUTPUT_MAX // BLOCK
    operation = message.partitions[0].operations.add(type=pb.InstallOperation.ZERO)
    operation.dst_extents.add(start_block=2, num_blocks=blocks)
    message.partitions[0].new_partition_info.size += blocks * BLOCK

    assert parsed(message, data_bytes=len(A)).parts[0].operations[1].data_offset is None


def test_zero_with_data_is_refused() -> None:
    with pytest.raises(ManifestInvalidError, match="ZERO has 8192 bytes of data"):
        bent(lambda message: setattr(first(message), "type", pb.InstallOperation.ZERO))


def test_an_operation_of_unknown_type_is_refused() -> None:
    data = forge(A).manifest.SerializeToString().replace(b"\x08\x00\x10\x00", b"\x08\x63\x10\x00")
    header = Header(major=2, manifest_size=len(data), metadata_signature_size=0)

    with pytest.raises(ManifestInvalidError, match="unknown type"):
        parse_manifest(header, data, payload_size=header.data_offset + len(A))


@pytest.mark.parametrize(
    ("data_length", "blocks"), [(BLOB_MAX + 1, 1), (1, OUTPUT_MAX // BLOCK + 1), (1, 2**63)]
)
def test_an_operation_too_large_to_hold_is_refused(data_length: int, blocks: int) -> None:
    message = forge(A).manifest
    operation = first(message)
    operation.type = pb.InstallOperation.REPLACE_ZSTD
    operation.data_length = data_length
    operation.dst_extents[0].num_blocks = blocks
    message.partitions[0].new_partition_info.size = min(blocks * BLOCK, 2**62)

    with pytest.raises(PayloadLimitsError, match="an operation of part usr makes"):
        parsed(message, data_bytes=data_length)


@pytest.mark.parametrize("minor", [1, 2, 9, 10, 2**32 - 1])
def test_a_full_payload_has_minor_version_0(minor: int) -> None:
    with pytest.raises(ManifestInvalidError, match=f"minor version 0, this one {minor}"):
        bent(lambda message: setattr(message, "minor_version", minor))


@pytest.mark.parametrize("field", ["hash_tree_extent", "fec_extent"])
def test_blocks_that_the_node_would_compute_are_refused_by_name(field: str) -> None:
    def bend(message: pb.DeltaArchiveManifest) -> None:
        getattr(message.partitions[0], field).num_blocks = 1

    with pytest.raises(OperationUnsupportedError, match="hash tree"):
        bent(bend)


def test_an_empty_hash_tree_extent_means_none() -> None:
    def bend(message: pb.DeltaArchiveManifest) -> None:
        message.partitions[0].hash_tree_extent.num_blocks = 0

    assert bent(bend).parts


FORMAT_1: dict[str, Bend] = {
    "operations": lambda m: m.partition_operations.add(type=0),
    "no-ops": lambda m: m.noop_operations.add(type=0),
    "procedures": lambda m: m.procedures.add(),
    "new info": lambda m: m.new_partition_info.SetInParent(),
    "old info": lambda m: m.old_partition_info.SetInParent(),
}


@pytest.mark.parametrize("bend", FORMAT_1.values(), ids=FORMAT_1.keys())
def test_fields_of_format_1_are_refused_in_format_2(bend: Bend) -> None:
    with pytest.raises(ManifestInvalidError, match="which format 2 has not"):
        bent(bend)


@pytest.mark.parametrize("mark", ["partial", "old"])
def test_a_delta_is_recognised(mark: str) -> None:
    def bend(message: pb.DeltaArchiveManifest) -> None:
        if mark == "partial":
            message.partial_update = True
        else:
            message.partitions[0].old_partition_info.size = 5
            message.partitions[0].old_partition_info.hash = bytes(32)

    assert bent(bend).is_delta


def test_what_we_do_not_know_is_passed_over() -> None:
    message = forge(A).manifest
    message.max_timestamp = 1
    message.security_patch_level = "2026-11-05"
    message.partitions[0].run_postinstall = True
    message.partitions[0].version = "1"
    message.partitions[0].estimate_cow_size = 2**63
    data = message.SerializeToString() + b"\x7a\x02ab"  # dynamic_partition_metadata
    header = Header(major=2, manifest_size=len(data), metadata_signature_size=0)

    assert parse_manifest(header, data, payload_size=header.data_offset + len(A)).parts
