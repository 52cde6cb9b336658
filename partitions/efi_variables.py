"""The firmware's variables, as Linux shows them: one file each in efivarfs.

A file holds four bytes of attributes and the value. It is written by one `write`, which the
firmware makes durable whole or not at all; it is removed by removing the file. Files that the
kernel protects are immutable until a flag of theirs is cleared. What the values mean is not known
here (`efi_firmware.py`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

from partitions.errors import EfiVariableError

GLOBAL: Final = "8be4df61-93ca-11d2-aa0d-00e098032b8c"  # the vendor GUID of the boot variables
VALUE_MAX_BYTES: Final = 64 * 1024  # larger than any boot entry
ATTRIBUTES: Final = 0x7  # non-volatile, for boot services, for the running system
_ATTRIBUTES: Final = struct.Struct("<I")
_GET_FLAGS: Final = 2 << 30 | struct.calcsize("l") << 16 | 0x6601  # linux/fs.h: FS_IOC_GETFLAGS
_SET_FLAGS: Final = 1 << 30 | struct.calcsize("l") << 16 | 0x6602
_IMMUTABLE: Final = 0x10


class Variables(Protocol):
    """The global variables of the firmware, by name, without attributes.

    The real ones are `EfiVariables`. Each change is durable on return, and a cut leaves the old
    value or the new one.
    """

    def names(self) -> list[str]:
        """Return the names of all variables, sorted."""

    def read(self, name: str) -> bytes | None:
        """Return a value, nothing when there is no such variable."""

    def write(self, name: str, value: bytes) -> None:
        """Make a variable, or give it another value."""

    def remove(self, name: str) -> None:
        """Remove a variable; nothing when there is none."""


class EfiVariables:
    """Keeps `Variables` in a folder such as `/sys/firmware/efi/efivars`."""

    def __init__(self, folder: Path) -> None:
        """Name the folder; nothing is opened before the first call.

        Args:
            folder: where efivarfs is mounted, or plain files of the same form.
        """
        self._folder = folder

    def names(self) -> list[str]:
        """Return the names of all global variables, sorted.

        Raises:
            EfiVariableError: the folder cannot be read.
        """
        try:
            found = [path.name for path in self._folder.iterdir()]
        except OSError as error:
            raise EfiVariableError.because(self._folder, error) from error
        suffix = f"-{GLOBAL}"
        return sorted(name.removesuffix(suffix) for name in found if name.endswith(suffix))

    def read(self, name: str) -> bytes | None:
        """Return a value, nothing when there is no such variable.

        Raises:
            EfiVariableError: it cannot be read, or is shorter or longer than any such variable.
        """
        path = self._path(name)
        try:
            content = self._content(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise EfiVariableError.because(path, error) from error
        if not _ATTRIBUTES.size <= len(content) <= VALUE_MAX_BYTES:
            raise EfiVariableError(f"{path} has {len(content)} bytes, it is no variable")
        return content[_ATTRIBUTES.size :]

    def write(self, name: str, value: bytes) -> None:
        """Make a variable, or give it another value; it keeps its attributes. It is read back.

        Raises:
            EfiVariableError: the firmware refuses it, or does not keep it.
        """
        path = self._path(name)
        try:
            old = self._content(path)[: _ATTRIBUTES.size] if path.exists() else b""
            content = (old or _ATTRIBUTES.pack(ATTRIBUTES)) + value
            with self._opened(path, os.O_WRONLY | os.O_CREAT) as descriptor:
                # One write is one call of the firmware; a part of a variable would be another one.
                written = os.write(descriptor, content)
                if os.fstat(descriptor).st_size > written:
                    os.ftruncate(descriptor, written)
        except OSError as error:
            raise EfiVariableError.because(path, error) from error
        if self.read(name) != value:
            raise EfiVariableError(f"{path} does not keep what was written to it")

    def remove(self, name: str) -> None:
        """Remove a variable; nothing when there is none.

        Raises:
            EfiVariableError: the firmware refuses it, or still has it.
        """
        path = self._path(name)
        try:
            with self._opened(path, os.O_RDONLY):
                path.unlink()
        except FileNotFoundError:
            return
        except OSError as error:
            raise EfiVariableError.because(path, error) from error
        if self.read(name) is not None:
            raise EfiVariableError(f"{path} is still there after it was removed")

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}-{GLOBAL}"

    def _content(self, path: Path) -> bytes:
        with path.open("rb", buffering=0) as file:
            return file.read(_ATTRIBUTES.size + VALUE_MAX_BYTES + 1)

    @contextlib.contextmanager
    def _opened(self, path: Path, flags: int) -> Iterator[int]:
        """Open a variable that the kernel may protect."""
        with contextlib.suppress(FileNotFoundError):
            _unprotect(path)
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _unprotect(path: Path) -> None:
    """Clear the flag by which the kernel refuses every change of a variable.

    Raises:
        OSError: it cannot be cleared.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        try:
            answer = fcntl.ioctl(descriptor, _GET_FLAGS, bytes(8))
        except OSError:  # a file system without flags protects nothing
            return
        flags = int.from_bytes(answer[:4], sys.byteorder)
        if flags & _IMMUTABLE:
            wanted = (flags & ~_IMMUTABLE).to_bytes(8, sys.byteorder)
            fcntl.ioctl(descriptor, _SET_FLAGS, wanted)
    finally:
        os.close(descriptor)
