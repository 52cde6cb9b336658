"""Reading a region back as the medium holds it: fresh descriptor, past the page cache.

What was written and flushed may still differ from what the disk kept; only reading the disk itself
tells. The next chunk is read while the caller hashes this one, in bounded memory.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeAlias

from partitions.direct import DIRECT_ALIGNMENT
from partitions.disk import Access, OpenDisk, open_disk
from partitions.errors import DeviceReadError, DeviceTooSmallError, ReadbackMismatchError
from partitions.slots import Region

CHUNK_BYTES: Final = 1024 * 1024  # large enough for a disk's full speed, with two in flight
Views: TypeAlias = Generator[memoryview, None, None]
_BUFFERS: Final = 3  # one at the caller, two being filled


def read_back(
    region: Region, size: int, *, chunk: int = CHUNK_BYTES
) -> Generator[memoryview, None, None]:
    """Yield the first `size` bytes of a region, in order, past the page cache.

    Flush the writer before. Each view is valid until the next one is asked for.

    Args:
        region: what to read.
        size: how many bytes, from the region's start.
        chunk: bytes of a view at most, a multiple of 4096; memory is three times that.

    Raises:
        DeviceTooSmallError: the region has fewer bytes than `size`.
        DeviceOpenError, DeviceReadError: the device failed, or ended before.
    """
    if size > region.size:
        raise DeviceTooSmallError(
            f"{region.words} has {region.size} bytes, {size} shall be read back"
        )
    if chunk <= 0 or chunk % DIRECT_ALIGNMENT:
        raise ValueError(f"a chunk of {chunk} bytes is not a multiple of {DIRECT_ALIGNMENT}")
    with open_disk(region.path, Access.READ_PAST_CACHE) as disk:
        yield from _views(disk, region.offset, region.offset + size, chunk)


def _views(disk: OpenDisk, begin: int, end: int, chunk: int) -> Views:
    """Yield bytes `begin` to `end` of a disk, reading ahead; offsets stay aligned throughout."""
    first = begin - begin % DIRECT_ALIGNMENT
    starts = range(first, end, chunk)
    buffers = [memoryview(mmap.mmap(-1, chunk)) for _ in range(_BUFFERS)]
    with ThreadPoolExecutor(max_workers=_BUFFERS - 1, thread_name_prefix="read-back") as pool:
        ahead = [
            pool.submit(disk.read_into, buffers[index], start)
            for index, start in enumerate(starts[: _BUFFERS - 1])
        ]
        for index, start in enumerate(starts):
            coming = index + _BUFFERS - 1
            if coming < len(starts):
                free = buffers[coming % _BUFFERS]
                ahead.append(pool.submit(disk.read_into, free, starts[coming]))
            got = ahead.pop(0).result()
            stop = min(end, start + chunk)
            if start + got < stop:
                raise DeviceReadError(f"{disk.path} ends at {start + got}, before byte {end}")
            yield buffers[index % _BUFFERS][max(begin - start, 0) : stop - start]


def digest_of(region: Region, size: int, *, chunk: int = CHUNK_BYTES) -> bytes:
    """Return the SHA-256 of the first `size` bytes of a region, read past the page cache.

    Raises:
        DeviceError: see `read_back`.
    """
    digest = hashlib.sha256()
    for view in read_back(region, size, chunk=chunk):
        digest.update(view)
    return digest.digest()


def verify(region: Region, *, size: int, sha256: bytes) -> None:
    """Make sure that the medium holds what was meant to be written.

    Raises:
        ReadbackMismatchError: it holds something else.
        DeviceError: see `read_back`.
    """
    actual = digest_of(region, size)
    if actual != sha256:
        raise ReadbackMismatchError(
            f"{region.words} reads back with sha256 {actual.hex()}, written was {sha256.hex()}"
        )
