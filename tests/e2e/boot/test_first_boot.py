"""Disks of `disk create` in a machine: slot A starts, and a loader never ends at a prompt.

A kernel that is none stands in where only the loader's choice matters: that costs a second.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from images.reference import cpio
from partitions import loaders
from partitions.boot.grubenv import GrubEnvironment
from partitions.disk_image import FirmwareFile, create_disk
from partitions.layout import read_layout
from partitions.loaders import efi
from partitions.slots import Slot
from tests.e2e.boot.archive import Kernel, busybox
from tests.e2e.boot.machine import QEMU, UBOOT, Drive, Firmware, Hardware, VirtualMachine
from tests.e2e.boot.shim.pack import shim
from tests.sim.gpt_tools import program, run
from tests.sim.loader_needs import need

pytestmark = pytest.mark.e2e

A, B = Slot.A, Slot.B
LAYOUTS = Path(loaders.__file__).parents[1] / "layouts"
WORDS = "console=ttyS0 panic=-1 gpt quiet"
INIT = b"""#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
echo "STARTED $(/bin/busybox cat /proc/cmdline)"
exec /bin/busybox sleep 3600
"""
FIRMWARE: Mapping[str, Firmware] = {
    "grub-bios": Firmware.BIOS,
    "grub-efi": Firmware.EFI,
    "systemd-boot": Firmware.EFI,
    "efi": Firmware.EFI,
    "uboot": Firmware.UBOOT,
    "gptprio": Firmware.KERNEL,
}
ESP_AT = "@@2M"  # of both layouts that are shipped


@pytest.fixture
def images(tmp_path: Path) -> dict[str, Path]:
    """A slot's images, none of which is what it should be."""
    made = {part: tmp_path / f"{part}.img" for part in ("root", "kernel", "initrd")}
    for image in made.values():
        image.write_bytes(b"nothing that could start" * 100)
    return made


def make(loader: str, images: Mapping[str, Path], folder: Path) -> Hardware:
    """Make a disk, and a machine with it."""
    program(QEMU)
    need(loader)
    firmware, variables = FIRMWARE[loader], None
    if firmware is Firmware.EFI:
        if not efi.TEMPLATE.exists():
            pytest.skip(f"{efi.TEMPLATE} is not installed (Debian: {efi.TEMPLATE_PACKAGE})")
        variables = FirmwareFile(output=folder / "vars.fd")
    if firmware is Firmware.UBOOT and not UBOOT.exists():
        pytest.skip(f"{UBOOT} is not installed (Debian: u-boot-qemu)")
    disk = folder / "disk.img"
    layout = read_layout(LAYOUTS / "tiny.toml")
    create_disk(layout, disk, images=images, loader=loader, firmware=variables)
    return Hardware(
        drives=(Drive(path=disk),),
        firmware=firmware,
        variables=variables.output if variables else None,
        memory_mib=1024 if firmware is Firmware.UBOOT else 512,
    )


@contextmanager
def grubenv(hardware: Hardware) -> Iterator[GrubEnvironment]:
    """Give GRUB's environment on the machine's disk to its keeper."""
    disk = hardware.drives[0].path
    file = disk.with_name("grubenv")
    run("mcopy", "-n", "-i", f"{disk}{ESP_AT}", "::grub/grubenv", file)
    yield GrubEnvironment(file)
    run("mcopy", "-D", "o", "-i", f"{disk}{ESP_AT}", file, "::grub/grubenv")


@pytest.mark.slow
@pytest.mark.parametrize("loader", FIRMWARE)
def test_slot_a_starts_with_its_initrd_and_its_command_line(
    loader: str, images: dict[str, Path], tmp_path: Path
) -> None:
    try:
        kernel = Kernel.fetched()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    init = cpio.file("init", INIT, executable=True)
    images["initrd"].write_bytes(cpio.archive([*busybox(), init]))
    images["kernel"] = kernel.image
    hardware = make(loader, images, tmp_path)
    if hardware.firmware is Firmware.KERNEL:
        program("kexec")
        initrd = tmp_path / "shim"
        initrd.write_bytes(shim(kernel))
        hardware = Hardware(
            drives=hardware.drives,
            kernel=kernel.image,
            initrd=initrd,
            command_line=f"{WORDS} shim: {WORDS}",
        )
    with VirtualMachine(hardware) as machine:
        machine.expect(rf"STARTED .*bascule\.slot=a {WORDS}\b")
        print(f"{loader}: slot A started after {machine.cpu_seconds:.1f} s of CPU")


def test_grub_tries_a_slot_that_cannot_be_loaded_as_often_as_it_may(
    images: dict[str, Path], tmp_path: Path
) -> None:
    hardware = make("grub-bios", images, tmp_path)
    with grubenv(hardware) as keeper:
        keeper.arm(B, tries=2)
    with VirtualMachine(hardware) as machine:
        for _ in range(2):
            machine.expect(r"bascule: slot=b")
            machine.expect(r"slot B cannot be loaded")
        machine.expect(r"bascule: slot=a")
    assert machine.console.count("slot=b") == 2


def test_grub_starts_the_other_confirmed_slot_when_one_cannot_be_loaded(
    images: dict[str, Path], tmp_path: Path
) -> None:
    hardware = make("grub-bios", images, tmp_path)
    with grubenv(hardware) as keeper:
        keeper.confirm(B)
    with VirtualMachine(hardware) as machine:
        for slot in ("b", "a"):
            machine.expect(rf"bascule: slot={slot}")
            machine.expect(rf"slot {slot.upper()} cannot be loaded")
        machine.expect(r"bascule: slot=b")


def test_grub_never_starts_a_slot_that_is_not_bootable_although_the_other_cannot_be_loaded(
    images: dict[str, Path], tmp_path: Path
) -> None:
    hardware = make("grub-bios", images, tmp_path)
    with VirtualMachine(hardware) as machine:
        for _ in range(2):
            machine.expect(r"bascule: slot=a")
            machine.expect(r"slot A cannot be loaded")
    assert "slot=b" not in machine.console


def test_grub_tries_again_when_neither_slot_may_boot(tmp_path: Path) -> None:
    hardware = make("grub-bios", {}, tmp_path)
    with VirtualMachine(hardware) as machine:
        machine.expect(r"neither slot may boot; trying again in 30 seconds")


def test_grub_resets_when_its_configuration_is_lost(
    images: dict[str, Path], tmp_path: Path
) -> None:
    hardware = make("grub-bios", images, tmp_path)
    run("mdel", "-i", f"{hardware.drives[0].path}{ESP_AT}", "::grub/grub.cfg")
    with VirtualMachine(replace(hardware, reboots=False)) as machine:
        machine.await_end()


def test_u_boot_resets_when_neither_slot_may_boot(tmp_path: Path) -> None:
    hardware = replace(make("uboot", {}, tmp_path), reboots=False)
    with VirtualMachine(hardware) as machine:
        machine.expect(r"neither slot may boot")
        machine.await_end()


def test_u_boot_resets_when_a_slot_does_not_start(images: dict[str, Path], tmp_path: Path) -> None:
    hardware = replace(make("uboot", images, tmp_path), reboots=False)
    with VirtualMachine(hardware) as machine:
        machine.expect(r"slot=a")
        machine.await_end()
    assert "slot=b" not in machine.console
