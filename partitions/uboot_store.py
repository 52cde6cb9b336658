"""U-Boot's environment on its devices or in its files: read whole, changed so that a cut is safe.

With two copies the one that does not count is written whole and flushed; the other is not touched,
and the new one counts only once its CRC fits. A single copy is changed in place, and only where
it lies within one sector of 512 bytes (decision 0010).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

from partitions import uboot_env
from partitions.copies import Disk
from partitions.disk import Access, OpenDisk, open_disk
from partitions.errors import (
    BootControlError,
    DeviceOpenError,
    UbootConfigError,
    UbootInvalidError,
    UbootNotAtomicError,
)
from partitions.uboot_env import CONFIG_MAX_BYTES, COPIES_MAX, CopyPlace, Entries

SECTOR_BYTES: Final = 512  # no disk writes less than that, or a part of that


@dataclass(frozen=True, slots=True)
class UbootEnv:
    """An environment as it was read.

    Attributes:
        copies: the bytes of each.
        active: which of them counts.
    """

    copies: tuple[bytes, ...]
    active: int

    @classmethod
    def of(cls, copies: Sequence[bytes]) -> Self:
        """Find the copy that counts.

        Raises:
            UbootInvalidError: none is whole.
        """
        found = uboot_env.active(copies)
        if found is None:
            raise UbootInvalidError("no copy of the environment has the CRC of its data")
        return cls(tuple(copies), found)

    @property
    def is_double(self) -> bool:
        """Whether there are two copies."""
        return len(self.copies) == COPIES_MAX

    @property
    def entries(self) -> Entries:
        """What the active copy holds."""
        return uboot_env.entries_of(self.copies[self.active], double=self.is_double)

    @property
    def values(self) -> dict[bytes, bytes]:
        """The variables that U-Boot takes from it."""
        return uboot_env.variables(self.entries, double=self.is_double)

    @property
    def written(self) -> int:
        """Which copy the next change writes: the one that does not count, when there are two."""
        return 1 - self.active if self.is_double else 0

    def holding(self, entries: Entries) -> Self:
        """Return the environment after these entries were written.

        Raises:
            UbootCrowdedError: they are too many.
        """
        flag = None
        if self.is_double:
            flag = (uboot_env.flag_of(self.copies[self.active]) + 1) % (uboot_env.FLAG_MAX + 1)
        copy = uboot_env.packed(entries, len(self.copies[self.active]), flag=flag)
        copies = list(self.copies)
        copies[self.written] = copy
        return replace(self, copies=tuple(copies), active=self.written)


def places_of(config: Path) -> tuple[CopyPlace, ...]:
    """Return where the copies are that an fw_env.config names.

    Raises:
        UbootConfigError: it cannot be read, or names nothing that can be.
    """
    try:
        with config.open("rb") as file:
            content = file.read(CONFIG_MAX_BYTES + 1)
        if len(content) > CONFIG_MAX_BYTES:
            raise UbootConfigError(f"has more than {CONFIG_MAX_BYTES} bytes")
        return uboot_env.read_config(content.decode())
    except OSError as error:
        raise UbootConfigError(f"{config} cannot be read: {error.strerror or error}") from error
    except (UbootConfigError, UnicodeDecodeError) as error:
        raise UbootConfigError(f"{config}: {error}") from error


def load(places: Sequence[CopyPlace], access: Access = Access.READ) -> UbootEnv:
    """Read the environment that lies at these places.

    Raises:
        UbootInvalidError: no copy is whole.
        DeviceError: one cannot be read; as for U-Boot's own tools, both must be there.
    """
    copies = []
    for place in places:
        with _opened(place, access) as (file, offset):
            copies.append(file.pread(offset, place.size))
    return _found(copies, places)


@contextlib.contextmanager
def changing(places: Sequence[CopyPlace]) -> Iterator[tuple[UbootEnv, Writer]]:
    """Lock the environment, and give what it holds and what writes the next one.

    Raises:
        UbootInvalidError: no copy is whole.
        UbootNotAtomicError: a single copy is larger than what changes at once.
        DeviceError: it cannot be opened or read.
    """
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(_opened(place, Access.WRITE)) for place in places]
        opened[0][0].lock()
        if len(places) < COPIES_MAX:
            _refuse_torn(places[0], opened[0][1])
        copies = [
            file.pread(offset, place.size)
            for place, (file, offset) in zip(places, opened, strict=True)
        ]
        env = _found(copies, places)
        file, offset = opened[env.written]
        yield env, Writer(file, offset)


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes the copy that a change may write.

    Attributes:
        file: the device or file that it lies in.
        offset: its first byte.
    """

    file: Disk
    offset: int

    def store(self, env: UbootEnv) -> None:
        """Write the environment's active copy there, and return when it is durable.

        Raises:
            DeviceWriteError: the device failed.
        """
        self.file.pwrite(self.offset, env.copies[env.active])
        self.file.sync()


def compare(places: Sequence[CopyPlace], env: UbootEnv) -> None:
    """Read the environment past the page cache: it must be this one.

    Raises:
        BootControlError: it is another.
        DeviceError: it cannot be read.
    """
    if load(places, Access.READ_PAST_CACHE) != env:
        names = ", ".join(dict.fromkeys(str(place.path) for place in places))
        raise BootControlError(f"{names} does not keep what was written to it")


def _found(copies: Sequence[bytes], places: Sequence[CopyPlace]) -> UbootEnv:
    try:
        return UbootEnv.of(copies)
    except UbootInvalidError as error:
        names = ", ".join(f"{place.path} at {place.offset:#x}" for place in places)
        raise UbootInvalidError(f"{names}: {error}") from error


def _refuse_torn(place: CopyPlace, offset: int) -> None:
    last = offset + place.size - 1
    if offset // SECTOR_BYTES != last // SECTOR_BYTES:
        raise UbootNotAtomicError(
            f"the only copy of the environment, {place.size} bytes at {offset:#x} of {place.path}, "
            f"does not lie within one sector of {SECTOR_BYTES}"
        )


@contextlib.contextmanager
def _opened(place: CopyPlace, access: Access) -> Iterator[tuple[OpenDisk, int]]:
    """Open a copy's device or file; gives its offset, from the end when it is below zero."""
    if place.path.is_char_device():
        raise DeviceOpenError(f"{place.path} is raw flash (MTD or UBI), which is not supported")
    with open_disk(place.path, access) as file:
        offset = place.offset
        if offset < 0:
            if not file.is_device:
                raise UbootConfigError(
                    f"{place.path} is a file: its offset {offset} cannot count from the end"
                )
            offset += file.size_bytes
        yield file, offset
