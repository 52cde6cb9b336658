"""The kernel's view of block devices: which disk a partition is on, where, under which node.

Read from sysfs; the roots are arguments, so that tests lay out a tree of their own. Who uses a
device is in `in_use.py`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from partitions.errors import DeviceOpenError

_SYSFS_SECTOR: Final = 512  # sysfs counts in these, whatever the device's sector size
SYS: Final = Path("/sys")
PROC: Final = Path("/proc")
DEV: Final = Path("/dev")


class DeviceNumber(NamedTuple):
    """A block device, as the kernel numbers it."""

    major: int
    minor: int

    @property
    def words(self) -> str:
        """How sysfs and mountinfo write it."""
        return f"{self.major}:{self.minor}"


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """A file, whatever its names are. No tuple: it must never equal a device's number."""

    st_dev: int
    st_ino: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A run of bytes on one medium, by which two names for the same bytes are recognised.

    Attributes:
        medium: a whole disk (never a partition of it), or a disk file.
        first_byte: where it begins there.
        size: how many bytes it has.
    """

    medium: DeviceNumber | FileIdentity
    first_byte: int
    size: int

    def overlaps(self, other: Place) -> bool:
        """Tell whether they have a byte in common."""
        return (
            self.medium == other.medium
            and self.first_byte < other.first_byte + other.size
            and other.first_byte < self.first_byte + self.size
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelDevice:
    """A block device as sysfs shows it.

    Attributes:
        number: its device number.
        folder: its folder in sysfs.
        place: the bytes it covers on its whole disk.
        partition: its number on that disk, 0 for the disk itself.
    """

    number: DeviceNumber
    folder: Path
    place: Place
    partition: int


def block_device(number: DeviceNumber, *, sys: Path = SYS) -> KernelDevice:
    """Look a device up by its number.

    Raises:
        DeviceOpenError: the kernel has none of that number.
    """
    folder = (sys / "dev/block" / number.words).resolve()
    try:
        return _device(folder, number)
    except OSError as error:
        raise DeviceOpenError(f"the kernel knows no block device {number.words}") from error


def _device(folder: Path, number: DeviceNumber) -> KernelDevice:
    size = _number(folder / "size") * _SYSFS_SECTOR
    if not (folder / "partition").exists():
        place = Place(medium=number, first_byte=0, size=size)
        return KernelDevice(number=number, folder=folder, place=place, partition=0)
    return KernelDevice(
        number=number,
        folder=folder,
        place=Place(
            medium=parse_number((folder.parent / "dev").read_text()),
            first_byte=_number(folder / "start") * _SYSFS_SECTOR,
            size=size,
        ),
        partition=_number(folder / "partition"),
    )


def _number(file: Path) -> int:
    return int(file.read_text())


def parse_number(text: str) -> DeviceNumber:
    """Read "MAJOR:MINOR"."""
    major, _, minor = text.strip().partition(":")
    return DeviceNumber(int(major), int(minor))


def partitions_of(disk: KernelDevice) -> Iterator[KernelDevice]:
    """Yield the partitions of a whole disk that the kernel knows."""
    for file in sorted(disk.folder.glob("*/partition")):
        yield _device(file.parent, parse_number((file.parent / "dev").read_text()))


def node_of(device: KernelDevice, *, dev: Path = DEV) -> Path:
    """Return the device's node under /dev, by the name that the kernel gave it."""
    lines = (device.folder / "uevent").read_text().splitlines()
    names = (line.partition("=")[2] for line in lines if line.startswith("DEVNAME="))
    return dev / next(names, device.folder.name)


def device_number(status: os.stat_result) -> DeviceNumber | None:
    """Return the number of the block device whose node this is, or nothing for another file."""
    if not stat.S_ISBLK(status.st_mode):
        return None
    return DeviceNumber(os.major(status.st_rdev), os.minor(status.st_rdev))


def place_of(status: os.stat_result, *, offset: int, size: int, sys: Path = SYS) -> Place:
    """Say where bytes of an open disk, partition or file really are.

    Args:
        status: of the file or node, best by fstat of the open descriptor.
        offset: first byte within it.
        size: how many bytes.
        sys: where sysfs is.

    Raises:
        DeviceOpenError: the kernel does not know the device.
    """
    number = device_number(status)
    if number is None:
        medium = FileIdentity(status.st_dev, status.st_ino)
        return Place(medium=medium, first_byte=offset, size=size)
    device = block_device(number, sys=sys)
    return Place(medium=device.place.medium, first_byte=device.place.first_byte + offset, size=size)


def whole_disk(path: Path) -> Path:
    """Return the disk that `path` means: itself, or the disk that a partition node is on.

    Raises:
        DeviceOpenError: it does not exist.
    """
    try:
        number = device_number(path.stat())
    except OSError as error:
        raise DeviceOpenError.because(path, error) from error
    if number is None:
        return path
    device = block_device(number)
    if not device.partition:
        return path
    parent = parse_number((device.folder.parent / "dev").read_text())
    return node_of(block_device(parent))
