"""The textfile for node_exporter: written when something changed, and once a minute.

It is replaced as a whole, so that nobody reads half of it. It is not flushed: a power cut may
take it. That it cannot be written is said once and is nobody's trouble.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from updater.metrics import Snapshot, render
from updater.rooms import ROOM_ERRORS
from updater.shown import due_check

if TYPE_CHECKING:
    from updater.node import Node
    from updater.state import NodeState

log = logging.getLogger(__name__)

LONGEST_SECS: Final = 60.0  # between two writes, though nothing changed


class MetricsFile:
    """The file of one node.

    Args:
        path: where; the folder must be there, as node_exporter was told of it.
        node: what it tells of.
        monotonic: seconds that never jump.
    """

    def __init__(
        self, path: Path, node: Node, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._node = node
        self._monotonic = monotonic
        self._memory: NodeState | None = None
        self._looked = self._written = float("-inf")
        self._failed = False

    def look(self, *, pause_secs: float = 0.0) -> None:
        """Write the file if something changed or a minute passed.

        Args:
            pause_secs: do nothing if the last look is less than that ago.
        """
        now = self._monotonic()
        if now - self._looked < pause_secs:
            return
        self._looked = now
        try:
            self._refresh(now)
        except (*ROOM_ERRORS, OSError) as error:
            if not self._failed:
                log.warning("metrics cannot be written file=%s why=%s", self._path, error)
            self._failed, self._written = True, now

    def _refresh(self, now: float) -> None:
        memory = self._node.store.read_state()
        # The gate that keeps the node waiting is in the memory too; asking all may cost a process.
        if memory == self._memory and now - self._written < LONGEST_SECS:
            return
        self._memory = memory
        _replace(self._path, render(take_snapshot(self._node, memory)).encode())
        self._written, self._failed = now, False


def take_snapshot(node: Node, memory: NodeState) -> Snapshot:
    """Gather the facts of a node.

    Raises:
        AnyRoomError: the state folder or the disk cannot be read.
    """
    slot = node.boot().slot
    try:
        version = node.running().version
    except ROOM_ERRORS:
        version = ""
    progress = node.progress.read()
    update = memory.update
    downloaded = update.downloaded if update is not None else 0
    if update is not None and progress is not None and progress.version == update.version:
        downloaded = max(downloaded, progress.downloaded)
    return Snapshot(
        memory=memory,
        slot=slot.value,
        version=version,
        confirmed=node.loader.read().slots[slot].confirmed,
        gates=node.gates(memory),
        downloaded_bytes=downloaded,
        denied={version: why.code for version, why in node.store.read_denied().items()},
        events_waiting=len(node.store.read_reports()),
        next_check=due_check(node, memory),
    )


def _replace(path: Path, data: bytes) -> None:
    """Put `data` in the place of `path`, readable for all, following no link on the way.

    The name of the draft does not end in `.prom`, so that node_exporter leaves it alone.
    """
    draft = path.with_name(f"{path.name}.draft")
    with contextlib.suppress(FileNotFoundError):
        draft.unlink()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(draft, flags, 0o644), "wb") as file:
        os.fchmod(file.fileno(), 0o644)  # whatever the umask is
        file.write(data)
    draft.replace(path)
