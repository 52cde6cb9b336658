"""The boot loader's memory in systemd-boot's entries: their names count, their versions rank.

A slot that may boot has one file in `loader/entries`: `bascule-b+3.conf` on trial, with its boots
left, or `bascule-b.conf` when it is confirmed. The loader starts the entry with the highest
`version` that has boots left. A disarmed slot has no file. All of a file but its version comes from
the slot's template, `loader/bascule/b.conf`.

Nothing is renamed (decision 0010): the new file is made and read back before the old ones go, and
a file whose name can stay is changed in place, within its one sector. So a cut leaves two files of
one slot at most, and the loader may take either. What it leaves is removed by the next verb on the
slot.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from partitions.boot.control import BootState, SlotState
from partitions.boot_folder import SECTOR_BYTES, Folder
from partitions.errors import (
    BootControlError,
    BootFolderError,
    LoaderDefaultError,
    LoaderForeignError,
    LoaderTemplateError,
    SlotBootedError,
)
from partitions.slots import Slot
from partitions.systemd_boot_firmware import (
    ENTRIES,
    TRIES_MAX,
    EntryName,
    LoaderEntry,
    choose,
    entries,
    exists,
    files_of,
    kernel_path,
    lines,
)

log = logging.getLogger(__name__)

SORT_KEY: Final = "bascule"
VERSION_MAX: Final = 999  # then both are numbered anew
_CONFIG: Final = "loader/loader.conf"
_KERNEL_KEYS: Final = ("linux", "efi")
_OUR_KEYS: Final = ("version", "sort-key", "machine-id")  # what orders entries is not for templates


def template_of(slot: Slot) -> str:
    """Return the name of a slot's template on the loader's partition."""
    return f"loader/bascule/{slot.value}.conf"


def entry_content(slot: Slot, template: bytes, *, version: int) -> bytes:
    """Return the one sector of a loader entry, made from a slot's template.

    The kernel's line comes last: an entry that is cut short starts nothing. Comments are left out.

    Args:
        slot: whose template it is.
        template: the lines of an entry of type 1, without what orders it.
        version: the higher one comes first.

    Raises:
        LoaderTemplateError: it does not name one kernel, orders itself, or is too long.
    """
    found = lines(template)
    kernels = [(key, value) for key, value in found if key in _KERNEL_KEYS]
    ordering = sorted({key for key, _ in found if key in _OUR_KEYS})
    if len(kernels) != 1 or not kernel_path(kernels[0][1]):
        raise LoaderTemplateError(
            f"{template_of(slot)}: it has {len(kernels)} lines `linux` or `efi` with a path, not 1"
        )
    if ordering:
        raise LoaderTemplateError(
            f"{template_of(slot)}: it has lines that are not its own: {', '.join(ordering)}"
        )
    rest = [(key, value) for key, value in found if key not in _KERNEL_KEYS]
    ours = [("sort-key", SORT_KEY), ("version", str(version))]
    content = "".join(f"{key} {value}\n" for key, value in (*ours, *rest, *kernels)).encode()
    later = len(str(VERSION_MAX)) - len(str(version))  # it must fit with every version
    if len(content) + later > SECTOR_BYTES:
        raise LoaderTemplateError(
            f"{template_of(slot)}: its entry may have {len(content) + later} bytes, "
            f"a sector has {SECTOR_BYTES}"
        )
    return content.ljust(SECTOR_BYTES, b"\n")


@dataclass(frozen=True, slots=True)
class EntriesFound:
    """What lies in the folder of entries.

    Attributes:
        files: name to content, of others, too.
        seen: the entries that the loader sees, the one that it would start first.
    """

    files: Mapping[str, bytes]
    seen: tuple[LoaderEntry, ...]

    @property
    def target(self) -> Slot | None:
        """The slot that the loader would start, or nothing."""
        first = choose(self.seen)
        return first.name.slot if first else None

    def of(self, slot: Slot) -> LoaderEntry | None:
        """Return the slot's entry that comes first, when there is one."""
        return next((entry for entry in self.seen if entry.name.slot is slot), None)

    def names_of(self, slot: Slot) -> list[EntryName]:
        """Return all files of a slot, those that start nothing, too."""
        names = (EntryName.parse(file) for file in self.files)
        return [name for name in names if name and name.slot is slot]

    def state(self, slot: Slot) -> SlotState:
        """Return what the loader remembers of a slot."""
        entry = self.of(slot)
        if entry is None:
            return SlotState(armed=False, tries_left=0, confirmed=False)
        left = entry.name.left
        return SlotState(armed=left != 0, tries_left=left or 0, confirmed=left is None)

    def version(self, slot: Slot) -> int:
        """Return the highest version that the loader sees of a slot; 0 for none, or for no number.

        The highest of several: what shall come before a slot comes before all its files.
        """
        own = (entry for entry in self.seen if entry.name.slot is slot)
        return max((int(entry.version) for entry in own if _is_ranked(entry)), default=0)

    @property
    def is_odd(self) -> bool:
        """Whether a slot has an entry, made by hand, that our numbers do not rank."""
        return any(entry.name.slot and not _is_ranked(entry) for entry in self.seen)


