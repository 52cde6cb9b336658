"""The generated module is what the schema makes, and the schema has the reference's numbers."""

from __future__ import annotations

import re
from pathlib import Path

from images.manifest import OperationKind
from images.proto import payload_pb2 as pb
from images.proto.generate import HERE, PRODUCTS, generate, main, stale

NUMBERS = {
    "Extent": "start_block 1 num_blocks 2",
    "Signatures": "signatures 1",
    "Signatures.Signature": "version 1 data 2 unpadded_signature_size 3",
    "ImageInfo": "size 1 hash 2",
    "InstallOperation": "type 1 data_offset 2 data_length 3 src_extents 4 src_length 5"
    " dst_extents 6 dst_length 7 data_sha256_hash 8 src_sha256_hash 9 dst_sha256 1000"
    " dictionary_first 1001 dictionary_count 1002 source_segments 1003 output_segments 1004",
    "Segment": "coder 1 offset 2 packed 3 unpacked 4 start 5 used 6 ahead 7 behind 8",
    "Coder": "function 1 version 2 level 3 sample_sha256 4",
    "IndexGroup": "operations 1 sha256 2",
    "InstallProcedure": "type 1 operations 2 old_info 3 new_info 4",
    "PartitionUpdate": "partition_name 1 run_postinstall 2 postinstall_path 3 filesystem_type 4"
    " new_partition_signature 5 old_partition_info 6 new_partition_info 7 operations 8"
    " postinstall_optional 9 hash_tree_data_extent 10 hash_tree_extent 11 hash_tree_algorithm 12"
    " hash_tree_salt 13 fec_data_extent 14 fec_extent 15 fec_roots 16 version 17"
    " merge_operations 18 estimate_cow_size 19 estimate_op_count_max 20"
    " index_groups 1000 index_hash_size 1001 age_operations 1002",
    "DeltaArchiveManifest": "partition_operations 1 noop_operations 2 block_size 3"
    " signatures_offset 4 signatures_size 5 old_partition_info 8 new_partition_info 9"
    " procedures 10 minor_version 12 partitions 13 max_timestamp 14 partial_update 16"
    " security_patch_level 18 coders 1000",
}


def test_the_checked_in_module_is_current() -> None:
    assert stale() == []
    assert main(["--check"]) == 0


def test_generating_again_changes_nothing() -> None:
    before = {name: (HERE / name).read_bytes() for name in PRODUCTS}

    assert generate() == before


def test_the_numbers_are_those_of_the_reference() -> None:
    for name, expected in NUMBERS.items():
        descriptor = pb.DESCRIPTOR.message_types_by_name[name.split(".")[0]]
        if "." in name:
            descriptor = descriptor.nested_types_by_name[name.split(".")[1]]
        found = sorted((field.number, field.name) for field in descriptor.fields)
        assert " ".join(f"{field} {number}" for number, field in found) == expected


def test_operation_kinds_are_those_of_the_schema() -> None:
    assert {kind.name: kind.value for kind in OperationKind} == dict(
        pb.InstallOperation.Type.items()
    )


def test_the_signature_length_is_a_fixed32() -> None:
    schema = Path(HERE / "payload.proto").read_text()

    assert re.search(r"optional fixed32 unpadded_signature_size = 3;", schema)
    assert re.search(r"^syntax = \"proto2\";", schema, re.MULTILINE)
