"""A tree that looks like sysfs and procfs, for what no test may do to the real kernel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SECTOR = 512


@dataclass(frozen=True, slots=True)
class FakeKernel:
    """Lays out block devices, mounts and swaps below one folder."""

    folder: Path

    @property
    def sys(self) -> Path:
        return self.folder / "sys"

    @property
    def proc(self) -> Path:
        return self.folder / "proc"

    def boot(self) -> FakeKernel:
        (self.sys / "dev/block").mkdir(parents=True)
        (self.sys / "block").mkdir()
        (self.proc / "self").mkdir(parents=True)
        self.mounts()
        self.swaps()
        return self

    def disk(self, name: str, number: str, *, size: int) -> Path:
        folder = self._device(self.sys / "devices/virtual/block" / name, name, number, size=size)
        (self.sys / "block" / name).symlink_to(folder)
        return folder

    def partition(self, disk: Path, index: int, number: str, *, first: int, size: int) -> Path:
        name = f"{disk.name}p{index}"
        folder = self._device(disk / name, name, number, size=size)
        (folder / "partition").write_text(f"{index}\n")
        (folder / "start").write_text(f"{first // SECTOR}\n")
        return folder

    def loop(self, name: str, number: str, file: Path, *, offset: int = 0) -> Path:
        folder = self.disk(name, number, size=file.stat().st_size - offset)
        (folder / "loop").mkdir()
        (folder / "loop/backing_file").write_text(f"{file}\n")
        (folder / "loop/offset").write_text(f"{offset}\n")
        return folder

    def hold(self, holder: Path, *held: Path) -> None:
        for one in held:
            (one / "holders" / holder.name).symlink_to(holder)
            (holder / "slaves" / one.name).symlink_to(one)

    def mounts(self, *lines: str) -> None:
        (self.proc / "self/mountinfo").write_text("".join(f"{line}\n" for line in lines))

    def swaps(self, *paths: str) -> None:
        lines = [
            "Filename Type Size Used Priority",
            *(f"{path} partition 1 0 -2" for path in paths),
        ]
        (self.proc / "swaps").write_text("".join(f"{line}\n" for line in lines))

    def _device(self, folder: Path, name: str, number: str, *, size: int) -> Path:
        (folder / "holders").mkdir(parents=True)
        (folder / "slaves").mkdir()
        (folder / "size").write_text(f"{size // SECTOR}\n")
        (folder / "dev").write_text(f"{number}\n")
        (folder / "uevent").write_text(f"MAJOR=0\nDEVNAME={name}\n")
        (self.sys / "dev/block" / number).symlink_to(folder)
        return folder


def mount_line(number: str, where: str, *, source: str = "/dev/none") -> str:
    return f"42 27 {number} / {where} rw,relatime shared:1 - ext4 {source} rw"
