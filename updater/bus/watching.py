"""Tells when files of a folder are replaced or removed, without looking at them: inotify(7)."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_IN_MOVED_TO: Final = 0x80
_IN_DELETE: Final = 0x200
_READ_MAX_BYTES: Final = 64 * 1024


class FolderWatch:
    """A descriptor that becomes readable when a file in `folders` is replaced or removed.

    All our files are replaced by a rename. What cannot be watched is left to whoever looks now
    and then anyway.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.descriptor < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        for folder in folders:
            libc.inotify_add_watch(self.descriptor, os.fsencode(folder), _IN_MOVED_TO | _IN_DELETE)

    def drain(self) -> None:
        """Take what has happened off the descriptor."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self.descriptor, _READ_MAX_BYTES):
                pass

    def close(self) -> None:
        """End watching."""
        os.close(self.descriptor)
