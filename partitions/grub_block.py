"""GRUB's environment block as bytes: 1024 of them, read and edited exactly as GRUB does.

After a first line come lines `name=value`, in which a backslash takes the meaning from the
character behind it; `#` begins a comment and fills the rest. Facts: `grub-core/lib/envblk.c`, and
`grub-editenv` as the judge in the tests. What the variables mean is in `grub_firmware.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from partitions.copies import Disk
from partitions.errors import GrubenvCrowdedError, GrubenvInvalidError

SIGNATURE: Final = b"# GRUB Environment Block\n"
BLOCK_BYTES: Final = 1024
EMPTY_BLOCK: Final = SIGNATURE.ljust(BLOCK_BYTES, b"#")

_NEWLINE: Final = 0x0A
_LINE: Final = re.compile(rb"(?:[^\\\n]|\\.)*", re.DOTALL)  # up to a newline without backslash
_SPECIAL: Final = re.compile(rb"[\\\n]")
_ESCAPED: Final = re.compile(rb"\\(.)", re.DOTALL)


def load(file: Disk, path: Path) -> bytes:
    """Return the block that a file holds; `path` is for the message.

    Raises:
        GrubenvInvalidError: it has another size, or does not begin as it must.
        DeviceError: it cannot be read.
    """
    if file.size_bytes != BLOCK_BYTES:
        raise GrubenvInvalidError(f"{path} has {file.size_bytes} bytes, not {BLOCK_BYTES}")
    block = file.pread(0, BLOCK_BYTES)
    if not block.startswith(SIGNATURE):
        raise GrubenvInvalidError(
            f"{path} begins with {block[: len(SIGNATURE)]!r}, not {SIGNATURE!r}"
        )
    return block


def variables(block: bytes) -> dict[bytes, bytes]:
    """Return what `load_env` sets; of two lines with one name the later wins.

    Like GRUB it stops where a line has no end, and takes a line without `=` for the beginning of
    the next one's name.
    """
    return dict(_assignments(block))


def lines(block: bytes) -> Iterator[bytes]:
    """Yield each line behind the first, with its newline; what has no newline is no line."""
    at = len(SIGNATURE)
    while (end := _line_end(block, at)) < len(block):
        yield block[at : end + 1]
        at = end + 1


def with_value(block: bytes, name: bytes, value: bytes) -> bytes:
    """Return the block as `save_env` and `grub-editenv set` leave it.

    The first line of that name gets the value, and what follows is moved; without one a line is
    added behind the last.

    Raises:
        GrubenvInvalidError: the last line has no end, so GRUB would refuse.
        GrubenvCrowdedError: there is no room.
    """
    used = block.rstrip(b"#")
    if not is_writable(block):
        raise GrubenvInvalidError(f"the last line of the block has no end: {used[-40:]!r}")
    line = assignment(name, value)
    found = next((old for old in _places(used) if old[1].startswith(name + b"=")), None)
    at, old = found or (len(used), b"")
    return filled(used[:at] + line + used[at + len(old) :])


def is_writable(block: bytes) -> bool:
    """Tell whether `save_env` would change it: it refuses when the last line has no end."""
    return block.rstrip(b"#").endswith(b"\n")


def assignment(name: bytes, value: bytes) -> bytes:
    """Return the line that gives a variable its value."""
    return name + b"=" + _SPECIAL.sub(rb"\\\g<0>", value) + b"\n"


def filled(used: bytes) -> bytes:
    """Return the block that begins with these bytes.

    Raises:
        GrubenvCrowdedError: they are too many.
    """
    if len(used) > BLOCK_BYTES:
        raise GrubenvCrowdedError(f"the variables need {len(used)} bytes of {BLOCK_BYTES}")
    return used.ljust(BLOCK_BYTES, b"#")


def _assignments(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(SIGNATURE)
    while at < len(block):
        if block[at : at + 1] != b"#":
            equals = block.find(b"=", at)
            end = _line_end(block, equals + 1)
            if equals < 0 or end == len(block):
                return
            yield _text(block[at:equals]), _text(_ESCAPED.sub(rb"\1", block[equals + 1 : end]))
            at = end
        at = _line_end(block, at) + 1


def _places(block: bytes) -> Iterator[tuple[int, bytes]]:
    at = len(SIGNATURE)
    for line in lines(block):
        yield at, line
        at += len(line)


def _line_end(block: bytes, at: int) -> int:
    """Return where the newline is that ends the line, or the block's length when none does."""
    found = _LINE.match(block, at)
    end = found.end() if found else at
    return end if end < len(block) and block[end] == _NEWLINE else len(block)


def _text(data: bytes) -> bytes:
    """Return what C takes for the string."""
    return data.partition(b"\0")[0]
