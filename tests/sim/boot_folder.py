"""The loader's partition in memory, with every state that a cut of the power can leave.

Of the promises of `boot_folder.Folder` and no more: a new file may be missing, empty, torn or
whole, and its clusters may still hold what a removed file left there; a sector that is changed in
place is old or new; a removed file is there, blank, or gone. One change is durable before the next
begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from partitions.boot.systemd_boot import SystemdBootEntries, template_of
from partitions.boot_folder import SECTOR_BYTES, BootFolder
from partitions.errors import BootFolderError
from partitions.slots import Slot

Files: TypeAlias = Mapping[str, bytes]


def make_partition(root: Path) -> None:
    """Make what systemd-boot finds on its partition: kernels, templates, slot A confirmed."""
    for slot in Slot:
        kernel = root / f"bascule/{slot.value}/linux"
        kernel.parent.mkdir(parents=True)
        kernel.write_bytes(b"kernel")
        template = root / template_of(slot)
        template.parent.mkdir(parents=True, exist_ok=True)
        template.write_text(f"linux /bascule/{slot.value}/linux\noptions quiet\n")
    SystemdBootEntries(BootFolder(root)).confirm(Slot.A)


class FolderSim:
    """Keeps `Folder` in a dictionary.

    Attributes:
        files: path to content.
        cuts: what a cut leaves, for each instant of each change since the start.
    """

    def __init__(self, files: Files, *, freed: Sequence[bytes] = ()) -> None:
        """Put files on the disk.

        Args:
            files: path to content.
            freed: what somebody else left in clusters that no file uses any more.
        """
        self.files = dict(files)
        self.cuts: list[Files] = []
        self._freed = list(freed)

    def names(self, folder: str) -> list[str]:
        prefix = f"{folder}/" if folder else ""
        inside = (path.removeprefix(prefix) for path in self.files if path.startswith(prefix))
        return sorted(name for name in inside if "/" not in name)

    def read(self, name: str) -> bytes | None:
        return self.files.get(name)

    def create(self, name: str, content: bytes) -> None:
        if name in self.files:
            raise BootFolderError(f"{name}: File exists")
        self.cuts += [{**self.files, name: torn} for torn in self._torn(content)]
        self._become({**self.files, name: content})

    def overwrite(self, name: str, content: bytes) -> None:
        if len(self.files[name]) != len(content) or len(content) > SECTOR_BYTES:
            raise BootFolderError(f"{name} cannot be changed in place within one sector")
        self._become({**self.files, name: content})

    def remove(self, name: str) -> None:
        if name not in self.files:
            return
        if len(self.files[name]) <= SECTOR_BYTES:
            self._become({**self.files, name: b"\n" * len(self.files[name])})
        self._freed.append(self.files[name])
        self._become({path: data for path, data in self.files.items() if path != name})

    def _become(self, files: Files) -> None:
        self.files = dict(files)
        self.cuts.append(files)

    def _torn(self, content: bytes) -> Iterator[bytes]:
        """Some of what a new file may hold; `test_systemd_boot.py` takes every length."""
        text = len(content.rstrip(b"\n"))
        yield from (b"", content[: text // 2], content[: text - 1])
        yield content[: text // 2].ljust(len(content), b"\0")
        yield from self._freed
