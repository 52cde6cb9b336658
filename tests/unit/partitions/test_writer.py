"""Writing into a region of a disk file, and reading back what the medium holds."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import threading
from pathlib import Path

import pytest

from partitions.booted import Booted
from partitions.disk import CacheBypass
from partitions.errors import (
    DeviceBusyError,
    DeviceOpenError,
    DeviceReadError,
    DeviceTooSmallError,
    ReadbackMismatchError,
    SlotBootedError,
)
from partitions.readback import digest_of, read_back, verify
from partitions.slots import Region
from partitions.writer import Medium, RegionWriter

MIB = 1024 * 1024
NOTHING = Booted.nothing()
CONTENT = random.Random(8).randbytes(8 * MIB)


def _region(path: Path, offset: int, size: int, name: str = "usr-b") -> Region:
    return Region(path=path, offset=offset, size=size, partuuid=f"uuid-of-{name}", label=name)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def region(path: Path) -> Region:
    return _region(path, 3 * MIB + 512, 2 * MIB + 1536)


def test_writes_land_within_the_region_and_nowhere_else(path: Path, region: Region) -> None:
    before = path.read_bytes()
    data = os.urandom(region.size)
    with RegionWriter(region, booted=NOTHING) as writer:
        writer.write_at(MIB, memoryview(data)[MIB:])
        writer.write_at(0, data[:MIB])
        writer.sync()
    end = region.offset + region.size
    assert path.read_bytes() == before[: region.offset] + data + before[end:]


def test_a_zeroed_range_reads_as_zeros_within_the_region(path: Path, region: Region) -> None:
    before = path.read_bytes()
    with RegionWriter(region, booted=NOTHING) as writer:
        writer.zero_at(0, region.size)
        writer.sync()
    end = region.offset + region.size
    assert path.read_bytes() == before[: region.offset] + bytes(region.size) + before[end:]


@pytest.mark.parametrize("beyond", [1, MIB, 2**62])
def test_not_a_byte_is_written_past_the_regions_end(
    path: Path, region: Region, beyond: int
) -> None:
    before = path.read_bytes()
    with RegionWriter(region, booted=NOTHING) as writer:
        with pytest.raises(DeviceTooSmallError, match="do not fit partition usr-b"):
            writer.write_at(region.size - 10 + beyond, b"0123456789")
        with pytest.raises(DeviceTooSmallError):
            writer.zero_at(0, region.size + beyond)
    assert path.read_bytes() == before


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, -1)])
def test_a_negative_place_is_a_bug_of_the_caller(region: Region, offset: int, length: int) -> None:
    with (
        RegionWriter(region, booted=NOTHING) as writer,
        pytest.raises(ValueError, match="negative"),
    ):
        writer.zero_at(offset, length)


def test_a_closed_writer_writes_no_more_and_may_be_closed_again(region: Region) -> None:
    writer = RegionWriter(region, booted=NOTHING)
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="the region is closed"):
        writer.write_at(0, b"x")
    with pytest.raises(ValueError, match="the region is closed"):
        writer.zero_at(0, 1)
    with pytest.raises(ValueError, match="the region is closed"):
        writer.sync()


def test_the_booted_slot_is_not_opened_whatever_it_is_called(path: Path, region: Region) -> None:
    before = path.read_bytes()
    alias = path.with_name("alias.img")
    os.link(path, alias)
    same_bytes = _region(alias, region.offset, region.size, "other-name")
    for booted in (
        Booted(partuuids=frozenset({region.partuuid})),
        Booted.of_regions([same_bytes]),
        Booted.of_regions([_region(path, 0, region.offset + 1, "overlaps")]),
    ):
        with pytest.raises(SlotBootedError) as caught:
            RegionWriter(region, booted=booted)
        assert (caught.value.code, caught.value.exit_status) == ("slot-booted", 3)
    assert path.read_bytes() == before


def test_the_slot_beside_the_booted_one_is_opened(path: Path, region: Region) -> None:
    below = _region(path, 0, region.offset, "usr-a")
    RegionWriter(region, booted=Booted.of_regions([below])).close()


def test_two_parts_of_a_slot_on_one_disk_file_are_open_together(path: Path) -> None:
    usr, kernel = _region(path, 0, 4 * MIB), _region(path, 4 * MIB, MIB, "kernel-b")
    with (
        RegionWriter(usr, booted=NOTHING) as one,
        RegionWriter(kernel, booted=NOTHING) as other,
    ):
        one.write_at(0, b"usr")
        other.write_at(0, b"kernel")
    assert path.read_bytes()[4 * MIB : 4 * MIB + 6] == b"kernel"


def test_a_second_writer_of_the_same_bytes_waits_outside(region: Region) -> None:
    with (
        RegionWriter(region, booted=NOTHING),
        pytest.raises(DeviceBusyError, match="being written by another program"),
    ):
        RegionWriter(region, booted=NOTHING)
    RegionWriter(region, booted=NOTHING).close()


def test_a_disk_file_shorter_than_the_region_is_refused(path: Path) -> None:
    with pytest.raises(DeviceTooSmallError, match=f"{path} has 8388608 bytes"):
        RegionWriter(_region(path, 7 * MIB, 2 * MIB), booted=NOTHING)


def test_a_missing_disk_file_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(DeviceOpenError):
        RegionWriter(_region(tmp_path / "nowhere", 0, MIB), booted=NOTHING)
    assert not (tmp_path / "nowhere").exists()


def test_several_threads_may_write_to_different_places(path: Path) -> None:
    data = os.urandom(8 * MIB)
    with RegionWriter(_region(path, 0, 8 * MIB), booted=NOTHING) as writer:
        threads = [
            threading.Thread(target=writer.write_at, args=(at, data[at : at + MIB]))
            for at in range(0, 8 * MIB, MIB)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        writer.sync()
    assert path.read_bytes() == data


class Recorder:
    """A medium that remembers; what a test of power cuts gives to a writer."""

    def __init__(self) -> None:
        self.log: list[tuple[str, int, int]] = []

    def pwrite(self, offset: int, data: bytes | memoryview) -> None:
        self.log.append(("write", offset, len(data)))

    def zero(self, offset: int, size: int) -> None:
        self.log.append(("zero", offset, size))

    def sync(self) -> None:
        self.log.append(("sync", 0, 0))

    def close(self) -> None:
        self.log.append(("close", 0, 0))


def test_what_is_written_can_be_recorded(region: Region) -> None:
    recorder = Recorder()

    def claim(_region: Region, _booted: Booted) -> Medium:
        return recorder

    with RegionWriter(region, booted=NOTHING, claim=claim) as writer:
        writer.write_at(10, b"abc")
        writer.zero_at(20, 5)
        writer.sync()
    at = region.offset
    assert recorder.log == [
        ("write", at + 10, 3),
        ("zero", at + 20, 5),
        ("sync", 0, 0),
        ("close", 0, 0),
    ]


@pytest.fixture(params=[CacheBypass.DIRECT, CacheBypass.DROP], ids=lambda bypass: bypass.value)
def bypass(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways past the page cache; a file system that refuses O_DIRECT is rare."""
    if request.param is CacheBypass.DROP:
        monkeypatch.setattr("partitions.disk._reads_directly", lambda _disk: False)


