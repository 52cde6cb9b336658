"""The TOML of a disk layout: read, checked, frozen. Every key is listed in README.md of this room.

What is written is a msgspec struct; what is checked is a `DiskLayout`, and one that exists is
consistent. Where the partitions then lie is in `placement.py`. No disk is touched here.
"""

from __future__ import annotations

import enum
import re
import tomllib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec

from partitions import gpt
from partitions.errors import LayoutInvalidError

LAYOUT_MAX_BYTES: Final = 256 * 1024  # a layout is a page; more is not one
DISK_MAX_BYTES: Final = 8 * 1024**4  # 8 TiB: larger is a slip of the finger
_UNITS: Final = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4}
_SIZE = re.compile(r"(\d{1,15}) ?(B|KiB|MiB|GiB|TiB)")
_REST: Final = "rest"
_SLOT_WORD: Final = "{slot}"
# No quotes, backslashes, `$`, `;` or `#`: five boot loaders with five ways to quote must pass the
# same words. `{` and `}` stand only around `slot`.
_COMMAND_LINE: Final = re.compile(r"([A-Za-z0-9_.,:=/@+%~ -]|\{slot\})*")
# What FAT and every loader's script take as it is.
_FILE_NAME: Final = re.compile(r"(/[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}){1,8}")


class Role(enum.Enum):
    """What a partition is for."""

    ESP = "esp"
    BIOS_BOOT = "bios-boot"
    SLOT_A = "slot-a"
    SLOT_B = "slot-b"
    STATE = "state"
    OTHER = "other"


class Filesystem(enum.Enum):
    """What is made in a partition."""

    NONE = "none"
    VFAT = "vfat"
    EXT4 = "ext4"


SLOT_ROLES: Final = (Role.SLOT_A, Role.SLOT_B)
LETTERS: Final = {Role.SLOT_A: "a", Role.SLOT_B: "b"}


