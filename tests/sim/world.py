"""A whole small world for one node: repository, payload server, disk file, firmware model.

Everything above the firmware is the shipped code on real files and real HTTP. Images are ext4
file systems of a few MiB made by mkfs.ext4; tests skip where e2fsprogs is missing.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from images.build import build as build_payload
from images.release import ImageFacts, encode_image_facts, encode_payload_facts, facts_of
from images.signing import public_pem
from partitions.boot.grubenv import GrubEnvironment
from partitions.disk_image import create_disk
from partitions.grub_block import EMPTY_BLOCK
from partitions.layout import read_layout
from partitions.slots import Slot
from tests.sim import loaders
from tests.sim.boot_folder import make_partition
from tests.sim.efi import make_variables
from tests.sim.payload_server import PayloadServer
from tests.sim.repository import BOARD, PRODUCT, TufRepository
from tests.sim.repository_server import RepositoryServer
from updater.agent import Wait
from updater.assembly import build
from updater.engine import Engine
from updater.machine_model import PowerSupply, power_supply
from updater.node import Node
from updater.settings import Settings, load

TOOLS: Final = "/usr/sbin:/sbin:/usr/bin:/bin"
IMAGE_BYTES: Final = 8 * 1024 * 1024
SLOT_SIZE: Final = "12MiB"

LAYOUT: Final = f"""\
seed = "test"
partition = [
  {{ label = "ESP", role = "esp", size = "1MiB" }},
  {{ label = "USR-A", role = "slot-a", part = "usr", size = "{SLOT_SIZE}" }},
  {{ label = "USR-B", role = "slot-b", part = "usr", size = "{SLOT_SIZE}" }},
  {{ label = "STATE", role = "state", size = "1MiB" }},
]
"""

NODE: Final = """\
[node]
machine = "model"
state_folder = "{folder}/state"
run_folder = "{folder}/run"
machine_id_file = "{folder}/machine-id"
alias = "node"

[slots]
uboot_config = "{folder}/loader/fw_env.config"
custom_command = ["sh", "{folder}/loader/custom-loader.sh", "{folder}/loader/memory"]
disk = "{folder}/disk.img"
boot_control = "{boot_control}"
grubenv = "{folder}/grubenv"
boot_folder = "{folder}/boot"
efivars = "{folder}/efivars"
a = {{ usr = "PARTLABEL=USR-A"{files_a} }}
b = {{ usr = "PARTLABEL=USR-B"{files_b} }}

[server]
poll_interval_secs = 1
poll_jitter_share = 0
first_check_secs = 0.001

[trust]
metadata_url = "{metadata}"
payload_keys = ["{folder}/payload.pub.pem"]

[download]
mirrors = ["{payloads}"]
retries = 2
retry_delay_secs = 0.05
idle_timeout_secs = 5
checkpoint_mib = 1

[updates]
reboot = "automatic"

[health]
deadline_secs = 3
interval_secs = 0.1
"""


@functools.cache
def payload_key() -> rsa.RSAPrivateKey:
    """Return the key that payloads are signed with, made once in this process."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@dataclass
