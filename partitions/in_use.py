"""Who uses a device at the moment: mounts, swap, device-mapper, RAID, and loops over a disk file.

O_EXCL alone does not tell: a dm-verity root keeps its partition open in ways that only show as
holders, and a disk file knows nothing of the loop device that is mounted from it. So we look, too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from partitions.devices import (
    PROC,
    SYS,
    DeviceNumber,
    FileIdentity,
    KernelDevice,
    Place,
    block_device,
    device_number,
    parse_number,
    partitions_of,
)
from partitions.errors import DeviceBusyError, DeviceMountedError, DeviceOpenError


def refuse_used(place: Place, *, sys: Path = SYS, proc: Path = PROC) -> None:
    """Make sure that nobody uses a byte of `place`.

    Raises:
        DeviceMountedError: a device over it, or one built on that, is mounted or is swap.
        DeviceBusyError: device-mapper or RAID holds a device over it.
    """
    uses = mounted_devices(proc=proc)
    for device in devices_over(place, sys=sys):
        held = False
        for user in (device, *holders_of(device, sys=sys)):
            if user.number in uses:
                raise DeviceMountedError(
                    f"{device.folder.name} is in use: {user.folder.name} {uses[user.number]}"
                )
            held = held or user is not device
        if held:
            names = ", ".join(user.folder.name for user in holders_of(device, sys=sys))
            raise DeviceBusyError(f"{device.folder.name} is held by {names}")


def mounted_devices(*, proc: Path = PROC) -> dict[DeviceNumber, str]:
    """Return each device that is mounted or swap, with words about where."""
    uses: dict[DeviceNumber, str] = {}
    for mount in mounts(proc=proc):
        words = f"is mounted on {mount.folder}"
        uses.setdefault(mount.number, words)
        # btrfs shows a number of its own; the source names a device
        uses |= _by_node(mount.source, words, uses)
    swaps = proc / "swaps"
    for line in swaps.read_text().splitlines()[1:] if swaps.exists() else ():
        uses |= _by_node(_unescape(line.split()[0]), "is swap", uses)
    return uses


class Mount(NamedTuple):
    """A line of mountinfo.

    Attributes:
        number: the file system's device number; btrfs and overlay have ones of their own.
        folder: where it is mounted.
        source: what it is mounted from, for most file systems a device's node.
    """

    number: DeviceNumber
    folder: Path
    source: str


def mounts(*, proc: Path = PROC) -> Iterator[Mount]:
    """Yield what is mounted, the latest last."""
    for line in (proc / "self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        yield Mount(
            number=parse_number(fields[2]),
            folder=Path(_unescape(fields[4])),
            source=_unescape(fields[fields.index("-") + 2]),
        )


def device_of(path: Path, *, proc: Path = PROC) -> DeviceNumber:
    """Return the device that a folder's file system is on, btrfs included.

    A file system of several devices is named by one of them; an overlay keeps the number of its
    own, which leads nowhere.
    """
    status = path.stat()
    number = DeviceNumber(os.major(status.st_dev), os.minor(status.st_dev))
    if number.major:
        return number
    # btrfs gives stat(2) another number than mountinfo, so only the path leads there: to the
    # innermost mount, and of several on one folder to the last.
    here = path.resolve()
    over = [mount for mount in mounts(proc=proc) if here.is_relative_to(mount.folder)]
    innermost = max(reversed(over), key=lambda mount: len(mount.folder.parts), default=None)
    return (_number_of(innermost.source) if innermost else None) or number


def _by_node(source: str, words: str, known: dict[DeviceNumber, str]) -> dict[DeviceNumber, str]:
    number = _number_of(source)
    return {number: known.get(number, words)} if number else {}


def _number_of(source: str) -> DeviceNumber | None:
    """Return the number of a device's node; nothing when it is none, or out of our reach."""
    try:
        return device_number(Path(source).stat()) if source.startswith("/") else None
    except OSError:
        return None


def _unescape(text: str) -> str:
    """Undo the octal escapes that mountinfo uses for blanks and the like."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def devices_over(place: Place, *, sys: Path = SYS) -> Iterator[KernelDevice]:
    """Yield the devices through which a byte of `place` can be reached."""
    if isinstance(place.medium, FileIdentity):
        for loop, shifted in _loops_over(place, sys=sys):
            yield from devices_over(replace(shifted, medium=loop.number), sys=sys)
        return
    disk = block_device(place.medium, sys=sys)
    for device in (disk, *partitions_of(disk)):
        if device.place.overlaps(place):
            yield device


def _loops_over(place: Place, *, sys: Path) -> Iterator[tuple[KernelDevice, Place]]:
    for file in sorted(sys.glob("block/loop*/loop/backing_file")):
        folder = file.parent.parent
        try:
            status = Path(file.read_text().rstrip("\n")).stat()
            number = parse_number((folder / "dev").read_text())
            begin = int((folder / "loop/offset").read_text())
        except (OSError, ValueError):  # detached meanwhile, or its file was deleted
            continue
        if FileIdentity(status.st_dev, status.st_ino) == place.medium:
            # A loop may begin inside the file; what lies before it is cut off.
            first = max(place.first_byte - begin, 0)
            end = place.first_byte + place.size - begin
            if end > 0:
                yield (
                    block_device(number, sys=sys),
                    replace(place, first_byte=first, size=end - first),
                )


def holders_of(device: KernelDevice, *, sys: Path = SYS) -> Iterator[KernelDevice]:
    """Yield the devices that are built on this one, and those built on them."""
    for link in sorted((device.folder / "holders").glob("*")):
        holder = block_device(parse_number((link / "dev").read_text()), sys=sys)
        yield holder
        yield from holders_of(holder, sys=sys)


def devices_under(number: DeviceNumber, *, sys: Path = SYS) -> Iterator[KernelDevice]:
    """Yield a device and those it is built on (dm-verity: its data and hash partitions)."""
    try:
        device = block_device(number, sys=sys)
    except DeviceOpenError:  # an anonymous number: tmpfs, overlay, btrfs
        return
    yield device
    for link in sorted((device.folder / "slaves").glob("*")):
        yield from devices_under(parse_number((link / "dev").read_text()), sys=sys)
