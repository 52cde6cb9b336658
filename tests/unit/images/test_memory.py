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


DECODE = """
import bz2, hashlib, sys
from images.operations import decode, memory_bytes
from images.payload import Extent, Operation, OperationKind
from tests.unit.images.test_bsdiff import Held, number

MIB = 1024 * 1024

def peak_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

class Endless:
    def read_at(self, offset, size):
        return bytes(size)

def repeated(piece, count):
    packer = bz2.BZ2Compressor()
    return b"".join([packer.compress(piece) for _ in range(count)] + [packer.flush()])

size = 32 * MIB
noise = hashlib.shake_256(b"noise").digest(15 * MIB)
entries = b"".join(number(value) for value in (size - len(noise), len(noise), 0))
packer = bz2.BZ2Compressor()
extra = packer.compress(noise) + packer.flush()
streams = [bz2.compress(entries), repeated(bytes(MIB), 17), extra]
blob = b"BSDIFF40" + number(len(streams[0])) + number(len(streams[1])) + number(size)
blob += b"".join(streams)
del noise, extra, streams, packer
operation = Operation(
    kind=OperationKind.SOURCE_BSDIFF, data_offset=0, data_length=len(blob),
    dst_extents=(Extent(0, size // 4096),), dst_length=size, output_limit=size,
    data_sha256=hashlib.sha256(blob).digest(), dst_sha256=None,
    src_extents=(Extent(0, 2 * size // 4096),), src_length=2 * size,
)
with open("/proc/self/clear_refs", "w") as refs:
    refs.write("5")  # the peak begins anew: what made the patch is not what applies it
before = peak_kib()
output = decode(operation, blob, block_size=4096, source=Endless())
grown = (peak_kib() - before) * 1024
print(grown, memory_bytes(operation) - len(blob), len(blob), len(output))
"""


def test_the_largest_patch_costs_what_is_budgeted_and_less_than_64_mib_with_its_blob() -> None:
    result = subprocess.run([sys.executable, "-c", DECODE], capture_output=True, check=True)
    grown, budget, blob, made = map(int, result.stdout.split())

    assert made == 32 * MIB
    assert blob > 15 * MIB
    assert grown <= budget
    assert grown + blob < 64 * MIB


DICTIONARY = """
import hashlib, sys
from dataclasses import replace
from backports import zstd
from images.operations import decode, memory_bytes
from images.payload import Extent, Operation, OperationKind
from images.rules import DICTIONARY_OUTPUT_MAX
from images.dictionary import DICTIONARY_MAX
from tests.unit.images.test_source_zstd import Held

def peak_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

old = hashlib.shake_256(b"old").digest(DICTIONARY_MAX)
new = hashlib.shake_256(b"new").digest(DICTIONARY_OUTPUT_MAX // 2)
new += old[-DICTIONARY_OUTPUT_MAX // 2:]
prefix = zstd.ZstdDict(old, is_raw=True).as_prefix
window = {zstd.CompressionParameter.window_log: 24, zstd.CompressionParameter.compression_level: 1}
packer = zstd.ZstdCompressor(options=window, zstd_dict=prefix)
blob = packer.compress(new) + packer.flush()  # no size is named: the window is 16 MiB
extents = tuple(Extent(8 * n, 8) for n in range(len(old) // 32768))
operation = Operation(
    kind=OperationKind.SOURCE_ZSTD, data_offset=0, data_length=len(blob),
    dst_extents=(Extent(0, len(new) // 4096),), dst_length=len(new), output_limit=len(new),
    data_sha256=hashlib.sha256(blob).digest(), dst_sha256=hashlib.sha256(new).digest(),
    src_extents=extents, src_length=len(old), src_sha256=hashlib.sha256(old).digest(),
)
source = Held(old)
taken = {"source": source}
if sys.argv[1] == "TARGET_ZSTD":
    operation = replace(
        operation, kind=OperationKind.TARGET_ZSTD, src_extents=(), src_length=0, src_sha256=None,
        dictionary_count=2,
    )
    made = [old[: len(old) // 2], old[len(old) // 2 :]]
    taken = {}
del new, packer, prefix
with open("/proc/self/clear_refs", "w") as refs:
    refs.write("5")
before = peak_kib()
if not taken:  # joined where it is needed, as those who carry out operations do
    taken = {"dictionary": b"".join(made)}
output = decode(operation, blob, block_size=4096, verify_output=True, **taken)
grown = (peak_kib() - before) * 1024
print(grown, memory_bytes(operation) - len(blob), len(blob), len(output))
"""


@pytest.mark.parametrize("kind", ["SOURCE_ZSTD", "TARGET_ZSTD"])
def test_the_largest_dictionary_costs_what_is_budgeted_and_less_than_64_mib(kind: str) -> None:
    command = [sys.executable, "-c", DICTIONARY, kind]
    result = subprocess.run(command, capture_output=True, check=True)
    grown, budget, blob, made = map(int, result.stdout.split())

    assert made == 8 * MIB
    assert grown <= budget + MIB  # zstd's own tables
    assert grown + blob < 64 * MIB


