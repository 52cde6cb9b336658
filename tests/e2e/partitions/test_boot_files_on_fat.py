"""Boot files on the file system that they are meant for, and what fsck.vfat thinks of it after."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from partitions.boot_files import has_length, remove_file
from partitions.booted import Booted
from partitions.errors import DeviceBusyError, DeviceTooSmallError, SlotBootedError
from partitions.readback import verify
from partitions.slots import Region
from partitions.slots import region_of_file as region
from partitions.writer import RegionWriter

pytestmark = pytest.mark.e2e

MIB = 1024 * 1024
KERNEL = os.urandom(3 * MIB + 17)
NOTHING = Booted.nothing()


@pytest.fixture(params=[("16", "2"), ("32", "1")], ids=["FAT16", "FAT32"])
def boot(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A mounted FAT of 48 MiB; whatever a test did with it, fsck finds nothing to mend."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    if shutil.which("mkfs.vfat", path=os.defpath + ":/usr/sbin:/sbin") is None:
        pytest.skip("mkfs.vfat is not installed (package dosfstools)")
    image, folder = tmp_path / "esp.img", tmp_path / "boot"
    image.touch()
    os.truncate(image, 48 * MIB)
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    bits, sectors = request.param
    make = ["mkfs.vfat", "-F", bits, "-s", sectors, str(image)]
    subprocess.run(make, check=True, capture_output=True, env=environment)
    folder.mkdir()
    mount = ["mount", "-t", "vfat", "-o", "loop", str(image), str(folder)]
    done = subprocess.run(mount, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        pytest.skip(f"vfat cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True, env=environment)
    check = ["fsck.vfat", "-n", str(image)]
    found = subprocess.run(check, check=False, capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stdout


def write(path: Path, data: bytes, booted: Booted = NOTHING) -> Region:
    with RegionWriter(region(path).sized(len(data)), booted=booted) as writer:
        writer.write_at(0, data)
        writer.sync()
    return region(path)


def test_a_file_is_made_written_and_read_back_past_the_cache(boot: Path) -> None:
    kernel = write(boot / "bascule/b/linux", KERNEL)
    verify(kernel, size=len(KERNEL), sha256=hashlib.sha256(KERNEL).digest())
    assert has_length(kernel, len(KERNEL))


@pytest.mark.parametrize("size", [1, 100_000, 5 * MIB])
def test_it_is_replaced_by_a_smaller_and_a_larger_one(boot: Path, size: int) -> None:
    write(boot / "b/linux", KERNEL)
    new = os.urandom(size)
    write(boot / "b/linux", new)
    assert (boot / "b/linux").read_bytes() == new


def test_a_full_one_refuses_before_the_first_byte_and_keeps_its_room(boot: Path) -> None:
    write(boot / "a/linux", KERNEL)
    wanted = region(boot / "b/linux")
    assert wanted.room is not None
    with pytest.raises(DeviceTooSmallError, match="finds no room"):
        RegionWriter(wanted.sized(wanted.room.free + 1), booted=NOTHING)
    assert not (boot / "b/linux").exists()
    largest = wanted.room.free - 4 * wanted.room.block  # its folder takes room as well
    RegionWriter(wanted.sized(largest), booted=NOTHING).close()
    remove_file(wanted, NOTHING)
    assert (boot / "a/linux").read_bytes() == KERNEL


@pytest.mark.parametrize("name", ["A/LINUX-STABLE", "a/Linux-Stable", "a/LINUX-~1"])
def test_the_booted_slots_file_is_not_written_by_any_of_its_names(boot: Path, name: str) -> None:
    booted = Booted.of_regions([write(boot / "a/linux-stable", KERNEL)])
    assert (boot / name).exists(), "FAT knows it by this name, too"
    with pytest.raises(SlotBootedError):
        RegionWriter(region(boot / name).sized(5), booted=booted)
    assert (boot / "a/linux-stable").read_bytes() == KERNEL


def test_a_second_writer_waits_outside(boot: Path) -> None:
    with (
        RegionWriter(region(boot / "linux").sized(4096), booted=NOTHING),
        pytest.raises(DeviceBusyError),
    ):
        RegionWriter(region(boot / "linux").sized(4096), booted=NOTHING)
