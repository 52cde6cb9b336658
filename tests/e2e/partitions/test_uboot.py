"""A real U-Boot as the judge of our script, its model and its keeper; libubootenv of the bytes."""

from __future__ import annotations

import random
import re
import subprocess
from pathlib import Path

import pytest

from partitions import uboot_env, uboot_firmware
from partitions.boot.uboot import UbootEnvironment
from partitions.errors import UbootInvalidError
from partitions.slots import Slot
from partitions.uboot_env import CopyPlace, entries_of, packed, with_values
from partitions.uboot_firmware import boot
from partitions.uboot_store import UbootEnv, load, places_of
from tests.sim.gpt_tools import bare_loop_device
from tests.sim.uboot_machine import SECTOR_BYTES, UbootMachine, program

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
    "odd words": env_of("BOOT_ORDER=c  b\na", "BOOT_b_OK=1 2", "BOOT_b_LEFT=10", "BOOT_a_LEFT=1"),
    "a tab between": env_of("BOOT_ORDER=b\ta", "BOOT_b_OK=1", "BOOT_a_OK=1"),
    "others' variables and names twice": env_of(
        "#BOOT_a_OK=1", " BOOT_a_OK=\\0", "x=1", "BOOT_ORDER=b a", "BOOT_b_LEFT=3", "BOOT_b_LEFT=7"
    ),
    "no variables": env_of(),
}


