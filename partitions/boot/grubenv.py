"""The boot loader's memory in GRUB's environment block: ORDER, A_OK, A_TRY, B_OK, B_TRY.

GRUB runs `grub-ab.cfg`, which stands beside this file. Each verb changes bytes within one sector of
512 bytes, in place, so that a power cut leaves the block before or the block after. In place and
not by a rename, since GRUB does not replay journals (decision 0006).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from typing_extensions import override

from partitions import grub_block
from partitions.boot.marked import MarkedSlots, refuse_stop
from partitions.copies import Disk
from partitions.disk import Access, open_disk
from partitions.errors import (
    BootControlError,
    GrubenvCrowdedError,
    GrubenvInvalidError,
)
from partitions.grub_firmware import GrubMemory
from partitions.slots import Slot

log = logging.getLogger(__name__)

SECTOR_BYTES: Final = 512  # no disk writes less than that, or a part of that


class GrubEnvironment(MarkedSlots[GrubMemory]):
    """Keeps `BootControl` in the file that GRUB loads its environment from."""

    def __init__(self, path: Path, *, booted: Slot | None = None) -> None:
        """Name the file; it is opened by each call and never kept open.

        Args:
            path: the environment's file, 1024 bytes, on a file system that GRUB can write.
            booted: the slot that runs; `disarm` refuses it.
        """
        super().__init__(booted)
        self._path = path

    @override
    def _recall(self) -> GrubMemory:
        with open_disk(self._path, Access.READ) as file:
            return GrubMemory.of(grub_block.load(file, self._path))

    @override
    def _change(self, verb: str, slot: Slot, edit: Callable[[GrubMemory], GrubMemory]) -> None:
        with open_disk(self._path, Access.WRITE) as file:
            file.lock()
            block = grub_block.load(file, self._path)
            before = GrubMemory.of(block)
            memory = edit(before)
            refuse_stop(verb, slot, before, memory)
            new = edited(block, memory.values)
            if new == block:
                return
            store(file, new)
            try:
                self._compare(new)
            except BootControlError:
                store(file, block)  # what it keeps instead may boot nothing
                raise
        log.info("slot %s slot=%s file=%s", verb, slot.value, self._path)

    def _compare(self, new: bytes) -> None:
        with open_disk(self._path, Access.READ_PAST_CACHE) as file:
            if grub_block.load(file, self._path) != new:
                raise BootControlError(f"{self._path} does not keep what was written to it")


def store(file: Disk, block: bytes) -> None:
    """Write the block over the one in the file, and return when it is durable.

    Raises:
        DeviceWriteError: the device failed.
    """
    file.pwrite(0, block)
    file.sync()


def edited(block: bytes, values: Mapping[bytes, bytes]) -> bytes:
    """Return the block with these values, changed within one sector.

    The variables come first in the block; where bringing them there would touch both sectors, they
    are changed where they stand.

    Raises:
        GrubenvCrowdedError: neither way touches one sector alone, or there is no room.
    """
    for way in (_brought_to_front, _changed_in_place):
        try:
            new = way(block, values)
        except (GrubenvCrowdedError, GrubenvInvalidError):
            continue
        if _sectors_changed(block, new) <= 1 and _holds(new, values):
            return new
    raise GrubenvCrowdedError(
        f"{', '.join(name.decode() for name in values)} cannot be changed within one sector of "
        f"{SECTOR_BYTES} bytes; the block uses {len(block.rstrip(b'#'))} bytes"
    )


def _brought_to_front(block: bytes, values: Mapping[bytes, bytes]) -> bytes:
    ours = b"".join(grub_block.assignment(name, value) for name, value in values.items())
    others = (line for line in grub_block.lines(block) if _is_kept(line, values))
    return grub_block.filled(grub_block.SIGNATURE + ours + b"".join(others))


def _is_kept(line: bytes, values: Mapping[bytes, bytes]) -> bool:
    """Tell whether a line is somebody else's; without `=` it would only spoil the next one."""
    return line.startswith(b"#") or (b"=" in line and line.partition(b"=")[0] not in values)


def _changed_in_place(block: bytes, values: Mapping[bytes, bytes]) -> bytes:
    for name, value in values.items():
        block = grub_block.with_value(block, name, value)
    return block


def _sectors_changed(old: bytes, new: bytes) -> int:
    sectors = range(0, grub_block.BLOCK_BYTES, SECTOR_BYTES)
    return sum(old[at : at + SECTOR_BYTES] != new[at : at + SECTOR_BYTES] for at in sectors)


def _holds(block: bytes, values: Mapping[bytes, bytes]) -> bool:
    """Tell whether GRUB loads these values, and saves each where it loads it from."""
    names = [line.partition(b"=")[0] for line in grub_block.lines(block)]
    found = grub_block.variables(block)
    return all(found.get(name) == value for name, value in values.items()) and all(
        names.count(name) == 1 for name in values
    )
