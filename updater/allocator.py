"""What glibc's allocator must be told by a process that passes a gigabyte through in megabytes.

By default each buffer of a megabyte is mapped and unmapped, and the kernel clears every page of
it anew: measured while outputs were such buffers, a full install of 1 GiB took 3.5 s instead of
2.4 s. With higher thresholds (mallopt(3)) freed buffers are used again. But each thread's arena
keeps what was freed in it: with thresholds of 32 and 64 MiB, and an arena a thread, a delta of a
real image had its peak 129 MiB above the idle engine; 56 MiB now.
"""

from __future__ import annotations

import ctypes
from typing import Final

_M_TRIM_THRESHOLD: Final = -1  # malloc.h
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
# Blobs are smaller, and used again; what is larger is rare, and goes back to the system at once:
# each thread's arena would keep its own peak otherwise.
_MMAP_THRESHOLD_BYTES: Final = 2 * 1024 * 1024
_TRIM_THRESHOLD_BYTES: Final = 4 * 1024 * 1024
_ARENAS: Final = 2  # each keeps what its threads freed; they meet here a few times a megabyte


def reuse_large_buffers() -> bool:
    """Keep freed buffers for the next one; tells whether the C library can do that."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # not glibc: nothing is lost but time
        return False
    mallopt(_M_ARENA_MAX, _ARENAS)
    mapped = mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
    return bool(mapped and mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES))
