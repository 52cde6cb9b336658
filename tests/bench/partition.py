"""A partition to install on: a loop device over a file, with direct I/O below where that goes.

Without root, or where loop devices are not to be had, it is the file itself; then nobody counts
what is written to it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MIB: Final = 1024 * 1024
SECTOR_BYTES: Final = 512  # /sys/block/*/stat counts in these, whatever the device has
FLUSH_BUFFERS: Final = 0x1261  # BLKFLSBUF, linux/fs.h
SECTORS_WRITTEN: Final = 6  # the seventh field of stat


@dataclass(frozen=True)
class Partition:
    """A device, or a file where there is none.

    Attributes:
        path: to open.
        size: bytes.
        is_device: whether it is a loop device.
    """

    path: Path
    size: int
    is_device: bool

    def written(self) -> int | None:
        """Return the bytes that reached the device so far; None for a file."""
        if not self.is_device:
            return None
        fields = Path(f"/sys/block/{self.path.name}/stat").read_text().split()
        return int(fields[SECTORS_WRITTEN]) * SECTOR_BYTES

    def fill(self, source: Path | None = None) -> None:
        """Write an image over it, or noise that no image has: nothing of a run before is left."""
        if source is not None:
            self._copy(source)
            return
        noise = random.Random(self.size).randbytes(4 * MIB)
        with self.path.open("r+b") as file:
            for offset in range(0, self.size, len(noise)):
                file.write(noise[: self.size - offset])
            file.flush()
            os.fsync(file.fileno())
        self.forget()

    def _copy(self, source: Path) -> None:
        with source.open("rb") as image, self.path.open("r+b") as file:
            shutil.copyfileobj(image, file, 4 * MIB)
            file.flush()
            os.fsync(file.fileno())
        self.forget()

    def forget(self) -> None:
        """Flush it, and let the next read be of the device."""
        with self.path.open("r+b", buffering=0) as file:
            os.fsync(file.fileno())
            if self.is_device:
                fcntl.ioctl(file, FLUSH_BUFFERS)
            else:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def digest(self, size: int) -> str:
        """Return the SHA-256 of its first bytes as the device holds them."""
        self.forget()
        sha256, left = hashlib.sha256(), size
        with self.path.open("rb", buffering=0) as file:
            while left and (data := file.read(min(4 * MIB, left))):
                sha256.update(data)
                left -= len(data)
        return sha256.hexdigest()


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def partition(file: Path, size: int, *, loop: bool = True) -> Iterator[Partition]:
    """Make a partition of `size` bytes over a new file; both are gone afterwards.

    Args:
        file: to be made.
        size: bytes.
        loop: make it a device where that can be; else it is the file.
    """
    with file.open("wb") as made:
        os.posix_fallocate(made.fileno(), 0, size)
    device = _attach(file) if loop else ""
    try:
        yield Partition(Path(device) if device else file, size, bool(device))
    finally:
        if device:
            subprocess.run(["losetup", "--detach", device], check=True)
        file.unlink()


def _attach(file: Path) -> str:
    if os.geteuid() != 0 or shutil.which("losetup") is None:
        return ""
    for how in (["--direct-io=on"], []):
        done = subprocess.run(
            ["losetup", "--find", "--show", *how, str(file)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode == 0:
            return done.stdout.strip()
    return ""
