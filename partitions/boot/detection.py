"""Which boot loader this machine has: found by what is there, never guessed between two.

`look` gathers facts by a few reads, `detect` judges them and does no I/O. What the settings say
outranks what the machine shows. What cannot be read is no evidence that nothing is there: it keeps
weaker evidence from deciding. docs/loaders.md has the table of evidence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from partitions.attributes import BootBits
from partitions.errors import BootControlUnknownError, PartitionsError
from partitions.firmware import GRUB
from partitions.slots import Slot, SlotLayout, entries_of
from partitions.table import read_table
from partitions.uboot_firmware import ORDER
from partitions.uboot_store import load, places_of

if TYPE_CHECKING:
    from partitions.boot import Places

AUTO: Final = "auto"
LOADER_VENDOR: Final = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"  # systemd's Boot Loader Interface
EFI_VENDOR: Final = "8be4df61-93ca-11d2-aa0d-00e098032b8c"  # UEFI's own variables
TEMPLATES: Final = "loader/bascule"
VARIABLE_MAX_BYTES: Final = 64 * 1024

_ATTRIBUTES: Final = 4  # efivarfs: before the value of each variable
_DESCRIPTION: Final = 6  # EFI_LOAD_OPTION: attributes and the length of the path before it


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The loader, and what speaks for it.

    Attributes:
        name: as `slots.boot_control` names it.
        because: half a sentence for people.
    """

    name: str
    because: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a machine shows of its loader. Nothing stands for: is not there, or cannot be read.

    Attributes:
        custom_command: whether the settings name one.
        grubenv: the file that the settings name.
        loader_info: what the loader of this boot calls itself, such as "systemd-boot 252".
        templates: the slots that have a template of a loader entry.
        booted_entry: the description of the firmware's entry that this boot came from.
        uboot_order: BOOT_ORDER in U-Boot's environment.
        boot_bits: of each slot's partition of the type that GRUB's gptprio looks for.
        faults: why something that is there could not be read, by the loader that it would speak
            for.
        absent: where there is nothing to read, likewise.
    """

    custom_command: bool = False
    grubenv: Path | None = None
    loader_info: str | None = None
    templates: frozenset[Slot] = frozenset()
    booted_entry: str | None = None
    uboot_order: str | None = None
    boot_bits: Mapping[Slot, BootBits] = field(default_factory=dict)
    faults: Mapping[str, str] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)


def choose_loader(name: str, places: Places) -> Choice:
    """Return the loader that the settings name, or for "auto" the one that is found.

    Raises:
        BootControlUnknownError: none is found, or more than one.
    """
    if name != AUTO:
        return Choice(name=name, because="slots.boot_control names it")
    return detect(look(places))


def detect(facts: Facts) -> Choice:
    """Return the one loader that the facts speak for.

    What the settings say counts alone; only where they say nothing, what the machine shows does.
    But `slots.grubenv` alone is no word against boot bits that are set: before there was "auto",
    they were the memory of a node whose settings named no loader, whatever else these held.

    Raises:
        BootControlUnknownError: none is spoken for, or more than one; or something cannot be read
            that may say otherwise.
    """
    said, bits = _said(facts), _bits(facts)
    spoken = (said | bits if set(said) == {"grubenv"} else said) or _shown(facts) | bits
    doubt = "" if said else _doubt(facts, spoken)
    if doubt:
        raise BootControlUnknownError(f"{', '.join(spoken)} may be what is left over: {doubt}")
    if len(spoken) == 1:
        ((name, because),) = spoken.items()
        return Choice(name=name, because=because)
    if spoken:
        words = "; ".join(f"{name}, since {because}" for name, because in spoken.items())
        raise BootControlUnknownError(f"more than one boot loader is found: {words}")
    raise BootControlUnknownError(f"no boot loader is found: {'; '.join(_missing(facts))}")


def _said(facts: Facts) -> dict[str, str]:
    spoken = {}
    if facts.custom_command:
        spoken["custom"] = "slots.custom_command is set"
    if facts.grubenv is not None:
        spoken["grubenv"] = f"slots.grubenv is set to {facts.grubenv}"
    return spoken


def _shown(facts: Facts) -> dict[str, str]:
    spoken = {}
    if (facts.loader_info or "").startswith("systemd-boot") and facts.templates == set(Slot):
        spoken["systemd-boot"] = (
            f"{facts.loader_info} started this system and {TEMPLATES} has a template for each slot"
        )
    if facts.booted_entry in {f"bascule-{slot.value}" for slot in Slot}:
        spoken["efi"] = f"the firmware started its entry {facts.booted_entry}"
    if {slot.value for slot in Slot} & set((facts.uboot_order or "").split()):
        spoken["uboot"] = f"U-Boot's environment has BOOT_ORDER={facts.uboot_order}"
    return spoken


def _bits(facts: Facts) -> dict[str, str]:
    if set(facts.boot_bits) != set(Slot) or not any(
        bits != BootBits() for bits in facts.boot_bits.values()
    ):
        return {}
    words = (f"{slot.value} {bits.words}" for slot, bits in facts.boot_bits.items())
    because = f"the partitions of both slots have boot bits in the GPT: {', '.join(words)}"
    return {"gptprio": because}


def _doubt(facts: Facts, spoken: Mapping[str, str]) -> str:
    """Say what keeps the evidence for a loader from counting; empty when nothing does.

    systemd-boot started this system, but its partition may not be mounted yet; and boot bits
    outlive the change to another loader, whose memory may not be there yet either.
    """
    if not spoken:
        return ""
    info = facts.loader_info or ""
    if info.startswith("systemd-boot") and "systemd-boot" not in spoken:
        return f"{info} started this system, but {TEMPLATES} has no template for each slot"
    if set(spoken) == {"gptprio"} and "uboot" in facts.faults:
        return f"U-Boot's environment cannot be read: {facts.faults['uboot']}"
    return ""


def _missing(facts: Facts) -> list[str]:
    """Say of each loader why it is not this one."""
    info, entry, order = facts.loader_info, facts.booted_entry, facts.uboot_order
    found = {
        "custom": "slots.custom_command is not set",
        "grubenv": "slots.grubenv is not set",
        "systemd-boot": f"the loader calls itself {info}" if info else "the loader has no name",
        "efi": f"the firmware started {entry!r}" if entry else "the firmware names no entry",
        "uboot": f"BOOT_ORDER is {order!r}" if order is not None else "there is no BOOT_ORDER",
        "gptprio": "no boot bits are set in the GPT" if facts.boot_bits else "no boot bits",
    }
    if (info or "").startswith("systemd-boot"):
        found["systemd-boot"] += f", but {TEMPLATES} has no template for each slot"
    found |= dict(facts.absent) | dict(facts.faults)
    return [f"{name}: {word}" for name, word in found.items()]


def look(places: Places) -> Facts:
    """Gather the facts; whatever cannot be read is noted, and speaks for nothing."""
    faults: dict[str, str] = {}
    absent: dict[str, str] = {}
    return Facts(
        custom_command=bool(places.custom_command),
        grubenv=places.grubenv,
        loader_info=_loader_info(places.efivars),
        templates=frozenset(
            slot for slot in Slot if _is_file(places.boot_folder / TEMPLATES / f"{slot.value}.conf")
        ),
        booted_entry=_booted_entry(places.efivars),
        uboot_order=_uboot_order(places.uboot_config, faults, absent),
        boot_bits=_boot_bits(places.disk, places.layout, faults),
        faults=faults,
        absent=absent,
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a folder that we may not enter
        return False


def _may_exist(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _loader_info(efivars: Path) -> str | None:
    value = _variable(efivars, "LoaderInfo", LOADER_VENDOR)
    return None if value is None else _text(value)


def _booted_entry(efivars: Path) -> str | None:
    current = _variable(efivars, "BootCurrent", EFI_VENDOR)
    if current is None or len(current) != 2:
        return None
    number = int.from_bytes(current, "little")
    option = _variable(efivars, f"Boot{number:04X}", EFI_VENDOR)
    return None if option is None else _text(option[_DESCRIPTION:])


def _variable(efivars: Path, name: str, vendor: str) -> bytes | None:
    try:
        with (efivars / f"{name}-{vendor}").open("rb", buffering=0) as file:
            return file.read(VARIABLE_MAX_BYTES)[_ATTRIBUTES:]
    except OSError:
        return None


def _text(value: bytes) -> str:
    """Return the UCS-2 string that begins here, up to its zero."""
    text = value[: len(value) // 2 * 2].decode("utf-16-le", errors="replace")
    return text.partition("\0")[0]


def _uboot_order(config: Path, faults: dict[str, str], absent: dict[str, str]) -> str | None:
    try:
        order = load(places_of(config)).values.get(ORDER)
    except PartitionsError as error:
        (faults if _may_exist(config) else absent)["uboot"] = str(error)
        return None
    return None if order is None else order.decode(errors="replace")


def _boot_bits(disk: Path, layout: SlotLayout, faults: dict[str, str]) -> dict[Slot, BootBits]:
    try:
        entries = entries_of(read_table(disk), layout, disk=disk)
    except PartitionsError as error:
        faults["gptprio"] = str(error)
        return {}
    found = {}
    for slot, parts in entries.items():
        fit = [entry for entry in parts.values() if entry.type_guid == GRUB.boot_type]
        if len(fit) != 1:
            faults["gptprio"] = (
                f"slot {slot.value} has {len(fit)} partitions of the type {GRUB.boot_type}"
            )
            return {}
        found[slot] = BootBits.of(fit[0].attributes)
    return found
