"""A stand-in for systemd-logind on a real dbus-daemon of our own: as much as reboots need.

It lists the inhibitors of a file and notes each reboot it is asked for in another; nothing is
rebooted. Run as a program it serves until it is ended.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

import pytest
from dbus_next.aio.message_bus import MessageBus
from dbus_next.constants import MessageType
from dbus_next.message import Message

CONFIG: Final = """\
<busconfig>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/><allow own="*"/>
    <allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/>
  </policy>
</busconfig>
"""
NAME: Final = "org.freedesktop.login1"


class Bus:
    """A dbus-daemon of our own, with or without a logind on it.

    Attributes:
        socket: where it listens.
        folder: where its files are.
    """

    def __init__(self, folder: Path) -> None:
        if shutil.which("dbus-daemon") is None:
            pytest.skip("dbus-daemon is not installed (package dbus)")
        self.folder = folder
        self.socket = folder / "bus"
        self._children: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        config = self.folder / "bus.conf"
        config.write_text(CONFIG.format(socket=self.socket))
        command = ["dbus-daemon", f"--config-file={config}", "--nofork", "--print-address"]
        self._start(command)
        return self

    def __exit__(self, *error: object) -> None:
        for child in reversed(self._children):
            child.terminate()
            child.wait(30)
            if child.stdout is not None:
                child.stdout.close()

    def start_logind(self, *inhibitors: Sequence[Any]) -> None:
        """Let a logind with these inhibitors (what, who, why, mode, uid, pid) join the bus."""
        (self.folder / "inhibitors").write_text(json.dumps(inhibitors))
        self._start([sys.executable, "-m", "tests.sim.logind", str(self.folder)])

    def reboots(self) -> list[str]:
        """Return what logind was asked for, newest last."""
        noted = self.folder / "reboots"
        return noted.read_text().splitlines() if noted.exists() else []

    def _start(self, command: list[str]) -> None:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline(), f"{command[0]} did not come up"


async def serve(folder: Path) -> None:
    """Answer as logind would, for ever."""
    bus = await MessageBus(bus_address=f"unix:path={folder}/bus").connect()

    def answer(message: Message) -> Message | None:
        if message.message_type is not MessageType.METHOD_CALL or message.path is None:
            return None
        if message.member == "ListInhibitors":
            rows = json.loads((folder / "inhibitors").read_text())
            if rows == ["odd"]:
                return Message.new_method_return(message, "s", ["odd"])
            if rows == ["refused"]:
                return Message.new_error(message, "org.freedesktop.DBus.Error.Failed", "no")
            return Message.new_method_return(message, "a(ssssuu)", [rows])
        if message.member in {"Reboot", "RebootWithFlags", "ScheduleShutdown"}:
            with (folder / "reboots").open("a") as noted:
                noted.write(f"{message.member} {message.body[0]}\n")
            return Message.new_method_return(message)
        return None

    bus.add_message_handler(answer)
    await bus.request_name(NAME)
    print("serving", flush=True)  # noqa: T201  # who started us waits for it
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
