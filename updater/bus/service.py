"""The thread inside the daemon that is on the bus. Updating never depends on it.

No bus when the service begins: it is tried again. A bus that goes away while we are on it: the
service ends orderly and is started again, because whoever called us would hang otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Final

from updater.bus.errors import BusError, BusLostError
from updater.bus.library import open_bus
from updater.bus.session import Place, Session

log = logging.getLogger(__name__)

RETRY_SECS: Final = 30.0
BEAT_SECS: Final = 5.0
FAREWELL_SECS: Final = 25.0  # jobs flush what they wrote


class BusService:
    """The node on the bus.

    Args:
        place: what is offered there.
        address: a D-Bus address.
        retry_secs: between two tries while there is no bus.

    Attributes:
        lost: why the service must end, None while it must not.
    """

    def __init__(self, place: Place, address: str, *, retry_secs: float = RETRY_SECS) -> None:
        self._place = place
        self._address = address
        self._retry_secs = retry_secs
        self._closing = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._warned = False
        self._thread = threading.Thread(target=self._run, name="bus", daemon=True)
        self._alive: Callable[[], None] = _unwatched
        self.lost: BusLostError | None = None

    def start(self, alive: Callable[[], None] | None = None) -> None:
        """Begin; returns at once.

        Args:
            alive: called every few seconds while the thread lives, from that thread.
        """
        self._alive = alive or _unwatched
        self._thread.start()

    def close(self) -> None:
        """Leave the bus; what is under way flushes and ends."""
        self._closing.set()
        if self._loop is not None and self._stop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself
                self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread.ident is not None:
            self._thread.join(FAREWELL_SECS)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception:
            log.exception("the bus thread failed")
            self._lose("the bus thread failed")

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        if self._closing.is_set():
            return
        beat = asyncio.create_task(self._beat())
        try:
            while not self._stop.is_set():
                await self._stay(self._stop)
        finally:
            beat.cancel()

    async def _stay(self, stop: asyncio.Event) -> None:
        """Be on the bus until it or we end; without one, wait."""
        session = await self._begun()
        if session is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._retry_secs):
                    await stop.wait()
            return
        told = asyncio.create_task(session.run())
        waits = [asyncio.create_task(session.ended()), asyncio.create_task(stop.wait()), told]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            self._lose("the bus has gone")
            stop.set()
        for task in waits:
            task.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        await session.close()

    async def _begun(self) -> Session | None:
        """Connect; says once why it does not work."""
        session = None
        try:
            session = Session(self._place, await open_bus(self._address))
            await session.begin()
        except BusError as error:
            if session is not None:
                await session.close()
            level = logging.DEBUG if self._warned else logging.WARNING
            self._warned = True
            log.log(level, "not on the bus, goes on without code=%s why=%s", error.code, error)
            return None
        log.info("on the bus address=%s", self._address)
        return session

    async def _beat(self) -> None:
        while True:
            self._alive()
            await asyncio.sleep(BEAT_SECS)

    def _lose(self, why: str) -> None:
        log.error("bus lost why=%s", why)
        self.lost = BusLostError(why)
        self._place.node.stop.set()


def _unwatched() -> None:
    """Nobody wants to know."""
