"""A model of systemd-boot: which entries it sees, in which order, and how it counts a try.

Entries as values, the loader's order and choice as pure functions, and `boot`, which does the one
rename. Facts: the Boot Loader Specification (UAPI.1), version comparison (UAPI.10), and what the
loader of systemd 252 does; `bootctl` orders the same entries beside this model in the tests.

Not in the model: entries that come from elsewhere (`EFI/Linux`, the firmware, the menu), and
`default` in loader.conf, which the keeper refuses. Entries named `auto-…` are the loader's own.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Self, TypeAlias

from partitions.boot_folder import BootFolder, Folder, sync_folder
from partitions.errors import BootFolderError, NothingBootableError
from partitions.slots import Slot

log = logging.getLogger(__name__)

ENTRIES: Final = "loader/entries"  # on the loader's partition
_COUNT_MAX: Final = 2**31 - 1  # a larger number is no counter but part of the name
_COUNTED: Final = re.compile(r"(?P<stem>.*)\+(?P<left>[0-9]+)(-(?P<done>[0-9]+))?\.conf", re.DOTALL)
_OURS: Final = re.compile(r"bascule-(?P<slot>[ab])", re.IGNORECASE)

Present: TypeAlias = Callable[[str], bool]
"""Tells whether a file is on the loader's partition; a relative path."""


@dataclass(frozen=True, slots=True)
class EntryName:
    """The name of an entry's file: `STEM.conf`, `STEM+LEFT.conf` or `STEM+LEFT-DONE.conf`.

    Attributes:
        file: as it stands in the folder.
        stem: without counter and suffix.
        left: boots left, or nothing for an entry that is not counted.
        done: boots that were counted.
    """

    file: str
    stem: str
    left: int | None = None
    done: int = 0

    @classmethod
    def parse(cls, file: str) -> Self | None:
        """Read a name; nothing when the loader would not open the file."""
        if file.startswith((".", "auto-")) or not file.lower().endswith(".conf"):
            return None
        counted = _COUNTED.fullmatch(file)
        if counted:
            left, done = int(counted["left"]), int(counted["done"] or 0)
            if max(left, done) <= _COUNT_MAX:
                return cls(file, counted["stem"], left, done)
        return cls(file, file[: -len(".conf")])

    @property
    def slot(self) -> Slot | None:
        """The slot that it is an entry of, or nothing for somebody else's."""
        ours = _OURS.fullmatch(self.stem)
        return Slot(ours["slot"].lower()) if ours else None

    @property
    def next(self) -> str:
        """The name that the loader gives the file before it starts it."""
        if self.left is None:
            return self.file
        return f"{self.stem}+{max(self.left - 1, 0)}-{min(self.done + 1, _COUNT_MAX)}.conf"


@dataclass(frozen=True, slots=True)
class LoaderEntry:
    """A boot entry of type 1 as the loader reads it.

    Attributes:
        name: of its file, with the counters.
        kernel: what it starts, relative to the partition, with `/` between.
        sort_key: groups entries; those without one come behind.
        machine_id: orders entries of one sort key before their version does.
        version: the higher one comes first.
    """

    name: EntryName
    kernel: str
    sort_key: str | None = None
    machine_id: str = ""
    version: str = ""

    @classmethod
    def parse(cls, name: EntryName, content: bytes) -> Self | None:
        """Read a file; nothing when it starts no kernel, as an empty or a torn one."""
        values = dict(lines(content))
        kernel = kernel_path(values.get("linux") or values.get("efi") or "")
        if not kernel:
            return None
        return cls(
            name,
            kernel,
            sort_key=values.get("sort-key"),
            machine_id=values.get("machine-id", ""),
            version=values.get("version", ""),
        )


def lines(content: bytes) -> list[tuple[str, str]]:
    """Return the keys and values of an entry in their order, as the loader splits them."""
    text = content.partition(b"\0")[0].decode(errors="replace")
    found = []
    for raw in re.split(r"[\r\n]+", text):
        line = raw.strip(" \t")
        key, _, value = line.replace("\t", " ").partition(" ")
        if line.startswith("#") or not value:
            continue
        value = line[len(key) :].strip(" \t")
        if len(value) > 1 and value[0] == value[-1] == '"':
            value = value[1:-1]
        found.append((key, value))
    return found


def kernel_path(value: str) -> str:
    """Return a path of an entry relative to the partition, nothing for one that leaves it."""
    parts = [part for part in re.split(r"[/\\]+", value) if part not in ("", ".")]
    return "" if ".." in parts else "/".join(parts)


