"""The keeper in the firmware's variables, its model, and the files that hold them.

What every keeper promises is in `test_boot_contract.py`; each cut of the power is in
`tests/sim/test_efi_power_cuts.py`, `efibootmgr` in tests/e2e/partitions.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from partitions.boot.control import SlotState
from partitions.boot.efi import EfiBootEntries
from partitions.efi_firmware import (
    BOOT_NEXT,
    BOOT_ORDER,
    BootOption,
    FirmwareMemory,
    boot,
    description_of,
    numbers,
    packed,
)
from partitions.efi_variables import GLOBAL, EfiVariables
from partitions.errors import (
    BootControlError,
    EfiEntryError,
    EfiVariableError,
    NothingBootableError,
)
from partitions.slots import Slot
from tests.sim.efi import VariablesSim, boot_option
from tests.sim.gpt_tools import program

A, B = Slot.A, Slot.B
SHELL = 3
NOT_ARMED = SlotState(armed=False, tries_left=0, confirmed=False)


def firmware(*order: int, once: int | None = None, **more: bytes) -> VariablesSim:
    """Return variables with slot A as Boot0000, slot B as Boot0001, the shell as Boot0003."""
    values = {
        "Boot0000": boot_option(description_of(A)),
        "Boot0001": boot_option(description_of(B)),
        "Boot0003": boot_option("UEFI Shell"),
        "Timeout": b"\x05\x00",
        BOOT_ORDER: packed(order),
        **more,
    }
    return VariablesSim(values if once is None else {**values, BOOT_NEXT: packed([once])})


def order_of(variables: VariablesSim) -> tuple[int, ...]:
    return numbers(variables.values.get(BOOT_ORDER, b""))


class TestTheVerbs:
    def test_an_update_and_the_next(self) -> None:
        variables = firmware(0, SHELL)
        control = EfiBootEntries(variables, booted=A)
        control.disarm(B)
        assert not variables.cuts
        control.arm(B, tries=1)
        assert variables.values[BOOT_NEXT] == b"\x01\x00"
        assert order_of(variables) == (0, SHELL)
        variables.remove(BOOT_NEXT)
        control = EfiBootEntries(variables, booted=B)
        assert control.read().slots[B] == NOT_ARMED
        control.confirm(B)
        assert order_of(variables) == (1, 0, SHELL)
        control.disarm(A)
        assert order_of(variables) == (1, SHELL)

    def test_to_go_back_is_a_trial_of_what_was_confirmed(self) -> None:
        variables = firmware(1, 0, SHELL)
        EfiBootEntries(variables, booted=B).arm(A, tries=1)
        assert (order_of(variables), variables.values[BOOT_NEXT]) == ((1, SHELL), b"\x00\x00")

    def test_others_come_behind_in_their_order(self) -> None:
        variables = firmware(SHELL, 0, 9, 1, 2)
        control = EfiBootEntries(variables)
        assert control.read().target is None
        control.confirm(B)
        assert order_of(variables) == (1, 0, SHELL, 9, 2)
        control.confirm(A)
        assert order_of(variables) == (0, 1, SHELL, 9, 2)

    def test_what_a_trial_falls_back_to_comes_before_others(self) -> None:
        variables = firmware(SHELL, 0)
        EfiBootEntries(variables, booted=A).arm(B, tries=1)
        assert order_of(variables) == (0, SHELL)

    def test_a_person_who_wants_another_system_once_gets_it(self) -> None:
        variables = firmware(0, 1, SHELL, once=SHELL)
        control = EfiBootEntries(variables, booted=A)
        control.confirm(A)
        control.disarm(B)
        assert variables.values[BOOT_NEXT] == packed([SHELL])

    def test_without_an_order_there_is_no_variable(self) -> None:
        variables = firmware(0)
        EfiBootEntries(variables).arm(A, tries=1)
        assert BOOT_ORDER not in variables.values

    def test_a_second_trial_would_end_the_first_one(self) -> None:
        variables = firmware(once=0)
        with pytest.raises(BootControlError, match="BootNext holds the trial of a"):
            EfiBootEntries(variables).arm(B, tries=1)

    def test_more_than_one_try_is_not_promised(self) -> None:
        with pytest.raises(BootControlError, match="2 tries for slot b: BootNext counts one"):
            EfiBootEntries(firmware(0)).arm(B, tries=2)


class TestAnEntryThatTheFirmwareAppends:
    """Some firmware puts every valid boot entry back at the end of BootOrder."""

    def test_does_not_confirm_the_trial_under_way(self) -> None:
        control = EfiBootEntries(firmware(0, SHELL, 1), booted=B)
        state = control.read()
        assert state.target is A
        assert state.slots[A] == SlotState(armed=True, tries_left=0, confirmed=True)
        assert state.slots[B] == SlotState(armed=True, tries_left=0, confirmed=False)

    def test_goes_with_the_trial_that_failed(self) -> None:
        variables = firmware(0, SHELL, 1)
        EfiBootEntries(variables, booted=B).reject(B)
        assert order_of(variables) == (0, SHELL)

    def test_comes_first_when_it_is_confirmed(self) -> None:
        variables = firmware(0, SHELL, 1)
        control = EfiBootEntries(variables, booted=B)
        control.confirm(B)
        assert order_of(variables) == (1, 0, SHELL)
        assert all(state.confirmed for state in control.read().slots.values())

    def test_is_on_trial_when_its_try_is_given_back(self) -> None:
        state = EfiBootEntries(firmware(0, SHELL, 1, once=1), booted=B).read()
        assert state.target is B
        assert state.slots[B] == SlotState(armed=True, tries_left=1, confirmed=False)

    def test_behind_the_booted_one_is_what_it_falls_back_to(self) -> None:
        state = EfiBootEntries(firmware(1, 0, SHELL), booted=B).read()
        assert state.slots[A] == SlotState(armed=True, tries_left=0, confirmed=True)
        assert state.slots[B] == SlotState(armed=True, tries_left=0, confirmed=True)

    def test_behind_somebody_elses_alone_is_confirmed(self) -> None:
        assert EfiBootEntries(firmware(SHELL, 1), booted=B).read().slots[B].confirmed


class TestEntries:
    def test_an_empty_mount_point_is_no_firmware_that_remembers_nothing(self) -> None:
        with pytest.raises(EfiVariableError, match="not mounted"):
            EfiBootEntries(VariablesSim({BOOT_ORDER: packed([0])})).read()
        state = EfiBootEntries(VariablesSim({"Boot0003": boot_option("UEFI Shell")})).read()
        assert state.slots == dict.fromkeys(Slot, NOT_ARMED)

    def test_a_slot_without_an_entry_is_not_armed_and_refused(self) -> None:
        variables = firmware(0, 1, Boot0001=b"")
        control = EfiBootEntries(variables, booted=A)
        assert control.read().slots[B] == NOT_ARMED
        for verb in (control.disarm, control.confirm, lambda slot: control.arm(slot, tries=1)):
            with pytest.raises(
                EfiEntryError, match=r"^0 boot entries are called 'bascule-b'"
            ) as no:
                verb(B)
            assert "efibootmgr --create-only" in no.value.hint
        control.confirm(A)

    def test_two_entries_of_a_slot_are_one_too_many(self) -> None:
        variables = firmware(0, Boot0007=boot_option("bascule-b"))
        with pytest.raises(EfiEntryError, match=r"^2 boot entries are called 'bascule-b'"):
            EfiBootEntries(variables).arm(B, tries=1)

    def test_an_entry_that_is_not_active_is_not_armed_and_refused(self) -> None:
        variables = firmware(1, 0, Boot0001=boot_option("bascule-b", active=False))
        control = EfiBootEntries(variables)
        assert control.read().target is A
        assert control.read().slots[B] == NOT_ARMED
        with pytest.raises(EfiEntryError, match=r"^Boot0001 'bascule-b' is not active"):
            control.confirm(B)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("BootOrder", boot_option("x")),
            ("Boot00a1", boot_option("x")),
            ("Boot0001", b"\x01\x00\x00"),
            ("Boot0001", boot_option("x")[:8]),
        ],
    )
    def test_other_variables_are_no_entries(self, name: str, value: bytes) -> None:
        assert BootOption.parse(name, value) is None

    def test_an_entry_is_read(self) -> None:
        option = BootOption.parse("Boot001A", boot_option("bascule-b"))
        assert option == BootOption(0x1A, "bascule-b", active=True)
        assert option.slot is B


class TestTheModel:
    def put(self, folder: Path, *order: int, once: int | None = None) -> EfiVariables:
        variables = EfiVariables(folder)
        for name, value in firmware(*order, once=once).values.items():
            variables.write(name, value)
        return variables

    def test_boot_next_counts_once(self, tmp_path: Path) -> None:
        self.put(tmp_path, 0, SHELL, once=1)
        assert [boot(tmp_path) for _ in range(3)] == [B, A, A]

    def test_entries_that_are_gone_or_not_active_are_passed_over(self, tmp_path: Path) -> None:
        variables = self.put(tmp_path, 9, 1, 0, once=9)
        variables.write("Boot0001", boot_option("bascule-b", active=False))
        assert boot(tmp_path) is A

    def test_boot_next_starts_an_entry_that_is_not_active(self, tmp_path: Path) -> None:
        variables = self.put(tmp_path, 1, once=0)  # seen with OVMF 2022.11
        variables.write("Boot0000", boot_option("bascule-a", active=False))
        state = EfiBootEntries(variables).read()
        assert (state.target, state.slots[A].tries_left) == (A, 1)
        assert [boot(tmp_path) for _ in range(2)] == [A, B]

    def test_somebody_elses_entry_is_no_slot(self, tmp_path: Path) -> None:
        self.put(tmp_path, SHELL, 0)
        with pytest.raises(NothingBootableError, match="starts Boot0003 'UEFI Shell', of no slot"):
            boot(tmp_path)

    def test_without_an_order_nothing_boots(self, tmp_path: Path) -> None:
        self.put(tmp_path, 0).remove(BOOT_ORDER)
        with pytest.raises(NothingBootableError, match="neither BootNext nor BootOrder"):
            boot(tmp_path)

    @pytest.mark.parametrize("once", [b"", b"\x01", b"\x01\x00\x00"])
    def test_a_boot_next_of_another_length_is_none(self, once: bytes) -> None:
        memory = FirmwareMemory.of(VariablesSim({**firmware(0).values, BOOT_NEXT: once}))
        assert memory.once is None
        assert memory.next
        assert memory.next.slot is A


def set_again(variables: EfiVariables, name: str) -> None:
    variables.write(name, b"\x02\x00")


class TestTheFiles:
    def test_a_file_has_four_bytes_of_attributes_before_the_value(self, tmp_path: Path) -> None:
        EfiVariables(tmp_path).write(BOOT_NEXT, b"\x01\x00")
        file = tmp_path / f"BootNext-{GLOBAL}"
        assert file.read_bytes() == b"\x07\x00\x00\x00\x01\x00"

    def test_attributes_stay_and_a_shorter_value_is_the_whole_value(self, tmp_path: Path) -> None:
        file = tmp_path / f"BootOrder-{GLOBAL}"
        file.write_bytes(b"\x27\x00\x00\x00" + packed([1, 2, 3]))
        variables = EfiVariables(tmp_path)
        variables.write(BOOT_ORDER, packed([2]))
        assert file.read_bytes() == b"\x27\x00\x00\x00\x02\x00"
        assert variables.read(BOOT_ORDER) == b"\x02\x00"

    def test_it_is_one_write(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        writes: list[bytes] = []
        write = os.write

        def counted(descriptor: int, data: bytes) -> int:
            writes.append(data)
            return write(descriptor, data)

        monkeypatch.setattr(os, "write", counted)
        EfiVariables(tmp_path).write(BOOT_ORDER, packed(range(20)))
        assert writes == [b"\x07\x00\x00\x00" + packed(range(20))]

    def test_variables_of_other_vendors_are_not_listed(self, tmp_path: Path) -> None:
        (tmp_path / "LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f").write_bytes(bytes(6))
        EfiVariables(tmp_path).write("Timeout", b"\x01\x00")
        assert EfiVariables(tmp_path).names() == ["Timeout"]

    def test_a_variable_is_removed_once_and_again(self, tmp_path: Path) -> None:
        variables = EfiVariables(tmp_path)
        variables.write(BOOT_NEXT, b"\x01\x00")
        for _ in range(2):
            variables.remove(BOOT_NEXT)
            assert variables.read(BOOT_NEXT) is None

    def test_a_protected_variable_is_changed_and_removed(self, tmp_path: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip("the flag that protects a file needs root")
        variables = EfiVariables(tmp_path)
        variables.write(BOOT_NEXT, b"\x01\x00")
        file = tmp_path / f"BootNext-{GLOBAL}"
        for change in (set_again, EfiVariables.remove):
            done = subprocess.run(
                [program("chattr"), "+i", str(file)], check=False, capture_output=True
            )
            if done.returncode:
                pytest.skip("this file system has no such flag")
            try:
                change(variables, BOOT_NEXT)
            finally:
                subprocess.run(
                    [program("chattr"), "-i", str(file)], check=False, capture_output=True
                )
        assert variables.names() == []

    def test_a_file_too_short_for_a_variable_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / f"BootNext-{GLOBAL}").write_bytes(b"\x07")
        with pytest.raises(EfiVariableError, match="has 1 bytes, it is no variable"):
            EfiVariables(tmp_path).read(BOOT_NEXT)

    def test_without_a_mounted_efivarfs_the_path_is_named(self, tmp_path: Path) -> None:
        variables = EfiVariables(tmp_path / "efivars")
        with pytest.raises(EfiVariableError, match="efivars: No such file"):
            variables.names()
        with pytest.raises(EfiVariableError, match=r"BootNext-.*: No such file"):
            variables.write(BOOT_NEXT, b"\x01\x00")

    def test_what_the_firmware_does_not_keep_is_an_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "write", lambda _descriptor, data: len(data))
        with pytest.raises(EfiVariableError, match=r"no variable|does not keep"):
            EfiVariables(tmp_path).write(BOOT_NEXT, b"\x01\x00")