RECODE = """
import ctypes, hashlib, mmap, sys
from backports import zstd
from images import coders, zstd_jobs
from images.coders import Function, coder_of
from images.operations import decode, work_bytes
from images.payload import Extent, Operation, OperationKind, Segment
from tests.unit.images.test_source_zstd import Held

MIB = 1024 * 1024

def kib(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field))

function, level, size = Function[sys.argv[1]], int(sys.argv[2]), int(sys.argv[3])
words = [b"%d is the square of %d;" % (n * n, n) for n in range(500)]
noise = hashlib.shake_256(b"recode").digest(size // 8)
old = b"".join(words[byte] for byte in noise)[:size]
new = old.replace(b"7 is", b"8 is")[:size].ljust(size, b".")
coder = coder_of(function, level)
make = coders._zstd if function is Function.ZSTD else coders._lz4
old_packed, new_packed = (
    bytes(zstd_jobs.packed(data, level, behind=0, size=None))
    if function is Function.ZSTD_JOB
    else bytes(make(data, level))
    for data in (old, new)
)
if function is Function.ZSTD_JOB:  # the source is a frame of a window of 4 MiB
    level_9 = {zstd.CompressionParameter.window_log: 22}
    old_packed = zstd.compress(old, options=level_9)
source = old_packed + bytes(-len(old_packed) % 4096)
prefix = zstd.ZstdDict(old, is_raw=True).as_prefix
blob = zstd.compress(new, options={zstd.CompressionParameter.window_log: 24}, zstd_dict=prefix)
operation = Operation(
    kind=OperationKind.SOURCE_RECODE, data_offset=0, data_length=len(blob),
    dst_extents=(Extent(0, -(-len(new_packed) // 4096)),), dst_length=len(new_packed),
    output_limit=len(new_packed) + -len(new_packed) % 4096,
    data_sha256=hashlib.sha256(blob).digest(), dst_sha256=hashlib.sha256(new_packed).digest(),
    src_extents=(Extent(0, len(source) // 4096),), src_length=len(source),
    src_sha256=hashlib.sha256(source).digest(),
    source_segments=(
        Segment(coder=coder, packed=len(old_packed), unpacked=len(old), used=len(old)),
    ),
    output_segments=(
        Segment(
            coder=coder, packed=len(new_packed), unpacked=len(new), used=len(new_packed)
        ),
    ),
)
room = memoryview(mmap.mmap(-1, operation.output_limit))
room[:] = bytes(len(room))
image = Held(source)
del old, new, old_packed, prefix, noise, words
ctypes.CDLL(None).malloc_trim(0)
with open("/proc/self/clear_refs", "w") as refs:
    refs.write("5")
before = kib("VmRSS")
output = decode(operation, blob, block_size=4096, source=image, room=room, verify_output=True)
grown = (kib("VmHWM") - before) * 1024
print(grown, work_bytes(operation, blob) - len(blob), len(output))
"""


@pytest.mark.parametrize(
    ("function", "level", "size"),
    [("ZSTD", 22, MIB), ("ZSTD", 15, MIB // 8), ("LZ4_HC", 9, 8 * MIB), ("ZSTD_JOB", 9, 16 * MIB)],
)
def test_what_is_packed_again_costs_what_is_budgeted(function: str, level: int, size: int) -> None:
    from images.coders import Function, coder_of
    from images.errors import CoderMissingError

    try:
        coder_of(Function[function], level)
    except CoderMissingError as error:
        pytest.skip(f"{error} (packages libzstd1, liblz4-1)")
    command = [sys.executable, "-c", RECODE, function, str(level), str(size)]
    result = subprocess.run(command, capture_output=True, check=True)
    grown, budget, made = map(int, result.stdout.split())

    assert made > size // 100
    assert grown <= budget + 2 * MIB  # pieces of a MiB that are read, and the allocator's own
    assert grown > budget // 3  # what is budgeted is not much more than it needs


PATCHED = """
import hashlib, lzma, struct
from images.bsdiff import XZ_MAGIC
from images.operations import decode, work_bytes
from images.payload import Extent, Operation, OperationKind, Segment
from tests.unit.images.test_source_zstd import Held

MIB = 1024 * 1024

def kib(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field))

old = hashlib.shake_256(b"old").digest(8 * MIB)
streams = [struct.pack("<QQQ", 4096, 0, 0), bytes(4096), b""]
streams = [lzma.compress(stream, preset=0) for stream in streams]
blob = XZ_MAGIC + struct.pack("<QQQ", len(streams[0]), len(streams[1]), 4096) + b"".join(streams)
operation = Operation(
    kind=OperationKind.SOURCE_RECODE, data_offset=0, data_length=len(blob),
    dst_extents=(Extent(0, 1),), dst_length=4096, output_limit=4096,
    data_sha256=hashlib.sha256(blob).digest(), dst_sha256=hashlib.sha256(old[:4096]).digest(),
    src_extents=(Extent(0, len(old) // 4096),), src_length=len(old),
    src_sha256=hashlib.sha256(old).digest(),
    source_segments=(Segment(coder=None, packed=len(old), unpacked=len(old), used=len(old)),),
    output_segments=(Segment(coder=None, packed=4096, unpacked=4096, used=4096),),
)
image = Held(old)
with open("/proc/self/clear_refs", "w") as refs:
    refs.write("5")
before = kib("VmRSS")
decode(operation, blob, block_size=4096, source=image, verify_output=True)
print((kib("VmHWM") - before) * 1024, work_bytes(operation, blob))
"""


def test_a_patch_of_a_large_dictionary_costs_what_is_budgeted() -> None:
    result = subprocess.run([sys.executable, "-c", PATCHED], capture_output=True, check=True)
    grown, budget = map(int, result.stdout.split())

    assert 14 * MIB < grown <= budget + 2 * MIB  # a piece that is read, and the allocator's own
