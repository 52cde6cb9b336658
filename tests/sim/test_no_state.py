"""The reference OS without its state: the shipped script, told by the real `bascule slots`.

It must give back a slot on trial, and must not reboot a confirmed one for ever.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from images.reference import system
from partitions.boot import KEEPERS
from partitions.slots import Slot
from tests.sim.lives import due_now
from tests.sim.world import World, run_until
from updater import shown
from updater.engine import Engine

SCRIPT: Final = system.HERE / "system/usr/lib/bascule/no-state"
ALL_STEPS: Final = ["reboot", "reboot --force", "reboot --force --force"]


@pytest.fixture(params=["dash", "bash"])
def shell(request: pytest.FixtureRequest) -> str:
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed (package {request.param})")
    return str(request.param)


def asked_of_systemctl(folder: Path, shell: str, bascule: str) -> list[str]:
    """Run the script where `bascule` is this one; `systemctl` and `sleep` note and do nothing."""
    programs = {
        "bascule": f'[ "$*" = "--direct slots --json" ] || exit 2\n{bascule}',
        "systemctl": f'echo "$*" >>{folder}/calls',
        "sleep": "",
    }
    (folder / "bin").mkdir()
    for name, script in programs.items():
        path = folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    (folder / "calls").write_text("")
    environment = {"PATH": f"{folder}/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    subprocess.run([shell, SCRIPT], env=environment, check=False, capture_output=True, timeout=120)
    return (folder / "calls").read_text().splitlines()


def printed(world: World, *, backwards: bool = False) -> str:
    """Return a script that prints what `bascule slots --json` does on a node, in either order."""
    facts = world.folder / "slots.json"
    rows = shown.slots(world.node())
    facts.write_text(json.dumps(rows[::-1] if backwards else rows, indent=2))
    return f"cat {facts}"


@pytest.fixture(params=KEEPERS)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    folder = tmp_path / "world"
    with World(folder, image_size=512 * 1024, boot_control=request.param) as made:
        run_until(Engine(node=made.boot()), "idle")
        yield made


@pytest.mark.parametrize("backwards", [False, True])
def test_a_confirmed_slot_is_left_alone(world: World, tmp_path: Path, *, backwards: bool) -> None:
    assert asked_of_systemctl(tmp_path, "sh", printed(world, backwards=backwards)) == []


@pytest.mark.parametrize("backwards", [False, True])
def test_a_slot_on_trial_is_given_back(world: World, tmp_path: Path, *, backwards: bool) -> None:
    world.release("2.0.0", rollback_index=2)
    due_now(world)
    run_until(Engine(node=world.node()), "rebooting")
    world.boot()
    assert world.node().boot().slot is Slot.B
    assert asked_of_systemctl(tmp_path, "sh", printed(world, backwards=backwards)) == ALL_STEPS


@pytest.mark.parametrize("bascule", ["exit 127", "echo '[]'", "echo 'error: no disk' >&2; exit 1"])
def test_a_slot_whose_loader_cannot_be_asked_is_given_back(
    bascule: str, tmp_path: Path, shell: str
) -> None:
    assert asked_of_systemctl(tmp_path, shell, bascule) == ALL_STEPS
