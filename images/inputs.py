"""The images that a payload is built of: open files that must not change meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from images.errors import FileUnreadableError, FileWriteError, ImageSizeError, PartUnknownError
from images.packing import CHUNK_SIZE
from images.payload import is_part_name
from images.reader import Progress, open_regular
from images.wire import PARTS_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An open image.

    Attributes:
        name: of its part.
        path, file: where it is, and it, open.
        size: its bytes in all.
        changed: when its content last changed, in nanoseconds, as it was opened.
    """

    name: str
    path: Path
    file: BinaryIO
    size: int
    changed: int

    def chunks(self) -> Iterator[bytes]:
        """Yield its bytes in chunks of 1 MiB; the last may be shorter.

        Raises:
            FileUnreadableError: it cannot be read, or shrinks meanwhile.
        """
        left = self.size
        while left:
            size = min(CHUNK_SIZE, left)
            try:
                chunk = self.file.read(size)
            except OSError as error:
                raise FileUnreadableError(
                    f"{self.path} cannot be read: {error.strerror}"
                ) from error
            if len(chunk) != size:
                raise FileUnreadableError(f"{self.path} shrank while it was read")
            left -= len(chunk)
            yield chunk

    def read_at(self, offset: int, size: int) -> bytes:
        """Return the `size` bytes at byte `offset`; safe in threads.

        Raises:
            FileUnreadableError: it cannot be read, or ends before them.
        """
        try:
            data = os.pread(self.file.fileno(), size, offset)
        except OSError as error:
            raise FileUnreadableError(f"{self.path} cannot be read: {error.strerror}") from error
        if len(data) != size:
            raise FileUnreadableError(f"{self.path} shrank while it was read")
        return data

    def gather(self, runs: Iterable[tuple[int, int]], *, block_size: int) -> bytes:
        """Return the bytes of runs of blocks, each (first block, number of blocks).

        Raises:
            FileUnreadableError: it cannot be read, or shrinks meanwhile.
        """
        return b"".join(
            self.read_at(start * block_size, count * block_size) for start, count in runs
        )

    def check_unchanged(self) -> None:
        """Make sure that what was read twice was the same.

        Raises:
            FileUnreadableError: somebody wrote to it meanwhile.
        """
        if os.fstat(self.file.fileno()).st_mtime_ns != self.changed:
            raise FileUnreadableError(f"{self.path} changed while it was read")


class Meter:
    """Adds up the image bytes of all parts for whoever watches."""

    def __init__(self, images: Sequence[Image], progress: Progress | None) -> None:
        self._done, self._total = 0, sum(image.size for image in images)
        self._progress = progress

    def add(self, count: int) -> None:
        """Tell of so many bytes more."""
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)


def open_image(name: str, path: Path, output: Path, stack: ExitStack, *, block_size: int) -> Image:
    """Open an image until `stack` ends; `block_size` 1 takes any size but 0.

    Raises:
        FileUnreadableError: it is missing, not readable or no regular file.
        FileWriteError: it is the output itself.
        ImageSizeError: it is empty or not whole blocks.
    """
    file = stack.enter_context(open_regular(path))
    if output.exists() and path.samefile(output):
        raise FileWriteError(f"{output} cannot be written: it is the image of part {name}")
    status = os.fstat(file.fileno())
    size = status.st_size
    if size == 0 or size % block_size:
        raise ImageSizeError(f"image {path} has {size} bytes: not whole blocks of {block_size}")
    return Image(name=name, path=path, file=file, size=size, changed=status.st_mtime_ns)


def check_names(names: Sequence[str]) -> None:
    """Check the names of the parts.

    Raises:
        PartUnknownError: none, too many, a name that is none, or one twice.
    """
    if not 0 < len(names) <= PARTS_MAX:
        raise PartUnknownError(f"a payload has 1 to {PARTS_MAX} parts, not {len(names)}")
    for name in names:
        if not is_part_name(name):
            raise PartUnknownError(f"{name!r} is not the name of a part")
        if names.count(name) > 1:
            raise PartUnknownError(f"part {name} is named twice")
