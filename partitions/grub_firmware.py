"""A model of GRUB with `boot/grub-ab.cfg`: chooses, counts a try, saves the environment.

The script's five variables as a value, its choice as pure functions, and `boot`, which does the one
write. Facts: the script itself, which a real GRUB runs beside this model in the tests.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final, Self

from partitions import grub_block
from partitions.disk import Access, open_disk
from partitions.errors import NothingBootableError
from partitions.slots import Slot

log = logging.getLogger(__name__)

TRIES_MAX: Final = 9  # one digit: so a value never changes its width
ORDER: Final = b"ORDER"
_SLOTS: Final = MappingProxyType({slot.value.upper().encode(): slot for slot in Slot})
_BLANKS: Final = re.compile(rb"[ \t\r\n]+")  # where GRUB splits a variable into words


@dataclass(frozen=True, slots=True)
class Mark:
    """What GRUB knows of one slot.

    Attributes:
        tries: boots left, 0 to 9; not counted when confirmed.
        confirmed: whether it boots for ever.
    """

    tries: int = 0
    confirmed: bool = False

    @property
    def bootable(self) -> bool:
        """Whether GRUB may choose it."""
        return self.confirmed or self.tries > 0


NEVER: Final = Mark()


@dataclass(frozen=True, slots=True)
class GrubMemory:
    """ORDER, A_OK, A_TRY, B_OK and B_TRY as the script reads them.

    Attributes:
        order: both slots, the preferred one first.
        marks: of each slot. One that ORDER does not name has `NEVER`.
    """

    order: tuple[Slot, ...] = (Slot.A, Slot.B)
    marks: Mapping[Slot, Mark] = field(default_factory=lambda: dict.fromkeys(Slot, NEVER))

    @classmethod
    def of(cls, block: bytes) -> Self:
        """Read a block; whatever the script would not understand is not bootable.

        Nor is a trial when GRUB would refuse to save: a try that cannot be counted is none.
        """
        values = grub_block.variables(block)
        counts = grub_block.is_writable(block)
        words = _BLANKS.split(values.get(ORDER, b""))
        named = dict.fromkeys(_SLOTS[word] for word in words if word in _SLOTS)
        first, second = [*named, *(slot for slot in Slot if slot not in named)]
        return cls(
            order=(first, second),
            marks={
                slot: _mark(values, slot, counts=counts) if slot in named else NEVER
                for slot in Slot
            },
        )

    @property
    def target(self) -> Slot | None:
        """The slot that the script would choose, or nothing."""
        return next((slot for slot in self.order if self.marks[slot].bootable), None)

    @property
    def values(self) -> dict[bytes, bytes]:
        """The variables; their widths are the same in every memory."""
        found = {ORDER: b" ".join(_word(slot) for slot in self.order)}
        for slot, mark in self.marks.items():
            found[_word(slot) + b"_OK"] = b"1" if mark.confirmed else b"0"
            found[_word(slot) + b"_TRY"] = b"%d" % mark.tries
        return found

    def marked(self, slot: Slot, mark: Mark) -> Self:
        """Return a memory in which that slot has that mark."""
        return replace(self, marks={**self.marks, slot: mark})

    def preferring(self, slot: Slot) -> Self:
        """Return a memory in which that slot comes first."""
        return replace(self, order=(slot, slot.other))


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
    tries = values.get(_word(slot) + b"_TRY", b"")
    return Mark(
        tries=int(tries) if counts and re.fullmatch(rb"[0-9]", tries) else 0,
        confirmed=values.get(_word(slot) + b"_OK") == b"1",
    )
