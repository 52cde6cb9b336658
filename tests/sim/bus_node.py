"""A machine whose service is on a bus of its own: what a person or a program there can do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.sim.message_bus import MessageBus
from tests.sim.world import World

ROOT: Final = Path(__file__).parents[2]
NAME: Final = "org.bascule.Updater1"
OBJECT: Final = "/org/bascule/Updater1"
PATIENCE_SECS: Final = 40.0


@dataclass
class BusNode:
    """A world, a bus, and the process that stands for the machine or its service.

    Attributes:
        world: disk, repository, payload server.
        bus: the message bus.
        process: the service or the machine, None while it is off.
    """

    world: World
    bus: MessageBus
    process: subprocess.Popen[bytes] | None = None

    def settings(self, bus: str = "", **changes: str) -> None:
        """Write the node's settings; it does not check by itself unless `changes` say so."""
        section = f'\n[bus]\naddress = "{self.bus.address}"\n{bus}'
        quiet = {"poll_interval_secs": "3600", "first_check_secs": "3600"}
        self.world.write_settings(section, **(quiet | changes))

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "updater.cli", "--config", str(self.world.config)]

    @property
    def log(self) -> str:
        return (self.world.folder / "log").read_text()

    def start(self, *command: str) -> None:
        """Start the service, or another command in its place, with its words in `log`."""
        with (self.world.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command or [*self.command, "daemon"], stdout=log, stderr=log, env=self.environment()
            )

    def start_machine(self) -> None:
        """Switch the machine on: it boots, runs the service, and reboots when it is told to."""
        module = [sys.executable, "-m", "updater.machine_model"]
        self.start(*module, "--config", str(self.world.config))

    def environment(self) -> dict[str, str]:
        return os.environ | {"PYTHONPATH": str(ROOT)}

    def stop(self) -> int | None:
        """End it as systemd would; returns its exit status."""
        if self.process is None:
            return None
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        assert self.process is not None
        status = self.process.wait(60)
        self.process = None
        return status

    def cli(self, *words: str, user: int = 0) -> subprocess.CompletedProcess[str]:
        """Run `bascule`; as another user with the one capability to load Python from root's home.

        access(2) asks without it, so the command itself sees what that user may read.
        """
        capability = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
        change = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *capability]
        return subprocess.run(
            [*(change if user else []), *self.command, *words], capture_output=True, text=True,
            timeout=120, check=False, env=self.environment(), cwd="/",
        )  # fmt: skip

    def call(self, member: str, *words: str, user: int = 0) -> subprocess.CompletedProcess[str]:
        """Call a method of our interface by busctl."""
        return self.bus.busctl("call", NAME, OBJECT, NAME, member, *words, user=user)

    def facts(self, member: str, *words: str) -> Any:  # noqa: ANN401  # JSON
        """Return the facts that a light method gives."""
        done = self.bus.busctl("--json=short", "call", NAME, OBJECT, NAME, member, *words)
        assert done.returncode == 0, done.stderr
        return json.loads(json.loads(done.stdout)["data"][0])

    def property(self, name: str) -> Any:  # noqa: ANN401  # any type
        done = self.bus.busctl("--json=short", "get-property", NAME, OBJECT, NAME, name)
        return json.loads(done.stdout)["data"] if done.returncode == 0 else None

    def wait_on_bus(self) -> None:
        self.wait_for(lambda: bool(self.property("State")), "the service on the bus")

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECS
        while not condition():
            ended = self.process is not None and self.process.poll() is not None
            assert not ended, f"it ended while waiting for {what}:\n{self.log[-4000:]}"
            assert time.monotonic() < deadline, f"never: {what}\n{self.log[-4000:]}"
            time.sleep(0.05)

    @contextmanager
    def hearing(self, *rules: str) -> Iterator[Heard]:
        """Hear signals meanwhile, by busctl."""
        command = ["busctl", f"--address={self.bus.address}", "--json=short", "monitor"]
        path = self.world.folder / f"heard-{time.monotonic_ns()}"
        with path.open("wb") as output:
            words = [f"--match={rule}" for rule in rules]
            listener = subprocess.Popen([*command, *words], stdout=output, stderr=subprocess.PIPE)
            assert listener.stderr is not None
            assert b"Monitoring" in listener.stderr.readline()
            try:
                yield Heard(path)
            finally:
                listener.terminate()
                listener.wait()
                listener.stderr.close()


@dataclass(frozen=True)
class Heard:
    """What a monitor wrote down."""

    path: Path

    def signals(self, member: str) -> list[list[Any]]:
        """Return the bodies of the signals heard so far."""
        lines = self.path.read_text().splitlines(keepends=True)
        messages = [json.loads(line) for line in lines if line.endswith("\n")]
        return [m["payload"]["data"] for m in messages if m.get("member") == member]


@contextmanager
def bus_node(*, image_size: int = 512 * 1024) -> Iterator[BusNode]:
    """Make a node that runs 1.0.0 in slot A, its service not started yet."""
    with MessageBus() as bus, World(bus.folder / "node", image_size=image_size) as world:
        world.folder.chmod(0o755)
        node = BusNode(world, bus)
        node.settings()
        world.boot()
        try:
            yield node
        finally:
            node.stop()
