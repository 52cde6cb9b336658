"""GRUB on a new disk, for BIOS and for EFI: its image, `grub.cfg`, our script, the environment.

GRUB finds its files by the disk and partition that it was started from, never by a search, which
another disk with a copy could answer. Nothing ends in a prompt: an unattended machine would stay
there. Facts: GRUB's manual, `util/setup.c` (what its installer writes where), and the boots in
`tests/e2e/partitions/test_loaders_boot.py`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from partitions import grub_block
from partitions.errors import LayoutInvalidError, PartitionTooSmallError
from partitions.layout import DiskLayout, Role
from partitions.loaders.job import BootedBy, Installation, Job, Loader, read_program
from partitions.tool import run_tool

SCRIPT: Final = Path(__file__).parents[1] / "boot/grub-ab.cfg"
FOLDER: Final = "/grub"
GRUBENV: Final = "grub/grubenv"
_LIBRARY: Final = Path("/usr/lib/grub")
_SECTOR_BYTES: Final = 512  # of a disk as a BIOS sees it
_MBR_CODE_BYTES: Final = 440  # what lies behind is the disk's signature and the partition table

_MODULES: Final = (
    *("part_gpt", "fat", "normal", "configfile", "minicmd", "ls", "cat"),
    *("test", "loadenv", "echo", "sleep", "reboot"),
)
_BIOS_MODULES: Final = (*_MODULES, "biosdisk", "linux16", "serial", "terminal")
_EFI_MODULES: Final = (*_MODULES, "linux", "efi_gop", "efi_uga")  # a screen for the kernel

# On a BIOS by its own protocol, in which the kernel asks the BIOS itself, as boot loaders do since
# 1995. It also starts 2.5 seconds sooner under emulation. `edd=off`: the kernel then does not try
# each disk by its BIOS, at which some machines hang; nothing here needs what it would learn.
_BIOS_WORDS: Final = MappingProxyType(
    {"linux": "linux16", "initrd": "initrd16", "more": " edd=off"}
)
_EFI_WORDS: Final = MappingProxyType({"linux": "linux", "initrd": "initrd", "more": ""})

# Runs before anything is read from the disk, by a parser that knows neither `if` nor functions.
_EARLY: Final = f"""\
configfile $prefix/grub.cfg
echo "bascule: {FOLDER}/grub.cfg cannot be used; booting again in 5 seconds"
sleep 5
reboot
"""

_CONFIGURATION: Final = """\
# Which slot boots is decided by grub-ab.cfg and grubenv beside this file: docs/grub.md of bascule.
# Every way ends in a boot or in a reset, so that an unattended machine never waits at a prompt.
@terminal@set timeout=0
set bascule_env=$prefix/grubenv
source $prefix/grub-ab.cfg

