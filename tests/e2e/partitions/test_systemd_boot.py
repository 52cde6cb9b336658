"""systemd's own programs as judges of our model of its loader: `bootctl`, `systemd-analyze`.

`bootctl list` shows the entries in the loader's order. Its package, systemd-boot, may install the
loader on the ESP of the machine, so `.ci/tools` leaves it out. The loader is in QEMU's tests.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from partitions.boot.systemd_boot import SystemdBootEntries, template_of
from partitions.boot_folder import BootFolder
from partitions.slots import Slot
from partitions.systemd_boot_firmware import ENTRIES, compare_versions, entries
from tests.sim.gpt_tools import program

pytestmark = pytest.mark.e2e

A, B = Slot.A, Slot.B
NEWER = {11: 1, 12: -1, 0: 0}
KEYS = ("sort-key bascule\n", "sort-key bascule\n", "sort-key arch\n", "sort-key debian\n", "")


def test_versions_are_compared_as_systemd_compares_them() -> None:
    chance = random.Random(7)
    command = program("systemd-analyze")
    for _ in range(80):
        one, two = ("".join(chance.choices("0019ab.-^~", k=chance.randint(1, 6))) for _ in "12")
        done = subprocess.run(
            [command, "compare-versions", "--", one, two], check=False, capture_output=True
        )
        assert compare_versions(one, two) == NEWER[done.returncode], (one, two)


def listed(root: Path) -> list[str]:
    """Return the names of the entries as `bootctl` orders them.

    It wants a file system of its own: one in memory, in a mount namespace that ends with it.
    """
    if os.geteuid() != 0:
        pytest.skip("a file system in memory needs root")
    bootctl, mount = program("bootctl"), root / "mounted"
    mount.mkdir(exist_ok=True)
    script = f"mount -t tmpfs none {mount} && cp -r {root}/disk/. {mount} && exec {bootctl} list \
        --esp-path={mount} --json=short"
    environment = {**os.environ, "SYSTEMD_RELAX_ESP_CHECKS": "1"}
    done = subprocess.run(
        [program("unshare"), "--mount", "sh", "-c", script],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [Path(entry["path"]).name for entry in found if "path" in entry]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    root = tmp_path / "disk"
    for slot in Slot:
        (root / f"bascule/{slot.value}").mkdir(parents=True)
        (root / f"bascule/{slot.value}/linux").write_bytes(b"kernel")
        template = root / template_of(slot)
        template.parent.mkdir(parents=True, exist_ok=True)
        template.write_text(f"title bascule {slot.value}\nlinux /bascule/{slot.value}/linux\n")
    (root / ENTRIES).mkdir(parents=True)
    (root / "EFI").mkdir()
    return root


def random_entries(chance: random.Random) -> Mapping[str, bytes]:
    """Return entries of both slots and of others, none twice but for its counter."""
    found = {}
    for stem in chance.sample(["bascule-a", "bascule-b", "rescue", "debian-6.1", "debian-6.10"], 4):
        counter = chance.choice(["", "", "+3", "+2-1", "+0-3", "+1-9"])
        text = f"linux /bascule/{chance.choice('ab')}/linux\n{chance.choice(KEYS)}"
        version = chance.choice(["", "version 1\n", "version 2\n", "version 10\n"])
        found[f"{stem}{counter}.conf"] = (text + version).encode()
    return found


def test_entries_have_the_order_that_bootctl_shows(disk: Path, tmp_path: Path) -> None:
    chance = random.Random(11)
    for _ in range(25):
        for old in (disk / ENTRIES).iterdir():
            old.unlink()
        files = random_entries(chance)
        for name, content in files.items():
            (disk / ENTRIES / name).write_bytes(content)
        ours = [entry.name.file for entry in entries(files, lambda _path: True)]
        assert listed(tmp_path) == ours, files


def test_what_the_keeper_writes_is_what_bootctl_reads(disk: Path, tmp_path: Path) -> None:
    control = SystemdBootEntries(BootFolder(disk))
    control.confirm(A)
    control.arm(B, tries=3)
    assert listed(tmp_path) == ["bascule-b+3.conf", "bascule-a.conf"]
    control.confirm(B)
    assert listed(tmp_path) == ["bascule-b.conf", "bascule-a.conf"]
    control.arm(A, tries=1)
    assert listed(tmp_path) == ["bascule-a+1.conf", "bascule-b.conf"]
    control.reject(A)
    assert listed(tmp_path) == ["bascule-b.conf"]