FORMS = {
    "file": ["{0} 0x0 0x200"],
    "file, decimal and more fields": ["# of our board", "", "{0} 512 200 0x200 1"],
    "two copies in one file": ["{0} 0x0 0x400 0x400", "{0} 02000 0x400 0x400"],
    "two files": ["{0}  0 0x400", "\t{1} 0x400 400", "{2} 0 0x400"],
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


def test_with_saveenv_the_variables_are_u_boots_own_and_the_file_is_left_alone(
    machine: UbootMachine,
) -> None:
    """This U-Boot has no saveenv, so a trial cannot be counted; a confirmed slot needs none."""
    machine.put(ENV, ours("b a", "0,0", "1,0"))
    before = machine.disk.read_bytes()
    own = 'setenv bascule_store saveenv; setenv BOOT_ORDER "b a"; setenv BOOT_a_OK 1; '
    console = machine.boot(first=own + "setenv BOOT_b_LEFT 3; ")
    assert started(console) == "a"
    assert "slot b is passed over" in console
    assert machine.disk.read_bytes() == before


def test_the_defaults_of_the_script_are_not_in_the_environment_that_saveenv_keeps(
    machine: UbootMachine,
) -> None:
    """Else a later script, of a later version, could not have others."""
    machine.put(ENV, ours("a b", "0,0", "0,0"))
    console = machine.boot(first="run bootcmd_virtio0; printenv; ")
    assert "neither slot may boot" in console.partition("bootcmd_virtio0=")[0]
    assert re.findall(r"^bascule_\w+=", console, re.MULTILINE) == []


def test_what_a_board_sets_comes_before_the_defaults(machine: UbootMachine) -> None:
    machine.put(ENV, ours("a b", "1,0", "0,0"))
    own = "zboot ${bascule_kernel} ${bascule_size} ${bascule_initrd} ${filesize}"
    console = machine.boot(
        first=f"setenv bascule_start '{own}'; setenv bascule_args one two; "
        "setenv bascule_kernel 0x1100000; "
    )
    assert started(console) == "a"
    assert re.search(r"^bascule\.slot=a one two$", console, re.MULTILINE)


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


class TestLibubootenv:
    """`fw_setenv` and `fw_printenv` on the same bytes as ours, from random states."""

    @pytest.fixture(params=FORMS)
    def config(self, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
        program("fw_setenv")
        files = [tmp_path / name for name in ("env", "redundant", "unread")]
        for file in files:
            file.write_bytes(bytes(4096))
        config = tmp_path / "fw_env.config"
        config.write_text("\n".join(FORMS[request.param]).format(*files) + "\n")
        return config

    def test_reads_what_we_write_and_writes_what_we_read(self, config: Path) -> None:
        chance = random.Random(4)
        places = places_of(config)
        for _ in range(40):
            self._scramble(places, chance)
            try:
                env = load(places)
            except UbootInvalidError:
                assert self._printed(config) is None
                continue
            assert self._printed(config) == env.values
            name = chance.choice(["x", "BOOT_ORDER", "BOOT_b_LEFT"])
            value = str(chance.randrange(1000))
            self._run("fw_setenv", "-c", str(config), name, value)
            wanted = env.holding(with_values(env.entries, {name.encode(): value.encode()}))
            found = load(places)
            assert found.values == wanted.values
            assert found.active == wanted.active
            if found.is_double:
                assert [copy[4] for copy in found.copies] == [copy[4] for copy in wanted.copies]
                assert found.copies[env.active] == env.copies[env.active]

    def test_our_keeper_and_fw_setenv_take_turns(self, config: Path) -> None:
        places = places_of(config)
        self._store(places, 0, 254)
        control = UbootEnvironment(config)
        control.confirm(A)
        for turn in range(6):  # over the end of the flag
            self._run("fw_setenv", "-c", str(config), "BOOT_b_LEFT", str(turn + 1))
            assert control.read().slots[B].tries_left == turn + 1
            control.arm(B, tries=9 - turn)
            printed = self._printed(config)
            assert printed is not None
            assert printed[b"BOOT_b_LEFT"] == b"%d" % (9 - turn)
            assert printed[b"x"] == b"of others"

    def test_two_copies_at_the_end_of_a_block_device(self, tmp_path: Path) -> None:
        program("fw_setenv")
        disk, config = tmp_path / "disk", tmp_path / "fw_env.config"
        disk.write_bytes(bytes(1024 * 1024))
        with bare_loop_device(disk) as device:
            config.write_text(f"{device} -0x4000 0x2000\n{device} -0x2000 0x2000\n")
            first = tmp_path / "first"
            first.write_text("BOOT_ORDER=a b\nBOOT_a_OK=1\nx=of others\n")
            self._run("fw_setenv", "-c", str(config), "-f", str(first), "y", "1")
            control = UbootEnvironment(config, booted=A)
            assert control.read().target is A
            control.arm(B, tries=3)
            printed = self._printed(config)
            assert printed is not None
            assert (printed[b"BOOT_b_LEFT"], printed[b"x"]) == (b"3", b"of others")
            assert boot(config) is B
            assert self._printed(config) == {**printed, b"BOOT_b_LEFT": b"2"}
        assert disk.read_bytes()[:-0x4000] == bytes(1024 * 1024 - 0x4000)

    def _scramble(self, places: tuple[CopyPlace, ...], chance: random.Random) -> None:
        for at in range(len(places)):
            if chance.random() < 0.8:
                self._store(places, at, chance.choice([0, 1, 2, 127, 128, 254, 255]))
            if chance.random() < 0.2:
                with places[at].path.open("r+b") as file:
                    file.seek(places[at].offset + chance.randrange(100))
                    file.write(b"?")

    def _store(self, places: tuple[CopyPlace, ...], at: int, flag: int) -> None:
        entries = (b"BOOT_ORDER=a b", b"BOOT_a_OK=1", b"x=of others", b"copy=%d" % at)
        double = len(places) > 1
        with places[at].path.open("r+b") as file:
            file.seek(places[at].offset)
            file.write(packed(entries, places[at].size, flag=flag if double else None))

    def _printed(self, config: Path) -> dict[bytes, bytes] | None:
        """Return what `fw_printenv` finds; nothing when it refuses."""
        done = subprocess.run(
            [program("fw_printenv"), "-c", str(config)], check=False, capture_output=True
        )
        if done.returncode:
            return None
        lines = (line.partition(b"=") for line in done.stdout.splitlines())
        return {name: value for name, _, value in lines}

    def _run(self, name: str, *arguments: str) -> None:
        subprocess.run([program(name), *arguments], check=True, capture_output=True)
