"""systemd-boot on a new disk: the program, its settings, and an entry for slot A.

The node makes entries from the templates `loader/bascule/{a,b}.conf`, which nobody changes later.
There is no `default` in `loader.conf`: a pattern there would also take an entry whose tries are
used up. Facts: the Boot Loader Specification, and the boots in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from partitions.boot.systemd_boot import entry_content, template_of
from partitions.layout import DiskLayout
from partitions.loaders.job import BootedBy, Installation, Job, Loader, read_program
from partitions.slots import Slot
from partitions.systemd_boot_firmware import ENTRIES

PROGRAM: Final = Path("/usr/lib/systemd/boot/efi/systemd-bootx64.efi")
PACKAGE: Final = "systemd-boot-efi"
# A kernel that cannot be loaded ends systemd-boot itself. Firmware that has nothing else to start
# and brings a shell comes here: after a reset the count of tries goes on, a prompt would wait.
SHELL_SCRIPT: Final = b"reset -c\r\n"
# Neither other systems nor the firmware's setup: an entry that is not ours must never be the first.
SETTINGS: Final = b"timeout 0\nauto-entries no\nauto-firmware no\n"


def prepare(job: Job) -> Installation:
    """Return the program under both of its names, `loader.conf`, templates and A's entry.

    Raises:
        ToolMissingError: systemd-boot is not installed here.
        LoaderTemplateError: the entry of a slot would be longer than a sector.
    """
    program = read_program(PROGRAM, PACKAGE)
    files = {
        "/EFI/BOOT/BOOTX64.EFI": program,  # what firmware starts without being told
        "/EFI/systemd/systemd-bootx64.efi": program,  # where `bootctl` looks for it
        "/loader/loader.conf": SETTINGS,
        "/startup.nsh": SHELL_SCRIPT,
    }
    templates = {Slot(slot.letter): template(slot) for slot in job.slots()}
    entries = {}
    for one, text in templates.items():
        files[f"/{template_of(one)}"] = text.encode()
        # Also for the slot that has none yet: the node could not make an entry that is too long.
        entries[one] = entry_content(one, text.encode(), version=1)
    if job.installed:
        files[f"/{ENTRIES}/bascule-a.conf"] = entries[Slot.A]
    return Installation(files=files)


def template(slot: BootedBy) -> str:
    """Return the lines of a slot's entry that never change."""
    initrd = f"initrd {slot.initrd}\n" if slot.initrd else ""
    return f"title Slot {slot.letter.upper()}\nlinux {slot.kernel}\n{initrd}options {slot.words}\n"


def _settings(layout: DiskLayout) -> Mapping[str, str]:
    return {"boot_folder": layout.boot_folder}


LOADER: Final = Loader(
    boot_control="systemd-boot", prepare=prepare, settings=_settings, started_by_efi=True
)
