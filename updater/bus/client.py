"""Carries a command's verbs to the service, with the same words and exit statuses as here.

The service works on when the command ends: a job is asked for, not owned.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any, Final

import msgspec
from typing_extensions import override

from updater.bus.door import JOB_DONE, NAME, PATH
from updater.bus.errors import BusError, BusLostError, CallFailedError, ServiceGoneError
from updater.bus.library import BUS, BUS_PATH, open_bus
from updater.client import Client, Reply, VerbFailedError
from updater.verbs import VERBS

if TYPE_CHECKING:
    from collections.abc import Callable

    from updater.bus.library import Bus
    from updater.verbs import Facts

REPLY_SECS: Final = 30.0  # a light verb waits at most 3 s for the engine
INTERACTIVE_SECS: Final = 150.0  # a person types a password
JOBS_REMEMBERED: Final = 64


class BusClient(Client):
    """The service on the bus at `address`.

    Args:
        address: a D-Bus address.
        interactive: polkit may ask this user for a password.
        note: told a line for whoever waits and gives up.
    """

    def __init__(self, address: str, *, interactive: bool, note: Callable[[str], None]) -> None:
        self._address = address
        self._interactive = interactive
        self._note = note

    def is_there(self) -> bool:
        """Tell whether a service has the name on the bus."""
        try:
            return asyncio.run(self._has_owner())
        except BusError:
            return False

    @override
    def call(self, name: str, **options: object) -> Facts:
        """Ask the service for a verb and wait for its end.

        Raises:
            VerbFailedError: it was refused or failed there.
            BusError: the service cannot be asked, or ended meanwhile.
        """
        try:
            reply = asyncio.run(self._ask(name, options))
        except KeyboardInterrupt:
            if VERBS[name].heavy:
                self._note("the service goes on with it; `bascule status` shows how far it is")
            raise
        if reply.code:
            raise VerbFailedError(reply)
        return json.loads(bytes(reply.facts))

    async def _has_owner(self) -> bool:
        bus = await open_bus(self._address)
        try:
            return bool((await bus.call(BUS, BUS_PATH, "NameHasOwner", "s", NAME))[0])
        finally:
            await bus.close()

    async def _ask(self, name: str, options: dict[str, object]) -> Reply:
        bus = await open_bus(self._address)
        try:
            [owner] = await bus.call(BUS, BUS_PATH, "GetNameOwner", "s", NAME)
            wait = _Wait(bus)
            if VERBS[name].heavy:  # before the job begins
                await wait.listen(owner)
            given = {key: value for key, value in options.items() if value is not None}
            job, words = await bus.call(
                owner, PATH, "Perform", "ssb", name, json.dumps(given), self._interactive,
                interface=NAME,
                timeout_secs=INTERACTIVE_SECS if self._interactive else REPLY_SECS,
                interactive=self._interactive,
            )  # fmt: skip
            if job:
                return await wait.for_job(job)
            return msgspec.json.decode(words, type=Reply)
        except CallFailedError as error:
            raise _why(error) from error
        except BusLostError as error:
            raise ServiceGoneError(f"the bus ended while {name} was under way") from error
        finally:
            await bus.close()


class _Wait:
    """Hears how jobs end and whether the service does; begun before the job is."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._ended: dict[int, Reply] = {}
        self._gone = False
        self._news = asyncio.Event()

    async def listen(self, owner: str) -> None:
        """Begin to hear the service, which is `owner` on the bus."""
        await self._bus.listen(owner, NAME, JOB_DONE, self._on_done)
        await self._bus.listen(BUS, BUS, "NameOwnerChanged", self._on_owner, arg0=NAME)

    async def for_job(self, number: int) -> Reply:
        """Wait for the end of a job, as long as it takes.

        Raises:
            ServiceGoneError: the service or the bus ended first.
        """
        bus_ended = asyncio.create_task(self._bus.ended())
        bus_ended.add_done_callback(lambda _: self._news.set())
        try:
            while number not in self._ended:
                if self._gone or bus_ended.done():
                    raise ServiceGoneError("the service ended while it worked on this")
                await self._news.wait()
                self._news.clear()
        finally:
            bus_ended.cancel()
        return self._ended[number]

    def _on_done(self, _member: str, body: list[Any]) -> None:
        with contextlib.suppress(ValueError):  # another shape: not from our service
            number, status, code, sentence, hint, facts = body
            self._ended[number] = Reply(
                status=status,
                code=code,
                sentence=sentence,
                hint=hint,
                facts=msgspec.Raw(facts.encode()),
            )
        if len(self._ended) > JOBS_REMEMBERED:
            self._ended.pop(next(iter(self._ended)))
        self._news.set()

    def _on_owner(self, _member: str, _body: list[Any]) -> None:
        self._gone = True
        self._news.set()


def _why(error: CallFailedError) -> BusError:
    """Name what the bus itself answered when the service could not."""
    gone = {"ServiceUnknown", "NameHasNoOwner", "NoReply", "Disconnected"}
    if error.name.rpartition(".")[2] in gone or error.name.endswith("Error.Cancelled"):
        return ServiceGoneError(f"the service did not answer: {error}")
    return error
