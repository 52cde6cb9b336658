"""A real Linux system: the booted slot by device number, identity, reboot by a command."""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from typing_extensions import override

from images.release import ImageFacts, parse_image_facts
from partitions.booted import Booted, booted_slot
from partitions.slots import Slot, SlotLayout, resolve
from updater.errors import UpdaterError
from updater.inhibitors import list_inhibitors
from updater.machine import (
    IMAGE_FACTS_MAX_BYTES,
    IMAGE_FACTS_PATH,
    TRUSTED_ROOT_MAX_BYTES,
    TRUSTED_ROOT_PATH,
    Boot,
    BootedSlotError,
    Identity,
    ImageFactsError,
    Inhibitor,
    Machine,
    MachineError,
    RebootError,
)
from updater.processes import CommandError, run
from updater.slot_files import file_systems_first, read_file

BOOT_ID_FILE: Final = Path("/proc/sys/kernel/random/boot_id")
REBOOT_TIMEOUT_SECS: Final = 90.0
STATE_TIMEOUT_SECS: Final = 5.0
KERNEL_LOG_FOLDERS: Final = ("var/lib/systemd/pstore", "sys/fs/pstore")
KERNEL_LOGS_LOOKED_AT: Final = 200
KERNEL_LOGS_NAMED: Final = 2


class LinuxMachine(Machine):
    """The running system.

    Args:
        disk: the disk that the slots are on.
        layout: which partitions make a slot.
        machine_id_file: 32 hex digits, as in machine-id(5).
        alias: the name people know, empty for the host name.
        reboot_command: what orders a reboot.
        boot_folder: where the loader's partition is mounted.
        root: where the running system's tree is mounted; for tests.
    """

    def __init__(
        self,
        *,
        disk: Path,
        layout: SlotLayout,
        machine_id_file: Path,
        alias: str,
        reboot_command: Sequence[str],
        boot_folder: Path = Path("/boot"),
        root: Path = Path("/"),
    ) -> None:
        self._disk = disk
        self._layout = layout
        self._machine_id_file = machine_id_file
        self._alias = alias
        self._reboot_command = list(reboot_command)
        self._boot_folder = boot_folder
        self._root = root

    @override
    def boot(self) -> Boot:
        """Find the slot that holds /usr or /, through dm-verity and the like.

        Raises:
            BootedSlotError: none of the slots' partitions is below the running system.
        """
        mounts = Booted.of_mounts(self._system_folders)
        slot = booted_slot(resolve(self._disk, self._layout), mounts)
        if slot is None:
            raise BootedSlotError(f"the running system is on none of the slots of {self._disk}")
        return Boot(slot=slot, boot_id=BOOT_ID_FILE.read_text().strip())

    @override
    def uptime(self) -> timedelta:
        return timedelta(seconds=time.clock_gettime(time.CLOCK_BOOTTIME))

    @override
    def is_stopping(self) -> bool:
        """Ask systemd; a system without it is never seen to stop."""
        try:
            outcome = run(["systemctl", "is-system-running"], timeout_secs=STATE_TIMEOUT_SECS)
        except CommandError:
            return False
        return outcome.output.strip() == b"stopping"

    @override
    def identity(self) -> Identity:
        try:
            machine_id = self._machine_id_file.read_text().strip()
        except OSError as error:
            raise MachineError(f"{self._machine_id_file}: {error.strerror}") from error
        return Identity(machine_id=machine_id, host=self._alias or socket.gethostname())

    @override
    def image_file(self, slot: Slot) -> bytes:
        if slot is self.boot().slot:
            return _read_bounded(self._root / IMAGE_FACTS_PATH[1:], IMAGE_FACTS_MAX_BYTES)
        return self._read_unmounted(slot)

    @override
    def image_facts(self, slot: Slot) -> ImageFacts:
        return parse_image_facts(self.image_file(slot))

    @override
    def trusted_root(self) -> bytes:
        return _read_bounded(self._root / TRUSTED_ROOT_PATH[1:], TRUSTED_ROOT_MAX_BYTES)

    @override
    def apart(self) -> Sequence[tuple[Path, Path]]:
        """Keep boot files off the booted slot, and those of the boot folder off the root as well.

        The root may be no slot, as Flatcar's is, where only /usr is one: other files may be there.
        """
        regions = resolve(self._disk, self._layout)
        slots = [
            (Path("/"), folder)
            for folder in self._system_folders
            if folder.exists() and booted_slot(regions, Booted.of_mounts([folder]))
        ]
        return (*slots, (self._boot_folder, self._root))

    @property
    def _system_folders(self) -> Sequence[Path]:
        return (self._root, self._root / "usr")

    @override
    def kernel_logs(self, since: datetime) -> Sequence[str]:
        """Look where pstore has them, and where systemd-pstore.service moves them to."""
        found: list[tuple[float, str]] = []
        for folder in KERNEL_LOG_FOLDERS:
            with contextlib.suppress(OSError):
                for path in itertools.islice(
                    (self._root / folder).iterdir(), KERNEL_LOGS_LOOKED_AT
                ):
                    changed = path.stat().st_mtime
                    if changed >= since.timestamp():
                        found.append((changed, f"/{folder}/{path.name}"))
        return [path for _, path in sorted(found, reverse=True)[:KERNEL_LOGS_NAMED]]

    @override
    def inhibitors(self) -> Sequence[Inhibitor]:
        return list_inhibitors()

    @override
    def reboot(self) -> None:
        try:
            # A command of the integrator's may put the reboot off to a child of its own.
            outcome = run(
                self._reboot_command, timeout_secs=REBOOT_TIMEOUT_SECS, spare_children=True
            )
        except CommandError as error:
            raise RebootError(str(error)) from error
        if outcome.status != 0:
            raise RebootError(f"{self._reboot_command} ended with status {outcome.status}")

    def _read_unmounted(self, slot: Slot) -> bytes:
        failure: UpdaterError | None = None
        for region in file_systems_first(resolve(self._disk, self._layout)[slot]):
            try:
                return read_file(region, IMAGE_FACTS_PATH, max_bytes=IMAGE_FACTS_MAX_BYTES)
            except MachineError as error:
                failure = error
        raise failure or ImageFactsError(f"slot {slot.value} has no parts")


def _read_bounded(path: Path, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise ImageFactsError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > max_bytes:
        raise ImageFactsError(f"{path} is longer than {max_bytes} bytes")
    return content


def _device_of(path: Path) -> int:
    try:
        return path.stat().st_rdev
    except OSError as error:
        raise BootedSlotError(f"{path} cannot be looked at: {error.strerror}") from error
