"""A PC with a real U-Boot in QEMU, our script, and a kernel that only says how it was started.

The kernel is a few machine instructions behind the header of a bzImage: it writes its command line
and the text that is its initrd to the serial port and ends QEMU. So one boot costs little more than
U-Boot itself.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from partitions.boot import uboot

SCRIPT: Final = Path(uboot.__file__).with_name("uboot-ab.cmd")
FIRMWARE: Final = Path("/usr/lib/u-boot/qemu-x86/u-boot.rom")  # the 64-bit one resets at zboot
TOOLS: Final = {
    "qemu-system-i386": "qemu-system-x86",
    "mkimage": "u-boot-tools",
    "sgdisk": "gdisk",
    "mformat": "mtools",
}
SECTOR_BYTES: Final = 512
FIRST_LBA: Final = 2048
DISK_SECTORS: Final = 20480  # 10 MiB
PATIENCE_SECS: Final = 60

# The first byte ends the countdown of two busy seconds; then what would follow it, by hand. Some
# bytes are lost while the port is set up.
_AT_THE_CONSOLE: Final = b"\n" * 40 + b"run bootcmd_virtio0; reset\n"

_PROGRAM: Final = bytes.fromhex(
    "8bbe28020000"  # mov edi, [esi + 0x228]: the command line, by the boot protocol
    "e812000000"  # call print
    "8bbe18020000"  # mov edi, [esi + 0x218]: the initrd
    "e807000000"  # call print
    "b000 e6f4"  # out 0xf4, 0: QEMU's isa-debug-exit
    "f4 ebfd"  # hlt, for ever
    "66baf803"  # print: mov dx, 0x3f8
    "8a07 47 84c0 7403 ee ebf6"  # bytes up to the zero
    "b00a ee c3"  # a newline; ret
)


def kernel() -> bytes:
    """Return a bzImage of the 32-bit boot protocol 2.06."""
    header = bytearray(2 * SECTOR_BYTES)
    header[0x1F1] = 1  # sectors of the setup behind the first
    struct.pack_into("<I", header, 0x1F4, len(_PROGRAM) // 16 + 1)
    struct.pack_into("<H", header, 0x1FE, 0xAA55)
    header[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", header, 0x206, 0x0206)
    header[0x211] = 1  # loaded high
    struct.pack_into("<I", header, 0x238, 2047)
    return bytes(header) + _PROGRAM.ljust(SECTOR_BYTES, b"\0")


def program(name: str) -> str:
    """Return the path of a program; skip the test when it is not there."""
    found = shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin")
    if found is None:
        pytest.skip(f"{name} is not installed (package {TOOLS[name]})")
    return found


@dataclass(frozen=True)
class UbootMachine:
    """A disk with a FAT partition that U-Boot boots from.

    Attributes:
        disk: its file.
    """

    disk: Path

    @classmethod
    def make(cls, folder: Path, env: bytes | None) -> UbootMachine:
        """Make the disk: boot.scr, both slots' kernels and initrds, and the environment."""
        if not FIRMWARE.exists():
            pytest.skip(f"{FIRMWARE} is not there (package u-boot-qemu)")
        machine = cls(folder / "disk.img")
        with machine.disk.open("wb") as file:
            file.truncate(DISK_SECTORS * SECTOR_BYTES)
        _run("sgdisk", "-n", f"1:{FIRST_LBA}:+8M", "-t", "1:ef00", "-A", "1:set:2", machine.disk)
        _run("mformat", "-i", machine.part, "-T", "16384", "-h", "64", "-s", "32", "::")
        script = folder / "boot.scr"
        _run("mkimage", "-T", "script", "-C", "none", "-d", SCRIPT, script)
        machine.put("boot.scr", script.read_bytes())
        _run("mmd", "-i", machine.part, "::/bascule", "::/bascule/a", "::/bascule/b")
        for slot in "ab":
            machine.put(f"bascule/{slot}/linux", kernel())
            machine.put(f"bascule/{slot}/initrd", f"initrd of slot {slot}\0".encode())
        if env is not None:
            machine.put("uboot.env", env)
        return machine

    @property
    def part(self) -> str:
        """How mtools name the partition."""
        return f"{self.disk}@@{FIRST_LBA * SECTOR_BYTES}"

    def put(self, name: str, content: bytes) -> None:
        """Write a file anew."""
        source = self.disk.with_name("put")
        source.write_bytes(content)
        _run("mcopy", "-o", "-i", self.part, source, f"::/{name}")

    def get(self, name: str) -> bytes:
        """Read a file."""
        done = subprocess.run(
            [program("mformat").replace("mformat", "mtype"), "-i", self.part, f"::/{name}"],
            check=True,
            capture_output=True,
        )
        return done.stdout

    def remove(self, name: str) -> None:
        """Delete a file."""
        _run("mdel", "-i", self.part, f"::/{name}")

    def offset_of(self, content: bytes) -> int:
        """Return where these bytes stand on the disk; they stand there once."""
        image = self.disk.read_bytes()
        found = [one.start() for one in re.finditer(re.escape(content), image)]
        assert len(found) == 1
        return found[0]

    def boot(self, *, readonly: bool = False) -> str:
        """Power on; return what was said on the console when the kernel or a reset ended it."""
        done = subprocess.run(
            [
                *(program("qemu-system-i386"), "-machine", "pc,accel=tcg", "-m", "512"),
                *("-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"),
                *("-bios", str(FIRMWARE), "-device", "isa-debug-exit,iobase=0xf4,iosize=1"),
                *("-drive", f"if=none,id=d,format=raw,file={self.disk}{readonly * ',readonly=on'}"),
                *("-device", "virtio-blk-pci,drive=d"),
            ],
            input=_AT_THE_CONSOLE,
            capture_output=True,
            timeout=PATIENCE_SECS,
        )
        return done.stdout.decode(errors="replace").replace("\r", "")


def _run(name: str, *arguments: str | Path) -> None:
    tool = program(name if name in TOOLS else "mformat").replace("mformat", name)
    subprocess.run([tool, *map(str, arguments)], check=True, capture_output=True)