class _PartitionAsWritten(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    label: str
    role: Role
    size: int | str
    part: str | None = None
    filesystem: Filesystem = Filesystem.NONE
    contents: str | None = None
    type: uuid.UUID | None = None
    uuid: uuid.UUID | None = None


class _FileAsWritten(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    part: str
    a: str
    b: str


class _LayoutAsWritten(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    partition: list[_PartitionAsWritten]
    file: list[_FileAsWritten] = []
    cmdline: str = "panic=-1 gpt quiet"
    boot_folder: str = "/boot"
    sector_size: int = 512
    size: int | str | None = None
    alignment: int | str = "1MiB"
    guid: uuid.UUID | None = None
    seed: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """One partition that shall be.

    Attributes:
        label: its GPT name, and the label of its file system.
        role: what it is for.
        part: the name of the slot's part that it holds; empty outside the slots.
        size_bytes: how large it is; 0 for all that is left.
        filesystem: what is made in it.
        contents: the folder whose tree is copied into the file system, if any.
        carrier: whether it carries its slot's boot bits, for a loader that counts there: the first
            of each slot.
        type_guid: its GPT type, when the layout gives one.
        partuuid: its GPT GUID, when the layout gives one.
    """

    label: str
    role: Role
    part: str
    size_bytes: int
    filesystem: Filesystem
    contents: Path | None
    carrier: bool
    type_guid: uuid.UUID | None
    partuuid: uuid.UUID | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BootFile:
    """A part of both slots that is a file on the ESP.

    Attributes:
        part: the part's name; the loader starts `kernel` and hands it `initrd`.
        names: where each slot has it on the ESP, from the role of the slot: `/bascule/a/linux`.
    """

    part: str
    names: dict[Role, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskLayout:
    """A disk that shall be.

    Attributes:
        sector_size: 512 or 4096 bytes.
        size_bytes: of the whole disk; 0 for as much as the partitions need.
        alignment_bytes: at multiples of this partitions begin.
        guid: of the disk, when the layout gives one.
        seed: all GUIDs that are not given follow from it; empty for random ones.
        partitions: in table order.
        files: the parts of the slots that are files on the ESP.
        command_line: what the loader gives the kernel behind `bascule.slot=`; may hold `{slot}`.
        boot_folder: where the node mounts the ESP.
    """

    sector_size: int
    size_bytes: int
    alignment_bytes: int
    guid: uuid.UUID | None
    seed: str
    partitions: tuple[Partition, ...]
    files: tuple[BootFile, ...] = ()
    command_line: str = ""
    boot_folder: str = "/boot"

    @property
    def esp(self) -> Partition | None:
        """The first ESP that has a file system, where loaders and boot files lie."""
        return next(
            (
                one
                for one in self.partitions
                if one.role is Role.ESP and one.filesystem is Filesystem.VFAT
            ),
            None,
        )

    @property
    def parts(self) -> tuple[str, ...]:
        """What one slot consists of: partitions, then files."""
        partitions = (one.part for one in self.partitions if one.role is Role.SLOT_A)
        return (*partitions, *(one.part for one in self.files))

    def file_name(self, part: str, role: Role) -> str | None:
        """Return where a slot has a part on the ESP; nothing when it is no file."""
        return next((one.names[role] for one in self.files if one.part == part), None)

    def kernel_words(self, role: Role) -> str:
        """Return the kernel's command line of a slot."""
        slot = LETTERS[role]
        return f"bascule.slot={slot} {self.command_line.replace(_SLOT_WORD, slot)}".strip()


def read_layout(path: Path) -> DiskLayout:
    """Read a layout file.

    Raises:
        LayoutInvalidError: it cannot be read, or holds what it must not; names file and line.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LAYOUT_MAX_BYTES + 1)
    except OSError as error:
        raise LayoutInvalidError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > LAYOUT_MAX_BYTES:
        raise LayoutInvalidError(f"{path} has more than {LAYOUT_MAX_BYTES} bytes")
    return parse_layout(data, name=str(path), folder=path.parent)


def parse_layout(data: bytes, *, name: str, folder: Path = Path()) -> DiskLayout:
    """Read the TOML of a layout.

    Args:
        data: the TOML.
        name: of the file, for messages.
        folder: where `contents` that are relative begin.

    Raises:
        LayoutInvalidError: it is no TOML or holds what it must not; names file and line.
    """
    text = data.decode("utf-8", errors="replace")
    try:
        written = msgspec.convert(tomllib.loads(text), _LayoutAsWritten)
        return _checked(written, folder)
    except tomllib.TOMLDecodeError as error:
        raise LayoutInvalidError(f"{name}: {error}") from error
    except (msgspec.ValidationError, _WrongError) as error:
        raise LayoutInvalidError(f"{name}{_line_of(text, str(error))}: {error}") from error


class _WrongError(Exception):
    """A value is wrong; the text ends with where, as msgspec says it. Never leaves this module."""

    def __init__(self, sentence: str, where: str) -> None:
        super().__init__(f"{sentence} - at `$.{where}`")


def _line_of(text: str, message: str) -> str:
    """Return ", line N" for the key that a message with a msgspec path is about."""
    fields = re.findall(r"field `(\w+)`", message)
    path = message.rpartition(" - at `$")[2] if " - at `$" in message else ""
    index = re.search(r"(partition|file)\[(\d+)\]", path)
    table = index[1] if index else "partition"
    keys = re.findall(r"\.(\w+)", path)
    key = fields[0] if fields else keys[-1] if keys else "partition"
    lines = text.splitlines()
    head = re.compile(rf"\s*\[\[\s*{table}\s*\]\]")
    heads = [at for at, line in enumerate(lines) if head.match(line)]
    begin = heads[int(index[2])] if index and int(index[2]) < len(heads) else 0
    key_at = re.compile(rf"\s*(\[\[)?\s*\"?{re.escape(key)}\b")
    hits = (at for at in range(begin, len(lines)) if key_at.match(lines[at]))
    at = next(hits, begin)
    return f", line {at + 1}"


def _checked(written: _LayoutAsWritten, folder: Path) -> DiskLayout:
    if written.sector_size not in gpt.SECTOR_SIZES:
        raise _WrongError(f"{written.sector_size} is not 512 or 4096", "sector_size")
    unit = written.sector_size
    alignment = _size(written.alignment, unit, "alignment")
    partitions = _checked_partitions(written.partition, unit, folder)
    size = _size(written.size, unit, "size") if written.size is not None else 0
    if not size and any(not one.size_bytes for one in partitions):
        raise _WrongError("a partition takes the rest, so the disk needs a `size`", "partition")
    return DiskLayout(
        sector_size=unit,
        size_bytes=size,
        alignment_bytes=alignment,
        guid=written.guid,
        seed=written.seed or "",
        partitions=partitions,
        files=_checked_files(written.file, partitions),
        command_line=_checked_command_line(written.cmdline),
        boot_folder=_checked_boot_folder(written.boot_folder),
    )


def _size(value: int | str, unit: int, where: str) -> int:
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if isinstance(value, str) and match is None:
        raise _WrongError(f'{value!r} is no size such as 67108864 or "64MiB"', where)
    size = int(match[1]) * _UNITS[match[2]] if match else int(value)
    if not 0 < size <= DISK_MAX_BYTES:
        raise _WrongError(f"{value} is not in 1 to {DISK_MAX_BYTES} bytes", where)
    if size % unit:
        raise _WrongError(f"{value} is not a multiple of the sector size {unit}", where)
    return size


def _checked_partitions(
    written: Sequence[_PartitionAsWritten], unit: int, folder: Path
) -> tuple[Partition, ...]:
    if not 1 <= len(written) <= gpt.ENTRY_COUNT:
        raise _WrongError(f"a disk has 1 to {gpt.ENTRY_COUNT} partitions", "partition")
    labels: set[str] = set()
    carriers: set[Role] = set()
    checked = []
    for index, one in enumerate(written):
        where = f"partition[{index}]"
        _check_words(one, where)
        if one.label in labels:
            raise _WrongError(f"the label {one.label!r} is used twice", f"{where}.label")
        if one.size == _REST and index != len(written) - 1:
            raise _WrongError("only the last partition can take the rest", f"{where}.size")
        carries = one.role in SLOT_ROLES and one.role not in carriers
        labels.add(one.label)
        carriers.add(one.role)
        checked.append(
            Partition(
                label=one.label,
                role=one.role,
                part=one.part or "",
                size_bytes=0 if one.size == _REST else _size(one.size, unit, f"{where}.size"),
                filesystem=one.filesystem,
                contents=folder / one.contents if one.contents else None,
                carrier=carries,
                type_guid=one.type,
                partuuid=one.uuid,
            )
        )
    _check_slots(checked)
    return tuple(checked)


def _check_words(one: _PartitionAsWritten, where: str) -> None:
    units = len(one.label.encode("utf-16-le")) // 2
    if not 1 <= units <= gpt.NAME_UNITS or not one.label.isprintable():
        raise _WrongError(f"a label has 1 to {gpt.NAME_UNITS} characters", f"{where}.label")
    if (one.role in SLOT_ROLES) != bool(one.part):
        raise _WrongError("`part` names a part of a slot, and only there", f"{where}.part")
    if one.role in SLOT_ROLES and one.filesystem is not Filesystem.NONE:
        raise _WrongError("a slot holds images, no file system is made", f"{where}.filesystem")
    if one.contents is not None and one.filesystem is Filesystem.NONE:
        raise _WrongError("contents need a `filesystem` to lie in", f"{where}.contents")


def _checked_files(
    written: Sequence[_FileAsWritten], partitions: Sequence[Partition]
) -> tuple[BootFile, ...]:
    parts = {one.part for one in partitions if one.part}
    names: set[str] = set()
    for index, one in enumerate(written):
        where = f"file[{index}]"
        if not one.part or one.part in parts:
            raise _WrongError(
                f"the part {one.part!r} is there already, or no name", f"{where}.part"
            )
        parts.add(one.part)
        for key in ("a", "b"):
            name = getattr(one, key)
            if not _FILE_NAME.fullmatch(name):
                raise _WrongError(
                    f"{name!r} is no path on the ESP such as /bascule/a/linux", f"{where}.{key}"
                )
            # FAT does not tell upper case from lower.
            if name.lower() in names:
                raise _WrongError(f"the file {name!r} is used twice", f"{where}.{key}")
            names.add(name.lower())
    if written and not any(
        one.role is Role.ESP and one.filesystem is Filesystem.VFAT for one in partitions
    ):
        raise _WrongError("files lie on a partition of role esp with filesystem vfat", "file")
    return tuple(
        BootFile(part=one.part, names={Role.SLOT_A: one.a, Role.SLOT_B: one.b}) for one in written
    )


def _checked_command_line(text: str) -> str:
    if not _COMMAND_LINE.fullmatch(text):
        raise _WrongError(
            f"{text!r} has signs that not every loader passes on; {_SLOT_WORD} is replaced",
            "cmdline",
        )
    return " ".join(text.split())


def _checked_boot_folder(text: str) -> str:
    path = PurePosixPath(text)
    if not path.is_absolute() or not text.isprintable() or '"' in text or "\\" in text:
        raise _WrongError(f"{text!r} is no absolute path", "boot_folder")
    return str(path)


def _check_slots(partitions: Sequence[Partition]) -> None:
    parts = {role: [one.part for one in partitions if one.role is role] for role in SLOT_ROLES}
    names_a, names_b = parts[Role.SLOT_A], parts[Role.SLOT_B]
    if names_a != names_b or len(set(names_a)) != len(names_a):
        raise _WrongError(
            f"slot a has the parts {names_a}, slot b {names_b}: they must be the same, "
            "in the same order, each once",
            "partition",
        )
