"""The initrd of a version: a busybox, a few modules, dmsetup, and the hash of the root.

All of it comes out of the packages, nothing from the builder.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from images.reference import cpio
from images.reference.kernel import Kernel
from images.reference.tools import run
from images.reference.verity import BLOCK, Verity

INIT: Final = Path(__file__).parent / "initrd" / "init"
MODULES: Final = (
    "virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "nvme", "ext4", "crc32c_generic",
    "erofs", "dm_mod", "dm_verity", "sha256_generic",
)  # fmt: skip
WATCHDOG: Final = "softdog"  # loaded by name, with its limit
APPLETS: Final = (
    "cat", "dd", "echo", "grep", "insmod", "mkdir", "mount", "mv", "readlink", "sed", "sh",
    "sleep", "switch_root", "sync", "tail", "timeout", "tr",
)  # fmt: skip
PROGRAMS: Final = ("dmsetup", "e2fsck")
FOLDERS: Final = ("dev", "etc/bascule/initrd.d", "newroot", "proc", "run", "sys", "tmp")
_LIBRARIES: Final = "usr/lib/x86_64-linux-gnu"
_LOADER: Final = f"{_LIBRARIES}/ld-linux-x86-64.so.2"
_FOUND: Final = re.compile(r"=> (/\S+) \(0x")


def build(
    packages: Path, kernel: Kernel, verity: Verity, *, hooks: Mapping[str, str], cache: Path
) -> bytes:
    """Return the initrd that opens one root: whole blocks.

    It is two archives, one after the other, as Linux takes them. What all versions share comes
    first and is compressed; what names the root follows, plain: a delta then has one block of it.

    Args:
        packages: the folder that the packages were unpacked to.
        kernel: of the same packages.
        verity: the root that it opens, and no other.
        hooks: shell that the initrd reads before it opens the root, by file name.
        cache: a folder where the compressed archive is kept.

    Raises:
        KernelModuleError: the kernel lacks a module.
        ToolMissingError, ToolFailedError: zstd, or the packages' dynamic loader.
    """
    shared = cpio.archive([*_frame(packages), *_modules(kernel), *_programs(packages)])
    named = {"verity": verity.text, **{f"initrd.d/{name}": hooks[name] for name in hooks}}
    own = cpio.archive(
        cpio.file(f"etc/bascule/{name}", text.encode()) for name, text in named.items()
    )
    return b"".join(data + bytes(-len(data) % BLOCK) for data in (_compressed(shared, cache), own))


def _compressed(data: bytes, cache: Path) -> bytes:
    """Return a zstd frame of `data`; the slowest step of a version, so it is kept."""
    kept = cache / f"initrd-{hashlib.sha256(data).hexdigest()[:16]}.zst"
    if not kept.exists():
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            raw, packed = Path(scratch) / "raw", Path(scratch) / "packed"
            raw.write_bytes(data)
            run(["zstd", "-q", "-19", "--single-thread", raw, "-o", packed])
            packed.replace(kept)
    return kept.read_bytes()


def _frame(packages: Path) -> Iterator[cpio.Node]:
    yield from map(cpio.folder, FOLDERS)
    # The kernel's own console comes from here: devtmpfs is mounted by the init only.
    yield cpio.character_device("dev/console", 5, 1)
    yield cpio.character_device("dev/null", 1, 3)
    yield cpio.file("init", INIT.read_bytes(), executable=True)
    yield cpio.file("bin/busybox", (packages / "usr/bin/busybox").read_bytes(), executable=True)
    yield from (cpio.link(f"bin/{applet}", "busybox") for applet in APPLETS)


def _modules(kernel: Kernel) -> Iterator[cpio.Node]:
    order = kernel.load_order([*MODULES, WATCHDOG])
    for path in order:
        yield cpio.file(f"lib/modules/{path.name}", path.read_bytes())
    listed = [f"/lib/modules/{path.name}\n" for path in order if path.name != f"{WATCHDOG}.ko"]
    yield cpio.file("etc/bascule/modules", "".join(listed).encode())


def _programs(packages: Path) -> Iterator[cpio.Node]:
    programs = [packages / "usr/sbin" / name for name in PROGRAMS]
    for program in programs:
        yield cpio.file(f"sbin/{program.name}", program.read_bytes(), executable=True)
    yield cpio.file(
        "lib64/ld-linux-x86-64.so.2", (packages / _LOADER).read_bytes(), executable=True
    )
    for library in sorted(libraries_of(programs, packages)):
        data = (packages / _LIBRARIES / library).read_bytes()
        yield cpio.file(f"lib/x86_64-linux-gnu/{library}", data)


def libraries_of(programs: Iterable[Path], packages: Path) -> set[str]:
    """Return the names of the libraries that programs load, as the packages' own loader says.

    Raises:
        ToolFailedError: a library is missing.
    """
    loader, folder = packages / _LOADER, packages / _LIBRARIES
    found: set[str] = set()
    for program in programs:
        said = run([loader, "--inhibit-cache", "--library-path", folder, "--list", program])
        found |= {Path(path).name for path in _FOUND.findall(said)}
    return found - {Path(_LOADER).name}
