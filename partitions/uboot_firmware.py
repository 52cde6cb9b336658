"""A model of U-Boot with `boot/uboot-ab.cmd`: chooses, counts a try, saves the environment.

The script's five variables as a value, its choice as pure functions, and `boot`, which does the one
write. Facts: the script itself, which a real U-Boot runs beside this model in the tests.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from partitions.errors import NothingBootableError
from partitions.marks import Mark, Marks
from partitions.slots import Slot
from partitions.uboot_env import with_values
from partitions.uboot_store import UbootEnv, changing, places_of

log = logging.getLogger(__name__)

ORDER: Final = b"BOOT_ORDER"
NAMES: Final = (ORDER, b"BOOT_a_LEFT", b"BOOT_a_OK", b"BOOT_b_LEFT", b"BOOT_b_OK")
_SLOTS: Final[Mapping[bytes, Slot]] = {slot.value.encode(): slot for slot in Slot}
_BLANKS: Final = re.compile(rb"[ \t\n]+")  # where U-Boot splits a variable into words


@dataclass(frozen=True, slots=True)
class UbootMemory(Marks):
    """BOOT_ORDER, BOOT_a_OK, BOOT_a_LEFT, BOOT_b_OK and BOOT_b_LEFT as the script reads them."""

    @classmethod
    def of(cls, variables: Mapping[bytes, bytes]) -> Self:
        """Read the variables; whatever the script would not understand is not bootable."""
        words = _BLANKS.split(variables.get(ORDER, b""))
        return cls.ordered(
            (_SLOTS[word] for word in words if word in _SLOTS),
            {
                slot: Mark.of(
                    tries=variables.get(left_of(slot), b""),
                    confirmed=variables.get(ok_of(slot), b""),
                )
                for slot in Slot
            },
        )

    @property
    def values(self) -> dict[bytes, bytes]:
        """The variables; their widths are the same in every memory."""
        found = {ORDER: b" ".join(slot.value.encode() for slot in self.order)}
        for slot, mark in self.marks.items():
            found[left_of(slot)] = b"%d" % mark.tries
            found[ok_of(slot)] = b"1" if mark.confirmed else b"0"
        return found


def left_of(slot: Slot) -> bytes:
    """Return the name of the variable that counts a slot's tries."""
    return f"BOOT_{slot.value}_LEFT".encode()


def ok_of(slot: Slot) -> bytes:
    """Return the name of the variable that confirms a slot."""
    return f"BOOT_{slot.value}_OK".encode()


def boot(config: Path) -> Slot:
    """Boot once: choose, count the try in the environment, and say which slot it is.

    Nothing is written for a confirmed slot.

    Args:
        config: says where the environment is, as fw_env.config does.

    Raises:
        NothingBootableError: the script would stop.
        UbootInvalidError: no copy of the environment is whole: it would stop, too.
        UbootNotAtomicError: a single copy could be torn.
        DeviceError: it cannot be read or written.
    """
    with changing(places_of(config)) as (env, writer):
        chosen, saved = choose(env)
        if saved != env:
            writer.store(saved)
    if chosen is None:
        raise NothingBootableError(f"{config}: neither slot is confirmed or has tries left")
    log.info("firmware boots slot=%s", chosen.value)
    return chosen


def choose(env: UbootEnv) -> tuple[Slot | None, UbootEnv]:
    """Return the slot that the script chooses, and the environment that it leaves behind.

    `saveenv` keeps all variables. `env export` keeps the script's five, sorted, and no others: a
    single copy is for the slots alone.
    """
    values = env.values
    memory = UbootMemory.of(values)
    slot = memory.target
    if slot is None or memory.marks[slot].confirmed:
        return slot, env
    counted = {left_of(slot): b"%d" % (memory.marks[slot].tries - 1)}
    if env.is_double:
        return slot, env.holding(with_values(env.entries, counted))
    known = {name: values[name] for name in NAMES if name in values} | counted
    return slot, env.holding(with_values((), known))
