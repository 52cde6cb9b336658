"""Boot control: one contract (`control.py`), one file a boot loader, found here by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol

from partitions.boot.control import BootControl, BootState, SlotState
from partitions.boot.gptprio import GptPriorities
from partitions.errors import BootControlError
from partitions.slots import Slot, SlotLayout

__all__ = ["KEEPERS", "BootControl", "BootState", "Keeper", "SlotState", "open_boot_control"]


class Keeper(Protocol):
    """Makes the boot control of one disk; the class of a keeper is one."""

    def __call__(
        self, disk: Path, layout: SlotLayout, *, booted: Slot | None = None
    ) -> BootControl:
        """Name the disk, its slots, and the slot that runs."""


KEEPERS: Final[Mapping[str, Keeper]] = MappingProxyType({"gptprio": GptPriorities})
"""Each boot loader that we can speak to, by the name that the settings use."""


def open_boot_control(
    name: str, disk: Path, layout: SlotLayout, *, booted: Slot | None = None
) -> BootControl:
    """Return the keeper of that name for a disk; the disk is read at the first call of a verb.

    Raises:
        BootControlError: there is no keeper of that name.
    """
    keeper = KEEPERS.get(name)
    if keeper is None:
        raise BootControlError(f"no boot control {name!r}; there are: {', '.join(KEEPERS)}")
    return keeper(disk, layout, booted=booted)
