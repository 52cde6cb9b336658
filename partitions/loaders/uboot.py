"""U-Boot on a new disk: the script that its standard boot looks for, and the environment in a file.

U-Boot itself is in the board's flash. Its standard boot tries the partitions that are legacy BIOS
bootable, so the ESP is marked so, and runs `boot.scr` there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from partitions.errors import LayoutInvalidError
from partitions.layout import DiskLayout
from partitions.loaders.job import Installation, Job, Loader
from partitions.tool import run_tool
from partitions.uboot_env import packed

SCRIPT: Final = Path(__file__).parents[1] / "boot/uboot-ab.cmd"
ENVIRONMENT: Final = "uboot.env"
ENVIRONMENT_BYTES: Final = 512  # one sector, so that a power cut leaves the old one or the new
_KERNEL: Final = "/bascule/{}/linux"
_INITRD: Final = "/bascule/{}/initrd"

_BEGIN: Final = 'setenv bascule_args "{words}"\n'
# The script comes to an end where neither slot may boot. An unattended machine must not wait at a
# prompt: a reset tries again, and helps where the medium could not be read.
_END: Final = "sleep 10\nreset\n"


def prepare(job: Job) -> Installation:
    """Return the compiled script and the environment.

    Raises:
        LayoutInvalidError: the script looks for kernel and initrd elsewhere, or each slot has a
            command line of its own.
        ToolMissingError, ToolFailedError: the script cannot be compiled.
    """
    _check(job)
    words = job.layout.command_line or "panic=-1"
    source, compiled = job.stage / "boot.cmd", job.stage / "boot.scr"
    source.write_text(_BEGIN.format(words=words) + SCRIPT.read_text() + _END)
    command = ["mkimage", "-T", "script", "-C", "none", "-n", "bascule", "-d", str(source)]
    # The time in its header must be the same at each build, seed or not: it says nothing.
    run_tool([*command, str(compiled)], purpose="it compiles U-Boot's script", seeded=True)
    files = {
        "/boot.scr": compiled.read_bytes(),
        f"/{ENVIRONMENT}": environment(installed=job.installed),
    }
    return Installation(files=files)


def environment(*, installed: bool) -> bytes:
    """Return the environment's file: a CRC-32, and variables that end with zeros."""
    confirmed = b"1" if installed else b"0"
    entries = (
        b"BOOT_ORDER=a b",
        b"BOOT_a_LEFT=0",
        b"BOOT_a_OK=" + confirmed,
        b"BOOT_b_LEFT=0",
        b"BOOT_b_OK=0",
    )
    return packed(entries, ENVIRONMENT_BYTES, flag=None)


def _check(job: Job) -> None:
    slots = job.slots()
    wanted = {
        slot.letter: (_KERNEL.format(slot.letter), _INITRD.format(slot.letter)) for slot in slots
    }
    found = {slot.letter: (slot.kernel, slot.initrd) for slot in slots}
    if found != wanted:
        raise LayoutInvalidError(
            f"U-Boot's script loads {' and '.join(wanted['a'])} and the same of b; the layout has "
            f"{' and '.join(name or 'nothing' for name in found['a'])}"
        )
    if len({slot.words.partition(" ")[2] for slot in slots}) > 1:
        raise LayoutInvalidError("U-Boot's script gives both slots one command line: no {slot}")


def _settings(_layout: DiskLayout) -> Mapping[str, str]:
    return {"uboot_config": "/etc/fw_env.config"}


LOADER: Final = Loader(boot_control="uboot", prepare=prepare, settings=_settings, marks_esp=True)
