"""What every keeper of `BootControl` promises. A new keeper adds one line to `MACHINES`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from partitions.attributes import BootBits
from partitions.boot import (
    KEEPERS,
    MODELS,
    BootControl,
    Places,
    open_boot_control,
    power_on,
)
from partitions.boot.grubenv import GrubEnvironment
from partitions.errors import BootControlError, NothingBootableError, SlotBootedError
from partitions.grub_block import EMPTY_BLOCK
from partitions.slots import PartRef, Slot, SlotLayout
from partitions.systemd_boot_firmware import ENTRIES
from tests.sim import loaders
from tests.sim.boot_folder import make_partition
from tests.sim.efi import make_variables
from tests.sim.gpt_disk import two_slots

A, B = Slot.A, Slot.B
LAYOUT: SlotLayout = {A: {"usr": PartRef(label="USR-A")}, B: {"usr": PartRef(label="USR-B")}}


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine whose slot A is confirmed and whose slot B holds nothing.

    Attributes:
        control: opens the keeper; the argument is the booted slot.
        power_on: boots once and says which slot, or None when the loader stops.
        memory: all bytes that the loader's memory is kept in.
    """

    control: Callable[[Slot | None], BootControl]
    power_on: Callable[[], Slot | None]
    memory: Callable[[], bytes]


def _gptprio(folder: Path) -> Machine:
    disk = folder / "disk.img"
    proven = BootBits(priority=1, successful=True)
    disk.write_bytes(two_slots(sector_size=512, a=proven, b=BootBits()).image)
    return _machine("gptprio", Places(disk=disk, layout=LAYOUT), memory=disk)


def _grubenv(folder: Path) -> Machine:
    file = folder / "grubenv"
    file.write_bytes(EMPTY_BLOCK)
    GrubEnvironment(file).confirm(A)
    return _machine("grubenv", Places(disk=folder, layout=LAYOUT, grubenv=file), memory=file)


def _uboot_file(folder: Path) -> Machine:
    return _uboot(folder, copies=1)


def _uboot_two_copies(folder: Path) -> Machine:
    return _uboot(folder, copies=2)


def _uboot(folder: Path, *, copies: int) -> Machine:
    places = Places(disk=folder, layout=LAYOUT, uboot_config=loaders.uboot(folder, copies=copies))
    return _machine("uboot", places, memory=folder / "uboot.env")


def _custom(folder: Path) -> Machine:
    places = Places(disk=folder, layout=LAYOUT, custom_command=loaders.custom(folder))
    return _machine("custom", places, memory=folder / "memory")


def _systemd_boot(folder: Path) -> Machine:
    make_partition(folder)
    places = Places(disk=folder, layout=LAYOUT, boot_folder=folder)
    return _machine("systemd-boot", places, memory=folder / ENTRIES)


def _efi(folder: Path) -> Machine:
    make_variables(folder)
    return _machine("efi", Places(disk=folder, layout=LAYOUT, efivars=folder), memory=folder)


def _machine(name: str, places: Places, *, memory: Path) -> Machine:
    def boot() -> Slot | None:
        try:
            return power_on(name, places)
        except NothingBootableError:
            return None

    return Machine(
        control=lambda booted: open_boot_control(name, places, booted=booted),
        power_on=boot,
        memory=lambda: _bytes_of(memory),
    )


def _bytes_of(memory: Path) -> bytes:
    """Return a file, or names and content of all files of a folder."""
    if memory.is_file():
        return memory.read_bytes()
    files = sorted(memory.iterdir())
    return b"".join(b"%s\n%s\n" % (file.name.encode(), file.read_bytes()) for file in files)


MACHINES: Mapping[str, Callable[[Path], Machine]] = {
    "gptprio": _gptprio,
    "grubenv": _grubenv,
    "uboot": _uboot_file,
    "uboot, two copies": _uboot_two_copies,
    "custom": _custom,
    "systemd-boot": _systemd_boot,
    "efi": _efi,
}


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    return MACHINES[request.param](tmp_path)


@pytest.fixture
def control(machine: Machine) -> BootControl:
    return machine.control(A)


def arm(control: BootControl, slot: Slot, tries: int) -> None:
    """Arm a slot with so many tries, or as many as the loader can count."""
    control.arm(slot, tries=min(tries, control.max_tries))


VERBS: Mapping[str, Callable[[BootControl, Slot], None]] = {
    "disarm": lambda control, slot: control.disarm(slot),
    "arm": lambda control, slot: arm(control, slot, 2),
    "confirm": lambda control, slot: control.confirm(slot),
    "reject": lambda control, slot: control.reject(slot),
}


def test_each_keeper_is_under_this_contract() -> None:
    assert {name.partition(",")[0] for name in MACHINES} == set(KEEPERS) == set(MODELS)


def test_a_confirmed_slot_beside_an_empty_one_is_the_target(control: BootControl) -> None:
    state = control.read()
    assert state.target is A
    assert (state.slots[A].armed, state.slots[A].confirmed) == (True, True)
    assert (state.slots[B].armed, state.slots[B].confirmed) == (False, False)


