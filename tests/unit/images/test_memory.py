"""Memory stays bounded, whatever a payload claims; measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

MIB = 1024 * 1024

MEASURE = """
import hashlib, sys
from images.container import Header
from images.errors import ImagesError
from images.manifest import parse_manifest

def peak_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

data = sys.stdin.buffer.read()
header = Header(major=int(sys.argv[1]), manifest_size=len(data), metadata_signature_size=0)
before = peak_kib()
try:
    parse_manifest(header, data, payload_size=header.data_offset + int(sys.argv[2]))
    verdict = "taken"
except ImagesError as error:
    verdict = error.code
print(verdict, peak_kib() - before)
"""


def measured(data: bytes, *, major: int = 2, data_bytes: int = 0) -> tuple[str, int]:
    """Return the verdict over a manifest and how far memory grew, in bytes."""
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(major), str(data_bytes)],
        input=data,
        capture_output=True,
        check=True,
    )
    verdict, kib = result.stdout.split()
    return verdict.decode(), int(kib) * 1024


def test_the_largest_manifest_that_is_taken_costs_less_than_48_mib() -> None:
    import hashlib

    from images.proto import payload_pb2 as pb
    from images.wire import OPERATIONS_MAX

    manifest = pb.DeltaArchiveManifest(block_size=4096)
    part = manifest.partitions.add(partition_name="usr")
    for number in range(OPERATIONS_MAX):
        digest = hashlib.sha256(number.to_bytes(8, "big")).digest()
        part.operations.add(
            type=pb.InstallOperation.REPLACE_ZSTD,
            data_offset=number * 300_000,
            data_length=300_000,
            dst_extents=[pb.Extent(start_block=number * 256, num_blocks=256)],
            data_sha256_hash=digest,
            dst_sha256=digest,
        )
    part.new_partition_info.size = OPERATIONS_MAX * MIB
    part.new_partition_info.hash = bytes(32)
    data = manifest.SerializeToString()

    verdict, grown = measured(data, data_bytes=OPERATIONS_MAX * 300_000)

    assert verdict == "taken"
    assert grown < 48 * MIB


HOSTILE = {
    "parts": (2, b"\x6a\x00"),
    "operations": (1, b"\x0a\x00"),
    "no-ops": (1, b"\x12\x00"),
    "procedures": (1, b"\x52\x00"),
    "unknown fields": (2, b"\xfa\x01\x00"),
}


@pytest.mark.parametrize(("major", "field"), HOSTILE.values(), ids=HOSTILE.keys())
def test_eight_mib_of_tiny_messages_are_refused_without_memory(major: int, field: bytes) -> None:
    verdict, grown = measured(field * (8 * MIB // len(field)), major=major)

    assert verdict in {"payload-limits", "manifest-invalid"}
    assert grown < 24 * MIB
