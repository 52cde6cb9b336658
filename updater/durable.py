"""Files that survive a power cut. Only how bytes reach the disk; what they mean is elsewhere."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

PRIVATE_MODE = 0o600  # what the node remembers is nobody else's business
_DRAFT_SUFFIX = ".draft"


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable.

    Raises:
        OSError: the folder cannot be opened or flushed.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_durably(path: Path, data: bytes, *, mode: int = PRIVATE_MODE) -> None:
    """Replace the content of `path`: after a power cut it holds the old bytes or the new.

    A draft is written beside it, flushed, renamed over it, and the folder is flushed. On
    return the new bytes are durable.

    Raises:
        OSError: no space, a read-only folder, a failed flush; `path` then keeps its old bytes.
    """
    draft = path.with_name(path.name + _DRAFT_SUFFIX)
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
    sync_folder(path.parent)


def append_durably(path: Path, line: bytes, *, mode: int = PRIVATE_MODE) -> None:
    """Append one line and flush it; a torn line before it stays a line of its own, to be skipped.

    Raises:
        OSError: no space, a read-only folder or a failed flush.
    """
    fresh = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "ab") as file:
        end = os.fstat(descriptor).st_size
        torn = end > 0 and os.pread(descriptor, 1, end - 1) != b"\n"
        file.write(b"\n" + line if torn else line)
        file.flush()
        os.fsync(file.fileno())
    if fresh:
        sync_folder(path.parent)
