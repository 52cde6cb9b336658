"""Writing past the page cache: what is written once and never read from memory needs no copy there.

Writing a gigabyte through the page cache costs the kernel a copy of it, the pages, and their
write-back, and it pushes out what the node's own work has cached. O_DIRECT costs one copy, into
memory that is aligned as the device asks.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import threading
from typing import Final

DIRECT_ALIGNMENT: Final = 4096  # bytes; no logical sector is larger
_BUFFER_BYTES: Final = 1024 * 1024


class DirectWriter:
    """Writes whole aligned blocks of an open device or file past the page cache, the rest not.

    The kernel keeps both coherent: a direct write waits for dirty pages of its range and drops
    them. Safe in threads; they wait for each other.
    """

    def __init__(self, descriptor: int) -> None:
        """Make ready; whether the device takes direct writes shows at the first one.

        Args:
            descriptor: open for writing; stays the caller's.
        """
        self._descriptor = descriptor
        self._able = True
        self._memory = mmap.mmap(-1, _BUFFER_BYTES)
        self._lock = threading.Lock()

    def write(self, offset: int, data: memoryview) -> int:
        """Write a first piece of `data` at `offset`; return how many bytes that were.

        Raises:
            OSError: the device failed, or a file's file system is full.
        """
        size = min(len(data), _BUFFER_BYTES)
        size -= size % DIRECT_ALIGNMENT
        with self._lock:
            if self._able and size and not offset % DIRECT_ALIGNMENT:
                written = self._write_blocks(offset, data[:size])
                if written:
                    return written
            self._direct(wanted=False)
            return os.pwrite(self._descriptor, data, offset)

    def _write_blocks(self, offset: int, data: memoryview) -> int:
        """Return how many bytes were written; 0 where the file system refuses direct writes."""
        try:
            self._direct(wanted=True)
            with memoryview(self._memory) as buffer, buffer[: len(data)] as piece:
                piece[:] = data
                return os.pwrite(self._descriptor, piece, offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._able = False
            return 0

    def _direct(self, *, wanted: bool) -> None:
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        changed = flags | os.O_DIRECT if wanted else flags & ~os.O_DIRECT
        if changed != flags:
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, changed)
