"""Where a command sends a verb: to the engine in this process, or to the service that runs.

Both give the same facts and the same errors, so that a command need not know which it was.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import msgspec
from typing_extensions import override

from updater.errors import UpdaterError

if TYPE_CHECKING:
    from updater.node import Node
    from updater.rooms import AnyRoomError
    from updater.verbs import Facts


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """How a verb ended, as one process tells another.

    Attributes:
        status: the exit status.
        facts: what it gave, when it did what it was asked.
        code, sentence, hint: why not, otherwise; code is empty when it did.
    """

    status: int = 0
    facts: msgspec.Raw = msgspec.Raw(b"null")
    code: str = ""
    sentence: str = ""
    hint: str = ""


class VerbFailedError(UpdaterError):
    """A verb that another process carried out was refused or failed there.

    Code, hint and exit status are those of the error over there.
    """

    code = "verb-failed"
    hint = "`journalctl -u bascule` has the service's own words."

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.sentence)
        self.reply = reply


class Client(Protocol):
    """Takes verbs."""

    def call(self, name: str, **options: object) -> Facts:
        """Carry out a verb of `updater.verbs` and return its facts.

        Raises:
            AnyRoomError: as the verb; `VerbFailedError` when it failed in another process.
        """


class DirectClient(Client):
    """The engine in this process.

    Args:
        node: makes the node; it is made at the first verb.
        by: who asks.
    """

    def __init__(self, node: Callable[[], Node], *, by: str) -> None:
        self._node = node
        self._by = by

    @override
    def call(self, name: str, **options: object) -> Facts:
        """Carry out a verb here."""
        from updater.verbs import perform

        return perform(self._node(), name, options, by=self._by)


def reply_of(error: AnyRoomError) -> Reply:
    """Return an error as it is told: its own words, or those of the process that it comes from."""
    if isinstance(error, VerbFailedError):
        return error.reply
    return Reply(status=error.exit_status, code=error.code, sentence=str(error), hint=error.hint)


def person() -> str:
    """Name the person at this terminal, also behind sudo."""
    if name := os.environ.get("SUDO_USER"):
        return name[:64]
    try:
        return getpass.getuser()[:64]
    except (KeyError, OSError):  # no such entry in the user database
        return f"uid {os.getuid()}"
