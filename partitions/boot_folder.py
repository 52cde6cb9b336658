"""Small files on the loader's partition, changed so that a power cut loses nothing.

That is the ESP, XBOOTLDR or /boot, and FAT as a rule: no journal, and a rename is several writes
that a cut may leave half done, with two names on one chain of clusters that nothing can then delete
cleanly. So nothing is renamed here. A file is made under its final name while no loader looks for
it, or it is changed in place within one sector (decision 0010).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from pathlib import Path
from typing import Final, Protocol

from partitions.errors import BootFolderError

SECTOR_BYTES: Final = 512  # no disk writes less than that, or a part of that
FILE_MAX_BYTES: Final = 64 * 1024  # loader entries and the like; kernels go by `RegionWriter`
_OLD: Final = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_NEW: Final = _OLD | os.O_CREAT | os.O_EXCL


class Folder(Protocol):
    """What a keeper changes on the loader's partition. Names are relative, with `/` between.

    The real one is `BootFolder`; tests put a model of FAT in its place, and cut the power there.
    Each change is durable on return and was read back.
    """

    def names(self, folder: str) -> list[str]:
        """Return the files in a folder, sorted; none when there is no such folder."""

    def read(self, name: str) -> bytes | None:
        """Return a file's content, nothing when there is none."""

    def create(self, name: str, content: bytes) -> None:
        """Make a new file; its folder too, when it is missing.

        A cut leaves no file, an empty or a torn one, or the whole one.
        """

    def overwrite(self, name: str, content: bytes) -> None:
        """Change a file in place to content of the same length, of one sector at most."""

    def remove(self, name: str) -> None:
        """Remove a file; nothing when there is none.

        A cut leaves it as it was, or filled with blank lines, or no file.
        """


class BootFolder:
    """The folder where the loader's partition is mounted."""

    def __init__(self, root: Path) -> None:
        """Name the folder; nothing is opened before the first call.

        Args:
            root: the mount point.
        """
        self._root = root

    def names(self, folder: str) -> list[str]:
        """Return the files in a folder, sorted; none when there is no such folder.

        Raises:
            BootFolderError: it cannot be read.
        """
        try:
            with os.scandir(self._root / folder) as found:
                return sorted(entry.name for entry in found if entry.is_file())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise BootFolderError.because(self._root / folder, error) from error

    def read(self, name: str) -> bytes | None:
        """Return a file's content, nothing when there is none.

        Raises:
            BootFolderError: it cannot be read, or is larger than any file of a loader.
        """
        path = self._root / name
        try:
            with path.open("rb", buffering=0) as file:
                # What is cached may be what was meant; what counts is what the disk holds.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                content = file.read(FILE_MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BootFolderError.because(path, error) from error
        if len(content) > FILE_MAX_BYTES:
            raise BootFolderError(f"{path} has more than {FILE_MAX_BYTES} bytes")
        return content

    def create(self, name: str, content: bytes) -> None:
        """Make a new file; its folder too, when it is missing. One that fails is taken away again.

        Raises:
            BootFolderError: it is there already, there is no room, or the disk failed.
        """
        path = self._root / name
        try:
            self._make_folder(path.parent)
            descriptor = os.open(path, _NEW, 0o600)
        except OSError as error:
            raise BootFolderError.because(path, error) from error
        try:
            self._write(descriptor, content)
            sync_folder(path.parent)
            sync_file_system(self._root)
            self._compare(name, content)
        except (OSError, BootFolderError) as error:
            # What is half there would be in the way of the next try, or be found by the loader.
            with contextlib.suppress(OSError):
                path.unlink()
                sync_folder(path.parent)
            if isinstance(error, BootFolderError):
                raise
            raise BootFolderError.because(path, error) from error

    def overwrite(self, name: str, content: bytes) -> None:
        """Change a file in place to content of the same length, of one sector at most.

        Raises:
            BootFolderError: it is not there, has another length, or the disk failed.
        """
        path = self._root / name
        try:
            if path.stat().st_size != len(content) or len(content) > SECTOR_BYTES:
                raise BootFolderError(f"{path} cannot be changed in place within one sector")
            self._write(os.open(path, _OLD), content)
            sync_file_system(self._root)
        except OSError as error:
            raise BootFolderError.because(path, error) from error
        self._compare(name, content)

    def remove(self, name: str) -> None:
        """Remove a file; nothing when there is none.

        A file of one sector is filled with blank lines first. A later file may get its cluster, and
        a cut may make that one's name durable before its content: then a loader must not find an
        old entry under the new name. The name goes before the cluster is given back, so that a
        cut never leaves a name without its cluster, on which Linux would stop writing.

        Raises:
            BootFolderError: the disk failed, or is read-only.
        """
        path = self._root / name
        try:
            descriptor = os.open(path, _OLD)
            try:
                size = os.fstat(descriptor).st_size
                if size <= SECTOR_BYTES:
                    _write_all(descriptor, b"\n" * size)
                    os.fsync(descriptor)
                path.unlink()
                sync_folder(path.parent)
            finally:
                os.close(descriptor)
            sync_file_system(self._root)
        except FileNotFoundError:
            return
        except OSError as error:
            raise BootFolderError.because(path, error) from error

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        folder.mkdir(parents=True, exist_ok=True)
        sync_folder(folder.parent)

    def _write(self, descriptor: int, content: bytes) -> None:
        """Write from the start, flush and close."""
        try:
            _write_all(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _compare(self, name: str, content: bytes) -> None:
        if self.read(name) != content:
            raise BootFolderError(f"{self._root / name} does not keep what was written to it")


def _write_all(descriptor: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable.

    Raises:
        OSError: the disk failed.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file_system(path: Path) -> None:
    """Make everything durable on the file system that `path` is on.

    Raises:
        OSError: the disk failed.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _LIBC.syncfs(descriptor) != 0:
            number = ctypes.get_errno() or errno.EIO
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(descriptor)


_LIBC = ctypes.CDLL(None, use_errno=True)  # Python has `sync`, which waits for every disk
