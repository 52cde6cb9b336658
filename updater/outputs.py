"""Where operations make their output: side by side in one ring of memory, in their order.

So the dictionary of an operation, which is what those before it made, is one stretch of memory
that nobody copies, and each output begins where direct writes may. The ring's pages are mapped
twice, one after the other: a stretch that goes over the end goes on in the second mapping.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from images.operations import room_bytes
from images.payload import READS_TARGET, Operation, OperationKind, Step
from updater.download import DownloadStoppedError

IN_FLIGHT_BYTES: Final = 8 * 1024 * 1024  # outputs under way besides what must be kept
BESIDE_LATE_BYTES: Final = 4 * 1024 * 1024  # the same where late ones need most of the memory
APART_BYTES: Final = 4 * 1024 * 1024  # a larger output has memory of its own: nothing refers to it
LATE: Final = frozenset({OperationKind.SOURCE_RECODE})  # the same: slow ones, which others pass
_MAP_SHARED: Final = 0x01  # sys/mman.h
_MAP_FIXED: Final = 0x10


@dataclass(frozen=True, slots=True)
class Layout:
    """How much of the ring each operation takes, and how long it must be kept.

    Attributes:
        starts: where the output of each operation begins, as if the ring had no end; one more
            than there are operations.
        kept: of each operation the first whose output is still needed when it is made.
        size: bytes of the ring.
        referred: the operations that are in the dictionary of one that is made by unpacking.
    """

    starts: Sequence[int]
    kept: Sequence[int]
    size: int
    referred: frozenset[int]

    @classmethod
    def of(
        cls, steps: Sequence[Step], *, begin: int, block_size: int, made: Callable[[int], bool]
    ) -> Layout:
        """Lay out the operations from `begin` on, and what their dictionaries need of those before.

        Args:
            steps: all of the payload.
            begin: the first that is carried out.
            block_size: bytes of a block.
            made: tells whether an operation is made by unpacking its blob, by its number.
        """
        firsts = first_numbers(steps)
        kept = array("Q", range(len(steps)))
        nearest = len(steps)
        referred: set[int] = set()
        for number in range(len(steps) - 1, begin - 1, -1):
            step = steps[number]
            if step.part is not None and step.operation.kind in READS_TARGET and made(number):
                first = firsts[step.part.name]
                nearest = min(nearest, first + step.operation.dictionary_first)
                referred.update(first + used for used in step.operation.dictionary)
            kept[number] = min(nearest, number)
        needed = kept[begin] if begin < len(steps) else begin
        sizes = [
            _ring_bytes(step, block_size) if number >= needed else 0
            for number, step in enumerate(steps)
        ]
        starts = array("Q", accumulate(sizes, initial=0))
        most = max((starts[n + 1] - starts[kept[n]] for n in range(begin, len(steps))), default=0)
        late = any(step.operation.kind in LATE for step in steps)
        size = most + (BESIDE_LATE_BYTES if late else IN_FLIGHT_BYTES) if most else 0
        return cls(starts, kept, size + -size % mmap.ALLOCATIONGRANULARITY, frozenset(referred))


def first_numbers(steps: Sequence[Step]) -> dict[str, int]:
    """Return the number of each part's first operation."""
    firsts: dict[str, int] = {}
    for number, step in enumerate(steps):
        if step.part is not None:
            firsts.setdefault(step.part.name, number)
    return firsts


def is_apart(operation: Operation, *, block_size: int) -> bool:
    """Tell whether an output has memory of its own, besides the ring."""
    return operation.kind in LATE or room_bytes(operation, block_size=block_size) > APART_BYTES


def _ring_bytes(step: Step, block_size: int) -> int:
    if step.part is None or is_apart(step.operation, block_size=block_size):
        return 0
    return room_bytes(step.operation, block_size=block_size)


class Outputs:
    """Gives each operation its room, and waits while what is there is still needed.

    `room` and `dictionary` are for one thread; `written` may be another's.
    """

    def __init__(self, layout: Layout, begin: int) -> None:
        """Map the ring.

        Raises:
            OSError: there is no memory.
        """
        self._layout = layout
        self._ring = mirrored(layout.size) if layout.size else None
        self._changed = threading.Condition()
        self._unwritten = begin
        self._closed = False

    @property
    def needed(self) -> int:
        """The first operation whose output must be there before the first one is made."""
        kept, begin = self._layout.kept, self._unwritten
        return kept[begin] if begin < len(kept) else begin

    def room(self, number: int, operation: Operation, *, block_size: int) -> memoryview:
        """Return where an operation makes its output; waits until those before it are written.

        Raises:
            DownloadStoppedError: the install ended.
        """
        size = room_bytes(operation, block_size=block_size)
        if is_apart(operation, block_size=block_size):
            return memoryview(mmap.mmap(-1, max(1, size)))[:size]
        starts, kept = self._layout.starts, self._layout.kept
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._closed
                    or starts[number + 1] - starts[kept[self._unwritten]] <= self._layout.size
                )
            )
            if self._closed:
                raise DownloadStoppedError("the install ended")
        return self._stretch(starts[number], size)

    def dictionary(self, first: int, count: int) -> memoryview:
        """Return what `count` operations from `first` on make, as one; it may not be made yet."""
        starts = self._layout.starts
        return self._stretch(starts[first], starts[first + count] - starts[first])

    def written(self, number: int) -> None:
        """Let go of an operation and those before it, as far as no other one needs them."""
        with self._changed:
            self._unwritten = max(self._unwritten, number + 1)
            self._changed.notify_all()

    def give_back(self, number: int) -> None:
        """Give the system the ring's pages before an operation that needs much memory by itself.

        Not where dictionaries need what operations made.

        Args:
            number: waits until all operations before this one are written.

        Raises:
            DownloadStoppedError: the install ended.
        """
        if self._layout.referred:
            return
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._unwritten >= number)
            if self._closed:
                raise DownloadStoppedError("the install ended")
        if self._ring is not None:
            self._ring.madvise(mmap.MADV_REMOVE, 0, self._layout.size)

    def close(self) -> None:
        """Wake whoever waits; the memory lives as long as a view of it."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _stretch(self, start: int, size: int) -> memoryview:
        if self._ring is None or not size:
            return memoryview(bytearray())
        begin = start % self._layout.size
        return memoryview(self._ring)[begin : begin + size]


def mirrored(size: int) -> mmap.mmap:
    """Return memory of twice `size` bytes whose halves are the same pages.

    Args:
        size: a multiple of the page size.

    Raises:
        OSError: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
    memory = mmap.mmap(-1, 2 * size)  # owns the addresses: what is mapped over them goes with it
    descriptor = os.memfd_create("bascule-outputs", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, size)
        base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for at in (base, base + size):
            flags = _MAP_SHARED | _MAP_FIXED
            access = mmap.PROT_READ | mmap.PROT_WRITE
            if libc.mmap(at, size, access, flags, descriptor, 0) != at:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))
    finally:
        os.close(descriptor)
    return memory
