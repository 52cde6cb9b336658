"""`com.coreos.update1.Manager` as update_engine has it, for locksmithd and update_engine_client.

Reference: update_engine's D-Bus interface and its behaviour when run. Where a method would do
something else here, decision 0008 says what and why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from updater.bus.errors import JobRunsError
from updater.bus.library import Arguments, Caller, ErrorWords, Exported, Interface, Method
from updater.bus.rights import admit_compatible
from updater.bus.view import CompatibleStatus, compatible_status
from updater.lifecycle import State

if TYPE_CHECKING:
    from updater.bus.door import Door
    from updater.rooms import AnyRoomError
    from updater.shown import Facts

log = logging.getLogger(__name__)

NAME: Final = "com.coreos.update1"
PATH: Final = "/com/coreos/update1"
INTERFACE: Final = "com.coreos.update1.Manager"
ERROR: Final = "org.freedesktop.DBus.GLib.ErrorError"
SIGNAL: Final = "StatusUpdate"
PROGRESS_PAUSE_SECS: Final = 10.0  # news of progress at least so often
STATUS: Final[Arguments] = {
    "last_checked_time": "x",
    "progress": "d",
    "current_operation": "s",
    "new_version": "s",
    "new_size": "x",
}


def error_words(error: AnyRoomError) -> ErrorWords:
    """Tell any error as GLib's service layer would: one name, one sentence."""
    return ERROR, "s", [str(error)]


@dataclass(kw_only=True)
class Manager:
    """update_engine's view of this node.

    Attributes:
        door: where its methods lead to.
        facts: of `status`, now.
        monotonic: seconds.
        said: the last status that was told.
    """

    door: Door
    facts: Callable[[], Facts]
    monotonic: Callable[[], float]
    said: CompatibleStatus = field(default_factory=CompatibleStatus)
    _exported: Exported | None = None
    _said_at: float = float("-inf")
    _awaited: bool = False  # an attempt was asked for, and nothing of it has been seen yet

    def interface(self) -> Interface:
        """Return the interface as a table."""
        return Interface(
            name=INTERFACE,
            methods=[
                Method(name="AttemptUpdate", do=self.attempt_update),
                Method(name="ResetStatus", do=self.reset_status),
                Method(name="GetStatus", do=self.get_status, gives=STATUS),
            ],
            signals={SIGNAL: STATUS},
            error_words=error_words,
        )

    def begin(self, exported: Exported) -> None:
        """Tell how things stand, as the engine does when it starts."""
        self._exported = exported
        self.tell(self.facts(), anyway=True)

    def tell(self, facts: Facts, *, anyway: bool = False) -> None:
        """Send StatusUpdate when there is news."""
        status = self._status(facts)
        now = self.monotonic()
        late = status != self.said and now - self._said_at >= PROGRESS_PAUSE_SECS
        if self._exported is None or not (anyway or late or status.is_news_after(self.said)):
            return
        self.said = status
        self._said_at = now
        self._exported.emit(SIGNAL, *status.values())

    async def attempt_update(self, caller: Caller) -> tuple[object, ...]:
        """Check and install now. Says yes whatever comes of it, also when it is under way."""
        by = await admit_compatible(self.door.bus, caller)
        facts = self.facts()
        if facts["state"] != State.IDLE.value:
            return ()
        try:
            self.door.jobs.begin("update", {}, by=by)
        except JobRunsError as error:
            log.info("attempt not begun code=%s why=%s", error.code, error)
        self._awaited = self.door.jobs.runs("update")
        self.tell(facts)
        return ()

    async def reset_status(self, caller: Caller) -> tuple[object, ...]:
        """Take an armed update back; its version may be tried again."""
        by = await admit_compatible(self.door.bus, caller)
        if self._begins(self.facts()):
            raise JobRunsError("an attempt is under way")
        await self.door.perform("reset", {}, by)
        return ()

    async def get_status(self, caller: Caller) -> tuple[object, ...]:
        """Tell how things stand."""
        await admit_compatible(self.door.bus, caller)
        return self._status(self.facts()).values()

    def _status(self, facts: Facts) -> CompatibleStatus:
        return compatible_status(facts, self.said, begins=self._begins(facts))

    def _begins(self, facts: Facts) -> bool:
        """Tell whether an attempt was asked for whose process cannot be seen yet."""
        seen = facts["state"] != State.IDLE.value
        self._awaited = self._awaited and not seen and self.door.jobs.runs("update")
        return self._awaited
