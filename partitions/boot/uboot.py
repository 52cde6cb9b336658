"""The boot loader's memory in U-Boot's environment: BOOT_ORDER, BOOT_a_OK, BOOT_a_LEFT and so on.

U-Boot runs `uboot-ab.cmd`, which stands beside this file. Each verb writes one copy whole: of two
the one that does not count; a single one must lie within one sector. In place and not by a rename,
which FAT does not do at once (decision 0010).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from typing_extensions import override

from partitions.boot.marked import MarkedSlots, refuse_stop
from partitions.errors import BootControlError
from partitions.slots import Slot
from partitions.uboot_env import with_values
from partitions.uboot_firmware import UbootMemory
from partitions.uboot_store import changing, compare, load, places_of

log = logging.getLogger(__name__)


class UbootEnvironment(MarkedSlots[UbootMemory]):
    """Keeps `BootControl` in the environment that U-Boot boots with."""

    def __init__(self, config: Path, *, booted: Slot | None = None) -> None:
        """Name the configuration; it is read by each call, and nothing is kept open.

        Args:
            config: says where the environment is, as fw_env.config does for `fw_setenv`.
            booted: the slot that runs; `disarm` refuses it.
        """
        super().__init__(booted)
        self._config = config

    @override
    def _recall(self) -> UbootMemory:
        return UbootMemory.of(load(places_of(self._config)).values)

    @override
    def _change(self, verb: str, slot: Slot, edit: Callable[[UbootMemory], UbootMemory]) -> None:
        places = places_of(self._config)
        with changing(places) as (env, writer):
            before = UbootMemory.of(env.values)
            memory = edit(before)
            refuse_stop(verb, slot, before, memory)
            entries = with_values(env.entries, memory.values)
            if entries == env.entries:
                return
            new = env.holding(entries)
            writer.store(new)
            try:
                compare(places, new)
            except BootControlError:
                if not env.is_double:
                    writer.store(env)  # what it keeps instead boots nothing
                raise
        log.info("slot %s slot=%s config=%s", verb, slot.value, self._config)
