"""The kernel of the packages: its file, and the modules that the system may load."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from images.errors import FileUnreadableError
from images.reference.modules import load_order, read_dependencies
from images.reference.tools import run

# What udev and mounts may ask for on a virtual machine. An image for a board adds its own.
SYSTEM_MODULES: Final = (
    "autofs4", "dm_crypt", "dm_mod", "dm_verity", "efivarfs", "erofs", "ext4", "loop", "nls_ascii",
    "nls_cp437", "nls_iso8859_1", "nls_utf8", "nvme", "overlay", "sd_mod", "softdog", "squashfs",
    "vfat", "virtio_balloon", "virtio_blk", "virtio_console", "virtio_net", "virtio_pci",
    "virtio_rng", "virtio_scsi",
)  # fmt: skip
_INDEX: Final = ("modules.builtin", "modules.builtin.modinfo", "modules.order")  # depmod reads them


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A kernel package, unpacked.

    Attributes:
        version: what `uname -r` says.
        image: its file, which boot loaders start.
        modules: the folder of all its modules, with depmod's index.
    """

    version: str
    image: Path
    modules: Path

    def load_order(self, wanted: Iterable[str]) -> list[Path]:
        """Return the files of modules and of all they need, in the order to load them.

        Raises:
            KernelModuleError: there is no such module.
        """
        dependencies = read_dependencies((self.modules / "modules.dep").read_text())
        builtin = (self.modules / "modules.builtin").read_text()
        return [self.modules / path for path in load_order(wanted, dependencies, builtin=builtin)]


def open_kernel(folder: Path) -> Kernel:
    """Return the kernel of a package that was unpacked to `folder`; index its modules.

    Raises:
        FileUnreadableError: there is not exactly one kernel.
        ToolMissingError, ToolFailedError: depmod.
    """
    images = sorted((folder / "boot").glob("vmlinuz-*"))
    if len(images) != 1:
        raise FileUnreadableError(f"{folder} holds {len(images)} kernels, not one")
    version = images[0].name.removeprefix("vmlinuz-")
    run(["depmod", "-b", folder, version])
    return Kernel(version=version, image=images[0], modules=folder / "lib/modules" / version)


def install_modules(kernel: Kernel, root: Path) -> None:
    """Put the modules that the system may load into an image, and index them.

    Raises:
        KernelModuleError: there is no such module.
        ToolMissingError, ToolFailedError: depmod.
    """
    target = root / "usr/lib/modules" / kernel.version
    names = [str(path.relative_to(kernel.modules)) for path in kernel.load_order(SYSTEM_MODULES)]
    for name in [*names, *_INDEX]:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(kernel.modules / name, target / name)
    run(["depmod", "-b", root, kernel.version])
