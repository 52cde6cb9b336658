"""`org.bascule.Updater1`: every verb as a method. Light ones answer, heavy ones become jobs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import msgspec

from updater.bus.library import Arguments, Caller, Interface, Method, plain, words_by_code
from updater.bus.rights import admit
from updater.bus.view import PROPERTIES
from updater.client import Reply, reply_of
from updater.rooms import ROOM_ERRORS
from updater.verbs import VERBS, VerbOptionsError, checked_options, perform

if TYPE_CHECKING:
    from updater.bus.jobs import Jobs
    from updater.bus.library import Bus
    from updater.node import Node

NAME: Final = "org.bascule.Updater1"
PATH: Final = "/org/bascule/Updater1"
OPTIONS_MAX_CHARS: Final = 4096
INTERACTIVE: Final = "interactive"  # an option of every method with options
OPTIONS: Final = {"options": "a{sv}"}
FACTS: Final = {"facts": "s"}
JOB: Final = {"job": "u"}
JOB_DONE: Final = "JobDone"
SIGNALS: Final[Mapping[str, Arguments]] = MappingProxyType(
    {
        JOB_DONE: {
            "job": "u",
            "status": "i",
            "code": "s",
            "sentence": "s",
            "hint": "s",
            "facts": "s",
        }
    }
)
# Method, verb, and what it takes: options as they are, or one option by its name.
METHODS: Final[tuple[tuple[str, str, Arguments], ...]] = (
    ("Status", "status", {}),
    ("Why", "why", {}),
    ("Slots", "slots", {}),
    ("History", "history", {"lines": "u"}),
    ("Check", "check", {}),
    ("Update", "update", OPTIONS),
    ("Reboot", "reboot", OPTIONS),
    ("Rollback", "rollback", {}),
    ("Reset", "reset", {}),
    ("Confirm", "confirm", {}),
    ("Hold", "hold", OPTIONS),
    ("Unhold", "unhold", {}),
    ("Pin", "pin", {"version": "s"}),
    ("Unpin", "unpin", {}),
    ("PermitStatus", "permit-status", {}),
    ("PermitSetMax", "permit-set-max", {"places": "i"}),
    ("PermitReturn", "permit-return", {"holder": "s"}),
)


def _perform_method(do: Callable[..., Awaitable[Sequence[object]]]) -> Method:
    takes = {"verb": "s", "options": "s", "interactive": "b"}
    return Method(name="Perform", do=do, takes=takes, gives={"job": "u", "reply": "s"})


@dataclass(kw_only=True)
class Door:
    """Where callers of the bus come in.

    Attributes:
        node: the collaborators.
        bus: the connection that they come by.
        jobs: what is under way.
        threads: where light verbs run, which wait for locks and disks.
        woken: called after a verb may have changed something.
    """

    node: Node
    bus: Bus
    jobs: Jobs
    threads: Executor
    woken: Callable[[], None]

    def interface(self) -> Interface:
        """Return the interface as a table."""
        return Interface(
            name=NAME,
            methods=[*(self._method(*row) for row in METHODS), _perform_method(self._perform)],
            signals=SIGNALS,
            properties=PROPERTIES,
            error_words=words_by_code,
        )

    async def perform(self, name: str, options: Mapping[str, object], by: str) -> Any:  # noqa: ANN401  # facts
        """Carry out a light verb in a thread and return its facts.

        Raises:
            AnyRoomError: it was refused or failed.
        """
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(
                self.threads, lambda: perform(self.node, name, options, by=by)
            )
        finally:
            if VERBS[name].right != "read":
                self.woken()

    def _method(self, member: str, name: str, takes: Arguments) -> Method:
        heavy = VERBS[name].heavy

        async def answer(caller: Caller, *arguments: object) -> tuple[object, ...]:
            options = _options(takes, arguments)
            interactive = options.pop(INTERACTIVE, False) is True
            job, facts = await self._take(caller, name, options, interactive=interactive)
            return (job if heavy else json.dumps(facts),)

        return Method(name=member, do=answer, takes=takes, gives=JOB if heavy else FACTS)

    async def _perform(
        self, caller: Caller, name: str, options: str, interactive: object
    ) -> tuple[object, ...]:
        """Carry out any verb; an error is a reply too, with its hint and exit status."""
        try:
            job, facts = await self._take(
                caller, name, _decoded(options), interactive=interactive is True
            )
        except ROOM_ERRORS as error:
            return 0, msgspec.json.encode(reply_of(error)).decode()
        reply = Reply(facts=msgspec.Raw(msgspec.json.encode(facts)))
        return job, "" if job else msgspec.json.encode(reply).decode()

    async def _take(
        self, caller: Caller, name: str, options: Mapping[str, object], *, interactive: bool
    ) -> tuple[int, Any]:
        """Check, admit and carry out; returns the job of a heavy verb or the facts of a light one.

        Raises:
            AnyRoomError: it was refused or failed.
        """
        checked_options(name, options)
        verb = VERBS[name]
        by = await admit(self.bus, caller, verb.right, interactive=interactive)
        if verb.heavy:
            return self.jobs.begin(name, options, by=by), None
        return 0, await self.perform(name, options, by)


def _decoded(options: str) -> dict[str, object]:
    """Read options as JSON.

    Raises:
        VerbOptionsError: they are no JSON object.
    """
    try:
        if len(options) > OPTIONS_MAX_CHARS:
            raise VerbOptionsError(f"options are longer than {OPTIONS_MAX_CHARS} characters")
        return msgspec.json.decode(options, type=dict[str, object])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise VerbOptionsError(f"options are no JSON object: {error}") from error


def _options(takes: Arguments, arguments: tuple[object, ...]) -> dict[str, object]:
    """Return a verb's options as plain values."""
    if takes is not OPTIONS:
        return dict(zip(takes, arguments, strict=True))
    options = plain(arguments[0])
    if not isinstance(options, dict):  # never: the signature says so
        raise VerbOptionsError("options are a dictionary")
    wrong = [name for name, value in options.items() if not isinstance(value, str | int | bool)]
    if wrong:
        raise VerbOptionsError(f"option {wrong[0]!r} is no text, number or boolean")
    return options
