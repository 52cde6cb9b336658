"""A real dbus-daemon of our own, as strict as a system bus, with the policies that we ship."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import pytest

from tests.sim.memory import memory_or

SYSTEM: Final = Path(__file__).parents[2] / "updater/system/usr/share"
CONFIG: Final = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"/>
    <allow send_destination="org.freedesktop.DBus"
           send_interface="org.freedesktop.DBus.Introspectable"/>
  </policy>
  <policy user="root">
    <allow send_destination="org.freedesktop.DBus"
           send_interface="org.freedesktop.DBus.Monitoring"/>
    <allow own="org.freedesktop.PolicyKit1"/>
    <allow own="org.bascule.Test1"/>
    <allow send_destination="org.freedesktop.PolicyKit1"/>
    <allow send_destination="org.bascule.Test1"/>
  </policy>
  <includedir>{policies}</includedir>
</busconfig>
"""
NOBODY: Final = 65534


@dataclass
class MessageBus:
    """A bus on a socket; it can be killed and started again at the same place.

    Attributes:
        folder: where socket and configuration lie; everybody may enter it.
    """

    folder: Path = field(init=False)
    process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        for tool, package in (("dbus-daemon", "dbus"), ("busctl", "systemd")):
            if shutil.which(tool) is None:
                pytest.skip(f"{tool} is not installed (package {package})")
        if os.geteuid() != 0:
            pytest.skip("a bus that tells users apart needs root")
        place = memory_or(Path(tempfile.gettempdir()))  # a node lies there too, and flushes
        self.folder = Path(tempfile.mkdtemp(dir=place, prefix="bascule-bus-"))
        self.folder.chmod(0o755)  # pytest's folders are root's alone, and nobody must come in
        config = CONFIG.format(socket=self.socket, policies=SYSTEM / "dbus-1/system.d")
        (self.folder / "bus.conf").write_text(config)
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    @property
    def socket(self) -> Path:
        return self.folder / "socket"

    @property
    def address(self) -> str:
        return f"unix:path={self.socket}"

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        command = ["dbus-daemon", f"--config-file={self.folder / 'bus.conf'}", "--nofork"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([*command, "--nopidfile", "--nosyslog"], stderr=log)
        deadline = time.monotonic() + 20
        while not self._listens():
            assert self.process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, "dbus-daemon does not listen"
            time.sleep(0.01)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def busctl(self, *words: str, user: int = 0) -> subprocess.CompletedProcess[str]:
        return self.run("busctl", f"--address={self.address}", *words, user=user)

    def gdbus(self, verb: str, *words: str, user: int = 0) -> subprocess.CompletedProcess[str]:
        return self.run("gdbus", verb, "--address", self.address, *words, user=user)

    def run(self, *command: str, user: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a program as `user`, bounded in time."""
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False,
            user=user, group=user, extra_groups=[], cwd="/",
        )  # fmt: skip
