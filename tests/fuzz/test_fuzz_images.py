"""Invariant: whatever bytes a stranger sends, the readers of the images room end with a value
or with an `ImagesError`, in bounded memory; and a value keeps the rules it promises."""

from __future__ import annotations

import hashlib
import io

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from images.container import Header, parse_header
from images.errors import ImagesError, PayloadSignatureError
from images.manifest import (
    OUTPUT_MAX,
    SPARSE_HOLE,
    Extent,
    Manifest,
    Operation,
    OperationKind,
    parse_manifest,
)
from images.operations import decode, memory_bytes, writes
from images.proto import payload_pb2 as pb
from images.reader import FileSource, read_metadata
from images.release import parse_channel_document, parse_image_facts, parse_payload_facts
from images.rules import check_applicable
from images.signing import parse_signatures
from images.source import reads_source
from images.version import parse_version
from images.wire import check_counts
from tests.sim.payloads import forge, image

pytestmark = pytest.mark.fuzz

LONG = settings(max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))

numbers = st.one_of(
    st.integers(0, 8),
    st.sampled_from([2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1]),
)
small = st.integers(0, 6)
digests = st.one_of(st.just(bytes(32)), st.binary(max_size=40))
extents = st.builds(
    pb.Extent, start_block=st.one_of(small, numbers), num_blocks=st.one_of(small, numbers)
)
operations = st.builds(
    pb.InstallOperation,
    type=st.sampled_from(list(pb.InstallOperation.Type.values())),
    data_offset=st.one_of(st.none(), st.sampled_from([0, 4096, 8192]), numbers),
    data_length=st.one_of(st.none(), st.just(4096), numbers),
    src_extents=st.lists(extents, max_size=2),
    src_length=st.one_of(st.none(), st.sampled_from([4096, 8192]), numbers),
    dst_extents=st.lists(extents, max_size=3),
    dst_length=st.one_of(st.none(), st.just(4096), numbers),
    data_sha256_hash=st.one_of(st.none(), digests),
    dst_sha256=st.one_of(st.none(), digests),
)
infos = st.builds(pb.ImageInfo, size=st.one_of(st.integers(0, 40000), numbers), hash=digests)
names = st.one_of(st.sampled_from(["usr", "boot"]), st.text(max_size=5))
partitions = st.builds(
    pb.PartitionUpdate,
    partition_name=names,
    new_partition_info=infos,
    old_partition_info=st.one_of(st.none(), infos),
    operations=st.lists(operations, max_size=4),
    hash_tree_extent=st.one_of(st.none(), extents),
)
procedures = st.builds(
    pb.InstallProcedure,
    type=st.one_of(st.none(), st.sampled_from([0, 1])),
    operations=st.lists(operations, max_size=2),
    new_info=infos,
)
manifests_2 = st.builds(
    pb.DeltaArchiveManifest,
    block_size=st.one_of(st.just(4096), numbers.filter(lambda n: n < 2**32)),
    signatures_offset=st.one_of(st.none(), numbers),
    signatures_size=st.one_of(st.none(), numbers),
    minor_version=st.one_of(st.none(), st.just(0), st.integers(0, 10)),
    partitions=st.lists(partitions, max_size=3),
    partial_update=st.one_of(st.none(), st.booleans()),
)
manifests_1 = st.builds(
    pb.DeltaArchiveManifest,
    block_size=st.sampled_from([512, 4096]),
    partition_operations=st.lists(operations, max_size=4),
    noop_operations=st.lists(operations, max_size=2),
    new_partition_info=infos,
    old_partition_info=st.one_of(st.none(), infos),
    procedures=st.lists(procedures, max_size=3),
)


def parsed(major: int, data: bytes, size: int) -> Manifest | None:
    header = Header(major=major, manifest_size=len(data), metadata_signature_size=0)
    try:
        return parse_manifest(header, data, payload_size=size + header.data_offset)
    except ImagesError:
        return None


