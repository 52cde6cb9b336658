"""The gate of the clock: a reboot may begin while a window is open."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Final

from typing_extensions import override

from updater.errors import WindowInvalidError
from updater.gates.contract import Gate, GateVerdict
from updater.windows import Windows

WINDOW_OPEN: Final = "window-open"
WINDOW_CLOSED: Final = "window-closed"


@dataclass(frozen=True, slots=True)
class WindowGate(Gate):
    """Open while one of the windows is.

    Attributes:
        windows: at least one; or why they cannot be told, which closes the gate.
    """

    windows: Windows | WindowInvalidError

    @override
    def verdict(self, now: datetime) -> GateVerdict:
        if isinstance(self.windows, WindowInvalidError):
            code, sentence = self.windows.code, f"no window can be told: {self.windows}"
            return GateVerdict(code=code, sentence=sentence, is_open=False)
        if (window := self.windows.open_now(now)) is not None:
            closes = self.windows.closes_at(now)
            until = f" until {_shown(closes, window.calendar.zone)}" if closes else ""
            sentence = f"window {window.name} is open{until}"
            return GateVerdict(code=WINDOW_OPEN, sentence=sentence, is_open=True)
        found = self.windows.next_to_open(now)
        if found is None:
            sentence = "no window opens any more: see reboot.windows in the settings"
            return GateVerdict(code=WINDOW_CLOSED, sentence=sentence, is_open=False)
        opens, window = found
        sentence = (
            f"outside of the windows: {window.name} opens {_shown(opens, window.calendar.zone)}"
        )
        return GateVerdict(code=WINDOW_CLOSED, sentence=sentence, is_open=False, opens_at=opens)


def _shown(moment: datetime, zone: tzinfo) -> str:
    """Return a time as the clock of the window shows it."""
    return f"{moment.astimezone(zone):%a %Y-%m-%d %H:%M %Z}"
