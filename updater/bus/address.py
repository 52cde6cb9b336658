"""Where the bus is. Apart from the rest, so that a command without a bus loads no library."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from updater.settings import Settings

SYSTEM: Final = "unix:path=/run/dbus/system_bus_socket"


def bus_address(settings: Settings) -> str:
    """Return the D-Bus address that `[bus] address` means, empty for no bus.

    The system bus may be named by `DBUS_SYSTEM_BUS_ADDRESS`, as for every D-Bus program.
    """
    chosen = settings.bus.address or ("system" if settings.node.machine == "linux" else "none")
    if chosen == "system":
        return os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or SYSTEM
    return "" if chosen == "none" else chosen


def may_listen(address: str) -> bool:
    """Tell whether a bus may be there: a socket in the file system exists or not."""
    socket = re.fullmatch(r"unix:path=([^,;]+)", address)
    return socket is None or Path(socket[1]).exists()
