"""Files of the desk that survive a power cut. Only how bytes reach the disk, not what they mean."""

from __future__ import annotations

import contextlib
import os
import tempfile
from typing import TYPE_CHECKING, Final

from server.errors import DeskUnwritableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PUBLIC_MODE: Final = 0o644  # metadata and payloads: any web server may read them
PRIVATE_MODE: Final = 0o600
PRIVATE_FOLDER_MODE: Final = 0o700
DRAFT_PREFIX: Final = ".draft-"


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


def make_folder(folder: Path, *, mode: int = 0o755) -> None:
    """Make `folder` and what is missing above it, each name durable.

    Raises:
        DeskUnwritableError: a folder cannot be made.
    """
    missing = [folder, *folder.parents]
    missing = [path for path in missing if not path.exists()]
    with translated(folder):
        for path in reversed(missing):
            path.mkdir(mode=mode, exist_ok=True)
            sync_folder(path.parent)


def replace_durably(path: Path, data: bytes, *, mode: int = PUBLIC_MODE) -> None:
    """Replace the content of `path`: after a power cut it holds the old bytes or the new.

    A draft is written beside it, flushed, renamed over it, and the folder is flushed. On return
    the new bytes are durable.

    Raises:
        DeskUnwritableError: no space, a read-only folder, a failed flush; `path` then keeps its
            old bytes.
    """
    with translated(path):
        descriptor, name = tempfile.mkstemp(prefix=DRAFT_PREFIX, dir=path.parent)
        draft = path.parent / name
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                draft.unlink()
            raise
        sync_folder(path.parent)


def link_durably(existing: Path, path: Path) -> None:
    """Give the file `existing` the second name `path`; a name that is there stays.

    Raises:
        DeskUnwritableError: the file system refuses.
    """
    make_folder(path.parent)
    with translated(path):
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(existing)
        sync_folder(path.parent)


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn an `OSError` of the body into `DeskUnwritableError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise DeskUnwritableError(f"{path} cannot be written: {error.strerror}") from error
