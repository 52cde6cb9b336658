"""GRUB's environment block, read and edited as GRUB does it. (`grub-editenv` judges in e2e.)"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions.errors import GrubenvCrowdedError, GrubenvInvalidError
from partitions.grub_block import (
    BLOCK_BYTES,
    EMPTY_BLOCK,
    SIGNATURE,
    assignment,
    filled,
    lines,
    load,
    variables,
    with_value,
)
from tests.sim.gpt_disk import MemoryDisk

NAMES = st.from_regex(rb"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True)
VALUES = st.binary(max_size=20).map(lambda data: data.replace(b"\0", b""))


def block(*body: bytes) -> bytes:
    return filled(SIGNATURE + b"".join(body))


def loaded(data: bytes) -> bytes:
    return load(MemoryDisk(bytearray(data)), Path("grubenv"))


class TestReading:
    def test_lines_are_variables_and_comments_are_not(self) -> None:
        assert variables(block(b"# no=1\n", b"a=1\n", b"b=\n")) == {b"a": b"1", b"b": b""}

    def test_a_backslash_takes_the_meaning_from_what_follows(self) -> None:
        assert variables(block(b"a=x\\\ny\\\\\n", b"b=\\=\n")) == {b"a": b"x\ny\\", b"b": b"="}

    def test_of_two_lines_with_one_name_the_later_wins(self) -> None:
        assert variables(block(b"a=1\n", b"a=2\n")) == {b"a": b"2"}

    def test_a_line_without_an_end_ends_the_reading(self) -> None:
        assert variables(block(b"a=1\n", b"b=2")) == {b"a": b"1"}

    def test_a_line_without_equals_spoils_the_next_ones_name(self) -> None:
        assert variables(block(b"rubbish\n", b"a=1\n")) == {b"rubbish\na": b"1"}

    def test_a_zero_byte_ends_a_text_as_in_c(self) -> None:
        assert variables(block(b"a=1\0junk\n")) == {b"a": b"1"}

    def test_an_escape_at_the_very_end_is_no_line(self) -> None:
        full = SIGNATURE + b"a=1\n"
        assert variables(full + b"b=".ljust(BLOCK_BYTES - len(full) - 1, b"x") + b"\\") == {
            b"a": b"1"
        }

    def test_an_empty_block_has_no_variables(self) -> None:
        assert variables(EMPTY_BLOCK) == {}

    @pytest.mark.parametrize("size", [0, 1023, 1025, 4096])
    def test_a_block_of_another_size_is_refused(self, size: int) -> None:
        with pytest.raises(GrubenvInvalidError, match=f"grubenv has {size} bytes, not 1024"):
            loaded(EMPTY_BLOCK.ljust(size, b"#")[:size])

    def test_a_block_that_begins_otherwise_is_refused(self) -> None:
        with pytest.raises(GrubenvInvalidError, match="grubenv begins with"):
            loaded(bytes(BLOCK_BYTES))


class TestSetting:
    def test_a_new_variable_comes_last(self) -> None:
        assert with_value(block(b"a=1\n"), b"b", b"2") == block(b"a=1\n", b"b=2\n")

    def test_a_known_one_keeps_its_place_and_moves_what_follows(self) -> None:
        before = block(b"# note\n", b"a=1\n", b"b=2\n")
        assert with_value(before, b"a", b"long") == block(b"# note\n", b"a=long\n", b"b=2\n")
        assert with_value(before, b"a", b"") == block(b"# note\n", b"a=\n", b"b=2\n")

    def test_the_first_of_two_lines_with_one_name_is_changed(self) -> None:
        assert with_value(block(b"a=1\n", b"a=2\n"), b"a", b"3") == block(b"a=3\n", b"a=2\n")

    def test_a_variable_whose_name_only_begins_alike_is_another(self) -> None:
        assert with_value(block(b"ab=1\n"), b"a", b"2") == block(b"ab=1\n", b"a=2\n")

    def test_the_last_byte_can_be_used_and_no_more(self) -> None:
        room = BLOCK_BYTES - len(SIGNATURE) - len(b"a=\n")
        full = with_value(EMPTY_BLOCK, b"a", b"x" * room)
        assert variables(full) == {b"a": b"x" * room}
        with pytest.raises(GrubenvCrowdedError, match="1025 bytes of 1024"):
            with_value(EMPTY_BLOCK, b"a", b"x" * (room + 1))

    def test_a_block_whose_last_line_has_no_end_is_refused_as_grub_does(self) -> None:
        with pytest.raises(GrubenvInvalidError, match="has no end"):
            with_value(block(b"a=1\n", b"torn"), b"a", b"2")

    @given(st.dictionaries(NAMES, VALUES, max_size=12))
    def test_what_is_set_is_what_is_read(self, wanted: dict[bytes, bytes]) -> None:
        made = EMPTY_BLOCK
        for name, value in wanted.items():
            made = with_value(made, name, value)
        assert variables(made) == wanted
        assert len(made) == BLOCK_BYTES


@given(st.binary(max_size=BLOCK_BYTES - len(SIGNATURE)))
def test_any_bytes_are_read_to_their_end(body: bytes) -> None:
    found = block(body)
    assert b"".join([SIGNATURE, *lines(found)]) == found[: len(SIGNATURE + b"".join(lines(found)))]
    assert all(b"\0" not in name + value for name, value in variables(found).items())


def test_a_line_is_written_as_it_is_read() -> None:
    assert assignment(b"a", b"x\\y\nz") == b"a=x\\\\y\\\nz\n"
