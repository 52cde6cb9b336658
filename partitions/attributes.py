"""The bits of a GPT entry that a boot loader counts in, and nothing else.

    bits 48-51  priority    higher boots first, 0 is never chosen
    bits 52-55  tries       boots left for a slot that is not proven
    bit  56     successful  it has booted and was confirmed

All other bits belong to somebody else and stay as found. They mean this only on partitions of
the type that the loader looks for. Origin: ChromeOS; kept by CoreOS and Flatcar.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PRIORITY_MAX: Final = 15
TRIES_MAX: Final = 15

_PRIORITY_SHIFT = 48
_TRIES_SHIFT = 52
_SUCCESSFUL_SHIFT = 56
BOOT_BITS: Final = (
    PRIORITY_MAX << _PRIORITY_SHIFT | TRIES_MAX << _TRIES_SHIFT | 1 << _SUCCESSFUL_SHIFT
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BootBits:
    """What the loader remembers of one slot.

    Attributes:
        priority: 0 to 15; higher boots first, 0 never boots.
        tries: 0 to 15 boots left.
        successful: whether it was confirmed.
    """

    priority: int = 0
    tries: int = 0
    successful: bool = False

    def __post_init__(self) -> None:
        """Refuse what does not fit the bits, as `cgpt` does; it is a bug of the caller."""
        if not (0 <= self.priority <= PRIORITY_MAX and 0 <= self.tries <= TRIES_MAX):
            raise ValueError(f"priority {self.priority} or tries {self.tries} is not in 0 to 15")

    @classmethod
    def of(cls, attributes: int) -> BootBits:
        """Read the bits out of an entry's 64 attribute bits."""
        return cls(
            priority=attributes >> _PRIORITY_SHIFT & PRIORITY_MAX,
            tries=attributes >> _TRIES_SHIFT & TRIES_MAX,
            successful=bool(attributes >> _SUCCESSFUL_SHIFT & 1),
        )

    def within(self, attributes: int) -> int:
        """Return `attributes` with these bits set in it and the others as they are."""
        mine = (
            self.priority << _PRIORITY_SHIFT
            | self.tries << _TRIES_SHIFT
            | self.successful << _SUCCESSFUL_SHIFT
        )
        return attributes & ~BOOT_BITS | mine

    @property
    def bootable(self) -> bool:
        """Whether the loader may choose the slot at all."""
        return self.priority > 0 and (self.tries > 0 or self.successful)

    @property
    def words(self) -> str:
        """How messages and `disk show` write it."""
        return (
            f"priority={self.priority} tries={self.tries} successful={str(self.successful).lower()}"
        )
