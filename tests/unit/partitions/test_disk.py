"""A disk file through the real kernel: locks, zeros, reading past the page cache."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from partitions.disk import Access, CacheBypass, acquire_disk, open_disk
from partitions.errors import (
    DeviceBusyError,
    DeviceOpenError,
    DeviceReadError,
    DeviceWriteError,
)

KIB = 1024


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(256 * KIB + 100))
    return path


@pytest.mark.parametrize("access", [Access.READ, Access.READ_PAST_CACHE])
@pytest.mark.parametrize(
    ("offset", "size"), [(0, 512), (512, 512), (1000, 9000), (256 * KIB, 100), (0, 0)]
)
def test_any_range_can_be_read_past_the_cache_too(
    path: Path, access: Access, offset: int, size: int
) -> None:
    with open_disk(path, access) as disk:
        assert disk.pread(offset, size) == path.read_bytes()[offset : offset + size]


@pytest.mark.parametrize("access", [Access.READ, Access.READ_PAST_CACHE])
def test_reading_past_the_end_names_file_and_byte(path: Path, access: Access) -> None:
    end = 256 * KIB + 100
    with (
        open_disk(path, access) as disk,
        pytest.raises(DeviceReadError, match=f"{path} ends at {end}, before byte {end + 1}"),
    ):
        disk.pread(end - 10, 11)


def test_a_file_system_that_refuses_o_direct_has_its_cached_pages_dropped(path: Path) -> None:
    with open_disk(path, Access.READ) as disk:
        disk.bypass = CacheBypass.DROP
        assert disk.pread(100, 5000) == path.read_bytes()[100:5100]


def test_a_file_system_that_refuses_o_direct_is_noticed_at_opening() -> None:
    with open_disk(Path("/sys/kernel/uevent_seqnum"), Access.READ_PAST_CACHE) as disk:
        assert disk.bypass is CacheBypass.DROP


def test_a_file_without_a_size_is_no_disk() -> None:
    with pytest.raises(DeviceOpenError, match="/proc/version cannot be opened: Invalid argument"):
        acquire_disk(Path("/proc/version"), Access.READ)


def test_a_write_is_whole_and_where_it_should_be(path: Path) -> None:
    before = path.read_bytes()
    with open_disk(path, Access.WRITE) as disk:
        disk.pwrite(5000, memoryview(b"0123456789")[2:])
        disk.sync()
    assert path.read_bytes() == before[:5000] + b"23456789" + before[5008:]


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, 256 * KIB), (4096, 8192), (1, 4094), (100, 20_000), (5, 1), (4096, 0)],
)
def test_a_zeroed_range_reads_as_zeros_and_nothing_else_changes(
    path: Path, offset: int, size: int
) -> None:
    before = path.read_bytes()
    with open_disk(path, Access.WRITE) as disk:
        disk.zero(offset, size)
        disk.sync()
    assert path.read_bytes() == before[:offset] + bytes(size) + before[offset + size :]


def test_zeroing_a_file_gives_its_space_back(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    with open_disk(path, Access.WRITE) as disk:
        disk.zero(0, 256 * KIB)
    assert path.stat().st_blocks * 512 <= 16 * KIB


def test_zeros_are_written_where_the_kernel_cannot_punch_holes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unable(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("partitions.zeroing._punch", unable)
    before = path.read_bytes()
    with open_disk(path, Access.WRITE) as disk:
        disk.zero(100, 200_000)
    assert path.read_bytes() == before[:100] + bytes(200_000) + before[200_100:]


def test_two_parts_of_a_disk_may_be_locked_together_but_no_byte_twice(path: Path) -> None:
    with open_disk(path, Access.WRITE) as one, open_disk(path, Access.WRITE) as other:
        one.lock_range(0, 4096)
        other.lock_range(4096, 4096)
        with pytest.raises(DeviceBusyError, match="being written by another program at byte 4000"):
            other.lock_range(4000, 100)


def test_a_closed_disk_is_free_again(path: Path) -> None:
    first = acquire_disk(path, Access.WRITE)
    first.lock()
    first.lock_range(0, 10)
    first.close()
    with open_disk(path, Access.WRITE) as disk:
        disk.lock(patience_s=0)
        disk.lock_range(0, 10)


def test_a_character_device_is_no_disk() -> None:
    with pytest.raises(DeviceOpenError, match="neither a block device nor a disk file"):
        acquire_disk(Path("/dev/full"), Access.WRITE)


def test_a_failing_write_is_told_with_path_and_byte(path: Path) -> None:
    with open_disk(path, Access.READ) as disk, pytest.raises(DeviceWriteError) as caught:
        disk.pwrite(77, b"x")
    assert str(caught.value) == f"writing {path} at byte 77 failed: Bad file descriptor"
    assert caught.value.code == "device-write"


def test_a_pipe_does_not_hang_who_opens_it(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(DeviceOpenError):
        acquire_disk(pipe, Access.READ)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_disk_without_rights_is_told_as_such(path: Path) -> None:
    path.chmod(0)
    with pytest.raises(DeviceOpenError, match="Permission denied"):
        acquire_disk(path, Access.READ)
