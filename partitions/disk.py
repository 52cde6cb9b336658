"""A disk file or block device as bytes: the real keeper of `table.Disk`. Linux only.

Here are open flags, ioctls, locks and the page cache, and the translation of their errors. What the
bytes mean is for `table.py` and `writer.py`; who else uses the device is for `in_use.py`.

Two ways past the page cache: O_DIRECT, and where a file system refuses that, dropping the clean
pages (posix_fadvise DONTNEED) before each read. Both need the data to be flushed before. Writes go
past it on demand: `direct.py`.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import mmap
import os
import stat
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from partitions.direct import DIRECT_ALIGNMENT, DirectWriter
from partitions.errors import (
    DeviceBusyError,
    DeviceOpenError,
    DeviceReadError,
    DeviceWriteError,
)
from partitions.gpt import SECTOR_SIZES
from partitions.zeroing import zero_range

LOCK_PATIENCE_S: Final = 10.0  # udev locks a disk for a moment after each close
_LOCK_STEP_S: Final = 0.05
_BLKSSZGET: Final = 0x1268  # linux/fs.h: logical sector size of a device
_FLOCK: Final = "@hhqqi0q"  # struct flock: type, whence, start, length, pid


class Access(enum.Enum):
    """What a disk is opened for."""

    READ = "read"
    READ_PAST_CACHE = "read-past-cache"  # what the medium holds, not what the kernel remembers
    WRITE = "write"
    WRITE_EXCLUSIVE = "write-exclusive"  # a device: refused while mounted or held (O_EXCL)


class CacheBypass(enum.Enum):
    """How reads get past the page cache."""

    NONE = "none"
    DIRECT = "direct"  # O_DIRECT: offset, length and memory must be aligned
    DROP = "drop"  # drop clean pages first


class OpenDisk:
    """An open disk file or block device; made by `open_disk`.

    Attributes:
        path: what was opened.
        descriptor: its file descriptor.
        bypass: how its reads get past the page cache.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor
        self.bypass = CacheBypass.NONE
        self._write = self._write_through_cache
        self._size = os.lseek(descriptor, 0, os.SEEK_END)

    @property
    def size_bytes(self) -> int:
        """How large it was when it was opened."""
        return self._size

    @property
    def is_device(self) -> bool:
        """Whether it is a block device; else it is a file."""
        return stat.S_ISBLK(os.fstat(self.descriptor).st_mode)

    @property
    def sector_sizes(self) -> tuple[int, ...]:
        """The logical sector size of a device, or those that a file may be meant for."""
        if not self.is_device:
            return SECTOR_SIZES
        answer = fcntl.ioctl(self.descriptor, _BLKSSZGET, bytes(4))
        return (int.from_bytes(answer, sys.byteorder),)

    def pread(self, offset: int, size: int) -> bytes:
        """Read exactly `size` bytes at `offset`.

        Raises:
            DeviceReadError: the device failed, or ends before.
        """
        begin = offset - offset % DIRECT_ALIGNMENT
        end = offset + size
        whole = end - begin + -(end - begin) % DIRECT_ALIGNMENT
        with mmap.mmap(-1, max(whole, DIRECT_ALIGNMENT)) as buffer:
            with memoryview(buffer) as view:
                got = self.read_into(view, begin)
            data = buffer[offset - begin : min(end - begin, got)]
        if len(data) != size:
            raise DeviceReadError(f"{self.path} ends at {begin + got}, before byte {end}")
        return data

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` from `offset` on; return how much there was, less only at the end.

        With O_DIRECT, `offset` and the buffer's address and length are multiples of 4096.

        Raises:
            DeviceReadError: the device failed.
        """
        done = 0
        try:
            if self.bypass is CacheBypass.DROP:
                os.posix_fadvise(self.descriptor, offset, len(buffer), os.POSIX_FADV_DONTNEED)
            while done < len(buffer):
                got = os.preadv(self.descriptor, [buffer[done:]], offset + done)
                done += got
                # An unaligned count is the end; O_DIRECT could not go on from there anyway.
                if not got or (self.bypass is CacheBypass.DIRECT and got % DIRECT_ALIGNMENT):
                    break
        except OSError as error:
            raise DeviceReadError.because(self.path, offset + done, error) from error
        return done

    def pwrite(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data` at `offset`; not durable yet.

        Raises:
            DeviceWriteError: the device failed, or a disk file's file system is full.
        """
        left = memoryview(data)
        try:
            while left:
                written = self._write(offset, left)
                left, offset = left[written:], offset + written
        except OSError as error:
            raise DeviceWriteError.because(self.path, offset, error) from error

    def write_past_cache(self) -> None:
        """Let `pwrite` go past the page cache, in whole blocks, where the device takes that."""
        self._write = DirectWriter(self.descriptor).write

    def zero(self, offset: int, size: int) -> None:
        """Make `size` bytes at `offset` read as zeros, by the cheapest way; not durable yet.

        Raises:
            DeviceWriteError: the device failed.
        """
        try:
            rest = zero_range(self.descriptor, offset, size, device=self.is_device)
        except OSError as error:
            raise DeviceWriteError.because(self.path, offset, error) from error
        for begin, length in rest:
            self.pwrite(begin, bytes(length))

    def sync(self) -> None:
        """Return when all that was written is durable.

        Raises:
            DeviceWriteError: the device failed.
        """
        try:
            os.fdatasync(self.descriptor)
        except OSError as error:
            raise DeviceWriteError(f"flushing {self.path} failed: {error.strerror}") from error

    def _write_through_cache(self, offset: int, data: memoryview) -> int:
        return os.pwrite(self.descriptor, data, offset)

    def lock(self, *, patience_s: float = LOCK_PATIENCE_S) -> None:
        """Take the whole disk's advisory lock (flock); closing gives it back.

        Raises:
            DeviceBusyError: somebody keeps it for longer than `patience_s`.
        """
        until = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno != errno.EWOULDBLOCK or time.monotonic() >= until:
                    raise DeviceBusyError(f"{self.path} is locked by another program") from error
                time.sleep(_LOCK_STEP_S)
            else:
                return

    def lock_range(self, offset: int, size: int) -> None:
        """Take a lock on these bytes alone, so that the parts of a slot may be open together.

        It is bound to this descriptor (OFD lock): other openings in the same process see it too.

        Raises:
            DeviceBusyError: somebody holds a part of them.
        """
        wanted = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, offset, size, 0)
        try:
            fcntl.fcntl(self.descriptor, fcntl.F_OFD_SETLK, wanted)
        except OSError as error:
            raise DeviceBusyError(
                f"{self.path} is being written by another program at byte {offset}"
            ) from error

    def close(self) -> None:
        """Close it; nothing is flushed by that."""
        os.close(self.descriptor)


@contextlib.contextmanager
def open_disk(path: Path, access: Access) -> Iterator[OpenDisk]:
    """Open a disk file or block device, and close it at the end.

    Raises:
        DeviceOpenError: it cannot be opened or is neither.
        DeviceBusyError: exclusive access was asked for and somebody holds the device.
    """
    disk = acquire_disk(path, access)
    try:
        yield disk
    finally:
        disk.close()


def acquire_disk(path: Path, access: Access) -> OpenDisk:
    """Open a disk file or block device; the caller closes it.

    Raises:
        DeviceOpenError: it cannot be opened or is neither.
        DeviceBusyError: exclusive access was asked for and somebody holds the device.
    """
    try:
        descriptor = os.open(path, _flags(path, access))
    except OSError as error:
        if access is Access.WRITE_EXCLUSIVE and error.errno == errno.EBUSY:
            raise DeviceBusyError(f"{path} is held by the kernel or another program") from error
        if access is Access.READ_PAST_CACHE and error.errno == errno.EINVAL:
            return _acquire_dropping(path)
        raise DeviceOpenError.because(path, error) from error
    disk = _checked(path, descriptor)
    if access is Access.READ_PAST_CACHE:
        disk.bypass = CacheBypass.DIRECT
        if not _reads_directly(disk):
            disk.close()
            return _acquire_dropping(path)
    return disk


def _checked(path: Path, descriptor: int) -> OpenDisk:
    try:
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISBLK(mode) or stat.S_ISREG(mode)):
            raise DeviceOpenError(f"{path} is neither a block device nor a disk file")
        return OpenDisk(path, descriptor)
    except OSError as error:
        os.close(descriptor)
        raise DeviceOpenError.because(path, error) from error
    except DeviceOpenError:
        os.close(descriptor)
        raise


def _flags(path: Path, access: Access) -> int:
    flags = os.O_CLOEXEC | os.O_NONBLOCK  # the latter: a FIFO must not hang us
    match access:
        case Access.READ:
            return flags | os.O_RDONLY
        case Access.READ_PAST_CACHE:
            return flags | os.O_RDONLY | os.O_DIRECT
        case Access.WRITE:
            return flags | os.O_RDWR
        case Access.WRITE_EXCLUSIVE:  # on a plain file O_EXCL has no meaning
            return flags | os.O_RDWR | (os.O_EXCL if path.is_block_device() else 0)


def _reads_directly(disk: OpenDisk) -> bool:
    """Tell whether the file system keeps what its O_DIRECT promised at opening."""
    with mmap.mmap(-1, DIRECT_ALIGNMENT) as buffer:
        try:
            os.preadv(disk.descriptor, [buffer], 0)
        except OSError as error:
            return error.errno != errno.EINVAL  # other errors are for the real read to report
    return True


def _acquire_dropping(path: Path) -> OpenDisk:
    disk = acquire_disk(path, Access.READ)
    disk.bypass = CacheBypass.DROP
    return disk
