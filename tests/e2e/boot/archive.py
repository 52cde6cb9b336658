"""An initramfs out of files, written here: so device nodes and root ownership need no root."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

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


@dataclass
class Archive:
    """A cpio archive of the kind that the kernel unpacks (newc)."""

    _out: bytearray = field(default_factory=bytearray)
    _names: set[str] = field(default_factory=set)

    def add(
        self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        """Add an entry, and the folders above it; nothing when it is there already."""
        name = name.strip("/")
        if name in self._names:
            return
        above = name.rpartition("/")[0]
        if above:
            self.folder(above)
        self._names.add(name)
        path = name.encode() + b"\0"
        numbers = (
            len(self._names), mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0,
        )  # fmt: skip
        self._out += b"070701" + b"".join(b"%08X" % number for number in numbers)
        for piece in (path, data):
            self._out += piece
            self._out += bytes(-len(self._out) % 4)

    def folder(self, name: str) -> None:
        """Add a folder."""
        self.add(name, stat.S_IFDIR | 0o755)

    def file(self, name: str, data: bytes, *, mode: int = 0o644) -> None:
        """Add a file."""
        self.add(name, stat.S_IFREG | mode, data)

    def link(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self.add(name, stat.S_IFLNK | 0o777, target.encode())

    def program(self, name: str, source: Path) -> None:
        """Add a program and the libraries that it is linked with."""
        self.file(name, source.read_bytes(), mode=0o755)
        for library in libraries(source):
            self.file(str(library), library.resolve().read_bytes(), mode=0o755)

    def busybox(self) -> None:
        """Add busybox under each of its names, and the device nodes that /init needs."""
        for name in ("proc", "sys", "dev", "run", "tmp", "newroot"):
            self.folder(name)
        self.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
        self.add("dev/null", stat.S_IFCHR | 0o666, device=(1, 3))
        binary = tool("busybox")
        self.file("bin/busybox", Path(binary).read_bytes(), mode=0o755)
        for applet in applets():
            self.link(f"bin/{applet}", "busybox")

    def finish(self) -> bytes:
        """Return the whole archive."""
        self.add("TRAILER!!!", 0)
        return bytes(self._out)


def applets() -> list[str]:
    """Return the names by which busybox is called."""
    listed = subprocess.run(
        [tool("busybox"), "--list"], capture_output=True, text=True, check=True
    ).stdout.split()
    return [name for name in listed if name != "busybox"]


@dataclass(frozen=True, slots=True)
class Kernel:
    """Debian's cloud kernel, unpacked and not installed.

    Attributes:
        folder: where the package was unpacked.
        version: as `uname -r` says it.
    """

    folder: Path
    version: str

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
        folder = CACHE / "kernel"
        draft = CACHE / "kernel.draft"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        subprocess.run(
            ["apt-get", "download", names[0]], cwd=draft, capture_output=True, check=True
        )
        package = next(draft.glob("*.deb"))
        subprocess.run(["dpkg", "-x", str(package), str(draft)], check=True)
        package.unlink()
        version = next((draft / "lib/modules").iterdir()).name
        subprocess.run([tool("depmod"), "-b", str(draft), version], check=True)
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
        return cls(folder, version)

    @classmethod
    def found(cls) -> Self | None:
        """Return the kernel of the cache, or nothing."""
        modules = CACHE / "kernel/lib/modules"
        versions = sorted(modules.iterdir()) if modules.is_dir() else []
        return cls(CACHE / "kernel", versions[0].name) if versions else None

    @property
    def image(self) -> Path:
        """What a loader starts."""
        return self.folder / "boot" / f"vmlinuz-{self.version}"

    def modules(self, wanted: list[str]) -> list[Path]:
        """Return the files of these modules and of those they need, in the order of loading."""
        base = self.folder / "lib/modules" / self.version
        needs = {}
        for line in (base / "modules.dep").read_text().splitlines():
            path, _, others = line.partition(":")
            needs[_module_name(path)] = [*reversed(others.split()), path]
        builtin = {_module_name(path) for path in (base / "modules.builtin").read_text().split()}
        missing = {name for name in wanted if name not in needs and name not in builtin}
        if missing:
            raise FileNotFoundError(f"kernel {self.version} has no modules {sorted(missing)}")
        ordered = dict.fromkeys(path for name in wanted for path in needs.get(name, []))
        return [base / path for path in ordered]


def _module_name(path: str) -> str:
    return path.rpartition("/")[2].partition(".")[0].replace("-", "_")


def hello_initrd() -> bytes:
    """Return the smallest system that says a word: what shows whether a machine boots at all."""
    archive = Archive()
    archive.busybox()
    archive.file("init", b"#!/bin/busybox sh\necho HELLO-FROM-INIT\nexec sleep 3600\n", mode=0o755)
    return archive.finish()
