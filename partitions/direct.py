"""Writing past the page cache: what is written once and never read from memory needs no copy there.

Writing a gigabyte through the page cache costs the kernel a copy of it, the pages, and their
write-back, and it pushes out what the node's own work has cached. O_DIRECT costs nothing where the
bytes lie aligned as the device asks, else one copy into memory that does.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Iterator
from typing import Final

DIRECT_ALIGNMENT: Final = 4096  # bytes; no logical sector is larger
_BUFFER_BYTES: Final = 1024 * 1024


class DirectWriter:
    """Writes whole aligned blocks of an open device or file past the page cache, the rest not.

    The kernel keeps both coherent: a direct write waits for dirty pages of its range and drops
    them. Safe in threads. Bytes that lie aligned are written side by side, so that the device has
    more than one thing to do; others wait for each other.
    """

    def __init__(self, descriptor: int) -> None:
        """Make ready; whether the device takes direct writes shows at the first one.

        Args:
            descriptor: open for writing; stays the caller's.
        """
        self._descriptor = descriptor
        self._able = True
        self._memory = mmap.mmap(-1, _BUFFER_BYTES)
        self._changed = threading.Condition()
        self._side_by_side = 0  # direct writes under way: the descriptor's flag must stay
        self._alone = False

    def write(self, offset: int, data: memoryview) -> int:
        """Write a first piece of `data` at `offset`; return how many bytes that were.

        Raises:
            OSError: the device failed, or a file's file system is full.
        """
        size = len(data) - len(data) % DIRECT_ALIGNMENT
        if self._able and size and not offset % DIRECT_ALIGNMENT:
            direct = self._write_side_by_side if is_aligned(data) else self._write_copy
            written = direct(offset, data[:size])
            if written:
                return written
        with self._by_itself():
            self._direct(wanted=False)
            return os.pwrite(self._descriptor, data, offset)

    def _write_side_by_side(self, offset: int, data: memoryview) -> int:
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            if not self._side_by_side:
                self._direct(wanted=True)
            self._side_by_side += 1
        try:
            return self._write_blocks(offset, data)
        finally:
            with self._changed:
                self._side_by_side -= 1
                self._changed.notify_all()

    def _write_copy(self, offset: int, data: memoryview) -> int:
        data = data[:_BUFFER_BYTES]
        with self._by_itself(), memoryview(self._memory)[: len(data)] as piece:
            self._direct(wanted=True)
            piece[:] = data
            return self._write_blocks(offset, piece)

    def _write_blocks(self, offset: int, data: memoryview) -> int:
        """Return how many bytes were written; 0 where the file system refuses direct writes."""
        try:
            return os.pwrite(self._descriptor, data, offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._able = False
            return 0

    @contextlib.contextmanager
    def _by_itself(self) -> Iterator[None]:
        """Wait until nobody else writes, and let nobody else."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            self._alone = True
            self._changed.wait_for(lambda: not self._side_by_side)
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()

    def _direct(self, *, wanted: bool) -> None:
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        changed = flags | os.O_DIRECT if wanted else flags & ~os.O_DIRECT
        if changed != flags:
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, changed)


def is_aligned(data: memoryview) -> bool:
    """Tell whether bytes lie where a device can fetch them; of what cannot change nobody knows."""
    if data.readonly or not data:
        return False
    return ctypes.addressof(ctypes.c_char.from_buffer(data)) % DIRECT_ALIGNMENT == 0
