"""Coders of the system's libraries against the real programs that use them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from backports import zstd

from images import coders, gzip_members, zstd_jobs
from images.coders import (
    UNPACKED_MAX,
    FrameReader,
    Function,
    check_coder,
    coder_of,
    pack,
    pieces_of,
    sample,
    unpack,
    unpack_frame,
)
from images.delta_unpacked import _as_far_as_it_goes
from images.errors import CoderMissingError, OperationOutputError
from images.packed import Packing, find_packed, parts_of
from tests.sim.coders import need_coders

MIB = 1024 * 1024
ALL = [(function, 9) for function in Function]


@pytest.fixture(autouse=True)
def libraries() -> None:
    need_coders()


def prose(size: int) -> bytes:
    """Return bytes that shrink to a third or so, without repeats of a regular length."""
    return b"".join(b"%d is %x, " % (n * n, n) for n in range(size // 9))[:size]


def reader(data: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, size: data[offset : offset + size]


def program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed (package {name})")
    return path


def test_the_sample_is_the_same_everywhere_and_shrinks() -> None:
    assert len(sample()) == 128 * 1024
    assert sample() == sample()
    assert len(pack(Function.ZSTD, 9, sample(), taken=131072, size=_size(sample()))) < 100_000


def _size(data: bytes) -> int:
    return len(coders._zstd(data, 9))


def test_blocks_of_lz4_legacy_frames_pack_as_the_program_packs_them(tmp_path: Path) -> None:
    data = prose(8 * MIB + 100_000)
    (tmp_path / "in").write_bytes(data)
    subprocess.run(
        [program("lz4"), "-l", "-9", "-q", str(tmp_path / "in"), str(tmp_path / "out")], check=True
    )
    image = b"x" * 77 + (tmp_path / "out").read_bytes() + bytes(4)
    found = find_packed(reader(image), len(image))

    assert [(it.packing, it.unpacked) for it in found] == [
        (Packing.LZ4_LEGACY, 8 * MIB),
        (Packing.LZ4_LEGACY, 100_000),
    ]
    for stream in found:
        packed = image[stream.offset : stream.end]
        plain = unpack(Function.LZ4_HC, packed, stream.unpacked)
        assert pack(Function.LZ4_HC, 9, plain, taken=len(plain), size=len(packed)) == packed


def test_parts_of_a_large_frame_pack_as_zstds_threads_pack_them(tmp_path: Path) -> None:
    data = prose(33 * MIB)
    (tmp_path / "in").write_bytes(data)
    subprocess.run(
        [program("zstd"), "-9", "-T2", "-q", str(tmp_path / "in"), "-o", str(tmp_path / "out")],
        check=True,
    )
    image = b"x" * 77 + (tmp_path / "out").read_bytes()
    (frame,) = find_packed(reader(image), len(image))
    parts = parts_of(reader(image), frame)

    assert frame.packing is Packing.ZSTD_LARGE
    assert [part.unpacked for part in parts] == [16 * MIB, 16 * MIB, MIB]
    for part in parts:
        seen = min(MIB, part.start)
        shown = data[part.start - seen : part.start + part.unpacked]
        made = pack(Function.ZSTD_JOB, 9, shown, taken=part.unpacked, size=part.size, behind=seen)
        assert made == image[part.offset : part.end]
        again = pack(
            Function.ZSTD_JOB, 9, bytearray(shown), taken=part.unpacked, size=part.size, behind=seen
        )
        assert again == made


@pytest.mark.parametrize(
    ("size", "packing", "function"),
    [(9000, Packing.GZIP_SMALL, Function.DEFLATE), (400_000, Packing.GZIP, Function.GZIP)],
)
def test_files_of_gzip_pack_as_the_program_packs_them(
    size: int, packing: Packing, function: Function, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GZIP", "--rsyncable")  # options of somebody else
    data = Path(__file__).read_bytes()[: size // 2] + prose(size - size // 2)
    (tmp_path / "in").write_bytes(data)
    subprocess.run([program("gzip"), "-9n", str(tmp_path / "in")], check=True, env={})
    file = (tmp_path / "in.gz").read_bytes()
    image = b"x" * 77 + file + bytes(4) + file[:-9]
    (found,) = find_packed(reader(image), len(image))

    assert (found.packing, found.offset, found.end) == (packing, 77, 77 + len(file))
    assert unpack(function, file, found.unpacked) == data
    assert pack(function, 9, data, taken=len(data), size=len(file)) == file
    cut = unpack(function, file[: len(file) // 2], len(data))
    assert len(cut) > len(data) // 8
    assert data.startswith(cut)
    for broken, limit in ((file, len(data) - 1), (file + b"x", len(data)), (b"x" + file, 9)):
        with pytest.raises(OperationOutputError, match="a gzip file"):
            unpack(function, broken, limit)


def test_a_file_of_gzip_that_makes_too_much_is_left_after_what_may_be_made() -> None:
    image = gzip_members.pack_by_zlib(bytes(8 * UNPACKED_MAX), 9)
    assert image.startswith(gzip_members.MAGIC)
    tracemalloc.start()
    try:
        assert find_packed(reader(image), len(image)) == []
        assert tracemalloc.get_traced_memory()[1] < 4 * UNPACKED_MAX
    finally:
        tracemalloc.stop()


def test_a_ctrl_c_on_the_terminal_does_not_reach_gzip() -> None:
    code = (
        "import signal, sys; from images import gzip_members\n"
        "signal.signal(signal.SIGINT, lambda *_: None)\n"
        "data = bytes(range(256)) * 200_000; print('begins', flush=True)\n"
        "print(len(gzip_members.pack_by_program(data, 9)) > 0)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "begins\n"
        for _ in range(40):
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGINT)
            time.sleep(0.01)
        assert child.stdout.read() == "True\n"


def test_a_ctrl_c_before_gzip_left_our_group_is_made_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = tmp_path / "gzip"
    dying.write_text(
        f"#!/bin/sh\n[ -e {tmp_path}/died ] || {{ : >{tmp_path}/died; kill -INT $$; }}\n"
        f'exec {program("gzip")} "$@"\n'
    )
    dying.chmod(0o755)
    monkeypatch.setattr(gzip_members, "_PATH", str(tmp_path))
    gzip_members._program.cache_clear()
    try:
        made = gzip_members.pack_by_program(b"some words", 9)
    finally:
        gzip_members._program.cache_clear()
    assert (tmp_path / "died").exists()
    assert unpack(Function.GZIP, made, 10) == b"some words"


def test_without_gzip_its_coder_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    gzip_members.program_version.cache_clear()
    gzip_members._program.cache_clear()
    monkeypatch.setattr(gzip_members, "_PATH", "/nowhere")

    with pytest.raises(CoderMissingError, match="no gzip"):
        coder_of(Function.GZIP, 9)
    with pytest.raises(CoderMissingError, match="no gzip"):
        pack(Function.GZIP, 9, b"data", taken=4, size=9)
    gzip_members.program_version.cache_clear()
    gzip_members._program.cache_clear()


def test_a_frame_is_read_forwards_in_pieces() -> None:
    data = prose(3 * MIB)
    frame = zstd.compress(data)
    read = FrameReader(pieces_of(frame)).read

    assert read(5, 10) == data[5:15]
    assert read(15, 2 * MIB) == data[15 : 2 * MIB + 15]
    assert read(3 * MIB - 7, 7) == data[-7:]
    with pytest.raises(OperationOutputError, match="at the end"):
        read(3 * MIB, 1)
    with pytest.raises(OperationOutputError, match="ends too early"):
        unpack_frame(frame[:-9], 0, 3 * MIB)
    with pytest.raises(OperationOutputError, match="cannot be unpacked"):
        unpack_frame(b"\x28\xb5\x2f\xfd" + b"\xff" * 99, 0, 1)


@pytest.mark.parametrize(("function", "level"), ALL)
def test_whoever_packs_otherwise_is_told(function: Function, level: int) -> None:
    coder = coder_of(function, level)
    check_coder(coder)

    with pytest.raises(CoderMissingError, match=r"wants .*0\.0\.1.*, this system has"):
        check_coder(replace(coder, version="0.0.1"))
    with pytest.raises(CoderMissingError, match="packs otherwise on this system"):
        check_coder(replace(coder, sample_sha256=bytes(32)))


@pytest.mark.parametrize("name", ["lz4", "zstd"])
def test_a_system_without_the_library_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    coder = coder_of(Function.ZSTD if name == "zstd" else Function.LZ4_HC, 9)
    coders._library.cache_clear()
    monkeypatch.setitem(coders._VERSIONS, name, ("libmissing.so.1", "version"))

    with pytest.raises(CoderMissingError, match=r"no libmissing\.so\.1"):
        check_coder(coder)
    coders._library.cache_clear()


@pytest.mark.parametrize("function", [Function.LZ4_HC, Function.LZ4_HC_FILL, Function.ZSTD])
def test_no_more_is_unpacked_than_fits(function: Function) -> None:
    data = bytes(MIB)
    packed = coders._zstd(data, 9) if function is Function.ZSTD else coders._lz4(data, 9)

    assert unpack(function, packed, MIB) == data
    with pytest.raises(OperationOutputError):
        unpack(function, packed, MIB - 1)
    with pytest.raises(OperationOutputError):
        unpack(function, b"\xf0" * 50, MIB)


def test_a_coder_that_makes_another_number_of_bytes_is_refused() -> None:
    data = sample()
    size = _size(data)

    for taken, wanted in ((len(data), size + 1), (len(data) - 1, size)):
        with pytest.raises(OperationOutputError, match="packs 131072 bytes into"):
            pack(Function.ZSTD, 9, data, taken=taken, size=wanted)
    with pytest.raises(OperationOutputError, match="more than is packed again"):
        pack(Function.ZSTD, 9, bytes(MIB + 1), taken=MIB + 1, size=99)
    noise = b"".join(n.to_bytes(3, "big") for n in range(600_000))
    with pytest.raises(OperationOutputError, match="makes more than 10 bytes"):
        zstd_jobs.packed(noise, 1, behind=0, size=10)


def test_a_large_frame_whose_end_lies_elsewhere_serves_as_far_as_it_goes() -> None:
    data = prose(3 * MIB)
    frame = zstd.compress(data)
    found = _as_far_as_it_goes(frame[:-9], len(data))

    assert _as_far_as_it_goes(frame, len(data)) == data
    assert data.startswith(found)
    assert len(found) > 2 * MIB
