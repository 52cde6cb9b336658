"""A zstd frame with a raw dictionary: what it makes, and what is refused."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from images.dictionary import WINDOW_LOG_MAX, unpack_with_dictionary
from images.errors import OperationOutputError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MIB = 1024 * 1024
OLD = hashlib.shake_256(b"old").digest(64 * 1024)
NEW = OLD[1000:50_000] + b"new" + OLD[:1000]


def packed(data: bytes, dictionary: bytes, **options: int) -> bytes:
    parameters = {getattr(zstd.CompressionParameter, name): v for name, v in options.items()}
    return zstd.compress(
        data, options=parameters, zstd_dict=zstd.ZstdDict(dictionary, is_raw=True).as_prefix
    )


def test_a_frame_makes_bytes_out_of_its_dictionary() -> None:
    blob = packed(NEW, OLD)

    assert len(blob) < 200  # noise, so all of it came from the dictionary
    assert unpack_with_dictionary(blob, OLD, len(NEW)) == NEW
    assert unpack_with_dictionary(memoryview(blob), memoryview(OLD), len(NEW)) == NEW


@settings(deadline=None)  # a busy machine is no failure
@given(st.binary(max_size=2000), st.binary(min_size=8, max_size=2000))
def test_any_bytes_come_back(data: bytes, dictionary: bytes) -> None:
    assert unpack_with_dictionary(packed(data, dictionary), dictionary, len(data)) == data


def test_a_dictionary_that_looks_trained_is_raw_all_the_same() -> None:
    trained_magic = 0xEC30A437.to_bytes(4, "little")
    dictionary = trained_magic + OLD

    assert unpack_with_dictionary(packed(NEW, dictionary), dictionary, len(NEW)) == NEW


def test_the_zstd_program_makes_frames_that_are_understood(tmp_path: Path) -> None:
    if shutil.which("zstd") is None:
        pytest.skip("the program zstd is missing: install zstd")
    (tmp_path / "old").write_bytes(OLD)
    (tmp_path / "new").write_bytes(NEW)
    command = ["zstd", "-q", "--patch-from=old", "new", "-o", "patch"]
    subprocess.run(command, cwd=tmp_path, check=True)
    blob = (tmp_path / "patch").read_bytes()

    assert len(blob) < 200
    assert unpack_with_dictionary(blob, OLD, len(NEW)) == NEW


def test_another_dictionary_does_not_pass_for_the_right_one() -> None:
    blob = packed(NEW, OLD, checksum_flag=1)

    with pytest.raises(OperationOutputError, match="cannot be unpacked"):
        unpack_with_dictionary(blob, OLD[::-1], len(NEW))


def test_a_shorter_dictionary_is_an_error_not_a_crash() -> None:
    with pytest.raises(OperationOutputError, match="cannot be unpacked"):
        unpack_with_dictionary(packed(NEW, OLD), OLD[:8], len(NEW))
    with pytest.raises(OperationOutputError, match="cannot be unpacked"):
        unpack_with_dictionary(packed(NEW, OLD), OLD[:7], len(NEW))


def test_no_more_is_unpacked_than_fits() -> None:
    blob = packed(bytes(64 * MIB), OLD)

    with pytest.raises(OperationOutputError, match="more than the 1048576 bytes that fit"):
        unpack_with_dictionary(blob, OLD, MIB)
    with pytest.raises(OperationOutputError, match=f"more than the {len(NEW) - 1} bytes"):
        unpack_with_dictionary(packed(NEW, OLD), OLD, len(NEW) - 1)


def test_a_frame_that_wants_a_larger_window_is_refused() -> None:
    piece = packed(NEW, OLD)
    noise = hashlib.shake_256(b"noise").digest(MIB)
    compressor = zstd.ZstdCompressor(
        options={zstd.CompressionParameter.window_log: WINDOW_LOG_MAX + 1},
        zstd_dict=zstd.ZstdDict(OLD, is_raw=True).as_prefix,
    )
    blob = compressor.compress(noise) + compressor.flush()  # no size is named: the window is

    with pytest.raises(OperationOutputError, match="cannot be unpacked"):
        unpack_with_dictionary(blob, OLD, 64 * MIB)
    assert unpack_with_dictionary(piece, OLD, MIB) == NEW


@pytest.mark.parametrize("size", [0, 1, 4, 20, -4, -1])
def test_a_frame_that_is_cut_off_is_refused(size: int) -> None:
    blob = packed(NEW, OLD)

    with pytest.raises(OperationOutputError, match=r"before its frame|cannot be unpacked"):
        unpack_with_dictionary(blob[:size], OLD, len(NEW))


def test_nothing_may_follow_the_frame() -> None:
    blob = packed(NEW, OLD)

    with pytest.raises(OperationOutputError, match="after its frame"):
        unpack_with_dictionary(blob + b"\0", OLD, len(NEW))
    with pytest.raises(OperationOutputError, match="after its frame"):
        unpack_with_dictionary(blob + blob, OLD, len(NEW))
