"""U-Boot's environment as bytes, as U-Boot and libubootenv (`fw_setenv`) read and write it.

A copy is a CRC-32 of its data, a flag byte when there are two copies, and the data: entries
`name=value`, each ended by a zero, and an empty one at the end. Of two whole copies the one whose
flag counts higher is active, 255 and 0 being neighbours. Facts: U-Boot's `env/common.c` and
`lib/hashtable.c`, libubootenv's `uboot_env.c`; its programs are the judge in the tests. What the
variables mean is in `uboot_firmware.py`.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from partitions.errors import UbootConfigError, UbootCrowdedError

COPIES_MAX: Final = 2
CONFIG_MAX_BYTES: Final = 64 * 1024  # fw_env.config is written by a person
COPY_MAX_BYTES: Final = 1024 * 1024  # no board has a larger one
FLAG_MAX: Final = 255

_CRC_BYTES: Final = 4
_NUMBER: Final = re.compile(r"[+-]?(?:0[xX][0-9a-fA-F]+|\d+)")
_HEX: Final = re.compile(r"(?:0[xX])?[0-9a-fA-F]+")
_ESCAPED: Final = re.compile(rb"\\(.)", re.DOTALL)

Entries: TypeAlias = tuple[bytes, ...]
"""The data of a copy, cut at the zeros; without the empty one at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyPlace:
    """Where one copy lies.

    Attributes:
        path: a block device or a file.
        offset: its first byte; below zero it counts from the end of a block device.
        size: its bytes, CRC and flag included.
    """

    path: Path
    offset: int
    size: int


def read_config(text: str) -> tuple[CopyPlace, ...]:
    """Return the one copy or the two that an fw_env.config names.

    A line holds a device or file, an offset (decimal, octal or hexadecimal), a size, the size of a
    flash sector and their number (hexadecimal with or without 0x); the last two matter to raw flash
    alone. A line that begins with `#`, or has fewer than three fields, says nothing. What follows
    the second copy is not read.

    Raises:
        UbootConfigError: it names none, or a copy that cannot be.
    """
    places = [place for line in text.splitlines() if (place := _place(line))][:COPIES_MAX]
    if not places:
        raise UbootConfigError("names no environment")
    if len({place.size for place in places}) > 1:
        sizes = " and ".join(f"{place.size:#x}" for place in places)
        raise UbootConfigError(f"its two copies differ in size: {sizes}")
    if len(places) == COPIES_MAX and _overlap(*places):
        raise UbootConfigError("its two copies overlap")
    return tuple(places)


def _place(line: str) -> CopyPlace | None:
    fields = [] if line.startswith("#") else line.split()
    if len(fields) < 3:
        return None
    path, offset, size = fields[:3]
    if not (_NUMBER.fullmatch(offset) and _HEX.fullmatch(size)):
        raise UbootConfigError(f"{line!r} has an offset or a size that is no number")
    if not Path(path).is_absolute():
        raise UbootConfigError(f"{line!r} names no absolute path")
    size_bytes = int(size, 16)
    if not _CRC_BYTES + 1 < size_bytes <= COPY_MAX_BYTES:
        raise UbootConfigError(f"{line!r}: a copy cannot have {size_bytes} bytes")
    return CopyPlace(path=Path(path), offset=_integer(offset), size=size_bytes)


def _integer(text: str) -> int:
    """Read a number as C's `%i` does: a leading 0 means octal."""
    sign = -1 if text.startswith("-") else 1
    digits = text.lstrip("+-")
    if digits[:2].lower() == "0x":
        return sign * int(digits, 16)
    try:
        return sign * int(digits, 8 if digits.startswith("0") else 10)
    except ValueError as error:
        raise UbootConfigError(f"the offset {text} is no octal number") from error


def _overlap(one: CopyPlace, two: CopyPlace) -> bool:
    if one.path != two.path or (one.offset < 0) != (two.offset < 0):
        return False
    return abs(one.offset - two.offset) < one.size


def active(copies: Sequence[bytes]) -> int | None:
    """Return which of the copies counts, or nothing when none is whole."""
    double = len(copies) == COPIES_MAX
    whole = [at for at, copy in enumerate(copies) if is_whole(copy, double=double)]
    if len(whole) < COPIES_MAX:
        return whole[0] if whole else None
    first, second = (flag_of(copy) for copy in copies)
    if {first, second} == {0, FLAG_MAX}:
        return 1 if second == 0 else 0
    return 1 if second > first else 0


def is_whole(copy: bytes, *, double: bool) -> bool:
    """Tell whether a copy's CRC fits its data."""
    return int.from_bytes(copy[:_CRC_BYTES], "little") == zlib.crc32(copy[_header(double) :])


def flag_of(copy: bytes) -> int:
    """Return the flag of one copy of two."""
    return copy[_CRC_BYTES]


def entries_of(copy: bytes, *, double: bool) -> Entries:
    """Return the entries of a copy, to the byte."""
    return tuple(_cut(copy[_header(double) :]))


def _cut(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data) and data[at]:
        end = data.find(b"\0", at)
        end = len(data) if end < 0 else end
        yield data[at:end]
        at = end + 1


def variables(entries: Entries, *, double: bool) -> dict[bytes, bytes]:
    """Return what U-Boot takes from the entries.

    Blanks before a name and comments are skipped, a backslash takes the meaning from the character
    behind it, and an entry without a value takes the variable away. Of two with one name the later
    wins; but the first, where a script imports variables by name (the form with a single copy). An
    entry without a name ends the import with an error, so nothing is taken at all.
    """
    found: dict[bytes, bytes] = {}
    seen: set[bytes] = set()
    for entry in entries:
        line = entry.lstrip(b" \t")
        if line.startswith(b"#"):
            continue
        name, _, value = line.partition(b"=")
        if not double and name in seen:
            continue
        seen.add(name)
        if not value:
            found.pop(name, None)
        elif not name:
            return {}
        else:
            found[name] = _ESCAPED.sub(rb"\1", value)
    return found


def with_values(entries: Entries, values: Mapping[bytes, bytes]) -> Entries:
    """Return the entries with these variables, each once; all others as they are, in their order.

    What stands there already stays at its place; what is new comes last.
    """
    left = dict(values)
    kept: list[bytes] = []
    for entry in entries:
        name = entry.lstrip(b" \t").partition(b"=")[0]
        if name not in values:
            kept.append(entry)
        elif name in left:
            kept.append(name + b"=" + left.pop(name))
    return (*kept, *(name + b"=" + value for name, value in left.items()))


def packed(entries: Entries, size: int, *, flag: int | None) -> bytes:
    """Return a copy of `size` bytes with these entries; what is left is zero.

    Args:
        entries: name=value.
        size: the bytes of the copy, CRC and flag included.
        flag: of one copy of two; nothing for a single one.

    Raises:
        UbootCrowdedError: they are too many.
    """
    data = b"".join(entry + b"\0" for entry in entries) + b"\0"
    header = b"" if flag is None else bytes([flag])
    room = size - _CRC_BYTES - len(header)
    if len(data) > room:
        raise UbootCrowdedError(f"the variables need {len(data)} bytes of {room}")
    data = data.ljust(room, b"\0")
    return zlib.crc32(data).to_bytes(_CRC_BYTES, "little") + header + data


def _header(double: bool) -> int:  # noqa: FBT001  # a private word of this file
    return _CRC_BYTES + (1 if double else 0)
