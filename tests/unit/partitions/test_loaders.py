"""What each loader puts on a disk, as far as no other program has to be run for it."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from partitions import loaders
from partitions.boot.efi import EfiBootEntries
from partitions.disk_settings import slots_settings
from partitions.efi_variables import EfiVariables
from partitions.errors import LayoutInvalidError, PartitionsError, ToolMissingError
from partitions.grub_firmware import GrubMemory
from partitions.layout import DiskLayout, parse_layout, read_layout
from partitions.loaders import LOADERS, Job, check, efi, grub, systemd_boot, uboot
from partitions.placement import guids_of, plan
from partitions.slots import Slot

LAYOUTS = Path(loaders.__file__).parents[1] / "layouts"
REFERENCE = (LAYOUTS / "reference.toml").read_text()
WORDS = "console=ttyS0 panic=-1 gpt quiet"


def _layout(text: str = REFERENCE) -> DiskLayout:
    return parse_layout(f'seed = "x"\n{text}'.encode(), name="disk.toml")


def _job(folder: Path, layout: DiskLayout, *, installed: bool = True) -> Job:
    table = plan(layout, confirmed_a=installed, new_guid=guids_of(layout))
    return Job(layout=layout, table=table, installed=installed, stage=folder)


def _without(text: str, kind: str, name: str) -> str:
    """Return a layout without one of its tables."""
    head, *tables = text.split("[[")
    kept = [one for one in tables if not (one.startswith(kind) and f'"{name}"' in one)]
    assert len(kept) == len(tables) - 1
    return "[[".join([head, *kept])


@pytest.mark.parametrize("path", sorted(LAYOUTS.glob("*.toml")), ids=lambda path: path.stem)
def test_each_layout_that_is_shipped_suits_each_loader(path: Path) -> None:
    layout = read_layout(path)
    for name, loader in LOADERS.items():
        check(name, loader, layout)
    plan(layout, confirmed_a=True, new_guid=guids_of(layout))


@pytest.mark.parametrize("name", [name for name in LOADERS if name != "gptprio"])
def test_a_loader_needs_a_place_and_a_kernel(name: str) -> None:
    bare = REFERENCE.split("[[file]]")[0]
    with pytest.raises(LayoutInvalidError, match=f"{name} starts the file of part kernel"):
        check(name, LOADERS[name], _layout(bare))
    bare = bare.replace('filesystem = "vfat"\n', "")
    with pytest.raises(LayoutInvalidError, match=f"{name} needs a partition of role esp"):
        check(name, LOADERS[name], _layout(bare))


def test_boot_bits_need_neither() -> None:
    check(
        "gptprio",
        LOADERS["gptprio"],
        _layout(_without(REFERENCE, "partition", "esp").split("[[file")[0]),
    )


def test_a_boot_folder_of_ones_own_is_where_all_paths_begin() -> None:
    layout = _layout(REFERENCE.replace('"/boot"', '"/efi"'))
    said = slots_settings(layout, LOADERS["grub-efi"])
    assert 'grubenv = "/efi/grub/grubenv"' in said
    assert 'kernel = "FILE=/efi/bascule/a/linux"' in said
    assert 'boot_folder = "/efi"' in slots_settings(layout, LOADERS["systemd-boot"])


def test_grubs_environment_is_one_that_grub_and_the_node_understand() -> None:
    for installed, target in ((True, Slot.A), (False, None)):
        memory = GrubMemory.of(grub._environment(installed=installed))
        assert memory.target is target
        assert memory.values == {
            b"ORDER": b"A B",
            b"A_OK": b"1" if installed else b"0",
            b"A_TRY": b"0",
            b"B_OK": b"0",
            b"B_TRY": b"0",
        }


def test_the_boot_sector_knows_where_grub_begins_and_leaves_the_table_alone() -> None:
    sector = grub._boot_sector(bytes(range(256)) * 2, 2048)
    assert len(sector) == 440
    assert struct.unpack_from("<Q", sector, 0x5C) == (2048,)
    core = grub._placed_core(b"x" * 1300, 2048)
    assert len(core) == 3 * 512
    assert struct.unpack_from("<QH", core, 0x1F4) == (2049, 2)


def test_grub_is_shown_on_the_serial_line_that_is_the_kernels_console() -> None:
    def said(words: str) -> str:
        return grub._bios_terminal(_layout(REFERENCE.replace(WORDS, words)))

    assert "serial --unit=0 --speed=115200;" in said("console=ttyS0")
    assert "serial --unit=1 --speed=9600;" in said("quiet console=ttyS1,9600n8")
    assert said("console=tty0") == ""
    assert "terminal_input" not in said("console=ttyS0")


def test_grub_on_a_bios_needs_its_partition_and_sectors_that_a_bios_reads(tmp_path: Path) -> None:
    for text, words in (
        (_without(REFERENCE, "partition", "bios-boot"), "needs a partition of role bios-boot"),
        (f"sector_size = 4096\n{REFERENCE}", "a BIOS reads sectors of 512 bytes"),
    ):
        with pytest.raises(LayoutInvalidError, match=words):
            grub.prepare_bios(_job(tmp_path, _layout(text)))


def test_the_firmware_gets_an_entry_for_each_slot_and_a_alone_in_its_order(tmp_path: Path) -> None:
    firmware = efi.prepare(_job(tmp_path, _layout())).firmware
    assert list(firmware) == ["Boot0BA0", "Boot0BA1", "BootOrder"]
    assert firmware["BootOrder"] == b"\xa0\x0b"
    assert list(efi.prepare(_job(tmp_path, _layout(), installed=False)).firmware) == [
        "Boot0BA0",
        "Boot0BA1",
    ]


def test_the_keeper_of_the_firmwares_entries_finds_slot_a_confirmed(tmp_path: Path) -> None:
    store = EfiVariables(tmp_path)
    for name, value in efi.prepare(_job(tmp_path, _layout())).firmware.items():
        store.write(name, value)
    keeper = EfiBootEntries(store, booted=Slot.A)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    keeper.confirm(Slot.A)
    state = keeper.read()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert state.target is Slot.A
    assert state.slots[Slot.A].confirmed
    assert not state.slots[Slot.B].armed


def test_an_entry_names_partition_kernel_initrd_and_command_line(tmp_path: Path) -> None:
    job = _job(tmp_path, _layout())
    entry = efi.prepare(job).firmware["Boot0BA1"]
    attributes, length = struct.unpack_from("<IH", entry)
    title, _, rest = entry[6:].decode("utf-16-le", "surrogatepass").partition("\0")
    assert (attributes, title) == (1, "bascule-b")
    path = entry[6 + 2 * len("bascule-b\0") :][:length]
    assert path[:4] == bytes([4, 1, 42, 0])
    number, first, count = struct.unpack_from("<IQQ", path, 4)
    assert (number, first, count) == (job.esp.number, job.esp.first_lba, job.esp.sectors)
    assert uuid.UUID(bytes_le=path[24:40]) == job.esp.part_guid
    assert path[40:42] == b"\2\2"
    assert path[46:-4].decode("utf-16-le") == "\\bascule\\b\\linux\0"
    assert path[-4:] == b"\x7f\xff\4\0"
    words = entry[6 + 2 * len("bascule-b\0") + length :].decode("utf-16-le")
    assert words == f"initrd=\\bascule\\b\\initrd bascule.slot=b {WORDS}\0"
    assert rest


def test_a_kernel_that_brings_its_initrd_is_started_without_one(tmp_path: Path) -> None:
    layout = _layout(_without(REFERENCE, "file", "initrd"))
    slot = _job(tmp_path, layout).slots()[0]
    assert efi.load_option(slot, _job(tmp_path, layout).esp).endswith(
        f"bascule.slot=a {WORDS}\0".encode("utf-16-le")
    )
    assert "initrd" not in systemd_boot.template(slot)
    assert "initrd" not in grub._boot_function(slot, grub._EFI_WORDS)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("/bascule/b/linux", "/b/linux"), "script loads /bascule/a"),
        (lambda text: _without(text, "file", "initrd"), "the layout has /bascule/a/linux and noth"),
        (lambda text: text.replace(WORDS, "root=PARTLABEL=root-{slot}"), "no {slot}"),
    ],
)
def test_u_boots_script_is_given_only_what_it_can_start(
    tmp_path: Path, change: Callable[[str], str], said: str
) -> None:
    with pytest.raises(LayoutInvalidError, match=said):
        uboot.prepare(_job(tmp_path, _layout(change(REFERENCE))))


@pytest.mark.parametrize(
    ("module", "constant", "name"),
    [
        (grub, "_LIBRARY", "grub-bios"),
        (grub, "_LIBRARY", "grub-efi"),
        (systemd_boot, "PROGRAM", "systemd-boot"),
    ],
)
def test_a_loader_that_is_not_installed_here_is_told_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: object, constant: str, name: str
) -> None:
    monkeypatch.setattr(module, constant, tmp_path / "nowhere")
    with pytest.raises(PartitionsError) as caught:
        LOADERS[name].prepare(_job(tmp_path, _layout()))
    assert isinstance(caught.value, ToolMissingError)
    assert str(tmp_path / "nowhere") in str(caught.value)
    assert "Debian's package" in str(caught.value)
