"""The file of EFI variables: what is added can be read, and what is no such file is refused."""

from __future__ import annotations

import struct
import uuid

import pytest

from partitions.efi_store import BOOT_VENDOR, Variable, variables, with_variables
from partitions.errors import EfiStoreInvalidError

STORE_BYTES = 1024
FLASH_BYTES = 2048
HEADER_BYTES = 0x48 + 28


def _blank() -> bytes:
    """Return a fresh store, as a distribution ships it: headers, and erased flash."""
    volume_type = uuid.UUID("fff12b8d-7696-4c8b-a985-2747075b4f50").bytes_le
    volume = bytes(16) + volume_type + struct.pack("<Q", FLASH_BYTES) + b"_FVH" + bytes(4)
    volume += struct.pack("<H", 0x48)
    store = uuid.UUID("aaf32c78-947b-439a-a180-2e144ec37792").bytes_le
    store += struct.pack("<IBB6x", STORE_BYTES, 0x5A, 0xFE)
    return (volume.ljust(0x48, b"\0") + store).ljust(FLASH_BYTES, b"\xff")


def _refused(flash: bytes, **fresh: bytes) -> str:
    with pytest.raises(EfiStoreInvalidError) as caught:
        with_variables(flash, fresh)
    return str(caught.value)


def test_variables_that_are_added_are_there_and_nothing_else_changed() -> None:
    blank = _blank()
    flash = with_variables(blank, {"Boot0000": b"odd", "BootOrder": b"\0\0"})
    assert variables(blank) == []
    assert variables(flash) == [
        Variable(vendor=BOOT_VENDOR, name="Boot0000", data=b"odd"),
        Variable(vendor=BOOT_VENDOR, name="BootOrder", data=b"\0\0"),
    ]
    end = len(flash.rstrip(b"\xff"))
    assert flash[:HEADER_BYTES] == blank[:HEADER_BYTES]
    assert len(flash) == len(blank)
    assert flash[end:] == blank[end:]


def test_what_is_there_stays_in_front() -> None:
    first = with_variables(_blank(), {"Boot0000": b"one"})
    both = with_variables(first, {"Boot0001": b"two"})
    assert [variable.name for variable in variables(both)] == ["Boot0000", "Boot0001"]
    assert both.startswith(first.rstrip(b"\xff"))


def test_a_variable_that_is_there_is_not_doubled_but_one_that_was_deleted_is_no_obstacle() -> None:
    flash = with_variables(_blank(), {"BootOrder": b"\0\0"})
    assert _refused(flash, BootOrder=b"").startswith("has the variable BootOrder already")
    deleted = bytearray(flash)
    deleted[HEADER_BYTES + 2] &= ~0x02
    again = variables(with_variables(bytes(deleted), {"BootOrder": b"\1\0"}))
    assert [(one.data, one.is_live) for one in again] == [(b"\0\0", False), (b"\1\0", True)]


def test_a_full_store_is_told_with_what_is_left_and_needed() -> None:
    assert _refused(_blank(), Boot0000=bytes(2000)) == ("has 996 bytes left, and 2080 are needed")


@pytest.mark.parametrize(
    ("at", "data", "said"),
    [
        (0, b"", "too few for a store of variables"),
        (16, b"x", "does not begin as a flash volume"),
        (40, b"x", "does not begin as a flash volume"),
        (48, b"\xff\xff", "ends within its headers"),
        (0x48, b"y", "has no healthy store"),
        (0x48 + 21, b"x", "has no healthy store"),
        (0x48 + 16, b"\xff\xff", "ends within its store"),
        (HEADER_BYTES, b"x", "neither a variable nor erased flash"),
        (HEADER_BYTES, b"\xaa\x55" + bytes(34) + b"\xff\xff\0\0", "a variable that ends outside"),
    ],
)
def test_what_is_no_store_is_refused(at: int, data: bytes, said: str) -> None:
    flash = bytearray(_blank() if data else b"short")
    flash[at : at + len(data)] = data
    assert said in _refused(bytes(flash), Boot0000=b"x")
