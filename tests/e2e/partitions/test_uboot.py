"""A real U-Boot as the judge of our script, its model and its keeper; libubootenv of the bytes."""

from __future__ import annotations

import random
import re
import subprocess
from pathlib import Path

import pytest

from partitions import uboot_env, uboot_firmware
from partitions.boot.uboot import UbootEnvironment
from partitions.slots import Slot
from partitions.uboot_env import entries_of, packed
from partitions.uboot_store import UbootEnv
from tests.sim.uboot_machine import SECTOR_BYTES, UbootMachine

pytestmark = pytest.mark.e2e

A, B = Slot.A, Slot.B
ENV = "uboot.env"


def env_of(*entries: str) -> bytes:
    return packed(tuple(entry.encode() for entry in entries), SECTOR_BYTES, flag=None)


def ours(order: str, a: str, b: str) -> bytes:
    """Make an environment; a slot is written "OK,LEFT"."""
    (a_ok, a_left), (b_ok, b_left) = a.split(","), b.split(",")
    return env_of(
        f"BOOT_ORDER={order}",
        f"BOOT_a_OK={a_ok}",
        f"BOOT_a_LEFT={a_left}",
        f"BOOT_b_OK={b_ok}",
        f"BOOT_b_LEFT={b_left}",
    )


STATES = {
    "confirmed beside nothing": ours("a b", "1,0", "0,0"),
    "trial of two tries": ours("b a", "1,0", "0,2"),
    "trial of one try": ours("b a", "1,0", "0,1"),
    "trial used up": ours("b a", "1,0", "0,0"),
    "both on trial, the first used up": ours("b a", "0,9", "0,0"),
    "both confirmed": ours("b a", "1,0", "1,3"),
    "nothing bootable": ours("a b", "0,0", "0,0"),
    "confirmed but not named": env_of("BOOT_ORDER=b", "BOOT_a_OK=1"),
    "odd words": env_of("BOOT_ORDER=c  b\ta", "BOOT_b_OK=1 2", "BOOT_b_LEFT=10", "BOOT_a_LEFT=1"),
    "others' variables and names twice": env_of(
        "#BOOT_a_OK=1", " BOOT_a_OK=\\0", "x=1", "BOOT_ORDER=b a", "BOOT_b_LEFT=3", "BOOT_b_LEFT=7"
    ),
    "no variables": env_of(),
}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> UbootMachine:
    return UbootMachine.make(tmp_path_factory.mktemp("uboot"), ours("a b", "1,0", "0,0"))


def started(console: str) -> str | None:
    """Return the slot that our kernel was started with, by its command line and its initrd."""
    found = re.findall(r"^bascule\.slot=(\w) .*\ninitrd of slot (\w)$", console, re.MULTILINE)
    assert len(found) <= 1
    assert all(slot == initrd for slot, initrd in found)
    return found[0][0] if found else None


def changed_sectors(before: bytes, after: bytes) -> list[int]:
    return [
        at
        for at in range(0, len(before), SECTOR_BYTES)
        if before[at : at + SECTOR_BYTES] != after[at : at + SECTOR_BYTES]
    ]


@pytest.mark.parametrize("name", STATES)
def test_u_boot_chooses_and_counts_as_the_model_does(machine: UbootMachine, name: str) -> None:
    machine.put(ENV, STATES[name])
    place, before = machine.offset_of(STATES[name]), machine.disk.read_bytes()
    chosen, saved = uboot_firmware.choose(UbootEnv.of([STATES[name]]))
    console = machine.boot()
    assert started(console) == (chosen.value if chosen else None), console
    assert machine.get(ENV) == saved.copies[0]
    assert chosen or "neither slot may boot" in console
    # In place, and no other sector: a cut leaves the environment before, or the one after.
    counted = saved.copies[0] != STATES[name]
    assert changed_sectors(before, machine.disk.read_bytes()) == ([place] if counted else [])


def test_a_trial_by_our_keeper_boots_its_tries_and_then_the_old_slot(
    machine: UbootMachine,
) -> None:
    env = ours("a b", "1,0", "0,0")
    machine.put(ENV, env)
    config = machine.disk.with_name("fw_env.config")
    config.write_text(f"{machine.disk} {machine.offset_of(env):#x} 0x200\n")
    UbootEnvironment(config, booted=A).arm(B, tries=2)
    assert [started(machine.boot()) for _ in range(3)] == ["b", "b", "a"]
    UbootEnvironment(config, booted=A).confirm(B)
    assert started(machine.boot()) == "b"


@pytest.mark.parametrize(
    "env",
    [
        ours("a b", "1,0", "1,0").replace(b"BOOT_a_OK=1", b"BOOT_a_OK=2"),
        ours("a b", "1,0", "1,0")[:511],
        ours("a b", "1,0", "1,0") + bytes(512),
        bytes(512),
        None,
    ],
    ids=["torn", "shorter", "longer", "zeros", "missing"],
)
def test_without_a_whole_environment_no_slot_is_started_and_nothing_written(
    machine: UbootMachine, env: bytes | None
) -> None:
    machine.put(ENV, env or b"")
    if env is None:
        machine.remove(ENV)
    before = machine.disk.read_bytes()
    console = machine.boot()
    assert started(console) is None
    assert "no whole environment in uboot.env" in console
    assert machine.disk.read_bytes() == before


def test_a_trial_that_cannot_be_counted_is_passed_over(machine: UbootMachine) -> None:
    machine.put(ENV, ours("b a", "1,0", "0,3"))
    console = machine.boot(readonly=True)
    assert started(console) == "a"
    assert "slot b is passed over" in console


@pytest.mark.parametrize("name", ["linux", "initrd"])
def test_a_slot_that_does_not_load_costs_a_try_and_the_next_is_started(
    machine: UbootMachine, name: str
) -> None:
    env = ours("b a", "1,0", "0,3")
    machine.put(ENV, env)
    kept = machine.get(f"bascule/b/{name}")
    machine.remove(f"bascule/b/{name}")
    try:
        console = machine.boot()
    finally:
        machine.put(f"bascule/b/{name}", kept)
    assert started(console) == "a"
    assert "slot b does not start" in console
    values = uboot_env.variables(entries_of(machine.get(ENV), double=False), double=False)
    assert values[b"BOOT_b_LEFT"] == b"2"


def test_a_kernel_that_is_none_makes_the_machine_start_anew(machine: UbootMachine) -> None:
    machine.put(ENV, ours("a b", "1,0", "0,0"))
    kept = machine.get("bascule/a/linux")
    machine.put("bascule/a/linux", bytes(4096))
    try:
        console = machine.boot()
    finally:
        machine.put("bascule/a/linux", kept)
    assert started(console) is None
    assert "slot a does not start\nresetting" in console
