"""Boot control: one contract (`control.py`), one file a boot loader, found here by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeAlias

from partitions import (
    efi_firmware,
    firmware,
    grub_firmware,
    systemd_boot_firmware,
    uboot_firmware,
)
from partitions.boot import custom, systemd_boot
from partitions.boot.control import BootControl, BootState, SlotState
from partitions.boot.custom import CustomCommand
from partitions.boot.detection import AUTO, Choice, choose_loader
from partitions.boot.efi import EfiBootEntries
from partitions.boot.gptprio import GptPriorities
from partitions.boot.grubenv import GrubEnvironment
from partitions.boot.systemd_boot import SystemdBootEntries
from partitions.boot.uboot import UbootEnvironment
from partitions.boot_folder import BootFolder
from partitions.efi_variables import EfiVariables
from partitions.errors import BootControlError
from partitions.slots import Slot, SlotLayout

__all__ = [
    "AUTO",
    "KEEPERS",
    "MODELS",
    "BootControl",
    "BootState",
    "Choice",
    "Keeper",
    "Model",
    "Places",
    "SlotState",
    "choose_loader",
    "obstacle",
    "open_boot_control",
    "power_on",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where a machine's slots and its loader's memory are; each loader takes what it needs.

    Attributes:
        disk: a disk file, a whole-disk device or a partition of the disk.
        layout: the partitions of both slots.
        grubenv: the file of GRUB's environment.
        boot_folder: where the loader's partition (ESP or XBOOTLDR) is mounted.
        uboot_config: says where U-Boot's environment is, as fw_env.config does.
        efivars: where the firmware's variables are mounted.
        custom_command: the integrator's program and its first arguments.
    """

    disk: Path
    layout: SlotLayout
    grubenv: Path | None = None
    boot_folder: Path = Path("/boot")
    uboot_config: Path = Path("/etc/fw_env.config")
    efivars: Path = Path("/sys/firmware/efi/efivars")
    custom_command: tuple[str, ...] = ()

    @property
    def environment(self) -> Path:
        """The file of GRUB's environment, for a loader that needs one.

        Raises:
            BootControlError: none is named.
        """
        if self.grubenv is None:
            raise BootControlError("the boot control grubenv needs the path of GRUB's environment")
        return self.grubenv


Keeper: TypeAlias = Callable[[Places, Slot | None], BootControl]
"""Makes the boot control of a machine; the slot is the booted one."""

Model: TypeAlias = Callable[[Places], Slot]
"""Boots once as the loader would, and says which slot it is."""

KEEPERS: Final[Mapping[str, Keeper]] = MappingProxyType(
    {
        "gptprio": lambda at, booted: GptPriorities(at.disk, at.layout, booted=booted),
        "grubenv": lambda at, booted: GrubEnvironment(at.environment, booted=booted),
        "systemd-boot": lambda at, booted: SystemdBootEntries(
            BootFolder(at.boot_folder), booted=booted
        ),
        "efi": lambda at, booted: EfiBootEntries(EfiVariables(at.efivars), booted=booted),
        "uboot": lambda at, booted: UbootEnvironment(at.uboot_config, booted=booted),
        "custom": lambda at, booted: CustomCommand(at.custom_command, booted=booted),
    }
)
"""Each boot loader that we can speak to, by the name that the settings use."""

MODELS: Final[Mapping[str, Model]] = MappingProxyType(
    {
        "gptprio": lambda at: firmware.boot(at.disk, at.layout),
        "grubenv": lambda at: grub_firmware.boot(at.environment),
        "systemd-boot": lambda at: systemd_boot_firmware.boot(at.boot_folder),
        "efi": lambda at: efi_firmware.boot(at.efivars),
        "uboot": lambda at: uboot_firmware.boot(at.uboot_config),
        "custom": lambda at: custom.boot(at.custom_command),
    }
)
"""What each of them does at power-on, for tests and the demo."""


def open_boot_control(name: str, places: Places, *, booted: Slot | None = None) -> BootControl:
    """Return the keeper of that name; nothing is read before the first call of a verb.

    Raises:
        BootControlError: there is no keeper of that name, or it needs a place that is not named.
    """
    keeper = KEEPERS.get(name)
    if keeper is None:
        raise BootControlError(f"no boot control {name!r}; there are: {', '.join(KEEPERS)}")
    return keeper(places, booted)


def obstacle(name: str, places: Places) -> BootControlError | None:
    """Return why the loader of that name does not go by its memory of the slots, None if it does.

    Only systemd-boot has what can come before: a default, and other systems' entries.

    Raises:
        BootControlError: the loader's memory cannot be read.
    """
    if name != "systemd-boot":
        return None
    return systemd_boot.obstacle(BootFolder(places.boot_folder))


def power_on(name: str, places: Places) -> Slot:
    """Boot once as the loader of that name would: choose, count the try, say which slot it is.

    Raises:
        NothingBootableError: the loader would stop.
        BootControlError: there is no model of that name, or the loader's memory is unusable.
        PartitionsError: the disk cannot be used.
    """
    model = MODELS.get(name)
    if model is None:
        raise BootControlError(f"no boot control {name!r}; there are: {', '.join(MODELS)}")
    return model(places)