class SystemdBootEntries:
    """Keeps `BootControl` in the entries of systemd-boot, on the ESP or XBOOTLDR."""

    def __init__(self, folder: Folder, *, booted: Slot | None = None) -> None:
        """Name the loader's partition; nothing is read before the first call.

        Args:
            folder: the partition that holds `loader/entries`, and the slots' kernels.
            booted: the slot that runs; `disarm` refuses it.
        """
        self._folder = folder
        self._booted = booted

    @property
    def max_tries(self) -> int:
        """The most tries that we let the loader count."""
        return TRIES_MAX

    def read(self) -> BootState:
        """Return what the loader remembers and would do next.

        Raises:
            BootFolderError: the loader's partition is not mounted, or cannot be read.
        """
        found = self._find()
        return BootState(target=found.target, slots={slot: found.state(slot) for slot in Slot})

    def disarm(self, slot: Slot) -> None:
        """Remove the slot's files."""
        if slot is self._booted:
            raise SlotBootedError(f"slot {slot.value} is booted, it is not disarmed")
        found = self._find()
        if found.state(slot).armed and not found.state(slot.other).armed:
            raise BootControlError(
                f"slot {slot.value} is not disarmed: nothing bootable would be left"
            )
        self._remove("disarmed", slot, found)

    def arm(self, slot: Slot, *, tries: int) -> None:
        """Leave the slot one file, `+TRIES` in its name, with the highest version."""
        if not 1 <= tries <= TRIES_MAX:
            raise BootControlError(
                f"{tries} tries for slot {slot.value} are not in 1 to {TRIES_MAX}"
            )
        self._put("armed", slot, tries)

    def confirm(self, slot: Slot) -> None:
        """Leave the slot one file, without a counter, with the highest version."""
        self._put("confirmed", slot, None)

    def reject(self, slot: Slot) -> None:
        """Remove the slot's files, when the other one has one with boots left."""
        found = self._find()
        if not found.state(slot.other).armed:
            raise BootControlError(
                f"slot {slot.value} cannot be rejected: slot {slot.other.value} would not boot"
            )
        self._remove("rejected", slot, found)

    def _find(self) -> EntriesFound:
        """Look at the entries; an empty mount point is not a loader that remembers nothing.

        Raises:
            BootFolderError: it cannot be read, or neither entry nor template of a slot is there.
        """
        files = files_of(self._folder)
        found = EntriesFound(files, tuple(entries(files, self._present)))
        if not any(found.names_of(slot) or self._present(template_of(slot)) for slot in Slot):
            raise BootFolderError(
                f"neither {ENTRIES} nor {PurePosixPath(template_of(Slot.A)).parent} has a file of "
                "a slot: the loader's partition is not mounted"
            )
        return found

    def _present(self, path: str) -> bool:
        return exists(self._folder, path)

    def _put(self, verb: str, slot: Slot, left: int | None) -> None:
        """Leave the slot one file in this state, before all of the other's."""
        found = self._find()
        if left is not None:
            self._check_config()
        if found.is_odd or _version_before(slot, found) > VERSION_MAX:
            self._number_anew(found)
            found = self._find()
        version = _version_before(slot, found)
        content = self._content(slot, version)
        self._check_choice(verb, slot, found, left, content)
        if self._settle(slot, found, left, content):
            log.info("slot %s slot=%s version=%d", verb, slot.value, version)

    def _content(self, slot: Slot, version: int) -> bytes:
        template = self._folder.read(template_of(slot))
        if template is None:
            raise LoaderTemplateError(f"{template_of(slot)}: it is not there")
        content = entry_content(slot, template, version=version)
        kernel = next(kernel_path(value) for key, value in lines(content) if key in _KERNEL_KEYS)
        if not self._present(kernel):
            raise LoaderTemplateError(
                f"{template_of(slot)}: it starts {kernel}, which is not there"
            )
        return content

    def _check_config(self) -> None:
        """Refuse a `default`, with which the loader starts what has no boots left."""
        default = _default_of(self._folder)
        if default is not None:
            raise LoaderDefaultError(f"{_CONFIG} says `default {default}`")

    def _check_choice(
        self, verb: str, slot: Slot, found: EntriesFound, left: int | None, content: bytes
    ) -> None:
        """Refuse before anything is written when the loader would start somebody else's entry."""
        ours = {name.file for name in found.names_of(slot)}
        others = {file: data for file, data in found.files.items() if file not in ours}
        after = entries({**others, _file(slot, left): content}, self._present)
        first = choose(after)
        if first is None or first.name.slot is not slot:
            raise LoaderForeignError(
                f"slot {slot.value} is not {verb}: the loader would start "
                f"{first.name.file if first else 'nothing'}"
            )

    def _settle(self, slot: Slot, found: EntriesFound, left: int | None, content: bytes) -> bool:
        """Make the file that the slot shall have, then remove its others; tell of any change."""
        names = found.names_of(slot)
        kept = next((name.file for name in names if name.left == left), None)
        if left is not None and (
            len(names) > 1 or (kept and len(found.files[kept]) != len(content))
        ):
            # Two names may be what the loader left of one file: then both have to go.
            kept = None
        if kept and len(names) == 1 and found.files[kept] == content:
            return False
        keep = kept or _fresh(slot, left, names)
        if kept is None:
            self._folder.create(f"{ENTRIES}/{keep}", content)
        elif found.files[kept] != content:
            self._replace(slot, kept, found, content)
        for name in names:
            if name.file != keep:
                self._folder.remove(f"{ENTRIES}/{name.file}")
        return True

    def _replace(self, slot: Slot, file: str, found: EntriesFound, content: bytes) -> None:
        """Give a file that keeps its name another content; the slot has an entry all the time."""
        if len(found.files[file]) == len(content):
            self._folder.overwrite(f"{ENTRIES}/{file}", content)
            return
        stand_in = _fresh(slot, TRIES_MAX, found.names_of(slot))
        self._folder.create(f"{ENTRIES}/{stand_in}", content)
        self._folder.remove(f"{ENTRIES}/{file}")
        self._folder.create(f"{ENTRIES}/{file}", content)
        self._folder.remove(f"{ENTRIES}/{stand_in}")

    def _remove(self, verb: str, slot: Slot, found: EntriesFound) -> None:
        names = found.names_of(slot)
        for name in names:
            self._folder.remove(f"{ENTRIES}/{name.file}")
        if names:
            log.info("slot %s slot=%s", verb, slot.value)

    def _number_anew(self, found: EntriesFound) -> None:
        """Give the slots' entries the versions 1 and 2; the lower one first, so it stays lower."""
        seen = {slot: entry for slot in Slot if (entry := found.of(slot))}
        lowest_first = sorted(seen, key=lambda slot: found.seen.index(seen[slot]), reverse=True)
        for version, slot in enumerate(lowest_first, 1):
            self._settle(slot, found, seen[slot].name.left, self._content(slot, version))


