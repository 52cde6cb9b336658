"""What tests need to boot machines: the programs, and one kept machine a loader."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import pytest

from tests.e2e.boot.archive import TOOLS, Kernel
from tests.e2e.boot.bench import Bench
from tests.e2e.boot.loaders import LOADERS, Loader
from tests.e2e.boot.machine import OVMF, QEMU, UBOOT

PROGRAMS: Final = MappingProxyType(
    {
        QEMU: "qemu-system-x86",
        "qemu-img": "qemu-utils",
        "busybox": "busybox-static",
        "mkfs.erofs": "erofs-utils",
        "mkfs.vfat": "dosfstools",
        "mkfs.ext4": "e2fsprogs",
        "mcopy": "mtools",
        "sgdisk": "gdisk",
        "veritysetup": "cryptsetup-bin",
        "dmsetup": "dmsetup",
        "depmod": "kmod",
        "kexec": "kexec-tools",
        "zstd": "zstd",
        "strip": "binutils",
    }
)
FILES: Final[Mapping[str, tuple[tuple[Path, str], ...]]] = MappingProxyType(
    {
        "grub-bios": ((Path("/usr/lib/grub/i386-pc/boot.img"), "grub-pc-bin"),),
        "uboot": ((UBOOT, "u-boot-qemu"), (Path("/usr/bin/mkimage"), "u-boot-tools")),
        "systemd-boot": (
            (OVMF / "OVMF_CODE_4M.fd", "ovmf"),
            (Path("/usr/lib/systemd/boot/efi/systemd-bootx64.efi"), "systemd-boot-efi"),
        ),
        "efi": ((OVMF / "OVMF_CODE_4M.fd", "ovmf"),),
    }
)
ONLY: Final = "BASCULE_TEST_LOADERS"  # a few of them, with commas between


@pytest.fixture(scope="session")
def kernel() -> Kernel:
    """Return a kernel, or skip the test: the cache has none and apt gives none."""
    for name, package in PROGRAMS.items():
        if shutil.which(name, path=TOOLS) is None:
            pytest.skip(f"{name} is not installed (package {package})")
    try:
        return Kernel.fetched()
    except (OSError, ValueError) as error:
        pytest.skip(f"no kernel to boot: {error}")


@pytest.fixture(scope="session", params=LOADERS)
def loader(request: pytest.FixtureRequest, kernel: Kernel) -> Loader:  # noqa: ARG001  # all need one
    """Return each boot loader in turn, or skip what is not installed."""
    name = str(request.param)
    if name not in os.environ.get(ONLY, name).split(","):
        pytest.skip(f"{ONLY} does not name {name}")
    for path, package in FILES.get(name, ()):
        if not path.exists():
            pytest.skip(f"{path} is missing (package {package})")
    return LOADERS[name]


@pytest.fixture(scope="session")
def bench(loader: Loader, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Give the kept machine of a loader."""
    folder = tmp_path_factory.mktemp(loader.name)
    with Bench(loader, folder).ready() as made:
        print(f"\n{loader.name}: kept machine made, cpu-seconds={made.cpu_seconds:.1f}")
        yield made
    shutil.rmtree(folder)
