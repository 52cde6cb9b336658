"""Power may fail between any two writes of a verb on the firmware's variables.

Design, promises 2 and 3. The firmware keeps or changes each variable whole; of two, one may have
changed. Then it starts what it would have started before or what it would start after, the
entries of others keep their order, and the same verb again brings the state that was wanted.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest

from partitions.boot.control import BootControl
from partitions.boot.efi import EfiBootEntries
from partitions.efi_firmware import (
    BOOT_NEXT,
    BOOT_ORDER,
    FirmwareMemory,
    description_of,
    numbers,
    packed,
)
from partitions.errors import BootControlError
from partitions.slots import Slot
from tests.sim.efi import VariablesSim, boot_option

A, B = Slot.A, Slot.B
NUMBER = {A: 0x0A, B: 0x0B}
SHELL, DISC, GONE = 1, 2, 9
OTHERS = (SHELL, DISC, GONE)
ENTRIES = {
    "Boot000A": boot_option(description_of(A)),
    "Boot000B": boot_option(description_of(B)),
    "Boot0001": boot_option("UEFI Shell"),
    "Boot0002": boot_option("disc", active=False),
}
VERBS: Mapping[str, Callable[[BootControl, Slot], None]] = {
    "disarm": lambda control, slot: control.disarm(slot),
    "arm": lambda control, slot: control.arm(slot, tries=1),
    "confirm": lambda control, slot: control.confirm(slot),
    "reject": lambda control, slot: control.reject(slot),
}


def kept(order: Sequence[int], once: int | None) -> dict[str, bytes]:
    values = dict(ENTRIES)
    if order:
        values[BOOT_ORDER] = packed(order)
    if once is not None:
        values[BOOT_NEXT] = packed([once])
    return values


def memories() -> Iterator[dict[str, bytes]]:
    """Yield each order of each choice of entries, with each that BootNext can name."""
    known = (*NUMBER.values(), *OTHERS)
    orders = [order for size in range(len(known)) for order in itertools.permutations(known, size)]
    for order, once in itertools.product(orders, [None, *known]):
        yield kept(order, once)


class Examiner:
    """Looks at every state that a cut can leave, and counts them."""

    def __init__(self) -> None:
        self.states = 0
        self.verbs: set[str] = set()

    def examine(self, values: Mapping[str, bytes], verb: str, slot: Slot) -> None:
        sim = self._run(values, verb, slot)
        if sim is None:
            return
        self.verbs.add(f"{verb} {slot.value}")
        for state in sim.cuts:
            self.states += 1
            allowed = {self._target(values), self._target(sim.values)}
            assert self._target(state) in allowed, "neither old nor new"
            assert self._others(state) == self._others(values), "others' order"
            armed = self._armed(values) | self._armed(sim.values)
            assert not armed or self._armed(state), "nothing is left"
            again = self._run(state, verb, slot)
            assert again, "it does not recover"
            assert again.values == sim.values, "it does not recover"
        after = EfiBootEntries(sim).read()
        if verb in ("arm", "confirm"):
            assert after.target is slot or numbers(sim.values[BOOT_NEXT])[0] in OTHERS
        else:
            assert not after.slots[slot].armed

    def _run(self, values: Mapping[str, bytes], verb: str, slot: Slot) -> VariablesSim | None:
        sim = VariablesSim(values)
        try:
            VERBS[verb](EfiBootEntries(sim), slot)
        except BootControlError:
            assert not sim.cuts, "refused half-way"
            return None
        return sim

    def _target(self, values: Mapping[str, bytes]) -> Slot | None:
        return EfiBootEntries(VariablesSim(values)).read().target

    def _armed(self, values: Mapping[str, bytes]) -> set[Slot]:
        slots = EfiBootEntries(VariablesSim(values)).read().slots
        return {slot for slot, state in slots.items() if state.armed}

    def _others(self, values: Mapping[str, bytes]) -> list[int]:
        return [number for number in numbers(values.get(BOOT_ORDER, b"")) if number in OTHERS]


@pytest.mark.parametrize("verb", VERBS)
def test_a_cut_between_any_two_writes_leaves_the_old_or_the_new_state(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    examiner = Examiner()
    for values, slot in itertools.product(memories(), Slot):
        examiner.examine(values, verb, slot)
    assert examiner.verbs == {f"{verb} a", f"{verb} b"}
    with capsys.disabled():
        sys.stdout.write(f"\n    {examiner.states} states examined: {verb}")


def test_a_disarmed_slot_is_started_neither_once_nor_later() -> None:
    for values in memories():
        sim = VariablesSim(values)
        try:
            EfiBootEntries(sim, booted=A).disarm(B)
        except BootControlError:
            continue
        memory = FirmwareMemory.of(sim)
        assert memory.once != NUMBER[B]
        assert NUMBER[B] not in memory.order


def test_the_examiner_sees_what_the_other_order_of_two_writes_would_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    careful = EfiBootEntries._write

    def careless(
        self: EfiBootEntries,
        verb: str,
        slot: Slot,
        memory: FirmwareMemory,
        *,
        order: Sequence[int],
        once: int | None,
        once_first: bool = False,
    ) -> None:
        careful(self, verb, slot, memory, order=order, once=once, once_first=not once_first)

    monkeypatch.setattr(EfiBootEntries, "_write", careless)
    with pytest.raises(AssertionError, match="neither old nor new"):
        Examiner().examine(kept([NUMBER[A], NUMBER[B]], None), "arm", A)
