"""Who uses a device: read from a tree that looks like the kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest

from partitions.devices import (
    DeviceNumber,
    FileIdentity,
    Place,
    block_device,
    node_of,
    partitions_of,
    place_of,
    whole_disk,
)
from partitions.errors import DeviceBusyError, DeviceMountedError, DeviceOpenError
from partitions.in_use import devices_under, mounted_devices, refuse_used
from tests.sim.sysfs import FakeKernel, mount_line

MIB = 1024 * 1024
DISK = DeviceNumber(8, 0)


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    """A disk of 100 MiB with partitions at 1, 11 and 51 MiB."""
    kernel = FakeKernel(tmp_path / "kernel").boot()
    disk = kernel.disk("sda", "8:0", size=100 * MIB)
    kernel.partition(disk, 1, "8:1", first=1 * MIB, size=10 * MIB)
    kernel.partition(disk, 2, "8:2", first=11 * MIB, size=40 * MIB)
    kernel.partition(disk, 3, "8:3", first=51 * MIB, size=40 * MIB)
    return kernel


def _slot(number: int) -> Place:
    first, size = {2: (11, 40), 3: (51, 40)}[number]
    return Place(medium=DISK, first_byte=first * MIB, size=size * MIB)


def _refuse(kernel: FakeKernel, place: Place) -> None:
    refuse_used(place, sys=kernel.sys, proc=kernel.proc)


def test_what_nobody_uses_is_free(kernel: FakeKernel) -> None:
    kernel.mounts(mount_line("8:1", "/boot"), mount_line("0:21", "/proc"))
    _refuse(kernel, _slot(2))


@pytest.mark.parametrize("number", ["8:3", "8:0"], ids=["the partition", "the whole disk"])
def test_what_is_mounted_is_refused(kernel: FakeKernel, number: str) -> None:
    kernel.mounts(mount_line("8:1", "/boot"), mount_line(number, "/mnt/with\\040blank"))
    with pytest.raises(DeviceMountedError, match="is mounted on /mnt/with blank") as caught:
        _refuse(kernel, _slot(3))
    assert (caught.value.code, caught.value.exit_status) == ("device-mounted", 3)


def test_a_slot_under_a_mounted_verity_device_is_refused_as_mounted(kernel: FakeKernel) -> None:
    mapped = kernel.disk("dm-0", "254:0", size=39 * MIB)
    above = kernel.disk("dm-1", "254:1", size=39 * MIB)
    kernel.hold(mapped, kernel.sys / "dev/block/8:2")
    kernel.hold(above, mapped)
    kernel.mounts(mount_line("254:1", "/usr"))
    with pytest.raises(DeviceMountedError, match="sdap2 is in use: dm-1 is mounted on /usr"):
        _refuse(kernel, _slot(2))
    _refuse(kernel, _slot(3))


def test_a_held_device_that_is_not_mounted_is_busy(kernel: FakeKernel) -> None:
    kernel.hold(kernel.disk("md0", "9:0", size=39 * MIB), kernel.sys / "dev/block/8:2")
    with pytest.raises(DeviceBusyError, match="sdap2 is held by md0") as caught:
        _refuse(kernel, _slot(2))
    assert caught.value.code == "device-busy"


def test_a_disk_file_is_refused_while_a_loop_device_over_it_is_mounted(
    kernel: FakeKernel, tmp_path: Path
) -> None:
    file = tmp_path / "disk.img"
    file.write_bytes(bytes(4 * MIB))
    loop = kernel.loop("loop0", "7:0", file)
    kernel.partition(loop, 1, "259:0", first=1 * MIB, size=1 * MIB)
    kernel.partition(loop, 2, "259:1", first=2 * MIB, size=1 * MIB)
    kernel.mounts(mount_line("259:0", "/mnt"))
    mounted = place_of(file.stat(), offset=1 * MIB, size=MIB)
    with pytest.raises(DeviceMountedError, match="loop0p1 is in use"):
        _refuse(kernel, mounted)
    _refuse(kernel, place_of(file.stat(), offset=2 * MIB, size=MIB))


def test_a_loop_device_that_begins_inside_a_disk_file_covers_the_rest(
    kernel: FakeKernel, tmp_path: Path
) -> None:
    file = tmp_path / "disk.img"
    file.write_bytes(bytes(4 * MIB))
    kernel.loop("loop3", "7:3", file, offset=2 * MIB)
    kernel.mounts(mount_line("7:3", "/mnt"))
    _refuse(kernel, place_of(file.stat(), offset=1 * MIB, size=MIB))
    for first, size in ((1, 2), (2, 1), (3, 1)):
        with pytest.raises(DeviceMountedError):
            _refuse(kernel, place_of(file.stat(), offset=first * MIB, size=size * MIB))


def test_loop_devices_over_other_or_deleted_files_do_not_matter(
    kernel: FakeKernel, tmp_path: Path
) -> None:
    file, other = tmp_path / "disk.img", tmp_path / "other.img"
    for one in (file, other):
        one.write_bytes(bytes(MIB))
    kernel.loop("loop0", "7:0", other)
    gone = kernel.loop("loop1", "7:1", file)
    (gone / "loop/backing_file").write_text(f"{file} (deleted)\n")
    kernel.mounts(mount_line("7:0", "/mnt"))
    _refuse(kernel, place_of(file.stat(), offset=0, size=MIB))


def test_a_mount_without_a_node_of_its_own_is_no_trouble(kernel: FakeKernel) -> None:
    kernel.mounts(mount_line("0:30", "/mnt", source="/dev/gone"), mount_line("0:31", "/x"))
    assert set(mounted_devices(proc=kernel.proc)) == {DeviceNumber(0, 30), DeviceNumber(0, 31)}


def test_swap_counts_as_use() -> None:
    lines = mounted_devices(proc=Path("/proc"))  # the real files are read without trouble
    assert all(isinstance(words, str) for words in lines.values())


def test_a_missing_list_of_swaps_is_an_empty_one(kernel: FakeKernel) -> None:
    (kernel.proc / "swaps").unlink()
    assert mounted_devices(proc=kernel.proc) == {}


def test_what_a_mapped_device_stands_on_is_found_to_the_ground(kernel: FakeKernel) -> None:
    mapped = kernel.disk("dm-0", "254:0", size=39 * MIB)
    kernel.hold(mapped, kernel.sys / "dev/block/8:2", kernel.sys / "dev/block/8:3")
    under = devices_under(DeviceNumber(254, 0), sys=kernel.sys)
    assert [device.number for device in under] == [(254, 0), (8, 2), (8, 3)]
    assert list(devices_under(DeviceNumber(0, 42), sys=kernel.sys)) == []


def test_a_partition_knows_its_disk_its_place_and_its_node(kernel: FakeKernel) -> None:
    device = block_device(DeviceNumber(8, 2), sys=kernel.sys)
    assert device.place == _slot(2)
    assert device.partition == 2
    assert node_of(device) == Path("/dev/sdap2")
    disk = block_device(DISK, sys=kernel.sys)
    assert [one.partition for one in partitions_of(disk)] == [1, 2, 3]


def test_a_number_that_the_kernel_does_not_know_is_an_error(kernel: FakeKernel) -> None:
    with pytest.raises(DeviceOpenError, match="no block device 8:77"):
        block_device(DeviceNumber(8, 77), sys=kernel.sys)


def test_places_overlap_only_on_the_same_medium() -> None:
    one = Place(medium=FileIdentity(1, 2), first_byte=100, size=100)
    assert one.overlaps(Place(medium=FileIdentity(1, 2), first_byte=199, size=1))
    assert not one.overlaps(Place(medium=FileIdentity(1, 2), first_byte=200, size=1))
    assert not one.overlaps(Place(medium=FileIdentity(1, 2), first_byte=0, size=100))
    assert not one.overlaps(Place(medium=FileIdentity(1, 3), first_byte=100, size=100))
    assert not one.overlaps(Place(medium=DeviceNumber(1, 2), first_byte=100, size=100))


def test_the_disk_of_a_disk_file_is_itself(tmp_path: Path) -> None:
    file = tmp_path / "disk.img"
    file.touch()
    assert whole_disk(file) == file
    with pytest.raises(DeviceOpenError, match="No such file"):
        whole_disk(tmp_path / "nowhere")
