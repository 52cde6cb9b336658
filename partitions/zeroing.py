"""Making a range read as zeros without writing it where the kernel can do better.

Files get a hole (fallocate, punch hole), devices BLKZEROOUT, which lets the medium do it. Both are
by contract zeros when read; discard (BLKDISCARD) is not and is never used. No error is translated
here: `disk.py` does that.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Final

_BLKZEROOUT: Final = 0x127F  # linux/fs.h
_KEEP_SIZE: Final = 0x01  # linux/falloc.h
_PUNCH_HOLE: Final = 0x02
_ALIGNMENT: Final = 4096  # bytes; a multiple of any logical sector and of common file blocks
_STEP: Final = 64 * 1024 * 1024  # bytes a call, so that a signal is answered on slow media
_WRITE_STEP: Final = 1024 * 1024  # bytes of zeros in memory at most
_UNABLE: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY})


def zero_range(descriptor: int, offset: int, size: int, *, device: bool) -> list[tuple[int, int]]:
    """Zero the aligned middle of a range; return what is left for the caller to write.

    Args:
        descriptor: open for writing.
        offset: first byte.
        size: how many bytes.
        device: whether it is a block device, else a file.

    Returns:
        Offsets and lengths, each at most 1 MiB, that still need zeros written.

    Raises:
        OSError: the device failed; that it knows no such call is not an error.
    """
    begin, end = offset + -offset % _ALIGNMENT, (offset + size) // _ALIGNMENT * _ALIGNMENT
    if begin >= end:
        return _pieces(offset, offset + size)
    done = begin
    try:
        while done < end:
            length = min(_STEP, end - done)
            (_zero_device if device else _punch)(descriptor, done, length)
            done += length
    except OSError as error:
        if error.errno not in _UNABLE:
            raise
    return [*_pieces(offset, begin), *_pieces(done, offset + size)]


def _pieces(begin: int, end: int) -> list[tuple[int, int]]:
    return [(at, min(_WRITE_STEP, end - at)) for at in range(begin, end, _WRITE_STEP)]


def _zero_device(descriptor: int, offset: int, length: int) -> None:
    fcntl.ioctl(descriptor, _BLKZEROOUT, struct.pack("QQ", offset, length))


def _punch(descriptor: int, offset: int, length: int) -> None:
    import ctypes  # only who writes to disk files pays for it

    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if libc.fallocate(descriptor, _PUNCH_HOLE | _KEEP_SIZE, offset, length):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
