"""The boot loader's memory in GPT attributes: ChromeOS, CoreOS, Flatcar.

Each verb is one table write: all fields of all slots change together. The loader looks at every
partition of one type, so ranks are dealt among all of that type; each slot has one such partition,
its *carrier*. The ranks are those that `cgpt prioritize` gives.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeAlias

from partitions.attributes import PRIORITY_MAX, TRIES_MAX, BootBits
from partitions.boot.control import BootState, SlotState
from partitions.errors import BootControlError, SlotBootedError
from partitions.firmware import GRUB, FirmwareRules, candidates, choose
from partitions.gpt import Entry, Table
from partitions.slots import Slot, SlotLayout, entries_of
from partitions.table import read_table, read_table_past_cache, write_table

log = logging.getLogger(__name__)

Memory: TypeAlias = Mapping[int, BootBits]
"""The bits of all partitions that the loader looks at, by their number in the table."""

_NEVER: Final = BootBits()


def prioritize(priorities: Sequence[int], wanted: int) -> tuple[int, ...]:
    """Deal ranks anew with one partition alone at the top, as `cgpt prioritize` does.

    Equal ones stay equal, the order of the others stays, 0 stays 0, and the numbers become small:
    from the number of groups (at most 15) downwards, never below 1.

    Args:
        priorities: of all partitions of the type, in table order.
        wanted: the index of the one to be on top.
    """
    others = {rank for at, rank in enumerate(priorities) if at != wanted and rank}
    top = min(len(others) + 1, PRIORITY_MAX)
    dealt = {rank: max(top - at, 1) for at, rank in enumerate(sorted(others, reverse=True), 1)}
    return tuple(top if at == wanted else dealt.get(rank, 0) for at, rank in enumerate(priorities))


def on_top(memory: Memory, carrier: int, bits: BootBits) -> Memory:
    """Give one partition these tries and confirmation, and the highest rank of all."""
    numbers = list(memory)
    ranks = prioritize([one.priority for one in memory.values()], numbers.index(carrier))
    changed = {**memory, carrier: bits}
    return {
        number: replace(changed[number], priority=rank)
        for number, rank in zip(numbers, ranks, strict=True)
    }


class GptPriorities:
    """Keeps `BootControl` in the attributes of the slots' partitions."""

    def __init__(
        self,
        disk: Path,
        layout: SlotLayout,
        *,
        booted: Slot | None = None,
        rules: FirmwareRules = GRUB,
    ) -> None:
        """Name the disk; it is opened by each call and never kept open.

        Args:
            disk: a disk file, a whole-disk device or a partition of the disk.
            layout: the partitions of both slots.
            booted: the slot that runs; `disarm` refuses it.
            rules: the loader, and with it the partition type that it looks for.
        """
        self._disk = disk
        self._layout = layout
        self._booted = booted
        self._rules = rules

    @property
    def max_tries(self) -> int:
        """The most tries that four bits can count."""
        return TRIES_MAX

    def read(self) -> BootState:
        """Return what the loader remembers and would do next."""
        table = read_table(self._disk)
        carriers = self._carriers(table)
        chosen = choose(candidates(table, self._rules))
        return BootState(
            target=next((slot for slot, entry in carriers.items() if entry == chosen), None),
            slots={slot: _state(BootBits.of(entry.attributes)) for slot, entry in carriers.items()},
        )

    def disarm(self, slot: Slot) -> None:
        """Set the slot's bits to (0, 0, 0)."""
        if slot is self._booted:
            raise SlotBootedError(f"slot {slot.value} is booted, it is not disarmed")
        table, memory, carriers = self._recall()
        self._write("disarmed", slot, table, {**memory, carriers[slot]: _NEVER})

    def arm(self, slot: Slot, *, tries: int) -> None:
        """Set the slot's bits to (top, tries, 0)."""
        if not 1 <= tries <= TRIES_MAX:
            raise BootControlError(
                f"{tries} tries for slot {slot.value} are not in 1 to {TRIES_MAX}"
            )
        table, memory, carriers = self._recall()
        self._write("armed", slot, table, on_top(memory, carriers[slot], BootBits(tries=tries)))

    def confirm(self, slot: Slot) -> None:
        """Set the slot's bits to (top, 0, 1)."""
        table, memory, carriers = self._recall()
        proven = BootBits(successful=True)
        self._write("confirmed", slot, table, on_top(memory, carriers[slot], proven))

    def reject(self, slot: Slot) -> None:
        """Set the slot's bits to (0, 0, 0) and the other's priority to the top."""
        table, memory, carriers = self._recall()
        other = carriers[slot.other]
        rest = on_top({**memory, carriers[slot]: _NEVER}, other, memory[other])
        if not rest[other].bootable:
            raise BootControlError(
                f"slot {slot.value} cannot be rejected: slot {slot.other.value} would not boot "
                f"({memory[other].words})"
            )
        self._write("rejected", slot, table, rest)

    def _recall(self) -> tuple[Table, Memory, Mapping[Slot, int]]:
        """Read the table, the bits of all partitions that count, and each slot's carrier."""
        table = read_table(self._disk)
        memory = {
            entry.number: BootBits.of(entry.attributes) for entry in candidates(table, self._rules)
        }
        return table, memory, {slot: entry.number for slot, entry in self._carriers(table).items()}

    def _carriers(self, table: Table) -> dict[Slot, Entry]:
        found: dict[Slot, Entry] = {}
        for slot, parts in entries_of(table, self._layout, disk=self._disk).items():
            fit = [entry for entry in parts.values() if entry.type_guid == self._rules.boot_type]
            if len(fit) != 1:
                raise BootControlError(
                    f"slot {slot.value} on {self._disk} has {len(fit)} partitions of the type that "
                    f"{self._rules.name} looks for ({self._rules.boot_type}), it needs one"
                )
            found[slot] = fit[0]
        return found

    def _write(self, verb: str, slot: Slot, table: Table, memory: Memory) -> None:
        """Write the changed bits, once and together; nothing when the disk holds them already."""
        seen = candidates(table, self._rules)
        before = {entry.number: BootBits.of(entry.attributes) for entry in seen}
        if _any_bootable(before) and not _any_bootable(memory):
            raise BootControlError(
                f"slot {slot.value} is not {verb}: nothing bootable would be left"
            )
        if memory == before and table.healthy:
            return
        new = table.with_attributes(
            {entry.number: memory[entry.number].within(entry.attributes) for entry in seen}
        )
        write_table(self._disk, table, new)
        kept = read_table_past_cache(self._disk)
        if kept.array != new.array or not kept.healthy:
            raise BootControlError(
                f"{self._disk} does not keep its partition table: {'; '.join(kept.faults) or 'old'}"
            )
        log.info("slot %s slot=%s disk=%s", verb, slot.value, self._disk)


def _any_bootable(memory: Memory) -> bool:
    return any(bits.bootable for bits in memory.values())


def _state(bits: BootBits) -> SlotState:
    return SlotState(armed=bits.bootable, tries_left=bits.tries, confirmed=bits.successful)
