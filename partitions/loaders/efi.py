"""No loader at all: the firmware starts a slot's kernel by an entry of its own for each slot.

The entries `bascule-a` and `bascule-b` lie in the machine's memory, not on the disk: here they go
into a virtual machine's file of variables, on a real machine `efibootmgr` makes them
(docs/loaders.md).
The kernel is a program for EFI itself (its stub); it takes the entry's data for its command line
and loads the initrd that is named there from the partition it came from. Facts: UEFI 2.10, sections
3.1.3 (load options) and 10.3.5 (device paths); the boots in the tests.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

from partitions.efi_firmware import BOOT_ORDER, description_of, packed
from partitions.gpt import Entry
from partitions.loaders.job import BootedBy, Installation, Job, Loader
from partitions.slots import Slot

TEMPLATE: Final = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
TEMPLATE_PACKAGE: Final = "ovmf"
# Firmware that finds a new device makes an entry for it, with the lowest number that BootOrder does
# not name, whatever lies there (EDK II): an entry that is not in the order must have a high one.
FIRST_NUMBER: Final = 0x0BA0
_ACTIVE: Final = 1  # of the attributes of an entry: the firmware tries it
_HARD_DRIVE: Final = struct.Struct("<BBHIQQ16sBB")
_END: Final = b"\x7f\xff\x04\x00"


def prepare(job: Job) -> Installation:
    """Return the variables: an entry for each slot, and A alone in the order of boots.

    B is not in the order: were A's kernel damaged, the firmware would go on to what nobody has
    confirmed.
    """
    variables = {
        f"Boot{number:04X}": load_option(slot, job.esp)
        for number, slot in enumerate(job.slots(), FIRST_NUMBER)
    }
    order = {BOOT_ORDER: packed([FIRST_NUMBER])} if job.installed else {}
    return Installation(firmware=variables | order)


def load_option(slot: BootedBy, esp: Entry) -> bytes:
    """Return an entry of the firmware that starts a slot."""
    words = f"initrd={_path(slot.initrd)} {slot.words}" if slot.initrd else slot.words
    drive = _HARD_DRIVE.pack(
        *(4, 1, _HARD_DRIVE.size, esp.number, esp.first_lba, esp.sectors),
        *(esp.part_guid.bytes_le, 2, 2),
    )
    name = _text(_path(slot.kernel))
    path = drive + struct.pack("<BBH", 4, 4, 4 + len(name)) + name + _END
    head = struct.pack("<IH", _ACTIVE, len(path)) + _text(description_of(Slot(slot.letter)))
    return head + path + _text(words)


LOADER: Final = Loader(boot_control="efi", prepare=prepare, tries=1, started_by_efi=True)


def _path(name: str) -> str:
    return name.replace("/", "\\")


def _text(text: str) -> bytes:
    return f"{text}\0".encode("utf-16-le")
