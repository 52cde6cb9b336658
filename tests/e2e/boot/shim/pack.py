"""Packs the initramfs that stands for a loader of boot bits (`init` beside this file)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.e2e.boot.archive import Archive, Kernel, tool

INIT: Final = Path(__file__).with_name("init")
MODULES: Final = [
    *("virtio_pci", "virtio_blk", "vfat"),
    *("nls_cp437", "nls_ascii", "nls_iso8859_1", "nls_utf8"),
]


def shim(modules: Path) -> bytes:
    """Return the archive; `modules` is the `lib/modules/VERSION` of the kernel that it is for.

    Raises:
        FileNotFoundError: busybox or kexec is not installed.
    """
    archive = Archive()
    archive.busybox()
    archive.file("init", INIT.read_bytes(), mode=0o755)
    archive.folder("esp")
    archive.program("bin/kexec", Path(tool("kexec")))
    files = Kernel(modules.parents[2], modules.name).modules(MODULES)
    for file in files:
        archive.file(f"modules/{file.name}", file.read_bytes())
    order = "".join(f"/modules/{file.name}\n" for file in files)
    archive.file("modules.order", order.encode())
    return archive.finish()
