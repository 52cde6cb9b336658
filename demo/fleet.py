"""The demo's nodes: a GPT disk file, settings and a power supply each."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from demo.programs import Program, run

LOOK_SECS: Final = 1.5  # a look is a process for each node

DISK_LAYOUT: Final = """\
seed = "{name}"

[[partition]]
label = "ESP"
role = "esp"
size = "4MiB"

[[partition]]
label = "USR-A"
role = "slot-a"
part = "usr"
size = "128MiB"

[[partition]]
label = "USR-B"
role = "slot-b"
part = "usr"
size = "128MiB"

[[partition]]
label = "STATE"
role = "state"
size = "8MiB"
"""

SETTINGS: Final = """\
[node]
machine = "model"
state_folder = "{folder}/state"
run_folder = "{folder}/run"
machine_id_file = "{folder}/machine-id"
alias = "{name}"

[slots]
disk = "{folder}/disk.img"
a = {{ usr = "PARTLABEL=USR-A" }}
b = {{ usr = "PARTLABEL=USR-B" }}

[server]
omaha_url = "{server}/v1/update/"
channel = "stable"
group = "demo"
poll_interval_secs = 2
first_check_secs = 1

[trust]
metadata_url = "{server}/repository/metadata/"
payload_keys = ["{payload_key}"]

[updates]
reboot = "automatic"

[permit]
kind = "etcd"
group = "demo"
endpoints = ["{etcd}"]
max = 1

[health]
deadline_secs = 6
interval_secs = 1

[[health.checks]]
name = "service"
command = ["{python}", "{check}", "{folder}/node.toml"]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What all nodes share."""

    server: str
    etcd: str
    payload_key: Path
    first_image: Path


class Node:
    """One node: its folder, its disk, and the process that is its power supply."""

    def __init__(self, name: str, machine_id: str, folder: Path) -> None:
        self.name = name
        self.machine_id = machine_id
        self.folder = folder
        self.config = folder / "node.toml"
        self._power: Program | None = None

    def build(self, world: World) -> None:
        """Make the disk with the first image in slot A, and the settings."""
        self.folder.mkdir(parents=True)
        (self.folder / "machine-id").write_text(self.machine_id + "\n")
        layout = self.folder / "disk.toml"
        layout.write_text(DISK_LAYOUT.format(name=self.name))
        disk = self.folder / "disk.img"
        install = f"usr={world.first_image}"
        run("bascule-image", "disk", "create", layout, "--output", disk, "--install", install)
        self.config.write_text(
            SETTINGS.format(
                folder=self.folder,
                name=self.name,
                server=world.server,
                etcd=world.etcd,
                payload_key=world.payload_key,
                python=sys.executable,
                check=Path(__file__).with_name("healthcheck.py"),
            )
        )

    def switch_on(self) -> None:
        """Power: firmware, then the daemon, boot after boot."""
        command = [sys.executable, "-m", "updater.machine_model", "--config", str(self.config)]
        self._power = Program(command, self.folder / "console.log")

    def switch_off(self) -> None:
        """No power."""
        if self._power is not None:
            self._power.end()

    def status(self) -> dict[str, Any]:
        """Return what `bascule status --json` says, nothing while the machine reboots."""
        text = run("bascule", "--config", self.config, "status", "--json", statuses=range(256))
        try:
            facts: dict[str, Any] = json.loads(text)
        except ValueError:
            return {}
        return facts

    def history(self) -> list[dict[str, Any]]:
        """Return what happened on the node, oldest first."""
        text = run("bascule", "--config", self.config, "history", "-n", "500", "--json")
        entries: list[dict[str, Any]] = json.loads(text)
        return entries


def wait_for(
    nodes: Sequence[Node],
    reached: Callable[[dict[str, Any]], bool],
    *,
    limit_secs: float,
    show: Callable[[Sequence[tuple[Node, dict[str, Any]]]], None],
) -> float:
    """Wait until every node's status has `reached` it; returns the seconds it took.

    Raises:
        SystemExit: it took longer than `limit_secs`.
    """
    began = time.monotonic()
    while True:
        seen = [(node, node.status()) for node in nodes]
        show(seen)
        if all(facts and reached(facts) for _, facts in seen):
            return time.monotonic() - began
        if time.monotonic() - began > limit_secs:
            raise SystemExit(f"not reached in {limit_secs:.0f} s; logs are beside the disks")
        time.sleep(LOOK_SECS)
