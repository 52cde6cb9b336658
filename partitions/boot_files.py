"""A part of a slot that is a file: kernel, initrd, UKI. It is written like a partition.

It lies on the ESP, XBOOTLDR or /boot, which is FAT as a rule, and has its final name from the first
byte on (decision 0010). FAT keeps no order among its writes, so we do:

1. The name of an old file goes and is flushed, while we hold the file open; only when we let go are
   its clusters free. So no cut leaves a name on clusters that something else has got meanwhile.
2. The new file gets its full size, and all of that is flushed: from then on writing changes no
   table and no folder, and a full file system has refused already.
3. Each flush is of the file, its folder and its file system.

What a cut leaves half made is of the passive, disarmed slot: it is made anew.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from typing_extensions import override

from partitions.boot_folder import sync_file_system, sync_folder
from partitions.booted import whole_file
from partitions.disk import OpenDisk
from partitions.errors import (
    BootFolderUnmountedError,
    DeviceOpenError,
    DeviceTooSmallError,
    DeviceWriteError,
)
from partitions.in_use import refuse_used
from partitions.slots import nearest_folder

if TYPE_CHECKING:
    from partitions.booted import Booted
    from partitions.slots import Region

ZEROS_BYTES: Final = 1024 * 1024  # written at once
_TO_THE_END: Final = 0  # as a lock's length
_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # the last: a FIFO must not hang us


class BootFile(OpenDisk):
    """An open boot file, the medium of a `RegionWriter`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        super().__init__(path, descriptor)
        self._dirty = True

    @override
    def pwrite(self, offset: int, data: bytes | memoryview) -> None:
        super().pwrite(offset, data)
        self._dirty = True  # after the write: a flush that began before it does not count

    @override
    def zero(self, offset: int, size: int) -> None:
        """Write zeros; never a hole, which would give back the room that was made.

        Raises:
            DeviceWriteError: the device failed.
        """
        for begin in range(offset, offset + size, ZEROS_BYTES):
            self.pwrite(begin, bytes(min(ZEROS_BYTES, offset + size - begin)))

    @override
    def sync(self) -> None:
        """Return when the file, its name and the file system's tables are durable.

        Raises:
            DeviceWriteError: the device failed.
        """
        if not self._dirty:
            return
        self._dirty = False
        try:
            os.fsync(self.descriptor)
            _sync_name(self.path)
        except OSError as error:
            self._dirty = True
            raise DeviceWriteError(f"flushing {self.path} failed: {error.strerror}") from error

    def make_size(self, size: int) -> None:
        """Give the file all its bytes; durable on return.

        Raises:
            DeviceTooSmallError: there is no room; the file is gone again.
            DeviceWriteError: the device failed.
        """
        try:
            if size:
                os.posix_fallocate(self.descriptor, 0, size)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
                raise DeviceWriteError.because(self.path, 0, error) from error
            with contextlib.suppress(OSError):
                _forget_name(self.path)
            raise DeviceTooSmallError(f"{self.path} finds no room for {size} bytes") from error
        self._dirty = True
        self.sync()


def refuse_file(region: Region, booted: Booted) -> None:
    """Make sure, before anything is changed, that a boot file may be written.

    1. Its folder is on a file system of its own, not on the running system's, and is writable.
    2. It is no file of the running system, by name or through any link.
    3. It is a plain file, or none yet, and no loop device stands on it.

    Raises:
        BootFolderUnmountedError, SlotBootedError, DeviceMountedError: it must not be written.
        DeviceOpenError: it cannot be written.
    """
    try:
        folder = nearest_folder(region.path)
        if folder.stat().st_dev in booted.file_systems:
            raise BootFolderUnmountedError(
                f"{region.path} would be a file of the running system's own file system"
            )
        if os.statvfs(folder).f_flag & os.ST_RDONLY:
            raise DeviceOpenError(f"{folder} is on a file system that is mounted read-only")
        status = region.path.stat() if os.path.lexists(region.path) else None
        plain = status is None or stat.S_ISREG(region.path.lstat().st_mode)
    except OSError as error:
        raise DeviceOpenError.because(region.path, error) from error
    booted.refuse(region, whole_file(status) if status else None)
    if not plain:
        raise DeviceOpenError(f"{region.path} is a link or a folder, no plain file")
    if status:
        refuse_used(whole_file(status))


def claim_file(region: Region, booted: Booted) -> BootFile:
    """Open a boot file for writing, made if it is not there, with exactly the region's size.

    A file of another size is not kept: what it holds is of another image.

    Raises:
        WriteRefusedError: it must not be written.
        DeviceBusyError: another writer holds it.
        DeviceOpenError, DeviceTooSmallError, DeviceWriteError: it cannot be.
    """
    refuse_file(region, booted)
    if not has_length(region, region.size):
        remove_file(region, booted)
    try:
        _make_folder(region.path.parent)
        file = BootFile(region.path, os.open(region.path, _FLAGS | os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise DeviceOpenError.because(region.path, error) from error
    try:
        place = whole_file(os.fstat(file.descriptor))
        booted.refuse(region, place)
        refuse_used(place)
        file.lock_range(0, _TO_THE_END)
        if file.size_bytes != region.size:
            file.make_size(region.size)
    except BaseException:
        file.close()
        raise
    return file


def remove_file(region: Region, booted: Booted) -> None:
    """Remove a boot file of the passive slot; nothing when there is none. Durable on return.

    Raises:
        WriteRefusedError: it must not be written.
        DeviceOpenError, DeviceWriteError: it cannot be removed.
    """
    refuse_file(region, booted)
    try:
        with _held(region.path) as descriptor:
            booted.refuse(region, whole_file(os.fstat(descriptor)))
            _forget_name(region.path)
        sync_file_system(region.path.parent)
    except FileNotFoundError:
        return
    except OSError as error:
        raise DeviceWriteError(f"removing {region.path} failed: {error.strerror}") from error


def cut_file(region: Region, size: int) -> None:
    """Cut a boot file to `size` bytes; durable on return. A partition stays as it is.

    Raises:
        DeviceWriteError: the device failed.
    """
    if has_length(region, size):
        return
    try:
        with _held(region.path, os.O_RDWR) as descriptor:
            os.ftruncate(descriptor, size)
            os.fsync(descriptor)
        _sync_name(region.path)
    except OSError as error:
        raise DeviceWriteError.because(region.path, size, error) from error


def has_length(region: Region, size: int) -> bool:
    """Tell whether a boot file has exactly `size` bytes; a partition is as it is.

    After a power cut it is the sign of a file that FAT lost or cut short.
    """
    if region.room is None:
        return True
    try:
        return region.path.lstat().st_size == size
    except OSError:
        return False


@contextlib.contextmanager
def _held(path: Path, mode: int = os.O_RDONLY) -> Iterator[int]:
    descriptor = os.open(path, _FLAGS | mode)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _forget_name(path: Path) -> None:
    """Remove a name, durably; whoever holds the file open keeps its clusters until then."""
    path.unlink()
    _sync_name(path)


def _sync_name(path: Path) -> None:
    sync_folder(path.parent)
    sync_file_system(path.parent)


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, each durable before the next."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)
