"""One stay on the bus: names, interfaces, and telling what changes, until it or we end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from updater import ENGINE_VERSION, shown
from updater.bus import compatible, door
from updater.bus.errors import BusNameError
from updater.bus.jobs import Jobs
from updater.bus.view import EMPTY, changes, properties
from updater.bus.watching import FolderWatch
from updater.lifecycle import State
from updater.rooms import ROOM_ERRORS

if TYPE_CHECKING:
    from updater.bus.library import Bus, Exported
    from updater.client import Reply
    from updater.node import Node

log = logging.getLogger(__name__)

PAUSE_SECS: Final = 0.25  # between two looks: at most four signals of changes a second
LOOK_SECS: Final = 30.0  # also when no file changed: a hold may have ended, a slot been touched
THREADS: Final = 2


@dataclass(frozen=True, kw_only=True)
class Place:
    """What every stay shares.

    Attributes:
        node: the collaborators.
        command: what carries out a verb in a process of its own.
        compatible: also be update_engine.
        woken: called after a verb may have changed something.
    """

    node: Node
    command: Sequence[str]
    compatible: bool
    woken: Callable[[], None]


class Session:
    """A stay on `bus`."""

    def __init__(self, place: Place, bus: Bus) -> None:
        self._place = place
        self._bus = bus
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="verb")
        self._jobs = Jobs(place.command, self._job_done)
        self._door = door.Door(
            node=place.node,
            bus=bus,
            jobs=self._jobs,
            threads=self._threads,
            woken=self._woken,
        )
        self._values: dict[str, object] = dict(EMPTY)
        self._changed = asyncio.Event()
        self._state: State | None = None
        self._exported: Exported | None = None
        self._manager: compatible.Manager | None = None

    async def begin(self) -> None:
        """Export everything, then take the names.

        Raises:
            BusError: the bus does not give us the names, or has gone.
        """
        self._look()
        self._exported = self._bus.export(door.PATH, self._door.interface(), self._values)
        if self._place.compatible:
            await self._be_compatible()
        await self._bus.own(door.NAME)

    async def _be_compatible(self) -> None:
        """Be update_engine too, unless a real one is there."""
        manager = compatible.Manager(door=self._door, facts=self._facts, monotonic=time.monotonic)
        exported = self._bus.export(compatible.PATH, manager.interface())
        try:
            await self._bus.own(compatible.NAME)
        except BusNameError as error:
            log.warning("not update_engine, goes on without code=%s why=%s", error.code, error)
            return
        self._manager = manager
        with contextlib.suppress(*ROOM_ERRORS):
            manager.begin(exported)

    async def run(self) -> None:
        """Tell what changes until cancelled."""
        node = self._place.node
        folders = (node.store.folder, Path(node.settings.node.run_folder))
        for folder in folders:
            with contextlib.suppress(OSError):
                folder.mkdir(
                    parents=True, exist_ok=True, mode=0o700 if folder is folders[0] else 0o755
                )
        with self._watched(folders):
            while True:
                self._look()
                await asyncio.sleep(PAUSE_SECS)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECS):
                        await self._changed.wait()

    @contextlib.contextmanager
    def _watched(self, folders: Sequence[Path]) -> Iterator[None]:
        """Wake at every replaced file; a system without a watch to spare has the looks alone."""
        try:
            watch = FolderWatch(folders)
        except OSError as error:
            log.warning("files are not watched, only looked at now and then why=%s", error)
            yield
            return
        loop = asyncio.get_running_loop()
        loop.add_reader(watch.descriptor, self._on_files, watch)
        try:
            yield
        finally:
            loop.remove_reader(watch.descriptor)
            watch.close()

    async def ended(self) -> None:
        """Wait until the bus has gone."""
        await self._bus.ended()

    async def close(self) -> None:
        """End the jobs, then leave the bus."""
        await self._jobs.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self._bus.close()

    def _woken(self) -> None:
        self._place.woken()
        self._changed.set()

    def _facts(self) -> shown.Facts:
        return shown.status(self._place.node)

    def _on_files(self, watch: FolderWatch) -> None:
        """A file was replaced: update_engine's callers hear of every state, however short."""
        watch.drain()
        self._changed.set()
        if self._manager is None:
            return
        with contextlib.suppress(*ROOM_ERRORS):
            state = self._place.node.store.read_state().state
            if state is not self._state:
                self._state = state
                self._manager.tell(self._facts())

    def _look(self) -> None:
        """Tell what differs from the last look."""
        self._changed.clear()
        try:
            facts = self._facts()
        except ROOM_ERRORS as error:
            log.debug("status cannot be told code=%s why=%s", error.code, error)
            return
        news = changes(self._values, properties(facts, engine_version=ENGINE_VERSION))
        self._values.update(news)
        if self._exported is not None:
            self._exported.changed(news)
        if self._manager is not None:
            self._manager.tell(facts)

    def _job_done(self, number: int, reply: Reply) -> None:
        if self._exported is not None:
            facts = bytes(reply.facts).decode()
            words = (reply.status, reply.code, reply.sentence, reply.hint, facts)
            self._exported.emit(door.JOB_DONE, number, *words)
        self._woken()
