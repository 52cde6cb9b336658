"""Writing one part of a slot: exclusively, within its bounds, never over what is in use.

`claim` checks the *opened* descriptor, not the name: what was checked is what is written. The
writer copies nothing and keeps nothing, so memory does not grow with the image. Reading back is in
`readback.py`, through a descriptor of its own.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self, TypeAlias

from partitions.boot_files import claim_file
from partitions.booted import Booted, where
from partitions.devices import Place, place_of
from partitions.disk import Access, OpenDisk, acquire_disk
from partitions.errors import DeviceBusyError, DeviceTooSmallError
from partitions.in_use import refuse_used
from partitions.slots import Region

log = logging.getLogger(__name__)


class Medium(Protocol):
    """What a `RegionWriter` writes to; offsets count from the start of the opened path.

    The real one is `OpenDisk`; tests wrap it to record what is written, and cut the power there.
    """

    def pwrite(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data`; not durable yet."""

    def zero(self, offset: int, size: int) -> None:
        """Make a range read as zeros; not durable yet."""

    def sync(self) -> None:
        """Make all earlier writes durable."""

    def close(self) -> None:
        """Give the device back."""


Claim: TypeAlias = Callable[[Region, Booted], Medium]
"""How a writer gets hold of its region; `claim` unless a test records."""


def claim(region: Region, booted: Booted) -> OpenDisk:
    """Open a region's device or file for writing and make sure that it may be written.

    A part that is a file of its own is made with the region's size (`boot_files`). Else:

    1. Open it; a partition's node exclusively (O_EXCL: the kernel refuses what it uses).
    2. See where the opened bytes really are; refuse the running system's.
    3. Refuse what is mounted, swap or held, also by way of a loop device over a disk file.
    4. Refuse a region that reaches past the end.
    5. Lock the region's bytes against another writer.

    Raises:
        WriteRefusedError: it must not be written.
        DeviceBusyError: somebody else holds it.
        DeviceOpenError, DeviceTooSmallError: it cannot be opened, or ends too early.
    """
    if region.room is not None:
        return claim_file(region, booted)
    try:
        disk = _open(region)
    except DeviceBusyError:
        _refuse(region, booted, where(region))  # the better answer, when there is one
        raise
    try:
        place = place_of(os.fstat(disk.descriptor), offset=region.offset, size=region.size)
        _refuse(region, booted, place)
        if disk.size_bytes < region.offset + region.size:
            raise DeviceTooSmallError(
                f"{region.path} has {disk.size_bytes} bytes, {region.words} "
                f"needs {region.offset + region.size}"
            )
        disk.lock_range(region.offset, region.size)
        disk.write_past_cache()
    except BaseException:
        disk.close()
        raise
    return disk


def _open(region: Region) -> OpenDisk:
    disk = acquire_disk(region.path, Access.WRITE_EXCLUSIVE)
    if not disk.is_device or disk.size_bytes == region.size:
        return disk
    # A whole disk for one of its parts, as the kernel has no node: were it kept exclusively, a
    # slot's second part could not be opened. That nobody else holds it has been shown.
    disk.close()
    return acquire_disk(region.path, Access.WRITE)


def _refuse(region: Region, booted: Booted, place: Place) -> None:
    booted.refuse(region, place)
    refuse_used(place)


class RegionWriter:
    """Writes into one region; a context manager that gives the device back.

    Not for several threads at once on overlapping bytes; on others, `write_at` may be called from
    any thread.
    """

    def __init__(self, region: Region, *, booted: Booted, claim: Claim = claim) -> None:
        """Claim the region.

        Raises:
            PartitionsError: see `claim`.
        """
        self.region = region
        self._medium = claim(region, booted)
        log.debug(
            "region opened path=%s offset=%d size=%d", region.path, region.offset, region.size
        )

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data` at `offset` of the region; durable only after `sync`.

        Raises:
            DeviceTooSmallError: it would reach past the region; nothing of it was written.
            DeviceWriteError: the device failed, or a disk file's file system is full.
        """
        self._medium.pwrite(self._within(offset, len(data)), data)

    def zero_at(self, offset: int, length: int) -> None:
        """Make `length` bytes at `offset` read as zeros; durable only after `sync`.

        Raises:
            DeviceTooSmallError: it would reach past the region; nothing of it was written.
            DeviceWriteError: the device failed.
        """
        self._medium.zero(self._within(offset, length), length)

    def sync(self) -> None:
        """Return when everything written so far is durable.

        Raises:
            DeviceWriteError: the device failed; what was written since the last sync is in doubt.
        """
        self._medium.sync()

    def close(self) -> None:
        """Give the device back, flushing nothing; a second call does nothing."""
        medium, self._medium = self._medium, _CLOSED
        medium.close()

    def _within(self, offset: int, length: int) -> int:
        if offset < 0 or length < 0:
            raise ValueError(f"offset {offset} or length {length} is negative")
        if offset + length > self.region.size:
            raise DeviceTooSmallError(
                f"bytes {offset} to {offset + length} do not fit {self.region.words} "
                f"of {self.region.size} bytes"
            )
        return self.region.offset + offset

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Closed:
    """The medium of a closed writer: writing to it is a bug, closing it again is not."""

    def pwrite(self, offset: int, data: bytes | memoryview) -> None:  # noqa: ARG002 - a Medium
        raise ValueError("the region is closed")

    def zero(self, offset: int, size: int) -> None:  # noqa: ARG002 - a Medium
        raise ValueError("the region is closed")

    def sync(self) -> None:
        raise ValueError("the region is closed")

    def close(self) -> None:
        return


_CLOSED = _Closed()
