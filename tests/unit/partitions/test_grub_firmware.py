"""The model of GRUB with `grub-ab.cfg`. (A real GRUB runs the script beside it in e2e.)"""

from __future__ import annotations

from pathlib import Path

import pytest

from partitions.errors import GrubenvInvalidError, NothingBootableError
from partitions.grub_block import EMPTY_BLOCK, SIGNATURE, filled, variables
from partitions.grub_firmware import GrubMemory, boot, choose
from partitions.marks import Mark
from partitions.slots import Slot

A, B = Slot.A, Slot.B


def block(order: str, a: str, b: str) -> bytes:
    """Make a block; a slot is written "OK TRY"."""
    (a_ok, a_try), (b_ok, b_try) = a.split(","), b.split(",")
    text = f"ORDER={order}\nA_OK={a_ok}\nA_TRY={a_try}\nB_OK={b_ok}\nB_TRY={b_try}\n"
    return filled(SIGNATURE + text.encode())


@pytest.mark.parametrize(
    ("order", "a", "b", "boots"),
    [
        ("A B", "1,0", "0,0", "AAA"),
        ("B A", "1,0", "0,1", "BAA"),
        ("B A", "1,0", "0,3", "BBBAA"),
        ("B A", "1,0", "1,0", "BBB"),
        ("A B", "0,2", "0,1", "AAB-"),
        ("A B", "0,0", "0,0", "-"),
        ("B A", "1,0", "1,7", "BBB"),  # a confirmed slot is not counted
        ("A B", "1,0", "0,9", "AA"),
        ("B", "1,0", "0,1", "B-"),  # a slot that ORDER does not name is none
        ("", "1,0", "1,0", "-"),
        ("C  B A", "1,0", "0,1", "BA"),
        ("b a", "1,0", "1,0", "-"),
        ("B A", "1,0", "yes,10", "A"),
        ("B A", "1,0", "01,-1", "A"),
        ("B A", "1,0", "2,٣", "A"),  # a digit, but not one of GRUB's
    ],
)
def test_boots_go_as_the_script_says(
    tmp_path: Path, order: str, a: str, b: str, boots: str
) -> None:
    file = tmp_path / "grubenv"
    file.write_bytes(block(order, a, b))
    assert "".join(_booted(file) for _ in boots) == boots


def _booted(file: Path) -> str:
    try:
        return boot(file).value.upper()
    except NothingBootableError:
        return "-"


def test_a_boot_of_a_confirmed_slot_writes_nothing() -> None:
    before = block("A B", "1,0", "0,3")
    assert choose(before) == (A, before)


def test_a_try_is_counted_where_it_stands_and_nothing_else_changes() -> None:
    before = filled(SIGNATURE + b"x=1\nORDER=B A\nB_TRY=2\ny=2\nA_OK=1\n")
    chosen, after = choose(before)
    assert chosen is B
    assert after == before.replace(b"B_TRY=2", b"B_TRY=1")


def test_a_try_that_cannot_be_saved_is_passed_over() -> None:
    before = filled(SIGNATURE + b"ORDER=B A\nA_OK=1\nB_TRY=2\ntorn")
    assert choose(before) == (A, before)


def test_nothing_boots_from_an_empty_environment(tmp_path: Path) -> None:
    file = tmp_path / "grubenv"
    file.write_bytes(EMPTY_BLOCK)
    with pytest.raises(NothingBootableError, match="neither slot is confirmed or has tries left"):
        boot(file)


def test_nothing_boots_from_what_is_no_environment(tmp_path: Path) -> None:
    file = tmp_path / "grubenv"
    file.write_bytes(b"")
    with pytest.raises(GrubenvInvalidError, match="has 0 bytes"):
        boot(file)


def test_the_values_of_every_memory_have_the_same_widths() -> None:
    marks = [Mark(), Mark(confirmed=True), *(Mark(tries=tries) for tries in range(1, 10))]
    memories = [
        GrubMemory(marks={A: a, B: b}).preferring(slot)
        for slot in Slot
        for a in marks
        for b in marks
    ]
    widths = {
        tuple((name, len(value)) for name, value in memory.values.items()) for memory in memories
    }
    assert len(widths) == 1
    for memory in memories:
        text = b"".join(name + b"=" + value + b"\n" for name, value in memory.values.items())
        assert GrubMemory.of(filled(SIGNATURE + text)) == memory
        assert variables(filled(SIGNATURE + text)) == memory.values
