"""Payloads and images beyond 2, 4 and 8 GiB: every byte counts, also the last."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

import pytest

from images.build import build
from images.container import Header
from images.errors import BlobMismatchError
from images.proto import payload_pb2 as pb
from images.reader import verify_file
from images.signing import encode_signatures, sign_digest
from tests.sim.payloads import image, key, trusted

pytestmark = [pytest.mark.slow, pytest.mark.e2e]

MIB = 1024 * 1024
CHUNK = 16 * MIB
CHUNKS = 8 * 64 + 1  # 8 GiB and one more


def write_sparse_payload(file: BinaryIO) -> None:
    """Write a signed payload whose data area is all zeros, and takes no room on the disk."""
    manifest = pb.DeltaArchiveManifest(block_size=4096, minor_version=0)
    part = manifest.partitions.add(partition_name="usr")
    blob_sha256 = hashlib.sha256(bytes(CHUNK)).digest()
    for number in range(CHUNKS):
        part.operations.add(
            type=pb.InstallOperation.REPLACE,
            data_offset=number * CHUNK,
            data_length=CHUNK,
            dst_extents=[pb.Extent(start_block=number * CHUNK // 4096, num_blocks=CHUNK // 4096)],
            data_sha256_hash=blob_sha256,
        )
    part.new_partition_info.size, part.new_partition_info.hash = CHUNKS * CHUNK, bytes(32)
    manifest.signatures_offset, manifest.signatures_size = CHUNKS * CHUNK, 267
    raw = manifest.SerializeToString()
    metadata = Header(major=2, manifest_size=len(raw), metadata_signature_size=267).encode() + raw
    signed = hashlib.sha256(metadata)
    file.write(metadata + encode_signatures([sign_digest(signed.digest(), key())]))
    for _ in range(CHUNKS):
        signed.update(bytes(CHUNK))
    file.seek(CHUNKS * CHUNK, os.SEEK_CUR)
    file.write(encode_signatures([sign_digest(signed.digest(), key())]))


def test_a_payload_of_more_than_8_gib_is_verified_to_its_last_byte(tmp_path: Path) -> None:
    path = tmp_path / "payload"
    with path.open("wb") as file:
        write_sparse_payload(file)

    manifest = verify_file(path, trusted(key())).manifest

    assert manifest.blob_bytes == CHUNKS * CHUNK > 8 * 1024 * MIB
    with path.open("r+b") as file:
        file.seek(-268, os.SEEK_END)
        file.write(b"\1")
    with pytest.raises(BlobMismatchError, match=f"byte {(CHUNKS - 1) * CHUNK} of the data"):
        verify_file(path, trusted(key()))


def test_an_image_of_more_than_8_gib_is_built(tmp_path: Path) -> None:
    with (tmp_path / "image").open("wb") as file:
        for gib in (2, 4, 8):
            file.seek(gib * 1024 * MIB - 4096)
            file.write(image(2, gib))
        file.truncate(9 * 1024 * MIB)

    built = build([("usr", tmp_path / "image")], tmp_path / "payload", keys=[key()])

    operations = built.manifest.parts[0].operations
    assert sum(operation.output_limit for operation in operations) == 9 * 1024 * MIB
    assert verify_file(tmp_path / "payload", trusted(key())).manifest == built.manifest
