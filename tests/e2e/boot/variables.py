"""When the firmware's variables changed, beside a disk's own log of writes.

Variables lie in flash, which has no cache and keeps the order of what is written to it; the disk's
log is another one. So both are looked at all the time while a machine runs: between two looks it is
open which came first, and both are taken for possible.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from partitions.efi_store import BOOT_VENDOR, variables
from partitions.efi_variables import ATTRIBUTES
from partitions.errors import EfiStoreInvalidError
from tests.e2e.boot.write_log import Write, entries_in, read_log

LOOK_SECS: Final = 0.001


@dataclass(frozen=True, slots=True)
class Look:
    """How many requests the disk had, then the flash, then the disk again."""

    disk_before: int
    flash: int
    disk_after: int


@dataclass(frozen=True, slots=True)
class Period:
    """What the boot variables were while the disk had got so many requests.

    Attributes:
        first: the least number of the disk's requests at which they were so.
        last: the greatest.
        values: the variables, with their attributes before each value.
    """

    first: int
    last: int
    values: Mapping[str, bytes]


class Watch:
    """Looks at two logs while a machine runs."""

    def __init__(self, disk: Path, flash: Path) -> None:
        """Name the logs.

        Args:
            disk: the log of the disk.
            flash: the log of the variables.
        """
        self.looks = [Look(0, 0, 0)]
        self._disk = disk
        self._flash = flash
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.is_set():
            self._look()
            time.sleep(LOOK_SECS)
        self._look()

    def _look(self) -> None:
        look = Look(entries_in(self._disk), entries_in(self._flash), entries_in(self._disk))
        if look.flash != self.looks[-1].flash:
            self.looks.append(look)
        else:  # the last one with that number is what bounds the next change from below
            self.looks[-1] = Look(look.disk_before, look.flash, self.looks[-1].disk_after)


def periods(before: bytes, log: Path, looks: Sequence[Look], *, requests: int) -> list[Period]:
    """Return what the boot variables were, in order, with each state that a cut could find.

    Args:
        before: the flash at the begin.
        log: what was written to it.
        looks: at both logs, one for each number of the flash's requests that was seen.
        requests: how many the disk had in all.
    """
    flash = bytearray(before)
    values = boot_variables(flash)
    found = [Period(0, 0, values)]
    for number, step in enumerate(read_log(log), 1):
        if not isinstance(step, Write):
            continue
        flash[step.offset : step.offset + len(step.data)] = step.data
        try:
            now = boot_variables(flash)
        except EfiStoreInvalidError:
            continue  # a header half written: EDK II takes it for the end of the variables so far
        if now == values:
            continue
        values = now
        first = max(look.disk_before for look in looks if look.flash < number)
        last = min((look.disk_after for look in looks if look.flash >= number), default=requests)
        before_it = found[-1]
        found[-1] = Period(before_it.first, last, before_it.values)
        found.append(Period(first, last, values))
    found[-1] = Period(found[-1].first, requests, found[-1].values)
    return found


def boot_variables(flash: bytes | bytearray) -> dict[str, bytes]:
    """Return the live variables that say what boots."""
    return {
        one.name: ATTRIBUTES.to_bytes(4, "little") + one.data
        for one in variables(bytes(flash))
        if one.vendor == BOOT_VENDOR and one.is_live and one.name.startswith("Boot")
    }
