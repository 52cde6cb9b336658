"""Other people's partition programs as judges of our tables, and loop devices to hold them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from partitions.attributes import BootBits

_FOLDERS = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_SGDISK_CONTENT = "No problems found"


def program(name: str) -> str:
    """Return a program's path, or skip the test that needs it."""
    found = shutil.which(name, path=_FOLDERS)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(name: str, *arguments: object, check: bool = True) -> str:
    """Run a program and return what it printed."""
    done = subprocess.run(
        [program(name), *(str(one) for one in arguments)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
    )
    said = done.stdout + done.stderr
    assert not check or done.returncode == 0, f"{name} {arguments}: {said}"
    return said


def sgdisk_is_content(disk: Path) -> None:
    """Fail when `sgdisk -v` finds fault with a CRC, a place or an overlap."""
    said = run("sgdisk", "-v", disk)
    assert _SGDISK_CONTENT in said, said
    assert "Caution" not in said, said
    assert "invalid" not in said, said


def sgdisk_attributes(disk: Path, numbers: Sequence[int]) -> list[int]:
    """Return all 64 attribute bits of some partitions as sgdisk reads them."""
    lines = run("sgdisk", *(f"--info={number}" for number in numbers), disk).splitlines()
    flags = (line.partition(":")[2] for line in lines if line.startswith("Attribute flags:"))
    return [int(flag, 16) for flag in flags]


def sfdisk_facts(disk: Path) -> Mapping[str, object]:
    """Return the table as `sfdisk --json` prints it."""
    said = run("sfdisk", "--json", disk)
    content, _end = json.JSONDecoder().raw_decode(said)  # warnings may follow on stderr
    facts: Mapping[str, object] = content["partitiontable"]
    return facts


def sfdisk_attributes(disk: Path) -> list[int]:
    """Return the bits that sfdisk names as GUID-specific, 48 and up, of each partition."""
    partitions = sfdisk_facts(disk)["partitions"]
    assert isinstance(partitions, list)
    words = (str(one.get("attrs", "")).partition("GUID:")[2].split(" ")[0] for one in partitions)
    return [sum(1 << int(bit) for bit in word.split(",") if bit) for word in words]


def cgpt_bits(disk: Path, number: int) -> BootBits:
    """Return the boot bits as `cgpt show` prints them."""
    priority, tries, successful = (
        int(run("cgpt", "show", "-i", number, flag, disk)) for flag in ("-P", "-T", "-S")
    )
    return BootBits(priority=priority, tries=tries, successful=bool(successful))


def cgpt_is_content(disk: Path) -> None:
    """Fail when `cgpt show` calls a header or a table invalid."""
    said = run("cgpt", "show", "-v", disk)
    assert "INVALID" not in said, said
    assert "Sec GPT header" in said, said


@contextlib.contextmanager
def bare_loop_device(file: Path, *, sector_size: int = 512) -> Iterator[Path]:
    """Give a loop device over a disk file that may have no partitions yet, or skip."""
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")
    losetup = program("losetup")
    done = subprocess.run(
        [losetup, "--find", "--show", "--partscan", "--sector-size", str(sector_size), str(file)],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"no loop device: {done.stderr.strip()}")
    device = Path(done.stdout.strip())
    try:
        yield device
    finally:
        run("partx", "--delete", device, check=False)
        run("losetup", "--detach", device)


@contextlib.contextmanager
def loop_device(file: Path, *, sector_size: int = 512) -> Iterator[Path]:
    """Give a loop device over a disk file, with its partitions, or skip."""
    with bare_loop_device(file, sector_size=sector_size) as device:
        scan_partitions(device)
        yield device


def scan_partitions(device: Path) -> None:
    """Let the kernel know a device's partitions, also a kernel that cannot read GPTs itself."""
    if not Path(f"{device}p1").exists():
        run("partx", "--add", device, check=False)
    if not Path(f"{device}p1").exists():
        pytest.skip("this kernel shows no partitions of loop devices")


@contextlib.contextmanager
def mounted(device: Path, folder: Path, *, filesystem: str = "ext4") -> Iterator[Path]:
    """Make a file system on a device and mount it, or skip."""
    run(f"mkfs.{filesystem}", "-q", "-f" if filesystem == "btrfs" else "-F", device)
    folder.mkdir()
    done = subprocess.run(
        [program("mount"), str(device), str(folder)], check=False, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"mounting is not possible here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        run("umount", folder)
