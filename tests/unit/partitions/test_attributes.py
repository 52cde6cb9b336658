"""The bits that a boot loader counts in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions.attributes import BOOT_BITS, BootBits

BITS = st.builds(
    BootBits,
    priority=st.integers(0, 15),
    tries=st.integers(0, 15),
    successful=st.booleans(),
)


@pytest.mark.parametrize(
    ("attributes", "bits"),
    [
        (0x0012_0000_0000_0000, BootBits(priority=2, tries=1)),
        (0x0101_0000_0000_0000, BootBits(priority=1, successful=True)),
        (0x01FF_0000_0000_0000, BootBits(priority=15, tries=15, successful=True)),
        (0, BootBits()),
    ],
)
def test_the_bits_are_where_cgpt_has_them(attributes: int, bits: BootBits) -> None:
    assert BootBits.of(attributes) == bits
    assert bits.within(0) == attributes


@given(BITS, st.integers(0, 2**64 - 1))
def test_setting_the_bits_keeps_all_others(bits: BootBits, attributes: int) -> None:
    changed = bits.within(attributes)
    assert BootBits.of(changed) == bits
    assert changed & ~BOOT_BITS == attributes & ~BOOT_BITS


@pytest.mark.parametrize(("priority", "tries"), [(16, 0), (0, 16), (-1, 0)])
def test_what_does_not_fit_the_bits_is_refused(priority: int, tries: int) -> None:
    with pytest.raises(ValueError, match="is not in 0 to 15"):
        BootBits(priority=priority, tries=tries)


@pytest.mark.parametrize(
    ("bits", "bootable"),
    [
        (BootBits(priority=1, successful=True), True),
        (BootBits(priority=1, tries=1), True),
        (BootBits(priority=15), False),
        (BootBits(tries=3, successful=True), False),
    ],
)
def test_a_slot_boots_with_a_priority_and_a_try_or_a_success(
    bits: BootBits, *, bootable: bool
) -> None:
    assert bits.bootable is bootable