# A slot that is confirmed although its kernel cannot be loaded would be chosen for ever; the other
# one is right when it is confirmed, too. One on trial has spent its try: the next boot counts on.
function bascule_failed {
  set bascule_other=""
  if [ "$1" = "A" -a "$A_OK" = "1" -a "$B_OK" = "1" ]; then set bascule_other="B"; fi
  if [ "$1" = "B" -a "$B_OK" = "1" -a "$A_OK" = "1" ]; then set bascule_other="A"; fi
  echo "bascule: slot $1 cannot be loaded"
  if [ "$bascule_other" = "A" ]; then bascule_boot_a; fi
  if [ "$bascule_other" = "B" ]; then bascule_boot_b; fi
  if [ "$bascule_other" != "" ]; then echo "bascule: slot $bascule_other cannot be loaded"; fi
  sleep 5
  reboot
}
@boots@
if [ "$bascule_slot" = "A" ]; then set default=slot-a; fi
if [ "$bascule_slot" = "B" ]; then set default=slot-b; fi
if [ "$bascule_slot" = "" ]; then set default=none; fi
menuentry "Slot A" --id slot-a { bascule_boot_a; bascule_failed A }
menuentry "Slot B" --id slot-b { bascule_boot_b; bascule_failed B }
menuentry "Neither slot may boot: try again" --id none {
  echo "bascule: neither slot may boot; trying again in 30 seconds"
  sleep 30
  reboot
}
"""

_BOOT: Final = """\
function bascule_boot_{letter} {{
  echo "bascule: slot={letter}"
  if {linux} ($root){kernel} {words}; then
{starting}
  fi
}}
"""


def prepare_bios(job: Job) -> Installation:
    """Return GRUB for a BIOS: boot sector, core image in the BIOS boot partition, files.

    Raises:
        LayoutInvalidError: there is no such partition, or sectors are not of 512 bytes.
        PartitionTooSmallError: the core image does not fit into it.
        ToolMissingError, ToolFailedError: GRUB's image cannot be made.
    """
    layout = job.layout
    partition = next((one for one in layout.partitions if one.role is Role.BIOS_BOOT), None)
    if partition is None:
        raise LayoutInvalidError("grub-bios needs a partition of role bios-boot, of 1 MiB or so")
    if layout.sector_size != _SECTOR_BYTES:
        raise LayoutInvalidError(f"a BIOS reads sectors of {_SECTOR_BYTES} bytes")
    place = job.entry_of(partition)
    core = _image(job, "i386-pc", "grub-pc-bin", _BIOS_MODULES, f"(,gpt{job.esp.number}){FOLDER}")
    if len(core) > place.sectors * _SECTOR_BYTES:
        raise PartitionTooSmallError(
            f"GRUB's image has {len(core)} bytes, partition {partition.label} has "
            f"{place.sectors * _SECTOR_BYTES}"
        )
    boot = read_program(_LIBRARY / "i386-pc/boot.img", "grub-pc-bin")
    raw = {
        0: _boot_sector(boot, place.first_lba),
        place.first_lba * _SECTOR_BYTES: _placed_core(core, place.first_lba),
    }
    return Installation(files=_files(job, _bios_terminal(layout), _BIOS_WORDS), raw=raw)


def prepare_efi(job: Job) -> Installation:
    """Return GRUB for EFI: the program that firmware starts without being told, and files.

    Raises:
        ToolMissingError, ToolFailedError: GRUB's image cannot be made.
    """
    program = _image(job, "x86_64-efi", "grub-efi-amd64-bin", _EFI_MODULES, FOLDER)
    # The firmware's own console reaches the serial line where the firmware does.
    return Installation(files={**_files(job, "", _EFI_WORDS), "/EFI/BOOT/BOOTX64.EFI": program})


def _settings(layout: DiskLayout) -> Mapping[str, str]:
    return {"grubenv": f"{layout.boot_folder.rstrip('/')}/{GRUBENV}"}


BIOS: Final = Loader(boot_control="grubenv", prepare=prepare_bios, settings=_settings)
EFI: Final = Loader(
    boot_control="grubenv", prepare=prepare_efi, settings=_settings, started_by_efi=True
)


def _image(job: Job, platform: str, package: str, modules: tuple[str, ...], prefix: str) -> bytes:
    early, image = job.stage / "early.cfg", job.stage / "grub.img"
    early.write_text(_EARLY)
    library = _LIBRARY / platform
    read_program(library / "modinfo.sh", package)
    command = ["grub-mkimage", "-O", platform, "-d", str(library), "-p", prefix, "-c", str(early)]
    run_tool([*command, "-o", str(image), *modules], purpose="it makes GRUB's image", seeded=True)
    return image.read_bytes()


def _boot_sector(boot: bytes, core_lba: int) -> bytes:
    """Return the code of the master boot record, told where the core image begins.

    As GRUB's own installer does: at 0x5c the sector, and at 0x66 no check whether the BIOS tells
    the drive's number, which that check mistakes on some machines (only for hard disks).
    """
    code = bytearray(boot[:_MBR_CODE_BYTES])
    code[0x5C:0x64] = struct.pack("<Q", core_lba)
    code[0x66:0x68] = b"\x90\x90"
    return bytes(code)


def _placed_core(core: bytes, lba: int) -> bytes:
    """Return the core image whose first sector knows where the other ones are: one run."""
    sectors = -(-len(core) // _SECTOR_BYTES)
    placed = bytearray(core.ljust(sectors * _SECTOR_BYTES, b"\0"))
    placed[0x1F4:0x1FE] = struct.pack("<QH", lba + 1, sectors - 1)
    return bytes(placed)


def _files(job: Job, terminal: str, boot_of: Mapping[str, str]) -> dict[str, bytes]:
    boots = "".join(_boot_function(slot, boot_of) for slot in job.slots())
    text = _CONFIGURATION.replace("@terminal@", terminal).replace("@boots@\n", boots)
    return {
        f"{FOLDER}/grub.cfg": text.encode(),
        f"{FOLDER}/grub-ab.cfg": SCRIPT.read_bytes(),
        f"/{GRUBENV}": _environment(installed=job.installed),
    }


def _boot_function(slot: BootedBy, boot_of: Mapping[str, str]) -> str:
    start = [f"    if {boot_of['initrd']} ($root){slot.initrd}; then boot; fi", "    boot"]
    return _BOOT.format(
        letter=slot.letter,
        linux=boot_of["linux"],
        kernel=slot.kernel,
        words=f"{slot.words}{boot_of['more']}",
        starting=start[0] if slot.initrd else start[1],
    )


def _bios_terminal(layout: DiskLayout) -> str:
    """Return the commands that show GRUB on the serial line that is the kernel's console.

    Only output: what comes in on an open line must not stop a boot.
    """
    found = re.search(r"(?:^| )console=ttyS(\d)(?:,(\d+))?", layout.command_line)
    if not found:
        return ""
    unit, speed = found[1], found[2] or "115200"
    return f"if serial --unit={unit} --speed={speed}; then terminal_output console serial; fi\n"


def _environment(*, installed: bool) -> bytes:
    ours = {b"ORDER": b"A B", b"A_OK": b"1" if installed else b"0"}
    ours |= {b"A_TRY": b"0", b"B_OK": b"0", b"B_TRY": b"0"}
    lines = (grub_block.assignment(name, value) for name, value in ours.items())
    return grub_block.filled(grub_block.SIGNATURE + b"".join(lines))
