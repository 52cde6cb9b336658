"""Output files that appear whole or not at all. What is in them is not known here."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from images.errors import FileWriteError

CHUNK_SIZE: Final = 1024 * 1024  # bytes read back at once
_MODE: Final = 0o666  # less what the umask takes away, as for any file a person makes


class Draft:
    """An output that is being written; it has no name that anyone knows yet.

    Attributes:
        appended_bytes: what `append` wrote so far.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.appended_bytes = 0

    def append(self, data: bytes | memoryview) -> None:
        """Write at the end of what was appended so far; raise OSError."""
        self.write_at(self.appended_bytes, data)
        self.appended_bytes += len(data)

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Write at a byte offset; raise OSError."""
        view = memoryview(data)
        while view:
            count = os.pwrite(self._descriptor, view, offset)
            view, offset = view[count:], offset + count

    def read_at(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes of what was written; raise OSError."""
        return os.pread(self._descriptor, size, offset)

    def set_size(self, size: int) -> None:
        """Cut or extend the file to `size` bytes; new bytes are zeros; raise OSError."""
        os.ftruncate(self._descriptor, size)

    def chunks(self) -> Iterator[bytes]:
        """Yield what was written, from the first byte to the last; raise OSError."""
        offset = 0
        while chunk := os.pread(self._descriptor, CHUNK_SIZE, offset):
            yield chunk
            offset += len(chunk)

    def sync(self) -> None:
        """Make the bytes durable; raise OSError."""
        os.fsync(self._descriptor)


@contextlib.contextmanager
def draft_of(path: Path) -> Iterator[Draft]:
    """Give a draft that becomes `path`, durably, when the block ends without an exception.

    A regular file that is there is replaced in one step; where `path` is a link, what it points
    to is. An `OSError` out of the block counts as a failure to write. When anything fails the
    draft is removed and `path` is as before.

    Raises:
        FileWriteError: no space, no permission, no such folder, or `path` is no regular file.
    """
    target = _checked_target(path)
    name = target.with_name(f".{target.name}.{os.getpid()}.draft")
    descriptor = -1
    try:  # around the opening too: a signal may come before the descriptor is even named
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, _MODE)
        draft = Draft(descriptor)
        yield draft
        draft.sync()
        name.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        raise _translated(path, error) from error
    finally:
        if descriptor >= 0:
            os.close(descriptor)
        with contextlib.suppress(OSError):
            name.unlink(missing_ok=True)


@contextlib.contextmanager
def scratch_beside(path: Path) -> Iterator[Draft]:
    """Give a file without a name in the folder of `path`; it is gone when the block ends.

    Raises:
        FileWriteError: it cannot be made. What goes wrong in the block passes through.
    """
    folder = _checked_target(path).parent
    with ExitStack() as stack:
        try:
            file = stack.enter_context(tempfile.TemporaryFile(dir=folder, buffering=0))
        except OSError as error:
            raise _translated(path, error) from error
        yield Draft(file.fileno())


def _checked_target(path: Path) -> Path:
    """Return where the output really goes; a device or a folder is never replaced."""
    try:
        target = path.resolve()
        mode = target.stat().st_mode
    except FileNotFoundError:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: links that go round, before 3.13
        raise FileWriteError(f"{path} cannot be written: {error}") from error
    if not stat.S_ISREG(mode):
        raise FileWriteError(f"{path} cannot be written: it is not a regular file")
    return target


def _translated(path: Path, error: OSError) -> FileWriteError:
    return FileWriteError(f"{path} cannot be written: {error.strerror or error}")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
