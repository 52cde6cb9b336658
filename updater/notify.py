"""What the service tells systemd: readiness, its state as one line, and that it is alive.

The protocol is sd_notify(3): one datagram of `NAME=value` lines. Without a NOTIFY_SOCKET nothing
is sent, and a message that cannot be sent hurts nobody. What the line says is in `service_line`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, MutableMapping
from typing import Final

ADDRESS: Final = "NOTIFY_SOCKET"
WATCHDOG_USEC: Final = "WATCHDOG_USEC"
WATCHDOG_PID: Final = "WATCHDOG_PID"
STATUS_MAX_CHARS: Final = 512  # what a person reads in one line; systemd cuts at 4 KiB
SEND_TIMEOUT_SECS: Final = 1.0  # systemd reads at once, or something is badly wrong
PINGS_PER_LIMIT: Final = 10  # as often as is cheap; sd_watchdog_enabled(3) asks for two


class Notifier:
    """The way to the service manager.

    Args:
        address: a path, or `@` and an abstract name; empty when nobody listens.
    """

    def __init__(self, address: str) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._last_status = ""

    @property
    def is_heard(self) -> bool:
        """Tell whether somebody listens."""
        return bool(self._address)

    def ready(self) -> None:
        """Say that the service has begun to do its work."""
        self._send("READY=1")

    def stopping(self) -> None:
        """Say that the service ends by its own will."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Hold the watchdog off for another while."""
        self._send("WATCHDOG=1")

    def status(self, line: str) -> None:
        """Show `line` in `systemctl status`; one that stands there already is not sent again."""
        safe = "".join(char if char.isprintable() else "?" for char in line[:STATUS_MAX_CHARS])
        if safe != self._last_status:
            self._last_status = safe
            self._send(f"STATUS={safe}")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.settimeout(SEND_TIMEOUT_SECS)
            out.sendto(message.encode(), self._address)


class Watchdog:
    """Pings while every part of the service has shown life; one that hangs ends the pings.

    A part calls `beat` more often than `patience_secs`. Beats may come from any thread.

    Args:
        alive: sends the ping.
        limit_secs: systemd's limit between two pings; 0 when it sets none.
        monotonic: seconds that never jump.
    """

    def __init__(
        self, alive: Callable[[], None], *, limit_secs: float, monotonic: Callable[[], float]
    ) -> None:
        self._alive = alive
        self._limit_secs = limit_secs
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._beats: dict[str, float] = {}
        self._last_ping = float("-inf")

    @property
    def patience_secs(self) -> float:
        """How old a part's last beat may be: half the limit, so that a hang costs 1.5 limits."""
        return self._limit_secs / 2

    def expect(self, part: str) -> None:
        """From now on `part` must beat, too."""
        self._note(part)

    def dismiss(self, part: str) -> None:
        """`part` has ended by its own will and is not waited for any more."""
        with self._lock:
            self._beats.pop(part, None)

    def beat(self, part: str) -> None:
        """Note that `part` lives; pings if all do and the last ping is a while ago."""
        now = self._note(part)
        if self._limit_secs and self._is_due(now):
            self._alive()

    def _note(self, part: str) -> float:
        now = self._monotonic()
        with self._lock:
            self._beats[part] = now
        return now

    def _is_due(self, now: float) -> bool:
        with self._lock:
            fresh = all(now - seen <= self.patience_secs for seen in self._beats.values())
            due = fresh and now - self._last_ping >= self._limit_secs / PINGS_PER_LIMIT
            if due:
                self._last_ping = now
        return due


def take_address(environment: MutableMapping[str, str]) -> str:
    """Return who listens and forget it, so that no program started by the service speaks for it."""
    return environment.pop(ADDRESS, "")


def take_watchdog_limit(environment: MutableMapping[str, str]) -> float:
    """Return systemd's watchdog limit for this process in seconds, 0 for none, and forget it."""
    limit = environment.pop(WATCHDOG_USEC, "0")
    pid = environment.pop(WATCHDOG_PID, "") or str(os.getpid())
    if pid != str(os.getpid()) or not limit.isascii() or not limit.isdigit():
        return 0.0
    return int(limit) / 1e6