def obstacle(folder: Folder) -> BootControlError | None:
    """Return why the loader does not go by the slots' entries, None when it does.

    Raises:
        BootFolderError: the loader's partition cannot be read.
    """
    default = _default_of(folder)
    if default is not None:
        return LoaderDefaultError(f"{_CONFIG} says `default {default}`")
    first = choose(entries(files_of(folder), lambda path: exists(folder, path)))
    if first is not None and first.name.slot is None:
        return LoaderForeignError(f"the loader would start {first.name.file}, which is of no slot")
    return None


def _default_of(folder: Folder) -> str | None:
    config = folder.read(_CONFIG) or b""
    return next((value for key, value in reversed(lines(config)) if key == "default"), None)


def _is_ranked(entry: LoaderEntry) -> bool:
    ours = entry.sort_key == SORT_KEY and not entry.machine_id
    return ours and re.fullmatch(r"[0-9]{1,9}", entry.version) is not None


def _version_before(slot: Slot, found: EntriesFound) -> int:
    """Return the least version that puts the slot before the other; its own when that does."""
    own, other = found.version(slot), found.version(slot.other)
    return own if own > other else other + 1


def _file(slot: Slot, left: int | None, done: int = 0) -> str:
    counter = "" if left is None else f"+{left}-{done}" if done else f"+{left}"
    return f"bascule-{slot.value}{counter}.conf"


def _fresh(slot: Slot, left: int | None, taken: Sequence[EntryName]) -> str:
    """Return a name for a new file that the loader can count down without meeting another.

    It adds to one number what it takes from the other; a name that is taken would stop it, and
    with it the count. So no two files of a slot may have the same sum.
    """
    if left is None:
        return _file(slot, None)
    sums = {name.left + name.done for name in taken if name.left is not None}
    return _file(slot, left, next(done for done in itertools.count() if left + done not in sums))
