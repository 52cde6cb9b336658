"""Slots on real block devices: partition nodes, mounts, exclusive opening, the page cache."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from partitions.boot import Places, open_boot_control
from partitions.booted import Booted, booted_slot, where
from partitions.devices import whole_disk
from partitions.disk_image import create_disk
from partitions.errors import (
    DeviceBusyError,
    DeviceMountedError,
    DeviceTooSmallError,
    PartitionStaleError,
    ReadbackMismatchError,
    SlotBootedError,
)
from partitions.layout import parse_layout
from partitions.readback import digest_of, verify
from partitions.slots import PartRef, Region, Slot, SlotLayout, resolve
from partitions.table import read_table, read_table_past_cache
from partitions.writer import RegionWriter
from tests.sim.gpt_tools import (
    bare_loop_device,
    loop_device,
    mounted,
    run,
    sgdisk_is_content,
)

pytestmark = pytest.mark.e2e

MIB = 1024 * 1024
A, B = Slot.A, Slot.B
NOTHING = Booted.nothing()
LAYOUT: SlotLayout = {
    slot: {
        "usr": PartRef(label=f"usr-{slot.value}"),
        "kernel": PartRef(label=f"kernel-{slot.value}"),
    }
    for slot in Slot
}
Regions = Mapping[Slot, Mapping[str, Region]]


def _make(path: Path, *, sector_size: int) -> Path:
    rows = [(f"{part}-{slot}", slot, part) for slot in "ab" for part in ("usr", "kernel")]
    text = f"sector_size = {sector_size}\n" + "".join(
        f'[[partition]]\nlabel = "{label}"\nrole = "slot-{slot}"\npart = "{part}"\n'
        f'size = "{"16MiB" if part == "usr" else "2MiB"}"\n'
        for label, slot, part in rows
    )
    image = path.with_name("first")
    image.write_bytes(b"first")
    create_disk(parse_layout(text.encode(), name="x"), path, images={"usr": image, "kernel": image})
    return path


@pytest.fixture(params=[512, 4096])
def sector_size(request: pytest.FixtureRequest) -> int:
    size: int = request.param
    return size


@pytest.fixture
def file(tmp_path: Path, sector_size: int) -> Path:
    return _make(tmp_path / "disk.img", sector_size=sector_size)


@pytest.fixture
def device(file: Path, sector_size: int) -> Iterator[Path]:
    with loop_device(file, sector_size=sector_size) as device:
        yield device


def _write(region: Region, data: bytes) -> None:
    with RegionWriter(region, booted=NOTHING) as writer:
        writer.write_at(0, data)
        writer.sync()


def test_the_kernels_partition_nodes_are_found(device: Path) -> None:
    regions = resolve(device, LAYOUT)
    assert [parts["usr"].path for parts in regions.values()] == [
        Path(f"{device}p1"),
        Path(f"{device}p3"),
    ]
    assert {parts["usr"].offset for parts in regions.values()} == {0}
    assert resolve(Path(f"{device}p2"), LAYOUT) == regions  # any partition names its disk
    assert whole_disk(Path(f"{device}p2")) == device


def test_an_image_goes_through_the_node_and_is_read_back_from_the_medium(
    device: Path, file: Path
) -> None:
    region = resolve(device, LAYOUT)[B]["usr"]
    data = random.Random(1).randbytes(region.size)
    _write(region, data)
    verify(region, size=region.size, sha256=hashlib.sha256(data).digest())
    on_file = resolve(file, LAYOUT)[B]["usr"]
    assert (on_file.path, on_file.size) == (file, region.size)
    assert digest_of(on_file, region.size) == hashlib.sha256(data).digest()


def test_a_change_beneath_the_device_is_seen_although_the_cache_still_holds_the_old(
    device: Path, file: Path
) -> None:
    region = resolve(device, LAYOUT)[B]["usr"]
    data = random.Random(2).randbytes(region.size)
    _write(region, data)
    beneath = resolve(file, LAYOUT)[B]["usr"].offset + 5 * MIB + 17
    digest = hashlib.sha256(data).digest()
    with region.path.open("rb") as cached:  # the kernel forgets a device's pages with its last user
        assert hashlib.sha256(cached.read()).digest() == digest
        with file.open("r+b") as disk:
            disk.seek(beneath)
            disk.write(bytes([data[5 * MIB + 17] ^ 0x01]))
        cached.seek(0)
        assert hashlib.sha256(cached.read()).digest() == digest  # so a cached reader believes
        with pytest.raises(ReadbackMismatchError):
            verify(region, size=region.size, sha256=digest)


def test_a_zeroed_range_of_a_device_reads_as_zeros(device: Path) -> None:
    region = resolve(device, LAYOUT)[B]["usr"]
    data = random.Random(3).randbytes(region.size)
    _write(region, data)
    with RegionWriter(region, booted=NOTHING) as writer:
        writer.zero_at(MIB + 1, 3 * MIB)
        writer.sync()
    expected = data[: MIB + 1] + bytes(3 * MIB) + data[4 * MIB + 1 :]
    verify(region, size=region.size, sha256=hashlib.sha256(expected).digest())


def test_a_mounted_slot_is_refused_by_its_node_and_by_its_disk_file(
    device: Path, file: Path, tmp_path: Path
) -> None:
    region, on_file = resolve(device, LAYOUT)[B]["usr"], resolve(file, LAYOUT)[B]["usr"]
    with mounted(region.path, tmp_path / "mnt") as folder:
        for one in (region, on_file):
            with pytest.raises(DeviceMountedError, match=f"is mounted on {folder}") as caught:
                RegionWriter(one, booted=NOTHING)
            assert (caught.value.code, caught.value.exit_status) == ("device-mounted", 3)
        # The slot beside it is free, although its disk is in use.
        RegionWriter(resolve(device, LAYOUT)[A]["usr"], booted=NOTHING).close()
    RegionWriter(region, booted=NOTHING).close()


def test_swap_is_refused(device: Path) -> None:
    region = resolve(device, LAYOUT)[B]["usr"]
    run("mkswap", region.path)
    try:
        run("swapon", region.path)
    except AssertionError as error:
        pytest.skip(f"no swap here: {error}")
    try:
        with pytest.raises(DeviceMountedError, match="is swap"):
            RegionWriter(region, booted=NOTHING)
    finally:
        run("swapoff", region.path)


def test_the_system_that_runs_is_found_by_its_mount_and_never_written(
    device: Path, tmp_path: Path
) -> None:
    regions = resolve(device, LAYOUT)
    with mounted(regions[A]["usr"].path, tmp_path / "root") as folder:
        booted = Booted.of_mounts([folder])
    assert booted_slot(regions, booted) is A
    before = digest_of(regions[A]["usr"], regions[A]["usr"].size)
    whole = Region(
        path=device,
        offset=where(regions[A]["usr"]).first_byte,
        size=regions[A]["usr"].size,
        partuuid="another name",
        label="usr-a",
    )
    for one in (regions[A]["usr"], whole):
        with pytest.raises(SlotBootedError):
            RegionWriter(one, booted=booted)
    assert digest_of(regions[A]["usr"], regions[A]["usr"].size) == before
    RegionWriter(regions[B]["usr"], booted=booted).close()


def test_a_partition_is_opened_by_one_writer_only(device: Path) -> None:
    region = resolve(device, LAYOUT)[B]["usr"]
    with RegionWriter(region, booted=NOTHING):
        with pytest.raises(DeviceBusyError, match="held by the kernel or another program"):
            RegionWriter(region, booted=NOTHING)
        RegionWriter(resolve(device, LAYOUT)[B]["kernel"], booted=NOTHING).close()


def test_a_partition_shorter_than_its_region_is_refused(device: Path) -> None:
    region = resolve(device, LAYOUT)[B]["kernel"]
    large = Region(
        path=region.path, offset=0, size=region.size + 4096, partuuid=region.partuuid, label="x"
    )
    with pytest.raises(DeviceTooSmallError):
        RegionWriter(large, booted=NOTHING)


def test_a_device_whose_partitions_the_kernel_does_not_know_is_written_at_offsets(
    file: Path, sector_size: int
) -> None:
    with bare_loop_device(file, sector_size=sector_size) as device:
        run("partx", "--delete", device, check=False)
        regions = resolve(device, LAYOUT)
        usr, kernel = regions[B]["usr"], regions[B]["kernel"]
        assert (usr.path, usr.offset) == (device, resolve(file, LAYOUT)[B]["usr"].offset)
        with (
            RegionWriter(usr, booted=NOTHING) as one,
            RegionWriter(kernel, booted=NOTHING) as other,
        ):
            one.write_at(0, b"usr")
            other.write_at(0, b"kernel")
            one.sync()
            with pytest.raises(DeviceBusyError):
                RegionWriter(usr, booted=NOTHING)
        assert digest_of(kernel, 6) == hashlib.sha256(b"kernel").digest()
        booted = Booted.of_regions([usr])
        with pytest.raises(SlotBootedError):
            RegionWriter(usr, booted=booted)


def test_partitions_that_the_kernel_remembers_otherwise_are_refused(
    file: Path, sector_size: int
) -> None:
    with loop_device(file, sector_size=sector_size) as device:
        run("partx", "--delete", "--nr", "3", device)
        run("addpart", device, "3", 19 * MIB // 512, "2048")  # as if it were 1 MiB long
        with pytest.raises(PartitionStaleError, match="the kernel has partition 3"):
            resolve(device, LAYOUT)


def test_the_table_is_written_while_a_partition_of_the_disk_is_mounted(
    device: Path, file: Path, tmp_path: Path
) -> None:
    regions = resolve(device, LAYOUT)
    with mounted(regions[A]["usr"].path, tmp_path / "root"):
        control = open_boot_control("gptprio", Places(disk=device, layout=LAYOUT), booted=A)
        control.arm(B, tries=3)
        assert control.read().target is B
        sgdisk_is_content(device)
    assert open_boot_control("gptprio", Places(disk=file, layout=LAYOUT)).read().target is B


def test_a_table_is_read_back_from_the_medium_and_not_from_the_cache(
    device: Path, file: Path, sector_size: int
) -> None:
    with device.open("rb") as cached:
        cached.read(MIB)
        with file.open("r+b") as disk:
            disk.seek(sector_size)
            disk.write(bytes(sector_size))  # beneath the device, the primary header goes
        assert read_table(device).healthy
        assert not read_table_past_cache(device).healthy
