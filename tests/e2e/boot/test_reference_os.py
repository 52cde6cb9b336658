"""The reference OS on EFI's loaders: systemd, D-Bus, the shipped units, watchdog and guard.

What the small guest shows on every loader, here with a whole system: health by units, a hung init
that the watchdog of the initrd resets, and a trial whose service never starts. The service is in
its sandbox here, which must let it write a loader entry or a variable of the firmware.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from images.reference import cli
from images.signing import public_pem
from partitions.disk_image import FirmwareFile, create_disk
from partitions.layout import read_layout
from tests.e2e.boot.archive import CACHE
from tests.e2e.boot.conftest import ONLY
from tests.e2e.boot.disks import convert, copy, machine, variables_of
from tests.e2e.boot.loaders import LOADERS, Loader
from tests.e2e.boot.machine import OVMF, Drive, VirtualMachine
from tests.e2e.boot.node import Publisher, put
from tests.e2e.boot.small_guest import System
from tests.sim.repository import BOARD, PRODUCT
from tests.sim.world import payload_key

pytestmark = [pytest.mark.e2e, pytest.mark.boot]

CHECKOUT: Final = Path(__file__).parents[3]
LAYOUT: Final = CHECKOUT / "partitions/layouts/reference.toml"
TESTED: Final = ("systemd-boot", "efi")
OLD: Final = "1.0.0"
NUMBERS: Final = itertools.count(1)
GUARD_SECS: Final = 1500.0  # its timer waits for 15 minutes of the guest's time
BUILT: Final = "2026-11-28T10:00:00Z"

SETTINGS: Final = """\
[server]
omaha_url = ""

[trust]
metadata_url = "{metadata}"
root_file = "/var/lib/bascule-test/root.json"
payload_keys = ["/var/lib/bascule-test/payload.pem"]

[download]
mirrors = ["{payloads}"]
retries = 20
retry_delay_secs = 0.1

