"""The marker of a trial that is to come or under way, as its guard reads it. No I/O happens here.

Plain lines, for a shell: what each says is in `guard`, how they are kept in `state`.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

_NOBODY: Final = "-"
_MARKER: Final = re.compile(
    rb"reboots-left (\d{1,3})\nguarded-in ([0-9A-Za-z-]{1,64})\nimage\n(.*)\Z", re.DOTALL
)


class TrialMarker(msgspec.Struct, frozen=True, kw_only=True):
    """A trial that is to come or under way, as the guard knows it.

    Attributes:
        reboots_left: how many more reboots the guard may order.
        guarded_in: the boot in which it ordered the last one, empty when it never did.
        image: the image.toml of the system that armed the slot, as it is.
    """

    reboots_left: int
    image: bytes
    guarded_in: str = ""

    def encode(self) -> bytes:
        """Return the lines that the guard reads."""
        head = f"reboots-left {self.reboots_left}\nguarded-in {self.guarded_in or _NOBODY}\nimage\n"
        return head.encode() + self.image


def decode_marker(data: bytes) -> TrialMarker | None:
    """Return what the lines say; None when they make no sense."""
    found = _MARKER.match(data)
    if found is None:
        return None
    guarded_in = found[2].decode()
    return TrialMarker(
        reboots_left=int(found[1]),
        guarded_in="" if guarded_in == _NOBODY else guarded_in,
        image=found[3],
    )
