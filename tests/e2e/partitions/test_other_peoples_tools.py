"""Disks made by sgdisk, sfdisk, cgpt and us; each of our writes judged by the other programs."""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from partitions.attributes import BootBits
from partitions.boot import BootControl, Places, open_boot_control
from partitions.boot.gptprio import GptPriorities
from partitions.disk_image import create_disk
from partitions.firmware import CHROMEOS, CHROMEOS_KERNEL_TYPE, USR_TYPE, boot
from partitions.layout import parse_layout
from partitions.slots import PartRef, Slot, SlotLayout, resolve
from partitions.table import read_table, write_table
from tests.sim.gpt_tools import (
    bare_loop_device,
    cgpt_bits,
    cgpt_is_content,
    loop_device,
    program,
    run,
    sfdisk_attributes,
    sfdisk_facts,
    sgdisk_attributes,
    sgdisk_is_content,
)

pytestmark = pytest.mark.e2e

MIB = 1024 * 1024
LAYOUT: SlotLayout = {
    Slot.A: {"usr": PartRef(label="USR-A")},
    Slot.B: {"usr": PartRef(label="USR-B")},
}
A, B = Slot.A, Slot.B
NUMBERS = {A: 3, B: 4}
PROVEN = 0x0101_0000_0000_0000


def _empty(path: Path, size: int = 64 * MIB) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def _by_sgdisk(path: Path) -> Path:
    _sgdisk_slots(_empty(path))
    return path


def _sgdisk_slots(disk: Path) -> None:
    run(
        "sgdisk",
        "--new=1:0:+8M", "--typecode=1:ef00", "--change-name=1:ESP",
        "--new=3:0:+16M", f"--typecode=3:{USR_TYPE}", "--change-name=3:USR-A",
        "--attributes=3:=:0101000000000000",
        "--new=4:0:+16M", f"--typecode=4:{USR_TYPE}", "--change-name=4:USR-B",
        "--new=9:0:+4M", "--change-name=9:ROOT", "--attributes=9:set:2",
        disk,
    )  # fmt: skip


def _by_sgdisk_with_a_moved_table(path: Path) -> Path:
    _empty(path)
    run("sgdisk", "--move-main-table=100", path)
    _sgdisk_slots(path)
    return path


def _by_sgdisk_with_256_entries(path: Path) -> Path:
    _empty(path)
    run("sgdisk", "--resize-table=256", path)
    _sgdisk_slots(path)
    return path


def _by_sfdisk(path: Path) -> Path:
    _empty(path)
    script = path.with_suffix(".sfdisk")
    script.write_text(
        "label: gpt\n"
        "1 : size=8MiB, type=U, name=ESP\n"
        f'3 : size=16MiB, type={USR_TYPE}, name=USR-A, attrs="GUID:48,56"\n'
        f"4 : size=16MiB, type={USR_TYPE}, name=USR-B\n"
        '9 : type=L, name=ROOT, attrs="LegacyBIOSBootable"\n'
    )
    with script.open("rb") as stdin:
        subprocess.run([program("sfdisk"), "--quiet", str(path)], check=True, stdin=stdin)
    return path


def _by_cgpt(path: Path) -> Path:
    _empty(path)
    run("cgpt", "create", path)
    for number, first, size, kind, name in (
        (1, 2048, 16384, "efi", "ESP"),
        (3, 18432, 32768, USR_TYPE, "USR-A"),
        (4, 51200, 32768, USR_TYPE, "USR-B"),
    ):
        arguments = ["-i", number, "-b", first, "-s", size, "-t", kind, "-l", name]
        run("cgpt", "add", *arguments, path)
    run("cgpt", "add", "-i", 3, "-P", 1, "-S", 1, path)
    run("cgpt", "boot", "-p", path)
    return path


def _by_us(path: Path) -> Path:
    image = path.with_suffix(".image")
    image.write_bytes(random.Random(3).randbytes(MIB))
    rows = [
        ("ESP", "esp", "", "8MiB"),
        ("OEM", "other", "", "1MiB"),
        ("USR-A", "slot-a", 'part = "usr"', "16MiB"),
        ("USR-B", "slot-b", 'part = "usr"', "16MiB"),
    ]
    text = "".join(
        f'[[partition]]\nlabel = "{label}"\nrole = "{role}"\n{part}\nsize = "{size}"\n'
        for label, role, part, size in rows
    )
    create_disk(parse_layout(text.encode(), name="x"), path, images={"usr": image})
    return path