@pytest.mark.usefixtures("bypass")
@pytest.mark.parametrize("size", [0, 1, 512, 4096, MIB, MIB + 1, 2 * MIB + 1536])
@pytest.mark.parametrize("chunk", [4096, MIB])
def test_what_is_read_back_is_what_lies_there(
    path: Path, region: Region, size: int, chunk: int
) -> None:
    expected = path.read_bytes()[region.offset : region.offset + size]
    assert b"".join(bytes(view) for view in read_back(region, size, chunk=chunk)) == expected
    assert digest_of(region, size) == hashlib.sha256(expected).digest()


def test_a_reader_that_stops_early_leaves_nothing_open(region: Region) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    views = read_back(region, region.size, chunk=4096)
    next(views)
    views.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_one_changed_byte_is_noticed(path: Path, region: Region) -> None:
    data = os.urandom(region.size)
    with RegionWriter(region, booted=NOTHING) as writer:
        writer.write_at(0, data)
        writer.sync()
    digest = hashlib.sha256(data).digest()
    verify(region, size=region.size, sha256=digest)
    with path.open("r+b") as file:
        file.seek(region.offset + region.size - 1)
        file.write(bytes([data[-1] ^ 1]))
    with pytest.raises(ReadbackMismatchError, match=digest.hex()) as caught:
        verify(region, size=region.size, sha256=digest)
    assert caught.value.code == "readback-mismatch"


def test_more_than_the_region_cannot_be_read_back(region: Region) -> None:
    with pytest.raises(DeviceTooSmallError):
        digest_of(region, region.size + 1)


@pytest.mark.usefixtures("bypass")
def test_a_disk_that_ends_early_is_told_with_path_and_byte(path: Path, region: Region) -> None:
    os.truncate(path, region.offset + 5000)
    with pytest.raises(DeviceReadError, match=f"{path} ends at {region.offset + 5000}, before"):
        digest_of(region, region.size)


@pytest.mark.parametrize("chunk", [0, -4096, 1000])
def test_chunks_are_multiples_of_a_page(region: Region, chunk: int) -> None:
    with pytest.raises(ValueError, match="not a multiple of 4096"):
        digest_of(region, 10, chunk=chunk)


def test_memory_does_not_grow_with_the_image(tmp_path: Path) -> None:
    path = tmp_path / "large.img"
    size = 256 * MIB
    path.touch()
    os.truncate(path, size)
    region = _region(path, 0, size)
    piece = os.urandom(MIB)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with RegionWriter(region, booted=NOTHING) as writer:
        for at in range(0, 64 * MIB, MIB):
            writer.write_at(at, piece)
        writer.zero_at(64 * MIB, size - 64 * MIB)
        writer.sync()
    digest_of(region, size)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 16 * MIB, f"{grown / MIB:.1f} MiB"
