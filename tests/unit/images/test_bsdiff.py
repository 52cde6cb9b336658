"""Patches: exact, inside their source, bounded, whatever is in the container."""

from __future__ import annotations

import bz2
import hashlib
import lzma
import struct
import subprocess
import sys
import tracemalloc

import bsdiff4
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from images.bsdiff import PIECE_SIZE, WORK_BYTES, XZ_DICTIONARIES, XZ_MAGIC, apply_patch
from images.delta_coding import code
from images.errors import ImagesError, OperationOutputError, OperationUnsupportedError
from images.payload import Extent, Operation, OperationKind
from images.source import Gathered

BLOCK = 4096
OLD = hashlib.shake_256(b"old").digest(40 * BLOCK)
Entry = tuple[int, int, int]


class Held:
    """An image in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read_at(self, offset: int, size: int) -> bytes:
        return self.data[offset : offset + size]


def source(data: bytes = OLD) -> Gathered:
    blocks = -(-len(data) // BLOCK)
    operation = Operation(
        kind=OperationKind.SOURCE_BSDIFF,
        data_offset=0,
        data_length=1,
        dst_extents=(),
        dst_length=None,
        output_limit=0,
        data_sha256=None,
        dst_sha256=None,
        src_extents=(Extent(0, blocks),),
        src_length=len(data),
    )
    return Gathered(operation, Held(data), block_size=BLOCK)


def patched(patch: bytes, size: int, old: bytes = OLD) -> bytes:
    output = bytearray(size)
    apply_patch(patch, source(old), memoryview(output))
    return bytes(output)


def number(value: int) -> bytes:
    return (abs(value) | (1 << 63 if value < 0 else 0)).to_bytes(8, "little")


def xz(data: bytes, *, dictionary: int = XZ_DICTIONARIES[0]) -> bytes:
    options = {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": dictionary}
    return lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=[options])


def container(
    entries: list[Entry],
    diff: bytes = b"",
    extra: bytes = b"",
    *,
    size: int | None = None,
    tail: bytes = b"",
    magic: bytes = b"BSDIFF40",
) -> bytes:
    """Return a container of these control entries; its size is what they make."""
    control = b"".join(number(value) for entry in entries for value in entry)
    pack = xz if magic == XZ_MAGIC else bz2.compress
    streams = [pack(data) for data in (control, diff, extra)]
    made = sum(add + copy for add, copy, _ in entries) if size is None else size
    header = magic + number(len(streams[0])) + number(len(streams[1])) + number(made)
    return header + b"".join(streams) + tail


@pytest.mark.parametrize("size", [1, PIECE_SIZE - 1, PIECE_SIZE, PIECE_SIZE + 1, 30 * BLOCK])
def test_a_patch_of_another_program_makes_the_new_bytes(size: int) -> None:
    new = (OLD[5000:] + b"inserted" + OLD[:5000])[:size]

    assert patched(bsdiff4.diff(OLD, new), size) == new


@pytest.mark.parametrize("magic", [b"BSDIFF40", XZ_MAGIC])
def test_entries_add_copy_and_seek_both_ways(magic: bytes) -> None:
    entries = [(3, 2, -2), (2, 0, 5), (1, 1, 0)]
    patch = container(entries, diff=b"\1\1\1\0\0\xff", extra=b"xyz", magic=magic)

    expected = bytes([OLD[0] + 1 & 255, OLD[1] + 1 & 255, OLD[2] + 1 & 255]) + b"xy"
    expected += OLD[1:3] + bytes([OLD[8] - 1 & 255]) + b"z"
    assert patched(patch, 9) == expected


def test_entries_that_make_nothing_may_stand_between() -> None:
    assert patched(container([(0, 0, 4), (0, 0, -2), (2, 0, 0)], diff=b"\0\0"), 2) == OLD[2:4]


def test_entries_that_make_nothing_are_not_gathered() -> None:
    size = 256 * 1024
    patch = container([(0, 0, 0)] * size + [(0, size, 0)], extra=bytes(size), magic=XZ_MAGIC)
    tracemalloc.start()
    try:
        assert patched(patch, size) == bytes(size)
        assert tracemalloc.get_traced_memory()[1] < 8 * size + 2 * 1024 * 1024
    finally:
        tracemalloc.stop()


BROKEN = {
    "more added than is missing": (container([(5, 0, 0)], bytes(5), size=4), "adds 5"),
    "more copied than is missing": (container([(0, 5, 0)], b"", bytes(5), size=4), "copies 5"),
    "both together are more": (container([(3, 2, 0)], bytes(3), bytes(2), size=4), "adds 3"),
    "a negative add": (container([(-1, 5, 0)], b"", bytes(5), size=4), "adds -1"),
    "a negative copy": (container([(5, -1, 0)], bytes(5), size=4), "copies -1"),
    "the largest add": (container([(2**63 - 1, 0, 0)], b"", size=4), "adds 9223372036854775807"),
    "before the source": (container([(0, 0, -1), (4, 0, 0)], bytes(4)), "at byte -1 of a source"),
    "after the source": (container([(0, 0, len(OLD) - 3), (4, 0, 0)], bytes(4)), "reads 4 bytes"),
    "far away": (container([(0, 0, 2**63 - 1), (4, 0, 0)], bytes(4)), "at byte 92233720368547758"),
    "control ends early": (container([(2, 0, 0)], bytes(4), size=4), "control stream .* too early"),
    "diff ends early": (container([(4, 0, 0)], bytes(3)), "diff stream .* too early"),
    "extra ends early": (container([(0, 4, 0)], b"", bytes(3)), "extra stream .* too early"),
    "control goes on": (container([(4, 0, 0), (0, 0, 0)], bytes(4)), "control stream .* goes on"),
    "diff goes on": (container([(4, 0, 0)], bytes(5)), "diff stream .* goes on"),
    "extra goes on": (container([(0, 4, 0)], b"", bytes(5)), "extra stream .* goes on"),
    "bytes after the end": (container([(4, 0, 0)], bytes(4), tail=b"x"), "extra stream .* goes on"),
    "another size": (container([(4, 0, 0)], bytes(4), size=5), "makes 5 bytes, not 4"),
    "a negative size": (container([(4, 0, 0)], bytes(4), size=-4), "makes -4 bytes, not 4"),
    "another magic": (
        container([(4, 0, 0)], bytes(4), magic=b"BSDIFF41"),
        "begins with b'BSDIFF41'",
    ),
    "nothing": (b"", "begins with b''"),
    "a header alone": (b"BSDIFF40" + bytes(23), "of 31 bytes begins"),
    "streams of nothing": (b"BSDIFF40" + bytes(16) + number(4), "control stream .* is cut off"),
    "no bzip2": (b"BSDIFF40" + number(9) + number(0) + number(4) + b"no bzip2!", "unpacked"),
    "control of xz ends early": (
        container([(2, 0, 0)], bytes(4), size=4, magic=XZ_MAGIC),
        "control stream .* too early",
    ),
    "diff of xz goes on": (
        container([(4, 0, 0)], bytes(5), magic=XZ_MAGIC),
        "diff stream .* goes on",
    ),
    "bytes after the end of xz": (
        container([(4, 0, 0)], bytes(4), tail=b"x", magic=XZ_MAGIC),
        "extra stream .* goes on",
    ),
    "bzip2 where xz should be": (
        XZ_MAGIC + container([(4, 0, 0)], bytes(4))[8:],
        "control stream .* cannot be unpacked",
    ),
    "a control of negative length": (b"BSDIFF40" + number(-1) + bytes(16), "streams of -1 and 0"),
    "a diff of negative length": (b"BSDIFF40" + bytes(8) + number(-1) + bytes(8), "of 0 and -1"),
    "streams past the end": (b"BSDIFF40" + number(2**62) * 2 + number(4), "names streams of 46116"),
}


@pytest.mark.parametrize(("patch", "why"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_patch_is_refused(patch: bytes, why: str) -> None:
    with pytest.raises(OperationOutputError, match=why):
        patched(patch, 4)


@pytest.mark.parametrize("number_of_stream", [0, 1, 2])
def test_a_stream_of_xz_has_a_dictionary_that_a_node_holds(number_of_stream: int) -> None:
    control, diff, extra = number(4) + number(4) + number(0), bytes(4), bytes(4)
    sizes = list(XZ_DICTIONARIES)
    for more, expected in ((0, OLD[:4] + bytes(4)), (1024 * 1024, None)):
        sizes[number_of_stream] = XZ_DICTIONARIES[number_of_stream] + more
        streams = [
            xz(data, dictionary=size)
            for data, size in zip((control, diff, extra), sizes, strict=True)
        ]
        patch = XZ_MAGIC + number(len(streams[0])) + number(len(streams[1])) + number(8)
        if expected is not None:
            assert patched(patch + b"".join(streams), 8) == expected
            continue
        with pytest.raises(OperationOutputError, match="limit"):
            patched(patch + b"".join(streams), 8)
    assert sum(XZ_DICTIONARIES) < WORK_BYTES


def test_the_newer_container_is_refused_by_name() -> None:
    with pytest.raises(OperationUnsupportedError, match="BSDF2"):
        patched(b"BSDF2\1\1\1" + bytes(40), 4)


def test_a_zero_that_is_called_negative_is_a_zero() -> None:
    zero = bytes(7) + b"\x80"
    control = number(4) + zero + zero + zero + number(4) + zero
    streams = [bz2.compress(control), bz2.compress(bytes(4)), bz2.compress(b"more")]
    patch = b"BSDIFF40" + number(len(streams[0])) + number(len(streams[1])) + number(8)

    assert patched(patch + b"".join(streams), 8) == OLD[:4] + b"more"


def test_entries_that_make_nothing_end() -> None:
    patch = container([(0, 0, 0)] * 2000 + [(4, 0, 0)], bytes(4))

    with pytest.raises(OperationOutputError, match="more control entries than bytes to make"):
        patched(patch, 4)


BOMB = """
import bz2, lzma, sys
from images.errors import OperationOutputError
from tests.unit.images.test_bsdiff import number, patched, xz

