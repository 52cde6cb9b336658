"""Making a disk file: a sparse draft gets its table, file systems and loader, then its name.

The draft is renamed when it is whole and flushed; a killed run leaves no half disk under the name
that was asked for. Needs no root: file systems are made in a file of their own and copied in.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

from partitions.booted import Booted
from partitions.disk import Access, open_disk
from partitions.efi_store import with_variables
from partitions.errors import (
    DeviceReadError,
    DeviceWriteError,
    DiskExistsError,
    EfiStoreInvalidError,
    InputUnreadableError,
    LayoutInvalidError,
    OutputUnwritableError,
    PartitionTooSmallError,
)
from partitions.filesystems import Node, make_filesystem, tree_of
from partitions.gpt import Entry, Table
from partitions.layout import DiskLayout, Filesystem, Partition, Role
from partitions.loaders import LOADERS, Installation, Job, Loader, check, efi
from partitions.loaders.job import read_program
from partitions.placement import guids_of, plan
from partitions.slots import Region
from partitions.table import initialise
from partitions.writer import RegionWriter

log = logging.getLogger(__name__)

_CHUNK_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class FirmwareFile:
    """A virtual machine's EFI variables.

    Attributes:
        output: the file to make.
        template: the distribution's fresh one.
    """

    output: Path
    template: Path = efi.TEMPLATE


def create_disk(
    layout: DiskLayout,
    output: Path,
    *,
    images: Mapping[str, Path],
    loader: str | None = None,
    firmware: FirmwareFile | None = None,
    replace: bool = False,
) -> Table:
    """Make a disk file.

    Args:
        layout: what it shall be.
        output: its name; appears only when all is done.
        images: an image for each part of slot A, or none at all.
        loader: the name of the boot loader to install, of `LOADERS`; nothing for none.
        firmware: a virtual machine's file of EFI variables to make beside the disk.
        replace: whether a file of that name is replaced.

    Returns:
        The table of the new disk.

    Raises:
        DiskExistsError: `output` is there and shall not be replaced, or is no plain file.
        LayoutInvalidError: the partitions do not fit, `images` names other parts than slot A, or
            the loader cannot boot from such a layout.
        ContentsInvalidError: a file system cannot hold what is meant for it.
        EfiStoreInvalidError: the file of variables cannot take the loader's.
        PartitionTooSmallError: an image, or the boot files, are larger than their partition.
        InputUnreadableError, OutputUnwritableError: a path is wrong, or not this user's.
        ToolMissingError, ToolFailedError: a file system or the loader cannot be made.
        DeviceError: reading an image or writing the disk failed.
    """
    _check_name(output, replace=replace)
    if firmware:
        _check_name(firmware.output, replace=replace)
    _check_images(layout, images)
    chosen = LOADERS[loader] if loader else None
    if loader and chosen:
        check(loader, chosen, layout)
    new_guid = guids_of(layout)
    table = plan(
        layout,
        confirmed_a=bool(images),
        new_guid=new_guid,
        boot_bits=chosen is None or chosen.counts_in_table,
        bootable_esp=chosen is not None and chosen.marks_esp,
    )
    with _draft(output, table.disk_sectors * table.sector_size) as draft:
        installation = _installation(chosen, layout, table, draft, installed=bool(images))
        with open_disk(draft, Access.WRITE) as disk:
            initialise(disk, table)
            for offset, data in installation.raw.items():
                disk.pwrite(offset, data)
        work = _Work(draft=draft, layout=layout, table=table, new_guid=new_guid)
        for one, entry in zip(layout.partitions, table.entries, strict=True):
            image = images.get(one.part) if one.role is Role.SLOT_A else None
            if image is not None:
                _copy_in(image, work.region(entry))
            elif one.filesystem is not Filesystem.NONE:
                work.make_filesystem(one, entry, _tree(one, layout, images, installation))
        if firmware:
            _make_variables(firmware, installation)
    log.info("disk made path=%s bytes=%d", output, table.disk_sectors * table.sector_size)
    return table


def _check_name(output: Path, *, replace: bool) -> None:
    try:
        mode = output.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputUnwritableError.because(output, error) from error
    if not stat.S_ISREG(mode):
        raise DiskExistsError(f"{output} exists and is no plain file; it is not replaced")
    if not replace:
        raise DiskExistsError(f"{output} exists already")


def _check_images(layout: DiskLayout, images: Mapping[str, Path]) -> None:
    parts = set(layout.parts)
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
        with contextlib.suppress(OSError):  # then making it says why
            draft.unlink()  # of a killed run
        try:
            descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise OutputUnwritableError.because(output, error) from error
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


def _installation(
    loader: Loader | None, layout: DiskLayout, table: Table, draft: Path, *, installed: bool
) -> Installation:
    if loader is None:
        return Installation()
    with tempfile.TemporaryDirectory(dir=draft.parent, prefix=".loader-") as stage:
        return loader.prepare(
            Job(layout=layout, table=table, installed=installed, stage=Path(stage))
        )


def _make_variables(firmware: FirmwareFile, installation: Installation) -> None:
    template = read_program(firmware.template, efi.TEMPLATE_PACKAGE)
    try:
        flash = with_variables(template, installation.firmware)
    except EfiStoreInvalidError as error:
        raise EfiStoreInvalidError(f"{firmware.template} {error}") from error
    with _draft(firmware.output, len(flash)) as draft:
        draft.write_bytes(flash)


def _tree(
    one: Partition, layout: DiskLayout, images: Mapping[str, Path], installation: Installation
) -> dict[str, Node]:
    """Return what the file system of a partition shall hold."""
    tree = tree_of(one.contents) if one.contents else {}
    if one is not layout.esp:
        return tree
    mine = {name: Node(content=data) for name, data in installation.files.items()}
    sizes = 0
    for file in layout.files:
        # The folder of what is to come; a node makes files there, and need not know how.
        mine |= {str(PurePosixPath(name).parent): Node(mode=0o755) for name in file.names.values()}
        if file.part in images:
            image = images[file.part]
            mine[file.names[Role.SLOT_A]] = Node(content=image)
            sizes += _size_of(image)
    taken = {name.lower() for name in tree}
    files = (name for name, node in mine.items() if node.content is not None)
    twice = sorted(name for name in files if name.lower() in taken)
    if twice:
        raise LayoutInvalidError(
            f"{one.contents} holds {twice[0]}, which the boot loader or a slot has there"
        )
    needed = 2 * sizes + sum(len(data) for data in installation.files.values())
    if one.size_bytes and needed > one.size_bytes:
        raise PartitionTooSmallError(
            f"partition {one.label} has {one.size_bytes} bytes; the boot files of both slots and "
            f"the loader need {needed}"
        )
    return tree | mine


def _size_of(image: Path) -> int:
    try:
        return image.stat().st_size
    except OSError as error:
        raise InputUnreadableError.because(image, error) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """A draft on which file systems are made."""

    draft: Path
    layout: DiskLayout
    table: Table
    new_guid: Callable[[str], uuid.UUID]

    def region(self, entry: Entry) -> Region:
        """Return the bytes of a partition."""
        return Region(
            path=self.draft,
            offset=entry.first_lba * self.table.sector_size,
            size=entry.sectors * self.table.sector_size,
            partuuid=str(entry.part_guid),
            label=entry.name,
            number=entry.number,
        )

    def make_filesystem(self, one: Partition, entry: Entry, tree: Mapping[str, Node]) -> None:
        """Make a file system in a file of its own, and copy it in."""
        region = self.region(entry)
        identity = self.new_guid(f"filesystem/{one.label}")
        with tempfile.TemporaryDirectory(dir=self.draft.parent, prefix=".mkfs-") as folder:
            file = Path(folder) / "filesystem"
            make_filesystem(one, region.size, self.layout, tree, file, identity)
            _copy_in(file, region)


def _copy_in(source: Path, region: Region) -> None:
    """Copy a file into a region of a fresh disk; holes and zeros are not written."""
    try:
        size = _size_of(source)
        if size > region.size:
            raise PartitionTooSmallError(
                f"{source} has {size} bytes, partition {region.label} has {region.size}"
            )
        with _opened(source) as file, RegionWriter(region, booted=Booted.nothing()) as writer:
            for offset, data in _data_of(file.fileno(), size):
                writer.write_at(offset, data)
    except OSError as error:
        raise DeviceReadError.because(source, 0, error) from error


def _opened(source: Path) -> BinaryIO:
    try:
        return source.open("rb")
    except OSError as error:
        raise InputUnreadableError.because(source, error) from error


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
