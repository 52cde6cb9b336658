"""Packs small initramfs archives: the shim that stands for a loader of boot bits, and others.

    python -m tests.e2e.boot.shim.pack MODULES_FOLDER OUTPUT

Writes the "newc" archive itself, so that device nodes and root's ownership need no root.
"""

from __future__ import annotations

import re
import stat
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.sim.gpt_tools import program

INIT = Path(__file__).with_name("init")
MODULES = (
    "virtio_pci",
    "virtio_blk",
    "vfat",
    "nls_cp437",
    "nls_ascii",
    "nls_iso8859_1",
    "nls_utf8",
)
BUSYBOX_LINKS = ("mount", "sh")


class Archive:
    """A newc archive that grows; folders come by themselves."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._names: set[str] = set()

    def add(
        self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        if name in self._names:
            return
        parent = name.rpartition("/")[0]
        if parent and parent not in self._names:
            self.add(parent, stat.S_IFDIR | 0o755)
        self._names.add(name)
        encoded = name.encode() + b"\0"
        numbers = (len(self._names), mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
        self._bytes += b"070701" + b"".join(b"%08X" % number for number in numbers) + encoded
        self._bytes += b"\0" * (-len(self._bytes) % 4) + data
        self._bytes += b"\0" * (-len(self._bytes) % 4)

    def folder(self, *names: str) -> None:
        for name in names:
            self.add(name, stat.S_IFDIR | 0o755)

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        self.add(name, stat.S_IFREG | mode, data)

    def program(self, path: str) -> None:
        """Add a program of the host with the libraries that it is linked to."""
        self.file(path.lstrip("/"), Path(path).read_bytes(), 0o755)
        said = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
        for library in re.findall(r"(/\S+) \(0x", said):
            self.file(library.lstrip("/"), Path(library).read_bytes(), 0o755)

    def content(self) -> bytes:
        self.add("TRAILER!!!", 0)
        return bytes(self._bytes)


def base(init: bytes) -> Archive:
    """Return an archive with busybox and this script as the first program."""
    archive = Archive()
    archive.folder("proc", "sys", "dev", "tmp", "esp", "bin", "sbin")
    archive.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    archive.add("dev/null", stat.S_IFCHR | 0o666, device=(1, 3))
    archive.file("bin/busybox", Path(program("busybox")).read_bytes(), 0o755)
    archive.file("init", init, 0o755)
    return archive


def shim(modules: Path) -> bytes:
    """Return the shim; `modules` is the `/lib/modules/VERSION` of its kernel, after depmod."""
    archive = base(INIT.read_bytes())
    kexec = program("kexec")
    archive.program(kexec)
    archive.add("bin/kexec", stat.S_IFLNK | 0o777, kexec.encode())
    add_modules(archive, modules, MODULES)
    return archive.content()


def add_modules(archive: Archive, modules: Path, wanted: Iterable[str]) -> None:
    """Add kernel modules, and `/modules.order` that names them in the order of loading."""
    paths = list(_in_order(modules, wanted))
    for path in paths:
        archive.file(f"modules/{path.name}", path.read_bytes())
    archive.file("modules.order", "".join(f"/modules/{path.name}\n" for path in paths).encode())


def _in_order(modules: Path, wanted: Iterable[str]) -> Sequence[Path]:
    needs = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        name, _, others = line.partition(":")
        needs[name] = others.split()
    by_stem = {Path(name).name.split(".")[0].replace("-", "_"): name for name in needs}
    order: dict[str, None] = {}
    for stem in wanted:
        if stem in by_stem:  # else it is built in
            order.update(dict.fromkeys([*reversed(needs[by_stem[stem]]), by_stem[stem]]))
    return [modules / name for name in order]


if __name__ == "__main__":
    Path(sys.argv[2]).write_bytes(shim(Path(sys.argv[1])))
