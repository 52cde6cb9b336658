"""The keeper in GRUB's environment: one sector, in place, and everybody else's lines stay.

What every keeper promises is in `test_boot_contract.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from partitions.boot import Places, open_boot_control
from partitions.boot.control import BootControl, SlotState
from partitions.boot.grubenv import GrubEnvironment, edited, store
from partitions.errors import (
    BootControlError,
    DeviceOpenError,
    GrubenvCrowdedError,
    GrubenvInvalidError,
)
from partitions.grub_block import EMPTY_BLOCK, SIGNATURE, filled, lines, variables
from partitions.grub_firmware import GrubMemory
from partitions.slots import Slot
from tests.sim.gpt_disk import Flush, MemoryDisk, Write

A, B = Slot.A, Slot.B
OURS = b"ORDER=A B\nA_OK=1\nA_TRY=0\nB_OK=0\nB_TRY=0\n"
FILLER = b"# " + b"f" * 597 + b"\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "grubenv"


def keep(file: Path, *body: bytes) -> BootControl:
    file.write_bytes(filled(SIGNATURE + b"".join(body)))
    return GrubEnvironment(file, booted=A)


class TestWhatIsWritten:
    def test_each_verb_sets_the_variables_that_the_script_reads(self, file: Path) -> None:
        control = keep(file, OURS)
        control.arm(B, tries=3)
        armed = b"ORDER=B A\nA_OK=1\nA_TRY=0\nB_OK=0\nB_TRY=3\n"
        assert file.read_bytes() == filled(SIGNATURE + armed)
        control.confirm(B)
        confirmed = b"ORDER=B A\nA_OK=1\nA_TRY=0\nB_OK=1\nB_TRY=0\n"
        assert file.read_bytes() == filled(SIGNATURE + confirmed)
        control.reject(B)
        assert file.read_bytes() == filled(SIGNATURE + OURS)
        control.arm(B, tries=9)
        control.disarm(B)
        disarmed = OURS.replace(b"A B", b"B A")
        assert file.read_bytes() == filled(SIGNATURE + disarmed)

    def test_an_empty_environment_gets_them_first(self, file: Path) -> None:
        keep(file).confirm(A)
        assert file.read_bytes() == filled(SIGNATURE + OURS)

    def test_the_file_keeps_its_place_on_the_disk(self, file: Path) -> None:
        control = keep(file, OURS)
        before = file.stat().st_ino
        control.arm(B, tries=1)
        assert file.stat().st_ino == before
        assert [name.name for name in file.parent.iterdir()] == [file.name]

    def test_it_is_one_write_and_one_flush(self) -> None:
        disk = MemoryDisk(bytearray(EMPTY_BLOCK))
        store(disk, filled(SIGNATURE + OURS))
        assert disk.log == [Write(0, filled(SIGNATURE + OURS)), Flush()]

    def test_lines_of_others_stay_as_they_are_and_in_their_order(self, file: Path) -> None:
        others = (b"# note\n", b"saved_entry=x\\\\y\n", b"odd=a\\\nb\n", b"next_entry=\n")
        control = keep(file, *others[:2], OURS, *others[2:])
        control.arm(B, tries=2)
        ours = [line for line in lines(file.read_bytes()) if line not in others]
        assert tuple(line for line in lines(file.read_bytes()) if line in others) == others
        assert len(ours) == 5

    def test_a_line_without_equals_no_longer_spoils_the_next(self, file: Path) -> None:
        control = keep(file, b"rubbish\n", OURS, b"rubbish\n", b"other=1\n")
        control.confirm(A)
        assert file.read_bytes() == filled(SIGNATURE + OURS + b"other=1\n")

    def test_a_torn_last_line_is_left_out(self, file: Path) -> None:
        control = keep(file, OURS, b"other=1\n", b"torn=")
        control.confirm(A)
        assert file.read_bytes() == filled(SIGNATURE + OURS + b"other=1\n")

    def test_a_variable_that_stands_there_twice_stands_there_once(self, file: Path) -> None:
        control = keep(file, OURS, b"B_TRY=7\n")
        assert control.read().slots[B].tries_left == 7  # as GRUB loads it
        control.arm(B, tries=7)  # else GRUB would count the first and load the second for ever
        assert file.read_bytes().count(b"B_TRY=") == 1


class TestOneSector:
    def test_variables_behind_long_lines_are_changed_where_they_stand(self, file: Path) -> None:
        control = keep(file, FILLER, OURS)
        before = file.read_bytes()
        control.arm(B, tries=4)
        assert file.read_bytes()[:512] == before[:512]
        assert control.read().target is B

    def test_long_lines_behind_them_do_not_matter(self, file: Path) -> None:
        control = keep(file, OURS, FILLER)
        before = file.read_bytes()
        control.arm(B, tries=4)
        assert file.read_bytes()[512:] == before[512:]

    def test_variables_in_both_sectors_are_not_touched(self, file: Path) -> None:
        first, second = OURS[:17], OURS[17:]
        control = keep(file, first, FILLER, second)
        before = file.read_bytes()
        with pytest.raises(
            GrubenvCrowdedError, match="within one sector of 512 bytes; the block u"
        ):
            control.confirm(B)
        assert file.read_bytes() == before

    def test_a_second_line_of_the_same_name_is_not_left_behind_with_the_same_value(
        self, file: Path
    ) -> None:
        control = keep(file, FILLER, OURS, b"B_TRY=4\n")
        with pytest.raises(GrubenvCrowdedError):
            control.arm(B, tries=4)

    def test_a_change_within_one_of_the_two_sectors_is_made(self, file: Path) -> None:
        control = keep(file, OURS[:17], FILLER, OURS[17:].replace(b"B_OK=0", b"B_OK=1"))
        control.disarm(B)
        assert not control.read().slots[B].armed

    def test_a_block_without_room_is_not_touched(self, file: Path) -> None:
        control = keep(file, b"x=" + b"y" * 980 + b"\n")
        before = file.read_bytes()
        with pytest.raises(GrubenvCrowdedError):
            control.confirm(A)
        assert file.read_bytes() == before


class TestReading:
    def test_a_slot_that_the_order_does_not_name_is_not_armed_by_arming_the_other(
        self, file: Path
    ) -> None:
        control = keep(file, OURS.replace(b"A B", b"B  "))
        assert control.read().target is None
        control.arm(B, tries=1)
        assert control.read().slots[A] == SlotState(armed=False, tries_left=0, confirmed=False)
        assert variables(file.read_bytes())[b"A_OK"] == b"0"

    def test_a_value_that_the_script_does_not_understand_does_not_boot(self, file: Path) -> None:
        control = keep(file, OURS.replace(b"A_OK=1", b"A_OK=true"))
        assert not control.read().slots[A].armed

    def test_a_trial_that_grub_could_not_count_is_not_armed(self, file: Path) -> None:
        control = keep(file, OURS.replace(b"B_TRY=0", b"B_TRY=3"), b"torn")
        assert not control.read().slots[B].armed
        assert control.read().slots[A].armed


class TestWhatCannotBeUsed:
    def test_a_missing_file(self, file: Path) -> None:
        with pytest.raises(DeviceOpenError, match="grubenv cannot be opened: No such file"):
            GrubEnvironment(file).read()

    @pytest.mark.parametrize("verb", ["read", "confirm"])
    def test_a_file_that_is_no_environment(self, file: Path, verb: str) -> None:
        file.write_bytes(b"\0" * 1024)
        control = GrubEnvironment(file)
        with pytest.raises(GrubenvInvalidError):
            control.read() if verb == "read" else control.confirm(A)
        assert file.read_bytes() == b"\0" * 1024

    def test_the_keeper_without_the_path_of_its_file(self, tmp_path: Path) -> None:
        with pytest.raises(BootControlError, match="needs the path of GRUB's environment"):
            open_boot_control("grubenv", Places(disk=tmp_path, layout={}))

    def test_tries_that_one_digit_cannot_count(self, file: Path) -> None:
        with pytest.raises(BootControlError, match="10 tries for slot b are not in 1 to 9"):
            keep(file, OURS).arm(B, tries=10)


def test_bringing_them_to_the_front_is_done_once() -> None:
    memory = GrubMemory()
    once = edited(filled(SIGNATURE + b"x=1\n"), memory.values)
    assert edited(once, memory.values) == once
