"""A machine made of a disk file, the firmware model and a process for each boot.

The power supply (`python -m updater.machine_model --config FILE`) stands for mains, firmware
and kernel: at every boot the model of the loader that the settings name chooses a slot, on the
real GPT of the disk file or in a real GRUB environment; the volatile run folder is emptied, and
the daemon is started. When the daemon orders a reboot by `reboot()`, it is killed without a
farewell and the machine boots again. For tests and the demo; the engine above it is the shipped
one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from typing_extensions import override

from images.release import ImageFacts, parse_image_facts
from partitions.slots import Slot, SlotLayout, resolve
from updater.machine import (
    IMAGE_FACTS_MAX_BYTES,
    IMAGE_FACTS_PATH,
    TRUSTED_ROOT_MAX_BYTES,
    TRUSTED_ROOT_PATH,
    Boot,
    BootedSlotError,
    Identity,
    Inhibitor,
    Machine,
    MachineError,
)
from updater.slot_files import file_systems_first, read_file

if TYPE_CHECKING:
    from updater.settings import Settings

BOOT_FILE: Final = "model-boot.json"
REBOOT_FILE: Final = "model-reboot"
STOPPING_FILE: Final = "model-stopping"  # a person has ordered an orderly shutdown
POLL_SECS: Final = 0.05
RESTART_DELAY_SECS: Final = 0.5  # as RestartSec= of the service


class BootRecord(msgspec.Struct, frozen=True):
    """What the firmware model chose: slot "a" or "b", an id of this boot, and when it began.

    `began` counts seconds by CLOCK_BOOTTIME of the computer that the model runs on.
    """

    slot: str
    boot_id: str
    began: float = 0.0


class ModelMachine(Machine):
    """The machine as the processes of one model boot see it."""

    def __init__(
        self, *, disk: Path, layout: SlotLayout, run_folder: Path, identity: Identity
    ) -> None:
        self._disk = disk
        self._layout = layout
        self._run_folder = run_folder
        self._identity = identity

    @override
    def boot(self) -> Boot:
        record = self._record()
        return Boot(slot=Slot(record.slot), boot_id=record.boot_id)

    @override
    def uptime(self) -> timedelta:
        return timedelta(seconds=time.clock_gettime(time.CLOCK_BOOTTIME) - self._record().began)

    @override
    def is_stopping(self) -> bool:
        return (self._run_folder / STOPPING_FILE).exists()

    @override
    def identity(self) -> Identity:
        return self._identity

    @override
    def image_facts(self, slot: Slot) -> ImageFacts:
        content = self._read(slot, IMAGE_FACTS_PATH, IMAGE_FACTS_MAX_BYTES)
        return parse_image_facts(content)

    @override
    def trusted_root(self) -> bytes:
        return self._read(self.boot().slot, TRUSTED_ROOT_PATH, TRUSTED_ROOT_MAX_BYTES)

    @override
    def system_folders(self) -> Sequence[Path]:
        return ()  # the model stands on a file of somebody else's system

    @override
    def inhibitors(self) -> Sequence[Inhibitor]:
        return ()

    @override
    def reboot(self) -> None:
        (self._run_folder / REBOOT_FILE).touch()

    def _record(self) -> BootRecord:
        path = self._run_folder / BOOT_FILE
        try:
            return msgspec.json.decode(path.read_bytes(), type=BootRecord)
        except (OSError, msgspec.MsgspecError) as error:
            raise BootedSlotError(f"the model machine is not booted: {path}: {error}") from error

    def _read(self, slot: Slot, path: str, max_bytes: int) -> bytes:
        regions = resolve(self._disk, self._layout)[slot]
        failure: MachineError | None = None
        for region in file_systems_first(regions):
            try:
                return read_file(region, path, max_bytes=max_bytes)
            except MachineError as error:
                failure = error
        raise failure or MachineError(f"slot {slot.value} has no parts")


class PowerSupply:
    """Mains, firmware and kernel of a model machine.

    Args:
        firmware: boots once and says which slot it is.
        run_folder: what a boot empties.
        daemon: the command that stands for the booted system.
    """

    def __init__(
        self, *, firmware: Callable[[], Slot], run_folder: Path, daemon: Sequence[str]
    ) -> None:
        self._firmware = firmware
        self._run_folder = run_folder
        self._daemon = list(daemon)
        self._off = False

    def switch_off(self) -> None:
        """End the machine: the next look of `run` stops it."""
        self._off = True

    def boot_once(self) -> BootRecord:
        """Let the firmware model choose, as at power-on; returns what it booted.

        Raises:
            PartitionsError: nothing bootable, or the loader's memory is unusable.
        """
        slot = self._firmware()
        shutil.rmtree(self._run_folder, ignore_errors=True)
        self._run_folder.mkdir(parents=True)
        record = BootRecord(
            slot=slot.value,
            boot_id=str(uuid.uuid4()),
            began=time.clock_gettime(time.CLOCK_BOOTTIME),
        )
        (self._run_folder / BOOT_FILE).write_bytes(msgspec.json.encode(record))
        return record

    def run(self, *, boots: int | None = None) -> None:
        """Boot, run the daemon, boot again when it asks; at most `boots` times.

        Raises:
            PartitionsError: the firmware model found nothing to boot.
        """
        done = 0
        while not self._off and (boots is None or done < boots):
            record = self.boot_once()
            print(f"firmware booted slot={record.slot} boot={done + 1}", flush=True)  # noqa: T201  # the machine's console
            done += 1
            self._run_system()

    def _run_system(self) -> None:
        """Keep the daemon running, as systemd does, until a reboot is asked for."""
        while self._running():
            with subprocess.Popen(self._daemon, start_new_session=True) as process:
                try:
                    while process.poll() is None and self._running():
                        time.sleep(POLL_SECS)
                finally:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGTERM if self._off else signal.SIGKILL)
            if self._running():
                time.sleep(RESTART_DELAY_SECS)

    def _running(self) -> bool:
        return not self._off and not (self._run_folder / REBOOT_FILE).exists()


def make(settings: Settings, layout: SlotLayout) -> ModelMachine:
    """Build the model machine that the settings describe."""
    alias = settings.node.alias or socket.gethostname()
    machine_id = Path(settings.node.machine_id_file).read_text().strip()
    return ModelMachine(
        disk=Path(settings.slots.disk),
        layout=layout,
        run_folder=Path(settings.node.run_folder),
        identity=Identity(machine_id=machine_id, host=alias),
    )


def power_supply(settings: Settings, *, daemon: Sequence[str]) -> PowerSupply:
    """Build the mains of the model machine that the settings describe, with its loader."""
    from partitions.boot import power_on
    from updater.assembly import places, slot_layout

    where = places(settings, slot_layout(settings))
    return PowerSupply(
        firmware=lambda: power_on(settings.slots.boot_control, where),
        run_folder=Path(settings.node.run_folder),
        daemon=daemon,
    )


def main(arguments: Sequence[str]) -> int:
    """Run a model machine until it is told to stop.

    Args:
        arguments: `--config FILE` of the node.
    """
    from updater.settings import load

    config = Path(arguments[arguments.index("--config") + 1])
    daemon = [sys.executable, "-m", "updater.cli", "--config", str(config), "daemon"]
    supply = power_supply(load(config).settings, daemon=daemon)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supply.switch_off())
    supply.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
