"""Packs the initramfs that stands for a loader of boot bits (`init` beside this file)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from images.reference import cpio
from tests.e2e.boot.archive import Kernel, busybox, modules, program, tool

INIT: Final = Path(__file__).with_name("init")
MODULES: Final = [
    *("virtio_pci", "virtio_blk", "vfat"),
    *("nls_cp437", "nls_ascii", "nls_iso8859_1", "nls_utf8"),
]


def shim(kernel: Kernel) -> bytes:
    """Return the archive for a kernel.

    Raises:
        FileNotFoundError: busybox or kexec is not installed.
    """
    return cpio.archive(
        [
            *busybox(),
            cpio.file("init", INIT.read_bytes(), executable=True),
            cpio.folder("esp"),
            *program("bin/kexec", Path(tool("kexec"))),
            *modules(kernel.load_order(MODULES)),
        ]
    )