def test_an_armed_slot_is_the_target_on_trial(control: BootControl) -> None:
    arm(control, B, 2)
    state = control.read()
    assert state.target is B
    assert (state.slots[B].armed, state.slots[B].tries_left, state.slots[B].confirmed) == (
        True,
        min(2, control.max_tries),
        False,
    )
    assert state.slots[A].confirmed


@pytest.mark.parametrize("tries", [1, 2, 3])
def test_a_trial_gets_its_tries_and_then_the_old_slot_is_back(machine: Machine, tries: int) -> None:
    if tries > machine.control(A).max_tries:
        pytest.skip(f"this loader cannot count {tries} tries")
    machine.control(A).arm(B, tries=tries)
    assert [machine.power_on() for _ in range(tries + 2)] == [B] * tries + [A, A]


def test_most_tries_that_can_be_asked_for_can_be_counted(machine: Machine) -> None:
    control = machine.control(A)
    control.arm(B, tries=control.max_tries)
    assert control.read().slots[B].tries_left == control.max_tries
    with pytest.raises(BootControlError):
        control.arm(B, tries=control.max_tries + 1)


def test_a_confirmed_slot_boots_for_ever(machine: Machine) -> None:
    machine.control(A).arm(B, tries=1)
    assert machine.power_on() is B
    machine.control(B).confirm(B)
    assert [machine.power_on() for _ in range(20)] == [B] * 20


def test_after_confirmation_the_old_slot_is_still_there_to_go_back_to(machine: Machine) -> None:
    machine.control(A).arm(B, tries=1)
    machine.power_on()
    machine.control(B).confirm(B)
    machine.control(B).reject(B)
    assert machine.power_on() is A


def test_a_disarmed_slot_never_boots(machine: Machine) -> None:
    control = machine.control(A)
    arm(control, B, 3)
    control.disarm(B)
    assert not control.read().slots[B].armed
    assert [machine.power_on() for _ in range(5)] == [A] * 5


def test_disarming_forgets_that_a_slot_was_confirmed(machine: Machine) -> None:
    control = machine.control(A)
    control.confirm(B)
    control.confirm(A)
    control.disarm(B)
    assert not control.read().slots[B].confirmed


def test_a_rejected_slot_never_boots_and_the_other_is_the_target(machine: Machine) -> None:
    arm(machine.control(A), B, 3)
    assert machine.power_on() is B
    machine.control(B).reject(B)
    assert machine.control(B).read().target is A
    assert [machine.power_on() for _ in range(5)] == [A] * 5


def test_a_trial_cut_short_by_a_person_gets_its_try_back(machine: Machine) -> None:
    machine.control(A).arm(B, tries=1)
    assert machine.power_on() is B
    machine.control(B).arm(B, tries=1)
    assert [machine.power_on() for _ in range(2)] == [B, A]


def test_a_slot_that_goes_back_by_hand_is_tried_again_with_the_other_behind_it(
    machine: Machine,
) -> None:
    machine.control(A).arm(B, tries=1)
    machine.power_on()
    machine.control(B).confirm(B)
    machine.control(B).arm(A, tries=1)
    assert [machine.power_on() for _ in range(3)] == [A, B, B]


def test_the_booted_slot_is_not_disarmed(machine: Machine) -> None:
    control = machine.control(B)
    control.confirm(B)
    before = machine.memory()
    with pytest.raises(SlotBootedError):
        control.disarm(B)
    assert machine.memory() == before


def test_the_only_bootable_slot_is_neither_disarmed_nor_rejected(machine: Machine) -> None:
    control = machine.control(None)
    before = machine.memory()
    with pytest.raises(BootControlError):
        control.disarm(A)
    with pytest.raises(BootControlError):
        control.reject(A)
    assert machine.memory() == before


def test_a_slot_is_not_rejected_when_the_other_would_not_boot(machine: Machine) -> None:
    control = machine.control(B)
    control.confirm(B)
    control.disarm(A)
    with pytest.raises(BootControlError):
        control.reject(B)
    assert control.read().target is B


@pytest.mark.parametrize("verb", VERBS)
def test_doing_it_twice_is_the_same_as_once_and_writes_nothing_more(
    machine: Machine, verb: str
) -> None:
    control = machine.control(A)
    arm(control, B, 3)
    VERBS[verb](control, B)
    state, memory = control.read(), machine.memory()
    VERBS[verb](machine.control(A), B)
    assert control.read() == state
    assert machine.memory() == memory


def test_no_order_of_verbs_makes_the_machine_unbootable(machine: Machine) -> None:
    control = machine.control(None)
    for order in itertools.product(itertools.product(VERBS, Slot), repeat=2):
        for verb, slot in order:
            try:
                VERBS[verb](control, slot)
            except BootControlError:
                continue
            assert control.read().target is not None, order
    assert machine.power_on() is not None
