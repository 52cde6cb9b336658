"""Payload bytes out of a file on this machine: the same interface as a download from mirrors."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from images.errors import FileUnreadableError
from images.reader import FileSource, open_regular
from updater.download import DownloadStoppedError

if TYPE_CHECKING:
    from typing import BinaryIO


class LocalPayload:
    """A payload file, read from any position on.

    Args:
        path: a regular file.
        stop: set to make every read end with `DownloadStoppedError`.

    Raises:
        FileUnreadableError: it is missing, not readable or no regular file.
    """

    def __init__(self, path: Path, *, stop: threading.Event) -> None:
        self._path = path
        self._file: BinaryIO = open_regular(path)
        self._source = FileSource(self._file)
        self._stop = stop
        self._interrupted = False
        self._position = 0
        self.received = 0  # nothing comes over the network

    @property
    def mirror(self) -> str:
        """The path, as a download names where its bytes come from."""
        return str(self._path)

    @property
    def position(self) -> int:
        """The offset of the next byte."""
        return self._position

    @property
    def serves_ranges(self) -> bool:
        """Nothing is saved by reading less of a file."""
        return False

    def expect(self, spans: Sequence[tuple[int, int]]) -> None:
        """Any byte of a file may be read."""

    def seek(self, position: int) -> None:
        """Go on at `position`."""
        self._position = position

    def read_exactly(self, size: int) -> bytes:
        """Return the next `size` bytes.

        Raises:
            TruncatedPayloadError: the file ends before them.
            FileUnreadableError: it cannot be read.
            DownloadStoppedError: the engine was told to stop.
        """
        if self._interrupted or self._stop.is_set():
            raise DownloadStoppedError("the engine was told to stop")
        try:
            self._file.seek(self._position)
            data = self._source.read_exactly(size)
        except OSError as error:
            raise FileUnreadableError(f"{self._path} cannot be read: {error.strerror}") from error
        self._position += size
        return data

    def interrupt(self) -> None:
        """Let every later read raise; one under way ends by itself."""
        self._interrupted = True

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()
