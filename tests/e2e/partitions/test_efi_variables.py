"""`efibootmgr` as the judge: it reads what we write, and we read what it writes.

Its library works on any folder that `EFIVARFS_PATH` names; the firmware itself is in QEMU's tests.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from partitions.boot.efi import EfiBootEntries
from partitions.efi_firmware import BOOT_ORDER, FirmwareMemory, boot, description_of, packed
from partitions.efi_variables import EfiVariables
from partitions.slots import Slot
from tests.sim.efi import boot_option
from tests.sim.gpt_tools import bare_loop_device, program, run

pytestmark = pytest.mark.e2e

A, B = Slot.A, Slot.B


def efibootmgr(folder: Path, *arguments: str) -> str:
    """Run it on the folder, and return what it says then of the boot entries."""
    command = program("efibootmgr")
    environment = {**os.environ, "LIBEFIVAR_OPS": "efivarfs", "EFIVARFS_PATH": f"{folder}/"}
    done = subprocess.run(
        [command, *arguments], env=environment, check=True, capture_output=True, text=True
    )
    return done.stdout


@pytest.fixture
def variables(tmp_path: Path) -> EfiVariables:
    variables = EfiVariables(tmp_path)
    variables.write("Boot0000", boot_option(description_of(A)))
    variables.write("Boot0001", boot_option(description_of(B)))
    variables.write("Boot0003", boot_option("UEFI Shell"))
    variables.write(BOOT_ORDER, packed([0, 3]))
    return variables


def test_each_verb_is_what_it_shows(variables: EfiVariables, tmp_path: Path) -> None:
    control = EfiBootEntries(variables)
    control.arm(B, tries=1)
    said = efibootmgr(tmp_path)
    assert re.findall(r"Boot(?:Next|Order): .*", said) == ["BootNext: 0001", "BootOrder: 0000,0003"]
    assert re.findall(r"^Boot(\d+)(.) (\S+ ?\S*)", said, re.MULTILINE) == [
        ("0000", "*", "bascule-a"),
        ("0001", "*", "bascule-b"),
        ("0003", "*", "UEFI Shell"),
    ]
    assert boot(tmp_path) is B
    control.confirm(B)
    said = efibootmgr(tmp_path)
    assert re.findall(r"Boot(?:Next|Order): .*", said) == ["BootOrder: 0001,0000,0003"]
    control.reject(B)
    assert "BootOrder: 0000,0003\n" in efibootmgr(tmp_path)


def test_what_it_writes_is_read(variables: EfiVariables, tmp_path: Path) -> None:
    efibootmgr(tmp_path, "--bootorder", "0003,0001,0000")
    efibootmgr(tmp_path, "--bootnext", "0001")
    efibootmgr(tmp_path, "--bootnum", "0003", "--inactive")
    memory = FirmwareMemory.of(variables)
    assert (memory.order, memory.once) == ((3, 1, 0), 1)
    assert [option.active for option in memory.options.values()] == [True, True, False]
    assert [boot(tmp_path) for _ in range(2)] == [B, B]
    efibootmgr(tmp_path, "--bootnum", "0001", "--inactive")
    assert boot(tmp_path) is A


def test_an_entry_that_it_makes_is_a_slots(variables: EfiVariables, tmp_path: Path) -> None:
    variables.remove("Boot0001")
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(4 * 1024 * 1024))
    run("sgdisk", "-n", "1:2048:+1M", "-t", "1:ef00", disk)
    with bare_loop_device(disk) as device:
        efibootmgr(
            tmp_path,
            *("--create-only", "--disk", str(device), "--part", "1"),
            *("--label", "bascule-b", "--loader", r"\bascule\b\linux.efi"),
        )
    EfiBootEntries(variables).arm(B, tries=1)
    assert [boot(tmp_path) for _ in range(2)] == [B, A]