[updates]
automatic = false
"""


def build(variant: str, version: str) -> System:
    """Build a version of the reference OS; packages are kept between builds."""
    output = CACHE / f"reference-{variant}-{version}"
    shutil.rmtree(output, ignore_errors=True)
    cli.reference.main(
        [
            "build", "--version", version, "--variant", variant, "--output", str(output),
            "--built", BUILT, "--product", PRODUCT, "--board", BOARD, "--rollback-index", "1",
            "--cache", str(CHECKOUT / "build/reference"), "--source", str(CHECKOUT), "--with-agent",
        ],
        standalone_mode=False,
    )  # fmt: skip
    names = {"root": "root.img", "kernel": "linux", "initrd": "initrd"}
    parts = {part: output / name for part, name in names.items()}
    return System(version=version, parts=parts, root_hash="", data_blocks=0)


@dataclass
class Kept:
    """The booted reference OS, to be begun again and again."""

    loader: Loader
    disk: Path
    copy: Path
    publisher: Publisher

    def begun(self) -> VirtualMachine:
        """Go back to where A is up and follows the publisher."""
        copy(self.disk, self.copy)
        drive = Drive(path=self.copy, format="qcow2")
        return VirtualMachine(machine(self.loader, drive), snapshot="up")


@pytest.fixture(scope="module", params=TESTED)
def kept(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Kept]:
    """Boot slot A once with each loader."""
    loader = LOADERS[str(request.param)]
    if loader.name not in os.environ.get(ONLY, loader.name).split(","):
        pytest.skip(f"{ONLY} does not name {loader.name}")
    for program, package in {"mmdebstrap": "mmdebstrap", "mkfs.erofs": "erofs-utils"}.items():
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (package {package})")
    if os.getuid():
        pytest.skip("mmdebstrap is run as root here")
    folder = tmp_path_factory.mktemp("reference")
    raw, disk = folder / "disk.img", folder / "disk.qcow2"
    old = build("good", OLD)
    firmware = FirmwareFile(output=variables_of(raw)) if loader.name == "efi" else None
    create_disk(read_layout(LAYOUT), raw, images=old.parts, loader=loader.name, firmware=firmware)
    if firmware is None:
        shutil.copyfile(OVMF / "OVMF_VARS_4M.fd", variables_of(raw))
    convert(raw, disk)
    with Publisher(folder / "published") as publisher:
        with VirtualMachine(machine(loader, Drive(path=disk, format="qcow2"))) as guest:
            guest.expect(f"slot=a version={OLD} root=verified")
            guest.expect_agent()
            follow(guest, publisher)
            guest.run("systemctl is-system-running --wait || true")
            guest.run("systemctl restart bascule.service && bascule status")
            print(guest.run("bascule slots"))
            guest.save("up")
            print(f"\nreference OS up, cpu-seconds={guest.cpu_seconds:.1f}")
        yield Kept(loader, disk, folder / "copy.qcow2", publisher)
    shutil.rmtree(folder)


def follow(guest: VirtualMachine, publisher: Publisher) -> None:
    """Let the guest trust and ask the publisher; its settings go with the next boot."""
    guest.run("mkdir -p /run/bascule/bascule.toml.d /var/lib/bascule-test")
    text = SETTINGS.format(metadata=publisher.metadata, payloads=publisher.mirror)
    put(guest, "/run/bascule/bascule.toml.d/50-test.toml", text.encode())
    put(guest, "/var/lib/bascule-test/root.json", publisher.repository.bootstrap)
    put(guest, "/var/lib/bascule-test/payload.pem", public_pem(payload_key().public_key()))


@pytest.fixture
def guest(kept: Kept) -> Iterator[VirtualMachine]:
    """Give the machine with A up."""
    with kept.begun() as made:
        began = made.cpu_seconds
        yield made
        print(f"\nreference OS: cpu-seconds={made.cpu_seconds - began:.1f}", end=" ")


def update(kept: Kept, guest: VirtualMachine, variant: str) -> str:
    """Publish a variant, install it and reboot; return its version."""
    version = f"2.0.{next(NUMBERS)}"
    kept.publisher.release(build(variant, version), rollback_index=1)
    guest.run("bascule update; test $? = 5")
    guest.run("bascule reboot --now")
    return version


def status(guest: VirtualMachine, wanted: str) -> dict[str, Any]:
    """Wait for a state and return all of the status."""
    guest.run(f'until bascule status --json | grep -q \'"state": "{wanted}"\'; do sleep 3; done')
    facts: dict[str, Any] = json.loads(guest.run("bascule status --json"))
    return facts


def test_an_update_is_confirmed_by_the_service(kept: Kept, guest: VirtualMachine) -> None:
    version = update(kept, guest, "good")
    guest.expect(f"slot=b version={version} root=verified")
    guest.expect_agent()

    facts = status(guest, "idle")

    assert facts["booted"]["version"] == version
    assert facts["confirmed"]
    assert guest.run("ls /run/bascule/confirmed")


@pytest.mark.parametrize(
    ("variant", "causes"),
    [
        ("panic-init", {"trial-boot-failed", "trial-fell-back"}),
        ("hung-init", {"trial-boot-failed", "trial-fell-back"}),
        ("unhealthy", {"trial-unhealthy"}),
        ("no-state", {"trial-boot-failed", "trial-fell-back"}),
        pytest.param("no-daemon", {"trial-guarded"}, marks=pytest.mark.slow),
    ],
)
def test_a_version_that_fails_ends_on_the_old_one(
    kept: Kept, guest: VirtualMachine, variant: str, causes: set[str]
) -> None:
    version = update(kept, guest, variant)
    limit = GUARD_SECS if variant == "no-daemon" else 600.0
    guest.expect(f"slot=a version={OLD} root=verified", limit_secs=limit)
    guest.forget_agent()  # that of the version that failed: it may have come up, too
    guest.expect_agent()

    facts = status(guest, "idle")

    assert version in facts["denied"]
    assert facts["last_failure"]["code"] in causes
