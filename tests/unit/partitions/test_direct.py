"""Writing past the page cache: the same bytes as by any other way, and none of them cached."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from partitions.disk import Access, open_disk

SIZE = 64 * 1024
BLOCK = 4096
MIB = 1024 * 1024

spans = st.tuples(
    st.one_of(st.integers(0, SIZE - 1), st.integers(0, SIZE // BLOCK - 1).map(BLOCK.__mul__)),
    st.one_of(st.integers(1, SIZE), st.integers(1, SIZE // BLOCK).map(BLOCK.__mul__)),
    st.binary(min_size=1, max_size=1),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(writes=st.lists(spans, max_size=12))
def test_any_writes_land_as_in_a_plain_file(
    tmp_path: Path, writes: list[tuple[int, int, bytes]]
) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(SIZE))
    expected = bytearray(SIZE)
    with open_disk(path, Access.WRITE) as disk:
        disk.write_past_cache()
        for offset, length, byte in writes:
            data = byte * min(length, SIZE - offset)
            disk.pwrite(offset, data)
            expected[offset : offset + len(data)] = data

    assert path.read_bytes() == expected


def takes_direct_writes(path: Path) -> bool:
    """Ask the kernel, past the code that is tested."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_DIRECT
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError:
        return False
    with mmap.mmap(-1, BLOCK) as block:
        try:
            return os.pwrite(descriptor, block, 0) == BLOCK
        except OSError:
            return False
        finally:
            os.close(descriptor)


def cached_bytes(path: Path) -> int:
    command = ["fincore", "--bytes", "--noheadings", "--output", "RES", str(path)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(shutil.which("fincore") is None, reason="no fincore (package util-linux)")
def test_whole_blocks_leave_nothing_in_the_page_cache(tmp_path: Path) -> None:
    if not takes_direct_writes(tmp_path / "asked"):
        pytest.skip("the file system of the temporary folder takes no direct writes")
    past, through = tmp_path / "past", tmp_path / "through"
    for path in (past, through):
        with path.open("wb") as file:
            file.truncate(3 * MIB)
        with open_disk(path, Access.WRITE) as disk:
            if path is past:
                disk.write_past_cache()
            disk.pwrite(0, os.urandom(3 * MIB))

    assert cached_bytes(past) == 0
    assert cached_bytes(through) == 3 * MIB


def test_a_file_system_that_refuses_direct_writes_is_written_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(2 * BLOCK))
    real, refused = os.pwrite, []

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            refused.append(offset)
            raise OSError(errno.EINVAL, "no direct writes here")
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with open_disk(path, Access.WRITE) as disk:
        disk.write_past_cache()
        disk.pwrite(0, b"a" * BLOCK)
        disk.pwrite(BLOCK, b"b" * BLOCK)

    assert path.read_bytes() == b"a" * BLOCK + b"b" * BLOCK
    assert refused == [0]  # asked once, then believed


def test_threads_write_side_by_side_whatever_lies_how(tmp_path: Path) -> None:
    """Aligned memory, memory that is not, and offsets within a block, all at once."""
    path = tmp_path / "disk"
    path.write_bytes(bytes(64 * SIZE))
    expected = bytearray(64 * SIZE)
    aligned = mmap.mmap(-1, SIZE)
    aligned[:] = bytes(range(256)) * (SIZE // 256)
    pieces: list[tuple[int, bytes | memoryview]] = []
    for number in range(64):
        size = SIZE - BLOCK if number % 3 else SIZE - BLOCK - 100
        data = memoryview(aligned)[:size] if number % 2 else bytes(aligned[:size])
        pieces.append((number * SIZE + (50 if number % 5 == 0 else 0), data))
    for offset, data in pieces:
        expected[offset : offset + len(data)] = data
    with open_disk(path, Access.WRITE) as disk, ThreadPoolExecutor(8) as pool:
        disk.write_past_cache()
        for _ in range(5):
            list(pool.map(lambda piece: disk.pwrite(*piece), pieces))
    assert path.read_bytes() == expected