def peak_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

if sys.argv[1] == "BSDIFF40":
    zeros = bz2.BZ2Compressor()
    control = bz2.compress(number(4) + bytes(16))
else:
    options = {"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 4 << 20}
    zeros = lzma.LZMACompressor(lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=[options])
    control = xz(number(4) + bytes(16))
packed = b"".join([zeros.compress(bytes(1 << 20)) for _ in range(256)] + [zeros.flush()])
del zeros
patch = sys.argv[1].encode() + number(len(control)) + number(len(packed)) + number(4)
before = peak_kib()
for stream in (control + packed + packed,):
    try:
        patched(patch + stream, 4)
    except OperationOutputError as error:
        print(error.code, peak_kib() - before)
"""


@pytest.mark.parametrize("magic", ["BSDIFF40", "BSDIFFXZ"])
def test_streams_that_unpack_to_gigabytes_cost_no_memory(magic: str) -> None:
    result = subprocess.run([sys.executable, "-c", BOMB, magic], capture_output=True, check=True)
    code, kib = result.stdout.split()

    assert code == b"operation-output"
    assert int(kib) < 16 * 1024


@given(st.binary(max_size=3000), st.binary(max_size=3000))
@example(b"", b"new")
@example(OLD[:3000], OLD[100:2000] + OLD[:50])
def test_whatever_another_program_writes_is_carried_out(old: bytes, new: bytes) -> None:
    assert patched(bsdiff4.diff(old, new), len(new), old) == new


entries = st.lists(
    st.tuples(st.integers(-2, 70), st.integers(-2, 70), st.integers(-200, 200)), max_size=8
)


@given(st.binary(min_size=8, max_size=3000), st.binary(min_size=1, max_size=3000))
@example(OLD[:3000], OLD[100:2000] + OLD[:50])
def test_whatever_the_builder_writes_is_carried_out(old: bytes, new: bytes) -> None:
    coded = code(new, old)
    if coded.kind is OperationKind.SOURCE_BSDIFF:
        assert patched(coded.data, len(new), old) == new


@given(entries, st.binary(max_size=200), st.binary(max_size=200), st.integers(0, 300))
def test_any_container_is_what_the_reference_makes_of_it_or_an_error(
    found: list[Entry], diff: bytes, extra: bytes, size: int
) -> None:
    old = OLD[:150]
    patch = container(found, diff, extra, size=size)
    try:
        made = patched(patch, size, old)
    except ImagesError:
        return
    assert made == bsdiff4.patch(old, patch)
    assert made == patched(container(found, diff, extra, size=size, magic=XZ_MAGIC), size, old)


@given(st.binary(max_size=300), st.integers(0, 64))
def test_any_bytes_are_a_patch_or_an_error(data: bytes, size: int) -> None:
    for patch in (data, b"BSDIFF40" + data, XZ_MAGIC + data):
        try:
            patched(patch, size)
        except ImagesError:
            continue


@pytest.mark.parametrize("magic", [b"BSDIFF40", XZ_MAGIC])
@given(data=st.data())
def test_a_flipped_bit_makes_the_same_bytes_or_an_error(magic: bytes, data: st.DataObject) -> None:
    entries = [(1000, 0, 500), (1200, 3, 0)]
    whole = container(entries, bytes(2200), b"new", magic=magic)
    patch = bytearray(whole)
    at = data.draw(st.integers(0, len(patch) * 8 - 1))
    patch[at // 8] ^= 1 << at % 8
    try:
        made = patched(bytes(patch), 2203, OLD[:4096])
    except ImagesError:
        return
    assert made == patched(whole, 2203, OLD[:4096])


def test_struct_agrees_about_small_numbers() -> None:
    assert number(7) == struct.pack("<q", 7)
