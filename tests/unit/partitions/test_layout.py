"""The TOML of a disk layout: what it may say, and what is said about mistakes."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest

from partitions.attributes import BootBits
from partitions.errors import LayoutInvalidError
from partitions.firmware import USR_TYPE
from partitions.gpt import Table
from partitions.layout import (
    DiskLayout,
    Filesystem,
    Role,
    parse_layout,
    read_layout,
)
from partitions.placement import (
    BIOS_BOOT_TYPE,
    ESP_TYPE,
    LEGACY_BOOTABLE,
    LINUX_TYPE,
    guids_of,
    plan,
)

MIB = 1024 * 1024

SMALL = """\
[[partition]]
label = "ESP"
role = "esp"
size = "4MiB"
filesystem = "vfat"

[[partition]]
label = "USR-A"
role = "slot-a"
part = "usr"
size = "8MiB"

[[partition]]
label = "USR-B"
role = "slot-b"
part = "usr"
size = 8388608

[[partition]]
label = "STATE"
role = "state"
size = "2MiB"
"""

FILES = """
[[file]]
part = "kernel"
a = "/bascule/a/linux"
b = "/bascule/b/linux"

[[file]]
part = "initrd"
a = "/bascule/a/initrd"
b = "/bascule/b/initrd"
"""


def _layout(text: str) -> DiskLayout:
    return parse_layout(text.encode(), name="disk.toml")


def _plan(text: str, *, confirmed_a: bool = False) -> Table:
    layout = _layout(text)
    return plan(layout, confirmed_a=confirmed_a, new_guid=guids_of(layout))


def _wrong(text: str) -> str:
    with pytest.raises(LayoutInvalidError) as caught:
        _plan(text)
    assert (caught.value.code, caught.value.exit_status) == ("layout-invalid", 2)
    return str(caught.value)


def test_a_layout_says_what_each_partition_is_for() -> None:
    layout = _layout(SMALL)
    assert [one.role for one in layout.partitions] == [
        Role.ESP,
        Role.SLOT_A,
        Role.SLOT_B,
        Role.STATE,
    ]
    assert [one.size_bytes for one in layout.partitions] == [4 * MIB, 8 * MIB, 8 * MIB, 2 * MIB]
    assert [one.part for one in layout.partitions] == ["", "usr", "usr", ""]
    assert layout.partitions[0].filesystem is Filesystem.VFAT
    assert [entry.type_guid for entry in _plan(SMALL).entries] == [
        ESP_TYPE,
        USR_TYPE,
        USR_TYPE,
        LINUX_TYPE,
    ]


def test_partitions_follow_one_another_aligned_and_the_disk_is_as_large_as_they_need() -> None:
    table = _plan(SMALL)
    assert [entry.first_lba * 512 // MIB for entry in table.entries] == [1, 5, 13, 21]
    assert table.disk_sectors * 512 == 24 * MIB


def test_with_4096_byte_sectors_the_same_bytes_are_used() -> None:
    table = _plan("sector_size = 4096\n" + SMALL)
    assert [entry.first_lba * 4096 // MIB for entry in table.entries] == [1, 5, 13, 21]


def test_the_last_partition_may_take_the_rest() -> None:
    table = _plan('size = "64MiB"\n' + SMALL.replace('"2MiB"', '"rest"'))
    last = table.entries[-1]
    assert last.first_lba * 512 == 21 * MIB
    assert (last.last_lba + 1) * 512 == 63 * MIB


def test_only_the_first_partition_of_a_slot_carries_boot_bits() -> None:
    more = "".join(
        f'[[partition]]\nlabel = "K-{slot}"\nrole = "slot-{slot}"\npart = "kernel"\nsize = "1MiB"\n'
        for slot in "ab"
    )
    table = _plan(SMALL + more, confirmed_a=True)
    by_name = {entry.name: entry for entry in table.entries}
    assert [by_name[name].type_guid for name in ("USR-A", "K-a")] == [USR_TYPE, LINUX_TYPE]
    bits = {name: BootBits.of(entry.attributes) for name, entry in by_name.items()}
    assert bits.pop("USR-A") == BootBits(priority=1, successful=True)
    assert set(bits.values()) == {BootBits()}


def test_a_slot_may_consist_of_partitions_and_files() -> None:
    layout = _layout(SMALL + FILES)
    assert layout.parts == ("usr", "kernel", "initrd")
    assert layout.file_name("kernel", Role.SLOT_A) == "/bascule/a/linux"
    assert layout.file_name("initrd", Role.SLOT_B) == "/bascule/b/initrd"
    assert layout.file_name("usr", Role.SLOT_A) is None
    assert layout.esp is layout.partitions[0]


def test_the_kernel_is_told_its_slot_wherever_the_command_line_wants_it() -> None:
    layout = _layout('cmdline = "root=PARTLABEL=root-{slot}  ro"\n' + SMALL)
    assert layout.kernel_words(Role.SLOT_A) == "bascule.slot=a root=PARTLABEL=root-a ro"
    assert layout.kernel_words(Role.SLOT_B) == "bascule.slot=b root=PARTLABEL=root-b ro"


def test_a_panic_resets_and_either_copy_of_the_table_does_unless_the_layout_says_otherwise() -> (
    None
):
    assert _layout(SMALL).kernel_words(Role.SLOT_A) == "bascule.slot=a panic=-1 gpt quiet"
    assert _layout('cmdline = ""\n' + SMALL).kernel_words(Role.SLOT_A) == "bascule.slot=a"


def test_contents_lie_beside_the_layout(tmp_path: Path) -> None:
    path = tmp_path / "disk.toml"
    path.write_text(SMALL.replace('"vfat"', '"vfat"\ncontents = "esp"'))
    assert [one.contents for one in read_layout(path).partitions] == [
        tmp_path / "esp",
        None,
        None,
        None,
    ]


def test_a_loader_that_counts_elsewhere_gets_no_boot_bits_and_no_type_for_them() -> None:
    layout = _layout(SMALL)
    new = guids_of(layout)
    table = plan(layout, confirmed_a=True, new_guid=new, boot_bits=False, bootable_esp=True)
    assert [entry.attributes for entry in table.entries] == [LEGACY_BOOTABLE, 0, 0, 0]
    assert {entry.type_guid for entry in table.entries[1:]} == {LINUX_TYPE}


def test_a_partition_for_grub_on_a_bios_has_its_type() -> None:
    text = SMALL.replace('role = "state"', 'role = "bios-boot"')
    assert _plan(text).entries[-1].type_guid == BIOS_BOOT_TYPE


def test_without_a_first_image_nothing_is_bootable() -> None:
    assert {entry.attributes for entry in _plan(SMALL).entries} == {0}


def test_a_seed_makes_the_same_guids_again_and_other_seeds_others() -> None:
    first, again, other = (_plan(f'seed = "{seed}"\n{SMALL}') for seed in ("x", "x", "y"))
    assert first == again
    guids = {entry.part_guid for table in (first, other) for entry in table.entries}
    assert len(guids) == 8
    assert first.header.disk_guid != other.header.disk_guid


def test_without_a_seed_guids_are_random() -> None:
    assert _plan(SMALL).header.disk_guid != _plan(SMALL).header.disk_guid


def test_guids_that_are_given_are_taken() -> None:
    guid = "7130c94a-213a-4e5a-8e26-6cce9662f132"
    text = SMALL.replace('"esp"', f'"esp"\nuuid = "{guid}"\ntype = "{LINUX_TYPE}"', 1)
    table = _plan(f'guid = "{ESP_TYPE}"\n{text}')
    assert table.header.disk_guid == ESP_TYPE
    assert table.entries[0].part_guid == UUID(guid)
    assert table.entries[0].type_guid == LINUX_TYPE


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = [", "disk.toml: Invalid value (at end of document)"),
        ("a = = 1", "disk.toml: Invalid value (at line 1, column 5)"),
        ("", "disk.toml, line 1: Object missing required field `partition`"),
        ("speed = 3\n" + SMALL, "disk.toml, line 1: Object contains unknown field `speed`"),
        (SMALL + "sise = 1\n", "disk.toml, line 23: Object contains unknown field `sise`"),
        (SMALL.replace('"8MiB"', '"8MB"'), "disk.toml, line 11: '8MB' is no size such as"),
        (SMALL.replace('"8MiB"', '"0MiB"'), "disk.toml, line 11: 0MiB is not in 1 to"),
        (SMALL.replace('"8MiB"', '"99999TiB"'), "disk.toml, line 11: 99999TiB is not in 1 to"),
        (SMALL.replace("8388608", "8388609"), "line 17: 8388609 is not a multiple of the sector"),
        (SMALL.replace("8388608", "-512"), "line 17: -512 is not in 1 to"),
        (SMALL.replace("8388608", "true"), "line 17: Expected `int | str`, got `bool`"),
        (SMALL.replace('"state"', '"swap"'), "disk.toml, line 21: Invalid enum value 'swap'"),
        (SMALL.replace('"vfat"', '"zfs"'), "disk.toml, line 5: Invalid enum value 'zfs'"),
        (SMALL.replace('"STATE"', '"ESP"'), "line 20: the label 'ESP' is used twice"),
        (SMALL.replace('"STATE"', '""'), "line 20: a label has 1 to 36 characters"),
        (SMALL.replace('"STATE"', f'"{"x" * 37}"'), "line 20: a label has 1 to 36 characters"),
        (SMALL.replace('"STATE"', '"a\\nb"'), "line 20: a label has 1 to 36 characters"),
        (SMALL.replace('"8MiB"', '"rest"'), "line 11: only the last partition can take the rest"),
        (SMALL.replace('"2MiB"', '"rest"'), "so the disk needs a `size`"),
        (SMALL.replace('"state"', '"state"\npart = "usr"'), "line 22: `part` names a part of a"),
        (SMALL.replace('role = "slot-b"\npart = "usr"', 'role = "slot-b"'), "`part` names a part"),
        (
            SMALL.replace('"slot-b"', '"slot-b"\nfilesystem = "ext4"'),
            "line 16: a slot holds images, no file system is made",
        ),
        (
            SMALL.replace('"slot-b"\npart = "usr"', '"slot-b"\npart = "root"'),
            "slot a has the parts ['usr'], slot b ['root']",
        ),
        (SMALL.replace('"slot-b"', '"slot-a"'), "slot a has the parts ['usr', 'usr'], slot b []"),
        ("sector_size = 520\n" + SMALL, "disk.toml, line 1: 520 is not 512 or 4096"),
        ("alignment = 0\n" + SMALL, "disk.toml, line 1: 0 is not in 1 to"),
        ('guid = "x"\n' + SMALL, "disk.toml, line 1: Invalid UUID"),
        ("partition = []", "disk.toml, line 1: a disk has 1 to 128 partitions"),
        ('size = "16MiB"\n' + SMALL, "the partitions do not fit a disk of 16777216 bytes"),
        (
            SMALL.replace('"esp"', f'"esp"\nuuid = "{ESP_TYPE}"').replace(
                '"state"', f'"state"\nuuid = "{ESP_TYPE}"'
            ),
            "have the same GUID",
        ),
        (
            SMALL.replace('"2MiB"', '"2MiB"\ncontents = "x"'),
            "line 23: contents need a `filesystem`",
        ),
        (SMALL + FILES.replace('"kernel"', '"usr"'), "line 25: the part 'usr' is there already"),
        (SMALL + FILES.replace('"kernel"', '""'), "line 25: the part '' is there already, or no"),
        (SMALL + FILES.replace('"initrd"', '"kernel"'), "line 30: the part 'kernel' is there"),
        (SMALL + FILES.replace("/bascule/a/linux", "linux"), "line 26: 'linux' is no path on the"),
        (SMALL + FILES.replace("/bascule/a/linux", "/../x"), "line 26: '/../x' is no path on the"),
        (SMALL + FILES.replace("/bascule/a/linux", "/x/"), "line 26: '/x/' is no path on the ESP"),
        (
            SMALL + FILES.replace("/bascule/b/linux", "/Bascule/a/Linux"),
            "line 27: the file '/Bascule/a/Linux' is used twice",
        ),
        (SMALL + FILES.replace("b = ", "c = "), "unknown field `c`"),
        (
            SMALL.replace('filesystem = "vfat"\n', "") + FILES,
            "line 23: files lie on a partition of role esp with filesystem vfat",
        ),
        ("cmdline = 'x=\"y\"'\n" + SMALL, "line 1: 'x=\"y\"' has signs that not every loader"),
        ('cmdline = "a{b}"\n' + SMALL, "line 1: 'a{b}' has signs that not every loader passes on"),
        ('cmdline = "a$b"\n' + SMALL, "line 1: 'a$b' has signs that not every loader passes on"),
        ('boot_folder = "boot"\n' + SMALL, "line 1: 'boot' is no absolute path"),
    ],
)
def test_a_mistake_is_named_with_file_and_line(text: str, said: str) -> None:
    assert said in _wrong(text)


def test_a_layout_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(LayoutInvalidError, match=r"nowhere\.toml cannot be read: No such file"):
        read_layout(tmp_path / "nowhere.toml")
    with pytest.raises(LayoutInvalidError, match="Is a directory"):
        read_layout(tmp_path)


def test_a_layout_of_unlikely_length_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "long.toml"
    path.write_bytes(b"#" * 300_000)
    with pytest.raises(LayoutInvalidError, match="has more than 262144 bytes"):
        read_layout(path)


def test_bytes_that_are_no_text_are_a_mistake_not_a_crash() -> None:
    assert "disk.toml" in _wrong(b"\xff\xfe\x00".decode("latin-1"))
    with pytest.raises(LayoutInvalidError):
        parse_layout(b"\xff\xfe\x00", name="disk.toml")