class World:
    """One node and what it follows.

    Attributes:
        folder: where all of it lies.
        repository: what is signed; `release` adds to it.
        payloads: the mirror.
        images: the image file of each version.
        image_size: their bytes.
        boot_control: which loader the machine has.
        files: bytes of each part that is a boot file.
        clock: what the node takes for the time; None: the machine's.
        noise: makes the half of an image that does not compress; by default another for each.
    """

    folder: Path
    stack: ExitStack = field(default_factory=ExitStack)
    images: dict[str, Path] = field(default_factory=dict)
    health: list[str] = field(default_factory=lambda: ["true"])
    image_size: int = IMAGE_BYTES
    boot_control: str = "gptprio"
    files: dict[str, int] = field(default_factory=dict)
    clock: Callable[[], datetime] | None = None
    noise: Callable[[int], bytes] = os.urandom

    def __enter__(self) -> Self:
        if shutil.which("mkfs.ext4", path=TOOLS) is None:
            pytest.skip("mkfs.ext4 is not installed (package e2fsprogs)")
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "machine-id").write_text("0123456789abcdef0123456789abcdef\n")
        (self.folder / "payload.pub.pem").write_bytes(public_pem(payload_key().public_key()))
        self.repository = TufRepository(lambda: datetime.now(UTC))
        with self.stack:  # a world that cannot be made leaves no server behind
            self._make()
            self.stack = self.stack.pop_all()
        return self

    def _make(self) -> None:
        self.server = self.stack.enter_context(RepositoryServer(self.repository))
        self.payloads = self.stack.enter_context(PayloadServer())
        image = self.image("1.0.0", rollback_index=1)
        layout = self.folder / "disk.toml"
        layout.write_text(LAYOUT)
        create_disk(read_layout(layout), self.disk, images={"usr": image})
        make_partition(self.folder / "boot")
        make_variables(self.folder / "efivars")
        for part in self.files:
            file = self.boot_file(Slot.A, part)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(self.file_image("1.0.0", part))
        self.grubenv.write_bytes(EMPTY_BLOCK)
        GrubEnvironment(self.grubenv).confirm(Slot.A)
        self.write_settings()
        self.loader.mkdir()
        loaders.uboot(self.loader)
        loaders.custom(self.loader)
        self.release("1.0.0", rollback_index=1)

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    @property
    def disk(self) -> Path:
        return self.folder / "disk.img"

    @property
    def grubenv(self) -> Path:
        return self.folder / "grubenv"

    @property
    def loader(self) -> Path:
        """Where the memory of a loader lies that is neither in the GPT nor GRUB's."""
        return self.folder / "loader"

    @property
    def config(self) -> Path:
        return self.folder / "node.toml"

    def boot_file(self, slot: Slot, part: str) -> Path:
        """Return where a part lies that is a file."""
        return self.folder / "boot/bascule" / slot.value / part

    def file_image(self, version: str, part: str) -> bytes:
        """Return the image of such a part: random bytes, the same ones for a version."""
        path = self.folder / f"{version}.{part}"
        if not path.exists():
            path.write_bytes(os.urandom(self.files[part]))
        return path.read_bytes()

    def _named(self, slot: Slot) -> str:
        return "".join(f', {part} = "FILE={self.boot_file(slot, part)}"' for part in self.files)

    def write_settings(self, extra: str = "", **changes: str) -> None:
        """Write the node's settings; `changes` replace whole lines by their key."""
        text = NODE.format(
            folder=self.folder,
            boot_control=self.boot_control,
            metadata=self.server.url,
            payloads=self.payloads.base,
            files_a=self._named(Slot.A),
            files_b=self._named(Slot.B),
        )
        for key, value in changes.items():
            lines = [
                f"{key} = {value}" if line.startswith(f"{key} = ") else line
                for line in text.splitlines()
            ]
            text = "\n".join(lines) + "\n"
        checks = f'[[health.checks]]\nname = "service"\ncommand = {self.health}\ntimeout_secs = 2\n'
        self.config.write_text(text + checks.replace("'", '"') + extra)

    def settings(self) -> Settings:
        return load(self.config).settings

    def image(self, version: str, *, rollback_index: int, board: str = BOARD) -> Path:
        """Make an ext4 image of this version with content of its own."""
        tree = self.folder / f"tree-{version}"
        own = tree / "usr/lib/bascule"
        own.mkdir(parents=True)
        facts = ImageFacts(
            product=PRODUCT,
            board=board,
            version=version,
            rollback_index=rollback_index,
            built=datetime(2026, 1, 1, tzinfo=UTC),
        )
        (own / "image.toml").write_bytes(encode_image_facts(facts))
        (own / "root.json").write_bytes(self.repository.bootstrap)
        (tree / "random").write_bytes(self.noise(self.image_size // 2))
        (tree / "text").write_bytes(f"version {version}\n".encode() * (self.image_size // 170))
        image = self.folder / f"{version}.ext4"
        tool = shutil.which("mkfs.ext4", path=TOOLS)
        assert tool is not None
        size = f"{self.image_size // 1024}k"
        command = [tool, "-q", "-F", "-d", str(tree), "-O", "^has_journal", str(image), size]
        subprocess.run(command, check=True, capture_output=True)
        shutil.rmtree(tree)
        self.images[version] = image
        return image

    def payload(self, version: str, *, rollback_index: int) -> Path:
        """Build and sign the payload of a version."""
        if version not in self.images:
            self.image(version, rollback_index=rollback_index)
        output = self.folder / f"{version}.crau"
        parts = [("usr", self.images[version])]
        for part in self.files:
            self.file_image(version, part)
            parts.append((part, self.folder / f"{version}.{part}"))
        build_payload(parts, output, keys=[payload_key()], level=1)
        return output

    def release(self, version: str, *, rollback_index: int, **channel: object) -> bytes:
        """Sign a release, make it the channel's current one, and serve its payload."""
        payload = self.payload(version, rollback_index=rollback_index)
        facts = facts_of(
            payload,
            product=PRODUCT,
            board=BOARD,
            version=version,
            rollback_index=rollback_index,
            min_engine="0.1.0",
            created=datetime(2026, 1, 1, tzinfo=UTC),
        )
        data = payload.read_bytes()
        custom = encode_payload_facts(facts)
        self.repository.add_release(version, content=data, custom=custom)
        self.repository.promote(version, **channel)  # type: ignore[arg-type]  # fields are free
        self.payloads.files[f"{hashlib.sha256(data).hexdigest()}.crau"] = data
        return data

    def power(self) -> PowerSupply:
        """Return the machine's power supply; `boot_once` is switching it on."""
        return power_supply(self.settings(), daemon=[])

    def boot(self) -> Node:
        """Boot the machine and return its node, as a fresh process would build it."""
        self.power().boot_once()
        return self.node()

    def node(self) -> Node:
        """Return the node as a fresh process of the present boot would build it."""
        node = build(self.settings())
        node.clock = self.clock or node.clock
        return node

    def slot_bytes(self, slot: Slot, size: int | None = None) -> bytes:
        """Return what a slot's partition holds."""
        region = self.node().regions(slot)["usr"]
        with self.disk.open("rb") as file:
            file.seek(region.offset)
            return file.read(self.image_size if size is None else size)

    def image_bytes(self, version: str) -> bytes:
        return self.images[version].read_bytes()


def run_until(engine: Engine, code: str, *, steps: int = 50) -> None:
    """Take steps until the engine waits with `code`.

    Raises:
        AssertionError: it never does.
    """
    seen: list[str] = []
    for _ in range(steps):
        wait = engine.step()
        if isinstance(wait, Wait):
            seen.append(wait.code)
            if wait.code == code:
                return
    raise AssertionError(f"never waited with {code!r}, but with {seen}")
