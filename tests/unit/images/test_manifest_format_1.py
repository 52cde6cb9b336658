"""Format 1 manifests: Flatcar's rules, which bound bytes written instead of blocks claimed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from images.apply import apply_file
from images.container import Header
from images.errors import (
    ImagesError,
    ManifestInvalidError,
    OperationOutputError,
    OperationUnsupportedError,
    PayloadSignatureError,
    PayloadUnsignedError,
    TruncatedPayloadError,
)
from images.manifest import SPARSE_HOLE, Manifest, parse_manifest
from images.proto import payload_pb2 as pb
from images.reader import verify_file
from tests.sim.payloads import BLOCK, format_1, image, key, replace, trusted

A, B = image(2, 1), image(3, 2)


def full(*datas: bytes, size: int | None = None) -> pb.DeltaArchiveManifest:
    """Return a manifest of raw operations that fill an image in order."""
    message = pb.DeltaArchiveManifest(block_size=BLOCK)
    position = 0
    for data in datas:
        message.partition_operations.append(replace(data, start=position // BLOCK, offset=position))
        position += len(data)
    whole = b"".join(datas)[:size]
    message.new_partition_info.size = len(whole)
    message.new_partition_info.hash = hashlib.sha256(whole).digest()
    return message


def parsed(message: pb.DeltaArchiveManifest, data_bytes: int) -> Manifest:
    data = message.SerializePartialToString()
    header = Header(major=1, manifest_size=len(data), metadata_signature_size=0)
    return parse_manifest(header, data, payload_size=header.data_offset + data_bytes)


def applied(message: pb.DeltaArchiveManifest, blobs: bytes, folder: Path) -> bytes:
    payload = folder / "payload"
    payload.write_bytes(format_1(message, blobs))
    apply_file(payload, {"usr": folder / "usr"})
    return (folder / "usr").read_bytes()


def test_the_main_partition_is_called_usr() -> None:
    assert [part.name for part in parsed(full(A, B), len(A + B)).parts] == ["usr"]


def test_procedures_are_called_kernel_and_pcr_policy() -> None:
    message = full(A)
    for kind, start in ((0, len(A)), (1, len(A) + len(B))):
        procedure = message.procedures.add(type=pb.InstallProcedure.Type.ValueType(kind))
        procedure.operations.append(replace(B, start=0, offset=start))
        procedure.new_info.size, procedure.new_info.hash = len(B), bytes(32)

    manifest = parsed(message, len(A) + 2 * len(B))

    assert [part.name for part in manifest.parts] == ["usr", "kernel", "pcr-policy"]


def test_the_blobs_of_an_unknown_procedure_are_read_past(tmp_path: Path) -> None:
    message = full(A)
    unknown = message.procedures.add()
    unknown.operations.append(replace(B, start=0, offset=len(A)))
    kernel = message.procedures.add(type=pb.InstallProcedure.KERNEL)
    kernel.operations.append(replace(A, start=0, offset=len(A + B)))
    kernel.new_info.size, kernel.new_info.hash = len(A), hashlib.sha256(A).digest()
    payload = tmp_path / "payload"
    payload.write_bytes(format_1(message, A + B + A, keys=[key()]))

    manifest = verify_file(payload, trusted(key())).manifest
    apply_file(payload, {"kernel": tmp_path / "kernel"}, keys=trusted(key()))

    names = [step.part.name if step.part else None for step in manifest.steps()]
    assert names == ["usr", None, "kernel"]
    assert (tmp_path / "kernel").read_bytes() == A


def test_an_unknown_procedure_at_the_end_is_read_past() -> None:
    message = full(A)
    message.procedures.add().operations.append(replace(B, start=0, offset=len(A)))

    steps = list(parsed(message, len(A + B)).steps())

    assert [step.part is None for step in steps] == [False, True]


def test_no_ops_are_ignored_whatever_they_claim() -> None:
    message = full(A)
    message.noop_operations.add(type=pb.InstallOperation.BSDIFF, data_offset=2**40)

    assert len(list(parsed(message, len(A)).steps())) == 1


def test_an_operation_may_claim_blocks_past_the_end_of_the_image(tmp_path: Path) -> None:
    message = full(A)
    message.partition_operations[0].dst_extents[0].num_blocks = 2**60

    assert applied(message, A, tmp_path) == A


def test_an_image_of_odd_size_is_cut_to_it(tmp_path: Path) -> None:
    data = A[: BLOCK + 100]
    message = full(data)
    message.partition_operations[0].dst_extents[0].num_blocks = 256

    assert applied(message, data, tmp_path) == data


def test_a_short_output_is_padded_with_zeros_to_its_block(tmp_path: Path) -> None:
    data = A[: BLOCK + 100]
    whole = data.ljust(2 * BLOCK, b"\0")
    message = full(data)
    message.partition_operations[0].dst_extents[0].num_blocks = 2
    message.new_partition_info.size = len(whole)
    message.new_partition_info.hash = hashlib.sha256(whole).digest()

    assert applied(message, data, tmp_path) == whole


def test_bytes_for_a_sparse_hole_are_not_written(tmp_path: Path) -> None:
    message = full(A)
    extents = message.partition_operations[0].dst_extents
    extents[0].num_blocks = 1
    extents.add(start_block=SPARSE_HOLE, num_blocks=1)
    message.new_partition_info.size = BLOCK
    message.new_partition_info.hash = hashlib.sha256(A[:BLOCK]).digest()

    assert applied(message, A, tmp_path) == A[:BLOCK]


def test_a_raw_blob_that_would_end_past_the_image_is_refused() -> None:
    message = full(A)
    message.new_partition_info.size = BLOCK
    message.partition_operations[0].dst_extents[0].num_blocks = 256

    with pytest.raises(ManifestInvalidError, match="writes 8192 bytes where 4096 have room"):
        parsed(message, len(A))


def test_an_operation_that_begins_past_the_image_is_refused() -> None:
    message = full(A)
    message.partition_operations[0].dst_extents[0].start_block = 2

    with pytest.raises(ManifestInvalidError, match="where 0 have room"):
        parsed(message, len(A))


def test_a_packed_blob_that_unpacks_past_the_image_is_refused(tmp_path: Path) -> None:
    import bz2

    packed = bz2.compress(A)
    message = full(A)
    operation = replace(packed, start=0, offset=0, kind=pb.InstallOperation.REPLACE_BZ, blocks=256)
    message.partition_operations[0].CopyFrom(operation)
    message.new_partition_info.size = BLOCK

    with pytest.raises(OperationOutputError, match="more than the 4096 bytes that fit"):
        applied(message, packed, tmp_path)


@pytest.mark.parametrize(("length", "error"), [(8193, ManifestInvalidError), (8191, ImagesError)])
def test_a_named_length_must_fit_and_be_met(
    length: int, error: type[ImagesError], tmp_path: Path
) -> None:
    import bz2

    packed = bz2.compress(A)
    message = full(A)
    operation = replace(packed, start=0, offset=0, kind=pb.InstallOperation.REPLACE_BZ, blocks=2)
    operation.dst_length = length
    message.partition_operations[0].CopyFrom(operation)

    with pytest.raises(error):
        applied(message, packed, tmp_path)


@pytest.mark.parametrize("kind", ["REPLACE_XZ", "REPLACE_ZSTD", "BSDIFF"])
def test_operations_that_a_full_format_1_payload_has_not_are_refused_by_name(kind: str) -> None:
    message = full(A)
    message.partition_operations[0].type = getattr(pb.InstallOperation, kind)

    with pytest.raises(
        OperationUnsupportedError, match=f"format 1 payload has an operation {kind}"
    ):
        parsed(message, len(A))


def test_a_missing_image_is_refused() -> None:
    message = full(A)
    message.ClearField("new_partition_info")

    with pytest.raises(ManifestInvalidError, match="part usr is 0 bytes"):
        parsed(message, len(A))


@pytest.mark.parametrize("field", ["minor_version", "max_timestamp", "partial_update"])
def test_fields_of_format_2_are_refused_in_format_1(field: str) -> None:
    message = full(A)
    setattr(message, field, 1)

    with pytest.raises(ManifestInvalidError, match=f"the field {field}, which format 1 has not"):
        parsed(message, len(A))


def test_partitions_of_format_2_are_refused_in_format_1() -> None:
    message = full(A)
    message.partitions.add(partition_name="x")

    with pytest.raises(ManifestInvalidError, match="the field partitions"):
        parsed(message, len(A))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_one_to_three_signatures_verify_with_any_of_their_keys(count: int, tmp_path: Path) -> None:
    payload = tmp_path / "payload"
    keys = [key(number) for number in range(count)]
    payload.write_bytes(format_1(full(A), A, keys=keys))

    for private in keys:
        verify_file(payload, trusted(private))


@pytest.mark.parametrize("versions", [[1], [3], [0], [2, 1], [2, 2], [1, 3]])
def test_signatures_whose_versions_do_not_count_up_to_2_are_refused(
    versions: list[int], tmp_path: Path
) -> None:
    payload = tmp_path / "payload"
    keys = [key(number) for number in range(len(versions))]
    payload.write_bytes(format_1(full(A), A, keys=keys, versions=versions))

    with pytest.raises(PayloadSignatureError, match="do not count up to 2"):
        verify_file(payload, trusted(key()))


def test_an_unsigned_payload_is_refused_when_a_key_is_given(tmp_path: Path) -> None:
    payload = tmp_path / "payload"
    payload.write_bytes(format_1(full(A), A))

    with pytest.raises(PayloadUnsignedError):
        verify_file(payload, trusted(key()))


def test_a_payload_shorter_than_the_longer_header_is_truncated(tmp_path: Path) -> None:
    payload = tmp_path / "payload"
    payload.write_bytes(b"CrAU" + (1).to_bytes(8, "big") + (2).to_bytes(8, "big") + b"\x18\x01")

    with pytest.raises(TruncatedPayloadError):
        verify_file(payload, None)