def check_promises(manifest: Manifest) -> None:
    """Check by brute force what a parsed full manifest promises."""
    position = 0
    for step in manifest.steps():
        if step.operation.data_length:
            assert step.operation.data_offset == position
            assert step.operation.data_sha256 is not None
            position += step.operation.data_length
    assert position == manifest.blob_bytes
    if manifest.is_delta:
        check_promises_of_a_delta(manifest)
        return
    for part in manifest.parts:
        written: list[int] = []
        for operation in part.operations:
            assert operation.kind is OperationKind.ZERO or operation.output_limit <= OUTPUT_MAX
            for extent in operation.dst_extents if manifest.major == 2 else ():
                assert extent.num_blocks < 100_000
                written.extend(range(extent.start_block, extent.start_block + extent.num_blocks))
        if manifest.major == 2:
            assert sorted(written) == list(range(-(-part.size // manifest.block_size)))


def check_promises_of_a_delta(manifest: Manifest) -> None:
    """Check by brute force that a delta which we carry out reads and writes inside its images."""
    try:
        check_applicable(manifest)
    except ImagesError:
        return
    for part in manifest.parts:
        for operation in part.operations:
            if reads_source(operation):
                assert memory_bytes(operation) <= 61 * 1024 * 1024
                assert part.old_size is not None
                room = part.old_size if manifest.major == 2 else max(part.old_size, part.size)
                for extent in operation.src_extents:
                    end = (extent.start_block + extent.num_blocks) * manifest.block_size
                    hole = manifest.major == 1 and extent.start_block == SPARSE_HOLE
                    assert hole or end < room + manifest.block_size * (manifest.major == 1) + 1
            if operation.dst_length is not None and manifest.major == 2:
                assert operation.dst_length == operation.output_limit


@LONG
@given(manifests_2, st.integers(0, 20000))
def test_any_format_2_manifest_is_a_value_or_an_error(
    message: pb.DeltaArchiveManifest, size: int
) -> None:
    manifest = parsed(2, message.SerializePartialToString(), size)
    if manifest is not None:
        check_promises(manifest)


@LONG
@given(manifests_1, st.integers(0, 20000))
def test_any_format_1_manifest_is_a_value_or_an_error(
    message: pb.DeltaArchiveManifest, size: int
) -> None:
    manifest = parsed(1, message.SerializePartialToString(), size)
    if manifest is not None:
        check_promises(manifest)


@LONG
@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.data())
def test_a_sound_payload_is_sound_only_while_each_operation_stays_in_its_place(
    counts: list[int], data: st.DataObject
) -> None:
    payload = forge(*(image(count, count) for count in counts))
    operations = payload.manifest.partitions[0].operations
    starts = [extent.start_block for op in operations for extent in op.dst_extents]
    assert parsed(2, payload.manifest.SerializeToString(), len(payload.blobs)) is not None

    victim = data.draw(st.integers(0, len(operations) - 1))
    start = data.draw(st.integers(0, sum(counts) + 1))
    operations[victim].dst_extents[0].start_block = start
    again = parsed(2, payload.manifest.SerializeToString(), len(payload.blobs))
    assert (again is not None) == (start == starts[victim])


@LONG
@given(st.binary(max_size=400))
@example(b"\x6a\x02\x0a\x00")
def test_any_bytes_as_a_manifest_are_a_value_or_an_error(data: bytes) -> None:
    for major in (1, 2):
        parsed(major, data, 0)
    try:
        check_counts(data)
    except ImagesError:
        return
    try:
        pb.DeltaArchiveManifest.FromString(data)
    except Exception:  # noqa: BLE001  # whatever the library says, it comes after the counts
        return


SOUND = forge(image(2), image(1)).bytes()


@LONG
@given(st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), max_size=8))
def test_a_damaged_payload_is_a_value_or_an_error(changes: list[tuple[int, int]]) -> None:
    data = bytearray(SOUND)
    for offset, byte in changes:
        data[offset] = byte
    for keys in (None,):
        try:
            read_metadata(FileSource(io.BytesIO(data)), payload_size=len(data), keys=keys)
        except ImagesError:
            continue


@LONG
@given(st.binary(max_size=64), st.integers(0, 2**64))
def test_any_header_is_a_value_or_an_error(data: bytes, size: int) -> None:
    for start in (b"", b"CrAU" + bytes(7) + b"\x01", b"CrAU" + bytes(7) + b"\x02"):
        try:
            header = parse_header(start + data, payload_size=size)
        except ImagesError:
            continue
        assert header.data_offset <= size


@LONG
@given(st.binary(max_size=600))
def test_any_signatures_are_a_value_or_an_error(data: bytes) -> None:
    for major in (1, 2):
        try:
            parse_signatures(data, major=major, error=PayloadSignatureError)
        except PayloadSignatureError:
            continue


blobs = st.one_of(
    st.binary(max_size=300),
    st.binary(max_size=200).map(lambda tail: b"\x28\xb5\x2f\xfd" + tail),
    st.binary(max_size=200).map(lambda tail: b"BZh9" + tail),
    st.binary(max_size=200).map(lambda tail: b"\xfd7zXZ\x00\x00\x01" + tail),
)


@LONG
@given(st.sampled_from(list(OperationKind)), blobs, st.integers(0, 20000))
def test_any_blob_unpacks_to_what_fits_or_is_an_error(
    kind: OperationKind, blob: bytes, limit: int
) -> None:
    operation = Operation(
        kind=kind,
        data_offset=0,
        data_length=len(blob),
        dst_extents=(Extent(0, 2), Extent(7, 9)),
        dst_length=None,
        output_limit=limit,
        data_sha256=hashlib.sha256(blob).digest(),
        dst_sha256=None,
    )
    try:
        output = decode(operation, blob, block_size=4096)
    except ImagesError:
        return
    if output is not None:
        assert len(output) <= limit + 4095
        for offset, piece in writes(operation, output, block_size=4096):
            assert offset % 4096 == len(piece) % 4096 == 0


@LONG
@given(st.one_of(st.text(max_size=70), st.from_regex(r"\A[0-9.+a-z-]{1,70}\Z")))
def test_any_text_is_a_version_or_an_error(text: str) -> None:
    try:
        version = parse_version(text)
    except ImagesError:
        return
    assert version.text == text
    assert version == parse_version(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@LONG
@given(st.binary(max_size=200) | json_values.map(lambda value: repr(value).encode()))
def test_any_bytes_are_a_document_or_an_error(data: bytes) -> None:
    for parse in (parse_channel_document, parse_payload_facts, parse_image_facts):
        try:
            parse(data)
        except ImagesError:
            continue
