"""The booted slot is read again beside the install that starts from it: decision 0016."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import TYPE_CHECKING, Self

from images.errors import ImagesError, SourceMismatchError
from updater.download import DownloadStoppedError
from updater.planning import require_source
from updater.proof import ReadBackError

if TYPE_CHECKING:
    from images.release import PayloadFacts
    from updater.node import Node


class SourceWatch:
    """Reads the booted slot in a thread; whoever installs looks at it now and then.

    A context manager. Where an install fails because what it read of the slot was wrong, it may
    look like a wrong payload or a bad disk: then the verdict on the slot is awaited, and told
    instead.

    Args:
        node: the collaborators.
        facts: of the payload; None where nothing needs to be read.
    """

    def __init__(self, node: Node, facts: PayloadFacts | None) -> None:
        self._node = node
        self._facts = facts
        self._error: BaseException | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to read, once; the thread is as polite as its caller."""
        if self._facts is not None and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="source")
            self._thread.start()

    def look(self) -> None:
        """Return at once, as long as nothing is known against the slot.

        Raises:
            SourceMismatchError: it is not what the delta starts from.
            PartitionsError, MachineError, DownloadStoppedError: it cannot be told.
        """
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Return when all of the slot was read and is what the delta starts from.

        Raises:
            AnyRoomError: as `look`.
        """
        self.start()
        if self._thread is not None:
            self._thread.join()
        self.look()

    def _run(self) -> None:
        facts = self._facts
        if facts is None:  # a broken invariant: there would be no thread
            raise AssertionError("nothing is to be read")
        try:
            require_source(self._node, facts, self._go_on)
        except BaseException as error:  # noqa: BLE001  # carried to the thread that looks
            self._error = error

    def _go_on(self) -> None:
        if self._ended.is_set() or self._node.stop.is_set():
            raise DownloadStoppedError("the engine was told to stop")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        doubtful = isinstance(error, (ImagesError, ReadBackError))
        if not doubtful or isinstance(error, SourceMismatchError):
            self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if doubtful and isinstance(self._error, SourceMismatchError):
            raise self._error from error
