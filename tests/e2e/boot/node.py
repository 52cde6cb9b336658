"""What a guest is told: where it gets its updates from, and the engine that waits in it."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

from images.build import build as build_payload
from images.release import encode_payload_facts, facts_of
from images.signing import public_pem
from tests.e2e.boot import disks
from tests.e2e.boot.loaders import Loader
from tests.e2e.boot.machine import VirtualMachine
from tests.e2e.boot.small_guest import System
from tests.sim.payload_server import PayloadServer
from tests.sim.repository import BOARD, PRODUCT, TufRepository
from tests.sim.repository_server import RepositoryServer
from tests.sim.world import payload_key

HOST: Final = "10.0.2.2"  # the host's loopback, as QEMU's user network shows it
CONFIG: Final = "/var/lib/node.toml"
START: Final = "/var/lib/start"  # what the small guest runs at each boot
SERVICE: Final = f"python3 -m updater.cli --config {CONFIG} daemon > /dev/console 2>&1 &\n"
UPDATE_WORD: Final = "/run/update"
WRITE_WORD: Final = "/run/write"
REBOOT_WORD: Final = "/run/reboot"
PARTS: Final = ("root", "kernel", "initrd")

NODE: Final = """\
[node]
machine_id_file = "/var/lib/machine-id"
reboot_command = ["reboot", "-f"]

{slots}
[bus]
address = "none"

[server]
poll_interval_secs = 5
poll_jitter_share = 0
first_check_secs = 0.001

[trust]
metadata_url = "{metadata}"
root_file = "/var/lib/root.json"
payload_keys = ["/var/lib/payload.pem"]

[download]
mirrors = ["{payloads}"]
retries = 20
retry_delay_secs = 0.1
checkpoint_mib = 1

[updates]
reboot = "automatic"

[health]
deadline_secs = 180
interval_secs = 1

[[health.checks]]
name = "service"
command = ["sh", "/usr/lib/health"]
"""


@dataclass
class Publisher:
    """A signed repository and its payloads on the host's loopback; what the guests follow."""

    folder: Path
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.repository = TufRepository(lambda: datetime.now(UTC))
        self._server = self._stack.enter_context(RepositoryServer(self.repository))
        self.payloads = self._stack.enter_context(PayloadServer())
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def metadata(self) -> str:
        """The URL of the repository, as a guest sees it."""
        return self._server.url.replace("127.0.0.1", HOST)

    @property
    def mirror(self) -> str:
        """The URL of the payloads, as a guest sees it."""
        return self.payloads.base.replace("127.0.0.1", HOST)

    def release(self, system: System, *, rollback_index: int) -> None:
        """Sign a system as the channel's current release, and serve its payload."""
        payload = self.folder / f"{system.version}.crau"
        parts = [(name, system.parts[name]) for name in PARTS]
        build_payload(parts, payload, keys=[payload_key()], level=1)
        facts = facts_of(
            payload,
            product=PRODUCT,
            board=BOARD,
            version=system.version,
            rollback_index=rollback_index,
            min_engine="0.1.0",
            created=datetime(2026, 1, 1, tzinfo=UTC),
        )
        data = payload.read_bytes()
        self.repository.add_release(
            system.version, content=data, custom=encode_payload_facts(facts)
        )
        self.repository.promote(system.version)
        self.payloads.files[f"{hashlib.sha256(data).hexdigest()}.crau"] = data

    def settings(self, loader: Loader) -> str:
        """Return the settings of a node with that loader."""
        return NODE.format(
            slots=disks.settings(loader),
            metadata=self.metadata,
            payloads=self.mirror,
        )

    def instruct(self, machine: VirtualMachine, loader: Loader) -> None:
        """Write settings and trust into the guest's state."""
        put(machine, CONFIG, self.settings(loader).encode())
        put(machine, "/var/lib/root.json", self.repository.bootstrap)
        put(machine, "/var/lib/payload.pem", public_pem(payload_key().public_key()))
        machine.run("sync")


def put(machine: VirtualMachine, path: str, content: bytes) -> None:
    """Write a file in the guest."""
    machine.run(f"cat > {path} <<'END-OF-FILE'\n{content.decode()}\nEND-OF-FILE\n")


def start_engine(machine: VirtualMachine, *faults: str) -> None:
    """Start the engine in the guest and wait until it waits."""
    put(machine, "/run/in_guest.py", (Path(__file__).parent / "in_guest.py").read_bytes())
    words = " ".join(faults)
    command = f"python3 /run/in_guest.py {CONFIG} {UPDATE_WORD} {WRITE_WORD} {REBOOT_WORD}"
    machine.run(f"{command} {words} > /dev/console 2>&1 &")
    machine.expect("ENGINE-WAITS")


def say_go(machine: VirtualMachine) -> None:
    """Let the engine update and reboot."""
    machine.run(f"touch {UPDATE_WORD} {WRITE_WORD} {REBOOT_WORD}")


def say_update(machine: VirtualMachine) -> None:
    """Let the engine update; it waits before the first byte, and before it reboots."""
    machine.run(f"touch {UPDATE_WORD}")


def say_write(machine: VirtualMachine) -> None:
    """Let the engine write the slot and arm it."""
    machine.run(f"touch {WRITE_WORD}")


def say_reboot(machine: VirtualMachine) -> None:
    """Let the engine reboot once it has armed the slot."""
    machine.run(f"touch {REBOOT_WORD}")
