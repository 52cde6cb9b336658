"""Reading a region back as the medium holds it: fresh descriptor, past the page cache.

What was written and flushed may still differ from what the disk kept; only reading the disk itself
tells. The next chunk is read while the caller hashes this one, in bounded memory.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import queue
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import TracebackType
from typing import Final, Self, TypeAlias

from partitions.direct import DIRECT_ALIGNMENT
from partitions.disk import Access, OpenDisk, acquire_disk, open_disk
from partitions.errors import DeviceReadError, DeviceTooSmallError, ReadbackMismatchError
from partitions.slots import Region

CHUNK_BYTES: Final = 1024 * 1024  # large enough for a disk's full speed, with two in flight
Views: TypeAlias = Generator[memoryview, None, None]
GAP_BYTES: Final = 64 * 1024  # between two runs: read with them
_BUFFERS: Final = 3  # one at the caller, two being filled
_ZEROS: Final = bytearray(CHUNK_BYTES)  # nobody writes to it; its address is asked for
_COMPARED_BYTES: Final = 64 * 1024  # at once: most are all the same, or all different


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


class RegionReader:
    """Reads runs of a region as the medium holds them, while the region is being written.

    What shall be read must have been flushed. Safe in threads, as many at once as it has buffers;
    others wait. A context manager that closes its own descriptor.
    """

    def __init__(self, region: Region, *, buffers: int) -> None:
        """Open the region past the page cache.

        Args:
            region: what to read.
            buffers: of 1 MiB, aligned, used again and again.

        Raises:
            DeviceOpenError: it cannot be opened.
        """
        self.region = region
        self._disk = acquire_disk(region.path, Access.READ_PAST_CACHE)
        self._free: queue.SimpleQueue[mmap.mmap] = queue.SimpleQueue()
        for _ in range(buffers):
            self._free.put(mmap.mmap(-1, CHUNK_BYTES))

    def digest_of(self, runs: Iterable[tuple[int, int]]) -> bytes:
        """Return the SHA-256 of runs, given as (byte offset in the region, bytes), in this order.

        Raises:
            DeviceTooSmallError, DeviceReadError: the region or the device ends before, or failed.
        """
        digest = hashlib.sha256()
        buffer = self._free.get()
        try:
            with memoryview(buffer) as view:
                for begin, end in self._pieces(view, runs):
                    digest.update(view[begin:end])
        finally:
            self._free.put(buffer)
        return digest.digest()

    def is_zero(self, runs: Iterable[tuple[int, int]]) -> bool:
        """Tell whether all bytes of some runs are zeros.

        Raises:
            DeviceTooSmallError, DeviceReadError: as `digest_of`.
        """
        compare, zeros = _memcmp(), _address(memoryview(_ZEROS))
        buffer = self._free.get()
        try:
            with memoryview(buffer) as view:
                held = _address(view)
                return not any(
                    compare(held + begin, zeros, end - begin)
                    for begin, end in self._pieces(view, runs)
                )
        finally:
            self._free.put(buffer)

    def differing(self, offset: int, data: memoryview, *, grain: int) -> list[tuple[int, int]]:
        """Return which runs of `data` are not what the medium holds at `offset`.

        Args:
            offset: in the region.
            data: writable, for its address; nothing is written to it.
            grain: bytes that are compared at once in the end, a power of two up to 64 KiB; runs are
                multiples of it, and what is left.

        Returns:
            (first byte of `data`, the one after the last), ascending, apart.

        Raises:
            DeviceTooSmallError, DeviceReadError: as `digest_of`.
        """
        runs: list[tuple[int, int]] = []
        done = 0
        # A piece ends with a grain, also where the region begins between two aligned bytes.
        shift = (self.region.offset + offset) % DIRECT_ALIGNMENT
        step = CHUNK_BYTES - _COMPARED_BYTES if shift else CHUNK_BYTES
        wanted = [(offset + at, min(step, len(data) - at)) for at in range(0, len(data), step)]
        buffer = self._free.get()
        try:
            with memoryview(buffer) as view:
                for begin, end in self._pieces(view, wanted):
                    held, made = view[begin:end], data[done : done + end - begin]
                    for first, last in _differing(held, made, _COMPARED_BYTES, grain):
                        if runs and runs[-1][1] == done + first:
                            runs[-1] = (runs[-1][0], done + last)
                        else:
                            runs.append((done + first, done + last))
                    done += end - begin
        finally:
            self._free.put(buffer)
        return runs

    def _pieces(
        self, view: memoryview, runs: Iterable[tuple[int, int]]
    ) -> Generator[tuple[int, int], None, None]:
        """Fill `view` with piece after piece; yield where in it each begins and ends."""
        spans = [self._span(*run) for run in runs]
        filled = range(0)  # the bytes of the disk that `view` holds
        for number, (at, end) in enumerate(spans):
            begin = at
            while begin < end:
                if begin not in filled:
                    filled = self._fill(view, begin, spans, number)
                stop = min(end, filled.stop)
                yield begin - filled.start, stop - filled.start
                begin = stop

    def _fill(
        self, view: memoryview, begin: int, spans: Sequence[tuple[int, int]], number: int
    ) -> range:
        """Read a span from byte `begin` of the disk on; return which bytes `view` holds now.

        Spans that follow closely are read with it: what lies between is cheaper than a request.
        """
        first = begin - begin % DIRECT_ALIGNMENT
        limit = first + len(view)
        stop = min(spans[number][1], limit)
        for following in range(number + 1, len(spans)):
            at, end = spans[following]
            if not 0 <= at - stop <= GAP_BYTES or end > limit:
                break
            stop = end
        whole = stop - first + -(stop - first) % DIRECT_ALIGNMENT
        got = self._disk.read_into(view[:whole], first)
        if first + got < stop:
            raise DeviceReadError(f"{self._disk.path} ends at {first + got}, before byte {stop}")
        return range(first, stop)

    def _span(self, offset: int, length: int) -> tuple[int, int]:
        if offset + length > self.region.size:
            raise DeviceTooSmallError(
                f"{self.region.words} has {self.region.size} bytes, {offset + length} "
                f"shall be read back"
            )
        return self.region.offset + offset, self.region.offset + offset + length

    def close(self) -> None:
        """Close the descriptor."""
        self._disk.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _differing(
    held: memoryview, made: memoryview, step: int, grain: int
) -> Generator[tuple[int, int], None, None]:
    """Yield which steps of two stretches of memory differ, and of these which grains."""
    one, other = _address(held), _address(made)
    compare = _memcmp()
    for at in range(0, len(made), step):
        size = min(step, len(made) - at)
        if not compare(one + at, other + at, size):
            continue
        for begin in range(at, at + size, grain):
            end = min(begin + grain, at + size)
            if compare(one + begin, other + begin, end - begin):
                yield begin, end


def _address(data: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(data))


@cache
def _memcmp() -> Callable[[int, int, int], int]:
    """Return memcmp(3), which lets other threads run; views are compared byte by byte instead."""
    function = ctypes.CDLL(None).memcmp
    function.restype = ctypes.c_int
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    compare: Callable[[int, int, int], int] = function
    return compare