MAKERS: dict[str, Callable[[Path], Path]] = {
    "sgdisk": _by_sgdisk,
    "sgdisk, moved table": _by_sgdisk_with_a_moved_table,
    "sgdisk, 256 entries": _by_sgdisk_with_256_entries,
    "sfdisk": _by_sfdisk,
    "cgpt": _by_cgpt,
    "us": _by_us,
}
BEYOND_CGPT = {"sgdisk, moved table", "sgdisk, 256 entries"}  # it knows only the usual places


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Memory where there is some: hundreds of flushes by other programs prove nothing here."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        yield tmp_path_factory.mktemp("disks")
        return
    with tempfile.TemporaryDirectory(dir=shared) as name:
        yield Path(name)


@pytest.fixture
def folder(memory: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield Path(name)


Make = Callable[[str], Path]


@pytest.fixture
def make(memory: Path, folder: Path) -> Make:
    """Give a copy of a maker's disk; each maker works once, as sgdisk rests a second a write."""

    def make(maker: str) -> Path:
        master = memory / f"{maker}.img"
        if not master.exists():
            MAKERS[maker](master)
        return copied(master, folder / "disk.img")

    return make


def copied(disk: Path, copy: Path) -> Path:
    run("cp", "--sparse=always", disk, copy)
    return copy


Verb = tuple[str, Callable[[BootControl, Path], object]]
LIFE: list[Verb] = [  # of a machine that updates, falls back, updates again, is rolled back
    ("disarm b", lambda control, _disk: control.disarm(B)),
    ("arm b, 3 tries", lambda control, _disk: control.arm(B, tries=3)),
    ("boot", lambda _control, disk: boot(disk, LAYOUT)),
    ("boot", lambda _control, disk: boot(disk, LAYOUT)),
    ("reject b", lambda control, _disk: control.reject(B)),
    ("arm b, 1 try", lambda control, _disk: control.arm(B, tries=1)),
    ("boot", lambda _control, disk: boot(disk, LAYOUT)),
    ("give the try back", lambda control, _disk: control.arm(B, tries=1)),
    ("boot", lambda _control, disk: boot(disk, LAYOUT)),
    ("confirm b", lambda control, _disk: control.confirm(B)),
    ("disarm a", lambda control, _disk: control.disarm(A)),
    ("arm a, 15 tries", lambda control, _disk: control.arm(A, tries=15)),
    ("reject a", lambda control, _disk: control.reject(A)),
]


@dataclass(frozen=True, slots=True)
class Judges:
    """Compares what we claim with what others read, after each step."""

    disk: Path
    cgpt_reads_it: bool

    def agree(self, step: str) -> None:
        sgdisk_is_content(self.disk)
        table = read_table(self.disk)
        assert table.healthy, (step, table.faults)
        ours = {entry.number: entry.attributes for entry in table.entries}
        assert sgdisk_attributes(self.disk, list(ours)) == list(ours.values()), step
        assert sfdisk_attributes(self.disk) == [bits >> 48 << 48 for bits in ours.values()], step
        if self.cgpt_reads_it:
            cgpt_is_content(self.disk)
            for number in NUMBERS.values():
                assert cgpt_bits(self.disk, number) == BootBits.of(ours[number]), step


@pytest.mark.parametrize("maker", MAKERS)
def test_after_each_of_our_writes_the_others_agree_with_us(maker: str, make: Make) -> None:
    disk = make(maker)
    judges = Judges(disk, cgpt_reads_it=maker not in BEYOND_CGPT)
    judges.agree("as it was made")
    first_sector = disk.read_bytes()[:512]
    control = open_boot_control("gptprio", Places(disk=disk, layout=LAYOUT))
    assert control.read().target is A
    for name, act in LIFE:
        act(control, disk)
        judges.agree(name)
        assert disk.read_bytes()[:512] == first_sector, name
    assert control.read().target is B


@pytest.mark.parametrize("maker", MAKERS)
def test_we_read_what_the_others_print(maker: str, make: Make) -> None:
    disk = make(maker)
    table = read_table(disk)
    facts = sfdisk_facts(disk)
    partitions = facts["partitions"]
    assert isinstance(partitions, list)
    assert str(table.header.disk_guid).upper() == facts["id"]
    assert (table.header.first_usable_lba, table.header.last_usable_lba) == (
        facts["firstlba"],
        facts["lastlba"],
    )
    assert [
        {
            "node": f"{disk}{entry.number}",
            "start": entry.first_lba,
            "size": entry.sectors,
            "type": str(entry.type_guid).upper(),
            "uuid": str(entry.part_guid).upper(),
            "name": entry.name,
        }
        for entry in table.entries
    ] == [{key: value for key, value in one.items() if key != "attrs"} for one in partitions]


@pytest.mark.parametrize("maker", ["sgdisk", "sfdisk", "cgpt", "us"])
@pytest.mark.parametrize("sector", [1, 2, -1, -33], ids=["header", "entries", "backup", "its own"])
def test_what_we_mend_is_byte_for_byte_what_cgpt_mends(maker: str, sector: int, make: Make) -> None:
    ours = make(maker)
    content = bytearray(ours.read_bytes())
    at = sector * 512 % len(content)
    content[at : at + 512] = bytes(512)
    ours.write_bytes(content)
    theirs = copied(ours, ours.with_name("theirs.img"))
    table = read_table(ours)
    write_table(ours, table, table)
    run("cgpt", "repair", theirs)
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("cgpt_first", [False, True], ids=["grown", "half mended by cgpt"])
def test_a_grown_disk_is_mended_to_its_new_end(make: Make, *, cgpt_first: bool) -> None:
    disk = make("sgdisk")
    with disk.open("r+b") as file:
        file.truncate(80 * MIB)
    assert "INVALID" in run("cgpt", "show", disk)
    if cgpt_first:  # Debian's leaves the primary pointing at the old backup
        run("cgpt", "repair", disk)
    open_boot_control("gptprio", Places(disk=disk, layout=LAYOUT)).confirm(A)  # changes no bit
    Judges(disk, cgpt_reads_it=True).agree("grown")
    header = read_table(disk).header
    last = 80 * MIB // 512 - 1
    assert (header.other_lba, header.last_usable_lba) == (last, last - 33)


@pytest.mark.parametrize(
    ("before", "wanted"),
    [
        ((1, 0), B), ((1, 2), A), ((2, 1), B), ((15, 3), B), ((3, 3), B), ((0, 0), B), ((0, 5), A),
        ((7, 5), A), ((15, 15), B),
    ],
)  # fmt: skip
def test_ranks_are_those_of_cgpt_prioritize(
    before: tuple[int, int], wanted: Slot, make: Make
) -> None:
    disk = make("sgdisk")
    for slot, priority in zip(Slot, before, strict=True):
        bits = ("-P", priority, "-T", 2, "-S", 0)
        run("cgpt", "add", "-i", NUMBERS[slot], "-t", CHROMEOS_KERNEL_TYPE, *bits, disk)
    theirs = copied(disk, disk.with_name("theirs.img"))
    GptPriorities(disk, LAYOUT, rules=CHROMEOS).arm(wanted, tries=2)
    run("cgpt", "prioritize", "-i", NUMBERS[wanted], theirs)
    ranks = [[cgpt_bits(path, 3).priority, cgpt_bits(path, 4).priority] for path in (disk, theirs)]
    assert ranks[0] == ranks[1]


def test_the_old_slot_of_a_flatcar_disk_is_chosen_by_cgpt_add(make: Make) -> None:
    """As docs/migrating-a-fleet.md goes back: `prioritize` knows ChromeOS kernels only."""
    disk = make("sgdisk")
    control = GptPriorities(disk, LAYOUT)
    control.confirm(A)
    control.arm(B, tries=1)
    control.confirm(B)
    assert control.read().target is B
    run("cgpt", "add", "-i", NUMBERS[A], "-P", 15, "-S", 1, disk)
    state = control.read()
    assert (state.target, state.slots[A].confirmed, state.slots[B].confirmed) == (A, True, True)
    Judges(disk, cgpt_reads_it=True).agree("gone back")


@pytest.mark.parametrize("by_us", [False, True], ids=["sgdisk", "us"])
def test_4096_byte_sectors_on_a_loop_device(folder: Path, *, by_us: bool) -> None:
    disk = folder / "disk.img"
    if by_us:
        text = "".join(
            f'[[partition]]\nlabel = "{label}"\nrole = "{role}"\n{part}\nsize = "8MiB"\n'
            for label, role, part in (
                ("ESP", "esp", ""),
                ("OEM", "other", ""),
                ("USR-A", "slot-a", 'part = "usr"'),
                ("USR-B", "slot-b", 'part = "usr"'),
            )
        )
        layout = parse_layout(f"sector_size = 4096\n{text}".encode(), name="x")
        image = folder / "image"
        image.write_bytes(b"first")
        create_disk(layout, disk, images={"usr": image})
    else:
        with bare_loop_device(_empty(disk), sector_size=4096) as device:
            _sgdisk_slots(device)
    with loop_device(disk, sector_size=4096) as device:
        assert read_table(device).sector_size == 4096
        judges = Judges(device, cgpt_reads_it=False)
        judges.agree("as it was made")
        assert sfdisk_facts(device)["sectorsize"] == 4096
        control = open_boot_control("gptprio", Places(disk=device, layout=LAYOUT))
        for name, act in LIFE:
            act(control, device)
            judges.agree(name)
        regions = resolve(device, LAYOUT)
        assert regions[A]["usr"].path == Path(f"{device}p3")
    assert read_table(disk).sector_size == 4096  # and the same as a plain file
    assert open_boot_control("gptprio", Places(disk=disk, layout=LAYOUT)).read().target is B
