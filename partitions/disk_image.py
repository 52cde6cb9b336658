"""Making a disk file: a sparse draft gets its table, file systems and first image, then its name.

The draft is renamed when it is whole and flushed; a killed run leaves no half disk under the name
that was asked for. Needs no root: file systems are made in a file of their own and copied in.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import stat
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from partitions.booted import Booted
from partitions.disk import Access, open_disk
from partitions.errors import (
    DeviceOpenError,
    DeviceReadError,
    DeviceTooSmallError,
    DeviceWriteError,
    DiskExistsError,
    LayoutInvalidError,
    ToolFailedError,
    ToolMissingError,
)
from partitions.gpt import Entry, Table
from partitions.layout import DiskLayout, Filesystem, Partition, Role
from partitions.placement import guids_of, plan
from partitions.slots import Region
from partitions.table import initialise
from partitions.writer import RegionWriter

log = logging.getLogger(__name__)

SYSTEM_FOLDERS: Final = "/usr/sbin:/sbin"  # where mkfs lives; not on a user's PATH
TOOL_TIMEOUT_S: Final = 600.0  # 10 minutes: mkfs on a slow disk
_CHUNK_BYTES: Final = 1024 * 1024
_EXT4_LABEL_MAX: Final = 16  # bytes
_VFAT_LABEL_MAX: Final = 11  # characters
_EPOCH: Final = "1577836800"  # 2020-01-01, as FAT knows no time before 1980


def create_disk(
    layout: DiskLayout, output: Path, *, images: Mapping[str, Path], replace: bool = False
) -> Table:
    """Make a disk file.

    Args:
        layout: what it shall be.
        output: its name; appears only when all is done.
        images: an image for each part of slot A, or none at all.
        replace: whether a file of that name is replaced.

    Returns:
        The table of the new disk.

    Raises:
        DiskExistsError: `output` is there and shall not be replaced, or is no plain file.
        LayoutInvalidError: the partitions do not fit, or `images` names other parts than slot A.
        DeviceTooSmallError: an image is larger than its partition.
        ToolMissingError, ToolFailedError: a file system cannot be made.
        DeviceError: reading an image or writing the disk failed.
    """
    _check_name(output, replace=replace)
    _check_images(layout, images)
    new_guid = guids_of(layout)
    table = plan(layout, confirmed_a=bool(images), new_guid=new_guid)
    with _draft(output, table.disk_sectors * table.sector_size) as draft:
        with open_disk(draft, Access.WRITE) as disk:
            initialise(disk, table)
        for one, entry in zip(layout.partitions, table.entries, strict=True):
            region = _region(draft, table, entry)
            image = images.get(one.part) if one.role is Role.SLOT_A else None
            if image is not None:
                _copy_in(image, region)
            elif one.filesystem is not Filesystem.NONE:
                identity = new_guid(f"filesystem/{one.label}")
                _make_filesystem(one, region, layout, identity=identity)
    log.info("disk made path=%s bytes=%d", output, table.disk_sectors * table.sector_size)
    return table


def _check_name(output: Path, *, replace: bool) -> None:
    try:
        mode = output.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise DeviceOpenError.because(output, error) from error
    if not stat.S_ISREG(mode):
        raise DiskExistsError(f"{output} exists and is no plain file; it is not replaced")
    if not replace:
        raise DiskExistsError(f"{output} exists already")


def _check_images(layout: DiskLayout, images: Mapping[str, Path]) -> None:
    parts = {one.part for one in layout.partitions if one.role is Role.SLOT_A}
    if images and set(images) != parts:
        raise LayoutInvalidError(
            f"images are given for {', '.join(sorted(images))}; slot a consists of "
            f"{', '.join(sorted(parts)) or 'nothing'}, and is installed whole or not at all"
        )


@contextlib.contextmanager
def _draft(output: Path, size: int) -> Iterator[Path]:
    """Give a sparse file beside `output` that becomes it, durably, if all goes well."""
    draft = output.with_name(f".{output.name}.draft")
    try:
        draft.unlink(missing_ok=True)  # of a killed run
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            os.ftruncate(descriptor, size)
            yield draft
            os.fsync(descriptor)
            draft.replace(output)
        finally:
            os.close(descriptor)
            draft.unlink(missing_ok=True)
        _sync_folder(output.parent)
    except OSError as error:
        raise DeviceWriteError(f"{output} cannot be made: {error.strerror or error}") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _region(draft: Path, table: Table, entry: Entry) -> Region:
    return Region(
        path=draft,
        offset=entry.first_lba * table.sector_size,
        size=entry.sectors * table.sector_size,
        partuuid=str(entry.part_guid),
        label=entry.name,
        number=entry.number,
    )


def _copy_in(source: Path, region: Region) -> None:
    """Copy a file into a region of a fresh disk; holes and zeros are not written."""
    try:
        size = source.stat().st_size
        if size > region.size:
            raise DeviceTooSmallError(
                f"{source} has {size} bytes, partition {region.label} has {region.size}"
            )
        with source.open("rb") as file, RegionWriter(region, booted=Booted.nothing()) as writer:
            for offset, data in _data_of(file.fileno(), size):
                writer.write_at(offset, data)
    except OSError as error:
        raise DeviceReadError.because(source, 0, error) from error


def _data_of(descriptor: int, size: int) -> Iterator[tuple[int, bytes]]:
    """Yield what of a file is not zero, with its offset, in pieces of at most 1 MiB."""
    at = 0
    while at < size:
        try:
            at = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        data = os.pread(descriptor, min(_CHUNK_BYTES, size - at), at)
        if not data:
            return
        if data.count(0) != len(data):
            yield at, data
        at += len(data)


def _make_filesystem(
    one: Partition, region: Region, layout: DiskLayout, *, identity: uuid.UUID
) -> None:
    command = _COMMANDS[one.filesystem](one, layout, identity)
    tool = shutil.which(command[0], path=f"{os.environ.get('PATH', '')}:{SYSTEM_FOLDERS}")
    if tool is None:
        raise ToolMissingError(
            f"{command[0]} is not installed; partition {one.label} shall have "
            f"{one.filesystem.value}"
        )
    with tempfile.TemporaryDirectory(dir=region.path.parent, prefix=".mkfs-") as folder:
        file = Path(folder) / "filesystem"
        with file.open("wb") as fresh:
            fresh.truncate(region.size)
        _run([tool, *command[1:], str(file)], seeded=bool(layout.seed))
        _copy_in(file, region)


def _vfat(one: Partition, layout: DiskLayout, identity: uuid.UUID) -> list[str]:
    label = one.label.upper()[:_VFAT_LABEL_MAX]
    volume = f"{identity.int & 0xFFFF_FFFF:08x}"
    steady = ["--invariant"] if layout.seed else []
    return ["mkfs.vfat", *steady, "-S", str(layout.sector_size), "-i", volume, "-n", label]


def _ext4(one: Partition, layout: DiskLayout, identity: uuid.UUID) -> list[str]:
    label = one.label.encode()[:_EXT4_LABEL_MAX].decode(errors="ignore")
    block = ["-b", "4096"] if layout.sector_size == 4096 else []
    extended = f"hash_seed={identity},lazy_itable_init=1,lazy_journal_init=1"
    return ["mkfs.ext4", "-q", "-F", *block, "-L", label, "-U", str(identity), "-E", extended]


_COMMANDS: Final[Mapping[Filesystem, Callable[[Partition, DiskLayout, uuid.UUID], list[str]]]] = {
    Filesystem.VFAT: _vfat,
    Filesystem.EXT4: _ext4,
}


def _run(command: list[str], *, seeded: bool) -> None:
    steady = {"SOURCE_DATE_EPOCH": _EPOCH, "E2FSPROGS_FAKE_TIME": _EPOCH} if seeded else {}
    try:
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TOOL_TIMEOUT_S,
            env={**os.environ, "LC_ALL": "C", **steady},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolFailedError(f"{command[0]} could not be run: {error}") from error
    if done.returncode:
        words = " ".join((done.stderr or done.stdout).split())[-300:]
        raise ToolFailedError(f"{command[0]} ended with status {done.returncode}: {words}")
