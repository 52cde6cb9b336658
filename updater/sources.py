"""The old images that a delta starts from: the booted slot, read and never written.

A delta of format 2 reads the booted slot while it writes the passive one, so that any operation
can be repeated. One of format 1 reads what it writes: the passive partition gets a full copy of
the booted one first, and an install that was interrupted begins with that copy again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from images.source import check_source
from partitions.disk import Access, OpenDisk, open_disk
from partitions.errors import DeviceReadError
from partitions.readback import digest_of
from updater.errors import RefusedError, UpdaterError
from updater.plan import DoesNotFitError

if TYPE_CHECKING:
    from images.payload import Manifest, Part
    from partitions.slots import Region
    from partitions.writer import RegionWriter
    from updater.plan import OwnFacts

COPY_BYTES: Final = 1024 * 1024  # read and written at once


class SourcePartMissingError(RefusedError):
    """A delta starts from a part that this node has not."""

    code = "source-part-missing"
    hint = "The delta was made for another layout of slots; install a full payload."


class CopyMismatchError(UpdaterError):
    """The copy of the booted slot is not what the delta starts from."""

    code = "copy-mismatch"
    hint = "The disk loses or changes data: check its health before the next try."


class RegionImage:
    """What a region holds, read through the page cache: it sees what was written before.

    Args:
        region: where it is.
        disk: the region's path, open.
    """

    def __init__(self, region: Region, disk: OpenDisk) -> None:
        self._region = region
        self._disk = disk

    def read_at(self, offset: int, size: int) -> bytes:
        """Return `size` bytes, or fewer where the region or the file ends.

        Raises:
            DeviceReadError: the device failed.
        """
        if self._region.room is None:  # a file ends by itself
            size = max(0, min(size, self._region.size - offset))
        at = self._region.offset + offset
        try:
            return os.pread(self._disk.descriptor, size, at)
        except OSError as error:
            raise DeviceReadError.because(self._region.path, at, error) from error

    def read_into(self, offset: int, room: memoryview) -> int:
        """Fill `room` from `offset` on; return how many bytes there are, fewer only at the end.

        Raises:
            DeviceReadError: the device failed.
        """
        if self._region.room is None:
            room = room[: max(0, self._region.size - offset)]
        at, done = self._region.offset + offset, 0
        try:
            while done < len(room):
                got = os.preadv(self._disk.descriptor, [room[done:]], at + done)
                if not got:
                    break
                done += got
        except OSError as error:
            raise DeviceReadError.because(self._region.path, at + done, error) from error
        return done


@contextlib.contextmanager
def images_of(regions: Mapping[str, Region]) -> Iterator[dict[str, RegionImage]]:
    """Open regions for reading.

    Raises:
        DeviceOpenError: one cannot be opened.
    """
    with ExitStack() as stack:
        yield {
            name: RegionImage(region, stack.enter_context(open_disk(region.path, Access.READ)))
            for name, region in regions.items()
        }


def deltas_of(manifest: Manifest) -> tuple[Part, ...]:
    """Return the parts of a manifest that are deltas, without their operations."""
    return tuple(
        dataclasses.replace(part, operations=())
        for part in manifest.parts
        if part.old_size is not None
    )


def check_sources(
    facts: OwnFacts, booted: Mapping[str, Region], passive: Mapping[str, Region]
) -> None:
    """Make sure, before anything is written, that the booted slot is what the deltas start from.

    Raises:
        SourcePartMissingError: the booted slot has no such part.
        DoesNotFitError: the passive partition cannot hold the copy that format 1 needs.
        SourceMismatchError: it holds another image.
        PartitionsError: it cannot be read.
    """
    for part in facts.deltas:
        if part.name not in booted:
            raise SourcePartMissingError(
                f"the delta starts from part {part.name}, this node has {sorted(booted)}"
            )
        region = booted[part.name]
        if facts.in_place and passive[part.name].size < region.readable_bytes:
            raise DoesNotFitError(
                f"part {part.name} has {region.readable_bytes} bytes in the booted slot,"
                f" {passive[part.name].size} in the passive one"
            )
        with images_of({part.name: region}) as images:
            check_source(
                part,
                images[part.name],
                size=region.readable_bytes,
                major=1 if facts.in_place else 2,
            )


def copy_booted(
    part: Part, source: Region, writer: RegionWriter, *, look: Callable[[], None]
) -> None:
    """Copy a booted partition over the passive one; returns when the disk holds it.

    Args:
        part: a delta of format 1.
        source: its partition in the booted slot.
        writer: of its partition in the passive slot, disarmed.
        look: called now and then; raises when the install shall stop.

    Raises:
        CopyMismatchError: the disk holds something else than the delta starts from.
        PartitionsError: a device failed.
    """
    with images_of({part.name: source}) as images:
        for offset in range(0, source.readable_bytes, COPY_BYTES):
            look()
            writer.write_at(offset, images[part.name].read_at(offset, COPY_BYTES))
    writer.sync()
    actual = digest_of(writer.region, source.readable_bytes)
    if actual != part.old_sha256:
        raise CopyMismatchError(f"the copy of part {part.name} reads back as {actual.hex()}")
