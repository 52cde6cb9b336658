"""Two slots as a script of a loader remembers them: an order, and a mark for each.

GRUB's environment and U-Boot's hold the same five facts under different names; this is the value
behind both, and what each verb of `BootControl` makes of it. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Self

from partitions.errors import BootControlError
from partitions.slots import Slot

TRIES_MAX: Final = 9  # one digit: scripts cannot subtract, and a value never changes its width

_DIGIT: Final = re.compile(rb"[0-9]")


@dataclass(frozen=True, slots=True)
class Mark:
    """What the script knows of one slot.

    Attributes:
        tries: boots left, 0 to 9; not counted when confirmed.
        confirmed: whether it boots for ever.
    """

    tries: int = 0
    confirmed: bool = False

    @classmethod
    def of(cls, *, tries: bytes, confirmed: bytes) -> Self:
        """Read two variables; whatever is no digit is no try, and only `1` confirms."""
        return cls(
            tries=int(tries) if _DIGIT.fullmatch(tries) else 0,
            confirmed=confirmed == b"1",
        )

    @property
    def bootable(self) -> bool:
        """Whether the script may choose it."""
        return self.confirmed or self.tries > 0


NEVER: Final = Mark()


@dataclass(frozen=True, slots=True)
class Marks:
    """Both slots, in the order in which the script asks them.

    Attributes:
        order: both slots, the preferred one first.
        marks: of each slot. One that the loader's order does not name has `NEVER`.
    """

    order: tuple[Slot, ...] = (Slot.A, Slot.B)
    marks: Mapping[Slot, Mark] = field(default_factory=lambda: dict.fromkeys(Slot, NEVER))

    @classmethod
    def ordered(cls, named: Iterable[Slot], marks: Mapping[Slot, Mark]) -> Self:
        """Return the memory in which these slots are named, in this order; the others come last."""
        seen = dict.fromkeys(named)
        return cls(
            order=(*seen, *(slot for slot in Slot if slot not in seen)),
            marks={slot: marks[slot] if slot in seen else NEVER for slot in Slot},
        )

    @property
    def target(self) -> Slot | None:
        """The slot that the script would choose, or nothing."""
        return next((slot for slot in self.order if self.marks[slot].bootable), None)

    def marked(self, slot: Slot, mark: Mark) -> Self:
        """Return a memory in which that slot has that mark."""
        return replace(self, marks={**self.marks, slot: mark})

    def preferring(self, slot: Slot) -> Self:
        """Return a memory in which that slot comes first."""
        return replace(self, order=(slot, slot.other))

    def rejecting(self, slot: Slot) -> Self:
        """Return a memory in which that slot never boots and the other comes first.

        Raises:
            BootControlError: the other would not boot.
        """
        if not self.marks[slot.other].bootable:
            raise BootControlError(
                f"slot {slot.value} cannot be rejected: slot {slot.other.value} would not boot"
            )
        return self.marked(slot, NEVER).preferring(slot.other)
