"""A model of GRUB with `boot/grub-ab.cfg`: chooses, counts a try, saves the environment.

The script's five variables as a value, its choice as pure functions, and `boot`, which does the one
write. Facts: the script itself, which a real GRUB runs beside this model in the tests.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Self

from partitions import grub_block
from partitions.disk import Access, open_disk
from partitions.errors import NothingBootableError
from partitions.marks import Mark, Marks
from partitions.slots import Slot

log = logging.getLogger(__name__)

ORDER: Final = b"ORDER"
_SLOTS: Final = MappingProxyType({slot.value.upper().encode(): slot for slot in Slot})
_BLANKS: Final = re.compile(rb"[ \t\r\n]+")  # where GRUB splits a variable into words


@dataclass(frozen=True, slots=True)
class GrubMemory(Marks):
    """ORDER, A_OK, A_TRY, B_OK and B_TRY as the script reads them."""

    @classmethod
    def of(cls, block: bytes) -> Self:
        """Read a block; whatever the script would not understand is not bootable.

        Nor is a trial when GRUB would refuse to save: a try that cannot be counted is none.
        """
        values = grub_block.variables(block)
        counts = grub_block.is_writable(block)
        words = _BLANKS.split(values.get(ORDER, b""))
        return cls.ordered(
            (_SLOTS[word] for word in words if word in _SLOTS),
            {slot: _mark(values, slot, counts=counts) for slot in Slot},
        )

    @property
    def values(self) -> dict[bytes, bytes]:
        """The variables; their widths are the same in every memory."""
        found = {ORDER: b" ".join(_word(slot) for slot in self.order)}
        for slot, mark in self.marks.items():
            found[_word(slot) + b"_OK"] = b"1" if mark.confirmed else b"0"
            found[_word(slot) + b"_TRY"] = b"%d" % mark.tries
        return found


def boot(path: Path) -> Slot:
    """Boot once: choose, count the try in the file, and say which slot it is.

    Nothing is written for a confirmed slot.

    Args:
        path: the environment's file.

    Raises:
        NothingBootableError: the script would leave its choice empty.
        GrubenvInvalidError: the file is no environment block.
        DeviceError: the file cannot be read or written.
    """
    with open_disk(path, Access.WRITE) as file:
        block = grub_block.load(file, path)
        chosen, saved = choose(block)
        if saved != block:
            file.pwrite(0, saved)
            file.sync()
    if chosen is None:
        raise NothingBootableError(f"{path}: neither slot is confirmed or has tries left")
    log.info("firmware boots slot=%s", chosen.value)
    return chosen


def choose(block: bytes) -> tuple[Slot | None, bytes]:
    """Return the slot that the script chooses, and the block that it leaves behind."""
    memory = GrubMemory.of(block)
    slot = memory.target
    if slot is None or memory.marks[slot].confirmed:
        return slot, block
    left = b"%d" % (memory.marks[slot].tries - 1)
    return slot, grub_block.with_value(block, _word(slot) + b"_TRY", left)


def _word(slot: Slot) -> bytes:
    return slot.value.upper().encode()


def _mark(values: Mapping[bytes, bytes], slot: Slot, *, counts: bool) -> Mark:
    return Mark.of(
        tries=values.get(_word(slot) + b"_TRY", b"") if counts else b"",
        confirmed=values.get(_word(slot) + b"_OK", b""),
    )
