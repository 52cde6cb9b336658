"""A stand-in for systemd's manager on a bus of our own: as much as the real systemctl asks of it.

It speaks of the units of a file. Run as a program it serves until it is ended. `systemctl` is the
real one, in a mount namespace with a /run of its own, so that it can reach nothing but this.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest
from dbus_next.aio.message_bus import MessageBus
from dbus_next.constants import MessageType
from dbus_next.message import Message
from dbus_next.signature import Variant

from tests.sim.logind import Bus

NAME: Final = "org.freedesktop.systemd1"
UNITS: Final = "/org/freedesktop/systemd1/unit/"
IN_NAMESPACE: Final = """\
#!/bin/sh
exec unshare --mount sh -c '
mount -t tmpfs tmpfs /run || exit 99
mkdir -p /run/systemd/system
exec env DBUS_SYSTEM_BUS_ADDRESS=unix:path={socket} {systemctl} "$@"' sh "$@"
"""
States = tuple[str, str, str, str]  # LoadState, ActiveState, SubState, Result
NOT_FOUND: Final[States] = ("not-found", "inactive", "dead", "success")


class SystemdBus(Bus):
    """A bus with a manager on it, and a systemctl that speaks to it."""

    def start_systemd(self, units: Mapping[str, States]) -> None:
        """Let a manager with these units join the bus."""
        self.set_units(units)
        self._start([sys.executable, "-m", "tests.sim.systemd", str(self.folder)])

    def set_units(self, units: Mapping[str, States]) -> None:
        """Change what it says from the next question on."""
        (self.folder / "units").write_text(json.dumps(units))

    def systemctl(self) -> Path:
        """Return the folder of a program `systemctl`; skips where there can be none."""
        real = shutil.which("systemctl")
        if real is None:
            pytest.skip("systemctl is not installed (package systemd)")
        folder = self.folder / "bin"
        folder.mkdir()
        program = folder / "systemctl"
        program.write_text(IN_NAMESPACE.format(socket=self.socket, systemctl=real))
        program.chmod(0o755)
        tried = subprocess.run([program, "--version"], capture_output=True, check=False)
        if tried.returncode != 0:
            pytest.skip("mount namespaces need root and unshare")
        return folder


def unit_of(path: str) -> str:
    """Return the unit that an object path names (systemd escapes all but letters and digits)."""
    escaped = path.removeprefix(UNITS)
    return re.sub(r"_([0-9a-f]{2})", lambda hexed: chr(int(hexed[1], 16)), escaped)


def properties(name: str, states: Sequence[str]) -> dict[str, Variant]:
    """Return what the manager says of one unit; more than is asked for, in an order of its own."""
    load, active, sub, result = states
    told = {"Result": result, "Id": name, "SubState": sub, "LoadState": load, "ActiveState": active}
    return {key: Variant("s", value) for key, value in told.items()}


async def serve(folder: Path) -> None:
    """Answer as the manager would, for ever."""
    bus = await MessageBus(bus_address=f"unix:path={folder}/bus").connect()

    def answer(message: Message) -> Message | None:
        if message.message_type is not MessageType.METHOD_CALL or message.path is None:
            return None
        units: dict[str, States] = json.loads((folder / "units").read_text())
        if message.member == "GetAll":
            name = unit_of(message.path)
            told = properties(name, units.get(name, NOT_FOUND))
            return Message.new_method_return(message, "a{sv}", [told])
        if message.member == "ListUnitsByPatterns":
            wanted = message.body[0]
            rows = [
                [name, name, load, active, sub, "", f"{UNITS}x", 0, "", "/"]
                for name, (load, active, sub, _) in units.items()
                if not wanted or active in wanted
            ]
            return Message.new_method_return(message, "a(ssssssouso)", [rows])
        return None

    bus.add_message_handler(answer)
    await bus.request_name(NAME)
    print("serving", flush=True)  # noqa: T201  # who started us waits for it
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