def entries(files: Mapping[str, bytes], present: Present) -> list[LoaderEntry]:
    """Return the entries that the loader sees, the one that it would start first.

    Args:
        files: name to content of what is in the folder of entries.
        present: an entry whose kernel is not there is no entry.
    """
    names = (name for name in map(EntryName.parse, files) if name)
    read = (LoaderEntry.parse(name, files[name.file]) for name in names)
    return ordered(entry for entry in read if entry and present(entry.kernel))


def ordered(found: Iterable[LoaderEntry]) -> list[LoaderEntry]:
    """Return the entries in the loader's order."""
    return sorted(found, key=_place)


def compare_versions(one: str, two: str) -> int:
    """Return 1 when `one` is newer, -1 when `two` is, 0 when they are equal, by UAPI.10."""
    left, right = _TOKENS.findall(one), _TOKENS.findall(two)
    while left or right:
        first, second = (_weight(tokens[0] if tokens else "") for tokens in (left, right))
        if first != second:
            return 1 if first > second else -1
        del left[0], right[0]
    return 0


def choose(found: Sequence[LoaderEntry]) -> LoaderEntry | None:
    """Return the entry that the loader starts: the first, even when no tries are left anywhere."""
    return found[0] if found else None


def exists(folder: Folder, path: str) -> bool:
    """Tell whether a file is there; FAT does not know capitals from small letters."""
    at = PurePosixPath(path)
    parent = "" if str(at.parent) == "." else str(at.parent)
    return at.name.lower() in (name.lower() for name in folder.names(parent))


def files_of(folder: Folder) -> dict[str, bytes]:
    """Return name and content of what lies in the folder of entries.

    A file that cannot be read counts as empty: the loader passes it over, too.

    Raises:
        BootFolderError: the folder cannot be read.
    """
    found = {}
    for name in folder.names(ENTRIES):
        try:
            content = folder.read(f"{ENTRIES}/{name}")
        except BootFolderError as error:
            log.warning("loader entry passed over file=%s error=%s", name, error)
            content = b""
        if content is not None:
            found[name] = content
    return found


def boot(root: Path) -> Slot:
    """Boot once: choose, count the try by a rename, and say which slot it is.

    Nothing is renamed for an entry that is not counted. A rename that fails, to a name that is
    taken for example, is ignored as the loader does: then the try is not counted.

    Args:
        root: where the loader's partition is mounted.

    Raises:
        NothingBootableError: there is no entry, or the first one is of no slot.
        BootFolderError: the folder cannot be read.
    """
    folder = BootFolder(root)
    chosen = choose(entries(files_of(folder), functools.partial(exists, folder)))
    if chosen is None:
        raise NothingBootableError(f"{root / ENTRIES}: there is no entry that starts a kernel")
    _count(root / ENTRIES, chosen.name)
    if chosen.name.slot is None:
        raise NothingBootableError(f"the loader starts {chosen.name.file}, which is of no slot")
    log.info("firmware boots slot=%s entry=%s", chosen.name.slot.value, chosen.name.file)
    return chosen.name.slot


def _count(folder: Path, name: EntryName) -> None:
    if name.next == name.file:
        return
    if (folder / name.next).exists():
        log.warning("firmware counts no try entry=%s taken=%s", name.file, name.next)
        return
    (folder / name.file).rename(folder / name.next)
    sync_folder(folder)


def _place(entry: LoaderEntry) -> tuple[object, ...]:
    """Return what the loader sorts by: least first."""
    keyed: tuple[object, ...] = ()
    if entry.sort_key is not None:
        keyed = (entry.sort_key, entry.machine_id, _newest_first(entry.version))
    exhausted = entry.name.left == 0
    return (exhausted, entry.sort_key is None, keyed, _newest_first(entry.name.file.lower()))


def _newer(one: str, two: str) -> int:
    return -compare_versions(one, two)


_newest_first = functools.cmp_to_key(_newer)
_TOKENS: Final = re.compile(r"[0-9]+|[A-Za-z]+|[~\-^.]")  # other characters count for nothing
_MARKS: Final = {"~": 0, "": 1, "-": 2, "^": 3, ".": 4}  # the end of a version is newer than ~
_LETTERS: Final = 5
_DIGITS: Final = 6


def _weight(token: str) -> tuple[int, int, str]:
    """Return what a part of a version is compared by."""
    if token.isdigit():
        return _DIGITS, int(token), ""
    return (_MARKS[token], 0, "") if token in _MARKS else (_LETTERS, 0, token)
