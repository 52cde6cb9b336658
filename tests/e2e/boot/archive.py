"""What the small initramfs of the tests hold beside what a test adds, and the kernel under them.

Archives and modules are packed by what packs the reference OS: `images.reference`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Self

from images.reference import cpio, kernel

TOOLS: Final = "/usr/sbin:/sbin:/usr/bin:/bin"
CACHE: Final = Path(__file__).parents[3] / "build" / "boot"  # what `make clean` takes away
KERNEL_PACKAGE: Final = "linux-image-cloud-amd64"


def tool(name: str) -> str:
    """Return the path of a program that is not on every user's PATH.

    Raises:
        FileNotFoundError: it is not installed.
    """
    found = shutil.which(name, path=TOOLS)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed")
    return found


def libraries(binary: Path) -> list[Path]:
    """Return what the dynamic linker loads for a program, the linker included."""
    listed = subprocess.run(["ldd", str(binary)], capture_output=True, text=True, check=False)
    return [Path(found) for found in re.findall(r"(/\S+) \(0x", listed.stdout)]


def applets() -> list[str]:
    """Return the names by which busybox is called."""
    listed = subprocess.run(
        [tool("busybox"), "--list"], capture_output=True, text=True, check=True
    ).stdout.split()
    return [name for name in listed if name != "busybox"]


def busybox() -> list[cpio.Node]:
    """Return busybox under each of its names, and the folders and devices that /init needs."""
    data = Path(tool("busybox")).read_bytes()
    return [
        *map(cpio.folder, ("proc", "sys", "dev", "run", "tmp", "newroot")),
        cpio.character_device("dev/console", 5, 1),
        cpio.character_device("dev/null", 1, 3),
        cpio.file("bin/busybox", data, executable=True),
        *(cpio.link(f"bin/{applet}", "busybox") for applet in applets()),
    ]


def program(name: str, source: Path) -> list[cpio.Node]:
    """Return a program and the libraries that it is linked with."""
    files = {name: source, **{str(path).lstrip("/"): path for path in libraries(source)}}
    return [cpio.file(path, files[path].read_bytes(), executable=True) for path in files]


def modules(files: Iterable[Path]) -> list[cpio.Node]:
    """Return modules of a kernel, and the list of them in the order of loading."""
    files = list(files)
    order = "".join(f"/modules/{file.name}\n" for file in files)
    return [
        *(cpio.file(f"modules/{file.name}", file.read_bytes()) for file in files),
        cpio.file("modules.order", order.encode()),
    ]


class Kernel(kernel.Kernel):
    """Debian's cloud kernel, unpacked and not installed."""

    __slots__ = ()

    @classmethod
    def fetched(cls) -> Self:
        """Return the kernel of the cache; ask apt for it when there is none.

        Raises:
            FileNotFoundError: there is neither.
        """
        known = cls.found()
        if known is not None:
            return known
        CACHE.mkdir(parents=True, exist_ok=True)
        depends = subprocess.run(
            ["apt-cache", "depends", KERNEL_PACKAGE], capture_output=True, text=True, check=False
        ).stdout
        names = re.findall(r"Depends: (linux-image-\S+)", depends)
        if not names:
            raise FileNotFoundError(f"apt knows no {KERNEL_PACKAGE}")
        draft = CACHE / "kernel.draft"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        got = subprocess.run(
            ["apt-get", "download", names[0]], cwd=draft, capture_output=True, check=False
        )
        package = next(draft.glob("*.deb"), None)
        if got.returncode or package is None:
            raise FileNotFoundError(f"apt gives no {names[0]}")
        subprocess.run(["dpkg", "-x", str(package), str(draft)], check=True)
        package.unlink()
        kernel.open_kernel(draft)  # makes depmod's index
        shutil.rmtree(CACHE / "kernel", ignore_errors=True)
        draft.rename(CACHE / "kernel")
        return cls._of(CACHE / "kernel")

    @classmethod
    def found(cls) -> Self | None:
        """Return the kernel of the cache, or nothing; it is indexed there already."""
        folder = CACHE / "kernel"
        return cls._of(folder) if folder.is_dir() else None

    @classmethod
    def _of(cls, folder: Path) -> Self:
        modules = next((folder / "lib/modules").iterdir())
        image = folder / "boot" / f"vmlinuz-{modules.name}"
        return cls(version=modules.name, image=image, modules=modules)


def hello_initrd() -> bytes:
    """Return the smallest system that says a word: what shows whether a machine boots at all."""
    init = b"#!/bin/busybox sh\necho HELLO-FROM-INIT\nexec sleep 3600\n"
    return cpio.archive([*busybox(), cpio.file("init", init, executable=True)])
