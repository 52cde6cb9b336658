"""How much memory an install may take besides the ring of outputs: blobs, unpacking, large outputs.

Most operations are quick and need little; those that patch, or unpack and pack again, are slow and
need more. So the quick ones share a part of what all have: slow ones never wait for them alone.
"""

from __future__ import annotations

import threading
from typing import Final

from images.operations import Bytes, room_bytes, work_bytes
from images.payload import PATCHES, Operation, OperationKind
from updater.download import DownloadStoppedError
from updater.outputs import is_apart

# Blobs in flight and what is made of them on the way. One operation of any size always passes.
QUICK_BYTES: Final = 12 * 1024 * 1024
# The same together with operations that patch, or unpack and pack again: they are slow and need
# more. The largest, a part of an initrd, has room beside what is copied; a block of a kernel beside
# a patch. Measured with real deltas: an install stays within 64 MiB.
LIMIT_BYTES: Final = 48 * 1024 * 1024
SLOW: Final = PATCHES | {OperationKind.SOURCE_RECODE}


def cost_of(operation: Operation, blob: Bytes | None = None, *, block_size: int) -> int:
    """Return what an operation takes of the limit: its work, and its room outside of the ring."""
    return work_bytes(operation, blob) + apart_bytes(operation, block_size=block_size)


def apart_bytes(operation: Operation, *, block_size: int) -> int:
    """Return what of it the output takes, until it is written: nothing where the ring has it."""
    if not is_apart(operation, block_size=block_size):
        return 0
    return room_bytes(operation, block_size=block_size)


class InFlight:
    """The memory of both kinds; safe in threads. One operation of any size always passes."""

    def __init__(self) -> None:
        self._quick = _Limit(QUICK_BYTES)
        self._all = _Limit(LIMIT_BYTES)

    def take(self, operation: Operation, cost: int, *, has: int = 0) -> None:
        """Wait until an operation may take so many bytes, besides those that it has.

        Raises:
            DownloadStoppedError: the install ended.
        """
        if operation.kind not in SLOW:
            self._quick.take(cost, has)
        self._all.take(cost, has)

    def give(self, operation: Operation, cost: int) -> None:
        """Give bytes back that an operation took, or some of them."""
        if operation.kind not in SLOW:
            self._quick.give(cost)
        self._all.give(cost)

    def close(self) -> None:
        """Wake whoever waits: the install ended."""
        self._quick.close()
        self._all.close()


class _Limit:
    """Bytes in flight: `take` waits until there is room; whoever is alone always passes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._closed = False
        self._changed = threading.Condition()

    def take(self, amount: int, has: int) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self._taken == has or self._taken + amount <= self._limit
            )
            if self._closed:
                raise DownloadStoppedError("the install ended")
            self._taken += amount

    def give(self, amount: int) -> None:
        with self._changed:
            self._taken -= amount
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
